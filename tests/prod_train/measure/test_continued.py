"""Another round of training, on what the model writes itself: against greedy decoding written down plainly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from prod_decode.harness.continuing import ending_ids
from prod_decode.storage.models import ADAPTER, load_model
from prod_train.config.config import Config
from prod_train.data.rows import Row
from prod_train.measure.continued import continued_rows, load_continued, save_continued
from prod_train.model.modeling import trainable
from prod_train.run.check import check
from prod_train.run.job import ANCHORS, CONTINUED, prepare
from prod_train.run.session import evaluate, setup
from prod_train.run.trainer import fit, run
from tests.strategies import rows_to_continue
from tests.tiny import tiny_world

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def written_by(world: dict[str, str]) -> tuple[Any, Any]:
    """A model and a tokenizer one of whose special tokens the model likes to write."""
    model, tokenizer = load_model(world["model"])
    ids = torch.arange(256)[:, None]
    with torch.no_grad():
        favourites = model(input_ids=ids).logits[:, -1].argmax(-1)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(int(favourites.mode().values))
    return model, tokenizer


def make(world: dict[str, str], output: Path, **options: Any) -> Config:
    given_ = {"method": "prod-surgical", "max_quote": 12, "batch_size": 2, "eval_batch_size": 3, "epochs": 1}
    return Config(**{**world, "output": str(output), "learning_rate": 1e-2, **given_, **options})


@torch.no_grad()
def greedy(model: Any, ids: list[int], tokens: int, ends: set[int]) -> list[int]:
    """Token after token, from a whole forward pass each."""
    found: list[int] = []
    while len(found) < tokens:
        token = int(model(input_ids=torch.tensor([ids + found])).logits[0, -1].argmax())
        if token in ends:
            break
        found.append(token)
    return found


@settings(max_examples=40)
@given(rows=rows_to_continue(), tokens=st.integers(1, 5), max_length=st.integers(2, 14), batch_size=st.integers(1, 5))
def test_continuations_are_greedy_and_supervised_from_every_point(
    written_by: tuple[Any, Any], rows: list[Row], tokens: int, max_length: int, batch_size: int
) -> None:
    model, tokenizer = written_by
    got = continued_rows(model, tokenizer, rows, tokens=tokens, max_length=max_length, batch_size=batch_size)
    ends = {*ending_ids(tokenizer), *range(len(tokenizer), model.config.vocab_size)}
    want = []
    for row in rows:
        length = len(row.ids) - row.has_eos - row.start
        for cut in {row.start + quarters * length // 4 for quarters in range(4)}:
            written = greedy(model, row.ids[:cut].tolist(), tokens, ends)[: max_length - cut]
            if written and cut < max_length:
                want.append((row.place, row.ids[:cut].tolist() + written, cut))
    found = [(row.place.split(",")[0], row.ids.tolist(), row.start) for row in got]
    assert sorted(found) == sorted(want)
    for row in got:
        assert np.flatnonzero(row.supervised).tolist() == list(range(row.start, len(row.ids)))
        assert (row.stop, str(row.ids.dtype), row.truncated) == (len(row.ids), "int64", False)


@given(rows=rows_to_continue())
def test_continuations_come_back_as_they_were_saved(
    written_by: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    path = tmp_path_factory.mktemp("c") / CONTINUED
    save_continued(path, rows, written_by[1])
    for before, after in zip(rows, load_continued(path), strict=True):
        assert (after.place, after.start, after.ids.tolist()) == (before.place, before.start, before.ids.tolist())
        assert np.flatnonzero(after.supervised).tolist() == list(range(before.start, len(before.ids)))


def first_round(world: dict[str, str], output: Path) -> dict[str, str]:
    """The flags that make a second one of it."""
    run(make(world, output))
    return {"model": str(output), "blocklist": str(output / ANCHORS)}


@pytest.mark.slow
def test_a_second_round_trains_on_the_forget_set_and_on_what_was_written(world: dict[str, str], tmp_path: Path) -> None:
    second = first_round(world, tmp_path / "first")
    config = make({**world, **second}, tmp_path / "o", continuations=6)
    session = setup(prepare(config))
    job = session.job
    assert 4 < len(job.continued) <= 4 * 4
    assert [row.ids.tolist() for row in job.trained] == [row.ids.tolist() for row in (*job.forget, *job.continued)]
    assert evaluate(session)["forget"]["recitation"]["n"] == len(job.forget) == 4

    # The same rows, all of them given.
    plain = replace(config, output=str(tmp_path / "p"), continuations=0)
    given_ = setup(replace(job, config=plain, forget=job.trained, continued=[]))
    assert session.schedule == given_.schedule
    for one in (session, given_):
        fit(one)
    before = trainable(setup(prepare(replace(plain, output=str(tmp_path / "q")))).model)
    for name, weights in trainable(session.model).items():
        assert torch.equal(weights, trainable(given_.model)[name]), name
        assert not torch.equal(weights, before[name]), name


def test_what_is_retained_is_the_model_with_its_adapter_or_without(world: dict[str, str], tmp_path: Path) -> None:
    second = first_round(world, tmp_path / "first")
    base, _ = load_model(world["model"])
    models = {"start": PeftModel.from_pretrained(load_model(world["model"])[0], second["model"]), "base": base}
    kept, said = {}, {}
    for name, model in models.items():
        # One cache for both: they must not be taken for each other.
        options = {"retain_reference": name, "cache": str(tmp_path / "cache")}
        session = setup(prepare(make({**world, **second}, tmp_path / name, **options)))
        kept[name] = session.stores["retain"].batch([1], "cpu").hidden
        row = session.job.retain[1]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor(row.ids[None]), output_hidden_states=True).hidden_states[-1][0]
        said[name] = hidden[np.flatnonzero(row.supervised) - 1]
        assert len(trainable(session.model)) > 9
    near = {(a, b): torch.allclose(kept[a].float(), said[b], atol=2e-2) for a in kept for b in said}
    assert near == {(a, b): a == b for a in kept for b in said}


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_what_was_written(world: dict[str, str], tmp_path: Path) -> None:
    second = first_round(world, tmp_path / "first")
    config = make({**world, **second}, tmp_path / "o", continuations=6, max_steps=4, eval_every=0.1, save_total_limit=9)
    whole = run(config)
    path = tmp_path / "o" / CONTINUED
    before = path.stat().st_mtime_ns
    again = run(replace(config, resume=str(tmp_path / "o" / "checkpoint-2")))
    assert whole.after is not None
    assert again.after is not None
    assert {**again.after, "seconds": 0} == {**whole.after, "seconds": 0}
    assert path.stat().st_mtime_ns == before
    data = json.loads((tmp_path / "o" / "report.json").read_text())["data"]
    lines = path.read_text().splitlines()
    assert (data["forget"]["rows"], data["continued"]["rows"]) == (4, len(lines))
    assert data["continued"]["hash"] in (tmp_path / "o" / "README.md").read_text()
    # Left by a run that was killed before its first checkpoint: made anew.
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / CONTINUED).write_text(lines[0] + "\n")
    assert len(setup(prepare(replace(config, output=str(tmp_path / "r")))).job.continued) == len(lines)


def test_a_dry_run_counts_what_would_be_written(world: dict[str, str], tmp_path: Path) -> None:
    config = make({**world, **first_round(world, tmp_path / "first")}, tmp_path / "o", continuations=6, epochs=2)
    rows = len(setup(prepare(config)).job.trained)
    assert check(replace(config, output=str(tmp_path / "c"))).steps == 2 * -(-rows // 2)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "npo"}, "--continuations: belongs to method prod and prod-surgical, got npo: drop it"),
        ({"method": "prod"}, "--continuations: expected --blocklist, or all that the model writes would be prohibited"),
        (
            {"continuations": 0, "retain_reference": "base"},
            "--retain-reference base: expected an adapter's directory as --model, got ",
        ),
        (
            {"continuations": 0, "retain_reference": "base", "retain_loss": "nll", "model": "ADAPTER"},
            "--retain-reference: belongs to the retain loss kl, got nll: drop it",
        ),
        ({"continuations": -1}, "--continuations: expected at least 0, got -1"),
    ],
)
def test_mistakes_are_named(world: dict[str, str], tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / ADAPTER).touch()
    options = {name: str(tmp_path) if value == "ADAPTER" else value for name, value in options.items()}
    defaults = {"max_quote": Config.max_quote, "continuations": 6}
    (problem,) = make(world, tmp_path / "o", **{**defaults, **options}).problems()
    assert problem.startswith(message)
