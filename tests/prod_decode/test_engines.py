"""The shapes of other engines, as their documentation has them; llama-cpp-python itself where it is installed."""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod_decode import Blocklist, Entry, Hit, Matcher, ProdError, Vocabulary, mlx_lm, sglang, tensorrt_llm
from prod_decode import llama_cpp as adapter
from prod_decode.masking import MOST_PADDING
from prod_decode.serving.guard import Guard
from prod_decode.storage.models import bundled_model, load_tokenizer
from prod_decode.text.normalize import Normalization
from tests import oracle
from tests.strategies import pattern_lists, vocabularies

INF = math.inf
TOKENS: list[bytes | None] = [b"</s>", b"a", b"b", b"ab", None, b"(", b"eval", b"ev", b"al"]
VOCABULARY = Vocabulary.from_bytes(TOKENS, eos_ids=[0])
EXTRA = 2


def matcher(*phrases: str) -> Matcher:
    return Blocklist.compile([Entry(phrase, boundary="none") for phrase in phrases], allow_short=True).bind(VOCABULARY)


def allowed(row: Any) -> list[int]:
    return [i for i, score in enumerate(np.asarray(row).reshape(-1).tolist()) if score > -INF]


@given(st.data())
def test_a_guard_masks_what_the_naive_model_bans(data: st.DataObject) -> None:
    patterns = data.draw(pattern_lists(Normalization("code", False)))
    tokens, special = data.draw(vocabularies(patterns))
    from prod_decode.match.automaton import Automaton

    vocabulary = Vocabulary.from_bytes([*tokens, b"</s>"], special=special, eos_ids=[len(tokens)])
    naive = oracle.NaiveMatcher([*tokens, b"</s>"], {*special, len(tokens)}, patterns, "code", False)
    plain = [i for i in naive.usable() if i not in naive.special]
    text = data.draw(st.lists(st.sampled_from(plain), max_size=8)) if plain else []
    guard = Guard([Matcher(Automaton.build(patterns), Normalization("code", False), vocabulary)], stop=())
    row = guard.mask_(torch.zeros(len(vocabulary) + EXTRA), text, prompt=0)
    assert allowed(row) == [i for i in range(len(vocabulary)) if i not in naive.banned(text)]


def test_a_guard_takes_several_blocklists_and_ends_what_it_cannot_read() -> None:
    guard = Guard([matcher("eval("), matcher("ab")])
    assert allowed(guard.mask_(torch.zeros(len(TOKENS) + EXTRA), [7, 8])) == [0, 1, 2, 6, 7, 8]
    assert allowed(guard.mask_(torch.zeros(len(TOKENS) + EXTRA), [1])) == [0, 1, 5, 6, 7, 8]
    for unreadable in ([4], [1, -1], [99]):
        assert allowed(guard.mask_(torch.zeros(len(TOKENS) + EXTRA), unreadable)) == [0]
    dead = torch.full((len(TOKENS),), -INF)
    dead[5] = 1.0
    assert allowed(guard.mask_(dead, [6])) == [0]


def test_the_output_alone_begins_a_word() -> None:
    tokens = [b"</s>", b"my_", b"eval", b"(", b"x"]
    phrase = Blocklist.compile([Entry("eval(")]).bind(Vocabulary.from_bytes(tokens, eos_ids=[0]))
    my, name, bracket = 1, 2, 3

    def is_banned(guard: Guard, text: list[int], prompt: int | None = None) -> bool:
        return bracket not in allowed(guard.mask_(torch.zeros(len(tokens)), text, prompt=prompt))

    assert is_banned(Guard([phrase]), [my, name], prompt=1)
    assert not is_banned(Guard([phrase]), [my, name], prompt=0)
    # Where the engine does not say it: the first text is the prompt. Two texts in turn, then another call with the one.
    guard = Guard([phrase])
    assert [is_banned(guard, text) for text in ([my], [4, my], [my, name], [4, my, name])] == [False, False, True, True]
    assert [is_banned(guard, text) for text in ([4], [4, my], [4, my, name])] == [False, False, False]
    # A prompt that begins like the last text; one that is the last text and a token more.
    assert [is_banned(guard, text) for text in ([4, 4], [4, 4, 4], [4, my], [4, my, name])] == [
        False,
        False,
        False,
        True,
    ]
    assert not is_banned(guard, [4])
    guard.forget()
    assert [is_banned(guard, text) for text in ([4, my], [4, my, name])] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("count", [65, 4096, 4097])
