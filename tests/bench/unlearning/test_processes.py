"""Calls in processes of their own: how many, with what threads, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.unlearning.processes import call_in_processes
from prod_decode.errors import ProdError
from tests import ROOT

pytestmark = pytest.mark.slow  # every process imports torch

CORES = len(os.sched_getaffinity(0))


def note(folder: str, name: str, seconds: float, status: int) -> int:
    """Write when this call began and ended, its process and its threads."""
    import torch

    begun = time.monotonic()
    Path(folder, f"{name}.begun").write_text(str(os.getpid()))
    time.sleep(seconds)
    Path(folder, name).write_text(f"{begun} {time.monotonic()} {os.getpid()} {torch.get_num_threads()}")
    if status < 0:
        os.kill(os.getpid(), -status)
    return status


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def until(condition, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_so_many_at_the_same_time_and_each_in_a_process_of_its_own(tmp_path: Path) -> None:
    # Longer than a process takes to begin, so that two overlap.
    assert call_in_processes(note, [(str(tmp_path), str(i), 3.0, 0) for i in range(3)], jobs=2) == 0
    found = [[float(x) for x in (tmp_path / str(i)).read_text().split()] for i in range(3)]
    assert len({pid for _, _, pid, _ in found} | {os.getpid()}) == 4
    together = [sum(begun <= moment < ended for begun, ended, _, _ in found) for moment, _, _, _ in found]
    assert max(together) == 2
    assert {threads for *_, threads in found} == {max(1, CORES // 2)}


@pytest.mark.parametrize("status", [2, -signal.SIGKILL])
def test_the_first_that_fails_ends_the_others(tmp_path: Path, status: int) -> None:
    calls = [
        (str(tmp_path), "long", 600.0, 0),
        (str(tmp_path), "bad", 3.0, int(status)),
        (str(tmp_path), "next", 0.0, 0),
    ]
    begun = time.monotonic()
    if status > 0:
        assert call_in_processes(note, calls, jobs=2) == status
    else:
        with pytest.raises(ProdError, match=r"a process was ended by signal 9: .*fewer --jobs"):
            call_in_processes(note, calls, jobs=2)
    assert time.monotonic() - begun < 300
    assert not (tmp_path / "long").exists()
    assert not (tmp_path / "next.begun").exists()
    assert not alive(int((tmp_path / "long.begun").read_text()))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_they_end_with_the_one_that_began_them(tmp_path: Path, how: signal.Signals) -> None:
    program = (
        "from bench.unlearning.processes import call_in_processes\n"
        "from tests.bench.unlearning.test_processes import note\n"
        "if __name__ == '__main__':\n"
        f"    call_in_processes(note, [({str(tmp_path)!r}, str(i), 600.0, 0) for i in range(2)], jobs=2)\n"
    )
    (tmp_path / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "program.py")], env=environment)
    try:
        files = [tmp_path / f"{i}.begun" for i in range(2)]
        assert until(lambda: all(file.exists() and file.read_text() for file in files))
        parent.send_signal(how)
        assert parent.wait(30) == -how
        assert until(lambda: not any(alive(int(file.read_text())) for file in files))
    finally:
        parent.kill()


def test_finalizers_run_before_children_are_waited_for() -> None:
    """As in a script with `prod_decode` imported first, whose vLLM engine is a child that a finalizer ends."""
    script = """
import prod_decode.match.matcher
import multiprocessing, time, weakref
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
child.start()
weakref.finalize(child, child.terminate)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
