"""What a whole text has in common with documents: how much of each, and where."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.quotes.pieces import BASE, SPREAD_BYTES, Pieces, roll
from prod_decode.storage.jit import jit


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
    low, high = piece, min(max(end - begin for begin, end in stretches), len(owned.symbols)) + 1
    while high - low > 1:
        size = (low + high) // 2
        free = np.concatenate(([0], np.cumsum(~owned.counts)))
        whole = free[size - piece + 1 :] == free[: len(free) - (size - piece + 1)]
        known = hashes_of(owned.symbols, size)[whole]
        said = [hashes_of(symbols[a:b], size) for a, b in stretches if b - a >= size]
        if said and np.isin(np.concatenate(said), known).any():
            low = size
        else:
            high = size
    return low


def hashes_of(symbols: NDArray[np.uint8], size: int) -> NDArray[np.uint64]:
    """A hash of every run of so many symbols: uint64 [n - size + 1]."""
    hashes = np.empty(max(0, len(symbols) - size + 1), np.uint64)
    _roll_all(symbols, size, SPREAD_BYTES, hashes)
    return hashes


@jit
def _roll_all(symbols: NDArray[np.uint8], size: int, spread: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> None:
    power = np.uint64(1)
    for _ in range(size - 1):
        power *= BASE
    hashed = np.uint64(0)
    for i in range(len(symbols)):
        oldest = symbols[i - size] if i >= size else symbols[0]
        hashed = roll(hashed, symbols[i], oldest, i >= size, power, spread)
        if i + 1 >= size:
            hashes[i + 1 - size] = hashed
