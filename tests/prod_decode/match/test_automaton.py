"""The automaton against pyahocorasick and brute force; what `validate` guarantees about damaged arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ahocorasick
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from prod_decode.errors import ProdError
from prod_decode.match.automaton import BOUND_ROOT, ROOT, Automaton, Pattern
from prod_decode.match.matcher import step_once
from prod_decode.match.scan import Filter, _mix, _slot
from prod_decode.storage.jit import jit
from prod_decode.text.normalize import CLASSES, WORD, Normalization
from tests import oracle
from tests.strategies import pattern_lists, planted

AS_IS = Normalization("none")
pattern_sets = pattern_lists(AS_IS, max_size=12)

# Words, separators, patterns inside patterns, with and without boundaries, and bytes that are no UTF-8.
MIXED = sorted(
    {
        Pattern(True, b"eval(", False),
        Pattern(False, b"eval", True),
        Pattern(True, b"val", True),
        Pattern(False, b"al(", False),
        Pattern(False, b"\xff\x00", False),
        Pattern(False, b" eval", False),
        *(Pattern(False, b"." + bytes([i]) + b"z", False) for i in range(0, 256, 9)),
    }
)


def codes_of(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def matches(automaton: Automaton, symbols: bytes) -> NDArray[np.int64]:
    """With a filter and without; the same, in the same order. Behind the symbols lies a letter that is none of them."""
    codes = codes_of(symbols + b"a")[:-1]
    found = Filter.of(automaton).find(automaton, codes)
    assert found.tolist() == Filter.none().find(automaton, codes).tolist()
    return found


def found_in(automaton: Automaton, patterns: list[Pattern], symbols: bytes) -> set[tuple[int, Pattern]]:
    """(start, pattern) of every occurrence; every one is reported once, the longer of those that end together first."""
    found = [
        (last - length + 1, patterns[index], length) for last, index, length in matches(automaton, symbols).tolist()
    ]
    assert all(len(pattern.symbols) == length for _, pattern, length in found)
    found = [(start, pattern) for start, pattern, _ in found]
    ends = [(start + len(pattern.symbols), -len(pattern.symbols)) for start, pattern in found]
    assert ends == sorted(ends)
    assert len(found) == len(set(found))
    return set(found)


def audit(patterns: list[Pattern], symbols: bytes) -> set[tuple[int, Pattern]]:
    """The same by pyahocorasick, whose letters are characters here, with the boundaries checked afterwards."""
    words: Any = ahocorasick.Automaton()
    for pattern in patterns:
        text = pattern.symbols.decode("latin-1")
        words.add_word(text, [*words.get(text, []), pattern])
    words.make_automaton()
    return {
        (last + 1 - len(pattern.symbols), pattern)
        for last, ending in (words.iter(symbols.decode("latin-1")) if patterns else ())
        for pattern in ending
        if oracle.keeps_boundaries(symbols, last + 1 - len(pattern.symbols), pattern)
    }


@given(st.data(), pattern_sets)
def test_matches_equal_pyahocorasick_and_brute_force(data: st.DataObject, patterns: list[Pattern]) -> None:
    symbols = data.draw(planted(patterns))
    found = found_in(Automaton.build(patterns), patterns, symbols)
    assert found == audit(patterns, symbols) == oracle.occurrences(symbols, patterns)


@pytest.mark.slow
@pytest.mark.parametrize("letters", [256, 8, 2])
def test_many_patterns_over_wide_and_narrow_alphabets(letters: int) -> None:
    random = np.random.default_rng(letters)

    def draw(length: int) -> bytes:
        # Every 32nd byte: word characters and others among them, the last of them 0xff.
        spread = 255 - random.integers(0, letters, length) * (256 // letters)
        return spread.astype(np.uint8).tobytes()

    text = draw(20_000)
    cuts = [(int(at), int(at) + int(random.integers(1, 12))) for at in random.integers(0, len(text) - 12, 1500)]
    symbols = [text[a:b] for a, b in cuts] + [draw(int(random.integers(1, 6))) for _ in range(500)]
    patterns = sorted(
        {
            Pattern(bool(i & 1) and oracle.is_word(s, 0), s, bool(i & 2) and oracle.is_word(s, len(s) - 1))
            for i, s in enumerate(symbols)
        }
    )
    automaton = Automaton.build(patterns)
    automaton.validate()
    found = found_in(automaton, patterns, text)
    assert len(found) > 1000
    assert found == audit(patterns, text)
    assert list(automaton.spell()) == patterns


@given(st.data(), pattern_sets, st.integers(4, 18), st.booleans())
def test_long_patterns_are_found_behind_the_filter(
    data: st.DataObject, patterns: list[Pattern], shortest: int, everywhere: bool
) -> None:
    """Patterns of the filter's width and more; and whatever it lets through, the result is the same."""
    stretched = [Pattern(p.bound, (p.symbols * shortest)[: max(shortest, len(p.symbols))], p.whole) for p in patterns]
    fitting = (p for p in stretched if not p.whole or oracle.is_word(p.symbols, len(p.symbols) - 1))
    patterns = sorted(set(fitting))
    symbols = data.draw(planted(patterns))
    automaton = Automaton.build(patterns)
    found = Filter.of(automaton)
    assert found.window == min([16, *(len(p.symbols) for p in patterns)])
    if everywhere:
        found = replace(found, bits=~np.zeros_like(found.bits))
    assert found.find(automaton, codes_of(symbols)).tolist() == matches(automaton, symbols).tolist()
    assert found_in(automaton, patterns, symbols) == oracle.occurrences(symbols, patterns)


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_filter_over_long_texts(everywhere: bool) -> None:
    random = np.random.default_rng(0)
    text = random.choice(list(b"ab_ ("), 60_000).astype(np.uint8).tobytes()
    cuts = [(int(at), int(at) + int(random.integers(6, 30))) for at in random.integers(0, len(text) - 30, 300)]
    drawn = [text[a:b] for a, b in cuts] + [random.choice(list(b"ab_ ("), 9).astype(np.uint8).tobytes()]
    patterns = sorted({Pattern(bool(i & 1) and oracle.is_word(s, 0), s, False) for i, s in enumerate(drawn)})
    automaton = Automaton.build(patterns)
    found = Filter.of(automaton)
    assert found.window == 6
    if everywhere:
        found = replace(found, bits=~np.zeros_like(found.bits))
    assert found.find(automaton, codes_of(text)).tolist() == matches(automaton, text).tolist()
    assert found_in(automaton, patterns, text) == audit(patterns, text)
    nothing = replace(found, bits=np.zeros_like(found.bits))
    assert not len(nothing.find(automaton, codes_of(text)))


