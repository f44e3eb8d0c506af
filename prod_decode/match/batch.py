"""The texts of an engine's batch, whose rows come, go and move, each under blocklists of its own.

vLLM's V1 runner is followed with this; nothing here imports it. Only blocklists of rows that are there cost anything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from prod_decode.match.matcher import Matcher
from prod_decode.match.trackers import Tracker
from prod_decode.match.unescaped import UnescapedMatcher
from prod_decode.quotes.passed import Passed
from prod_decode.tokens.vocabulary import UNKNOWN

_M = TypeVar("_M", Matcher, Matcher | UnescapedMatcher)

_LOG = logging.getLogger(__name__)

# Where there is no token; vLLM itself has -1 where a token is not known yet.
_NO_TOKEN = -2


@dataclass(slots=True, eq=False)
class Request:
    """A request: its text, and what is enforced on it.

    Attributes:
        prompt: int64 [T]; None where the engine has embeddings instead.
        output: the engine's own list of tokens, which grows.
        matchers: of its blocklists, for each kind of reading; None where the request cannot have been validated.
        endless: it asked for `ignore_eos`.
        beside: matchers that follow its text and ban nothing.
        is_told: the log says that its text cannot be read.
    """

    prompt: NDArray[np.int64] | None
    output: list[int]
    matchers: tuple[Matcher | UnescapedMatcher, ...] | None
    endless: bool = False
    beside: tuple[Matcher, ...] = ()
    is_told: bool = False

    @property
    def is_guarded(self) -> bool:
        """Whether anything is enforced on it."""
        return self.matchers is None or bool(self.matchers)

    @property
    def is_hidden(self) -> bool:
        """Whether nobody can say what its text is, or what is to be enforced on it."""
        return self.matchers is None or (self.prompt is None and bool(self.matchers))

    def text(self) -> NDArray[np.int64]:
        """All its tokens, int64 [T]; those of embeddings are missing."""
        prompt = np.zeros(0, np.int64) if self.prompt is None else self.prompt
        return np.concatenate((prompt, np.array(self.output, np.int64))) if self.output else prompt


@dataclass(frozen=True, slots=True, eq=False)
class Followed:
    """A matcher's tracker, and the rows of the batch that its rows are, int64 [n], ascending."""

    tracker: Tracker
    rows: NDArray[np.int64]


