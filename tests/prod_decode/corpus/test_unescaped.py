"""Which tokens a corpus index bans where JSON's escapes are decoded, against sets of whole anchors."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from prod_decode import Blocklist, CorpusIndex, Entry
from prod_decode.match.matcher import Matcher
from prod_decode.match.unescaped import unescaped
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.vocabulary import Vocabulary
from tests import oracle
from tests.prod_decode.corpus.corpora import anchors_of, cut_of, index_of
from tests.prod_decode.text.test_escapes import unescape

PARTS = (
    "return self.value(",
    "for item in\n",
    '"a": "b",\n\t',
    "def f(x):\n    ",
    "é" * 20,
    "=" * 30,
    "a" * 40,
    "x" * 33 + "=",
    "\\d+\\",
    "(",
)
ESCAPES = (b"\\", b"\\n", b"n", b"\\u", b"\\u00", b"\\u003", b"\\u0061", b"003d", b"3d", b"d", b"\\u003d\\u003d", b'"')
WHOLE = [json.dumps(part)[1:-1].encode() for part in PARTS]
LETTERS = sorted({bytes([byte]) for part in [*PARTS, *map(json.dumps, PARTS)] for byte in part.encode()} | {b" "})
LONG = [b"\\u003d" * 33, b"value(\\n" + b"=" * 40, b"d" + b"=" * 31 + b"\\u00"]
TOKENS = list(dict.fromkeys([*(part.encode() for part in PARTS), *WHOLE, *LONG, *ESCAPES, *LETTERS]))
TOKENS += [b"</s>", None]
EOS, LOST = len(TOKENS) - 2, len(TOKENS) - 1
VOCABULARY = Vocabulary.from_bytes(TOKENS, eos_ids=[EOS])
TEXT = list(range(EOS))

DOCUMENTS = st.lists(st.lists(st.sampled_from(PARTS), min_size=2, max_size=7).map("".join), min_size=1, max_size=3)
NORMALIZATIONS = st.builds(Normalization, st.sampled_from(["code", "none"]), st.booleans())


def banned_by(anchors: set[bytes], tokens: Sequence[int], normalization: Normalization, width: int) -> set[int]:
    """The tokens behind which an anchor ends, in the decoded text, that did not end before them: the definition."""
    written = b"".join(TOKENS[token] for token in tokens if token != EOS)
    mode, ignore_case = normalization.mode, normalization.ignore_case
    before = oracle.normalize(unescape(written), mode, ignore_case)
    found = set()
    for token in TEXT:
        after = oracle.normalize(unescape(written + TOKENS[token]), mode, ignore_case)
        if any(after[max(0, end - width) : end] in anchors for end in range(len(before) + 1, len(after) + 1)):
            found.add(token)
    return found


@st.composite
def spelled(draw: st.DrawFn, documents: Sequence[str]) -> list[int]:
    """Tokens of the beginning of a document in JSON, each character escaped or not."""
    text = draw(st.sampled_from(documents))
    one = draw(st.sampled_from([0, 1, 5]))  # of so many characters one is written as \uXXXX
    numbers = draw(st.lists(st.integers(0, 5), min_size=len(text), max_size=len(text)))
    left = b"".join(
        (f"\\u{ord(c):04x}" if n < one and ord(c) < 65536 else json.dumps(c, ensure_ascii=False)[1:-1]).encode()
        for c, n in zip(text, numbers, strict=True)
    )
    tokens = []
    while left:
        fitting = [t for t in TEXT if left.startswith(TOKENS[t])]
        if not fitting:  # a digit that is no token
            break
        tokens.append(draw(st.sampled_from(sorted(fitting, key=lambda t: -len(TOKENS[t]))[:4])))
        left = left[len(TOKENS[tokens[-1]]) :]
    tokens = tokens[: draw(st.integers(0, len(tokens)))]
    if tokens and draw(st.booleans()):
        tokens.insert(draw(st.integers(0, len(tokens))), draw(st.sampled_from([EOS, *TEXT])))
    return tokens


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], list[int], Normalization]:
    documents = draw(DOCUMENTS)
    return documents, draw(spelled(documents)), draw(NORMALIZATIONS)


def tracked(matcher: Matcher, tokens: Sequence[int], prompt: int = 0):  # type: ignore[no-untyped-def]
    tracker = unescaped(matcher).track()
    tracker.read(np.arange(1), [np.array(tokens, np.int64)], np.array([prompt]))
    return tracker


@pytest.mark.slow
@given(cases())
@settings(max_examples=60)
def test_the_tokens_that_complete_an_anchor_are_banned_and_no_others(
    case: tuple[list[str], list[int], Normalization],
) -> None:
    documents, tokens, normalization = case
    cut = cut_of(normalization=normalization)
    tracker = tracked(index_of(documents, cut).bind(VOCABULARY), tokens)
    expected = banned_by(anchors_of(documents, cut), tokens, normalization, cut.width)
    rows, banned = tracker.banned()
    assert set(banned.tolist()) == expected | {LOST}
    assert len(rows) == len(banned) == len(expected) + 1
    assert {token for token in TEXT if tracker.blame(0, token)} == expected


class Batches(RuleBasedStateMachine):
    """A tracker after any calls is one that read the whole texts."""

    @initialize(documents=DOCUMENTS)
    def begin(self, documents: list[str]) -> None:
        self.cut = cut_of()
        self.anchors = anchors_of(documents, self.cut)
        self.wanted = documents
        self.tracker = unescaped(index_of(documents, self.cut).bind(VOCABULARY)).track()
        self.texts: list[list[int]] = []

    @rule(data=st.data(), prompt=st.lists(st.sampled_from(TEXT), max_size=3))
    def read(self, data: st.DataObject, prompt: list[int]) -> None:
        tokens = data.draw(spelled(self.wanted))
        row = data.draw(st.integers(0, len(self.texts)))
        self.texts[row : row + 1] = [tokens]
        self.tracker.read(np.array([row]), [np.array(prompt + tokens, np.int64)], np.array([len(prompt)]))

    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        tokens = [data.draw(st.sampled_from([*TEXT, EOS])) for _ in self.texts]
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)
        self.tracker.advance(np.array(tokens, np.int64))

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        sources = data.draw(st.lists(st.integers(-1, len(self.texts) - 1), max_size=4))
        self.texts = [list(self.texts[source]) if source >= 0 else [] for source in sources]
        self.tracker.take(np.array(sources, np.int64))

    @invariant()
    def same(self) -> None:
        rows, tokens = self.tracker.banned()
        assert rows.tolist() == sorted(rows.tolist())
        for row, text in enumerate(self.texts):
            expected = banned_by(self.anchors, text, self.cut.normalization, self.cut.width)
            assert set(tokens[rows == row].tolist()) == expected | {LOST}


TestBatches = pytest.mark.slow(Batches.TestCase)
TestBatches.settings = settings(max_examples=10, stateful_step_count=12)

CODE = "def f(x):\n    return self.value(\nfor item in\n(def f(x):\n    return self.value(("


def test_a_mask_looks_every_run_up() -> None:
    """Which runs can be anchors is known of one anchor alone where the hashes of two are the same."""
    index = index_of(["=" * 60], cut_of(54, 34))  # an outlier
    records = index.records, index.record_starts
    blind = CorpusIndex(index.table, index.cut, index.report, index.even, records, index.name, np.zeros(1, np.uint64))
    run = np.frombuffer(b"=" * index.cut.width, np.uint8)
    assert [len(one.find(run)) for one in (index, blind)] == [1, 0]
    before = [*[TOKENS.index(b"=")] * (index.cut.width - 1), TOKENS.index(b"\\u00")]
    found = [set(tracked(one.bind(VOCABULARY), before).banned()[1].tolist()) for one in (index, blind)]
    assert found[0] == found[1] > {TOKENS.index(b"3d")}


def test_lines_of_a_string_are_one_text() -> None:
    """As they are written, a line end in a string ends what is under way."""
    matcher = index_of([CODE], cut_of()).bind(VOCABULARY)
    written = [TOKENS.index(bytes([byte])) for byte in json.dumps(CODE)[1:-1].encode()]
    seen = [tracked(matcher, written[:n]).banned()[1].tolist() for n in range(len(written))]
    assert any(token in banned for token, banned in zip(written, seen, strict=True))
    as_it_is = matcher.track()
    as_it_is.read(np.arange(1), [np.zeros(0, np.int64)], np.zeros(1, np.int64))
    for token in written:
        assert as_it_is.banned()[1].tolist() == [LOST]
        as_it_is.advance(np.array([token]))


def test_a_row_with_an_unknown_token_is_closed() -> None:
    tracker = tracked(index_of([CODE], cut_of()).bind(VOCABULARY), [LOST])
    assert tracker.any_closed
    assert set(tracker.banned()[1].tolist()) == set(range(len(TOKENS)))


def test_a_blocklist_and_an_index_are_both_followed() -> None:
    index = index_of([CODE], cut_of())
    matcher = Blocklist.compile([Entry("x(x(\nd")]).bind(VOCABULARY).beside(index.bind(VOCABULARY))
    spell = [TOKENS.index(bytes([byte])) for byte in b"x(x(\\n"]
    assert tracked(matcher, spell).banned()[1].tolist() != [LOST]
    anchor = json.dumps(CODE)[1:-1].encode()
    written = [TOKENS.index(bytes([byte])) for byte in anchor]
    assert any(token in tracked(matcher, written[:n]).banned()[1] for n, token in enumerate(written))
