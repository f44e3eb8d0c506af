"""From documents with budgets to their pieces, and from several compiled lists to one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.errors import ProdError
from prod_decode.quotes.pieces import Document, Pieces

# A document may not be given away as a whole because it is short.
_SHARE = 4

# How arrays of `Pieces` are laid out in a file; their names end in the length of a piece.
_LAYOUT: Mapping[str, tuple[Any, int]] = {
    "text": (np.dtype("u1"), 1),
    "starts": (np.dtype("<i8"), 1),
    "owners": (np.dtype("<i4"), 1),
    "budgets": (np.dtype("<i8"), 1),
    "order": (np.dtype("<i4"), 1),
}


class Budgeted(NamedTuple):
    """A document as it was asked for.

    Attributes:
        owner: the number of its entry.
        symbols: normalised.
        budget: symbols of it that a text may give away.
        piece: of how many symbols in a row.
    """

    owner: int
    symbols: bytes
    budget: int
    piece: int


def compile_pieces(
    documents: Iterable[Budgeted], is_free: Callable[[NDArray[np.uint8], int], NDArray[np.bool_]]
) -> tuple[Pieces, ...]:
    """The pieces of documents, a `Pieces` for each length.

    Args:
        documents: those that are shorter than a piece have none.
        is_free: of symbols, uint8 [n], and a width: which runs of that width are free code, bool [n - width + 1].
    """
    found: dict[tuple[int, int], Document] = {}
    for owner, symbols, budget, piece in documents:
        array = np.frombuffer(symbols, np.uint8)
        if len(array) >= piece:
            found[piece, owner] = Document(
                owner, min(budget, max(piece, len(array) // _SHARE)), array, ~is_free(array, piece)
            )
    return _sorted_by_piece(found)


def merge_pieces(lists: Iterable[tuple[tuple[Pieces, ...], NDArray[np.int64]]]) -> tuple[Pieces, ...]:
    """One set of pieces that keeps what any of several does.

    Args:
        lists: of each its pieces, and the new number of each of its entries, int64 [entries].

    Raises:
        ProdError: two texts of one document, which no compiler writes.
    """
    found: dict[tuple[int, int], Document] = {}
    for groups, numbers in lists:
        for pieces in groups:
            for place in range(len(pieces)):
                document = pieces.document(place)
                key = pieces.piece, int(numbers[document.owner])
                document = document._replace(owner=key[1])
                if (known := found.get(key)) is not None:
                    if not np.array_equal(known.symbols, document.symbols):
                        raise ProdError(
                            "cannot merge: one document has two texts, expected the same in every list: compile the "
                            "blocklists again"
                        )
                    # The same text, of which other code was free.
                    document = known._replace(counts=known.counts | document.counts)
                found[key] = document
    return _sorted_by_piece(found)


def _sorted_by_piece(documents: Mapping[tuple[int, int], Document]) -> tuple[Pieces, ...]:
    by_piece: dict[int, list[Document]] = {}
    for (piece, _), document in sorted(documents.items(), key=lambda item: item[0]):
        by_piece.setdefault(piece, []).append(document)
    return tuple(Pieces.of(piece, group) for piece, group in by_piece.items())


def arrays_of(groups: Iterable[Pieces]) -> dict[str, NDArray[Any]]:
    """What a file has of pieces, by name."""
    return {f"{name}_{pieces.piece}": getattr(pieces, name) for pieces in groups for name in _LAYOUT}


def layout_of(lengths: Iterable[int]) -> dict[str, tuple[Any, int]]:
    """How those are laid out, for pieces of these lengths."""
    return {f"{name}_{piece}": layout for piece in lengths for name, layout in _LAYOUT.items()}


def pieces_from(arrays: Mapping[str, NDArray[Any]], lengths: Iterable[int]) -> tuple[Pieces, ...]:
    """The pieces that `arrays_of` wrote."""
    return tuple(Pieces(piece, **{name: arrays[f"{name}_{piece}"] for name in _LAYOUT}) for piece in lengths)


def are_lengths(value: object, longest: int) -> bool:
    """Whether a value of JSON is a list of lengths of pieces up to `longest`, ascending."""
    return (
        isinstance(value, list)
        and all(type(piece) is int and 0 < piece <= longest for piece in value)
        and value == sorted(set(value))
    )
