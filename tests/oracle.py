"""The naive model that the matcher is compared with: whole texts, regular expressions and sets, no automaton."""

from __future__ import annotations

import re

from prod_decode.automaton import Pattern

WORD = re.compile(rb"[A-Za-z0-9_]")
BLANKS = re.compile(rb"[ \t\n\r\f\v]+")


def is_word(symbols: bytes, at: int) -> bool:
    return 0 <= at < len(symbols) and WORD.match(symbols[at : at + 1]) is not None


def normalize(text: bytes, mode: str, ignore_case: bool) -> bytes:
    if mode == "code":
        joined = b""
        for part in BLANKS.split(text):
            if is_word(joined, len(joined) - 1) and is_word(part, 0):
                joined += b" "
            joined += part
        text = joined
    return text.lower() if ignore_case else text


def occurrences(
    symbols: bytes, patterns: list[Pattern], breaks: frozenset[int] = frozenset()
) -> set[tuple[int, Pattern]]:
    """(start, pattern) of every occurrence; `breaks`: positions at which a word begins whatever stands before."""
    found = set()
    for pattern in patterns:
        for start in range(len(symbols) - len(pattern.symbols) + 1):
            end = start + len(pattern.symbols)
            if symbols[start:end] != pattern.symbols:
                continue
            if pattern.bound and is_word(symbols, start - 1) and start not in breaks:
                continue
            if pattern.whole and is_word(symbols, end):
                continue
            found.add((start, pattern))
    return found


class NaiveMatcher:
    """Bans by brute force over every token; `union` reads special tokens both as nothing and as the start of a word."""

    def __init__(
        self, tokens: list[bytes | None], special: set[int], patterns: list[Pattern], mode: str, ignore_case: bool
    ) -> None:
        self.tokens, self.special, self.patterns = tokens, special, patterns
        self.mode, self.ignore_case = mode, ignore_case

    def read(self, ids: list[int], *, union: bool) -> set[tuple[int, Pattern]]:
        text = b""
        breaks = set()
        for token_id in ids:
            if token_id in self.special:
                breaks.add(len(normalize(text, self.mode, self.ignore_case)))
            else:
                text += self.tokens[token_id] or b""
        symbols = normalize(text, self.mode, self.ignore_case)
        return occurrences(symbols, self.patterns, frozenset(breaks) if union else frozenset())

    def banned(self, history: list[int], *, union: bool = False) -> list[int]:
        before = self.read(history, union=union)
        banned = []
        for token_id, token in enumerate(self.tokens):
            if token_id in self.special:
                continue
            if token is None or self.read([*history, token_id], union=union) - before:
                banned.append(token_id)
        return banned
