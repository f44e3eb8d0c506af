"""Which anchors are chosen, against the definition: in every window the one whose hash is least."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.corpus.keys import LOOK_AHEAD, Cut
from prod_decode.corpus.winnow import Chosen, Winnower, identities_of
from prod_decode.errors import ProdError
from prod_decode.text.normalize import Normalization

KEY = bytes(range(16))
QUOTE, WIDTH = 50, 32
CUT = Cut.of(QUOTE, WIDTH, Normalization(), KEY)

# Runs of one kind and code, so that windows have anchors of either kind, or of both.
PARTS = st.one_of(
    st.text("ab(=", min_size=1, max_size=12),
    st.builds(lambda c, n: c * n, st.sampled_from("=ax0"), st.integers(1, 90)),
    st.sampled_from(["return self.value(", "for item in ", "def f(x):", "0x12,0x34,", "é" * 20]),
)
TEXTS = st.lists(PARTS, max_size=12).map("".join)


def choose(text: str, winnower: Winnower | None = None) -> Chosen:
    return (winnower or Winnower(CUT)).choose(symbols(text))


def starts_of(text: bytes) -> list[int]:
    return Winnower(CUT).choose(np.frombuffer(text, np.uint8)).starts.tolist()


def symbols(text: str) -> np.ndarray:
    return np.frombuffer(CUT.normalization.symbols(text), np.uint8)


def is_word(symbol: int) -> bool:
    return chr(symbol) in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"


def leaves_word(run: bytes) -> bool:
    return any(is_word(a) and not is_word(b) for a, b in pairwise(run))


def polynomial(run: bytes) -> int:
    hashed = 0
    for symbol in run:
        hashed = (hashed * 0x9E3779B97F4A7C15 + int(CUT.spread[symbol])) % 2**64
    return hashed


def finalised(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def expected(text: bytes, excluded: set[int]) -> tuple[dict[int, int], int]:
    """The places that are chosen, each with its windows, and how many windows have none: from the definition."""
    ranks: dict[int, tuple[int, int]] = {}
    for at in range(len(text) - WIDTH + 1):
        anchor = text[at : at + WIDTH]
        identity = finalised(polynomial(anchor))
        if identity in excluded:
            continue
        if leaves_word(anchor[-LOOK_AHEAD:]):
            ranks[at] = (0, identity >> 2)
        elif not leaves_word(anchor):
            ranks[at] = (1, identity >> 2)
    chosen: dict[int, int] = {}
    waived = 0
    for window in range(len(text) - QUOTE + 1):
        # Of two alike the last.
        candidates = [(ranks[at], -at) for at in range(window, window + QUOTE - WIDTH + 1) if at in ranks]
        if candidates:
            at = -min(candidates)[1]
            chosen[at] = chosen.get(at, 0) + 1
        waived += not candidates
    return chosen, waived


@given(TEXTS, st.integers(0, 3))
def test_the_least_anchor_of_every_window_is_chosen(text: str, taken: int) -> None:
    whole = symbols(text)
    identities = Winnower(CUT).identities(whole)
    excluded = identities[:: taken + 1][: 40 * taken]
    found = choose(text, Winnower(CUT, excluded))
    chosen, waived = expected(whole.tobytes(), set(excluded.tolist()))
    assert dict(zip(found.starts.tolist(), found.windows.tolist(), strict=True)) == chosen
    assert found.waived == waived
    if not taken:
        assert waived == 0  # every window has an ending anchor or an even one
    for start, prefix, suffix, even in zip(*found[:4], strict=True):
        anchor = whole[start : start + WIDTH].tobytes()
        assert int(prefix) == polynomial(anchor[:-LOOK_AHEAD])
        assert int(suffix) == polynomial(anchor[-LOOK_AHEAD:])
        assert bool(even) == (not leaves_word(anchor[-LOOK_AHEAD:]))
    assert identities_of(found.prefixes, found.suffixes).tolist() == identities[found.starts].tolist()


@given(TEXTS, TEXTS, TEXTS)
def test_what_two_documents_share_has_the_same_anchors(before: str, shared: str, behind: str) -> None:
    """So that copies cost nothing twice, and what many have can be counted."""
    run, document = (symbols(text).tobytes() for text in (f"({shared}(", f"{before}({shared}({behind}"))
    assert run in document
    alone, there = ({text[s : s + WIDTH] for s in starts_of(text)} for text in (run, document))
    assert alone <= there


def test_another_key_gives_other_hashes_and_other_anchors() -> None:
    text = symbols("for item in items: total = total + item.price * item.count\n" * 3 + "print(total)\n" * 9)
    first = Winnower(CUT).choose(text)
    second = Winnower(CUT._replace(key=bytes(16))).choose(text)
    assert not set(first.prefixes.tolist()) & set(second.prefixes.tolist())
    assert first.starts.tolist() != second.starts.tolist()


def test_random_text_has_two_anchors_in_a_window_and_two() -> None:
    """The density of winnowing: 2 / (w + 1) for w anchors a window."""
    letters = np.frombuffer(b"abcdefghij.(,=", np.uint8)
    text = np.random.default_rng(0).choice(letters, 200_000)
    cut = Cut.of(150, 60, Normalization(), KEY)
    density = len(Winnower(cut).choose(text).starts) / len(text)
    assert density == pytest.approx(2 / 92, rel=0.03)


@pytest.mark.parametrize(
    ("quote", "width", "key", "message"),
    [
        (
            47,
            None,
            KEY,
            "max_quote: expected 48 to 4096 for an index, got 47: a shorter run is what a blocklist is for",
        ),
        (5000, None, KEY, "max_quote: expected 48 to 4096 for an index, got 5000"),
        (100, 59, KEY, "width: expected 32 to 58 with max_quote 100, got 59"),
        (100, 31, KEY, "width: expected 32 to 58 with max_quote 100, got 31"),
        (150, 60, b"", "key: expected 16 bytes, got 0"),
    ],
)
def test_what_cannot_be_cut(quote: int, width: int | None, key: bytes, message: str) -> None:
    with pytest.raises(ProdError, match=message):
        Cut.of(quote, width, Normalization(), key)
