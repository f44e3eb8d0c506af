"""`scan`: prohibited code in files."""

from __future__ import annotations

import argparse
import re
import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from prod_decode.command.options import FOUND, READ, Uncovered, add_coverage, load_source
from prod_decode.command.page import Html, beginning, element, join, page, table, warning, write_page
from prod_decode.command.render import Span, mark_prohibited, to_html
from prod_decode.command.terminal import note, read_stdin, to_json
from prod_decode.errors import ProdError, brief, one_line

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist, Match, Quoted
    from prod_decode.blocklist.entries import EntryInfo
    from prod_decode.blocklist.selection import Selection
    from prod_decode.command.options import Commands
    from prod_decode.corpus.index import CorpusIndex


# Files in which code is escaped.
JSON = (".json", ".jsonl", ".ndjson", ".ipynb")

COMMAND = "prod-decode scan"
# A page is for people: of more, it says how much more there is. Places, rows of a table, places in a caption.
MOST_PLACES, MOST_ROWS, MOST_NAMED = 1000, 200, 100
# Lines before and behind what was found; lines of one excerpt; characters of a line, and of a part of a longer one.
AROUND, MOST_LINES, WIDEST, PART = 2, 400, 400, 120

# What is looked at between two matches, in characters of the text: layout, and at most two others.
LONGEST_GAP = 1000


def add_to(commands: Commands) -> None:
    """Add the sub-commands of this module."""
    add = commands.add_parser("scan", help="find prohibited code in files; exit status 1 if there is any")
    add.add_argument("file", metavar="FILE", help="a compiled blocklist, a corpus index, or `list:NAME`")
    add.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help=f"files or directories; `-` is standard input. {READ}; what is none of it is looked "
        "through byte by byte, and listed as not covered, as a path is that does not exist",
    )
    add.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a place; `start` and `end` count characters of what was looked through, from 0: "
        "of a file with a NUL its bytes; of UTF-16 and UTF-32 the text, a NUL between two line ends, and then "
        "the bytes",
    )
    add.add_argument(
        "--html",
        metavar="OUT",
        help="also write a page of what was found, file by file; OUT itself is not looked through below a directory, "
        "and no other file than such a page is written over",
    )
    add.add_argument(
        "--escapes",
        action=argparse.BooleanOptionalAction,
        help="also match with JSON's escapes decoded, as code stands in strings of JSON (default: in files named "
        f"{', '.join(JSON)})",
    )
    add.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files and directories, and count them. A pattern without a slash is compared with every name, "
        "as `*.lock` and `vendor` are; one with a slash with the path below PATH and with the path as it is printed, "
        "as `docs/*.md` is. `*` stands for slashes too. Give it again for another pattern",
    )
    add.add_argument(
        "--quoted",
        action="store_true",
        help="also show how much of each document with a budget (`compile --budget`), or of an index, stands in a "
        "file; exit status 1 also if that is more than its budget",
    )
    add.add_argument("--verify", action="store_true", help="count again with pyahocorasick and compare")
    add_coverage(add, "stop at the first file that cannot be read as text")
    add.set_defaults(run=_scan)


