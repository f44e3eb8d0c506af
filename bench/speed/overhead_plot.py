"""The figures of `bench overhead` over the number of patterns, beside the peers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Figure
from bench.report.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# (quantity, walk or batch, axis, in words): a panel each.
PANELS = (
    ("mask", "code", "microseconds a token, mean", "mask, library code"),
    ("mask", "near", "microseconds a token, mean", "mask, patterns nearly always under way"),
    ("processor call", "B=8", "microseconds a call, mean", "a processor's call, 8 rows"),
    ("step", "B=64", "microseconds a step, mean", "a whole step, 64 rows"),
    ("compile and bind", "", "seconds", "from patterns to a guard that masks"),
    ("scan", "", "MB/s, one core", "scan of library code"),
)
_WHAT = re.compile(r"(?P<quantity>[a-z ]+), (?P<count>[\d,]+) patterns?(?:, (?P<where>.+))?")


def series(figures: Sequence[Figure], quantity: str, where: str) -> dict[str, list[tuple[int, float | None]]]:
    """Guard -> (number of patterns, value or None where it failed), ascending."""
    found: dict[str, list[tuple[int, float | None]]] = {}
    for figure in figures:
        match = _WHAT.fullmatch(figure.what)
        if match and match["quantity"] == quantity and (match["where"] or "") == where:
            count = int(match["count"].replace(",", ""))
            found.setdefault(figure.guard, []).append((count, figure.value))
    return {guard: sorted(line, key=lambda pair: pair[0]) for guard, line in found.items()}


def draw(figures: Sequence[Figure], path: Path) -> None:
    """Write one PNG with a panel a quantity; a guard that failed ends in a cross at its last value."""
    with canvas(path, 10, 10) as drawn:
        for panel, (quantity, where, unit, title) in zip(drawn.subplots(3, 2).flat, PANELS, strict=True):
            _draw_panel(panel, series(figures, quantity, where))
            panel.set_title(title, fontsize=10)
            panel.tick_params(which="both", labelsize=8)
            panel.set_xlabel("patterns", fontsize=8)
            panel.set_ylabel(unit, fontsize=8)


def _draw_panel(axes: Axes, lines: dict[str, list[tuple[int, float | None]]]) -> None:
    for number, (guard, line) in enumerate(sorted(lines.items(), key=lambda item: not item[0].startswith("prod"))):
        measured = [(count, value) for count, value in line if value is not None]
        failed = [count for count, value in line if value is None]
        if not measured:
            axes.plot([], [], "x", color=f"C{number}", label=f"{guard}: failed")
            continue
        counts, values = [c for c, _ in measured], [v for _, v in measured]
        width = 2.2 if guard.startswith("prod_decode") else 1.2
        axes.plot(counts, values, marker="o", markersize=3, linewidth=width, color=f"C{number}", label=guard)
        beyond = [count for count in failed if count > counts[-1]]
        if beyond:
            axes.plot(beyond[0], values[-1], "x", color=f"C{number}", markersize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(visible=True, alpha=0.3)
    if lines:
        axes.legend(fontsize=7)
