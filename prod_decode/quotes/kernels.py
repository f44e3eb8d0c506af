"""Kernels that follow outputs and find the tokens that complete a piece."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode.quotes.given import covers
from prod_decode.quotes.pieces import place_in_filter, put_triple, range_of, roll
from prod_decode.storage.jit import jit
from prod_decode.tokens.vocabulary import TEXT, UNKNOWN


@jit
def follow_all(
    text: NDArray[np.uint8],
    order: NDArray[np.int32],
    bits: NDArray[np.uint64],
    shift: np.uint64,
    power: np.uint64,
    spread: NDArray[np.uint64],
    piece: int,
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    states: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    windows: NDArray[np.uint8],
    filled: NDArray[np.int64],
    rows: NDArray[np.int64],
    tokens: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Follow `tokens[k]` in row `rows[k]`, one after another; the pieces that they complete: int64 [m, 3].

    Of each the place of the token, k, and its part of `order`.
    """
    out = np.empty((0, 3), np.int64)
    count = 0
    for k in range(len(tokens)):
        row, token = rows[k], tokens[k]
        if token < 0 or token >= len(kinds) or kinds[token] == UNKNOWN:
            filled[row] = 0
            hashes[row] = 0
            continue
        if kinds[token] != TEXT:
            continue
        state = states[row]
        states[row] = next_state[state, token]
        end = filled[row]
        hashed = hashes[row]
        window = windows[row]
        for i in range(starts[state, token], starts[state, token + 1]):
            if end == len(window):
                window[:piece] = window[end - piece : end].copy()
                end = piece
            oldest = window[end - piece] if end >= piece else window[0]
            hashed = roll(hashed, symbols[i], oldest, end >= piece, power, spread)
            window[end] = symbols[i]
            end += 1
            if end < piece:
                continue
            place, wanted = place_in_filter(hashed, shift)
            if bits[place] & wanted != wanted:
                continue
            low, high = range_of(text, order, window, end - piece, piece)
            if low < high:
                out, count = put_triple(out, count, k, low, high)
        filled[row] = end
        hashes[row] = hashed
    return out[:count]


@jit
def _is_more(
    place: int,
    piece: int,
    begins: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    closed: NDArray[np.int64],
) -> bool:
    """Whether the piece at a place is of a document whose budget is reached, and not all of it is given away."""
    document = np.searchsorted(begins, place, side="right") - 1
    at = np.searchsorted(closed, document)
    return bool(at < len(closed) and closed[at] == document and not covers(starts, ends, place, place + piece))


@jit
def gives_more(
    order: NDArray[np.int32],
    piece: int,
    begins: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    closed: NDArray[np.int64],
    known: NDArray[np.int64],
    parts: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which parts of `order` have such a piece: bool [n]; `known`: where those begin of which nothing is left."""
    gives = np.zeros(len(parts), np.bool_)
    for i in range(len(parts)):
        gives[i] = _has_more(order, parts[i, 0], parts[i, 1], piece, begins, starts, ends, closed, known)
    return gives


@jit
def _has_more(
    order: NDArray[np.int32],
    low: int,
    high: int,
    piece: int,
    begins: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    closed: NDArray[np.int64],
    known: NDArray[np.int64],
) -> bool:
    """Whether `order[low:high]`, all places of one piece, has one of which more would be given away."""
    at = np.searchsorted(known, low)
    if at < len(known) and known[at] == low:
        return False
    for place in range(low, high):  # noqa: SIM110 (numba knows no `any`)
        if _is_more(int(order[place]), piece, begins, starts, ends, closed):
            return True
    return False


@jit
def completing(
    nodes: NDArray[Any],
    root: int,
    tokens: NDArray[np.int32],
    text: NDArray[np.uint8],
    order: NDArray[np.int32],
    piece: int,
    window: NDArray[np.uint8],
    begins: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    closed: NDArray[np.int64],
    known: NDArray[np.int64],
) -> NDArray[np.int32]:
    """The tokens that complete a piece which is under way and would give away more.

    A piece of which the last m symbols of the text are the beginning is completed by a token that goes on with the
    other `piece - m`. For each m, the pieces that begin so are a part of `order`, sorted by what follows: descend it
    and the trie of the tokens along equal labels, as `matcher.continuations` descends the automaton.
    """
    out = np.empty(64, np.int32)
    count = 0
    stack = np.empty((64, 4), np.int64)
    for shared in range(max(1, piece - nodes[root].height if nodes[root].height < 255 else 1), len(window) + 1):
        low, high = range_of(text, order, window, len(window) - shared, shared)
        if low == high:
            continue
        stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = low, high, shared, root
        depth = 1
        while depth > 0:
            depth -= 1
            low, high, done, node = stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3]
            while low < high:
                label = text[order[low] + done]
                end = _end_of(text, order, done, low, high)
                child = _child(nodes, node, label)
                if child >= 0:
                    if done + 1 == piece:
                        if _has_more(order, low, end, piece, begins, starts, ends, closed, known):
                            first, last = nodes[child].low, nodes[child].high
                            while count + last - first > len(out):
                                longer = np.empty(2 * len(out), np.int32)
                                longer[:count] = out[:count]
                                out = longer
                            for i in range(first, last):
                                out[count] = tokens[i]
                                count += 1
                    elif nodes[child].height == 255 or nodes[child].height >= piece - done - 1:
                        if depth == len(stack):
                            taller = np.empty((2 * len(stack), 4), np.int64)
                            taller[:depth] = stack
                            stack = taller
                        stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = low, end, done + 1, child
                        depth += 1
                low = end
    return out[:count]


@jit
def _end_of(text: NDArray[np.uint8], order: NDArray[np.int32], known: int, low: int, high: int) -> int:
    """Where the pieces of `order[low:high]` end that go on, after `known` symbols, as the first of them does."""
    label = text[order[low] + known]
    first = low + 1
    step = 1
    last = first
    while last < high and text[order[last] + known] == label:
        first = last + 1
        last += step
        step *= 2
    last = min(last, high)
    while first < last:
        middle = (first + last) >> 1
        if text[order[middle] + known] == label:
            first = middle + 1
        else:
            last = middle
    return first


@jit
def _child(nodes: NDArray[Any], node: int, label: int) -> int:
    """The child of a node of a trie with a label, -1 if it has none."""
    low, high = nodes[node].child, nodes[node + 1].child
    while low < high:
        middle = (low + high) >> 1
        if nodes[middle].label < label:
            low = middle + 1
        else:
            high = middle
    return int(low) if low < nodes[node + 1].child and nodes[low].label == label else -1
