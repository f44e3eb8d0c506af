"""From what masks and trackers know of a step to hits, for every adapter. Used only where somebody listens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.errors import ProdError, brief
from prod_decode.masking import prod_distribution
from prod_decode.match.batch import Request, RequestBatch
from prod_decode.match.matcher import Matcher
from prod_decode.match.unescaped import UnescapedMatcher
from prod_decode.quotes.passed import Passed
from prod_decode.serving.hits import Hit
from prod_decode.serving.preference import Move
from prod_decode.tokens.vocabulary import UNKNOWN, Vocabulary

# Steps at which less than this was banned, and not the likeliest token, are not told: with a large vocabulary something
# has a probability of a millionth at nearly every one.
LEAST_MASS = 0.01

_NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int64))

Pairs = tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]


class Place(NamedTuple):
    """Where something happens.

    Attributes:
        row: of the batch.
        position: of a token.
        request: the engine's name of it.
    """

    row: int
    position: int
    request: str | None = None


class Culprit(NamedTuple):
    """An entry that bans a token, and whose list has it.

    Attributes:
        entry_id: its id.
        matcher: knows its source and licence.
        replacement: what is preferred there.
    """

    entry_id: str
    matcher: Matcher | UnescapedMatcher
    replacement: str | None = None


class Looked(NamedTuple):
    """Which rows are worth the time.

    Attributes:
        refusing: those of which the likeliest token may be banned, or enough others.
        dying: those that may have no token left.
    """

    refusing: list[int]
    dying: list[int]


class Reporter:
    """Makes hits and hands them to whoever listens."""

    def __init__(
        self, on_hit: Callable[[Hit], object], matchers: Iterable[Matcher], *, least_mass: float = LEAST_MASS
    ) -> None:
        """Check the arguments.

        Args:
            on_hit: called with each hit; what it raises is not caught.
            matchers: of which hits are told; what they look entries up in is made now.
            least_mass: of a step whose likeliest token is allowed, the probability that must be banned for a hit.

        Raises:
            ProdError: something else than a function, or a number that is no probability.
        """
        if not callable(on_hit):
            raise ProdError(f"on_hit: expected a function of one Hit, got {brief(on_hit)}: pass print, or an AuditLog")
        is_number = isinstance(least_mass, int | float) and not isinstance(least_mass, bool)
        if not is_number or not 0 <= least_mass <= 1:
            raise ProdError(f"least_mass: expected a probability, 0 to 1, got {brief(least_mass)}")
        self._on_hit, self._least = on_hit, least_mass
        for matcher in matchers:
            matcher.origin_of("")

    def tell(self, hits: Iterable[Hit]) -> None:
        """Hand them over. Call it when the mask is applied: whatever this raises, nothing is unguarded."""
        for hit in hits:
            self._on_hit(hit)

    def look(self, scores: Tensor, banned: Pairs) -> Looked:
        """Which rows of `scores`, [B, V], are worth a closer look; waits for the device once."""
        rows = banned[0]
        some = np.unique(rows)
        if not len(some):
            return Looked([], [])
        place = torch.from_numpy(some.astype(np.int64)).to(scores.device)
        pairs = tuple(torch.from_numpy(ids.astype(np.int64)).to(scores.device) for ids in banned)
        top = np.full(len(scores), np.inf)
        fetched = torch.cat([scores[place].amax(-1), scores[pairs]]).cpu().double().numpy()
        top[some] = fetched[: len(some)]
        return self.look_at(rows, fetched[len(some) :], top)

    def look_at(self, rows: NDArray[np.integer[Any]], of_banned: NDArray[Any], top: NDArray[Any]) -> Looked:
        """The same, of scores that were fetched.

        Args:
            rows: int [n], of banned tokens.
            of_banned: float64 [n], their scores.
            top: float64 [B], the highest score of each row, banned ones included.
        """
        highest = top[rows]
        is_top = of_banned >= highest
        # The sum of all exponentials is at least that of the highest: these have at least the probability's size.
        with np.errstate(invalid="ignore", over="ignore"):
            shares = np.where(is_top, 1.0, np.exp(of_banned - highest))
        most = np.bincount(rows, np.nan_to_num(shares), len(top))
        dying = ~(top > -np.inf)
        dying[rows[is_top]] = True
        return Looked(np.flatnonzero((most >= self._least) & (most > 0)).tolist(), np.flatnonzero(dying).tolist())

    def refused(
        self,
        place: Place,
        scores: Tensor,
        out: NDArray[np.integer[Any]],
        blame: Callable[[int], Iterable[Culprit]],
        vocabulary: Vocabulary,
    ) -> list[Hit]:
        """The hits of one step of one row, for the likeliest token that an entry bans.

        Args:
            place: of the token to come.
            scores: [V], before the mask.
            out: int [n], the banned tokens, at least one, all of the vocabulary.
            blame: who bans one; nobody bans an id without known bytes.
            vocabulary: of the tokens.
        """
        probs = prod_distribution(scores, _NOTHING).cpu().double().numpy()
        # A row that rates no token above another says nothing: prompt lookup asks with such rows.
        if bool((probs == probs[0]).all()):
            return []
        out = np.unique(out)
        mass = float(probs[out].sum())
        named = out[vocabulary.kinds[out] != UNKNOWN]
        likeliest, left = int(scores.argmax()), float(probs[named].sum())
        for token in named[np.lexsort((named, -probs[named], named != likeliest))].tolist():
            probability = float(probs[token])
            # What is left could not make a hit, whoever bans it.
            if token != likeliest and (left < self._least or not probability > 0):
                break
            culprits = list(blame(token))
            if culprits:
                text = vocabulary.shown.get(token, b"") or vocabulary.token_bytes(token)
                return [
                    Hit(
                        *place[:2],
                        "banned",
                        one.entry_id,
                        *one.matcher.origin_of(one.entry_id),
                        probability=probability,
                        mass=min(mass, 1.0),
                        likeliest=token == likeliest,
                        token_id=token,
                        text=text.decode("utf-8", "replace"),
                        replacement=one.replacement,
                        request=place.request,
                    )
                    for one in culprits
                ]
            left -= probability
        return []

    @staticmethod
    def passed(place: Place, one: Passed, matcher: Matcher | UnescapedMatcher) -> Hit:
        """The hit of what was let through; `place`: of the newest token."""
        return Hit(
            *place[:2],
            one.kind,
            one.entry_id,
            *matcher.origin_of(one.entry_id),
            text=one.text,
            characters=one.characters,
            budget=one.budget,
            span=one.span,
            request=place.request,
        )

    @staticmethod
    def ended(place: Place) -> Hit:
        """The hit of a row without a token left."""
        return Hit(*place[:2], "ended", request=place.request)


def culprits_of(
    named: Iterable[tuple[Matcher | UnescapedMatcher, str]], token: int, moves: Iterable[Move], lists: Iterable[Matcher]
) -> list[Culprit]:
    """Because of whom a token cannot come: the entries that ban it, or the one that gives it away to a replacement.

    Args:
        named: the entries that ban it, each with its matcher; of those with one id the first counts.
        token: which.
        moves: of its row.
        lists: that may have such an entry.
    """
    fork = next((move.fork for move in moves if move.sources is not None and token in move.sources), None)
    found: dict[str, Matcher | UnescapedMatcher] = {}
    for matcher, name in named:
        found.setdefault(name, matcher)
    if fork is not None and not found:
        found = {fork.entry_id: next(matcher for matcher in lists if fork in matcher.forks)}
    return [Culprit(name, matcher, fork.replacement if fork else None) for name, matcher in found.items()]


class BatchReporter:
    """Tells of the steps of a `RequestBatch`, on vLLM's V1 runner.

    vLLM reads a long prompt in several steps, and throws away what all but the last say of the next token. So what is
    banned in a request without output is held until it has one, and forgotten if the next step finds none.
    """

    def __init__(self, reporter: Reporter, lists: Sequence[Matcher], eos_ids: Sequence[int]) -> None:
        """Tell `reporter` of requests under some of these lists."""
        self._reporter, self._lists, self._eos_ids = reporter, lists, eos_ids
        self._held: dict[Request, list[Hit]] = {}
        self._hits: list[tuple[Request, Hit]] = []
        self._dying: list[int] = []

    def release(self) -> None:
        """A step begins: tell what was held of requests that have written since."""
        held, self._held = self._held, {}
        self._reporter.tell(hit for request, hits in held.items() if request.output for hit in hits)

    def look(self, batch: RequestBatch, logits: Tensor, banned: Pairs, moves: Sequence[Move]) -> None:
        """Before the mask.

        Args:
            batch: after its `follow`.
            logits: [B, V].
            banned: as pairs, some perhaps twice.
            moves: of the step.
        """
        self._hits = []
        for matcher, one in batch.passed():
            request = batch.requests[one.row]
            self._hits.append((request, self._reporter.passed(_place(request, one.row, -1), one, matcher)))
        moved = [move for move in moves if move.sources is not None]
        looked = self._reporter.look(logits, banned)
        self._dying = looked.dying
        unreadable = batch.unreadable() if looked.refusing else set()
        for row in sorted({*looked.refusing, *(move.row for move in moved)} - unreadable):
            here = [move for move in moved if move.row == row]
            out = np.concatenate([banned[1][banned[0] == row], *(m.sources for m in here if m.sources is not None)])

            def blame(token: int, row: int = row, here: list[Move] = here) -> list[Culprit]:
                return culprits_of(batch.blame(row, token), token, here, self._lists)

            request = batch.requests[row]
            vocabulary = self._lists[0].vocabulary
            hits = self._reporter.refused(_place(request, row), logits[row], out, blame, vocabulary)
            self._hits += [(request, hit) for hit in hits]

    def tell(self, batch: RequestBatch, masked: Tensor) -> None:
        """Behind the mask, and before rows without a token left are given one."""
        for row in self._dying:
            request = batch.requests[row]
            had_ended = bool(request.output) and request.output[-1] in self._eos_ids
            if not had_ended and not bool((masked[row] > -torch.inf).any()):
                self._hits.append((request, self._reporter.ended(_place(request, row))))
        for request, hit in self._hits:
            if not request.output:
                self._held.setdefault(request, []).append(hit)
        self._reporter.tell(hit for request, hit in self._hits if request.output)
        self._hits = []


def _place(request: Request, row: int, behind: int = 0) -> Place:
    """Of the token to come, or so many behind that."""
    prompt = 0 if request.prompt is None else len(request.prompt)
    return Place(row, prompt + len(request.output) + behind)
