"""What a recipe chooses of a run: its method, rounds, rates and rules, each from what this project measured.

The reasons are in docs/design/recipes.md, beside the tables that they are taken from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prod_decode.storage.models import ADAPTER

# (parameters, learning rate): SmolLM2-135M and Qwen2.5-Coder-1.5B, the two models that were measured.
RATES = ((134_515_008, 1e-3), (1_543_714_304, 3e-4))

# Passes over the rows to forget, and, where they are few, the optimizer steps of those runs: 20 rows in batches of 2.
EPOCHS, STEPS = 6.0, 60
# An evaluation also writes a checkpoint.
EVALUATIONS = 3

# Rows to keep and to measure damage on, where none are given. There were 120 and 20 in those runs, and every row to
# keep was seen once.
RETAINED, HELD_OUT = 120, 64

# Tokens that a model writes behind each beginning for its second round.
CONTINUED_TOKENS = 64


@dataclass(frozen=True)
class RunRecipe:
    """A way to unlearn that needs no numbers.

    Attributes:
        method: as in `--method`.
        rounds: 1, or 2 of the same method, see `prod_train.rounds`.
        drop: `--max-utility-drop`: more than any run like it lost, so that only one that goes wrong ends early.
        reason: what speaks for it, in one line.
    """

    method: str
    rounds: int
    drop: float
    reason: str

    @property
    def options(self) -> Mapping[str, Any]:
        """The fields of `Config` that depend on nothing else."""
        opening = {"opening": 48} if self.method == "prod-surgical" else {}
        return {
            "method": self.method,
            "retain_loss": "kl",
            "lora_init": "contrast",
            "epochs": EPOCHS,
            "eval_every": EPOCHS / EVALUATIONS,
            "batch_size": 2,
            "max_utility_drop": self.drop,
            **opening,
        }


RECIPES = {
    "gentle": RunRecipe("prod-surgical", 1, 0.2, "one round of prod-surgical, in half the time of balanced"),
    "balanced": RunRecipe(
        "prod-surgical",
        2,
        0.2,
        "two rounds of prod-surgical, as much forgotten as with prod at a quarter of its KL",
    ),
    "thorough": RunRecipe(
        "prod", 1, 0.3, "prod, which forgot documents most on 1.5B parameters, at three times the KL and more"
    ),
}


def rate_by_size(parameters: int) -> float:
    """The peak learning rate of a model by its size, to two digits.

    Between the two models that were measured it is a straight line where both are logarithms; outside it is that of the
    nearer one.
    """
    (small, fast), (large, slow) = RATES
    if parameters <= small:
        return fast
    if parameters >= large:
        return slow
    share = math.log(parameters / small) / math.log(large / small)
    return float(f"{fast * (slow / fast) ** share:.1e}")


def with_recipe(values: Mapping[str, Any], default: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """The values of a run by field name with those of its recipe, where it names one and gives none, and mistakes.

    Args:
        values: what the user gave.
        default: the recipe where neither a recipe nor a method is given; None: none.
    """
    given = {name: value for name, value in values.items() if value is not None}
    is_default = default is not None and not {"recipe", "method"} & set(values)
    name = default if is_default else given.get("recipe")
    if name not in RECIPES:
        return dict(values), []
    given["recipe"] = name
    recipe = RECIPES[name]
    options = dict(recipe.options)
    if "accumulate" in given:
        del options["batch_size"]
    if given.get("blocklist") is not None:
        options.pop("opening", None)  # of anchors that are chosen
    if _is_adapter(given) or given.get("tuning") == "full":
        options.pop("lora_init")  # told below
    return {**options, **given}, contradictions(name, given, is_default=is_default)


def _is_adapter(given: Mapping[str, Any]) -> bool:
    return Path(str(given.get("model", "")), ADAPTER).is_file()


def contradictions(name: str, given: Mapping[str, Any], *, is_default: bool = False) -> list[str]:
    """What of the given values would make another thing of a recipe, with a remedy.

    Args:
        name: of the recipe.
        given: the values.
        is_default: nobody named the recipe.
    """
    recipe = RECIPES[name]
    whose, remedy, otherwise = f"--recipe {name}", "drop one of the two", ""
    if is_default:
        whose += ", which a run without --method is,"
        remedy = "give a --method"
        otherwise = f", or {remedy}"
    found = []
    # Whoever loads a directory of both a model and an adapter says what is wrong with it.
    if _is_adapter(given) and not Path(given["model"], "config.json").is_file():
        found.append(
            f"{whose.rstrip(',')}: expected a whole model, got the adapter {given['model']}: merge it first{otherwise}"
        )
    if given.get("method", recipe.method) != recipe.method:
        found.append(f"--method {given['method']}: {whose} is a run of {recipe.method}: {remedy}")
    if given.get("tuning") == "full":
        found.append(f"--tuning full: {whose} trains an adapter: {remedy}")
    if given.get("retain_loss") == "none":
        found.append(f"--retain-loss none: {whose} has a retain set: {remedy}")
    if given.get("retain_loss") == "nll" and recipe.rounds > 1:
        found.append(f"--retain-loss nll: the second round of {whose} needs kl: {remedy}")
    found += [
        f"--{option.replace('_', '-')} base: belongs to a second round, and --recipe {name} sees to that: drop it"
        for option in ("retain_reference", "holdout_reference")
        if given.get(option) == "base"
    ]
    if recipe.rounds > 1 and given.get("resume") not in (None, "latest"):
        found.append(f"--resume: expected latest with the two rounds of --recipe {name}, got {given['resume']}")
    return found
