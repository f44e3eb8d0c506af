"""A hash of every run of so many symbols of a text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode.storage.jit import jit

BASE = 0x9E3779B97F4A7C15  # odd, so that its powers are invertible modulo 2**64


def substring_hashes(text: NDArray[np.unsignedinteger[Any]], width: int) -> NDArray[np.uint64]:
    """A hash of every substring of `width` code points or bytes: uint64 [len(text) - width + 1].

    That of a substring and one more symbol is the hash of the substring times `BASE`, plus that of the symbol alone,
    modulo 2**64.
    """
    hashes = np.empty(max(0, len(text) - width + 1), np.uint64)
    _roll(text, width, np.uint64(BASE), hashes)
    return hashes


@jit
def _roll(text: NDArray[Any], width: int, base: np.uint64, hashes: NDArray[np.uint64]) -> None:
    if not len(hashes):
        return
    power = np.uint64(1)
    for _ in range(width):
        power *= base
    rolling = np.uint64(0)
    for i in range(len(text)):
        rolling = rolling * base + _mix(text[i])
        if i >= width:
            rolling -= power * _mix(text[i - width])
        if i >= width - 1:
            hashes[i - width + 1] = rolling


@jit
def _mix(code: np.uint32) -> np.uint64:
    """Spread a code point over 64 bits (the finaliser of splitmix64), so that the low bits of a sum do not cancel."""
    z = np.uint64(code) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
