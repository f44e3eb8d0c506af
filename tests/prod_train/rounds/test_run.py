"""Runs with a recipe: two rounds are one run, with one result, wherever they are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prod_decode.errors import ProdError
from prod_train.cli import main
from prod_train.config.config import Config, given_fields, make_config
from prod_train.rounds import chosen
from prod_train.rounds.chosen import FIRST_ROUND, HOLDOUT, RETAIN
from prod_train.rounds.run import run
from prod_train.run import trainer
from prod_train.run.merge import merge
from prod_train.run.recipes import write_rows
from tests.tiny import save_deepseek, save_tiny_model, write_jsonl, write_snippets

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("world")
    return {
        "model": save_tiny_model(folder / "m"),
        "forget": write_snippets(folder / "f.jsonl", 4),
        "retain": write_snippets(folder / "r.jsonl", 3, 4),
        "holdout": write_snippets(folder / "h.jsonl", 3, 7),
    }


# A random model has little to agree with.
LOOSE = {"recipe": "balanced", "epochs": 2, "eval_every": 1, "max_utility_drop": 1, "continuations": 4}


def asked(world: dict[str, str], output: Path, **options: Any) -> tuple[Config, frozenset[str]]:
    values = {**world, **LOOSE, "output": str(output), **options}
    return make_config(None, values), given_fields(None, values)


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter_model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, other = adapter(a), adapter(b)
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def in_another_process(function: Callable[[], object]) -> int:
    """Its exit status, or minus the signal that ended it."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        function()
    finally:
        os._exit(3)