def test_so_many_texts_in_turn_keep_their_prompts(count: int, caplog: pytest.LogCaptureFixture) -> None:
    tokens = [b"</s>", b"my_", b"eval", b"(", *(b"y%d" % i for i in range(count))]
    phrase = Blocklist.compile([Entry("eval(")]).bind(Vocabulary.from_bytes(tokens, eos_ids=[0]))
    guard, banned = Guard([phrase]), 0
    for text in ([], [2]):
        for i in range(count):
            banned += 3 not in allowed(guard.mask_(torch.zeros(len(tokens)), [4 + i, 1, *text]))
    assert banned == (count if count <= 4096 else 0)
    assert ("where the prompts of those before end is no longer known" in caplog.text) == (count > 4096)


@pytest.mark.parametrize("json_too", [False, True])
def test_an_engine_that_drops_bytes_gets_none_to_drop(json_too: bool) -> None:
    """llama-cpp-python shows `decode("utf-8", errors="ignore")`."""
    tokens = [b"</s>", b"yaml", b"\xa1", b".load(", b"\xc2", b"x"]
    matcher = Blocklist.compile([Entry("yaml.load(")]).bind(Vocabulary.from_bytes(tokens, eos_ids=[0]))
    llama = SimpleNamespace(draft_model=None, token_eos=lambda: 0, n_vocab=lambda: len(tokens))
    (processor,) = adapter.ProdLogitsProcessors(matcher, llama=llama, stop=(), json=json_too)
    steps = (([5], [0, 1, 3, 4, 5]), ([5, 1], [0, 1, 4, 5]), ([5, 1, 4], [0, 2]), ([5, 1, 4, 2], [0, 1, 3, 4, 5]))
    for text, free in steps:
        scores = processor(np.array(text, np.intc), np.zeros(len(tokens), np.single))
        assert allowed(torch.from_numpy(scores)) == free


def test_a_guard_that_knows_no_stop_strings_lets_words_end_anywhere() -> None:
    tokens = [b"</s>", b"eval", b" evaluate", b" evil"]
    phrase = Blocklist.compile([Entry("eval", boundary="both")]).bind(Vocabulary.from_bytes(tokens, eos_ids=[0]))
    for stop, banned in ((None, [1, 2]), ((), [1]), (["uate"], [1, 2]), (["\n", "ate"], [1])):
        row = Guard([phrase], stop=stop).mask_(torch.zeros(len(tokens)), [])
        assert sorted({0, 1, 2, 3} - set(allowed(row))) == banned


JSON_TOKENS = [b"</s>", b"import os", b"\\", b"n", b"os.system(", b"\\n", b"x"]
JSON_VOCABULARY = Vocabulary.from_bytes(JSON_TOKENS, eos_ids=[0])


def test_a_guard_decodes_the_escapes_of_json() -> None:
    phrase = Blocklist.compile([Entry("import os\nos.system(")]).bind(JSON_VOCABULARY)
    for text in ([1, 5], [1, 2, 3]):
        for json_too in (False, True):
            row = Guard([phrase], json=json_too).mask_(torch.zeros(len(JSON_TOKENS)), text, prompt=0)
            assert (4 in allowed(row)) is not json_too
    plain = Guard([phrase], json=True).mask_(torch.zeros(len(JSON_TOKENS)), [1], prompt=0)
    assert 4 in allowed(plain)


def test_what_a_guard_refuses() -> None:
    for wrong in (Blocklist.compile([Entry("abc")]), "abc.prod"):
        with pytest.raises(ProdError, match=rf"^expected a Matcher, got {type(wrong).__name__}: pass blocklist.bind"):
            Guard([matcher("ab"), wrong])  # type: ignore[list-item]
    for stops in ("END", [b"END"], [None]):
        with pytest.raises(ProdError, match=r"^stop: expected a list of strings, got .*: pass their texts, as \["):
            Guard([matcher("ab")], stop=stops)  # type: ignore[arg-type]
    with pytest.raises(ProdError, match="expected at least one matcher, got none: pass"):
        Guard([])
    other = Vocabulary.from_bytes(TOKENS, eos_ids=[0])
    with pytest.raises(ProdError, match="expected matchers of one vocabulary, got several"):
        Guard([matcher("ab"), Blocklist.compile([Entry("abc")]).bind(other)])
    with pytest.raises(ProdError, match=r"expected an EOS token .* got none in the tokenizer"):
        Guard([Blocklist.compile([Entry("abc")]).bind(Vocabulary.from_bytes([b"a"]))])
    for width in (0, len(TOKENS) + MOST_PADDING + 1):
        with pytest.raises(ProdError, match=f"the model scores {width} tokens but the tokenizer has {len(TOKENS)}"):
            Guard([matcher("ab")]).mask_(torch.zeros(width), [6])