def _scan(options: argparse.Namespace) -> int:
    from prod_decode.blocklist.selection import Selection
    from prod_decode.command.audit import Auditor
    from prod_decode.corpus.index import CorpusIndex
    from prod_decode.storage.artifact import require_output

    if options.html is not None:
        paths = [path for path in options.paths if path != "-"]
        require_output(options.html, [options.file, *paths], replaces=(beginning(COMMAND), "page of a scan"))
    looked_for = load_source(options.file)
    blocklist = None if isinstance(looked_for, CorpusIndex) else looked_for
    if options.verify and blocklist is None:
        raise ProdError(
            f"--verify: expected a blocklist, got the index {options.file}, which has no text to count with"
        )
    if options.quoted and blocklist and not blocklist.pieces:
        raise ProdError(
            f"--quoted: expected a blocklist with budgets, got {options.file}, which has none: compile it with --budget"
        )
    budgets: dict[str, int] = {}
    if options.quoted and blocklist:
        budgets = {found.entry.id: found.characters for found in blocklist.budgets()}
    places_of = Places(blocklist).of if blocklist else None
    auditor = Auditor(blocklist) if options.verify and blocklist else None
    uncovered = Uncovered(options)
    findings = None if options.html is None else Findings()
    selection = Selection(options.exclude)
    total = files = over = 0
    for path, text in _inputs(options.paths, uncovered, [options.file, *filter(None, [options.html])], selection):
        files += 1
        unescape = Path(path).suffix.lower() in JSON if options.escapes is None else options.escapes
        matches = list(looked_for.scan(text, unescape=True) if unescape else looked_for.scan(text))
        places = places_of(text, matches, unescape=unescape) if places_of else matches
        total += len(places)
        quoted = looked_for.quoted(text, unescape=unescape) if options.quoted else []
        ends = [found.start() for found in re.finditer("\n", text)] if places or quoted else []
        for place in places:
            _print_place(path, text, ends, place, as_json=options.json)
        for one in quoted:
            budget = budgets.get(one.entry.id)
            _print_quoted(path, ends, one, budget, as_json=options.json)
            over += budget is not None and one.characters > budget
        for audited, found in _to_verify(looked_for, text, matches, unescape=unescape) if auditor else ():
            if auditor and (difference := auditor.compare(audited, (match.entry_id for match in found))):
                raise ProdError(f"{path}: {difference}; please report this as a bug")
        if findings is not None:
            findings.add(path, text, ends, places)
            findings.add_quoted(path, text, ends, quoted, budgets)
        elif getattr(sys.stdout, "is_gone", False):
            return FOUND  # nothing is printed but what was found
    verified = " (pyahocorasick agrees)" if auditor else ""
    left = f", not covered: {uncovered.count}" if uncovered.count else ""
    excluded = _excluded(selection)
    beyond = f", documents quoted beyond their budget: {over}" if options.quoted and blocklist else ""
    note(f"prohibited places: {total}, files read: {files}{beyond}{left}{excluded}{verified}")
    for pattern in selection.unused():
        note(f"no effect: --exclude {pattern}: nothing was excluded by it")
    if findings is not None:
        write_page(options.html, findings.page(looked_for, options.file, files, uncovered, f"{verified}{excluded}"))
        note(f"the page: {options.html}")
    return FOUND if total or over else uncovered.status


def _to_verify(
    blocklist: Blocklist | CorpusIndex, text: str, matches: list[Match], *, unescape: bool
) -> list[tuple[str, list[Match]]]:
    """Texts and their matches: where escapes are decoded, the text as it is and decoded, each scanned alone."""
    from prod_decode.text.escapes import decode_text

    return [(one, list(blocklist.scan(one))) for one in (text, decode_text(text))] if unescape else [(text, matches)]


def _excluded(selection: Selection) -> str:
    counts = {"file": selection.files, "folder": selection.folders}
    told = " and ".join(_count(number, what) for what, number in counts.items() if number)
    return f", excluded: {told}" if told else ""


def _inputs(
    paths: Sequence[str], uncovered: Uncovered, leave_out: Sequence[str], selection: Selection
) -> Iterator[tuple[str, str]]:
    from prod_decode.blocklist.sources import decode_loosely, read_texts

    for path in dict.fromkeys(paths):
        if path == "-":
            name = "the standard input"
            yield "-", decode_loosely(read_stdin(), name, uncovered, binary=True)
            continue
        try:
            # The blocklist has its own phrases in it, and an earlier page what was found then.
            for file, text in read_texts(
                [path], skipped=uncovered, binary=True, leave_out=leave_out, selection=selection
            ):
                yield str(file), text
        except ProdError as error:
            uncovered.missing(str(error))


