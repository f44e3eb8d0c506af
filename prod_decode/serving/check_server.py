"""`prod-decode check-server`: whether a running vLLM server enforces its blocklists, seen from outside.

The server has a canary beside its own lists: a phrase that nobody writes, banned in requests that ask for it. The check
makes the server write that phrase, by a grammar that allows nothing else: it must come back, and with the canary banned
it must break off. What breaks it off is the processor and nothing else, so every list in force is enforced by it, too.
"""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import IncompleteRead
from typing import Any, TypeVar
from urllib.parse import urlsplit

from prod_decode.errors import ProdError, one_line
from prod_decode.serving.settings import ARGUMENT, CANARY, CANARY_PHRASE, CHECK, REPORT

_T = TypeVar("_T")

_LARGEST_ANSWER = 1 << 20
# Characters of what a server says that are repeated.
_SAID = 300


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. What the server says of itself is here as it may be printed: control characters are escaped.

    Attributes:
        enforced: whether requests like the one described are guarded.
        reason: why not; empty if they are.
        report: what the server says of itself: `version`, `vllm`, `default`, `enforced` (the lists that such a request
            gets) and `loaded` (how many there are); empty if it says nothing.
    """

    enforced: bool
    reason: str
    report: dict[str, Any]


def check_server(
    url: str, *, model: str | None = None, names: Sequence[str] = (), api_key: str | None = None, timeout: float = 120
) -> Finding:
    """Ask a server: for the name of its model, for its report, and for the phrase without and with the canary banned.

    Args:
        url: such as `http://host:8000`, with `/v1` or without.
        model: the name of the model; default: the first that the server has.
        names: blocklists that a request adds to those that every request gets.
        api_key: what the server wants as a bearer token.
        timeout: seconds for each request, from looking up the host to the last byte of the answer.

    Raises:
        ProdError: the server cannot be reached or asked, so nothing is known.
    """
    server = _Server(_base(url), _checked(api_key), timeout)
    arguments: dict[str, Any] = {ARGUMENT: list(names)} if names else {}
    model = model or server.first_model()
    answer = server.complete(model, {**arguments, CHECK: REPORT}, max_tokens=1)
    if answer.written is not None:
        return Finding(False, "the server does not know prod_decode: nothing enforces a blocklist", {})
    if answer.status != 400 or answer.error is None:
        raise server.unexpected(answer)
    _, found, text = answer.error.partition(f"{CHECK}: {{")
    if not found:
        return Finding(False, one_line(answer.error, _SAID), {})
    report = _read_report("{" + text)
    if report is None:
        raise server.unexpected(answer)
    if not report["enforced"]:
        return Finding(False, "no list is enforced on a request that names none (default is [])", report)
    grammar = {"structured_outputs": {"choice": [CANARY_PHRASE]}, "temperature": 0, "max_tokens": 100}
    answer = server.complete(model, arguments, **grammar)
    if answer.written != CANARY_PHRASE:
        raise ProdError(
            f"{server.url}: expected the phrase that a grammar asks for, got '{answer.said}': the server must support "
            "structured outputs to be checked"
        )
    answer = server.complete(model, {**arguments, CHECK: CANARY}, **grammar)
    if answer.status != 200:
        return Finding(False, f"HTTP {answer.status} instead of an answer that breaks off: {answer.said}", report)
    if answer.written is None:
        raise server.unexpected(answer)
    if answer.written == CANARY_PHRASE or not CANARY_PHRASE.startswith(answer.written):
        return Finding(False, "the server wrote a phrase that is banned", report)
    return Finding(True, "", report)


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer's status, its body as text, and that as JSON, which is None if it is none."""

    status: int
    text: str
    body: Any

    @property
    def written(self) -> str | None:
        """The text of a completion; None if it is none."""
        return _string_at(self.body, "choices", 0, "text") if self.status == 200 else None

    @property
    def error(self) -> str | None:
        """What an error says; None if it says nothing, at least not as vLLM does."""
        return _string_at(self.body, "error", "message")

    @property
    def said(self) -> str:
        """All this in one line that may be printed."""
        return one_line(self.written or self.error or self.text, _SAID)


