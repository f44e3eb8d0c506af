"""What `--common` changes: how much of other packages' code is banned, and how much of that is really copied."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.corpora.walks import begun
from bench.figures import Figure
from prod_decode.corpus.index import CorpusIndex
from prod_decode.corpus.keys import Cut
from prod_decode.indexing.build import build
from prod_decode.indexing.engines import Local
from prod_decode.indexing.sources import documents, plan
from prod_decode.indexing.steps import Recipe
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.tokenizer_bytes import vocabulary_of
from prod_decode.tokens.vocabulary import Vocabulary

QUOTE = 150
_KEY = bytes(range(16))


def measure(
    sources: Sequence[Path],
    files: Sequence[tuple[Path, str]],
    tokenizer: Any,
    settings: Sequence[int],
    count: int,
    characters: int,
) -> Iterator[Figure]:
    """At each setting what is banned of some files, and how much of it stands in the corpus.

    Args:
        sources: the corpus.
        files: other code, of which `count` files are taken, from all over.
        tokenizer: of a model.
        settings: values of `--common`.
        count: see `files`.
        characters: of each, at most.
    """
    cut = Cut.of(QUOTE, None, Normalization("code"), _KEY)
    long = [(path, text) for path, text in files if len(text) > 2 * QUOTE]
    some = [text[:characters] for _, text in long[:: max(1, len(long) // count)]][:count]
    encoded = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int64) for text in some]
    folded = [cut.normalization.symbols(text) for text in some]
    vocabulary = vocabulary_of(tokenizer)
    corpus = b"\0".join(
        cut.normalization.symbols(text)
        for task in plan(sources, lambda _: None)
        for _, text in documents(task, lambda _: None)
    )
    with tempfile.TemporaryDirectory() as folder:
        for common in settings:
            output = Path(folder) / f"{common}.pidx"
            index = build(sources, output, Recipe(cut, common, attribution=False), Local(1))
            yield from _banned(f"--common {common}", index, vocabulary, encoded, folded, corpus)


def _banned(
    guard: str,
    index: CorpusIndex,
    vocabulary: Vocabulary,
    encoded: Sequence[NDArray[np.int64]],
    folded: Sequence[bytes],
    corpus: bytes,
) -> Iterator[Figure]:
    report = index.report
    about = f"{report.files:,} files of {report.repositories:,} repositories, {report.symbols:,} symbols"
    yield Figure("anchors", guard, len(index), "anchors", note=about)
    yield Figure("anchors left out", guard, report.common_anchors, "anchors")
    share = report.waived / max(1, report.symbols)
    yield Figure("windows waived", guard, report.waived, "windows", note=f"{share:.2e} of all symbols")
    steps, banned, in_files = _steps(index, vocabulary, encoded)
    yield Figure(
        "steps banned",
        guard,
        banned / steps,
        "of steps",
        note=f"{banned:,} of {steps:,}, in {in_files} of {len(encoded)} files",
    )
    width = index.cut.width
    windows = [
        text[at : at + width] for text in folded for at in index.find(np.frombuffer(text, np.uint8))[:, 0].tolist()
    ]
    distinct = set(windows)
    real = {window for window in distinct if window in corpus}
    copied = sum(window in real for window in windows)
    yield Figure(
        "anchors found that stand in the corpus",
        guard,
        copied / max(1, len(windows)),
        "of anchors",
        note=f"{copied:,} of {len(windows):,}, {len(real):,} of {len(distinct):,} different ones",
    )


def _steps(index: CorpusIndex, vocabulary: Vocabulary, encoded: Sequence[NDArray[np.int64]]) -> tuple[int, int, int]:
    """Steps of all texts, those whose own token is banned, and in how many texts there is one."""
    matcher = index.bind(vocabulary)
    steps = banned = texts = 0
    for tokens in encoded:
        tracker = begun(matcher.track(), tokens[:1])
        here = 0
        for token in tokens[1:]:
            here += int(token) in tracker.banned()[1]
            tracker.advance(np.array([token]))
        steps, banned, texts = steps + len(tokens) - 1, banned + here, texts + (here > 0)
    return steps, banned, texts
