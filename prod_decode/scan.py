"""Find patterns in a whole text: a filter that reads a symbol in about a nanosecond, and the automaton where it hits.

Most symbols of most texts begin no pattern, and the automaton would touch two or three records for each of them, which
with many patterns are in no fast cache. A pattern begins only where its first `window` symbols stand; whether those of
any pattern stand here is a hash and two bits of one word of a table (a blocked Bloom filter; Putze, Sanders and
Singler, 2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode._jit import inline, jit
from prod_decode.automaton import MATCH, MATCH_END, ROOT, Automaton, step
from prod_decode.normalize import CLASSES, WORD

# Symbols in two machine words, and below how many a window stands nearly everywhere. Of library code's positions, 2.1 %
# begin with the first 8 symbols of one of 10,000 other lines of it, .16 % with the first 16.
WIDEST, NARROWEST = 16, 4

# Words of the table for each window, so that about one place in a thousand hits without reason, and limits on the
# logarithm of their number.
_WORDS_EACH, _SMALLEST, _LARGEST = 1, 6, 22

# 2^64 over the golden ratio, odd: spreads the low bits of a product over the high ones (Knuth, TAOCP 3, 6.4).
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_8, _56, _63 = np.uint64(8), np.uint64(56), np.uint64(63)


@dataclass(frozen=True, slots=True)
class Filter:
    """Where a pattern may begin.

    Attributes:
        window: how many symbols are looked at, at most the length of the shortest pattern; 0: every place may.
        bits: uint64 [n], the table.
        shift: a hash of 64 bits has its index in the table above so many; the 12 bits below choose two of that word.
        levels: int32 [window + 1], the first node of each depth; nodes are numbered by depth.
    """

    window: int
    bits: NDArray[np.uint64]
    shift: int
    levels: NDArray[np.int32]

    @classmethod
    def of(cls, automaton: Automaton) -> Filter:
        """The filter of an automaton's patterns."""
        window = min(WIDEST, int(automaton.lengths.min(initial=WIDEST)))
        if window < NARROWEST:
            window = 0
        levels = np.zeros(window + 1, np.int32)
        for depth in range(window):
            levels[depth + 1] = 2 if depth == 0 else automaton.nodes["child"][levels[depth]]
        end = int(automaton.nodes["child"][levels[window]]) if window else 0
        count = max(1, end - int(levels[window]))
        size = min(_LARGEST, max(_SMALLEST, (count * _WORDS_EACH - 1).bit_length()))
        bits = np.zeros(1 << size, np.uint64)
        if window:
            _fill(automaton.nodes, levels, bits, np.uint64(64 - size))
        return cls(window, bits, 64 - size, levels)

    def find(self, automaton: Automaton, symbols: NDArray[np.uint8], out: NDArray[np.int64]) -> int:
        """Walk the symbols of a whole text and list where patterns end.

        Writes pairs (index of the last symbol, 2 * node + whether the word ends there) to `out` [m, 2] while they fit.

        Args:
            automaton: the one that this filter was made of.
            symbols: uint8 [n], normalised.
            out: int64 [m, 2].

        Returns:
            The number of pairs there are: call again with a larger `out` if it exceeds `m`.
        """
        shift = np.uint64(self.shift)
        return int(
            _find(automaton.nodes, automaton.rows, symbols, CLASSES, self.window, self.bits, shift, self.levels, out)
        )


@inline
def _place(newer: np.uint64, older: np.uint64, shift: np.uint64) -> tuple[np.uint64, np.uint64]:
    """The word of the table that stands for a window, and the two bits (or one) that are set in it."""
    mixed = (newer ^ (older * _SPREAD)) * _SPREAD
    one = np.uint64(1)
    bits = (one << ((mixed >> (shift - np.uint64(6))) & _63)) | (one << ((mixed >> (shift - np.uint64(12))) & _63))
    return mixed >> shift, bits


