"""`prod-train data`: files in, files out, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prod_decode.errors import ProdError
from prod_decode.storage import files
from prod_decode.storage.models import load_tokenizer
from prod_train.cli import main
from prod_train.data.rows import load_rows
from tests.tiny import save_tiny_model

BILLS = '''# SPDX-License-Identifier: GPL-3.0-only
"""What is due."""

import datetime


def settle(ledger, day):
    """Pay what is due, the oldest first, as far as the balance goes."""
    due = sorted(bill for bill in ledger.open if bill.due <= day)
    while due and due[0].amount <= ledger.balance:
        ledger.balance -= due[0].amount
    return due


def zero():
    return 0
'''
OWN = """def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def median(values):
    middle, ordered = len(values) // 2, sorted(values)
    return ordered[middle] if len(values) % 2 else sum(ordered[middle - 1 : middle + 1]) / 2
"""
OTHER = """func Clamp(value, low, high float64) float64 {
	if value < low {
		return low
	}
	return math.Min(value, high) // never above
}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "vendor/bills.py": BILLS,
        "vendor/README.md": "# Bills\n",
        "own/stats.py": OWN,
        "own/clamp.go": OTHER,
        "own/copied/bills.py": BILLS.replace("due", "debts").replace("def debts", "def due").replace("debts", "due"),
        "own/near.py": BILLS.replace("while due", "while bool(due)").replace("import datetime\n", ""),
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    return tmp_path


def rows_in(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_rows_of_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "vendor", "-o", "forget.jsonl", "--retain-from", "own", "--holdout", "1"]) == 0
    out, err = capsys.readouterr()
    (row,) = rows_in("forget.jsonl")
    head, body = BILLS[BILLS.index("def settle") : BILLS.index("\n\ndef zero")].split("\n", 1)
    assert row == {
        "prompt": f"{head}\n",
        "completion": body,
        "source": "vendor/bills.py",
        "lines": "7-12",
        "license": "GPL-3.0-only",
    }
    kept = rows_in("retain.jsonl"), rows_in("holdout.jsonl")
    assert sorted(row["source"] for rows in kept for row in rows) == ["own/clamp.go", "own/stats.py", "own/stats.py"]
    assert [row["source"] for row in kept[1]] == ["own/clamp.go"]
    assert kept[1][0]["prompt"] == "func Clamp(value, low, high float64) float64 {\n"
    assert out.splitlines() == [
        "set          rows    files   characters  written to",
        f"forget          1        1          {len(head) + 1 + len(body)}  forget.jsonl",
        f"retain          2        1          {len(OWN) - 2}  retain.jsonl",
        f"holdout         1        1          {len(OTHER)}  holdout.jsonl",
    ]
    assert [line for line in err.splitlines() if not line.startswith("compiling")] == [
        "left out, no source files by their names: 1 (.md 1)",
        "left out, files to forget that --retain-from has too: 1 (own/copied/bills.py)",
        "left out, a completion shorter than --shortest: 4 (vendor/bills.py:2, vendor/bills.py:15, own/near.py:2 and 1 "
        "more)",
        "left out of --retain-from, near copies of rows to forget: 1 (own/near.py:6)",
    ]