@pytest.mark.slow
@pytest.mark.parametrize("until", [0, 3000, 10**6])
def test_a_text_that_begins_a_long_pattern_everywhere_is_left_to_the_automaton(until: int) -> None:
    """From where it does so on; what was found before and what begins there are each found once."""
    patterns = sorted({Pattern(False, b"a" * 40, False), Pattern(False, b"a" * 900 + b"b", False), *MIXED_LONG})
    text = b"eval(yaml) " * (until // 11) + b"x." + b"a" * 9000 + b"b eval(yaml) val(yaml) "
    automaton = Automaton.build(patterns)
    assert Filter.of(automaton).window == 9
    assert found_in(automaton, patterns, text) == audit(patterns, text)


MIXED_LONG = [Pattern(True, b"eval(yaml", True), Pattern(False, b"val(yaml)", False)]


@pytest.mark.parametrize("count", range(1, 18))
def test_the_search_among_patterns_of_one_window_stays_among_them(count: int) -> None:
    """Those that begin with a word come behind them, and may sort below the text."""
    alike = [Pattern(False, b"zebra_is_a_common_one" + bytes([97 + i]), False) for i in range(count)]
    of_words = [Pattern(True, b"alpha_is_a_common_one" + bytes([97 + i]), False) for i in range(9)]
    patterns = [*alike, *of_words]
    text = b"".join(b"(" + pattern.symbols for pattern in [*patterns, Pattern(False, alike[-1].symbols + b"z", False)])
    assert found_in(Automaton.build(patterns), patterns, text) == audit(patterns, text)


@jit
def slot_of(newer: np.uint64, older: np.uint64, size: int) -> tuple[int, np.uint64]:
    return _slot(_mix(newer, older), 0, size)


@pytest.mark.parametrize("name", ["alpha", "gamma"])
def test_windows_of_one_hash_are_told_apart(name: str) -> None:
    """With all nodes under the hash of one window, in its place, only what begins with that window is found."""
    words = ("alpha", "beta", "gamma", "delta", "omega")
    patterns = sorted(Pattern(False, f"a_common_one.{word}".rjust(20, "=").encode(), False) for word in words)
    patterns += sorted(Pattern(False, f"{word}_is_a_common_one".encode(), False) for word in words)
    patterns.sort()
    text = b"".join(pattern.symbols + b" " for pattern in patterns)
    automaton = Automaton.build(patterns)
    found = Filter.of(automaton)
    assert found.window == 16
    window = f"{name}_is_a_common_one"[:16].encode()
    halves = (np.uint64(int.from_bytes(half, "little")) for half in (window[8:], window[:8]))
    slot, tag = slot_of(*halves, len(found.table))
    table = np.zeros_like(found.table)
    nodes = found.table[found.table != 0] & np.uint64(0xFFFFFFFF)
    table[(slot + np.arange(len(nodes))) % len(table)] = tag | nodes
    ends = [last for last, _, _ in replace(found, table=table).find(automaton, codes_of(text)).tolist()]
    assert ends == [text.index(window) + len(f"{name}_is_a_common_one") - 1]


@given(st.data(), pattern_sets, st.booleans())
def test_patterns_at_lists_what_ends_at_a_node(data: st.DataObject, patterns: list[Pattern], ends_word: bool) -> None:
    symbols = data.draw(planted(patterns, max_size=4))
    automaton = Automaton.build(patterns)
    node = ROOT
    for i in range(len(symbols)):
        begins_word = bool(CLASSES[symbols[i]] == WORD) and not oracle.is_word(symbols, i - 1)
        node = step_once(automaton.nodes, automaton.rows, node, symbols[i], begins_word)
    after = symbols + (b"" if ends_word else b"a")
    ending = [p for at, p in oracle.occurrences(after, patterns) if at + len(p.symbols) == len(symbols)]
    if not ends_word and not oracle.is_word(symbols, len(symbols) - 1):
        # Behind a character outside a word, `ends_word` has nothing to decide.
        ending = [p for at, p in oracle.occurrences(symbols, patterns) if at + len(p.symbols) == len(symbols)]
    found = automaton.patterns_at(node, ends_word=ends_word)
    assert sorted(patterns[index] for index, _ in found) == sorted(ending)


@given(pattern_sets)
def test_build_keeps_the_patterns_and_shares_their_prefixes(patterns: list[Pattern]) -> None:
    automaton = Automaton.build(patterns)
    automaton.validate()
    assert list(automaton.spell()) == patterns
    prefixes = {(p.bound, p.symbols[:n]) for p in patterns for n in range(1, len(p.symbols) + 1)}
    assert len(automaton) == 2 + len(prefixes)
    assert automaton.longest == max((len(p.symbols) for p in patterns), default=0)
    # One record a node, one to close the last range.
    assert automaton.nodes.nbytes == 12 * (len(automaton) + 1)


def test_arrays_are_read_only() -> None:
    automaton = Automaton.build(MIXED)
    for name in ARRAYS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(automaton, name).flat[0] = getattr(automaton, name).flat[0]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([Pattern(False, b"", False)], "at least one symbol, got an empty one"),
        ([Pattern(False, b"b", False), Pattern(False, b"a", False)], r"sorted order: pass sorted\(set\(patterns\)\)"),
        ([Pattern(False, b"a", False), Pattern(False, b"a", False)], r"distinct patterns"),
    ],
)
def test_build_refuses(patterns: list[Pattern], message: str) -> None:
    with pytest.raises(ProdError, match=message):
        Automaton.build(patterns)


