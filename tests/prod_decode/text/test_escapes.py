"""Outputs with the escapes of JSON decoded, beside brute force over every token with the standard library's decoder."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from prod_decode import Blocklist, Entry, Vocabulary
from prod_decode.match.automaton import Automaton
from prod_decode.match.matcher import Matcher
from prod_decode.match.unescaped import unescaped
from prod_decode.text.escapes import Decoded, decode_text
from prod_decode.text.patterns import Pattern
from tests.oracle import NaiveMatcher, normalize, occurrences
from tests.strategies import byte_strings, normalizations, pattern_lists, vocabularies

HEX = rb"[0-9a-fA-F]"
ESCAPE = re.compile(
    rb'\\u[dD][89abAB]HH\\u[dD][c-fC-F]HH|\\uHHHH|\\["\\/bfnrt]'.replace(b"H", HEX)  # a pair, a unit, a character
)
UNFINISHED = re.compile(rb"\\(uH{0,3})?".replace(b"H", HEX))


def unescape(text: bytes) -> bytes:
    """A text decoded from left to right; an escape that is not finished is left out."""
    done, at = b"", 0
    while at < len(text) and not UNFINISHED.fullmatch(text, at):
        found = ESCAPE.match(text, at)
        done += text[at : at + 1] if found is None else character(found[0].decode())
        at = at + 1 if found is None else found.end()
    return done


def character(escape: str) -> bytes:
    """What an escape stands for; the first half of a pair: what all pairs that begin with it have in common."""
    value: str = json.loads(f'"{escape}"')
    if "\ud800" <= value < "\udc00":
        first: str = json.loads(f'"{escape}\\udc00"')
        return first.encode()[:2]
    return value.encode("utf-8", "surrogatepass")


@given(st.text(st.sampled_from('aA0 é\n"\\/\t\x00😀') | st.characters(codec="utf-8")), st.booleans())
def test_the_decoder_of_these_tests_is_that_of_json(text: str, ascii_only: bool) -> None:
    assert unescape(json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode()).decode() == text


@given(
    st.lists(st.sampled_from([rb"\ud83d", rb"\uDE00", b"\\", b"\\n", b"u00", b"4a", b"x", "é".encode()])).map(b"".join)
)
def test_a_text_is_decoded_from_left_to_right(text: bytes) -> None:
    assert Decoded.of(np.frombuffer(text, np.uint8)).codes.tobytes() == unescape(text)


class NaiveUnescaped(NaiveMatcher):
    """Bans by brute force in the decoded text, special tokens left out; with `breaks` a word may begin at each."""

    def found(self, ids: list[int], breaks: bool) -> set[tuple[int, Pattern]]:
        text, places = b"", set()
        for token_id in ids:
            text += b"" if token_id in self.special else self.tokens[token_id] or b""
            if breaks and token_id in self.special:
                places.add(len(normalize(unescape(text), self.mode, self.ignore_case)))
        return occurrences(normalize(unescape(text), self.mode, self.ignore_case), self.patterns, frozenset(places))

    def completed(self, ids: list[int], *, breaks: bool) -> dict[int, set[Pattern]]:
        """What each token completes that completes anything."""
        before = self.found(ids, breaks)
        after = {i: self.found([*ids, i], breaks) - before for i in self.usable()}
        return {i: {pattern for _, pattern in found} for i, found in after.items() if found}

    def agrees(self, ids: list[int], banned: set[int]) -> bool:
        """Whether these are banned: behind a special token within a word, at least those of one reading of two."""
        holes = {i for i, token in enumerate(self.tokens) if token is None}
        least = most = holes.union(self.completed(ids, breaks=False))
        if self.special.intersection(ids):
            most = holes.union(self.completed(ids, breaks=True))
        return least <= banned <= most


# Escapes of what patterns are made of, whole and in pieces; of characters that take one and two; and what are none.
PIECES = [
    b"\\", b"\\\\", b"\\n", b"n", b"\\t", b"\\/", b'\\"', b'"', b"u", b"\\u", b"\\u00", b"\\u006", b"\\u0061", b"1",
    b"0061", b"61", b"\\u00e9", b"e9", b"\\uD83D", b"\\ude00", b"\\u0020", b"\\x", b"a\\", b".\\u0062", b"b\\u00",
    b"\\\\u0061", b"0020\\", b"A\\u00E",
]  # fmt: skip


@st.composite
def escaped(draw: st.DrawFn, symbols: bytes) -> bytes:
    """A text that is decoded to `symbols`, whose bytes are escaped or not."""
    text = symbols.decode("utf-8", "replace")
    return b"".join(
        draw(st.sampled_from([c, json.dumps(c)[1:-1], f"\\u{ord(c):04X}" if ord(c) < 65536 else c])).encode()
        for c in text
    )


@st.composite
def bound(draw: st.DrawFn) -> tuple[Matcher, NaiveUnescaped]:
    normalization = draw(normalizations)
    patterns: list[Pattern] = draw(pattern_lists(normalization))
    extra = draw(
        st.lists(st.sampled_from(["a\\", "\\n", 'a"b', "a/", "a\\.", "\\u006", "b😀", "éa", "\\xa"]), max_size=3)
    )
    for text in extra:
        symbols = normalize(text.encode(), normalization.mode, normalization.ignore_case)
        patterns = sorted({*patterns, Pattern(False, symbols, False)})
    tokens, special = draw(vocabularies(patterns))
    tokens += draw(st.lists(st.sampled_from(PIECES) | byte_strings(max_size=2), max_size=10))
    for pattern in draw(st.lists(st.sampled_from(patterns), max_size=3)) if patterns else ():
        text = draw(escaped(pattern.symbols))
        cut = draw(st.integers(0, len(text)))
        tokens += [text[:cut], text[cut:], text[cut:] + draw(st.sampled_from([b"a", b"\\", b"\\u0061", b"."]))]
    vocabulary = Vocabulary.from_bytes(tokens, special=special)
    naive = NaiveUnescaped(tokens, special, patterns, normalization.mode, normalization.ignore_case)
    return Matcher(Automaton.build(patterns), normalization, vocabulary), naive


@given(bound(), st.lists(st.integers(0, 99), max_size=8))
def test_bans_are_those_of_brute_force(pair: tuple[Matcher, NaiveUnescaped], numbers: list[int]) -> None:
    matcher, naive = pair
    usable = naive.usable()
    text = [usable[number % len(usable)] for number in numbers]
    tracker = unescaped(matcher).track()
    tracker.read(np.arange(1), [np.array(text, np.int64)], np.zeros(1, np.int64))
    rows, tokens = tracker.banned()
    banned = set(tokens.tolist())
    assert (rows.any(), len(banned)) == (False, len(tokens))
    assert naive.agrees(text, banned)
    # The way that works in any state finds what the tries find.
    state, escape = int(tracker._states[0]), int(tracker._escapes[0])
    assert set(unescaped(matcher).banned(state, escape).tolist()) == banned
    least, most = (naive.completed(text, breaks=breaks) for breaks in (False, True))
    for token in usable:
        blamed = {naive.patterns[int(name)] for name in tracker.blame(0, token)}
        assert least.get(token, set()) <= blamed <= most.get(token, set())


class Outputs(RuleBasedStateMachine):
    """A batch as beams and schedulers treat it."""

    @initialize(pair=bound())
    def bind(self, pair: tuple[Matcher, NaiveUnescaped]) -> None:
        matcher, self.naive = pair
        self.usable = self.naive.usable()
        self.tracker = unescaped(matcher).track()
        self.rows: list[list[int]] = []
        self.agreed: dict[Any, bool] = {}

    def drawn(self, numbers: list[int]) -> list[int]:
        return [self.usable[number % len(self.usable)] for number in numbers]

    @rule(row=st.integers(0, 3), numbers=st.lists(st.integers(0, 99), max_size=7), prompt=st.integers(0, 7))
    def read(self, row: int, numbers: list[int], prompt: int) -> None:
        row, text = min(row, len(self.rows)), self.drawn(numbers)
        prompt = min(prompt, len(text))
        self.rows[row : row + 1] = [text[prompt:]]
        self.tracker.read(np.array([row]), [np.array(text, np.int64)], np.array([prompt]))

    @rule(numbers=st.lists(st.integers(0, 99), min_size=4, max_size=4))
    def advance(self, numbers: list[int]) -> None:
        tokens = self.drawn(numbers[: len(self.rows)])
        self.rows = [[*text, token] for text, token in zip(self.rows, tokens, strict=True)]
        self.tracker.advance(np.array(tokens, np.int64))

    @rule(sources=st.lists(st.integers(-1, 3), max_size=4))
    def take(self, sources: list[int]) -> None:
        sources = [source for source in sources if source < len(self.rows)]
        self.rows = [self.rows[source] if source >= 0 else [] for source in sources]
        self.tracker.take(np.array(sources, np.int64))

    @invariant()
    def bans_are_those_of_brute_force(self) -> None:
        rows, tokens = self.tracker.banned()
        assert (len(self.tracker), sorted(rows.tolist())) == (len(self.rows), rows.tolist())
        assert len(set(zip(rows.tolist(), tokens.tolist(), strict=True))) == len(rows)
        for row, text in enumerate(self.rows):
            banned = frozenset(tokens[rows == row].tolist())
            key = tuple(text), banned
            if key not in self.agreed:
                self.agreed[key] = self.naive.agrees(text, set(banned))
            assert self.agreed[key]


TestOutputs = Outputs.TestCase
TestOutputs.settings = settings(max_examples=60, stateful_step_count=12)

WORDS = [
    b'"', b"import", b" os", b"\\", b"n", b"\\n", b"os", b".", b"system", b"(", b"\\u0028", b"\\u00", b"28", b"9",
    b"\\\\", b" ", b"\\ud83d", b"\\u", b"de00", b"\\ude", b"00", b"evil", b"ev\\u0069l", b"l", b"</s>",
]  # fmt: skip
VOCABULARY = Vocabulary.from_bytes(WORDS, eos_ids=[WORDS.index(b"</s>")])


def banned(phrases: list[Entry], *output: bytes) -> set[bytes]:
    tracker = unescaped(Blocklist.compile(phrases).bind(VOCABULARY)).track()
    tracker.read(np.arange(1), [np.array([WORDS.index(word) for word in output], np.int64)], np.zeros(1, np.int64))
    return {WORDS[token] for token in tracker.banned()[1].tolist()}


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ([b'"', b"import", b" os", b"\\n", b"os", b".", b"system"], {b"(", b"\\u0028"}),
        ([b'"', b"import", b" os", b"\\", b"n", b"os", b".", b"system"], {b"(", b"\\u0028"}),
        ([b'"', b"import", b" os", b"\\n", b"os", b".", b"system", b"\\u00"], {b"28"}),
        # An escaped backslash, then an n.
        ([b'"', b"import", b" os", b"\\\\", b"n", b"os", b".", b"system"], set()),
        # No escape: `\u009`, then `9(`.
        ([b'"', b"import", b" os", b"\\n", b"os", b".", b"system", b"\\u00", b"9"], set()),
    ],
)
def test_code_in_a_json_string(output: list[bytes], expected: set[bytes]) -> None:
    assert banned([Entry("import os\nos.system(")], *output) == expected


def test_a_character_of_two_escapes() -> None:
    phrases = [Entry("evil😀")]
    assert banned(phrases, b"evil", b"\\ud83d", b"\\u") == {b"de00"}
    assert banned(phrases, b"evil", b"\\ud83d", b"\\ude") == {b"00"}
    assert banned(phrases, b"evil", b"\\u", b"de00") == set()
    assert banned(phrases, b"evil", b"\\ud83d", b"n", b"\\ude") == set()


def test_an_output_that_cannot_be_read_is_banned_whole() -> None:
    tracker = unescaped(Blocklist.compile([Entry("evil")]).bind(VOCABULARY)).track()
    tracker.read(np.arange(2), [np.array([99, 0]), np.array([0, 99])], np.array([1, 1]))
    assert tracker.closed.tolist() == [False, True]
    rows, tokens = tracker.banned()
    assert tokens[rows == 1].tolist() == list(range(len(WORDS)))
    assert {WORDS[token] for token in tokens[rows == 0].tolist()} == {b"evil", b"ev\\u0069l"}
    assert tracker.blame(1, 0) == []
    tracker.advance(np.array([0, 0]))
    assert tracker.closed.tolist() == [False, True]


@given(
    st.lists(st.sampled_from(["b.", "a", "é", "😀", "\n", " ", '"', "\\", "_", "x"]), max_size=12).map("".join),
    st.data(),
)
def test_a_scan_finds_what_stands_in_strings(text: str, data: st.DataObject) -> None:
    phrases = ["b.a", "a\na", 'a"', "é😀", "\\b", "😀a", "a\\"]
    blocklist = Blocklist.compile(
        [Entry(phrase, boundary="none") for phrase in phrases],
        normalize=data.draw(st.sampled_from(["none", "code"])),
        allow_short=True,
    )
    mode = blocklist.normalization.mode
    written = data.draw(escaped(text.encode()) | st.just(text.encode())).decode()
    decoded = unescape(written.encode()).decode()
    found, plain = list(blocklist.scan(written, unescape=True)), list(blocklist.scan(written))
    assert set(plain) <= set(found)
    assert [match.end for match in found] == sorted(match.end for match in found)
    assert len(set(found)) == len(found)
    for match in set(found) - set(plain):
        here = unescape(written[match.start : match.end].encode())
        assert normalize(here, mode, False) == normalize(match.entry_id.encode(), mode, False)
    expected = Counter(match.entry_id for match in blocklist.scan(decoded))
    assert Counter(match.entry_id for match in found) >= expected
    if "\\" not in written:
        assert found == plain


def test_places_of_what_is_escaped() -> None:
    blocklist = Blocklist.compile([Entry("import os\nos.system("), Entry("é😀", boundary="none")])
    text = 'x é {"code": "# \\u00e9\\ud83d\\ude00 \\timport os\\nos.system\\u0028\'ls\')"}'
    assert list(blocklist.scan(text)) == []
    found = [text[match.start : match.end] for match in blocklist.scan(text, unescape=True)]
    assert found == ["\\u00e9\\ud83d\\ude00", "import os\\nos.system\\u0028"]
    assert decode_text(text) == 'x é {"code": "# é😀 \timport os\nos.system(\'ls\')"}'


def test_a_stop_string_may_cut_an_escape() -> None:
    words = [b"evil", b"evil\\u0061", b"evila", b"</s>"]
    matcher = Blocklist.compile([Entry("evil", boundary="both")]).bind(Vocabulary.from_bytes(words, eos_ids=[3]))

    def after_nothing(stops: list[str]) -> list[int]:
        tracker = unescaped(matcher, stops).track()
        tracker.read(np.arange(1), [np.zeros(0, np.int64)], np.zeros(1, np.int64))
        return tracker.banned()[1].tolist()

    assert after_nothing([]) == after_nothing(["\n", "é"]) == [0]
    assert after_nothing(["\\u0061"]) == after_nothing(["006"]) == after_nothing(["a"]) == [0, 1, 2]
    assert unescaped(matcher, ["x"]) is unescaped(matcher, ["x", "\n"])


def test_no_walk_writes_a_pattern_into_json() -> None:
    """Strings of JSON, written token by token at random from what is allowed, as `json.loads` reads them."""
    phrases = ["import os os.system(", "evil", 'a"b', "b\\n"]
    words = [*WORDS[:-1], *(bytes([byte]) for byte in b'abcdeilmnostuv\\/"0123456789D (.'), b"</s>"]
    blocklist = Blocklist.compile([Entry(phrase, boundary="none") for phrase in phrases])
    matcher = unescaped(blocklist.bind(Vocabulary.from_bytes(words, eos_ids=[len(words) - 1])))
    random = np.random.default_rng(1)
    # Escaped here and there, so that a walk that heeds nothing writes most of them.
    wanted = [json.dumps(p)[1:-1] for p in phrases] + ["import os\\nos.system\\u0028", "\\u0065vi\\u006C", "a\\u0022b"]
    found = stopped = 0
    for _ in range(150):
        tracker = matcher.track()
        tracker.read(np.arange(1), [np.zeros(0, np.int64)], np.zeros(1, np.int64))
        text = b""
        for _ in range(6):
            left = str(random.choice(wanted)).encode()
            while left:
                fits = [i for i, word in enumerate(words) if left.startswith(word)]
                allowed = sorted(set(fits) - set(tracker.banned()[1].tolist()))
                stopped += len(allowed) < len(fits)
                if not allowed:
                    break
                token = int(random.choice(allowed))
                tracker.advance(np.array([token]))
                text, left = text + words[token], left[len(words[token]) :]
        text = text.rstrip(b"\\") if text.endswith(b"\\") else text
        try:
            read = json.loads(b'"%s"' % text)
        except ValueError:
            continue  # a quotation mark, or an escape cut short
        found += 1
        assert not list(blocklist.scan(read))
    assert found > 20
    assert stopped > 100


def test_budgets_in_decoded_json_are_told(caplog: pytest.LogCaptureFixture) -> None:
    vocabulary = Vocabulary.from_bytes([b"a", b"\\n", b"</s>"], eos_ids=[2])
    for budget, told in ((None, 0), (8, 1)):
        caplog.clear()
        document = Entry("a(b)\n" * 20, policy="quote", max_quote=30, budget=budget)
        unescaped(Blocklist.compile([document]).bind(vocabulary))
        assert caplog.text.count("budgets count an output as it is written") == told
