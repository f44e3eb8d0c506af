"""An index larger than any that was built: random anchors in a file, asked while it is on disk and in memory."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.corpora.random_anchors import index_of_random
from bench.corpora.walks import ROWS, begun, timed
from bench.figures import Figure, distribution
from prod_decode.corpus.index import CorpusIndex
from prod_decode.tokens.vocabulary import Vocabulary

# Keys that are looked up one by one: each reads two places of the file.
_PROBES = 2_000


def measure(
    count: int, folder: Path, vocabulary: Vocabulary, walk: NDArray[np.int64], steps: int, cold_steps: int
) -> Iterator[Figure]:
    """Make the file, measure, and remove it.

    Args:
        count: of anchors.
        folder: where the file lies, on a disk with twice its size free.
        vocabulary: of a model.
        walk: tokens of code.
        steps: whose time is taken where the file is in memory.
        cold_steps: and where it is on disk.
    """
    guard, path = f"{count:,} anchors", folder / "random.pidx"
    begin = time.perf_counter()
    index_of_random(count, folder).save(path)
    yield Figure("written", guard, time.perf_counter() - begin, "s", note="in pieces; not how an index is built")
    yield Figure("file", guard, path.stat().st_size, "bytes")
    try:
        yield from _measured(guard, path, vocabulary, walk, steps, cold_steps)
    finally:
        path.unlink()


def _measured(
    guard: str, path: Path, vocabulary: Vocabulary, walk: NDArray[np.int64], steps: int, cold_steps: int
) -> Iterator[Figure]:
    _leave_memory(path)
    before = resident()
    begin = time.perf_counter()
    index = CorpusIndex.load(path, verify=False)
    yield Figure("open", guard, (time.perf_counter() - begin) * 1e3, "ms")
    yield Figure("resident memory after opening", guard, resident() - before, "bytes", note="more than before")
    begin = time.perf_counter()
    matcher = index.bind(vocabulary)
    yield Figure(
        "bind to a tokenizer", guard, (time.perf_counter() - begin) * 1e3, "ms", note="the table of its tokens included"
    )
    del matcher, index
    for ahead, where in ((True, "on disk"), (False, "on disk, no reading ahead")):
        for rows in ROWS:
            columns = np.ascontiguousarray(walk[: (cold_steps + 1) * rows].reshape(rows, -1).T)
            taken, pages = _from_disk(path, vocabulary, columns, ahead=ahead)
            came = (
                f"{pages * mmap.PAGESIZE / 1e6:,.0f} MB of the file came into memory for {cold_steps * rows:,} tokens"
            )
            yield distribution(f"mask and advance, a token, {where}, B={rows}", guard, taken, note=came)
    index = CorpusIndex.load(path, verify=False)
    matcher = index.bind(vocabulary)
    yield from _probes(guard, index, "on disk", path)
    with path.open("rb", buffering=0) as file:
        begin, size = time.perf_counter(), 0
        while read := len(file.read(1 << 24)):
            size += read
    yield Figure("read the file", guard, size / 1e6 / (time.perf_counter() - begin), "MB/s")
    share = resident_pages(path) * mmap.PAGESIZE / path.stat().st_size
    yield Figure("of the file in memory", guard, share, "of it", note="after reading it")
    yield from timed(guard, "mask and advance, a token, in memory", matcher.track, walk, steps)
    yield from _probes(guard, index, "in memory", path)
    yield Figure(
        "resident memory after walking", guard, resident() - before, "bytes", note="pages of the file included"
    )


def _from_disk(
    path: Path, vocabulary: Vocabulary, columns: NDArray[np.int64], *, ahead: bool
) -> tuple[list[float], int]:
    """Nanoseconds for each token of a walk by an index of which nothing is in memory, and the pages that came into it.

    On its own, since what is mapped stays in memory. `ahead`: whether the system may read what stands around a page.
    """
    gc.collect()
    _leave_memory(path)
    index = CorpusIndex.load(path, verify=False)
    for one in () if ahead else _maps(index):
        one.madvise(mmap.MADV_RANDOM)
    tracker = begun(index.bind(vocabulary).track(), columns[0])
    before, taken = resident_pages(path), []
    for column in columns[1:]:
        begin = time.perf_counter_ns()
        tracker.advance(column)
        tracker.banned()
        taken.append((time.perf_counter_ns() - begin) / len(column))
    return taken, resident_pages(path) - before


def _probes(guard: str, index: CorpusIndex, where: str, path: Path) -> Iterator[Figure]:
    """Look-ups at places that nobody has looked at, one after another."""
    if where == "on disk":
        _leave_memory(path, mapped=index)
    draw = np.random.default_rng(3)
    symbols = [draw.integers(33, 127, index.cut.width, np.uint8) for _ in range(_PROBES)]
    index.find(symbols[0])
    taken = []
    for some in symbols[1:]:
        begin = time.perf_counter_ns()
        index.find(some)
        taken.append(time.perf_counter_ns() - begin)
    yield distribution(f"one look-up, {where}", guard, taken, note="the call included")


def _leave_memory(path: Path, mapped: CorpusIndex | None = None) -> None:
    """Ask the system to forget what it holds of a file; of what is mapped it forgets what nobody looks at now."""
    for one in _maps(mapped) if mapped is not None else ():
        one.madvise(mmap.MADV_DONTNEED)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _maps(index: CorpusIndex) -> Iterator[mmap.mmap]:
    """What an index's arrays lie in."""
    for array in vars(index.table).values():
        base: Any = array
        while base is not None and not isinstance(base, mmap.mmap):
            base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
        if base is not None:
            yield base


def resident() -> int:
    """The memory of this process, in bytes."""
    found = re.search(r"^Rss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def resident_pages(path: Path) -> int:
    """How many pages of a file are in memory, whoever reads them."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE) as mapped:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        begin = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        libc.mincore(ctypes.c_void_p(begin), ctypes.c_size_t(size), pages)
        return int((np.ctypeslib.as_array(pages) & 1).sum())
