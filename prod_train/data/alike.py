"""What counts as the same code: how texts are compared, and which are near copies of each other.

Two rows are *near copies* if half or more of the characters of one stand in the other in pieces of 24 characters and
more, or if they have the same text or the same completion. Layout does not count, as in a blocklist.

Every pair would be too many. A row has at most as much in common with another as with all others together, and that is
one look-up for each of its characters; pairs are counted only where all together have half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from prod_decode.blocklist.entries import DEFAULT_PIECE
from prod_decode.text.hashes import substring_hashes
from prod_decode.text.normalize import Normalization

# Texts of rows are compared as a blocklist compares them: layout does not count.
COMPARED = Normalization("code")

# A greedy output that shares so many characters in a row with the original, or all of a shorter one, is verbatim.
# Layout does not count, see `COMPARED`.
VERBATIM_FROM = 60

# Characters in a row that count as taken over, and the share of a text from which on it is a near copy.
PIECE, NEAR = DEFAULT_PIECE, 0.5

# Runs of a text of which one owner is tried before all are counted.
_TRIED = 8


class Text(NamedTuple):
    """A row as it is compared.

    Attributes:
        size: normalised characters.
        runs: uint64 [size - PIECE + 1], a hash of every run of `PIECE` of them.
        digests: of the whole text, and of the completion.
    """

    size: int
    runs: NDArray[np.uint64]
    digests: tuple[bytes, bytes]


def compared(prompt: str, completion: str) -> Text:
    """A row of `prompt` and `completion`, as it is compared."""
    points = COMPARED.code_points(prompt + completion)
    digests = (digest(points), b"completion" + digest(COMPARED.code_points(completion)))
    return Text(len(points), substring_hashes(points, PIECE), digests)


def digest(points: NDArray[np.uint32]) -> bytes:
    """A hash of normalised code points, uint32 [n]: 16 bytes."""
    return bytes(xxhash.xxh3_128_digest(points.tobytes()))


def near_copies(earlier: Sequence[Text], later: Sequence[Text]) -> set[int]:
    """The numbers of those of `later` that are near copies of any of `earlier`."""
    digests = {one for text in earlier for one in text.digests}
    found = {number for number, text in enumerate(later) if digests.intersection(text.digests)}
    index = _Index([text.runs for text in earlier])
    for number, text in enumerate(later):
        if number not in found and _share(text, index.has(text.runs)) >= NEAR:
            # Of code that was copied a thousand times, any copy will do, and counting all of them takes long.
            others = chain(index.some(text), index.sharing(text))
            if any(_is_in(text, earlier[other]) for other in others):
                found.add(number)
    rest = [number for number in range(len(later)) if number not in found]
    index = _Index([later[number].runs for number in rest])
    for text in earlier:
        if _share(text, index.has(text.runs)) >= NEAR:
            found.update(rest[other] for other in index.sharing(text) if _is_in(text, later[rest[other]]))
    return found


def _is_in(text: Text, other: Text) -> bool:
    return _share(text, np.isin(text.runs, other.runs)) >= NEAR


def _share(text: Text, known: NDArray[np.bool_]) -> float:
    """Share of the characters that are in a run which is known: bool [size - PIECE + 1]."""
    if not known.any():
        return 0.0
    edges = np.zeros(text.size + 1, np.int64)
    edges[: len(known)] += known
    edges[PIECE:] -= known
    return float((edges.cumsum()[:-1] > 0).mean())


class _Index:
    """Which of some texts has which run."""

    def __init__(self, runs: Sequence[NDArray[np.uint64]]) -> None:
        hashes = np.concatenate([np.empty(0, np.uint64), *runs])
        owners = np.repeat(np.arange(len(runs)), [len(one) for one in runs])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners, self._count = hashes[order], owners[order], len(runs)

    def has(self, runs: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """For each run, whether any text has it."""
        begins, ends = self._range(runs)
        return ends > begins

    def some(self, text: Text) -> Iterator[int]:
        """A few that have a run of a text, and so may have half of it."""
        begins, ends = self._range(text.runs[:: max(1, len(text.runs) // _TRIED)])
        return map(int, dict.fromkeys(self._owners[begins[ends > begins]]))

    def sharing(self, text: Text) -> Iterator[int]:
        """Those that may have half of a text, those with most of its runs first.

        A run that is known makes `PIECE` characters known at most.
        """
        runs, times = np.unique(text.runs, return_counts=True)
        begins, ends = self._range(runs)
        counts = ends - begins
        # The places of all ranges, one after the other.
        places = np.arange(counts.sum()) + np.repeat(begins - (counts.cumsum() - counts), counts)
        pairs = np.unique(np.repeat(np.arange(len(runs)), counts) * self._count + self._owners[places])
        shared = np.bincount(pairs % self._count, weights=times[pairs // self._count])
        (owners,) = np.nonzero(shared * PIECE >= NEAR * text.size)
        yield from map(int, owners[np.argsort(-shared[owners], kind="stable")])

    def _range(self, runs: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.searchsorted(self._hashes, runs, "left"), np.searchsorted(self._hashes, runs, "right")
