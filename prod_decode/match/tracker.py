"""Follow the texts of a batch in every reading that somebody may make of them.

A sequence of tokens is read in more than one way. Special tokens may be left out (`skip_special_tokens=True`) or
shown, and what is returned may begin where a special token or the prompt ended: `literal_`, then `eval(`, is
`literal_eval(` to one reader and `eval(` to another. `Matcher` alone keeps one state, that of the text without its
special tokens, in which a word may begin after each. A tracker keeps more where the readings differ, and bans what
completes a pattern in any.

They differ for a few symbols behind a special token or behind the prompt, and nowhere else. A reading whose state is on
the failure chain of the first, in the same text state, can complete nothing that the first cannot, and is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prod_decode.match.automaton import ROOT, Automaton
from prod_decode.match.follow import advance_all, advance_inline
from prod_decode.match.tables import Tables
from prod_decode.storage.jit import inline, jit
from prod_decode.text.normalize import AFTER_BREAK, AFTER_OTHER, AFTER_SPACE, AFTER_WORD
from prod_decode.tokens.vocabulary import SPECIAL, UNKNOWN, TokenTable

# The state of no text: a row with a token of which nobody knows the bytes, or with more readings than `_MOST`.
_UNREADABLE = -1

# Readings of a text. Real chat templates leave one or two; only a prompt made of special tokens whose text belongs to
# patterns has more.
_MOST = 64

_START = ROOT * 4 + AFTER_OTHER


class Bans(Protocol):
    """What a tracker needs of a `Matcher`."""

    automaton: Automaton
    table: TokenTable
    tables: Tables

    def __len__(self) -> int:
        """The number of token ids."""

    def banned_all(self, states: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The banned tokens of states, as sparse pairs."""

    def blame(self, state: int, token_id: int) -> list[str]:
        """The ids of the entries whose patterns a token would complete."""


