"""Sorting and merging patterns in flat arrays, against Python's own sorting of tuples."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.errors import ProdError
from prod_decode.text.patterns import Collected, Pattern, Patterns

# Long common beginnings, and zeros, which must not be taken for the end of a string.
symbols = st.lists(
    st.one_of(
        st.sampled_from([b"\0", b"a", b"ab", b"\xff", b"abcdefgh", b"\0" * 8, b"abcdefg\0"]), st.binary(min_size=1)
    ),
    min_size=1,
    max_size=5,
).map(b"".join)
owned = st.lists(
    st.tuples(st.builds(Pattern, st.booleans(), symbols, st.booleans()), st.integers(0, 3)), max_size=40
).map(lambda found: found + found[::3])


def collected(found: list[tuple[Pattern, int]]) -> Collected:
    everything = Collected()
    for pattern, owner in found:
        everything.add(pattern, owner)
    return everything


def check(everything: Collected, found: list[tuple[Pattern, int]]) -> None:
    patterns, starts, owners = everything.drain()
    expected: dict[Pattern, set[int]] = {}
    for pattern, owner in found:
        expected.setdefault(pattern, set()).add(owner)
    assert list(patterns) == sorted(expected)
    got = [owners[a:b].tolist() for a, b in pairwise(starts)]
    assert got == [sorted(expected[pattern]) for pattern in patterns]
    assert (owners.dtype, starts.dtype, patterns.data.dtype) == (np.int32, np.int64, np.uint8)


@given(owned)
def test_patterns_come_sorted_and_once(found: list[tuple[Pattern, int]]) -> None:
    check(collected(found), found)


@given(owned, owned)
def test_patterns_added_at_once_are_those_added_one_by_one(
    first: list[tuple[Pattern, int]], second: list[tuple[Pattern, int]]
) -> None:
    everything = collected(first)
    patterns, starts, owners = collected(second).drain()
    everything.extend(patterns, np.repeat(np.arange(len(patterns)), np.diff(starts)), owners.astype(np.int64))
    check(everything, first + second)


def test_many_patterns() -> None:
    random = np.random.default_rng(0)
    text = random.choice(list(b"ab\0"), 4000).astype(np.uint8).tobytes()
    cuts = zip(
        random.integers(0, 3900, 20_000), random.integers(1, 60, 20_000), random.integers(0, 9, 20_000), strict=True
    )
    found = [(Pattern(bool(n & 1), text[at : at + n], bool(n & 2)), int(owner)) for at, n, owner in cuts]
    check(collected(found), found)


def test_patterns_of_a_list() -> None:
    patterns = [
        Pattern(False, b"a", False),
        Pattern(False, b"a", True),
        Pattern(False, b"ab", False),
        Pattern(True, b"a", False),
    ]
    assert list(Patterns.of(patterns)) == patterns
    assert Patterns.of(patterns)[2] == patterns[2]
    assert list(Patterns.of([])) == []
    with pytest.raises(ProdError, match="expected distinct patterns in sorted order"):
        Patterns.of(patterns[::-1])
    with pytest.raises(ProdError, match="expected patterns of at least one symbol"):
        Patterns.of([Pattern(False, b"", False)])
