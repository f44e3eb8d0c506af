"""Draw a benchmark run: an HTML page and PNGs, from the records alone."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.metrics import Point, hypervolume, paper_frontier, paper_points, pareto_dominance_ratio, utility_at
from bench.plan import DECODED, Plan
from bench.profiles import DECODERS
from bench.records import FORGET, Cell, Value, read_run
from prod_decode.artifact import write_whole
from prod_decode.cli import Parser, exit_status

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What remains of the model's ability: the first of these that all cells of a task have.
UTILITIES = {"humaneval": "HumanEval pass@1", "holdout_agreement": "top-1 agreement on held-out code"}

# What should not come through, by task.
LEAKS = {"copyright": "verbatim", "insecure": "insecure", "deprecated": "deprecated"}

_DIGITS = {"verbatim_run": 0, "holdout_loss": 2}
_PAPER_MARKERS = {"PROD": "o", "GA": "v", "NPO": "s", "DPO": "^", "FLAT": "x"}


def main(argv: Sequence[str] | None = None) -> int:
    """Write index.html and PNGs beside each run's records."""
    parser = Parser(prog="python -m bench report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="DIR", help="what `python -m bench run --out` wrote")
    options = parser.parse_args(argv)

    def run() -> int:
        for folder in options.runs:
            print(report(Path(folder)))
        return 0

    return exit_status("bench report", run)


def report(folder: Path) -> Path:
    """Write the page of one run; returns its path.

    Raises:
        ProdError: the directory holds no run, or a damaged one.
    """
    manifest, cells = read_run(folder)
    plan = Plan.from_dict(manifest["plan"])
    done = {cell.key for cell in cells}
    missing = [key.name for key in plan.all_keys() if key not in done]
    sections = [_head(manifest, plan, len(cells), missing)]
    for task in plan.tasks:
        mine = [cell for cell in cells if cell.key.task == task]
        if not mine:
            sections.append(f"<section><h2>{html.escape(task)}</h2><p>Nothing was measured.</p></section>")
            continue
        figures = [("pareto", draw_pareto)]
        if any(cell.key.epoch for cell in mine):
            figures.append(("epochs", draw_epochs))
        for name, draw in figures:
            _figure(folder / f"{task}-{name}.png", draw, mine, task)
        sections.append(_section(task, mine, [name for name, _ in figures]))
    page = folder / "index.html"
    with write_whole(page) as file:
        file.write(_PAGE.replace("BODY", "\n".join(sections)).encode())
    return page


# --- numbers ---------------------------------------------------------------------------------------------------------


def utility_of(cells: Iterable[Cell]) -> str:
    """The name of the metric that stands for utility: the first of `UTILITIES` that every cell without attack has."""
    plain = [cell for cell in cells if cell.key.attack == "none" and _measurable(cell)]
    for name in UTILITIES:
        if plain and all(value(cell, name) is not None for cell in plain):
            return name
    return list(UTILITIES)[-1]


def _measurable(cell: Cell) -> bool:
    return cell.key.method not in ("bad-words", "memfree")


def value(cell: Cell, name: str) -> float | None:
    """A metric's value, if it was measured."""
    found = cell.metrics.get(name)
    return None if found is None else found.value


def points(cells: Iterable[Cell], method: str, utility: str) -> list[Point]:
    """(utility, forget quality) of a method's cells without attack, by epoch; those that have both."""
    found = []
    for cell in cells:
        if cell.key.method == method and cell.key.attack == "none":
            pair = value(cell, utility), value(cell, FORGET)
            if pair[0] is not None and pair[1] is not None:
                found.append((cell.key.epoch, (pair[0], pair[1])))
    return [point for _, point in sorted(found)]


def methods_of(cells: Iterable[Cell]) -> list[str]:
    """Decoders first, then trained methods, each by name."""
    return sorted({cell.key.method for cell in cells}, key=lambda name: (name not in DECODERS, name != "base", name))


# --- plots -----------------------------------------------------------------------------------------------------------


def _figure(path: Path, draw: Callable[[Axes, Sequence[Cell], str], None], cells: Sequence[Cell], task: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), dpi=120, layout="constrained")
    try:
        draw(axes, cells, task)
        temporary = path.with_suffix(".tmp.png")
        figure.savefig(temporary)
        temporary.replace(path)
    finally:
        plt.close(figure)


