"""Aho-Corasick over the symbols of normalised text, as flat arrays in breadth-first order.

A node is one 12-byte record, so that a step touches one cache line for the node and one for its child:

=========  =======  =============================================================================================
field      dtype    meaning
=========  =======  =============================================================================================
`child`    int32    first child; the children of `v` are `child[v] : child[v + 1]`, sorted by label
`fail`     int32    the node of the longest proper suffix that is also a node; never `BOUND_ROOT`
`label`    uint8    the symbol on the edge into the node
`flags`    uint8    `ACCEPT`, `ACCEPT_END`: a pattern ends here; `MATCH`, `MATCH_END`: here or on the failure chain
`below`    uint8    distance to the nearest descendant at which a pattern ends (255: farther, or none)
`near`     uint8    the least `below` on the failure chain, the node itself included, the root excluded
=========  =======  =============================================================================================

Patterns that must begin at the start of a word live in a second trie, whose root is node `BOUND_ROOT`. A step that
falls back to the root continues in the dense row of that root if a word begins there, else in the row of `ROOT`; the
row of `BOUND_ROOT` already falls back to the row of `ROOT`. So word boundaries cost neither a symbol nor a node.
`ACCEPT_END` marks patterns that must also end with their word: the symbol after them, or the end of the text, decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode.errors import ProdError
from prod_decode.storage.artifact import are_laid_out, are_ranges
from prod_decode.storage.jit import inline, jit
from prod_decode.text.normalize import AFTER_WORD, CLASSES, WORD
from prod_decode.text.patterns import Pattern, Patterns
from prod_decode.text.trie import build_trie

ROOT, BOUND_ROOT = 0, 1
ACCEPT, ACCEPT_END, MATCH, MATCH_END = 1, 2, 4, 8
FAR = 255

NODE = np.dtype(
    [("child", "<i4"), ("fail", "<i4"), ("label", "u1"), ("flags", "u1"), ("below", "u1"), ("near", "u1")], align=True
)


# What the arrays of an automaton are: dtype and number of dimensions.
LAYOUT: dict[str, tuple[Any, int]] = {
    "nodes": (NODE, 1),
    "rows": (np.dtype("<i4"), 2),
    "accepting": (np.dtype("<i4"), 1),
    "starts": (np.dtype("<i8"), 1),
    "patterns": (np.dtype("<i8"), 1),
    "lengths": (np.dtype("<i4"), 1),
}

_CONTRADICTION = "the automaton's arrays contradict each other: compile the blocklist again"


@dataclass(frozen=True, slots=True)
class Automaton:
    """The compiled patterns.

    Attributes:
        nodes: `NODE` [nodes + 1]; the last record is a sentinel whose `child` closes the last range.
        rows: int32 [roots and their children, 256]: their transitions, failures included. Row `ROOT` counts where no
            word begins, row `BOUND_ROOT` where one does.
        accepting: int32 [k], the nodes at which patterns end, ascending.
        starts: int64 [k + 1], the range of `patterns` that belongs to each of them.
        patterns: int64 [p], `2 * pattern index + whole`, in the order of `accepting`.
        lengths: int32 [k], the number of symbols of each accepting node's patterns.
        longest: the number of symbols of the longest pattern.
    """

    nodes: NDArray[Any]
    rows: NDArray[np.int32]
    accepting: NDArray[np.int32]
    starts: NDArray[np.int64]
    patterns: NDArray[np.int64]
    lengths: NDArray[np.int32]
    longest: int

    def __post_init__(self) -> None:
        # Arrays of a mapped file are read-only, and numba compiles its functions once more for writable ones.
        for array in (self.nodes, self.rows, self.accepting, self.starts, self.patterns, self.lengths):
            array.flags.writeable = False

    @classmethod
    def build(cls, patterns: Sequence[Pattern]) -> Automaton:
        """Compile patterns, given sorted and distinct."""
        return cls.of(Patterns.of(patterns))

    @classmethod
    def of(cls, patterns: Patterns) -> Automaton:
        """Compile patterns in time and memory linear in their bytes."""
        offsets = patterns.offsets
        nodes = np.zeros(0, NODE)

        def allocate(count: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
            nonlocal nodes
            nodes = np.zeros(count + 1, NODE)
            return nodes["child"], nodes["label"][:-1]

        trie = build_trie(patterns.data, offsets, (0, len(patterns) - int(patterns.bound.sum())), allocate=allocate)
        whole = patterns.whole.astype(np.uint8)
        rows = np.zeros((int(trie.child[2]) if len(trie.label) > 2 else 2, 256), np.int32)
        _link(nodes, rows, trie.node_of, whole, CLASSES)

        order = np.argsort(trie.node_of, kind="stable")
        accepting, first, counts = np.unique(trie.node_of[order], return_index=True, return_counts=True)
        lengths = (offsets[1:] - offsets[:-1])[order][first]
        return cls(
            nodes=nodes,
            rows=rows,
            accepting=accepting.astype(np.int32),
            starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            patterns=order * 2 + whole[order],
            lengths=lengths.astype(np.int32),
            longest=trie.longest,
        )

    def __len__(self) -> int:
        """The number of nodes, both roots included."""
        return len(self.nodes) - 1

    def validate(self) -> None:
        """Raise `ProdError` unless every index stays in range and every walk ends, so that no kernel can run astray."""
        count = len(self.accepting)
        sound = (
            are_laid_out({name: getattr(self, name) for name in LAYOUT}, LAYOUT)
            and len(self.nodes) > 2
            and self.rows.shape == (max(2, int(self.nodes["child"][2])), 256)
            and are_ranges(self.starts, count, len(self.patterns))
            and len(self.lengths) == count
            and bool((self.accepting[1:] > self.accepting[:-1]).all())
            and (count == 0 or (int(self.accepting[0]) > BOUND_ROOT and int(self.accepting[-1]) < len(self)))
            and int(self.lengths.max(initial=0)) == self.longest
            and _are_all(self.patterns >> 1)
            and _is_sound(self.nodes, self.rows, self.accepting, self.lengths, self.starts, self.patterns)
        )
        if not sound:
            raise ProdError(_CONTRADICTION)

    @property
    def spelled_bytes(self) -> int:
        """How long all patterns are together; that can be the square of the number of nodes."""
        return int((np.diff(self.starts) * self.lengths).sum())

    def patterns_at(self, node: int, *, ends_word: bool) -> list[tuple[int, int]]:
        """The patterns that a walk at `node` has just completed, as (pattern index, length), longest first.

        `ends_word` tells whether the word, if the text is in one, ends here: only then do `whole` patterns count.
        """
        found: list[tuple[int, int]] = []
        wanted = MATCH | (MATCH_END if ends_word else 0)
        while node > BOUND_ROOT and self.nodes["flags"][node] & wanted:
            if self.nodes["flags"][node] & (ACCEPT | ACCEPT_END):
                # Of the array's own type: for any other, NumPy converts the whole array, 160 us for a million.
                at = int(np.searchsorted(self.accepting, np.int32(node)))
                here = self.patterns[self.starts[at] : self.starts[at + 1]].tolist()
                found += [(item >> 1, int(self.lengths[at])) for item in here if ends_word or not item & 1]
            node = int(self.nodes["fail"][node])
        return found

    def spell(self) -> Patterns:
        """All patterns, by index: what the automaton was compiled from; it takes memory for `spelled_bytes`.

        Raises:
            ProdError: the indices are not the order of the patterns.
        """
        items = self.patterns >> 1
        lengths = np.zeros(len(items), np.int64)
        lengths[items] = np.repeat(self.lengths, np.diff(self.starts))
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        data = np.empty(int(offsets[-1]), np.uint8)
        bound = np.zeros(len(items), np.bool_)
        whole = np.empty(len(items), np.bool_)
        whole[items] = (self.patterns & 1) != 0
        if not _spell(self.nodes, self.accepting, self.starts, items, offsets, data, bound):
            raise ProdError(_CONTRADICTION)
        return Patterns(data, offsets, bound, whole)


@inline
def find_child(nodes: NDArray[Any], node: int, label: int) -> int:
    """The child of `node` by `label`, or -1."""
    low = int(nodes[node].child)
    high = int(nodes[node + 1].child)
    while high - low > 4:
        middle = (low + high) >> 1
        if nodes[middle].label <= label:
            low = middle
        else:
            high = middle
    while low < high:
        if nodes[low].label == label:
            return low
        low += 1
    return -1


@inline
def step(nodes: NDArray[Any], rows: NDArray[np.int32], node: int, symbol: int, begins_word: bool) -> int:
    """The node after `symbol`; `begins_word`: the symbol is the first of a word."""
    while node >= len(rows):
        found = find_child(nodes, node, symbol)
        if found >= 0:
            return found
        node = nodes[node].fail
    found = int(rows[node, symbol])
    # No pattern that is under way goes on. The row of a node whose own label is in a word does not know that a word
    # begins behind it, as it may after a special token.
    if begins_word and found < len(rows):
        found = int(rows[BOUND_ROOT, symbol])
    return found


@jit
def _link(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    node_of: NDArray[np.int64],
    whole: NDArray[np.uint8],
    classes: NDArray[np.uint8],
) -> None:
    """Fill rows, failure links and flags of a trie; a node's failure link is shallower, so breadth first suffices."""
    count = len(nodes) - 1
    for i in range(len(node_of)):
        nodes[node_of[i]].flags |= ACCEPT_END if whole[i] else ACCEPT
    for v in range(nodes[ROOT].child, nodes[ROOT + 1].child):
        rows[0, nodes[v].label] = v
    rows[1] = rows[0]
    for v in range(nodes[BOUND_ROOT].child, nodes[BOUND_ROOT + 1].child):
        nodes[v].fail = rows[0, nodes[v].label]
        rows[1, nodes[v].label] = v
    for node in range(2, len(rows)):
        in_word = classes[nodes[node].label] == WORD
        for symbol in range(256):
            rows[node, symbol] = step(nodes, rows, nodes[node].fail, symbol, classes[symbol] == WORD and not in_word)
        for v in range(nodes[node].child, nodes[node + 1].child):
            rows[node, nodes[v].label] = v
    for node in range(2, count):
        in_word = classes[nodes[node].label] == WORD
        fail = nodes[node].fail
        for v in range(nodes[node].child, nodes[node + 1].child):
            symbol = nodes[v].label
            nodes[v].fail = step(nodes, rows, fail, symbol, classes[symbol] == WORD and not in_word)
    for node in range(count - 1, -1, -1):
        below = FAR
        for v in range(nodes[node].child, nodes[node + 1].child):
            distance = 1 if nodes[v].flags & (ACCEPT | ACCEPT_END) else min(FAR, nodes[v].below + 1)
            below = min(below, distance)
        nodes[node].below = below
    nodes[ROOT].near = FAR
    nodes[BOUND_ROOT].near = FAR
    # Flags and `near` of a node need those of its failure link, which a breadth-first pass has already completed. The
    # pass for failure links above reads no flags, so the two cannot interfere.
    for node in range(2, count):
        fail = nodes[node].fail
        own = nodes[node].flags
        inherited = nodes[fail].flags & (MATCH | MATCH_END)
        nodes[node].flags = own | (own << 2) | inherited
        nodes[node].near = min(nodes[node].below, nodes[fail].near)


