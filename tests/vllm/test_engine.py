"""The real engine on the CPU: without the processor, and with it and so little memory that requests are preempted."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import BeamSearchParams

from prod_decode import Blocklist, CorpusIndex, Entry, ProdLogitsProcessor, Vocabulary
from prod_decode.storage.models import load_model, load_tokenizer
from prod_decode.tokens.tokenizer_bytes import vocabulary_of
from prod_train.config.config import Config
from prod_train.run.trainer import run as train
from tests.oracle import byte_windows, given_away, normalize
from tests.prod_decode.corpus.corpora import cut_of, index_of
from tests.vllm.engine import ENVIRONMENT, PROCESSOR, PROMPTS, compile_phrases, model_directory, phrases_of, violations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Every option with every choice of lists; the first are asked for without lists too.
REQUESTS, SAMPLE = 40, 16
OPTIONS: list[dict[str, Any]] = [
    {},
    {"n": 3, "temperature": 0.8},
    {"n": 2, "temperature": 1.2, "top_p": 0.9},
    {"stop": ["\n\n", "return"]},
    {"stop": [")"], "include_stop_str_in_output": True},
    {"min_tokens": 8, "ignore_eos": True},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"logit_bias": {28: 3.0, 198: 2.0}},
    {"bad_words": ["print", "self"]},
    {"top_k": 5, "skip_special_tokens": False},
]
GREEDY = SamplingParams(temperature=0, max_tokens=16)
# At length, so that a quarter of what comes is several pieces.
LONG, RECITED = SamplingParams(temperature=0, max_tokens=64), PROMPTS[:6:2]


@dataclass(frozen=True)
class Request:
    prompt: str
    params: SamplingParams


def requests(names: dict[str, list[str]] | None = None) -> list[Request]:
    """The requests, always the same, with every option that could get in the way; `names`: lists to add, by kind."""
    # Without seeds: where prompts are chunked, vLLM's CPU workers die of them ("CPU Generator does not use offset").
    rng = random.Random(0)
    found = []
    for number in range(REQUESTS):
        kind = ("main", "extra", "both", "unguarded")[number % 4]
        options: dict[str, Any] = {
            "temperature": rng.choice([0, 0, 0.5, 1.0, 1.5]),
            "max_tokens": rng.randint(4, 32),
            **OPTIONS[number // 4 % len(OPTIONS)],
        }
        if names is not None and names[kind]:
            options["extra_args"] = {"prod_blocklists": names[kind]}
        filler = "".join(rng.choice(PROMPTS) + "\n" for _ in range(rng.choice([0, 0, 1, 3, 6])))
        found.append(Request(filler + rng.choice(PROMPTS), SamplingParams(**options)))
    return found


@contextmanager
def start(**options: Any) -> Iterator[LLM]:
    """An engine in this process: the two processes of its own that vLLM gives it import vLLM for 25 s of CPU time."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}.items():
            monkeypatch.setenv(name, value)
        llm = LLM(
            model_directory(),
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            disable_log_stats=False,
            enable_lora=True,
            max_lora_rank=16,
            seed=0,
            **options,
        )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def run(llm: LLM, batch: list[Request], **options: Any) -> list[list[tuple[str, list[int]]]]:
    """For every request, the text and the tokens of its outputs."""
    outputs = llm.generate([r.prompt for r in batch], [r.params for r in batch], use_tqdm=False, **options)
    return [[(o.text, list(o.token_ids)) for o in output.outputs] for output in outputs]


# Windows that outputs of 64 tokens have.
INDEXED = cut_of(48, 32)


@dataclass(frozen=True)
class Plain:
    """What the model writes without the processor: to the prompts, to some of them at length, and to mixed requests."""

    greedy: list[list[tuple[str, list[int]]]]
    long: list[list[tuple[str, list[int]]]]
    mixed: list[list[tuple[str, list[int]]]]


@pytest.fixture(scope="module")
def plain() -> Plain:
    with start(max_num_seqs=16) as llm:
        greedy, long = (
            [Request(prompt, params) for prompt in some] for some, params in ((PROMPTS, GREEDY), (RECITED, LONG))
        )
        return Plain(run(llm, greedy), run(llm, long), run(llm, requests()[:SAMPLE]))


