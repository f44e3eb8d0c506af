"""A task, an attack and a guard are one file each: what is put beside the others is found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.guards import GUARDS
from bench.tasks import TASKS
from prod_decode.errors import ProdError
from prod_train.registry import classes_in
from tests import ROOT
from tests.tiny import save_tiny_model

PAGE = (ROOT / "docs" / "guide" / "add-to-bench.md").read_text()


@pytest.mark.long
def test_what_the_page_adds_is_measured(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bench", tmp_path / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    files = re.findall(r"`bench/(\w+/\w+\.py)`:.*?```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(files) == PAGE.count("```python") == 3
    for name, code in files:
        assert not (tmp_path / "bench" / name).exists()
        (tmp_path / "bench" / name).write_text(code)
    (command,) = re.findall(r"^    python (-m bench run .*)$", PAGE, re.MULTILINE)
    model = save_tiny_model(tmp_path / "model")
    options = f"--model {model} --protocols natural --samples 2 --engine transformers --out {tmp_path / 'out'}"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, *command.split(), *options.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cells = [json.loads(line) for line in (tmp_path / "out" / "cells.jsonl").read_text().splitlines()]
    found = {(cell["key"]["task"], cell["key"]["method"], cell["key"]["attack"]) for cell in cells}
    assert found == {("shouting", m, a) for m in ("base", "decode", "first-token") for a in ("none", "polite")}
    assert all(cell["metrics"]["shouts"]["n"] == 2 for cell in cells)
    samples = (tmp_path / "out" / "samples").glob("shouting.natural.base.*.jsonl")
    hashes = {json.loads(line)["prompt_hash"] for file in samples for line in file.read_text().splitlines()}
    assert len(hashes) == 4  # two prompts, and both again politely


def test_the_names_of_tasks_and_guards_stay() -> None:
    """Runs name them, and cells are compared by them."""
    assert list(TASKS) == ["copyright", "insecure", "deprecated"]
    ours = ["decode", "decode-commit", "decode-replace", "decode-budget", "decode-lists"]
    assert list(GUARDS) == ["base", *ours, "bad-words", "memfree"]


def test_two_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "twice_named"
    package.mkdir()
    code = "from bench.guards.base import Guard\nclass {}(Guard):\n    name = 'same'\n"
    for name in ("", "One", "Two"):
        (package / f"{name.lower() or '__init__'}.py").write_text(code.format(name) if name else "")
    monkeypatch.syspath_prepend(tmp_path)
    from bench.guards.base import Guard

    with pytest.raises(ProdError, match=r"twice_named\.two\.Two: expected a name of its own, got 'same', which .*One"):
        classes_in("twice_named", [str(package)], Guard)  # type: ignore[type-abstract]
