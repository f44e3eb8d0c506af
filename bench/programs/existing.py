"""Whether the functions that code calls exist in the libraries that are installed."""

from __future__ import annotations

import ast
import importlib
import warnings
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from bench.programs.names import Names, Ref
from bench.programs.syntax import end_of, ends_behind, parse_fragment

_MISSING = object()


def calls(prompt: str, output: str) -> list[Ref]:
    """What the calls that end in an output call, in the order of the text, as far as the text tells.

    Returns:
        For each the full path of a function, with `instance` if it is a method of an instance of a known class.
    """
    walker = _Calls(end_of(prompt))
    for statement in parse_fragment(prompt + output).statements():
        walker.walk(statement)
    return walker.found


def all_exist(prompt: str, output: str) -> tuple[bool | None, str | None]:
    """Whether all functions that an output calls in known modules exist, and why that is not known.

    A module is known if it is installed here; it is imported. Of methods, those of classes that the text names count.

    Returns:
        (None, reason) where the output calls no function of a known module.
    """
    known = [answer for call in calls(prompt, output) if (answer := exists(call)) is not None]
    return (all(known), None) if known else (None, "no call of a module that is installed here")


@cache
def exists(call: Ref) -> bool | None:
    """Whether what is called exists; None if its module is not installed, or the class makes its names itself."""
    owner, _, name = call.path.rpartition(".")
    if not owner:
        return None  # a name of the program, or a built-in function
    found = _object(owner)
    if found is None:
        return None
    if found is _MISSING:
        return False
    makes_names = hasattr(type(found), "__getattr__") or (call.instance and hasattr(found, "__getattr__"))
    answer = _member(found, owner, name) is not _MISSING
    # A table has its columns as names, too; a call of one is not what anybody means.
    return None if not answer and makes_names and not owner.startswith("pandas.") else answer


def _object(path: str) -> Any:
    """What a path leads to; None if its top-level module cannot be imported, `_MISSING` if it leads nowhere."""
    top, *rest = path.split(".")
    try:
        if find_spec(top) is None:
            return None
    except (ImportError, ValueError):
        return None
    found = _imported(top)
    if found is None:
        return None
    at = top
    for name in rest:
        found = _member(found, at, name)
        if found is _MISSING:
            return _MISSING
        at += f".{name}"
    return found


def _member(found: Any, path: str, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated
        try:
            return getattr(found, name)
        except Exception:  # noqa: BLE001 (a library may raise anything for a name that is gone)
            pass
    module = _imported(f"{path}.{name}") if isinstance(found, ModuleType) else None
    return _MISSING if module is None else module


def _imported(module: str) -> ModuleType | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except Exception:  # noqa: BLE001 (whatever the code of others does)
            return None


class _Calls(Names):
    """Collects what is called behind a position."""

    def __init__(self, after: tuple[int, int]) -> None:
        super().__init__()
        self.found: list[Ref] = []
        self._after = after

    def visit_Call(self, node: ast.Call) -> None:  # noqa: N802
        self.generic_visit(node)
        function = node.func
        # A call that the prompt has begun is the prompt's; a name that ends in the output is the output's.
        if not ends_behind(function, self._after):
            return
        if isinstance(function, ast.Attribute):
            owner = self.resolve(function.value)
            if owner is not None:
                self.found.append(Ref(f"{owner.path}.{function.attr}", owner.instance))
        elif isinstance(function, ast.Name):
            ref = self.resolve(function)
            if ref is not None and not ref.instance:
                self.found.append(ref)