class Places:
    """Matches of a blocklist as places.

    Every window of K characters of a document has an anchor of at least `default_width(K)` characters in it. So two
    neighbouring anchors of one copied run have at most K + 1 - 2 * default_width(K) characters between them: one if K
    is even, two if it is odd. What stands nearer than that is one place. A phrase is a place each time.
    """

    def __init__(self, blocklist: Blocklist) -> None:
        self._blocklist = blocklist

    def of(self, text: str, matches: Iterable[Match], *, unescape: bool) -> list[Match]:
        """The places of `text`, by where they begin; each from the first to the last character of its matches.

        Args:
            text: what was scanned.
            matches: all that `Blocklist.scan` found in it.
            unescape: whether JSON's escapes were decoded.
        """
        found: list[Match] = []
        latest: dict[str, int] = {}  # of a document, the number of its last place
        for match in sorted(matches):
            most = self._gaps.get(match.entry_id)
            if most is not None:
                at = latest.get(match.entry_id)
                if at is not None and self._touch(text, found[at].end, match.start, most, unescape):
                    found[at] = found[at]._replace(end=max(found[at].end, match.end))
                    continue
                latest[match.entry_id] = len(found)
            found.append(match)
        return found

    @cached_property
    def _gaps(self) -> dict[str, int]:
        """By the id of every document, how many characters may be between two anchors of one run."""
        if not self._blocklist.report.documents:
            return {}
        from prod_decode.blocklist.anchors import default_width

        limits = ((info.id, info.max_quote) for info in self._blocklist.entries())
        return {name: limit + 1 - 2 * default_width(limit) for name, limit in limits if limit is not None}

    def _touch(self, text: str, end: int, start: int, most: int, unescape: bool) -> bool:
        if start - end > LONGEST_GAP:
            return False
        import numpy as np

        from prod_decode.text.escapes import decode_text

        between = decode_text(text[end:start]) if unescape else text[end:start]
        codes = np.frombuffer(between.encode("utf-8", "surrogatepass"), np.uint8)
        symbols, _ = self._blocklist.normalization.fold(codes)
        return int(((symbols & 0xC0) != 0x80).sum()) <= most  # bytes that begin a character


def _filled(names: Sequence[str], rows: Sequence[tuple[Html | str, ...]], *, heads: int) -> Html:
    """A table without columns in which nothing stands."""
    kept = [column for column in range(len(names)) if any(row[column] for row in rows)]
    return table([names[i] for i in kept], [tuple(row[i] for i in kept) for row in rows], heads=heads)


def _position(ends: Sequence[int], at: int) -> tuple[int, int]:
    """The line and column, from 1, of the character at `at`; `ends`: of the lines."""
    before = bisect_left(ends, at)
    return before + 1, at - (ends[before - 1] if before else -1)


def _last_line(ends: Sequence[int], place: Match) -> int:
    """The line of its last character, from 1."""
    return _position(ends, max(place.start, place.end - 1))[0]


def _print_place(path: str, text: str, ends: Sequence[int], place: Match, *, as_json: bool) -> None:
    line, column = _position(ends, place.start)
    last = _last_line(ends, place)
    found = text[place.start : place.end]
    if as_json:
        record = {
            "path": path,
            "line": line,
            "column": column,
            "end_line": last,
            "start": place.start,
            "end": place.end,
            "entry": place.entry_id,
            "text": found,
        }
        print(to_json(record))
    else:
        shown = " ".join(found.split())
        shown = shown if len(shown) <= 72 else f"{shown[:69]}..."
        lines = f", lines {line}-{last}" if last > line else ""
        print(one_line(f"{path}:{line}:{column}: {place.entry_id}{lines}: {shown}"))


def _print_quoted(path: str, ends: Sequence[int], quoted: Quoted, budget: int | None, *, as_json: bool) -> None:
    entry = quoted.entry
    lines = [(_position(ends, start)[0], _position(ends, max(start, end - 1))[0]) for start, end in quoted.spans]
    if as_json:
        record = {
            "path": path,
            "quoted": entry.id,
            "characters": quoted.characters,
            "length": quoted.length,
            "share": round(quoted.share, 4),
            "longest": quoted.longest,
            "budget": budget,
            "source": entry.source,
            "license": entry.license,
            "runs": [
                {"start": start, "end": end, "line": line, "end_line": last}
                for (start, end), (line, last) in zip(quoted.spans, lines, strict=True)
            ],
        }
        print(to_json(record))
        return
    shown = [f"{line}-{last}" if last > line else str(line) for line, last in lines]
    print(
        one_line(
            f"{path}: quotes {quoted.characters:,} of {quoted.length:,} characters ({quoted.share:.1%}"
            f"{'' if budget is None else f', budget {budget:,}'}) of {entry.id}{_origin(entry)}; "
            f"longest run {quoted.longest:,}; lines {_named(shown)}"
        )
    )


def _origin(entry: EntryInfo) -> str:
    """The licence and the source of an entry, where it has them."""
    known = [entry.license, entry.source if entry.source != entry.id else None]
    return f" ({', '.join(filter(None, known))})" if any(known) else ""


