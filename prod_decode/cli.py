"""`prod-decode`: compile, merge, inspect and scan blocklists, and generate with one in the loop."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from prod_decode.command.terminal import USAGE, exit_status, note, read_stdin, standard_streams, to_json
from prod_decode.errors import ProdError, one_line, printable
from prod_decode.version import __version__

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist, Match
    from prod_decode.blocklist.entries import Entry
    from prod_decode.blocklist.portions import Costs
    from prod_decode.command.generation import Generation

_T = TypeVar("_T")

_READ = (
    "Below a directory, hidden files are read too and links are followed; left out are directories named `.git`, "
    "`.hg`, `.svn`, `__pycache__`, `.mypy_cache`, `.pytest_cache` and `.ruff_cache`, and FIFOs, sockets and devices "
    "are not opened. Text is UTF-8, or UTF-16 or UTF-32 with a byte order mark; files that are no lists may be "
    "Latin-1. A FIFO that is named is read"
)

# Files in which code is escaped.
_JSON = (".json", ".jsonl", ".ndjson", ".ipynb")

FOUND, UNCOVERED = 1, 3

STATUSES = {
    0: "done, and everything that was named is covered",
    FOUND: "`scan` found something, whether or not everything was covered",
    USAGE: "a mistake, told in one line; nothing was written",
    UNCOVERED: "done, but not everything was covered: what is left out, and why, stands on stderr",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help ends with the meaning of each exit status."""

    def __init__(self, *, statuses: Mapping[int, str] | None = None, **options: Any) -> None:
        self.statuses = statuses or {}
        if statuses:
            options["formatter_class"] = argparse.RawDescriptionHelpFormatter
            options["epilog"] = "\n".join(["exit status:", *(f"  {status}  {statuses[status]}" for status in statuses)])
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where to read more, and exit with status 2."""
        self.exit(USAGE, one_line(f"{self.prog}: {message}; see `{self.prog} --help`") + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns one of `STATUSES`."""
    with standard_streams():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if sys.stderr.isatty():
        logging.getLogger("prod_decode").setLevel(logging.INFO)  # that the first start compiles, and why it takes long
    return exit_status(f"prod-decode {options.command}", lambda: options.run(options))


