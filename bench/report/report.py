"""Draw a benchmark run: an HTML page and PNGs, from the records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.metrics import Value, hypervolume, paper_points, pareto_dominance_ratio, utility_at
from bench.models.training import FIRST_ROUND
from bench.report.plots import draw_all
from bench.report.series import UTILITIES, AttackedSeries, attacked, points, series_of, utility_of
from bench.tasks import TASKS
from bench.unlearning.plan import Plan
from bench.unlearning.profiles import SECOND_ROUND
from bench.unlearning.records import FORGET, Cell, read_run
from prod_decode.command.options import Parser
from prod_decode.command.page import Html, element, join, page, table, warning, write_page
from prod_decode.command.terminal import exit_status

# Whose points are compared with those of every other method.
_OURS = ("prod", FIRST_ROUND, SECOND_ROUND)
COMMAND = "python -m bench report"
_DIGITS = {"verbatim_run": 0, "holdout_loss": 2}


def main(argv: Sequence[str] | None = None) -> int:
    """Write index.html and PNGs beside each run's records."""
    parser = Parser(prog=COMMAND, description=(__doc__ or "").split("\n")[0])
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
    sections = [_missing(missing)] if missing else []
    for task in plan.tasks:
        mine = [cell for cell in cells if cell.key.task == task]
        if not mine:
            sections.append(element("section", element("h2", task), element("p", "Nothing was measured.")))
            continue
        attacks = attacked(plan, task, mine)
        figures = draw_all(folder, task, mine, attacks, TASKS[task].leak)
        sections.append(_section(task, mine, attacks, figures))
    file = folder / "index.html"
    about = ", ".join(f"{name} {text}" for name, text in manifest["environment"].items() if text)
    lead = f"{len(cells)} cells; at most {plan.profile.samples or 'all'} samples a task. {about}."
    write_page(file, page(COMMAND, f"Unlearning and masking: {plan.model}", lead, *sections))
    return file


def _missing(names: Sequence[str]) -> Html:
    shown = join(*(element("code", name) for name in names[:8]), between=", ")
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return warning(element("strong", f"{len(names)} planned cells are missing"), ": ", shown, f"{more}.")


def _section(task: str, cells: Sequence[Cell], attacks: Sequence[AttackedSeries], figures: Mapping[str, str]) -> Html:
    leak = TASKS[task].leak
    parts = [
        element("h2", task),
        element("div", *(_picture(name, title) for name, title in figures.items()), class_="pictures"),
        element("h3", "Every cell without attack"),
        element("p", "Each with its 95 % interval; n: samples."),
        _cells_table(cells),
        element("h3", "Trade-off"),
        *_trade_off(cells, task),
    ]
    if attacks:
        parts += [
            element("h3", f"What comes through under attack: {leak}"),
            element("p", "The share of prompts, each method after its last epoch; 0 is best."),
            _attacks_table(attacks, leak),
        ]
        if TASKS[task].documents:
            parts += [element("h3", "Forget quality under attack"), _attacks_table(attacks, FORGET)]
    return element("section", join(*parts, between=Html("\n")))


def _picture(name: str, title: str) -> Html:
    """A picture that leads to itself: on a phone it is too small to be read."""
    return element("a", element("img", src=name, alt=title), href=name)


def _cells_table(cells: Sequence[Cell]) -> Html:
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
    return _table(head, rows, heads=4)


def _trade_off(cells: Sequence[Cell], task: str) -> list[Html]:
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
    utilities = f"Utility: {'; '.join([UTILITIES[utility], *starts])}. Means over seeds."
    head = ["method", "best utility at .85", "at .95", "hypervolume", *(f"share dominated by {name}" for name in names)]
    paper = paper_points(task)
    theirs = [point for name, points_ in paper.items() if name != "PROD" for point in points_]
    dominated = pareto_dominance_ratio(paper["PROD"], theirs)
    return [
        _table(head, rows),
        element("p", utilities),
        element("p", f"In the paper PROD dominates {dominated:.2f} of the others' points."),
    ]


def _attacks_table(attacks: Sequence[AttackedSeries], metric: str) -> Html:
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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, heads: int = 1) -> Html:
    return table([cell.replace("_", " ") for cell in head], rows, heads=heads, numeric=True)
