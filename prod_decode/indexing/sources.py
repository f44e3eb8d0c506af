"""What a corpus is read from: directories, archives, JSON lines, parquet, data sets of a hub; each cut into tasks."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from prod_decode.blocklist.selection import CACHES, Selection, files_below
from prod_decode.blocklist.sources import decode_loosely, license_of
from prod_decode.corpus.report import Source
from prod_decode.errors import Mistakes, ProdError, one_line, reason
from prod_decode.indexing import hub
from prod_decode.storage.files import as_path, mode_of, require_there

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".whl")
LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
PARQUET = (".parquet",)

# Bytes of source that one task reads of a directory.
_TASK = 16 << 20
# What no file of source code reaches; beyond, a file is data, and is listed as left out.
_LARGEST = 8 << 20

_CONTENT = ("content", "text", "code")
_PATH = ("path", "max_stars_repo_path", "file_path")
_REPO = ("repo", "repo_name", "repository_name", "max_stars_repo_name")
_LICENSE = ("license", "licenses", "max_stars_repo_licenses", "detected_licenses", "gha_license_id")

# What stands at the top of a project or package.
_PROJECT = ("__init__.py", "pyproject.toml", "setup.py", "setup.cfg", "package.json", "Cargo.toml", "go.mod", "pom.xml")

Skipped = Callable[[str], object]

# What archives and rows raise: RuntimeError of an encrypted one, NotImplementedError, which is one, of unknown methods,
# UnicodeDecodeError and OverflowError of columns.
_UNREADABLE = (
    OSError,
    EOFError,
    OverflowError,
    RuntimeError,
    UnicodeDecodeError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Task:
    """Documents that are read together.

    Attributes:
        kind: what `paths` are.
        paths: files; several only of the kind `files`; of the kind `hub` a data set's name, pinned (`indexing.hub`).
        folder: the directory that was named and has them; "": they were named.
        share: which share of a data set, and of how many.
        state: of the data set.
        home: the folder in which the names of files begin, as processes elsewhere do not; "": they begin at the root.
    """

    kind: Literal["files", "archive", "lines", "parquet", "hub"]
    paths: tuple[str, ...]
    folder: str = ""
    share: tuple[int, int] = (0, 1)
    state: str = ""
    home: str = ""


def plan(
    paths: Sequence[str | os.PathLike[str]],
    skipped: Skipped,
    selection: Selection | None = None,
    leave_out: Collection[Path] = (),
) -> list[Task]:
    """The tasks in which sources are read, always in the same order.

    Args:
        paths: directories, archives, files with a document in each line or row, and data sets of the hub (`hub:NAME`);
            any other file is a document. In directories archives are documents of no text: name them.
        skipped: told of what is below a directory and cannot be read.
        selection: what is left out.
        leave_out: files, and folders with all that is in them, that are no sources, wherever they lie.

    Raises:
        ProdError: paths that are not there, and data sets that cannot be reached: all of them.
    """
    mistakes, found = Mistakes(), list[Path | hub.Shares]()
    for one in paths:
        with mistakes.caught():
            if str(one).startswith(hub.PREFIX):
                found.append(hub.shares_of(str(one)))
                continue
            found.append(as_path(one))
            require_there(as_path(one))
    mistakes.refuse()
    tasks: list[Task] = []
    real = [os.path.realpath(one) for one in leave_out]
    for path in found:
        if isinstance(path, hub.Shares):
            shares = ((number, path.total) for number in range(path.total))
            tasks += [Task("hub", (path.name,), share=share, state=path.state) for share in shares]
            continue
        name = path.name.lower()
        home = "" if path.is_absolute() else str(Path.cwd())
        if mode_of(path) == stat.S_IFDIR:
            files = files_below(path, skipped, (), selection)
            tasks += _batches(path, home, (file for file in files if not _is_below(file, real)))
        elif name.endswith(ARCHIVES):
            tasks.append(Task("archive", (str(path),), home=home))
        elif name.endswith(LINES):
            tasks.append(Task("lines", (str(path),), home=home))
        elif name.endswith(PARQUET):
            tasks.append(Task("parquet", (str(path),), home=home))
        else:
            tasks.append(Task("files", (str(path),), home=home))
    return tasks


def _is_below(path: Path, real: Collection[str]) -> bool:
    """Whether a file is one of some, or in one of them."""
    place = os.path.realpath(path)
    return any(place == one or place.startswith(f"{one}{os.sep}") for one in real)


def _batches(folder: Path, home: str, files: Iterable[Path]) -> Iterator[Task]:
    batch: list[str] = []
    size = 0
    for file in files:
        try:
            size += file.stat().st_size
        except OSError:
            size += 0  # told when it is read
        batch.append(str(file))
        if size >= _TASK:
            yield Task("files", tuple(batch), str(folder), home=home)
            batch, size = [], 0
    if batch:
        yield Task("files", tuple(batch), str(folder), home=home)


def documents(task: Task, skipped: Skipped) -> Iterator[tuple[Source, str]]:
    """The documents of a task, in their order: where each comes from, and its text.

    Args:
        task: of `plan`.
        skipped: told what cannot be read as text, and why.

    Raises:
        ProdError: an archive, or a file of lines or rows, that cannot be read at all.
    """
    if task.kind == "files":
        yield from _files(task, skipped)
        return
    if task.kind == "hub":
        for place, row in hub.rows(task.paths[0], *task.share, task.state, _CONTENT):
            yield from _row(row, place, skipped)
        return
    name = task.paths[0]
    path = Path(task.home, name)
    try:
        if task.kind == "archive":
            yield from _archive(path, name, skipped)
        elif task.kind == "lines":
            yield from _lines(path, name, skipped)
        else:
            yield from _parquet(path, name, skipped)
    except _UNREADABLE as error:
        # Of a file that no method opens, tarfile tells each in a line.
        is_none = isinstance(error, tarfile.ReadError) and "\n" in str(error)
        why = "no archive of any kind that can be read, or cut short" if is_none else reason(error, 100)
        raise ProdError(f"cannot read {name}: {why}; get it again, or leave it out") from None


def _files(task: Task, skipped: Skipped) -> Iterator[tuple[Source, str]]:
    folder = Path(task.home, task.folder) if task.folder else None
    for name in task.paths:
        path = Path(task.home, name)
        try:
            if path.stat().st_size > _LARGEST:
                skipped(_too_large(name))
                continue
            data = path.read_bytes()
        except OSError as error:
            skipped(f"cannot read {name}: {error.strerror}")
            continue
        repo, root = _repository(path.parent, folder) if folder else ("", path.parent)
        yield from _decoded(data, Source(path.relative_to(root).as_posix(), repo), name, skipped)


@lru_cache(maxsize=4096)
def _repository(folder: Path, named: Path) -> tuple[str, Path]:
    """The name and the root of the repository that a folder belongs to, below or at the directory that was named.

    Where Git keeps none, the one that was named is one if it has a file as projects have, or else each folder in it is,
    as a company's checkouts lie side by side.
    """
    at = folder
    while not (at / ".git").exists():
        if at == named:
            if any((named / name).exists() for name in _PROJECT):
                return named.name, named
            first = folder.relative_to(named).parts[:1]
            return (first[0], named / first[0]) if first else (named.name, named)
        at = at.parent
    return (at.relative_to(named).as_posix() if at != named else named.name), at


def _archive(path: Path, name: str, skipped: Skipped) -> Iterator[tuple[Source, str]]:
    repo = path.name
    for suffix in sorted(ARCHIVES, key=len, reverse=True):
        if repo.lower().endswith(suffix):
            repo = repo[: -len(suffix)]
            break
    for inside, size, read in _members(path):
        place = f"{name}:{inside}"
        if not set(CACHES).isdisjoint(Path(inside).parts):
            continue
        if size > _LARGEST:
            skipped(_too_large(place))
            continue
        yield from _decoded(read(), Source(inside, repo), place, skipped)


def _members(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """The files of an archive: name, size, and what reads it."""
    if path.name.lower().endswith((".zip", ".whl")):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, partial(archive.read, info)
        return
    with tarfile.open(path) as stream:
        for member in stream:
            if member.isfile() and (file := stream.extractfile(member)) is not None:
                yield member.name, member.size, file.read


def _decoded(data: bytes, source: Source, name: str, skipped: Skipped) -> Iterator[tuple[Source, str]]:
    try:
        text = decode_loosely(data, name)
    except ProdError as error:
        skipped(str(error))
        return
    yield Source(source.path, source.repo, source.license or license_of(text) or ""), text


def _lines(path: Path, name: str, skipped: Skipped) -> Iterator[tuple[Source, str]]:
    open_ = gzip.open if path.name.lower().endswith(".gz") else open
    with open_(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{name}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                skipped(f"{place}: expected a JSON object a line, got invalid JSON ({error})")
                continue
            yield from _row(row, place, skipped)


def _parquet(path: Path, name: str, skipped: Skipped) -> Iterator[tuple[Source, str]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ProdError(f"{name}: parquet is read with pyarrow: pip install 'prod-code-unlearning[corpus]'") from None
    try:
        with ParquetFile(path) as file:
            wanted = [column for column in file.schema_arrow.names if column in _CONTENT + _PATH + _REPO + _LICENSE]
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield from _row(row, f"{name}: row {number}", skipped)
    except ArrowException as error:
        raise ProdError(f"cannot read {name}: {one_line(str(error), 100)}; get it again, or leave it out") from None


def _row(row: Any, place: str, skipped: Skipped) -> Iterator[tuple[Source, str]]:
    if not isinstance(row, dict):
        skipped(f"{place}: expected a JSON object a line, got {type(row).__name__}")
        return
    texts = [row[name] for name in _CONTENT if isinstance(row.get(name), str)]
    text = next(filter(None, texts), "")
    if not texts:
        skipped(f"{place}: expected source code as a string in {' or '.join(_CONTENT)}, got none")
        return
    path, repo = (next((str(row[name]) for name in names if row.get(name)), "") for names in (_PATH, _REPO))
    given = next((row[name] for name in _LICENSE if row.get(name)), None)
    several = [str(one) for one in given] if isinstance(given, list | tuple) else [str(given)] if given else []
    try:
        text.encode()
    except UnicodeEncodeError:
        skipped(f"{place}: has a lone surrogate, which UTF-8 cannot carry")
        return
    yield Source(path or place, repo, " OR ".join(several) or license_of(text) or ""), text


def _too_large(name: str) -> str:
    return f"{name} has over {_LARGEST >> 20} MiB: read as data, not as source code"
