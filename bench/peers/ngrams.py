"""MemFree's n-grams of tokens in a Bloom filter, as its paper has them (Ippolito et al., arXiv 2210.17546).

`bench/guards/memfree.py` gives the same bans from a dictionary, without the filter's errors; it keeps every n-gram.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from bench.guards.memfree import MEMFREE_TOKENS
from bench.peers.bloom import Bloom, has
from prod_decode.corpus.keys import BASE, power
from prod_decode.storage.jit import jit


class Ngrams:
    """The n-grams of a corpus, by hash.

    Attributes:
        n: tokens of an n-gram.
        size: of the vocabulary.
        bloom: the n-grams.
        spread: uint64 [size], the number of each token in a hash.
    """

    def __init__(
        self, texts: Iterable[Sequence[int]], size: int, error: float, *, n: int = MEMFREE_TOKENS, seed: int = 0
    ) -> None:
        """Of some texts.

        Args:
            texts: the documents, as tokens; one with fewer than `n` is not protected.
            size: of the vocabulary.
            error: how often the filter has an n-gram that no document has.
            n: tokens of an n-gram.
            seed: of the hashes.
        """
        self.n, self.size = n, size
        self.spread = np.random.default_rng(seed).integers(0, 1 << 64, size, np.uint64)
        found = [_hashes(np.array(text, np.int64), self.spread, BASE, power(n), n) for text in texts]
        hashes = np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)
        self.bloom = Bloom(max(1, len(hashes)), error)
        self.bloom.add(hashes)

    def track(self) -> NgramTracker:
        """A tracker of a batch of texts, without rows at first."""
        return NgramTracker(self)


class NgramTracker:
    """Follows the texts of a batch, as `Tracker` does: `read`, `advance`, `banned`."""

    def __init__(self, ngrams: Ngrams) -> None:
        """Without rows."""
        self._ngrams = ngrams
        self._last = np.zeros((0, ngrams.n - 1), np.int64)

    def read(self, rows: NDArray[np.int64], texts: Sequence[NDArray[np.int64]], prompts: NDArray[np.int64]) -> None:
        """Read whole texts, all rows at once; prompts are as outputs."""
        del prompts
        self._last = np.full((len(rows), self._ngrams.n - 1), -1, np.int64)
        for row, text in zip(rows.tolist(), texts, strict=True):
            kept = text[-(self._ngrams.n - 1) :]
            self._last[row, self._ngrams.n - 1 - len(kept) :] = kept

    def advance(self, tokens: NDArray[np.int64]) -> None:
        """Every row one token on: int64 [B]."""
        self._last[:, :-1] = self._last[:, 1:]
        self._last[:, -1] = tokens

    def banned(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The banned tokens as sparse pairs, rows int32 [n], ascending, and token ids int32 [n], each pair once."""
        ngrams = self._ngrams
        hit = np.zeros((len(self._last), ngrams.size), np.bool_)
        _completing(
            self._last, ngrams.spread, BASE, ngrams.bloom.words, np.uint64(ngrams.bloom.size), ngrams.bloom.hashes, hit
        )
        rows, tokens = np.nonzero(hit)
        return rows.astype(np.int32), tokens.astype(np.int32)

    def refuses(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether one token for each row, int64 [B], is banned: what drawing again needs, which makes no mask."""
        ngrams = self._ngrams
        begins = _begins(self._last, ngrams.spread, BASE)
        return ngrams.bloom.has(begins + ngrams.spread[tokens]) & (self._last >= 0).all(1)


@jit
def _hashes(
    tokens: NDArray[np.int64], spread: NDArray[np.uint64], base: np.uint64, oldest: np.uint64, n: int
) -> NDArray[np.uint64]:
    """The hash of every n-gram."""
    found = np.empty(max(0, len(tokens) - n + 1), np.uint64)
    hashed = np.uint64(0)
    for i in range(len(tokens)):
        hashed = hashed * base + spread[tokens[i]]
        if i >= n:
            hashed -= oldest * spread[tokens[i - n]]
        if i + 1 >= n:
            found[i + 1 - n] = hashed
    return found


@jit
def _begins(last: NDArray[np.int64], spread: NDArray[np.uint64], base: np.uint64) -> NDArray[np.uint64]:
    """What the last tokens of each row add to the hash of an n-gram that one more token ends."""
    found = np.zeros(len(last), np.uint64)
    for row in range(len(last)):
        for token in last[row]:
            if token >= 0:
                found[row] = found[row] * base + spread[token]
        found[row] *= base
    return found


@jit
def _completing(
    last: NDArray[np.int64],
    spread: NDArray[np.uint64],
    base: np.uint64,
    words: NDArray[np.uint64],
    size: np.uint64,
    bits: int,
    hit: NDArray[np.bool_],
) -> None:
    begins = _begins(last, spread, base)
    for row in range(len(last)):
        if last[row, 0] < 0:
            continue
        for token in range(len(spread)):
            hit[row, token] = has(words, size, bits, begins[row] + spread[token])
