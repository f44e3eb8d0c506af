"""Find patterns in a whole text: where one may begin by a filter, and which by comparing the text with them.

Most symbols of most texts begin no pattern, and the automaton would touch two or three records for each of them, which
with many patterns are in no fast cache. A pattern begins only where its first `window` symbols stand; whether those of
any pattern stand here is a hash and two bits of one word of a table (a blocked Bloom filter; Putze, Sanders and
Singler, 2009). Where they do, a hash table knows the patterns that begin with them. They are sorted: a binary search
finds the last that is not above the text, and whatever begins here is a beginning of that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode.match.automaton import ACCEPT, ACCEPT_END, BOUND_ROOT, MATCH, MATCH_END, ROOT, Automaton, step
from prod_decode.storage.jit import inline, jit
from prod_decode.text.normalize import CLASSES, WORD
from prod_decode.text.patterns import Patterns

# Symbols in two machine words, and below how many a window stands nearly everywhere. Of library code's positions, 2.1 %
# begin with the first 8 symbols of one of 10,000 other lines of it, .16 % with the first 16.
WIDEST, NARROWEST = 16, 4

# Words of the table for each window, so that about one place in a thousand hits without reason, and limits on the
# logarithm of their number.
_WORDS_EACH, _SMALLEST, _LARGEST = 1, 6, 22

# Bytes of patterns that a filter may always spell out. Beyond, no more than the automaton has: patterns that share long
# beginnings, in a file made by hand for instance, are the square of it.
_MOST_SPELLED = 1 << 24

# 2^64 over the golden ratio, odd: spreads the low bits of a product over the high ones (Knuth, TAOCP 3, 6.4).
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_8, _32, _56, _63 = np.uint64(8), np.uint64(32), np.uint64(56), np.uint64(63)

# Symbols compared for each symbol of the text, and at least, before a text is held to be made to cost time: each of its
# symbols begins what could be a long pattern. From there on the automaton reads it, each symbol once. Where each symbol
# belongs to one begun pattern of 10,000, it is 2 or 3.
_PATIENCE, _LEAST = 16, 1 << 16


@dataclass(frozen=True, slots=True)
class Filter:
    """Where a pattern may begin, and which.

    Attributes:
        window: how many symbols are looked at, at most the length of the shortest pattern; 0: every place may.
        bits: uint64 [n], the table of the Bloom filter.
        shift: a hash of 64 bits has its index in `bits` above so many; the 12 bits below choose two of that word.
        table: uint64 [m], a hash table, probed linearly: a part of a window's hash above 32 bits, and below it 1 + the
            first pattern that begins with the window; 0: empty.
        patterns: those of the automaton; none if the window is 0.
        prefix: int32 [patterns], the longest other pattern that a pattern begins with and that is `bound` alike, or -1.
    """

    window: int
    bits: NDArray[np.uint64]
    shift: int
    table: NDArray[np.uint64]
    patterns: Patterns
    prefix: NDArray[np.int32]

    @classmethod
    def none(cls) -> Filter:
        """One that lets everything through to the automaton, and takes no time to make."""
        nothing = Patterns.of([])
        return cls(0, np.zeros(1, np.uint64), 63, np.zeros(1, np.uint64), nothing, np.zeros(0, np.int32))

    @classmethod
    def of(cls, automaton: Automaton) -> Filter:
        """The filter of an automaton's patterns; 25 ns a node."""
        window = min(WIDEST, int(automaton.lengths.min(initial=WIDEST)))
        if window < NARROWEST or automaton.spelled_bytes > max(_MOST_SPELLED, automaton.nodes.nbytes):
            return cls.none()
        patterns = automaton.spell()
        first = np.ones(len(patterns), np.bool_)
        prefix = np.full(len(patterns), -1, np.int32)
        _relate(patterns.data, patterns.offsets, patterns.bound, window, first, prefix)
        count = max(1, int(first.sum()))
        size = min(_LARGEST, max(_SMALLEST, (count * _WORDS_EACH - 1).bit_length()))
        bits = np.zeros(1 << size, np.uint64)
        table = np.zeros(1 << (2 * count - 1).bit_length(), np.uint64)
        _fill(patterns.data, patterns.offsets, patterns.bound, first, window, bits, np.uint64(64 - size), table)
        return cls(window, bits, 64 - size, table, patterns, prefix)

    def find(self, automaton: Automaton, symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Where patterns stand in a whole text.

        Args:
            automaton: the one that this filter was made of.
            symbols: uint8 [n], normalised.

        Returns:
            int64 [m, 3]: the index of the last symbol, the pattern's, and its length. In ascending order of the first;
            of patterns that end together the longer are first.
        """
        out, count = _find(
            automaton.nodes,
            automaton.rows,
            automaton.accepting,
            automaton.starts,
            automaton.patterns,
            automaton.lengths,
            symbols,
            CLASSES,
            self.window,
            self.bits,
            np.uint64(self.shift),
            self.table,
            self.patterns.data,
            self.patterns.offsets,
            self.patterns.bound,
            self.patterns.whole,
            self.prefix,
        )
        found = out[:count]
        return found[np.lexsort((-found[:, 2], found[:, 0]))]


@inline
def _mix(newer: np.uint64, older: np.uint64) -> np.uint64:
    """The hash of a window: the last 8 of its symbols, and those before."""
    return (newer ^ (older * _SPREAD)) * _SPREAD


@inline
def _place(mixed: np.uint64, shift: np.uint64) -> tuple[np.uint64, np.uint64]:
    """The word of the Bloom filter that stands for a window, and the two bits (or one) that are set in it."""
    one = np.uint64(1)
    bits = (one << ((mixed >> (shift - np.uint64(6))) & _63)) | (one << ((mixed >> (shift - np.uint64(12))) & _63))
    return mixed >> shift, bits


@inline
def _slot(mixed: np.uint64, bound: int, size: int) -> tuple[int, np.uint64]:
    """Where the search for a window begins in a table of `size`, a power of 2, and what is kept of its hash."""
    key = (mixed ^ np.uint64(bound + 1)) * _SPREAD
    key ^= key >> _32
    return int(np.int64(key & np.uint64(size - 1))), (key >> _32) << _32


@jit
def _relate(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    bound: NDArray[np.bool_],
    window: int,
    first: NDArray[np.bool_],
    prefix: NDArray[np.int32],
) -> None:
    """Which patterns are the first with their window, and the `prefix` of each."""
    for i in range(1, len(offsets) - 1):
        if bound[i] != bound[i - 1]:
            continue
        shared = 0
        limit = min(offsets[i + 1] - offsets[i], offsets[i] - offsets[i - 1])
        while shared < limit and data[offsets[i] + shared] == data[offsets[i - 1] + shared]:
            shared += 1
        first[i] = shared < window
        before = i - 1
        while before >= 0 and offsets[before + 1] - offsets[before] > shared:
            before = int(prefix[before])
        prefix[i] = before


@jit
def _fill(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    bound: NDArray[np.bool_],
    first: NDArray[np.bool_],
    window: int,
    bits: NDArray[np.uint64],
    shift: np.uint64,
    table: NDArray[np.uint64],
) -> None:
    """Enter every window into both tables."""
    split = max(0, window - 8)
    for i in range(len(first)):
        if not first[i]:
            continue
        newer = np.uint64(0)
        older = np.uint64(0)
        for k in range(split):
            older |= np.uint64(data[offsets[i] + k]) << np.uint64(8 * k)
        for k in range(split, window):
            newer |= np.uint64(data[offsets[i] + k]) << np.uint64(8 * (k - split))
        mixed = _mix(newer, older)
        place, wanted = _place(mixed, shift)
        bits[place] |= wanted
        slot, tag = _slot(mixed, int(bound[i]), len(table))
        while table[slot] != 0:
            slot = (slot + 1) & (len(table) - 1)
        table[slot] = tag | np.uint64(i + 1)


@inline
def _shared(data: NDArray[np.uint8], begin: int, end: int, symbols: NDArray[np.uint8], at: int, shared: int) -> int:
    """How long a beginning of `data[begin:end]` stands in the text at `at`, the first `shared` known to."""
    limit = min(end - begin, len(symbols) - at)
    while shared < limit and data[begin + shared] == symbols[at + shared]:
        shared += 1
    return shared


@jit
def _last_below(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    bound: NDArray[np.bool_],
    symbols: NDArray[np.uint8],
    begin: int,
    low: int,
    shared: int,
) -> tuple[int, int, int]:
    """The last pattern from `low` on that is not above the text at `begin`, and how many of its symbols stand there.

    Of `low` the first `shared` do. The third value is the number of symbols compared. All are `bound` alike.
    """
    if _is_above(data, offsets, symbols, begin, low, shared):
        return -1, 0, 0
    compared = 0
    # Doubling steps, since nearly always few patterns begin with one window; then halving.
    step_ = 1
    high = low + 1
    while high < len(bound) and bound[high] == bound[low]:
        here = _shared(data, offsets[high], offsets[high + 1], symbols, begin, 0)
        compared += here + 1
        if _is_above(data, offsets, symbols, begin, high, here):
            break
        low, shared = high, here
        step_ *= 2
        high = low + step_
    high = min(high, len(bound))
    while high - low > 1:
        middle = (low + high) >> 1
        here = 0
        above = bound[middle] != bound[low]
        if not above:
            here = _shared(data, offsets[middle], offsets[middle + 1], symbols, begin, 0)
            compared += here + 1
            above = _is_above(data, offsets, symbols, begin, middle, here)
        if above:
            high = middle
        else:
            low, shared = middle, here
    return low, shared, compared


@inline
def _is_above(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    symbols: NDArray[np.uint8],
    begin: int,
    pattern: int,
    shared: int,
) -> bool:
    """Whether a pattern of which exactly `shared` symbols stand in the text at `begin` sorts behind the text."""
    if shared == offsets[pattern + 1] - offsets[pattern]:
        return False
    return begin + shared == len(symbols) or data[offsets[pattern] + shared] > symbols[begin + shared]


@jit
def _longer(out: NDArray[np.int64]) -> NDArray[np.int64]:
    longer = np.empty((2 * len(out), 3), np.int64)
    longer[: len(out)] = out
    return longer


@jit
def _next_hit(
    symbols: NDArray[np.uint8], begin: int, window: int, bits: NDArray[np.uint64], shift: np.uint64
) -> tuple[int, np.uint64]:
    """The first place from `begin` on where a pattern may begin, and the hash of its window; -1 if there is none."""
    # Of the two words with the last 16 symbols, what is in the window.
    newer_unused = np.uint64(64 - 8 * min(window, 8))
    older_unused = np.uint64(8 * (16 - window) if window > 8 else 0)
    older_mask = ~np.uint64(0) if window > 8 else np.uint64(0)
    newer = np.uint64(0)
    older = np.uint64(0)
    total = len(symbols)
    i = begin
    last = min(begin + window - 1, total)
    while i < last:
        older = (older >> _8) | (newer << _56)
        newer = (newer >> _8) | (np.uint64(symbols[i]) << _56)
        i += 1
    while i < total:
        older = (older >> _8) | (newer << _56)
        newer = (newer >> _8) | (np.uint64(symbols[i]) << _56)
        mixed = _mix(newer >> newer_unused, (older >> older_unused) & older_mask)
        place, wanted = _place(mixed, shift)
        if bits[place] & wanted == wanted:
            return i - window + 1, mixed
        i += 1
    return -1, np.uint64(0)


@jit
def _standing(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    bound: NDArray[np.bool_],
    whole: NDArray[np.bool_],
    prefix: NDArray[np.int32],
    symbols: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    begin: int,
    first: int,
    window: int,
    out: NDArray[np.int64],
    count: int,
) -> tuple[NDArray[np.int64], int, int]:
    """Write the patterns that stand in the text at `begin`, of those with the window of `first`, behind `count` others.

    Returns:
        `out`, or a longer copy; how many triples it has now; and how many symbols were compared.
    """
    shared = _shared(data, offsets[first], offsets[first + 1], symbols, begin, 0)
    if shared < window:  # another window with the same hash
        return out, count, shared
    pattern, standing, compared = _last_below(data, offsets, bound, symbols, begin, first, shared)
    while pattern >= 0 and offsets[pattern + 1] - offsets[pattern] > standing:
        pattern = int(prefix[pattern])
    before = count
    while pattern >= 0:
        length = offsets[pattern + 1] - offsets[pattern]
        end = begin + length
        if not whole[pattern] or end == len(symbols) or classes[symbols[end]] != WORD:
            if count == len(out):
                out = _longer(out)
            out[count, 0] = end - 1
            out[count, 1] = pattern
            out[count, 2] = length
            count += 1
        pattern = int(prefix[pattern])
    # Of equal patterns that of the lower index comes first.
    out[before:count] = out[before:count][::-1].copy()
    return out, count, shared + compared


@jit
def _find(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    accepting: NDArray[np.int32],
    starts: NDArray[np.int64],
    items: NDArray[np.int64],
    lengths: NDArray[np.int32],
    symbols: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    window: int,
    bits: NDArray[np.uint64],
    shift: np.uint64,
    table: NDArray[np.uint64],
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    bound: NDArray[np.bool_],
    whole: NDArray[np.bool_],
    prefix: NDArray[np.int32],
) -> tuple[NDArray[np.int64], int]:
    """See `Filter.find`: triples in any order, and how many there are.

    Of patterns that end together and are equally long, those that begin with a word are written first.
    """
    total = len(symbols)
    out = np.empty((256, 3), np.int64)
    count = 0
    begin = 0
    compared = 0
    while window > 0 and compared <= _PATIENCE * begin + _LEAST:
        begin, mixed = _next_hit(symbols, begin, window, bits, shift)
        if begin < 0:
            return out, count
        begins_word = classes[symbols[begin]] == WORD and (begin == 0 or classes[symbols[begin - 1]] != WORD)
        for of_word in range(int(begins_word), -1, -1):
            slot, tag = _slot(mixed, of_word, len(table))
            while table[slot] != 0:
                if (table[slot] >> _32) << _32 == tag:
                    first = int(np.int64(table[slot] & np.uint64(0xFFFFFFFF))) - 1
                    out, count, steps = _standing(
                        data, offsets, bound, whole, prefix, symbols, classes, begin, first, window, out, count
                    )
                    compared += steps
                slot = (slot + 1) & (len(table) - 1)
        begin += 1
    in_word = begin > 0 and classes[symbols[begin - 1]] == WORD
    node = ROOT
    for last in range(begin, total):
        symbol = symbols[last]
        is_word = classes[symbol] == WORD
        node = step(nodes, rows, node, symbol, is_word and not in_word)
        in_word = is_word
        if nodes[node].flags & (MATCH | MATCH_END):
            ends_word = last + 1 == total or classes[symbols[last + 1]] != WORD
            counted = MATCH | MATCH_END if ends_word else MATCH
            ending = node
            while ending > BOUND_ROOT and nodes[ending].flags & counted:
                if nodes[ending].flags & (ACCEPT | ACCEPT_END):
                    at = int(np.searchsorted(accepting, np.int32(ending)))
                    for i in range(starts[at], starts[at + 1]):
                        if ends_word or not items[i] & 1:
                            if count == len(out):
                                out = _longer(out)
                            out[count, 0] = last
                            out[count, 1] = items[i] >> 1
                            out[count, 2] = lengths[at]
                            count += 1
                ending = nodes[ending].fail
    return out, count
