"""Keyed hashes of runs of symbols, and how an anchor is cut for them.

An *anchor* is a run of `width` symbols. Its first `width - LOOK_AHEAD` are its *prefix*, which a text is followed with;
the rest, its *suffix*, is what a token completes. Hashes are polynomials modulo 2^64 over a number for each symbol:
that of two runs, one behind the other, follows from those of both. The numbers come from the key of an index, so that
the fingerprints of two indices cannot be joined.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.errors import ProdError
from prod_decode.storage.jit import inline, jit
from prod_decode.text.normalize import CLASSES, WORD, Normalization

# The symbols at the end of an anchor that are looked for in tokens. Longer tokens are looked at one by one.
LOOK_AHEAD = 16

# 2^64 over the golden ratio, odd (Knuth, TAOCP 3, 6.4).
BASE = np.uint64(0x9E3779B97F4A7C15)

KEY_BYTES = 16

DEFAULT_WIDTH = 60
_NARROWEST = 2 * LOOK_AHEAD
_WIDEST = 4096


class Cut(NamedTuple):
    """How a corpus is cut into anchors, and how texts are compared.

    Attributes:
        max_quote: the shortest run of symbols that may not be quoted.
        width: symbols of an anchor.
        normalization: of texts.
        key: of the hashes, `KEY_BYTES` bytes.
    """

    max_quote: int
    width: int
    normalization: Normalization
    key: bytes

    @classmethod
    def of(cls, max_quote: int, width: int | None, normalization: Normalization, key: bytes) -> Cut:
        """A cut that can be kept.

        Args:
            max_quote: in symbols.
            width: in symbols; None: the widest up to `DEFAULT_WIDTH` that `max_quote` allows.
            normalization: of texts.
            key: `KEY_BYTES` bytes.

        Raises:
            ProdError: an anchor of that width cannot be, or a key of another length.
        """
        widest = (max_quote + LOOK_AHEAD) // 2
        if widest < _NARROWEST or max_quote > _WIDEST:
            raise ProdError(
                f"max_quote: expected {2 * _NARROWEST - LOOK_AHEAD} to {_WIDEST} for an index, got {max_quote}: a "
                "shorter run is what a blocklist is for"
            )
        width = min(DEFAULT_WIDTH, widest) if width is None else width
        if not _NARROWEST <= width <= widest:
            raise ProdError(f"width: expected {_NARROWEST} to {widest} with max_quote {max_quote}, got {width}")
        if len(key) != KEY_BYTES:
            raise ProdError(f"key: expected {KEY_BYTES} bytes, got {len(key)}")
        return cls(max_quote, width, normalization, key)

    @property
    def prefix(self) -> int:
        """Symbols of an anchor's prefix."""
        return self.width - LOOK_AHEAD

    @property
    def reach(self) -> int:
        """How many anchors a window of `max_quote` symbols has, of which one is chosen."""
        return self.max_quote - self.width + 1

    @property
    def spread(self) -> NDArray[np.uint64]:
        """The number of each symbol under the key: uint64 [256], read-only."""
        digest = hashlib.shake_256(b"prod-decode corpus index" + self.key).digest(256 * 8)
        return np.frombuffer(digest, "<u8").astype(np.uint64, copy=False)


def power(exponent: int) -> np.uint64:
    """`BASE` to a power, modulo 2^64."""
    return np.uint64(pow(int(BASE), exponent, 1 << 64))


def leaves_word(symbols: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a symbol of a word is followed by one of none: bool [n], the last one False.

    Nearly no token of a vocabulary does so inside. So a long token ends no anchor whose suffix does.
    """
    found = np.zeros(len(symbols), np.bool_)
    if len(symbols):
        word = CLASSES[symbols] == WORD
        found[:-1] = word[:-1] & ~word[1:]
    return found


@inline
def mix(z: np.uint64) -> np.uint64:
    """Spread a hash over its bits (splitmix64's finaliser); no two have the same."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@jit
def mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mix` of each: the keys of prefixes, uint64 [n]."""
    keys = np.empty(len(hashes), np.uint64)
    for i in range(len(hashes)):
        keys[i] = mix(hashes[i])
    return keys
