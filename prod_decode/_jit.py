"""Typed access to numba's compiler, with the one set of options that the whole package uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba
from llvmlite.binding import ffi

# vLLM 0.32 reads `__dict__` of every value in every module; llvmlite's library answers with a C function of that name,
# and a worker that has loaded numba dies ("'_lib_fn_wrapper' object has no attribute 'get'"). This is what it looks up.
getattr(ffi.lib, "_fntab", {}).setdefault("__dict__", {})

_F = TypeVar("_F", bound=Callable[..., object])


def jit(function: _F) -> _F:
    """Compile `function` on first use, and keep the machine code on disk for the next process.

    The GIL stays held: the scratch buffers of a matcher are shared by the threads that use it.
    """
    compiled: _F = numba.njit(cache=True, error_model="numpy")(function)
    return compiled


def inline(function: _F) -> _F:
    """Like `jit`, for the few functions that a loop calls once a byte: inlined by numba itself."""
    compiled: _F = numba.njit(cache=True, error_model="numpy", inline="always")(function)
    return compiled
