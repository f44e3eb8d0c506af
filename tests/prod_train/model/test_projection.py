"""Gradients of the forget loss off what the retain set has in common: against numpy and plain passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    OPTConfig,
    OPTForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from prod_decode.errors import ProdError
from prod_train.config.config import Config
from prod_train.model import projection
from prod_train.model.projection import _Sketch, projected
from prod_train.run import trainer
from prod_train.run.check import check
from prod_train.run.job import prepare
from prod_train.run.session import Session, setup
from tests.prod_train.model.test_contrast import inputs
from tests.tiny import tiny_world, write_snippets

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_world(tmp_path_factory.mktemp("world"))


def make(world: dict[str, str], output: Path, **options: Any) -> Config:
    given_: dict[str, Any] = {"method": "npo", "lora_rank": 4, "batch_size": 2, "eval_batch_size": 3}
    given_ |= {"gradient_projection": COUNT, "max_grad_norm": float("inf")}
    return Config(**{**world, "output": str(output), **given_, **options})


def ready(world: dict[str, str], output: Path, **options: Any) -> Session:
    """A session in which B is not zero any more, so that A has a gradient."""
    session = setup(prepare(make(world, output, **options)))
    drawn = torch.Generator().manual_seed(0)
    for name, parameter in session.model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=drawn) / 10)
    return session


def energy(second: np.ndarray, directions: np.ndarray) -> float:
    return float(np.einsum("dn,de,en->", directions, second, directions))


@given(
    seed=st.integers(0, 999),
    width=st.integers(1, 24),
    tokens=st.integers(1, 60),
    count=st.integers(1, 30),
    scale=st.sampled_from([1e-6, 1.0, 1e5]),
)
def test_a_sketch_with_as_many_columns_as_inputs_is_exact(
    seed: int, width: int, tokens: int, count: int, scale: float
) -> None:
    x = scale * np.random.default_rng(seed).normal(size=(tokens, width)) * np.geomspace(1, 30, width)
    sketch = _Sketch(width, count, torch.device("cpu"))
    for part in np.array_split(x, 3):
        sketch.add(torch.from_numpy(part).float())
    found = sketch.first(count).double().numpy()
    values = np.linalg.eigvalsh(x.T @ x)[::-1]
    expected = min(count, width - 1, tokens)
    assert found.shape == (width, expected)
    np.testing.assert_allclose(found.T @ found, np.eye(expected), atol=1e-5)
    np.testing.assert_allclose(energy(x.T @ x, found), values[:expected].sum(), rtol=1e-4)


@pytest.mark.parametrize("decay", [0.9, 0.97])
def test_a_narrower_sketch_finds_nearly_the_best(decay: float) -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(300, 300)))[0]
    x = (rng.normal(size=(2000, 300)) * decay ** np.arange(300)) @ turn
    sketch = _Sketch(300, 16, torch.device("cpu"))
    assert sketch._sum.shape == (300, 64)
    sketch.add(torch.from_numpy(x).float())
    found = sketch.first(16).double().numpy()
    assert energy(x.T @ x, found) > 0.99 * np.linalg.eigvalsh(x.T @ x)[-16:].sum()


def test_one_direction_that_drowns_the_others_leaves_them_to_be_found() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 40)) * np.array([3e3, *np.ones(7), *np.full(32, 1e-2)])
    sketch = _Sketch(40, 8, torch.device("cpu"))
    sketch.add(torch.from_numpy(x).float())
    found = sketch.first(8).double().numpy()
    np.testing.assert_allclose(np.square(found[:8]).sum(axis=1), 1, atol=1e-2)


def test_what_never_comes_in_has_no_directions() -> None:
    sketch = _Sketch(4, 2, torch.device("cpu"))
    assert sketch.first(2).shape == (4, 0)
    sketch.add(torch.zeros(3, 4))
    assert sketch.first(2).shape == (4, 0)


def test_directions_are_those_of_the_retain_set_without_padding(world: dict[str, str], tmp_path: Path) -> None:
    session = setup(prepare(make(world, tmp_path)))
    layers = {module: name for name, module in session.model.named_modules()}
    assert len(session.directions) == 14
    seen = inputs(session, session.job.retain)
    for module, directions in session.directions.items():
        x = seen[layers[module].removesuffix(".lora_A.default")]
        best = np.linalg.eigvalsh(x.T @ x)[-COUNT:].sum()
        np.testing.assert_allclose(energy(x.T @ x, directions.double().numpy()), best, rtol=1e-4)


@pytest.mark.parametrize("family", ["opt", "qwen2_moe"])
def test_padding_is_left_out_where_a_model_puts_all_tokens_into_one_list(
    tmp_path: Path, world: dict[str, str], family: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world["model"])
    torch.manual_seed(0)
    wide = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    if family == "opt":
        made: Any = OPTForCausalLM(OPTConfig(**wide, ffn_dim=40, word_embed_proj_dim=32, pad_token_id=265))
    else:
        sizes = {"intermediate_size": 40, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}
        few = {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4, "head_dim": 8}
        made = Qwen2MoeForCausalLM(Qwen2MoeConfig(**wide, **sizes, **few))
    made.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    targets = ("fc1", "fc2") if family == "opt" else ("shared_expert.gate_proj", "shared_expert.down_proj")
    one, three = (
        setup(
            prepare(make(world, tmp_path / str(n), model=str(tmp_path / "m"), lora_targets=targets, eval_batch_size=n))
        )
        for n in (1, 3)
    )
    assert len({len(row.ids) for row in one.job.retain}) == 3
    assert len(one.directions) == len(three.directions) == 2
    for mine, other in zip(one.directions.values(), three.directions.values(), strict=True):
        torch.testing.assert_close(mine @ mine.T, other @ other.T, rtol=1e-3, atol=1e-4)


class Recorder:
    """An optimizer that keeps the gradients it is given."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.param_groups: list[dict[str, float]] = [{}]
        self.found: dict[str, Tensor] = {}

    def zero_grad(self, *, set_to_none: bool) -> None:
        assert set_to_none
        for parameter in self.model.parameters():
            parameter.grad = None

    def step(self) -> None:
        self.found = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}


