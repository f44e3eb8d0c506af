"""The steps of a build: from documents to parts, from parts to shards, from shards to what is joined.

Each is a function of files and writes one, whole or not at all; what is there already is not made again.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from prod_decode.corpus.keys import Cut, mixed
from prod_decode.corpus.table import first_of_each
from prod_decode.corpus.winnow import Winnower, identities_of
from prod_decode.errors import ProdError
from prod_decode.indexing.parts import (
    COLUMNS,
    PART,
    check_rest,
    read_array,
    read_part,
    slice_of,
    write_array,
    write_part,
)
from prod_decode.indexing.sources import Task, documents
from prod_decode.storage.artifact import read_artifact, write_artifact

DEFAULT_COMMON = 20

_32 = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the bytes of an index, besides its documents.

    Attributes:
        cut: how documents are cut.
        common: from more than so many repositories on, an anchor is no evidence of copying; 0: never.
        attribution: keep which document an anchor is of.
    """

    cut: Cut
    common: int = DEFAULT_COMMON
    attribution: bool = True

    def described(self) -> dict[str, Any]:
        """As JSON."""
        cut = self.cut
        normalization = {"normalize": cut.normalization.mode, "ignore_case": cut.normalization.ignore_case}
        numbers = {"max_quote": cut.max_quote, "width": cut.width, "key": cut.key.hex(), **normalization}
        return {**numbers, "common": self.common, "attribution": self.attribution}


class Step(NamedTuple):
    """What every step of a build is told.

    Attributes:
        recipe: of the index.
        folder: of what is done.
        tasks: how many there are.
        shards: how many there are, a power of 2.
    """

    recipe: Recipe
    folder: Path
    tasks: int
    shards: int = 1

    def path(self, kind: str, number: int | None = None) -> Path:
        """Of what a step writes."""
        return self.folder / (kind if number is None else f"{kind}.{number:07d}")


class Part(NamedTuple):
    """What a task found."""

    files: int
    short: int
    symbols: int
    waived: int
    anchors: int
    skipped: list[str]


def symbols_of(text: str, cut: Cut) -> NDArray[np.uint8]:
    """A text, normalised: uint8 [n]."""
    return cut.normalization.fold(np.frombuffer(text.encode(), np.uint8))[0]


class SourcesChangedError(ProdError):
    """What a build has done is of no use: its sources were changed meanwhile."""


@functools.lru_cache(maxsize=1)
def _winnower(cut: Cut, path: Path, _stamp: int) -> Winnower:
    """Of anchors that may not be chosen, which a process keeps from task to task."""
    return Winnower(cut, read_array(path))


def _winnower_of(step: Step, excluded: str) -> Winnower:
    path = step.path(excluded)
    return _winnower(step.recipe.cut, path, path.stat().st_mtime_ns)


def read_task(step: Step, item: tuple[int, Task]) -> Part:
    """Write the part of a task, if it is not there."""
    number, task = item
    path = step.path("part", number)
    if not path.exists():
        _write_part(step, path, task, _winnower_of(step, "free"), None)
    meta, _ = read_part(path)
    return Part(**{name: meta[name] for name in Part._fields})


def choose_again(step: Step, item: tuple[int, Task]) -> int:
    """Read documents with common anchors again, and write what else stands for them; by how much `waived` changes."""
    number, task = item
    path = step.path("again", number)
    _, before = read_artifact(step.path("part", number), form=PART, mapped=True)
    if not path.exists():
        winnower = _winnower_of(step, "excluded")
        common = np.isin(identities_of(before["prefixes"], before["suffixes"]), winnower.excluded)
        _write_part(step, path, task, winnower, np.unique(before["documents"][common]))
    meta, after = read_part(path)
    check_rest(path, meta, after)
    if not np.array_equal(after["digests"], before["digests"][after["chosen"]]):
        path.unlink()
        raise SourcesChangedError(
            f"{task.folder or task.paths[0]} was changed while it was read: remove {step.folder} and build again"
        )
    return int(meta["waived"]) - int(before["waived"][after["chosen"]].sum())


