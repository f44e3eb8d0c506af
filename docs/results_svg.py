"""Small charts as SVG text, for the pages of results: bars, a grid of shares, lines and points.

Written by hand and not by a plotting library, so that the same data are the same bytes on every machine: no font is
measured or embedded, no version of a library has a say. Text stays text. A style sheet within the file has colours for
a light and a dark screen, and every figure has a ground of its own, so that it can be read on any page. 480 units wide:
on a telephone of 380 pixels the smallest text is 10 pixels high.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 480
_STYLE = """
text{font:15px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:#1f2328}
.small{font-size:13px}.head{font-weight:600}.dim{fill:#59636e}.end{text-anchor:end}.mid{text-anchor:middle}
.ground{fill:#fff;stroke:#d0d7de}.grid{stroke:#d8dee4}.axis{stroke:#59636e}.whisker{stroke:#1f2328;stroke-width:1.5}
.heat{fill:#cf222e}.line{fill:none;stroke-width:2}
.f0{fill:#0969da}.f1{fill:#bc4c00}.f2{fill:#1a7f37}.f3{fill:#8250df}.f4{fill:#6e7781}.f5{fill:#bf3989}
.s0{stroke:#0969da}.s1{stroke:#bc4c00}.s2{stroke:#1a7f37}.s3{stroke:#8250df}.s4{stroke:#6e7781}.s5{stroke:#bf3989}
@media(prefers-color-scheme:dark){
text{fill:#e6edf3}.dim{fill:#9da7b1}.ground{fill:#0d1117;stroke:#30363d}.grid{stroke:#30363d}.axis{stroke:#9da7b1}
.whisker{stroke:#e6edf3}.heat{fill:#f85149}
.f0{fill:#58a6ff}.f1{fill:#f0883e}.f2{fill:#3fb950}.f3{fill:#bc8cff}.f4{fill:#9da7b1}.f5{fill:#f778ba}
.s0{stroke:#58a6ff}.s1{stroke:#f0883e}.s2{stroke:#3fb950}.s3{stroke:#bc8cff}.s4{stroke:#9da7b1}.s5{stroke:#f778ba}
}
""".strip()


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        label: what it is.
        value: its length, in the unit of the axis.
        low: of the interval.
        high: likewise.
        color: number of a colour, 0 to 5.
    """

    label: str
    value: float
    low: float
    high: float
    color: int


@dataclass(frozen=True, slots=True)
class Group:
    """Bars under one heading.

    Attributes:
        title: the heading; "" for none.
        bars: from above.
    """

    title: str
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Line:
    """Points of one thing, in their order.

    Attributes:
        label: for the legend.
        points: (x, y).
        color: number of a colour, 0 to 5; it has a marker of its own as well.
        path: whether the points before the last only show where it came from; they are small.
    """

    label: str
    points: Sequence[tuple[float, float]]
    color: int
    path: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis.

    Attributes:
        title: with the unit.
        low: its beginning.
        high: its end.
        ticks: where numbers stand.
        log: whether it is logarithmic.
        text: a tick as text.
    """

    title: str
    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False
    text: Callable[[float], str] = "{:g}".format

    def place(self, value: float) -> float:
        """Where a value is, 0 at the beginning and 1 at the end."""
        if self.log:
            return math.log10(value / self.low) / math.log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(slots=True)
class Svg:
    """A drawing that grows downwards.

    Attributes:
        title: what is shown, also for those who hear it.
        y: how far down it reaches.
    """

    title: str
    y: float = 12
    _parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, style: str = "") -> None:
        """Text whose baseline begins at a point; `style`: names of classes."""
        named = f' class="{style}"' if style else ""
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{named}>{escape(text)}</text>')

    def rect(self, x: float, y: float, width: float, height: float, style: str, opacity: float | None = None) -> None:
        """A filled rectangle."""
        faint = "" if opacity is None else f' fill-opacity="{opacity:.2f}"'
        self._parts.append(
            f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2"{faint}/>'
        )

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """A line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline class="{style}" points="{path}"/>')

    def marker(self, x: float, y: float, color: int, *, scale: float = 1.0) -> None:
        """A point: each colour has a shape of its own, for those who cannot tell the colours apart."""
        shapes = (
            '<circle cx="0" cy="0" r="6"/>',
            '<rect x="-5.5" y="-5.5" width="11" height="11"/>',
            '<path d="M0-7L7 5.5H-7Z"/>',
            '<path d="M0-7.5L7.5 0L0 7.5L-7.5 0Z"/>',
            '<path d="M-2-7H2V-2H7V2H2V7H-2V2H-7V-2H-2Z"/>',
            '<path d="M0 7L7-5.5H-7Z"/>',
        )
        smaller = "" if scale == 1 else f" scale({scale:g})"
        self._parts.append(f'<g class="f{color}" transform="translate({x:.1f} {y:.1f}){smaller}">{shapes[color]}</g>')

    def heading(self) -> None:
        """The title, in lines of at most 52 characters."""
        for line in _wrapped(self.title, 52):
            self.y += 18
            self.text(16, self.y, line, "head")
        self.y += 6

    def render(self) -> str:
        """The whole file."""
        height = self.y + 14
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
            f'height="{height:.0f}" role="img">\n<title>{escape(self.title)}</title>\n<style>\n{_STYLE}\n</style>\n'
            f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8"/>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )


def bars(title: str, groups: Sequence[Group], axis: str, highest: float = 1.0) -> str:
    """Horizontal bars with their intervals, the label above each and the value behind it.

    Args:
        title: what is shown.
        groups: from above.
        axis: what the length is.
        highest: the value of a bar that takes the whole width.
    """
    svg = Svg(title)
    svg.heading()
    left, wide = 16, 370
    for group in groups:
        if group.title:
            svg.y += 24
            svg.text(left, svg.y, group.title, "head small")
        for bar in group.bars:
            svg.y += 20
            svg.text(left, svg.y, bar.label, "small")
            top = svg.y + 5
            svg.rect(left, top, wide, 13, "f4", 0.15)
            svg.rect(left, top, max(wide * bar.value / highest, 1.5), 13, f"f{bar.color}", 0.8)
            begin, end = (left + wide * at / highest for at in (bar.low, bar.high))
            svg.line([(begin, top + 6.5), (end, top + 6.5)], "whisker")
            for x in (begin, end):
                svg.line([(x, top + 2.5), (x, top + 10.5)], "whisker")
            svg.text(WIDTH - 16, top + 12, f"{bar.value:.2f}", "end")
            svg.y = top + 15
    svg.y += 20
    svg.text(left, svg.y, axis, "small dim")
    return svg.render()


def heat(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]], note: str) -> str:
    """Shares from 0 to 1 in a grid, the stronger the colour the higher.

    Args:
        title: what is shown.
        columns: their heads, of at most 9 characters.
        rows: each a label of at most 21 characters and a share for every column.
        note: below.
    """
    svg = Svg(title)
    svg.heading()
    left, first = 16, 176
    wide = (WIDTH - 12 - first) / len(columns)
    svg.y += 18
    for number, column in enumerate(columns):
        svg.text(first + wide * (number + 0.5), svg.y, column, "mid small")
    svg.y += 8
    for label, shares in rows:
        svg.text(left, svg.y + 18, label, "small")
        for number, share in enumerate(shares):
            x = first + wide * number
            svg.rect(x + 2, svg.y + 1, wide - 4, 25, "f4", 0.12)
            if share:
                svg.rect(x + 2, svg.y + 1, wide - 4, 25, "heat", 0.1 + 0.5 * share)
            svg.text(x + wide / 2, svg.y + 18, f"{share:.2f}", "mid small")
        svg.y += 28
    svg.y += 18
    svg.text(left, svg.y, note, "small dim")
    return svg.render()


def panels(title: str, drawn: Sequence[tuple[str, Axis, Axis, Sequence[Line]]]) -> str:
    """Points and lines, one panel below the other, each with its legend.

    Args:
        title: what is shown.
        drawn: for every panel its title, the axis to the right, the axis upwards, and what is on it.
    """
    svg = Svg(title)
    svg.heading()
    for name, across, up, lines in drawn:
        _panel(svg, name, across, up, lines)
    return svg.render()


def _panel(svg: Svg, name: str, across: Axis, up: Axis, lines: Sequence[Line]) -> None:
    left, right, tall = 62, WIDTH - 24, 220
    svg.y += 24
    svg.text(16, svg.y, name, "head small")
    svg.y += 18
    svg.text(16, svg.y, f"up: {up.title}", "small dim")
    top = svg.y + 14
    bottom = top + tall

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * across.place(x), bottom - tall * up.place(y)

    for tick in up.ticks:
        _, y = at(across.low, tick)
        svg.line([(left, y), (right, y)], "grid")
        svg.text(left - 8, y + 4.5, up.text(tick), "end small")
    for tick in across.ticks:
        x, _ = at(tick, up.low)
        svg.line([(x, top), (x, bottom)], "grid")
        svg.text(x, bottom + 19, across.text(tick), "mid small")
    svg.line([(left, top), (left, bottom), (right, bottom)], "axis line")
    for line in lines:
        places = [at(x, y) for x, y in line.points]
        if len(places) > 1:
            svg.line(places, f"line s{line.color}")
        for number, (x, y) in enumerate(places, 1):
            svg.marker(x, y, line.color, scale=0.5 if line.path and number < len(places) else 1.0)
    svg.y = bottom + 38
    svg.text(16, svg.y, f"right: {across.title}", "small dim")
    for number, line in enumerate(lines):
        x = 24 if number % 2 == 0 else 252
        svg.y += 24 if number % 2 == 0 else 0
        svg.marker(x, svg.y - 5, line.color)
        svg.text(x + 14, svg.y, line.label, "small")
    svg.y += 8


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