@dataclass
class Excerpt:
    """Lines `first` to `last` of a text, from 0, and the places that begin in them."""

    first: int
    last: int
    matches: list[Match]


class Findings:
    """What a scan found, kept for a page: file by file, each place with the lines around it."""

    def __init__(self) -> None:
        self._by_entry: Counter[str] = Counter()
        self._by_file: dict[str, int] = {}
        self._sections: list[Html] = []
        self._quoted: list[tuple[str, Quoted, int | None]] = []
        self._room = MOST_PLACES

    def add(self, path: str, text: str, ends: Sequence[int], matches: Sequence[Match]) -> None:
        """One file; `ends`: of its lines."""
        if not matches:
            return
        self._by_entry.update(match.entry_id for match in matches)
        self._by_file[path] = len(matches)
        shown = sorted(matches)[: self._room]
        self._room -= len(shown)
        if shown:
            figures = [_figure(text, ends, excerpt) for excerpt in excerpts(text, ends, shown)]
            heading = element("h2", element("code", path))
            self._sections.append(element("section", heading, *figures, id=f"file-{len(self._sections) + 1}"))

    def add_quoted(
        self, path: str, text: str, ends: Sequence[int], quoted: Sequence[Quoted], budgets: Mapping[str, int]
    ) -> None:
        """What a file has of documents with a budget; `budgets`: in characters, by the id of an entry."""
        from prod_decode.blocklist.blocklist import Match

        self._quoted += [(path, one, budgets.get(one.entry.id)) for one in quoted]
        shown = [Match(start, end, one.entry.id) for one in quoted for start, end in one.spans][: self._room]
        self._room -= len(shown)
        if shown:
            figures = [_figure(text, ends, excerpt) for excerpt in excerpts(text, ends, shown)]
            self._sections.append(element("section", element("h2", "Quoted in ", element("code", path)), *figures))

    def page(
        self, looked_for: Blocklist | CorpusIndex, name: str, files: int, uncovered: Uncovered, verified: str
    ) -> str:
        """All of it as HTML.

        Args:
            looked_for: blocklist or index.
            name: of its file.
            files: how many were looked through.
            uncovered: what was not covered.
            verified: what to say besides, if anything.
        """
        total = sum(self._by_entry.values())
        title = f"{_count(total, 'prohibited place')} in {len(self._by_file)} of {_count(files, 'file')}"
        if not total:
            title = f"Nothing prohibited in {_count(files, 'file')}"
        if over := sum(budget is not None and one.characters > budget for _, one, budget in self._quoted):
            beyond = f"{_count(over, 'document')} quoted beyond {'its' if over == 1 else 'their'} budget"
            title = f"{title}, {beyond}" if total else f"{beyond}, in {_count(files, 'file')}"
        lead = join("Looked for what ", element("code", name), f" prohibits{verified}.")
        parts = []
        if uncovered.count:
            listed = element("ul", *(element("li", why) for why in uncovered.reasons[:MOST_ROWS]))
            parts += [warning(element("strong", f"Not covered: {uncovered.count:,}")), listed]
        if total:
            parts += [self._entries(looked_for), *self._files()]
        if self._quoted:
            parts.append(self._quotations())
        parts += self._sections
        if total > MOST_PLACES:
            parts.append(warning(f"{total - MOST_PLACES:,} more places are not shown here: --json lists them all."))
        return page(COMMAND, title, lead, *parts)

    def _entries(self, looked_for: Blocklist | CorpusIndex) -> Html:
        sources = {info.id: info.source for info in looked_for.entries() if info.id in self._by_entry}
        rows = [
            (element("code", brief(name)), f"{count:,}", sources.get(name) or "")
            for name, count in self._by_entry.most_common(MOST_ROWS)
        ]
        return join(_filled(["entry", "places", "source"], rows, heads=1), *_more(len(self._by_entry), "entries"))

    def _quotations(self) -> Html:
        heads = ["file", "quotes", "characters", "budget", "share", "longest run", "licence", "source"]
        rows = [
            (
                path,
                element("code", brief(one.entry.id)),
                f"{one.characters:,} of {one.length:,}",
                "" if budget is None else f"{budget:,}{', exceeded' if one.characters > budget else ''}",
                f"{one.share:.1%}",
                f"{one.longest:,}",
                one.entry.license or "",
                one.entry.source or "",
            )
            for path, one, budget in sorted(self._quoted, key=lambda item: -item[1].characters)[:MOST_ROWS]
        ]
        return join(_filled(heads, rows, heads=2), *_more(len(self._quoted), "documents"))

    def _files(self) -> Iterator[Html]:
        if len(self._by_file) > 1:
            rows = [
                (element("a", path, href=f"#file-{number}") if number <= len(self._sections) else path, f"{count:,}")
                for number, (path, count) in enumerate([*self._by_file.items()][:MOST_ROWS], 1)
            ]
            yield table(["file", "places"], rows, heads=1)
            yield from _more(len(self._by_file), "files")


