"""What a text has given away of documents: their symbols, each counted once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.quotes.pieces import Pieces
from prod_decode.storage.jit import jit

_NO_PLACES = np.zeros(0, np.int64)


class Given(NamedTuple):
    """What one text has given away. Nothing changes it: texts that begin alike share one.

    Attributes:
        starts: int64 [n], where the runs of `Pieces.text` begin that are given away, ascending.
        ends: int64 [n], where they end, each before the next begins.
        documents: int64 [k], the documents in which symbols were counted, ascending.
        counts: int64 [k], how many.
        closed: int64 [c], those of `documents` whose budget is reached.
        pieces: int64 [p], where in `Pieces.order` the pieces begin that the text has, ascending: all their places are
            given away.
    """

    starts: NDArray[np.int64] = _NO_PLACES
    ends: NDArray[np.int64] = _NO_PLACES
    documents: NDArray[np.int64] = _NO_PLACES
    counts: NDArray[np.int64] = _NO_PLACES
    closed: NDArray[np.int64] = _NO_PLACES
    pieces: NDArray[np.int64] = _NO_PLACES

    def more(self, pieces: Pieces, found: NDArray[np.int64]) -> Given:
        """What is given away after further pieces.

        Args:
            pieces: of the documents.
            found: int64 [m, 2], parts of `pieces.order`, from and to.
        """
        found = found[np.unique(found[:, 0], return_index=True)[1]]
        found = found[~np.isin(found[:, 0], self.pieces)]
        if not len(found):
            return self
        starts, ends, documents, counts = _more(
            self.starts, self.ends, self.documents, self.counts, pieces.starts, pieces.order, pieces.piece, found
        )
        known = np.union1d(self.pieces, found[:, 0])
        return Given(starts, ends, documents, counts, documents[counts >= pieces.budgets[documents]], known)

    def since(self, before: Given, first: int, end: int) -> list[tuple[int, int]]:
        """The runs within `first : end` that were not given away `before`, ascending and apart."""
        found = []
        at, last = np.searchsorted(self.ends, first, side="right"), np.searchsorted(self.starts, end)
        for start, stop in zip(self.starts[at:last].tolist(), self.ends[at:last].tolist(), strict=True):
            low = max(start, first)
            for place in range(int(np.searchsorted(before.ends, low, side="right")), len(before.starts)):
                if before.starts[place] >= stop:
                    break
                if before.starts[place] > low:
                    found.append((low, int(before.starts[place])))
                low = int(before.ends[place])
            if low < min(stop, end):
                found.append((low, min(stop, end)))
        return found

    def uncounted(self) -> Given:
        """The same symbols, none of which counts: what a prompt quotes and an output may repeat."""
        return Given(self.starts, self.ends, pieces=self.pieces)


NOTHING = Given()


@jit
def covers(starts: NDArray[np.int64], ends: NDArray[np.int64], begin: int, end: int) -> bool:
    """Whether one of some runs, ascending and apart, has all of `begin : end`."""
    at = np.searchsorted(starts, begin, side="right") - 1
    return bool(at >= 0 and ends[at] >= end)


@jit
def _more(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    documents: NDArray[np.int64],
    counts: NDArray[np.int64],
    begins: NDArray[np.int64],
    order: NDArray[np.int32],
    piece: int,
    found: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The runs and counts of a `Given` after further pieces; `begins`: where documents do."""
    room = 0
    for i in range(len(found)):
        room += found[i, 1] - found[i, 0]
    new_starts = np.empty(len(starts) + room, np.int64)
    new_ends = np.empty(len(starts) + room, np.int64)
    new_documents = np.empty(len(documents) + room, np.int64)
    new_counts = np.empty(len(documents) + room, np.int64)
    runs: Any = len(starts)
    known: Any = len(documents)
    new_starts[:runs], new_ends[:runs] = starts, ends
    new_documents[:known], new_counts[:known] = documents, counts
    for i in range(len(found)):
        for place in range(found[i, 0], found[i, 1]):
            begin = int(order[place])
            end = begin + piece
            # The runs that overlap or touch this one, of which it becomes one.
            first = np.searchsorted(new_ends[:runs], begin)
            last = first
            kept = 0
            low, high = begin, end
            while last < runs and new_starts[last] <= end:
                kept += min(end, new_ends[last]) - max(begin, new_starts[last])
                low, high = min(low, int(new_starts[last])), max(high, int(new_ends[last]))
                last += 1
            if kept == piece:
                continue
            shift = 1 - (last - first)
            if shift == 1:
                for k in range(runs - 1, first - 1, -1):
                    new_starts[k + 1], new_ends[k + 1] = new_starts[k], new_ends[k]
            elif shift < 0:
                for k in range(last, runs):
                    new_starts[k + shift], new_ends[k + shift] = new_starts[k], new_ends[k]
            runs += shift
            new_starts[first], new_ends[first] = low, high
            document = np.searchsorted(begins, begin, side="right") - 1
            at = np.searchsorted(new_documents[:known], document)
            if at == known or new_documents[at] != document:
                for k in range(known - 1, at - 1, -1):
                    new_documents[k + 1], new_counts[k + 1] = new_documents[k], new_counts[k]
                new_documents[at], new_counts[at] = document, 0
                known += 1
            new_counts[at] += piece - kept
    return new_starts[:runs], new_ends[:runs], new_documents[:known], new_counts[:known]