def _are_all(indices: NDArray[np.int64]) -> bool:
    """Whether they are the numbers below their count, each once."""
    count = len(indices)
    if count and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        return False
    seen = np.zeros(count, np.bool_)
    seen[indices] = True
    return bool(seen.all())


@jit
def _is_sound(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    accepting: NDArray[np.int32],
    lengths: NDArray[np.int32],
    starts: NDArray[np.int64],
    items: NDArray[np.int64],
) -> bool:
    count = len(nodes) - 1
    if nodes[0].child != 2 or nodes[count].child != count:
        return False
    level, level_end, of_bound = 0, 2, 1  # the level's first node, and its first below `BOUND_ROOT`
    for node in range(count):
        if node == level_end:
            level, level_end, of_bound = node, nodes[node].child, nodes[of_bound].child
        first, last = nodes[node].child, nodes[node + 1].child
        if first > last or first <= node or last > count:
            return False
        for v in range(first + 1, last):
            if nodes[v - 1].label >= nodes[v].label:
                return False
        if node >= 2:
            fail = nodes[node].fail
            # A failure link to a shallower node, or from the second trie to the same string in the first, keeps every
            # chain as short as two patterns.
            if fail < 0 or fail >= (of_bound if node >= of_bound else level) or fail == BOUND_ROOT:
                return False
    for row in range(len(rows)):
        # At most one level deeper than the row's own node: then no node is deeper than the symbols walked, and no
        # match longer.
        deepest = nodes[2].child if row <= BOUND_ROOT else nodes[nodes[2].child].child
        for symbol in range(256):
            target = rows[row, symbol]
            if target < 0 or target == BOUND_ROOT or target >= deepest:
                return False
    marked = 0
    depth = 0
    level_end = 2
    for node in range(count):
        if node == level_end:
            depth += 1
            level_end = nodes[node].child
        if nodes[node].flags & (ACCEPT | ACCEPT_END):
            if marked == len(accepting) or accepting[marked] != node or lengths[marked] != depth:
                return False
            # One pattern, or the two that differ in `whole` only, of which that without comes first.
            first, last = starts[marked], starts[marked + 1] - 1
            if last > first + 1 or (last > first and (items[first] & 1 or items[last] != items[first] + 3)):
                return False
            wanted = (0 if items[first] & 1 else ACCEPT) | (ACCEPT_END if items[last] & 1 else 0)
            if nodes[node].flags & (ACCEPT | ACCEPT_END) != wanted:
                return False
            marked += 1
    return marked == len(accepting)


