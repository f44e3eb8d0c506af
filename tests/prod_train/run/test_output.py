"""One output directory: one run at a time, begun again, gone on with, made longer; and a disk that is full."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError
from prod_train.cli import main
from prod_train.config.config import Config
from prod_train.run import trainer
from prod_train.run.job import ANCHORS
from prod_train.run.trainer import run
from tests.tiny import save_tiny_model, write_jsonl, write_snippets

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("world")
    return {
        "model": save_tiny_model(folder / "m"),
        "forget": write_snippets(folder / "f.jsonl", 4),
        "holdout": write_snippets(folder / "h.jsonl", 2, 7),
    }


def make(world: dict[str, str], output: Path, **options: Any) -> Config:
    given = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 2, "eval_every": 1}
    return Config(**{**world, "output": str(output), **given, **options})


def same_adapter(a: Path, b: Path) -> bool:
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (a, b))
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def in_another_process(function: Callable[[], object]) -> int:
    """Its exit status, or minus the signal that ended it."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        function()
    finally:
        os._exit(3)


def before_step(number: int, action: Callable[[], object]) -> None:
    """Do something before an optimizer step, in this process."""
    step = trainer.train_step

    def train_step(session: Any, model: Any, optimizer: Any, at: int) -> Any:
        if at == number:
            action()
        return step(session, model, optimizer, at)

    trainer.train_step = train_step


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evidence_of_two_holdout_sets_or_blocklists_is_not_mixed(world: dict[str, str], tmp_path: Path) -> None:
    for name, phrase in (("a", "return"), ("b", "import")):
        Blocklist.compile([Entry(phrase, boundary="none")]).save(tmp_path / f"{name}.prod")
    config = make(world, tmp_path / "o", blocklist=str(tmp_path / "a.prod"), epochs=1)
    run(config)
    (tmp_path / "moved.jsonl").write_bytes(Path(world["holdout"]).read_bytes())
    assert run(replace(config, resume="latest", holdout=str(tmp_path / "moved.jsonl"))).chosen == 2  # the same rows
    other = write_snippets(tmp_path / "h.jsonl", 1, 7)
    for options, names in (
        ({"holdout": other}, "the rows of --holdout"),
        ({"holdout": None}, "the rows of --holdout"),
        ({"blocklist": str(tmp_path / "b.prod")}, "the content of --blocklist"),
    ):
        with pytest.raises(ProdError, match=f"belongs to another run, these differ: {names}: use the same"):
            run(replace(config, resume="latest", **options))


@pytest.mark.slow
def test_a_resume_that_is_refused_leaves_everything_as_it_was(world: dict[str, str], tmp_path: Path) -> None:
    run(make(world, tmp_path / "o"))
    before = {path.relative_to(tmp_path): path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ProdError, match="belongs to another run, these differ: --learning-rate"):
        run(make(world, tmp_path / "o", resume="latest", learning_rate=1e-3))
    after = {path.relative_to(tmp_path): path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_save_base_is_refused_where_it_would_do_nothing(world: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(
        ProdError, match=r"^--save-base: writes the base of a GGUF file or of 'bundled', got .*: drop it"
    ):
        run(make(world, tmp_path / "o", save_base=True))
    assert not (tmp_path / "o").exists()


def test_a_constant_rate_can_be_made_longer(world: dict[str, str], tmp_path: Path) -> None:
    whole = make(world, tmp_path / "whole", scheduler="constant", epochs=4, lora_dropout=0.2)
    run(whole)
    short = replace(whole, output=str(tmp_path / "short"), epochs=2)
    run(short)
    longer = run(replace(short, epochs=4, resume="latest"))
    assert [record["step"] for record in longer.history] == [2, 4, 6, 8]
    assert same_adapter(tmp_path / "whole", tmp_path / "short")
    assert json.loads((tmp_path / "short" / "report.json").read_text())["config"]["epochs"] == 4
    with pytest.raises(ProdError, match="checkpoint-8 is of step 8, expected one of the 4 of this run"):
        run(replace(short, resume="latest"))


@pytest.mark.slow
def test_a_stopped_run_goes_on_without_its_rule(world: dict[str, str], tmp_path: Path) -> None:
    stopped = make(world, tmp_path / "o", scheduler="constant", epochs=3, stop_at_forget=0.5)
    assert run(stopped).history[-1]["step"] == 2  # a random model recites nothing
    assert run(replace(stopped, stop_at_forget=None, epochs=4, resume="latest")).history[-1]["step"] == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "step"), [({}, 2), ({"scheduler": "cosine"}, 2), ({"scheduler": "constant", "warmup": 0.5}, 1)]
)
def test_a_rate_that_would_have_been_another_is_refused(
    world: dict[str, str], tmp_path: Path, options: dict[str, Any], step: int
) -> None:
    config = make(world, tmp_path / "o", **options)
    run(config)
    with pytest.raises(ProdError, match=rf"was to be one of 4 steps, this run has 6, .* from step {step} on: give the"):
        run(replace(config, epochs=3, resume="latest"))
    assert run(replace(config, resume="latest")).chosen == 4


