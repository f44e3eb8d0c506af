"""One prompt, what a model wrote alone, and what it wrote with blocklists: a picture for a page.

A page shows it in an `img`. So it needs nothing from outside, and has colours of its own for dark pages. The parts
stand one above the other: side by side, letters were 7 pixels high on a phone, since a drawing cannot change its shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from prod_decode.command.page import Html, element, join
from prod_decode.command.render import mark_bans, mark_prohibited
from prod_decode.errors import printable

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Match
    from prod_decode.command.generation import Generation

# At a width of 380 pixels, letters of 18 units are 13 pixels high. Any font is fitted to `ADVANCE` units a letter.
WIDTH, LETTER, ADVANCE, LEADING, MARGIN, HEADER = 520, 18, 10.8, 25, 16, 38
COLUMNS = int((WIDTH - 2 * MARGIN) / ADVANCE)


class BeforeAfter(TypedDict):
    """What is drawn: spans of a text and a style, of which the styles are those of `render` and `prompt`.

    Attributes:
        about: what it shows, in a sentence.
        without: prompt and output of the model alone.
        guarded: the same with the blocklist.
        replaced: the same with a blocklist that also says what is to be written instead.
        rows: so many at most; a text that is longer ends in dots.
    """

    about: str
    without: list[list[str]]
    guarded: list[list[str]]
    replaced: list[list[str]]
    rows: int


def before_after(
    about: str, free: Generation, guarded: Generation, replaced: Generation, matches: Iterable[Match], rows: int
) -> BeforeAfter:
    """What `draw` draws, as JSON-able types.

    Args:
        about: what it shows, in a sentence.
        free: what the model wrote alone.
        guarded: what it wrote behind the same prompt with the blocklist.
        replaced: what it wrote there with commit points and replacements.
        matches: what `scan` finds in prompt and output of `free`.
        rows: see `BeforeAfter`.
    """
    size = len(free.prompt)
    without: list[list[str]] = []
    at = 0
    for text, style in mark_prohibited(free.text, (match for match in matches if match.end > size)):
        inside = max(0, min(len(text), size - at)) if style == "plain" else 0
        without += [[text[:inside], "prompt"], [text[inside:], style]]
        at += len(text)
    return {
        "about": about,
        "without": _joined(without),
        "guarded": _joined([[guarded.prompt, "prompt"], *map(list, mark_bans(guarded))]),
        "replaced": _joined([[replaced.prompt, "prompt"], *map(list, mark_bans(replaced))]),
        "rows": rows,
    }


def _joined(spans: Iterable[list[str]]) -> list[list[str]]:
    """The spans with neighbours of one style as one, and none empty."""
    found: list[list[str]] = []
    for text, style in spans:
        if found and found[-1][1] == style:
            found[-1][0] += text
        elif text:
            found.append([text, style])
    return found


def draw(picture: BeforeAfter) -> str:
    """The picture as SVG, which is well-formed XML."""
    parts: list[Html] = []
    y = 0
    for name, title, spans in (
        ("without", "the model alone", picture["without"]),
        ("guarded", "banned", picture["guarded"]),
        ("guarded", "banned, with a replacement", picture["replaced"]),
    ):
        rows = _cut(_rows(spans), picture["rows"])
        parts.append(_part(y, name, title, rows))
        y += _height(rows) + MARGIN // 2
    height = y - MARGIN // 2
    drawn = element(
        "svg",
        Html("\n"),
        element("title", picture["about"]),
        Html(f"\n<style>{_STYLE}</style>\n"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        width=str(WIDTH),
        height=str(height),
        role="img",
    )
    return f"{drawn}\n"


class _Piece(NamedTuple):
    column: int
    text: str
    style: str


def _rows(spans: Iterable[Sequence[str]]) -> list[list[_Piece]]:
    """The spans in lines of at most `COLUMNS` characters."""
    rows: list[list[_Piece]] = [[]]
    used = 0
    for text, style in spans:
        for number, part in enumerate(printable(text.expandtabs(4)).split("\n")):
            if number:
                rows.append([])
                used = 0
            left = part
            while left:
                if used == COLUMNS:
                    rows.append([])
                    used = 0
                piece, left = left[: COLUMNS - used], left[COLUMNS - used :]
                rows[-1].append(_Piece(used, piece, style))
                used += len(piece)
    return rows


def _cut(rows: list[list[_Piece]], most: int) -> list[list[_Piece]]:
    return rows if len(rows) <= most else [*rows[: most - 1], [_Piece(0, "...", "prompt")]]


def _height(rows: Sequence[object]) -> int:
    return HEADER + LEADING * len(rows) + MARGIN // 2


def _part(y: int, name: str, title: str, rows: Sequence[Sequence[_Piece]]) -> Html:
    frame = {"x": "1", "y": str(y + 1), "width": str(WIDTH - 2), "height": str(_height(rows) - 2), "rx": "8"}
    texts = [
        element("rect", class_="panel", **frame),
        element("circle", cx=str(MARGIN + 5), cy=str(y + 22), r="6", class_=name),
        element("text", title, x=str(MARGIN + 20), y=str(y + 28), class_="head"),
    ]
    for number, row in enumerate(rows, 1):
        for piece in row:
            texts += _drawn(piece, y + HEADER + LEADING * number - 7)
    return join(*texts, Html(""), between=Html("\n"))


def _drawn(piece: _Piece, y: int) -> Iterator[Html]:
    """A piece of a line on its base line, fitted to its columns, and what is painted behind it."""
    left, wide = f"{MARGIN + ADVANCE * piece.column:.1f}", f"{ADVANCE * len(piece.text):.1f}"
    if piece.style == "prohibited":
        yield element("rect", x=left, y=str(y - LETTER), width=wide, height=str(LEADING), rx="3", class_="marked")
    if piece.text.strip():
        fitted = {"textLength": wide, "lengthAdjust": "spacingAndGlyphs", "xml:space": "preserve"}
        yield element("text", piece.text, x=left, y=str(y), class_=piece.style, **fitted)


_STYLE = f"""
text {{ font: {LETTER}px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2328; }}
.head {{ font: 600 17px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }}
.panel {{ fill: #f6f8fa; stroke: #d1d9e0; stroke-width: 2; }}
.without, .marked {{ fill: #b3261e; }}
.guarded {{ fill: #1a7f37; }}
.prompt {{ fill: #59636e; }}
.prohibited {{ fill: #fff; }}
.refused {{ fill: #b3261e; text-decoration: line-through; }}
.instead {{ fill: #1a7f37; font-weight: 700; text-decoration: underline; }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e6edf3; }}
.panel {{ fill: #151b23; stroke: #3d444d; }}
.prompt {{ fill: #9198a1; }}
.prohibited {{ fill: #fff; }}
.refused {{ fill: #ff8a80; }}
.instead, .guarded {{ fill: #56d364; }}
}}
"""
