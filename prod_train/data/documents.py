"""Source files, read and cut into pieces; what is left out, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prod_decode.blocklist.ready import list_named
from prod_decode.blocklist.selection import Selection, files_below
from prod_decode.blocklist.sources import license_of, read_text
from prod_decode.errors import Mistakes, ProdError
from prod_decode.storage.files import as_path, require_there
from prod_train.data.alike import COMPARED, digest
from prod_train.data.pieces import Piece, blocks, python_pieces

PYTHON = (".py", ".pyi", ".pyw")
# Below a directory, files of these names are code, and no others. A file that is named is code whatever its name.
_SUFFIXES = """
.bash .c .cc .cjs .clj .cljs .cmake .coffee .cpp .cs .cts .cu .cuh .cxx .d .dart .el .erl .ex .exs .f .f03 .f90 .f95
.for .fs .fsx .go .gradle .groovy .h .hh .hpp .hrl .hs .hxx .inl .ino .java .jl .js .jsx .kt .kts .lisp .lua .m .mjs
.ml .mli .mm .mts .nim .pas .php .pl .pm .proto .ps1 .py .pyi .pyw .r .rb .rs .s .sc .scala .scm .sh .sol .sql .sv
.swift .tcl .tf .ts .tsx .v .vb .vhd .vhdl .vue .zig .zsh
"""
CODE = frozenset(_SUFFIXES.split())

# In the first lines of a file that a program wrote.
_GENERATED = re.compile(r"@generated\b|\bDO NOT EDIT\b|\b(auto-?matically |auto-?|machine-)generated\b", re.IGNORECASE)
_FIRST_LINES = 10

NO_CODE = "left out, no source files by their names"
UNREAD = "left out, cannot be read as text"
GENERATED = "left out, written by a program"
EMPTY = "left out, no text in them"
NO_PYTHON = "cut into blocks, no Python that parses"


@dataclass(frozen=True, slots=True)
class Document:
    """A source file.

    Attributes:
        name: as it was found, with `/` between folders.
        license: what its `SPDX-License-Identifier:` says, or None.
        digest: of its normalised text.
        pieces: of it, in their order.
    """

    name: str
    license: str | None
    digest: bytes
    pieces: tuple[Piece, ...]


class Left:
    """What became of code that is in no row, or not in one as was meant: places, by what there is to tell of them."""

    def __init__(self) -> None:
        self._places: dict[str, dict[str, None]] = {}

    def add(self, what: str, place: str) -> None:
        """One file or piece; a place that comes again counts once."""
        self._places.setdefault(what, {})[place] = None

    @property
    def places(self) -> dict[str, list[str]]:
        """All of them, in the order in which they came."""
        return {what: list(places) for what, places in self._places.items()}

    def lines(self, most: int = 3) -> Iterator[str]:
        """For people: each with the number of places and the first of them."""
        for what, places in self.places.items():
            if what == NO_CODE:
                kinds = Counter(Path(place).suffix.lower() or "no suffix" for place in places)
                shown = [f"{kind} {count}" for kind, count in kinds.most_common(most)]
                rest = len(kinds) - len(shown)
            else:
                shown = places[:most]
                rest = len(places) - len(shown)
            yield f"{what}: {len(places):,} ({', '.join(shown)}{f' and {rest:,} more' if rest else ''})"


def read_documents(paths: Sequence[str], longest: int, left: Left, *, selection: Selection) -> list[Document]:
    """The source files that are named or lie below a directory that is, in the order of their names.

    Args:
        paths: files and directories.
        longest: characters of a piece.
        left: is told what is not read, and of Python that does not parse, which is cut into blocks.
        selection: what else is left out; no file is read twice.

    Raises:
        ProdError: what is named is not there, or is no text; or it is `list:NAME`.
    """
    mistakes = Mistakes()
    found = []
    for path in paths:
        with mistakes.caught():
            found += [*_documents(path, longest, left, selection)]
    mistakes.refuse()
    return found


def _documents(name: str, longest: int, left: Left, selection: Selection) -> Iterator[Document]:
    if list_named(name) is not None:
        raise ProdError(
            f"expected files or directories of code, got {name}, which has phrases and no code around them: "
            "name the code that has them; prod-train run takes the list itself, compiled, as --blocklist"
        )
    path = as_path(name)
    require_there(path)
    if not path.is_dir():
        if not selection.excludes(path) and selection.is_new(path):
            yield _document(path, read_text(path), longest, left)
        return
    for file in files_below(path, lambda why: left.add(UNREAD, why), selection=selection):
        if file.suffix.lower() not in CODE:
            left.add(NO_CODE, file.as_posix())
            continue
        try:
            text = read_text(file)
        except ProdError as error:
            left.add(UNREAD, str(error))
            continue
        if any(map(_GENERATED.search, text.split("\n", _FIRST_LINES)[:_FIRST_LINES])):
            left.add(GENERATED, file.as_posix())
        elif not text.strip():
            left.add(EMPTY, file.as_posix())
        else:
            yield _document(file, text, longest, left)


def _document(path: Path, text: str, longest: int, left: Left) -> Document:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    pieces = None
    if path.suffix.lower() in PYTHON:
        try:
            pieces = python_pieces(text, longest)
        except ValueError as error:
            left.add(NO_PYTHON, f"{path.as_posix()}:{error}")
    if pieces is None:
        pieces = blocks(text, longest)
    return Document(path.as_posix(), license_of(text), digest(COMPARED.code_points(text)), tuple(pieces))