def _write_part(step: Step, path: Path, task: Task, winnower: Winnower, wanted: NDArray[np.uint32] | None) -> None:
    """Write the anchors of a task's documents, or of the wanted ones of them."""
    cut = step.recipe.cut
    skipped: list[str] = []
    records: list[bytes] = []
    digests: list[int] = []
    waived: list[int] = []
    columns: list[list[NDArray[Any]]] = [[] for _ in range(6)]
    short = symbols = 0
    chosen = None if wanted is None else set(wanted.tolist())
    for number, (source, text) in enumerate(documents(task, skipped.append)):
        if chosen is not None and number not in chosen:
            continue
        normalized = symbols_of(text, cut)
        found = winnower.choose(normalized)
        named = (source.repo or source.path).encode("utf-8", "surrogatepass")  # names of files need not be text
        repo = xxhash.xxh3_64_intdigest(named) & int(_32)
        count = len(found.starts)
        for column, values in zip(
            columns,
            (
                found.prefixes,
                found.suffixes,
                np.full(count, repo, np.uint32),
                np.full(count, number, np.uint32),
                found.windows.astype(np.uint32),
                found.even,
            ),
            strict=True,
        ):
            column.append(np.asarray(values))
        short += len(normalized) < cut.max_quote
        symbols += len(normalized)
        waived.append(found.waived)
        digests.append(xxhash.xxh3_64_intdigest(normalized.tobytes()))
        records.append(json.dumps([source.path, source.repo, source.license, len(normalized)]).encode())
    kinds = (np.uint64, np.uint64, np.uint32, np.uint32, np.uint32, np.bool_)
    prefixes, suffixes, repos, owners, windows, even = (
        np.concatenate(column) if column else np.zeros(0, kind) for column, kind in zip(columns, kinds, strict=True)
    )
    order = np.lexsort((owners, suffixes, mixed(prefixes)))
    arrays = {
        "prefixes": prefixes[order],
        "suffixes": suffixes[order],
        "repos": repos[order],
        "documents": owners[order],
        "windows": windows[order],
        "even": even[order].astype(np.uint8),
        "waived": np.array(waived, np.int64),
        "digests": np.array(digests, np.uint64),
        "repositories": np.unique(repos),
        "records": np.frombuffer(b"".join(records), np.uint8),
        "record_starts": np.cumsum([0, *map(len, records)]).astype(np.int64),
        "chosen": np.zeros(0, np.uint32) if wanted is None else wanted,
    }
    meta = {
        "files": len(records),
        "short": short,
        "symbols": symbols,
        "waived": sum(waived),
        "anchors": len(order),
        "skipped": skipped,
    }
    write_part(path, meta, arrays)


@dataclass(frozen=True, eq=False)
class Groups:
    """The same anchors of all documents as one, sorted by key, then by suffix.

    Attributes:
        keys: uint64 [n], of prefixes.
        suffixes: uint32 [n], the low bits of their hashes.
        documents: uint32 [n], the first document of each.
        even: uint8 [n].
        prefixes: uint32 [n], the low bits of the hashes of prefixes.
        identities: uint64 [n], as `Winnower.identities`.
        repositories: int64 [n], in how many it is.
        windows: int64 [n], for how many windows it was chosen.
    """

    keys: NDArray[np.uint64]
    suffixes: NDArray[np.uint32]
    documents: NDArray[np.uint32]
    even: NDArray[np.uint8]
    prefixes: NDArray[np.uint32]
    identities: NDArray[np.uint64]
    repositories: NDArray[np.int64]
    windows: NDArray[np.int64]

    def where(self, kept: NDArray[Any]) -> Groups:
        """Some of them, by a mask or their numbers."""
        return Groups(**{name: array[kept] for name, array in vars(self).items()})

    def write(self, path: Path, meta: dict[str, Any]) -> None:
        """Write them whole."""
        write_artifact(path, meta, vars(self), form=PART)

    @classmethod
    def read(cls, path: Path) -> Groups:
        """Those of a file."""
        return cls(**read_artifact(path, form=PART, mapped=True)[1])