@jit
def _spell(
    nodes: NDArray[Any],
    accepting: NDArray[np.int32],
    starts: NDArray[np.int64],
    items: NDArray[np.int64],
    offsets: NDArray[np.int64],
    data: NDArray[np.uint8],
    bound: NDArray[np.bool_],
) -> bool:
    """Write each label into all patterns below its node, in passes that go through every array from end to end.

    False if `items`, depth first, do not ascend: then nothing is written.

    Climbing from the end of each pattern to its root instead touches records far apart: 3.4 s for a million patterns,
    and this .4 s.
    """
    total = len(nodes) - 1
    below = np.zeros(total, np.int32)  # patterns that end at a node or below it
    for i in range(len(accepting)):
        below[accepting[i]] = starts[i + 1] - starts[i]
    for node in range(total - 1, -1, -1):
        for v in range(nodes[node].child, nodes[node + 1].child):
            below[node] += below[v]
    # Of all patterns, depth first, the first below each node; those that end at it come before those of its children.
    first = np.zeros(total, np.int32)
    first[BOUND_ROOT] = below[ROOT]
    for node in range(total):
        at = first[node] + below[node]
        for v in range(nodes[node + 1].child - 1, nodes[node].child - 1, -1):
            at -= below[v]
            first[v] = at
    item_of = np.empty(len(items), np.int64)
    for i in range(len(accepting)):
        for k in range(starts[i], starts[i + 1]):
            item_of[first[accepting[i]] + k - starts[i]] = items[k]
    for rank in range(len(items)):
        if item_of[rank] != rank:
            return False
        bound[rank] = rank >= first[BOUND_ROOT]
    depth = 1
    level_end = nodes[2].child if total > 2 else 2
    for node in range(2, total):
        if node == level_end:
            depth += 1
            level_end = nodes[node].child
        for rank in range(first[node], first[node] + below[node]):
            data[offsets[rank] + depth - 1] = nodes[node].label
    return True


@jit
def walk(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    ends: NDArray[np.bool_],
    node: int,
    text_state: int,
    symbols: NDArray[np.uint8],
) -> tuple[int, bool]:
    """Continue from `node` over the symbols that follow in `text_state`: the last node, and whether a pattern ended.

    A word ends before the symbols of `ends`, bool [256], and at the end of all.
    """
    in_word = text_state == AFTER_WORD
    matched = False
    pending = False
    for i in range(len(symbols)):
        symbol = symbols[i]
        is_word = classes[symbol] == WORD
        if pending and ends[symbol]:
            matched = True
        node = step(nodes, rows, node, symbol, is_word and not in_word)
        in_word = is_word
        flags = nodes[node].flags
        if flags & MATCH:
            matched = True
        pending = (flags & MATCH_END) != 0
    return node, matched or pending
