"""How large a corpus may be: the index beside other guards, its false bans, a billion anchors, what is common.

Each part is a run of its own, whose figures are taken in one process, on the same texts:

- `peers`: the index, the automaton, MemFree and Data Portraits on one corpus (`peers.py`).
- `chance`: what is banned of code that shares nothing with an index, counted beside what is expected (`chance.py`).
- `billion`: random anchors in a file on disk, which is removed again (`billion.py`).
- `common`: what `--common` changes, and how many of the bans are copies (`common.py`).
- `largest`: one index of all that is named (`largest.py`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bench.corpora import billion, chance, common, largest, peers, scanning
from bench.corpora.walks import python_in, some_of, tokens_of
from bench.figures import Figure, machine, save, table, versions
from prod_decode.command.options import Parser, positive
from prod_decode.command.terminal import exit_status
from prod_decode.corpus.index import CorpusIndex
from prod_decode.errors import ProdError
from prod_decode.storage.artifact import require_output
from prod_decode.storage.models import load_tokenizer
from prod_decode.tokens.tokenizer_bytes import vocabulary_of

# Characters of code that are scanned.
_SCANNED = 4_000_000

PARTS = ("peers", "chance", "billion", "common", "largest", "scan")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write JSON lines if asked to."""
    parser = Parser(prog="python -m bench corpora", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=PARTS, help="what is measured")
    parser.add_argument("code", metavar="CODE", help="a directory of Python code that is no part of the corpus")
    parser.add_argument(
        "corpus", nargs="*", metavar="SRC", help="the corpus: directories and archives; of `scan` .pidx"
    )
    parser.add_argument("--megabytes", type=positive(int), default=20, metavar="N", help="of the corpus of `peers`")
    parser.add_argument("--anchors", type=positive(int), default=100_000_000, metavar="N", help="of random ones")
    parser.add_argument(
        "--crowded", type=positive(int), default=4, metavar="BITS", help="of `chance`: 2^BITS buckets (default 4)"
    )
    parser.add_argument("--steps", type=positive(int), default=6_400, metavar="N", help="whose time is taken")
    parser.add_argument("--tokens", type=positive(int), default=100_000, metavar="N", help="that are followed for bans")
    parser.add_argument("--written", type=positive(int), default=4, metavar="N", help="documents that a writer wants")
    parser.add_argument("--files", type=positive(int), default=500, metavar="N", help="of `common`, from all over CODE")
    parser.add_argument("--settings", default="0,20", metavar="N,N", help="of `--common` (default 0,20)")
    parser.add_argument("--tokenizer", default="bundled", metavar="M", help="of which model; default `bundled`")
    parser.add_argument("--work", metavar="DIR", help="where large files are put; default: the temporary folder")
    parser.add_argument("--json", metavar="OUT", help="write one JSON object a figure")
    options = parser.parse_args(argv)
    return exit_status("bench corpora", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.part in ("peers", "common", "largest", "scan") and not options.corpus:
        what = "indices" if options.part == "scan" else "directories or archives"
        raise ProdError(f"expected the corpus of `{options.part}` behind CODE, got none: name {what}")
    if options.json:
        require_output(options.json, replaces=None)
    facts = f"{machine()}; {versions()}; load {os.getloadavg()[0]:.1f} at the start"
    figures = []
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        for figure in _figures(options, Path(folder)):
            figures.append(replace(figure, machine=facts))
            print(f"{figure.guard}: {figure.what}", file=sys.stderr, flush=True)
    print(table(figures))
    if options.json:
        save(figures, options.json)
    return 0


def _figures(options: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Those of one part."""
    settings = _settings(options.settings)
    code = python_in([options.code])
    sources = [Path(source) for source in options.corpus]
    if options.part == "scan":
        for source in sources:
            index = CorpusIndex.load(source, verify=False)
            yield from scanning.measure(f"{len(index):,} anchors", index, _scanned(code))
        return
    tokenizer = load_tokenizer(options.tokenizer)
    count = max(options.tokens, options.steps + 64 * 64)
    if options.part == "common":
        yield from common.measure(sources, code, tokenizer, settings, options.files, 5_000)
        return
    vocabulary = vocabulary_of(tokenizer)
    walk = tokens_of(tokenizer, [text for _, text in code], count)
    if options.part == "chance":
        bits = (None, options.crowded)
        yield from chance.measure(options.anchors, bits, vocabulary, walk)
    elif options.part == "billion":
        yield from billion.measure(
            options.anchors, folder, vocabulary, walk, options.steps, max(20, options.steps // 64)
        )
    elif options.part == "largest":
        yield from largest.measure(sources, folder / "largest.pidx", vocabulary, walk, options.steps, _scanned(code))
    else:
        files = some_of(python_in(sources), options.megabytes * 1_000_000)
        documents = peers.laid_out(files, folder)
        material = peers.Material(tokenizer, folder, documents, walk, 16, options.steps)
        yield from peers.measure(material, options.written, 2_000)


def _scanned(code: Sequence[tuple[Path, str]]) -> str:
    return "".join(text for _, text in some_of(code, _SCANNED))


def _settings(text: str) -> list[int]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise ProdError(f"--settings: expected numbers such as 0,20, got {text!r}")
    return [int(part) for part in text.split(",")]
