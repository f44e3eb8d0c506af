"""Which places of a document to prohibit, so that no long run of it can be quoted.

To stop every run of K characters it is enough that every window of K contains one *anchor*, a substring that is
itself prohibited. Anchors of width w must then begin at most K - w + 1 apart; *which* ones is free, and is chosen
here by cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash
from numpy.typing import NDArray

from prod_decode.storage.jit import jit
from prod_decode.text.hashes import substring_hashes


def default_width(max_quote: int) -> int:
    """Half a quote: wide enough to be no common idiom, and n characters of document still need about n nodes."""
    return max(1, max_quote // 2)


class FreeCode:
    """The substrings of code that is free to use, by width.

    Substrings are kept as 64-bit hashes: a look-up among m of them collides with a probability of about m * 2**-64
    (1e-11 for 100 MB), and a collision makes an anchor avoid a place, or waives a run, that it need not.
    """

    def __init__(self, texts: Iterable[NDArray[np.uint32]]) -> None:
        self._texts = [text for text in texts if len(text)]
        self._hashes: dict[int, NDArray[np.uint64]] = {}

    def __bool__(self) -> bool:
        """Whether there is any free code."""
        return bool(self._texts)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the texts and their order."""
        total = xxhash.xxh3_128()
        for text in self._texts:
            total.update(len(text).to_bytes(8, "little") + text.tobytes())
        return total.hexdigest()

    @cached_property
    def in_bytes(self) -> FreeCode:
        """The same in bytes of UTF-8, for symbols in place of code points."""
        encoded = (text.tobytes().decode("utf-32-le").encode() for text in self._texts)
        return FreeCode(np.frombuffer(text, np.uint8).astype(np.uint32) for text in encoded)

    def contains(self, text: NDArray[np.uint32], width: int) -> NDArray[np.bool_]:
        """Whether each substring of `width` code points occurs in free code: bool [len(text) - width + 1]."""
        count = max(0, len(text) - width + 1)
        if not self._texts or not count:
            return np.zeros(count, np.bool_)
        if width not in self._hashes:
            self._hashes[width] = np.unique(np.concatenate([substring_hashes(t, width) for t in self._texts]))
        known = self._hashes[width]
        if not len(known):
            return np.zeros(count, np.bool_)
        wanted = substring_hashes(text, width)
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.asarray(known[at] == wanted)


@dataclass(frozen=True, slots=True)
class Anchors:
    """The chosen places of one document, in code points of its normalised text.

    Attributes:
        spans: (start, end) of every anchor, ascending.
        waived: (start, end) of every maximal stretch of which each window of `max_quote` is free code, so that it may
            be quoted.
    """

    spans: list[tuple[int, int]]
    waived: list[tuple[int, int]]


def choose_anchors(
    text: NDArray[np.uint32],
    max_quote: int,
    *,
    width: int | None = None,
    cost: NDArray[np.float64] | None = None,
    free: FreeCode | None = None,
) -> Anchors:
    """The cheapest anchors that leave no window of `max_quote` code points without one.

    No anchor occurs in free code. A window all of whose anchors would is prohibited as a whole instead, with an anchor
    as wide as itself, unless it occurs in free code as a whole: then it is waived.

    Args:
        text: uint32 [n], normalised code points; shorter than `max_quote`: nothing to prohibit.
        max_quote: the shortest run that may not be quoted.
        width: code points of an anchor, at most `max_quote`; default `default_width(max_quote)`.
        cost: float64 [n - width + 1], finite and positive, of an anchor at every place; default 1: the fewest anchors.
        free: code that is free to use.
    """
    width = default_width(max_quote) if width is None else width
    windows = len(text) - max_quote + 1
    if windows <= 0:
        return Anchors([], [])
    places = len(text) - width + 1
    cost = np.ones(places) if cost is None else np.array(cost, np.float64)
    spread = max_quote - width + 1
    needed = np.ones(windows, np.bool_)
    spans: list[tuple[int, int]] = []
    waived: list[tuple[int, int]] = []
    if free:
        cost[free.contains(text, width)] = np.inf
        blocked = np.concatenate(([0], np.cumsum(np.isinf(cost))))
        needed = blocked[spread:][:windows] - blocked[:windows] < spread
        stuck = np.flatnonzero(~needed)
        if len(stuck):
            may_quote = free.contains(text, max_quote)[stuck]
            spans.extend((int(i), int(i) + max_quote) for i in stuck[~may_quote])
            waived.extend(_stretches(stuck[may_quote], max_quote))
    chosen = _cheapest_cover(cost, needed, spread)
    spans.extend((int(i), int(i) + width) for i in chosen)
    return Anchors(sorted(spans), waived)


def _stretches(starts: NDArray[np.int64], length: int) -> list[tuple[int, int]]:
    """The maximal stretches that consecutive windows of `length` cover."""
    if not len(starts):
        return []
    cuts = np.flatnonzero(np.diff(starts) > 1) + 1
    return [(int(run[0]), int(run[-1]) + length) for run in np.split(starts, cuts)]


@jit
def _cheapest_cover(cost: NDArray[np.float64], needed: NDArray[np.bool_], spread: int) -> NDArray[np.int64]:
    """The places of least total cost such that every needed window `i` has one in `i : i + spread`; O(n).

    best[p] = cost[p] + min(best[q] for q in low(p) : p), where low(p) is the last needed window that ends before p:
    the one before p must lie in it. low never decreases, so a queue of rising minima serves. Every needed window has
    a place of finite cost.
    """
    places = len(cost)
    best = np.full(places, np.inf)
    before = np.full(places, -1, np.int64)
    queue = np.empty(places, np.int64)
    head = tail = 0
    low = -1  # no window yet: the first anchor needs none before it
    last_needed = -1
    for i in range(len(needed)):
        if needed[i]:
            last_needed = i
    final = -1
    for p in range(places):
        ended = p - spread
        if ended >= 0 and ended < len(needed) and needed[ended]:
            low = ended
        while head < tail and queue[head] < low:
            head += 1
        if low < 0:
            best[p] = cost[p]
        elif head < tail:
            best[p] = cost[p] + best[queue[head]]
            before[p] = queue[head]
        if best[p] < np.inf:
            while head < tail and best[queue[tail - 1]] >= best[p]:
                tail -= 1
            queue[tail] = p
            tail += 1
        if p >= last_needed and last_needed >= 0 and p < last_needed + spread and (final < 0 or best[p] < best[final]):
            final = p
    chosen = np.empty(places, np.int64)
    count = 0
    while final >= 0:
        chosen[count] = final
        count += 1
        final = before[final]
    return chosen[:count][::-1]
