"""Kernels that follow texts beside a table of anchors, and find the tokens that complete one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prod_decode.corpus.ahead import slot
from prod_decode.corpus.keys import BASE, LOOK_AHEAD, mix
from prod_decode.corpus.table import part_of
from prod_decode.storage.jit import inline, jit
from prod_decode.text.normalize import WORD
from prod_decode.tokens.vocabulary import TEXT, UNKNOWN

# The columns of `numbers` of a tracker's rows.
STATE, FILLED, SEEN, EVEN, LATEST = range(5)


@inline
def forget(numbers: NDArray[np.int64], hashes: NDArray[np.uint64], row: int) -> None:
    """Nobody knows what stands there: what is under way in a row ends."""
    numbers[row, FILLED] = 0
    numbers[row, EVEN] = 0
    numbers[row, LATEST] = numbers[row, SEEN] - LOOK_AHEAD
    hashes[row, 0] = 0


@inline
def push(
    begins: NDArray[np.uint32],
    remainders: NDArray[np.uint16],
    shift: np.uint64,
    spread: NDArray[np.uint64],
    oldest: np.uint64,
    prefix: int,
    width: int,
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    first: int,
    last: int,
    numbers: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    windows: NDArray[np.uint8],
    prefixes: NDArray[np.int64],
    befores: NDArray[np.uint64],
    row: int,
) -> None:
    """Add `symbols[first:last]` to the text of a row."""
    window = windows[row]
    end, at, even = numbers[row, FILLED], numbers[row, SEEN], numbers[row, EVEN]
    hashed, sums = hashes[row, 0], hashes[row, 1]
    for i in range(first, last):
        symbol = symbols[i]
        if end == len(window):
            window[:width] = window[end - width : end].copy()
            end = width
        leaves = end > 0 and classes[window[end - 1]] == WORD and classes[symbol] != WORD
        even = 1 if leaves else even + 1
        if end >= prefix:
            hashed -= oldest * spread[window[end - prefix]]
        hashed = hashed * BASE + spread[symbol]
        sums = sums * BASE + spread[symbol]
        window[end] = symbol
        end += 1
        at += 1
        if end < prefix:
            continue
        low, high = part_of(begins, remainders, shift, mix(hashed))
        if low < high:
            here = at & (LOOK_AHEAD - 1)
            prefixes[row, here, 0], prefixes[row, here, 1], prefixes[row, here, 2] = at, low, high
            befores[row, here] = sums
            numbers[row, LATEST] = at
    numbers[row, FILLED], numbers[row, SEEN], numbers[row, EVEN] = end, at, even
    hashes[row, 0], hashes[row, 1] = hashed, sums


@jit
def follow_all(
    begins: NDArray[np.uint32],
    remainders: NDArray[np.uint16],
    shift: np.uint64,
    spread: NDArray[np.uint64],
    oldest: np.uint64,
    prefix: int,
    width: int,
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    needs: NDArray[np.int64],
    numbers: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    windows: NDArray[np.uint8],
    prefixes: NDArray[np.int64],
    befores: NDArray[np.uint64],
    rows: NDArray[np.int64],
    tokens: NDArray[np.int64],
) -> bool:
    """Follow `tokens[k]` in row `rows[k]`, one after another; whether anything may be banned in any of them.

    `needs`: of `BoundAnchors`; the arrays behind it are a tracker's rows.
    """
    near = False
    for k in range(len(tokens)):
        row, token = rows[k], tokens[k]
        if token < 0 or token >= len(kinds) or kinds[token] == UNKNOWN:
            forget(numbers, hashes, row)
        elif kinds[token] == TEXT:
            state = numbers[row, STATE]
            push(
                begins,
                remainders,
                shift,
                spread,
                oldest,
                prefix,
                width,
                classes,
                symbols,
                starts[state, token],
                starts[state, token + 1],
                numbers,
                hashes,
                windows,
                prefixes,
                befores,
                row,
            )
            numbers[row, STATE] = next_state[state, token]
        near = near or is_near(numbers, needs, row)
    return near


@inline
def is_near(numbers: NDArray[np.int64], needs: NDArray[np.int64], row: int) -> bool:
    """Whether anything may be banned in a row."""
    return bool(
        numbers[row, SEEN] - numbers[row, LATEST] < LOOK_AHEAD or numbers[row, EVEN] >= needs[numbers[row, STATE]]
    )


@jit
def any_near(numbers: NDArray[np.int64], needs: NDArray[np.int64]) -> bool:
    """Whether anything may be banned in any row."""
    near = False
    for row in range(len(numbers)):
        near = near or is_near(numbers, needs, row)
    return near


@jit
def completing_all(
    begins: NDArray[np.uint32],
    remainders: NDArray[np.uint16],
    shift: np.uint64,
    suffixes: NDArray[np.uint32],
    spread: NDArray[np.uint64],
    powers: NDArray[np.uint64],
    order: NDArray[np.int32],
    keys: NDArray[np.uint64],
    token_lows: NDArray[np.int32],
    token_highs: NDArray[np.int32],
    bases: NDArray[np.int64],
    masks: NDArray[np.uint64],
    long_tokens: NDArray[np.int32],
    long_needs: NDArray[np.int32],
    long_tails: NDArray[np.int32],
    long_heads: NDArray[np.uint64],
    long_scales: NDArray[np.uint64],
    long_suffixes: NDArray[np.uint32],
    long_begins: NDArray[np.int64],
    evens: NDArray[np.uint64],
    inside_tokens: NDArray[np.int32],
    inside_ranks: NDArray[np.int64],
    inside_begins: NDArray[np.int64],
    needs: NDArray[np.int64],
    numbers: NDArray[np.int64],
    windows: NDArray[np.uint8],
    hashes: NDArray[np.uint64],
    prefixes: NDArray[np.int64],
    befores: NDArray[np.uint64],
    exempt: NDArray[np.int64],
    exempt_begins: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The tokens that complete an anchor: row << 32 | token, int64 [n], in no order and perhaps twice.

    `inside_*`: tokens with a whole anchor inside, by text state; `exempt`: places in the table that may be completed,
    those of each row from `exempt_begins` on, ascending; the rest as in `follow_all`.
    """
    out = np.empty(0, np.int64)
    count = 0
    low_bits = np.uint64(0xFFFFFFFF)
    for row in range(len(numbers)):
        if not is_near(numbers, needs, row):
            continue
        state, end, at, even = numbers[row, STATE], numbers[row, FILLED], numbers[row, SEEN], numbers[row, EVEN]
        may = exempt[exempt_begins[row] : exempt_begins[row + 1]]
        base, mask = bases[state], masks[state]
        if at - numbers[row, LATEST] < LOOK_AHEAD:
            for here in range(LOOK_AHEAD):
                place, low, high = prefixes[row, here]
                behind = at - place
                if place < 0 or behind < 0 or behind >= LOOK_AHEAD:
                    continue
                missing = LOOK_AHEAD - behind
                known = (hashes[row, 1] - befores[row, here] * powers[behind]) * powers[missing]
                for rank in range(low, high):
                    wanted = (np.uint64(suffixes[rank]) - known) & low_bits
                    key = (np.uint64(missing) << np.uint64(32)) | wanted
                    probe = slot(key, mask)
                    while keys[base + np.int64(probe)] != 0:
                        found = base + np.int64(probe)
                        if keys[found] == key and not _is_among(may, rank):
                            for i in range(token_lows[found], token_highs[found]):
                                out, count = _put(out, count, row, order[i])
                        probe = (probe + np.uint64(1)) & mask
        tail, tail_hash = 0, np.uint64(0)
        for k in range(long_begins[state], long_begins[state + 1]):
            if long_needs[k] > even:
                break
            if long_tails[k] > end:
                continue
            # Of even anchors, whose tails ascend, one symbol more at a time; of the few others anew.
            if long_tails[k] < tail:
                tail, tail_hash = 0, np.uint64(0)
            while tail < long_tails[k]:
                tail_hash += powers[tail] * spread[windows[row, end - 1 - tail]]
                tail += 1
            hashed = tail_hash * long_scales[k] + long_heads[k]
            if long_needs[k] > 0 and not _has(evens, ((hashed & low_bits) << np.uint64(32)) | long_suffixes[k]):
                continue
            low, high = part_of(begins, remainders, shift, mix(hashed))
            for rank in range(low, high):
                if suffixes[rank] == long_suffixes[k] and not _is_among(may, rank):
                    out, count = _put(out, count, row, long_tokens[k])
        for k in range(inside_begins[state], inside_begins[state + 1]):
            if not _is_among(may, inside_ranks[k]):
                out, count = _put(out, count, row, inside_tokens[k])
    return out[:count]


@jit
def _has(table: NDArray[np.uint64], key: np.uint64) -> bool:
    mask = np.uint64(len(table) - 1)
    at = slot(key, mask)
    while table[at] != 0:
        if table[at] == key:
            return True
        at = (at + np.uint64(1)) & mask
    return False


@inline
def _is_among(numbers: NDArray[np.int64], number: int) -> bool:
    if not len(numbers):
        return False
    at = np.searchsorted(numbers, number)
    return bool(at < len(numbers) and numbers[at] == number)


@jit
def _put(out: NDArray[np.int64], count: int, row: int, token: int) -> tuple[NDArray[np.int64], int]:
    if count == len(out):
        longer = np.empty(2 * count + 64, np.int64)
        longer[:count] = out
        out = longer
    out[count] = (np.int64(row) << np.int64(32)) | np.int64(token)
    return out, count + 1
