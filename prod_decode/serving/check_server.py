"""`prod-decode check-server`: whether a running vLLM server enforces its blocklists, seen from outside.

The server has a canary beside its own lists: a phrase that nobody writes, banned in requests that ask for it. The check
makes the server write that phrase, by a grammar that allows nothing else: it must come back, and with the canary banned
it must break off. What breaks it off is the processor and nothing else, so every list in force is enforced by it, too.
"""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prod_decode.errors import ProdError
from prod_decode.serving.settings import ARGUMENT, CANARY, CANARY_PHRASE, CHECK, REPORT

_LARGEST_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

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
        timeout: seconds for each request.

    Raises:
        ProdError: the server cannot be reached or asked, so nothing is known.
    """
    server = _Server(url.rstrip("/").removesuffix("/v1"), api_key, timeout)
    arguments: dict[str, Any] = {ARGUMENT: list(names)} if names else {}
    model = model or server.first_model()
    status, answer = server.complete(model, {**arguments, CHECK: REPORT}, max_tokens=1)
    message = _message(answer)
    if status == 200:
        return Finding(False, "the server does not know prod_decode: nothing enforces a blocklist", {})
    if status != 400:
        raise server.unexpected(status, message)
    _, found, text = message.partition(f"{CHECK}: {{")
    if not found:
        return Finding(False, message, {})
    try:
        report = json.JSONDecoder().raw_decode("{" + text)[0]
    except ValueError:
        raise server.unexpected(status, message) from None
    if not report["enforced"]:
        return Finding(False, "no list is enforced on a request that names none (default is [])", report)
    grammar = {"structured_outputs": {"choice": [CANARY_PHRASE]}, "temperature": 0, "max_tokens": 100}
    status, answer = server.complete(model, arguments, **grammar)
    if status != 200 or _text(answer) != CANARY_PHRASE:
        raise ProdError(
            f"{url}: expected the phrase that a grammar asks for, got {_text(answer) or _message(answer)!r}: the "
            "server must support structured outputs to be checked"
        )
    status, answer = server.complete(model, {**arguments, CHECK: CANARY}, **grammar)
    text = _text(answer)
    if status != 200:
        return Finding(False, f"HTTP {status} instead of an answer that breaks off: {_message(answer)}", report)
    if text == CANARY_PHRASE or not CANARY_PHRASE.startswith(text):
        return Finding(False, "the server wrote a phrase that is banned", report)
    return Finding(True, "", report)


@dataclass(frozen=True, slots=True)
class _Server:
    url: str
    api_key: str | None
    timeout: float

    def first_model(self) -> str:
        status, answer = self._ask("/v1/models", None)
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise self.unexpected(status, _message(answer)) from None

    def complete(self, model: str, arguments: dict[str, Any], **options: Any) -> tuple[int, Any]:
        """Status and parsed answer of `/v1/completions`."""
        body = {"model": model, "prompt": "Say:", "vllm_xargs": arguments, **options}
        return self._ask("/v1/completions", body)

    def unexpected(self, status: int, message: str) -> ProdError:
        return ProdError(
            f"{self.url}: expected an answer of vLLM's OpenAI-compatible server, got HTTP {status}: {message}; see "
            "--model and --api-key"
        )

    def _ask(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        if not self.url.startswith(("http://", "https://")):
            raise ProdError(f"URL: expected http://... or https://..., got {self.url!r}")
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)  # noqa: S310  (its scheme was checked)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:  # noqa: S310
                status, content = response.status, response.read(_LARGEST_ANSWER)
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read(_LARGEST_ANSWER)
        except (OSError, ValueError) as error:
            raise ProdError(f"cannot reach {self.url}: {error}; is the server up?") from None
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode(errors="replace")


def _text(answer: Any) -> str:
    try:
        return str(answer["choices"][0]["text"])
    except (KeyError, IndexError, TypeError):
        return ""


def _message(answer: Any) -> str:
    """What an error says, in one line."""
    with contextlib.suppress(KeyError, TypeError):
        answer = answer["error"]["message"]
    return " ".join(str(answer).split())[:500]
