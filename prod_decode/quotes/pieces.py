"""The pieces of documents: every run of so many symbols, in sorted order, and where a text has one of them.

A *piece* is a run of `piece` symbols that a document and a text have in common. What a text *gives away* of a document
are the document's symbols that lie in such runs, each counted once, however often the text repeats them.

Documents are kept as text, 1 byte a symbol, with the places of their pieces sorted by what stands there, 4 bytes (a
suffix array, cut off at `piece`; Manber and Myers, 1993), and a Bloom filter, 2 to 4 bytes. A text is followed with a
rolling hash: one look at the filter for each symbol; only where that says yes, a binary search compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.errors import ProdError
from prod_decode.storage.jit import inline, jit

# 2^64 over the golden ratio, odd, so that its powers can be divided by modulo 2^64 (Knuth, TAOCP 3, 6.4).
BASE = np.uint64(0x9E3779B97F4A7C15)
_SPREAD = np.uint64(0xD6E8FEB86659FD93)
_63 = np.uint64(63)

# Words of 64 bits for each 4 pieces: about one place in 200 hits without reason.
_PIECES_A_WORD = 4
_SMALLEST = 6

# A place is an int32.
_MOST_SYMBOLS = (1 << 31) - 1


def _spread_bytes() -> NDArray[np.uint64]:
    """A number of 64 bits for each symbol (splitmix64's finaliser), so that sums of few of them do not cancel."""
    z = np.arange(1, 257, dtype=np.uint64) * BASE
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


SPREAD_BYTES = _spread_bytes()
SPREAD_BYTES.flags.writeable = False


class Document(NamedTuple):
    """A document to count pieces of.

    Attributes:
        owner: the number of its entry.
        budget: how many of its symbols a text may give away before it may give away no more.
        symbols: uint8 [n], normalised.
        counts: bool [n - piece + 1], the places whose piece counts; the others' is free code.
    """

    owner: int
    budget: int
    symbols: NDArray[np.uint8]
    counts: NDArray[np.bool_]


class Search(NamedTuple):
    """What kernels find pieces with.

    Attributes:
        text: of `Pieces`; so is the next.
        order: places.
        bits: uint64 [2^k], the Bloom filter.
        shift: a hash has its index in `bits` above so many bits.
        power: what the oldest symbol of a piece has been multiplied with.
        spread: uint64 [256], of symbols.
    """

    text: NDArray[np.uint8]
    order: NDArray[np.int32]
    bits: NDArray[np.uint64]
    shift: np.uint64
    power: np.uint64
    spread: NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Pieces:
    """The pieces of documents whose pieces are equally long.

    Attributes:
        piece: symbols of one.
        text: uint8 [n], the documents, normalised, each followed by one byte that belongs to none.
        starts: int64 [documents + 1], where each begins in `text`.
        owners: int32 [documents], the number of each one's entry, ascending.
        budgets: int64 [documents], in symbols, at least 1.
        order: int32 [pieces], where in `text` those begin that count, sorted by their symbols, then by place.
    """

    piece: int
    text: NDArray[np.uint8]
    starts: NDArray[np.int64]
    owners: NDArray[np.int32]
    budgets: NDArray[np.int64]
    order: NDArray[np.int32]

    @classmethod
    def of(cls, piece: int, documents: Sequence[Document]) -> Pieces:
        """Sort the pieces of documents.

        Raises:
            ProdError: they are more than an index holds.
        """
        parts: list[NDArray[np.uint8]] = []
        places: list[NDArray[np.int64]] = []
        starts = [0]
        end = np.zeros(1, np.uint8)
        for document in documents:
            parts += [document.symbols, end]
            places.append(starts[-1] + np.flatnonzero(document.counts))
            starts.append(starts[-1] + len(document.symbols) + 1)
        if starts[-1] > _MOST_SYMBOLS:
            raise ProdError(
                f"expected at most {_MOST_SYMBOLS:,} normalised bytes of documents with a budget, got {starts[-1]:,}: "
                "put some of them into another blocklist"
            )
        text = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
        found = np.concatenate(places) if places else np.zeros(0, np.int64)
        arrays = (
            text,
            np.array(starts, np.int64),
            np.array([document.owner for document in documents], np.int32),
            np.array([document.budget for document in documents], np.int64),
            _sorted(text, found.astype(np.int32), piece),
        )
        for array in arrays:
            array.flags.writeable = False  # as those of a file are: kernels are compiled once for both
        return cls(piece, *arrays)

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.owners)

    def document(self, number: int) -> Document:
        """One of the documents that it was made of."""
        start, end = int(self.starts[number]), int(self.starts[number + 1]) - 1
        counts = self._counts[start : max(start, end - self.piece + 1)]
        return Document(int(self.owners[number]), int(self.budgets[number]), self.text[start:end], counts)

    @cached_property
    def _counts(self) -> NDArray[np.bool_]:
        """The places of `text` whose piece counts."""
        counts = np.zeros(len(self.text), np.bool_)
        counts[self.order] = True
        return counts

    def counted(self) -> NDArray[np.int32]:
        """The numbers of the entries of which any piece counts, ascending."""
        return np.unique(self.owners[self.documents_of(self.order.astype(np.int64))])

    def documents_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the document in which each place of `text` lies."""
        return np.asarray(np.searchsorted(self.starts, places, side="right") - 1)

    @cached_property
    def search(self) -> Search:
        """What kernels find pieces with; the filter is made when first asked for, 10 ns a piece."""
        words = max(1, -(-len(self.order) // _PIECES_A_WORD))
        size = max(_SMALLEST, (words - 1).bit_length())
        bits = np.zeros(1 << size, np.uint64)
        shift = np.uint64(64 - size)
        power = np.uint64(1)
        with np.errstate(over="ignore"):
            for _ in range(self.piece - 1):
                power = power * BASE
        _fill(self.text, self.order, self.piece, SPREAD_BYTES, bits, shift)
        return Search(self.text, self.order, bits, shift, power, SPREAD_BYTES)

    def find(self, symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Where a whole text has pieces of documents.

        Args:
            symbols: uint8 [n], normalised.

        Returns:
            int64 [m, 3], for every place in `symbols`, ascending, at which a piece begins that documents have: it, and
            the part of `order` with the places that have the same piece, from and to.
        """
        found: NDArray[np.int64] = _find_all(*self.search, self.piece, symbols)
        return found

    def places(self, parts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places of some parts of `order`, int64 [m, 2], one part after the other."""
        counts = parts[:, 1] - parts[:, 0]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.asarray(self.order[np.repeat(parts[:, 0], counts) + within], np.int64)

    def validate(self, entries: int) -> bool:
        """Whether every index lies where it must, of so many entries: a file's checksum does not say who wrote it."""
        documents = len(self.owners)
        starts, order = self.starts, self.order
        if len(starts) != documents + 1 or len(self.budgets) != documents or not documents:
            return False
        if int(starts[0]) != 0 or int(starts[-1]) != len(self.text) or bool((starts[1:] <= starts[:-1]).any()):
            return False
        if int(self.owners[0]) < 0 or int(self.owners[-1]) >= entries or bool((np.diff(self.owners) <= 0).any()):
            return False
        if int(self.budgets.min()) < 1:
            return False
        if not len(order):
            return True
        if int(order.min()) < 0 or int(order.max()) >= len(self.text):
            return False
        ends = starts[self.documents_of(order.astype(np.int64)) + 1] - 1
        return bool((order + self.piece <= ends).all()) and bool(_is_sorted(self.text, order, self.piece))


def _sorted(text: NDArray[np.uint8], places: NDArray[np.int32], piece: int) -> NDArray[np.int32]:
    """Places in the order of the `piece` symbols there, then in their own."""
    keys = [_key(text, places, first, min(8, piece - first)) for first in range(0, piece, 8)]
    return places[np.lexsort(keys[::-1])] if len(places) else places


@jit
def _key(text: NDArray[np.uint8], places: NDArray[np.int32], first: int, count: int) -> NDArray[np.uint64]:
    """Symbols `first` to `first + count`, 8 at most, of every piece, as a number that sorts like them."""
    keys = np.empty(len(places), np.uint64)
    for i in range(len(places)):
        key = np.uint64(0)
        for k in range(count):
            key = (key << np.uint64(8)) | np.uint64(text[places[i] + first + k])
        keys[i] = key
    return keys


@jit
def _is_sorted(text: NDArray[np.uint8], order: NDArray[np.int32], piece: int) -> bool:
    for i in range(1, len(order)):
        before, here = order[i - 1], order[i]
        k = 0
        while k < piece and text[before + k] == text[here + k]:
            k += 1
        if (k < piece and text[before + k] > text[here + k]) or (k == piece and before >= here):
            return False
    return True


@inline
def place_in_filter(hashed: np.uint64, shift: np.uint64) -> tuple[np.uint64, np.uint64]:
    """The word of the filter that stands for a piece, and the three bits (or fewer) that are set in it."""
    one = np.uint64(1)
    mixed = hashed * _SPREAD
    other = (hashed ^ (hashed >> np.uint64(29))) * BASE
    bits = (
        (one << ((other >> np.uint64(58)) & _63))
        | (one << ((other >> np.uint64(52)) & _63))
        | (one << ((other >> np.uint64(46)) & _63))
    )
    return mixed >> shift, bits


@inline
def roll(hashed: Any, newest: int, oldest: int, is_full: bool, power: np.uint64, spread: NDArray[np.uint64]) -> Any:
    """The hash, uint64, of the last symbols after one more: `oldest` leaves it if there were `piece` already."""
    if is_full:
        hashed -= power * spread[oldest]
    return hashed * BASE + spread[newest]


@jit
def _fill(
    text: NDArray[np.uint8],
    order: NDArray[np.int32],
    piece: int,
    spread: NDArray[np.uint64],
    bits: NDArray[np.uint64],
    shift: np.uint64,
) -> None:
    """Enter every piece into the filter."""
    for i in range(len(order)):
        hashed = np.uint64(0)
        for k in range(piece):
            hashed = hashed * BASE + spread[text[order[i] + k]]
        place, wanted = place_in_filter(hashed, shift)
        bits[place] |= wanted


@inline
def compare(text: NDArray[np.uint8], at: int, window: NDArray[np.uint8], begin: int, count: int) -> int:
    """Below 0, 0 or above: how `count` symbols of `text` sort beside those of a window."""
    k = 0
    while k < count and text[at + k] == window[begin + k]:
        k += 1
    if k == count:
        return 0
    return int(np.int64(text[at + k]) - np.int64(window[begin + k]))  # of bytes, numba's `int` has no sign


@jit
def range_of(
    text: NDArray[np.uint8], order: NDArray[np.int32], window: NDArray[np.uint8], begin: int, count: int
) -> tuple[int, int]:
    """The part of `order` whose pieces begin with `count` symbols of a window, from `begin`."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) >> 1
        if compare(text, order[middle], window, begin, count) < 0:
            low = middle + 1
        else:
            high = middle
    first = low
    # Nearly always few: doubling steps, then halving.
    step = 1
    high = low
    while high < len(order) and compare(text, order[high], window, begin, count) == 0:
        low = high + 1
        high += step
        step *= 2
    high = min(high, len(order))
    while low < high:
        middle = (low + high) >> 1
        if compare(text, order[middle], window, begin, count) == 0:
            low = middle + 1
        else:
            high = middle
    return first, low


@jit
def put_triple(
    out: NDArray[np.int64], count: int, first: int, second: int, third: int
) -> tuple[NDArray[np.int64], int]:
    """Write three numbers behind `count` triples; `out`, or a longer copy, and how many there are now."""
    if count == len(out):
        longer = np.empty((2 * len(out) + 16, 3), np.int64)
        longer[:count] = out
        out = longer
    out[count, 0], out[count, 1], out[count, 2] = first, second, third
    return out, count + 1


@jit
def _find_all(
    text: NDArray[np.uint8],
    order: NDArray[np.int32],
    bits: NDArray[np.uint64],
    shift: np.uint64,
    power: np.uint64,
    spread: NDArray[np.uint64],
    piece: int,
    symbols: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """Of every piece in `symbols` where it begins there, and its part of `order`: int64 [m, 3]."""
    out = np.empty((0, 3), np.int64)
    count = 0
    hashed = np.uint64(0)
    for i in range(len(symbols)):
        oldest = symbols[i - piece] if i >= piece else symbols[0]
        hashed = roll(hashed, symbols[i], oldest, i >= piece, power, spread)
        if i + 1 < piece:
            continue
        place, wanted = place_in_filter(hashed, shift)
        if bits[place] & wanted != wanted:
            continue
        low, high = range_of(text, order, symbols, i + 1 - piece, piece)
        if low < high:
            out, count = put_triple(out, count, i + 1 - piece, low, high)
    return out[:count]
