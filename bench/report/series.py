"""The cells of a run as lines of a plot: which methods there are, and what each has for utility and forget quality."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from bench.metrics import Point
from bench.unlearning.plan import Plan
from bench.unlearning.profiles import PROTOCOLS, UNTRAINED
from bench.unlearning.records import FORGET, Cell, Key

# What remains of the model's ability: the first of these that all cells of a task have.
UTILITIES = {"humaneval": "HumanEval pass@1", "holdout_agreement": "top-1 agreement on held-out code"}


@dataclass(frozen=True, slots=True)
class Series:
    """A method under a protocol.

    Attributes:
        method: as in `Key`.
        protocol: as in `Key`.
        label: both, or the method alone if the run has one protocol.
    """

    method: str
    protocol: str
    label: str

    @property
    def trained(self) -> bool:
        """Whether it has epochs."""
        return self.method not in UNTRAINED

    def cells(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those of this series, by epoch, then seed."""
        mine = (cell for cell in cells if (cell.key.method, cell.key.protocol) == (self.method, self.protocol))
        return sorted(mine, key=lambda cell: (cell.key.epoch, cell.key.seed))


def series_of(keys: Iterable[Key]) -> list[Series]:
    """Every series, protocol by protocol: decoders first, then trained methods, each by name."""
    found = {(key.method, key.protocol) for key in keys}
    several = len({protocol for _, protocol in found}) > 1
    ordered = sorted(
        found, key=lambda pair: (PROTOCOLS.index(pair[1]), pair[0] not in UNTRAINED, pair[0] != "base", pair)
    )
    return [Series(method, protocol, f"{method}, {protocol}" if several else method) for method, protocol in ordered]


def utility_of(cells: Iterable[Cell]) -> str:
    """The name of the metric that stands for utility: the first of `UTILITIES` that every cell without attack has."""
    plain = [cell for cell in cells if cell.key.attack == "none" and cell.key.method not in ("bad-words", "memfree")]
    for name in UTILITIES:
        if plain and all(value(cell, name) is not None for cell in plain):
            return name
    return list(UTILITIES)[-1]


def value(cell: Cell, name: str) -> float | None:
    """A metric's value, if it was measured."""
    found = cell.metrics.get(name)
    return None if found is None else found.value


def points(cells: Iterable[Cell], series: Series, utility: str) -> list[Point]:
    """(utility, forget quality) without attack, by epoch, each the mean over the seeds that have both."""
    return [(x, y) for x, y in _means(cells, series, utility, FORGET).values()]


def by_epoch(cells: Iterable[Cell], series: Series, name: str) -> list[tuple[int, float]]:
    """A metric without attack by epoch, each the mean over the seeds that have it."""
    return [(epoch, mean) for epoch, (mean,) in _means(cells, series, name).items()]


def _means(cells: Iterable[Cell], series: Series, *names: str) -> dict[int, tuple[float, ...]]:
    """Metrics without attack by epoch, ascending, each the mean over the seeds that have all of them."""
    found: defaultdict[int, list[list[float]]] = defaultdict(list)
    for cell in series.cells(cells):
        measured = [known for name in names if (known := value(cell, name)) is not None]
        if cell.key.attack == "none" and len(measured) == len(names):
            found[cell.key.epoch].append(measured)
    return {epoch: tuple(map(fmean, zip(*seeds, strict=True))) for epoch, seeds in found.items()}


@dataclass(frozen=True, slots=True)
class AttackedSeries:
    """What is to be shown of a series under attack.

    Attributes:
        label: the series', with the seed if the run has several.
        cells: by attack, `none` included, after the last epoch of the plan; None where the plan has a cell that is not
            there yet. An attack that the plan does not make on this method is not a key.
    """

    label: str
    cells: dict[str, Cell | None]


def attacked(plan: Plan, task: str, cells: Sequence[Cell]) -> list[AttackedSeries]:
    """Every series of a task that the plan attacks, and of which at least one cell is there."""
    done = {cell.key: cell for cell in cells}
    profile = plan.profile
    planned = [key for key in plan.all_keys() if key.task == task]
    found = []
    for series in series_of(planned):
        attacks = plan.attacks(series.method)
        last = plan.epochs(series.method)[-1]
        for seed in profile.seeds if attacks else ():
            key = Key(task, series.protocol, series.method, last, "none", seed)
            mine = {attack: done.get(replace(key, attack=attack)) for attack in ("none", *attacks)}
            label = f"{series.label}, seed {seed}" if len(profile.seeds) > 1 else series.label
            if any(cell is not None for cell in mine.values()):
                found.append(AttackedSeries(label, mine))
    return found
