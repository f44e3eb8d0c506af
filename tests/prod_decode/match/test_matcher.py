"""The matcher against brute force."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prod_decode.errors import ProdError
from prod_decode.match import matcher as matcher_module
from prod_decode.match.automaton import ROOT, Automaton, Pattern
from prod_decode.match.matcher import Matcher
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.vocabulary import Vocabulary
from tests import oracle
from tests.oracle import NaiveMatcher
from tests.strategies import normalizations, pattern_lists, vocabularies

Pair = tuple[Matcher, NaiveMatcher, list[int]]


def pair_of(
    tokens: list[bytes | None], special: set[int], patterns: list[Pattern], normalization: Normalization
) -> Pair:
    matcher = Matcher(Automaton.build(patterns), normalization, Vocabulary.from_bytes(tokens, special=special))
    return matcher, NaiveMatcher(tokens, special, patterns, normalization.mode, normalization.ignore_case), []


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    normalization = draw(normalizations)
    patterns = draw(pattern_lists(normalization))
    tokens, special = draw(vocabularies(patterns))
    matcher, naive, _ = pair_of(tokens, special, patterns, normalization)
    history = draw(st.lists(st.sampled_from(naive.usable()), max_size=6))
    # Often a pattern is under way at the end, or was when a special token came.
    if heads(naive):
        history += draw(st.lists(st.sampled_from(heads(naive)), max_size=1))
    if special:
        history += draw(st.lists(st.sampled_from(sorted(special)), max_size=1))
    return matcher, naive, history


def heads(naive: NaiveMatcher) -> list[int]:
    """The tokens with which a pattern begins."""
    symbols = [oracle.normalize(token or b"", naive.mode, naive.ignore_case) for token in naive.tokens]
    return [
        i
        for i, s in enumerate(symbols)
        if s and any(p.symbols.startswith(s) and p.symbols != s for p in naive.patterns)
    ]


def walk(matcher: Matcher, history: list[int]) -> int:
    state = matcher.start()
    for token_id in history:
        state = matcher.advance(state, token_id)
    return state


def text_only(history: list[int], naive: NaiveMatcher) -> list[int]:
    return [token_id for token_id in history if token_id not in naive.special]


@given(pairs())
def test_banned_equals_brute_force(pair: Pair) -> None:
    matcher, naive, history = pair
    history = text_only(history, naive)
    assert matcher.banned(walk(matcher, history)).tolist() == naive.banned(history)


@given(pairs())
def test_special_tokens_hide_no_pattern_and_invent_none(pair: Pair) -> None:
    matcher, naive, history = pair
    banned = set(matcher.banned(walk(matcher, history)).tolist())
    assert set(naive.banned(history)) <= banned <= set(naive.banned(history, union=True))


@pytest.mark.parametrize(
    ("history", "patterns", "banned"),
    [
        ("a<>", [Pattern(False, b"ab", False)], ["b"]),
        ("a<>", [Pattern(False, b"a b", False)], [" b"]),
        ("a <>", [Pattern(False, b"a b", False)], ["b", " b"]),
        ("a<> ", [Pattern(False, b"a b", False)], ["b", " b"]),
        ("a<>", [Pattern(True, b"b", False)], ["b", " b"]),
        ("a", [Pattern(True, b"b", False)], [" b"]),
        ("a<>a", [Pattern(True, b"b", False)], [" b"]),
        ("<>", [Pattern(True, b"b", True)], ["b", " b"]),
        # Another pattern begins with the character before, and does not go on.
        ("a<>b", [Pattern(True, b"ba", False)], ["a"]),
        ("a<>b", [Pattern(False, b"aa", False), Pattern(True, b"ba", False)], ["a"]),
        ("a<>b", [Pattern(True, b"aa", False), Pattern(True, b"ba", False)], ["a"]),
        # It does go on: the longer one is followed.
        ("a<>b", [Pattern(False, b"aba", False), Pattern(True, b"bb", False)], ["a"]),
    ],
)
def test_special_tokens_by_example(history: str, patterns: list[Pattern], banned: list[str]) -> None:
    vocabulary = ["a", "b", " ", " b", "<>"]
    matcher, _, _ = pair_of([token.encode() for token in vocabulary], {4}, patterns, Normalization())
    state = walk(matcher, [vocabulary.index(token) for token in re.findall("<>|.", history)])
    assert [vocabulary[token_id] for token_id in matcher.banned(state)] == banned


@given(pairs())
def test_a_word_begins_after_a_special_token(pair: Pair) -> None:
    matcher, naive, history = pair
    # While a pattern is under way and goes on, it alone is followed (docs/design/algorithm.md, "Special tokens").
    outside = [i for i in naive.usable() if i not in naive.special and walk(matcher, [i]) // 4 == ROOT]
    for after in (text_only(history, naive), *([head] for head in heads(naive)), []):
        expected = set(naive.banned(after))
        for special in naive.special:
            for first in outside:
                assert expected <= set(matcher.banned(walk(matcher, [first, special, *after])).tolist())


@given(pairs(), st.lists(st.integers(0, 10**6), max_size=20))
def test_no_output_contains_a_pattern_wherever_it_stops(pair: Pair, choices: list[int]) -> None:
    matcher, naive, _ = pair
    state, output = matcher.start(), []
    for choice in choices:
        allowed = sorted(set(range(len(matcher))) - set(matcher.banned(state).tolist()))
        if not allowed:
            return
        output.append(allowed[choice % len(allowed)])
        state = matcher.advance(state, output[-1])
        assert naive.read(output, union=False) == set()


class Rows(RuleBasedStateMachine):
    """A batch of texts, as beams and schedulers treat it, beside the naive model of every row."""

    @initialize(pair=pairs())
    def bind(self, pair: Pair) -> None:
        self.matcher, self.naive, _ = pair
        self.usable = self.naive.usable() + 2 * heads(self.naive)
        self.histories: list[list[int]] = [[]]
        self.states: list[list[int]] = [[self.matcher.start()]]
        self.expected: dict[tuple[int, ...], tuple[set[int], set[int]]] = {}

    def row(self, number: int) -> int:
        return number % len(self.histories)

    def token(self, number: int) -> int:
        return self.usable[number % len(self.usable)]

    def append(self, row: int, token_id: int, state: int) -> None:
        self.histories[row].append(token_id)
        self.states[row].append(state)

    @rule(row=st.integers(0, 4), token=st.integers(0, 50))
    def advance(self, row: int, token: int) -> None:
        row, token_id = self.row(row), self.token(token)
        self.append(row, token_id, self.matcher.advance(self.states[row][-1], token_id))

    @rule(tokens=st.lists(st.integers(0, 50), min_size=5, max_size=5))
    def advance_all(self, tokens: list[int]) -> None:
        before = np.array([states[-1] for states in self.states])
        token_ids = np.array([self.token(number) for number in tokens[: len(self.states)]])
        after = self.matcher.advance_all(before, token_ids)
        for row, (token_id, state) in enumerate(zip(token_ids.tolist(), after.tolist(), strict=True)):
            self.append(row, token_id, state)

    @precondition(lambda self: len(self.histories) < 5)
    @rule(row=st.integers(0, 4))
    def fork(self, row: int) -> None:
        row = self.row(row)
        self.histories.append(self.histories[row].copy())
        self.states.append(self.states[row].copy())

    @rule(row=st.integers(0, 4), count=st.integers(1, 4))
    def roll_back(self, row: int, count: int) -> None:
        row = self.row(row)
        keep = max(0, len(self.histories[row]) - count)
        del self.histories[row][keep:], self.states[row][keep + 1 :]

    @rule(order=st.permutations(range(5)))
    def reorder(self, order: list[int]) -> None:
        order = [row for row in order if row < len(self.histories)]
        self.histories = [self.histories[row] for row in order]
        self.states = [self.states[row] for row in order]

    @rule(row=st.integers(0, 4))
    def recompute(self, row: int) -> None:
        row = self.row(row)
        self.states[row][-1] = self.matcher.state_of(self.histories[row])

    @rule(row=st.integers(0, 4))
    def recompute_batch(self, row: int) -> None:
        length = len(self.histories[self.row(row)])
        batch = [i for i, history in enumerate(self.histories) if len(history) == length]
        histories = np.array([self.histories[i] for i in batch], np.int64).reshape(len(batch), length)
        for i, state in zip(batch, self.matcher.states_of(histories).tolist(), strict=True):
            self.states[i][-1] = state

    @invariant()
    def banned_equals_brute_force(self) -> None:
        rows, tokens = self.matcher.banned_all(np.array([states[-1] for states in self.states]))
        assert rows.tolist() == sorted(rows.tolist())
        for row, history in enumerate(self.histories):
            banned = self.matcher.banned(self.states[row][-1]).tolist()
            assert sorted(tokens[rows == row].tolist()) == banned
            key = tuple(history)
            if key not in self.expected:
                at_least, at_most = (set(self.naive.banned(history, union=union)) for union in (False, True))
                self.expected[key] = at_least, at_most
            assert self.expected[key][0] <= set(banned) <= self.expected[key][1]
            if not self.naive.special.intersection(history):
                assert set(banned) == self.expected[key][0]
                assert self.states[row][-1] == self.matcher.state_of(history)


TestRows = Rows.TestCase
TestRows.pytestmark = [pytest.mark.slow]  # type: ignore[attr-defined]
TestRows.settings = settings(max_examples=60, stateful_step_count=25)


@given(pairs())
def test_blame_names_what_a_banned_token_completes(pair: Pair) -> None:
    matcher, naive, history = pair
    state = walk(matcher, history)
    banned = set(matcher.banned(state).tolist())
    plain = text_only(history, naive)
    for token_id, token in enumerate(naive.tokens):
        blamed = matcher.blame(state, token_id)
        assert (token_id in banned) == (bool(blamed) or token is None)
        assert len(blamed) == len(set(blamed))
        if token_id not in naive.special:
            names = {str(naive.patterns.index(pattern)) for pattern in naive.blame(plain, token_id)}
            assert set(matcher.blame(walk(matcher, plain), token_id)) == names


def test_blame_names_entries_in_the_order_in_which_their_patterns_end() -> None:
    patterns = [Pattern(False, symbols, False) for symbols in (b"(x", b"f(x", b"x)")]
    owners = {0: ["open", "both"], 1: ["call"], 2: ["close", "both"]}
    vocabulary = Vocabulary.from_bytes([b"f(", b"x) (x", b"x)"])
    matcher = Matcher(Automaton.build(patterns), Normalization(), vocabulary, owners.__getitem__)
    state = matcher.advance(matcher.start(), 0)
    assert matcher.blame(state, 1) == matcher.blame(state, 2) == ["call", "open", "both", "close"]
    assert matcher.blame(matcher.start(), 2) == ["close", "both"]
    assert matcher.blame(state, 0) == []


# A pattern so long that the distances kept of it end at 255, and tokens on both sides of that.
@settings(max_examples=30)
@given(
    st.integers(250, 520),
    st.lists(st.sampled_from([1, 2, 253, 254, 255, 256, 257, 300, 511]), min_size=1, max_size=4),
    st.integers(0, 300),
    st.sampled_from([b")", b"a", b" b"]),
)
@example(255, [255], 0, b")")
@example(512, [256], 256, b")")
def test_long_patterns_and_long_tokens(length: int, lengths: list[int], typed: int, end: bytes) -> None:
    tokens: list[bytes | None] = [b"a", end]
    for n in lengths:
        tokens += [b"a" * n, b"a" * n + end, b"(" + b"a" * n]
    patterns = sorted([Pattern(False, b"a" * length + end, False), Pattern(True, b"a" * (length - 7) + end, False)])
    matcher, naive, _ = pair_of(tokens, set(), patterns, Normalization())
    history = [0] * typed
    assert matcher.banned(walk(matcher, history)).tolist() == naive.banned(history)


@given(pairs())
def test_banned_is_sorted_and_read_only_and_changes_nothing(pair: Pair) -> None:
    matcher, _, history = pair
    states = [walk(matcher, history[:n]) for n in range(len(history) + 1)]
    first = [matcher.banned(state) for state in states]
    copies = [banned.copy() for banned in first]
    for state, banned in zip(states, first, strict=True):
        assert banned.dtype == np.int32
        assert (np.diff(banned) > 0).all()
        assert not banned.flags.writeable
        assert matcher.banned(state).tolist() == banned.tolist()
    assert [walk(matcher, history[:n]) for n in range(len(history) + 1)] == states
    assert all((a == b).all() for a, b in zip(first, copies, strict=True))


def test_the_cache_of_states_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matcher_module, "_CACHED_STATES", 3)
    matcher, naive, _ = pair_of([b"a", b"b", b"c"], set(), [Pattern(False, b"abcabc", False)], Normalization())
    history: list[int] = []
    for token_id in [0, 1, 2, 0, 1, 0, 1, 2, 0, 1]:
        history.append(token_id)
        assert matcher.banned(walk(matcher, history)).tolist() == naive.banned(history)
        assert 1 <= len(matcher._cache) <= 3


# ---- unknown tokens ------------------------------------------------------------------------------------------------


@pytest.fixture
def three() -> Matcher:
    """Ids 0 and 2 are tokens, 1 is none; patterns are two symbols long."""
    return pair_of([b"a", None, b"b"], set(), [Pattern(False, b"ab", False)], Normalization())[0]


@pytest.mark.parametrize("token_id", [1, -1, 3, 10**6, -(2**40)])
def test_unknown_tokens_are_refused(three: Matcher, token_id: int) -> None:
    message = (
        rf"token id {token_id} has no known bytes in the vocabulary of 3 tokens: the text so far cannot be checked"
    )
    start = three.start()
    calls: list[Any] = [
        lambda: three.advance(start, token_id),
        lambda: three.state_of([0, 2, token_id]),
        lambda: three.state_of([token_id, 2]),
        lambda: three.states_of(np.array([[0, 0], [0, token_id]])),
        lambda: three.advance_all(np.array([start, start]), np.array([0, token_id])),
    ]
    if token_id != 1:
        calls.append(lambda: three.blame(start, token_id))
    for call in calls:
        with pytest.raises(ProdError, match=message):
            call()


def test_unknown_tokens_are_banned_and_blamed_on_nobody(three: Matcher) -> None:
    state = three.advance(three.start(), 0)
    assert three.banned(three.start()).tolist() == [1]
    assert three.banned(state).tolist() == [1, 2]
    assert three.blame(state, 1) == []
    assert three.blame(state, 2) == ["0"]


def test_unknown_tokens_too_far_back_to_matter_are_not_read(three: Matcher) -> None:
    assert three.state_of([1, 2, 2, 0]) == three.state_of([0])


# ---- threads -------------------------------------------------------------------------------------------------------


def test_threads_share_a_matcher() -> None:
    random = np.random.default_rng(0)

    def draw(count: int, most: int) -> list[bytes]:
        return [
            random.choice(list(b"ab(. "), random.integers(1, most)).astype(np.uint8).tobytes() for _ in range(count)
        ]

    symbols = {oracle.normalize(text, "code", False) for text in draw(300, 9)} - {b""}
    patterns = sorted(Pattern(False, s, False) for s in symbols if len(s) > 3)
    tokens: list[bytes | None] = [*draw(3000, 5)]
    alone, _, _ = pair_of(tokens, set(), patterns, Normalization())
    shared, _, _ = pair_of(tokens, set(), patterns, Normalization())
    states = np.unique([walk(alone, random.integers(0, len(tokens), 6).tolist()) for _ in range(600)])
    expected = {state: alone.banned(state).tolist() for state in states.tolist()}
    assert len({tuple(banned) for banned in expected.values()}) > 50

    def work(seed: int) -> list[int]:
        """The states for which the answer was wrong."""
        order = np.random.default_rng(seed).permutation(states)
        wrong = [state for state in order.tolist() if shared.banned(state).tolist() != expected[state]]
        rows, found = shared.banned_all(order)
        return wrong + [s for row, s in enumerate(order.tolist()) if sorted(found[rows == row].tolist()) != expected[s]]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(8))) == [[]] * 8
    finally:
        sys.setswitchinterval(interval)