def test_a_guard_ends_a_text_where_the_engine_stops() -> None:
    tokens = [b"</s>", b"<|end|>", b"a", b"b"]
    vocabulary = Vocabulary.from_bytes(tokens, special=[1], eos_ids=[0])
    bound = Blocklist.compile([Entry("ab", boundary="none")], allow_short=True).bind(vocabulary)
    dead = torch.tensor([-INF, -INF, -INF, 1.0])
    assert allowed(Guard([bound]).mask_(dead.clone(), [2])) == [0]
    assert allowed(Guard([bound], 1).mask_(dead.clone(), [2])) == [1]
    # Of the ids that an engine names, those that the tokenizer has and that add no text.
    for stops, ends in (([1], [1]), ([3, 99, 1, 0], [0, 1]), ([3, 99], [0]), ([], [0])):
        assert allowed(Guard([bound]).mask_(dead.clone(), [2], stops=stops)) == ends
        assert allowed(Guard([bound]).mask_(torch.zeros(4), [99], stops=stops)) == ends
    with pytest.raises(ProdError, match="eos_token_id: expected ids of special tokens, got 2"):
        Guard([bound], [1, 2])


@pytest.mark.slow
@pytest.mark.parametrize("text", [[6], [99]], ids=["nothing is left", "unreadable"])
def test_a_guard_notices_an_engine_that_does_not_stop(text: list[int]) -> None:
    dead = torch.full((len(TOKENS),), -INF)
    dead[5] = 1.0
    guard = Guard([matcher("eval(")])
    # An engine that works ahead asks once more after EOS; and the same may happen to any number of requests.
    for _ in range(2000):
        for ahead in ([], [0]):
            assert allowed(guard.mask_(dead.clone(), [*text, *ahead])) == [0]
    with pytest.raises(ProdError, match=r"to stop at the ids \[0\], .* but it goes on; pass eos_token_id="):
        guard.mask_(dead.clone(), [*text, 0, 0])
    # Another text with EOS in it has not been ended from here.
    assert allowed(guard.mask_(dead.clone(), [5, 0, 0, 6])) == [0]
    # Where an error would end others' requests too, EOS goes on.
    deaf = Guard([matcher("eval(")], must_end=False)
    for count in range(5):
        assert allowed(deaf.mask_(dead.clone(), [*text, *[0] * count])) == [0]


def test_a_guard_takes_one_row() -> None:
    with pytest.raises(ProdError, match=r"expected one row of logits \[V\], got \[2, 9\]: pass each row"):
        Guard([matcher("ab")]).mask_(torch.zeros(2, len(TOKENS)), [1])


def llama(**options: Any) -> Any:
    """As much of a `llama_cpp.Llama` as the adapter asks for."""
    given = {"draft_model": None, "token_eos": lambda: 0, "n_vocab": lambda: len(TOKENS), **options}
    return SimpleNamespace(**given)


def test_llama_cpp_shape() -> None:
    processors = adapter.ProdLogitsProcessors(matcher("ab"), llama=llama())
    scores = np.zeros(len(TOKENS), np.single)
    ids = np.array([5, 1], np.intc)
    assert allowed(processors[0](ids, scores)) == [0, 1, 5, 6, 7, 8]
    # What llama.cpp would go on with if there had been an error.
    assert allowed(scores) == [0]
    # llama-cpp-python passes a field of records, which is not contiguous.
    records = np.zeros(len(TOKENS), [("id", np.intc), ("logit", np.single), ("p", np.single)])
    records["logit"][:] = processors[0](ids, records["logit"])
    assert allowed(records["logit"]) == [0, 1, 5, 6, 7, 8]
    # As it treats the list when a request has `logit_bias`; the next request has none.
    for _ in range(2):
        biased = processors.extend([lambda _, scores: scores + 1])
        assert len(biased) == 2
        assert isinstance(biased[-1], adapter._ProdLogitsProcessor)
        assert len(processors) == 1


