"""Files: what is there before it is opened, and writing one as a whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from prod_decode.errors import ProdError, brief, closest

_KINDS = {
    stat.S_ISFIFO: "a FIFO",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISDIR: "a directory",
}


def as_path(path: str | os.PathLike[str]) -> Path:
    """`Path(path)`, which would take an empty name for the current directory.

    Raises:
        ProdError: it is no name; it is empty, as that of a shell variable which is not set; or it has a NUL.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(name := os.fspath(path), str):
        raise ProdError(f"expected the name of a file or directory as text or Path, got {brief(path)}")
    if not name or "\0" in name:
        raise ProdError(f"expected the name of a file or directory, got {name!r}: is a variable not set?")
    return Path(name)


def require_file(path: str | os.PathLike[str], expected: str) -> None:
    """Refuse what is there and is no regular file, without opening it.

    Raises:
        ProdError: it cannot be looked at, is a directory, or could keep whoever opens it waiting for ever.
    """
    try:
        mode = stat.S_IFMT(as_path(path).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ProdError(f"cannot read {path}: {error.strerror}") from None
    if mode != stat.S_IFREG:
        raise ProdError(f"{path} is {kind_of(mode)}, expected {expected}")


def stat_of(path: Path) -> os.stat_result:
    """What is known of a file, links followed.

    Raises:
        ProdError: it is not there, or in a directory that this user may not read.
    """
    try:
        return path.stat()
    except OSError as error:
        raise ProdError(f"cannot read {path}: {error.strerror}") from None


def require_there(path: Path) -> None:
    """Refuse a path that was named and leads nowhere.

    Raises:
        ProdError: it is not there, or in a directory that this user may not read.
    """
    try:
        path.stat()
    except OSError as error:
        raise ProdError(f"cannot read {path}: {why_unread(path, error)}") from None


def why_unread(path: Path, error: OSError) -> str:
    """What to say of a file that was named and cannot be opened: of one that is not there, which one may be meant."""
    if not isinstance(error, FileNotFoundError):
        return str(error.strerror)
    try:
        meant = closest(path.name, (file.name for file in path.parent.iterdir()), 0.7)
    except OSError:
        meant = None
    remedy = ": check the name" if meant is None else f"; did you mean {str(path.with_name(meant))!r}?"
    return f"{error.strerror}{remedy}"


def mode_of(path: Path) -> int:
    """The kind of file that a path leads to: `stat.S_IFREG` and so on."""
    return stat.S_IFMT(stat_of(path).st_mode)


def kind_of(mode: int) -> str:
    """In words: a FIFO, a socket, a device, a directory."""
    return next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "no file")


def readable_as_usual(folder: Path) -> None:
    """Give every file below a folder the mode that a new file of the user has: safetensors makes private ones."""
    mode = _usual_mode()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _usual_mode() -> int:
    """That of a new file of the user, by the umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


class write_whole:  # noqa: N801 (used like `open`)
    """A binary file that takes the place of `path` when the block ends well, and else leaves nothing behind.

    A symlink is followed: what it leads to is replaced, beside itself. A file that is there already passes on its mode
    and, where the user may do that, its owner; other hard links to it keep the old content. A new file is as readable
    as any that the user writes.

    Raises:
        ProdError: `path` is a directory, device, pipe or socket, or its directory cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def __enter__(self) -> Any:
        try:
            self._old = replaceable(self._path)
            self._target = Path(os.path.realpath(self._path))
            # A name may have 255 bytes, and the temporary one is longer.
            prefix = f".{self._target.name[:50]}."
            self._file = tempfile.NamedTemporaryFile(dir=self._target.parent, prefix=prefix, delete=False)
        except OSError as error:
            raise ProdError(f"cannot write {self._path}: {error.strerror}") from None
        return self._file

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        temporary = Path(self._file.name)
        try:
            if kind is None:
                self._file.flush()
                self._adopt(temporary)
                os.fsync(self._file.fileno())
                self._file.close()
                temporary.replace(self._target)
        finally:
            try:
                self._file.close()  # flushes, and so fails again on a full disk
            finally:
                temporary.unlink(missing_ok=True)

    def _adopt(self, temporary: Path) -> None:
        """Give the temporary file, which is private, the mode and owner of the one that it becomes."""
        if self._old is None:
            temporary.chmod(_usual_mode())
            return
        new = temporary.stat()
        if (new.st_uid, new.st_gid) != (self._old.st_uid, self._old.st_gid):
            with suppress(PermissionError):
                os.chown(temporary, self._old.st_uid, self._old.st_gid)
        temporary.chmod(stat.S_IMODE(self._old.st_mode))


def replaceable(path: Path) -> os.stat_result | None:
    """What is known of the file at `path`, symlinks followed; None if there is none.

    Raises:
        ProdError: something that no file can take the place of.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise ProdError(f"cannot write {path}: it is a directory, expected a file name")
    if not stat.S_ISREG(found.st_mode):
        raise ProdError(f"cannot write {path}: it is a device, pipe or socket, expected a file name")
    return found
