"""What a prompt quotes may be repeated, and nothing else: beside a search for every pattern in every text."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prod_decode import Blocklist, Entry
from prod_decode.match.matcher import Matcher
from prod_decode.tokens.vocabulary import Vocabulary
from tests import oracle

SOURCE = Path(textwrap.__file__).read_text()[:6000]
CHARACTERS = Vocabulary.from_bytes([bytes([i]) for i in range(128)] + [b"</s>"], eos_ids=[128])

TEXTS = st.text("ab(", min_size=6, max_size=24)


@settings(max_examples=40)
@given(
    documents=st.lists(TEXTS, min_size=1, max_size=2, unique=True),
    phrases=st.lists(st.text("ab(", min_size=3, max_size=4), max_size=2, unique=True),
    tokens=st.lists(st.text("ab(", min_size=1, max_size=6), max_size=6),
    data=st.data(),
)
def test_bans_are_those_of_a_search(
    documents: list[str], phrases: list[str], tokens: list[str], data: st.DataObject
) -> None:
    entries = [Entry(text, id=f"d{i}", policy="quote", max_quote=6) for i, text in enumerate(documents)]
    entries += [Entry(text, id=f"p{i}", boundary="none") for i, text in enumerate(phrases)]
    blocklist = Blocklist.compile(entries, normalize="none")
    # Cut of documents, so that prompts have their anchors and tokens complete several.
    spelled = [*"ab(", *tokens, *(text[i : i + 5] for text in documents for i in range(0, len(text), 4))]
    vocabulary = Vocabulary.from_bytes([token.encode() for token in spelled])
    tracker = blocklist.bind(vocabulary).exempting_prompts().track()
    pick = st.lists(st.integers(0, len(spelled) - 1), max_size=10)
    rows = data.draw(st.lists(st.tuples(pick, pick), min_size=1, max_size=2))
    texts = [np.array(prompt + output, np.int64) for prompt, output in rows]
    ends = np.array([len(prompt) for prompt, _ in rows])
    tracker.read(np.arange(len(rows)), texts, ends)
    extra = data.draw(st.integers(0, len(spelled) - 1))
    tracker.advance(np.full(len(rows), extra))
    sources = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=3))
    tracker.take(np.array(sources))
    # Some of them read again from their texts: what is known of them is the same.
    again = data.draw(st.lists(st.integers(0, len(sources) - 1), max_size=2, unique=True))
    whole = [np.append(texts[sources[row]], extra) for row in again]
    tracker.read(np.array(again, np.int64), whole, ends[[sources[row] for row in again]])
    found, banned = tracker.banned()
    patterns = {number: pattern.decode() for number, pattern in enumerate(spellings(blocklist))}
    passed = {(one.row, one.kind, one.entry_id) for one in tracker.passed()}
    assert len(passed) == len(tracker.passed())
    let_through = set()
    for row, source in enumerate(sources):
        prompt, output = ("".join(spelled[i] for i in part) for part in rows[source])
        text = prompt + output + spelled[extra]
        exempt = {n for n, p in patterns.items() if p in prompt and blocklist.is_quote(n)}
        newest = {n for n, p in patterns.items() if p in text[max(0, len(prompt + output) - len(p) + 1) :]}
        if newest <= exempt:
            let_through |= {(row, "exempted", name) for n in newest for name in blocklist.entries_of(n)}
        expected = {}
        for token, word in enumerate(spelled):
            ended = {n for n, p in patterns.items() if p in (text + word)[max(0, len(text) - len(p) + 1) :]}
            if ended - exempt:
                expected[token] = {name for n in ended for name in blocklist.entries_of(n)}
        assert set(banned[found == row].tolist()) == expected.keys()
        for token in range(len(spelled)):
            assert set(tracker.blame(row, token)) == expected.get(token, set())
    assert passed == let_through


def spellings(blocklist: Blocklist) -> list[bytes]:
    """Every pattern, by its index."""
    spelled = blocklist.automaton.spell()
    return [spelled.data[a:b].tobytes() for a, b in zip(spelled.offsets, spelled.offsets[1:], strict=False)]


def write(matcher: Matcher, prompt: str, wanted: str) -> str:
    """What is written by somebody who wants a text and writes `~` wherever its next character is banned."""
    tracker = matcher.track()
    ids = np.frombuffer(prompt.encode(), np.uint8).astype(np.int64)
    tracker.read(np.arange(1), [ids], np.array([len(ids)]))
    written = []
    for character in wanted.encode():
        written.append(ord("~") if character in tracker.banned()[1].tolist() else character)
        tracker.advance(np.array(written[-1:]))
    return bytes(written).decode()


def with_hints(text: str) -> str:
    """An edit of code: return types."""
    return text.replace("):\n", ") -> object:\n")


def test_type_hints_may_be_added_to_a_document_in_the_prompt() -> None:
    half = SOURCE[: len(SOURCE) // 2]
    entries = [
        Entry(SOURCE, id="textwrap", policy="quote", max_quote=120, budget=240),
        Entry("re.compile(", id="phrase"),
    ]
    guarded = Blocklist.compile(entries).bind(CHARACTERS)
    exempting = guarded.exempting_prompts()
    assert (guarded.exempts_prompts, exempting.exempts_prompts) == (False, True)
    # The phrase of the list is no quotation, and stays prohibited.
    allowed = with_hints(half).replace("re.compile(", "re.compile~")
    task = f"Add type hints:\n{half}\n"
    assert write(exempting, task, with_hints(half)) == allowed
    assert write(guarded, task, with_hints(half)).count("~") > 5
    # The other half is guarded as without: its first budget, then nothing.
    other = SOURCE[len(SOURCE) // 2 :]
    rest = write(exempting, f"Go on:\n{half}\n", other)
    assert "~" in rest
    assert len(given_away(rest, SOURCE) - given_away(half, SOURCE)) <= 239 + 24
    assert not given_away(rest, other, 120) - given_away(half, other, 120)
    # And where the prompt quotes nothing, all of it.
    assert write(exempting, "Go on:\n", other) == write(guarded, "Go on:\n", other)


def test_what_was_let_through_is_told_token_by_token() -> None:
    half = SOURCE[: len(SOURCE) // 2]
    # Spaces as they are: each is written with its own token.
    blocklist = Blocklist.compile(
        [Entry(half, id="textwrap", policy="quote", max_quote=120), Entry("re.compile(", id="phrase")], normalize="none"
    )
    matcher = blocklist.bind(CHARACTERS).exempting_prompts()
    task = f"Add type hints:\n{half}\n"
    written = with_hints(half).replace("re.compile(", "re.compile~")
    ends = {found.end - 1 for found in blocklist.scan(written)}
    assert len(ends) > 20
    tracker, ids = matcher.track(), np.frombuffer(f"{task}{written}".encode(), np.uint8).astype(np.int64)
    tracker.read(np.arange(1), [ids[: len(task)]], np.array([len(task)]))
    assert tracker.passed() == []
    for at in range(len(written)):
        tracker.advance(ids[len(task) + at : len(task) + at + 1])
        told = [(0, "exempted", "textwrap")] if at in ends else []
        assert [one[:3] for one in tracker.passed()] == told
        if told:
            again = matcher.track()
            again.read(np.array([1]), [ids[: len(task) + at + 1]], np.array([len(task)]))
            again.take(np.array([0, -1, 1]))
            assert again.passed() == [(2, "exempted", "textwrap", None, None, None, None)]
            # Moved, doubled, gone.
            tracker.take(np.array([-1, 0, 0]))
            assert [one.row for one in tracker.passed()] == [1, 2]
            tracker.take(np.array([1]))
            tracker.read(np.array([1]), [ids[: len(task)]], np.array([len(task)]))
            assert [one.row for one in tracker.passed()] == [0]
            # Another text in its place, of which nothing is written yet.
            tracker.read(np.array([1]), [ids[: len(task) + at + 1]], np.array([len(task)]))
            tracker.read(np.array([0]), [ids[: len(task)]], np.array([len(task)]))
            assert [one.row for one in tracker.passed()] == [1]
            tracker.take(np.array([1]))


def given_away(text: str, document: str, piece: int = 24) -> set[int]:
    return oracle.given_away(*(oracle.normalize(one.encode(), "code", False) for one in (text, document)), piece)


@pytest.mark.parametrize("between", [129, -1, -2, -130, 9999])
def test_what_an_unknown_token_parts_is_not_joined(between: int) -> None:
    document = SOURCE[2000:]
    # Its last character completes an anchor, and the last token is the end of it.
    blocklist = Blocklist.compile([Entry(document, id="d", policy="quote", max_quote=40)])
    run = document[: next(blocklist.scan(document)).end]
    tokens = [bytes([i]) for i in range(128)] + [b"</s>", None, run[-8:].encode()]
    matcher = blocklist.bind(Vocabulary.from_bytes(tokens, eos_ids=[128])).exempting_prompts()
    letters = list(run.encode())
    # So far back that the reading of the text itself does not meet it.
    padding = list(b"\n#" * 300)
    for prompt in ([*letters[:-5], between, *letters[-5:]], [*letters[:-8], between]):
        tracker = matcher.track()
        tracker.read(np.arange(1), [np.array([*prompt, *padding])], np.array([len(prompt) + len(padding)]))
        for character in letters[:-1]:
            tracker.advance(np.array([character]))
        assert letters[-1] in tracker.banned()[1].tolist()
        assert tracker.blame(0, letters[-1]) == ["d"]
