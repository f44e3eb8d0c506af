"""Millions of patterns in flat arrays: collected in any order, sorted and made distinct, without an object for each."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.errors import ProdError
from prod_decode.storage.jit import inline, jit
from prod_decode.text.trie import concatenate

_BOUND, _WHOLE = 1, 2

# Bytes of a sort key: a machine word.
_KEY = 8


class Pattern(NamedTuple):
    """A byte string that the normalised text may not contain.

    Attributes:
        bound: it counts only where a word begins; its first symbol is a word character.
        symbols: its bytes; at least one.
        whole: it counts only where its last word ends; its last symbol is a word character.
    """

    bound: bool
    symbols: bytes
    whole: bool


@dataclass(frozen=True, slots=True)
class Patterns:
    """Patterns in ascending order, each once. Those that are not `bound` come first.

    Attributes:
        data: uint8 [bytes], their symbols one after another.
        offsets: int64 [n + 1]; pattern i is `data[offsets[i] : offsets[i + 1]]`.
        bound: bool [n].
        whole: bool [n].
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    bound: NDArray[np.bool_]
    whole: NDArray[np.bool_]

    @classmethod
    def of(cls, patterns: Sequence[Pattern]) -> Patterns:
        """The arrays of patterns that are sorted and distinct.

        Raises:
            ProdError: they are not, or one is empty.
        """
        if any(not pattern.symbols for pattern in patterns):
            raise ProdError("expected patterns of at least one symbol, got an empty one")
        if any(a >= b for a, b in pairwise(patterns)):
            raise ProdError("expected distinct patterns in sorted order: pass sorted(set(patterns))")
        data, offsets = concatenate([pattern.symbols for pattern in patterns])
        bound, whole = (
            np.fromiter((pattern[field] for pattern in patterns), np.bool_, len(patterns)) for field in (0, 2)
        )
        return cls(data, offsets, bound, whole)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[Pattern]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Pattern:
        """One of them."""
        symbols = self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()
        return Pattern(bool(self.bound[index]), symbols, bool(self.whole[index]))


