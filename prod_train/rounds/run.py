"""`prod-train run`: a run without a recipe, or the rounds of one, as one run with one result."""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prod_decode.errors import ProdError, reason
from prod_train.config.config import Config
from prod_train.rounds.chosen import FIRST_ROUND, HOLDOUT, RETAIN, Chosen, choose_all, rounds_of
from prod_train.run import trainer
from prod_train.run.job import check_output, expect_all_processes, prepare
from prod_train.run.output import checkpoints, is_first, mark, only_run
from prod_train.run.report import RunReport, Whole
from prod_train.run.trainer import train

_log = logging.getLogger(__name__)


def run(config: Config, given: Set[str] = frozenset(), *, progress: bool = False) -> RunReport:
    """Train, measure and write the result, in as many rounds as the recipe has, if there is one.

    Args:
        config: from `make_config`.
        given: the fields that the user gave, which no recipe chooses; see `given_fields`.
        progress: show bars.

    Raises:
        ProdError: as `prod_train.run.trainer.run`, of any round.
    """
    if config.recipe is None:
        return trainer.run(config, progress=progress)
    config.validate()
    expect_all_processes()
    output = Path(config.output)
    with only_run(output):
        begun = Begun.of(config)
        if begun.resume is None:
            mark(output, unfinished=True)
        with _tidy(output, begun):
            chosen = _choose(config, given, begun)
            rounds = rounds_of(chosen.config)
            job = prepare(replace(rounds[begun.rounds], resume=begun.resume))
        for line in chosen.said if is_first() else ():
            _log.info("%s", line)
        if len(rounds) == 1:
            return train(job, Whole(chosen.config, chosen.said), progress=progress)
        if not begun.rounds:
            report = train(job, Whole(rounds[0], chosen.said), progress=progress)
            if report.chosen is None:
                return report
            gc.collect()  # the model of the first round
            torch.cuda.empty_cache()
            job = prepare(rounds[1])
        earlier = _report(output / FIRST_ROUND)
        return train(job, Whole(chosen.config, chosen.said, earlier), progress=progress)


@dataclass(frozen=True)
class Begun:
    """How far a run with a recipe has come before.

    Attributes:
        rounds: that are done.
        resume: as `Config.resume`, of the round to go on with; None to begin it.
    """

    rounds: int
    resume: str | None

    @classmethod
    def of(cls, config: Config) -> Begun:
        """Of the run that a configuration asks for.

        A second round that had not come to its first checkpoint begins again, from the first, which is only loaded.

        Raises:
            ProdError: as `check_output`.
        """
        output = Path(config.output)
        found = check_output(config)
        if len(rounds_of(config)) == 1:
            return cls(0, found.resume)
        if checkpoints(output):
            return cls(1, found.resume)
        if not checkpoints(output / FIRST_ROUND):
            return cls(0, None)
        if config.resume is None:
            raise ProdError(f"--output: {output} is not empty: name a new directory, or go on with --resume latest")
        return cls(0, "latest")

    def rows(self, output: Path) -> Path:
        """Where the rows lie that are made where none are given: beside the checkpoint that is gone on from."""
        return output if self.resume in (None, "latest") else Path(str(self.resume)).parent


def _choose(config: Config, given: Set[str], begun: Begun) -> Chosen:
    """What the recipe chooses; of several processes the first writes the rows."""
    folder = begun.rows(Path(config.output))
    processes = int(os.environ.get("WORLD_SIZE", "1"))

    def choose(*, write: bool) -> Chosen:
        return choose_all(config, given, folder, processes=processes, write=write)

    chosen = choose(write=begun.resume is None) if is_first() else None
    if processes > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
    return chosen or choose(write=False)


@contextmanager
def _tidy(output: Path, begun: Begun) -> Iterator[None]:
    """What a mistake that is told before training leaves: nothing that was made for it."""
    try:
        yield
    except ProdError:
        if begun.resume is None:
            for name in (RETAIN, HOLDOUT):
                (output / name).unlink(missing_ok=True)
        raise


def _report(folder: Path) -> dict[str, Any]:
    """What a round before reported."""
    try:
        found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    except (OSError, ValueError) as error:
        raise ProdError(
            f"{folder}: expected the first round's report.json, got {reason(error)}: start anew in another --output"
        ) from None
    return found
