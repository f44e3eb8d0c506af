"""What a whole text has in common with documents: how much of each, and where."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.quotes.pieces import Pieces
from prod_decode.text.hashes import substring_hashes


class Quotation(NamedTuple):
    """What a text has of one document.

    Attributes:
        document: its number among `Pieces`.
        given: how many of its symbols, each counted once.
        longest: the longest run of symbols in common.
        runs: int64 [n, 2], where the text's runs of pieces begin and end, in its symbols, ascending and apart.
    """

    document: int
    given: int
    longest: int
    runs: NDArray[np.int64]


def quotations(pieces: Pieces, symbols: NDArray[np.uint8]) -> Iterator[Quotation]:
    """What a text has of each document, if anything, in the order of documents.

    Args:
        pieces: of the documents.
        symbols: uint8 [n], the text, normalised.
    """
    found = pieces.find(symbols)
    if not len(found):
        return
    # Each different piece once: a line that stands a thousand times here and there would make a million pairs.
    parts, which = np.unique(found[:, 1:], axis=0, return_inverse=True)
    places = pieces.places(parts)
    documents = pieces.documents_of(places)
    piece_of = np.repeat(np.arange(len(parts)), parts[:, 1] - parts[:, 0])
    for document in np.unique(documents).tolist():
        mine = documents == document
        begins = found[np.isin(which.reshape(-1), piece_of[mine]), 0]
        there = np.unique(places[mine])
        given = pieces.piece + int(np.minimum(np.diff(there), pieces.piece).sum())
        apart = np.flatnonzero(np.diff(begins) > pieces.piece) + 1
        runs = [(int(run[0]), int(run[-1]) + pieces.piece) for run in np.split(begins, apart)]
        longest = _longest(pieces, document, symbols, begins)
        yield Quotation(document, given, longest, np.array(runs, np.int64))


def _longest(pieces: Pieces, document: int, symbols: NDArray[np.uint8], begins: NDArray[np.int64]) -> int:
    """The longest run in common, by halving: of a common run every shorter part is common too.

    Runs are compared by hashes of 64 bits.

    Args:
        pieces: of the documents.
        document: which.
        symbols: of the text.
        begins: int64 [n], where in it pieces of the document begin, ascending.
    """
    piece = pieces.piece
    # How far pieces go on, one symbol after the other: no run is longer.
    breaks = np.flatnonzero(np.diff(begins) != 1)
    edges = np.concatenate(([-1], breaks, [len(begins) - 1]))
    stretches = [(int(begins[a + 1]), int(begins[b]) + piece) for a, b in pairwise(edges)]
    owned = pieces.document(document)
    free = np.concatenate(([0], np.cumsum(~owned.counts)))
    low, high = piece, min(max(end - begin for begin, end in stretches), len(owned.symbols)) + 1
    while high - low > 1:
        size = (low + high) // 2
        whole = free[size - piece + 1 :] == free[: len(free) - (size - piece + 1)]
        known = substring_hashes(owned.symbols, size)[whole]
        said = [substring_hashes(symbols[a:b], size) for a, b in stretches if b - a >= size]
        if said and np.isin(np.concatenate(said), known).any():
            low = size
        else:
            high = size
    return low
