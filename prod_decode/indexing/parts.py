"""What the steps of a build write: parts and arrays, of which every byte that is read is compared with a checksum.

A shard reads some of each part. So a part has a checksum for each of `RANGES` ranges of keys, and one for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from prod_decode.corpus.keys import mixed
from prod_decode.errors import ProdError
from prod_decode.storage.artifact import Format, read_artifact, write_artifact

PART = Format(
    b"PRODIDP\x02", "part of a corpus index", "remove {}, and go on with --resume", "remove it, and go on with --resume"
)

# Of a key, those that name its range.
_RANGE_BITS = 8
RANGES = 1 << _RANGE_BITS

# What a part has of every anchor, ascending by key.
COLUMNS = ("prefixes", "suffixes", "repos", "documents", "windows", "even")


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write it whole, for `read_array`."""
    write_artifact(path, {}, {"array": array}, form=PART)


def read_array(path: Path) -> NDArray[Any]:
    """What `write_array` wrote."""
    return read_artifact(path, form=PART, mapped=True)[1]["array"]


def write_part(path: Path, meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Write the anchors of a task, `COLUMNS`, and what else it found."""
    bounds, sums = _ranges(arrays)
    rest = _digest(array for name, array in arrays.items() if name not in COLUMNS)
    write_artifact(path, {**meta, "rest": rest}, {**arrays, "bounds": bounds, "sums": sums}, form=PART)


def _ranges(arrays: dict[str, NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Where each range of keys begins, int64 [ranges + 1], and the checksum of each, uint64 [ranges]."""
    keys = mixed(arrays["prefixes"]) >> np.uint64(64 - _RANGE_BITS)
    bounds = np.searchsorted(keys, np.arange(RANGES + 1, dtype=np.uint64))
    sums = [_digest(arrays[name][low:high] for name in COLUMNS) for low, high in pairwise(bounds.tolist())]
    return bounds, np.array(sums, np.uint64)


def _digest(arrays: Iterable[NDArray[Any]]) -> int:
    checksum = xxhash.xxh3_64()
    for array in arrays:
        checksum.update(np.ascontiguousarray(array).view(np.uint8).data)
    return checksum.intdigest()


def read_part(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What a task has written: numbers, and arrays, of which only what is used is read, and compared with checksums."""
    return read_artifact(path, verify=False, form=PART, mapped=True)


def check_rest(path: Path, meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Refuse a part whose arrays but those of anchors are no longer what was written.

    Raises:
        ProdError: it is damaged.
    """
    rest = (array for name, array in arrays.items() if name not in (*COLUMNS, "bounds", "sums"))
    if _digest(rest) != meta["rest"]:
        raise _damaged(path)


def slice_of(path: Path, arrays: dict[str, NDArray[Any]], bits: int, shard: int) -> slice:
    """Where the anchors of a shard stand in a part.

    Raises:
        ProdError: it is damaged there.
    """
    more = max(0, bits - _RANGE_BITS)
    first, last = (at << max(0, _RANGE_BITS - bits) for at in (shard >> more, (shard >> more) + 1))
    bounds = arrays["bounds"][first : last + 1].tolist()
    sums = [_digest(arrays[name][low:high] for name in COLUMNS) for low, high in pairwise(bounds)]
    if sums != arrays["sums"][first:last].tolist():
        raise _damaged(path)
    if not more:
        return slice(bounds[0], bounds[-1])
    keys = mixed(arrays["prefixes"][bounds[0] : bounds[-1]]) >> np.uint64(64 - bits)
    low, high = np.searchsorted(keys, np.array([shard, shard + 1], np.uint64)).tolist()
    return slice(bounds[0] + low, bounds[0] + high)


def _damaged(path: Path) -> ProdError:
    return ProdError(f"{path} is damaged (its checksum is wrong): {PART.again}")