def test_what_llama_cpp_would_not_say_is_refused_before() -> None:
    with pytest.raises(ProdError, match=r"expected a model without draft_model, .*: leave draft_model out"):
        adapter.ProdLogitsProcessors(matcher("ab"), llama=llama(draft_model=object()))
    with pytest.raises(ProdError, match="eos_token_id: expected ids of special tokens, got 1"):
        adapter.ProdLogitsProcessors(matcher("ab"), llama=llama(token_eos=lambda: 1))
    width = len(TOKENS) + MOST_PADDING + 1
    with pytest.raises(ProdError, match=f"the model scores {width} tokens but the tokenizer has {len(TOKENS)}"):
        adapter.ProdLogitsProcessors(matcher("ab"), llama=llama(n_vocab=lambda: width))
    # One that is set later, and an error inside the callback: EOS.
    model = llama()
    processors = adapter.ProdLogitsProcessors(matcher("ab"), llama=model)
    model.draft_model = object()
    assert allowed(processors[0](np.array([5], np.intc), np.zeros(len(TOKENS), np.single))) == [0]
    model.draft_model = None
    scores = np.zeros(len(TOKENS), np.single)
    with pytest.raises(ValueError, match="invalid literal"):
        processors[0](np.array(["x"]), scores)
    assert allowed(scores) == [0]


@pytest.mark.slow
def test_llama_cpp_writes_nothing_prohibited() -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    llm = llama_cpp.Llama(str(bundled_model()), n_ctx=512, n_threads=2, verbose=False, seed=0)

    def write(prompt: str, **options: Any) -> str:
        text: str = llm(prompt, max_tokens=48, **options)["choices"][0]["text"]
        return text

    requests: list[tuple[str, dict[str, Any]]] = [
        ("def f(x):\n", {"temperature": 0}),
        ("class A:\n    def __init__(self):\n", {"temperature": 0}),
        ("class A:\n    def __init__(self):\n", {"temperature": 1.0, "seed": 1}),
        ("x", {"temperature": 0.8, "logit_bias": {28: 1.0}, "seed": 1}),
    ]
    free = [write(prompt, **options) for prompt, options in requests]
    # What the model wants to write, piece by piece.
    phrases = {text[i : i + 6] for text in free for i in range(0, len(text) - 6, 9)}
    entries = [Entry(phrase, boundary="none") for phrase in sorted(phrases)]
    blocklist = Blocklist.compile(entries, normalize="none")
    processors = adapter.ProdLogitsProcessors(blocklist.bind(load_tokenizer("bundled")), llama=llm)
    for (prompt, options), unguarded in zip(requests, free, strict=True):
        text = write(prompt, logits_processor=processors, **options)
        assert text
        for output, found in ((text, False), (unguarded, True)):
            assert any(m.end > len(prompt) for m in blocklist.scan(prompt + output)) == found, output


class MlxArray:
    """As much of `mlx.core.array` as the processor uses."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def astype(self, dtype: Any) -> MlxArray:
        return MlxArray(self.values.astype(dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


@pytest.fixture
def mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    core = ModuleType("mlx.core")
    core.array, core.float32 = MlxArray, np.float32  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlx", ModuleType("mlx"))
    monkeypatch.setitem(sys.modules, "mlx.core", core)


@pytest.mark.usefixtures("mlx")
def test_mlx_shape() -> None:
    logits = MlxArray(np.zeros((1, len(TOKENS)), np.float16))
    masked = mlx_lm.ProdLogitsProcessor(matcher("ab"))(MlxArray([5, 1]), logits)
    assert isinstance(masked, MlxArray)
    assert masked.values.shape == (1, len(TOKENS))
    assert allowed(masked) == [0, 1, 5, 6, 7, 8]
    assert not logits.values.any()
    for shape in ((2, len(TOKENS)), (len(TOKENS),), (1, 1, len(TOKENS)), (0, len(TOKENS))):
        with pytest.raises(ProdError, match=r"expected one row of logits \[1, V\] and its text, got \["):
            mlx_lm.ProdLogitsProcessor(matcher("ab"))(MlxArray([5, 1]), MlxArray(np.zeros(shape, np.float16)))
    given = mlx_lm.ProdLogitsProcessor(Blocklist.compile([], allow_empty=True).bind(VOCABULARY), eos_token_id=[0])
    assert allowed(given(MlxArray([4]), logits)) == [0]


# The loops of mlx-lm 0.32 as a processor sees them: which functions and variables there are when it is called.
MLX_LOOPS = """
def generate_step(ask, shown, prompt_cache):
    def _step(tokens):
        prompt_cache
        return ask(tokens)
    return _step(shown)

