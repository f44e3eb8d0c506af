"""Normalisation against regular expressions, and what it promises about places and whitespace."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.errors import ProdError
from prod_decode.text.normalize import Normalization
from tests import oracle
from tests.strategies import SPACES, byte_strings, is_word_character, normalizations, pieces_of, spaced, texts


@given(texts, normalizations)
def test_symbols_and_code_points_equal_the_oracle(text: str, normalization: Normalization) -> None:
    expected = oracle.normalize_text(text, normalization)
    assert normalization.symbols(text).decode() == expected
    assert normalization.code_points(text).tobytes().decode("utf-32-le") == expected


@given(st.one_of(byte_strings(max_size=30), st.binary(max_size=30)), normalizations)
def test_run_takes_bytes_that_are_no_utf8(data: bytes, normalization: Normalization) -> None:
    codes = np.frombuffer(data, np.uint8)
    symbols, _ = normalization.run(codes)
    assert symbols.tobytes() == oracle.normalize(data, normalization.mode, normalization.ignore_case)
    assert symbols.dtype == np.uint8


@given(texts, normalizations)
def test_origins_lead_back_to_the_text(text: str, normalization: Normalization) -> None:
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    symbols, origins = normalization.run(codes)
    places = origins.tolist()
    assert places == sorted(set(places))
    kept = set(places)
    for symbol, at in zip(map(chr, symbols.tolist()), places, strict=True):
        if normalization.is_code and text[at] in SPACES:
            run = re.compile(r"[ \t\n\r\f\v]+").match(text, at)
            assert run is not None
            # It stands for the first character of a whole run, which separates two words.
            assert symbol == " "
            assert is_word_character(text[at - 1])
            assert is_word_character(text[run.end()])
            kept.update(range(at, run.end()))
        else:
            assert symbol == (text[at].lower() if normalization.ignore_case and text[at].isascii() else text[at])
    left_out = [text[at] for at in range(len(text)) if at not in kept]
    assert all(character in SPACES for character in left_out)
    assert normalization.is_code or not left_out


@given(st.data(), st.one_of(byte_strings(max_size=30), st.binary(max_size=30)), normalizations, st.integers(0, 200))
def test_folding_and_locating_is_running(
    data: st.DataObject, piece: bytes, normalization: Normalization, times: int
) -> None:
    """Over several blocks; runs of whitespace may lie across their edges."""
    codes = np.frombuffer(piece * times + piece, np.uint8)
    symbols, origins = normalization.run(codes)
    folded, marks = normalization.fold(codes)
    assert folded.tobytes() == symbols.tobytes()
    wanted = sorted(data.draw(st.sets(st.integers(0, len(symbols) - 1), max_size=9))) if len(symbols) else []
    found = normalization.locate(codes, marks, np.array(wanted, np.int64))
    assert found.tolist() == origins[wanted].tolist()


def test_a_run_of_whitespace_over_several_blocks() -> None:
    codes = np.frombuffer(b"a" * 1000 + b" " * 5000 + b"b", np.uint8)
    symbols, marks = Normalization("code").fold(codes)
    assert symbols.tobytes() == b"a" * 1000 + b" b"
    found = Normalization("code").locate(codes, marks, np.array([999, 1000, 1001], np.int64))
    assert found.tolist() == [999, 1000, 6000]


@given(texts, normalizations)
def test_normalising_twice_changes_nothing(text: str, normalization: Normalization) -> None:
    once = normalization.symbols(text)
    assert normalization.symbols(once.decode()) == once


@given(st.data(), texts, st.booleans())
def test_code_ignores_all_whitespace_but_that_between_words(data: st.DataObject, text: str, ignore_case: bool) -> None:
    normalization = Normalization("code", ignore_case)
    assert normalization.symbols(spaced(pieces_of(text), data.draw)) == normalization.symbols(text)


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("yaml . load (\n  x )", "yaml.load(x)"),
        ("return  x", "return x"),
        ("returnx", "returnx"),
        ("\u00e9 t\u00e9", "\u00e9t\u00e9"),
        ("a\u00a0b\x1fc", "a\u00a0b\x1fc"),
    ],
)
def test_examples_of_mode_code(text: str, symbols: str) -> None:
    assert Normalization("code").symbols(text).decode() == symbols


def test_mode_none_keeps_every_byte() -> None:
    assert Normalization("none").symbols(" a \n b ") == b" a \n b "


@given(texts, st.integers(0xD800, 0xDFFF), texts, normalizations)
def test_surrogates_are_refused(before: str, code: int, after: str, normalization: Normalization) -> None:
    expected = re.escape(f"lone surrogate U+{code:04X} at character {len(before)}, which UTF-8 cannot carry: remove it")
    for method in (normalization.symbols, normalization.code_points):
        with pytest.raises(ProdError, match=expected):
            method(before + chr(code) + after)


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ProdError, match="ignore_case must be True or False, got 'no'"):
        Normalization(ignore_case="no")  # type: ignore[arg-type]
    with pytest.raises(ProdError, match="normalize must be 'none' or 'code', got 'python'"):
        Normalization("python")  # type: ignore[arg-type]
