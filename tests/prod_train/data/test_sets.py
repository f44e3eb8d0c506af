"""Sets made of documents: nothing in two of them, by brute force; and nothing left out without its reason."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prod_decode.blocklist.selection import Selection
from prod_decode.errors import ProdError
from prod_decode.text.normalize import Normalization
from prod_train.data.alike import compared, near_copies
from prod_train.data.documents import Document, Left, read_documents
from prod_train.data.pieces import Piece
from prod_train.data.rows import encode
from prod_train.data.sets import Wanted, make_sets
from prod_train.measure.overlap import check_overlaps
from tests.oracle import normalize_text
from tests.tiny import save_tiny_model

# --- the same, written plainly ----------------------------------------------------------------------------------------


def plain(text: str) -> str:
    return normalize_text(text, Normalization("code"))


def share_in(text: str, other: str) -> float:
    """Share of the characters of `text` in runs of 24 that `other` has."""
    text, other = plain(text), plain(other)
    given_away = [False] * len(text)
    for at in range(len(text) - 23):
        if text[at : at + 24] in other:
            given_away[at : at + 24] = [True] * 24
    return sum(given_away) / len(text) if text else 0.0


def are_copies(one: tuple[str, str], other: tuple[str, str]) -> bool:
    a, b = "".join(one), "".join(other)
    return plain(a) == plain(b) or plain(one[1]) == plain(other[1]) or share_in(a, b) >= 0.5 or share_in(b, a) >= 0.5


# Statements of 10 to 40 characters: enough in common, in every proportion, and in other layouts.
STATEMENTS = (
    "return value",
    "total = sum(item.price for item in cart)",
    "for name in sorted(names): print(name)",
    "x=1",
    "if not path.exists(): raise ValueError(path)",
    "self.name = name; self.size = size",
    "with open(path) as file: text = file.read()",
)
statement = st.sampled_from(STATEMENTS).flatmap(
    lambda text: st.sampled_from([text, text.replace(" ", "  "), text.replace("=", " = ")])
)
row = st.tuples(
    st.sampled_from(["def f():\n", "def load(path, *, size):\n", "class A(B):\n    def f(self):\n"]),
    st.lists(statement, min_size=1, max_size=6).map(lambda lines: "".join(f"    {line}\n" for line in lines)),
)


@given(st.lists(row, max_size=5), st.lists(row, max_size=5))
def test_near_copies_are_those_of_a_plain_search(earlier: list[Any], later: list[Any]) -> None:
    found = near_copies([compared(*one) for one in earlier], [compared(*one) for one in later])
    assert found == {number for number, one in enumerate(later) if any(are_copies(one, other) for other in earlier)}


def test_an_idiom_that_many_have_makes_no_copies() -> None:
    """Every row has 24 characters of each other, and half of none."""
    idiom = "self.name = name; self.size = size\n"
    rows = [compared("def f():\n", idiom + "".join(f"x{n}{k} = {n * k}\n" for k in range(20))) for n in range(60)]
    assert near_copies(rows[:30], rows[30:]) == set()
    assert near_copies(rows[:30], rows[20:]) == set(range(10))


def test_half_is_enough_and_less_is_not() -> None:
    """The shorter row is in the longer one, or one character less than half of it is."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    half = compared("", letters[:26] + "." * 26)
    less = compared("", letters[:25] + "." * 27)
    other = compared("", letters + "-" * 500)
    assert near_copies([other], [half, less]) == {0}
    assert near_copies([half], [other]) == {0}
    # The same few runs, again and again.
    often, twice = compared("", letters[:24] * 60), compared("", letters[:24] * 2 + "-" * 500)
    assert near_copies([twice], [often]) == near_copies([often], [twice]) == {0}
    assert near_copies([less], [other]) == set()


# --- sets -------------------------------------------------------------------------------------------------------------

documents = st.lists(st.lists(row, min_size=1, max_size=4), max_size=6)


def document(name: str, rows: list[tuple[str, str]]) -> Document:
    pieces = tuple(Piece(prompt + rest, 1 + 10 * n, len(prompt)) for n, (prompt, rest) in enumerate(rows))
    return Document(name, "MIT", plain("".join(piece.text for piece in pieces)).encode(), pieces)


def made(
    forget: list[list[tuple[str, str]]], free: list[list[tuple[str, str]]], **wanted: Any
) -> tuple[dict[str, list[Any]], Left]:
    left = Left()
    first = [document(f"f{n}", rows) for n, rows in enumerate(forget)]
    second = [document(f"r{n}", rows) for n, rows in enumerate(free)]
    return make_sets(first, second, Wanted(**{"shortest": 1, **wanted}), left), left


