"""Two benchmark runs, cell by cell: what changed, and whether the intervals allow that it is chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.metrics import Value
from bench.unlearning.records import Cell, Key, read_run
from prod_decode.command.options import Parser
from prod_decode.command.terminal import exit_status
from prod_decode.errors import ProdError


@dataclass(frozen=True, slots=True)
class Change:
    """One metric of a cell that both runs have.

    Attributes:
        key: the cell.
        metric: its name.
        before: in the first run.
        after: in the second.
        disjoint: whether the two 95 % intervals do not overlap.
    """

    key: Key
    metric: str
    before: float
    after: float
    disjoint: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Print every metric that differs; returns 0, or 2 for a mistake of the user."""
    parser = Parser(prog="python -m bench compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("before", metavar="DIR", help="what `python -m bench run --out` wrote")
    parser.add_argument("after", metavar="DIR", help="another run")
    options = parser.parse_args(argv)
    return exit_status("bench compare", lambda: _run(Path(options.before), Path(options.after)))


def _run(before: Path, after: Path) -> int:
    first, second = (read_run(folder)[1] for folder in (before, after))
    found = list(changes(first, second))
    print(f"{'cell':44} {'metric':24} {'before':>9} {'after':>9} {'change':>9}  intervals")
    for change in sorted(found, key=lambda c: (c.key.name, c.metric)):
        print(
            f"{change.key.name:44} {change.metric:24} {change.before:9.3f} {change.after:9.3f} "
            f"{change.after - change.before:+9.3f}  {'disjoint' if change.disjoint else 'overlap'}"
        )
    mine, theirs = ({cell.key for cell in cells} for cells in (first, second))
    print(f"{len(mine & theirs)} cells in both; {len(mine - theirs)} only before, {len(theirs - mine)} only after")
    return 0


def changes(before: Sequence[Cell], after: Sequence[Cell]) -> Iterator[Change]:
    """The metrics that differ between cells of the same key.

    Raises:
        ProdError: no cell is in both, or a cell's task changed its version in between.
    """
    old = {cell.key: cell for cell in before}
    common = [(old[cell.key], cell) for cell in after if cell.key in old]
    if not common:
        raise ProdError("expected runs with cells in common, got none: compare runs of the same tasks and methods")
    for first, second in common:
        if first.task_version != second.task_version:
            raise ProdError(
                f"{first.key.name}: expected one version of the task, got {first.task_version} and "
                f"{second.task_version}: their scores cannot be compared, run it again"
            )
        for name, value in first.metrics.items():
            other = second.metrics.get(name)
            if other is None or value.value is None or other.value is None or value.value == other.value:
                continue
            yield Change(first.key, name, value.value, other.value, _disjoint(value, other))


def _disjoint(a: Value, b: Value) -> bool:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.high < b.low or b.high < a.low