def draw_pareto(axes: Axes, cells: Sequence[Cell], task: str) -> None:
    """Utility against forget quality, a line a method, the paper's points in grey behind.

    The paper's utility is divided by that of its model before unlearning, as ours is by that of the base.
    """
    utility = utility_of(cells)
    start = next(iter(points(cells, "base", utility)), (1.0, 0.0))[0] or 1.0
    original = paper_frontier()["original"][task][0]
    for method, theirs in paper_points(task).items():
        scaled = [(u / original, q) for u, q in theirs]
        marker = _PAPER_MARKERS.get(method, ".")
        axes.scatter(*_columns(scaled), color="0.75", marker=marker, s=22, zorder=1, label=f"{method}, paper")
    for number, method in enumerate(methods_of(cells)):
        mine = [(u / start, q) for u, q in points(cells, method, utility)]
        if mine:
            marker, size = ("*", 120) if method in DECODERS else ("+", 60) if method.endswith(DECODED) else ("o", 28)
            color = f"C{number % 10}"
            axes.scatter(*_columns(mine), color=color, label=method, zorder=3, marker=marker, s=size)
            axes.plot(*_columns(mine), color=color, linewidth=1, alpha=0.6, zorder=2)
    axes.set_xlabel(f"utility: {UTILITIES[utility]}, relative to the start")
    axes.set_ylabel("forget quality")
    axes.set_title(f"{task}: up and right is better")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def draw_epochs(axes: Axes, cells: Sequence[Cell], task: str) -> None:
    """Forget quality (solid) and utility (dashed) by epoch."""
    utility = utility_of(cells)
    for number, method in enumerate(name for name in methods_of(cells) if name not in DECODERS):
        mine = sorted(
            (cell for cell in cells if cell.key.method == method and cell.key.attack == "none"),
            key=lambda cell: cell.key.epoch,
        )
        for name, style in ((FORGET, "-"), (utility, "--")):
            line = [(cell.key.epoch, found) for cell in mine if (found := value(cell, name)) is not None]
            if line:
                label = method if name == FORGET else None
                axes.plot(*_columns(line), style, marker=".", color=f"C{number % 10}", label=label)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    axes.set_title(f"{task}: forget quality (solid), {UTILITIES[utility]} (dashed)")
    axes.grid(visible=True, alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


# --- page ------------------------------------------------------------------------------------------------------------


def _head(manifest: dict[str, Any], plan: Plan, done: int, missing: Sequence[str]) -> str:
    about = ", ".join(f"{name} {text}" for name, text in manifest["environment"].items() if text)
    lacking = ""
    if missing:
        shown = ", ".join(f"<code>{html.escape(name)}</code>" for name in missing[:8])
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        lacking = f"<p class=missing><strong>{len(missing)} planned cells are missing</strong>: {shown}{more}.</p>"
    return (
        f"<h1>Unlearning and masking: {html.escape(plan.model)}</h1><p>{done} cells; at most "
        f"{plan.profile.samples or 'all'} samples a task. {html.escape(about)}.</p>{lacking}"
    )


def _section(task: str, cells: Sequence[Cell], figures: Sequence[str]) -> str:
    described = {"pareto": "Utility against forget quality", "epochs": "Forget quality and utility by epoch"}
    attacked = [
        f"<h3>What comes through under attack: {LEAKS[task]}</h3>"
        "<p>The share of prompts, each method after its last epoch; 0 is best.</p>",
        _attacks_table(cells, LEAKS[task]),
        *(["<h3>Forget quality under attack</h3>", _attacks_table(cells, FORGET)] if task == "copyright" else []),
    ]
    return "\n".join(
        [
            f"<section><h2>{html.escape(task)}</h2>",
            *(f'<img src="{task}-{name}.png" alt="{described[name]}">' for name in figures),
            "<h3>Every cell without attack</h3><p>Each with its 95 % interval; n: samples.</p>",
            _cells_table(cells),
            "<h3>Trade-off</h3>",
            _trade_off(cells, task),
            *(attacked if _attacks(cells) else []),
            "</section>",
        ]
    )


def _cells_table(cells: Sequence[Cell]) -> str:
    plain = [cell for cell in cells if cell.key.attack == "none"]
    plain.sort(key=lambda cell: (methods_of(cells).index(cell.key.method), cell.key.protocol, cell.key.epoch))
    names = list(dict.fromkeys(name for cell in plain for name in cell.metrics))
    columns = [_column(name, [cell.metrics.get(name) for cell in plain], _DIGITS.get(name, 3)) for name in names]
    labels = [
        ["protocol", *(cell.key.protocol for cell in plain)],
        ["method", *(cell.key.method for cell in plain)],
        ["epoch", *(str(cell.key.epoch or "-") for cell in plain)],
    ]
    speed = ["tokens/s", *(f"{cell.tokens_per_second:.0f}" for cell in plain)]
    head, *rows = zip(*labels, *columns, speed, strict=True)
    return _table(head, rows)


def _trade_off(cells: Sequence[Cell], task: str) -> str:
    """Utility at a forget quality, hypervolume, and PROD's dominance over each other method."""
    utility = utility_of(cells)
    start = next(iter(points(cells, "base", utility)), None)
    rows = []
    ours = points(cells, "prod", utility)
    for method in methods_of(cells):
        mine = points(cells, method, utility)
        if mine:
            best = [utility_at(mine, quality) for quality in (0.85, 0.95)]
            ratio = f"{pareto_dominance_ratio(ours, mine):.2f}" if ours and method != "prod" else "-"
            rows.append([method, *("-" if b is None else f"{b:.3f}" for b in best), f"{hypervolume(mine):.3f}", ratio])
    note = f"<p>Utility: {UTILITIES[utility]}" + (f"; the start has {start[0]:.3f}" if start else "") + ".</p>"
    head = ["method", "best utility at .85", "at .95", "hypervolume", "share dominated by prod"]
    paper = paper_points(task)
    theirs = [point for name, found in paper.items() if name != "PROD" for point in found]
    note += (
        f"<p>In the paper PROD dominates {pareto_dominance_ratio(paper['PROD'], theirs):.2f} of the others' points.</p>"
    )
    return _table(head, rows) + note


def _attacks(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.key.attack for cell in cells if cell.key.attack != "none"))