def gradients(session: Session) -> tuple[float, dict[str, Tensor]]:
    """The loss of a step, and its gradients."""
    recorder = Recorder(session.model)
    loss = trainer.train_step(session, session.model, recorder, 0)
    return float(loss), recorder.found


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"method": "prod"}, {"method": "dpo"}])
def test_a_step_is_projected_in_the_forget_loss_alone(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    session = ready(world, tmp_path, **options)
    loss, found = gradients(session)
    by_name = {
        f"{n}.weight": session.directions[m] for n, m in session.model.named_modules() if m in session.directions
    }
    session.directions = {}
    whole_loss, whole = gradients(session)
    monkeypatch.setattr(trainer, "_forget_parts", lambda *_: [])
    _, of_retain = gradients(session)
    assert loss == whole_loss
    assert len(by_name) == 14
    for name, gradient in whole.items():
        of_forget = gradient - of_retain[name]
        common = by_name.get(name)
        expected = gradient if common is None else gradient - of_forget @ common @ common.T
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
        if common is not None:
            assert float((of_forget @ common).norm()) > 0.1 * float(of_forget.norm())


def test_outputs_are_as_they_were_to_the_bit(world: dict[str, str], tmp_path: Path) -> None:
    session = ready(world, tmp_path)
    ids = torch.arange(20)[None]
    before = session.model(input_ids=ids).logits
    with projected(session.directions):
        within = session.model(input_ids=ids).logits
    assert torch.equal(before, within)
    assert not any(module._forward_hooks for module in session.directions)


def test_what_was_found_is_kept_for_runs_on_the_same_rows(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    plain = projection.see_tokens

    def counted(*given_: Any) -> None:
        seen.append(given_)
        plain(*given_)

    monkeypatch.setattr(projection, "see_tokens", counted)
    shared = {"cache": str(tmp_path / "cache")}
    first = setup(prepare(make(world, tmp_path / "a", **shared))).directions
    again = setup(prepare(make(world, tmp_path / "b", method="prod", **shared))).directions
    assert len(seen) == 1
    for mine, other in zip(first.values(), again.values(), strict=True):
        assert torch.equal(mine, other)
    others: tuple[dict[str, Any], ...] = (
        {"retain": write_snippets(tmp_path / "n.jsonl", 3, 7)},
        {"gradient_projection": COUNT + 1},
        {"dtype": "bfloat16"},
    )
    for number, other in enumerate(others):
        setup(prepare(make(world, tmp_path / f"c{number}", **{**shared, **other})))
        assert len(seen) == number + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retain": None}, "--gradient-projection: expected --retain, whose directions they are, it is missing"),
        ({"tuning": "full"}, "--gradient-projection: full tuning has no adapters: drop one of the two"),
        ({"gradient_projection": -1}, "--gradient-projection: expected .*0.*, got -1"),
        (
            {"retain_loss": "none"},
            "^--gradient-projection: belongs to a retain loss, got --retain-loss none: drop one of",
        ),
    ],
)
def test_what_it_cannot_go_with_is_refused(
    world: dict[str, str], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProdError, match=message):
        make(world, tmp_path, **options).validate()


@pytest.mark.parametrize("targets", [["embed_tokens"], ["q_proj", "embed_tokens"]])
def test_an_adapter_on_embeddings_is_not_left_unprojected(
    world: dict[str, str], tmp_path: Path, targets: list[str]
) -> None:
    base = AutoModelForCausalLM.from_pretrained(world["model"])
    adapter = get_peft_model(base, LoraConfig(r=2, target_modules=targets))
    adapter.save_pretrained(tmp_path / "a")
    AutoTokenizer.from_pretrained(world["model"]).save_pretrained(tmp_path / "a")
    with pytest.raises(
        ProdError, match=r"--gradient-projection: 1 adapters are on no layer with an input, .*embed_tok"
    ):
        setup(prepare(make(world, tmp_path / "o", model=str(tmp_path / "a"), lora_rank=16)))
    assert not (tmp_path / "o" / "targets").exists()


def test_directions_are_in_the_estimates(world: dict[str, str], tmp_path: Path) -> None:
    none, some = (check(make(world, tmp_path, gradient_projection=count)) for count in (0, COUNT))
    # Per layer: three inputs of 32 (of attention, of its output, of the MLP) and one of 48.
    extra = 2 * (3 * 32 + 48) * COUNT * 4
    assert (some.memory["training"] - none.memory["training"], some.disk - none.disk) == (extra, extra)
