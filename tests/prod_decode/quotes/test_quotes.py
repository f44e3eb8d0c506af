"""Pieces of documents, and what outputs give away of them, against sets of brute force."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from prod_decode.quotes.given import NOTHING
from prod_decode.quotes.pieces import Document, Pieces, range_of
from prod_decode.quotes.tracker import BoundPieces
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.vocabulary import Vocabulary
from tests import oracle
from tests.strategies import byte_strings, normalizations

# Few symbols, so that everything is a piece of everything.
SYMBOLS = st.lists(st.sampled_from([b"a", b"b", b"(", b" ", b"_"]), max_size=30).map(b"".join)


def given_away(text: bytes, document: bytes, counts: Sequence[bool], piece: int) -> set[int]:
    """The places of a document's symbols that a text gives away: the definition."""
    known = set(oracle.byte_windows(text, piece))
    places = [i for i, window in enumerate(oracle.byte_windows(document, piece)) if counts[i] and window in known]
    return {i + k for i in places for k in range(piece)}


@st.composite
def documents(draw: st.DrawFn, piece: int) -> list[Document]:
    made = []
    for owner in range(draw(st.integers(1, 3))):
        symbols = draw(SYMBOLS)
        places = max(0, len(symbols) - piece + 1)
        counts = draw(st.lists(st.sampled_from([True, True, True, False]), min_size=places, max_size=places))
        made.append(
            Document(owner, draw(st.integers(1, 12)), np.frombuffer(symbols, np.uint8), np.array(counts, np.bool_))
        )
    return made


@given(st.data(), st.integers(1, 9))
def test_every_piece_of_a_text_is_found_where_it_stands(data: st.DataObject, piece: int) -> None:
    made = data.draw(documents(piece))
    pieces = Pieces.of(piece, made)
    text = data.draw(SYMBOLS) + made[0].symbols.tobytes()[:20]
    expected = {
        (at, int(pieces.starts[number]) + place)
        for at, window in enumerate(oracle.byte_windows(text, piece))
        for number, document in enumerate(made)
        for place, other in enumerate(oracle.byte_windows(document.symbols.tobytes(), piece))
        if document.counts[place] and window == other
    }
    found = pieces.find(np.frombuffer(text, np.uint8))
    assert found[:, 0].tolist() == sorted(set(found[:, 0].tolist()))
    pairs = [
        (at, place) for at, low, high in found.tolist() for place in pieces.places(np.array([[low, high]])).tolist()
    ]
    assert sorted(pairs) == sorted(expected)
    assert pieces.validate(len(made))
    again = [pieces.document(number) for number in range(len(pieces))]
    for before, after in zip(made, again, strict=True):
        assert before[:2] == after[:2]
        assert before.symbols.tobytes() == after.symbols.tobytes()
        assert before.counts.tolist() == after.counts.tolist()


@given(st.data(), st.integers(1, 9))
def test_what_is_given_away_is_counted_once_in_any_order(data: st.DataObject, piece: int) -> None:
    made = data.draw(documents(piece))
    pieces = Pieces.of(piece, made)
    number = len(pieces.order)
    picked = data.draw(st.lists(st.integers(0, max(0, number - 1)), max_size=12)) if number else []
    expected: set[int] = set()
    now = NOTHING
    for at in picked:
        window = pieces.text[pieces.order[at] : pieces.order[at] + piece]
        low, high = range_of(*pieces.search[:2], window, 0, piece)
        now = now.more(pieces, np.array([[low, high]]))
        expected |= {int(place) + k for place in pieces.order[low:high] for k in range(piece)}
    runs = [range(start, end) for start, end in zip(now.starts.tolist(), now.ends.tolist(), strict=True)]
    assert sorted(expected) == [place for run in runs for place in run]
    assert all(before.stop < after.start for before, after in pairwise(runs))
    owned = [
        sum(int(pieces.starts[d]) <= place < int(pieces.starts[d + 1]) for place in expected) for d in range(len(made))
    ]
    assert dict(zip(now.documents.tolist(), now.counts.tolist(), strict=True)) == {
        d: count for d, count in enumerate(owned) if count
    }
    assert now.closed.tolist() == [d for d, count in enumerate(owned) if count >= made[d].budget]


