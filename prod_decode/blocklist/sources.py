"""Entries and texts on disk: JSON lines, phrase lists, source files, directories."""

from __future__ import annotations

import codecs
import gzip
import json
import logging
import os
import re
import stat
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from prod_decode.blocklist.entries import Boundary, Defaults, Entry, entry_from
from prod_decode.blocklist.ready import LIST, READY, Targets, list_named, read_list, require_list
from prod_decode.blocklist.selection import Selection, Skipped, files_below
from prod_decode.errors import Mistakes, ProdError, brief, one_line, reason
from prod_decode.storage.artifact import MAGIC
from prod_decode.storage.files import as_path, kind_of, mode_of, require_there

JSON_LISTS = (".jsonl", ".ndjson")
PHRASE_LISTS = (".txt",)

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_WIDE = tuple(mark for mark, encoding in _MARKS.items() if encoding != "utf-8-sig")
# What the error handler `surrogateescape` makes of a byte that is not UTF-8, to what that byte is in Latin-1.
_LATIN_1 = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}
_NO_LATIN_1 = re.compile(r"[\x80-\x9f]")  # control characters, which no Latin-1 text has

# An expression: ids, `AND`, `OR`, `WITH` and brackets (SPDX specification 2.3, annex E).
_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([\w.+:()-]+(?:[ \t]+(?:AND|OR|WITH)[ \t]+[\w.+:()-]+)*)")

_COMMENT = re.compile(r"\s*# ")

_log = logging.getLogger(__name__)

_S = TypeVar("_S")
_T = TypeVar("_T")


def read_entries(
    paths: Iterable[str | os.PathLike[str]],
    *,
    max_quote: int | None = None,
    boundary: Boundary | None = None,
    budget: int | None = None,
    piece: int | None = None,
    skipped: Skipped | None = None,
    leave_out: Collection[str | os.PathLike[str]] = (),
    targets: Targets | None = None,
) -> Iterator[Entry]:
    """The entries in files and directories, in the order of `paths`, directories sorted.

    `list:NAME` is a list that comes with the package, see `read_list`.

    A named `.jsonl` or `.ndjson` file has one entry per line, an object with `text` and optionally `id source license
    policy max_quote budget piece boundary replacement`, and what only people read, `instead library since gone cwe`. A
    named `.txt` file has one phrase per line; lines end with LF or CRLF, blank ones are left out, and nothing is
    stripped. There are no comments: of lines that look like one a warning is logged. Capitals in a suffix make no
    difference. Any other file is one `quote` entry, and so is every file in a directory, a `.txt` file too:
    `LICENSE.txt` is no list. Its licence is what its first `SPDX-License-Identifier:` says. A directory of nothing but
    lists is refused, and so is a named `.json` file with entries in it.

    Args:
        paths: files and directories, or `list:NAME`.
        max_quote: for `quote` entries that name none.
        boundary: for `phrase` entries that name none.
        budget: for `quote` entries that name none.
        piece: for `quote` entries with a budget that name none.
        skipped: told of what is in a directory and cannot be read as text, and why; without, it is an error. A path
            that is named is never skipped.
        leave_out: files that are no sources, wherever they lie.
        targets: which entries of lists that come with the package are left out; told of all of them.

    Raises:
        ProdError: paths that cannot be read as text, lists without entries, directories of lists, and lines that are
            no entries: all of them, once everything is read, with file and line. Behind the first nothing is given.
    """

    def entries_of(path: Path | str) -> Iterator[Entry]:
        if isinstance(path, str):
            yield from read_list(path, targets=targets or ())
            return
        kind = path.suffix.lower()
        if mode_of(path) == stat.S_IFDIR:
            yield from _documents(path, defaults, skipped or mistakes.add, leave_out)
        elif kind in JSON_LISTS:
            yield from _listed(path, mistakes, lambda at, line: entry_from(_object(at, line), at, defaults))
        elif kind in PHRASE_LISTS:
            yield from _watch_comments(_listed(path, mistakes, lambda at, line: _phrase(at, line, boundary)))
        else:
            text = decode_loosely(_read(path), path)
            if kind == ".json" and _has_entries(text):
                raise ProdError(f"{path} has entries in it, which are read from .jsonl files, one a line: convert it")
            yield _document(path, text, defaults)

    defaults = Defaults(boundary, max_quote, budget, piece)
    mistakes = Mistakes()
    yield from _from_each(paths, mistakes, entries_of, _source)


