"""What a recipe chooses by the size of the model and the data, and the configurations of its rounds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prod_decode.errors import ProdError
from prod_decode.storage.models import parameter_count
from prod_train.config.config import Config, default_of, flag
from prod_train.config.recipe import (
    CONTINUED_TOKENS,
    EPOCHS,
    EVALUATIONS,
    HELD_OUT,
    RATES,
    RECIPES,
    RETAINED,
    STEPS,
    rate_by_size,
)
from prod_train.rounds.library import Piece, library, pieces_of
from prod_train.run.job import ANCHORS
from prod_train.run.recipes import write_rows

# In the output's directory: the whole run of the first of two rounds, and the rows to keep and to measure damage on
# where none were given.
FIRST_ROUND = "first-round"
RETAIN, HOLDOUT = "retain.jsonl", "holdout.jsonl"


@dataclass(frozen=True)
class Chosen:
    """A run with everything that its recipe chooses.

    Attributes:
        config: of the whole run.
        said: what was chosen and why, a line each.
    """

    config: Config
    said: tuple[str, ...] = ()


def choose_all(config: Config, given: Set[str], folder: Path, *, processes: int, write: bool) -> Chosen:
    """Fill in what a recipe leaves to the model and the data.

    Args:
        config: with a recipe, from `make_config`.
        given: the fields that the user gave, which stay.
        folder: where the rows to keep and to hold out are, or go.
        processes: that train together.
        write: make these rows; otherwise those that lie there are taken.

    Raises:
        ProdError: the model or the rows to forget cannot be read, or leave too little of the library.
    """
    recipe = RECIPES[str(config.recipe)]
    said = [f"recipe {config.recipe}: {recipe.reason}"]
    forget = pieces_of(config.forget, config)
    chosen: dict[str, Any] = {}
    if config.learning_rate is None:
        parameters = parameter_count(config.model)
        chosen["learning_rate"] = rate = rate_by_size(parameters)
        said.append(f"--learning-rate {rate:g}: {_measured(parameters)}")
    if not {"epochs", "max_steps"} & given:
        step_rows = config.batch_size * config.accumulate * processes
        per_epoch = max(1, -(-len(forget) // step_rows))
        epochs = max(EPOCHS, float(math.ceil(STEPS / per_epoch)))
        chosen["epochs"] = epochs
        if "eval_every" not in given:
            chosen["eval_every"] = epochs / EVALUATIONS
        said.append(f"--epochs {epochs:g}: {EPOCHS:g}, or {STEPS} optimizer steps where the rows are few")
    if recipe.rounds > 1:
        tokens = config.value("continuations") or CONTINUED_TOKENS
        said.append(
            f"second round: one epoch more at half the rate, also on {tokens} tokens that the model writes behind each "
            "beginning"
        )
    if "max_utility_drop" not in given:
        said.append(f"--max-utility-drop {recipe.drop:g}: more than any run like it lost")
    sets = dict(_sets(config, forget, folder, write=write))
    said += [
        f"{flag(name)} {path}: {count:,} functions of Python's standard library that share nothing with the other sets"
        for name, (path, count) in sets.items()
    ]
    chosen |= {name: str(path) for name, (path, _) in sets.items()}
    return Chosen(replace(config, **chosen), tuple(said))


def _measured(parameters: int) -> str:
    (small, fast), (large, slow) = RATES
    if small <= parameters <= large:
        found = "by its size between"
    else:
        found = f"as the {'smaller' if parameters < small else 'larger'} of"
    return (
        f"{found} {fast:g}, measured at {_millions(small)} parameters, and {slow:g} at {_millions(large)}; this has "
        f"{_millions(parameters)}"
    )


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.0f}M" if parameters >= 1e6 else f"{parameters:,}"


def _sets(
    config: Config, forget: Sequence[Piece], folder: Path, *, write: bool
) -> Iterator[tuple[str, tuple[Path, int]]]:
    """The sets that the user has not given, by name: their file and how many rows it has."""
    lacking = [name for name in ("holdout", "retain") if getattr(config, name) is None]
    if not write:
        for name in lacking:
            path = folder / _FILES[name]
            yield name, (path, len(pieces_of(str(path), config)))
        return
    # One that was given is held apart from one that is made.
    given = [name for name in _FILES if name not in lacking]
    apart = [*forget, *(piece for name in given for piece in pieces_of(getattr(config, name), config))]
    for name in lacking:
        wanted = HELD_OUT if name == "holdout" else max(RETAINED, math.ceil(len(forget) * config.epochs))
        # Bytes: no token has less than one.
        pieces = library(apart, wanted, longest=config.max_length - 2)
        if not pieces:
            raise ProdError(
                f"{flag(name)}: expected a data set, it is missing, and no function of Python's standard library is "
                f"shorter than --max-length {config.max_length} and unlike the rows to forget: give one"
            )
        apart += pieces
        path = folder / _FILES[name]
        write_rows(path, [dict(zip(("prompt", "completion"), piece.row, strict=True)) for piece in pieces])
        yield name, (path, len(pieces))


_FILES = {"retain": RETAIN, "holdout": HOLDOUT}


def rounds_of(config: Config) -> tuple[Config, ...]:
    """The configurations of a recipe's rounds, each a run of its own: the last writes to the output itself.

    The second begins with the first one's adapter and prohibits the same, on what the model writes itself as well. It
    keeps to the model from before both, and is measured from there.
    """
    if config.recipe is None or RECIPES[config.recipe].rounds == 1:
        return (config,)
    output = Path(config.output)
    # Every method's options are fields, which only the program that runs knows.
    of_first: dict[str, Any] = {
        "output": str(output / FIRST_ROUND),
        "cache": str(config.target_folder),
        "continuations": 0,
        "resume": None,
    }
    of_second: dict[str, Any] = {
        # The adapter has its shape, its beginning, and the name of its base.
        **{name: default_of(name) for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_init")},
        "model": of_first["output"],
        "save_base": False,
        "blocklist": config.value("blocklist") or str(output / FIRST_ROUND / ANCHORS),
        "allow": None,
        "continuations": config.value("continuations") or CONTINUED_TOKENS,
        "retain_reference": "base",
        "holdout_reference": "base",
        "learning_rate": config.rate / 2,
        "epochs": 1.0,
        "max_steps": None,
        "eval_every": 0.5,  # with a checkpoint: what the model wrote makes it nearly as long as the first
        "resume": None,
    }
    return replace(config, **of_first), replace(config, **of_second)