class Outputs(RuleBasedStateMachine):
    """A batch as beams and schedulers treat it; each row is followed by brute force over its output alone."""

    @initialize(data=st.data(), normalization=normalizations, piece=st.integers(2, 6), exempts=st.booleans())
    def bind(self, data: st.DataObject, normalization: Normalization, piece: int, exempts: bool) -> None:
        self.normalization, self.piece, self.exempts = normalization, piece, exempts
        texts = [normalized(self, text) for text in data.draw(st.lists(SYMBOLS, min_size=1, max_size=3))]
        self.documents = []
        for owner, text in enumerate(texts):
            count = max(0, len(text) - piece + 1)
            counts = data.draw(st.lists(st.sampled_from([True, True, True, False]), min_size=count, max_size=count))
            budget = data.draw(st.integers(1, 12))
            self.documents.append(Document(owner, budget, np.frombuffer(text, np.uint8), np.array(counts, np.bool_)))
        cuts = [
            text[a : a + n]
            for text in texts
            for a, n in data.draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), max_size=8))
        ]
        tokens: list[bytes | None] = [
            b"a",
            b"b",
            b"(",
            b" ",
            b"_",
            b"\n",
            b"<s>",
            None,
            *cuts,
            *data.draw(st.lists(byte_strings(), max_size=8)),
        ]
        self.tokens = [token or b"" for token in tokens]
        vocabulary = Vocabulary.from_bytes(tokens, special=[6], _proved=True)
        self.usable = [i for i in range(len(tokens)) if i != 7]
        bound = BoundPieces(Pieces.of(piece, self.documents), vocabulary.table(normalization), vocabulary.kinds)
        self.tracker = bound.track(exempt_prompts=exempts)
        self.rows: list[tuple[list[int], int]] = []

    def given_by(self, row: int, extra: Sequence[int] = (), left_out: int = 0) -> list[set[int]]:
        tokens, prompt = self.rows[row]
        output = self.symbols([*tokens[prompt : max(prompt, len(tokens) - left_out)], *extra])
        found = [given_away(output, d.symbols.tobytes(), d.counts.tolist(), self.piece) for d in self.documents]
        if self.exempts:
            free = self.exempt(row)
            return [some - other for some, other in zip(found, free, strict=True)]
        return found

    def exempt(self, row: int) -> list[set[int]]:
        tokens, prompt = self.rows[row]
        text = self.symbols(tokens[:prompt])
        return [given_away(text, d.symbols.tobytes(), d.counts.tolist(), self.piece) for d in self.documents]

    def symbols(self, tokens: Sequence[int]) -> bytes:
        return normalized(self, b"".join(self.tokens[token] for token in tokens if token != 6))

    @rule(row=st.integers(0, 3), numbers=st.lists(st.integers(0, 50), max_size=12), prompt=st.integers(0, 8))
    def read(self, row: int, numbers: list[int], prompt: int) -> None:
        row = min(row, len(self.rows))
        tokens = [self.usable[number % len(self.usable)] for number in numbers]
        prompt = min(prompt, len(tokens))
        self.rows[row : row + 1] = [(tokens, prompt)]
        self.tracker.read(np.array([row]), [np.array(tokens, np.int64)], np.array([prompt]))

    @rule(numbers=st.lists(st.integers(0, 50), min_size=1, max_size=4))
    def advance(self, numbers: list[int]) -> None:
        new = [self.usable[numbers[row % len(numbers)] % len(self.usable)] for row in range(len(self.rows))]
        self.rows = [([*tokens, token], prompt) for (tokens, prompt), token in zip(self.rows, new, strict=True)]
        self.tracker.advance(np.array(new, np.int64))

    @rule(sources=st.lists(st.integers(-1, 3), max_size=4))
    def take(self, sources: list[int]) -> None:
        sources = [source if source < len(self.rows) else -1 for source in sources]
        self.rows = [self.rows[source] if source >= 0 else ([], 0) for source in sources]
        self.tracker.take(np.array(sources, np.int64))

    @invariant()
    def counts_and_bans_as_brute_force(self) -> None:
        if not hasattr(self, "rows"):
            return
        assert len(self.tracker) == len(self.rows)
        rows, tokens = self.tracker.banned()
        assert rows.tolist() == sorted(rows.tolist())
        for row in range(len(self.rows)):
            known = self.given_by(row)
            now = self.tracker.given(row)
            counted = dict(zip(now.documents.tolist(), now.counts.tolist(), strict=True))
            assert counted == {d: len(some) for d, some in enumerate(known) if some}
            reached = [d for d, some in enumerate(known) if len(some) >= self.documents[d].budget]
            expected = {}
            for token in self.usable:
                more = [d for d in reached if self.given_by(row, [token])[d] - known[d]]
                if more and token != 6:
                    expected[token] = more
            banned: list[int] = tokens[rows == row].tolist()
            assert sorted(banned) == sorted(expected)
            for token, owners in expected.items():
                assert self.tracker.blame(row, token) == list(map(str, owners))

    @invariant()
    def what_the_newest_token_gave_away_as_brute_force(self) -> None:
        expected = []
        for row in range(len(getattr(self, "rows", []))):
            for d, (now, before) in enumerate(zip(self.given_by(row), self.given_by(row, left_out=1), strict=True)):
                if len(now) == len(before):
                    continue
                document = self.documents[d]
                begin, end = longest_run(now - before)
                text = document.symbols.tobytes()[begin:end].decode("utf-8", "replace")
                about = (str(d), len(now), document.budget, (begin, end), text)
                expected.append((row, "quoted", *about))
                if len(before) < document.budget <= len(now):
                    expected.append((row, "budget reached", *about))
        if hasattr(self, "rows"):
            assert [tuple(one) for one in self.tracker.passed()] == expected


