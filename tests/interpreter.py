"""Triton's interpreter, with less to do for the same results."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any


def quicken() -> None:
    """Look for the functions of Triton's language once.

    The interpreter replaces them by its own whenever a kernel calls another function, and looks at every name of the
    language to find them: a quarter of the time of our kernels. Which names they are does not change.
    """
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    names: dict[int, list[str]] = {}

    def patch(language: Any, builder: Any, scope: Any) -> None:
        if id(language) not in names:
            names[id(language)] = [name for name, member in inspect.getmembers(language) if is_builtin(member)]
        for name in names[id(language)]:
            if is_builtin(member := getattr(language, name)):
                interpreter._patch_attr(language, name, member, builder, scope)

    interpreter._patch_builtin = patch


def in_blocks_of(size: int, function: FunctionType, was: int) -> None:
    """Have a function that launches a kernel cut rows into blocks of another size.

    For the interpreter a block of 65,536 is as much work as one of 1,024, which are for the registers of a GPU.
    """
    code = function.__code__
    if was not in code.co_consts:
        raise ValueError(f"{function.__qualname__}: expected blocks of {was}, got {code.co_consts}")
    function.__code__ = code.replace(co_consts=tuple(size if one == was else one for one in code.co_consts))
