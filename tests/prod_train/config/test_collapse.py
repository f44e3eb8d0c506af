"""A run that destroys the model says so: on the terminal, in the card, in report.json, and by its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prod_train.cli import main
from prod_train.config.stopping import collapse
from tests.tiny import save_tiny_model, write_snippets

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("w")
    forget, holdout = write_snippets(folder / "f.jsonl"), write_snippets(folder / "h.jsonl", 5, 7)
    model = save_tiny_model(folder / "m")
    return ["run", "--model", model, "--forget", forget, "--holdout", holdout, "--batch-size", "7", "--max-steps", "8"]


@pytest.mark.slow
def test_an_absurd_learning_rate_is_no_success(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "o"
    assert main([*words, "--method", "ga", "--learning-rate", "3", "--output", str(output)]) == 1
    report = json.loads((output / "report.json").read_text())
    agreement = report["history"][-1]["holdout"]["agreement"]["value"]
    assert agreement < 0.2
    verdict = f"collapsed: it agrees with the starting model on {agreement:.3f} of the held-out tokens, less than 0.333"
    error = capsys.readouterr().err
    for text in (error, caplog.text, (output / "README.md").read_text(), report["collapsed"]):
        assert verdict in text
        assert "a lower --learning-rate or fewer --epochs" in text
    assert error.splitlines()[-1].startswith(f"prod-train run: {verdict}")
    assert (output / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_a_gentle_one_is(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "o"
    assert main([*words, "--learning-rate", "1e-4", "--json", "--output", str(output)]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["collapsed"] == json.loads((output / "report.json").read_text())["collapsed"] == ""
    assert "collapsed" not in captured.err + (output / "README.md").read_text()


def record(agreement: float | None, empty: float) -> dict[str, Any]:
    holdout = None if agreement is None else {"agreement": {"value": agreement}}
    return {"forget": {"empty_output": {"value": empty, "n": 24}}, "holdout": holdout}


@pytest.mark.parametrize(
    ("before", "after", "parts"),
    [
        (record(1, 0), record(0.334, 0), []),
        (record(1, 0), record(0.01, 0), ["agrees with the starting model on 0.010 of the held-out tokens"]),
        (record(None, 0), record(None, 1), ["24 of 24 outputs have no text, before it were 0"]),
        (record(None, 0.25), record(None, 0.75), ["18 of 24 outputs have no text, before it were 6"]),
        (record(None, 0.5), record(None, 0.75), []),
        (record(1, 0), record(0.01, 1), ["on 0.010 of the held-out tokens", "24 of 24 outputs have no text"]),
    ],
)
def test_what_counts_as_collapsed(before: dict[str, Any], after: dict[str, Any], parts: list[str]) -> None:
    found = collapse(before, after)
    assert bool(found) == bool(parts)
    for part in parts:
        assert part in found
