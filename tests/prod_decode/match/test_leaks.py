"""No leak: adversaries that spell prohibited code, with the tokenizer of a real model, never complete it.

An adversary picks a pattern, writes it in one of its spellings (other whitespace, other case, where the blocklist
ignores those) and cuts that at random into tokens, of which it may use those that the guard allows. What it wrote is
decoded by the tokenizer and searched by another implementation, over the oracle's normalisation.
"""

from __future__ import annotations

import argparse
import bisect
import inspect
import json.decoder
import random
import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

from prod_decode import Blocklist, Entry
from prod_decode.match.automaton import Pattern
from prod_decode.match.matcher import Matcher
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.tokenizer_bytes import vocabulary_of
from prod_decode.tokens.vocabulary import SPECIAL, TEXT, Vocabulary
from tests import oracle
from tests.smollm2 import smollm2_tokenizer

ahocorasick = pytest.importorskip("ahocorasick")

WALKS, STEPS = (5000 if settings.get_current_profile_name() == "deep" else 400), 40
BAD_WORDS_WALKS = 48
BLANKS = (b" ", b"\n    ", b"\t", b"  ", b"\r\n")
CONFIGURATIONS = [Normalization("none", False), Normalization("none", True)]
CONFIGURATIONS += [Normalization("code", False), Normalization("code", True)]

CALLS = {
    "start": (
        "yaml.load(",
        "pickle.load(",
        "pickle.loads(",
        "hashlib.md5(",
        "hashlib.sha1(",
        "tensorflow.contrib",
        "eval(",
        "exec(",
        "os.system(",
        "subprocess.call(cmd, shell=True)",
        "verify=False",
        "import telnetlib",
        "tempfile.mktemp(",
        "random.random() * len(",
        "ssl._create_unverified_context",
        "password = 'caf\u00e9 \u4f60\u597d \U0001f600'",
    ),
    "both": ("np.float", "np.bool", "assertEquals", "imp", "collections.Mapping"),
    "none": ("_unsafe", ".iteritems()", "%s' % (", "SELECT * FROM"),
}


@lru_cache(maxsize=1)
def entries() -> list[Entry]:
    lines = (line.strip() for module in (argparse, json.decoder) for line in inspect.getsource(module).splitlines())
    chosen = random.Random(0).sample(sorted({line for line in lines if 30 <= len(line) <= 80}), 150)
    calls = [Entry(text, boundary=boundary) for boundary, texts in CALLS.items() for text in texts]
    quoted = [Entry(inspect.getsource(module), policy="quote", max_quote=60) for module in (textwrap, bisect)]
    return [*calls, *map(Entry, chosen), *quoted]


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    return vocabulary_of(smollm2_tokenizer())


@lru_cache
def matcher_for(normalization: Normalization) -> Matcher:
    return blocklist_for(normalization).bind(vocabulary())


@lru_cache
def blocklist_for(normalization: Normalization) -> Blocklist:
    return Blocklist.compile(entries(), normalize=normalization.mode, ignore_case=normalization.ignore_case)


class Tokens(NamedTuple):
    """The text tokens by their bytes, under every prefix of these, and what an adversary throws in between."""

    by_bytes: dict[bytes, list[int]]
    text: list[int]
    special: list[int]

    def spelling(self, rest: bytes) -> list[int]:
        """The tokens that are prefixes of `rest`, the shortest first."""
        found: list[int] = []
        for end in range(1, len(rest) + 1):
            here = self.by_bytes.get(rest[:end])
            if here is None:
                break
            found += here
        return found


@lru_cache(maxsize=1)
def tokens() -> Tokens:
    by_bytes: dict[bytes, list[int]] = {}
    kinds = vocabulary().kinds.tolist()
    text = [i for i, kind in enumerate(kinds) if kind == TEXT]
    for i in text:
        token = vocabulary().token_bytes(i)
        for end in range(1, len(token)):
            by_bytes.setdefault(token[:end], [])
        by_bytes.setdefault(token, []).append(i)
    special = [i for i, kind in enumerate(kinds) if kind == SPECIAL and i not in vocabulary().eos_ids]
    return Tokens(by_bytes, text, special)


