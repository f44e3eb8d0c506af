"""The audit log: every hit in a line, in order; what is lost is counted; nobody waits; one writer a file."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prod_decode import AuditLog, Hit, ProdError
from tests import ROOT

BAN = Hit(1, 17, "banned", "yaml.load(", "lists", "MIT", 0.81234567, 0.9, likeliest=True, token_id=3, text="load")
QUOTE = Hit(0, 40, "quoted", "d", characters=240, budget=240, text="x=1", span=(4, 7), request="r1")


def lines_of(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_line_for_each_hit_without_its_text(tmp_path: Path) -> None:
    path = tmp_path / "hits.jsonl"
    with AuditLog(path) as log:
        log(BAN)
        log(QUOTE)
    with AuditLog(path, text=True) as log:
        log(BAN)
        log(QUOTE)
    lines = lines_of(path)
    assert {line.pop("pid") for line in lines} == {os.getpid()}
    times = [line.pop("time") for line in lines]
    assert times == sorted(times)
    assert all(len(one) == 24 and one.endswith("Z") for one in times)
    ban = {"row": 1, "position": 17, "kind": "banned", "entry": "yaml.load(", "source": "lists", "license": "MIT"}
    ban |= {"probability": 0.812346, "mass": 0.9, "likeliest": True}
    quote = {"row": 0, "position": 40, "kind": "quoted", "entry": "d", "characters": 240, "budget": 240}
    quote |= {"request": "r1"}
    texts = [{}, {}, {"token_id": 3, "text": "load"}, {"text": "x=1", "span": [4, 7]}]
    assert lines == [known | text for known, text in zip([ban, quote] * 2, texts, strict=True)]


def test_a_file_is_renamed_before_it_grows_too_long(tmp_path: Path) -> None:
    path = tmp_path / "hits.jsonl"
    with AuditLog(path, max_bytes=1000, keep=2) as log:
        for position in range(60):
            log(Hit(0, position, "ended"))
    files = [path.with_name("hits.jsonl.2"), path.with_name("hits.jsonl.1"), path]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.stat().st_size <= 1000 for file in files)
    kept = [line["position"] for file in files for line in lines_of(file)]
    # The newest, none of them twice or left out.
    assert kept == list(range(60 - len(kept), 60))
    assert len(kept) > 20


class Stuck:
    """A disk that does not answer until it is let go."""

    def __init__(self, log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        write = log._file.emit

        def wait(record: Any) -> None:
            self.begun.set()
            assert self.let_go.wait(30)
            write(record)

        monkeypatch.setattr(log._file, "emit", wait)


def test_what_finds_the_queue_full_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "hits.jsonl"
    log = AuditLog(path, waiting=3)
    disk = Stuck(log, monkeypatch)
    log(Hit(0, 0, "ended"))
    assert disk.begun.wait(30)
    # Nobody waits for it: three more find a place, seven none.
    for position in range(1, 11):
        log(Hit(0, position, "ended"))
    disk.let_go.set()
    log.close()
    lines = lines_of(path)
    assert [line.get("position") for line in lines if "position" in line] == [0, 1, 2, 3]
    assert [line["dropped"] for line in lines if "dropped" in line] == [7]
    assert f"hits were dropped, 7 of them, which are not in {path}" in caplog.text


def test_what_the_disk_refuses_is_counted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "hits.jsonl"
    log = AuditLog(path)
    full = OSError(28, "No space left on device")
    done = threading.Event()

    def refuse(_record: object) -> bool:
        raise full

    monkeypatch.setattr(log._file, "shouldRollover", refuse)
    for position in range(3):
        log(Hit(0, position, "ended"))
    log._queue.join()
    monkeypatch.undo()
    log(Hit(0, 3, "ended"))
    log.close()
    done.set()
    lines = lines_of(path)
    assert [line.get("position", line.get("dropped")) for line in lines] == [3, 3]
    assert ["dropped" in line for line in lines] == [True, False]
    assert caplog.text.count("hits cannot be written to") == 1
    assert "No space left on device" in caplog.text


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "hits.jsonl"
    with AuditLog(path, max_bytes=300) as log:
        message = r"hits\.jsonl: expected an audit log that nobody writes, got one with a writer: put \{pid\} into"
        with pytest.raises(ProdError, match=message):
            AuditLog(path)
        # Also when it has been renamed.
        for position in range(20):
            log(Hit(0, position, "ended"))
        log._queue.join()
        assert path.with_name("hits.jsonl.1").exists()
        with pytest.raises(ProdError, match=message):
            AuditLog(path)
        with pytest.raises(ProdError, match=message):
            pickle.loads(pickle.dumps(log))
    AuditLog(path).close()
    with AuditLog(tmp_path / "of-{pid}.jsonl", keep=3) as log:
        assert log.path == str(tmp_path / f"of-{os.getpid()}.jsonl")


def test_a_forked_process_is_told_to_make_its_own(tmp_path: Path) -> None:
    program = f"""
import os, sys
from prod_decode import AuditLog, Hit, ProdError
log = AuditLog({str(tmp_path / "hits.jsonl")!r})
log(Hit(0, 1, "ended"))
if not os.fork():
    try:
        log(Hit(0, 2, "ended"))
    except ProdError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
log(Hit(0, 3, "ended"))
assert not {{"torch", "transformers"}} & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.endswith("expected an audit log of this process, got its parent's: make one where it is used\n")
    # Written when the program ended, which closed nothing.
    assert [line["position"] for line in lines_of(tmp_path / "hits.jsonl")] == [1, 3]


def test_what_comes_after_the_end_is_refused(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "hits.jsonl")
    log.close()
    log.close()
    with pytest.raises(ProdError, match="expected an audit log that is open, got one that is closed: make one"):
        log(BAN)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (AuditLog, "is a directory"),
        (lambda folder: AuditLog(folder / "no" / "a.jsonl"), "the directory .*no does not exist"),
        (lambda folder: AuditLog(""), "expected the name of a file or directory, got '': is a variable not set"),
        (lambda folder: AuditLog(folder / "list.jsonl"), "it is there and is no audit log; name another, or remove"),
        (lambda folder: AuditLog(folder / "a", max_bytes=0), "max_bytes: expected a whole number above 0, got 0"),
        (lambda folder: AuditLog(folder / "a", keep=0), "keep: expected a whole number above 0, got 0"),
        (lambda folder: AuditLog(folder / "a", waiting=True), "waiting: expected a whole number above 0, got True"),
        (lambda folder: AuditLog(folder / "a", text="yes"), "text: expected True or False, got 'yes'"),
    ],
)
def test_mistakes(tmp_path: Path, make: Callable[[Path], AuditLog], message: str) -> None:
    (tmp_path / "list.jsonl").write_text('{"text": "yaml.load("}\n')
    with pytest.raises(ProdError, match=message):
        make(tmp_path)
    assert (tmp_path / "list.jsonl").read_text() == '{"text": "yaml.load("}\n'
