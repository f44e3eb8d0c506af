"""The anchors of a corpus as fingerprints, sorted into buckets, and how they are found.

The upper bits of an anchor's *key*, the mixed hash of its prefix, name its bucket; the 16 bits behind them are kept,
and of its suffix the low 32 bits of the hash. That is 6 bytes, and 1/4 to 1/2 for where buckets begin. A run that is no
prefix is taken for one about once in 4,096 to 8,192 looks; a token that completes no anchor is banned behind a prefix
about once in 2^32 for every run that tokens begin with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.errors import ProdError
from prod_decode.storage.jit import jit

# Anchors of a bucket: 8 to 16.
_BUCKET = 3
_MOST_BITS = 32
REMAINDER = 16
_MOST_ANCHORS = (1 << 32) - 1

# From so many in a bucket on, halving finds the part sooner than one after the other.
_MANY = 32


class Search(NamedTuple):
    """What kernels find anchors with: the arrays of a `Table`, and where a key's bucket stands in it."""

    starts: NDArray[np.uint32]
    remainders: NDArray[np.uint16]
    shift: np.uint64


@dataclass(frozen=True, eq=False)
class Table:
    """The anchors, by key.

    Attributes:
        starts: uint32 [2^bits + 1], where each bucket begins.
        remainders: uint16 [n], of each key the 16 bits behind those of its bucket.
        suffixes: uint32 [n], of each suffix's hash the low bits.
        documents: uint32 [n], the number of the first document with that anchor; empty without attribution.
    """

    starts: NDArray[np.uint32]
    remainders: NDArray[np.uint16]
    suffixes: NDArray[np.uint32]
    documents: NDArray[np.uint32]

    def __post_init__(self) -> None:
        # As those of a mapped file are: kernels are compiled once for both.
        for name, array in vars(self).items():
            read_only = array.view()
            read_only.flags.writeable = False
            object.__setattr__(self, name, read_only)

    def __reduce__(self) -> tuple[Any, ...]:
        """Arrays come out of a pickle writable."""
        return Table, tuple(vars(self).values())

    @classmethod
    def of(
        cls,
        keys: NDArray[np.uint64],
        suffixes: NDArray[np.uint32],
        documents: NDArray[np.uint32],
        bits: int | None = None,
    ) -> Table:
        """From anchors in the order of their keys.

        Args:
            keys: uint64 [n], ascending.
            suffixes: uint32 [n].
            documents: uint32 [n], or empty.
            bits: of a key that name its bucket; None: so that 8 to 16 anchors share one.

        Raises:
            ProdError: they are more than one index holds.
        """
        bits = bits_for(len(keys)) if bits is None else bits
        buckets = (keys >> np.uint64(64 - bits)).astype(np.int64)
        starts = np.searchsorted(buckets, np.arange((1 << bits) + 1)).astype(np.uint32)
        return cls(starts, remainders_of(keys, bits), suffixes, documents)

    @property
    def bits(self) -> int:
        """Those of a key that name its bucket."""
        return (len(self.starts) - 1).bit_length() - 1

    def __len__(self) -> int:
        """The number of anchors."""
        return len(self.remainders)

    @property
    def search(self) -> Search:
        """What kernels take."""
        return Search(self.starts, self.remainders, np.uint64(64 - self.bits))

    def is_laid_out(self) -> bool:
        """Whether the arrays fit each other in length; what they hold is not read, and no kernel relies on it."""
        buckets = len(self.starts) - 1
        return (
            buckets >= 2
            and buckets & (buckets - 1) == 0
            and len(self.suffixes) == len(self)
            and len(self.documents) in (0, len(self))
        )

    def is_sorted(self) -> bool:
        """Whether all of it is in order, which reads all of it."""
        return bool(_is_sorted(self.starts, self.remainders))


def bits_for(count: int) -> int:
    """The bits of a key that name a bucket, for so many anchors.

    Raises:
        ProdError: they are more than one index holds.
    """
    if count > _MOST_ANCHORS:
        raise ProdError(
            f"expected at most {_MOST_ANCHORS:,} anchors in an index, got {count:,}: build several, and use them all"
        )
    return max(1, min(_MOST_BITS, count.bit_length() - 1 - _BUCKET))


def remainders_of(keys: NDArray[np.uint64], bits: int) -> NDArray[np.uint16]:
    """The 16 bits behind the first `bits` of every key: uint16 [n]."""
    return (keys >> np.uint64(64 - bits - REMAINDER)).astype(np.uint16)


def first_of_each(keys: NDArray[np.uint64], suffixes: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which anchors, in the order of keys and then of suffixes, are not the one before them: bool [n]."""
    first = np.ones(len(keys), np.bool_)
    first[1:] = (keys[1:] != keys[:-1]) | (suffixes[1:] != suffixes[:-1])
    return first


@jit
def part_of(
    starts: NDArray[np.uint32], remainders: NDArray[np.uint16], shift: np.uint64, key: np.uint64
) -> tuple[int, int]:
    """The part of a table, from and to, whose prefixes have a key; within the table whatever its file says."""
    bucket = key >> shift
    low, high = np.int64(starts[bucket]), min(np.int64(starts[bucket + np.uint64(1)]), np.int64(len(remainders)))
    remainder = np.int64((key >> (shift - np.uint64(16))) & np.uint64(0xFFFF))
    if high - low > _MANY:
        low = _first_not_below(remainders, low, high, remainder)
        return int(low), int(_first_not_below(remainders, low, high, remainder + np.int64(1)))
    while low < high and remainders[low] < remainder:
        low += np.int64(1)
    last = low
    while last < high and remainders[last] == remainder:
        last += np.int64(1)
    return int(low), int(last)


@jit
def _first_not_below(remainders: NDArray[np.uint16], low: np.int64, high: np.int64, bound: np.int64) -> np.int64:
    while low < high:
        middle = (low + high) >> np.int64(1)
        if remainders[middle] < bound:
            low = middle + np.int64(1)
        else:
            high = middle
    return low


@jit
def _is_sorted(starts: NDArray[np.uint32], remainders: NDArray[np.uint16]) -> bool:
    if starts[0] != 0 or starts[-1] != len(remainders):
        return False
    for bucket in range(len(starts) - 1):
        first, last = np.int64(starts[bucket]), np.int64(starts[bucket + 1])
        if first > last or last > len(remainders):
            return False
        for i in range(first + 1, last):
            if remainders[i - 1] > remainders[i]:
                return False
    return True
