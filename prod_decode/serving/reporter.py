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
from prod_decode.match.matcher import Matcher
from prod_decode.quotes.passed import Passed
from prod_decode.serving.hits import Hit
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
    matcher: Matcher
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
    def passed(place: Place, one: Passed, matcher: Matcher) -> Hit:
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


def culprits(matcher: Matcher, names: Sequence[str]) -> list[Culprit]:
    """Entries of one list."""
    return [Culprit(name, matcher) for name in names]
