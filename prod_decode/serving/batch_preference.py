"""Replacements in an engine's batch, whose rows come, go and move: vLLM's V1 runner; nothing here imports it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.match.batch import Request, RequestBatch
from prod_decode.match.matcher import Matcher
from prod_decode.match.unescaped import UnescapedMatcher
from prod_decode.serving.preference import Banned, Begun, Move, Preference, prefer_

_Key = tuple[tuple[Matcher | UnescapedMatcher, ...] | None, int, bytes]

# Texts of requests that left while a replacement was begun.
_MOST_LEFT = 4096


@dataclass(slots=True)
class _Started:
    """What a request began at one step, by whose preference, and how many tokens it had written."""

    written: int
    by: dict[Preference, list[Begun]]


class BatchPreference:
    """Finds and moves what is preferred in the rows of a `RequestBatch`, which follows the texts.

    What is begun belongs to a request, and is forgotten unless its text is one token longer at the next step: a step
    that the engine throws away begins nothing. An engine that leaves a request out of a step, or preempts it, brings it
    back as another with the same prompt and output. So what was begun in a request that is gone is kept by its text.
    """

    def __init__(self, matchers: Sequence[Matcher]) -> None:
        """Of all blocklists, in the order in which a request's lists are preferred."""
        found = [(matcher, Preference.of(matcher)) for matcher in matchers]
        self._of = {matcher: preference for matcher, preference in found if preference}
        for matcher in self._of:
            # Compiled here: at a step it would hold up every request.
            matcher.normalization.run(np.frombuffer(b"a", np.uint8))
        self._started: dict[Request, _Started] = {}
        self._left: OrderedDict[_Key, _Started] = OrderedDict()

    def beside(self, matchers: Sequence[Matcher]) -> tuple[Matcher, ...]:
        """For `Request.beside`: what follows the text of a request with these blocklists."""
        return tuple(self._of[matcher].matcher for matcher in matchers if matcher in self._of)

    def moves(self, batch: RequestBatch, banned: Banned) -> list[tuple[Preference, Move]]:
        """What is preferred after the texts of a batch, in the order in which it is to be applied.

        Args:
            batch: after its `follow`.
            banned: the prohibited tokens of the step, as pairs, which get nothing.
        """
        if not batch.beside:
            return []
        before, self._started = self._started, {}
        if before:
            self._keep({request: before[request] for request in before.keys() - set(batch.requests)})
        found: list[tuple[Preference, Move]] = []
        for preference in self._of.values():
            followed = batch.beside.get(preference.matcher)
            if followed is not None:
                begun = self._begun_in(batch, preference, followed.rows, before)
                moves = preference.find(
                    followed.tracker, followed.rows, lambda row: batch.requests[row].text(), begun, banned
                )
                found += [(preference, move) for move in moves]
        return found

    def apply_(self, logits: Tensor, batch: RequestBatch, moves: Sequence[tuple[Preference, Move]]) -> None:
        """Move probability in `logits`, floats [B, V], in place, and remember what is begun by it."""
        for preference, move in moves:
            _, begun = prefer_(logits[move.row], move)
            if begun is not None:
                request = batch.requests[move.row]
                started = self._started.setdefault(request, _Started(len(request.output), {}))
                started.by.setdefault(preference, []).append(begun)

    def _begun_in(
        self,
        batch: RequestBatch,
        preference: Preference,
        rows: NDArray[np.int64],
        before: dict[Request, _Started],
    ) -> dict[int, tuple[int, list[Begun]]]:
        """For `Preference.find`: the newest tokens of rows, and what was begun before these."""
        found = {}
        for row in rows.tolist() if before or self._left else ():
            request = batch.requests[row]
            started = before.get(request) if batch.grew(row) else self._left_by(request)
            if started is not None and preference in started.by:
                found[row] = request.output[-1], started.by[preference]
        return found

    def _keep(self, gone: dict[Request, _Started]) -> None:
        for request, started in gone.items():
            # The engine's own list has the token that came, if that step was not thrown away.
            if len(request.output) > started.written:
                self._left[_key(request, started.written)] = started
                if len(self._left) > _MOST_LEFT:
                    self._left.popitem(last=False)

    def _left_by(self, request: Request) -> _Started | None:
        """What was begun by a request of which this is the return, one token later."""
        if not self._left or not request.output:
            return None
        return self._left.get(_key(request, len(request.output) - 1))


def _key(request: Request, written: int) -> _Key:
    """What is enforced, the prompt, and the first tokens of the output, for a request that has a text."""
    text = request.text()
    prompt = len(text) - len(request.output)
    return request.matchers, prompt, xxhash.xxh3_128_digest(text[: prompt + written].tobytes())