class Collected:
    """Patterns and who owns them, in the order in which they come; 21 bytes each beyond their own."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("q")
        self._flags = bytearray()
        self._owners = array("q")

    def add(self, pattern: Pattern, owner: int) -> None:
        """One pattern of an owner, 0 to 2^31 - 1."""
        self._data += pattern.symbols
        self._ends.append(len(self._data))
        self._flags.append(_BOUND * pattern.bound + _WHOLE * pattern.whole)
        self._owners.append(owner)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Collected:
        """What `arrays` returned, of one whose owners were `add`ed."""
        self = cls()
        self._data = bytearray(arrays["data"])
        self._flags = bytearray(arrays["flags"])
        self._ends.frombytes(arrays["ends"].tobytes())
        self._owners.frombytes(arrays["owners"].tobytes())
        return self

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that is in it: `data` uint8, and for each pattern `ends` int64, `flags` uint8 and `owners` int64."""
        return {
            "data": np.frombuffer(self._data, np.uint8),
            "ends": np.frombuffer(self._ends, np.int64),
            "flags": np.frombuffer(self._flags, np.uint8),
            "owners": np.frombuffer(self._owners, np.int64),
        }

    def append(self, other: Collected, numbers: NDArray[np.int64]) -> None:
        """The patterns of another.

        Args:
            other: where they are.
            numbers: int64 [owners of `other`], what they are called here; below 0 for those that are left out.
        """
        new = other.arrays()
        owners = numbers[new["owners"]]
        chosen = np.flatnonzero(owners >= 0)
        offsets = np.concatenate(([0], new["ends"]))
        data, starts = _gather(new["data"], offsets, chosen)
        self._ends.frombytes((len(self._data) + starts[1:]).tobytes())
        self._data += data.tobytes()
        self._flags += new["flags"][chosen].tobytes()
        self._owners.frombytes(owners[chosen].tobytes())

    def extend(self, patterns: Patterns, indices: NDArray[np.int64], owners: NDArray[np.int64]) -> None:
        """Several patterns at once.

        Args:
            patterns: where they are.
            indices: int64 [n], which of them, ascending; one with several owners several times.
            owners: int64 [n].
        """
        lengths = np.diff(patterns.offsets)
        picked, _ = _gather(patterns.data, patterns.offsets, indices)
        ends = len(self._data) + np.cumsum(lengths[indices])
        self._data += picked.tobytes()
        self._ends.frombytes(ends.astype(np.int64).tobytes())
        flags = _BOUND * patterns.bound.astype(np.uint8) + _WHOLE * patterns.whole.astype(np.uint8)
        self._flags += flags[indices].tobytes()
        self._owners.frombytes(owners.tobytes())

    def shorten(self, which: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Keep the beginnings of some patterns; one that becomes shorter need no longer end with its word.

        Args:
            which: int64 [n], places of patterns, distinct.
            lengths: int64 [n], how many symbols to keep, 1 to all.
        """
        arrays = self.arrays()
        sizes = np.diff(arrays["ends"], prepend=0)
        kept = sizes.copy()
        kept[which] = lengths
        flags = arrays["flags"].copy()
        flags[kept < sizes] &= ~np.uint8(_WHOLE)
        places = np.arange(len(arrays["data"])) - np.repeat(arrays["ends"] - sizes, sizes)
        data = arrays["data"][places < np.repeat(kept, sizes)]
        self._data, self._flags, self._ends = bytearray(data.tobytes()), bytearray(flags.tobytes()), array("q")
        self._ends.frombytes(np.cumsum(kept).tobytes())

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ends)

    def __getitem__(self, index: int) -> tuple[Pattern, int]:
        """A pattern and its owner."""
        begin = self._ends[index - 1] if index else 0
        flags = self._flags[index]
        symbols = bytes(self._data[begin : self._ends[index]])
        return Pattern(bool(flags & _BOUND), symbols, bool(flags & _WHOLE)), self._owners[index]

    def drain(self) -> tuple[Patterns, NDArray[np.int64], NDArray[np.int32]]:
        """All patterns, distinct and in order, and whose they are; then it is empty, and its memory free.

        Returns:
            The patterns; int64 [n + 1], the range of `owners` that belongs to each; and the owners, int32, ascending
            and distinct for each pattern.
        """
        data, ends, flags, owners = self.arrays().values()
        Collected.__init__(self)
        offsets = np.concatenate((np.zeros(1, np.int64), ends))
        order = _sort(data, offsets, flags, owners)
        first, kept = _distinct(data, offsets, flags, owners, order)
        chosen = order[np.flatnonzero(first)]
        symbols, starts = _gather(data, offsets, chosen)
        owned = order[kept]
        owner_starts = np.append(np.flatnonzero(first[kept]), len(owned)).astype(np.int64)
        distinct = Patterns(symbols, starts, (flags[chosen] & _BOUND) != 0, (flags[chosen] & _WHOLE) != 0)
        return distinct, owner_starts, owners[owned].astype(np.int32)


def _gather(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], indices: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Some strings, one after another: their bytes and offsets."""
    starts = np.zeros(len(indices) + 1, np.int64)
    np.cumsum((offsets[1:] - offsets[:-1])[indices], out=starts[1:])
    gathered = np.empty(int(starts[-1]), np.uint8)
    _copy(data, offsets, indices, starts, gathered)
    return gathered, starts


@jit
def _copy(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    indices: NDArray[np.int64],
    starts: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    for i in range(len(indices)):
        begin = offsets[indices[i]]
        for k in range(starts[i + 1] - starts[i]):
            out[starts[i] + k] = data[begin + k]


@inline
def _key(data: NDArray[np.uint8], begin: int, end: int) -> np.uint64:
    """The next bytes of a string as a number that sorts like them, with zeros behind its end."""
    key = np.uint64(0)
    for i in range(begin, begin + _KEY):
        key = (key << np.uint64(8)) | np.uint64(data[i] if i < end else 0)
    return key


@jit
def _sort(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    flags: NDArray[np.uint8],
    owners: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The order by `bound`, symbols, `whole` and owner: int64 [n]. A radix sort from the left, 8 bytes at a time.

    Strings that are equal so far form a group. Those that end within the next 8 bytes are told apart by their length,
    since a zero may also be a byte of them; they come first, being prefixes of the rest, which are a smaller group.
    """
    count = len(flags)
    order = np.empty(count, np.int64)
    keys = np.empty(count, np.uint64)
    unbound = 0
    for i in range(count):
        unbound += (flags[i] & _BOUND) == 0
    low, high = 0, unbound
    for i in range(count):
        if flags[i] & _BOUND:
            order[high] = i
            high += 1
        else:
            order[low] = i
            low += 1
    stack = [(0, unbound, 0), (unbound, count, 0)]
    while len(stack) > 0:
        begin, end, depth = stack.pop()
        if end - begin < 2:
            continue
        for i in range(begin, end):
            keys[i] = _key(data, offsets[order[i]] + depth, offsets[order[i] + 1])
        ranks = np.argsort(keys[begin:end], kind="mergesort")
        keys[begin:end] = keys[begin:end][ranks]
        order[begin:end] = order[begin:end][ranks]
        first = begin
        while first < end:
            last = first + 1
            while last < end and keys[last] == keys[first]:
                last += 1
            if last - first > 1:
                group = order[first:last].copy()
                # In the order of ends, `whole` and owner; what goes on comes last, in any order.
                ties = np.empty(len(group), np.int64)
                going_on = 0
                for i in range(len(group)):
                    left = offsets[group[i] + 1] - offsets[group[i]] - depth
                    going_on += left > _KEY
                    ties[i] = (min(left, _KEY + 1) << 40) | (((flags[group[i]] & _WHOLE) != 0) << 32) | owners[group[i]]
                order[first:last] = group[np.argsort(ties, kind="mergesort")]
                stack.append((last - going_on, last, depth + _KEY))
            first = last
    return order


@jit
def _distinct(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    flags: NDArray[np.uint8],
    owners: NDArray[np.int64],
    order: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each place of the order: whether a new pattern begins there, and whether pattern or owner is a new one."""
    first = np.ones(len(order), np.bool_)
    kept = np.ones(len(order), np.bool_)
    for i in range(1, len(order)):
        a, b = order[i - 1], order[i]
        length = offsets[a + 1] - offsets[a]
        if flags[a] != flags[b] or length != offsets[b + 1] - offsets[b]:
            continue
        equal = True
        for k in range(length):
            if data[offsets[a] + k] != data[offsets[b] + k]:
                equal = False
                break
        first[i] = not equal
        kept[i] = not equal or owners[a] != owners[b]
    return first, kept