@pytest.fixture(scope="module")
def blocklists(plain: Plain) -> dict[str, Blocklist | CorpusIndex]:
    """What the model wrote: half of it each in `main` and `extra`, as documents with a budget, and as a corpus."""
    texts = [text for outputs in [*plain.greedy, *plain.mixed] for text, _ in outputs]
    return {
        "empty": compile_phrases([], allow_empty=True),
        "main": compile_phrases(phrases_of(texts[::2], 9, 11)),
        "extra": compile_phrases(phrases_of(texts[1::2], 6, 29), normalize="none", ignore_case=True),
        "budget": Blocklist.compile(
            Entry(text, id=str(number), policy="quote", max_quote=10_000, budget=40)
            for number, [(text, _)] in enumerate(plain.long)
        ),
        "index": index_of([text for [(text, _)] in plain.long], INDEXED),
    }


@pytest.fixture(scope="module")
def guarded(blocklists: dict[str, Blocklist | CorpusIndex], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("blocklists")
    for name, blocklist in blocklists.items():
        blocklist.save(folder / f"{name}.prod")
    with start(
        max_num_seqs=16,
        max_num_batched_tokens=128,
        enable_chunked_prefill=True,
        block_size=32,
        num_gpu_blocks_override=28,
        logits_processors=[PROCESSOR],
        additional_config={
            "prod": {
                "blocklists": {name: str(folder / f"{name}.prod") for name in blocklists},
                "default": ["empty"],
            }
        },
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return vocabulary_of(load_tokenizer(model_directory()))


def test_an_empty_blocklist_changes_nothing(plain: Plain, guarded: LLM) -> None:
    assert run(guarded, [Request(prompt, GREEDY) for prompt in PROMPTS]) == plain.greedy


def test_nothing_prohibited_in_any_request(
    plain: Plain, guarded: LLM, blocklists: dict[str, Blocklist | CorpusIndex], vocabulary: Vocabulary
) -> None:
    names = {"main": ["main"], "extra": ["extra"], "both": ["main", "extra"], "unguarded": []}
    batch = requests(names)
    before = preemptions(guarded)
    results = run(guarded, batch)
    assert preemptions(guarded) > before
    tokenizer = guarded.get_tokenizer()
    unprotected = protected = 0
    for number, (request, outputs) in enumerate(zip(batch, results, strict=True)):
        prompt = vocabulary.decode(tokenizer.encode(request.prompt))
        for name in names[("main", "extra", "both", "unguarded")[number % 4]]:
            for text, ids in outputs:
                assert list(violations(blocklists[name], request.prompt, text)) == [], (request, text)
                # Tokens that a stop string cut off were never shown, and still they are checked.
                assert list(violations(blocklists[name], prompt, vocabulary.decode(ids))) == [], (request, ids)
                protected += 1
            unprotected += number < SAMPLE and any(
                list(violations(blocklists[name], request.prompt, text)) for text, _ in plain.mixed[number]
            )
    # Of three kinds ten requests each, one of them for three outputs and one for two; the third kind has two lists.
    assert protected == 13 + 13 + 2 * 13
    assert unprotected > SAMPLE // 2


def preemptions(llm: LLM) -> float:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")


def test_greedy_search_writes_what_the_hugging_face_adapter_writes(
    guarded: LLM, blocklists: dict[str, Blocklist | CorpusIndex]
) -> None:
    model, tokenizer = load_model(model_directory(), dtype="float32", device="cpu")
    processor = ProdLogitsProcessor(blocklists["main"], tokenizer)
    params = SamplingParams(temperature=0, max_tokens=16, extra_args={"prod_blocklists": ["main"]})
    for prompt in PROMPTS[:6]:
        [[(_, ids)]] = run(guarded, [Request(prompt, params)])
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            row = model.generate(**inputs, logits_processor=[processor], max_new_tokens=16, do_sample=False)[0]
        assert ids == row[inputs["input_ids"].shape[1] :].tolist(), prompt
    assert processor.fired.total() > 8


# What is asked for at length, and under which lists.
AT_LENGTH = {"index": ["index", "main"], "budget": ["budget"]}


@pytest.fixture(scope="module")
def at_length(guarded: LLM) -> dict[str, list[list[tuple[str, list[int]]]]]:
    """RECITED greedily and three times at random under each of `AT_LENGTH`; all at once, so that rows come and go."""
    batch = []
    for lists in AT_LENGTH.values():
        options: dict[str, Any] = {"max_tokens": 64, "extra_args": {"prod_blocklists": lists}}
        greedy, warm = SamplingParams(temperature=0, **options), SamplingParams(temperature=0.7, n=3, **options)
        batch += [Request(prompt, params) for params in (greedy, warm) for prompt in RECITED]
    before = preemptions(guarded)
    results = run(guarded, batch)
    assert preemptions(guarded) > before
    half = len(results) // 2
    return dict(zip(AT_LENGTH, (results[:half], results[half:]), strict=True))


def expect_as_transformers_writes(
    outputs: list[list[tuple[str, list[int]]]], *sources: Blocklist | CorpusIndex
) -> None:
    """The greedy outputs, which come first, are those of the Hugging Face adapter."""
    model, tokenizer = load_model(model_directory(), dtype="float32", device="cpu")
    processor = ProdLogitsProcessor(list(sources), tokenizer)
    for prompt, [(_, ids)] in zip(RECITED[:2], outputs, strict=False):
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            row = model.generate(**inputs, logits_processor=[processor], max_new_tokens=64, do_sample=False)[0]
        assert ids == row[inputs["input_ids"].shape[1] :].tolist(), prompt


def test_an_index_is_kept_beside_blocklists(
    plain: Plain,
    at_length: dict[str, list[list[tuple[str, list[int]]]]],
    blocklists: dict[str, Blocklist | CorpusIndex],
) -> None:
    documents = [normalize(text.encode(), "code", False) for [(text, _)] in plain.long]
    prohibited = {window for document in documents for window in byte_windows(document, INDEXED.max_quote)}
    assert len(prohibited) > 100
    for outputs in at_length["index"]:
        for text, _ in outputs:
            assert not prohibited & set(byte_windows(normalize(text.encode(), "code", False), INDEXED.max_quote))
    expect_as_transformers_writes(at_length["index"], *(blocklists[name] for name in AT_LENGTH["index"]))


def test_budgets_are_kept_for_each_answer_alone(
    plain: Plain,
    at_length: dict[str, list[list[tuple[str, list[int]]]]],
    blocklists: dict[str, Blocklist | CorpusIndex],
    vocabulary: Vocabulary,
) -> None:
    documents = [normalize(text.encode(), "code", False) for [(text, _)] in plain.long]
    reached = 0
    for outputs in at_length["budget"]:
        for _, ids in outputs:
            texts = [normalize(vocabulary.decode(ids[:end]).encode(), "code", False) for end in range(len(ids) + 1)]
            for document in documents:
                budget = min(40, max(24, len(document) // 4))
                counts = [len(given_away(text, document, 24)) for text in texts]
                beyond = {count for count in counts if count >= budget}
                # From there on nothing is added.
                assert len(beyond) <= 1, counts
                reached += bool(beyond)
    assert reached >= len(RECITED)
    expect_as_transformers_writes(at_length["budget"], blocklists["budget"])


def test_bad_requests_are_refused_and_the_engine_goes_on(guarded: LLM) -> None:
    with pytest.raises(
        VLLMValidationError, match=r"expected names of blocklists that this server has, got 'mian': ask whoever"
    ):
        guarded.generate("x", SamplingParams(extra_args={"prod_blocklists": ["mian"]}))
    with pytest.raises(VLLMValidationError, match="beam search picks tokens by their probabilities"):
        guarded.beam_search([{"prompt": "x = "}], BeamSearchParams(beam_width=2, max_tokens=4))
    assert run(guarded, [Request("x = ", GREEDY)])[0][0][1]


def test_prompts_of_ids_that_the_tokenizer_lacks(guarded: LLM, vocabulary: Vocabulary) -> None:
    # SmolLM2 has no such ids, so only vLLM's own check is seen here; tests/vllm/test_processor.py has the rest.
    with pytest.raises(VLLMValidationError, match="out of vocabulary"):
        guarded.generate({"prompt_token_ids": [len(vocabulary) + 1]}, GREEDY)


def test_a_lora_adapter_from_prod_train(
    guarded: LLM, blocklists: dict[str, Blocklist | CorpusIndex], tmp_path: Path
) -> None:
    for name, sign in (("forget", "+"), ("holdout", "-")):
        record = {"prompt": f"def {name}(a, b):\n", "completion": f"    return a {sign} b\n"}
        (tmp_path / f"{name}.jsonl").write_text(4 * (json.dumps(record) + "\n"))
    train(
        Config(
            model=model_directory(),
            forget=str(tmp_path / "forget.jsonl"),
            holdout=str(tmp_path / "holdout.jsonl"),
            output=str(tmp_path / "run"),
            max_steps=1,
        )
    )
    adapter = next(tmp_path.glob("run/**/adapter_config.json")).parent
    batch = [
        Request(p, SamplingParams(temperature=0, max_tokens=16, extra_args={"prod_blocklists": ["main"]}))
        for p in PROMPTS[:6]
    ]
    for [(text, _)], request in zip(
        run(guarded, batch, lora_request=LoRARequest("prod", 1, str(adapter))), batch, strict=True
    ):
        assert text
        assert list(violations(blocklists["main"], request.prompt, text)) == []
