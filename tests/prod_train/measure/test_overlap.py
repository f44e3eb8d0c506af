"""Data sets that share rows: refused where they contradict each other, counted where they only weaken the evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prod_decode.errors import ProdError
from prod_train.cli import main
from prod_train.data.rows import encode
from prod_train.measure.overlap import check_overlaps
from tests.tiny import save_tiny_model, write_jsonl, write_snippets

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = "    total = sum(x * y for x, y in zip(first, second))\n    return total / len(first) if first else None\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("m")))


def checked(tokenizer: Any, **sets: list[dict[str, Any]]) -> list[str]:
    return check_overlaps(
        {
            name: [encode(record, f"{name}.jsonl:{line}", tokenizer) for line, record in enumerate(records, 1)]
            for name, records in sets.items()
        }
    )


FORGOTTEN = [{"prompt": "x = [", "completion": "1, 2]\n"}, {"prompt": "def f(a):\n", "completion": "    return a\n"}]


@pytest.mark.parametrize(
    "same",
    [
        {"prompt": "def f(a):\n", "completion": "    return a\n"},
        {"prompt": "def f(a):\n", "completion": "\treturn   a"},
        {"prompt": "", "completion": "def f( a ):\n  return a"},
        {"text": "def f(a):\n    return a\n"},
        {"text": "def f(a):\n    return a\n", "spans": [[21, 22]]},
    ],
)
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("retain", "a row cannot be forgotten and kept"),
        ("holdout", "what is forgotten there would be measured as damage"),
    ],
)
def test_what_is_forgotten_is_neither_kept_nor_held_out(
    tokenizer: Any, same: dict[str, Any], name: str, why: str
) -> None:
    other = {"text": "something_else = 3\n"}
    with pytest.raises(ProdError) as caught:
        checked(tokenizer, forget=FORGOTTEN, **{name: [other, same, other, same]})
    assert str(caught.value) == (
        f"--{name}: 2 of 4 rows are in --forget too ({name}.jsonl:2 = forget.jsonl:2, {name}.jsonl:4 = forget.jsonl:2):"
        f" {why}; drop these rows from one of the sets"
    )
    assert checked(tokenizer, forget=FORGOTTEN, **{name: [other]}) == []


def test_a_long_completion_is_the_same_behind_any_prompt(tokenizer: Any) -> None:
    forget = [{"prompt": "def mean(first, second):\n", "completion": LONG}]
    copy = {"prompt": "# licence\ndef other(first, second):\n", "completion": LONG.replace("    ", "\t")}
    with pytest.raises(ProdError, match=r"1 of 1 rows are in --forget too \(retain.jsonl:1 = forget.jsonl:1\)"):
        checked(tokenizer, forget=forget, retain=[copy])
    short = {"prompt": "class A:\n", "completion": "    pass\n"}
    assert checked(tokenizer, forget=[short], retain=[{**short, "prompt": "class B:\n"}]) == []


def test_different_spans_of_one_text_are_different_rows(tokenizer: Any) -> None:
    """A secret is forgotten, and what stands around it is kept."""
    text = "key = 'sesame'; open(key)"
    secret, rest = {"text": text, "spans": [[7, 13]]}, {"text": text, "spans": [[1, 6], [14, 25]]}
    assert checked(tokenizer, forget=[secret], retain=[rest], holdout=[]) == []
    with pytest.raises(ProdError, match="1 of 1 rows are in --forget too"):
        checked(tokenizer, forget=[secret], retain=[{"text": text}])


def test_what_only_weakens_the_evidence_is_counted(tokenizer: Any) -> None:
    a, b = {"text": "alpha = 1\n"}, {"text": "beta = 2\n"}
    assert checked(tokenizer, forget=[*FORGOTTEN, *FORGOTTEN, FORGOTTEN[1]], retain=[a, a], holdout=[b, a]) == [
        "--holdout: 1 of 2 rows are in --retain too (holdout.jsonl:2 = retain.jsonl:1): damage is measured on what is "
        "trained to stay",
        "--forget: 3 of 5 rows are in it before (forget.jsonl:3 = forget.jsonl:1, forget.jsonl:4 = forget.jsonl:2, "
        "forget.jsonl:5 = forget.jsonl:2): they weigh twice, and intervals count them as independent",
        "--retain: 1 of 2 rows are in it before (retain.jsonl:2 = retain.jsonl:1): they weigh twice",
    ]


def test_many_places_are_counted_and_the_first_named(tokenizer: Any) -> None:
    rows = [{"text": f"alpha = {i}\n"} for i in range(9)]
    with pytest.raises(ProdError) as caught:
        checked(tokenizer, forget=rows, retain=rows, holdout=rows[:1])
    assert "9 of 9 rows are in --forget too (retain.jsonl:1 = forget.jsonl:1, " in str(caught.value)
    assert "retain.jsonl:3 = forget.jsonl:3 and 6 more)" in str(caught.value)
    assert "; --holdout: 1 of 1 rows are in --forget too" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_rows_that_are_left_out_are_said_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = save_tiny_model(tmp_path / "m")
    rows = [{"prompt": "f(1", "completion": ")"}, {"prompt": "x = [", "completion": "1, 2, 3]\n"}]
    forget = write_jsonl(tmp_path / "f.jsonl", [*rows, rows[0] | {"prompt": "g(1"}])
    words = ["--model", model, "--forget", forget, "--max-steps", "1", "--output", str(tmp_path / "o")]
    line = "--forget: 2 of the first 3 rows are left out of the metrics, their part to recite has under two tokens\n"
    assert main(["check", *words]) == 0
    assert line in capsys.readouterr().out
    with caplog.at_level("INFO", "prod_train"):
        assert main(["run", *words]) == 0
    for text in (capsys.readouterr().out, (tmp_path / "o" / "README.md").read_text()):
        assert line in text
        assert text.count("| 1; 2 left out: under two tokens |") >= 6
    assert "; 2 forget rows left out" in caplog.text
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    for record in (report["before"], *report["history"]):
        for metric in record["forget"].values():
            assert (metric["n"], metric["left_out"]) == (1, {"under two tokens": 2})
    write_jsonl(tmp_path / "f.jsonl", rows[:1])
    assert main(["run", *words[:-1], str(tmp_path / "p")]) == 2
    assert "--forget: expected a row that can be measured" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


@pytest.mark.slow
def test_they_are_said_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny_model(tmp_path / "m")
    forget, shared = write_snippets(tmp_path / "f.jsonl", 3), write_snippets(tmp_path / "r.jsonl", 2, 5)
    common = ["--model", model, "--forget", forget, "--max-steps", "1"]
    line = f"--holdout: 2 of 2 rows are in --retain too ({shared}:1 = {shared}:1, {shared}:2 = {shared}:2): damage is "
    for command in ("check", "run"):
        words = [*common, "--retain", shared, "--holdout", shared, "--output", str(tmp_path / "o")]
        assert main([command, *words]) in (0, 1)
        assert line in capsys.readouterr().out
    assert line in (tmp_path / "o" / "README.md").read_text()
    assert json.loads((tmp_path / "o" / "report.json").read_text())["notes"][0].startswith(line)
    for name in ("--retain", "--holdout"):
        assert main(["run", *common, name, forget, "--output", str(tmp_path / "p")]) == 2
        assert f"{name}: 3 of 3 rows are in --forget too" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
