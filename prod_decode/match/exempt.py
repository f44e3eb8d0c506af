"""A prompt's own quotations may be repeated: what an operator may allow, for tasks such as "add type hints to this"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prod_decode.match.scan import Filter
from prod_decode.match.tracker import Bans, TextTracker
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.vocabulary import Vocabulary

_NOTHING: frozenset[int] = frozenset()


class Completes(Bans, Protocol):
    """What is needed of a `Matcher` besides."""

    vocabulary: Vocabulary
    normalization: Normalization

    def completed(self, state: int, token_id: int) -> list[int]:
        """The patterns that a token completes."""


class ExemptingTracker:
    """A `TextTracker` that lets an output complete what its prompt has: the anchors of documents that stand in it.

    Nothing else of the documents is let through, and no phrase. A token that completes several patterns is banned
    unless each of them is exempt. The prompt is read without its special tokens.
    """

    def __init__(self, readings: TextTracker, matcher: Completes, is_quote: Callable[[int], bool]) -> None:
        """Exempt in `readings`, of `matcher`, the patterns for which `is_quote` holds, where a prompt has them."""
        self._readings = readings
        self._matcher = matcher
        self._is_quote = is_quote
        self._exempt: list[frozenset[int]] = []

    @property
    def any_closed(self) -> bool:
        """As `Tracker.any_closed`."""
        return self._readings.any_closed

    @property
    def closed(self) -> NDArray[np.bool_]:
        """As `Tracker.closed`."""
        return self._readings.closed

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._readings)

    def read(self, rows: NDArray[np.int64], texts: Sequence[NDArray[np.int64]], prompts: NDArray[np.int64]) -> None:
        """As `Tracker.read`."""
        self._readings.read(rows, texts, prompts)
        self._exempt += [_NOTHING] * (len(self) - len(self._exempt))
        for row, text, prompt in zip(rows.tolist(), texts, prompts.tolist(), strict=True):
            self._exempt[row] = _NOTHING if self._readings.closed[row] else self._quoted_in(text[:prompt])

    def advance(self, tokens: NDArray[np.int64]) -> None:
        """As `Tracker.advance`."""
        self._readings.advance(tokens)

    def take(self, sources: NDArray[np.int64]) -> None:
        """As `Tracker.take`."""
        self._readings.take(sources)
        self._exempt = [self._exempt[source] if source >= 0 else _NOTHING for source in sources.tolist()]

    def banned(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """As `Tracker.banned`."""
        rows, tokens = self._readings.banned()
        if not any(self._exempt):
            return rows, tokens
        kept = np.ones(len(rows), np.bool_)
        exempting = np.array([bool(some) for some in self._exempt]) & ~self.closed
        for at in np.flatnonzero(exempting[rows]).tolist():
            completed = self._completed(int(rows[at]), int(tokens[at]))
            kept[at] = not completed or not completed <= self._exempt[rows[at]]
        return rows[kept], tokens[kept]

    def blame(self, row: int, token_id: int) -> list[str]:
        """As `Tracker.blame`."""
        completed = self._exempt[row] and self._completed(row, token_id)
        if completed and completed <= self._exempt[row]:
            return []
        return self._readings.blame(row, token_id)

    def _completed(self, row: int, token_id: int) -> set[int]:
        """The patterns that a token completes in any reading of a row."""
        states = self._readings.states(row)
        return {pattern for state in states for pattern in self._matcher.completed(state, token_id)}

    def _quoted_in(self, prompt: NDArray[np.int64]) -> frozenset[int]:
        """The patterns that a prompt has and that may be exempt."""
        vocabulary, found = self._matcher.vocabulary, set[int]()
        for text in vocabulary.known_texts(prompt):
            symbols, _ = self._matcher.normalization.fold(np.frombuffer(text, np.uint8))
            matches = Filter.none().find(self._matcher.automaton, symbols)
            found.update(np.unique(matches[:, 1]).tolist())
        return frozenset(pattern for pattern in found if self._is_quote(pattern))
