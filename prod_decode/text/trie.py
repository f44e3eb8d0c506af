"""A trie over byte strings as flat arrays in breadth-first order.

The children of node `v` are the contiguous nodes `child[v] : child[v + 1]`, sorted by label, because nodes are numbered
level by level and, within a level, in the order of the strings. The automaton and the vocabulary are both such tries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prod_decode.storage.jit import jit


@dataclass(frozen=True, slots=True)
class Trie:
    """A forest of tries, one a group of strings; the roots are nodes `0 : groups`.

    Attributes:
        child: int32 [nodes + 1], the first child of every node; `child[v] == child[v + 1]` for a leaf.
        label: uint8 [nodes], the byte on the edge into every node (0 for roots).
        node_of: int64 [strings], the node at which each string ends.
        longest: the length of the longest string, in bytes.
    """

    child: NDArray[np.int32]
    label: NDArray[np.uint8]
    node_of: NDArray[np.int64]
    longest: int


def concatenate(strings: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Join strings into uint8 [bytes] and their int64 [strings + 1] offsets."""
    offsets = np.zeros(len(strings) + 1, np.int64)
    np.cumsum(np.fromiter((len(s) for s in strings), np.int64, len(strings)), out=offsets[1:])
    return np.frombuffer(b"".join(strings), np.uint8), offsets


def _separate(nodes: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    return np.empty(nodes + 1, np.int32), np.zeros(nodes, np.uint8)


def build_trie(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    starts: tuple[int, ...] = (0,),
    *,
    allocate: Callable[[int], tuple[NDArray[np.int32], NDArray[np.uint8]]] = _separate,
) -> Trie:
    """Build the tries of `data[offsets[i] : offsets[i + 1]]`, sorted within each group; O(bytes) time.

    Args:
        data: uint8 [bytes].
        offsets: int64 [strings + 1].
        starts: index of the first string of every group, ascending; groups may be empty, strings empty or equal.
        allocate: from the number of nodes to the arrays `child`, int32 [nodes + 1], and `label`, uint8 [nodes] and 0.
    """
    count = len(offsets) - 1
    longest = int(np.max(offsets[1:] - offsets[:-1], initial=0))
    group_starts = np.array([*starts, count], np.int64)
    shared, level_sizes = _measure(data, offsets, group_starts, longest)
    level_sizes[0] = len(starts)
    nodes = int(level_sizes.sum())
    if nodes >= 2**31 - 1:
        raise OverflowError(f"{nodes} nodes do not fit 32-bit indices: split the strings over several tries")
    child, label = allocate(nodes)
    child[:] = -1
    node_of = np.empty(count, np.int64)
    first_of_level = np.concatenate(([0], np.cumsum(level_sizes)[:-1]))
    _fill(data, offsets, group_starts, shared, first_of_level, child, label, node_of)
    return Trie(child, label, node_of, longest)


@jit
def _measure(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], starts: NDArray[np.int64], longest: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Length of the prefix that each string shares with the one before it, and the number of nodes of each level."""
    shared = np.zeros(len(offsets) - 1, np.int32)
    change = np.zeros(longest + 2, np.int64)
    for group in range(len(starts) - 1):
        for i in range(starts[group], starts[group + 1]):
            length = offsets[i + 1] - offsets[i]
            common = 0
            if i > starts[group]:
                limit = min(length, offsets[i] - offsets[i - 1])
                while common < limit and data[offsets[i] + common] == data[offsets[i - 1] + common]:
                    common += 1
            shared[i] = common
            change[common + 1] += 1
            change[length + 1] -= 1
    return shared, np.cumsum(change)[: longest + 1]


@jit
def _fill(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    starts: NDArray[np.int64],
    shared: NDArray[np.int32],
    first_of_level: NDArray[np.int64],
    child: NDArray[np.int32],
    label: NDArray[np.uint8],
    node_of: NDArray[np.int64],
) -> None:
    next_of_level = first_of_level.copy()
    path = np.zeros(len(first_of_level), np.int64)
    for group in range(len(starts) - 1):
        path[0] = group
        for i in range(starts[group], starts[group + 1]):
            length = offsets[i + 1] - offsets[i]
            for depth in range(shared[i] + 1, length + 1):
                node = next_of_level[depth]
                next_of_level[depth] += 1
                parent = path[depth - 1]
                if child[parent] < 0:
                    child[parent] = node
                label[node] = data[offsets[i] + depth - 1]
                path[depth] = node
            node_of[i] = path[length]
    child[len(label)] = len(label)
    for node in range(len(label) - 1, -1, -1):
        if child[node] < 0:
            child[node] = child[node + 1]