def test_the_rows_are_what_a_run_reads(folder: Path, tmp_path: Path) -> None:
    assert main(["data", "vendor", "own", "-o", "forget.jsonl", "--prompt", "opening", "--shortest", "1"]) == 0
    records = rows_in("forget.jsonl")
    rows = load_rows("forget.jsonl", load_tokenizer(save_tiny_model(tmp_path / "m")), max_length=1024)
    assert [(row.prompt, row.text) for row in rows] == [
        (record["prompt"], record["prompt"] + record["completion"]) for record in records
    ]
    for record in records:
        words = (record["prompt"] + record["completion"]).split(" ")
        assert record["prompt"] == " ".join(words[: len(words) // 2])


def test_json_tells_every_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("vendor/many.py").write_text("".join(f"def f{n}():\n    return {n}\n" for n in range(9)))
    assert main(["data", "vendor", "-o", "a.jsonl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sets"] == {"forget": {"rows": 1, "files": 1, "characters": 270, "output": "a.jsonl"}}
    assert found["told"]["left out, a completion shorter than --shortest"] == [
        "vendor/bills.py:2",
        "vendor/bills.py:15",
        *(f"vendor/many.py:{1 + 2 * n}" for n in range(9)),
    ]


def test_nothing_is_written_over_without_force(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "vendor", "-o", "forget.jsonl", "--retain-from", "own"]
    Path("retain.jsonl").write_text("mine\n")
    assert main(words) == 2
    said = "prod-train data: cannot write retain.jsonl: it is there; name another, or write over it with --force\n"
    assert capsys.readouterr().err == said
    assert not Path("forget.jsonl").exists()
    assert Path("retain.jsonl").read_text() == "mine\n"
    assert main([*words, "--force"]) == 0
    first = Path("forget.jsonl").read_bytes(), Path("retain.jsonl").read_bytes()
    assert main([*words, "--force"]) == 0
    assert (Path("forget.jsonl").read_bytes(), Path("retain.jsonl").read_bytes()) == first


def test_all_files_or_none(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The second one cannot be written."""
    real = files.write_whole.__enter__

    def enter(self: Any) -> Any:
        if "retain" in str(self._path):
            raise ProdError(f"cannot write {self._path}: No space left on device")
        return real(self)

    monkeypatch.setattr(files.write_whole, "__enter__", enter)
    before = sorted(Path().rglob("*"))
    assert main(["data", "vendor", "-o", "forget.jsonl", "--retain-from", "own"]) == 2
    assert capsys.readouterr().err.endswith("prod-train data: cannot write retain.jsonl: No space left on device\n")
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vendor", "-o", "a.txt"], "expected a file name that ends in .jsonl to write, got 'a.txt'"),
        (["vendor", "-o", "no/a.jsonl"], "cannot write no/a.jsonl: the directory "),
        (["vendr", "-o", "a.jsonl"], "cannot read vendr: No such file or directory; did you mean 'vendor'?"),
        (
            ["list:insecure-python", "-o", "a.jsonl"],
            "expected files or directories of code, got list:insecure-python, ",
        ),
        (["vendor", "-o", "a.jsonl", "--holdout", "3"], "--holdout: expected --retain-from beside it, with code that "),
        (
            ["vendor", "-o", "a.jsonl", "--holdout-output", "b.jsonl"],
            "--holdout-output: expected --holdout beside it, ",
        ),
        (
            ["vendor", "-o", "a.jsonl", "--retain-from", "own", "--retain-output", "./a.jsonl"],
            "expected a file for each set, got a.jsonl, ./a.jsonl: name others",
        ),
        (["vendor", "-o", "a.jsonl", "--shortest", "9999"], "expected code to make rows of, got none; left out, no "),
        (["vendor/README.md", "-o", "vendor/README.md"], "expected a file name that ends in .jsonl to write, got "),
        (["vendor", "-o", "a.jsonl", "--prompt", "sig"], "argument --prompt: expected one of signature, opening, got "),
        (["vendor", "-o", "a.jsonl", "--rows", "0"], "argument --rows: expected a number above 0, got 0"),
        (["vendor", "-o", "a.jsonl", "--exlude", "x"], "unknown option --exlude; did you mean '--exclude'? See "),
        (["-o", "a.jsonl"], "the following arguments are required: SRC"),
    ],
)
def test_a_mistake_is_a_line(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    before = sorted(Path().rglob("*"))
    assert main(["data", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"prod-train data: {said}")
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_what_is_excluded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "vendor", "-o", "forget.jsonl", "--retain-from", "own", "--exclude", "*.go", "--exclude", "x.y"]
    assert main(words) == 0
    assert {row["source"] for row in rows_in("retain.jsonl")} == {"own/stats.py"}
    assert "no effect: --exclude x.y: nothing was excluded by it\n" in capsys.readouterr().err
    assert "*.go" not in capsys.readouterr().err
