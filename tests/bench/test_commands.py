"""The bench commands run end to end, and a peer that fails is recorded, not dropped."""

from __future__ import annotations

import json
import time
from dataclasses import fields
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bench.__main__ import COMMANDS, main
from bench.figures import Figure
from bench.peers.peers import Walked, in_child
from bench.speed import overhead, vllm_overhead


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<eos>"]
    )
    backend.train_from_iterator([Path(overhead.__file__).read_text()], trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m bench {command}")


@pytest.mark.long
def test_overhead_measures_and_records(tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.jsonl"
    arguments = ["overhead", "--quick", "--patterns", "3", "--tokenizer", tokenizer, "--no-peers", "--json", str(out)]
    assert main(arguments) == 0
    figures = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(set(figure) == {field.name for field in fields(Figure)} for figure in figures)
    values = {(figure["what"], figure["guard"]): figure["value"] for figure in figures}
    assert all(value is not None and value > 0 for value in values.values())
    for what in ("compile, 3 patterns", "mask, 3 patterns, code", "mask, 3 patterns, near", "step, 3 patterns, B=64"):
        assert (what, "prod_decode") in values
    assert values["automaton, bytes a node", "prod_decode"] == 12
    printed = capsys.readouterr().out
    assert all(figure["what"] in printed for figure in figures)


def fail(message: str) -> Walked:
    raise RuntimeError(message)


def sleep(seconds: float) -> Walked:
    time.sleep(seconds)
    return Walked(0.0, [], [])


@pytest.mark.slow
def test_a_peer_that_fails_or_takes_too_long_is_recorded() -> None:
    assert in_child(fail, "no such grammar\nline 2", limit=60) == "RuntimeError: no such grammar"
    begun = time.perf_counter()
    assert in_child(sleep, 600.0, limit=0.01) == "not done after 0.01 s"
    assert time.perf_counter() - begun < 300
    assert in_child(sleep, 0.0, limit=60) == Walked(0.0, [], [])


@pytest.mark.slow
def test_walks_near_patterns_contain_none(tokenizer: str) -> None:
    material = overhead.gather(tokenizer, 50, steps=2000)
    matcher = overhead.bind(material.lines[:50], material.tokenizer)
    walk = overhead._without_matches(matcher, overhead.near_walk(material, material.lines[:50], 2000))
    text = material.tokenizer.decode(walk)
    assert not [line for line in material.lines[:50] if line in text]
    assert any(line[:4] in text for line in material.lines[:50])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "bench: expected one of demo, "),
        (["overhaed"], ", got 'overhaed'; did you mean 'overhead'?"),
        (["overhead", "--patterns", "0"], "bench overhead: expected --patterns as numbers above 0, got '0'"),
        (["overhead", "--patterns", "1,x"], "bench overhead: expected --patterns as numbers above 0, got '1,x'"),
        (["overhead", "--tokenizer", "/no/such"], "bench overhead: cannot load the model '/no/such'"),
        (["demo", "--functions", "-1"], "bench demo: --functions: expected 0 or more, got -1"),
        (["demo", "--held-out", "0"], "bench demo: --held-out: expected at least 1, got 0"),
        (["demo", "--longest", "500"], "bench demo: --longest: expected 150 to 450 characters, got 500"),
        (["demo", "--max-new-tokens", "0"], "bench demo: --max-new-tokens: expected at least 1, got 0"),
        (["demo", "--model", "/no/such.gguf", "--out", "{tmp}"], "bench demo: cannot read the model /no/such.gguf"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_vllm_benchmark_says_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.unlearning.plan.find_spec", lambda _: None)
    assert main(["vllm"]) == 2
    assert "expected vLLM in this environment, got none: run it with .venv-vllm/bin/python" in capsys.readouterr().err


def test_the_vllm_table_shows_what_was_measured() -> None:
    runs = [(100.0, [(16, 1e-6, 99e-6), (16, 0.0, 100e-6), (3, 1.0, 1.0)])]
    figure = vllm_overhead._figure("10 patterns", 16, runs, [(200.0, [])])
    assert (figure.own, figure.share, figure.ratio) == (pytest.approx(100), pytest.approx(100e-6 * 100 / 16), 0.5)
    assert "| 16 | 10 patterns | 100 | 0.50 | 100 us | 100 us | 0.06 % |" in vllm_overhead.table([figure])
