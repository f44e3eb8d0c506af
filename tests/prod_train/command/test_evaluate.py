"""`prod-train evaluate` measures what the run measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prod_train.cli import main
from prod_train.config.config import Config
from prod_train.run.trainer import run
from tests.tiny import tiny_world, write_snippets

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run that has moved its model."""
    folder = tmp_path_factory.mktemp("evaluate")
    world = tiny_world(folder)
    holdout = write_snippets(folder / "h.jsonl", 3, 7)
    output = str(folder / "o")
    run(Config(**world, holdout=holdout, output=output, max_steps=3, learning_rate=3e-2))
    return {**world, "holdout": holdout, "output": output}


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["evaluate", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_is_what_the_run_measured(done: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(Path(done["output"], "report.json").read_text())
    found = printed(capsys, done["output"], "--forget", done["forget"], "--holdout", done["holdout"])
    assert found["verdict"] == record["verdict"]
    for which, wanted in (("before", record["before"]), ("after", record["history"][-1])):
        for group in ("forget", "holdout"):
            for name, metric in wanted[group].items():
                assert found[which][group][name]["value"] == pytest.approx(metric["value"], rel=1e-4, abs=1e-6)
    assert found["after"]["holdout"]["kl"]["value"] > 0.01
    assert main(["evaluate", done["output"], "--forget", done["forget"], "--rows", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| metric | before | after | rows |"
    assert lines[-1].startswith("recites 0 of the 2 rows of 4 that were measured, before 0; longest run ")
    assert lines[-1].endswith("; other code: not measured, without --holdout")


def test_a_whole_model_is_measured_alone(done: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(Path(done["output"], "report.json").read_text())
    found = printed(capsys, done["model"], "--forget", done["forget"])
    assert found["before"] is None
    for name, metric in record["before"]["forget"].items():
        assert found["after"]["forget"][name]["value"] == pytest.approx(metric["value"], rel=1e-4, abs=1e-6)
    assert main(["evaluate", done["model"], "--forget", done["forget"]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["forget", "recitation", "0.000", "(0.000-0.000)", "4", "rows"]
    assert main(["evaluate", done["model"], "--forget", done["forget"], "--holdout", done["holdout"]]) == 2
    assert capsys.readouterr().err == (
        f"prod-train evaluate: --holdout: expected an adapter, which is compared with its base, got {done['model']}: "
        "name the output directory of `run`\n"
    )
