"""`prod-train push`, with a server that takes what the hub's package sends."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prod_train.cli import main
from prod_train.command.push import Push
from prod_train.run.report import card_head
from tests.tiny import save_tiny_model, write_snippets

SECRET = "def secret(): return 'of somebody else'"
KEPT = ("anchors.prod", "checkpoint-3", "continuations.jsonl", "report.html", "retain.jsonl")


class Hub(ThreadingHTTPServer):
    """One repository, as far as an upload of small files asks for it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.is_private: bool | None = None
        self.refuses = False
        self.files: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.server.refuses:
            self.answer({"error": "you may not"}, 403)
            return
        self.answer(
            {"id": "me/x", "modelId": "me/x", "private": self.server.is_private, "siblings": [], "sha": "0" * 40}
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub = self.server
        assert self.headers["authorization"] == "Bearer of-these-tests"
        if hub.refuses:
            self.answer({"error": "you may not"}, 403)
        elif self.path.endswith("/api/validate-yaml"):
            # As the hub does it: a base is one of its models.
            base = re.search("^base_model: (.*)$", json.loads(body)["content"], re.MULTILINE)
            wrong = base and not re.fullmatch(r"[\w.-]+/[\w.-]+", base[1])
            errors = [{"message": '"base_model" is not valid'}] if wrong else []
            self.answer({"errors": errors, "warnings": []}, 400 if wrong else 200)
        elif self.path.endswith("/api/repos/create"):
            if hub.is_private is None:
                hub.is_private = json.loads(body).get("visibility", "private") == "private"
            self.answer({"url": f"{hub.address}/me/x"})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{hub.address}/me/x/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer({}, 404)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """What a run leaves."""
    folder = tmp_path / "o"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    for name in ("adapter_model.safetensors", "tokenizer.json"):
        (folder / name).write_text(name)
    (folder / "README.md").write_text("\n".join(card_head("owner/base", "peft")))
    (folder / "report.json").write_text("{}")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "adapter_model.safetensors").write_text(SECRET)
    for name in KEPT:
        if name != "checkpoint-3":
            (folder / name).write_text(SECRET)
    return folder


