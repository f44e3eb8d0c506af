"""Data Portraits as a guard: a Bloom filter of runs of 50 characters, at every 50th place of each document.

The design of Marone and Van Durme (arXiv 2303.03919), who test texts with it after the fact. As a guard it has to look
up every run of 50 that a token would complete. Any run of 99 characters of a document has one of its runs in it.

Its own texts are compared as they are. `normalize="code"` gives it our symbols, so that layout cannot get around it.
Looked up is what every beginning of a token would complete, each beginning once: the tokens of a trie's node share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.peers.bloom import Bloom, has
from prod_decode.corpus.keys import BASE, power
from prod_decode.storage.jit import jit
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.vocabulary import TEXT, TokenTable, Vocabulary

WIDTH = 50


class Portrait:
    """The runs of a corpus.

    Attributes:
        normalization: of texts.
        width: characters (bytes) of a run, and from one run to the next.
        bloom: the runs, by hash.
        spread: uint64 [256], the number of each symbol in a hash.
    """

    def __init__(
        self, texts: Sequence[str], normalization: Normalization, error: float, *, width: int = WIDTH, seed: int = 0
    ) -> None:
        """Of some texts.

        Args:
            texts: the documents; what is left of one behind its last whole run is not protected.
            normalization: of texts.
            error: how often the filter has a run that no document has.
            width: of a run.
            seed: of the hashes.
        """
        self.normalization, self.width = normalization, width
        self.spread = np.random.default_rng(seed).integers(0, 1 << 64, 256, np.uint64)
        folded = [normalization.fold(np.frombuffer(text.encode(), np.uint8))[0] for text in texts]
        runs = [_tiles(symbols, self.spread, BASE, width) for symbols in folded]
        hashes = np.unique(np.concatenate(runs)) if runs else np.zeros(0, np.uint64)
        self.bloom = Bloom(max(1, len(hashes)), error)
        self.bloom.add(hashes)

    def track(self, vocabulary: Vocabulary) -> PortraitTracker:
        """A tracker of a batch of texts, without rows at first."""
        return PortraitTracker(self, vocabulary.table(self.normalization), vocabulary.kinds)


class PortraitTracker:
    """Follows the texts of a batch, as `Tracker` does: `read`, `advance`, `banned`."""

    def __init__(self, portrait: Portrait, table: TokenTable, kinds: NDArray[np.uint8]) -> None:
        """Of a portrait and the tokens of a vocabulary."""
        self._portrait, self._table, self._kinds = portrait, table, kinds
        width = portrait.width
        self._powers = np.array([power(exponent) for exponent in range(width + 1)], np.uint64)
        self._hashes = _hash_nodes(table.nodes, portrait.spread, BASE, self._powers[width], width)
        self._read(0)

    def _read(self, rows: int) -> None:
        self._windows = np.zeros((rows, self._portrait.width), np.uint8)
        self._filled = np.zeros(rows, np.int64)
        self._states = np.zeros(rows, np.int64)

    def read(self, rows: NDArray[np.int64], texts: Sequence[NDArray[np.int64]], prompts: NDArray[np.int64]) -> None:
        """Read whole texts, all rows at once; prompts are as outputs."""
        del prompts
        self._read(len(rows))
        for row, text in zip(rows.tolist(), texts, strict=True):
            for token in text.tolist():
                self._advance(np.array([row]), np.array([token], np.int64))

    def advance(self, tokens: NDArray[np.int64]) -> None:
        """Every row one token on: int64 [B]."""
        self._advance(np.arange(len(tokens)), tokens)

    def _advance(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        table = self._table
        _push(table.symbols, table.starts, table.next_state, rows, tokens, self._windows, self._filled, self._states)

    def banned(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The banned tokens as sparse pairs, rows int32 [n], ascending, and token ids int32 [n], each pair once."""
        bloom, table = self._portrait.bloom, self._table
        rows, tokens = [], []
        for row in range(len(self._filled)):
            hit = _hits(
                table.nodes,
                int(table.roots[self._states[row]]),
                self._hashes,
                table.order,
                self._tails(row),
                bloom.words,
                np.uint64(bloom.size),
                bloom.hashes,
                np.zeros(len(self._kinds), np.bool_),
            )
            found = np.flatnonzero(hit & (self._kinds == TEXT)).astype(np.int32)
            rows.append(np.full(len(found), row, np.int32))
            tokens.append(found)
        return np.concatenate(rows), np.concatenate(tokens)

    def refuses(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether one token for each row, int64 [B], is banned: what drawing again needs, which makes no mask."""
        bloom, table = self._portrait.bloom, self._table
        found = np.zeros(len(tokens), np.bool_)
        for row, token in enumerate(tokens.tolist()):
            state = self._states[row]
            symbols = table.symbols[table.starts[state, token] : table.starts[state, token + 1]]
            found[row] = _completes(
                symbols,
                self._windows[row],
                int(self._filled[row]),
                self._portrait.spread,
                BASE,
                bloom.words,
                np.uint64(bloom.size),
                bloom.hashes,
            )
        return found

    def _tails(self, row: int) -> NDArray[np.uint64]:
        """By depth, what the end of a text adds to the hash of a run that so many symbols of a token end."""
        return _tail_hashes(self._windows[row], int(self._filled[row]), self._portrait.spread, self._powers)


@jit
def _tiles(symbols: NDArray[np.uint8], spread: NDArray[np.uint64], base: np.uint64, width: int) -> NDArray[np.uint64]:
    """The hashes of the runs of a document, one behind the other."""
    found = np.empty(len(symbols) // width, np.uint64)
    for tile in range(len(found)):
        hashed = np.uint64(0)
        for i in range(tile * width, (tile + 1) * width):
            hashed = hashed * base + spread[symbols[i]]
        found[tile] = hashed
    return found


@jit
def _hash_nodes(
    nodes: NDArray[Any],
    spread: NDArray[np.uint64],
    base: np.uint64,
    oldest: np.uint64,
    width: int,
) -> NDArray[np.uint64]:
    """Of each node of the tries the hash of the last `width` symbols on the way to it."""
    count = len(nodes) - 1
    hashes, depths = np.zeros(count, np.uint64), np.zeros(count, np.int64)
    parents = np.full(count, -1, np.int64)
    for node in range(count):
        for child in range(nodes[node].child, nodes[node + 1].child):
            parents[child], depths[child] = node, depths[node] + 1
            hashes[child] = hashes[node] * base + spread[nodes[child].label]
            if depths[child] > width:
                first = child  # the symbol that leaves the run
                for _ in range(width):
                    first = parents[first]
                hashes[child] -= oldest * spread[nodes[first].label]
    return hashes


@jit
def _push(
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    rows: NDArray[np.int64],
    tokens: NDArray[np.int64],
    windows: NDArray[np.uint8],
    filled: NDArray[np.int64],
    states: NDArray[np.int64],
) -> None:
    """Tokens behind texts, of which the last symbols are kept, in a ring."""
    width = windows.shape[1]
    for k in range(len(tokens)):
        row, token = rows[k], tokens[k]
        state = states[row]
        for i in range(starts[state, token], starts[state, token + 1]):
            windows[row, filled[row] % width] = symbols[i]
            filled[row] += 1
        states[row] = next_state[state, token]


@jit
def _tail_hashes(
    window: NDArray[np.uint8], filled: int, spread: NDArray[np.uint64], powers: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """See `PortraitTracker._tails`: uint64 [width + 1]; where the text is too short, 0, which no run has."""
    width = len(window)
    found = np.zeros(width + 1, np.uint64)
    tail = np.uint64(0)
    for taken in range(1, width):
        if taken > filled:
            break
        tail += powers[taken - 1] * spread[window[(filled - taken) % width]]
        found[width - taken] = tail * powers[width - taken]
    return found


@jit
def _hits(
    nodes: NDArray[Any],
    root: int,
    hashes: NDArray[np.uint64],
    order: NDArray[np.int32],
    tails: NDArray[np.uint64],
    words: NDArray[np.uint64],
    size: np.uint64,
    bits: int,
    hit: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Which tokens have a beginning that completes a run: bool [size]."""
    width = len(tails) - 1
    depth = 1
    # The nodes of one depth of a trie follow one another.
    first, last = nodes[root].child, nodes[root + 1].child
    while first < last:
        tail = tails[depth] if depth < width else np.uint64(0)
        if depth >= width or tail != 0:
            for node in range(first, last):
                if has(words, size, bits, hashes[node] + tail):
                    for i in range(nodes[node].low, nodes[node].high):
                        if order[i] < len(hit):
                            hit[order[i]] = True
        depth += 1
        first, last = nodes[first].child, nodes[last].child
    return hit


@jit
def _completes(
    symbols: NDArray[np.uint8],
    window: NDArray[np.uint8],
    filled: int,
    spread: NDArray[np.uint64],
    base: np.uint64,
    words: NDArray[np.uint64],
    size: np.uint64,
    bits: int,
) -> bool:
    width = len(window)
    ring = window.copy()
    for symbol in symbols:
        ring[filled % width] = symbol
        filled += 1
        if filled >= width:
            hashed = np.uint64(0)
            for i in range(filled - width, filled):
                hashed = hashed * base + spread[ring[i % width]]
            if has(words, size, bits, hashed):
                return True
    return False
