r"""Texts with the escapes of JSON decoded: what whoever parses a tool call or a structured output will see.

A model that writes a file as an argument of a tool call writes `"import os\nos.system('ls')"`. The text has a backslash
and an n where the file has the end of a line. So an output is read in one way more: its escapes are decoded, wherever
they stand, and then it is normalised and followed as any text.

Decoding is a transducer over bytes. `\n \t \r \b \f \" \\ \/` and `\uXXXX` become the UTF-8 of what they stand for. A
backslash that begins none of these stands for itself. Of a character that takes two escapes (a surrogate pair), each
gives half of the four bytes; a surrogate without its other half gives bytes that no UTF-8 has. An *escape state* is all
that it remembers: 0 outside of an escape. After any `"` it is 0, so that what stands before a string, whatever it is,
changes nothing in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.storage.jit import inline, jit
from prod_decode.text.normalize import fold, transduce

# An escape state: how much of an escape is there in the low three bits (from `AFTER_U` on, with so many digits); then
# 0, or 4 and two bits of the surrogate that came last, if the other half may follow; from bit 8 on the digits.
OUTSIDE, AFTER_BACKSLASH, AFTER_U = 0, 1, 2
_STAGE, _HIGH = 7, 7 << 3

# Bytes that one byte of a text can give: five that turn out to begin no escape, and itself.
MOST = 6

BACKSLASH, _U = 0x5C, 0x75

# Bytes with which a stop string may cut inside of an escape, or before it.
IN_ESCAPES = frozenset(b"\\u0123456789abcdefABCDEF")


def _meanings() -> NDArray[np.uint8]:
    meanings = np.zeros(256, np.uint8)
    for byte, meaning in zip(b'ntrbf"\\/', b'\n\t\r\b\f"\\/', strict=True):
        meanings[byte] = meaning
    return meanings


def _digits() -> NDArray[np.uint8]:
    digits = np.full(256, 255, np.uint8)
    for byte in b"0123456789abcdefABCDEF":
        digits[byte] = int(chr(byte), 16)
    return digits


# What stands for what behind a backslash, 0: nothing; and the values of hexadecimal digits, 255: none.
_MEANINGS, _DIGITS = _meanings(), _digits()


@jit
def feed(escape: int, byte: int, out: NDArray[np.uint8], count: int) -> tuple[int, int]:
    """Decode one byte: the escape state after it; what it gives is written behind `count` bytes of `out`."""
    stage, high = escape & _STAGE, escape & _HIGH
    if stage == AFTER_BACKSLASH:
        if byte == _U:
            return AFTER_U | high, count
        if _MEANINGS[byte] == 0:
            out[count] = BACKSLASH
            out[count + 1] = byte
            return OUTSIDE, count + 2
        out[count] = _MEANINGS[byte]
        return OUTSIDE, count + 1
    if stage >= AFTER_U:
        there = stage - AFTER_U
        if _DIGITS[byte] != 255:
            if there < 3:
                return (escape + 1) | (byte << (8 + 8 * there)), count
            code = int(_DIGITS[byte])
            for k in range(3):
                code |= int(_DIGITS[(escape >> (8 + 8 * k)) & 255]) << (12 - 4 * k)
            return _put(code, high, out, count)
        # No escape after all.
        out[count] = BACKSLASH
        out[count + 1] = _U
        for k in range(there):
            out[count + 2 + k] = (escape >> (8 + 8 * k)) & 255
        count += 2 + there
        high = 0
    if byte == BACKSLASH:
        return AFTER_BACKSLASH | high, count
    out[count] = byte
    return OUTSIDE, count + 1


@inline
def _put(code: int, high: int, out: NDArray[np.uint8], count: int) -> tuple[int, int]:
    """Write the UTF-8 of a UTF-16 unit; `high`: the bits of the escape state that tell of the unit before."""
    after = OUTSIDE
    if code < 0x80:
        out[count] = code
        count += 1
    elif code < 0x800:
        out[count] = 0xC0 | (code >> 6)
        out[count + 1] = 0x80 | (code & 63)
        count += 2
    elif 0xD800 <= code < 0xDC00:
        # Of U+10000 + (code - 0xD800) * 1024 + (the other half - 0xDC00): two of four bytes, and two bits of the third.
        whole = 0x10000 + ((code - 0xD800) << 10)
        out[count] = 0xF0 | (whole >> 18)
        out[count + 1] = 0x80 | ((whole >> 12) & 63)
        count += 2
        after = (4 | (code & 3)) << 3
    elif 0xDC00 <= code < 0xE000 and high:
        out[count] = 0x80 | (((high >> 3) & 3) << 4) | ((code - 0xDC00) >> 6)
        out[count + 1] = 0x80 | (code & 63)
        count += 2
    else:
        out[count] = 0xE0 | (code >> 12)
        out[count + 1] = 0x80 | ((code >> 6) & 63)
        out[count + 2] = 0x80 | (code & 63)
        count += 3
    return after, count


@jit
def decode_each(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], escape: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Tokens decoded, each from the escape state `escape`; what an escape has not got to yet is left out.

    Args:
        data: uint8 [bytes], all joined.
        offsets: int64 [tokens + 1], where each begins.
        escape: an escape state.

    Returns:
        The same of the decoded ones.
    """
    tokens = len(offsets) - 1
    out = np.empty(len(data) + MOST * tokens + MOST, np.uint8)
    begins = np.empty(tokens + 1, np.int64)
    count = 0
    for token in range(tokens):
        begins[token] = count
        state = escape
        for i in range(offsets[token], offsets[token + 1]):
            state, count = feed(state, data[i], out, count)
    begins[tokens] = count
    return out[:count].copy(), begins


