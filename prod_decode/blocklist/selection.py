"""Which of the files that are named, or lie below what is named, are read: each once, and none that is excluded."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from prod_decode.errors import ProdError
from prod_decode.storage.files import kind_of, stat_of

# Told why something was not covered; what raises there stops the reading.
Skipped = Callable[[str], object]

# Directories that hold copies and histories of what stands beside them.
CACHES = (".git", ".hg", ".svn", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache")


class Selection:
    """What several calls of `read_texts` share: patterns of what is left out, and the files that were read.

    A pattern without a slash is compared with the name of every file and directory, any other with the path below the
    directory that was named, and with the path as it is printed. `*` stands for slashes too, `**/` for nothing as well;
    what is below an excluded directory is excluded. Of a file that is named itself, the path is what was named.

    Attributes:
        files: how many files were excluded.
        folders: how many directories; those were not looked into.
    """

    def __init__(self, exclude: Iterable[str] = ()) -> None:
        """Take the patterns.

        Raises:
            ProdError: one of them is empty, and could exclude nothing.
        """
        self._patterns = {pattern: _plain(pattern) for pattern in exclude}
        for pattern, plain in self._patterns.items():
            if not plain:
                raise ProdError(f"--exclude: expected a pattern such as 'vendor' or 'docs/*.md', got {pattern!r}")
        self._used: set[str] = set()
        self._read: set[str] = set()
        self.files = self.folders = 0

    def excludes(self, path: Path, folder: Path | None = None) -> bool:
        """Whether a pattern excludes a file or directory, which is counted then.

        Args:
            path: it.
            folder: the directory that was named and has it; None if the file was named.
        """
        below = path if folder is None else path.relative_to(folder)
        found = [
            pattern
            for pattern, plain in self._patterns.items()
            if any(fnmatchcase(name, one) for one in _forms(plain) for name in _names(below, folder, plain))
        ]
        if not found:
            return False
        self._used.update(found)
        if path.is_dir():
            self.folders += 1
        else:
            self.files += 1
        return True

    def is_new(self, path: Path) -> bool:
        """Whether a file is none of those that were read, under whatever name; it counts as read then."""
        real = os.path.realpath(path)
        is_new = real not in self._read
        self._read.add(real)
        return is_new

    @property
    def excluded(self) -> int:
        """How much was excluded: files and directories."""
        return self.files + self.folders

    def unused(self) -> list[str]:
        """The patterns that excluded nothing: perhaps slips."""
        return [pattern for pattern in self._patterns if pattern not in self._used]


def _plain(pattern: str) -> str:
    """A pattern without what makes no difference; one with a slash at its beginning alone keeps that."""
    plain = pattern.removeprefix(".").rstrip("/") if pattern.startswith("./") else pattern.rstrip("/")
    return plain if plain.rfind("/") < 1 else plain.removeprefix("/")


def _forms(plain: str) -> set[str]:
    return {plain.removeprefix("/"), plain.removeprefix("/").replace("**/", "")}


def _names(below: Path, folder: Path | None, plain: str) -> Iterator[str]:
    """What a pattern is compared with."""
    if "/" not in plain:
        yield from below.parts
        return
    for part in (below, *below.parents):
        if part.parts:
            yield part.as_posix()
            if folder is not None:
                yield (folder / part).as_posix()


def files_below(
    folder: Path,
    skipped: Skipped,
    leave_out: Collection[str | os.PathLike[str]] = (),
    selection: Selection | None = None,
) -> Iterator[Path]:
    """The regular files below a directory, sorted by name; links are followed, to each directory once.

    Args:
        folder: the directory.
        skipped: told of what cannot be read, and why.
        leave_out: files and directories to leave out, wherever they lie.
        selection: what else is left out; with it no file is given twice.
    """
    # Where links lead to a directory again, or in a circle, it is read once.
    seen = {_identity(stat_of(Path(path))) for path in leave_out if Path(path).exists()}
    # And by name what is not there yet: a directory that is made meanwhile.
    left_out = {os.path.realpath(path) for path in leave_out}
    waiting = [folder]
    count = 0
    excluded = 0 if selection is None else selection.excluded
    while waiting:
        here = waiting.pop()
        try:
            if (identity := _identity(here.stat())) in seen or os.path.realpath(here) in left_out:
                continue
            seen.add(identity)
            with os.scandir(here) as found:
                names = sorted(entry.name for entry in found)
        except OSError as error:
            skipped(f"cannot read {here}: {error.strerror}")
            continue
        folders = []
        for path in (here / name for name in names):
            if selection is not None and selection.excludes(path, folder):
                continue
            try:
                status = stat_of(path)
            except ProdError as error:
                skipped(str(error))
                continue
            mode = stat.S_IFMT(status.st_mode)
            if mode == stat.S_IFDIR:
                folders += [path] if path.name not in CACHES else []
            elif selection is not None and not selection.is_new(path):
                count += 1
            elif mode != stat.S_IFREG:
                skipped(f"{path} is {kind_of(mode)}: not opened")
            elif _identity(status) not in seen:
                count += 1
                yield path
        waiting += reversed(folders)
    if not count:
        why = ", but for what is excluded" if selection is not None and selection.excluded > excluded else ""
        skipped(f"{folder} has no files to read in it{why}")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
