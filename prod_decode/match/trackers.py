"""One shape for all that watches the texts of a batch, and several of them as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prod_decode.quotes.passed import Passed


class Tracker(Protocol):
    """Follows the texts of a batch and says what is banned next.

    Rows are texts. What is remembered is a cache: after any `read`, `advance` and `take` it is what `read` alone, given
    the whole texts, would have made. A row that cannot be read is *closed*: every token is banned until it is read.
    """

    @property
    def any_closed(self) -> bool:
        """Whether any row cannot be read."""

    @property
    def closed(self) -> NDArray[np.bool_]:
        """Which rows cannot be read, bool [B]."""

    def __len__(self) -> int:
        """The number of rows."""

    def read(self, rows: NDArray[np.int64], texts: Sequence[NDArray[np.int64]], prompts: NDArray[np.int64]) -> None:
        """Read whole texts: the truth.

        Args:
            rows: int64 [n], which ones; those of a number that is not there yet are added.
            texts: of each all tokens, int64 [T].
            prompts: int64 [n], how many of them are the prompt's.
        """

    def advance(self, tokens: NDArray[np.int64]) -> None:
        """Every row one token on: int64 [B]."""

    def take(self, sources: NDArray[np.int64]) -> None:
        """Rows come, go, move, are copied: row i becomes what row `sources[i]` was; below 0, the empty text."""

    def banned(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The banned tokens as sparse pairs, rows int32 [n], ascending, and token ids int32 [n], each pair once."""

    def blame(self, row: int, token_id: int) -> list[str]:
        """The ids of the entries because of which a token is banned in a row; none if the row cannot be read."""

    def passed(self) -> Sequence[Passed]:
        """What the newest token of each row did and was let through, rows in any order; of a prompt's token nothing.

        A cache like everything else: the same after `read` of the whole text. Only who asks pays for it.
        """


class Combined:
    """Several trackers of the same texts: what one of them bans is banned."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        """At least one, each without rows."""
        self.trackers = tuple(trackers)

    @property
    def any_closed(self) -> bool:
        """Whether any row cannot be read."""
        return any(tracker.any_closed for tracker in self.trackers)

    @property
    def closed(self) -> NDArray[np.bool_]:
        """Which rows cannot be read, bool [B]."""
        return np.asarray(np.stack([tracker.closed for tracker in self.trackers]).any(axis=0))

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.trackers[0])

    def read(self, rows: NDArray[np.int64], texts: Sequence[NDArray[np.int64]], prompts: NDArray[np.int64]) -> None:
        """As `Tracker.read`."""
        for tracker in self.trackers:
            tracker.read(rows, texts, prompts)

    def advance(self, tokens: NDArray[np.int64]) -> None:
        """As `Tracker.advance`."""
        for tracker in self.trackers:
            tracker.advance(tokens)

    def take(self, sources: NDArray[np.int64]) -> None:
        """As `Tracker.take`."""
        for tracker in self.trackers:
            tracker.take(sources)

    def banned(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """As `Tracker.banned`."""
        found = [pairs for tracker in self.trackers if len((pairs := tracker.banned())[0])]
        if not found:
            return np.zeros(0, np.int32), np.zeros(0, np.int32)
        if len(found) == 1:
            return found[0]
        # Row and token as one number: several times as fast as unique pairs.
        joined = [(rows.astype(np.int64) << 32) | tokens for rows, tokens in found]
        rows, tokens = np.divmod(np.unique(np.concatenate(joined)), 1 << 32)
        return rows.astype(np.int32), tokens.astype(np.int32)

    def blame(self, row: int, token_id: int) -> list[str]:
        """As `Tracker.blame`."""
        return list(dict.fromkeys(name for tracker in self.trackers for name in tracker.blame(row, token_id)))

    def passed(self) -> list[Passed]:
        """As `Tracker.passed`."""
        return [one for tracker in self.trackers for one in tracker.passed()]