def room_of(data: int) -> int:
    """Symbols that a token of so many bytes emits at most, in any state: with a space before each, and one escape."""
    return 2 * (data + MOST)


@jit
def symbols_of(
    classes: NDArray[np.uint8],
    data: NDArray[np.uint8],
    is_code: bool,
    ignore_case: bool,
    text_state: int,
    escape: int,
    symbols: NDArray[np.uint8],
) -> tuple[int, int, int]:
    """Decode and normalise a token into `symbols`, which has `room_of` it.

    Returns:
        The number of symbols, the text state, and the escape state.
    """
    decoded = np.empty(MOST, np.uint8)
    count = 0
    for i in range(len(data)):
        # Nearly always, and without a call.
        decoded[0], given = data[i], 1
        if escape != OUTSIDE or data[i] == BACKSLASH:
            escape, given = feed(escape, data[i], decoded, 0)
        for k in range(given):
            text_state, emitted = transduce(text_state, classes[decoded[k]], is_code)
            if emitted == 2:
                symbols[count] = 32
                count += 1
            if emitted:
                symbols[count] = fold(decoded[k], ignore_case)
                count += 1
    return count, text_state, escape


class Decoded(NamedTuple):
    """A text decoded, and where its bytes come from.

    Attributes:
        codes: uint8 [m].
        spans: int64 [escapes, 4]: `codes[a:b]` stand for `text[c:d]`; between two spans the bytes are the text's own.
    """

    codes: NDArray[np.uint8]
    spans: NDArray[np.int64]

    @classmethod
    def of(cls, codes: NDArray[np.uint8]) -> Decoded:
        """Decode a whole text, uint8 [n]."""
        return cls(*_decode(codes))

    @classmethod
    def nothing(cls, codes: NDArray[np.uint8]) -> Decoded:
        """A text as it is."""
        return cls(codes, np.empty((0, 4), np.int64))

    def origins(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first and the last byte of the text of what stands at `places` of `codes`, int64 [k]: both int64 [k]."""
        if not len(self.spans):
            return places, places
        which = np.searchsorted(self.spans[:, 0], places, side="right") - 1
        _, end, first, behind = self.spans[np.maximum(which, 0)].T
        inside = (which >= 0) & (places < end)
        shift = np.where(which >= 0, behind - end, 0)
        return np.where(inside, first, places + shift), np.where(inside, behind - 1, places + shift)

    def characters(
        self,
        codes: NDArray[np.uint8],
        locate: Callable[[NDArray[np.int64]], NDArray[np.int64]],
        firsts: NDArray[np.int64],
        lasts: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where runs of symbols stand in the text, in its characters: from, and up to, both int64 [k].

        Args:
            codes: the text, uint8 [n].
            locate: from indices of symbols, ascending, to those of the bytes of `self.codes` that they come from.
            firsts: int64 [k], the index of each one's first symbol.
            lasts: int64 [k], and of its last.
        """
        wanted, which = np.unique(np.concatenate((firsts, lasts)), return_inverse=True)
        places = locate(wanted)[which].reshape(2, -1)
        starts, ends = self.origins(places[0])[0], self.origins(places[1])[1]
        continuations = np.flatnonzero(codes.view(np.int8) < -0x40)  # bytes that begin no character: 0x80 to 0xBF
        starts, ends = (at - np.searchsorted(continuations, at, side="right") for at in (starts, ends))
        return starts, ends + 1


def readings(codes: NDArray[np.uint8], unescape: bool) -> list[Decoded]:
    """A text, uint8 [n], as it is, and with its escapes decoded, if that is asked for and it may have some."""
    is_two = unescape and bool((codes == BACKSLASH).any())
    return [Decoded.nothing(codes), *([Decoded.of(codes)] if is_two else [])]


@jit
def _decode(codes: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    out = np.empty(len(codes) + MOST, np.uint8)
    spans = np.empty((256, 4), np.int64)
    found, count, escape, begin, written = 0, 0, OUTSIDE, 0, 0
    for i in range(len(codes)):
        # Nearly always, and without a call.
        if escape == OUTSIDE and codes[i] != BACKSLASH:
            out[count] = codes[i]
            count += 1
            continue
        if escape & _STAGE == 0:
            begin, written = i, count
        escape, count = feed(escape, codes[i], out, count)
        if escape & _STAGE == AFTER_BACKSLASH:
            begin, written = i, count
        # What was no escape is as long as before.
        elif escape & _STAGE == 0 and count - written != i + 1 - begin:
            if found == len(spans):
                longer = np.empty((2 * found, 4), np.int64)
                longer[:found] = spans
                spans = longer
            spans[found, 0], spans[found, 1], spans[found, 2], spans[found, 3] = written, count, begin, i + 1
            found += 1
    return out[:count], spans[:found]


def decode_text(text: str) -> str:
    """A text decoded; bytes that are no UTF-8, of a surrogate alone, become U+FFFD."""
    codes = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    return Decoded.of(codes).codes.tobytes().decode("utf-8", "replace")