def stream_generate(ask, shown, prompt_cache, tokenizer=None, detokenizer=None):
    return generate_step(ask, shown, prompt_cache)

def speculative_generate_step(ask, shown, prompt_cache):
    def _step(model, cache, y):
        return ask(y)
    return _step(None, prompt_cache, shown)

class GenerationBatch:
    def __init__(self, prompt_cache):
        self.prompt_cache = prompt_cache

    def _step(self, ask, shown):
        answers = []
        for e in range(len(shown)):
            answers.append(ask(shown[e]))
        return answers

    def next(self, ask, shown):
        return self._step(ask, shown)
"""


@pytest.mark.usefixtures("mlx")
def test_what_mlx_hides_is_refused() -> None:
    loops: dict[str, Any] = {"__name__": "mlx_lm.generate"}
    exec(MLX_LOOPS, loops)
    processor = mlx_lm.ProdLogitsProcessor(matcher("ab"))

    def ask(tokens: list[int]) -> list[int]:
        return allowed(processor(MlxArray(tokens), MlxArray(np.zeros((1, len(TOKENS))))))

    def layers(*offsets: Any) -> list[Any]:
        # A recurrent layer does not count, and a layer may see a window.
        return [SimpleNamespace(), *(SimpleNamespace(offset=offset) for offset in offsets)]

    guarded = [0, 1, 5, 6, 7, 8]
    assert loops["generate_step"](ask, [5, 1], layers(2, 2)) == guarded
    with pytest.raises(ProdError, match=r"got 2 tokens of it and 6 in prompt_cache: .* pass the whole prompt and no"):
        loops["generate_step"](ask, [5, 1], layers(2, 6))
    with pytest.raises(ProdError, match="got no prompt, which draft_model hides: leave draft_model out"):
        loops["speculative_generate_step"](ask, [1], layers(1))
    for shown in (SimpleNamespace(clean_spaces=True), SimpleNamespace(clean_up_tokenization_spaces=True)):
        for name in ("detokenizer", "tokenizer"):
            with pytest.raises(ProdError, match="leaves spaces as they are, got clean_up_tokenization_spaces=True"):
                loops["stream_generate"](ask, [5, 1], layers(2), **{name: shown})
    assert loops["stream_generate"](ask, [5, 1], layers(2), tokenizer=SimpleNamespace(clean_spaces=False)) == guarded
    batch = loops["GenerationBatch"](layers(MlxArray([3, 2])))
    assert batch.next(ask, [[5, 5, 1], [5, 1]]) == [guarded] * 2
    with pytest.raises(ProdError, match="got 1 tokens of it and 2 in prompt_cache"):
        batch.next(ask, [[5, 5, 1], [1]])


@pytest.mark.parametrize("shape", [(2, len(TOKENS)), (2, 1, len(TOKENS))])
def test_tensorrt_shape(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape)
    tensorrt_llm.ProdLogitsProcessor(matcher("ab"))(7, logits, [[1], [5]], None, None)
    rows = logits.view(2, -1)
    assert allowed(rows[0]) == [0, 1, 5, 6, 7, 8]
    assert allowed(rows[1]) == [0, 1, 2, 5, 6, 7, 8]


def test_tensorrt_gives_each_text_one_row() -> None:
    processor = tensorrt_llm.ProdLogitsProcessor(matcher("ab"))
    # [2, V] for one text is no row of 2 V columns, of which the second half is padding.
    for shape, texts in (((2, len(TOKENS)), [[1]]), ((2, 2, len(TOKENS)), [[1], [5]]), ((1, len(TOKENS)), [[1], [5]])):
        logits = torch.zeros(shape)
        with pytest.raises(ProdError, match=rf"a row of logits for each of {len(texts)} texts, got \[.*speculative"):
            processor(7, logits, texts, None, None)
        assert not logits.any()


def test_tensorrt_must_show_every_token() -> None:
    processor = tensorrt_llm.ProdLogitsProcessor(matcher("ab"), eos_token_id=0)

    def ask(req_id: int, *text: int) -> list[int]:
        logits = torch.zeros(1, 1, len(TOKENS))
        processor(req_id, logits, [list(text)], None, None)
        return allowed(logits)

    free = [0, 1, 2, 3, 5, 6, 7, 8]
    for length in (3, 4, 5):
        for req_id in (1, 2):
            assert ask(req_id, *[5] * length) in (free, [0, 1, 2, 5, 6, 7, 8])
    # The newest token is hidden; there is a draft; the text shrinks.
    for length in (5, 7, 3):
        ask(length, *[5] * 5)
        with pytest.raises(ProdError, match=rf"request {length} to have grown by one token, got {length} after 5"):
            ask(length, *[5] * length)
    # Not one entry for every request there ever was.
    for req_id in range(100, 100 + tensorrt_llm._REQUESTS + 9):
        ask(req_id, 5)
    assert len(processor._lengths) == tensorrt_llm._REQUESTS


def sglang_request(prompt: list[int], output: list[int], **given: Any) -> dict[str, Any]:
    return {"__req__": SimpleNamespace(origin_input_ids=prompt, output_ids=output), **given}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    files = {}
    for name, phrase in (("one", "ab"), ("two", "eval(")):
        files[name] = str(tmp_path / f"{name}.prod")
        Blocklist.compile([Entry(phrase, boundary="none")], allow_short=True).save(files[name])
    monkeypatch.setenv("PROD_BLOCKLISTS", json.dumps({"blocklists": files, "default": ["one"]}))
    monkeypatch.setattr(sglang, "load_tokenizer", lambda _: VOCABULARY)
    for cached in (sglang._settings, sglang._matchers, sglang._guard_of):
        cached.cache_clear()
    yield
    for cached in (sglang._settings, sglang._matchers, sglang._guard_of):
        cached.cache_clear()


@pytest.mark.usefixtures("mlx")
def test_every_engine_tells_its_hits() -> None:
    """After the text `a`, of which `b` would make `ab`; `b` has nearly all of the probability."""
    hits: list[Hit] = []
    scores = np.full((1, len(TOKENS)), -9, np.single)
    scores[0, 2] = 0
    llama = SimpleNamespace(draft_model=None, token_eos=lambda: 0, n_vocab=lambda: len(TOKENS))
    (on_llama,) = adapter.ProdLogitsProcessors(matcher("ab"), llama=llama, on_hit=hits.append)
    on_llama(np.array([5, 1], np.intc), scores[0].copy())
    mlx_lm.ProdLogitsProcessor(matcher("ab"), on_hit=hits.append)(MlxArray([5, 1]), MlxArray(scores.copy()))
    on_trt = tensorrt_llm.ProdLogitsProcessor(matcher("ab"), on_hit=hits.append)
    on_trt(17, torch.from_numpy(scores.repeat(2, 0)), [[5, 6], [5, 1]], None, None)
    assert [(hit.kind, hit.entry, hit.position, hit.text) for hit in hits] == [("banned", "ab", 2, "b")] * 3
    assert [(hit.row, hit.request) for hit in hits] == [(0, None), (0, None), (1, "17")]


@pytest.mark.usefixtures("server")
def test_sglang_writes_an_audit_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROD_TOKENIZER", "model")
    prod = {**json.loads(os.environ["PROD_BLOCKLISTS"]), "audit_log": str(tmp_path / "hits.jsonl")}
    monkeypatch.setenv("PROD_BLOCKLISTS", json.dumps(prod))
    sglang._log_of_hits.cache_clear()
    requests = [sglang_request([5], []), sglang_request([1], []), sglang_request([1], [])]
    requests[1]["__req__"].rid = "r7"
    # Of this one a part of the prompt is computed, and no token comes of it.
    requests[2]["__req__"].inflight_middle_chunks = 1
    scores = torch.full((3, len(TOKENS)), -9.0)
    scores[:, 2] = 0
    sglang.ProdLogitsProcessor()(scores, requests)
    log = sglang._log_of_hits()
    assert log is not None
    log.close()
    sglang._log_of_hits.cache_clear()
    (line,) = [json.loads(line) for line in (tmp_path / "hits.jsonl").read_text().splitlines()]
    assert (line["kind"], line["entry"], line["row"], line["position"]) == ("banned", "ab", 1, 1)
    assert (line["request"], "text" in line) == ("r7", False)


@pytest.mark.usefixtures("server")
def test_sglang_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = json.loads(sglang.ProdLogitsProcessor.to_str())
    processor = pickle.loads(bytes.fromhex(sent["callable"]))()
    with pytest.raises(ProdError, match="PROD_TOKENIZER: expected the model's tokenizer, got nothing: set it"):
        processor(torch.zeros(1, len(TOKENS)), [sglang_request([1], [])])
    monkeypatch.setenv("PROD_TOKENIZER", "model")
    requests = [sglang_request([1], []), sglang_request([5], [6], prod_blocklists=["two"])]
    masked = processor(torch.zeros(2, len(TOKENS)), requests)
    assert allowed(masked[0]) == [0, 1, 5, 6, 7, 8]
    assert allowed(masked[1]) == [0, 1, 2, 6, 7, 8]
    with pytest.raises(ProdError, match="got several rows of one: turn speculative decoding off"):
        processor(torch.zeros(2, len(TOKENS)), [requests[0]] * 2)
    ended = [None, None, {"prod_blocklists": ["one"]}, sglang_request([5], [], prod_blocklists=["three"])]
    assert [allowed(row) for row in processor(torch.zeros(4, len(TOKENS)), ended)] == [[0]] * 4
    with pytest.raises(ProdError, match="expected parameters for each of 1 rows, got None"):
        processor(torch.zeros(1, len(TOKENS)), None)


@pytest.mark.parametrize(
    ("parameters", "arguments", "banned"),
    [
        ({}, {}, False),
        ({"json_schema": "{}"}, {}, True),
        ({"regex": None, "ebnf": "root ::= x"}, {}, True),
        ({}, {"prod_json": True}, True),
    ],
)
def test_sglang_decodes_the_escapes_of_json(
    parameters: dict[str, Any],
    arguments: dict[str, Any],
    banned: bool,
    server: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Blocklist.compile([Entry("import os\nos.system(")]).save(tmp_path / "one.prod")
    monkeypatch.setenv("PROD_TOKENIZER", "model")
    monkeypatch.setattr(sglang, "load_tokenizer", lambda _: JSON_VOCABULARY)
    request = sglang_request([6], [1, 5], **arguments)
    request["__req__"].sampling_params = SimpleNamespace(**parameters)
    masked = sglang.ProdLogitsProcessor()(torch.zeros(1, len(JSON_TOKENS)), [request])
    assert (4 not in allowed(masked[0])) is banned


@pytest.mark.usefixtures("server")
def test_sglang_must_show_every_token(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PROD_TOKENIZER", "model")
    given = sglang_request([5, 5], [], prob=1)
    request = given["__req__"]

    def ask() -> list[int]:
        return allowed(sglang.ProdLogitsProcessor()(torch.zeros(1, len(TOKENS)), [given]))

    # The parts of a long prompt, all but the last.
    request.inflight_middle_chunks = 1
    for chunks in (1, 1, 0):
        request.inflight_middle_chunks = chunks
        assert len(ask()) > 1
    request.output_ids.append(1)
    assert ask() == [0, 1, 5, 6, 7, 8]
    # With the overlap schedule the newest token is not there yet. An error would end the server.
    assert ask() == [0]
    assert "got 3 after 3, so it ends: start the server with --disable-overlap-schedule" in caplog.text
    request.output_ids += [1, 1]
    assert ask() == [0]


@pytest.mark.usefixtures("server")
def test_sglang_ends_a_request_where_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROD_TOKENIZER", "model")
    special = Vocabulary.from_bytes(TOKENS, special=[7], eos_ids=[0])
    monkeypatch.setattr(sglang, "load_tokenizer", lambda _: special)

    def ends(**of_request: Any) -> list[int]:
        request = sglang_request([4], [])
        vars(request["__req__"]).update(of_request)
        return allowed(sglang.ProdLogitsProcessor()(torch.zeros(1, len(TOKENS)), [request]))

    assert ends() == [0]
    # 8 adds text.
    assert ends(eos_token_ids={7, 8}) == [7]
    assert ends(eos_token_ids=None, sampling_params=SimpleNamespace(stop_token_ids={7})) == [7]
    tokenizer = SimpleNamespace(eos_token_id=0, additional_stop_token_ids={7})
    assert ends(tokenizer=tokenizer, eos_token_ids={8}) == [0, 7]
    assert ends(tokenizer=SimpleNamespace(eos_token_id=None), sampling_params=None) == [0]
