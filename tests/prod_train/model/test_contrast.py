"""Adapters that look where the forget set differs: against an oracle made of plain forward passes and numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from prod_train.config.config import Config
from prod_train.data.rows import Row, collate
from prod_train.model import contrast as contrast_module
from prod_train.model.contrast import RIDGE, contrast, directions
from prod_train.run.job import prepare
from prod_train.run.session import setup
from prod_train.run.trainer import run
from tests.tiny import tiny_world, write_snippets

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_world(tmp_path_factory.mktemp("world"))


def make(world: dict[str, str], output: Path, **options: Any) -> Config:
    given_ = {"method": "npo", "lora_rank": 4, "batch_size": 2, "eval_batch_size": 3, "learning_rate": 1e-2}
    return Config(**{**world, "output": str(output), **given_, **options})


def second_moment(seed: int, width: int, rank: int) -> Tensor:
    x = np.random.default_rng(seed).normal(size=(rank, width)) * np.geomspace(1, 30, width)
    return torch.from_numpy(x.T @ x / rank)


@given(
    seed=st.integers(0, 99),
    width=st.integers(1, 12),
    ranks=st.tuples(st.integers(1, 20), st.integers(0, 20)),
    count=st.integers(1, 16),
    scale=st.sampled_from([1e-8, 1.0, 1e6]),
)
def test_directions_are_the_first_generalised_eigenvectors(
    seed: int, width: int, ranks: tuple[int, int], count: int, scale: float
) -> None:
    wanted = scale * second_moment(seed, width, ranks[0])
    unwanted = scale * second_moment(seed + 100, width, ranks[1]) if ranks[1] else torch.zeros_like(wanted)
    found = directions(wanted, unwanted, count).numpy()
    assert found.shape == (min(count, width), width)
    ridge = RIDGE * (wanted.trace() + unwanted.trace()).item() / (2 * width)
    below = unwanted.numpy() + ridge * np.eye(width)
    ratios = np.einsum("rd,de,re->r", found, wanted.numpy(), found) / np.einsum("rd,de,re->r", found, below, found)
    expected = np.sort(np.linalg.eigvals(np.linalg.solve(below, wanted.numpy())).real)[-len(found) :]
    np.testing.assert_allclose(np.sort(ratios), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(found[0]))
    np.testing.assert_allclose(
        np.einsum("rd,de,re->", found, wanted.numpy(), found), len(found) * wanted.trace().item() / (3 * width)
    )


def test_a_direction_that_only_one_set_has_is_found() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(size=(500, 8)) * 10
    own = np.zeros((500, 8))
    own[:, 3] = rng.normal(size=500)
    common[:, 3] = 0
    wanted, unwanted = (torch.from_numpy(x.T @ x / 500) for x in (common + own, common))
    (found,) = directions(wanted, unwanted, 1).numpy()
    assert abs(found[3]) / np.linalg.norm(found) > 0.999


def inputs(session: Any, rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """What comes into every adapted layer, one row after the other and so without padding: float64 [tokens, d]."""
    seen: dict[str, list[NDArray[np.float64]]] = {}
    layers = {name: m for name, m in session.model.named_modules() if hasattr(m, "lora_A")}
    hooks = [
        layer.register_forward_hook(
            lambda _, given_, __, name=name: seen.setdefault(name, []).append(given_[0][0].double().numpy())
        )
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for row in rows:
            session.model(input_ids=torch.from_numpy(row.ids)[None])
    for hook in hooks:
        hook.remove()
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def matrices(session: Any, which: str = "lora_A") -> dict[str, NDArray[np.float64]]:
    return {
        name: getattr(module, which)["default"].weight.detach().double().numpy()
        for name, module in session.model.named_modules()
        if hasattr(module, which)
    }


def test_every_layer_looks_at_what_its_input_has_on_the_forget_set(world: dict[str, str], tmp_path: Path) -> None:
    random, session = (setup(prepare(make(world, tmp_path, lora_init=how))) for how in ("random", "contrast"))
    forget, retain = (inputs(session, rows) for rows in (session.job.forget, session.job.retain))
    drawn, found = matrices(random), matrices(session)
    assert len(found) == 14
    for name, a in found.items():
        wanted, unwanted = (x.T @ x / len(x) for x in (forget[name], retain[name]))
        expected = directions(torch.from_numpy(wanted), torch.from_numpy(unwanted), 4).numpy()
        np.testing.assert_allclose(a.T @ a, expected.T @ expected, atol=1e-3 * np.square(expected).sum())
        kept = [np.square(retain[name] @ m.T).mean() / np.square(forget[name] @ m.T).mean() for m in (a, drawn[name])]
        assert kept[0] < 0.7 * kept[1]
        # As much as from PEFT's draw: within what 4 random rows differ by.
        assert 0.3 < np.square(forget[name] @ a.T).sum() / np.square(forget[name] @ drawn[name].T).sum() < 3
    assert not any(b.any() for b in matrices(session, "lora_B").values())


def test_padding_and_batches_make_no_difference(world: dict[str, str], tmp_path: Path) -> None:
    configs = [make(world, tmp_path / str(n), lora_init="contrast", eval_batch_size=n) for n in (1, 3)]
    sessions = [setup(prepare(config)) for config in configs]
    one, three = map(matrices, sessions)
    for name, a in one.items():
        np.testing.assert_allclose(a.T @ a, three[name].T @ three[name], atol=1e-4 * np.square(a).sum())


def test_what_was_found_is_kept_for_runs_on_the_same_rows(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"cache": str(tmp_path / "cache"), "lora_init": "contrast"}
    first = matrices(setup(prepare(make(world, tmp_path / "a", **shared))))
    new = write_snippets(tmp_path / "n.jsonl", 3, 7)
    others = {"retain": new}, {"forget": new}, {"lora_rank": 5}, {"dtype": "bfloat16"}
    seen: list[object] = []
    plain = contrast_module._second_moments

    def counted(*given_: Any) -> dict[Any, Tensor]:
        seen.append(given_)
        return plain(*given_)

    monkeypatch.setattr(contrast_module, "_second_moments", counted)
    again = matrices(setup(prepare(make(world, tmp_path / "b", method="prod", seed=7, **shared))))
    assert not seen
    assert all(np.array_equal(a, again[name]) for name, a in first.items())
    for number, other in enumerate(others):
        found = matrices(setup(prepare(make(world, tmp_path / f"c{number}", **{**shared, **other}))))
        assert len(seen) == 2 * (number + 1)
        assert any(a.shape != found[name].shape or (a != found[name]).any() for name, a in first.items())


def test_a_wide_input_is_projected(world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast_module, "WIDEST", 40)
    contrast_module._projection.cache_clear()
    session = setup(prepare(make(world, tmp_path, lora_init="contrast")))
    contrast_module._projection.cache_clear()
    forget, retain = (inputs(session, rows) for rows in (session.job.forget, session.job.retain))
    for name, a in matrices(session).items():
        assert a.shape[1] == (48 if "down_proj" in name else 32)
        shares = [np.square(x @ a.T).mean() / np.square(x).mean() for x in (retain[name], forget[name])]
        assert shares[0] < 0.5 * shares[1]


def test_layers_with_more_rows_than_inputs_keep_what_was_drawn(world: dict[str, str], tmp_path: Path) -> None:
    random, session = (
        setup(prepare(make(world, tmp_path, lora_init=how, lora_rank=35))) for how in ("random", "contrast")
    )
    drawn = matrices(random)
    for name, a in matrices(session).items():
        changed = (a != drawn[name]).any(axis=1)
        assert changed.sum() == min(35, a.shape[1])


def test_a_layer_to_which_nothing_comes_is_left_alone(world: dict[str, str], tmp_path: Path) -> None:
    session = setup(prepare(make(world, tmp_path)))
    before = matrices(session)
    norms = [m for name, m in session.model.named_modules() if name.endswith("0.input_layernorm")]
    with torch.no_grad():
        norms[0].weight.zero_()
    contrast(
        session.model,
        session.encoder,
        session.job.forget,
        session.job.retain,
        pad=session.job.pad,
        batch_size=2,
        folder=tmp_path,
        identity="silent",
    )
    silent = {name for name, a in matrices(session).items() if (a == before[name]).all()}
    assert {name.rpartition(".")[2] for name in silent if ".0." in name} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert not any(".1." in name for name in silent)


def test_the_model_begins_as_it_is(world: dict[str, str], tmp_path: Path) -> None:
    logits = []
    for how in ("random", "contrast"):
        session = setup(prepare(make(world, tmp_path, lora_init=how)))
        batch = collate(session.job.forget, session.job.pad)
        with torch.no_grad():
            logits.append(session.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits)
    assert torch.equal(*logits)


def test_a_run_with_it_goes_on_from_a_checkpoint(world: dict[str, str], tmp_path: Path) -> None:
    options = {"lora_init": "contrast", "epochs": 2, "eval_every": 1}
    run(make(world, tmp_path / "o", **options))
    run(make(world, tmp_path / "p", resume=str(tmp_path / "o" / "checkpoint-2"), **options))
    whole, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "op")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert all(v.any() for v in whole.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retain": None}, "--lora-init contrast: expected --retain, to tell the forget set from, it is missing"),
        ({"tuning": "full"}, "--lora-init contrast: full tuning has no adapters: drop one of the two"),
        ({"lora_init": "eva"}, "--lora-init: expected random, contrast, got 'eva'"),
    ],
)
def test_mistakes_are_named(world: dict[str, str], tmp_path: Path, options: dict[str, Any], message: str) -> None:
    assert message in make(world, tmp_path, **{"lora_init": "contrast", **options}).problems()


def test_an_adapter_that_is_there_keeps_its_own(world: dict[str, str], tmp_path: Path) -> None:
    run(make(world, tmp_path / "o", max_steps=1))
    message = "--lora-init contrast: --model has an adapter already: drop the flag"
    assert message in make(world, tmp_path, model=str(tmp_path / "o"), lora_init="contrast").problems()
