"""The shapes of other engines, as their documentation has them; llama-cpp-python itself where it is installed."""

from __future__ import annotations

import json
import math
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod_decode import Blocklist, Entry, Matcher, ProdError, Vocabulary, mlx_lm, sglang, tensorrt_llm
from prod_decode import llama_cpp as adapter
from prod_decode.guard import Guard
from prod_decode.masking import MOST_PADDING
from prod_decode.models import bundled_model, load_tokenizer
from prod_decode.normalize import Normalization
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
    from prod_decode.automaton import Automaton

    vocabulary = Vocabulary.from_bytes([*tokens, b"</s>"], special=special, eos_ids=[len(tokens)])
    naive = oracle.NaiveMatcher([*tokens, b"</s>"], {*special, len(tokens)}, patterns, "code", False)
    plain = [i for i in naive.usable() if i not in naive.special]
    text = data.draw(st.lists(st.sampled_from(plain), max_size=8)) if plain else []
    guard = Guard([Matcher(Automaton.build(patterns), Normalization("code", False), vocabulary)])
    row = guard.mask_(torch.zeros(len(vocabulary) + EXTRA), text)
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


def test_what_a_guard_refuses() -> None:
    with pytest.raises(ProdError, match="expected at least one matcher, got none: pass"):
        Guard([])
    other = Vocabulary.from_bytes(TOKENS, eos_ids=[0])
    with pytest.raises(ProdError, match="expected matchers of one vocabulary, got several"):
        Guard([matcher("ab"), Blocklist.compile([]).bind(other)])
    with pytest.raises(ProdError, match=r"expected an EOS token .* got none in the tokenizer"):
        Guard([Blocklist.compile([]).bind(Vocabulary.from_bytes([b"a"]))])
    for width in (0, len(TOKENS) + MOST_PADDING + 1):
        with pytest.raises(ProdError, match=f"the model scores {width} tokens but the tokenizer has {len(TOKENS)}"):
            Guard([matcher("ab")]).mask_(torch.zeros(width), [6])


def test_llama_cpp_shape() -> None:
    processors = adapter.ProdLogitsProcessors(matcher("ab"))
    scores = np.zeros(len(TOKENS), np.single)
    ids = np.array([5, 1], np.intc)
    assert allowed(processors[0](ids, scores)) == [0, 1, 5, 6, 7, 8]
    assert not scores.any()
    # llama-cpp-python passes a field of records, which is not contiguous.
    records = np.zeros(len(TOKENS), [("id", np.intc), ("logit", np.single), ("p", np.single)])
    records["logit"][:] = processors[0](ids, records["logit"])
    assert allowed(records["logit"]) == [0, 1, 5, 6, 7, 8]
    # As it treats the list when a request has `logit_bias`.
    biased = processors.extend([lambda _, scores: scores + 1])
    assert biased is processors
    assert len(biased) == 2
    assert isinstance(biased[-1], adapter._ProdLogitsProcessor)


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
    processors = adapter.ProdLogitsProcessors(blocklist.bind(load_tokenizer("bundled")))
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

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


def test_mlx_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    core = ModuleType("mlx.core")
    core.array, core.float32 = MlxArray, np.float32  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlx", ModuleType("mlx"))
    monkeypatch.setitem(sys.modules, "mlx.core", core)
    logits = MlxArray(np.zeros((1, len(TOKENS)), np.float16))
    masked = mlx_lm.ProdLogitsProcessor(matcher("ab"))(MlxArray([5, 1]), logits)
    assert isinstance(masked, MlxArray)
    assert masked.values.shape == (1, len(TOKENS))
    assert allowed(masked) == [0, 1, 5, 6, 7, 8]
    assert not logits.values.any()


@pytest.mark.parametrize("shape", [(2, len(TOKENS)), (2, 1, len(TOKENS))])
def test_tensorrt_shape(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape)
    tensorrt_llm.ProdLogitsProcessor(matcher("ab"))(7, logits, [[1], [5]], None, None)
    rows = logits.view(2, -1)
    assert allowed(rows[0]) == [0, 1, 5, 6, 7, 8]
    assert allowed(rows[1]) == [0, 1, 2, 5, 6, 7, 8]


def sglang_request(prompt: list[int], output: list[int], **given: Any) -> dict[str, Any]:
    return {"__req__": SimpleNamespace(origin_input_ids=prompt, output_ids=output), **given}


def test_sglang_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    for name, phrase in (("one", "ab"), ("two", "eval(")):
        files[name] = str(tmp_path / f"{name}.prod")
        Blocklist.compile([Entry(phrase, boundary="none")], allow_short=True).save(files[name])
    monkeypatch.setenv("PROD_BLOCKLISTS", json.dumps({"blocklists": files, "default": ["one"]}))
    monkeypatch.setattr(sglang, "load_tokenizer", lambda _: VOCABULARY)
    for cached in (sglang._settings, sglang._matchers, sglang._guard_of):
        cached.cache_clear()
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
    for cached in (sglang._settings, sglang._matchers, sglang._guard_of):
        cached.cache_clear()
