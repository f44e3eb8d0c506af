"""Code that is followed token by token: how long a guard takes, and what of it is banned."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.figures import ROUNDS, Figure, distribution
from prod_decode.blocklist.sources import read_texts
from prod_decode.errors import ProdError

ROWS = (1, 16, 64)


class Follows(Protocol):
    """What is measured of a tracker."""

    def read(self, rows: NDArray[np.int64], texts: Sequence[NDArray[np.int64]], prompts: NDArray[np.int64]) -> None:
        """Read whole texts."""

    def advance(self, tokens: NDArray[np.int64]) -> None:
        """Every row one token on."""

    def banned(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The banned tokens as sparse pairs."""


def python_in(folders: Sequence[str | Path]) -> list[tuple[Path, str]]:
    """The Python files below some folders that can be read, those with no text left out.

    Raises:
        ProdError: there is none.
    """
    found = [
        (path, text)
        for path, text in read_texts(folders, skipped=lambda _: None)
        if path.suffix == ".py" and text.strip()
    ]
    if not found:
        raise ProdError(f"expected Python files below {', '.join(map(str, folders))}, got none: name other folders")
    return found


def some_of(files: Sequence[tuple[Path, str]], characters: int) -> list[tuple[Path, str]]:
    """Files from all over, at most so many characters of them."""
    total = sum(len(text) for _, text in files)
    step = max(1, -(-total // characters))
    kept, left = [], characters
    for first in range(step):
        for path, text in files[first::step]:
            if len(text) <= left:
                kept.append((path, text))
                left -= len(text)
        if left * 20 < characters:
            break
    return kept


def tokens_of(tokenizer: Any, texts: Sequence[str], count: int) -> NDArray[np.int64]:
    """The tokens of some texts one after another, int64 [count], from the beginning again where they do not suffice."""
    found: list[int] = []
    for text in texts:
        found += tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(found) >= count:
            break
    return np.resize(np.array(found, np.int64), count)


def begun(tracker: Follows, first: NDArray[np.int64]) -> Follows:
    """A tracker with a row for each of some tokens, which it has read."""
    tracker.read(
        np.arange(len(first)), [first[row : row + 1] for row in range(len(first))], np.ones(len(first), np.int64)
    )
    return tracker


def steps_of(track: Callable[[], Follows], walk: NDArray[np.int64], rows: int, most: int) -> list[int]:
    """Nanoseconds of each step of so many rows side by side: advance, then find what is banned.

    Each counts with the fastest of three rounds, by a tracker of its own; the first hundredth does not count.
    """
    columns = np.ascontiguousarray(walk[: len(walk) // rows * rows].reshape(rows, -1).T)[: most + 1]
    taken = []
    for _ in range(ROUNDS):
        tracker = begun(track(), columns[0])
        clock, found = time.perf_counter_ns, []
        for column in columns[1:]:
            begin = clock()
            tracker.advance(column)
            tracker.banned()
            found.append(clock() - begin)
        taken.append(found[len(found) // 100 :])
    fastest: list[int] = np.min(taken, axis=0).tolist()
    return fastest


def timed(
    guard: str, what: str, track: Callable[[], Follows], walk: NDArray[np.int64], steps: int, rows: Sequence[int] = ROWS
) -> Iterator[Figure]:
    """Microseconds a token for following and banning, at some numbers of rows; as many tokens for each."""
    for count in rows:
        taken = steps_of(track, walk, count, max(20, steps // count))
        yield distribution(f"{what}, B={count}", guard, [step / count for step in taken])


def refused(tracker: Any, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether one token for each row is banned: bool [B]; without a mask, where a guard can say it without one."""
    if hasattr(tracker, "refuses"):
        found: NDArray[np.bool_] = tracker.refuses(tokens)
        return found
    rows, banned = tracker.banned()
    found = np.zeros(len(tokens), np.bool_)
    found[rows[tokens[rows] == banned]] = True
    return found


def owned(tracker: Follows, walk: NDArray[np.int64], rows: int) -> tuple[NDArray[np.int64], int]:
    """What of a walk is banned, followed in so many rows side by side.

    Returns:
        The places of the walk whose own token is banned, int64 [n], ascending; how many steps there were.
    """
    columns = walk[: len(walk) // rows * rows].reshape(rows, -1)
    begun(tracker, columns[:, 0])
    places = [np.zeros(0, np.int64)]
    for at in range(1, columns.shape[1]):
        places.append(np.flatnonzero(refused(tracker, columns[:, at])) * columns.shape[1] + at)
        tracker.advance(columns[:, at])
    return np.sort(np.concatenate(places)), rows * (columns.shape[1] - 1)


def any_banned(tracker: Follows, walk: NDArray[np.int64]) -> int:
    """In how many steps of a walk, followed in one row, some token is banned."""
    begun(tracker, walk[:1])
    found = 0
    for at in range(1, len(walk)):
        found += bool(len(tracker.banned()[1]))
        tracker.advance(walk[at : at + 1])
    return found