@dataclass(frozen=True, slots=True)
class _Server:
    url: str
    api_key: str | None
    timeout: float

    def first_model(self) -> str:
        answer = self._ask("/v1/models", None)
        model = _string_at(answer.body, "data", 0, "id")
        if answer.status != 200 or not model:
            raise self.unexpected(answer)
        return model

    def complete(self, model: str, arguments: dict[str, Any], **options: Any) -> _Answer:
        """The answer of `/v1/completions`."""
        body = {"model": model, "prompt": "Say:", "vllm_xargs": arguments, **options}
        return self._ask("/v1/completions", body)

    def unexpected(self, answer: _Answer) -> ProdError:
        return ProdError(
            f"{self.url}: expected an answer of vLLM's OpenAI-compatible server, got HTTP {answer.status}: "
            f"{answer.said}; see --model and --api-key"
        )

    def _ask(self, path: str, body: dict[str, Any] | None) -> _Answer:
        """One exchange.

        Raises:
            ProdError: whatever goes wrong in it.
        """
        try:
            return _within(self.timeout, lambda: self._exchange(path, body))
        except Exception as error:  # noqa: BLE001  (what answers there may be anything, and no list of errors is whole)
            reason = one_line(f"{type(error).__name__}: {error}", _SAID)
            raise ProdError(f"cannot ask {self.url}{path}: {reason}; is a vLLM server up there?") from None

    def _exchange(self, path: str, body: dict[str, Any] | None) -> _Answer:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)  # noqa: S310  (its scheme was checked)
        response: Any
        try:
            response = urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            content = response.read(_LARGEST_ANSWER + 1)
            missing = response.length
        if len(content) > _LARGEST_ANSWER:
            raise ValueError(f"expected an answer of at most {_LARGEST_ANSWER} bytes, got more")
        if missing:  # which read() says of chunks only
            raise IncompleteRead(content, missing)
        if 300 <= response.status < 400:
            raise ValueError(f"expected an answer, got a redirect to {response.headers['Location']}: give that address")
        text = content.decode(errors="replace")
        return _Answer(response.status, text, _parse(text))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Does not follow: urllib would make a GET of a POST, and send the key to whatever host it is told."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _base(url: str) -> str:
    """The address before `/v1`.

    Raises:
        ProdError: it is not one.
    """
    try:
        parts = urlsplit(url)
        # The port is parsed when it is read.
        is_plain = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment or parts.username)
        is_url = parts.scheme in ("http", "https") and is_plain and url.isprintable() and " " not in url
    except ValueError:
        is_url = False
    if not is_url:
        raise ProdError(
            f"URL: expected http://... or https://..., got {url!r}: give host and port, as http://host:8000"
        )
    return url.rstrip("/").removesuffix("/v1")


def _checked(api_key: str | None) -> str | None:
    # http.client's own error shows the key.
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise ProdError("--api-key: expected printable ASCII, got other characters: look for a line break in the key")
    return api_key


def _within(seconds: float, run: Callable[[], _T]) -> _T:
    """What `run` returns or raises.

    In a thread that nobody waits for: the timeout of a socket bounds neither the lookup of a name, nor headers without
    an end, nor bytes that come one by one.

    Raises:
        TimeoutError: it takes longer.
    """
    outcome: Future[_T] = Future()

    def work() -> None:
        try:
            outcome.set_result(run())
        except Exception as error:  # noqa: BLE001  (raised again where it is waited for)
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no whole answer in {seconds:g} seconds") from None


def _read_report(text: str) -> dict[str, Any] | None:
    """The JSON at the beginning of a text, as `Finding.report`; None if it is not that."""
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError, AttributeError):
        found = json.JSONDecoder().raw_decode(text)[0]
        versions = {key: one_line(found[key], _SAID) for key in ("version", "vllm")}
        names = {key: [one_line(name, _SAID) for name in found[key]] for key in ("default", "enforced")}
        if all(isinstance(found[key], list) for key in names):
            return {**versions, **names, "loaded": int(found["loaded"])}
    return None


def _parse(text: str) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _string_at(value: Any, *path: str | int) -> str | None:
    """The string there; None if there is none."""
    with contextlib.suppress(KeyError, IndexError, TypeError):
        for step in path:
            value = value[step]
        return value if isinstance(value, str) else None
    return None