def test_a_checkpoint_from_elsewhere_is_not_mixed_with_another_run(world: dict[str, str], tmp_path: Path) -> None:
    config = make(world, tmp_path / "a", epochs=1)
    run(config)
    run(replace(config, output=str(tmp_path / "b"), seed=1))
    with pytest.raises(ProdError, match=r"--output: .* is not empty: name a new directory, or go on with --resume"):
        run(replace(config, output=str(tmp_path / "b"), resume=str(tmp_path / "a" / "checkpoint-2")))


def test_anchors_go_with_the_run(world: dict[str, str], tmp_path: Path) -> None:
    """What is free to use has changed since: another choice of anchors would be mixed with the first."""
    allow = tmp_path / "free.py"
    allow.write_text("x = 1\n")
    config = make(world, tmp_path / "a", method="prod-surgical", max_quote=12, allow=str(allow), epochs=1)
    run(config)
    allow.write_text("    return a + b\n")
    run(replace(config, output=str(tmp_path / "b"), resume=str(tmp_path / "a" / "checkpoint-2")))
    assert (tmp_path / "a" / ANCHORS).read_bytes() == (tmp_path / "b" / ANCHORS).read_bytes()


# --- beginning -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("resume", [None, "latest"])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    world: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, resume: str | None
) -> None:
    config = make(world, tmp_path / "o", report_to="tensorboard", epochs=1)

    def die() -> None:
        before_step(1, lambda: os.kill(os.getpid(), signal.SIGKILL))
        run(config)

    assert in_another_process(die) == -signal.SIGKILL
    assert [path for path in (tmp_path / "o").iterdir() if "targets" not in path.name and path.is_dir()]
    run(replace(config, output=str(tmp_path / "whole")))
    with caplog.at_level("INFO", "prod_train"):
        run(replace(config, resume=resume))
    assert "the run here ended before its first checkpoint, it begins again" in caplog.text
    assert same_adapter(tmp_path / "whole", tmp_path / "o")
    assert not list((tmp_path / "o").glob(".*"))
    with pytest.raises(ProdError, match="is not empty"):
        run(config)


def test_a_directory_of_somebody_else_is_no_such_run(world: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "notes.txt").touch()
    for resume, part in ((None, "is not empty"), ("latest", "has no checkpoint: start without it")):
        with pytest.raises(ProdError, match=part):
            run(make(world, tmp_path / "o", resume=resume))
        assert [path.name for path in (tmp_path / "o").iterdir()] == ["notes.txt"]


def test_two_runs_do_not_write_to_one_directory(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(world, tmp_path / "deep" / "o", epochs=1)

    def another() -> None:
        for resume in (None, "latest"):
            with pytest.raises(
                ProdError, match=r"another run is writing to .*: wait until it has ended, or name another"
            ):
                run(replace(config, resume=resume))
        os._exit(7)

    statuses: list[int] = []
    monkeypatch.setattr(trainer, "train_step", trainer.train_step)  # put back afterwards
    before_step(1, lambda: statuses.append(in_another_process(another)))
    assert run(config).chosen == 2
    assert statuses == [7]  # refused twice
    assert not list((tmp_path / "deep" / "o").glob(".*"))


def test_a_mistake_leaves_no_directory(world: dict[str, str], tmp_path: Path) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "a"}])
    with pytest.raises(ProdError, match="expected the keys"):
        run(make(world, tmp_path / "deep" / "o", forget=bad))
    assert not (tmp_path / "deep").exists()


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [1_000, 70_000])
def test_a_disk_that_takes_no_more_is_one_line_and_keeps_what_is_there(
    world: dict[str, str], tmp_path: Path, size: int
) -> None:
    """Real writes that fail: no file may become larger, as on a full disk. 1 kB: an adapter; 70 kB: the optimizer's."""
    config = make(world, tmp_path / "o", epochs=1, max_steps=4)
    words = ["run", str(tmp_path / "c.yaml")]
    config.save(tmp_path / "c.yaml")
    log = tmp_path / "log"

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before_step(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
        sys.stderr = log.open("w")
        status = main(words)
        sys.stderr.flush()
        os._exit(status)

    assert in_another_process(fill) == 2
    lines = [line for line in log.read_text().splitlines() if line.startswith("prod-train run: ")]
    assert lines == [line for line in log.read_text().splitlines() if "cannot write" in line]
    assert "then go on with --resume latest, checkpoint-2 is kept" in lines[0]
    assert "Traceback" not in log.read_text()
    assert not list((tmp_path / "o").glob(".checkpoint*"))
    run(replace(config, resume="latest"))
    run(replace(config, output=str(tmp_path / "whole")))
    assert same_adapter(tmp_path / "whole", tmp_path / "o")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["save_checkpoint", "setup", "finish"])
def test_a_full_disk_anywhere(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = make(world, tmp_path / "o", epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, where, full)
        with pytest.raises(ProdError, match=r"^cannot write to .*: No space left on device: make room there"):
            run(config)
    assert run(replace(config, resume="latest" if where == "finish" else None)).chosen == 2


def test_other_errors_are_what_they_are(world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (FileNotFoundError(errno.ENOENT, "gone"), RuntimeError("CUDA error"), PermissionError(13, "", "/x")):

        def broken(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(trainer, "setup", broken)
        with pytest.raises(type(error)) as caught:
            run(make(world, tmp_path / "o"))
        assert caught.value is error
