"""The bytes of a file, held where later changes of the file do not reach them.

A mapped file is its pages: `cp new old` writes into them under every process that has mapped `old`, private mappings
included, and cutting it short kills them. So a file is read into memory of the process's own. From `SHARED_FROM` bytes
on it is copied instead, once, into a folder that only this user may enter, and every process maps that copy: memory is
shared, and nobody has a reason to write there. Where no copy can be kept (no folder, no room, a folder of somebody
else), the file is read.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO

import numpy as np

from prod_decode.errors import ProdError
from prod_decode.storage.own_folder import own_folder

# Below, sharing saves less than the tables of one bound vocabulary take.
SHARED_FROM = 1 << 24

_CHUNK = 1 << 20

_log = logging.getLogger(__name__)


def hold(
    file: FileIO, size: int, name: str | None, check: Callable[[memoryview], None], *, compare: bool
) -> memoryview:
    """All bytes of an open file: read-only, aligned to a page, and immune to changes of the file.

    Args:
        file: open for reading.
        size: its bytes, above 0.
        name: of the copy that processes share: a hash of what it holds. None: share nothing.
        check: raises `ProdError` unless bytes are whole. A copy is kept only if they are.
        compare: read the file even if there is a copy, compare the two, and check them.

    Raises:
        ProdError: what `check` raises.
    """
    if name is not None and size >= SHARED_FROM:
        try:
            return _from_copy(file, size, name, check, compare=compare)
        except (ImportError, OSError, ProdError) as error:  # a file that `check` refuses is refused again below
            _log.info("%s is not shared with other processes: %s", file.name, error)
    memory = memoryview(mmap.mmap(-1, size))
    for at, chunk in _chunks(file, size):
        memory[at : at + len(chunk)] = chunk
    check(memory)
    return memory.toreadonly()


def _chunks(file: FileIO, size: int) -> Iterator[tuple[int, memoryview]]:
    """Where they begin, and the bytes; each is overwritten by the next."""
    buffer = memoryview(bytearray(_CHUNK))
    file.seek(0)
    at = 0
    while at < size and (count := file.readinto(buffer[: size - at])):
        yield at, buffer[:count]
        at += count


def _from_copy(file: FileIO, size: int, name: str, check: Callable[[memoryview], None], *, compare: bool) -> memoryview:
    folder = own_folder()
    copy = folder / name
    # Processes that start together wait for the first one's copy.
    with _locked(folder, wait=True):
        held = _map(copy, size)
        if held is None:
            _remove_unused(folder)
            return _copy(file, size, copy, check)
    if compare:
        if not all(np.array_equal(held[at : at + len(chunk)], chunk) for at, chunk in _chunks(file, size)):
            copy.unlink(missing_ok=True)
            raise OSError(errno.EIO, f"{copy} differs from it")
        check(held)
    return held


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Alone with a file or folder that processes lock; `BlockingIOError` if another has it and we do not wait."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _map(copy: Path, size: int) -> memoryview | None:
    """A copy, if it is there."""
    try:
        descriptor = os.open(copy, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return _use(file) if os.fstat(descriptor).st_size == size else None


def _use(file: IO[bytes]) -> memoryview:
    """Map a copy, locked for as long as it is mapped: a mapping keeps the open file, and that the lock."""
    import fcntl

    fcntl.flock(file.fileno(), fcntl.LOCK_SH)
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _remove_unused(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(OSError), _locked(path, wait=False):
            path.unlink()


def _copy(file: FileIO, size: int, copy: Path, check: Callable[[memoryview], None]) -> memoryview:
    if shutil.disk_usage(copy.parent).free < 2 * size:
        raise OSError(errno.ENOSPC, f"{copy.parent} has no room for a copy")
    # Ours alone, as temporary files are. What a process leaves that is killed here is locked by nobody, and so removed
    # with the next copy.
    with tempfile.NamedTemporaryFile(dir=copy.parent, delete=False) as out:
        try:
            for _, chunk in _chunks(file, size):
                out.write(chunk)
            out.flush()
            held = _use(out)
            check(held)
            os.fsync(out.fileno())  # after a loss of power a name must not stand for less than it says
            Path(out.name).replace(copy)
        finally:
            Path(out.name).unlink(missing_ok=True)
    return held
