"""Which tokens keep a text valid UTF-8: for engines that leave other bytes out of what they show.

A decoder that drops a stray byte joins what stands around it. `yaml`, a byte A1, `.load(` is shown as `yaml.load(`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode.storage.jit import jit
from prod_decode.tokens.vocabulary import TEXT, Vocabulary

# Where a character stands (RFC 3629): whole; one, two or three bytes are missing; behind E0, ED, F0 or F4, which allow
# fewer second bytes than others.
_WHOLE, _ONE, _TWO, _THREE, _E0, _ED, _F0, _F4 = range(8)
_BROKEN = -1


def _steps() -> NDArray[np.int8]:
    """int8 [8, 256]: the state after each byte."""
    steps = np.full((8, 256), _BROKEN, np.int8)
    leads = ((0x00, 0x7F, _WHOLE), (0xC2, 0xDF, _ONE), (0xE1, 0xEC, _TWO), (0xEE, 0xEF, _TWO), (0xF1, 0xF3, _THREE))
    singles = ((0xE0, 0xE0, _E0), (0xED, 0xED, _ED), (0xF0, 0xF0, _F0), (0xF4, 0xF4, _F4))
    for first, last, after in (*leads, *singles):
        steps[_WHOLE, first : last + 1] = after
    for state, first, last, after in (
        (_ONE, 0x80, 0xBF, _WHOLE),
        (_TWO, 0x80, 0xBF, _ONE),
        (_THREE, 0x80, 0xBF, _TWO),
        (_E0, 0xA0, 0xBF, _ONE),
        (_ED, 0x80, 0x9F, _ONE),
        (_F0, 0x90, 0xBF, _TWO),
        (_F4, 0x80, 0x8F, _TWO),
    ):
        steps[state, first : last + 1] = after
    return steps


_STEPS = _steps()


class Utf8:
    """The tokens that would break a character, by the bytes before them. Special tokens add no bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._breaking = cache(self._tokens_that_break)

    def breaking(self, token_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """The tokens that may not follow a text of these tokens, which is valid so far: int32 [n], ascending."""
        tail = b""
        for token_id in token_ids[::-1].tolist():
            # What is longer than a character has the beginning of the last one in it.
            if len(tail) >= 4:
                break
            known = 0 <= token_id < len(self._vocabulary) and self._vocabulary.kinds[token_id] == TEXT
            tail = (self._vocabulary.token_bytes(token_id) if known else b"") + tail
        begins = next((i for i in range(len(tail) - 1, -1, -1) if tail[i] & 0xC0 != 0x80), len(tail))
        state = _WHOLE
        for byte in tail[begins:]:
            state = int(_STEPS[state, byte])
            if state == _BROKEN:
                return self._breaking(_WHOLE)
        return self._breaking(state)

    def _tokens_that_break(self, state: int) -> NDArray[np.int32]:
        vocabulary = self._vocabulary
        breaks = _break(_STEPS, state, vocabulary.data, vocabulary.offsets, vocabulary.kinds == TEXT)
        return np.flatnonzero(breaks).astype(np.int32)


@jit
def _break(
    steps: NDArray[np.int8],
    begin: int,
    data: NDArray[np.uint8],
    offsets: NDArray[Any],
    text: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Bool [V]: whether a token of text leads from a state to none."""
    breaks = np.zeros(len(text), np.bool_)
    for token in range(len(text)):
        state = begin
        if text[token]:
            for i in range(offsets[token], offsets[token + 1]):
                state = steps[state, data[i]]
                if state < 0:
                    breaks[token] = True
                    break
    return breaks
