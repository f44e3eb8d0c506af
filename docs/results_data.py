"""The records of `results/`, and how the pages write a number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

from bench.figures import Figure
from bench.metrics import Point, Value
from bench.report.series import points, series_of
from bench.unlearning.records import FORGET, Cell, read_run
from prod_decode.errors import ProdError

AGREEMENT, KL = "holdout_agreement", "holdout_kl"
SMALL, ALL, SEEDS = "smollm2-small", "smollm2-all", "smollm2-seeds"
RELEARNING, BEST_RELEARNED, NATURAL = "smollm2-relearning", "smollm2-relearned", "smollm2-natural"
QWEN_MASK, QWEN_NAMES, QWEN_CODE = "qwen-copyright-mask", "qwen-natural-deprecated", "qwen-natural-code"
REPLACED, REPLACED_TAUGHT, QWEN_REPLACED = "smollm2-replaced", "smollm2-replaced-taught", "qwen-replaced"
QWEN_LISTS = "qwen-lists"
LICENCES = ("qwen-natural-licences", "qwen-natural-licences-unlearned")
NEAR_FUNCTIONS, NEAR_MODULES = "smollm2-near-functions", "smollm2-near-modules"
GEMMA_COPYRIGHT, GEMMA_NAMES = "gemma-copyright", "gemma-deprecated"
QWEN, QWEN_KEPT = "qwen-copyright-unlearned", "qwen-natural-unlearned-3e-4"

# What the outputs of the model as it is were asked for with, in the order of the figure.
ATTACKS = {
    "none": "asked plainly",
    "prefix-1": "first token given",
    "prefix-25%": "a quarter given",
    "prefix-50%": "half given",
    "prefix-75%": "three quarters given",
    "renamed": "names changed",
    "case": "other case style",
    "reformatted": "other layout",
    "comments-stripped": "comments removed",
    "comments-added": "comments added",
    "instruction-1": "asked in words",
    "tokenised": "other tokens",
    "sampled": "sampled 3 times",
}

COPIES = {
    "base": "no guard",
    "bad-words": "bad words (transformers)",
    "memfree": "MemFree",
    "decode": "the mask, `max_quote=60`",
    "prod": "unlearned, `prod`",
    "prod+decode": "unlearned and masked",
    "prod-surgical-2": "unlearned, `prod-surgical` twice",
    "untaught": "never saw the text",
}


class Results:
    """What the folder `results` has."""

    def __init__(self, folder: Path) -> None:
        """Find the runs.

        Args:
            folder: with a folder for each run, and `performance`.
        """
        self.folder = folder
        self.runs = sorted(path.parent.name for path in folder.glob("*/run.json"))
        self.speeds = sorted(path.stem for path in (folder / "performance").glob("*.jsonl"))
        self.run = cache(lambda name: read_run(folder / name))
        self.speed = cache(self._speed)

    def _speed(self, name: str) -> list[Figure]:
        path = self.folder / "performance" / f"{name}.jsonl"
        return [Figure(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]

    def cells(self, run: str, task: str, seed: int | None = None) -> list[Cell]:
        """Those of a task, of one seed or of all."""
        return [cell for cell in self.run(run)[1] if cell.key.task == task and seed in (None, cell.key.seed)]

    def value(
        self, run: str, task: str, method: str, metric: str, *, attack: str = "none", epoch: int | None = None
    ) -> Value:
        """A metric after an epoch, the last if none is given, with the first seed.

        Raises:
            ProdError: nobody measured it.
        """
        found = [
            cell
            for cell in self.cells(run, task)
            if (cell.key.method, cell.key.attack) == (method, attack) and epoch in (None, cell.key.epoch)
        ]
        first = min(found, key=lambda cell: (-cell.key.epoch, cell.key.seed), default=None)
        if first is None or metric not in first.metrics:
            raise ProdError(
                f"results/{run}: expected {metric} of {method} on {task} ({attack}), got none: name another"
            )
        return first.metrics[metric]

    def points(self, run: str, task: str, method: str, utility: str, seed: int | None = None) -> list[Point]:
        """(utility, forget quality) by epoch, without attack."""
        cells = self.cells(run, task, seed)
        mine = [one for one in series_of(cell.key for cell in cells) if one.method == method]
        return points(cells, mine[0], utility) if mine else []

    def mean(self, runs: Sequence[str], task: str, method: str, metric: str) -> float:
        """A metric after the last epoch, without attack, over all seeds of some runs."""
        cells = [cell for run in runs for cell in self.cells(run, task)]
        mine = [cell for cell in cells if (cell.key.method, cell.key.attack) == (method, "none")]
        last = max(cell.key.epoch for cell in mine)
        return fmean(known(cell.metrics[metric]) for cell in mine if cell.key.epoch == last)

    def over_seeds(self, run: str, task: str, method: str, metric: str) -> list[float]:
        """A metric after the last epoch, without attack, for every seed in which it could be measured."""
        cells = [cell for cell in self.cells(run, task) if (cell.key.method, cell.key.attack) == (method, "none")]
        last = max((cell.key.epoch for cell in cells), default=0)
        ordered = sorted((cell for cell in cells if cell.key.epoch == last), key=lambda cell: cell.key.seed)
        return [known(cell.metrics[metric]) for cell in ordered if cell.metrics[metric].value is not None]

    def timed(self, what: str, guard: str = "prod_decode", file: str = "smollm2") -> Figure:
        """A figure of speed.

        Raises:
            ProdError: nobody measured it.
        """
        for figure in self.speed(file):
            if (figure.what, figure.guard) == (what, guard):
                return figure
        raise ProdError(f"results/performance/{file}.jsonl: expected {what!r} of {guard}, got none: name another")


def bleu(results: Results, method: str) -> Value:
    """How near a method's outputs are to the copied functions, in the run `small`."""
    forgotten = results.value(SMALL, "copyright", method, FORGET)
    low, high = ends(forgotten)
    return Value(1 - known(forgotten), 1 - high, 1 - low, forgotten.n, "worse")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def interval(value: Value | None, digits: int = 2) -> str:
    """A value with its 95 % interval; why there is none where there is none."""
    if value is None:
        return ""
    if value.value is None:
        return value.reason
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean of several seeds, and the lowest and highest of them in round brackets."""
    if not values:
        return ""
    return f"{fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def known(value: Value) -> float:
    """The number.

    Raises:
        ProdError: it could not be measured.
    """
    if value.value is None:
        raise ProdError(f"expected a number, got none ({value.reason}): take another metric")
    return value.value


def ends(value: Value) -> tuple[float, float]:
    """The ends of the 95 % interval.

    Raises:
        ProdError: there is none.
    """
    if value.low is None or value.high is None:
        raise ProdError(f"expected an interval, got none ({value.reason}): take another metric")
    return value.low, value.high


def number(value: Value, digits: int = 2) -> str:
    """A number without its interval."""
    return f"{known(value):.{digits}f}"


def quantity(figure: Figure) -> str:
    """A figure of speed with its unit; why there is none where it failed."""
    return figure.note or "failed" if figure.value is None else f"{short(figure.value)} {figure.unit}"


def short(value: float) -> str:
    """Three digits that count, no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.5f}"
