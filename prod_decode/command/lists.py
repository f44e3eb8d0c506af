"""`compile`, `merge`, `info` and `lists`: blocklists as files, and the lists that come with the package."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prod_decode.command.options import (
    READ,
    Uncovered,
    add_coverage,
    add_target,
    load,
    load_all,
    positive,
    tell_targets,
)
from prod_decode.command.terminal import note, to_json
from prod_decode.errors import ProdError, one_line

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.blocklist.entries import Entry
    from prod_decode.blocklist.portions import Costs
    from prod_decode.command.options import Commands


_T = TypeVar("_T")


def add_to(commands: Commands) -> None:
    """Add the sub-commands of this module."""
    add = commands.add_parser("compile", help="compile entries into a blocklist file")
    add.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="a .jsonl or .ndjson file (one entry per line), a .txt file (one phrase per line), any other file (a "
        "document that may not be quoted), a directory (each file in it such a document), or `list:NAME`, one of those "
        f"that `prod-decode lists` shows. {READ}",
    )
    add.add_argument("-o", "--output", required=True, metavar="OUT", help="the file to write")
    add.add_argument(
        "--normalize",
        choices=["code", "none"],
        default="code",
        help="`code` ignores ASCII whitespace that does not separate words",
    )
    add.add_argument("--ignore-case", action="store_true", help="fold ASCII letters; others are compared as they are")
    add.add_argument(
        "--max-quote",
        type=int,
        metavar="N",
        help="characters of a document that may not be quoted in a row (default 120)",
    )
    add.add_argument(
        "--budget",
        type=positive(int),
        metavar="N",
        help="characters of one document that an output may give away in pieces, each counted once, and at most a "
        "quarter of the document; then it may write no piece that gives away more (default: no limit)",
    )
    add.add_argument(
        "--piece",
        type=positive(int),
        metavar="N",
        help="with a budget: characters in a row that count as a piece (default 24)",
    )
    add.add_argument(
        "--boundary",
        choices=["start", "both", "none"],
        help="at which ends a phrase must be a whole word, for entries that do not say (default: start); with "
        "--normalize code, at an end with whitespace it must be one anyway: `return ` is not in `returned`",
    )
    add.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PATH",
        help="code that is free to use: never banned by a document, nor from a phrase's commit point on",
    )
    add.add_argument(
        "--allow-names",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="an installed package, or `stdlib`: a phrase that ends in a name of it is banned from its commit point "
        "on, the shortest beginning that no other name there has (`os.syst` of `os.system(`), so that none is invented",
    )
    add.add_argument(
        "--model",
        metavar="M",
        help="ban documents where this model has good alternatives: a hub id, a directory, a .gguf file, or `bundled` "
        "(default: in the fewest places)",
    )
    add.add_argument("--allow-short", action="store_true", help="accept phrases of fewer than 3 normalised bytes")
    add.add_argument(
        "--jobs",
        type=positive(int),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes, where there are several megabytes of entries (default: one a core)",
    )
    add.add_argument(
        "--parts",
        metavar="DIR",
        help="keep in DIR what is finished of every two megabytes of entries, and use what is there: run the same "
        "command again, and a compile that was stopped goes on",
    )
    add_target(add)
    add_coverage(
        add,
        "refuse what cannot be guarded or read, and documents of which nothing is prohibited, and write nothing",
    )
    add.set_defaults(run=_compile)

    add = commands.add_parser("merge", help="make one blocklist of several")
    add.add_argument(
        "files", nargs="+", metavar="FILE", help="compiled blocklists that normalise alike, or `list:NAME`"
    )
    add.add_argument("-o", "--output", required=True, metavar="OUT", help="the file to write")
    add_coverage(add, "refuse documents of which nothing is prohibited, and write nothing")
    add.set_defaults(run=_merge)

    add = commands.add_parser("info", help="what a blocklist file contains")
    add.add_argument("file", metavar="FILE", help="a compiled blocklist")
    add.add_argument("--entries", action="store_true", help="list every entry")
    add.add_argument("--json", action="store_true", help="as one JSON object")
    add.set_defaults(run=_info)

    add = commands.add_parser("lists", help="the lists that come with this package, or the entries of one")
    add.add_argument("name", nargs="?", metavar="NAME", help="one of them: show its entries")
    add_target(add)
    add.add_argument("--json", action="store_true", help="one JSON object a line; of entries, what `compile` reads")
    add.set_defaults(run=_lists)


def _compile(options: argparse.Namespace) -> int:
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.blocklist.entries import SHORTEST_PIECE, SHORTEST_QUOTE
    from prod_decode.blocklist.ready import Targets, list_named
    from prod_decode.blocklist.sources import read_entries, read_texts, require_sources
    from prod_decode.storage.artifact import require_output
    from prod_decode.storage.models import require_name

    if options.max_quote is not None and options.max_quote < SHORTEST_QUOTE:
        raise ProdError(f"--max-quote: expected at least {SHORTEST_QUOTE} characters, got {options.max_quote}")
    if options.piece is not None and options.piece < SHORTEST_PIECE:
        raise ProdError(f"--piece: expected at least {SHORTEST_PIECE} characters, got {options.piece}")
    require_output(options.output, [*options.sources, *options.allow])
    require_sources(options.sources, options.allow)
    targets = Targets(options.target)
    files = [source for source in options.sources if list_named(source) is None]
    if options.model is not None:
        require_name(options.model)
    uncovered = Uncovered(options)
    # With --strict all that is not covered is a mistake, and mistakes are told together.
    skipped = None if options.strict else uncovered
    entries = read_entries(
        options.sources,
        max_quote=options.max_quote,
        budget=options.budget,
        piece=options.piece,
        boundary=options.boundary,
        skipped=skipped,
        leave_out=[options.output, *_kept_parts(options.parts, [*files, *options.allow])],
        targets=targets,
    )
    unfolded: list[str] = []
    documents = _tell_documents(files)
    blocklist = Blocklist.compile(
        _progress(_watch_case(entries, unfolded) if options.ignore_case else entries, "entries"),
        normalize=options.normalize,
        ignore_case=options.ignore_case,
        allow=(text for _, text in read_texts(options.allow, skipped=lambda why: uncovered(f"--allow: {why}"))),
        allow_names=options.allow_names,
        allow_short=options.allow_short,
        jobs=options.jobs,
        costs=None if options.model is None else _costs_of(options.model),
        parts=options.parts,
        skipped=skipped,
    )
    uncovered.add_ineffective(blocklist, documents)
    _tell_unused(options, blocklist)
    tell_targets(targets, len(files) < len(options.sources))
    _save(blocklist, options.output)
    if unfolded:
        shown = _first(unfolded, 1)
        note(f"--ignore-case folds ASCII letters only: other letters in {shown} are compared as they are")
    _print_waived(blocklist)
    if options.allow_names:
        points, phrases = len(blocklist.report.commit_points), blocklist.report.phrases
        note(f"phrases banned from a commit point on: {points} of {phrases}; `prod-decode info --entries` shows them")
    if unreached := blocklist.unreached():
        note(f"banned and not replaced, because more than the last word differs: {_first(unreached)}")
    return uncovered.status


def _tell_unused(options: argparse.Namespace, blocklist: Blocklist) -> None:
    """Which options had no effect: a slip, or sources that are not what somebody takes them for."""
    report = blocklist.report
    allow = None if options.allow_names else options.allow  # commit points heed it
    given = {
        "--max-quote": options.max_quote,
        "--budget": options.budget,
        "--piece": options.piece,
        "--allow": allow,
        "--model": options.model,
    }
    without = [name for name, value in given.items() if value] if not report.documents else []
    if without:
        note(f"no effect: {', '.join(without)}: for documents, and the sources have phrases alone")
    elif options.max_quote and all(info.max_quote != options.max_quote for info in blocklist.entries()):
        note("no effect: --max-quote: every document has a max_quote of its own")
    if report.documents and options.budget and all(info.budget != options.budget for info in blocklist.entries()):
        note("no effect: --budget: every document has a budget of its own")
    if report.documents and options.piece and all(info.piece != options.piece for info in blocklist.entries()):
        note("no effect: --piece: no document has a budget without a piece of its own; give --budget")
    if options.boundary and not report.phrases:
        note("no effect: --boundary: for phrases, and the sources have documents alone")
    elif options.boundary and all(info.boundary != options.boundary for info in blocklist.entries()):
        note("no effect: --boundary: every phrase has a boundary of its own")


def _kept_parts(parts: str | None, sources: Sequence[str]) -> list[str]:
    """The directory of `--parts`, which is no source where it lies in one.

    Raises:
        ProdError: it is a source, or has other files: they would be left out with it.
    """
    from prod_decode.storage.files import as_path

    folder = None if parts is None else as_path(parts)
    if folder is None:
        return []
    around = [Path(os.path.realpath(source)) for source in map(as_path, sources)]
    real = Path(os.path.realpath(folder))
    if real in around or (
        folder.is_dir()
        and any(source in real.parents for source in around)
        and any(not re.fullmatch(r"\.?[0-9a-f]+\.part.*", path.name) for path in folder.iterdir())
    ):
        raise ProdError(f"--parts: {parts} has sources in it, which would be left out with it: name another directory")
    return [str(folder)]


def _tell_documents(sources: Sequence[str]) -> list[str]:
    """Which of the files that were named are documents: one that was meant as a list guards something else.

    Returns:
        Their ids as entries.
    """
    from prod_decode.blocklist.sources import JSON_LISTS, PHRASE_LISTS

    named = [name for name in sources if Path(name).suffix.lower() not in JSON_LISTS + PHRASE_LISTS]
    documents = [name for name in named if not Path(name).is_dir()]
    if documents:
        note(f"read as a document each: {_first(documents)} (lists are .txt, .jsonl and .ndjson files)")
    return [Path(name).as_posix() for name in documents]


def _first(names: Sequence[str], most: int = 3) -> str:
    """Some names for a message, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _watch_case(entries: Iterator[Entry], unfolded: list[str]) -> Iterator[Entry]:
    """The entries; the labels of those in which a letter has another case that is not ASCII go into `unfolded`."""
    for entry in entries:
        if not entry.text.isascii() and any(c > "\x7f" and c.lower() != c.upper() for c in entry.text):
            unfolded.append(entry.label)
        yield entry


