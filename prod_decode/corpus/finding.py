"""Kernels that find the anchors of a text, and the runs that they make up."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.corpus.keys import BASE, LOOK_AHEAD, mix
from prod_decode.corpus.table import Search, part_of
from prod_decode.storage.jit import jit

# Symbols of a text whose look-ups go together.
_BLOCK = 256


class Finding(NamedTuple):
    """What `find_all` takes of anchors.

    Attributes:
        search: of the table.
        suffixes: of the table.
        spread: uint64 [256], of symbols.
        scales: uint64 [3], `BASE` to the powers of an anchor's width, its prefix, and its suffix.
        prefix: symbols of a prefix.
        bound: from which identity on a run is looked up only where its bit is set (`winnow`).
        outliers: uint64 [words], a power of 2.
    """

    search: Search
    suffixes: NDArray[np.uint32]
    spread: NDArray[np.uint64]
    scales: NDArray[np.uint64]
    prefix: int
    bound: np.uint64
    outliers: NDArray[np.uint64]


@jit
def _matching(
    suffixes: NDArray[np.uint32],
    low: int,
    high: int,
    suffix: np.uint32,
    begin: int,
    out: NDArray[np.int64],
    count: int,
) -> int:
    """Write the anchors of a part of the table with a suffix behind `count` rows of `out`; how many rows there are.

    A function of its own: with an array that grows in the loop, a place took 17 ns, and 1 without.
    """
    for rank in range(low, high):
        if suffixes[rank] == suffix:
            out[count, 0], out[count, 1] = begin, rank
            count += 1
    return count


@jit
def find_all(finding: Finding, symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Every anchor in a text, int64 [n, 2]: where it begins, ascending, and its place in the table.

    In blocks, and each step for all of a block: its look-ups do not depend on each other, so that memory is waited for
    once for many. `sums[k]` is the hash of the text up to symbol k of the block; that of any run follows from two.
    """
    starts, remainders, shift = finding.search
    suffixes, spread, prefix, bound, outliers = (
        finding.suffixes,
        finding.spread,
        finding.prefix,
        finding.bound,
        finding.outliers,
    )
    of_width, of_prefix, of_suffix = finding.scales[0], finding.scales[1], finding.scales[2]
    width = prefix + LOOK_AHEAD
    mask = np.uint64(64 * len(outliers) - 1)
    out = np.empty((0, 2), np.int64)
    count = 0
    sums = np.empty(_BLOCK + width, np.uint64)
    places, keys = np.empty(_BLOCK + 1, np.int64), np.empty(_BLOCK, np.uint64)
    lows, highs = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    nearest = np.empty(_BLOCK, np.uint16)
    last = len(symbols) - width + 1  # places at which an anchor may begin
    hashed = np.uint64(0)
    sums[0] = hashed
    for i in range(min(width - 1, len(symbols))):
        hashed = hashed * BASE + spread[symbols[i]]
        sums[i + 1] = hashed
    for first in range(0, last, _BLOCK):
        candidates = np.uint64(0)
        for i in range(np.uint64(min(_BLOCK, last - first))):  # unsigned: no index is negative
            hashed = hashed * BASE + spread[symbols[np.uint64(first + width - 1) + i]]
            sums[i + np.uint64(width)] = hashed
            identity = mix(hashed - sums[i] * of_width)
            at = identity & mask
            bit = (outliers[at >> np.uint64(6)] >> (at & np.uint64(63))) & np.uint64(1)
            places[candidates] = i
            candidates += np.uint64((identity < bound) | (bit != 0))
        found = np.int64(candidates)
        for k in range(found):
            i = places[k]
            keys[k] = mix(sums[i + prefix] - sums[i] * of_prefix)
            bucket = keys[k] >> shift
            lows[k], highs[k] = np.int64(starts[bucket]), np.int64(starts[bucket + np.uint64(1)])
        for k in range(found):
            if lows[k] < len(remainders):
                nearest[k] = remainders[lows[k]]  # so that it is near when the bucket is gone through
        for k in range(found):
            if lows[k] >= highs[k] or lows[k] >= len(remainders):
                continue
            low, high = part_of(starts, remainders, shift, keys[k])
            if low == high:
                continue
            i = places[k]
            suffix = np.uint32((sums[i + width] - sums[i + prefix] * of_suffix) & np.uint64(0xFFFFFFFF))
            if len(out) - count < high - low:
                longer = np.empty((2 * count + high - low, 2), np.int64)
                longer[:count] = out[:count]
                out = longer
            count = _matching(suffixes, low, high, suffix, first + i, out, count)
        for k in range(width):
            sums[k] = sums[_BLOCK + k]
    return out[:count]


@jit
def runs_of(begins: NDArray[np.int64], owners: NDArray[np.uint32], reach: int) -> NDArray[np.int64]:
    """Anchors of a text in runs of one document each: int64 [runs, 3], from, up to, and 1 if others' are among them.

    A run ends where the next anchor begins further than `reach` away, and where another document's begin; one alone
    among others' is shared by both.

    Args:
        begins: int64 [n], ascending.
        owners: uint32 [n], the document of each, or empty.
        reach: symbols.
    """
    runs = np.empty((len(begins), 3), np.int64)
    count, first = 0, 0
    while first < len(begins):
        behind = first + 1
        while (
            behind < len(begins)
            and begins[behind] - begins[behind - 1] <= reach
            and (not len(owners) or owners[behind] == owners[first])
        ):
            behind += 1
        goes_on = first > 0 and begins[first] - begins[first - 1] <= reach
        is_same = goes_on and len(owners) and owners[first] == owners[runs[count - 1, 0]]
        if goes_on and (is_same or behind == first + 1):
            runs[count - 1, 1] = behind
            runs[count - 1, 2] |= not is_same
        else:
            runs[count, 0], runs[count, 1], runs[count, 2] = first, behind, 0
            count += 1
        first = behind
    return runs[:count]
