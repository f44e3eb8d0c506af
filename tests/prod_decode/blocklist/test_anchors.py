"""Anchors: no window without one, none in free code, and no cheaper choice."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prod_decode.blocklist.anchors import Anchors, FreeCode, choose_anchors, default_width
from tests import oracle

# Few letters, one of them outside the first plane, so that texts repeat themselves and each other.
letters = st.sampled_from("aab\U0001f600")
small_texts = st.text(letters, max_size=40)


def codes_of(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def free_code(texts: list[str]) -> FreeCode:
    return FreeCode(codes_of(text) for text in texts)


@st.composite
def sizes(draw: st.DrawFn, most: int = 12) -> tuple[int, int]:
    """(max_quote, width)."""
    max_quote = draw(st.integers(1, most))
    return max_quote, draw(st.integers(1, max_quote))


def choose(text: str, size: tuple[int, int], free: list[str]) -> Anchors:
    return choose_anchors(codes_of(text), size[0], width=size[1], free=free_code(free))


@st.composite
def documents_and_free_code(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A document, and free code of which some is copied from it."""
    text = draw(small_texts)
    free = draw(st.lists(st.text(letters, max_size=20), max_size=3))
    if text and draw(st.booleans()):
        at = draw(st.integers(0, len(text) - 1))
        free.append(text[at : at + draw(st.integers(1, 20))])
    return text, free


@given(documents_and_free_code(), sizes())
def test_every_window_is_waived_or_has_an_anchor(pair: tuple[str, list[str]], size: tuple[int, int]) -> None:
    (text, free), (max_quote, width) = pair, size
    anchors = choose(text, size, free)
    waived = {i for start, end in anchors.waived for i in range(start, end - max_quote + 1)}
    for i, window in enumerate(oracle.windows(text, max_quote)):
        inside = [(a, b) for a, b in anchors.spans if i <= a and b <= i + max_quote]
        places = [place for place in oracle.windows(window, width) if not any(place in code for code in free)]
        if any(window in code for code in free):
            assert i in waived
        elif places:
            assert i not in waived
            assert inside
        else:
            assert (i, i + max_quote) in inside
    # Maximal: the window that follows the last one of a stretch is not waived.
    assert all(end - max_quote + 1 not in waived for _, end in anchors.waived)


@given(documents_and_free_code(), sizes())
def test_anchors_are_in_order_and_never_in_free_code(pair: tuple[str, list[str]], size: tuple[int, int]) -> None:
    (text, free), (max_quote, width) = pair, size
    spans = choose(text, size, free).spans
    assert spans == sorted(set(spans))
    for start, end in spans:
        assert 0 <= start < end <= len(text)
        assert end - start in (width, max_quote)
        assert not any(text[start:end] in code for code in free)


@st.composite
def priced_places(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    """(max_quote, width, costs): a place of cost -1 is blocked."""
    max_quote, width = draw(sizes(most=6))
    places = draw(st.integers(max_quote - width + 1, 10))
    return max_quote, width, draw(st.lists(st.integers(-1, 5), min_size=places, max_size=places))


@pytest.mark.slow
@settings(max_examples=500)
@given(priced_places())
def test_no_choice_is_cheaper(case: tuple[int, int, list[int]]) -> None:
    max_quote, width, costs = case
    # Every character differs, so that free code blocks just the places that it copies.
    text = "".join(map(chr, range(0x4E00, 0x4E00 + len(costs) + width - 1)))
    free = [text[p : p + width] for p, cost in enumerate(costs) if cost < 0]
    cost = np.array([abs(cost) + 1 for cost in costs], np.float64)
    before = cost.copy()
    anchors = choose_anchors(codes_of(text), max_quote, width=width, cost=cost, free=free_code(free))

    spread = max_quote - width + 1
    needed = [max(costs[i : i + spread]) >= 0 for i in range(len(costs) - spread + 1)]
    chosen = sum(costs[start] + 1 for start, end in anchors.spans if end - start == width and costs[start] >= 0)
    assert chosen == oracle.cheapest_cover([cost + 1 if cost >= 0 else -1 for cost in costs], needed, spread)
    assert (cost == before).all()


@given(st.integers(0, 200), sizes(most=30))
def test_equal_costs_give_the_fewest_anchors(length: int, size: tuple[int, int]) -> None:
    max_quote, width = size
    anchors = choose_anchors(np.zeros(length, np.uint32), max_quote, width=width)
    windows = max(0, length - max_quote + 1)
    assert len(anchors.spans) == ceil(windows / (max_quote - width + 1))
    assert anchors.waived == []


@pytest.mark.parametrize("text", ["", "a", "abcde"])
def test_documents_shorter_than_a_quote_prohibit_nothing(text: str) -> None:
    assert choose_anchors(codes_of(text), 6, free=free_code(["abcde"])) == Anchors([], [])


def test_the_default_width_is_half_a_quote() -> None:
    assert [default_width(k) for k in (1, 2, 7, 120)] == [1, 1, 3, 60]
    assert choose_anchors(codes_of("abcdefghij"), 8).spans == [(2, 6)]


def test_the_cheap_place_is_taken() -> None:
    cost = np.array([3, 1, 3, 3, 1, 3, 3.0])
    assert choose_anchors(codes_of("abcdefgh"), 4, width=2, cost=cost).spans == [(1, 3), (4, 6)]


@given(small_texts, st.lists(small_texts, max_size=4), st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_free_code_contains_its_substrings_and_no_others(text: str, free: list[str], widths: list[int]) -> None:
    code = free_code(free)
    assert bool(code) == any(free)
    for width in widths:
        expected = [any(window in known for known in free) for window in oracle.windows(text, width)]
        assert code.contains(codes_of(text), width).tolist() == expected