class Walk:
    """One adversary: its prompt, what it wrote, and the bytes that it still wants to write.

    `is_canonical`: it uses the tokens that the tokenizer itself would use for what it wants to write, and no special
    tokens, one of which is enough to break a banned sequence of tokens.
    """

    def __init__(
        self, seed: int, patterns: Sequence[Pattern], normalization: Normalization, is_canonical: bool = False
    ) -> None:
        self.rng = random.Random(seed)
        self.patterns, self.normalization, self.is_canonical = patterns, normalization, is_canonical
        self.thwarted = 0
        self.plan_another()
        prompt = self.rng.choice(["", "def f(x):\n    ", "x = ", "ast.literal_", "import sys\n"])
        if self.rng.random() < 0.4:
            cut = self.rng.randrange(len(self.rest))
            prompt += self.rest[:cut].decode(errors="ignore")
            self.rest = self.rest[len(self.rest[:cut].decode(errors="ignore").encode()) :]
        self.prompt: list[int] = smollm2_tokenizer().encode(prompt, add_special_tokens=False)
        self.written: list[int] = []

    def plan_another(self) -> None:
        rng = self.rng
        lead = rng.choice([b"", b"", b" ", b"\n", b"(", b"x", b"\xe9"])
        tail = rng.choice([b"", b"x", b")", b" \n", b'"a")', b"_1", b"("])
        self.rest = lead + self.spelling(rng.choice(self.patterns).symbols) + tail
        self.retries = 3

    def spelling(self, symbols: bytes) -> bytes:
        rng, spelled = self.rng, b""
        for i in range(len(symbols)):
            symbol = symbols[i : i + 1]
            if self.normalization.is_code:
                if symbol == b" ":  # the normalised text has one only between two words
                    symbol = rng.choice(BLANKS)
                elif not (oracle.is_word(symbols, i - 1) and oracle.is_word(symbols, i)) and rng.random() < 0.15:
                    # Whitespace inside a character would make other characters of it.
                    spelled += rng.choice(BLANKS) if symbol.isascii() else b""
            if self.normalization.ignore_case and rng.random() < 0.3:
                symbol = symbol.swapcase()
            spelled += symbol
        return spelled

    def canonical(self) -> list[int]:
        ids: list[int] = smollm2_tokenizer().encode(self.rest.decode(errors="ignore"), add_special_tokens=False)
        return [i for i in ids[:1] if self.rest.startswith(vocabulary().token_bytes(i))]

    def step(self, banned: set[int]) -> None:
        """Write one more token that is not banned."""
        rng, known = self.rng, tokens()
        if not self.rest:
            self.plan_another()
        while True:
            spelling = self.canonical() if self.is_canonical else known.spelling(self.rest)
            allowed = [i for i in spelling if i not in banned]
            self.thwarted += len(allowed) < len(spelling)
            if allowed and (self.is_canonical or rng.random() < 0.98):
                # The later ones are longer: the last is what the tokenizer itself often writes.
                chosen = allowed[-1] if rng.random() < 0.3 else rng.choice(allowed)
                self.rest = self.rest[len(vocabulary().token_bytes(chosen)) :]
                break
            if not self.is_canonical and rng.random() < 0.3:
                chosen = rng.choice(known.special)
                break
            if self.retries == 0:
                chosen = rng.choice(known.text)
                while chosen in banned:
                    chosen = rng.choice(known.text)
                self.plan_another()
                break
            self.retries -= 1
            if self.normalization.ignore_case:
                self.rest = self.rest.swapcase()
            if self.normalization.is_code:
                self.rest = rng.choice(BLANKS) + self.rest
        self.written.append(chosen)


Guard = Callable[[list[Walk]], list[set[int]]]


def unguarded(walks: list[Walk]) -> list[set[int]]:
    return [set() for _ in walks]


def guarded(matcher: Matcher) -> Guard:
    states: dict[Walk, int] = {}

    def banned(walks: list[Walk]) -> list[set[int]]:
        for walk in walks:
            if walk in states:
                states[walk] = matcher.advance(states[walk], walk.written[-1])
            else:
                states[walk] = matcher.state_of(walk.prompt)
        return [set(matcher.banned(states[walk]).tolist()) for walk in walks]

    return banned