def _attacks_table(cells: Sequence[Cell], metric: str) -> str:
    """A row an attack, a column a method."""
    attacks = ["none", *_attacks(cells)]
    columns = [["attack", *attacks]]
    for method in methods_of(cells):
        mine = [cell for cell in cells if cell.key.method == method]
        last = max(cell.key.epoch for cell in mine)
        found = {cell.key.attack: cell.metrics.get(metric) for cell in mine if cell.key.epoch == last}
        if len(found) > 1:
            columns.append(_column(method, [found.get(attack) for attack in attacks], 3))
    head, *rows = zip(*columns, strict=True)
    return _table(head, rows)


def _column(name: str, values: Sequence[Value | None], digits: int) -> list[str]:
    """A head, with the number of samples where all values have the same, and the values with intervals."""
    sizes = {value.n for value in values if value is not None and value.value is not None}
    common = sizes.pop() if len(sizes) == 1 else None
    return [
        name if common is None else f"{name}\nn={common}",
        *(_interval(value, digits, show_n=common is None) for value in values),
    ]


def _interval(found: Value | None, digits: int, *, show_n: bool) -> str:
    if found is None:
        return "-"
    if found.value is None or found.low is None or found.high is None:
        return f"not measured:\n{found.reason}"
    n = f", n={found.n}" if show_n else ""
    return f"{found.value:.{digits}f}\n[{found.low:.{digits}f}, {found.high:.{digits}f}]{n}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell.replace('_', ' '))}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Unlearning and masking</title>
<style>
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 49%; background: #fff; vertical-align: top; }
@media (max-width: 60rem) { img { max-width: 100%; } }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { white-space: pre; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top; }
.missing { border-left: 4px solid #c62828; padding-left: .75rem; }
</style></head><body>
BODY
</body></html>
"""
