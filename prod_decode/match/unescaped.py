"""Follow outputs with the escapes of JSON decoded (`escapes`), beside a `TextTracker` that follows them as they are."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from prod_decode.match.automaton import ROOT, step, walk
from prod_decode.match.follow import end_prompt
from prod_decode.match.matcher import Matcher, Watch
from prod_decode.match.trackers import Combined, Tracker
from prod_decode.storage.jit import jit
from prod_decode.text.escapes import AFTER_BACKSLASH, IN_ESCAPES, MOST, OUTSIDE, feed, room_of, symbols_of
from prod_decode.text.normalize import AFTER_OTHER, AFTER_WORD, CLASSES, TEXT_STATES, WORD, fold, transduce
from prod_decode.tokens.vocabulary import SPECIAL, UNKNOWN, Vocabulary

_LOG = logging.getLogger(__name__)

# States of which is remembered what they ban.
_CACHED = 1 << 12

# The state of no text: an output with a token of which nobody knows the bytes.
_UNREADABLE = -1

_START = ROOT * TEXT_STATES + AFTER_OTHER


# By matcher, and by the symbols before which a word may end.
_MADE: WeakKeyDictionary[Matcher, dict[bytes, UnescapedMatcher]] = WeakKeyDictionary()
_KEPT = 64


def unescaped(matcher: Matcher, stops: Iterable[str] | None = ()) -> UnescapedMatcher:
    """The matcher for outputs whose JSON escapes are decoded, and which the engine cuts at these strings.

    Enforce it beside `matcher`, which knows the text as it is. Making the first one of a vocabulary and a normalisation
    takes twice as long as binding does.
    """
    stops = None if stops is None else list(stops)
    ends = matcher.cut_by(stops).ends
    # Cut inside of an escape, or before it, a word ends before what would have stood there.
    in_escapes = stops is None or any(stop.encode()[0] in IN_ESCAPES for stop in stops if stop)
    if in_escapes and (matcher.automaton.patterns & 1).any():
        ends = np.ones_like(ends)
    made = _MADE.setdefault(matcher, {})
    key = ends.tobytes()
    if key not in made:
        if len(made) >= _KEPT:
            made.clear()
        matchers = {
            escape: matcher.again(vocabulary=matcher.vocabulary.unescaped(escape), ends=ends)
            for escape in (OUTSIDE, AFTER_BACKSLASH)
        }
        watches = [corpus.unescaped() for corpus in matcher.corpora]
        made[key] = UnescapedMatcher(matcher.vocabulary, matchers, ends, watches)
        if matcher.quotes:
            _LOG.warning(
                "budgets count an output as it is written: where its JSON is decoded, phrases and max_quote hold, and "
                "a line end in a string ends a piece"
            )
    return made[key]


class UnescapedMatcher:
    r"""Which tokens would complete a pattern in a text whose escapes are decoded; made by `unescaped`.

    Such a text has two states: one as a `Matcher` has, and an escape state. Special tokens are left out of it; a word
    may begin after each, as for a `Matcher`.

    Outside of an escape and after a backslash, where tokens nearly always end, the bans are those of a `Matcher` whose
    vocabulary is decoded from there. Within `\uXXXX` every token is walked through, and what is found is kept.

    Attributes:
        vocabulary: the tokens as they are.
        matchers: by escape state.
        origin_of: source and licence of an entry, as `Matcher` has it.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        matchers: Mapping[int, Matcher],
        ends: NDArray[np.bool_],
        watches: Sequence[Watch] = (),
    ) -> None:
        """From the parts.

        Args:
            vocabulary: the tokens as they are.
            matchers: by escape state, `OUTSIDE` among them.
            ends: bool [256], the symbols before which a word may end.
            watches: what else follows decoded outputs, such as a corpus index.
        """
        self.vocabulary, self.matchers, self._watches = vocabulary, matchers, tuple(watches)
        self.automaton, self.normalization = matchers[OUTSIDE].automaton, matchers[OUTSIDE].normalization
        self.origin_of = matchers[OUTSIDE].origin_of
        self._ends = ends
        self._banned: dict[tuple[int, int], NDArray[np.int32]] = {}
        self._inside: dict[tuple[int, int], tuple[NDArray[np.int32], int]] = {}
        self.text = (
            self.automaton.nodes,
            self.automaton.rows,
            CLASSES,
            vocabulary.data,
            vocabulary.offsets,
            vocabulary.kinds,
            self.normalization.is_code,
            self.normalization.ignore_case,
        )

    def __len__(self) -> int:
        """The number of token ids."""
        return len(self.vocabulary)

    def track(self) -> Tracker:
        """A tracker of a batch of outputs, without rows at first."""
        tracker = UnescapedTracker(self)
        return Combined([tracker, *(watch.track() for watch in self._watches)]) if self._watches else tracker

    def banned(self, state: int, escape: int) -> NDArray[np.int32]:
        """The banned tokens in any escape state: int32 [n], ascending."""
        node, text_state = divmod(state, TEXT_STATES)
        inside, longest = self._banned_inside(text_state, escape)
        # Nothing that is under way can be completed by one token.
        if node == ROOT or longest < self.automaton.nodes[node]["near"]:
            return inside
        if (state, escape) not in self._banned:
            if len(self._banned) >= _CACHED:
                self._banned.clear()
            # A word may begin here although a pattern is under way: what begins here is found from the root alone.
            self._banned[state, escape] = np.union1d(self._walk(node, text_state, escape)[0], inside)
        return self._banned[state, escape]

    def blame(self, state: int, escape: int, token_id: int) -> list[str]:
        """The ids of the entries whose patterns the token would complete, as `Matcher.blame`."""
        data = self.vocabulary.data[self.vocabulary.offsets[token_id] : self.vocabulary.offsets[token_id + 1]]
        is_code, ignore_case = self.normalization.is_code, self.normalization.ignore_case
        symbols = np.empty(room_of(len(data)), np.uint8)
        count, _, _ = symbols_of(CLASSES, data, is_code, ignore_case, state % TEXT_STATES, escape, symbols)
        return self.matchers[OUTSIDE].blame_symbols(state, symbols[:count])

    def _banned_inside(self, text_state: int, escape: int) -> tuple[NDArray[np.int32], int]:
        """The tokens that have a whole pattern inside, and the most symbols that a token emits."""
        if (text_state, escape) not in self._inside:
            if len(self._inside) >= _CACHED:
                self._inside.clear()
            self._inside[text_state, escape] = self._walk(ROOT, text_state, escape)
        return self._inside[text_state, escape]

    def _walk(self, node: int, text_state: int, escape: int) -> tuple[NDArray[np.int32], int]:
        symbols = np.empty(room_of(int(np.diff(self.vocabulary.offsets).max(initial=0))), np.uint8)
        completes, longest = _completes(*self.text, self._ends, node, text_state, escape, symbols)
        return np.flatnonzero(completes).astype(np.int32), int(longest)