def build_parser() -> argparse.ArgumentParser:
    """The parser of every sub-command; `docs/cli.md` is made from it."""
    parser = Parser(
        prog="prod-decode", description="Keep a code model from emitting prohibited code.", statuses=STATUSES
    )
    parser.add_argument("--version", action="version", version=f"prod-decode {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add = commands.add_parser("compile", help="compile entries into a blocklist file")
    add.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="a .jsonl or .ndjson file (one entry per line), a .txt file (one phrase per line), any other file (a "
        f"document that may not be quoted) or a directory (each file in it such a document). {_READ}",
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
        help="code that is free to use: never banned by a document",
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
        type=_positive(int),
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
    _add_coverage(
        add,
        "refuse what cannot be guarded or read, and documents of which nothing is prohibited, and write nothing",
    )
    add.set_defaults(run=_compile)

    add = commands.add_parser("merge", help="make one blocklist of several")
    add.add_argument("files", nargs="+", metavar="FILE", help="compiled blocklists that normalise alike")
    add.add_argument("-o", "--output", required=True, metavar="OUT", help="the file to write")
    _add_coverage(add, "refuse documents of which nothing is prohibited, and write nothing")
    add.set_defaults(run=_merge)

    add = commands.add_parser("info", help="what a blocklist file contains")
    add.add_argument("file", metavar="FILE", help="a compiled blocklist")
    add.add_argument("--entries", action="store_true", help="list every entry")
    add.add_argument("--json", action="store_true", help="as one JSON object")
    add.set_defaults(run=_info)

    add = commands.add_parser("scan", help="find prohibited code in files; exit status 1 if there is any")
    add.add_argument("file", metavar="FILE", help="a compiled blocklist")
    add.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help=f"files or directories; `-` is standard input. {_READ}; what is none of it is looked "
        "through byte by byte, and listed as not covered, as a path is that does not exist",
    )
    add.add_argument("--json", action="store_true", help="one JSON object a match")
    add.add_argument(
        "--escapes",
        action=argparse.BooleanOptionalAction,
        help="also match with JSON's escapes decoded, as code stands in strings of JSON (default: in files named "
        f"{', '.join(_JSON)})",
    )
    add.add_argument("--verify", action="store_true", help="count again with pyahocorasick and compare")
    _add_coverage(add, "stop at the first file that cannot be read as text")
    add.set_defaults(run=_scan)

    add = commands.add_parser("generate", help="continue a prompt and show where the blocklist stepped in")
    add.add_argument("--model", required=True, metavar="M", help="a hub id, a directory, a .gguf file, or `bundled`")
    add.add_argument("--blocklist", required=True, metavar="FILE", help="a compiled blocklist")
    add.add_argument(
        "--prompt", required=True, metavar="P", help="text to continue; `-` reads standard input, `@FILE` a file"
    )
    add.add_argument("--max-new-tokens", type=_positive(int), default=200, metavar="N", help="default 200")
    add.add_argument(
        "--temperature", type=_positive(float, zero=True), default=0.0, metavar="T", help="0 (default) is greedy"
    )
    add.add_argument(
        "--top-p", type=_positive(float, most=1), default=1.0, metavar="P", help="nucleus, up to 1; default 1"
    )
    add.add_argument("--seed", type=_positive(int, zero=True, most=2**64 - 1), default=0, help="of sampling; default 0")
    add.add_argument(
        "--mode", choices=["mask", "prod"], default="mask", help="`prod`: the whole PROD distribution, nucleus included"
    )
    add.add_argument("--compare", action="store_true", help="also generate without the blocklist")
    add.add_argument("--json", action="store_true", help="as one JSON object")
    add.set_defaults(run=_generate)

    add = commands.add_parser("check-server", help="whether a vLLM server enforces blocklists; exit status 1 if not")
    add.add_argument("url", metavar="URL", help="such as http://localhost:8000")
    add.add_argument("--model", metavar="M", help="the model's name there (default: the first one)")
    add.add_argument("--list", action="append", default=[], metavar="NAME", help="a blocklist that requests add")
    add.add_argument("--api-key", metavar="KEY", help="default: the variable OPENAI_API_KEY")
    add.set_defaults(run=_check_server)
    return parser


def _add_coverage(parser: argparse.ArgumentParser, strict: str) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--strict", action="store_true", help=f"{strict}: status {USAGE}")
    group.add_argument(
        "--accept-uncovered",
        action="store_true",
        help=f"status 0, not {UNCOVERED}, where not everything was covered; it is listed all the same",
    )


