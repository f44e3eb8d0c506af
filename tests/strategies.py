"""Hypothesis strategies, one section for each module under test. Sizes are small, odd values frequent."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from prod_decode.match.automaton import Pattern
from prod_decode.text.normalize import Normalization
from prod_train.data.rows import Row
from tests import oracle

# ---- masking: logits, prohibited sets, options --------------------------------------------------------------------

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# Multiples of 1/8 below 16: exact in every dtype, with many ties, and exact under shifts by whole numbers in float32.
GRID = st.integers(-127, 127).map(lambda i: i / 8)
# What a broken or masked model emits, and numbers at the ends of the dtypes.
SPECIAL = st.sampled_from([-np.inf, np.inf, np.nan, 0.0, -0.0, 65504.0, -65504.0, 1e30, -1e30, 3e38, -3e38, 1e-40])
ORDINARY = st.floats(-40, 40)


def shapes(max_columns: int = 24) -> st.SearchStrategy[tuple[int, ...]]:
    """[..., V] with no to three leading dimensions, some of them empty."""
    leading = st.lists(st.sampled_from([1, 2, 3, 2, 3, 0]), max_size=3).map(tuple)
    return st.tuples(leading, st.integers(1, max_columns)).map(lambda pair: (*pair[0], pair[1]))


@st.composite
def integers(draw: st.DrawFn, shape: tuple[int, ...], bound: int = 256) -> Tensor:
    """int64 below `bound` <= 256, all in one draw. `hypothesis.extra.numpy` is slower and makes most of them equal."""
    size = math.prod(shape)
    return torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.int64).reshape(shape) % bound


@st.composite
def logits(
    draw: st.DrawFn,
    elements: st.SearchStrategy[float] = GRID | ORDINARY | SPECIAL,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
) -> Tensor:
    """Logits with many ties, on the CPU. What is out of a dtype's range is +inf or -inf, as from a real model."""
    palette = torch.tensor(draw(st.lists(elements, min_size=1, max_size=12)), dtype=torch.float64)
    return palette[draw(integers(draw(shapes()), len(palette)))].to(draw(st.sampled_from(dtypes)))


@st.composite
def distinct_logits(draw: st.DrawFn) -> Tensor:
    """float32 logits, multiples of 1/4, no two equal in a row."""
    return draw(integers(draw(shapes()))).argsort(dim=-1, stable=True) / 4


@dataclass(frozen=True)
class Ban:
    """A prohibited set in one of the forms that the kernel takes, and as a bool tensor that tests can index."""

    form: Any
    mask: Tensor


