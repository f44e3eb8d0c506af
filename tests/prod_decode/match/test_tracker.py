"""The tracker against brute force over every reading of a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from prod_decode import Blocklist, Entry
from prod_decode.errors import ProdError
from prod_decode.match.automaton import Automaton, Pattern
from prod_decode.match.matcher import Matcher
from prod_decode.match.trackers import Tracker
from prod_decode.tokens.vocabulary import Vocabulary
from tests.oracle import NaiveMatcher
from tests.strategies import normalizations, pattern_lists, vocabularies

TOKENS = [b"eval", b"(", b"literal_", b"ast", b".", b"node", b"<cut>", b"ok", b"go", b" ", b"</s>", b"my_", b"END"]
SPECIAL = {6, 10, 12}


def ids(*tokens: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([TOKENS.index(token.encode()) for token in tokens], np.int64)


def tracker_of(*phrases: str) -> Tracker:
    vocabulary = Vocabulary.from_bytes(TOKENS, special=SPECIAL, eos_ids=[10])
    return Blocklist.compile([Entry(phrase) for phrase in phrases]).bind(vocabulary).track()


def banned(tracker: Tracker, row: int = 0) -> set[str]:
    rows, tokens = tracker.banned()
    assert len(set(zip(rows.tolist(), tokens.tolist(), strict=True))) == len(rows)
    return {TOKENS[token].decode() for token in tokens[rows == row].tolist()}


def read(tracker: Tracker, text: list[str], prompt: int) -> None:
    tracker.read(np.arange(1), [ids(*text)], np.array([prompt]))


@pytest.mark.parametrize(
    ("phrases", "prompt", "output", "expected"),
    [
        # What is returned alone begins a word.
        (["eval("], ["literal_"], ["eval"], {"("}),
        (["eval("], [], ["literal_", "eval"], set()),
        # Also while a longer pattern is under way, behind a prompt and behind a special token.
        (["ast.literal_eval(node", "eval("], ["ast", ".", "literal_"], ["eval"], {"("}),
        (["ast.literal_eval(node", "eval("], ["ast", ".", "literal_"], ["eval", "("], {"node"}),
        (["ast.literal_eval(node", "eval("], ["ast", ".", "literal_", "<cut>"], ["eval"], {"("}),
        (["ast.literal_eval(node", "eval("], ["ast", ".", "literal_", "<cut>"], ["eval", "("], {"node"}),
        # The text of special tokens, whole, in the middle, and at either end of a phrase.
        (["ok<cut>go"], [], ["ok", "<cut>"], {"go"}),
        (["ok<cut>go"], ["ok", "<cut>"], [], {"go"}),
        (["<cut>"], ["ok"], [], {"<cut>"}),
        (["ok<cut>"], [], ["ok"], {"<cut>"}),
        (["okgo"], [], ["ok", "<cut>"], {"go"}),
        # A special token that shows a word, left out and shown.
        (["ENDgo"], [], ["END"], {"go"}),
        (["go(", "okgo"], [], ["ok", "END", "go"], {"("}),
    ],
)
def test_every_reading_is_guarded(phrases: list[str], prompt: list[str], output: list[str], expected: set[str]) -> None:
    whole = tracker_of(*phrases)
    read(whole, [*prompt, *output], len(prompt))
    step_by_step = tracker_of(*phrases)
    read(step_by_step, prompt, len(prompt))
    for token in output:
        step_by_step.advance(ids(token))
    assert banned(whole) == banned(step_by_step) == expected
    for token in expected:
        assert set(whole.blame(0, int(ids(token)[0]))) <= set(phrases) != set()


def test_a_row_that_cannot_be_read_is_banned_whole_until_it_is_read_again() -> None:
    tracker = tracker_of("eval(")
    tracker.read(np.arange(2), [ids("my_"), ids("eval")], np.zeros(2, np.int64))
    tracker.advance(np.array([99, ids(".")[0]]))
    assert tracker.closed.tolist() == [True, False]
    assert banned(tracker, 0) == {token.decode() for token in TOKENS}
    assert banned(tracker, 1) == set()
    tracker.advance(ids("eval", "eval"))
    assert tracker.closed.tolist() == [True, False]
    assert (banned(tracker, 1), tracker.blame(0, 1)) == ({"("}, [])
    tracker.read(np.array([0]), [ids("ast", ".")], np.array([1]))
    assert (tracker.closed.any(), banned(tracker, 0), banned(tracker, 1)) == (False, set(), {"("})


def test_the_eos_token_may_not_be_prohibited() -> None:
    with pytest.raises(ProdError, match="expected an EOS token that no entry prohibits, got '</s>', which entry '/s>'"):
        tracker_of("/s>")


def test_a_stop_string_may_end_a_word() -> None:
    vocabulary = Vocabulary.from_bytes([b"eval", b" evaluate", b"uate", b" evalx", b"</s>"], eos_ids=[4])
    matcher = Blocklist.compile([Entry("eval", boundary="both")]).bind(vocabulary)
    assert matcher.banned(matcher.start()).tolist() == [0]
    assert matcher.cut_by(["uate", "x", "\n"]).banned(matcher.start()).tolist() == [0, 1, 3]
    assert matcher.cut_by(["uate", ""]).banned(matcher.start()).tolist() == [0, 1]
    # Where no word goes on, a stop string changes nothing.
    assert matcher.cut_by(["\n", " u", "é"]) is matcher
    assert matcher.banned(matcher.start()).tolist() == [0]
    folding = Blocklist.compile([Entry("eval", boundary="both")], ignore_case=True).bind(vocabulary)
    assert folding.cut_by(["U"]).banned(folding.start()).tolist() == [0, 1]


@st.composite
def bound(draw: st.DrawFn) -> tuple[Matcher, NaiveMatcher]:
    normalization = draw(normalizations)
    patterns: list[Pattern] = draw(pattern_lists(normalization))
    tokens, special = draw(vocabularies(patterns))
    # Patterns that go on, or begin, in the text of a special token.
    for pattern in draw(st.lists(st.sampled_from(patterns), max_size=2)) if patterns else ():
        begin, end = sorted(draw(st.tuples(*[st.integers(0, len(pattern.symbols))] * 2)))
        special.add(len(tokens) + 1)
        tokens += [pattern.symbols[:begin], pattern.symbols[begin:end], pattern.symbols[end:]]
    vocabulary = Vocabulary.from_bytes(tokens, special=special)
    naive = NaiveMatcher(tokens, special, patterns, normalization.mode, normalization.ignore_case)
    return Matcher(Automaton.build(patterns), normalization, vocabulary), naive


class Texts(RuleBasedStateMachine):
    """A batch as beams and schedulers treat it, beside brute force over every reading of every row."""

    @initialize(pair=bound())
    def bind(self, pair: tuple[Matcher, NaiveMatcher]) -> None:
        matcher, self.naive = pair
        self.usable = self.naive.usable() + 2 * sorted(self.naive.special)
        self.tracker = matcher.track()
        self.rows: list[tuple[list[int], int | None]] = []
        self.expected: dict[Any, tuple[set[int], set[int]]] = {}

    def drawn(self, numbers: list[int]) -> list[int]:
        return [self.usable[number % len(self.usable)] for number in numbers]

    @rule(row=st.integers(0, 3), numbers=st.lists(st.integers(0, 50), max_size=7), prompt=st.integers(0, 7))
    def read(self, row: int, numbers: list[int], prompt: int) -> None:
        row, text = min(row, len(self.rows)), self.drawn(numbers)
        prompt = min(prompt, len(text))
        self.rows[row : row + 1] = [(text, prompt)]
        self.tracker.read(np.array([row]), [np.array(text, np.int64)], np.array([prompt]))

    @rule(numbers=st.lists(st.integers(0, 50), min_size=4, max_size=4))
    def advance(self, numbers: list[int]) -> None:
        tokens = self.drawn(numbers[: len(self.rows)])
        self.rows = [([*text, token], prompt) for (text, prompt), token in zip(self.rows, tokens, strict=True)]
        self.tracker.advance(np.array(tokens, np.int64))

    @rule(sources=st.lists(st.integers(-1, 3), max_size=4))
    def take(self, sources: list[int]) -> None:
        sources = [source for source in sources if source < len(self.rows)]
        self.rows = [self.rows[source] if source >= 0 else ([], None) for source in sources]
        self.tracker.take(np.array(sources, np.int64))

    @invariant()
    def bans_are_those_of_all_readings(self) -> None:
        rows, tokens = self.tracker.banned()
        assert (len(self.tracker), sorted(rows.tolist())) == (len(self.rows), rows.tolist())
        for row, (text, prompt) in enumerate(self.rows):
            key = tuple(text), prompt
            if key not in self.expected:
                at_least, at_most = (self.naive.banned_in_any(text, prompt, mixed=mixed) for mixed in (False, True))
                self.expected[key] = at_least, at_most
            found = set(tokens[rows == row].tolist())
            assert self.expected[key][0] <= found <= self.expected[key][1]


TestTexts = Texts.TestCase
TestTexts.pytestmark = [pytest.mark.slow]  # type: ignore[attr-defined]
TestTexts.settings = settings(max_examples=60, stateful_step_count=12)


@given(bound(), st.lists(st.integers(0, 50), max_size=7), st.integers(0, 7))
def test_following_and_reading_ban_the_same(
    pair: tuple[Matcher, NaiveMatcher], numbers: list[int], prompt: int
) -> None:
    matcher, naive = pair
    text = np.array([naive.usable()[number % len(naive.usable())] for number in numbers], np.int64)
    prompt = min(prompt, len(text))
    whole, followed = matcher.track(), matcher.track()
    whole.read(np.arange(1), [text], np.array([prompt]))
    followed.read(np.arange(1), [text[:prompt]], np.array([prompt]))
    for token in text[prompt:]:
        followed.advance(np.array([token]))
    assert [pairs.tolist() for pairs in whole.banned()] == [pairs.tolist() for pairs in followed.banned()]
