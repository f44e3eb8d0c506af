"""Where targets move probability to replacements: against the formula in float64, and against the logits processor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prod_decode import Blocklist, Entry, ProdLogitsProcessor
from prod_decode.match.matcher import Matcher
from prod_train.data.rows import Row, encode
from prod_train.loss.objective import Head
from prod_train.method import Recipe
from prod_train.targets.prohibited import rules_of
from prod_train.targets.targets import make_targets, rows_digest
from tests.tiny import save_tiny_model

D = 7
PHRASE, INSTEAD = b"np.trapz(", b"np.trapezoid("
SHARED = len(b"np.trap")
LIST = Blocklist.compile(
    [Entry("np.trapz(", replacement="np.trapezoid("), Entry("return x"), Entry("a.load(", replacement="b.load(")]
)
TEXTS = ("a = np.trapz(y)\n", "np.trapezoid(y) + np.trapz(\n", "np . trap\nz(y) return x", "xnp.trapz(np.trapzoid")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("m")))


def row_of(tokenizer: Any, completion: str, **more: Any) -> Row:
    return encode({"prompt": "import np\n", "completion": completion, **more}, "", tokenizer)


def logits(seed: int, row: Row, width: int, chunk: int) -> tuple[Head, Tensor]:
    """A head and hidden states that make some tokens of the phrase and of the replacement likely."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(width, D, generator=g)
    weight[list(b"zeoid(")] *= 3
    return Head(weight, chunk_size=chunk), torch.randn(row.tokens, D, generator=g)


def moved_by_hand(row: Row, matcher: Matcher, z: Tensor) -> tuple[Tensor, list[int]]:
    """The formula of `move_mass_`, in float64, of one list without layout: [N, V], and where anything was moved."""
    spelled = [matcher.vocabulary.token_bytes(t) for t in range(len(matcher))]

    def goes_on(rest: bytes) -> set[int]:
        return {t for t, s in enumerate(spelled) if s and (rest.startswith(s) or s.startswith(rest))}

    found, where, begun = [], [], b""
    for index, at in enumerate(np.flatnonzero(row.supervised).tolist()):
        text = b"".join(spelled[t] for t in row.ids[:at])
        banned = set(matcher.banned(matcher.state_of(row.ids[:at])).tolist())
        p = z[index].double().softmax(-1)
        last = spelled[row.ids[at - 1]]
        left = begun[len(last) :] if begun.startswith(last) else b""
        begun = b""
        length = next((n for n in range(SHARED, 0, -1) if text.endswith(PHRASE[:n])), 0)
        if length and text[: len(text) - length][-1:].isalnum():
            length = 0
        sources, targets = set(), set()
        if left and len(INSTEAD) - len(left) > SHARED:
            begun, targets = left, goes_on(left) - banned
            sources = set(range(len(p))) - targets
        elif length:
            begun = INSTEAD[length:]
            targets = goes_on(begun) - banned
            sources = {t for t in goes_on(PHRASE[length:]) if len(spelled[t]) > SHARED - length} - targets
            if not sources or not float(p[list(sources)].sum()) > float(p[list(targets)].sum()):
                begun = b""
        q = p.clone()
        if sources and targets:
            where.append(index)
            own, given_ = p[list(targets)].sum(), p[list(sources)].sum()
            q[list(targets)] *= (own + given_) / own
            q[list(sources)] = 0
        q[list(banned)] = 0
        found.append(q / q.sum())
    return torch.stack(found), where


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from([0, 1, 3]), st.integers(1, 7))
def test_targets_are_the_formula_in_float64(tokenizer: Any, seed: int, text: int, chunk: int) -> None:
    matcher, row = LIST.bind(tokenizer), row_of(tokenizer, TEXTS[text])
    head, hidden = logits(seed, row, 267, chunk)  # one column more than there are tokens
    got, moved = targets_of(matcher, row, head, hidden, Recipe(top_p=1.0))
    want, where = moved_by_hand(row, matcher, hidden @ head.weight.T)
    torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=0)
    assert np.flatnonzero(moved).tolist() == where


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from(TEXTS), st.sampled_from([0, 35, 62]), st.sampled_from([1.0, 0.8]))
def test_targets_are_what_the_processor_makes_of_the_same_text(
    tokenizer: Any, seed: int, text: str, padded: int, top_p: float
) -> None:
    """A head with 35 or 62 columns more than there are tokens, which the processor never lets through."""
    matcher, row = LIST.bind(tokenizer), row_of(tokenizer, text)
    known = len(matcher)
    head, hidden = logits(seed, row, known + padded, 5)
    head.weight[known:] = 0
    places = np.flatnonzero(row.supervised)
    processor = ProdLogitsProcessor(matcher, mode="prod", top_p=top_p)
    z = hidden @ head.weight.T
    z[:, known:] = -torch.inf
    want = torch.cat(
        [processor(torch.from_numpy(row.ids[None, :at]), z[i : i + 1]) for i, at in enumerate(places)]
    ).softmax(-1)
    bias = torch.zeros(known + padded)
    bias[known:] = -torch.inf
    got, _ = targets_of(matcher, row, Head(head.weight, bias, chunk_size=5), hidden, Recipe(top_p=top_p))
    torch.testing.assert_close(got, want, atol=2e-6, rtol=0)


