"""Which tokens a corpus index bans, against sets of whole anchors."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from prod_decode.corpus.finding import runs_of
from prod_decode.match.matcher import Matcher
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.vocabulary import UNKNOWN, Vocabulary
from tests import oracle
from tests.prod_decode.corpus.corpora import anchors_of, cut_of, index_of, symbols

PARTS = (
    "return self.value(",
    "for item in ",
    "0x12,0x34,",
    "def f(x):\n    ",
    "é" * 20,
    "=" * 30,
    "a" * 40,
    "x" * 33 + "=",
    "    ",
    "(",
)
# Every part as one token, so that some are longer than what is looked ahead, and than an anchor; and their letters.
LETTERS = sorted({character.encode() for part in PARTS for character in part} | {b" "})
TOKENS = [*(part.encode() for part in PARTS), b"=" * 9, b" self", b"value", b" item", b"</s>", None, *LETTERS]
EOS, LOST = TOKENS.index(b"</s>"), TOKENS.index(None)
VOCABULARY = Vocabulary.from_bytes(TOKENS, eos_ids=[EOS])
TEXT = [i for i in range(len(TOKENS)) if i not in (EOS, LOST)]

DOCUMENTS = st.lists(st.lists(st.sampled_from(PARTS), min_size=2, max_size=7).map("".join), min_size=1, max_size=3)
NORMALIZATIONS = st.builds(Normalization, st.sampled_from(["code", "none"]), st.booleans())


def text_of(tokens: Sequence[int]) -> bytes:
    return b"".join(TOKENS[token] or b"" for token in tokens if token != EOS)


def banned_by(anchors: set[bytes], tokens: Sequence[int], normalization: Normalization, width: int) -> set[int]:
    """The tokens behind which an anchor ends that did not end before them: the definition."""
    mode, ignore_case = normalization.mode, normalization.ignore_case
    before = oracle.normalize(text_of(tokens), mode, ignore_case)
    found = set()
    for token in TEXT:
        after = oracle.normalize(text_of([*tokens, token]), mode, ignore_case)
        ends = range(len(before) + 1, len(after) + 1)
        if any(after[max(0, end - width) : end] in anchors for end in ends):
            found.add(token)
    return found


def heading_for(text: str, draw: st.DrawFn) -> list[int]:
    """Tokens that spell the beginning of a text, in some way."""
    left, tokens = text.encode(), []
    while left:
        tokens.append(draw(st.sampled_from([t for t in TEXT if TOKENS[t] and left.startswith(TOKENS[t])])))
        left = left[len(TOKENS[tokens[-1]]) :]
    return tokens


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], list[int], Normalization]:
    documents = draw(DOCUMENTS)
    tokens = heading_for(draw(st.sampled_from(documents)), draw)
    tokens = tokens[: draw(st.integers(0, len(tokens)))]
    if tokens and draw(st.booleans()):
        tokens.insert(draw(st.integers(0, len(tokens))), draw(st.sampled_from([EOS, *TEXT])))
    return documents, tokens, draw(NORMALIZATIONS)


def banned_of(matcher: Matcher, tokens: Sequence[int], prompt: int = 0) -> set[int]:
    tracker = matcher.track()
    tracker.read(np.arange(1), [np.array(tokens, np.int64)], np.array([prompt]))
    return set(tracker.banned()[1].tolist())


@given(cases())
@settings(max_examples=150)
def test_the_tokens_that_complete_an_anchor_are_banned_and_no_others(
    case: tuple[list[str], list[int], Normalization],
) -> None:
    documents, tokens, normalization = case
    cut = cut_of(normalization=normalization)
    matcher = index_of(documents, cut).bind(VOCABULARY)
    expected = banned_by(anchors_of(documents, cut), tokens, normalization, cut.width)
    assert banned_of(matcher, tokens) == expected | {LOST}
    tracker = matcher.track()
    tracker.read(np.arange(1), [np.array(tokens, np.int64)], np.zeros(1, np.int64))
    assert {token for token in TEXT if tracker.blame(0, token)} == expected


@given(st.data())
def test_no_window_of_a_document_can_be_written(data: st.DataObject) -> None:
    """By somebody who always heads for one: the most of the document that is not banned, then anything else."""
    documents = data.draw(DOCUMENTS)
    cut = cut_of()
    tracker = index_of(documents, cut).bind(VOCABULARY).track()
    tracker.read(np.arange(1), [np.zeros(0, np.int64)], np.zeros(1, np.int64))
    wanted = data.draw(st.sampled_from(documents)).encode() * 2
    written = []
    while wanted and len(written) < 200:
        banned = set(tracker.banned()[1].tolist())
        fitting = [token for token in TEXT if wanted.startswith(TOKENS[token])]
        free = [token for token in fitting if token not in banned]
        token = data.draw(st.sampled_from(free or sorted(set(TEXT) - banned)))
        wanted = wanted[len(TOKENS[token if free else fitting[0]]) :]
        written.append(token)
        tracker.advance(np.array([token]))
    text = cut.normalization.symbols(text_of(written).decode())
    for document in documents:
        windows = set(oracle.byte_windows(cut.normalization.symbols(document), cut.max_quote))
        assert not windows & set(oracle.byte_windows(text, cut.max_quote))


CODE = "".join(PARTS[i] for i in (3, 0, 1, 9, 2, 0, 3, 1, 0, 9))


def test_what_the_prompt_has_of_an_anchor_counts() -> None:
    cut = cut_of()
    matcher = index_of([CODE], cut).bind(VOCABULARY)
    anchor = min(anchors_of([CODE], cut))
    assert LETTERS  # one token a letter
    tokens = [TOKENS.index(bytes([byte])) for byte in anchor]
    for prompt in (0, 10, len(tokens) - 1):
        assert tokens[-1] in banned_of(matcher, tokens[:-1], prompt)


def test_what_the_prompt_quotes_may_be_repeated_where_an_operator_says_so() -> None:
    cut = cut_of()
    matcher = index_of([CODE], cut).bind(VOCABULARY).exempting_prompts()
    anchors = sorted(anchors_of([CODE], cut))
    assert len(anchors) > 1
    spelled = [[TOKENS.index(bytes([byte])) for byte in anchor] for anchor in anchors]
    prompt = spelled[0] + [TOKENS.index(b"(")]
    for tokens in spelled:
        banned = tokens[-1] in banned_of(matcher, prompt + tokens[:-1], len(prompt))
        assert banned == (tokens is not spelled[0])
    tracker = matcher.track()
    tracker.read(np.arange(1), [np.array(prompt)], np.array([len(prompt)]))
    assert tracker.passed() == []
    for token in spelled[0]:
        assert tracker.passed() == []
        tracker.advance(np.array([token]))
    (told,) = tracker.passed()
    assert (told.row, told.kind) == (0, "exempted")
    tracker.take(np.array([-1, 0]))
    assert [one.row for one in tracker.passed()] == [1]
    read = matcher.track()
    read.read(np.arange(2), [np.array(prompt + spelled[0])] * 2, np.array([len(prompt), len(prompt + spelled[0])]))
    assert [one.row for one in read.passed()] == [0]
    tracker.advance(np.array([TOKENS.index(b"("), EOS]))
    assert tracker.passed() == []


@pytest.mark.slow
def test_a_matcher_of_an_index_is_pickled() -> None:
    again = pickle.loads(pickle.dumps(index_of([CODE], cut_of()).bind(VOCABULARY)))
    anchor = min(anchors_of([CODE], cut_of()))
    tokens = [TOKENS.index(bytes([byte])) for byte in anchor]
    assert tokens[-1] in banned_of(again, tokens[:-1])


class Batches(RuleBasedStateMachine):
    """A tracker after any calls is one that read the whole texts."""

    @initialize(documents=DOCUMENTS)
    def begin(self, documents: list[str]) -> None:
        self.cut = cut_of()
        self.anchors = anchors_of(documents, self.cut)
        self.wanted = documents
        self.tracker = index_of(documents, self.cut).bind(VOCABULARY).track()
        self.texts: list[list[int]] = []

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        tokens = data.draw(st.composite(lambda draw: heading_for(draw(st.sampled_from(self.wanted)), draw))())
        tokens = tokens[: data.draw(st.integers(0, len(tokens)))]
        row = data.draw(st.integers(0, len(self.texts)))
        self.texts[row : row + 1] = [tokens]
        self.tracker.read(np.array([row]), [np.array(tokens, np.int64)], np.zeros(1, np.int64))

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


TestBatches = Batches.TestCase
TestBatches.settings = settings(max_examples=25, stateful_step_count=12)


def test_a_row_with_an_unknown_token_is_closed() -> None:
    tracker = index_of([CODE], cut_of()).bind(VOCABULARY).track()
    tracker.read(np.arange(1), [np.array([LOST])], np.zeros(1, np.int64))
    assert tracker.any_closed
    assert set(tracker.banned()[1].tolist()) == set(range(len(TOKENS)))
    assert VOCABULARY.kinds[LOST] == UNKNOWN


@given(DOCUMENTS, DOCUMENTS, st.sampled_from([(50, 32), (80, 40), (150, 60)]), NORMALIZATIONS)
def test_every_anchor_in_a_text_is_found_and_nothing_else(
    documents: list[str], others: list[str], sizes: tuple[int, int], normalization: Normalization
) -> None:
    cut = cut_of(*sizes, normalization)
    long = ["".join(documents) * 4, *documents]
    anchors = anchors_of(long, cut)
    index = index_of(long, cut)
    text = "".join([*others, *long, *others[:1]])
    whole = symbols(text, cut)
    expected = [at for at in range(len(whole) - cut.width + 1) if whole[at : at + cut.width].tobytes() in anchors]
    assert index.find(whole)[:, 0].tolist() == expected
    assert index.find(whole, every_run=True)[:, 0].tolist() == expected


def runs_by_hand(begins: list[int], owners: list[int], reach: int) -> list[tuple[int, int, bool]]:
    """Runs first, each cut into stretches of one document; a stretch of one anchor joins what is before it."""
    found: list[list[int]] = []
    for at, begin in enumerate(begins):
        if not at or begin - begins[at - 1] > reach:
            found.append([])
        found[-1].append(at)
    parts = []
    for run in found:
        stretches = [list(of_one) for _, of_one in itertools.groupby(run, owners.__getitem__)]
        whole: list[list[int]] = []
        for stretch in stretches:
            if whole and (owners[whole[-1][0]] == owners[stretch[0]] or len(stretch) == 1):
                whole[-1] += stretch
            else:
                whole.append(stretch)
        parts += whole
    return [(part[0], part[-1] + 1, len({owners[at] for at in part}) > 1) for part in parts]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=30))
def test_anchors_are_runs_of_one_document(steps: list[tuple[int, int]]) -> None:
    begins = list(itertools.accumulate(step for step, _ in steps))
    owners = [owner for _, owner in steps]
    for known in (owners, []):
        runs = runs_of(np.array(begins, np.int64), np.array(known, np.uint32), 4)
        found = [(first, behind, bool(mixed)) for first, behind, mixed in runs.tolist()]
        assert found == runs_by_hand(begins, known or [0] * len(begins), 4)
