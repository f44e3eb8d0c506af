"""The examples of unlearning and serving, run as their headers say: train, start the server, check it, ask it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from prod_decode import Blocklist
from prod_decode.storage.models import load_model
from tests import ROOT
from tests.docs.console import environment, make_commands
from tests.examples.taught import save_taught_model
from tests.tiny import write_snippets
from tests.vllm.engine import ENVIRONMENT, module_path

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

EXAMPLES = ROOT / "examples"
PROMPT = "def add(a, b):\n"
KNOWN = "    return a + b\n"


@dataclass
class Served:
    """A server that `serve.sh` has called ready."""

    folder: Path
    url: str
    said: list[str]
    settings: dict[str, str]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=ROOT, env=self.settings, capture_output=True, text=True, timeout=300, check=False
        )

    def ask(self, prompt: str, *lists: str) -> subprocess.CompletedProcess[str]:
        return self.run("python", str(EXAMPLES / "vllm" / "client.py"), self.url, prompt, *lists)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """unlearn_and_serve.sh on a tiny model that knows what it is to forget; its one step is too small to forget it."""
    folder = tmp_path_factory.mktemp("served")
    commands = make_commands(folder / "bin")
    forget = write_snippets(folder / "forget.jsonl", 4)
    write_snippets(folder / "retain.jsonl", 2, 4)
    write_snippets(folder / "holdout.jsonl", 1, 6)
    save_taught_model(folder, forget)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {
        **environment(commands),
        **ENVIRONMENT,
        "PYTHONPATH": module_path(folder),
        "PORT": port,
        "SERVE_OPTIONS": "--dtype float32 --enforce-eager --max-model-len 512 --max-num-seqs 4",
    }
    words = [EXAMPLES / "unlearn_and_serve.sh", "taught", "forget.jsonl", "retain.jsonl", "holdout.jsonl", "out"]
    words += ["--max-steps", "1", "--learning-rate", "1e-7"]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=folder,
            env=settings,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 600
        while "\nready\n" not in log.read_text():
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(1)
        yield Served(folder, f"http://127.0.0.1:{port}", log.read_text().splitlines(), settings)
    finally:
        # As a supervisor ends it: the script is told, and ends the server.
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143, log.read_text()[-4000:]
    with socket.socket() as gone:
        assert gone.connect_ex(("127.0.0.1", int(port))) != 0, "the server outlives its script"


def test_the_server_was_checked_before_it_was_called_ready(served: Served) -> None:
    before = served.said[served.said.index("ready") - 1]
    assert re.fullmatch(
        rf"{re.escape(served.url)}: enforced \(prod-decode \S+, vLLM \S+; lists: always, extra\)", before
    ), before
    checked = served.run("prod-decode", "check-server", served.url)
    assert (checked.returncode, checked.stdout.count("; lists: always)\n")) == (0, 1)


def test_the_client_gets_nothing_prohibited_from_a_model_that_knows_it(served: Served) -> None:
    model, tokenizer = load_model(str(served.folder / "out" / "merged"), device="cpu")
    inputs = tokenizer(PROMPT, return_tensors="pt")
    free = tokenizer.decode(model.generate(**inputs, max_new_tokens=64, do_sample=False)[0], skip_special_tokens=True)
    assert free == PROMPT + KNOWN
    blocklist = Blocklist.load(served.folder / "out" / "forgotten.prod")
    assert list(blocklist.scan(free))
    for lists in ([], ["extra"]):
        done = served.ask(PROMPT, *lists)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > len(KNOWN)
        assert list(blocklist.scan(PROMPT + done.stdout)) == []


def test_a_list_that_the_server_does_not_have_is_an_error(served: Served) -> None:
    done = served.ask(PROMPT, "extar")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "expected names of blocklists that this server has, got 'extar'" in done.stderr