@given(st.data(), st.integers(2, 5))
def test_what_each_token_gives_away_is_told_as_brute_force(data: st.DataObject, piece: int) -> None:
    made = data.draw(documents(piece))
    whole = [document.symbols.tobytes() for document in made]
    cuts = [text[a : a + size] for text in whole for size in (1, 2, piece + 1) for a in range(0, len(text), size)]
    tokens = [b"a", b"b", *(cut for cut in cuts if cut)]
    vocabulary = Vocabulary.from_bytes(tokens, _proved=True)
    normalization = Normalization("none")
    bound = BoundPieces(Pieces.of(piece, made), vocabulary.table(normalization), vocabulary.kinds)
    exempts = data.draw(st.booleans())
    tracker, other = bound.track(exempt_prompts=exempts), bound.track(exempt_prompts=exempts)
    # Runs of a document's tokens, one after the other, so that outputs go on where it does.
    begins = data.draw(st.lists(st.tuples(st.integers(0, len(tokens) - 1), st.integers(1, 8)), min_size=1, max_size=3))
    written = [token for begin, size in begins for token in range(begin, min(begin + size, len(tokens)))]
    prompt = data.draw(st.integers(0, 2))

    def told(output: bytes, before: bytes, free: bytes) -> list[tuple[object, ...]]:
        expected: list[tuple[object, ...]] = []
        for d, document in enumerate(made):
            counts, text = document.counts.tolist(), document.symbols.tobytes()
            exempt = given_away(free, text, counts, piece) if exempts else set()
            now, known = (given_away(one, text, counts, piece) - exempt for one in (output, before))
            if now == known:
                continue
            begin, end = longest_run(now - known)
            about = (str(d), len(now), document.budget, (begin, end), text[begin:end].decode())
            expected.append((0, "quoted", *about))
            if len(known) < document.budget <= len(now):
                expected.append((0, "budget reached", *about))
        return expected

    tracker.read(np.arange(1), [np.array(written[:prompt], np.int64)], np.array([min(prompt, len(written))]))
    for end in range(prompt + 1, len(written) + 1):
        tracker.advance(np.array(written[end - 1 : end]))
        free, output, before = (
            b"".join(tokens[i] for i in written[a:b]) for a, b in ((0, prompt), (prompt, end), (prompt, end - 1))
        )
        expected = told(output, before, free)
        assert [tuple(one) for one in tracker.passed()] == expected
        # The same from the whole text, in another row; moved, and gone.
        other.read(np.array([2]), [np.array(written[:end])], np.array([prompt]))
        other.take(np.array([1, 2, 0]))
        assert [(0, *one[1:]) for one in other.passed() if one.row == 1] == expected
        other.take(np.array([1, -1, -1]))
        assert [tuple(one) for one in other.passed()] == expected
    other.read(np.array([0]), [np.array(written)], np.array([len(written)]))
    assert other.passed() == []


def longest_run(places: set[int]) -> tuple[int, int]:
    """The first of the longest runs of neighbours."""
    runs = []
    for begin in sorted(places):
        if begin - 1 not in places:
            end = begin
            while end in places:
                end += 1
            runs.append((begin, end))
    return max(runs, key=lambda run: (run[1] - run[0], -run[0]))


def normalized(machine: Any, text: bytes) -> bytes:
    return oracle.normalize(text, machine.normalization.mode, machine.normalization.ignore_case)


TestOutputs = Outputs.TestCase
TestOutputs.settings = settings(stateful_step_count=10)
