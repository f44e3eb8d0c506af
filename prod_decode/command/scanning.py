"""`scan`: prohibited code in files."""

from __future__ import annotations

import argparse
import re
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prod_decode.command.options import FOUND, READ, Uncovered, add_coverage, load
from prod_decode.command.terminal import note, read_stdin, to_json
from prod_decode.errors import ProdError, one_line

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist, Match
    from prod_decode.command.options import Commands


# Files in which code is escaped.
JSON = (".json", ".jsonl", ".ndjson", ".ipynb")


def add_to(commands: Commands) -> None:
    """Add the sub-commands of this module."""
    add = commands.add_parser("scan", help="find prohibited code in files; exit status 1 if there is any")
    add.add_argument("file", metavar="FILE", help="a compiled blocklist")
    add.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help=f"files or directories; `-` is standard input. {READ}; what is none of it is looked "
        "through byte by byte, and listed as not covered, as a path is that does not exist",
    )
    add.add_argument("--json", action="store_true", help="one JSON object a match")
    add.add_argument(
        "--escapes",
        action=argparse.BooleanOptionalAction,
        help="also match with JSON's escapes decoded, as code stands in strings of JSON (default: in files named "
        f"{', '.join(JSON)})",
    )
    add.add_argument("--verify", action="store_true", help="count again with pyahocorasick and compare")
    add_coverage(add, "stop at the first file that cannot be read as text")
    add.set_defaults(run=_scan)


def _scan(options: argparse.Namespace) -> int:
    from prod_decode.command.audit import Auditor

    blocklist = load(options.file)
    auditor = Auditor(blocklist) if options.verify else None
    uncovered = Uncovered(options)
    total = files = 0
    for path, text in _inputs(options.paths, uncovered, options.file):
        files += 1
        unescape = Path(path).suffix.lower() in JSON if options.escapes is None else options.escapes
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


def _inputs(paths: Sequence[str], uncovered: Uncovered, blocklist: str) -> Iterator[tuple[str, str]]:
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
