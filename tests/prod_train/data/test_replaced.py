"""Rows with replacements written out: which tokens differ, found by comparing the two texts' tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prod_decode import Blocklist, Entry
from prod_train.data.replaced import Place, places_in, replaced_rows, save_replaced
from prod_train.data.rows import Row, encode, load_rows
from tests.tiny import save_tiny_model

LIST = Blocklist.compile(
    [
        Entry("np.trapz(", replacement="np.trapezoid("),
        Entry("yaml.load(", replacement="yaml.safe_load("),
        Entry("re.turn", replacement="re.return_("),
        Entry("a.load(", replacement="b.load("),
        Entry("eval("),
        Entry("np.alltrue", boundary="both", replacement="np.all("),
    ]
)
# Mergers of the tiny tokenizer make `ret` of `re` and `turn`, and so other tokens before what differs.
PIECES = (
    "np.trapz(",
    "np . trapz (",
    "xnp.trapz(",
    "np.trapezoid(",
    "yaml.\n    load(",
    "re.turn",
    "re.turned",
    "a.load(",
    "é ",
    "eval(1)",
    "  return",
    "f)",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("m")))


def rows_of(tokenizer: Any, *rows: Row, **options: Any) -> list[Row]:
    return replaced_rows(rows, LIST, LIST.bind(tokenizer).forks, tokenizer, **{"max_length": 500, **options})[1]


def row_of(tokenizer: Any, prompt: str, completion: str, **more: Any) -> Row:
    return encode({"prompt": prompt, "completion": completion, **more}, "f:1", tokenizer)


def written(row: Row, tokenizer: Any) -> list[str]:
    """The stretches of supervised tokens, decoded."""
    cuts = np.flatnonzero(np.diff(row.supervised.astype(int))) + 1
    parts = np.split(row.ids, cuts)
    return [tokenizer.decode(part) for part, first in zip(parts, (0, *cuts), strict=True) if row.supervised[first]]


@pytest.mark.parametrize(
    ("prompt", "completion", "text", "taught", "before"),
    [
        ("import np\n", "a = np.trapz(y)", "a = np.trapezoid(y)", ["ezoid("], ["z("]),
        ("import np\n", "np.trapz(np.trapz(y))", "np.trapezoid(np.trapezoid(y))", ["ezoid("] * 2, ["z("] * 2),
        ("a = np.tra", "pz(y)\n", "pezoid(y)\n", ["ezoid("], ["z("]),
        ("np.trapz(x) + ", "np.trapz(y)", "np.trapezoid(y)", ["ezoid("], ["z("]),
        ("y\n", "np.alltrue(y)", "np.all(y)", ["("], ["true("]),
        ("y\n", "np.alltrue (y)", "np.all(y)", ["("], ["true ("]),
        ("y\n", "np.alltrue, y", "np.all(, y", ["("], ["true"]),
        ("y\n", "yaml .\n  load  (f)", "yaml .\n  safe_load(f)", ["safe_load("], ["load  ("]),
    ],
)
def test_a_replacement_is_written_out(
    tokenizer: Any, prompt: str, completion: str, text: str, taught: list[str], before: list[str]
) -> None:
    (row,) = rows_of(tokenizer, row_of(tokenizer, prompt, completion))
    assert (row.text, row.prompt, row.place, row.has_eos) == (prompt + text, prompt, "f:1, with replacements", False)
    assert written(row, tokenizer) == taught
    assert row.instead_of == tuple(before)
    assert tokenizer.decode(row.ids) == prompt + text


@pytest.mark.parametrize(
    ("prompt", "completion", "more"),
    [
        ("a = np.trapz(", "y)", {}),  # the prompt has all of it
        ("a = np.trapz", "(y)", {}),  # or the part that differs
        ("", "xnp.trapz(y)", {}),  # another word
        ("", "a.load(f)", {}),  # cannot be reached
        ("", "re.turned", {}),  # half a word
        ("", "np.trapezoid(y) eval(x)", {}),
        ("a\n", "np.trapz(y)", {"spans": [[9, 11]]}),  # not what is to be forgotten
    ],
)
def test_where_nothing_is_replaced(tokenizer: Any, prompt: str, completion: str, more: dict[str, Any]) -> None:
    assert rows_of(tokenizer, row_of(tokenizer, prompt or "#", completion, **more)) == []


def test_what_is_tokenised_otherwise_before_the_difference_is_supervised(tokenizer: Any) -> None:
    """`re.ret` has the token `re` behind the dot where `re.retu` has `retu`: the model must leave the row there."""
    turn = Blocklist.compile([Entry("x.rets(", replacement="x.return(")])
    row = encode({"text": "x.rets(1)"}, "f:1", tokenizer)
    (kept,), (got,) = replaced_rows([row], turn, turn.bind(tokenizer).forks, tokenizer, max_length=99)
    assert [tokenizer.decode([t]) for t in row.ids[:6]] == ["x", ".", "re", "t", "s", "("]
    assert written(got, tokenizer) == ["return("]
    assert np.flatnonzero(row.supervised & ~kept.supervised).tolist() == [2]
    assert not kept.supervised[~row.supervised].any()
    assert (got.text, got.spans, got.instead_of) == ("x.return(1)", ((2, 9),), ("rets(",))


@settings(max_examples=40)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=5), st.integers(0, 3))
def test_copies_differ_from_their_rows_only_where_they_are_supervised(
    tokenizer: Any, pieces: list[str], prompt: int
) -> None:
    """Up to the first supervised token both have the same tokens; all others of the copy are the row's text."""
    before, text = " ".join(pieces[:prompt]), " " + " ".join(pieces[prompt:])
    if not text.strip():
        return
    row = encode({"prompt": before, "completion": text} if before else {"text": text}, "f:1", tokenizer)
    found = rows_of(tokenizer, row)
    plain = {"np.trapz(": "np.trapezoid(", "np . trapz (": "np . trapezoid("}
    plain |= {"yaml.\n    load(": "yaml.\n    safe_load(", "re.turn": "re.return_("}
    assert bool(found) == any(piece in plain for piece in pieces[prompt:])
    for copy in found:
        assert copy.text == before + " " + " ".join(plain.get(piece, piece) for piece in pieces[prompt:])
        first = int(np.flatnonzero(copy.supervised)[0])
        assert copy.ids[:first].tolist() == row.ids[:first].tolist()
        assert copy.ids[first] != row.ids[first]
        assert len(tokenizer.decode(copy.ids[:first])) >= len(before)
        for (start, end), old in zip(copy.spans, copy.instead_of, strict=True):
            assert old in row.text
            assert LIST.normalization.symbols(copy.text[start:end]) != LIST.normalization.symbols(old)