class UnescapedTracker:
    """The outputs of a batch, decoded, and the tokens that complete a pattern; used as any `Tracker` is.

    What stands in the prompt is not looked at: an output is decoded as if it began outside of an escape.
    """

    def __init__(self, matcher: UnescapedMatcher) -> None:
        self.matcher = matcher
        self._states = self._escapes = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._states)

    @property
    def closed(self) -> NDArray[np.bool_]:
        """Which rows cannot be read, bool [B]."""
        return np.equal(self._states, _UNREADABLE)

    @property
    def any_closed(self) -> bool:
        """Whether any row cannot be read."""
        return bool(self.closed.any())

    def read(self, rows: NDArray[np.int64], texts: Sequence[NDArray[np.int64]], prompts: NDArray[np.int64]) -> None:
        """Read whole texts, as `Tracker.read`."""
        if len(rows) and (most := int(rows.max()) + 1) > len(self):
            self.take(np.concatenate((np.arange(len(self)), np.full(most - len(self), -1))))
        for row, text, prompt in zip(rows.tolist(), texts, prompts.tolist(), strict=True):
            tokens = np.ascontiguousarray(text[prompt:], np.int64)
            self._states[row], self._escapes[row] = _follow(*self.matcher.text, _START, OUTSIDE, tokens)

    def advance(self, tokens: NDArray[np.int64]) -> None:
        """Every row one token on: int64 [B]."""
        _advance(*self.matcher.text, self._states, self._escapes, tokens)

    def take(self, sources: NDArray[np.int64]) -> None:
        """Rows come, go, move, are copied, as `Tracker.take`."""
        old = sources >= 0
        states, escapes = np.full(len(sources), _START, np.int64), np.full(len(sources), OUTSIDE, np.int64)
        states[old], escapes[old] = self._states[sources[old]], self._escapes[sources[old]]
        self._states, self._escapes = states, escapes

    def banned(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The banned tokens as sparse pairs, rows int32 [n], ascending, and token ids int32 [n], each pair once."""
        if not self._escapes.any() and not self.closed.any():
            return self.matcher.matchers[OUTSIDE].banned_all(self._states)
        closed, matchers = self.closed, self.matcher.matchers
        everything = np.arange(len(self.matcher), dtype=np.int32)
        pairs = [(np.full(len(everything), row, np.int32), everything) for row in np.flatnonzero(closed).tolist()]
        for escape in np.unique(self._escapes[~closed]).tolist():
            here = np.flatnonzero((self._escapes == escape) & ~closed).astype(np.int32)
            if escape in matchers:
                found, tokens = matchers[escape].banned_all(self._states[here])
                pairs.append((here[found], tokens))
                continue
            for row in here.tolist():
                tokens = self.matcher.banned(int(self._states[row]), escape)
                pairs.append((np.full(len(tokens), row, np.int32), tokens))
        rows, ids = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        order = np.argsort(rows, kind="stable")
        return rows[order], ids[order]

    def passed(self) -> tuple[()]:
        """None: what a text gives away is counted elsewhere."""
        return ()

    def blame(self, row: int, token_id: int) -> list[str]:
        """The ids of the entries whose patterns a token would complete in a row; none if closed."""
        if self._states[row] == _UNREADABLE:
            return []
        return self.matcher.blame(int(self._states[row]), int(self._escapes[row]), token_id)


@jit
def _completes(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    kinds: NDArray[np.uint8],
    is_code: bool,
    ignore_case: bool,
    ends: NDArray[np.bool_],
    node: int,
    text_state: int,
    escape: int,
    symbols: NDArray[np.uint8],
) -> tuple[NDArray[np.bool_], int]:
    """Which tokens complete a pattern, and the most symbols that one emits; `symbols` is written to."""
    completes = np.zeros(len(kinds), np.bool_)
    longest = 0
    for token in range(len(kinds)):
        token_data = data[offsets[token] : offsets[token + 1]]
        # Too short for what is under way; what it has inside of it is found from the root.
        if node != ROOT and len(token_data) + MOST < nodes[node].near:
            continue
        count, _, _ = symbols_of(classes, token_data, is_code, ignore_case, text_state, escape, symbols)
        _, matched = walk(nodes, rows, classes, ends, node, text_state, symbols[:count])
        completes[token] = matched or kinds[token] == UNKNOWN
        longest = max(longest, count)
    return completes, longest


@jit
def _follow(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    kinds: NDArray[np.uint8],
    is_code: bool,
    ignore_case: bool,
    state: int,
    escape: int,
    tokens: NDArray[np.int64],
) -> tuple[int, int]:
    """The states after some tokens; `_UNREADABLE` if the bytes of one are not known."""
    decoded = np.empty(MOST, np.uint8)
    node, text_state = state >> 2, state & 3
    for token in tokens:
        if token < 0 or token >= len(kinds) or kinds[token] == UNKNOWN:
            return _UNREADABLE, OUTSIDE
        if kinds[token] == SPECIAL:
            text_state = end_prompt(text_state)
        for i in range(offsets[token], offsets[token + 1]):
            escape, given = feed(escape, data[i], decoded, 0)
            for k in range(given):
                begins_word = classes[decoded[k]] == WORD and text_state != AFTER_WORD
                text_state, emitted = transduce(text_state, classes[decoded[k]], is_code)
                if emitted == 2:
                    node = step(nodes, rows, node, 32, False)
                if emitted:
                    node = step(nodes, rows, node, fold(decoded[k], ignore_case), begins_word)
    return (node << 2) | text_state, escape


@jit
def _advance(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    kinds: NDArray[np.uint8],
    is_code: bool,
    ignore_case: bool,
    states: NDArray[np.int64],
    escapes: NDArray[np.int64],
    tokens: NDArray[np.int64],
) -> None:
    for row in range(len(states)):
        if states[row] != _UNREADABLE:
            states[row], escapes[row] = _follow(
                nodes,
                rows,
                classes,
                data,
                offsets,
                kinds,
                is_code,
                ignore_case,
                states[row],
                escapes[row],
                tokens[row : row + 1],
            )
