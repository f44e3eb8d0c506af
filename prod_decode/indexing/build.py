"""Build an index from a corpus: map over documents, sort by key, count, write; killed anywhere, it goes on.

1. *Map*: each task reads documents and writes a part, the anchors that were chosen, sorted by key.
2. *Reduce*: each shard, a range of keys, takes its slice of every part, joins the same anchors of all documents, and
   finds those of more than `common` repositories.
3. Common anchors are no evidence of copying. Documents with one are read again, and take others in their place; where
   there is none, a window is *waived*, and counted.
4. The shards follow one another in the file.

Whatever a step writes is whole or not there, so a build that was killed finds what is done. Every step is a function of
its inputs: any engine and any number of processes gives the same bytes.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from prod_decode.blocklist.selection import Selection
from prod_decode.blocklist.sources import read_texts
from prod_decode.corpus.index import CorpusIndex
from prod_decode.corpus.keys import KEY_BYTES
from prod_decode.corpus.report import IndexReport
from prod_decode.corpus.table import Table, bits_for, remainders_of
from prod_decode.corpus.winnow import Winnower, outliers_of
from prod_decode.errors import ProdError
from prod_decode.indexing.parts import check_rest, read_array, read_part, write_array
from prod_decode.indexing.sources import Task, plan
from prod_decode.indexing.steps import (
    Groups,
    Part,
    Recipe,
    SourcesChangedError,
    Step,
    choose_again,
    common_of,
    count_shard,
    join_shard,
    read_task,
    symbols_of,
)
from prod_decode.storage.files import write_whole

# Anchors that one shard sorts at a time: 200 MB.
_SHARD = 1 << 22

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_R = TypeVar("_R")


class Engine(Protocol):
    """What runs the steps of a build."""

    def run(self, step: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[tuple[int, _R]]:
        """Call `step` for every item; the number of each and what came of it, as they end."""


class Progress(Protocol):
    """Makes what tells how far a step of a build is."""

    def __call__(self, step: str, unit: str, total: float, already: float, /) -> Callable[[float], object]:
        """The step, the unit of its work, how much there is, and how much of it an earlier build did."""


def _untold(_step: str, _unit: str, _total: float, _already: float) -> Callable[[float], object]:
    """Tell nobody."""
    return lambda _: None


def new_key() -> bytes:
    """A key for the hashes of an index."""
    return secrets.token_bytes(KEY_BYTES)


def build(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    recipe: Recipe,
    engine: Engine,
    *,
    work: str | os.PathLike[str] | None = None,
    allow: Sequence[str | os.PathLike[str]] = (),
    selection: Selection | None = None,
    resume: bool = False,
    skipped: Callable[[str], object] = lambda _: None,
    progress: Progress = _untold,
) -> CorpusIndex:
    """Build an index and write it.

    Args:
        sources: directories, archives, and files with documents, see `indexing.sources.plan`.
        output: the file to write; it is replaced whole.
        recipe: how.
        engine: what runs the steps.
        work: a folder for what is done, on a disk that every machine of the engine reaches; removed at the end.
            Default: beside the output.
        allow: files and directories of code that is free to use: its anchors are never chosen.
        selection: what of the sources is left out.
        resume: go on with what a build that was killed left in `work`.
        skipped: told what could not be read, and why.
        progress: of each step makes what is told how much is done.

    Raises:
        ProdError: sources that cannot be read; no document as long as `max_quote`; a `work` folder that is there and
            not to be resumed, or of another build.
    """
    found: list[str] = []
    folder = Path(work if work is not None else f"{os.fspath(output)}.work").absolute()
    tasks = plan(sources, found.append, selection, [folder, Path(os.fspath(output))])
    allowed = [text for _, text in read_texts(allow, skipped=found.append)] if allow else []
    with _alone(folder, resume=resume):
        recipe = _begin(folder, tasks, recipe, allowed)
        for why in found:
            skipped(why)
        step = Step(recipe, folder, len(tasks))
        with _keeping(folder):
            index = _built(step, list(enumerate(tasks)), engine, len(found), skipped, progress)
            index.save(output)
        del index
        # Under another name at once: nobody can go on with half of it.
        done = folder.with_name(f"{folder.name}.done")
        shutil.rmtree(done, ignore_errors=True)
        folder.rename(done)
    shutil.rmtree(done)
    return CorpusIndex.load(output)


def _built(
    step: Step,
    tasks: Sequence[tuple[int, Task]],
    engine: Engine,
    unreadable: int,
    skipped: Callable[[str], object],
    progress: Progress,
) -> CorpusIndex:
    """Run every step that is not done, and gather what came of them."""
    is_known = all(task.kind != "hub" for _, task in tasks)
    known = [_size(task) for _, task in tasks] if is_known else None
    run = functools.partial(_run, engine, progress)
    parts = run("reading", functools.partial(step.path, "part"), functools.partial(read_task, step), tasks, known)
    for part in parts:
        for why in part.skipped:
            skipped(why)
    anchors = sum(part.anchors for part in parts)
    if not anchors:
        shutil.rmtree(step.folder)
        raise ProdError(
            f"expected a document of {step.recipe.cut.max_quote} symbols and more that is no free code, got none in "
            f"{sum(part.files for part in parts)} files: name other sources"
        )
    step = step._replace(shards=1 << max(0, (anchors - 1) // _SHARD).bit_length())
    shards = list(range(step.shards))
    counted = run("counting", functools.partial(step.path, "shards"), functools.partial(count_shard, step), shards)
    common, waived = sum(counted), sum(part.waived for part in parts)
    if common:
        write_array(step.path("excluded"), np.union1d(common_of(step), read_array(step.path("free"))))
        again = functools.partial(step.path, "again")
        waived += sum(run("choosing again", again, functools.partial(choose_again, step), tasks, known))
    joined = run("joining", functools.partial(step.path, "joined"), functools.partial(join_shard, step), shards)
    common += sum(more for more, _ in joined)
    waived += sum(windows for _, windows in joined)
    return _gathered(step, parts, common, waived, unreadable)


def _run(
    engine: Engine,
    progress: Progress,
    name: str,
    made: Callable[[int], Path],
    step: Callable[[_T], _R],
    items: Sequence[_T],
    sizes: Sequence[int] | None = None,
) -> list[_R]:
    """What came of every item, in the order of items.

    Args:
        engine: calls the step.
        progress: is told.
        name: of the step.
        made: what the step writes for the item of a number.
        step: does it.
        items: for each of which it is called.
        sizes: bytes of each, if those are known; else each counts alike.
    """
    work = [1] * len(items) if sizes is None else sizes
    is_new = [not made(number).exists() for number in range(len(items))]
    done = sum(size for size, new in zip(work, is_new, strict=True) if not new)
    scale, unit = (1, "shards" if items and isinstance(items[0], int) else "tasks") if sizes is None else (1e6, "MB")
    tell = progress(name, unit, sum(work) / scale, done / scale)
    found: dict[int, _R] = {}
    for number, result in engine.run(step, items):
        found[number] = result
        done += work[number] if is_new[number] else 0
        tell(done / scale)
    return [found[number] for number in range(len(items))]


@contextmanager
def _keeping(folder: Path) -> Iterator[None]:
    """Say of what ends before its time where it can be gone on with; remove a folder in which nothing is done."""
    try:
        yield
    except SourcesChangedError:
        raise
    except BaseException:
        if any(folder.glob("part.*")):
            _log.warning("what is done is kept in %s: go on with --resume, or remove it", folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _alone(folder: Path, *, resume: bool) -> Iterator[None]:
    """The work folder, made, or found for a build that goes on; no other build works in it meanwhile.

    Raises:
        ProdError: it is there and not to be resumed, or has no plan, or another build is at work.
    """
    is_begun = (folder / "plan.json").exists()
    if folder.exists() and not is_begun and (not folder.is_dir() or any(folder.iterdir())):
        raise ProdError(f"expected a new folder to work in, got {folder}, which no build has planned: name another")
    if is_begun and not resume:
        raise ProdError(f"{folder} is there, from a build that did not end: pass --resume, or remove it")
    if resume and not is_begun:
        _log.warning("no effect: --resume: there is nothing to go on with in %s, a new build begins", folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ProdError(f"cannot write {folder}: {error.strerror}; name another folder with --work") from None
    try:
        _lock(descriptor, folder)
        yield
    except OSError as error:
        raise ProdError(
            f"cannot write {error.filename or folder}: {error.strerror}; name another folder with --work"
        ) from None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ProdError(f"another build is at work in {folder}: wait for it, or name another folder") from None
    except (ImportError, OSError):  # a system or a disk without locks
        return


def _begin(folder: Path, tasks: Sequence[Task], recipe: Recipe, allowed: Sequence[str]) -> Recipe:
    """Write the plan of a build, or find the same one; the recipe, with the key with which that was begun."""
    listed = json.dumps([[asdict(task), [_state(path) for path in task.paths]] for task in tasks], sort_keys=True)
    free = xxhash.xxh3_128_hexdigest("\0".join(allowed).encode("utf-8", "surrogatepass"))
    about = {"sources": xxhash.xxh3_128_hexdigest(listed.encode()), "free": free, **recipe.described()}
    key = about.pop("key")
    plan_file = folder / "plan.json"
    if plan_file.exists():
        try:
            begun = json.loads(plan_file.read_text())
            key = begun.pop("key")
            recipe = Recipe(recipe.cut._replace(key=bytes.fromhex(key)), recipe.common, recipe.attribution)
        except (ValueError, KeyError, AttributeError):
            raise ProdError(f"{plan_file} cannot be read: remove {folder} and build again") from None
        if begun != about:
            raise ProdError(
                f"{folder} is of a build with other sources or options, or they were changed: remove it to begin anew"
            )
    else:
        with write_whole(plan_file) as file:
            file.write(json.dumps({**about, "key": key}).encode())
    winnower = Winnower(recipe.cut)
    found = [winnower.identities(symbols_of(text, recipe.cut)) for text in allowed]
    write_array(folder / "free", np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64))
    return recipe


def _size(task: Task) -> int:
    """The bytes of its files, and one more."""
    return 1 + sum(state[0] for path in task.paths if (state := _state(path)) is not None)


def _state(path: str) -> tuple[int, int] | None:
    """What a file has another of once it was written again."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _gathered(step: Step, parts: Sequence[Part], common: int, waived: int, unreadable: int) -> CorpusIndex:
    """The index of all shards."""
    groups = [Groups.read(step.path("joined", shard)) for shard in range(step.shards)]
    total = sum(len(group.keys) for group in groups)
    bits = bits_for(total)
    recipe = step.recipe
    starts = np.zeros((1 << bits) + 1, np.uint32)
    remainders, suffixes = _room(step, "remainders", np.uint16, total), _room(step, "suffixes", np.uint32, total)
    documents = _room(step, "documents", np.uint32, total if recipe.attribution else 0)
    even, at = [], 0
    counts = np.zeros(1 << bits, np.int64)
    for group in groups:
        end = at + len(group.keys)
        remainders[at:end] = remainders_of(group.keys, bits)
        suffixes[at:end] = group.suffixes
        if recipe.attribution:
            documents[at:end] = group.documents
        buckets, sizes = np.unique((group.keys >> np.uint64(64 - bits)).astype(np.int64), return_counts=True)
        counts[buckets] += sizes
        even.append(np.stack((group.prefixes, group.suffixes), axis=1)[group.even > 0])
        at = end
    starts[1:] = np.cumsum(counts)
    digests, repos, records = [], [], [np.zeros(0, np.uint8)]
    lengths = [np.zeros(1, np.int64)]
    for number in range(step.tasks):
        path = step.path("part", number)
        meta, arrays = read_part(path)
        check_rest(path, meta, arrays)
        digests.append(np.array(arrays["digests"]))
        repos.append(arrays["repositories"])
        if recipe.attribution:
            records.append(arrays["records"])
            lengths.append(np.diff(arrays["record_starts"]))
    files = sum(part.files for part in parts)
    report = IndexReport(
        files=files,
        copies=files - len(np.unique(np.concatenate(digests))),
        short=sum(part.short for part in parts),
        symbols=sum(part.symbols for part in parts),
        repositories=len(np.unique(np.concatenate(repos))),
        common=recipe.common,
        common_anchors=common,
        waived=waived,
        skipped=unreadable + sum(len(part.skipped) for part in parts),
    )
    return CorpusIndex(
        Table(starts, remainders, suffixes, documents),
        recipe.cut,
        report,
        np.unique(np.concatenate(even), axis=0),
        (np.concatenate(records), np.cumsum(np.concatenate(lengths))),
        "",
        outliers_of((group.identities for group in groups), recipe.cut),
    )


def _room(step: Step, name: str, kind: type[np.generic], count: int) -> NDArray[Any]:
    """An array on disk, which may be larger than memory."""
    if not count:
        return np.zeros(0, kind)
    with step.path(name).open("wb") as file:
        # Room is asked for now: where a mapped page finds none on the disk, the process is killed.
        os.posix_fallocate(file.fileno(), 0, count * np.dtype(kind).itemsize)
    return np.memmap(step.path(name), kind, "r+", shape=(count,))
