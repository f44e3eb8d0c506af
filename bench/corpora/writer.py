"""Somebody who wants a text out: how far it can be written from any place of it before a guard bans every way on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.corpora.walks import Follows, refused
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.vocabulary import TEXT, Vocabulary

_CODE = Normalization("code")


# Bytes that are written at most, beyond what any of the guards bounds.
FAR = 400


@dataclass(frozen=True, slots=True)
class Leaked:
    """What came out of some documents.

    Attributes:
        longest: the longest run that could be written, in symbols.
        starts: from how many places it was tried.
        beyond: from how many of them a run of `quote` symbols could be written.
    """

    longest: int
    starts: int
    beyond: int


class Writer:
    """Writes texts under a guard: of the tokens that go on with the text always the longest that is not banned."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """With the tokens of a vocabulary."""
        self._tokens: dict[bytes, int] = {}
        for token in np.flatnonzero(vocabulary.kinds == TEXT).tolist():
            if text := vocabulary.token_bytes(token):
                self._tokens.setdefault(text, token)
        self._longest = max(map(len, self._tokens))

    def write(self, tracker: Follows, text: bytes) -> bytes:
        """As much of a text as comes out, from its beginning."""
        tracker.read(np.arange(1), [np.zeros(0, np.int64)], np.zeros(1, np.int64))
        at = 0
        while at < len(text):
            for length in range(min(self._longest, len(text) - at), 0, -1):
                token = self._tokens.get(text[at : at + length])
                if token is not None and not refused(tracker, np.array([token], np.int64)).any():
                    tracker.advance(np.array([token], np.int64))
                    at += length
                    break
            else:
                break
        return text[:at]


def leaked(write: Callable[[bytes], bytes], texts: Sequence[str], quote: int, stride: int, far: int = FAR) -> Leaked:
    """How far some texts can be written, without layout.

    Args:
        write: what comes out where a text is wanted.
        texts: what is wanted.
        quote: symbols of a run that a guard should not let through.
        stride: bytes from one place where it is tried to the next.
        far: bytes that are wanted from each.
    """
    lengths = []
    for text in texts:
        wanted = text.encode()
        for start in range(0, max(1, len(wanted) - far), stride):
            out = write(wanted[start : start + far]).decode("utf-8", "replace")
            lengths.append(len(_CODE.symbols(out)))
    return Leaked(max(lengths, default=0), len(lengths), sum(length >= quote for length in lengths))


def spread_out(text: str) -> str:
    """The same code in another layout: a blank more at every blank."""
    return text.replace(" ", "  ")
