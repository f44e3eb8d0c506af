"""Budgets from entries to outputs: compiled, saved, merged, bound, and kept in whatever is written."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode import Blocklist, Entry
from prod_decode.errors import ProdError
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.vocabulary import Vocabulary
from tests import oracle

SOURCE = Path(textwrap.__file__).read_text()[:8000]
NORMALIZATION = Normalization()


def quote(text: str = SOURCE, **options: Any) -> Entry:
    return Entry(text, **{"id": "textwrap", "policy": "quote", "budget": 240, **options})


def given_away(text: str, document: str, piece: int = 24) -> int:
    """How many symbols of a document a text has in pieces."""
    return len(oracle.given_away(*(oracle.normalize(one.encode(), "code", False) for one in (text, document)), piece))


CHARACTERS = Vocabulary.from_bytes([bytes([i]) for i in range(128)] + [b"</s>"], eos_ids=[128])


def recite(blocklist: Blocklist, text: str, prompt: str = "") -> str:
    """What is written by somebody who wants `text` and writes `~` wherever its next character is banned."""
    tracker = blocklist.bind(CHARACTERS).track()
    ids = np.frombuffer(prompt.encode(), np.uint8).astype(np.int64)
    tracker.read(np.arange(1), [ids], np.array([len(ids)]))
    written = []
    for wanted in text.encode():
        banned = set(tracker.banned()[1].tolist())
        written.append(ord("~") if wanted in banned else wanted)
        tracker.advance(np.array(written[-1:]))
    return bytes(written).decode()


def test_an_output_gives_away_no_more_than_its_budget_and_one_character() -> None:
    without = Blocklist.compile([quote(budget=None)])
    with_budget = Blocklist.compile([quote()])
    assert given_away(recite(without, SOURCE), SOURCE) > 5_000
    written = recite(with_budget, SOURCE)
    # One token is one character here, and adds one to a run that goes on, a piece where one begins.
    assert 240 <= given_away(written, SOURCE) <= 239 + 24
    assert len(written) == len(SOURCE)
    # What was given away may be repeated.
    assert recite(with_budget, 3 * SOURCE[:250]).count(SOURCE[60:120]) == 3


def test_tokens_with_a_whole_piece_inside_are_banned_as_soon_as_a_budget_is_reached() -> None:
    """Also where rows move, and where each of several documents is reached in its turn."""
    documents = {name: "".join(f"{name}_{i} = {i * 7919}\n" for i in range(40)) for name in ("first", "second")}
    banners = {name: text[200:240] for name, text in documents.items()}
    ids = {name: 129 + number for number, name in enumerate(banners)}
    tokens = [bytes([i]) for i in range(128)] + [b"</s>", *(banner.encode() for banner in banners.values())]
    blocklist = Blocklist.compile([quote(text, id=name, budget=48) for name, text in documents.items()])
    tracker = blocklist.bind(Vocabulary.from_bytes(tokens, eos_ids=[128])).track()
    tracker.read(np.arange(2), [np.zeros(0, np.int64)] * 2, np.zeros(2, np.int64))

    def banned(row: int) -> set[str]:
        rows, found = tracker.banned()
        return {name for name, token in ids.items() if token in found[rows == row]}

    reached: list[str] = []
    for name, text in documents.items():
        assert banned(0) == set(reached)
        for wanted in text[:60].encode():
            tracker.advance(np.array([wanted, ord("~")]))
        reached.append(name)
        assert (banned(0), banned(1)) == (set(reached), set())
        tracker.take(np.array([1, 0]))
        assert (banned(0), banned(1)) == (set(), set(reached))
        tracker.take(np.array([1, 0]))
        tracker.advance(np.array([ord("~")] * 2))
        assert banned(0) == set(reached)


def test_the_prompt_does_not_count() -> None:
    blocklist = Blocklist.compile([quote(max_quote=100_000)])
    assert recite(blocklist, SOURCE[2000:2200], prompt=SOURCE[:2000]) == recite(blocklist, SOURCE[2000:2200])


def test_free_code_does_not_count() -> None:
    free = SOURCE[3000:5000]
    blocklist = Blocklist.compile([quote(max_quote=100_000)], allow=[free])
    assert recite(blocklist, free) == free
    written = oracle.normalize(recite(blocklist, SOURCE).encode(), "code", False)
    normal, known = (oracle.normalize(text.encode(), "code", False) for text in (SOURCE, free))
    # What is in pieces of free code alone has no place among those that count.
    pieces = {window for window in oracle.byte_windows(normal, 24) if window not in set(oracle.byte_windows(known, 24))}
    places = [i for i, window in enumerate(oracle.byte_windows(normal, 24)) if window in pieces and window in written]
    assert 240 <= len({i + k for i in places for k in range(24)}) <= 263
    everything = Blocklist.compile([quote(max_quote=100_000, id="a"), quote("x" * 400, id="b")], allow=[SOURCE])
    assert everything.ineffective() == ["a"]


def test_of_a_short_document_a_quarter_may_be_given_away() -> None:
    text = "".join(f"{i:>5}+" for i in range(50))
    blocklist = Blocklist.compile([quote(text)])
    length = len(NORMALIZATION.symbols(text))
    assert [(found.entry.id, found.characters, found.length) for found in blocklist.budgets()] == [
        ("textwrap", length // 4, length)
    ]
    assert length // 4 <= given_away(recite(blocklist, text), text) <= length // 4 + 23
    # Shorter than max_quote, and guarded all the same; shorter than a piece, it is not.
    unguarded = quote("xyz" * 9, id="other", budget=None)
    for size, reported in ((60, ["other"]), (24, ["other"]), (23, ["textwrap", "other"])):
        solid = "".join(SOURCE.split())[:size]
        small = Blocklist.compile([quote(solid), unguarded], allow_empty=True)
        assert small.ineffective() == small.report.too_short == reported, size
    with pytest.raises(ProdError, match="expected an entry that prohibits something, got 1 that prohibit nothing"):
        Blocklist.compile([quote("short")])


def test_files_keep_budgets_and_old_files_load(tmp_path: Path) -> None:
    blocklist = Blocklist.compile([quote(license="PSF-2.0"), quote("y = 1\n" * 200, id="b", piece=12, budget=60)])
    blocklist.save(tmp_path / "a.prod")
    loaded = Blocklist.load(tmp_path / "a.prod")
    assert list(loaded.budgets()) == list(blocklist.budgets())
    assert [(found.entry.license, found.entry.piece, found.characters) for found in loaded.budgets()] == [
        (None, 12, 60),
        ("PSF-2.0", 24, 240),
    ]
    assert recite(loaded, SOURCE[:4000]) == recite(blocklist, SOURCE[:4000])
    # Without budgets and licences a file is what versions before these wrote, byte for byte.
    plain = Blocklist.compile([quote(budget=None)])
    plain.save(tmp_path / "plain.prod")
    raw = (tmp_path / "plain.prod").read_bytes()
    assert not any(word in raw for word in (b'"pieces"', b"order_", b"budget"))
    assert Blocklist.load(tmp_path / "plain.prod").pieces == ()


@pytest.mark.parametrize(
    ("name", "break_"),
    [
        ("order_24", lambda a: np.put(a, 3, 10**9)),
        ("order_24", lambda a: np.put(a, 3, -1)),
        ("order_24", lambda a: np.put(a, [3, 4], a[[4, 3]])),
        ("order_24", lambda a: np.put(a, 0, len(a) + 22)),
        ("owners_24", lambda a: np.put(a, 0, 7)),
        ("budgets_24", lambda a: np.put(a, 0, 0)),
        ("starts_24", lambda a: np.put(a, 1, 1)),
        ("owners_24", lambda a: np.put(a, 1, 0)),
        ("owners_24", lambda a: np.put(a, [0, 1], [1, 0])),
    ],
)
def test_a_forged_file_is_refused(tmp_path: Path, name: str, break_: Callable[[Any], None]) -> None:
    from prod_decode.storage.artifact import read_artifact, write_artifact

    Blocklist.compile([quote(), quote(SOURCE[1000:3000], id="b")]).save(tmp_path / "a.prod")
    meta, arrays = read_artifact(tmp_path / "a.prod")
    arrays = {key: array.copy() for key, array in arrays.items()}
    break_(arrays[name])
    write_artifact(tmp_path / "b.prod", meta, arrays)
    with pytest.raises(ProdError, match="contradict each other: compile the blocklist again"):
        Blocklist.load(tmp_path / "b.prod")
    write_artifact(tmp_path / "b.prod", meta, {key: array for key, array in arrays.items() if key != name})
    with pytest.raises(ProdError, match="no compiler writes"):
        Blocklist.load(tmp_path / "b.prod")


def test_merged_lists_keep_every_budget() -> None:
    other = SOURCE[::-1]
    first = Blocklist.compile([Entry("yaml.load("), quote(), quote(other, id="o", piece=12)], allow=[SOURCE[:400]])
    second = Blocklist.compile([quote(), Entry("eval(")])
    merged = Blocklist.merge([first, second])
    whole = Blocklist.compile([Entry("yaml.load("), quote(), quote(other, id="o", piece=12), Entry("eval(")])
    assert list(merged.budgets()) == list(whole.budgets())
    for ours, theirs in zip(merged.pieces, whole.pieces, strict=True):
        for name in ("text", "starts", "owners", "budgets", "order"):
            assert getattr(ours, name).tolist() == getattr(theirs, name).tolist(), name
    with pytest.raises(ProdError, match="two different entries have the id 'textwrap'"):
        Blocklist.merge([first, Blocklist.compile([quote(budget=241)])])


def test_two_texts_of_one_document_are_not_merged() -> None:
    first, second = (Blocklist.compile([quote(text)]) for text in (SOURCE[:2000], SOURCE[1000:3000]))
    # As a forged file has it: the record of one, the text of the other.
    second._records, second._record_starts = first._records, first._record_starts
    with pytest.raises(ProdError, match="cannot merge: one document has two texts"):
        Blocklist.merge([first, second])


def test_what_repeats_itself_is_found_once() -> None:
    row, many = "0, ", 3000
    blocklist = Blocklist.compile([quote(f"t = [{row * many}]", max_quote=100_000)])
    (found,) = blocklist.quoted(f"u = [{row * many}]")
    # `t` and `u` differ; all of the rest is one run.
    assert (found.characters, found.length, found.longest) == (2 * many + 3, 2 * many + 4, 2 * many + 3)
    (pieces,) = blocklist.pieces
    assert len(pieces.find(np.frombuffer(NORMALIZATION.symbols(row * many), np.uint8))) < 2 * many
    # One row gives all others away, and may be written for ever.
    assert recite(blocklist, row * 200) == row * 200


def test_what_a_text_quotes_is_named_with_places() -> None:
    lines = SOURCE.splitlines(keepends=True)
    parts = ["".join(lines[first:last]).strip() for first, last in ((20, 24), (22, 27), (70, 73))]
    blocklist = Blocklist.compile([quote(license="PSF-2.0", source="cpython"), quote("".join(lines[18:26]), id="part")])
    text = "".join(f"# mine: é\n{part}" for part in parts)
    found = blocklist.quoted(text)
    assert [one.entry.id for one in found] == ["textwrap", "part"]
    whole, part = found
    assert whole.characters == given_away(text, SOURCE)
    assert part.characters == given_away(text, "".join(lines[18:26]))
    assert (whole.entry.license, whole.entry.source) == ("PSF-2.0", "cpython")
    assert whole.share == whole.characters / len(NORMALIZATION.symbols(SOURCE))
    assert whole.longest == max(len(NORMALIZATION.symbols(part)) for part in parts)
    assert [text[start:end] for start, end in whole.spans] == parts
    assert blocklist.quoted("nothing of it") == []
    with pytest.raises(ProdError, match=r"expected documents with a budget, .* got none: compile .* with --budget N"):
        Blocklist.compile([quote(budget=None)]).quoted("x")


@given(st.text("ab(. \né", max_size=40), st.lists(st.text("ab(. \né", min_size=6, max_size=40), min_size=1, max_size=2))
def test_quoted_counts_as_brute_force(text: str, documents: list[str]) -> None:
    entries = [
        quote(document, id=str(number), piece=6, budget=3)
        for number, document in enumerate(documents)
        if document.strip()
    ]
    blocklist = Blocklist.compile(entries, allow_empty=True) if entries else None
    if blocklist is None or not blocklist.pieces:
        return
    expected = {
        str(number): count for number, document in enumerate(documents) if (count := given_away(text, document, 6))
    }
    found = blocklist.quoted(text)
    assert {one.entry.id: one.characters for one in found} == expected
    for one in found:
        symbols = NORMALIZATION.symbols(documents[int(one.entry.id)])
        runs = [NORMALIZATION.symbols(text[start:end]) for start, end in one.spans]
        assert all(len(run) >= 6 for run in runs)
        known = NORMALIZATION.symbols(text)
        sizes = range(6, len(symbols) + 1)
        common = [size for size in sizes if any(window in known for window in oracle.byte_windows(symbols, size))]
        assert one.longest == max(common)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "expected budget to be a whole number of at least 1 characters, got 0"),
        ({"budget": True}, "expected budget to be a whole number of at least 1 characters, got True"),
        ({"budget": "240"}, "expected budget to be a whole number of at least 1 characters, got '240'"),
        (
            {"piece": 257},
            "expected pieces of at most 119 characters, .* max_quote 120 .*, got piece 257: lower",
        ),
        ({"piece": 5}, "expected piece to be a whole number of at least 6 characters, got 5"),
        ({"budget": None, "piece": 24}, "piece belongs to a budget, and there is none: give one, or drop piece"),
        ({"piece": 120}, "expected pieces of at most 119 characters, .* got piece 120: lower piece"),
        ({"max_quote": 20}, "expected pieces of at most 19 characters, .* got piece 24: lower piece"),
        (
            {"policy": "phrase"},
            "budget belongs to policy 'quote', this is a 'phrase': drop budget, or ",
        ),
        ({"license": 3}, "expected license to be a string, got 3"),
    ],
)
def test_mistakes_in_entries(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProdError, match=message):
        quote(**options)
