"""Tables of random anchors: what an index has of a corpus of any size, with nothing in it that code could copy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode.corpus.index import CorpusIndex
from prod_decode.corpus.keys import Cut
from prod_decode.corpus.report import IndexReport
from prod_decode.corpus.table import Table, bits_for, remainders_of
from prod_decode.text.normalize import Normalization

# Anchors that are drawn and sorted at a time: 128 MB.
_PIECE = 1 << 24

_KEY = bytes(range(16))
_NOTHING_KNOWN = IndexReport(0, 0, 0, 0, 0, 0, 0, 0, 0)


def keys_of(count: int, seed: int) -> Iterator[NDArray[np.uint64]]:
    """Random keys, in pieces: uint64, ascending, those of one piece below those of the next."""
    draw = np.random.default_rng(seed)
    pieces = 1 << max(0, (count - 1) // _PIECE).bit_length()
    width = (1 << 64) // pieces
    sizes = draw.multinomial(count, [1 / pieces] * pieces).tolist()
    for piece, size in enumerate(sizes):
        keys = (
            draw.integers(0, width, size, np.uint64, endpoint=False)
            if pieces > 1
            else draw.integers(0, (1 << 64) - 1, size, np.uint64, endpoint=True)
        )
        keys.sort()
        yield keys + np.uint64(piece * width)


def index_of_random(count: int, folder: Path | None = None, *, bits: int | None = None, seed: int = 0) -> CorpusIndex:
    """An index of so many random anchors, without attribution.

    Args:
        count: how many.
        folder: where its arrays lie until it is saved; None: in memory.
        bits: of a key that name its bucket; None: as for an index of that size.
        seed: of the numbers.
    """
    bits = bits_for(count) if bits is None else bits
    starts = np.zeros((1 << bits) + 1, np.uint32)
    remainders, suffixes = _room(folder, np.uint16, count), _room(folder, np.uint32, count)
    draw = np.random.default_rng([seed, 1])
    counts = np.zeros(1 << bits, np.int64)
    at = 0
    for keys in keys_of(count, seed):
        remainders[at : at + len(keys)] = remainders_of(keys, bits)
        suffixes[at : at + len(keys)] = draw.integers(0, 1 << 32, len(keys), np.uint32)
        buckets = keys >> np.uint64(64 - bits)
        if len(keys):
            first = int(buckets[0])
            sizes = np.bincount((buckets - np.uint64(first)).astype(np.int64))
            counts[first : first + len(sizes)] += sizes
        at += len(keys)
    starts[1:] = np.cumsum(counts)
    table = Table(starts, remainders, suffixes, np.zeros(0, np.uint32))
    cut = Cut.of(150, None, Normalization("code"), _KEY)
    nothing = np.zeros(0, np.uint8), np.zeros(1, np.int64)
    return CorpusIndex(table, cut, _NOTHING_KNOWN, np.zeros((0, 2), np.uint32), nothing, "random.pidx")


def _room(folder: Path | None, kind: type[np.generic], count: int) -> NDArray[Any]:
    if folder is None:
        return np.empty(count, kind)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        # The file has no name any more when this returns; its pages can leave memory, and its room is free again when
        # the array is gone.
        file.truncate(count * np.dtype(kind).itemsize)
        return np.memmap(file.name, kind, "r+", shape=(count,))
