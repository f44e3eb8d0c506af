"""A method is one file: what is put beside the others is found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prod_train.config.config import Config, default_of
from prod_train.methods import METHODS, OPTIONS
from tests import ROOT

PAGE = (ROOT / "docs" / "guide" / "add-a-method.md").read_text()

SEE = """
import json, sys
from prod_train.cli import main
from prod_train.config.config import Config, make_config
from prod_train.methods import METHODS, make_method
needed = {"model": "m", "forget": "f", "output": "out/o"}
plain, given = (make_config(None, {**needed, "method": "hinge", **more}) for more in ({}, {"margin": "3"}))
loss = make_method("hinge", given)
light = "torch" not in sys.modules
import torch
class Forget:
    def log_probs(self): return torch.tensor([-1.0, -2.0, -9.0])
from prod_train.method import Example, Reference
value = float(loss.loss(Example(Forget(), Reference(), 2.0)))
try: make_config(None, {**needed, "margin": 3})
except ValueError as error: refused = str(error)
print(json.dumps([list(METHODS), plain.value("margin"), given.to_dict()["margin"], value, light, refused]))
main(["run", "--help"])
"""


@pytest.mark.slow
def test_the_method_of_the_page_is_found_where_it_is_put(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "prod_train", tmp_path / "prod_train", ignore=shutil.ignore_patterns("__pycache__"))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "prod_train" / "methods" / "hinge.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", SEE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    found, shown = done.stdout.split("\n", 1)
    methods, plain, given, value, light, refused = json.loads(found)
    assert methods == [*METHODS, "hinge"]
    assert (plain, given, light) == (5.0, 3.0, True)
    assert value == (-1 - 2 - 3) / 2
    assert refused == "--margin: belongs to method hinge, got prod: drop it"
    assert "hinge: nats; a token less likely than that is left alone (default 5)" in shown


def test_every_option_has_one_meaning_and_is_a_field() -> None:
    names = [option.name for option in OPTIONS]
    assert len(names) == len(set(names))
    for option, defaults in OPTIONS.items():
        shared = set(defaults.values())
        assert default_of(option.name) == (shared.pop() if len(shared) == 1 else None)


def test_a_default_is_that_of_the_method() -> None:
    values = {name: Config(method=name).value("beta") for name in METHODS}
    assert {name: value for name, value in values.items() if value is not None} == {
        "undial": 10.0,
        "npo": 0.1,
        "simnpo": 2.5,
        "dpo": 0.1,
    }
    assert [Config(method=name).value("top_p") for name in ("prod", "prod-surgical", "undial")] == [0.8, 0.8, 1.0]
    assert [Config(method=name, top_p=0.5).value("top_p") for name in ("prod", "undial")] == [0.5, 0.5]
    kept = {name: Config(method=name, retain="r").value("retain_loss") for name in METHODS}
    assert {name for name, loss in kept.items() if loss == "nll"} == {"graddiff"}
