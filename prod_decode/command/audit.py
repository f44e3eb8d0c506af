"""A second opinion on `scan`: the same count by pyahocorasick, which shares none of our automaton's code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.errors import ProdError

_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


class Auditor:
    """Counts the matches of a blocklist's entries with pyahocorasick.

    Raises:
        ProdError: the package pyahocorasick is not installed.
    """

    def __init__(self, blocklist: Blocklist) -> None:
        try:
            import ahocorasick
        except ImportError:
            raise ProdError("--verify needs pyahocorasick: pip install 'prod-code-unlearning[audit]'") from None
        self._blocklist = blocklist
        self._patterns = blocklist.automaton.spell()
        self._automaton = ahocorasick.Automaton()
        by_symbols: dict[str, list[int]] = {}
        for index, pattern in enumerate(self._patterns):
            # Latin-1 maps every byte to the character of the same number: its letters are characters, ours are bytes.
            by_symbols.setdefault(pattern.symbols.decode("latin-1"), []).append(index)
        for symbols, indices in by_symbols.items():
            self._automaton.add_word(symbols, indices)
        if by_symbols:
            self._automaton.make_automaton()

    def count(self, text: str) -> Counter[str]:
        """The number of matches of each entry in `text`."""
        found: Counter[str] = Counter()
        symbols = self._blocklist.normalization.symbols(text).decode("latin-1")
        if not len(self._automaton):
            return found
        for last, indices in self._automaton.iter(symbols):
            for index in indices:
                bound, pattern, whole = self._patterns[index]
                start = last + 1 - len(pattern)
                begins = not bound or start == 0 or symbols[start - 1] not in _WORD
                ends = not whole or last + 1 == len(symbols) or symbols[last + 1] not in _WORD
                if begins and ends:
                    found.update(self._blocklist.entries_of(index))
        return found

    def compare(self, text: str, ours: Iterable[str]) -> str | None:
        """Compare with the entry ids that `scan` found: None if they agree, else what differs."""
        theirs, counted = self.count(text), Counter(ours)
        for entry_id in sorted({*theirs, *counted}):
            if theirs[entry_id] != counted[entry_id]:
                return f"entry {entry_id}: scan found {counted[entry_id]}, pyahocorasick {theirs[entry_id]}"
        return None
