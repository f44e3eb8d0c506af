"""Vocabularies, patterns and texts over a tiny alphabet, so that everything collides with everything."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypothesis import strategies as st

from prod_decode.automaton import Pattern
from prod_decode.normalize import Normalization
from tests import oracle

# Word characters in both cases, other characters, every kind of whitespace that code has, halves of a two-byte
# character ("\u00e9" is c3 a9) and a byte that UTF-8 never contains.
ALPHABET = [b"a", b"b", b"A", b"_", b".", b"(", b" ", b" ", b"\n", b"\t", b"\xc3", b"\xa9", b"\xff"]


def byte_strings(min_size: int = 0, max_size: int = 6) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(ALPHABET), min_size=min_size, max_size=max_size).map(b"".join)


normalizations = st.builds(Normalization, mode=st.sampled_from(["none", "code"]), ignore_case=st.booleans())


@st.composite
def vocabularies(draw: st.DrawFn, patterns: Sequence[Pattern] = ()) -> tuple[list[bytes | None], set[int]]:
    """Tokens (None: an id without token) and the special ids; duplicates, prefixes, empty tokens, partial UTF-8.

    Some patterns are there cut in two, so that they get under way more often than by chance.
    """
    tokens: list[bytes | None] = draw(st.lists(byte_strings(max_size=5), min_size=1, max_size=16))
    if draw(st.booleans()):
        tokens += [b"a", b"b", b" ", b"."]
    for pattern in draw(st.lists(st.sampled_from(patterns), max_size=4)) if patterns else ():
        cut = draw(st.integers(0, len(pattern.symbols)))
        tokens += [pattern.symbols[:cut], pattern.symbols[cut:] + draw(st.sampled_from([b"", b"a", b".", b" "]))]
    for at in draw(st.lists(st.integers(0, len(tokens) - 1), max_size=2)):
        tokens.append(tokens[at])
    if draw(st.booleans()):
        tokens.append(None)
    known = [i for i, token in enumerate(tokens) if token is not None]
    special = set(draw(st.lists(st.sampled_from(known), max_size=2)))
    return tokens, special


@st.composite
def pattern_lists(draw: st.DrawFn, normalization: Normalization, max_size: int = 8) -> list[Pattern]:
    patterns = set()
    for text in draw(st.lists(byte_strings(min_size=1, max_size=9), max_size=max_size)):
        symbols = oracle.normalize(text, normalization.mode, normalization.ignore_case)
        if symbols:
            bound = draw(st.booleans()) and oracle.is_word(symbols, 0)
            whole = draw(st.booleans()) and oracle.is_word(symbols, len(symbols) - 1)
            patterns.add(Pattern(bound, symbols, whole))
    return sorted(patterns)


# ---- texts ---------------------------------------------------------------------------------------------------------

SPACES = [" ", "\n", "\t", "\r", "\f", "\v"]
# Two to four bytes long; capitals whose lower case is ASCII or longer; spaces that are none in code.
FOREIGN = ["\u00e9", "\u00c9", "\u212a", "\u0130", "\u00a0", "\u0085", "\u2028", "\u65e5", "\U0001f600", "\x00", "\x1f"]

# Any Unicode text, dense in what normalisation treats differently.
texts = st.lists(
    st.one_of(
        st.sampled_from(["a", "b", "A", "Z9", "_", "0", "a  b", "a\n Z"]),
        st.sampled_from(["a", "b", *SPACES, " \n", "\t  "]),
        st.sampled_from(list(".(=[`{@")),
        st.sampled_from(FOREIGN),
        st.characters(codec="utf-8"),
    ),
    max_size=30,
).map("".join)


def planted(patterns: Sequence[Pattern], max_size: int = 40) -> st.SearchStrategy[bytes]:
    """Byte strings in which patterns occur more often than by chance."""
    parts = [st.sampled_from(ALPHABET), *([st.sampled_from([p.symbols for p in patterns])] if patterns else [])]
    return st.lists(st.one_of(parts), max_size=max_size).map(b"".join)


def spaced(pieces: list[str], draw: st.DrawFn) -> str:
    """The pieces (words, and single characters of other kinds) with whitespace between, some only where words meet."""
    text = ""
    for piece in pieces:
        must = bool(text) and is_word_character(text[-1]) and is_word_character(piece[0])
        text += "".join(draw(st.lists(st.sampled_from(SPACES), min_size=must, max_size=2))) + piece
    return text + "".join(draw(st.lists(st.sampled_from(SPACES), max_size=2)))


def is_word_character(character: str) -> bool:
    return character.isascii() and oracle.is_word(character.encode(), 0)


def pieces_of(text: str) -> list[str]:
    """The words and the other characters of a text, without its whitespace."""
    return re.findall(r"[A-Za-z0-9_]+|[^ \t\n\r\f\v]", text)


# Documents that repeat themselves, over few characters, one of them not ASCII.
documents = st.text(st.sampled_from("abA_.( \n\u00e9"), min_size=50, max_size=400)