def _positive(kind: type[int] | type[float], *, zero: bool = False, most: float = math.inf) -> type[int] | type[float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 <= value <= most or value == math.inf or (value == 0 and not zero):
            limit = "" if most == math.inf else f", {most} at most"
            raise argparse.ArgumentTypeError(
                f"expected a number {'of at least' if zero else 'above'} 0{limit}, got {text}"
            )
        return value

    parse.__name__ = kind.__name__  # argparse names the type in its message
    return parse  # type: ignore[return-value]


class _Uncovered:
    """What a command did not cover: listed as it is found, and what it means for the exit status."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._strict, self._accepted = options.strict, options.accept_uncovered
        self.count = 0

    def __call__(self, why: str) -> None:
        """One thing, and why; raises with `--strict`."""
        if self._strict:
            raise ProdError(why)
        self.count += 1
        note(f"not covered: {why}")

    def add_ineffective(self, blocklist: Blocklist) -> None:
        """The entries that prohibit nothing, which `info --json` lists too."""
        too_short = set(blocklist.report.too_short)
        names = blocklist.ineffective()
        for name in names[:10]:
            self(f"{name!r}: {'shorter than max_quote' if name in too_short else 'free code all over'}")
        if len(names) > 10:
            self.count += len(names) - 10
            note(f"not covered: {len(names) - 10} more like these; `prod-decode info --json` lists them all")

    @property
    def status(self) -> int:
        """The exit status, if nothing else is the matter."""
        return UNCOVERED if self.count and not self._accepted else 0


def _compile(options: argparse.Namespace) -> int:
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.blocklist.sources import read_entries, read_texts
    from prod_decode.storage.artifact import require_output

    require_output(options.output, [*options.sources, *options.allow])
    uncovered = _Uncovered(options)
    entries = read_entries(
        options.sources,
        max_quote=options.max_quote,
        boundary=options.boundary,
        skipped=uncovered,
        leave_out=[options.output, *_kept_parts(options.parts, [*options.sources, *options.allow])],
    )
    unfolded: list[str] = []
    blocklist = Blocklist.compile(
        _progress(_watch_case(entries, unfolded) if options.ignore_case else entries, "entries"),
        normalize=options.normalize,
        ignore_case=options.ignore_case,
        allow=(text for _, text in read_texts(options.allow, skipped=lambda why: uncovered(f"--allow: {why}"))),
        allow_short=options.allow_short,
        jobs=options.jobs,
        costs=None if options.model is None else _costs_of(options.model),
        parts=options.parts,
        skipped=uncovered,
    )
    uncovered.add_ineffective(blocklist)
    _tell_documents(options.sources)
    _save(blocklist, options.output)
    if unfolded:
        more = f" and {len(unfolded) - 1} more" if len(unfolded) > 1 else ""
        note(f"--ignore-case folds ASCII letters only: other letters in {unfolded[0]}{more} are compared as they are")
    _print_waived(blocklist)
    return uncovered.status


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


def _tell_documents(sources: Sequence[str]) -> None:
    """Which of the files that were named are documents: one that was meant as a list guards something else."""
    from prod_decode.blocklist.sources import JSON_LISTS, PHRASE_LISTS

    named = [name for name in sources if Path(name).suffix.lower() not in JSON_LISTS + PHRASE_LISTS]
    documents = [name for name in named if not Path(name).is_dir()]
    if documents:
        more = f" and {len(documents) - 3} more" if len(documents) > 3 else ""
        note(f"read as a document each: {', '.join(documents[:3])}{more} (lists are .txt, .jsonl and .ndjson files)")


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
    line = (
        f"{path}: {report.phrases:,} phrases, {report.documents:,} documents, "
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
    merged = Blocklist.merge([_load(file) for file in options.files])
    uncovered = _Uncovered(options)
    uncovered.add_ineffective(merged)
    _save(merged, options.output)
    return uncovered.status


def _load(file: str) -> Blocklist:
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.storage.files import require_file

    require_file(file, "a compiled blocklist")
    return Blocklist.load(file)


def _info(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    blocklist = _load(options.file)
    automaton, report = blocklist.automaton, blocklist.report
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
    for info in blocklist.entries() if options.entries else ():
        detail = f"max_quote {info.max_quote}" if info.policy == "quote" else f"boundary {info.boundary}"
        print(one_line(f"  {info.id}  {info.policy}, {detail}, from {info.source or 'unknown'}"))
    return 0


def _scan(options: argparse.Namespace) -> int:
    from prod_decode.command.audit import Auditor

    blocklist = _load(options.file)
    auditor = Auditor(blocklist) if options.verify else None
    uncovered = _Uncovered(options)
    total = files = 0
    for path, text in _inputs(options.paths, uncovered, options.file):
        files += 1
        unescape = Path(path).suffix.lower() in _JSON if options.escapes is None else options.escapes
        matches = list(blocklist.scan(text, unescape=True) if unescape else blocklist.scan(text))
        total += len(matches)
        ends = [found.start() for found in re.finditer("\n", text)] if matches else []
        for match in matches:
            _print_match(path, text, ends, match, as_json=options.json)
        for audited, found in _to_verify(blocklist, text, matches, unescape=unescape) if auditor else ():
            if auditor and (difference := auditor.compare(audited, (match.entry_id for match in found))):
                raise ProdError(f"{path}: {difference}; please report this as a bug")
        if getattr(sys.stdout, "is_gone", False):
            return FOUND  # nothing is printed but what was found
    verified = " (pyahocorasick agrees)" if auditor else ""
    left = f", not covered: {uncovered.count}" if uncovered.count else ""
    note(f"prohibited places: {total}, files: {files}{left}{verified}")
    return FOUND if total else uncovered.status


def _to_verify(
    blocklist: Blocklist, text: str, matches: list[Match], *, unescape: bool
) -> list[tuple[str, list[Match]]]:
    """Texts and their matches: where escapes are decoded, the text as it is and decoded, each scanned alone."""
    from prod_decode.text.escapes import decode_text

    return [(one, list(blocklist.scan(one))) for one in (text, decode_text(text))] if unescape else [(text, matches)]


def _inputs(paths: Sequence[str], uncovered: _Uncovered, blocklist: str) -> Iterator[tuple[str, str]]:
    from prod_decode.blocklist.sources import decode_loosely, read_texts

    for path in paths:
        if path == "-":
            name = "the standard input"
            yield "-", decode_loosely(read_stdin(), name, uncovered, binary=True)
            continue
        try:
            # The blocklist has its own phrases in it.
            for file, text in read_texts([path], skipped=uncovered, binary=True, leave_out=[blocklist]):
                yield str(file), text
        except ProdError as error:
            uncovered(str(error))


def _print_match(path: str, text: str, ends: Sequence[int], match: Match, *, as_json: bool) -> None:
    """`ends`: of the lines of `text`."""
    before = bisect_left(ends, match.start)
    line = before + 1
    column = match.start - (ends[before - 1] if before else -1)
    found = text[match.start : match.end]
    if as_json:
        record = {
            "path": path,
            "line": line,
            "column": column,
            "start": match.start,
            "end": match.end,
            "entry": match.entry_id,
            "text": found,
        }
        print(to_json(record))
    else:
        shown = " ".join(found.split())
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        print(one_line(f"{path}:{line}:{column}: {match.entry_id}: {shown}"))


def _generate(options: argparse.Namespace) -> int:
    from prod_decode.blocklist.sources import decode_text, read_text

    if options.top_p < 1 and not options.temperature:
        raise ProdError("--top-p is for sampling: expected --temperature above 0 beside it, got 0; drop one")
    blocklist = _load(options.blocklist)
    prompt = options.prompt
    if prompt == "-":
        prompt = decode_text(read_stdin(), "the standard input")
    elif prompt.startswith("@"):
        prompt = read_text(prompt[1:])
    if not prompt:
        raise ProdError("expected a prompt of at least one token, got an empty one")
    if not prompt.isascii() and any("\ud800" <= c <= "\udfff" for c in prompt):
        raise ProdError("--prompt is not UTF-8 text: convert it first, or set a UTF-8 locale")

    from prod_decode.command.generation import generate
    from prod_decode.command.render import mark_bans, to_terminal
    from prod_decode.storage.models import load_model

    model, tokenizer = load_model(options.model)
    matcher = blocklist.bind(tokenizer)
    runs: dict[str, Generation] = {}
    for name, guard in (("unprotected", None), ("protected", matcher)):
        if guard is not None or options.compare:
            runs[name] = generate(
                model,
                tokenizer,
                prompt,
                guard,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                seed=options.seed,
                mode=options.mode,
            )
    if options.json:
        print(to_json({name: _record(run, blocklist) for name, run in runs.items()}))
        return 0
    for name, run in runs.items():
        if options.compare:
            print(f"--- {name}")
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(printable(run.prompt) + to_terminal(mark_bans(run), color=color))
    for entry_id, count in runs["protected"].fired.most_common():
        note(f"{entry_id}: stepped in {count} time{'s' if count > 1 else ''}")
    note(f"{runs['protected'].tokens_per_second:.1f} tokens a second")
    return 0


def _check_server(options: argparse.Namespace) -> int:
    from prod_decode.serving.check_server import check_server

    key = options.api_key or os.environ.get("OPENAI_API_KEY")
    found = check_server(options.url, model=options.model, names=options.list, api_key=key)
    about = ""
    if found.report:
        lists = ", ".join(found.report["enforced"]) or "none"
        about = f" (prod-decode {found.report['version']}, vLLM {found.report['vllm']}; lists: {lists})"
    print(f"{options.url}: {'enforced' if found.enforced else f'NOT ENFORCED: {found.reason}'}{about}")
    return 0 if found.enforced else FOUND


def _record(run: Generation, blocklist: Blocklist) -> dict[str, object]:
    return {
        "prompt": run.prompt,
        "output": run.output,
        "bans": [
            {"at": at, "refused": refused[0], "entries": list(refused[1])}
            for at, refused in enumerate(run.refused)
            if refused is not None
        ],
        "fired": dict(run.fired),
        # A match that ends in the prompt is the user's own.
        "matches": [match._asdict() for match in blocklist.scan(run.text) if match.end > len(run.prompt)],
        "tokens": len(run.pieces),
        "seconds": run.seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
