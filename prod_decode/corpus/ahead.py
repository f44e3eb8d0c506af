"""What the tokens of a vocabulary begin with, by hash: from the hash that is missing to the tokens that bring it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.corpus.keys import BASE, LOOK_AHEAD, leaves_word, power
from prod_decode.storage.jit import jit
from prod_decode.text.normalize import TEXT_STATES
from prod_decode.tokens.vocabulary import TEXT, TokenTable

_32 = 0xFFFFFFFF


class Beginnings(NamedTuple):
    """The runs that tokens begin with, up to `LOOK_AHEAD` symbols, in every text state.

    A hash table with open addressing for each trie of the tokens: two runs may have the same hash, and both are found.

    Attributes:
        keys: uint64 [n], length << 32 | the low 32 bits of the hash; 0: empty.
        lows: int32 [n], the tokens are `order[low:high]`.
        highs: int32 [n].
        bases: int64 [4], where the table of a text state begins.
        masks: uint64 [4], its size, a power of 2, less 1.
    """

    keys: NDArray[np.uint64]
    lows: NDArray[np.int32]
    highs: NDArray[np.int32]
    bases: NDArray[np.int64]
    masks: NDArray[np.uint64]

    @classmethod
    def of(cls, table: TokenTable, spread: NDArray[np.uint64]) -> Beginnings:
        """Of the tokens of a vocabulary.

        Args:
            table: of the tokens.
            spread: uint64 [256], of symbols.
        """
        parts: list[tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int32]]] = []
        places: dict[int, tuple[int, int]] = {}
        end = 0
        for root in dict.fromkeys(table.roots.tolist()):
            size = 1 << max(4, (2 * int(_count(table.nodes, root, LOOK_AHEAD))).bit_length())
            part = np.zeros(size, np.uint64), np.zeros(size, np.int32), np.zeros(size, np.int32)
            _enter(table.nodes, root, LOOK_AHEAD, spread, BASE, *part)
            parts.append(part)
            places[root] = end, size - 1
            end += size
        keys, lows, highs = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        bases, masks = zip(*(places[root] for root in table.roots.tolist()), strict=True)
        return cls(keys, lows, highs, np.array(bases, np.int64), np.array(masks, np.uint64))


class LongEnds(NamedTuple):
    """Where an anchor may end in a token behind more than `LOOK_AHEAD` of its symbols, in every text state.

    Attributes:
        tokens: int32 [n], those of a text state by `needs`.
        needs: int32 [n], how many symbols at the end of the text must be even (`winnow`) and belong to the anchor; 0:
            it is an ending anchor, and any may.
        tails: int32 [n], how many symbols of the text belong to its prefix.
        heads: uint64 [n], the hash of what of the token belongs to its prefix.
        scales: uint64 [n], what the hash before that is multiplied with.
        suffixes: uint32 [n], the low bits of the hash of its suffix.
        begins: int64 [5], where those of each text state begin.
    """

    tokens: NDArray[np.int32]
    needs: NDArray[np.int32]
    tails: NDArray[np.int32]
    heads: NDArray[np.uint64]
    scales: NDArray[np.uint64]
    suffixes: NDArray[np.uint32]
    begins: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        table: TokenTable,
        kinds: NDArray[np.uint8],
        spread: NDArray[np.uint64],
        width: int,
        even_suffixes: NDArray[np.uint32],
    ) -> LongEnds:
        """Of the tokens of a vocabulary.

        Args:
            table: of the tokens.
            kinds: of the tokens.
            spread: uint64 [256], of symbols.
            width: of an anchor.
            even_suffixes: uint32 [n], of the even anchors of an index.
        """
        known = set(even_suffixes.tolist())
        rows: list[tuple[int, ...]] = []
        begins = [0]
        for text_state in range(TEXT_STATES):
            rows += sorted(_long_ends(table, kinds, spread, text_state, width, known))
            begins.append(len(rows))
        needs, tokens, tails, heads, scales, suffixes = zip(*rows, strict=True) if rows else ((),) * 6
        return cls(
            np.array(tokens, np.int32),
            np.array(needs, np.int32),
            np.array(tails, np.int32),
            np.array(heads, np.uint64),
            np.array(scales, np.uint64),
            np.array(suffixes, np.uint32),
            np.array(begins, np.int64),
        )


def _long_ends(
    table: TokenTable,
    kinds: NDArray[np.uint8],
    spread: NDArray[np.uint64],
    text_state: int,
    width: int,
    even_suffixes: set[int],
) -> Iterator[tuple[int, ...]]:
    """In one text state: need, token, tail, head, scale, suffix."""
    starts = table.starts[text_state]
    lengths = np.diff(starts)[: len(kinds)]
    for token in np.flatnonzero((lengths > LOOK_AHEAD) & (kinds == TEXT)).tolist():
        symbols = table.symbols[starts[token] : starts[token + 1]]
        leaving = np.cumsum(leaves_word(symbols))
        for end in range(LOOK_AHEAD + 1, min(len(symbols), width - 1) + 1):
            begin = end - LOOK_AHEAD
            suffix = _hash(symbols[begin:end], spread) & _32
            if leaving[end - 2] > leaving[begin - 1]:
                need = 0
            elif not leaving[end - 2] and suffix in even_suffixes:
                need = width - end
            else:
                continue
            yield need, token, width - end, _hash(symbols[:begin], spread), int(power(begin)), suffix


def _hash(symbols: NDArray[np.uint8], spread: NDArray[np.uint64]) -> int:
    hashed = 0
    for symbol in symbols.tolist():
        hashed = (hashed * int(BASE) + int(spread[symbol])) & 0xFFFFFFFFFFFFFFFF
    return hashed


def even_set(prefixes: NDArray[np.uint32], suffixes: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """A hash table of the even anchors of an index: uint64 [2^k], prefix << 32 | suffix, 0: empty.

    Args:
        prefixes: uint32 [n], of their hashes the low bits.
        suffixes: uint32 [n].
    """
    keys = (prefixes.astype(np.uint64) << np.uint64(32)) | suffixes
    table = np.zeros(1 << max(4, (2 * len(keys)).bit_length()), np.uint64)
    _put_keys(keys, table)
    return table


@jit
def _put_keys(keys: NDArray[np.uint64], table: NDArray[np.uint64]) -> None:
    mask = np.uint64(len(table) - 1)
    for key in keys:
        at = slot(key, mask)
        while table[at] != 0 and table[at] != key:
            at = (at + np.uint64(1)) & mask
        table[at] = key


@jit
def _count(nodes: NDArray[Any], root: int, deepest: int) -> int:
    """The nodes of a trie below the root, down to a depth."""
    total = 0
    first, last = nodes[root].child, nodes[root + 1].child
    for _ in range(deepest):
        total += last - first
        first, last = nodes[first].child, nodes[last].child
    return total


@jit
def _enter(
    nodes: NDArray[Any],
    root: int,
    deepest: int,
    spread: NDArray[np.uint64],
    base: np.uint64,
    keys: NDArray[np.uint64],
    lows: NDArray[np.int32],
    highs: NDArray[np.int32],
) -> None:
    mask = np.uint64(len(keys) - 1)
    first, last = np.int64(root), np.int64(root + 1)
    hashes = np.zeros(1, np.uint64)
    for depth in range(1, deepest + 1):
        begin, end = np.int64(nodes[first].child), np.int64(nodes[last].child)
        below = np.empty(end - begin, np.uint64)
        for node in range(first, last):
            for child in range(nodes[node].child, nodes[node + 1].child):
                hashed = hashes[node - first] * base + spread[nodes[child].label]
                below[child - begin] = hashed
                key = (np.uint64(depth) << np.uint64(32)) | (hashed & np.uint64(0xFFFFFFFF))
                at = slot(key, mask)
                while keys[at] != 0:
                    at = (at + np.uint64(1)) & mask
                keys[at], lows[at], highs[at] = key, nodes[child].low, nodes[child].high
        first, last, hashes = begin, end, below


@jit
def slot(key: np.uint64, mask: np.uint64) -> np.uint64:
    """Where a key is looked for first."""
    return ((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