class RequestBatch:
    """Follows requests token by token, and says what is banned in each.

    A row that has its text of the last step and one token more is advanced. Anything else (requests that come, come
    back after preemption, or lost tokens) is read again.

    Attributes:
        requests: in the order of the rows.
        guarded: rows on which anything is enforced, int64 [n], ascending.
        endless: those among them that asked for `ignore_eos`.
        beside: what follows texts and bans nothing, where a request has it.
    """

    def __init__(self) -> None:
        self._followed: dict[Matcher | UnescapedMatcher, Followed] = {}
        self.beside: dict[Matcher, Followed] = {}
        self._again: NDArray[np.bool_] | None = None
        # Lists: to compare two of them takes a fraction of what it takes to make an array.
        self._expected: list[int] = []
        self._newest: list[int] = []
        self.requests: list[Request] = []
        self.arrange([], [])

    def arrange(self, requests: list[Request], sources: Sequence[int]) -> None:
        """Requests come, go and move: what was row `sources[i]` is row i; from the present number of rows on, new."""
        before, count = np.array(sources, np.int64), len(self.requests)
        # No text has this length.
        expected = [self._expected[source] if source < count else -1 for source in sources]
        newest = [self._newest[source] if source < count else _NO_TOKEN for source in sources]
        bans = [() if request.is_hidden else request.matchers or () for request in requests]
        self._followed = _arranged(self._followed, bans, before)
        beside = [() if request.is_hidden else request.beside for request in requests]
        self.beside = _arranged(self.beside, beside, before)
        self._known = max(map(len, self._followed), default=0)
        self.requests, self._outputs = requests, [request.output for request in requests]
        self._expected, self._newest = expected, newest
        self.guarded = np.array([row for row, request in enumerate(requests) if request.is_guarded], np.int64)
        self.endless = self.guarded[[requests[row].endless for row in self.guarded.tolist()]]
        self._hidden = [row for row, request in enumerate(requests) if request.is_hidden]

    def follow(self) -> None:
        """Bring everything up to the tokens that there are now."""
        outputs, expected, known = self._outputs, self._expected, self._newest
        lengths = list(map(len, outputs))
        before = [output[-2] if len(output) > 1 else _NO_TOKEN for output in outputs]
        self._expected = [length + 1 for length in lengths]
        self._newest = [output[-1] if output else _NO_TOKEN for output in outputs]
        all_grew = lengths == expected and before == known
        self._again = None if all_grew else np.not_equal(lengths, expected) | np.not_equal(before, known)
        newest = np.array(self._newest, np.int64)
        for followed in self._followed.values():
            self._advance(followed, newest, bans=True)
        for followed in self.beside.values():
            self._advance(followed, newest, bans=False)

    def grew(self, row: int) -> bool:
        """Whether a row had, at the last `follow`, its text of the one before and one token more."""
        return self._again is None or not self._again[row]

    def banned(self, width: int) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]:
        """The banned tokens below `width` as pairs (rows, tokens), both [n], in any order, some perhaps twice."""
        rows: list[NDArray[np.integer[Any]]] = []
        tokens: list[NDArray[np.integer[Any]]] = []
        for followed in self._followed.values():
            found, banned = followed.tracker.banned()
            rows.append(found if len(followed.rows) == len(self.requests) else followed.rows[found])
            tokens.append(banned)
        for hidden in self._hidden:
            rows.append(np.full(width, hidden, np.int64))
            tokens.append(np.arange(width, dtype=np.int64))
        row, token = _joined(rows), _joined(tokens)
        if width >= self._known:
            return row, token
        inside = token < width
        return row[inside], token[inside]

    def passed(self) -> Iterator[tuple[Matcher | UnescapedMatcher, Passed]]:
        """What the newest tokens were let through, as `Tracker.passed`, with the batch's rows, and by whose matcher."""
        for matcher, followed in self._followed.items():
            for one in followed.tracker.passed():
                yield matcher, one._replace(row=int(followed.rows[one.row]))

    def blame(self, row: int, token_id: int) -> Iterator[tuple[Matcher | UnescapedMatcher, str]]:
        """The ids of the entries because of which a token is banned in a row, each with its matcher."""
        for matcher, followed in self._followed.items():
            place = int(np.searchsorted(followed.rows, row))
            if place < len(followed.rows) and followed.rows[place] == row:
                for name in followed.tracker.blame(place, token_id):
                    yield matcher, name

    def unreadable(self) -> set[int]:
        """The rows whose text nobody knows: every token is banned, and no entry is to blame."""
        found = set(self._hidden)
        for followed in self._followed.values():
            if followed.tracker.any_closed:
                found.update(followed.rows[followed.tracker.closed].tolist())
        return found

    def _advance(self, followed: Followed, newest: NDArray[np.int64], *, bans: bool) -> None:
        tracker, rows = followed.tracker, followed.rows
        tracker.advance(newest if len(rows) == len(newest) else newest[rows])
        if self._again is None and not tracker.any_closed:
            return
        again = tracker.closed if self._again is None else self._again[rows] | tracker.closed
        self._read(followed, np.flatnonzero(again), bans=bans)

    def _read(self, followed: Followed, places: NDArray[np.int64], *, bans: bool) -> None:
        requests = [self.requests[row] for row in followed.rows[places].tolist()]
        prompts = np.array([0 if request.prompt is None else len(request.prompt) for request in requests], np.int64)
        texts = [request.text() for request in requests]
        followed.tracker.read(places, texts, prompts)
        for request, text, is_closed in zip(requests, texts, followed.tracker.closed[places].tolist(), strict=True):
            if bans and is_closed and not request.is_told:
                request.is_told = True
                _LOG.warning("a request ends, since its text cannot be checked: %s", _reason(request, text))


def _reason(request: Request, text: NDArray[np.int64]) -> str:
    """Why a text cannot be read."""
    kinds = next(matcher.vocabulary.kinds for matcher in request.matchers or ())
    known = (text >= 0) & (text < len(kinds))
    known[known] = kinds[text[known]] != UNKNOWN
    if known.all():
        return "it has so many special tokens that it can be read in too many ways"
    return f"token id {text[~known][-1]} has no known bytes"


def _joined(arrays: list[NDArray[np.integer[Any]]]) -> NDArray[np.integer[Any]]:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate([np.zeros(0, np.int64), *arrays])


def _arranged(
    before: dict[_M, Followed], wanted: Sequence[Sequence[_M]], sources: NDArray[np.int64]
) -> dict[_M, Followed]:
    """What follows the rows that now want each matcher; `sources`: the rows that they were."""
    rows_of: dict[_M, list[int]] = {}
    for row, matchers in enumerate(wanted):
        for matcher in matchers:
            rows_of.setdefault(matcher, []).append(row)
    return {
        matcher: _taken(before.get(matcher), matcher, np.array(rows, np.int64), sources)
        for matcher, rows in rows_of.items()
    }


def _taken(
    followed: Followed | None,
    matcher: Matcher | UnescapedMatcher,
    rows: NDArray[np.int64],
    before: NDArray[np.int64],
) -> Followed:
    """The tracker for `rows`, with what it knew of those that came from a row `before`."""
    sources = np.full(len(rows), -1, np.int64)
    if followed is None:
        tracker: Tracker = matcher.track()
    else:
        tracker, old = followed.tracker, before[rows]
        places = np.minimum(np.searchsorted(followed.rows, old), len(followed.rows) - 1)
        is_there = followed.rows[places] == old
        sources[is_there] = places[is_there]
    tracker.take(sources)
    return Followed(tracker, rows)
