"""A corpus as large as a machine takes in the time there is: what an index of it costs, step by step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.corpora import scanning
from bench.corpora.billion import resident
from bench.corpora.walks import timed
from bench.figures import Figure
from prod_decode.corpus.index import CorpusIndex
from prod_decode.corpus.keys import Cut
from prod_decode.indexing.build import build
from prod_decode.indexing.engines import Local
from prod_decode.indexing.parts import write_array
from prod_decode.indexing.sources import Task
from prod_decode.indexing.steps import Recipe, Step, count_shard, read_task
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.vocabulary import Vocabulary

QUOTE = 150

_KEY = bytes(range(16))


class _Watch:
    """How long each step of a build takes, and what lies in its work folder when it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}

    def __call__(self, step: str, _unit: str, total: float, _already: float, /) -> Callable[[float], None]:
        begun = time.process_time()

        def tell(done: float) -> None:
            self.seconds[step] = time.process_time() - begun
            if done >= total:
                self.bytes[step] = sum(file.stat().st_size for file in self._folder.iterdir() if file.is_file())

        return tell


# Tasks and shards of what is timed alone.
_TASKS, _SHARDS = 100, 64


def _a_pair(folder: Path) -> float:
    """Seconds to find and read what one task has for one shard: there are as many pairs as both multiplied."""
    folder.mkdir()
    code = "".join(f"def name_{number}(x): return x + {number * 7919}\n" for number in range(2000))
    tasks = []
    for number in range(_TASKS):
        file = folder / f"{number}.py"
        file.write_text(code[number * 100 : number * 100 + 10_000])
        tasks.append(Task("files", (str(file),)))
    step = Step(Recipe(Cut.of(QUOTE, None, Normalization("code"), _KEY)), folder, _TASKS, _SHARDS)
    write_array(step.path("free"), np.zeros(0, np.uint64))
    for item in enumerate(tasks):
        read_task(step, item)
    begin = time.process_time()
    for shard in range(_SHARDS):
        count_shard(step, shard)
    seconds = time.process_time() - begin
    shutil.rmtree(folder)
    return seconds / _TASKS / _SHARDS


def measure(
    sources: Sequence[Path], output: Path, vocabulary: Vocabulary, walk: NDArray[np.int64], steps: int, scanned: str
) -> Iterator[Figure]:
    """Build an index in this process, and use it.

    Args:
        sources: the corpus.
        output: the index to write.
        vocabulary: of a model.
        walk: tokens of other code.
        steps: whose time is taken.
        scanned: other code, to scan.
    """
    work = output.with_suffix(".work")
    watch = _Watch(work)
    before, wall, begin = resident(), time.perf_counter(), time.process_time()
    index: CorpusIndex = build(
        sources,
        output,
        Recipe(Cut.of(QUOTE, None, Normalization("code"), _KEY)),
        Local(1),
        work=work,
        progress=watch,
    )
    seconds, wall = time.process_time() - begin, time.perf_counter() - wall
    report, size = index.report, output.stat().st_size
    guard = f"{report.symbols / 1e6:,.0f} million symbols"
    about = f"{report.files:,} files of {report.repositories:,} repositories, {report.copies:,} of them copies"
    yield Figure("symbols", guard, report.symbols, "symbols", note=about)
    yield Figure("anchors", guard, len(index), "anchors")
    yield Figure("file", guard, size, "bytes")
    yield Figure("bytes a symbol", guard, size / report.symbols, "bytes")
    yield Figure("bytes an anchor", guard, size / len(index), "bytes")
    yield Figure("anchors a symbol", guard, len(index) / report.symbols, "anchors")
    yield Figure(
        "build",
        guard,
        report.symbols / 1e6 / seconds * 60,
        "MB/min",
        note=f"{seconds:.0f} s of one core, {wall:.0f} s in all",
    )
    for step, taken in watch.seconds.items():
        yield Figure(f"build, {step}", guard, taken, "s", note="of one core")
    for step, there in watch.bytes.items():
        yield Figure(f"work folder after {step}", guard, there / report.symbols, "bytes", note="for each symbol")
    yield Figure("resident memory", guard, resident() - before, "bytes", note="more than before the build")
    yield Figure("windows waived", guard, report.waived, "windows", note=f"{report.common_anchors:,} common anchors")
    yield Figure("record of a document", guard, index.records.nbytes / report.files, "bytes")
    yield Figure(
        "a part of a task for a shard", guard, _a_pair(work) * 1e6, "us", note="of one core; parts of little code"
    )
    matcher = index.bind(vocabulary)
    yield from timed(guard, "mask and advance, a token", matcher.track, walk, steps)
    yield from scanning.measure(guard, index, scanned)