def _costs_of(model_name: str) -> Costs:
    from prod_decode.command.costs import ModelCosts
    from prod_decode.storage.models import load_model, quiet
    from prod_decode.tokens.tokenizer_bytes import vocabulary_of

    quiet()
    model, tokenizer = load_model(model_name)
    return ModelCosts(model, tokenizer, vocabulary_of(tokenizer))


def _progress(items: Iterator[_T], what: str) -> Iterator[_T]:
    count = 0
    show = sys.stderr.isatty()
    for count, item in enumerate(items, 1):
        if show and count % 1000 == 0:
            print(f"\r{count:,} {what}", end="", file=sys.stderr, flush=True)
        yield item
    if show and count >= 1000:
        print(file=sys.stderr)


def _save(blocklist: Blocklist, path: str) -> None:
    """Write it and say what it is. The work is done then: an output that cannot take the line is not a failure."""
    blocklist.save(path)
    report = blocklist.report
    budgets = sum(1 for _ in blocklist.budgets())
    line = (
        f"{path}: {report.phrases:,} phrases, {report.documents:,} documents"
        f"{f' ({budgets:,} with a budget)' if budgets else ''}, "
        f"{len(blocklist.automaton.patterns):,} patterns, {len(blocklist.automaton):,} nodes, "
        f"{Path(path).stat().st_size:,} bytes"
    )
    try:
        print(one_line(line), flush=True)
    except ProdError as error:
        note(f"{line}; {error}")


