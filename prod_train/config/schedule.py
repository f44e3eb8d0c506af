"""Which rows every optimizer step takes and how fast it learns; depends on nothing but the seed and its number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prod_train.config.config import Config


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which rows every optimizer step takes.

    Attributes:
        rows: of the forget set.
        retain: rows of the retain set, 0 without one.
        step_rows: rows an optimizer step, over all processes and accumulation.
        steps: optimizer steps.
        seed: of the order.
    """

    rows: int
    retain: int
    step_rows: int
    steps: int
    seed: int

    @classmethod
    def of(cls, config: Config, rows: int, retain: int, processes: int) -> Schedule:
        """The schedule of a run."""
        step_rows = config.batch_size * config.accumulate * processes
        per_epoch = -(-rows // step_rows)
        steps = config.max_steps or max(1, round(config.epochs * per_epoch))
        return cls(rows, retain, step_rows, steps, config.seed)

    @property
    def per_epoch(self) -> int:
        """Optimizer steps an epoch; the last one of an epoch may have fewer rows."""
        return -(-self.rows // self.step_rows)

    def forget_rows(self, step: int) -> list[int]:
        """The forget rows of a step, counted from 0."""
        epoch, within = divmod(step, self.per_epoch)
        order = _order(self.rows, self.seed, epoch)
        return order[within * self.step_rows : (within + 1) * self.step_rows]

    def retain_rows(self, step: int) -> list[int]:
        """The retain rows of a step: as many, going round the retain set in another order each time."""
        if not self.retain:
            return []
        found = []
        for index in range(step * self.step_rows, step * self.step_rows + len(self.forget_rows(step))):
            turn, within = divmod(index, self.retain)
            found.append(_order(self.retain, self.seed + 1, turn)[within])
        return found

    def evaluations(self, every: float) -> list[int]:
        """The numbers of completed steps after which to evaluate, the last step among them."""
        between = max(1, every * self.per_epoch)  # in steps; there is nothing new between two of them
        marks = (round(k * between) for k in range(1, int(self.steps / between) + 1))
        return sorted({mark for mark in marks if 1 <= mark < self.steps} | {self.steps})


def _order(count: int, seed: int, turn: int) -> list[int]:
    order: list[int] = np.random.default_rng([seed, turn]).permutation(count).tolist()
    return order


def learning_rate(config: Config, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then as `--scheduler` says."""
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return config.rate * (step + 1) / warm
    left = (step - warm) / max(1, steps - warm)
    factor = {"constant": 1.0, "linear": 1 - left, "cosine": 0.5 * (1 + math.cos(math.pi * left))}[config.scheduler]
    return config.rate * factor
