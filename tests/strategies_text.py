"""Vocabularies, patterns and texts over a tiny alphabet, so that everything collides with everything."""

from __future__ import annotations

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
def vocabularies(draw: st.DrawFn) -> tuple[list[bytes | None], set[int]]:
    """Tokens (None: an id without token) and the special ids; duplicates, prefixes, empty tokens, partial UTF-8."""
    tokens: list[bytes | None] = draw(st.lists(byte_strings(max_size=5), min_size=1, max_size=24))
    if draw(st.booleans()):
        tokens += [part for part in (b"a", b"b", b" ", b".")]
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
