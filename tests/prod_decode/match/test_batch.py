"""A batch as a scheduler treats it, beside whole texts that are read anew at every step."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from prod_decode import Blocklist, Entry
from prod_decode.match.batch import Request, RequestBatch
from prod_decode.match.matcher import Matcher
from prod_decode.match.tracker import PromptEdge
from prod_decode.match.unescaped import UnescapedMatcher, unescaped
from prod_decode.tokens.vocabulary import Vocabulary

TOKENS = [b"a", b"b", b"ab", b" ", b".", b"<s>", b"ba", b".", b"\\", b"\\u00", b"n"]
SPECIAL = 5
VOCABULARY = Vocabulary.from_bytes(TOKENS, special=[SPECIAL])
MATCHERS: list[Matcher | UnescapedMatcher] = [
    Blocklist.compile([Entry("aba."), Entry("ba<s>a"), Entry("bab", boundary="both")]).bind(VOCABULARY),
    Blocklist.compile(
        [
            Entry("a b.", boundary="none"),
            Entry("..."),
            # Of 40 characters, 8 may be given away.
            Entry("abbabaab.abab" * 3, policy="quote", max_quote=30, piece=6, budget=8),
        ]
    ).bind(VOCABULARY),
]
MATCHERS += [unescaped(matcher) for matcher in MATCHERS if isinstance(matcher, Matcher)]
# What follows some texts and bans nothing.
BESIDE = Blocklist.compile([Entry("abb", boundary="none"), Entry("b<s>b.", boundary="none")]).bind(VOCABULARY)
# A token that nobody knows: vLLM writes -1 where one is not known yet.
UNKNOWN = -1

tokens = st.lists(st.sampled_from([*range(len(TOKENS))] * 3 + [UNKNOWN]), max_size=5)


def banned_anew(request: Request, width: int) -> set[int]:
    """What a tracker of this one text bans."""
    if request.is_hidden:
        return set(range(width))
    found: set[int] = set()
    for matcher in request.matchers or ():
        tracker = matcher.track()
        tracker.read(np.arange(1), [request.text()], np.array([0 if request.prompt is None else len(request.prompt)]))
        found.update(tracker.banned()[1].tolist())
    return {token for token in found if token < width}


class Schedule(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.batch = RequestBatch()
        self.width = len(TOKENS)
        self.outputs: dict[Request, list[int]] = {}

    @rule(
        order=st.permutations(range(6)),
        keep=st.integers(0, 6),
        prompts=st.lists(tokens | st.none(), max_size=3),
        lists=st.lists(st.sampled_from([(), (0,), (1,), (0, 1), (0, 1, 2, 3), (2,), None]), min_size=3, max_size=3),
        beside=st.booleans(),
    )
    def come_and_go(
        self,
        order: list[int],
        keep: int,
        prompts: list[list[int] | None],
        lists: list[tuple[int, ...] | None],
        beside: bool,
    ) -> None:
        sources = [row for row in order if row < len(self.batch.requests)][:keep]
        requests = [self.batch.requests[row] for row in sources]
        for prompt, names in zip(prompts, lists, strict=False):
            matchers = None if names is None else tuple(MATCHERS[name] for name in names)
            if len(requests) < 6:
                sources.append(len(self.batch.requests) + len(requests))
                text = None if prompt is None else np.array(prompt, np.int64)
                requests.append(Request(text, [], matchers, beside=(BESIDE,) if beside and matchers else ()))
        self.batch.arrange(requests, sources)

    @rule(news=st.lists(st.integers(0, len(TOKENS) - 1), min_size=6, max_size=6))
    def every_row_grows(self, news: list[int]) -> None:
        for request, token in zip(self.batch.requests, news, strict=False):
            request.output.append(token)

    @rule(row=st.integers(0, 5), news=tokens, lost=st.integers(0, 3))
    def one_row_changes(self, row: int, news: list[int], lost: int) -> None:
        if row < len(self.batch.requests):
            output = self.batch.requests[row].output
            del output[len(output) - min(lost, len(output)) :]
            output.extend(news)

    @rule(width=st.sampled_from([6, len(TOKENS)]))
    def another_width(self, width: int) -> None:
        self.width = width

    @invariant()
    def bans_are_those_of_whole_texts(self) -> None:
        self.batch.follow()
        rows, banned = self.batch.banned(self.width)
        for row, request in enumerate(self.batch.requests):
            assert set(banned[rows == row].tolist()) == banned_anew(request, self.width)
            before = self.outputs.get(request)
            if before is None or len(request.output) != len(before) + 1:
                assert not self.batch.grew(row)
            elif request.output[:-1] == before:
                assert self.batch.grew(row)
        self.outputs = {request: list(request.output) for request in self.batch.requests}
        assert self.batch.guarded.tolist() == [i for i, r in enumerate(self.batch.requests) if r.matchers != ()]
        followed = [row for row, request in enumerate(self.batch.requests) if request.beside and not request.is_hidden]
        beside = self.batch.beside.get(BESIDE)
        assert ([] if beside is None else beside.rows.tolist()) == followed
        for place, row in enumerate(followed if beside else ()):
            request = self.batch.requests[row]
            alone = Request(request.prompt, request.output, (BESIDE,))
            rows, banned = beside.tracker.banned()
            assert set(banned[rows == place].tolist()) == banned_anew(alone, len(TOKENS))


TestSchedule = Schedule.TestCase
TestSchedule.pytestmark = [pytest.mark.slow]  # type: ignore[attr-defined]
TestSchedule.settings = settings(max_examples=60, stateful_step_count=15)


def test_a_text_that_cannot_be_read_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    repeated = Blocklist.compile([Entry("<s>" * 70 + "a")]).bind(VOCABULARY)
    batch = RequestBatch()
    batch.arrange(
        [Request(np.array([0, UNKNOWN]), [99, 0], (MATCHERS[0],)), Request(np.full(70, SPECIAL), [], (repeated,))],
        [0, 1],
    )
    with caplog.at_level(logging.WARNING):
        batch.follow()
        batch.follow()
    assert [record.message for record in caplog.records] == [
        "a request ends, since its text cannot be checked: token id 99 has no known bytes",
        "a request ends, since its text cannot be checked: it has so many special tokens that it can be read in too "
        "many ways",
    ]


def test_only_lists_in_use_are_followed() -> None:
    batch = RequestBatch()
    batch.arrange([Request(np.array([0]), [], (MATCHERS[1],)), Request(np.array([0]), [], ())], [0, 1])
    assert list(batch._followed) == [MATCHERS[1]]
    batch.arrange([batch.requests[1]], [1])
    assert list(batch._followed) == []


def test_where_prompts_end() -> None:
    edge = PromptEdge()
    two = np.array([[1, 2], [3, 4]])
    assert edge.find(two) == 2
    assert edge.find(np.array([[1, 2, 5], [3, 4, 6]])) == 2
    edge.grow(4)
    # Beams that change places; drafts that are taken back; the text that drafts were accepted for.
    assert edge.find(np.array([[1, 2, 6], [3, 4, 5]])) == 2
    assert edge.find(two) == 2
    assert edge.find(np.array([[1, 2, 7, 7, 7], [3, 4, 7, 7, 7]])) == 2
    # Another call: other prompts, another number of rows, more text than the last call had, or told.
    assert edge.find(np.array([[1, 2, 9, 9, 9, 9, 9], [3, 4, 9, 9, 9, 9, 9]])) == 7
    assert edge.find(np.array([[1, 9], [3, 4]])) == 2
    assert edge.find(np.array([[1, 9, 1]])) == 3
    edge.forget()
    assert edge.find(np.array([[1, 9, 1, 5]])) == 4
