"""`prod-decode check-server` against servers of every kind, each a few lines that answer as vLLM does."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from prod_decode import ProdError
from prod_decode.cli import main
from prod_decode.serving.check_server import check_server

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]

PHRASE = "prod_decode_canary_7c1e5bd04af29b36"
REPORT = {"version": "0.1.0", "vllm": "0.32.0", "default": ["gpl"], "enforced": ["gpl"], "loaded": 2}


@contextmanager
def serve(answer: Answer) -> Iterator[str]:
    """A server on a free port; `answer` gets the path and the body of a request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: dict[str, Any]) -> None:
            status, content = answer(self.path, {**body, "key": self.headers["Authorization"]})
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def error(message: str) -> tuple[int, Any]:
    return 400, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}


def text(written: str) -> tuple[int, Any]:
    return 200, {"choices": [{"index": 0, "text": written, "finish_reason": "stop"}]}


def guarded(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """As a server with the lists gpl, which every request gets, and extra."""
    if path == "/v1/models":
        return 200, {"object": "list", "data": [{"id": "smol"}]}
    if body["model"] != "smol":
        return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
    arguments = body["vllm_xargs"]
    names = arguments.get("prod_blocklists", [])
    if set(names) - {"gpl", "extra"}:
        return error("prod_blocklists: expected names of blocklists that this server has, got 'nope'")
    if arguments.get("prod_check") == "report":
        return error(f"prod_check: {json.dumps({**REPORT, 'enforced': ['gpl', *names]})}")
    assert body["structured_outputs"] == {"choice": [PHRASE]}
    return text(PHRASE[:20] if arguments.get("prod_check") == "canary" else PHRASE)


def changed(**answers: tuple[int, Any]) -> Answer:
    """Like `guarded`, but for what it answers to the question for the report, the phrase and the canary."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        check = body.get("vllm_xargs", {}).get("prod_check", "phrase")
        return answers[check] if check in answers and path == "/v1/completions" else guarded(path, body)

    return answer


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_guarded_server(suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(guarded) as url:
        found = check_server(url + suffix)
        assert (found.enforced, found.reason, found.report) == (True, "", REPORT)
        assert main(["check-server", url + suffix, "--list", "extra", "--model", "smol"]) == 0
    assert capsys.readouterr().out == f"{url}{suffix}: enforced (prod-decode 0.1.0, vLLM 0.32.0; lists: gpl, extra)\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        # It ignores arguments that it does not know, and writes.
        (lambda path, body: guarded(path, body) if path == "/v1/models" else text("x"), "does not know prod_decode"),
        (
            changed(report=error("expected a server that enforces blocklists, got one")),
            "expected a server that enforces",
        ),
        (changed(canary=text(PHRASE)), "the server wrote a phrase that is banned"),
        (changed(canary=text("something else")), "the server wrote a phrase that is banned"),
        (changed(canary=(500, "Internal Server Error")), "HTTP 500 instead of an answer that breaks off: Internal"),
        (
            changed(report=error(f"prod_check: {json.dumps({**REPORT, 'default': [], 'enforced': []})}")),
            r"no list is enforced on a request that names none \(default is \[\]\)",
        ),
    ],
)
def test_servers_that_enforce_nothing(answer: Answer, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(answer) as url:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.delenv("OPENAI_API_KEY", raising=False)
            assert main(["check-server", url]) == 1
        output = capsys.readouterr().out
    assert output.startswith(f"{url}: NOT ENFORCED: ")
    assert re.search(reason, output)
    assert output.count("\n") == 1


def test_a_list_that_is_not_there() -> None:
    with serve(guarded) as url:
        found = check_server(url, names=["nope"])
    assert not found.enforced
    assert found.reason.startswith("prod_blocklists: expected names of blocklists that this server has, got 'nope'")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (changed(phrase=text("no grammar")), "got 'no grammar': the server must support structured outputs"),
        (changed(phrase=error("no backend")), "got 'no backend': the server must support structured outputs"),
        (changed(report=(401, {"error": "Unauthorized"})), "got HTTP 401: {'error': 'Unauthorized'}; see --model"),
        (changed(report=error("prod_check: {broken")), "got HTTP 400"),
        (lambda *_: (200, "<html>"), "got HTTP 200: <html>; see --model"),
    ],
)
def test_servers_that_cannot_be_judged(answer: Answer, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(answer) as url:
        assert main(["check-server", url]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not output.out


def test_a_key_and_a_model_are_sent() -> None:
    seen: list[tuple[str, Any]] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        seen.append((path, body["key"]))
        return guarded(path, body)

    with serve(answer) as url:
        check_server(url, model="smol", api_key="secret")
        assert seen == [("/v1/completions", "Bearer secret")] * 3
        with pytest.raises(ProdError, match="got HTTP 404: The model `large` does not exist"):
            check_server(url, model="large")


def test_nobody_is_there() -> None:
    with serve(guarded) as url:
        pass
    with pytest.raises(ProdError, match=r"cannot reach http.*; is the server up\?"):
        check_server(url)
    with pytest.raises(ProdError, match=r"URL: expected http://\.\.\. or https://\.\.\., got 'file:///etc/passwd'"):
        check_server("file:///etc/passwd")