COPY = [("def f():\n", f"    {STATEMENTS[1]}\n")]


@given(documents.filter(bool), documents, st.integers(0, 4), st.integers(0, 3))
@example([COPY, [COPY[0], COPY[0]]], [], 0, 0)
@example([COPY], [COPY, [("def f():\n", "    x=1\n")]], 0, 0)
@example([COPY], [[("def f():\n", "    x=1\n")], [("def load(path, *, size):\n", "    x=1\n")]], 1, 0)
def test_no_two_sets_share_anything(forget: list[Any], free: list[Any], held_out: int, seed: int) -> None:
    try:
        sets, left = made(forget, free, held_out=held_out, seed=seed)
    except ProdError:
        return
    names = list(sets)
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            assert not {cut.source for cut in sets[one]} & {cut.source for cut in sets[other]}
            for a in sets[one]:
                for b in sets[other]:
                    assert not are_copies((a.prompt, a.completion), (b.prompt, b.completion))
    for cuts in sets.values():
        every = [plain(cut.prompt + cut.completion) for cut in cuts]
        assert len(every) == len(set(every))
    assert len(sets["holdout"]) == (held_out if free else 0)
    # Each row is in a set or left out, once.
    given_away = Counter(f"{cut.source}:{cut.first}" for cuts in sets.values() for cut in cuts)
    for what, places in left.places.items():
        if what != "left out, files to forget that --retain-from has too":
            given_away.update(places)
    known = {document(f"f{n}", rows).digest for n, rows in enumerate(forget)}
    wanted = [f"f{n}:{1 + 10 * k}" for n, rows in enumerate(forget) for k in range(len(rows))]
    wanted += [
        f"r{n}:{1 + 10 * k}"
        for n, rows in enumerate(free)
        for k in range(len(rows))
        if document("", rows).digest not in known
    ]
    assert given_away == Counter(wanted)


@given(documents.filter(bool), documents.filter(bool), st.integers(0, 2))
def test_what_is_left_out_as_a_copy_is_one(forget: list[Any], free: list[Any], held_out: int) -> None:
    try:
        sets, left = made(forget, free, held_out=held_out)
    except ProdError:
        return
    rows = {f"r{n}:{1 + 10 * k}": one for n, some in enumerate(free) for k, one in enumerate(some)}
    rows |= {f"f{n}:{1 + 10 * k}": one for n, some in enumerate(forget) for k, one in enumerate(some)}
    for what, name in (
        ("left out of --retain-from, near copies of rows to forget", "forget"),
        ("left out of rows to retain, near copies of rows held out", "holdout"),
    ):
        for place in left.places.get(what, []):
            assert any(are_copies(rows[place], (cut.prompt, cut.completion)) for cut in sets[name])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from prod_decode.storage.models import load_tokenizer

    return load_tokenizer(save_tiny_model(tmp_path_factory.mktemp("m")))


def distinct(count: int, seed: int = 0) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    return [(f"def f{n}():\n", "".join(f"    {draw.random()}\n" for _ in range(5))) for n in range(count)]


def test_a_run_takes_the_sets(tokenizer: Any) -> None:
    """A long prompt before an equal completion: less than half in common, and `run` refuses it."""
    same = "    return [item for item in sorted(values) if item.price > limit and item.size]\n"
    one, other = [(f"def {'abcde'[n] * 300}(x):\n", same) for n in range(2)]
    sets, _ = made([[one, *distinct(3)]], [[other, *distinct(3, 1)], distinct(3, 2)], held_out=3)
    assert "".join(other) not in {cut.prompt + cut.completion for cuts in sets.values() for cut in cuts}
    rows = {name: [encode(cut.record(), cut.place, tokenizer) for cut in cuts] for name, cuts in sets.items()}
    assert check_overlaps(rows) == []
    assert [len(cuts) for cuts in sets.values()] == [4, 3, 3]


