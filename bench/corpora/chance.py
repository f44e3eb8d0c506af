"""What an index bans that stands nowhere in it: counted on random anchors, beside what follows from its layout.

With `load` anchors in a bucket, a symbol of a text is taken for the end of a prefix `load / 2^16` times. Behind each,
for 16 symbols, a token is banned if one of the runs that tokens begin with has the missing hash, 1 in 2^32 each. So of
one step it is expected that `load / 2^16 * sum of n(m) / 2^32` runs are banned, where `n(m)` is how many runs of m
symbols tokens begin with, m from 1 to 16.

At the load of an index that is too seldom to be counted. So anchors are also crowded into fewer buckets, by the same
code: false prefixes are as many times as frequent, and the formula meets thousands of events.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from bench.corpora.random_anchors import index_of_random
from bench.corpora.walks import begun
from bench.figures import Figure
from prod_decode.corpus.index import CorpusIndex
from prod_decode.corpus.keys import LOOK_AHEAD, Cut
from prod_decode.corpus.table import REMAINDER
from prod_decode.corpus.tracker import BoundAnchors, CorpusTracker
from prod_decode.corpus.winnow import Winnower
from prod_decode.text.normalize import AFTER_OTHER
from prod_decode.tokens.vocabulary import Vocabulary

# Rows of a walk, side by side.
_ROWS = 64

# From so many on a Poisson distribution is taken for a normal one.
_MANY = 10_000


def measure(
    count: int, bits: Sequence[int | None], vocabulary: Vocabulary, walk: NDArray[np.int64]
) -> Iterator[Figure]:
    """What is counted and what is expected, at each crowding.

    Args:
        count: of anchors.
        bits: of a key that name its bucket, for each crowding; None: as an index has them.
        vocabulary: of a model.
        walk: tokens of code.
    """
    for some in bits:
        index = index_of_random(count, bits=some)
        load = count / (len(index.table.starts) - 1)
        guard = f"{count:,} anchors, {load:,.1f} in a bucket"
        bound = BoundAnchors(index, (index.even[:, 0], index.even[:, 1]), vocabulary)
        looks, hits = prefixes_hit(index, vocabulary, walk)
        yield _counted("prefixes hit, a look", guard, hits, looks, load / 2**REMAINDER)
        steps, events, expected, pairs = banned_runs(bound, walk)
        yield _counted("steps with a false ban", guard, events, steps, expected / steps)
        yield Figure("tokens banned falsely, a step", guard, pairs / steps, "of steps", note=f"{pairs:,} tokens")


def _counted(what: str, guard: str, count: int, of: int, expected: float) -> Figure:
    low, high = poisson(count)
    note = (
        f"{count:,} of {of:,} [{low / of:.3g}, {high / of:.3g}]; expected {expected:.3g}, {expected * of:,.1f} in all"
    )
    return Figure(what, guard, count / of, "of each", note=note, p50=low / of, p99=high / of, worst=expected)


def prefixes_hit(index: CorpusIndex, vocabulary: Vocabulary, walk: NDArray[np.int64]) -> tuple[int, int]:
    """How many runs as long as a prefix a text has, and how many prefixes with their key there are in the table.

    Without the kernels that look: a key's bucket is compared as a whole.
    """
    text = b"".join(map(vocabulary.token_bytes, walk.tolist()))
    symbols = index.cut.normalization.fold(np.frombuffer(text, np.uint8))[0]
    cut = index.cut
    keys = Winnower(Cut(cut.max_quote, cut.prefix, cut.normalization, cut.key)).identities(symbols)
    table = index.table
    buckets = (keys >> np.uint64(64 - table.bits)).astype(np.int64)
    remainders = (keys >> np.uint64(64 - table.bits - REMAINDER)).astype(np.uint16)
    lows, highs = table.starts[buckets].astype(np.int64), table.starts[buckets + 1].astype(np.int64)
    hits, most = 0, int((highs - lows).max(initial=0))
    if most < len(table.starts):  # the first of all buckets, then the second
        for offset in range(most):
            at = lows + offset
            inside = at < highs
            hits += int((table.remainders[at[inside]] == remainders[inside]).sum())
        return len(keys), hits
    for bucket in np.unique(buckets).tolist():  # few buckets: remainders ascend in each
        some = table.remainders[table.starts[bucket] : table.starts[bucket + 1]]
        wanted = remainders[buckets == bucket]
        hits += int((np.searchsorted(some, wanted, "right") - np.searchsorted(some, wanted)).sum())
    return len(keys), hits


def banned_runs(bound: BoundAnchors, walk: NDArray[np.int64]) -> tuple[int, int, float, int]:
    """Steps, those in which a token is banned, how many were expected, and how many tokens were banned in all.

    A step counts once its text has so many symbols that every look-up that matters is behind it.
    """
    rates, table = rates_of(bound), bound.table
    columns = np.ascontiguousarray(walk[: len(walk) // _ROWS * _ROWS].reshape(_ROWS, -1).T)
    tracker = begun(CorpusTracker(bound), columns[0])
    states, seen = np.full(_ROWS, AFTER_OTHER, np.int64), np.zeros(_ROWS, np.int64)
    steps = events = pairs = 0
    expected = 0.0
    for number, column in enumerate(columns):
        if number:
            tracker.advance(column)
        seen += table.starts[states, column + 1] - table.starts[states, column]
        states = table.next_state[states, column].astype(np.int64)
        ready = seen >= bound.anchors.cut.prefix + LOOK_AHEAD
        rows, _ = tracker.banned()
        steps += int(ready.sum())
        expected += float(rates[states[ready]].sum())
        events += len(np.unique(rows[ready[rows]]))
        pairs += int(ready[rows].sum())
    return steps, events, expected, pairs


def rates_of(bound: BoundAnchors) -> NDArray[np.float64]:
    """How many runs are expected to be banned in a step, by text state: float64 [4]."""
    table = bound.anchors.table
    a_look = len(table) / (len(table.starts) - 1) / 2**REMAINDER
    return np.array([a_look * runs / 2**32 for runs in runs_of(bound)])


def runs_of(bound: BoundAnchors) -> list[int]:
    """How many runs of at most `LOOK_AHEAD` symbols tokens begin with, by text state."""
    nodes, found = bound.table.nodes, []
    for root in bound.table.roots.tolist():
        first, last, total = root, root + 1, 0
        for _ in range(LOOK_AHEAD):
            first, last = int(nodes[first]["child"]), int(nodes[last]["child"])
            total += last - first
        found.append(total)
    return found


def poisson(count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the mean of a Poisson distribution of which a count was seen (Garwood, 1936)."""
    if count > _MANY:
        half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(count)
        return count - half, count + half
    tail = (1 - confidence) / 2
    low = _mean_at(lambda mean: 1 - _at_most(count - 1, mean), tail, count) if count else 0.0
    return low, _mean_at(lambda mean: 1 - _at_most(count, mean), 1 - tail, count)


def _mean_at(chance: Callable[[float], float], wanted: float, count: int) -> float:
    """The mean at which a chance that rises with it has a value."""
    low, high = 0.0, count + 10 * math.sqrt(count + 1) + 10
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) < wanted else (low, middle)
    return low


def _at_most(count: int, mean: float) -> float:
    """The chance of so many events or fewer."""
    if mean <= 0:
        return 1.0
    return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))
