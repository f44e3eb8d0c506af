"""The figures of a benchmark run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.metrics import paper_frontier, paper_points
from bench.models.training import FIRST_ROUND
from bench.report.series import UTILITIES, AttackedSeries, by_epoch, points, series_of, utility_of, value
from bench.unlearning.profiles import SECOND_ROUND
from bench.unlearning.records import FORGET, Cell
from prod_decode.storage.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Grey is the paper's.
_COLORS = (
    *(f"C{n}" for n in (0, 1, 2, 3, 4, 5, 6, 8, 9)),
    *("black", "gold", "navy", "limegreen", "deeppink", "saddlebrown", "teal"),
)
_PAPER_MARKERS = {"PROD": "o", "GA": "v", "NPO": "s", "DPO": "^", "FLAT": "x"}


@contextmanager
def canvas(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure to draw on; the PNG takes its place when the block ends well.

    Args:
        path: of the PNG.
        width: inches, of 120 pixels.
        height: likewise.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    drawn = plt.figure(figsize=(width, height), dpi=120, layout="constrained")
    try:
        yield drawn
        with write_whole(path) as file:
            drawn.savefig(file, format="png")
    finally:
        plt.close(drawn)


def draw_all(
    folder: Path, task: str, cells: Sequence[Cell], attacks: Sequence[AttackedSeries], leak: str
) -> dict[str, str]:
    """Draw every figure of a task for which there are data.

    Args:
        folder: where the PNGs go.
        task: its name, with which theirs begin.
        cells: of the task.
        attacks: see `bench.report.series.attacked`.
        leak: the metric of what should not come through.

    Returns:
        File name -> what it shows.
    """
    shown: list[tuple[str, str, Callable[[Axes], None], tuple[float, float]]] = [
        ("pareto", "Utility against forget quality", lambda axes: draw_pareto(axes, cells, task), (8, 5)),
        ("speed", "Tokens a second", lambda axes: draw_speed(axes, cells, task), (8, 5)),
    ]
    if any(cell.key.epoch for cell in cells):
        title = "Forget quality and utility by epoch"
        shown.append(("epochs", title, lambda axes: draw_epochs(axes, cells, task), (8, 5)))
    rows = max((len(mine.cells) for mine in attacks), default=0)
    if rows > 1:
        size = (2.5 + 0.8 * len(attacks), 1.5 + 0.28 * rows)
        shown.append(("attacks", f"{leak} under attack", lambda axes: draw_attacks(axes, attacks, leak, task), size))
    for name, _, draw, size in shown:
        with canvas(folder / f"{task}-{name}.png", *size) as drawn:
            draw(drawn.subplots())
    return {f"{task}-{name}.png": title for name, title, _, _ in shown}


def draw_pareto(axes: Axes, cells: Sequence[Cell], task: str) -> None:
    """Utility against forget quality, a line a method, the paper's points in grey behind.

    The paper's utility is divided by that of its model before unlearning, as ours is by that of the base.
    """
    utility = utility_of(cells)
    known = series_of(cell.key for cell in cells)
    starts = {s.protocol: found[0][0] for s in known if s.method == "base" and (found := points(cells, s, utility))}
    original = paper_frontier()["original"][task][0]
    for method, theirs in paper_points(task).items():
        scaled = [(u / original, q) for u, q in theirs]
        marker = _PAPER_MARKERS.get(method, ".")
        axes.scatter(*_columns(scaled), color="0.75", marker=marker, s=22, zorder=1, label=f"{method}, paper")
    for number, series in enumerate(known):
        start = starts.get(series.protocol) or 1.0
        mine = [(u / start, q) for u, q in points(cells, series, utility)]
        if mine:
            joint = "+" in series.method
            marker, size = ("o", 28) if series.trained and not joint else ("+", 60) if joint else ("*", 120)
            color = _COLORS[number % len(_COLORS)]
            axes.scatter(*_columns(mine), color=color, label=series.label, zorder=3, marker=marker, s=size)
            axes.plot(*_columns(mine), color=color, linewidth=1, alpha=0.6, zorder=2)
    axes.set_xlabel(f"utility: {UTILITIES[utility]}, relative to the start")
    axes.set_ylabel("forget quality")
    axes.set_title(f"{task}: up and right is better")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_epochs(axes: Axes, cells: Sequence[Cell], task: str) -> None:
    """Forget quality (solid) and utility (dashed) by epoch; each line begins with what its training did."""
    utility = utility_of(cells)
    known = series_of(cell.key for cell in cells)
    by_name = {(series.method, series.protocol): series for series in known}
    for number, series in enumerate(known):  # all of them: a method has one color in every plot
        if not series.trained:
            continue
        first = series.method.partition("+")[2] or "base"
        if series.method.startswith(SECOND_ROUND):
            first = series.method.replace(SECOND_ROUND, FIRST_ROUND)
        start = by_name.get((first, series.protocol))
        for name, style in ((FORGET, "-"), (utility, "--")):
            line = by_epoch(cells, series, name)
            if line:
                begun = by_epoch(cells, start, name)[-1:] if start else []
                label = series.label if name == FORGET else None
                color = _COLORS[number % len(_COLORS)]
                axes.plot(*_columns([*begun, *line]), style, marker=".", color=color, label=label)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    axes.set_title(f"{task}: forget quality (solid), {UTILITIES[utility]} (dashed)")
    axes.grid(visible=True, alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def draw_attacks(axes: Axes, attacks: Sequence[AttackedSeries], leak: str, task: str) -> None:
    """A row an attack, a column a method: the share that comes through, the darker the more."""
    rows = list(dict.fromkeys(attack for mine in attacks for attack in mine.cells))
    shares = np.full((len(rows), len(attacks)), np.nan)
    for x, mine in enumerate(attacks):
        for y, attack in enumerate(rows):
            cell = mine.cells.get(attack)
            share = None if cell is None else value(cell, leak)
            shares[y, x] = np.nan if share is None else share
            absent = "missing" if attack in mine.cells else "\u2013"
            text = absent if share is None else f"{share:.2f}"
            dark = share is not None and share > 0.6
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "0.2")
    axes.imshow(np.ma.masked_invalid(shares), cmap="OrRd", vmin=0, vmax=1, aspect="auto")
    axes.set_facecolor("0.93")
    axes.set_xticks(range(len(attacks)), [mine.label for mine in attacks], fontsize=8, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_title(f"{task}: {leak.replace('_', ' ')}, 0 is best")


def draw_speed(axes: Axes, cells: Sequence[Cell], task: str) -> None:
    """Tokens a second of every method without attack, over all its cells; all rows of a batch together."""
    known = series_of(cell.key for cell in cells)
    rates = []
    for series in known:
        mine = [cell for cell in series.cells(cells) if cell.key.attack == "none"]
        rates.append(float(np.median([cell.tokens_per_second for cell in mine])) if mine else 0.0)
    axes.barh(range(len(known)), rates, color="C0")
    axes.set_yticks(range(len(known)), [series.label for series in known], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("tokens a second, median of the cells without attack")
    axes.set_title(f"{task}: speed of generation")
    axes.grid(visible=True, axis="x", alpha=0.3)


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]