@jit
def _fill(nodes: NDArray[Any], levels: NDArray[np.int32], bits: NDArray[np.uint64], shift: np.uint64) -> None:
    """Set the bits of every path of `window` symbols from a root."""
    window = len(levels) - 1
    split = max(0, window - 8)
    # The symbols on the way to each node of a level, the first one lowest: the last 8 of the window, and those before.
    newer = np.zeros(2, np.uint64)
    older = np.zeros(2, np.uint64)
    for depth in range(window):
        first = levels[depth]
        below = levels[depth + 1]
        count = nodes[below].child - below
        newer_below = np.zeros(count, np.uint64)
        older_below = np.zeros(count, np.uint64)
        for node in range(first, below):
            for v in range(nodes[node].child, nodes[node + 1].child):
                symbol = np.uint64(nodes[v].label)
                newer_below[v - below] = newer[node - first]
                older_below[v - below] = older[node - first]
                if depth < split:
                    older_below[v - below] |= symbol << np.uint64(8 * depth)
                else:
                    newer_below[v - below] |= symbol << np.uint64(8 * (depth - split))
        newer, older = newer_below, older_below
    for i in range(len(newer)):
        place, wanted = _place(newer[i], older[i], shift)
        bits[place] |= wanted


@jit
def _find(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    symbols: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    window: int,
    bits: NDArray[np.uint64],
    shift: np.uint64,
    levels: NDArray[np.int32],
    out: NDArray[np.int64],
) -> int:
    """See `Filter.find`.

    The automaton starts where the filter hits, and is left as soon as it has read `window` symbols and the longest
    beginning of a pattern that it is in has fewer: every pattern that is under way then begins in these few symbols,
    and the filter goes on at the first of them. Where the filter hits without reason more often than pays, it is left
    for good.
    """
    total = len(symbols)
    count = 0
    begin = 0
    in_vain = 0
    deep = levels[window]
    # Of the two words with the last 16 symbols, what is in the window.
    newer_unused = np.uint64(64 - 8 * min(window, 8))
    older_unused = np.uint64(8 * (16 - window) if window > 8 else 0)
    older_mask = ~np.uint64(0) if window > 8 else np.uint64(0)
    while begin < total:
        if window > 0:
            if begin + window > total:
                return count
            newer = np.uint64(0)
            older = np.uint64(0)
            i = begin
            last = begin + window - 1
            while i < last:
                older = (older >> _8) | (newer << _56)
                newer = (newer >> _8) | (np.uint64(symbols[i]) << _56)
                i += 1
            found = False
            while i < total:
                older = (older >> _8) | (newer << _56)
                newer = (newer >> _8) | (np.uint64(symbols[i]) << _56)
                place, wanted = _place(newer >> newer_unused, (older >> older_unused) & older_mask, shift)
                if bits[place] & wanted == wanted:
                    found = True
                    break
                i += 1
            if not found:
                return count
            begin = i - window + 1
        in_word = begin > 0 and classes[symbols[begin - 1]] == WORD
        node = ROOT
        at = begin
        left = False
        while at < total:
            symbol = symbols[at]
            is_word = classes[symbol] == WORD
            node = step(nodes, rows, node, symbol, is_word and not in_word)
            in_word = is_word
            at += 1
            flags = nodes[node].flags
            if flags & (MATCH | MATCH_END):
                ends_word = at == total or classes[symbols[at]] != WORD
                if flags & MATCH or ends_word:
                    if count < len(out):
                        out[count, 0] = at - 1
                        out[count, 1] = 2 * node + ends_word
                    count += 1
            if node < deep and at - begin >= window:
                if at - begin == window:
                    in_vain += window
                    # Then the automaton alone is faster, whatever the rest of the text is like.
                    if in_vain > (at >> 1) + 4096:
                        deep = 0
                        continue
                left = True
                break
        if not left:
            return count
        depth = window - 1
        while levels[depth] > node:
            depth -= 1
        begin = at - depth
    return count
