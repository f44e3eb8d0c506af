"""What a prohibition costs: the formula, its way from tokens to characters, and anchors that go where it is least."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod_decode import Blocklist, Entry
from prod_decode.cli import main
from prod_decode.command.costs import LEAST, MOST, ModelCosts, character_costs, token_costs
from prod_decode.errors import ProdError
from prod_decode.storage.models import load_model
from prod_decode.tokens.tokenizer_bytes import vocabulary_of
from tests.tiny import SNIPPETS, save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, str]:
    folder = save_tiny_model(tmp_path_factory.mktemp("m"))
    return (*load_model(folder, dtype="float32"), folder)


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=9), st.integers(0, 8))
def test_a_cost_is_the_divergence_from_the_masked_distribution(logits: list[float], label: int) -> None:
    label %= len(logits)
    log_p = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    masked = log_p.clone()
    masked[label] = -torch.inf
    q = masked.softmax(-1)
    kept = q > 0
    divergence = (q[kept] * (q[kept].log() - log_p[kept])).sum().item()
    (cost,) = token_costs(log_p[label : label + 1].numpy())
    assert cost == pytest.approx(min(MOST, max(LEAST, divergence)), rel=1e-6)


def test_costs_stay_within_bounds() -> None:
    assert token_costs(np.array([-math.log(2), 0.0, -np.inf, 1e-7])).tolist() == pytest.approx(
        [math.log(2), MOST, LEAST, MOST]
    )


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.data())
def test_a_character_costs_what_the_token_with_its_last_byte_does(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=6)))
    tokens = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    spelled, costs = character_costs(tokens, range(1, len(tokens) + 1))
    expected, at = [], 0
    for character in text:
        at += len(character.encode())
        expected.append(next(n for n, end in enumerate([*cuts, len(encoded)], 1) if end >= at and tokens[n - 1]))
    assert (spelled, list(costs)) == (text, expected)


def test_characters_that_are_cut_at_the_edges_do_not_count() -> None:
    euro = "\u20ac".encode()
    assert character_costs([euro[1:], b"ab", euro[:2]], [1, 2, 3]) == ("ab", (2.0, 2.0))
    assert character_costs([], []) == ("", ())
    with pytest.raises(ProdError, match="expected tokens that spell UTF-8"):
        character_costs([b"a\xffb"], [1])


def test_costs_of_a_document_are_those_of_one_forward_pass(tiny: tuple[Any, Any, str]) -> None:
    model, tokenizer, _ = tiny
    vocabulary = vocabulary_of(tokenizer)
    text = "\n".join(map("".join, SNIPPETS[:2]))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        p = model(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1)
    each = [MOST] + [-math.log(1 - p[i, token].item()) for i, token in enumerate(ids[1:])]
    _, expected = character_costs([vocabulary.token_bytes(i) for i in ids], each)
    assert ModelCosts(model, tokenizer, vocabulary)(text) == pytest.approx(expected, rel=1e-3)
    # In windows every token still has half a window of context, and the first window is the same.
    windows = ModelCosts(model, tokenizer, vocabulary, window=8)(text)
    assert len(windows) == len(text)
    known = len(b"".join(vocabulary.token_bytes(i) for i in ids[:8]).decode())
    assert windows[:known] == pytest.approx(expected[:known], rel=1e-3)
    with torch.no_grad():
        p = model(input_ids=torch.tensor([ids[4:12]])).logits[0].double().softmax(-1)
    second = [-math.log(1 - p[i - 5, ids[i]].item()) for i in range(8, 12)]
    _, expected = character_costs([vocabulary.token_bytes(i) for i in ids[8:12]], second)
    assert windows[known : known + len(expected)] == pytest.approx(expected, rel=1e-3)
    assert ModelCosts(model, tokenizer, vocabulary)("") == ()
    # A document may spell a special token.
    assert len(ModelCosts(model, tokenizer, vocabulary)("x <eos> y")) == 9


def anchors_of(text: str, cost: list[float], **options: Any) -> list[str]:
    entry = Entry(text, policy="quote", max_quote=8, cost=tuple(cost))
    blocklist = Blocklist.compile([entry], **options)
    return [text[match.start : match.end] for match in blocklist.scan(text)]


@pytest.mark.slow
def test_anchors_end_where_it_is_cheap() -> None:
    text = "abcdefghijklmno"
    # Anchors of 4, one in each window of 8, begin at most 5 apart.
    cost = [0.1 if character in "fk" else 1.0 for character in text]
    assert anchors_of(text, cost) == ["cdef", "hijk"]
    assert anchors_of(text, [0.1 if character in "hm" else 1.0 for character in text]) == ["efgh", "jklm"]


def test_costs_are_those_of_the_characters_that_are_compared() -> None:
    text = "a + b   +   c   +  d + e + f + g + h"
    cheap = (text.index("+ e"), text.index("g"))
    found = anchors_of(text, [0.01 if i in cheap else 1.0 for i in range(len(text))])
    assert found == ["c   +  d +", "+ f + g"]


@given(st.lists(st.floats(0.01, 10), min_size=30, max_size=30))
def test_no_window_is_left_whatever_it_costs(cost: list[float]) -> None:
    text = "abcdefghijklmnopqrstuvwxyzABCD"
    blocklist = Blocklist.compile([Entry(text, policy="quote", max_quote=8, cost=tuple(cost))])
    for start in range(len(text) - 7):
        assert list(blocklist.scan(text[start : start + 8]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": (1.0,)}, "cost belongs to policy 'quote', this is a 'phrase'"),
        ({"policy": "quote", "cost": (1.0,)}, "expected a cost for each of 8 characters, got 1 costs"),
        ({"policy": "quote", "cost": (1.0,) * 7 + (0.0,)}, "costs that are finite and above 0, got 0.0"),
        ({"policy": "quote", "cost": (1.0,) * 7 + (math.nan,)}, "costs that are finite and above 0, got nan"),
        ({"policy": "quote", "cost": (1.0,) * 7 + (math.inf,)}, "costs that are finite and above 0, got inf"),
    ],
)
def test_costs_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProdError, match=message):
        Entry("abcdefgh", **options)


@pytest.mark.slow
def test_the_command_puts_anchors_where_a_model_has_alternatives(
    tiny: tuple[Any, Any, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer, folder = tiny
    source = tmp_path / "source.py"
    source.write_text("\n".join(map("".join, SNIPPETS)))
    for name, flags in (("plain", []), ("cheap", ["--model", folder])):
        assert main(["compile", str(source), "-o", str(tmp_path / name), "--max-quote", "40", *flags]) == 0
    capsys.readouterr()
    cost = ModelCosts(model, tokenizer, vocabulary_of(tokenizer))(source.read_text())
    paid = {}
    for name in ("plain", "cheap"):
        blocklist = Blocklist.load(tmp_path / name)
        paid[name] = sum(cost[end - 1] for end in {match.end for match in blocklist.scan(source.read_text())})
        assert len(blocklist) == 1
    assert paid["cheap"] < 0.9 * paid["plain"]
    assert main(["compile", str(source), "-o", str(tmp_path / "x"), "--model", str(tmp_path / "none")]) == 2
    assert "cannot load the model" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