class TextTracker:
    """The texts of a batch, each in all its readings, and the tokens that complete a pattern in one of them.

    Rows are texts. What is remembered is a cache: after any `read`, `advance` and `take` it is what `read` alone, given
    the whole texts, would have made. A row that cannot be read has every token banned until it is read again.

    Attributes:
        matcher: what bans.
        any_closed: whether any row cannot be read.
    """

    def __init__(self, matcher: Bans) -> None:
        self.matcher = matcher
        table = matcher.table
        self._arrays = matcher.tables.follow[:-1]  # of the kinds there are two
        # Special tokens as unknown ones: `advance_all` stops there, and the row is looked at more closely.
        self._plain = np.where(table.kinds == SPECIAL, UNKNOWN, table.kinds).astype(np.uint8)[: len(matcher)]
        self._states = np.zeros(0, np.int64)
        self.any_closed = False
        # Further readings, rows ascending.
        self._rows = self._more = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._states)

    @property
    def closed(self) -> NDArray[np.bool_]:
        """Which rows cannot be read, bool [B]."""
        return np.equal(self._states, _UNREADABLE)

    def read(self, rows: NDArray[np.int64], texts: Sequence[NDArray[np.int64]], prompts: NDArray[np.int64]) -> None:
        """Read whole texts: the truth.

        Args:
            rows: int64 [n], which ones; those of a number that is not there yet are added.
            texts: of each all tokens, int64 [T].
            prompts: int64 [n], how many of them are the prompt's.
        """
        if len(rows) and (most := int(rows.max()) + 1) > len(self):
            self.take(np.concatenate((np.arange(len(self)), np.full(most - len(self), -1))))
        bounds = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=bounds[1:])
        tokens = np.concatenate(texts).astype(np.int64, copy=False) if len(texts) else np.zeros(0, np.int64)
        table, longest = self.matcher.table, self.matcher.automaton.longest
        states, which, more = _read(*self._arrays, table.kinds, table.aliases, longest, tokens, bounds, prompts)
        self._states[rows] = states
        kept = ~np.isin(self._rows, rows)
        self._set(np.concatenate((self._rows[kept], rows[which])), np.concatenate((self._more[kept], more)))

    def advance(self, tokens: NDArray[np.int64]) -> None:
        """Every row one token on: int64 [B]."""
        if not len(self._rows) and not self.any_closed:
            after = np.empty(len(self), np.int64)
            if advance_all(*self._arrays, self._plain, self._states, tokens, after) < 0:
                self._states = after
                return
        table = self.matcher.table
        states, which, more = _advance(
            *self._arrays, table.kinds, table.aliases, self._states, self._rows, self._more, tokens
        )
        self._states = states
        self._set(which, more)

    def take(self, sources: NDArray[np.int64]) -> None:
        """Rows come, go, move, are copied: row i becomes what row `sources[i]` was; below 0, the empty text."""
        states = np.full(len(sources), _START, np.int64)
        old = sources >= 0
        states[old] = self._states[sources[old]]
        if len(self._rows):
            firsts, ends = (np.searchsorted(self._rows, sources, side=side) for side in ("left", "right"))
            counts = np.where(old, ends - firsts, 0)
            which = np.repeat(np.arange(len(sources)), counts)
            behind = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
            more = self._more[np.repeat(firsts, counts) + behind]
        else:
            which, more = self._rows, self._more
        self._states = states
        self._set(which, more)

    def banned(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The banned tokens as sparse pairs, rows int32 [n], ascending, and token ids int32 [n], each pair once."""
        if not len(self._rows) and not self.any_closed:
            return self.matcher.banned_all(self._states)
        open_rows = np.flatnonzero(~self.closed)
        states = np.concatenate((self._states[open_rows], self._more))
        rows_of = np.concatenate((open_rows, self._rows))
        found, tokens = self.matcher.banned_all(states)
        size = len(self.matcher)
        pairs = [rows_of[found] * size + tokens]
        pairs += [row * size + np.arange(size) for row in np.flatnonzero(self.closed).tolist()]
        rows, ids = np.divmod(np.unique(np.concatenate(pairs)), size)
        return rows.astype(np.int32), ids.astype(np.int32)

    def blame(self, row: int, token_id: int) -> list[str]:
        """The ids of the entries whose patterns a token would complete in a row, as `Matcher.blame`; none if closed."""
        return list(dict.fromkeys(name for state in self.states(row) for name in self.matcher.blame(state, token_id)))

    def passed(self) -> tuple[()]:
        """None: what a text gives away is counted elsewhere."""
        return ()

    def states(self, row: int) -> list[int]:
        """The state of each reading of a row, the first one first; none if closed."""
        if self._states[row] == _UNREADABLE:
            return []
        return [int(self._states[row]), *self._more[self._rows == row].tolist()]

    def _set(self, rows: NDArray[np.int64], more: NDArray[np.int64]) -> None:
        order = np.argsort(rows, kind="stable")
        self._rows, self._more = rows[order], more[order]
        self.any_closed = bool((self._states == _UNREADABLE).any())


class PromptEdge:
    """Where the prompts of a batch end, for engines that do not say: where its texts ended when they were first seen.

    Texts that go on from there, or go back no further than to there, are the same call's. A call whose prompts begin as
    those of the last one did, and are at most one token longer than its texts, cannot be told from it: `forget` before
    it.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """The next texts are prompts."""
        self._prompts: NDArray[np.int64] | None = None
        self._longest = 0

    def grow(self, length: int) -> None:
        """The texts have `length` tokens now, the same and more than before."""
        self._longest = max(self._longest, length)

    def find(self, texts: NDArray[np.int64]) -> int:
        """How many columns of `texts`, int64 [B, T], are prompts."""
        if self._prompts is None or not self.goes_on(texts):
            self.forget()
            self._prompts = texts.copy()
        self.grow(texts.shape[1])
        return int(self._prompts.shape[1])

    def goes_on(self, texts: NDArray[np.int64]) -> bool:
        """Whether these are the texts of the same call."""
        prompts = self._prompts
        return (
            prompts is not None
            and len(prompts) == len(texts)
            and prompts.shape[1] <= texts.shape[1] <= self._longest + 1
            and np.array_equal(prompts, texts[:, : prompts.shape[1]])
        )


@inline
def _adds_nothing(nodes: NDArray[Any], state: int, first: int) -> bool:
    """Whether whatever completes a pattern after `state` does so after `first` as well."""
    text_state, of_first = state & 3, first & 3
    node = first >> 2
    while node > state >> 2:
        node = nodes[node].fail
    if node != state >> 2:
        return False
    # A word may begin after a break and may go on. The space that ends a word is not yet written.
    return (
        text_state == of_first
        or (of_first == AFTER_BREAK and text_state == AFTER_WORD)
        or (state == _START and (of_first == AFTER_SPACE or first == (ROOT << 2) | AFTER_BREAK))
    )


@inline
def _cut(found: NDArray[np.int64], among: int, count: int) -> int:
    """Let a word, and a reading, begin here, if a word is under way in the first `among` of `count` states."""
    in_word = False
    for k in range(among):
        text_state = found[k] & 3
        if text_state in (AFTER_WORD, AFTER_BREAK):
            found[k] += AFTER_BREAK - text_state
            in_word = True
    if in_word:
        found[count] = _START
        count += 1
    return count


@jit
def _follow(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    aliases: NDArray[np.int32],
    found: NDArray[np.int64],
    count: int,
    token: int,
) -> int:
    """Follow one token from the `count` states in `found`: how many there are then, 0 if the row cannot be read."""
    if token < 0 or token >= len(aliases) or kinds[token] == UNKNOWN:
        return 0
    if kinds[token] == SPECIAL:
        hidden = count
        if aliases[token] >= 0:
            for k in range(hidden):
                found[count] = advance_inline(
                    nodes, rows, classes, symbols, starts, next_state, kinds, found[k], aliases[token]
                )
                count += 1
        count = _cut(found, hidden, count)
    else:
        for k in range(count):
            found[k] = advance_inline(nodes, rows, classes, symbols, starts, next_state, kinds, found[k], token)
    return _thin(nodes, found, count)


@jit
def _thin(nodes: NDArray[Any], found: NDArray[np.int64], count: int) -> int:
    """Drop readings that can complete nothing beyond the first; 0 if more than `_MOST` are left."""
    kept = 1
    for k in range(1, count):
        needed = not _adds_nothing(nodes, found[k], found[0])
        for other in range(1, kept):
            needed = needed and found[other] != found[k]
        if needed:
            found[kept] = found[k]
            kept += 1
    return kept if kept <= _MOST else 0


@jit
def _read(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    aliases: NDArray[np.int32],
    longest: int,
    tokens: NDArray[np.int64],
    bounds: NDArray[np.int64],
    prompts: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The first state of every text, and the further ones: of which text, and the state.

    As `follow.states_of`, from where nothing before can matter.
    """
    states = np.empty(len(prompts), np.int64)
    which, more, total = np.empty(4, np.int64), np.empty(4, np.int64), 0
    found = np.empty(2 * _MOST + 2, np.int64)
    for row in range(len(prompts)):
        begin, end = bounds[row], bounds[row + 1]
        edge = begin + prompts[row]
        first, seen, count = end, 0, 1
        while first > begin and seen <= longest and count:
            first -= 1
            token = tokens[first]
            if token < 0 or token >= len(aliases) or kinds[token] == UNKNOWN:
                count = 0
            else:
                seen += starts[AFTER_OTHER, token + 1] - starts[AFTER_OTHER, token]
        found[0] = _START
        for i in range(first, end):
            if i == edge and count:
                count = _thin(nodes, found, _cut(found, count, count))
            if count:
                count = _follow(
                    nodes, rows, classes, symbols, starts, next_state, kinds, aliases, found, count, tokens[i]
                )
        if end == edge and count:
            count = _thin(nodes, found, _cut(found, count, count))
        states[row] = found[0] if count else _UNREADABLE
        which, more, total = _append(which, more, total, row, found, count)
    return states, which[:total], more[:total]


@jit
def _advance(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    aliases: NDArray[np.int32],
    states: NDArray[np.int64],
    rows_before: NDArray[np.int64],
    more_before: NDArray[np.int64],
    tokens: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The states after one token each, in the form of `_read`, from those before; `rows_before` ascends."""
    after = np.empty(len(states), np.int64)
    which, more, total = np.empty(4, np.int64), np.empty(4, np.int64), 0
    found = np.empty(2 * _MOST + 2, np.int64)
    at = 0
    for row in range(len(states)):
        found[0] = states[row]
        count = 1
        while at < len(rows_before) and rows_before[at] == row:
            found[count] = more_before[at]
            count += 1
            at += 1
        if states[row] == _UNREADABLE:
            count = 0
        else:
            count = _follow(
                nodes, rows, classes, symbols, starts, next_state, kinds, aliases, found, count, tokens[row]
            )
        after[row] = found[0] if count else _UNREADABLE
        which, more, total = _append(which, more, total, row, found, count)
    return after, which[:total], more[:total]


@inline
def _append(
    which: NDArray[np.int64],
    more: NDArray[np.int64],
    total: int,
    row: int,
    found: NDArray[np.int64],
    count: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Add the readings of a row beyond its first."""
    if total + count > len(which):
        longer = np.empty((2, 2 * (total + count)), np.int64)
        longer[0, :total], longer[1, :total] = which[:total], more[:total]
        which, more = longer[0], longer[1]
    for k in range(1, count):
        which[total], more[total] = row, found[k]
        total += 1
    return which, more, total