def _more(count: int, what: str) -> list[Html]:
    return [element("p", f"and {count - MOST_ROWS:,} more {what}")] if count > MOST_ROWS else []


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def excerpts(text: str, ends: Sequence[int], matches: Iterable[Match]) -> list[Excerpt]:
    """The lines to show: those of each match and `AROUND` more on either side; what touches is one excerpt."""
    final = len(ends) - text.endswith("\n")  # behind the last line end there is no line
    found: list[Excerpt] = []
    for match in sorted(matches):
        first = max(0, _position(ends, match.start)[0] - 1 - AROUND)
        last = min(final, _last_line(ends, match) - 1 + AROUND)
        if found and first <= found[-1].last + 1:
            found[-1].last = max(last, found[-1].last)
            found[-1].matches.append(match)
        else:
            found.append(Excerpt(first, last, [match]))
    return found


def _figure(text: str, ends: Sequence[int], excerpt: Excerpt) -> Html:
    """An excerpt, its lines numbered and what is prohibited marked, under the entries and places."""
    begin = ends[excerpt.first - 1] + 1 if excerpt.first else 0
    shown_text = text[begin : ends[excerpt.last] if excerpt.last < len(ends) else len(text)].removesuffix("\r")
    shifted = (match._replace(start=match.start - begin, end=match.end - begin) for match in excerpt.matches)
    lines = _lines(mark_prohibited(shown_text, shifted))
    shown = [
        element("span", to_html(_narrowed(line)), "\n", data_n=str(number))
        for number, line in enumerate(lines, excerpt.first + 1)
    ]
    if len(shown) > MOST_LINES:
        half = MOST_LINES // 2
        more = f"... {len(shown) - 2 * half:,} lines: `prod-decode scan --json` has every place ...\n"
        shown[half:-half] = [element("span", more, data_n="")]
    places: dict[str, list[str]] = defaultdict(list)
    for match in excerpt.matches:
        line, column = _position(ends, match.start)
        last = _last_line(ends, match)
        places[match.entry_id].append(f"lines {line}-{last}" if last > line else f"{line}:{column}")
    named = (element("li", _named(at), " ", element("code", brief(entry))) for entry, at in places.items())
    return element(
        "figure",
        element("figcaption", element("ul", *named)),
        element("pre", *shown, class_="lines", style=f"--digits: {len(str(excerpt.last + 1))}"),
    )


def _named(places: Sequence[str]) -> str:
    more = f" and {len(places) - MOST_NAMED} more" if len(places) > MOST_NAMED else ""
    return f"{', '.join(places[:MOST_NAMED])}{more}"


def _lines(spans: Iterable[Span]) -> list[list[Span]]:
    """The spans cut at line ends, which are left out."""
    lines: list[list[Span]] = [[]]
    for text, style in spans:
        first, *rest = text.split("\n")
        lines[-1].append((first, style))
        lines += [[(part, style)] for part in rest]
    for line in lines[:-1]:
        part, style = line[-1]
        line[-1] = (part.removesuffix("\r"), style)
    return [[span for span in line if span[0]] for line in lines]


def _narrowed(line: Sequence[Span]) -> list[Span]:
    """A line of at most `WIDEST` characters as it is; of a longer one, `PART` characters of each part."""
    if sum(len(text) for text, _ in line) <= WIDEST:
        return list(line)
    (text, style), *rest = line
    if rest and style == "plain" and len(text) > PART:
        return [(f"...{text[3 - PART :]}", style), *((brief(text, PART), style) for text, style in rest)]
    return [(brief(text, PART), style) for text, style in line]
