"""Which anchors stand for a document: of those in every window, the one whose hash is least.

Every window of `max_quote` symbols has `max_quote - width + 1` anchors in it, and the one with the least hash is chosen
(winnowing; Schleimer, Wilkerson and Aiken, 2003). So a run that two documents share has the same anchors in both:
copies cost nothing twice, and what many repositories share can be counted. Random text has 2 anchors in
`max_quote - width + 2` symbols.

Three kinds of anchors are told apart, so that tokens longer than `LOOK_AHEAD` cost next to nothing:

1. *Ending* anchors, in whose suffix a word ends before something else: (`leaves_word`). They are preferred.
2. *Even* anchors, in which that happens nowhere: banners, digits, text in other scripts. A window without an ending
   anchor has one, if `max_quote >= 2 * width - LOOK_AHEAD`: the ends of its anchors then lie in a stretch in which no
   word ends, and that is longer than an anchor.
3. Others are never chosen.

So nearly all anchors have a small identity, and most runs of a text need not be looked up: where a window has n
candidates, the least of them is above a share p of the range with probability (1 - p)^n; at p = 7 / n that is .1 %. The
few anchors above, the *outliers*, have a bit each. A run whose identity is neither small nor has its bit is no anchor.
Where few candidates are ending ones, more are outliers: 3 % of 25 million anchors of 76 wheels (150 symbols, a width of
60; at p = 5 / n 6 % of 4 million, where 7 / n has 2.5 %). Of runs of other code 10 % are then looked up.
Two anchors of one prefix whose suffixes collide in 32 bits share a place in the table, and one of their identities: the
other one may not be found in texts, about once in 2^32 pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.corpus.keys import BASE, LOOK_AHEAD, Cut, leaves_word, mix, power
from prod_decode.storage.jit import jit

_EVEN = np.uint64(1 << 62)
_NEVER = np.uint64(0xFFFFFFFFFFFFFFFF)

# The share of identities that are small, times the candidates of a window.
_SHARE = 7

# Bits for each outlier: so many times as many runs are looked up for nothing.
_BITS = 32

_ALL = (1 << 64) - 1

# Every run is looked up.
EVERY_RUN = np.full(1, _ALL, np.uint64)
EVERY_RUN.flags.writeable = False


class Chosen(NamedTuple):
    """The anchors of a document, by where they begin.

    Attributes:
        starts: int64 [n], in its symbols.
        prefixes: uint64 [n], the hash of each one's prefix.
        suffixes: uint64 [n], and of its suffix.
        even: bool [n], which are even.
        windows: int64 [n], how many windows each stands for.
        waived: how many windows have no anchor that may be chosen.
    """

    starts: NDArray[np.int64]
    prefixes: NDArray[np.uint64]
    suffixes: NDArray[np.uint64]
    even: NDArray[np.bool_]
    windows: NDArray[np.int64]
    waived: int


_PLACES, _HASHES = np.zeros(0, np.int64), np.zeros(0, np.uint64)
_NONE = Chosen(_PLACES, _HASHES, _HASHES, np.zeros(0, np.bool_), _PLACES, 0)


class Winnower:
    """Chooses the anchors of documents, one after the other.

    Attributes:
        cut: how documents are cut.
        excluded: uint64 [n], ascending, `identities` of anchors that may not be chosen.
    """

    def __init__(self, cut: Cut, excluded: NDArray[np.uint64] | None = None) -> None:
        """Of one cut.

        Args:
            cut: how documents are cut.
            excluded: uint64 [n], `identities` of anchors that may not be chosen, in any order.
        """
        self.cut = cut
        self._spread = cut.spread
        self.excluded = np.unique(np.zeros(0, np.uint64) if excluded is None else excluded)
        self.excluded.flags.writeable = False
        self._bits = _bits_of(self.excluded)

    def choose(self, symbols: NDArray[np.uint8]) -> Chosen:
        """The anchors of a document, uint8 [n], normalised; none of one that is shorter than `max_quote`."""
        cut = self.cut
        windows = len(symbols) - cut.max_quote + 1
        if windows <= 0:
            return _NONE
        ends = np.cumsum(leaves_word(symbols), dtype=np.int64)
        identities = self.identities(symbols)
        starts, even, counts, waived = _choose(
            identities, ends, cut.width, LOOK_AHEAD, cut.reach, self.excluded, self._bits
        )
        prefixes = _hash_at(symbols, self._spread, BASE, starts, cut.prefix)
        suffixes = _hash_at(symbols, self._spread, BASE, starts + cut.prefix, LOOK_AHEAD)
        return Chosen(starts, prefixes, suffixes, even, counts, int(waived))

    def identities(self, symbols: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """A number for every run of `width` symbols, the same for the same run: uint64 [n - width + 1]."""
        found = np.empty(max(0, len(symbols) - self.cut.width + 1), np.uint64)
        _roll_mixed(symbols, self._spread, BASE, power(self.cut.width - 1), self.cut.width, found)
        return found


def identities_of(prefixes: NDArray[np.uint64], suffixes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The `Winnower.identities` of anchors, from the hashes of their prefixes and suffixes."""
    found = np.empty(len(prefixes), np.uint64)
    _join(prefixes, suffixes, power(LOOK_AHEAD), found)
    return found


