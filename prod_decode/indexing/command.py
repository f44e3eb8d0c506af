"""`index`: the anchors of a corpus in a file, made, shown, merged and verified."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from prod_decode.command.options import READ, Uncovered, add_coverage, positive
from prod_decode.command.terminal import Progress, note, to_json
from prod_decode.errors import ProdError, one_line

if TYPE_CHECKING:
    from prod_decode.command.options import Commands
    from prod_decode.corpus.index import CorpusIndex
    from prod_decode.indexing.build import Engine


def add_to(commands: Commands) -> None:
    """Add the sub-commands of this module."""
    index = commands.add_parser("index", help="indices of large corpora: build, info, merge, verify")
    actions = index.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_build(actions)

    add = actions.add_parser("info", help="what an index was made of, and how large it is")
    add.add_argument("file", metavar="FILE", help="an index")
    add.add_argument("--json", action="store_true", help="as one JSON object")
    add.set_defaults(run=_info)

    add = actions.add_parser("merge", help="join indices that were built with one key")
    add.add_argument("files", nargs="+", metavar="FILE", help="indices; build the second one with `--key-of` the first")
    add.add_argument("-o", "--output", required=True, metavar="OUT", help="the index to write")
    add.set_defaults(run=_merge)

    add = actions.add_parser("verify", help="read all of an index and compare its checksum")
    add.add_argument("file", metavar="FILE", help="an index")
    add.set_defaults(run=_verify)


def _add_build(actions: Commands) -> None:
    add = actions.add_parser("build", help="build an index from source code")
    add.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="directories, in which each folder is taken for a repository; archives (.tar, .tar.gz, .tgz, .tar.bz2, "
        ".tar.xz, .zip, .whl), each a repository; .jsonl, .jsonl.gz and .parquet files with the columns `content`, "
        "`path`, `repo`, `license`; hub:OWNER/NAME[,split=S][,config=C][,data_dir=D][,revision=R], a data set of the "
        f"Hugging Face hub with such columns, streamed. Of files, {READ[0].lower()}{READ[1:]}",
    )
    add.add_argument("-o", "--output", required=True, metavar="OUT", help="the index to write")
    add.add_argument(
        "--max-quote", type=int, default=150, metavar="K", help="the shortest run that may not be quoted (default 150)"
    )
    add.add_argument(
        "--width", type=int, metavar="W", help="symbols of an anchor (default 60, or less if K asks for it)"
    )
    add.add_argument(
        "--common",
        type=positive(int, zero=True),
        default=20,
        metavar="N",
        help="what more than N repositories have is no evidence of copying, and may be quoted if nothing else stands "
        "in a window of K; 0: nothing is (default 20)",
    )
    add.add_argument(
        "--allow", action="append", default=[], metavar="PATH", help="code that is free to use; give it again for more"
    )
    add.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="leave out files, as `scan` does"
    )
    add.add_argument("--normalize", choices=("code", "none"), default="code", help="what counts as the same (code)")
    add.add_argument("--ignore-case", action="store_true", help="fold ASCII letters")
    add.add_argument(
        "--no-attribution", action="store_true", help="do not keep which document an anchor is of; 4 bytes less each"
    )
    add.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where it is built: processes here (local), or Ray"
    )
    add.add_argument(
        "--jobs", type=positive(int), metavar="N", help="processes of the engine local (default: all cores)"
    )
    add.add_argument("--address", metavar="A", help="of a Ray cluster; without it one is started here for this build")
    add.add_argument(
        "--work", metavar="DIR", help="a folder for what is done; with Ray, one that all machines reach (OUT.work)"
    )
    add.add_argument("--resume", action="store_true", help="go on with a build that was killed")
    add.add_argument("--key-of", metavar="INDEX", help="hash as another index does, so that the two can be merged")
    add_coverage(add, "stop at the first file that cannot be read as text")
    add.set_defaults(run=_build)


def _build(options: argparse.Namespace) -> int:
    from prod_decode.blocklist.selection import Selection
    from prod_decode.corpus.index import INDEX, CorpusIndex
    from prod_decode.corpus.keys import Cut
    from prod_decode.indexing.build import build, new_key
    from prod_decode.indexing.steps import Recipe
    from prod_decode.storage.artifact import require_output
    from prod_decode.text.normalize import Normalization

    require_output(options.output, options.sources, replaces=(INDEX.magic, INDEX.name))
    key = new_key() if options.key_of is None else CorpusIndex.load(options.key_of).cut.key
    cut = Cut.of(options.max_quote, options.width, Normalization(options.normalize, options.ignore_case), key)
    uncovered, selection = Uncovered(options), Selection(options.exclude)
    index = build(
        options.sources,
        options.output,
        Recipe(cut, options.common, not options.no_attribution),
        _engine(options),
        work=options.work,
        allow=options.allow,
        selection=selection,
        resume=options.resume,
        skipped=uncovered,
        progress=_progress,
    )
    _tell(options.output, index)
    for pattern in selection.unused():
        note(f"no effect: --exclude {pattern}: nothing was excluded by it")
    return uncovered.status


def _engine(options: argparse.Namespace) -> Engine:
    from prod_decode.indexing.engines import Local, Ray

    if options.engine == "ray":
        if options.jobs is not None:
            raise ProdError("--jobs: expected only with the engine local: a Ray cluster has its own processors")
        return Ray(options.address)
    if options.address is not None:
        raise ProdError("--address: expected only with --engine ray, got it with the engine local")
    return Local(options.jobs if options.jobs is not None else os.cpu_count() or 1)


def _tell(path: str, index: CorpusIndex) -> None:
    """What an index is, and what of its corpus it does not protect."""
    report = index.report
    print(
        one_line(f"{path}: {report.files:,} files of {report.repositories:,} repositories, {report.symbols:,} symbols")
    )
    print(f"{len(index):,} anchors, {Path(path).stat().st_size:,} bytes", flush=True)
    if report.short:
        note(f"not protected: {report.short:,} files are shorter than max_quote ({index.cut.max_quote} symbols)")
    if report.common_anchors:
        note(
            f"not protected: {report.common_anchors:,} anchors are in more than {report.common} repositories; "
            f"{report.waived:,} windows of max_quote have no other and may be quoted"
        )
    elif report.waived:
        note(f"not protected: {report.waived:,} windows of max_quote are free code and may be quoted")


def _info(options: argparse.Namespace) -> int:
    from prod_decode.corpus.index import CorpusIndex

    index = CorpusIndex.load(options.file)
    cut, report = index.cut, index.report
    if options.json:
        described = {
            "file": options.file,
            "bytes": Path(options.file).stat().st_size,
            "anchors": len(index),
            "max_quote": cut.max_quote,
            "width": cut.width,
            "normalize": cut.normalization.mode,
            "ignore_case": cut.normalization.ignore_case,
            "attribution": index.attributes,
            **asdict(report),
        }
        print(to_json(described))
        return 0
    _tell(options.file, index)
    print(f"max_quote {cut.max_quote}, anchors of {cut.width} symbols; {cut.normalization}")
    print(
        f"{index.size / max(1, report.symbols):.3f} bytes a symbol, attribution "
        f"{'kept' if index.attributes else 'left out'}"
    )
    print(f"the same as an earlier file: {report.copies:,}; could not be read: {report.skipped:,}")
    return 0


def _merge(options: argparse.Namespace) -> int:
    from prod_decode.corpus.index import INDEX, CorpusIndex
    from prod_decode.indexing.merge import merge
    from prod_decode.storage.artifact import require_output

    require_output(options.output, options.files, replaces=(INDEX.magic, INDEX.name))
    merge([CorpusIndex.load(file, verify=True) for file in options.files]).save(options.output)
    _tell(options.output, CorpusIndex.load(options.output))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from prod_decode.corpus.index import CorpusIndex

    index = CorpusIndex.load(options.file, verify=True)
    print(one_line(f"{options.file}: whole, {len(index):,} anchors"))
    return 0


def _progress(step: str, unit: str, total: float, already: float) -> Progress:
    return Progress(step, unit, total, already=already)
