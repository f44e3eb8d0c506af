"""What a blocklist did to a text, shown to a person: in a terminal, side by side, or as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

from prod_decode.command.page import Html, element, join
from prod_decode.errors import printable

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Match
    from prod_decode.command.generation import Generation

Style = Literal["plain", "prohibited", "refused", "instead"]
Span = tuple[str, Style]

_ANSI: dict[Style, str] = {"plain": "", "prohibited": "\x1b[41;97m", "refused": "\x1b[9;31m", "instead": "\x1b[32m"}
_PLAIN: dict[Style, tuple[str, str]] = {
    "plain": ("", ""),
    "prohibited": (">>", "<<"),
    "refused": ("[-", "-]"),
    "instead": ("{+", "+}"),
}
_TAGS: dict[Style, str] = {"prohibited": "mark", "refused": "del", "instead": "ins"}


def mark_prohibited(text: str, matches: Iterable[Match]) -> list[Span]:
    """`text` cut at the edges of the matches: what lies in any of them is `prohibited`."""
    spans: list[Span] = []
    at = 0
    for start, end in _merged((max(0, match.start), min(len(text), match.end)) for match in matches):
        spans += [(text[at:start], "plain"), (text[start:end], "prohibited")]
        at = end
    return [span for span in [*spans, (text[at:], "plain")] if span[0]]


def mark_bans(run: Generation) -> list[Span]:
    """The output of a run: each token that was `refused` stands before the one that came `instead`."""
    spans: list[Span] = []
    for piece, replaced in zip(run.pieces, run.refused, strict=True):
        if replaced is not None:
            spans.append((replaced[0].replace("\n", "\\n"), "refused"))
        spans.append((piece, "plain" if replaced is None else "instead"))
    return [span for span in spans if span[0]]


def to_terminal(spans: Iterable[Span], *, color: bool) -> str:
    """The spans as one printable string, with ANSI colours or, without them, with brackets around what is marked."""
    return "".join(_paint(printable(text), style, color) for text, style in spans)


def to_html(spans: Iterable[Span]) -> Html:
    """The spans as HTML: `mark.prohibited`, `del.refused`, `ins.instead`."""
    return join(*(text if style == "plain" else element(_TAGS[style], text, class_=style) for text, style in spans))


def side_by_side(texts: Sequence[Sequence[Span]], *, width: int, color: bool) -> str:
    """Texts in columns, wrapped to a total of `width` characters, but each to 20 at least."""
    column = max(20, (width - 3 * (len(texts) - 1)) // len(texts))
    columns = [list(_wrap(spans, column, color)) for spans in texts]
    lines = []
    for row in zip_longest(*columns, fillvalue=[]):
        shown = [
            to_terminal(spans, color=color) + " " * (column - sum(len(text) for text, _ in spans)) for spans in row
        ]
        lines.append(" | ".join(shown).rstrip())
    return "\n".join(lines)


def _paint(text: str, style: Style, color: bool) -> str:
    if style == "plain" or not text:
        return text
    if color:
        return f"{_ANSI[style]}{text}\x1b[0m"
    opening, closing = _PLAIN[style]
    return f"{opening}{text}{closing}"


def _wrap(spans: Iterable[Span], width: int, color: bool) -> Iterator[list[Span]]:
    line: list[Span] = []
    used = 0
    if not color:
        spans = [(_paint(text, style, color=False), "plain") for text, style in spans]
    for text, style in spans:
        for number, part in enumerate(text.expandtabs(4).split("\n")):
            if number:
                yield line
                line, used = [], 0
            rest = part
            while len(rest) > width - used:
                line.append((rest[: width - used], style))
                rest = rest[width - used :]
                yield line
                line, used = [], 0
            if rest:
                line.append((rest, style))
                used += len(rest)
    if line:
        yield line


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif start < end:
            merged.append((start, end))
    return merged
