"""A Bloom filter, as peers keep a corpus in (Bloom, 1970)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from prod_decode.corpus.keys import mix
from prod_decode.errors import ProdError
from prod_decode.storage.jit import inline, jit


class Bloom:
    """A set of numbers that says of one in `1 / error` others that it is in it too.

    Attributes:
        words: uint64 [n], its bits.
        size: how many bits there are.
        hashes: how many bits stand for a number.
    """

    def __init__(self, capacity: int, error: float) -> None:
        """As large as is needed for so many numbers at this rate of errors: 1.44 * log2(1 / error) bits for each.

        Raises:
            ProdError: that is more than 2^32 bits.
        """
        self.size = max(64, math.ceil(-capacity * math.log(error) / math.log(2) ** 2))
        if self.size >= 1 << 32:
            raise ProdError(f"expected fewer than 2^32 bits, got {self.size:,}: take a smaller corpus")
        self.hashes = max(1, round(-math.log2(error)))
        self.words = np.zeros((self.size + 63) // 64, np.uint64)

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return int(self.words.nbytes)

    def add(self, numbers: NDArray[np.uint64]) -> None:
        """Add some, uint64 [n]."""
        _add(self.words, np.uint64(self.size), self.hashes, numbers)

    def has(self, numbers: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which are in it, bool [n]."""
        found = np.empty(len(numbers), np.bool_)
        _has_all(self.words, np.uint64(self.size), self.hashes, numbers, found)
        return found


@inline
def has(words: NDArray[np.uint64], size: np.uint64, hashes: int, number: np.uint64) -> bool:
    """Whether a number is in a filter. The i-th bit is `first + i * step` (Kirsch and Mitzenmacher, 2006)."""
    at = mix(number)
    step = mix(at) | np.uint64(1)
    for _ in range(hashes):
        bit = ((at >> np.uint64(32)) * size) >> np.uint64(32)
        if (words[bit >> np.uint64(6)] >> (bit & np.uint64(63))) & np.uint64(1) == 0:
            return False
        at += step
    return True


@jit
def _add(words: NDArray[np.uint64], size: np.uint64, hashes: int, numbers: NDArray[np.uint64]) -> None:
    for number in numbers:
        at = mix(number)
        step = mix(at) | np.uint64(1)
        for _ in range(hashes):
            bit = ((at >> np.uint64(32)) * size) >> np.uint64(32)
            words[bit >> np.uint64(6)] |= np.uint64(1) << (bit & np.uint64(63))
            at += step


@jit
def _has_all(
    words: NDArray[np.uint64], size: np.uint64, hashes: int, numbers: NDArray[np.uint64], found: NDArray[np.bool_]
) -> None:
    for i in range(len(numbers)):
        found[i] = has(words, size, hashes, numbers[i])
