"""The matcher against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.automaton import Automaton
from prod_decode.errors import ProdError
from prod_decode.matcher import Matcher
from prod_decode.vocabulary import Vocabulary
from tests.oracle import NaiveMatcher
from tests.strategies_text import normalizations, pattern_lists, vocabularies


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Matcher, NaiveMatcher, list[int]]:
    normalization = draw(normalizations)
    tokens, special = draw(vocabularies())
    patterns = draw(pattern_lists(normalization))
    matcher = Matcher(Automaton.build(patterns), normalization, Vocabulary.from_bytes(tokens, special=special))
    naive = NaiveMatcher(tokens, special, patterns, normalization.mode, normalization.ignore_case)
    usable = [i for i, token in enumerate(tokens) if token is not None]
    history = draw(st.lists(st.sampled_from(usable), max_size=8))
    return matcher, naive, history


def walk(matcher: Matcher, history: list[int]) -> int:
    state = matcher.start()
    for token_id in history:
        state = matcher.advance(state, token_id)
    return state


@given(pairs())
def test_banned_equals_brute_force(pair: tuple[Matcher, NaiveMatcher, list[int]]) -> None:
    matcher, naive, history = pair
    text_only = [token_id for token_id in history if token_id not in naive.special]
    assert matcher.banned(walk(matcher, text_only)).tolist() == naive.banned(text_only)


@given(pairs())
def test_special_tokens_hide_no_pattern_and_invent_none(pair: tuple[Matcher, NaiveMatcher, list[int]]) -> None:
    matcher, naive, history = pair
    banned = set(matcher.banned(walk(matcher, history)).tolist())
    assert set(naive.banned(history)) <= banned <= set(naive.banned(history, union=True))
