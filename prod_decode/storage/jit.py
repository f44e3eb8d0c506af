"""Typed access to numba's compiler, with the one set of options that the whole package uses; and its cache on disk.

Machine code is kept for the next process in the first of these folders that can be written: the one that the variable
NUMBA_CACHE_DIR names, `__pycache__` beside the source, numba's in the user's cache (so far numba's own order), and one
of this user alone below the temporary folder. Where there is none, every process compiles for itself, and says so.
Folders are looked for when a function is first called: import writes nothing. What numba does otherwise, each found
by trying:

- It raises "cannot cache function" at import where no folder can be written, as in a container with a read-only image
  and no home; and where there is no home at all, it makes a folder `~` in the current directory.
- It keeps to the code of a function while the file of that function is the same, though the machine code holds that of
  functions from other files, which it calls: after an upgrade, the old version's. Here any edit in the package counts.
- It fails where code cannot be read or kept: a full disk, a file that was cut short, one of another user's umask.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging

# Before numba, which registers `weakref.finalize` for the end of the program. What is registered last runs first, so
# this would wait for vLLM's engine before vLLM's finalizer has ended it: for ever.
import multiprocessing.util  # noqa: F401
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from prod_decode.errors import ProdError, reason
from prod_decode.storage.own_folder import own_folder

try:
    import numba
    from llvmlite.binding import ffi
    from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache, UserWideCacheLocator
except ValueError as error:  # as of NUMBA_NUM_THREADS=-1
    given = ", ".join(sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("NUMBA_")))
    raise ProdError(
        f"numba does not start: {reason(error).rstrip('.')}: set other values than {given or 'none'}, or none"
    ) from None

# vLLM 0.32 reads `__dict__` of every value in every module; llvmlite's library answers with a C function of that name,
# and a worker that has loaded numba dies ("'_lib_fn_wrapper' object has no attribute 'get'"). This is what it looks up.
getattr(ffi.lib, "_fntab", {}).setdefault("__dict__", {})

_F = TypeVar("_F", bound=Callable[..., object])
_LOG = logging.getLogger(__name__)


def jit(function: _F) -> _F:
    """Compile `function` on first use, and keep the machine code on disk for the next process.

    The GIL stays held: the scratch buffers of a matcher are shared by the threads that use it.
    """
    return _kept(function)


def inline(function: _F) -> _F:
    """Like `jit`, for the few functions that a loop calls once a byte: inlined by numba itself."""
    return _kept(function, inline="always")


def _kept(function: _F, **options: str) -> _F:
    compiled: _F = numba.njit(error_model="numpy", **options)(function)
    if compiled is not function:  # as it is with NUMBA_DISABLE_JIT
        compiled._cache = _Cache(function)  # type: ignore[attr-defined]
    return compiled


class _Cache:
    """What numba asks for the machine code of a function; nothing that is wrong with the disk stops a program."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    @functools.cached_property
    def _disk(self) -> Any:
        try:
            return _DiskCache(self._function)
        except (OSError, RuntimeError, ValueError) as error:  # ValueError: a path that is not UTF-8
            _tell_uncached(error)
            return NullCache()

    @property
    def cache_path(self) -> str | None:
        """The folder, or None."""
        path: str | None = self._disk.cache_path
        return path

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The machine code for a signature, or None: numba compiles it then."""
        try:
            found = self._disk.load_overload(signature, target)
        except Exception as error:  # noqa: BLE001 (a file that was cut short makes pickle raise nearly anything)
            _LOG.debug("machine code in %s is compiled again: %r", self.cache_path, error)
            found = None
            with contextlib.suppress(OSError):
                self._disk.flush()  # otherwise keeping it would read the same file, and fail again
        if found is None and self.cache_path:
            _tell(
                logging.INFO,
                f"compiling for this machine, once for each part: up to a minute in all (kept in {self.cache_path})",
            )
        return found

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep machine code for the next process, if that is possible."""
        try:
            self._disk.save_overload(signature, compiled)
        except OSError as error:
            _tell_uncached(error)

    def flush(self) -> None:
        """Forget what is on disk."""
        self._disk.flush()


_told: set[int] = set()


def _tell(level: int, message: str) -> None:
    """Log a line, one of each level in a process."""
    if level not in _told:
        _told.add(level)
        _LOG.log(level, "%s", message)


def _tell_uncached(error: Exception) -> None:
    _tell(
        logging.WARNING,
        f"machine code cannot be kept, so that every start compiles for up to a minute: {error}. Set "
        "NUMBA_CACHE_DIR to a folder with room that this user can write, and nobody else",
    )


class _HomeLocator(UserWideCacheLocator):  # type: ignore[misc]
    """In the user's cache, for a user with a home."""

    @classmethod
    def from_function(cls, function: Any, file: str) -> Any:
        """The locator, or None where the folder cannot be written."""
        path = cls(function, file).get_cache_path()
        return super().from_function(function, file) if Path(path).is_absolute() else None


class _TemporaryLocator(UserWideCacheLocator):  # type: ignore[misc]
    """Below the temporary folder."""

    def __init__(self, function: Any, file: str) -> None:
        super().__init__(function, file)
        self._cache_path = str(own_folder() / self.get_suitable_cache_subpath(file))


def _source_stamp() -> str:
    found = hashlib.sha256()
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        found.update(hashlib.sha256(source.read_bytes()).digest())
    return found.hexdigest()


# Taken at import: what is compiled later, after an upgrade under a running process, is of the source before.
_STAMP = _source_stamp()


class _CacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    """Where a function's machine code lies, and what it was made of."""

    _locator_classes = [  # noqa: RUF012 (as in numba's class)
        *(_HomeLocator if one is UserWideCacheLocator else one for one in CompileResultCacheImpl._locator_classes),
        _TemporaryLocator,
    ]

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        stamp = self.locator.get_source_stamp()
        self.locator.get_source_stamp = lambda: (stamp, _STAMP)


class _DiskCache(FunctionCache):  # type: ignore[misc]
    _impl_class = _CacheImpl
