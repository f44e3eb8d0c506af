"""Several indices as one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from prod_decode.corpus.index import CorpusIndex
from prod_decode.corpus.report import IndexReport
from prod_decode.corpus.table import REMAINDER, Table, first_of_each
from prod_decode.corpus.winnow import united
from prod_decode.errors import ProdError


def merge(indices: Sequence[CorpusIndex]) -> CorpusIndex:
    """An index that prohibits what any of several does, each anchor once.

    What is common was counted in each alone, and is not counted again. Buckets stay as large as those of the smallest
    index: build small ones again rather than merging many of them.

    Raises:
        ProdError: none, two that hold the same, or some that were cut, normalised or hashed otherwise, or of which only
            some have attribution.
    """
    if not indices:
        raise ProdError("expected at least one index, got none")
    first = indices[0]
    for other in indices[1:]:
        if other.cut != first.cut:
            what = "key" if other.cut._replace(key=first.cut.key) == first.cut else "max_quote, width or normalisation"
            raise ProdError(
                f"expected indices of one {what}, got {first.name} and {other.name}: build one with the other's "
                "options, and --key-of it"
            )
        if other.attributes != first.attributes:
            raise ProdError(
                f"expected attribution in all or in none, got {first.name} and {other.name}: build one again"
            )
    for one, other in combinations(indices, 2):
        if np.array_equal(one.table.suffixes, other.table.suffixes) and np.array_equal(one.records, other.records):
            raise ProdError(
                f"expected different indices, got {one.name} and {other.name}, which hold the same: name each once"
            )
    bits = min(index.table.bits for index in indices)
    bases = np.cumsum([0, *(len(index.record_starts) - 1 for index in indices)])
    keys = np.concatenate([_keys(index.table, bits) for index in indices])
    suffixes = np.concatenate([index.table.suffixes for index in indices])
    documents = np.concatenate(
        [index.table.documents + np.uint32(base) for index, base in zip(indices, bases.tolist(), strict=False)]
    )
    order = np.lexsort((documents, suffixes, keys) if first.attributes else (suffixes, keys))
    keys, suffixes = keys[order], suffixes[order]
    new = first_of_each(keys, suffixes)
    starts = [np.zeros(1, np.int64), *(np.diff(index.record_starts) for index in indices)]
    return CorpusIndex(
        Table.of(keys[new], suffixes[new], documents[order][new] if first.attributes else documents, bits),
        first.cut,
        IndexReport(**{name: _joined(name, indices) for name in IndexReport.__slots__}),
        np.unique(np.concatenate([index.even for index in indices]), axis=0),
        (np.concatenate([index.records for index in indices]), np.cumsum(np.concatenate(starts))),
        first.name,
        united([index.outliers for index in indices]),
    )


def _joined(name: str, indices: Sequence[CorpusIndex]) -> int:
    numbers = [getattr(index.report, name) for index in indices]
    return max(numbers) if name == "common" else sum(numbers)


def _keys(table: Table, bits: int) -> NDArray[np.uint64]:
    """What is known of the keys of a table, as far as one with fewer buckets keeps it."""
    starts = table.starts.astype(np.int64)
    sizes = starts[1:] - starts[:-1]
    buckets = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
    known = (buckets << np.uint64(REMAINDER)) | table.remainders
    known >>= np.uint64(table.bits - bits)
    return np.asarray(known << np.uint64(64 - bits - REMAINDER))