def test_a_copy_is_cut_where_rows_are(tokenizer: Any) -> None:
    row = row_of(tokenizer, "a\n", "np.trapz(y)" + "b" * 20 + " np.trapz(z)")
    (whole,), (cut,) = rows_of(tokenizer, row), rows_of(tokenizer, row, max_length=20)
    assert (written(whole, tokenizer), written(cut, tokenizer)) == (["ezoid("] * 2, ["ezoid("])
    assert (len(cut.ids), cut.truncated) == (20, True)
    assert rows_of(tokenizer, row, max_length=9) == []


def test_the_file_is_a_data_set(tokenizer: Any, tmp_path: Path) -> None:
    """Rows with and without a prompt come back with the same tokens supervised."""
    rows = rows_of(
        tokenizer,
        row_of(tokenizer, "import np\n", "é = np.trapz(np.trapz(y))"),
        encode({"text": "yaml.load(f)"}, "f:2", tokenizer),
    )
    save_replaced(tmp_path / "r.jsonl", rows)
    assert '"written": ["ezoid(", "ezoid("], "instead_of": ["z(", "z("]' in (tmp_path / "r.jsonl").read_text()
    for before, after in zip(rows, load_rows(str(tmp_path / "r.jsonl"), tokenizer, max_length=99), strict=True):
        assert (before.ids.tolist(), before.supervised.tolist()) == (after.ids.tolist(), after.supervised.tolist())


def test_places_of_a_list_with_commit_points_and_folded_letters(tokenizer: Any) -> None:
    entries = [Entry("wave.open(", replacement="wave.read(")]
    listed = Blocklist.compile(entries, allow_names=["wave"], ignore_case=True)
    assert list(listed.scan("wave.o((((("))
    found = places_in("wave.o((((( WAVE.Open(c)", listed, listed.bind(tokenizer).forks)
    assert found == [Place(17, 22, "read(")]