def bound_of(cut: Cut) -> np.uint64:
    """From which identity on an anchor is an outlier."""
    return np.uint64(min(_ALL, (_SHARE << 64) // cut.reach))


def outliers_of(identities: Iterable[NDArray[np.uint64]], cut: Cut) -> NDArray[np.uint64]:
    """The bitmap of the outliers among anchors, by the low bits of their identities: uint64 [words], a power of 2.

    Args:
        identities: uint64 [n] each, of some anchors after others.
        cut: how they were cut.
    """
    bound = bound_of(cut)
    found = np.concatenate([some[some >= bound] for some in identities])
    size = max(64, 1 << (_BITS * len(found) - 1).bit_length() if len(found) else 0)
    bits = np.zeros(size >> 6, np.uint64)
    at = found & np.uint64(size - 1)
    np.bitwise_or.at(bits, (at >> np.uint64(6)).astype(np.int64), np.uint64(1) << (at & np.uint64(63)))
    return bits


def united(bitmaps: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """One bitmap for the anchors of several, as large as the largest of them."""
    words = max(map(len, bitmaps))
    return functools.reduce(np.bitwise_or, (np.tile(bits, words // len(bits)) for bits in bitmaps))


def _bits_of(excluded: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bit for each of them by its upper bits, about one in 16 set: most look-ups end here."""
    size = max(6, (16 * len(excluded)).bit_length())
    bits = np.zeros(1 << (size - 6), np.uint64)
    at = excluded >> np.uint64(64 - size)
    np.bitwise_or.at(bits, (at >> np.uint64(6)).astype(np.int64), np.uint64(1) << (at & np.uint64(63)))
    bits.flags.writeable = False
    return bits


@jit
def _join(
    prefixes: NDArray[np.uint64], suffixes: NDArray[np.uint64], scale: np.uint64, found: NDArray[np.uint64]
) -> None:
    for i in range(len(found)):
        found[i] = mix(prefixes[i] * scale + suffixes[i])


@jit
def _roll_mixed(
    symbols: NDArray[np.uint8],
    spread: NDArray[np.uint64],
    base: np.uint64,
    oldest: np.uint64,
    width: int,
    found: NDArray[np.uint64],
) -> None:
    if not len(found):
        return
    hashed = np.uint64(0)
    for i in range(len(symbols)):
        if i >= width:
            hashed -= oldest * spread[symbols[i - width]]
        hashed = hashed * base + spread[symbols[i]]
        if i + 1 >= width:
            found[i + 1 - width] = mix(hashed)


@jit
def _hash_at(
    symbols: NDArray[np.uint8], spread: NDArray[np.uint64], base: np.uint64, starts: NDArray[np.int64], width: int
) -> NDArray[np.uint64]:
    """The hash of the run of `width` symbols at each place."""
    found = np.empty(len(starts), np.uint64)
    for k in range(len(starts)):
        hashed = np.uint64(0)
        for i in range(starts[k], starts[k] + width):
            hashed = hashed * base + spread[symbols[i]]
        found[k] = hashed
    return found


@jit
def _is_among(identity: np.uint64, among: NDArray[np.uint64], bits: NDArray[np.uint64]) -> bool:
    size = np.uint64(6)
    words = len(bits)
    while words > 1:
        words >>= 1
        size += np.uint64(1)
    at = identity >> (np.uint64(64) - size)
    if (bits[at >> np.uint64(6)] >> (at & np.uint64(63))) & np.uint64(1) == 0:
        return False
    low, high = 0, len(among)
    while low < high:
        middle = (low + high) >> 1
        if among[middle] < identity:
            low = middle + 1
        else:
            high = middle
    return low < len(among) and among[low] == identity


@jit
def _choose(
    identities: NDArray[np.uint64],
    ends: NDArray[np.int64],
    width: int,
    suffix: int,
    reach: int,
    excluded: NDArray[np.uint64],
    bits: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64], int]:
    """The places of the chosen anchors, which are even, how many windows each stands for, and how many have none.

    `ends[i]` counts the words that end before something else up to symbol `i` (such an end counts at the last symbol of
    the word, so a run has one inside if its last symbol but one is behind it); `reach` is the anchors of a window.
    """
    count = len(identities)
    starts = np.empty(2 * count // reach + 16, np.int64)
    even = np.empty(len(starts), np.bool_)
    counts = np.empty(len(starts), np.int64)
    total, waived = 0, 0
    last = -1
    # Candidates of the window, their orders ascending: a ring.
    ring = np.empty(reach + 1, np.int64)
    order = np.empty(reach + 1, np.uint64)
    head, held = 0, 0
    for i in range(count):
        final = i + width - 2
        in_suffix = ends[final] - ends[i + width - suffix - 1]
        inside = ends[final] - (ends[i - 1] if i > 0 else 0)
        if in_suffix > 0:
            rank = identities[i] >> np.uint64(2)
        elif inside == 0:
            rank = (identities[i] >> np.uint64(2)) | _EVEN
        else:
            rank = _NEVER
        if rank != _NEVER and len(excluded) and _is_among(identities[i], excluded, bits):
            rank = _NEVER
        if held and ring[head] <= i - reach:
            head = (head + 1) % len(ring)
            held -= 1
        if rank != _NEVER:
            while held and order[(head + held - 1) % len(ring)] >= rank:
                held -= 1
            at = (head + held) % len(ring)
            ring[at], order[at] = i, rank
            held += 1
        if i + 1 < reach:
            continue
        if not held:
            waived += 1
            continue
        if ring[head] != last:
            last = ring[head]
            if total == len(starts):
                starts, even, counts = _longer(starts, even, counts)
            starts[total], even[total], counts[total] = last, order[head] >= _EVEN, 0
            total += 1
        counts[total - 1] += 1
    return starts[:total], even[:total], counts[:total], waived


@jit
def _longer(
    starts: NDArray[np.int64], even: NDArray[np.bool_], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    count = len(starts)
    longer = np.empty(2 * count, np.int64), np.empty(2 * count, np.bool_), np.empty(2 * count, np.int64)
    longer[0][:count], longer[1][:count], longer[2][:count] = starts, even, counts
    return longer