def pushed(hub: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the address of the hub is read once."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": "of-these-tests", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "prod_train.cli", "push", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_weights_and_evidence_are_uploaded_and_no_code(hub: Hub, output: Path) -> None:
    done = pushed(hub, str(output), "me/x")
    assert (done.returncode, done.stderr) == (0, "")
    assert hub.is_private
    expected = {path.name: path.read_bytes() for path in output.iterdir() if path.name not in KEPT}
    assert {name: data for name, data in hub.files.items() if name != ".gitattributes"} == expected
    assert SECRET.encode() not in b"".join(hub.files.values())
    assert f"stays here: {', '.join(KEPT)}" in done.stdout
    assert done.stdout.endswith(f"uploaded: {hub.address}/me/x/commit/1\n")


def test_the_card_of_a_merged_model_is_one_that_the_hub_takes(hub: Hub, output: Path, tmp_path: Path) -> None:
    """The hub refuses a card whose base it does not have."""
    (output / "adapter_config.json").unlink()
    for base in (str(tmp_path), "bundled", "owner/base"):
        (output / "README.md").write_text("\n".join(card_head(base, "transformers")))
        assert pushed(hub, str(output), "me/x").returncode == 0
        assert (b"base_model: owner/base" in hub.files["README.md"]) == (base == "owner/base")
    (output / "README.md").write_text("---\nbase_model: /a/b\n---\n")
    assert "is not valid" in pushed(hub, str(output), "me/x").stderr


def test_what_is_public_already_is_told(hub: Hub, output: Path) -> None:
    hub.is_private = False
    done = pushed(hub, str(output), "me/x")
    assert done.returncode == 2
    assert done.stderr == "prod-train push: me/x is public already: pass --public, or name another repository\n"
    assert not hub.files
    assert pushed(hub, str(output), "me/x", "--public").returncode == 0
    assert hub.files
    hub.refuses = True
    done = pushed(hub, str(output), "me/x")
    assert done.returncode == 2
    assert done.stderr.startswith("prod-train push: the hub refuses me/x: ")
    assert done.stderr.count("\n") == 1


def test_a_hub_that_is_not_there_is_one_line(hub: Hub, output: Path) -> None:
    hub.server_close()
    done = pushed(hub, str(output), "me/x")
    assert done.returncode == 2
    assert done.stderr.startswith("prod-train push: cannot reach the hub: ")
    assert done.stderr.count("\n") == 1


def test_a_dry_run_needs_no_network(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Push, "upload", None)
    assert main(["push", str(output), "me/x", "--dry-run", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["visibility"] == "private"
    assert record["uploaded"] is None
    assert set(record["files"]) | set(record["kept"]) == {path.name for path in output.iterdir()}
    assert set(record["kept"]) == set(KEPT)
    (output / "report.json").write_text(json.dumps({"collapsed": "it writes nothing"}))
    assert main(["push", str(output), "me/x", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "the report says: it writes nothing\n" in out
    assert out.endswith("dry run: nothing was uploaded\n")


def test_what_cannot_be_pushed(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> str:
        assert main(["push", *words, "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error.removeprefix("prod-train push: ").rstrip("\n")

    for name in ("x", "a/b/c", "a//b", "../x", "a/b\n", ""):
        assert told(str(output), name).startswith("expected OWNER/NAME, letters, digits, '-', '_' and '.', got")
    missing = tmp_path / "missing"
    expected = f"{missing}: expected the output directory of `prod-train run` or `merge`, it is"
    assert told(str(missing), "me/x") == f"{expected} no such directory"
    assert told(str(tmp_path), "me/x").endswith("expected the output of `prod-train run` or `merge`, it has no weights")
    for base in ("bundled", "x.GGUF", str(tmp_path)):
        (output / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        assert f"its base is {base}, which nobody loads from the hub: push the output of `pro" in told(
            str(output), "me/x"
        )
    (output / "adapter_config.json").write_text("[")
    assert "adapter_config.json: expected the configuration of an adapter, got " in told(str(output), "me/x")
    (output / ".unfinished").touch()
    assert "has not ended: go on with --resume latest, then push" in told(str(output), "me/x")


def test_a_run_tells_before_training_what_could_not_be_pushed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, forget = save_tiny_model(tmp_path / "m"), write_snippets(tmp_path / "f.jsonl", 2)
    words = ["--model", model, "--forget", forget, "--output", str(tmp_path / "o"), "--method", "prod"]
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    capsys.readouterr()
    for command in ("check", "run"):
        for more, said in (
            (["--push-to-hub", "me"], "expected OWNER/NAME"),
            (
                ["--push-to-hub", "me/x"],
                f"--push-to-hub: the adapter's base is {model}, which nobody loads from the hub",
            ),
            (
                ["--push-to-hub", "me/x", "--tuning", "full"],
                "--push-to-hub: expected a token of the hub, there is none",
            ),
        ):
            assert main([command, *words, *more]) == 2
            assert capsys.readouterr().err.startswith(f"prod-train {command}: {said}")
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_a_run_is_pushed_when_it_is_done_and_kept_where_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, forget = save_tiny_model(tmp_path / "m"), write_snippets(tmp_path / "f.jsonl", 2)
    words = ["run", "--model", model, "--forget", forget, "--output", str(tmp_path / "o"), "--method", "prod"]
    words += ["--tuning", "full", "--max-steps", "1", "--push-to-hub", "me/x"]
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "t")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    later = f"{tmp_path}/o has the result: `prod-train push {tmp_path}/o me/x` uploads it later"
    assert error == (
        f"prod-train run: expected the hub, HF_HUB_OFFLINE is set: unset it, or look at --dry-run; {later}"
    )
    assert Push.of(tmp_path / "o", "me/x").files[-1] == "tokenizer_config.json"
    assert (tmp_path / "o" / "report.html").exists()
