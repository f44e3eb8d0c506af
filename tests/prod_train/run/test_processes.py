"""Processes that do not know of each other: each would do the whole run, into one output."""

import os
import subprocess
import sys

import pytest
from accelerate import PartialState

from prod_decode.errors import ProdError
from prod_train.config.config import Config
from prod_train.run.job import prepare
from tests import ROOT
from tests.tiny import save_tiny_model, tiny_world, write_snippets


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_more_processes_than_work_together_are_refused(tmp_path, monkeypatch, variable):
    assert PartialState().num_processes == 1
    model, forget = save_tiny_model(tmp_path / "m"), write_snippets(tmp_path / "f.jsonl")
    config = Config(model=model, forget=forget, output=str(tmp_path / "o"))
    monkeypatch.setenv(variable, "1")
    prepare(config)
    monkeypatch.setenv(variable, "2")
    with pytest.raises(ProdError, match="expected 2 processes to work together, as WORLD_SIZE says, got 1"):
        prepare(config)
    assert not (tmp_path / "o").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    "launcher",
    [
        ("torch.distributed.run", "--nproc_per_node", "2", "--standalone"),
        ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
    ],
    ids=["torchrun", "accelerate"],
)
def test_what_launchers_start_works_together_or_is_refused(tmp_path, launcher):
    """Both rounds of a recipe, which one of them chooses and tells."""
    world = {**tiny_world(tmp_path), "holdout": write_snippets(tmp_path / "h.jsonl", 1, 6)}
    words = [word for name, value in world.items() for word in (f"--{name}", value)]
    words += ["--recipe", "balanced", "--output", str(tmp_path / "o"), "--max-steps", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("ACCELERATE_USE_CPU", None)
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "prod_train.cli", "run", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    refused = "processes to work together" in done.stderr
    assert refused == (done.returncode != 0), done.stderr[-3000:]
    assert refused != (tmp_path / "o" / "report.json").exists()
    assert done.stderr.count("recipe balanced: two rounds") == (not refused)
