"""What a list changes in other code, counted against a search of every text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.collateral import follow, main
from prod_decode import Blocklist, Entry
from prod_decode.tokens.vocabulary import Vocabulary

CHARACTERS = Vocabulary.from_bytes([bytes([i]) for i in range(128)] + [b"</s>"], eos_ids=[128])
DOCUMENT = "".join(f"name_{number} = {number * 31}\n" for number in range(60))


def ids(text: str) -> list[int]:
    return np.frombuffer(text.encode(), np.uint8).tolist()


def test_steps_and_outputs_are_counted() -> None:
    blocklist = Blocklist.compile([Entry(DOCUMENT, policy="quote", max_quote=40)], normalize="none")
    texts = ["x = 1\n", f"#{DOCUMENT[:200]}", "# short", f"# {DOCUMENT}{DOCUMENT[80:300]}"] * 20
    steps, changed = follow(blocklist.bind(CHARACTERS), [ids(text) for text in texts])
    # Every anchor that stands in a text is completed by one of its characters.
    assert changed == [len(list(blocklist.scan(text))) for text in texts]
    assert changed[1] > 3
    assert steps == sum(len(text) - 1 for text in texts)


def test_what_stands_in_a_prompt_is_no_step() -> None:
    """An anchor counts where it is completed, whatever of it the prompt has."""
    blocklist = Blocklist.compile([Entry(DOCUMENT, policy="quote", max_quote=40)], normalize="none")
    whole = DOCUMENT[:200]
    found = list(blocklist.scan(whole))
    begins = [0, 45, 100, 199, 200]
    steps, changed = follow(blocklist.bind(CHARACTERS), [ids(whole)] * 5, begins)
    assert changed == [sum(match.end > begin for match in found) for begin in begins]
    assert changed[0] > changed[2] > 0 == changed[4]
    assert steps == sum(200 - begin for begin in begins)


@pytest.mark.slow
def test_the_command_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.collateral.STEPS", 20)
    for folder in ("theirs", "ours"):
        (tmp_path / folder).mkdir()
    (tmp_path / "theirs" / "a.py").write_text(DOCUMENT)
    body = "".join(f"    {line}\n" for line in DOCUMENT.splitlines()[:30])
    (tmp_path / "ours" / "copies.py").write_text(f"def copies():\n{body}")
    (tmp_path / "ours" / "own.py").write_text("def own(x):\n" + "".join(f"    x += {i}\n" for i in range(60)))
    (tmp_path / "ours" / "broken.py").write_text("def (:\n")
    out = tmp_path / "out.jsonl"
    where = [str(tmp_path / "theirs"), str(tmp_path / "ours")]
    few = ["--modules", "1", "--module-tokens", "20"]
    assert main([*where, "--settings", "60,400,400+48", *few, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == len(rows) == 6
    functions = [row for row in rows if row["kind"] == "functions"]
    assert [(row["outputs"], row["changed_outputs"]) for row in functions] == [(2, 1), (2, 0), (2, 1)]
    # The copy is shorter than 400 characters, and far beyond a budget of 48.
    assert functions[2]["changed_steps"] > functions[0]["changed_steps"]
    assert lines[0].startswith("max_quote 60: of 2 functions 1 changed (0.500 [")
    problem = {"task_id": "H/0", "prompt": "def a():\n", "entry_point": "a", "test": "", "canonical_solution": ""}
    wrote = [{"task_id": "H/0", "completion": text} for text in (f"{body}\n\ndef b():\n    pass\n", "    return 1\n")]
    (tmp_path / "problems.jsonl").write_text(f"{json.dumps(problem)}\n")
    (tmp_path / "wrote.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in wrote))
    files = ["--humaneval", str(tmp_path / "problems.jsonl"), "--completions", str(tmp_path / "wrote.jsonl")]
    speed = tmp_path / "speed.jsonl"
    assert main([*where, "--settings", "60,60+48", *few, *files, "--speed", str(speed)]) == 0
    assert "of 2 completions 1 changed" in capsys.readouterr().out
    figures = [json.loads(line) for line in speed.read_text().splitlines()]
    assert [(figure["guard"], figure["what"]) for figure in figures] == [
        (guard, f"mask and advance, a token, B={rows}")
        for guard in ("max_quote 60", "max_quote 60, budget 48")
        for rows in (1, 16, 64)
    ]
    assert all(figure["value"] > 0 for figure in figures)
    (tmp_path / "problems.jsonl").write_text(f"{json.dumps({**problem, 'task_id': 'H/1'})}\n")
    assert main([*where, "--settings", "60", *few, *files]) == 2
    assert "problems.jsonl, got one of 'H/0'" in capsys.readouterr().err
    assert main([*where, "--settings", "60+x"]) == 2
    assert "--settings: expected numbers such as 120 or 120+240, got '60+x'" in capsys.readouterr().err
