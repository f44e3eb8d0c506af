"""Kernels that follow tokens: from a state, `node * 4 + text state`, and a token to the state after it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode.match.automaton import ROOT, step
from prod_decode.storage.jit import inline, jit
from prod_decode.text.normalize import AFTER_BREAK, AFTER_OTHER, AFTER_WORD, TEXT_STATES, WORD
from prod_decode.tokens.vocabulary import UNKNOWN


@inline
def advance_inline(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    state: int,
    token: int,
) -> int:
    """The state after a token; -1 if its bytes are not known."""
    if token < 0 or token >= len(kinds) or kinds[token] == UNKNOWN:
        return -1
    node = state >> 2
    text_state = state & 3
    in_word = text_state == AFTER_WORD
    for i in range(starts[text_state, token], starts[text_state, token + 1]):
        is_word = classes[symbols[i]] == WORD
        node = step(nodes, rows, node, symbols[i], is_word and not in_word)
        in_word = is_word
    return int((node << 2) | next_state[text_state, token])


@inline
def end_prompt(state: int) -> int:
    """The state where the prompt ends: a word that is under way may go on, and another may begin."""
    return state + AFTER_BREAK - AFTER_WORD if state & 3 == AFTER_WORD else state


@jit
def advance(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    state: int,
    token: int,
) -> int:
    """`advance_inline`, callable from Python."""
    return advance_inline(nodes, rows, classes, symbols, starts, next_state, kinds, state, token)


@jit
def advance_all(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    states: NDArray[np.int64],
    tokens: NDArray[np.int64],
    after: NDArray[np.int64],
) -> int:
    """Fill `after`, the states after one token each; the index of the first unknown token, or -1."""
    for row in range(len(states)):
        state = advance_inline(nodes, rows, classes, symbols, starts, next_state, kinds, states[row], tokens[row])
        if state < 0:
            return row
        after[row] = state
    return -1


@jit
def states_of(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    longest: int,
    tokens: NDArray[np.int64],
    states: NDArray[np.int64],
) -> int:
    """Fill `states`; the flat index of the first unknown token that was read, or -1.

    The walk begins `longest + 1` symbols before the end. Two things are unknown there: the text state, which decides
    whether the first symbol begins a word and whether a space comes before it. Both concern the symbol at the very
    front only, which no pattern that is still under way can contain. A token emits the fewest symbols after
    `AFTER_OTHER`, so counting those never stops too late.
    """
    for row in range(len(tokens)):
        first = int(tokens.shape[1])
        seen = 0
        while first > 0 and seen <= longest:
            first -= 1
            token = tokens[row, first]
            if token < 0 or token >= len(kinds) or kinds[token] == UNKNOWN:
                return int(row * tokens.shape[1] + first)
            seen += starts[AFTER_OTHER, token + 1] - starts[AFTER_OTHER, token]
        state = ROOT * TEXT_STATES + AFTER_OTHER
        for i in range(first, tokens.shape[1]):
            state = advance_inline(nodes, rows, classes, symbols, starts, next_state, kinds, state, tokens[row, i])
        states[row] = state
    return -1
