"""Samples for EvalPlus: whole programs in its form, under a mask or without; every mistake in a line."""

from __future__ import annotations

import ast
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from prod_decode import Blocklist, Entry, ProdError, ProdLogitsProcessor
from prod_decode.harness.evalplus import Problem, main, read_problems, write_samples
from prod_decode.harness.stops import STOPS, STOPS_OF_MODULES, stop_at, stops_after
from prod_decode.storage.models import load_model
from tests.tiny import save_tiny_model, write_jsonl

OPENED = [Problem("HumanEval/0", 'def f(x):\n    """Double."""\n'), Problem("HumanEval/1", "def gg(a, b):\n")]
MBPP = Problem("Mbpp/2", '"""\nWrite a function that doubles.\nassert f(1) == 2\n"""\n')


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "m")


@pytest.fixture
def problems(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "p.jsonl", [one._asdict() | {"test": "-"} for one in [*OPENED, MBPP]])


def by_hand(tiny: str, problem: Problem, tokens: int, blocklist: Blocklist | None = None) -> str:
    """One prompt by itself, to the end, and cut then."""
    model, tokenizer = load_model(tiny)
    inputs = tokenizer(problem.prompt, return_tensors="pt")
    guards = [] if blocklist is None else [ProdLogitsProcessor(blocklist, tokenizer)]
    ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, logits_processor=guards)[0]
    text = tokenizer.decode(ids[inputs.input_ids.shape[1] :], skip_special_tokens=True)
    ends = [text.find(stop) for stop in stops_after(problem.prompt) if stop in text]
    return problem.prompt + text[: min(ends, default=len(text))] + "\n"