def bad_words(patterns: Sequence[Pattern]) -> Guard:
    """transformers' `bad_words_ids`, used as its documentation says: every word with and without a space before it."""
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import NoBadWordsLogitsProcessor

    words = [space + pattern.symbols.decode() for pattern in patterns for space in ("", " ")]
    ids = smollm2_tokenizer()(words, add_special_tokens=False).input_ids
    processor = NoBadWordsLogitsProcessor(ids, eos_token_id=list(vocabulary().eos_ids))
    scores = torch.zeros(BAD_WORDS_WALKS, len(vocabulary()))
    padding = vocabulary().eos_ids[0]

    def banned(walks: list[Walk]) -> list[set[int]]:
        histories = [walk.prompt + walk.written for walk in walks]
        longest = max(map(len, histories))
        input_ids = torch.tensor([[padding] * (longest - len(history)) + history for history in histories])
        rows: list[set[int]] = [set() for _ in walks]
        for row, token_id in (processor(input_ids, scores[: len(walks)]) == -float("inf")).nonzero().tolist():
            rows[row].add(token_id)
        return rows

    return banned


def run(normalization: Normalization, count: int, guard: Guard, *, is_canonical: bool = False) -> list[Walk]:
    patterns = blocklist_for(normalization).automaton.spell()
    walks = [Walk(seed, patterns, normalization, is_canonical) for seed in range(count)]
    for _ in range(STEPS):
        for walk, banned in zip(walks, guard(walks), strict=True):
            walk.step(banned)
    return walks


class Leak(NamedTuple):
    """A prohibited pattern in the text of a walk, beyond those in its prompt."""

    walk: Walk
    symbols: bytes
    text: str


def leaks(walks: list[Walk], normalization: Normalization) -> list[Leak]:
    named = defaultdict(list)
    for pattern in blocklist_for(normalization).automaton.spell():
        named[pattern.symbols.decode("latin-1")].append(pattern)
    searcher = ahocorasick.Automaton()
    for symbols, patterns in named.items():
        searcher.add_word(symbols, patterns)
    searcher.make_automaton()
    found = []
    for walk in walks:
        prompt, text = (
            smollm2_tokenizer().decode(ids, skip_special_tokens=True)
            for ids in (walk.prompt, walk.prompt + walk.written)
        )
        old, new = (
            oracle.normalize(part.encode(), normalization.mode, normalization.ignore_case) for part in (prompt, text)
        )
        for last, patterns in searcher.iter(new.decode("latin-1")):
            first = last + 1 - len(patterns[0].symbols)
            if last >= len(old) and any(oracle.keeps_boundaries(new, first, pattern) for pattern in patterns):
                found.append(Leak(walk, patterns[0].symbols, text))
    return found


def leaking(found: list[Leak]) -> int:
    """How many walks leak."""
    return len({leak.walk for leak in found})


@pytest.mark.slow
@pytest.mark.parametrize("normalization", CONFIGURATIONS, ids=lambda n: f"{n.mode}{'-ignore-case' * n.ignore_case}")
def test_no_adversary_completes_a_pattern(
    normalization: Normalization, record_property: Callable[[str, Any], None]
) -> None:
    free = leaks(run(normalization, WALKS, unguarded), normalization)
    walks = run(normalization, WALKS, guarded(matcher_for(normalization)))
    found = leaks(walks, normalization)
    thwarted = sum(walk.thwarted for walk in walks)
    record_property("walks", WALKS)
    record_property("unguarded_walks_that_leak", leaking(free))
    record_property("walks_that_leak", leaking(found))
    record_property("thwarted_steps", thwarted)
    assert [(leak.symbols, leak.text) for leak in found] == []
    # The same adversaries do get there when nothing stops them, and were stopped at the last moment time and again.
    assert leaking(free) > WALKS / 2
    assert thwarted > WALKS


@pytest.mark.parametrize("is_canonical", [False, True], ids=["any-tokens", "canonical-tokens"])
@pytest.mark.slow
def test_bad_words_ids_leak(is_canonical: bool, record_property: Callable[[str, Any], None]) -> None:
    """The peer bans token sequences, here in the mode that compares texts as they are, the only one it can know."""
    normalization = Normalization("none", False)

    def search(guard: Guard) -> tuple[list[Walk], list[Leak]]:
        walks = run(normalization, BAD_WORDS_WALKS, guard, is_canonical=is_canonical)
        return walks, leaks(walks, normalization)

    _, free = search(unguarded)
    walks, found = search(bad_words(blocklist_for(normalization).automaton.spell()))
    _, ours = search(guarded(matcher_for(normalization)))
    record_property("walks", BAD_WORDS_WALKS)
    for name, results in (("unguarded", free), ("bad_words", found), ("ours", ours)):
        record_property(f"{name}_walks_that_leak", leaking(results))
        record_property(f"{name}_patterns_completed", len(results))
    assert sum(walk.thwarted for walk in walks) > 0  # the processor was at work
    assert len(found) > 0
    assert len(ours) == 0