@st.composite
def pairs(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """(rows, cols) into the flattened leading dimensions: any order, duplicates; NumPy arrays or tensors."""
    count = math.prod(shape[:-1])
    size = draw(st.integers(0, 2 * shape[-1])) if count else 0
    dtype = draw(st.sampled_from([torch.int64, torch.int32]))
    rows, cols = (draw(integers((size,), bound)).to(dtype) for bound in (max(count, 1), shape[-1]))
    if draw(st.booleans()):
        return rows, cols
    # As a matcher may hand them out: read-only, and views with any stride.
    views = rows.numpy()[::-1], cols.numpy()[::-1]
    views[0].flags.writeable = False
    return views


@st.composite
def bans(draw: st.DrawFn, shape: tuple[int, ...]) -> Ban:
    """A prohibited set for logits of that shape, in each of the three forms."""
    kind = draw(st.sampled_from(["pairs", "tokens", "mask"]))
    if kind == "mask":
        mask = draw(integers(shape)) < draw(st.integers(0, 256))
        return Ban(mask, mask)
    if kind == "tokens":
        tokens = draw(integers(shape[:-1], shape[-1] + 2)) - 2
        return Ban(tokens, tokens.unsqueeze(-1) == torch.arange(shape[-1]))
    rows, cols = draw(pairs(shape))
    mask = torch.zeros(math.prod(shape[:-1]), shape[-1], dtype=torch.bool)
    for row, col in zip(rows.tolist(), cols.tolist(), strict=True):
        mask[row, col] = True
    return Ban((rows, cols), mask.view(shape))


def options() -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments of `nucleus_support`; `prod_distribution` takes `alpha` besides."""
    return st.fixed_dictionaries(
        {
            "top_p": st.sampled_from([0.0, 0.8, 1.0, 2.0]) | st.floats(0, 1),
            "max_n": st.none() | st.integers(1, 9) | st.just(99),
            "temperature": st.none() | st.floats(0.05, 20),
        }
    )


# ---- text: vocabularies, patterns and texts over a tiny alphabet, so that everything collides with everything -------

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


# ---- device: texts in slots, as an engine schedules them ------------------------------------------------------------


@dataclass(frozen=True)
class Visit:
    """The rows of one slot in a step: one for the last committed token and one for each draft.

    Attributes:
        slot: also numbers that are no slot, as in padded rows.
        drafts: token ids.
        held_back: committed tokens that these rows come before, as while a long prompt is read in parts.
    """

    slot: int
    drafts: list[int]
    held_back: int


@dataclass(frozen=True)
class Step:
    """What happens before a step, by slot, and the rows of the step.

    Attributes:
        more: slot -> tokens that come to its text.
        moved: slots into which another, empty text moves before that.
        visits: in the order of the rows; no slot twice.
        calls: how often the rows are masked.
    """

    more: dict[int, list[int]]
    moved: list[int]
    visits: list[Visit]
    calls: int


@st.composite
def schedules(draw: st.DrawFn, ids: Sequence[int], odd_ids: Sequence[int], slots: int, max_drafts: int) -> list[Step]:
    """Steps over texts of the tokens `ids`, with one of `odd_ids` now and then."""
    token = st.sampled_from([*ids] * 8 + [*odd_ids]) if draw(st.booleans()) else st.sampled_from(ids)
    slot = st.integers(0, slots - 1)
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        places = draw(st.lists(st.sampled_from([*range(slots)] * 2 + [-1, slots]), unique=True, max_size=slots + 1))
        visits = [
            Visit(
                place,
                draw(st.lists(token, max_size=max_drafts)),
                draw(st.sampled_from([0, 0, 0, 1, 3])),
            )
            for place in places
        ]
        steps.append(
            Step(
                more=draw(st.dictionaries(slot, st.lists(token, max_size=8), max_size=slots)),
                moved=draw(st.lists(slot, max_size=1)),
                visits=visits,
                calls=draw(st.sampled_from([1, 1, 2])),
            )
        )
    return steps


# ---- trade-offs: (utility, forget quality) on a coarse grid, so that ties and equal points are frequent -------------


def points(min_size: int = 0) -> st.SearchStrategy[list[tuple[float, float]]]:
    """Multiples of 1/8 from 0 to 1: sums and products of them are exact."""
    eighths = st.integers(0, 8).map(lambda i: i / 8)
    return st.lists(st.tuples(eighths, eighths), min_size=min_size, max_size=8)


# ---- programs: small, valid, with what a rewriting of source must not break ------------------------------------------

_NAMES = st.sampled_from(["x", "total_sum", "rowCount", "Shape", "LIMIT", "_hidden", "data", "i"])
_ATOMS = st.one_of(
    _NAMES,
    st.sampled_from(
        ["1", "0x1f", "1e5", "'a # b'", '"it\'s"', "'''two\n  lines'''", "f'{x} y'", "b'z'", "r'\\d'", "None", '"q"']
    ),
)
_EXPRESSIONS = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: f"({p[0]} + {p[1]})"),
        st.lists(inner, min_size=1, max_size=3).map(lambda xs: f"f_1({', '.join(xs)})"),
        st.lists(inner, min_size=1, max_size=3).map(lambda xs: "[\n    " + ",\n    ".join(xs) + ",  # last\n]"),
        st.tuples(inner, inner).map(lambda p: f"{{{p[0]}:\n{p[1]}}}"),
        st.tuples(_NAMES, inner).map(lambda p: f"[{p[1]} for {p[0]} in data if {p[0]}.{p[0]}]"),
        st.tuples(_NAMES, inner).map(lambda p: f"g(key={p[1]}, rowCount={p[0]})"),
        st.tuples(_NAMES, inner).map(lambda p: f"(lambda {p[0]}: {p[1]})"),
    ),
    max_leaves=5,
)
_STATEMENTS = st.one_of(
    st.tuples(_NAMES, _EXPRESSIONS).map(lambda p: f"{p[0]} = {p[1]}"),
    st.tuples(_NAMES, _EXPRESSIONS).map(lambda p: f"{p[0]}.{p[0]} = {p[1]}  # {p[0]}"),
    _EXPRESSIONS.map(lambda e: f"print({e}); pass"),
    st.sampled_from(
        ["import os", "from a.b import data as i", "# only a comment\npass", "x = 1 + \\\n    2", "pass\n"]
    ),
)


def _indented(block: str) -> str:
    # Textually, so that it also moves lines inside strings and brackets: still the same program, another one.
    return "\n".join("    " + line if line.strip() else line for line in block.split("\n"))


def _compounds(body: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    block = body.map(_indented)
    return st.one_of(
        st.tuples(_NAMES, _NAMES, block).map(lambda p: f"def {p[0]}({p[1]}, *, other=None):\n{p[2]}"),
        st.tuples(_NAMES, block).map(lambda p: f"class {p[0]}:\n    data = 1\n{p[1]}"),
        st.tuples(_EXPRESSIONS, block, block).map(lambda p: f"if {p[0]}:\n{p[1]}\n\nelse:\n{p[2]}"),
        st.tuples(_NAMES, block).map(lambda p: f"for {p[0]} in data:\n{p[1]}"),
        st.tuples(block, _NAMES, block).map(lambda p: f"try:\n{p[0]}\nexcept OSError as {p[1]}:\n{p[2]}"),
        st.tuples(_NAMES, block).map(lambda p: f"with open('f') as {p[0]}:\n{p[1]}"),
    )


programs = st.lists(
    st.recursive(
        _STATEMENTS,
        lambda body: st.lists(st.one_of(body, _compounds(body)), min_size=1, max_size=3).map("\n".join),
        max_leaves=6,
    ),
    min_size=1,
    max_size=3,
).map(lambda parts: "\n".join(parts) + "\n")


@st.composite
def rows_to_continue(draw: st.DrawFn) -> list[Row]:
    """Rows of byte tokens, supervised from somewhere on, with or without an EOS at their end."""
    rows = []
    for number in range(draw(st.integers(1, 4))):
        ids = np.array(draw(st.lists(st.integers(0, 255), min_size=2, max_size=12)), np.int64)
        has_eos = len(ids) > 2 and draw(st.booleans())
        start = draw(st.integers(1, len(ids) - 1 - has_eos))
        rows.append(Row(ids, np.arange(len(ids)) >= start, start, f"file:{number}", has_eos=has_eos))
    return rows
