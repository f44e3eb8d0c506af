"""`prod-train check`: a dry run, with all that a recipe chooses."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from prod_train.config.config import Config
from prod_train.measure.continued import GIVEN
from prod_train.rounds.chosen import HOLDOUT, RETAIN, choose_all, rounds_of
from prod_train.rounds.run import Begun
from prod_train.run import check as checking
from prod_train.run.check import Preview
from prod_train.run.output import only_run


def check(config: Config, given: Set[str] = frozenset()) -> Preview:
    """Do a dry run of the round that is next; writes nothing to `config.output`.

    Args:
        config: from `make_config`.
        given: the fields that the user gave; see `prod_train.rounds.run.run`.

    Raises:
        ProdError: whatever a run would raise before its first step.
    """
    if config.recipe is None:
        return checking.check(config)
    config.validate()
    output = Path(config.output)
    with only_run(output):
        begun = Begun.of(config)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) if begun.resume is None else begun.rows(output)
        chosen = choose_all(config, given, folder, processes=1, write=begun.resume is None)
        rounds = rounds_of(chosen.config)
        found = checking.check(replace(rounds[begun.rounds], resume=begun.resume))
    if len(rounds) > 1 and not begun.rounds:
        # Behind each row's prompt and behind three beginnings of its text.
        rows = found.sets["forget"]["rows"] * (1 + len(GIVEN))
        steps = math.ceil(rows / (config.batch_size * config.accumulate))
        found = replace(
            found, steps=found.steps + steps, seconds=found.seconds + steps * found.step_seconds, disk=2 * found.disk
        )
    shown = {name: str(output / file) for name, file in (("retain", RETAIN), ("holdout", HOLDOUT))}
    made_ones = {name: path for name, path in shown.items() if str(getattr(chosen.config, name)).startswith(made)}
    return replace(
        found,
        config=chosen.config.to_dict() | made_ones,
        recipe=tuple(line.replace(made, str(output)) for line in chosen.said),
    )
