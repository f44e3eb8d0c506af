"""`prod-decode check-server` against servers of every kind, each a few lines that answer as vLLM does."""

from __future__ import annotations

import json
import re
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
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
        (changed(report=(401, {"error": "Unauthorized"})), 'got HTTP 401: {"error": "Unauthorized"}; see --model'),
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
    with pytest.raises(ProdError, match=r"^cannot ask http.*: URLError: .*refused.*; is a vLLM server up there\?$"):
        check_server(url)
    with pytest.raises(ProdError, match=r"URL: expected http://\.\.\. or https://\.\.\., got 'file:///etc/passwd'"):
        check_server("file:///etc/passwd")


@contextmanager
def speak(data: bytes, *, endless: bytes = b"", pause: float = 0) -> Iterator[str]:
    """A service that answers everybody with these bytes, and then with `endless` over and over."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                self.request.recv(65536)
                self.request.sendall(data)
                while endless and not done.is_set():
                    self.request.sendall(endless)
                    time.sleep(pause)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    done = threading.Event()
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        done.set()
        server.shutdown()


def said(body: bytes, status: str = "200 OK", length: int | None = None, more: bytes = b"") -> bytes:
    """An answer of HTTP."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n"
    return head.encode() + more + b"\r\n" + body


OK = b"HTTP/1.1 200 OK\r\n"
UNEXPECTED = "expected an answer of vLLM's OpenAI-compatible server, got HTTP "


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "message"),
    [
        # Services that speak no HTTP, or begin to.
        (speak(b""), "RemoteDisconnected: Remote end closed connection without response; is a vLLM server up there?"),
        (speak(b"SSH-2.0-OpenSSH_9.6\r\n"), "BadStatusLine: SSH-2.0-OpenSSH_9.6; is a vLLM server up there?"),
        (speak(b"\x00\x1b[2J\r\n"), r"BadStatusLine: \x00\x1b[2J; is a vLLM server up there?"),
        (speak(b"HTTP/1.1 " + b"x" * 70000), "LineTooLong: got more than 65536 bytes when reading status line; is"),
        # Connections that are cut.
        (speak(OK + b"Content-Le"), UNEXPECTED + "200: ; see --model"),
        (speak(said(b'{"data": [', length=90)), "IncompleteRead: IncompleteRead(10 bytes read, 80 more expected); is"),
        (speak(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"), "IncompleteRead: IncompleteRead("),
        (speak(said(b"Bad G", "502 Bad Gateway", 11)), "IncompleteRead: IncompleteRead(5 bytes read, 6 more expected)"),
        # Answers without an end, and such as never come.
        (speak(OK + b"\r\n", endless=b"x" * 65536), "expected an answer of at most 1048576 bytes, got more; is"),
        (speak(said(b"x" * (1 << 20) + b"x", "500 No")), "expected an answer of at most 1048576 bytes, got more; is"),
        (speak(OK + b"\r\n", endless=b" ", pause=0.02), "TimeoutError: no whole answer in 0.5 seconds; is a vLLM"),
        (speak(b"", endless=b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.02), "no whole answer in 0.5 seconds; is a vLLM"),
        (speak(said(b""), endless=b"x"), UNEXPECTED + "200: ; see --model"),
        # Redirects: to itself, and to a server that would get the key.
        (
            speak(said(b"", "302 Found", more=b"Location: /v1/models\r\n")),
            "got a redirect to /v1/models: give that add",
        ),
        (
            speak(said(b"", "308 Moved", more=b"Location: https://else.where/\x1b[2J\r\n")),
            r"got a redirect to https://else.where/\x1b[2J: give that address; is a vLLM server up there?",
        ),
        # Answers that are not JSON, or no object, or not of the right shape.
        (speak(said(b"[" * 200_000)), UNEXPECTED + "200: " + "[" * 222 + "..." + "[" * 75 + "; see --model"),
        (speak(said(b'{"data":' * 100_000)), UNEXPECTED + '200: {"data":{"data":'),
        (speak(said(b"9" * 10_000)), UNEXPECTED + "200: 9999"),
        (speak(said(b'{"data": [{"id": "\xff\xfe"')), UNEXPECTED + '200: {"data": [{"id": "\ufffd\ufffd"; see'),
        (speak(said(b"[]")), UNEXPECTED + "200: []; see"),
        (speak(said(b"null")), UNEXPECTED + "200: null; see"),
        (speak(said(b'"data"')), UNEXPECTED + '200: "data"; see'),
        (speak(said(b'{"data": [{"id": 7}]}')), UNEXPECTED + '200: {"data": [{"id": 7}]}; see'),
        (speak(said(b'{"data": {"0": "x"}}')), UNEXPECTED + '200: {"data": {"0": "x"}}; see'),
        # What a terminal would obey: colours, a line to write over, bells, C1 controls, text from right to left.
        (
            speak(said("a\x1b[31m\rb\n\n\x07\x9b2J\u202e\ud7ff".encode(), "503 \x1b[2J")),
            UNEXPECTED + r"503: a\x1b[31m b \x07\x9b2J\u202e\ud7ff; see --model",
        ),
        (
            speak(said(rb'{"error": {"message": "\u001b]0;x\u0007\ud800"}}', "404 No")),
            UNEXPECTED + r"404: \x1b]0;x\x07\ud800; see --model",
        ),
    ],
)
def test_what_is_no_server_of_vllm(
    server: AbstractContextManager[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(check_server.__kwdefaults__, "timeout", 0.5)
    with server as url:
        assert main(["check-server", url]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.endswith("\n")
    assert output.err[:-1].isprintable()
    assert len(output.err) < 1000
    assert not output.out


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:notaport",
        "http://localhost:99999",
        "http://localhost:0",
        "http://local host:8000",
        "http://localhost:8000/a b",
        "http://localhost\x1b[2J",
        "http://localhost\n:8000",
        "http://[::1",
        "http://[nonsense]:8000",
        "http://",
        "http://:8000",
        "http://localhost:8000?model=x",
        "http://user:password@localhost:8000",
        "localhost:8000",
        "ftp://localhost",
        "",
    ],
)
def test_what_is_no_address(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-server", url]) == 2
    message = f"URL: expected http://... or https://..., got {url!r}: give host and port, as http://host:8000"
    assert capsys.readouterr().err == f"prod-decode check-server: {message}\n"


@pytest.mark.parametrize("url", ["http://no_such_host.invalid", "http://" + "x" * 70, "http://b\u00fccher.invalid:1"])
def test_hosts_that_are_not_there(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-server", url]) == 2
    message = rf"cannot ask {re.escape(url)}/v1/models: \w+Error: .*; is a vLLM server up there\?"
    assert re.fullmatch(f"prod-decode check-server: {message}\n", capsys.readouterr().err)


def test_a_key_that_is_none_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("secret\n", "s\u20accret"):
        assert main(["check-server", "http://127.0.0.1:1", "--api-key", key]) == 2
        assert capsys.readouterr().err == (
            "prod-decode check-server: --api-key: expected printable ASCII, got other characters: look for a line "
            "break in the key\n"
        )


def test_what_a_guarded_server_says_is_printed_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    report = {
        **REPORT,
        "version": "0.1\x1b[2J",
        "vllm": "0\r1",
        "enforced": ["g\npl", *(f"list{n}" for n in range(99))],
    }
    with serve(changed(report=error(f"prod_check: {json.dumps(report)}"))) as url:
        assert main(["check-server", url]) == 0
        lists = ", ".join(f"list{n}" for n in range(99))
        assert capsys.readouterr().out == (
            f"{url}: enforced (prod-decode 0.1\\x1b[2J, vLLM 0 1; lists: g pl, {lists})\n"
        )
    with serve(changed(canary=(500, "\x1b[2J\r\x00"))) as url:
        assert main(["check-server", url]) == 1
    assert "HTTP 500 instead of an answer that breaks off: \\x1b[2J \\x00 (prod-decode" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        # An answer of another shape does not show that anything broke off, nor that nothing is enforced.
        *((changed(canary=(200, body)), UNEXPECTED + "200: ") for body in ({}, [], {"choices": []}, "x", None)),
        (changed(canary=(200, {"choices": [{"text": None}]})), UNEXPECTED + "200: "),
        *((changed(report=(200, body)), UNEXPECTED + "200: ") for body in ({}, [], "<html>", {"choices": [{}]})),
        (changed(report=(400, "plain HTTP request sent to HTTPS port")), UNEXPECTED + "400: plain HTTP request"),
        *(
            (changed(report=error(f"prod_check: {broken}")), UNEXPECTED + "400: prod_check: {")
            for broken in (
                "{}",
                '{"a":' * 100_000,
                json.dumps({**REPORT, "enforced": "gpl"}),
                json.dumps({**REPORT, "enforced": [["gpl"]]}),
                json.dumps({**REPORT, "default": 3}),
                json.dumps({**REPORT, "version": None}),
                json.dumps({**REPORT, "loaded": "many"}),
            )
        ),
        (changed(phrase=text("\x1b[2J" * 99_999)), r"expected the phrase that a grammar asks for, got '\x1b[2J"),
    ],
)
def test_answers_of_another_shape(answer: Answer, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(answer) as url:
        assert main(["check-server", url]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err[:-1].isprintable()
    assert len(output.err) < 5000
    assert not output.out