def _print_waived(blocklist: Blocklist) -> None:
    report = blocklist.report
    for entry_id, start, end in report.waived[:10]:
        note(f"waived: characters {start}-{end} of {entry_id} (normalised) are free code and may be quoted")
    if len(report.waived) > 10:
        note(f"waived: {len(report.waived) - 10} more runs; `prod-decode info --json` lists them all")


def _merge(options: argparse.Namespace) -> int:
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.storage.artifact import require_output

    require_output(options.output)  # one of the files may be it: all are loaded by then, and nothing of it is lost
    merged = Blocklist.merge(load_all(options.files))
    uncovered = Uncovered(options)
    uncovered.add_ineffective(merged)
    _save(merged, options.output)
    return uncovered.status


def _lists(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from prod_decode.blocklist.ready import READY, Targets, ready_entries

    targets = Targets(options.target)
    if options.name is None:
        records = [{"list": name, "entries": len(list(ready_entries(name))), "about": READY[name]} for name in READY]
        rows = [list(map(str, record.values())) for record in records]
    else:
        entries = [entry for entry in ready_entries(options.name) if targets.keeps(entry)]
        records = [{key: value for key, value in asdict(entry).items() if value is not None} for entry in entries]
        columns = ("text", "replacement", "instead", "library", "since", "gone", "cwe", "source")
        rows = [list(columns), *([str(record.get(column, "-")) for column in columns] for record in records)]
    if options.json:
        for record in records:
            print(to_json(record))
    else:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print(one_line("  ".join(map(str.ljust, row, widths))))
    tell_targets(targets, options.name is not None)
    return 0


def _info(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from prod_decode.blocklist.ready import list_named

    if name := list_named(options.file):
        raise ProdError(
            f"expected a compiled blocklist, got {options.file}: compile it, or see `prod-decode lists {name}`"
        )
    blocklist = load(options.file)
    automaton, report = blocklist.automaton, blocklist.report
    unreached = set(blocklist.unreached())
    facts = {
        "file": options.file,
        "bytes": Path(options.file).stat().st_size,
        "normalize": blocklist.normalization.mode,
        "ignore_case": blocklist.normalization.ignore_case,
        "phrases": report.phrases,
        "documents": report.documents,
        "patterns": len(automaton.patterns),
        "nodes": len(automaton),
        "longest_pattern": automaton.longest,
        "too_short": report.too_short,
        "waived": [{"entry": entry_id, "start": start, "end": end} for entry_id, start, end in report.waived],
        "commit_points": [{"entry": entry_id, "text": text} for entry_id, text in report.commit_points],
        "replacements": [
            {"entry": entry_id, "replacement": text, "reached": entry_id not in unreached}
            for entry_id, _, text in report.replacements
        ],
        "budgets": [
            {"entry": entry.id, "characters": characters, "length": length, "piece": entry.piece}
            for entry, characters, length in blocklist.budgets()
        ],
    }
    if options.entries:
        facts["entries"] = [asdict(info) for info in blocklist.entries()]
    if options.json:
        print(to_json(facts))
        return 0
    for key in (
        "file",
        "bytes",
        "normalize",
        "ignore_case",
        "phrases",
        "documents",
        "patterns",
        "nodes",
        "longest_pattern",
    ):
        value = facts[key]
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        print(one_line(f"{key:16} {shown}"))
    print(f"{'too short':16} {len(report.too_short)}")
    print(f"{'waived runs':16} {len(report.waived)}")
    print(f"{'commit points':16} {len(report.commit_points)}")
    print(f"{'replacements':16} {len(report.replacements) - len(unreached)}")
    if unreached:
        print(f"{'not replaced':16} {len(unreached)}, because more than the last word differs")
    print(f"{'budgets':16} {len(facts['budgets'])}")
    budgets = {entry.id: (characters, length) for entry, characters, length in blocklist.budgets()}
    points = dict(report.commit_points)
    instead = {entry_id: text for entry_id, _, text in report.replacements}
    for info in blocklist.entries() if options.entries else ():
        detail = f"max_quote {info.max_quote}" if info.policy == "quote" else f"boundary {info.boundary}"
        if info.id in points:
            detail += f", banned from {points[info.id]!r} on"
        if info.id in instead:
            detail += f", {'not ' if info.id in unreached else ''}replaced by {instead[info.id]!r}"
        if info.id in budgets:
            characters, length = budgets[info.id]
            detail += f", budget {characters:,} of {length:,} in pieces of {info.piece}"
        if info.license:
            detail += f", {info.license}"
        print(one_line(f"  {info.id}  {info.policy}, {detail}, from {info.source or 'unknown'}"))
    return 0