@pytest.fixture(scope="module")
def whole(world: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes out of a run that nobody stops."""
    output = tmp_path_factory.mktemp("whole") / "o"
    run(*asked(world, output))
    return output


def test_two_rounds_are_told_as_one_run(world: dict[str, str], whole: Path) -> None:
    record = json.loads((whole / "report.json").read_text())
    first = json.loads((whole / FIRST_ROUND / "report.json").read_text())
    assert [entry["round"] for entry in record["history"]] == [1, 1, 2, 2]
    steps = [entry["step"] for entry in record["history"]]
    assert steps == sorted(set(steps))
    assert record["chosen"] == steps[-1]
    assert record["before"] == first["before"]
    assert (record["teacher"], record["config"]["model"]) == (first["teacher"], world["model"])
    assert record["history"][0]["holdout"] == first["history"][0]["holdout"]
    # Half the rate, from the first round's adapter.
    rates = [
        yaml.safe_load(path.read_text())["learning_rate"] for path in sorted(whole.rglob("checkpoint-*/config.yaml"))
    ]
    assert set(rates) == {1e-3, 5e-4}
    assert not same(whole, whole / FIRST_ROUND)
    for name in ("README.md", "report.html"):
        text = (whole / name).read_text()
        assert "prod-train run --recipe balanced" in text
        assert record["verdict"] in text
        assert record["recipe"][0] in text
    assert not list(whole.glob(".*"))


def test_distance_is_from_before_both_rounds(world: dict[str, str], whole: Path, tmp_path: Path) -> None:
    """A merge measures from the base as well: the same model has the same distance."""
    record = json.loads((whole / "report.json").read_text())
    found = record["history"][-1]["holdout"]
    assert found["kl"]["value"] > record["history"][0]["holdout"]["kl"]["value"] / 2 > 0
    merge(str(whole), str(tmp_path / "merged"))
    merged = json.loads((tmp_path / "merged" / "report.json").read_text())
    assert merged["metrics"]["holdout"]["kl"]["value"] == pytest.approx(found["kl"]["value"], rel=1e-3)


def test_a_second_round_by_hand_is_measured_from_before_both_as_well(
    world: dict[str, str], whole: Path, tmp_path: Path
) -> None:
    """Without what the first round has cached."""
    first = json.loads((whole / FIRST_ROUND / "report.json").read_text())
    values = {**world, "model": str(whole / FIRST_ROUND), "output": str(tmp_path / "o"), "max_steps": 1}
    for reference, kl in (("start", 0.0), ("base", first["history"][-1]["holdout"]["kl"]["value"])):
        output = str(tmp_path / reference)
        report = trainer.run(make_config(None, {**values, "holdout_reference": reference, "output": output}))
        assert report.before["holdout"]["kl"]["value"] == pytest.approx(kl, rel=1e-3, abs=1e-9)
        assert report.after is not None


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3, 6, 11])
def test_killed_in_either_round_and_resumed_equals_uninterrupted(
    world: dict[str, str], whole: Path, tmp_path: Path, at: int
) -> None:
    """Before an optimizer step: the first round has four, the second the rest, with a checkpoint in the middle."""
    config, given = asked(world, tmp_path / "o")
    done = []

    def train_step(*arguments: Any) -> Any:
        if len(done) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(1)
        return step(*arguments)

    step = trainer.train_step

    def die() -> None:
        trainer.train_step = train_step
        run(config, given)

    assert in_another_process(die) == -signal.SIGKILL
    assert bool(list((tmp_path / "o").glob("checkpoint-*"))) == (at == 11)
    assert not (tmp_path / "o" / "report.json").exists()
    if at >= 2:  # the first checkpoint
        with pytest.raises(ProdError, match="is not empty: name a new directory, or go on with --resume latest"):
            run(config, given)
    report = run(replace(config, resume="latest"), given)
    assert same(whole, tmp_path / "o")
    record, wanted = (json.loads((folder / "report.json").read_text()) for folder in (tmp_path / "o", whole))
    for name in ("before", "chosen", "verdict", "teacher", "data"):
        assert record[name] == wanted[name]
    assert [entry["holdout"] for entry in report.history] == [entry["holdout"] for entry in wanted["history"]]
    assert not list((tmp_path / "o").glob(".*"))


@pytest.mark.slow
def test_a_first_round_is_not_gone_on_from_with_other_settings(
    world: dict[str, str], whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "o")
    for checkpoint in (tmp_path / "o").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (tmp_path / "o" / "report.json").unlink()
    (tmp_path / "o" / ".unfinished").touch()
    config, given = asked(world, tmp_path / "o", resume="latest", learning_rate=1e-4)
    with pytest.raises(ProdError, match="belongs to another run, these differ: --learning-rate: use"):
        run(config, given)


def test_a_first_round_that_obeys_no_rule_is_the_end(world: dict[str, str], tmp_path: Path) -> None:
    config, given = asked(world, tmp_path / "o", max_utility_drop=0.001, learning_rate=3e-2, max_steps=2, eval_every=1)
    report = run(config, given)
    assert report.chosen is None
    assert report.verdict == "there is no result"
    assert not (tmp_path / "o" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_a_second_round_that_obeys_no_rule_leaves_the_result_of_the_first(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = trainer.choose
    monkeypatch.setattr(
        trainer, "choose", lambda config, history: None if config.continuations else choose(config, history)
    )
    config, given = asked(world, tmp_path / "o", max_steps=1)
    report = run(config, given)
    assert report.chosen == 1
    assert report.after == report.history[0]
    assert same(tmp_path / "o", tmp_path / "o" / FIRST_ROUND)


@pytest.mark.slow
def test_rows_are_found_and_written_where_none_are_given(
    world: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chosen, "RETAINED", 12)
    monkeypatch.setattr(chosen, "HELD_OUT", 6)
    words = ["--model", world["model"], "--forget", world["forget"]]
    words += ["--output", str(tmp_path / "o"), "--eval-rows", "2", "--max-length", "400", "--max-utility-drop", "1"]
    assert main(["check", "--recipe", "balanced", *words]) == 0
    assert not (tmp_path / "o").exists()
    said = capfd.readouterr().out
    # Four rows in batches of two: 60 steps, and as many as they and four continuations of each take.
    steps = "optimizer steps          70\n"
    for text in ("recipe balanced: two rounds", "time, roughly ", "disk, roughly ", "--epochs 30: ", steps):
        assert text in said
    assert f"--retain {tmp_path}/o/{RETAIN}: 24 functions" in said
    assert tempfile.gettempdir() not in said.replace(str(tmp_path), "").replace(str(Path(world["model"]).parent), "")
    with caplog.at_level("INFO"):
        assert main(["run", "--recipe", "gentle", *words, "--max-steps", "1", "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert record["verdict"].startswith("recites 0 of the 2 rows of 4 that were measured, before 0; longest run ")
    assert record["verdict"].endswith(" of first choices unchanged")
    assert set(record["recipe"]) <= set(caplog.messages)
    rows = {name: (tmp_path / "o" / name).read_text().splitlines() for name in (RETAIN, HOLDOUT)}
    assert [len(of) for of in rows.values()] == [24, 6]  # four rows, six epochs
    assert not set(rows[RETAIN]) & set(rows[HOLDOUT])
    # The configuration that is written asks for the same run.
    again = make_config(str(tmp_path / "o" / "config.yaml"), {"output": str(tmp_path / "p")})
    assert (again.recipe, again.learning_rate, again.method) == ("gentle", 1e-3, "prod-surgical")


def test_a_mixture_whose_experts_peft_adapts_is_trained(world: dict[str, str], tmp_path: Path) -> None:
    """Peft puts DeepSeek's adapters on its experts; `--lora-init contrast` is a part of every recipe."""
    values = {**world, "model": save_deepseek(tmp_path / "m", world["model"])}
    run(*asked(values, tmp_path / "o", recipe="gentle", max_steps=1, continuations=0))
    weights = adapter(tmp_path / "o")
    assert any(weight.any() for name, weight in weights.items() if ".experts." in name and "lora_B" in name)


def test_a_mistake_leaves_nothing(
    world: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that is told before rows of the library are written, nor one that is told after."""
    written = []
    monkeypatch.setattr(chosen, "write_rows", lambda path, rows: written.append(path) or write_rows(path, rows))
    misspelt = write_jsonl(tmp_path / "f.jsonl", [{"prompts": "def f():\n", "completion": "    return 1\n"}])
    words = ["run", "--recipe", "balanced", "--model", world["model"], "--output", str(tmp_path / "o")]
    for more, said in ((["--max-length", "5"], "--holdout: expected a data set"), ([], "unknown key 'prompts'")):
        assert main([*words, "--forget", misspelt, *more]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not (tmp_path / "o").exists()
    assert len(written) == 2


def test_rows_of_somebody_else_are_not_written_over(world: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / RETAIN).write_text("mine\n")
    config, given = asked(world, tmp_path / "o", retain=None)
    with pytest.raises(ProdError, match="is not empty: name a new directory"):
        run(config, given)
    assert (tmp_path / "o" / RETAIN).read_text() == "mine\n"