def _from_each(
    paths: Iterable[str | os.PathLike[str]],
    mistakes: Mistakes,
    read: Callable[[_S], Iterator[_T]],
    find: Callable[[str | os.PathLike[str]], _S],
) -> Iterator[_T]:
    """What is read from each path, up to the first mistake; all of them are raised at the end."""
    for path in _found(paths, mistakes, find):
        with mistakes.caught():
            for item in read(path):
                if not mistakes:
                    yield item
    mistakes.refuse()


def require_sources(paths: Iterable[str | os.PathLike[str]], texts: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Refuse what is not there, before any of it is read.

    Args:
        paths: as `read_entries` takes them.
        texts: as `read_texts` takes them.

    Raises:
        ProdError: with all of them.
    """
    mistakes = Mistakes()
    _found(paths, mistakes, _source)
    _found(texts, mistakes, _file)
    mistakes.refuse()


def _found(
    paths: Iterable[str | os.PathLike[str]], mistakes: Mistakes, find: Callable[[str | os.PathLike[str]], _S]
) -> list[_S]:
    """Those that are there."""
    if isinstance(paths, str | bytes | os.PathLike):
        raise ProdError(f"expected a list of files and directories, got {brief(paths)!r} alone: pass it as [...]")
    found = []
    for path in paths:
        with mistakes.caught():
            found.append(find(path))
    return found


def _file(path: str | os.PathLike[str]) -> Path:
    found = as_path(path)
    require_there(found)
    return found


def _source(path: str | os.PathLike[str]) -> Path | str:
    """A file or directory, or the name of a list that comes with the package."""
    if (name := list_named(path)) is not None:
        require_list(name)
        return name
    if path in READY and not as_path(path).exists():
        raise ProdError(f"cannot read {path}: No such file or directory; did you mean '{LIST}{path}'?")
    return _file(path)


def _has_entries(text: str) -> bool:
    """Whether a JSON document is an entry, or an array with one, or has one on its first line."""
    first = text.lstrip("\ufeff \t\r\n").partition("\n")[0]
    for whole in (text, first):
        try:
            found = json.loads(whole)
        except (ValueError, RecursionError):
            continue
        if any(isinstance(one, dict) and "text" in one for one in (found if isinstance(found, list) else [found])):
            return True
    return False


def _listed(path: Path, mistakes: Mistakes, make: Callable[[str, str], Entry]) -> Iterator[Entry]:
    """The entries of a list, made of the place and text of each line; lines that are none go into `mistakes`."""
    empty = True
    for place, line in _lines(path):
        empty = False
        try:
            entry = make(place, line)
        except ProdError as error:
            mistakes.add(*error.mistakes)
        else:
            yield entry
    if empty:
        raise ProdError(f"{path} has no entries, expected one per line: add some, or leave the file out")


def _watch_comments(phrases: Iterator[Entry]) -> Iterator[Entry]:
    """The phrases of a list; it has no comments, so that `# type: ignore` can be one of them."""
    found = []
    for entry in phrases:
        if _COMMENT.match(entry.text):
            found.append(entry)
        yield entry
    if found:
        shown = one_line(found[0].text, 60) + (f", and {len(found) - 1} more" if found[1:] else "")
        told = "banned as it stands, as there are no comments in lists"
        _log.warning("%s: %s: %s; remove it, or keep it as a .jsonl entry", found[0].source, told, shown)


def _document(path: Path, text: str, defaults: Defaults) -> Entry:
    if not text.strip():
        raise ProdError(f"{path} is empty, expected a document to protect")
    name = path.as_posix()
    about = {"id": name, "source": name, "license": license_of(text)}
    return Entry(text, policy="quote", **defaults.of("quote", about))


def license_of(text: str) -> str | None:
    """What the first `SPDX-License-Identifier:` of a text says, or None."""
    found = _SPDX.search(text)
    return found[1] if found else None


def _documents(
    folder: Path, defaults: Defaults, skipped: Skipped, leave_out: Collection[str | os.PathLike[str]]
) -> Iterator[Entry]:
    """One for each file of a directory that has text."""
    files = list(files_below(folder, skipped, leave_out))
    lists = sum(file.suffix.lower() in JSON_LISTS + PHRASE_LISTS for file in files)
    if 0 < lists == len(files):
        raise ProdError(
            f"{folder} has .txt and .jsonl files alone, which are documents where only their directory is named: name "
            "the files to read them as lists, or write documents as .jsonl entries with the policy 'quote'"
        )
    if lists:
        _log.warning("%s: its %d .txt and .jsonl files are documents; name them to read them as lists", folder, lists)
    count = 0
    for file, text in _texts(files, skipped, binary=False):
        if text.strip():
            count += 1
            yield _document(file, text, defaults)
    if files and not count:
        skipped(f"{folder} has no text in it")


def read_texts(
    paths: Iterable[str | os.PathLike[str]],
    *,
    skipped: Skipped | None = None,
    binary: bool = False,
    leave_out: Collection[str | os.PathLike[str]] = (),
    selection: Selection | None = None,
) -> Iterator[tuple[Path, str]]:
    """The texts of files and of all files below directories, sorted by name.

    Below a directory hidden files are read as others are, and links are followed, to each directory once; `CACHES` are
    left out, and FIFOs, sockets and devices are never opened. Text is what `decode_text` reads, and Latin-1, of which a
    warning is logged: bytes that are not UTF-8 count as Latin-1 where that gives printable characters.

    Args:
        paths: files and directories.
        skipped: told of what cannot be read as text, and why; without, it is an error. A path that is named is never
            skipped.
        binary: read files that are no text as well, byte by byte, so that ASCII in them is found; `skipped` is told
            of them all the same.
        leave_out: files to leave out, wherever they lie.
        selection: what else is left out; with it no file is read twice.

    Raises:
        ProdError: named paths that do not exist or are no text, or what `skipped` would be told without it: all of
            them, once everything is read. Behind the first nothing is given.
    """

    def texts_of(path: Path) -> Iterator[tuple[Path, str]]:
        if mode_of(path) == stat.S_IFDIR:
            yield from _texts(files_below(path, told, leave_out, selection), told, binary=binary)
        elif selection is None or (not selection.excludes(path) and selection.is_new(path)):
            yield path, decode_loosely(_read(path), path, skipped, binary=binary)

    mistakes = Mistakes()
    told = skipped or mistakes.add
    yield from _from_each(paths, mistakes, texts_of, _file)


def _texts(files: Iterable[Path], skipped: Skipped, *, binary: bool) -> Iterator[tuple[Path, str]]:
    for file in files:
        try:
            text = decode_loosely(_read(file), file, skipped, binary=binary)
        except ProdError as error:
            skipped(str(error))
            continue
        yield file, text


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file, line ends as they are.

    Raises:
        ProdError: it cannot be read, or is not text as `decode_text` reads it.
    """
    return decode_text(_read(as_path(path)), path)


def decode_text(data: bytes, name: str | os.PathLike[str]) -> str:
    """UTF-8 text, or UTF-16 or UTF-32 with a byte order mark, without that mark; line ends as they are.

    Raises:
        ProdError: it is something else; `name` says where it came from.
    """
    encoding = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding.startswith("utf-8") and b"\0" in data:
        compiled = ": it is compiled, join such files with prod-decode merge" if data.startswith(MAGIC) else ""
        raise ProdError(f"{name} is a binary file, expected UTF-8 text{compiled}")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ProdError(
            f"{name} is not {encoding[:6].rstrip('-').upper()} text (byte {data[error.start]:#04x} at {error.start}): "
            "convert it first"
        ) from None


def decode_loosely(
    data: bytes, name: str | os.PathLike[str], skipped: Skipped | None = None, *, binary: bool = False
) -> str:
    """Text as `read_texts` reads it: what `decode_text` refuses as well, if it may be Latin-1 or `binary` is set.

    With `binary` the bytes of UTF-16 and UTF-32 follow the text, each as a character.

    Raises:
        ProdError: it is no text, and `binary` is not set or `skipped` is None.
    """
    try:
        text = decode_text(data, name)
    except ProdError as error:
        why = str(error)
    else:
        # ASCII behind a mark of UTF-16, as `echo` appends it, makes other characters of two bytes each.
        is_wide = binary and data.startswith(_WIDE)
        return f"{text}\n\0\n{data.decode('latin-1')}" if is_wide else text
    if b"\0" in data:
        # In Latin-1 every byte is a character, and those of ASCII are the same.
        text = data.decode("latin-1")
    else:
        text = data.decode("utf-8", "surrogateescape").translate(_LATIN_1)
        if not _NO_LATIN_1.search(text):
            _log.warning("%s is not UTF-8 text: read as Latin-1", name)
            return text
    if not binary:
        raise ProdError(why)
    _skip(skipped, f"{why}; only its bytes were looked through")
    return text


def _skip(skipped: Skipped | None, why: str) -> None:
    if skipped is None:
        raise ProdError(why)
    skipped(why)


def _read(path: Path) -> bytes:
    # A FIFO that is named is read, as `<(command)` is one; a device such as /dev/zero may have no end.
    if (mode := mode_of(path)) not in (stat.S_IFREG, stat.S_IFIFO):
        raise ProdError(f"cannot read {path}: it is {kind_of(mode)}, expected a file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ProdError(f"cannot read {path}: {error.strerror}") from None


def _lines(path: Path, data: bytes | None = None) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with its place, `file:line`.

    Only LF and CRLF end one: `str.splitlines` would also cut at a form feed or U+2028 inside a string.
    """
    text = read_text(path) if data is None else decode_text(data, path)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line.removesuffix("\r")


def _phrase(place: str, line: str, boundary: Boundary | None) -> Entry:
    if "\r" in line:
        raise ProdError(
            f"{place}: expected lines that end with LF or CRLF, got a CR within one: convert the file, or write a "
            "phrase with a CR as a .jsonl entry"
        )
    return Entry(line, source=place, boundary=boundary)


def read_json_lines(path: str | os.PathLike[str], data: bytes | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its place, `file:line`, for messages; blank lines are skipped.

    Args:
        path: of the file.
        data: what it holds, if not what is read there, as of a compressed one.

    Raises:
        ProdError: lines that are no JSON objects: all of them, at the end. Behind the first nothing is given.
    """
    mistakes = Mistakes()
    for place, line in _lines(as_path(path), data):
        with mistakes.caught():
            record = _object(place, line)
            if not mistakes:
                yield place, record
    mistakes.refuse()


def unpacked(path: str | os.PathLike[str]) -> bytes:
    """What a file holds that gzip has written, for `read_json_lines`.

    Raises:
        ProdError: it cannot be read, or is none.
    """
    try:
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ProdError(f"cannot read {path}: {reason(error)} (expected a file that gzip has written)") from None


def _object(place: str, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line, object_pairs_hook=unique_keys)
    # Deep nesting is a RecursionError, and a number of 5,000 digits a ValueError that is no JSONDecodeError.
    except (ValueError, RecursionError) as error:
        raise ProdError(f"{place}: expected a JSON object a line, got invalid JSON ({error})") from None
    if not isinstance(record, dict):
        raise ProdError(f"{place}: expected a JSON object, got {type(record).__name__}")
    return record


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, as `object_pairs_hook`; of a key that stands there twice, `json` would keep the last value only.

    Raises:
        ValueError: there is such a key.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return found
