"""The naive model that the code is compared with: whole texts, regular expressions and sets, no automaton."""

from __future__ import annotations

import re
from itertools import combinations, product

from prod_decode.match.automaton import Pattern
from prod_decode.text.normalize import Normalization

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


def normalize_text(text: str, normalization: Normalization) -> str:
    return normalize(text.encode(), normalization.mode, normalization.ignore_case).decode()


def keeps_boundaries(symbols: bytes, start: int, pattern: Pattern, breaks: frozenset[int] = frozenset()) -> bool:
    """Whether the pattern, which stands at `start`, begins and ends at the edge of a word where it has to."""
    begins = not is_word(symbols, start - 1) or start in breaks
    ends = not is_word(symbols, start + len(pattern.symbols))
    return (begins or not pattern.bound) and (ends or not pattern.whole)


def occurrences(
    symbols: bytes, patterns: list[Pattern], breaks: frozenset[int] = frozenset()
) -> set[tuple[int, Pattern]]:
    """(start, pattern) of every occurrence; `breaks`: positions at which a word begins whatever stands before."""
    return {
        (start, pattern)
        for pattern in patterns
        for start in range(len(symbols) - len(pattern.symbols) + 1)
        if symbols.startswith(pattern.symbols, start) and keeps_boundaries(symbols, start, pattern, breaks)
    }


def windows(text: str, width: int) -> list[str]:
    """Every run of `width` characters, by its place."""
    return [text[i : i + width] for i in range(len(text) - width + 1)]


def byte_windows(text: bytes, width: int) -> list[bytes]:
    """Every run of `width` bytes, by its place."""
    return [text[i : i + width] for i in range(len(text) - width + 1)]


def given_away(text: bytes, document: bytes, piece: int) -> set[int]:
    """The places of a document's symbols that a text has in pieces; both normalised."""
    known = set(byte_windows(text, piece))
    places = [i for i, window in enumerate(byte_windows(document, piece)) if window in known]
    return {i + k for i in places for k in range(piece)}


def cheapest_cover(costs: list[int], needed: list[bool], spread: int) -> int:
    """The least cost of places such that every needed window `i` has one in `i : i + spread`, by trying every set."""
    places = [p for p, cost in enumerate(costs) if cost >= 0]
    wanted = [set(range(i, i + spread)) for i, is_needed in enumerate(needed) if is_needed]
    return min(
        sum(costs[p] for p in chosen)
        for size in range(len(places) + 1)
        for chosen in combinations(places, size)
        if all(window.intersection(chosen) for window in wanted)
    )


class NaiveMatcher:
    """Bans by brute force over every token; `union` reads special tokens both as nothing and as the start of a word.

    The bytes of a special token are what is shown of it.
    """

    def __init__(
        self, tokens: list[bytes | None], special: set[int], patterns: list[Pattern], mode: str, ignore_case: bool
    ) -> None:
        self.tokens, self.special, self.patterns = tokens, special, patterns
        self.mode, self.ignore_case = mode, ignore_case

    def usable(self) -> list[int]:
        """The ids that are tokens."""
        return [token_id for token_id, token in enumerate(self.tokens) if token is not None]

    def read(self, ids: list[int], *, union: bool, last_shown: bool = False) -> set[tuple[int, Pattern]]:
        text = b""
        breaks = set()
        for place, token_id in enumerate(ids):
            if token_id in self.special and not (last_shown and place + 1 == len(ids)):
                breaks.add(len(normalize(text, self.mode, self.ignore_case)))
            else:
                text += self.tokens[token_id] or b""
        symbols = normalize(text, self.mode, self.ignore_case)
        return occurrences(symbols, self.patterns, frozenset(breaks) if union else frozenset())

    def texts(self, history: list[int], prompt: int | None, *, mixed: bool) -> list[bytes]:
        """The readings of a text: from its beginning, the prompt's end, and behind every special token.

        Special tokens are left out, or shown; `mixed`: some of them left out and others shown.
        """
        specials = [i for i, token_id in enumerate(history) if token_id in self.special]
        views = product([False, True], repeat=len(specials)) if mixed else [(False,) * 99, (True,) * 99]
        texts = set()
        for shown in map(list, views):
            flags = dict(zip(specials, shown, strict=False))
            for begin in {0, *([] if prompt is None else [prompt]), *(i + 1 for i in specials)}:
                part = [self.tokens[history[i]] or b"" for i in range(begin, len(history)) if flags.get(i, True)]
                texts.add(b"".join(part))
        return sorted(texts)

    def banned_in_any(self, history: list[int], prompt: int | None, *, mixed: bool) -> set[int]:
        """The tokens that complete a pattern in one of the readings."""
        texts = self.texts(history, prompt, mixed=mixed)
        banned = {token_id for token_id, token in enumerate(self.tokens) if token is None}
        for text in texts:
            before = occurrences(normalize(text, self.mode, self.ignore_case), self.patterns)
            for token_id, token in enumerate(self.tokens):
                after = occurrences(normalize(text + (token or b""), self.mode, self.ignore_case), self.patterns)
                if after - before:
                    banned.add(token_id)
        return banned

    def blame(self, history: list[int], token_id: int) -> set[Pattern]:
        """The patterns that the token completes."""
        return {
            pattern
            for _, pattern in self.read([*history, token_id], union=False, last_shown=True)
            - self.read(history, union=False)
        }

    def banned(self, history: list[int], *, union: bool = False) -> list[int]:
        before = self.read(history, union=union)
        banned = []
        for token_id, token in enumerate(self.tokens):
            if token is None or self.read([*history, token_id], union=union, last_shown=True) - before:
                banned.append(token_id)
        return banned
