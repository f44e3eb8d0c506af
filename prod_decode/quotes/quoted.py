"""What a whole text has in common with documents: how much of each, and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.quotes.pieces import Pieces


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
    at, places = pieces.find(symbols)
    documents = pieces.documents_of(places)
    order = np.argsort(documents, kind="stable")
    for some in np.split(order, np.flatnonzero(np.diff(documents[order])) + 1):
        if len(some):
            yield _quotation(pieces, int(documents[some[0]]), at[some], places[some])


def _quotation(pieces: Pieces, document: int, at: NDArray[np.int64], places: NDArray[np.int64]) -> Quotation:
    """From where pieces of one document begin in the text, ascending, and in the document."""
    # Runs go on where text and document do: along a diagonal.
    along = np.lexsort((at, places - at))
    diagonal, there = (places - at)[along], at[along]
    breaks = np.flatnonzero((np.diff(diagonal) != 0) | (np.diff(there) != 1)) + 1
    longest = int(np.diff(np.concatenate(([0], breaks, [len(at)]))).max()) + pieces.piece - 1
    begins = np.unique(at)
    apart = np.flatnonzero(np.diff(begins) > pieces.piece) + 1
    runs = [(int(run[0]), int(run[-1]) + pieces.piece) for run in np.split(begins, apart)]
    given = pieces.piece + int(np.minimum(np.diff(np.unique(places)), pieces.piece).sum())
    return Quotation(document, given, longest, np.array(runs, np.int64))
