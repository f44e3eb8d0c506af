"""Replacements on vLLM's V1 runner: row by row what the other adapters make of the same texts, and in a real engine."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tempfile
import threading
from collections.abc import Iterator, Sequence
from logging.handlers import QueueListener
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from prod_decode import Blocklist, Entry, Hit
from prod_decode.hf import ProdLogitsProcessor as HfProcessor
from prod_decode.serving.guard import Guard
from prod_decode.storage.models import load_model
from prod_decode.vllm import ProdLogitsProcessor
from tests.examples.taught import save_taught_model
from tests.tiny import write_jsonl
from tests.vllm.engine import ENVIRONMENT, PROCESSOR
from tests.vllm.stubs import TEXT_IDS, TOKENS, VOCABULARY, WIDTH, config, input_batch, use_vocabulary
from tests.vllm.test_processor import request_states

MOST_ROWS, MOST_TOKENS = 4, 64

LISTS = {
    "calls": Blocklist.compile(
        [
            Entry("b.a(", replacement="b.b_ab("),
            Entry("a.ba(", replacement="a.b(a.b", boundary="none"),
            Entry("_.ab", replacement="_.aab.", boundary="both"),
        ]
    ),
    "spaces": Blocklist.compile([Entry("b.a b", replacement="b.a  (", boundary="none")], normalize="none"),
    "others": Blocklist.compile([Entry("b.a(", replacement="b.(ab_"), Entry("_.ab.a", replacement="_.ab.b")]),
    # It has no replacements, and prohibits one of the others.
    "plain": Blocklist.compile([Entry("b.b_"), Entry("a.ab", boundary="none")]),
}

ASKED: list[list[str]] = [
    ["calls"],
    ["spaces"],
    ["others"],
    ["calls", "others"],
    ["calls", "plain"],
    ["spaces", "calls", "others"],
    ["plain"],
    [],
]


def logits_after(text: Sequence[int], seed: int) -> torch.Tensor:
    """Those of a model that knows nothing but its text: random, and often a bit of a phrase, or next to nothing."""
    digest = hashlib.sha256(repr((seed, *text)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    logits = 2 * torch.randn(WIDTH, generator=generator)
    for piece in (b"a", b"a(", b".a"):
        logits[TOKENS.index(piece)] += 6
    if digest[8] < 50:
        logits[torch.rand(WIDTH, generator=generator) < 0.7] = -math.inf
    return logits


class Alone:
    """One request by itself: the adapter for transformers where it has one list, or else that for single rows."""

    def __init__(self, names: Sequence[str], prompt: Sequence[int], *, json: bool) -> None:
        matchers = [LISTS[name].bind(VOCABULARY) for name in LISTS if name in names]
        self.prompt = list(prompt)
        self.by_batch = HfProcessor(matchers[0], json=json) if len(matchers) == 1 else None
        self.by_row = Guard(matchers, must_end=False, json=json) if len(matchers) > 1 else None

    def masked(self, output: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        text = [*self.prompt, *output]
        if self.by_batch is not None:
            return self.by_batch(torch.tensor([text]), logits[None].clone())[0]
        if self.by_row is not None:
            return self.by_row.mask_(logits.clone(), text, prompt=len(self.prompt))
        return logits


class Serving(RuleBasedStateMachine):
    """Requests come, are read in pieces, left out of steps, preempted, moved: each is treated as if it were alone."""

    @initialize(seed=st.integers(0, 99), default=st.sets(st.sampled_from(["calls", "plain"]), max_size=1))
    def start(self, seed: int, default: set[str]) -> None:
        self.seed, self.default = seed, default
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
            use_vocabulary(monkeypatch)
            files = {name: f"{folder}/{name}.prod" for name in LISTS}
            for name, blocklist in LISTS.items():
                blocklist.save(files[name])
            prod = {"blocklists": files, "default": sorted(default)}
            self.processor = ProdLogitsProcessor(config(prod), torch.device("cpu"), False)
        self.batch = input_batch(self.processor, MOST_ROWS, MOST_TOKENS)
        self.requests: dict[str, CachedRequestState] = {}
        self.alone: dict[str, Alone] = {}
        self.leaving: list[str] = []
        self.joining: list[str] = []
        # Of each request, what it has written, and whether its text is not yet read to its end.
        self.truth: dict[str, list[int]] = {}
        self.pieces: set[str] = set()
        self.ended: set[str] = set()

    @precondition(lambda self: len(self.batch.req_ids) + len(self.joining) < MOST_ROWS)
    @rule(
        prompt=st.lists(st.sampled_from(TEXT_IDS), max_size=4),
        last=st.sampled_from([["b."], ["a", "."], ["_", "."], ["b", "."], ["("]]),
        names=st.sampled_from(ASKED),
        json=st.booleans(),
    )
    def arrive(self, prompt: list[int], last: list[str], names: list[str], json: bool) -> None:
        name = f"r{len(self.alone)}"
        tokens = [*prompt, *(TOKENS.index(piece.encode()) for piece in last)]
        asked = {"prod_blocklists": names, **({"prod_json": 1} if json else {})}
        params = SamplingParams(extra_args=asked)
        self.requests[name] = CachedRequestState(name, tokens, [], params, None, ([0],), 0, [])
        self.alone[name] = Alone([*self.default, *names], tokens, json=json)
        self.truth[name] = []
        self.joining.append(name)
        self.pieces.add(name)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), for_good=st.integers(0, 3))
    def leave(self, data: st.DataObject, for_good: int) -> None:
        name = data.draw(st.sampled_from(self.running()))
        self.leaving.append(name)
        if not for_good:
            del self.requests[name]

    @precondition(lambda self: self.waiting() and len(self.batch.req_ids) + len(self.joining) < MOST_ROWS)
    @rule(data=st.data(), anew=st.booleans())
    def come_back(self, data: st.DataObject, anew: bool) -> None:
        name = data.draw(st.sampled_from(self.waiting()))
        if anew:  # as with asynchronous scheduling
            self.requests[name].output_token_ids = list(self.truth[name])
        self.joining.append(name)
        self.pieces.add(name)

    def running(self) -> list[str]:
        return [name for name in self.batch.req_ids if name not in self.leaving]

    def waiting(self) -> list[str]:
        known = {*self.batch.req_ids, *self.joining}
        return [name for name in self.requests if name not in known | self.ended]

    @rule(data=st.data(), asynchronous=st.booleans(), swaps=st.integers(0, 1), count=st.integers(1, 4))
    def steps(self, data: st.DataObject, asynchronous: bool, swaps: int, count: int) -> None:
        for name in self.leaving:
            self.batch.remove_request(name)
        for name in self.joining:
            self.batch.add_request(self.requests[name])
        self.leaving, self.joining = [], []
        self.batch.condense()
        rows = len(self.batch.req_ids)
        for _ in range(swaps if rows > 1 else 0):
            first, second = data.draw(st.permutations(range(rows)))[:2]
            self.batch.swap_states(first, second)
        for _ in range(count if rows else 0):
            self.batch.refresh_metadata()
            self.step(data, asynchronous)

    def step(self, data: st.DataObject, asynchronous: bool) -> None:
        names = list(self.batch.req_ids)
        for name in names:
            self.requests[name].output_token_ids[:] = self.truth[name]
        texts = [[*(self.requests[name].prompt_token_ids or ()), *self.truth[name]] for name in names]
        # Where a text is read in pieces, the logits of all but the last are of no text that anyone knows.
        parts = [name in self.pieces and data.draw(st.integers(0, 2)) == 0 for name in names]
        seeds = [-1 if part else self.seed for part in parts]
        logits = [logits_after(text, seed) for text, seed in zip(texts, seeds, strict=True)]
        masked = self.processor.apply(torch.stack(logits))
        for name, part, before, row in zip(names, parts, logits, masked, strict=True):
            if part or name in self.ended:
                continue
            self.pieces.discard(name)
            want = self.alone[name].masked(self.truth[name], before)
            assert row.equal(want), (name, texts, row, want)
            self.write(name, row, data, asynchronous)

    def write(self, name: str, row: torch.Tensor, data: st.DataObject, asynchronous: bool) -> None:
        options = [token for token in TEXT_IDS if row[token] > -math.inf]
        if not options or len(self.truth[name]) > 40:
            # No request has one text at two steps, unless it is read in pieces.
            self.ended.add(name)
            self.leaving.append(name)
            return
        likeliest = max(options, key=lambda token: float(row[token]))
        openings = [token for token in options if TOKENS[token] in (b"b.", b".")]
        which = data.draw(st.integers(0, 7))
        token = data.draw(st.sampled_from(openings or options if which < 2 else options)) if which < 3 else likeliest
        self.requests[name].output_token_ids.append(-1 if asynchronous else token)
        self.truth[name].append(token)


Serving.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
TestServing = Serving.TestCase
TestServing.pytestmark = [pytest.mark.slow]  # type: ignore[attr-defined]


@pytest.mark.parametrize("on_v2", [False, True])
def test_the_runner_that_writes_none_says_so(
    on_v2: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_vocabulary(monkeypatch)
    files = {name: str(tmp_path / f"{name}.prod") for name in LISTS}
    for name, blocklist in LISTS.items():
        blocklist.save(files[name])
    logger = logging.getLogger("vllm.prod_decode")
    logger.addHandler(caplog.handler)
    try:
        settings = config({"blocklists": files})
        settings.speculative_config = None
        runner = (request_states(2),) if on_v2 else (torch.device("cpu"), False)
        ProdLogitsProcessor(settings, *runner)
    finally:
        logger.removeHandler(caplog.handler)
    said = "the lists calls, spaces, others name replacements, which the V2 model runner does not write: phrases are"
    assert (said in caplog.text) == on_v2


# ---- a real engine --------------------------------------------------------------------------------------------------

# A block of vLLM's memory has 32 tokens, which end within the replacements.
CALLS = [
    ("def read_the_file(f):\n    return yaml.", "load(f)\n", "safe_load("),
    ("def area_of_these(y):\n    return np.", "trapz(y)\n", "trapezoid("),
    ("def size_of_these(s):\n    return len", "(s)\n", "(s)\n"),
]
SERVED = {
    "calls": Blocklist.compile(
        [Entry("yaml.load(", replacement="yaml.safe_load("), Entry("np.trapz(", replacement="np.trapezoid(")]
    ),
    "full": Blocklist.compile([Entry("yaml.load(", replacement="yaml.full_load(")]),
    "plain": Blocklist.compile([Entry("yaml.load(")]),
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> str:
    """It calls what is prohibited, by heart."""
    folder = tmp_path_factory.mktemp("taught")
    rows = ({"prompt": prompt, "completion": completion} for prompt, completion, _ in CALLS)
    return save_taught_model(folder, write_jsonl(folder / "rows.jsonl", rows))


@pytest.fixture(scope="module")
def served(taught: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """Prompts are read in pieces, and there is so little memory that requests are preempted."""
    folder = tmp_path_factory.mktemp("lists")
    files = {name: str(folder / f"{name}.prod") for name in SERVED}
    for name, blocklist in SERVED.items():
        blocklist.save(files[name])
    with pytest.MonkeyPatch.context() as monkeypatch:
        # In this process: tests/vllm/test_engine.py says why.
        for name, value in {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}.items():
            monkeypatch.setenv(name, value)
        llm = LLM(
            taught,
            dtype="float32",
            enforce_eager=True,
            max_model_len=128,
            max_num_seqs=8,
            seed=0,
            max_num_batched_tokens=32,
            enable_chunked_prefill=True,
            block_size=32,
            num_gpu_blocks_override=10,
            disable_log_stats=False,
            logits_processors=[PROCESSOR],
            additional_config={
                "prod": {
                    "blocklists": files,
                    "default": [],
                    "audit_log": str(folder / "hits.jsonl"),
                    "audit_text": True,
                }
            },
        )
    yield llm
    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def asking(*names: str, **options: Any) -> SamplingParams:
    extra = {"prod_blocklists": list(names)} if names else None
    return SamplingParams(**{"temperature": 0, "max_tokens": 16, "extra_args": extra, **options})


def owner_of(thread: threading.Thread) -> object:
    """Whose method it runs."""
    return getattr(getattr(thread, "_target", None), "__self__", None)


@pytest.mark.slow
def test_the_engine_writes_the_hits_that_transformers_tells(served: LLM, taught: str) -> None:
    """Of a prompt that is read in three pieces, and of what comes then."""
    model, tokenizer = load_model(taught, dtype="float32", device="cpu")
    prompt = "# a line that makes it longer than a piece\n" + CALLS[0][0]
    served.generate(prompt, asking("calls"), use_tqdm=False)
    # The next step tells what the first one of a request has to wait for.
    served.generate(prompt, asking(), use_tqdm=False)
    (writer,) = [one for thread in threading.enumerate() if isinstance(one := owner_of(thread), QueueListener)]
    writer.queue.join()  # type: ignore[attr-defined]
    path = served.llm_engine.vllm_config.additional_config["prod"]["audit_log"]
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    hits: list[Hit] = []
    processor = HfProcessor(SERVED["calls"].bind(tokenizer), on_hit=hits.append)
    ids = tokenizer(prompt, return_tensors="pt")
    assert ids["input_ids"].shape[1] > 64
    with torch.inference_mode():
        model.generate(**ids, logits_processor=[processor], max_new_tokens=16, do_sample=False)
    names = ("kind", "position", "entry", "likeliest", "text", "replacement", "row")
    assert [[line.get(name) for name in names] for line in lines] == [
        [getattr(h, name) for name in names] for h in hits
    ]
    assert [line["mass"] for line in lines] == pytest.approx([hit.mass for hit in hits], abs=1e-3)
    assert hits


@pytest.mark.slow
def test_the_engine_writes_the_replacement(served: LLM, taught: str) -> None:
    """Requests of several lists and lengths in one batch; greedy ones as transformers writes them."""
    model, tokenizer = load_model(taught, dtype="float32", device="cpu")
    batch: list[tuple[str, tuple[str, ...], str, dict[str, Any]]] = []
    for prompt, free, instead in CALLS:
        for options in ({}, {"n": 3, "temperature": 0.3}, {"max_tokens": 3}):
            batch += [(prompt, ("calls",), instead, options), (prompt, (), free, options)]
    prompt, free, _ = CALLS[0]
    batch += [(prompt, ("full",), "full_load(", {}), (prompt, ("plain",), "load", {})]
    batch += [(prompt, ("calls", "plain"), "safe_load(", {"n": 2, "temperature": 0.3})]
    outputs = served.generate(
        [prompt for prompt, *_ in batch], [asking(*names, **options) for _, names, _, options in batch], use_tqdm=False
    )
    assert sum(metric.value for metric in served.get_metrics() if metric.name == "vllm:num_preemptions") > 5
    for (prompt, names, begins, options), output in zip(batch, outputs, strict=True):
        assert len(output.outputs) == options.get("n", 1)
        for found in output.outputs:
            assert found.text.startswith(begins[: options.get("max_tokens")]), (names, options, found.text)
            assert not [match for name in names for match in SERVED[name].scan(prompt + found.text)]
        if len(names) == 1 and "n" not in options:
            inputs = tokenizer(prompt, return_tensors="pt")
            processor = HfProcessor(SERVED[names[0]], tokenizer)
            limit = options.get("max_tokens", 16)
            with torch.inference_mode():
                row = model.generate(**inputs, logits_processor=[processor], max_new_tokens=limit, do_sample=False)[0]
            assert list(output.outputs[0].token_ids) == row[inputs["input_ids"].shape[1] :].tolist()
