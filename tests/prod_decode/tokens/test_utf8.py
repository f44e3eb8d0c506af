"""Tokens that break a character, against Python's own incremental decoder."""

from __future__ import annotations

import codecs

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.tokens.utf8 import Utf8
from prod_decode.tokens.vocabulary import SPECIAL, Vocabulary

# Every kind of byte, and the edges of the ranges that RFC 3629 has.
BYTES = [
    *b"a ",
    *range(0x7F, 0x82),
    *(0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF),
    *(0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF),
]


def breaks(text: bytes) -> bool:
    """Whether no bytes behind it make this valid."""
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(text, final=False)
    except UnicodeDecodeError:
        return True
    return False


@given(
    st.lists(st.lists(st.sampled_from(BYTES), min_size=1, max_size=5).map(bytes), min_size=1, max_size=12), st.data()
)
def test_a_token_is_refused_if_no_bytes_could_follow_it(tokens: list[bytes], data: st.DataObject) -> None:
    tokens = [*tokens, *(bytes([byte]) for byte in BYTES), b"</s>"]
    end = len(tokens) - 1
    vocabulary = Vocabulary.from_bytes(tokens, special=[end], eos_ids=[end], _proved=True)
    assert vocabulary.kinds[end] == SPECIAL
    utf8, text, ids = Utf8(vocabulary), b"", []
    for _ in range(data.draw(st.integers(0, 8))):
        free = [i for i in range(len(tokens)) if i == end or not breaks(text + tokens[i])]
        ids.append(data.draw(st.sampled_from(free)))
        text += b"" if ids[-1] == end else tokens[ids[-1]]
    expected = [i for i in range(end) if breaks(text + tokens[i])]
    assert utf8.breaking(np.array(ids, np.int64)).tolist() == expected


def test_a_text_that_is_broken_already_goes_on() -> None:
    utf8 = Utf8(Vocabulary.from_bytes([b"a", b"\xe4", b"\xbd", b"\xa0"]))
    assert utf8.breaking(np.array([0, 1, 0], np.int64)).tolist() == [2, 3]
    assert utf8.breaking(np.array([1, 99], np.int64)).tolist() == [0, 1]
