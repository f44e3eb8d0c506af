"""The guards that the index is measured beside, against searches of every text by the definition."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.corpora.walks import begun, owned, refused
from bench.corpora.writer import Writer, leaked, spread_out
from bench.peers.bloom import Bloom
from bench.peers.ngrams import Ngrams
from bench.peers.portraits import Portrait
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.vocabulary import Vocabulary

TOKENS = [b"", b"a", b"b", b" ", b"\n", b"(", b"ab", b" a", b"ba(b", b"  ", b"abababab", b"aabbaabbaabb(a"]
VOCABULARY = Vocabulary.from_bytes(TOKENS, special=[0])
WIDTH = 6


def written(tokens: Any) -> str:
    return b"".join(TOKENS[token] for token in tokens).decode()


def tiles(documents: list[str], mode: Any) -> set[bytes]:
    found = set()
    for document in documents:
        symbols = Normalization(mode).symbols(document)
        found |= {symbols[at : at + WIDTH] for at in range(0, len(symbols) - WIDTH + 1, WIDTH)}
    return found


def completed(before: str, after: str, mode: Any) -> set[bytes]:
    """The runs that end in what a token adds."""
    old, new = Normalization(mode).symbols(before), Normalization(mode).symbols(after)
    return {new[end - WIDTH : end] for end in range(max(len(old) + 1, WIDTH), len(new) + 1)}


@given(
    documents=st.lists(st.lists(st.integers(1, len(TOKENS) - 1), max_size=8).map(written), max_size=4),
    text=st.lists(st.integers(1, len(TOKENS) - 1), max_size=20),
    mode=st.sampled_from(["code", "none"]),
)
def test_a_portrait_bans_what_completes_a_run(documents: list[str], text: list[int], mode: Any) -> None:
    portrait = Portrait(documents, Normalization(mode), 1e-9, width=WIDTH)
    tracker = portrait.track(VOCABULARY)
    tracker.read(np.arange(1), [np.array(text, np.int64)], np.zeros(1, np.int64))
    known = tiles(documents, mode)
    wanted = [t for t in range(1, len(TOKENS)) if completed(written(text), written([*text, t]), mode) & known]
    rows, tokens = tracker.banned()
    assert tokens.tolist() == wanted
    assert rows.tolist() == [0] * len(wanted)
    refusing = [t for t in range(len(TOKENS)) if tracker.refuses(np.array([t]))[0]]
    assert refusing == wanted


def test_no_text_has_a_run_of_twice_the_width_less_one() -> None:
    """What Data Portraits promises, whatever the writer does."""
    draw = random.Random(0)
    document = "".join(draw.choice("abcdefgh") for _ in range(400))
    bytes_alone = Vocabulary.from_bytes([bytes([i]) for i in range(256)])
    portrait = Portrait([document], Normalization("none"), 1e-9, width=WIDTH)
    writer = Writer(bytes_alone)
    found = leaked(lambda text: writer.write(portrait.track(bytes_alone), text), [document], WIDTH, 1, far=40)
    # From every place a whole run is at most 2 * WIDTH - 1 away, and from the best ones that far.
    assert found.longest == 2 * WIDTH - 2


@given(
    documents=st.lists(st.lists(st.integers(1, 5), max_size=12), max_size=4),
    text=st.lists(st.integers(1, 5), max_size=9),
)
def test_memfree_bans_what_completes_an_n_gram(documents: list[list[int]], text: list[int]) -> None:
    tracker = Ngrams(documents, len(TOKENS), 1e-9, n=3).track()
    tracker.read(np.arange(1), [np.array(text, np.int64)], np.zeros(1, np.int64))
    known = {tuple(document[at : at + 3]) for document in documents for at in range(len(document) - 2)}
    wanted = [token for token in range(len(TOKENS)) if (*text[-2:], token) in known]
    assert tracker.banned()[1].tolist() == wanted
    assert [t for t in range(len(TOKENS)) if tracker.refuses(np.array([t]))[0]] == wanted


def test_a_filter_has_what_was_added_and_few_others() -> None:
    numbers = np.random.default_rng(0).integers(0, 1 << 63, 200_000, np.uint64)
    bloom = Bloom(100_000, 1e-2)
    bloom.add(numbers[:100_000])
    assert bloom.has(numbers[:100_000]).all()
    assert 700 < bloom.has(numbers[100_000:]).sum() < 1300  # 1,000 are expected, 32 the deviation
    assert bloom.nbytes == pytest.approx(100_000 * 9.585 / 8, rel=1e-3)


def test_a_writer_goes_around_n_grams_and_not_around_symbols() -> None:
    draw = random.Random(1)
    document = "".join(draw.choice(["ab", "ba", "a(", "b ", "(("]) for _ in range(120))
    pieces = sorted({document[at : at + length] for at in range(240) for length in (1, 2, 3)})
    vocabulary = Vocabulary.from_bytes([*(piece.encode() for piece in pieces), b"\xc2", b"\xa4"])
    greedy, at = [], 0
    while at < len(document):
        length = max(n for n in (1, 2, 3) if document[at : at + n] in pieces)
        greedy.append(pieces.index(document[at : at + length]))
        at += length
    writer = Writer(vocabulary)
    ngrams = Ngrams([greedy], len(vocabulary), 1e-9, n=4)
    around = leaked(lambda text: writer.write(ngrams.track(), text), [document], 30, 7, far=90)
    assert around.longest > 60
    assert around.beyond == around.starts > 10
    for mode, layout, longest in (("none", document, 10), ("code", document, 10), ("code", spread_out(document), 10)):
        portrait = Portrait([document], Normalization(mode), 1e-9, width=WIDTH)
        tracker = portrait.track(vocabulary)
        found = leaked(lambda text, tracker=tracker: writer.write(tracker, text), [layout], 30, 7, far=90)
        assert found.longest <= longest, (mode, found)
        assert found.beyond == 0


def test_places_of_a_walk_that_are_banned() -> None:
    document = "abab(ba(b ab" * 3
    portrait = Portrait([document], Normalization("none"), 1e-9, width=WIDTH)
    bytes_alone = Vocabulary.from_bytes([bytes([i]) for i in range(128)])
    text = "xxabab(baxxa(ba(b abxxxx" * 2
    walk = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    known = tiles([document], "none")
    for rows in (1, 2):
        length = len(walk) // rows
        wanted = [
            at
            for at in range(len(walk))
            if at % length >= WIDTH - 1 and text[at - WIDTH + 1 : at + 1].encode() in known
        ]
        places, steps = owned(portrait.track(bytes_alone), walk, rows)
        assert places.tolist() == wanted
        assert steps == rows * (length - 1)
        assert len(wanted) > 2
    tracker: Any = begun(portrait.track(bytes_alone), walk[:1])
    for token in walk[1:8]:
        masked = token in tracker.banned()[1]
        assert refused(tracker, np.array([token])).tolist() == [masked]
        tracker.advance(np.array([token]))
