"""Draw a benchmark run: an HTML page and PNGs, from the records alone."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.metrics import Value, hypervolume, paper_points, pareto_dominance_ratio, utility_at
from bench.models.training import FIRST_ROUND
from bench.report.plots import draw_all
from bench.report.series import UTILITIES, AttackedSeries, attacked, points, series_of, utility_of
from bench.tasks import TASKS
from bench.unlearning.plan import Plan
from bench.unlearning.profiles import SECOND_ROUND
from bench.unlearning.records import FORGET, Cell, read_run
from prod_decode.command.options import Parser
from prod_decode.command.terminal import exit_status
from prod_decode.storage.files import write_whole

# Whose points are compared with those of every other method.
_OURS = ("prod", FIRST_ROUND, SECOND_ROUND)
_DIGITS = {"verbatim_run": 0, "holdout_loss": 2}


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
        attacks = attacked(plan, task, mine)
        figures = draw_all(folder, task, mine, attacks, TASKS[task].leak)
        sections.append(_section(task, mine, attacks, figures))
    page = folder / "index.html"
    with write_whole(page) as file:
        file.write(_PAGE.replace("BODY", "\n".join(sections)).encode())
    return page


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


def _section(task: str, cells: Sequence[Cell], attacks: Sequence[AttackedSeries], figures: Mapping[str, str]) -> str:
    under_attack = [
        f"<h3>What comes through under attack: {TASKS[task].leak}</h3>"
        "<p>The share of prompts, each method after its last epoch; 0 is best.</p>",
        _attacks_table(attacks, TASKS[task].leak),
        *(["<h3>Forget quality under attack</h3>", _attacks_table(attacks, FORGET)] if TASKS[task].documents else []),
    ]
    return "\n".join(
        [
            f"<section><h2>{html.escape(task)}</h2>",
            *(f'<img src="{name}" alt="{html.escape(title)}">' for name, title in figures.items()),
            "<h3>Every cell without attack</h3><p>Each with its 95 % interval; n: samples.</p>",
            _cells_table(cells),
            "<h3>Trade-off</h3>",
            _trade_off(cells, task),
            *(under_attack if attacks else []),
            "</section>",
        ]
    )


def _cells_table(cells: Sequence[Cell]) -> str:
    """A row a cell, the seeds of one epoch under each other."""
    plain = [
        cell
        for series in series_of(cell.key for cell in cells)
        for cell in series.cells(cells)
        if cell.key.attack == "none"
    ]
    names = list(dict.fromkeys(name for cell in plain for name in cell.metrics))
    columns = [_column(name, [cell.metrics.get(name) for cell in plain], _DIGITS.get(name, 3)) for name in names]
    labels = [
        ["protocol", *(cell.key.protocol for cell in plain)],
        ["method", *(cell.key.method for cell in plain)],
        ["epoch", *(str(cell.key.epoch or "-") for cell in plain)],
        ["seed", *(str(cell.key.seed) for cell in plain)],
    ]
    speed = ["tokens/s", *(f"{cell.tokens_per_second:.0f}" for cell in plain)]
    head, *rows = zip(*labels, *columns, speed, strict=True)
    return _table(head, rows)


def _trade_off(cells: Sequence[Cell], task: str) -> str:
    """Utility at a forget quality, hypervolume, and the dominance of ours over each other method of its protocol."""
    utility = utility_of(cells)
    known = series_of(cell.key for cell in cells)
    found = {series: points(cells, series, utility) for series in known}
    names = [name for name in _OURS if any(series.method == name for series in known)]
    rows = []
    for series, mine in found.items():
        if not mine:  # what only looks at generated text has no utility
            rows.append([series.label, *["not measured"] * 3, *["-"] * len(names)])
            continue
        best = [utility_at(mine, quality) for quality in (0.85, 0.95)]
        ratios = []
        for name in names:
            ours = next((p for s, p in found.items() if (s.method, s.protocol) == (name, series.protocol)), [])
            other = ours and series.method != name
            ratios.append(f"{pareto_dominance_ratio(ours, mine):.2f}" if other else "-")
        shown = ["-" if b is None else f"{b:.3f}" for b in best]
        rows.append([series.label, *shown, f"{hypervolume(mine):.3f}", *ratios])
    starts = [f"{s.label} has {p[0][0]:.3f}" for s, p in found.items() if s.method == "base" and p]
    note = f"<p>Utility: {'; '.join([UTILITIES[utility], *starts])}. Means over seeds.</p>"
    head = ["method", "best utility at .85", "at .95", "hypervolume", *(f"share dominated by {name}" for name in names)]
    paper = paper_points(task)
    theirs = [point for name, points_ in paper.items() if name != "PROD" for point in points_]
    note += (
        f"<p>In the paper PROD dominates {pareto_dominance_ratio(paper['PROD'], theirs):.2f} of the others' points.</p>"
    )
    return _table(head, rows) + note


def _attacks_table(attacks: Sequence[AttackedSeries], metric: str) -> str:
    """A row an attack, a column a method; an attack that is not made on a method differs from one not made yet."""
    names = list(dict.fromkeys(attack for mine in attacks for attack in mine.cells))
    columns = [["attack", *names]]
    for mine in attacks:
        values = [cell.metrics.get(metric) if (cell := mine.cells.get(name)) else None for name in names]
        title, *shown = _column(mine.label, values, 3)
        lacking = {name for name, cell in mine.cells.items() if cell is None}
        columns.append([title, *("missing" if n in lacking else text for n, text in zip(names, shown, strict=True))])
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