def count_shard(step: Step, shard: int) -> int:
    """Write the anchors of a shard that are not common, and which are; how many those are."""
    path, excluded = step.path("shards", shard), step.path("common", shard)
    if not path.exists() or not excluded.exists():
        groups = _grouped(step, "part", shard)
        common = _is_common(step.recipe, groups)
        write_array(excluded, groups.identities[common])
        groups.where(~common).write(path, {"common": int(common.sum())})
    return int(read_part(path)[0]["common"])


def join_shard(step: Step, shard: int) -> tuple[int, int]:
    """Add what was chosen in place of common anchors; how much of that is common, and the windows that it stood for."""
    path = step.path("joined", shard)
    if not path.exists():
        groups, dropped, windows = Groups.read(step.path("shards", shard)), 0, 0
        if step.path("again", 0).exists():
            second = _grouped(step, "again", shard)
            common = _is_common(step.recipe, second) & ~np.isin(second.identities, groups.identities)
            dropped, windows = int(common.sum()), int(second.windows[common].sum())
            groups = _united(groups, second.where(~common))
        groups.write(path, {"dropped": dropped, "windows": windows})
    meta, _ = read_part(path)
    return int(meta["dropped"]), int(meta["windows"])


def _united(one: Groups, other: Groups) -> Groups:
    """Both, each anchor once, with its first document."""
    both = Groups(**{name: np.concatenate((array, vars(other)[name])) for name, array in vars(one).items()})
    order = np.lexsort((both.documents, both.suffixes, both.keys))
    both = both.where(order)
    return both.where(first_of_each(both.keys, both.suffixes))


def _is_common(recipe: Recipe, groups: Groups) -> NDArray[np.bool_]:
    return groups.repositories > recipe.common if recipe.common else np.zeros(len(groups.keys), np.bool_)


def _grouped(step: Step, kind: str, shard: int) -> Groups:
    """The anchors of a shard from the parts of all tasks."""
    columns: list[dict[str, NDArray[Any]]] = []
    bits = step.shards.bit_length() - 1
    base = 0
    for number in range(step.tasks):
        _, part_of_all = read_part(step.path("part", number))
        path = step.path(kind, number)
        arrays = part_of_all if kind == "part" else read_part(path)[1]
        at = slice_of(path, arrays, bits, shard)
        part = {name: np.array(arrays[name][at]) for name in COLUMNS}
        prefixes = part["prefixes"]
        part["keys"] = mixed(prefixes)
        part["prefixes"] = (prefixes & _32).astype(np.uint32)
        part["identities"] = identities_of(prefixes, part["suffixes"])
        part["documents"] = part["documents"] + np.uint32(base)
        columns.append(part)
        base += len(part_of_all["waived"])
    whole = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    suffixes = (whole["suffixes"] & _32).astype(np.uint32)
    order = np.lexsort((whole["documents"], whole["repos"], suffixes, whole["keys"]))
    keys, suffixes, repos = whole["keys"][order], suffixes[order], whole["repos"][order]
    first = first_of_each(keys, suffixes)
    new_repo = first.copy()
    new_repo[1:] |= repos[1:] != repos[:-1]
    begins = np.flatnonzero(first)
    return Groups(
        keys[begins],
        suffixes[begins],
        _each(np.minimum, whole["documents"][order], begins),
        _each(np.maximum, whole["even"][order], begins),
        whole["prefixes"][order][begins],
        whole["identities"][order][begins],
        _each(np.add, new_repo.astype(np.int64), begins),
        _each(np.add, whole["windows"][order].astype(np.int64), begins),
    )


def _each(operation: np.ufunc, values: NDArray[Any], at: NDArray[np.int64]) -> NDArray[Any]:
    """What an operation makes of each group, given where they begin."""
    return np.asarray(operation.reduceat(values, at)) if len(at) else values[:0]


def common_of(step: Step) -> NDArray[np.uint64]:
    """The common anchors of all shards."""
    return np.concatenate([read_array(step.path("common", shard)) for shard in range(step.shards)])