def test_without_replacements_nothing_is_moved(tokenizer: Any) -> None:
    for entries in ([Entry("np.trapz(")], [Entry("a.load(", replacement="b.load(")]):
        assert rules_of(Blocklist.compile(entries).bind(tokenizer))(row_of(tokenizer, TEXTS[0]))[1] is None
    prohibited, moves = rules_of(None)(row_of(tokenizer, TEXTS[0]))
    assert moves is None
    assert len(prohibited[1]) == len(TEXTS[0])


def targets_of(matcher: Matcher, row: Row, head: Head, hidden: Tensor, recipe: Recipe) -> tuple[Tensor, list[bool]]:
    """[N, V], and where anything was moved."""
    prohibited, moves = rules_of(matcher)(row)
    assert moves is not None
    labels = torch.from_numpy(row.ids[row.supervised])
    got = make_targets(head, hidden, labels, prohibited, recipe, eos=0, moves=moves)
    return got.to_dense(len(head.weight)), moves.moved.tolist()


def test_what_was_begun_is_finished(tokenizer: Any) -> None:
    """A model that wants `z` behind `np.trap`, and nothing in particular elsewhere."""
    matcher, row = LIST.bind(tokenizer), row_of(tokenizer, "np.trapezoid(y", spans=[[7, 14]])
    width = len(matcher)
    z = torch.zeros(7, width)
    z[0, ord_of(tokenizer, "z")] = 9.0
    got, moved = targets_of(matcher, row, Head(torch.eye(width), chunk_size=3), z, Recipe(top_p=1.0))
    assert moved == [True, True, True, True, True, True, False]
    assert got[0, ord_of(tokenizer, "z")] == 0
    assert got[0, ord_of(tokenizer, "e")] > 0.95
    assert [tokenizer.decode([t]) for t in got[1:6].nonzero()[:, 1].tolist()] == list("zoid(")
    assert torch.allclose(got[6], torch.tensor(1 / width))
    # One that had it in mind anyway begins nothing.
    z[0, ord_of(tokenizer, "e")] = 9.1
    assert targets_of(matcher, row, Head(torch.eye(width)), z, Recipe(top_p=1.0))[1] == [True] + [False] * 6


def ord_of(tokenizer: Any, letter: str) -> int:
    (token,) = tokenizer.encode(letter)
    return int(token)


def test_suppression_is_of_the_model_as_it_is(tokenizer: Any) -> None:
    """With alpha, what is prohibited has minus the probability that it had before any was moved."""
    matcher = Blocklist.compile([Entry("np.trapz", replacement="np.trapezoid(")]).bind(tokenizer)
    row = row_of(tokenizer, TEXTS[0])
    head, hidden = logits(3, row, len(matcher), 4)
    known, moved = targets_of(matcher, row, head, hidden, Recipe(top_p=1.0))
    suppressed, _ = targets_of(matcher, row, head, hidden, Recipe(top_p=1.0, alpha=0.5))
    place, token = row.text.index("z(") - row.start, ord_of(tokenizer, "z")
    assert moved[place]
    p = (hidden @ head.weight.T).softmax(-1)
    assert suppressed[place, token] == pytest.approx(-0.5 * float(p[place, token]))
    assert suppressed[place, token] < 0
    assert torch.equal(suppressed.clamp(min=0), known)


def test_a_replacement_that_is_written_out_is_the_whole_target(tokenizer: Any) -> None:
    matcher = LIST.bind(tokenizer)
    row = replace(row_of(tokenizer, "np.trapezoid(y)", spans=[[7, 13]]), instead_of=("z(",))
    head, hidden = logits(5, row, len(matcher), 4)
    for recipe in (Recipe(), Recipe(top_p=1.0, keep=3), Recipe(alpha=0.5)):
        got, moved = targets_of(matcher, row, head, hidden, recipe)
        assert moved == [True] * 6
        want = torch.zeros_like(got)
        want[range(6), row.ids[row.supervised]] = 1
        assert torch.equal(got.clamp(min=0), want)


def test_what_the_text_before_makes_a_phrase_of_is_not_taught(tokenizer: Any) -> None:
    """Nothing prohibits the replacement by itself."""
    entries = [Entry("np.trapz(", replacement="np.trapezoid("), Entry("a = np.trapezo")]
    matcher = Blocklist.compile(entries).bind(tokenizer)
    row = replace(row_of(tokenizer, "a = np.trapezoid(", spans=[[11, 17]]), instead_of=("z(",))
    head, hidden = logits(5, row, len(matcher), 4)
    got, moved = targets_of(matcher, row, head, hidden, Recipe(top_p=1.0))
    assert moved == [True, True, False, True, True, True]
    assert got[2, ord_of(tokenizer, "o")] == 0
    assert got[2].sum() == pytest.approx(1)


def test_rows_that_are_written_out_are_others(tokenizer: Any) -> None:
    row = row_of(tokenizer, "np.trapezoid(y)", spans=[[7, 13]])
    assert rows_digest([row]) != rows_digest([replace(row, instead_of=("z(",))])
