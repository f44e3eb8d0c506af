"""What is prohibited at the supervised tokens of a row, and what the model is to write there instead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.masking import move_mass_
from prod_decode.serving.preference import Preference
from prod_train.data.rows import Row

if TYPE_CHECKING:
    from prod_decode.match.matcher import Matcher

Prohibition = tuple[NDArray[np.int64], NDArray[np.int64]]


def prohibited_next(row: Row) -> Prohibition:
    """What PROD prohibits in a row: the supervised tokens themselves, but for an appended EOS.

    Returns:
        (index among the supervised tokens int64 [M], token id int64 [M]).
    """
    labels = row.ids[row.supervised]
    last = len(labels) - int(row.has_eos and bool(row.supervised[-1]))
    return np.arange(last), labels[:last]


def prohibited_by(matcher: Matcher, row: Row) -> Prohibition:
    """What a blocklist prohibits in a row: at every supervised token, what the matcher bans after the text before it.

    Returns:
        As `prohibited_next`; positions where nothing is banned do not appear.
    """
    state = matcher.start()
    states = np.empty(len(row.ids), np.int64)
    for at, token in enumerate(row.ids.tolist()):
        states[at] = state
        state = matcher.advance(state, token)
    rows, tokens = matcher.banned_all(states[row.supervised])
    return rows.astype(np.int64), tokens.astype(np.int64)


class Moves:
    """Where probability goes to a replacement along one row, from its first supervised token to its last.

    In a row of the forget set it goes where a processor with the same blocklist would move it after the text so far,
    what was begun before included. In a row in which a replacement is written out, all of it goes to the row's own
    token: any spelling of the replacement would do, but behind it only the row's is trained.

    Attributes:
        moved: bool [N]; at which of the supervised tokens any was moved, of those that `apply_` has seen.
    """

    def __init__(self, row: Row, prohibited: Prohibition, preference: Preference) -> None:
        """Begin at the row's first token.

        Args:
            row: tokenised.
            prohibited: what is, in this row.
            preference: of the blocklist; it stays as it is.
        """
        self._ids = row.ids
        self._places = np.flatnonzero(row.supervised)
        self._prohibited = prohibited
        self._written = bool(row.instead_of)
        self._preference = preference.again()
        self._preference.tracker.read(np.zeros(1, np.int64), [row.ids[:0]], np.zeros(1, np.int64))
        self._followed = 0
        self.moved = np.zeros(len(self._places), np.bool_)

    def apply_(self, scores: Tensor, begin: int) -> None:
        """Move the probability in the logits of the supervised tokens from `begin` on, floats [n, V], in place.

        Call it for all of them in order.
        """
        for index in range(begin, begin + len(scores)):
            self.moved[index] = self._apply_one(scores[index - begin : index - begin + 1], index)

    def _apply_one(self, scores: Tensor, index: int) -> bool:
        banned = self._prohibited[1][self._prohibited[0] == index]
        at = int(self._places[index])
        if self._written:
            label = self._ids[at : at + 1]
            # Nothing prohibits a replacement, but what stands before it may make a phrase of it.
            return not np.isin(label, banned).any() and move_mass_(scores[0], None, label)
        for token in self._ids[self._followed : at]:
            self._preference.tracker.advance(np.array([token]))
        self._followed, text = at, self._ids[:at]
        found = self._preference.moves(lambda _: text, [at], (np.zeros(len(banned), np.int32), banned.astype(np.int32)))
        return sum(self._preference.apply_(scores, move, text) for move in found) > 0  # all of them


Rules = Callable[[Row], tuple[Prohibition, Moves | None]]


def rules_of(matcher: Matcher | None) -> Rules:
    """What says of a row what is prohibited in it, and where probability goes to replacements.

    Args:
        matcher: of a blocklist; None: the next token is prohibited, as by `prohibited_next`. Without replacements that
            can be reached, nothing is moved.
    """
    return partial(_rules, matcher, None if matcher is None else Preference.of(matcher))


def _rules(matcher: Matcher | None, preference: Preference | None, row: Row) -> tuple[Prohibition, Moves | None]:
    prohibited = prohibited_next(row) if matcher is None else prohibited_by(matcher, row)
    return prohibited, None if preference is None else Moves(row, prohibited, preference)
