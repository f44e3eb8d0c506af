"""Entries and texts on disk: JSON lines, phrase lists, source files, directories."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from prod_decode.entries import Boundary, Entry
from prod_decode.errors import ProdError

_KEYS = {field.name for field in fields(Entry)} - {"cost"}


def read_entries(
    paths: Iterable[str | os.PathLike[str]],
    *,
    max_quote: int | None = None,
    boundary: Boundary | None = None,
    skipped: Callable[[Path, str], None] | None = None,
) -> Iterator[Entry]:
    """The entries in files and directories, in the order of `paths`, directories sorted.

    A `.jsonl` file has one entry a line, an object with `text` and optionally `id source policy max_quote boundary`. A
    `.txt` file has one phrase a line. Any other file is one `quote` entry, and so is every text file in a directory.

    Args:
        paths: files and directories.
        max_quote: for `quote` entries that name none.
        boundary: for `phrase` entries that name none.
        skipped: told of every file in a directory that is no UTF-8 text, and why. A file that is named is never
            skipped.

    Raises:
        ProdError: a path that does not exist or is not UTF-8 text, or a line that is no entry; names file and line.
    """
    for path in map(Path, paths):
        if path.suffix in (".jsonl", ".ndjson") and not path.is_dir():
            for place, record in read_json_lines(path):
                yield _entry(record, place, max_quote, boundary)
        elif path.suffix == ".txt" and not path.is_dir():
            for number, line in enumerate(read_text(path).splitlines(), 1):
                if line.strip():
                    yield Entry(line, source=f"{path}:{number}", boundary=boundary)
        else:
            for file, text in read_texts([path], skipped=skipped):
                if text.strip():
                    yield Entry(text, id=file.as_posix(), source=file.as_posix(), policy="quote", max_quote=max_quote)
                elif not path.is_dir():
                    raise ProdError(f"{file} is empty, expected a document to protect")


def read_texts(
    paths: Iterable[str | os.PathLike[str]], *, skipped: Callable[[Path, str], None] | None = None
) -> Iterator[tuple[Path, str]]:
    """The texts of files and of all files below directories (hidden ones and caches left out), sorted by name.

    Raises:
        ProdError: a path that does not exist, a directory that cannot be read, or a named file that is not UTF-8 text.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            yield path, read_text(path)
            continue
        for file in _files_below(path):
            try:
                text = read_text(file)
            except ProdError as error:
                if skipped is not None:
                    skipped(file, str(error))
                continue
            yield file, text


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file, line ends as they are.

    Raises:
        ProdError: it cannot be read, or is not UTF-8 text.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProdError(f"cannot read {path}: {error.strerror}") from None
    return decode_text(data, path)


def decode_text(data: bytes, name: str | os.PathLike[str]) -> str:
    """UTF-8 text, line ends as they are, without a byte order mark.

    Raises:
        ProdError: it is something else; `name` says where it came from.
    """
    if b"\0" in data:
        raise ProdError(f"{name} is a binary file, expected UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProdError(
            f"{name} is not UTF-8 text (byte {data[error.start]:#04x} at {error.start}): convert it first"
        ) from None


def read_json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its place, `file:line`, for messages; blank lines are skipped.

    Raises:
        ProdError: a line that is no JSON object.
    """
    # Only \n ends a line of JSON Lines: str.splitlines would also cut at U+2028 inside a string.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ProdError(f"{place}: expected a JSON object a line, got invalid JSON ({error})") from None
        if not isinstance(record, dict):
            raise ProdError(f"{place}: expected a JSON object, got {type(record).__name__}")
        yield place, record


def _files_below(directory: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ProdError(f"cannot read {error.filename}: {error.strerror}") from None

    for root, folders, files in os.walk(directory, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(root, name)


def _entry(record: dict[str, Any], place: str, max_quote: int | None, boundary: Boundary | None) -> Entry:
    if unknown := sorted(set(record) - _KEYS):
        raise ProdError(f"{place}: unknown key {unknown[0]!r}, expected some of {', '.join(sorted(_KEYS))}")
    if "text" not in record:
        raise ProdError(f"{place}: expected a key 'text', got {', '.join(sorted(record)) or 'an empty object'}")
    for key in ("id", "source"):
        if not isinstance(record.get(key), (str, type(None))):
            raise ProdError(f"{place}: expected {key!r} to be a string, got {record[key]!r}")
    if not isinstance(record["text"], str):
        raise ProdError(f"{place}: expected 'text' to be a string, got {record['text']!r}")
    policy = record.get("policy", "phrase")
    defaults = {"max_quote": max_quote} if policy == "quote" else {"boundary": boundary}
    return Entry(**{"source": place, **defaults, **record})