def test_a_draw_depends_on_the_seed_alone() -> None:
    free = [distinct(3, n) for n in range(1, 9)]
    args = {"rows": 2, "retained": 4, "held_out": 7}
    found = [
        {n: [c.place for c in cuts] for n, cuts in made([distinct(9)], free, seed=s, **args)[0].items()}
        for s in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    assert {name: len(places) for name, places in found[0].items()} == {"forget": 2, "retain": 4, "holdout": 7}
    # Two whole files and the beginning of another.
    by_file = Counter(place.partition(":")[0] for place in found[0]["holdout"])
    assert sorted(by_file.values()) == [1, 3, 3]


@pytest.mark.parametrize(
    ("free", "held_out", "said"),
    [
        ([distinct(3, 1)], 2, "--holdout: expected rows to retain beside 2 held out, --retain-from has 3 in 1 files"),
        ([distinct(3, 1), distinct(2, 2)], 6, "--holdout: expected at most 5, the rows that --retain-from has, got 6"),
        ([distinct(2)], 0, "--retain-from: expected code to make rows of, got none; left out of --retain-from, near"),
    ],
)
def test_sets_that_cannot_be(free: Any, held_out: int, said: str) -> None:
    with pytest.raises(ProdError, match=re.escape(said)):
        made([distinct(3)], free, held_out=held_out)
    with pytest.raises(ProdError, match="expected code to make rows of, got none; left out, a completion shorter"):
        made([distinct(1)], [], shortest=10_000)


# --- files ------------------------------------------------------------------------------------------------------------


def read(folder: Path, *names: str, longest: int = 2000) -> SimpleNamespace:
    left = Left()
    paths = [str(folder / name) for name in names] or [str(folder)]
    found = read_documents(paths, longest, left, selection=Selection())
    told = {what: [place.replace(str(folder), "") for place in places] for what, places in left.places.items()}
    return SimpleNamespace(documents=found, told=told, names=[Path(one.name).name for one in found])


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("# SPDX-License-Identifier: MIT OR Apache-2.0\ndef f():\n    return 1\n")
    (tmp_path / "b.py").write_text("print 'two'\n\n\nprint 'three'\n")
    (tmp_path / "c.c").write_bytes(b"int x = '\xe9';\n")
    (tmp_path / "d.go").write_text("// Code generated by x. DO NOT EDIT.\nvar x = 1\n")
    (tmp_path / "e.rs").write_text(" \n")
    (tmp_path / "f.js").write_bytes(b"let a = 1\r\n\r\nlet b = 2\r")
    (tmp_path / "g.md").write_text("# text\n")
    (tmp_path / "h.py").write_bytes(b"x = '\0'\n")
    found = read(tmp_path)
    assert found.names == ["a.py", "b.py", "f.js"]
    assert [one.license for one in found.documents] == ["MIT OR Apache-2.0", None, None]
    assert [[piece.text for piece in one.pieces] for one in found.documents[1:]] == [
        ["print 'two'\n", "print 'three'\n"],
        ["let a = 1\n", "let b = 2\n"],
    ]
    assert found.told == {
        "cut into blocks, no Python that parses": [
            "/b.py:1: Missing parentheses in call to 'print'. Did you mean print(...)?"
        ],
        "left out, cannot be read as text": [
            "/c.c is not UTF-8 text (byte 0xe9 at 9): convert it first",
            "/h.py is a binary file, expected UTF-8 text",
        ],
        "left out, written by a program": ["/d.go"],
        "left out, no text in them": ["/e.rs"],
        "left out, no source files by their names": ["/g.md"],
    }


def test_what_is_named_is_read_whatever_it_is_or_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("# generated automatically\nx = 1\n")
    (tmp_path / "c.c").write_bytes(b"int x = '\xe9';\n")
    assert read(tmp_path, "notes", "notes").names == ["notes"]
    with pytest.raises(ProdError) as caught:
        read(tmp_path, "c.c", "none.py")
    assert [mistake.replace(str(tmp_path), "") for mistake in caught.value.mistakes] == [
        "/c.c is not UTF-8 text (byte 0xe9 at 9): convert it first",
        "cannot read /none.py: No such file or directory: check the name",
    ]
    with pytest.raises(ProdError, match=r"got list:insecure-python, which has phrases and no code around them"):
        read_documents(["list:insecure-python"], 100, Left(), selection=Selection())


def test_lines_tell_how_many_and_the_first() -> None:
    left = Left()
    for n in range(1200):
        left.add("cut", f"p{n}")
        left.add("left out, no source files by their names", f"a.{'md' if n % 3 else 'TXT'}")
        left.add("left out, no source files by their names", f"b{n}.md")
    left.add("once", "a")
    assert list(left.lines(2)) == [
        "cut: 1,200 (p0, p1 and 1,198 more)",
        "left out, no source files by their names: 1,202 (.md 1201, .txt 1)",
        "once: 1 (a)",
    ]