# ---- damaged arrays ------------------------------------------------------------------------------------------------
# `validate` guarantees that every walk stays inside the arrays and ends, and that every match it lists has the index of
# a pattern and lies inside the text. It does not guarantee the right matches: that is the checksum's part.

ARRAYS = ("nodes", "rows", "accepting", "starts", "patterns", "lengths")
FIELDS = ("child", "fail", "label", "flags", "below", "near")


def damaged(automaton: Automaton, name: str, place: Any, value: int) -> Automaton:
    """A copy with one number replaced; of `nodes`, `place` is (field, node)."""
    array = getattr(automaton, name).copy()
    if name == "nodes":
        array[place[0]][place[1]] = value
    else:
        array.flat[place] = value
    return replace(automaton, **{name: array})


def require_safe_walks(automaton: Automaton) -> None:
    """Children, failure links and rows stay inside the arrays, and failure chains end: then every walk does both."""
    count = len(automaton)
    child, fail = automaton.nodes["child"].tolist(), automaton.nodes["fail"].tolist()
    for node in range(count):
        assert node < child[node] <= child[node + 1] <= count
        taken, here = 0, node
        while here > BOUND_ROOT:
            here = fail[here]
            taken += 1
            assert 0 <= here < count
            assert taken <= count
    assert automaton.rows.min() >= 0
    assert automaton.rows.max() < count