def saved(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("size", [1, 2, 8])
def test_answers_are_those_of_each_prompt_alone(tiny: str, problems: str, tmp_path: Path, size: int) -> None:
    options = ["--model", tiny, "--problems", problems, "--max-new-tokens", "16", "--batch-size", str(size)]
    assert main([*options, "-o", str(tmp_path / "s.jsonl")]) == 0
    expected = [{"task_id": one.task_id, "solution": by_hand(tiny, one, 16)} for one in [*OPENED, MBPP]]
    assert saved(tmp_path / "s.jsonl") == expected


def test_answers_under_a_mask_have_no_prohibited_phrase(
    tiny: str, problems: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", tiny, "--problems", problems, "--max-new-tokens", "24"]
    assert main([*options, "-o", str(tmp_path / "free.jsonl")]) == 0
    assert "free.jsonl: 3 samples for 3 problems, without a blocklist\n" in capsys.readouterr().err
    free = [
        row["solution"][len(one.prompt) :]
        for row, one in zip(saved(tmp_path / "free.jsonl"), [*OPENED, MBPP], strict=True)
    ]
    # Of each answer, something that it has first.
    banned = [runs[0] for text in free if (runs := re.findall("[!-~]{2,}", text))]
    assert banned
    lists = []
    for i, text in enumerate(banned):
        Blocklist.compile([Entry(text, boundary="none")], allow_short=True).save(tmp_path / f"{i}.prod")
        lists += ["--blocklist", str(tmp_path / f"{i}.prod")]
    assert main([*options, *lists, "-o", str(tmp_path / "masked.jsonl")]) == 0
    assert "masked.jsonl: 3 samples for 3 problems, masked by " in capsys.readouterr().err
    blocklist = Blocklist.compile([Entry(text, boundary="none") for text in banned], allow_short=True)
    for row, one in zip(saved(tmp_path / "masked.jsonl"), [*OPENED, MBPP], strict=True):
        assert not list(blocklist.scan(row["solution"][len(one.prompt) :]))
        assert row == {"task_id": one.task_id, "solution": by_hand(tiny, one, 24, blocklist)}
    assert saved(tmp_path / "masked.jsonl") != saved(tmp_path / "free.jsonl")


def test_samples_are_drawn_with_the_seed_and_come_together(tiny: str, problems: str, tmp_path: Path) -> None:
    common = ["--model", tiny, "--problems", problems, "--max-new-tokens", "6", "--samples", "3", "--temperature", "1"]
    found = []
    for number, more in enumerate(([], ["--seed", "0"], ["--seed", "1"], ["--top-p", "0.01"])):
        assert main([*common, *more, "-o", str(tmp_path / f"{number}")]) == 0
        found.append(saved(tmp_path / f"{number}"))
        assert [row["task_id"] for row in found[-1]] == [one.task_id for one in [*OPENED, MBPP] for _ in range(3)]
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert len({row["solution"] for row in found[0]}) > 6
    assert len({row["solution"] for row in found[3]}) == 3  # of a nucleus of one token


def test_a_stop_ends_generation_and_a_prompt_has_its_own(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stops_after(OPENED[0].prompt) == STOPS
    assert stops_after(MBPP.prompt) == STOPS_OF_MODULES
    assert stops_after("import re\n\nasync def f():\n") == STOPS
    assert stops_after('"""def f():"""\n') == STOPS_OF_MODULES
    program = "\nimport re\n@cache\ndef f(x):\n    # twice\n    return 2 * x\n\n# done\n"
    assert stop_at(f"{program}assert f(1) == 2", STOPS_OF_MODULES) == program[:-1]
    ast.parse(stop_at(program, STOPS_OF_MODULES))
    # The model writes these ids, whatever comes.
    model, tokenizer = load_model(tiny)
    wanted = tokenizer.encode("    return 1\nprint(2)\nprint(3)")
    length = len(tokenizer.encode(OPENED[0].prompt))
    steps: list[int] = []

    def forward(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        steps.append(input_ids.shape[1])
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([wanted[input_ids.shape[1] - length]]), 0.0)

    class Forced(ProdLogitsProcessor):
        __call__ = staticmethod(forward)  # type: ignore[assignment]

    monkeypatch.setattr("prod_decode.hf.ProdLogitsProcessor", Forced)
    matcher = Blocklist.compile([Entry("unheard of")]).bind(tokenizer)
    (sample,) = write_samples(model, tokenizer, OPENED[:1], matcher, max_new_tokens=40)
    assert sample.solution == f"{OPENED[0].prompt}    return 1\n"
    assert len(steps) == len(tokenizer.encode("    return 1\nprint"))


def test_problems_are_read_packed_too(tmp_path: Path, problems: str) -> None:
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(problems).read_bytes()))
    assert read_problems(str(packed)) == read_problems(problems) == [*OPENED, MBPP]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", "", r"p\.jsonl: expected problems, got an empty file"),
        ("p.jsonl", '{"prompt": "x"}\n', r"p\.jsonl:1: expected 'task_id' as a string, got the keys prompt"),
        ("p.jsonl", '{"task_id": "a", "prompt": 1}\n', r"p\.jsonl:1: expected 'prompt' as a string, got int"),
        ("p.jsonl", '{"task_id": "a", "prompt": "x"}\n' * 2, r"p\.jsonl:2: expected each problem once, got 'a' again"),
        ("p.jsonl", "[]\n", r"p\.jsonl:1: expected a JSON object, got list"),
        ("p.jsonl.gz", "plain", r"cannot read .*p\.jsonl\.gz: .*expected a file that gzip has written"),
    ],
)
def test_other_problems_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ProdError, match=message):
        read_problems(str(tmp_path / name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--blocklist", "nowhere.prod"], "nowhere.prod"),
        (["--samples", "2"], "--samples 2 is for sampling: expected --temperature above 0 beside it, got 0; drop one"),
        (["--top-p", "0.5"], "--top-p 0.5 is for sampling"),
        (["--max-new-tokens", "600"], "HumanEval/0: the model has room for 489 tokens behind this prompt, got"),
        (["--problems", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "no/such/model/here"], "cannot load the model 'no/such/model/here'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tiny: str, problems: str, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.jsonl"
    assert main(["--model", tiny, "--problems", problems, "-o", str(out), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[0]
    assert lines[0].startswith("prod_decode.harness.evalplus: ")
    assert len(lines) == (3 if "--max-new-tokens" in options else 1)  # each problem that has no room
    assert not out.exists()


def test_the_problems_are_not_written_over(tiny: str, problems: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(problems).read_text()
    assert main(["--model", tiny, "--problems", problems, "-o", problems]) == 2
    assert Path(problems).read_text() == before
    assert "p.jsonl" in capsys.readouterr().err


def test_samples_that_are_there_are_not_written_over(
    tiny: str, problems: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.jsonl"
    out.write_text("of another model\n")
    command = ["--model", tiny, "--problems", problems, "-o", str(out), "--max-new-tokens", "2"]
    assert main(command) == 2
    assert out.read_text() == "of another model\n"
    assert capsys.readouterr().err == (
        f"prod_decode.harness.evalplus: cannot write {out}: it is there; name another, or write over it with --force\n"
    )
    assert main([*command, "--force"]) == 0
    assert len(saved(out)) == 3
