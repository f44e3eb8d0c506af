"""`prod_train.measure.evaluate`: metrics against slow and simple versions of themselves."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError
from prod_decode.harness.continuing import continuations, ending_ids
from prod_decode.storage.models import load_model
from prod_train.data.rows import encode
from prod_train.loss.objective import Encoder
from prod_train.measure import evaluate
from prod_train.measure.evaluate import (
    evaluate_forget,
    evaluate_holdout,
    measurable,
    recite,
)
from prod_train.measure.metric import bootstrap, extraction_strength, longest_run
from prod_train.targets.targets import ReferenceStore
from tests.smollm2 import smollm2_tokenizer
from tests.tiny import SNIPPETS, save_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    model, tokenizer = load_model(save_tiny_model(tmp_path_factory.mktemp("m"), vocab_size=266), dtype="float32")
    rows = [encode({"prompt": p, "completion": c}, "", tokenizer) for p, c in SNIPPETS]
    return SimpleNamespace(model=model, tokenizer=tokenizer, rows=rows, encoder=Encoder(model))


def greedy(tiny, ids, count, banned=lambda ids: ()):
    """One token at a time, one row at a time, without a cache or padding."""
    ids = list(ids)
    for _ in range(count):
        z = tiny.model(torch.tensor([ids]), use_cache=False).logits[0, -1].detach().clone()
        z[list(banned(ids))] = -torch.inf
        token = int(z.argmax())
        if token == tiny.tokenizer.eos_token_id:
            break
        ids.append(token)
    return ids


def test_recite_is_greedy_decoding_as_long_as_the_text(tiny):
    for row, output in zip(tiny.rows, recite(tiny.model, tiny.tokenizer, tiny.rows), strict=True):
        assert row.ids[: row.start].tolist() + output == greedy(tiny, row.ids[: row.start], row.stop - row.start)


def test_rows_end_with_the_token_that_completes_a_stop_in_their_output(tiny):
    prompts = [row.ids[: row.start] for row in tiny.rows]
    free = continuations(tiny.model, tiny.tokenizer, prompts, 40)
    found = (re.search(r"[!-~]{2}", tiny.tokenizer.decode(tokens)) for tokens in free)
    # A newline stands at the end of every prompt, where it does not count.
    stops = [*(piece[0] for piece in found if piece), "\n"]
    ended = continuations(tiny.model, tiny.tokenizer, prompts, 40, stops=stops)
    for whole, tokens in zip(free, ended, strict=True):
        said = [tiny.tokenizer.decode(whole[:end]) for end in range(1, len(whole) + 1)]
        length = next((n for n, text in enumerate(said, 1) if any(stop in text for stop in stops)), len(whole))
        assert tokens == whole[:length]
    assert sum(len(tokens) < len(whole) for whole, tokens in zip(free, ended, strict=True)) >= 3
    assert all(ended)


@pytest.mark.slow
def test_every_special_token_of_a_real_tokenizer_ends_a_text():
    tokenizer = smollm2_tokenizer()
    found = {tokenizer.decode([token]) for token in ending_ids(tokenizer)}
    assert found > {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>", "<jupyter_output>"}
    assert len(found) == 17
    assert all(text.startswith("<") and text.endswith(">") for text in found)


def test_rows_end_at_any_special_token(tmp_path):
    model, tokenizer = load_model(save_tiny_model(tmp_path, vocab_size=267, seed=1), dtype="float32", device="cpu")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<file_sep>"]})
    separator = tokenizer.convert_tokens_to_ids("<file_sep>")
    assert separator == 266
    assert separator not in (tokenizer.eos_token_id, tokenizer.pad_token_id)
    prompts = [np.array(tokenizer(text)["input_ids"]) for text in ("import os\n", "def f(x):\n")]

    def separate(ids, scores):
        """Ends the first row after three tokens of output, the second after five."""
        for row in range(2):
            if ids.shape[1] == max(map(len, prompts)) + 3 + 2 * row:
                scores[row] = -torch.inf
                scores[row, separator] = 0.0
        return scores

    free = continuations(model, tokenizer, prompts, 8)
    assert [len(tokens) for tokens in free] == [8, 8]
    assert continuations(model, tokenizer, prompts, 8, [separate]) == [free[0][:3], free[1][:5]]


def test_a_row_that_the_model_wrote_itself_is_recited_in_full(tiny):
    prompt = tiny.rows[0].ids[: tiny.rows[0].start]
    ids = np.array(greedy(tiny, prompt, 12))
    own = replace(tiny.rows[0], ids=ids, supervised=np.arange(len(ids)) >= len(prompt), has_eos=False)
    found = evaluate_forget(tiny.model, tiny.encoder, tiny.tokenizer, [own])
    for name in ("recitation", "exact_memorisation", "extraction_strength", "verbatim"):
        assert found[name].value == 1
    other = evaluate_forget(tiny.model, tiny.encoder, tiny.tokenizer, tiny.rows)
    assert other["recitation"].value < 0.2
    both = evaluate_forget(tiny.model, tiny.encoder, tiny.tokenizer, [*tiny.rows, own], batch_size=3)
    assert both["recitation"].value == pytest.approx((7 * other["recitation"].value + 1) / 8)
    assert both["probability"].n == 8


def test_probability_and_exact_memorisation_are_teacher_forced(tiny):
    chance, hits = [], []
    for row in tiny.rows:
        p = tiny.model(torch.from_numpy(row.ids)[None]).logits[0].softmax(-1)
        at = range(row.start, row.stop)
        chance.append(np.mean([p[t - 1, row.ids[t]].item() for t in at]))
        hits.append(np.mean([p[t - 1].argmax().item() == row.ids[t] for t in at]))
    found = evaluate_forget(tiny.model, tiny.encoder, tiny.tokenizer, tiny.rows, batch_size=3)
    assert found["probability"].value == pytest.approx(np.mean(chance), rel=1e-4)
    assert found["exact_memorisation"].value == pytest.approx(np.mean(hits))


def test_a_blocklist_is_enforced_while_measuring(tiny):
    """The pattern is a piece of ASCII that the model itself writes, wherever it does."""
    for row in tiny.rows:
        ids = np.array(greedy(tiny, row.ids[: row.start], 60))
        text = tiny.tokenizer.decode(ids[row.start :].tolist())
        if piece := re.search(r"[!-~]{3}", text):
            break
    else:
        pytest.fail("this model writes no ASCII: try another seed")
    own = replace(row, ids=ids, supervised=np.arange(len(ids)) >= row.start, has_eos=False)
    assert evaluate_forget(tiny.model, tiny.encoder, tiny.tokenizer, [own])["recitation"].value == 1
    matcher = Blocklist.compile([Entry(piece[0], boundary="none")], normalize="none").bind(tiny.tokenizer)
    found = evaluate_forget(tiny.model, tiny.encoder, tiny.tokenizer, [own], matcher=matcher)
    for name in ("recitation", "exact_memorisation", "extraction_strength"):
        assert found[name].value < 1


def test_rows_that_show_nothing_are_left_out_with_their_number(tiny):
    """Whatever is written holds all of an empty text, and one token is a guess."""
    blank = encode({"text": "x = 1" + "\n" * 9}, "", tiny.tokenizer)
    bracket = encode({"prompt": "f(1", "completion": ")\n"}, "", tiny.tokenizer)
    single = encode({"prompt": "f(1", "completion": ")"}, "", tiny.tokenizer)
    last = encode({"text": "f(yaml)", "spans": [[6, 7]]}, "", tiny.tokenizer)
    assert tiny.tokenizer.decode(blank.ids[blank.start : blank.stop].tolist()).strip() == ""
    assert [row.stop - row.start for row in (bracket, single, last)] == [2, 1, 1]
    mixed = [blank, tiny.rows[0], bracket, single, *tiny.rows[1:], last]
    plain = evaluate_forget(tiny.model, tiny.encoder, tiny.tokenizer, tiny.rows)
    found = evaluate_forget(tiny.model, tiny.encoder, tiny.tokenizer, mixed)
    for name, metric in found.items():
        assert metric.left_out == {"under two characters": 2, "under two tokens": 2}
        assert (metric.n, metric.value) == (7, pytest.approx(plain[name].value))
        assert plain[name].left_out == {}
    few = evaluate_forget(tiny.model, tiny.encoder, tiny.tokenizer, mixed, limit=2)
    assert few["verbatim"].n == 2
    assert few["verbatim"].left_out == {"under two characters": 2, "under two tokens": 1}
    with pytest.raises(ProdError, match=r"got 2 with under two tokens, 1 with under two characters: give longer"):
        measurable([single, last, bracket], tiny.tokenizer)


def test_an_output_without_text_is_empty(tiny, monkeypatch):
    newline, letter = (tiny.tokenizer.encode(text)[0] for text in "\nx")
    written = [[], [newline] * 3, [newline, letter], [letter]]
    monkeypatch.setattr(evaluate, "recite", lambda *_: written)
    found = evaluate.evaluate_recitation(tiny.model, tiny.tokenizer, tiny.rows[:4])
    assert (found["empty_output"].value, found["empty_output"].n) == (0.5, 4)


def test_holdout_metrics_against_dense_logits(tiny, tmp_path):
    store = ReferenceStore(tmp_path, "hidden", tiny.rows, "m")
    store.fill(tiny.encoder, tiny.model, pad=0, eos=0, batch_size=3)
    same = evaluate_holdout(tiny.model, tiny.encoder, tiny.rows, store, pad=0, batch_size=4)
    assert same["kl"].value == pytest.approx(0, abs=1e-6)
    assert same["agreement"].value == 1
    before = [tiny.model(torch.from_numpy(row.ids)[None]).logits[0].double().log_softmax(-1) for row in tiny.rows]
    with torch.no_grad():
        tiny.model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    try:
        found = evaluate_holdout(tiny.model, tiny.encoder, tiny.rows, store, pad=0, batch_size=4)
        losses, kls, equal = [], [], []
        for row, t in zip(tiny.rows, before, strict=True):
            z = tiny.model(torch.from_numpy(row.ids)[None]).logits[0].double().log_softmax(-1)
            for at in np.flatnonzero(row.supervised):
                losses.append(-z[at - 1, row.ids[at]].item())
                kls.append((t[at - 1].exp() * (t[at - 1] - z[at - 1])).sum().item())
                equal.append(z[at - 1].argmax().item() == t[at - 1].argmax().item())
    finally:
        with torch.no_grad():
            tiny.model.model.layers[0].mlp.down_proj.weight.div_(1.5)
    assert found["loss"].value == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["kl"].value == pytest.approx(np.mean(kls), rel=1e-3)
    assert found["agreement"].value == pytest.approx(np.mean(equal))
    assert found["kl"].value > 1e-3


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_extraction_strength(correct):
    k = next(k for k in range(len(correct) + 1) if all(correct[k:]))
    assert extraction_strength(np.array(correct)) == pytest.approx(1 - k / len(correct))


@given(st.text("ab€", max_size=12), st.text("ab€", max_size=12))
def test_longest_run(a, b):
    substrings = {a[i:j] for i in range(len(a)) for j in range(i + 1, len(a) + 1)}
    found = longest_run(*(np.array([ord(c) for c in s], np.uint32) for s in (a, b)))
    assert found == max((len(s) for s in substrings if s in b), default=0)


def test_bootstrap_intervals():
    generator = np.random.default_rng(0)
    values, weights = generator.random(200), generator.integers(1, 9, 200).astype(float)
    metric = bootstrap(values, weights, "better")
    mean = np.average(values, weights=weights)
    error = np.sqrt(np.sum(weights**2 * (values - mean) ** 2)) / weights.sum()
    assert metric.value == pytest.approx(mean)
    assert metric.low == pytest.approx(mean - 1.96 * error, abs=0.25 * error)
    assert metric.high == pytest.approx(mean + 1.96 * error, abs=0.25 * error)
    assert bootstrap(np.ones(3), np.ones(3), "better").to_dict() == {
        "value": 1.0, "low": 1.0, "high": 1.0, "n": 3, "higher_is": "better", "left_out": {}, "most": 1.0
    }  # fmt: skip


def test_an_infinite_row_makes_no_interval_of_nans():
    metric = bootstrap(np.array([0.5, np.inf, 0.5, 0.5]), np.ones(4), "worse")
    assert (metric.value, metric.low, metric.high) == (np.inf, 0.5, np.inf)