@st.composite
def damages(draw: st.DrawFn, automaton: Automaton) -> tuple[str, Any, int]:
    name = draw(st.sampled_from(ARRAYS))
    array = getattr(automaton, name)
    assume(array.size)
    place = draw(st.integers(0, array.size - 1))
    field = draw(st.sampled_from(FIELDS)) if name == "nodes" else None
    limits = np.iinfo(array.dtype[field] if field else array.dtype)
    near = st.integers(max(limits.min, -3), min(limits.max, len(automaton) + 3))
    value = draw(st.one_of(near, st.integers(limits.min, limits.max)))
    return name, (field, place) if field else place, value


@given(st.data(), st.one_of(pattern_sets, st.just(MIXED)))
def test_one_wrong_number_is_refused_or_leads_no_walk_astray(data: st.DataObject, patterns: list[Pattern]) -> None:
    symbols = data.draw(planted(patterns))
    automaton = Automaton.build(patterns)
    automaton = damaged(automaton, *data.draw(damages(automaton)))
    try:
        automaton.validate()
    except ProdError:
        return
    require_safe_walks(automaton)
    assert len(automaton.spell()) == len(patterns)
    for last, index, length in matches(automaton, symbols).tolist():
        assert 0 <= index < len(patterns)
        assert length <= last + 1


LAST = len(Automaton.build(MIXED))


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("nodes", ("child", 0), 0),
        ("nodes", ("child", 0), 1),
        ("nodes", ("child", 2), -1),
        ("nodes", ("child", 2), 2),
        ("nodes", ("child", 5), 2**31 - 1),
        ("nodes", ("child", LAST - 1), LAST + 1),
        ("nodes", ("child", LAST), LAST - 1),
        ("nodes", ("child", LAST), LAST + 1),
        ("nodes", ("fail", 2), 2),
        ("nodes", ("fail", 2), -1),
        ("nodes", ("fail", 3), BOUND_ROOT),
        ("nodes", ("fail", 3), LAST - 1),
        ("nodes", ("fail", 3), 2**31 - 1),
        ("nodes", ("label", 2), 255),
        ("nodes", ("flags", 0), 1),
        ("nodes", ("flags", 2), 1),
        ("nodes", ("flags", LAST - 1), 0),
        ("rows", 0, -1),
        ("rows", 511, BOUND_ROOT),
        ("rows", 300, LAST),
        ("rows", 300, LAST - 1),
        ("rows", -1, LAST - 1),
        ("rows", 2 * 256, BOUND_ROOT),
        ("accepting", 0, 0),
        ("accepting", 0, -1),
        ("accepting", -1, LAST),
        ("starts", 0, 1),
        ("starts", 1, 0),
        ("starts", -1, 10**6),
        ("patterns", 0, -1),
        ("patterns", 0, 2 * len(MIXED)),
        ("patterns", -1, 2**62),
        ("lengths", 0, 0),
        ("lengths", 0, 3),
        ("lengths", 0, 10**6),
        ("lengths", -1, 2),
    ],
)
def test_validate_refuses(name: str, place: Any, value: int) -> None:
    automaton = damaged(Automaton.build(MIXED), name, place, value)
    with pytest.raises(ProdError, match="contradict each other: compile the blocklist again"):
        automaton.validate()


def test_validate_refuses_a_node_that_is_its_own_child() -> None:
    automaton = Automaton.build([Pattern(False, b"a", False)])
    automaton = damaged(damaged(automaton, "nodes", ("child", 2), 2), "nodes", ("child", 1), 2)
    assert automaton.nodes["child"].tolist() == [2, 2, 2, 3]
    with pytest.raises(ProdError, match="contradict each other"):
        replace(automaton, rows=np.zeros((2, 256), np.int32)).validate()


def test_validate_refuses_an_end_where_no_pattern_ends() -> None:
    automaton = Automaton.build([Pattern(False, b"ab", False), Pattern(False, b"cde", False)])
    assert automaton.accepting.tolist() == [4, 6]
    with pytest.raises(ProdError, match="contradict each other"):
        damaged(automaton, "accepting", 0, 5).validate()  # as deep, and as many


@pytest.mark.parametrize("name", ARRAYS)
def test_validate_refuses_arrays_of_another_length(name: str) -> None:
    automaton = Automaton.build(MIXED)
    for array in (getattr(automaton, name)[:-1], np.concatenate([getattr(automaton, name)] * 2)):
        with pytest.raises(ProdError, match="contradict each other"):
            replace(automaton, **{name: array}).validate()
