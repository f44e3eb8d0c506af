"""What a recipe chooses, what wins over it, and what contradicts it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.errors import ProdError
from prod_decode.storage.models import ADAPTER
from prod_train.config.config import given_fields, make_config
from prod_train.config.recipe import RATES, RECIPES, rate_by_size
from prod_train.config.stopping import choose

NEEDED = {"model": "m", "forget": "f", "output": "o"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_needs_no_numbers(name: str) -> None:
    config = make_config(None, {**NEEDED, "recipe": name})
    recipe = RECIPES[name]
    assert (config.method, config.max_utility_drop) == (recipe.method, recipe.drop)
    assert (config.lora_init, config.keeps, config.epochs, config.batch_size) == ("contrast", "kl", 6, 2)
    assert config.opening == (48 if recipe.method == "prod-surgical" else 0)


def test_without_one_nothing_changes() -> None:
    config = make_config(None, NEEDED)
    assert (config.method, config.lora_init, config.epochs, config.batch_size) == ("prod", "random", 5, 4)
    assert (config.rate, config.max_utility_drop, config.keeps) == (3e-4, None, "none")


@pytest.mark.parametrize(
    "given_",
    [{"epochs": 3}, {"opening": 0}, {"lora_init": "random"}, {"max_utility_drop": 0.5}, {"batch_size": 8}, {"seed": 1}],
)
def test_what_is_given_wins(given_: dict[str, Any], tmp_path: Path) -> None:
    (name, value), *_ = given_.items()
    assert getattr(make_config(None, {**NEEDED, "recipe": "balanced", **given_}), name) == value
    file = tmp_path / "c.yaml"
    file.write_text(f"recipe: balanced\n{name}: {value}\nretain_loss: null\n")
    assert make_config(str(file), NEEDED).retain_loss == "kl"
    assert getattr(make_config(str(file), NEEDED), name) == value
    assert given_fields(str(file), NEEDED) == {*NEEDED, "recipe", name}


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"method": "npo"}, "--method npo: --recipe balanced is a run of prod-surgical: drop one of the two"),
        ({"tuning": "full"}, "--tuning full: --recipe balanced trains an adapter: drop one of the two"),
        ({"retain_loss": "none"}, "--retain-loss none: --recipe balanced has a retain set: drop one of the two"),
        (
            {"retain_loss": "nll"},
            "--retain-loss nll: the second round of --recipe balanced needs kl: drop one of the two",
        ),
        ({"resume": "c/checkpoint-1"}, "--resume: expected latest with the two rounds of --recipe balanced, got"),
        ({"recipe": "gentel"}, "--recipe: expected gentle, balanced, thorough, got 'gentel'; did you mean 'gentle'?"),
        (
            {"holdout_reference": "base"},
            "--holdout-reference base: belongs to a second round, and --recipe balanced sees to that: drop it",
        ),
    ],
)
def test_what_contradicts_it_is_told(given_: dict[str, Any], said: str) -> None:
    with pytest.raises(ProdError) as error:
        make_config(None, {**NEEDED, "recipe": "balanced", **given_})
    assert any(mistake.startswith(said) for mistake in error.value.mistakes), error.value.mistakes


def test_without_a_method_a_run_takes_the_recipe_that_is_its_default(tmp_path: Path) -> None:
    assert make_config(None, NEEDED, recipe="balanced") == make_config(None, {**NEEDED, "recipe": "balanced"})
    assert make_config(None, NEEDED).recipe is None
    for named in ({"method": "prod"}, {"recipe": "gentle"}, {"method": "learn"}):
        assert make_config(None, {**NEEDED, **named}, recipe="balanced") == make_config(None, {**NEEDED, **named})
    file = tmp_path / "c.yaml"
    file.write_text("recipe: null\nmethod: prod\n")  # as a run without a recipe writes it
    assert make_config(str(file), NEEDED, recipe="balanced").recipe is None
    with pytest.raises(ProdError) as error:
        make_config(None, {**NEEDED, "tuning": "full"}, recipe="balanced")
    assert error.value.mistakes == (
        "--tuning full: --recipe balanced, which a run without --method is, trains an adapter: give a --method",
    )
    (tmp_path / ADAPTER).write_text("{}")
    with pytest.raises(ProdError) as error:
        make_config(None, {**NEEDED, "model": str(tmp_path)}, recipe="balanced")
    assert error.value.mistakes == (
        f"--recipe balanced, which a run without --method is: expected a whole model, got the adapter {tmp_path}: "
        "merge it first, or give a --method",
    )


def test_a_contradiction_is_one_line() -> None:
    with pytest.raises(ProdError) as error:
        make_config(None, {**NEEDED, "recipe": "thorough", "method": "npo"})
    assert len(error.value.mistakes) == 1


def test_an_adapter_has_no_room_for_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ProdError) as error:
        make_config(None, {**NEEDED, "model": str(tmp_path), "recipe": "balanced"})
    assert error.value.mistakes == (
        f"--recipe balanced: expected a whole model, got the adapter {tmp_path}: merge it first",
    )


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_larger_models_learn_no_faster(one: int, other: int) -> None:
    (small, fast), (large, slow) = RATES
    assert slow <= rate_by_size(max(one, other)) <= rate_by_size(min(one, other)) <= fast
    between = math.exp((math.log(small) + math.log(large)) / 2)
    assert rate_by_size(round(between)) == pytest.approx(math.sqrt(fast * slow), rel=0.02)
    assert (rate_by_size(small), rate_by_size(large)) == (fast, slow)


def test_the_last_that_obeys_is_the_result() -> None:
    def record(step: int, recitation: float, agreement: float) -> dict[str, Any]:
        return {
            "step": step,
            "forget": {"recitation": {"value": recitation}},
            "holdout": {"agreement": {"value": agreement}},
        }

    history = [record(1, 0.0, 0.9), record(2, 0.1, 0.95), record(3, 0.0, 0.5)]
    config = make_config(None, {**NEEDED, "recipe": "balanced"})
    assert choose(config, history) == 2
    assert choose(make_config(None, {**NEEDED, "recipe": "balanced", "stop_at_forget": 0.99}), history) == 1
    assert choose(config, history[2:]) is None
