"""How fast texts are scanned with an index, and what takes the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from bench.figures import ROUNDS, Figure
from prod_decode.blocklist.blocklist import codes_of
from prod_decode.corpus.index import CorpusIndex


def measure(guard: str, index: CorpusIndex, text: str) -> Iterator[Figure]:
    """Scan a text, and do alone what a scan does of it.

    Args:
        guard: what figures call the index.
        index: whose anchors are looked for.
        text: code that is no part of the corpus.
    """
    codes = codes_of(text)
    symbols, _ = index.cut.normalization.fold(codes)

    def rate(what: str, call: Callable[[], object], note: str | None = None) -> Figure:
        call()  # compiles
        seconds = []
        for _ in range(ROUNDS):
            begin = time.process_time()
            call()
            seconds.append(time.process_time() - begin)
        return Figure(what, guard, len(codes) / 1e6 / min(seconds), "MB/s", note=note)

    found = len(list(index.scan(text)))
    yield rate("scan", lambda: list(index.scan(text)), f"{found:,} runs found in {len(codes) / 1e6:.1f} MB")
    yield rate("normalise", lambda: index.cut.normalization.fold(codes))
    yield rate("look up what can be an anchor", lambda: index.find(symbols))
    yield rate("look up every run", lambda: index.find(symbols, every_run=True))
