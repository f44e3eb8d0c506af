"""Follow outputs with the escapes of JSON decoded, beside the anchors of a corpus; of patterns: `match.unescaped`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode.corpus.finding import Finding, find_all
from prod_decode.corpus.kernels import FILLED, LATEST, SEEN, STATE, forget, push
from prod_decode.corpus.keys import BASE, LOOK_AHEAD, mix
from prod_decode.corpus.table import part_of
from prod_decode.corpus.tracker import NO_ROWS, NOTHING, Anchors, BoundAnchors, Rows
from prod_decode.storage.jit import jit
from prod_decode.text.escapes import AFTER_BACKSLASH, AFTER_U, MOST, OUTSIDE, room_of, symbols_of
from prod_decode.text.normalize import CLASSES
from prod_decode.tokens.vocabulary import TEXT, UNKNOWN, Vocabulary


class WatchedAnchors(BoundAnchors):
    """The anchors of a corpus and the tokens of a vocabulary, as they are and with escapes decoded."""

    def unescaped(self) -> UnescapedAnchors:
        """What makes trackers of outputs that are decoded; made once."""
        return self._unescaped

    @cached_property
    def _unescaped(self) -> UnescapedAnchors:
        return UnescapedAnchors(self)


class UnescapedAnchors:
    r"""The anchors of a corpus and the tokens of a vocabulary, decoded from every escape state.

    Outside of an escape and after a backslash, where tokens nearly always end, the bans are those of `BoundAnchors` of
    the tokens decoded from there. Within `\uXXXX` tokens are walked through: all of them where a prefix has just ended,
    and else those that are long enough to have one's end and a suffix.

    Attributes:
        anchors: of the corpus.
        vocabulary: the tokens as they are.
        bounds: by escape state.
        text: what kernels take of the tokens.
        follow: what `follow_decoded` takes of anchors and tokens.
    """

    def __init__(self, bound: BoundAnchors) -> None:
        """Of the same anchors and tokens."""
        self.anchors: Anchors = bound.anchors
        self.vocabulary: Vocabulary = bound.vocabulary
        self.bounds = {
            escape: BoundAnchors(bound.anchors, bound.even, bound.vocabulary.unescaped(escape))
            for escape in (OUTSIDE, AFTER_BACKSLASH)
        }
        vocabulary, cut = self.vocabulary, self.anchors.cut
        mode = cut.normalization.is_code, cut.normalization.ignore_case
        self.text: tuple[Any, ...] = (CLASSES, vocabulary.data, vocabulary.offsets, vocabulary.kinds, *mode)
        search = *self.anchors.table.search, self.anchors.spread, self.anchors.oldest, cut.prefix
        self.follow: tuple[Any, ...] = (*search, cut.width, *self.text)
        self._compile()

    def track(self, *, exempt_prompts: bool = False) -> UnescapedCorpusTracker:
        """A tracker of a batch of outputs, without rows at first; what a prompt quotes is not exempt in it."""
        del exempt_prompts
        return UnescapedCorpusTracker(self)

    def completing(self, rows: Rows, row: int, escape: int) -> NDArray[np.int64]:
        """The tokens that complete an anchor in a row, in any escape state: int64 [n], ascending."""
        arguments: tuple[Any, ...] = (
            self.anchors.masking,
            self.anchors.oldest,
            self.anchors.cut.width,
            *self.text,
            rows.numbers[row],
            rows.hashes[row],
            rows.windows[row],
            escape,
        )
        found: NDArray[np.int64] = completing_decoded(*arguments)
        return found

    def symbols(self, text_state: int, escape: int, token_id: int) -> NDArray[np.uint8]:
        """What a token emits."""
        offsets, normalization = self.vocabulary.offsets, self.anchors.cut.normalization
        data = self.vocabulary.data[offsets[token_id] : offsets[token_id + 1]]
        symbols = np.empty(room_of(len(data)), np.uint8)
        count, _, _ = symbols_of(
            CLASSES, data, normalization.is_code, normalization.ignore_case, text_state, escape, symbols
        )
        return symbols[:count]

    def _compile(self) -> None:
        """Call every kernel once: at a step it would hold up the batch."""
        tracker = self.track()
        tracker.take(np.full(1, -1))
        tracker.advance(np.zeros(1, np.int64))
        tracker.banned()
        self.completing(Rows.empty(1, self.anchors.cut.width), 0, AFTER_U)


class UnescapedCorpusTracker:
    """The outputs of a batch, decoded, and the tokens that would complete an anchor; used as any `Tracker` is.

    What stands in the prompt is not looked at: an output is decoded as if it began outside of an escape.
    """

    any_closed = False

    def __init__(self, anchors: UnescapedAnchors) -> None:
        self._anchors = anchors
        self._rows = Rows.empty(0, anchors.anchors.cut.width)
        self._escapes = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._escapes)

    @property
    def closed(self) -> NDArray[np.bool_]:
        """Which rows cannot be read, bool [B]: none; what follows patterns beside this one says so."""
        return np.zeros(len(self), np.bool_)

    def read(self, rows: NDArray[np.int64], texts: Sequence[NDArray[np.int64]], prompts: NDArray[np.int64]) -> None:
        """Read whole texts, as `Tracker.read`; `Anchors.check` may raise."""
        self._anchors.anchors.check()
        if len(rows) and (most := int(rows.max()) + 1) > len(self):
            self.take(np.concatenate((np.arange(len(self)), np.full(most - len(self), -1))))
        for row, text, prompt in zip(rows.tolist(), texts, prompts.tolist(), strict=True):
            self._rows.set(slice(row, row + 1), Rows.empty(1, self._anchors.anchors.cut.width), slice(None))
            self._escapes[row] = OUTSIDE
            output = np.ascontiguousarray(text[prompt:], np.int64)
            self._follow(np.full(len(output), row), output)

    def advance(self, tokens: NDArray[np.int64]) -> None:
        """Every row one token on: int64 [B]."""
        self._follow(np.arange(len(self)), tokens)

    def take(self, sources: NDArray[np.int64]) -> None:
        """Rows come, go, move, are copied, as `Tracker.take`."""
        before, escapes = self._rows, self._escapes
        self._rows = Rows.empty(len(sources), self._anchors.anchors.cut.width)
        self._escapes = np.full(len(sources), OUTSIDE, np.int64)
        old = sources >= 0
        self._rows.set(old, before, sources[old])
        self._escapes[old] = escapes[sources[old]]

    def banned(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The banned tokens as sparse pairs, rows int32 [n], ascending, and token ids int32 [n], each pair once."""
        found = [self._completing(escape) for escape in np.unique(self._escapes).tolist()]
        if not any(map(len, found)):
            return NO_ROWS, NO_ROWS
        rows, tokens = np.divmod(np.unique(np.concatenate(found)), 1 << 32)
        is_text = self._anchors.vocabulary.kinds[tokens] == TEXT
        return rows[is_text].astype(np.int32), tokens[is_text].astype(np.int32)

    def _completing(self, escape: int) -> NDArray[np.int64]:
        """Of the rows in an escape state: row << 32 | token, int64 [n], perhaps twice."""
        here = np.flatnonzero(self._escapes == escape)
        bound = self._anchors.bounds.get(escape)
        if bound is None:
            pairs = [(row << 32) | self._anchors.completing(self._rows, row, escape) for row in here.tolist()]
            return np.concatenate(pairs)
        rows = self._rows if len(here) == len(self) else self._rows.some(here)
        found, tokens = np.divmod(bound.completing(rows, NOTHING, np.zeros(len(here) + 1, np.int64)), 1 << 32)
        return np.asarray((here[found] << 32) | tokens)

    def blame(self, row: int, token_id: int) -> list[str]:
        """The names of the documents of which a token would complete an anchor; none: it is not banned."""
        anchors, numbers = self._anchors.anchors, self._rows.numbers[row]
        emitted = self._anchors.symbols(int(numbers[STATE]), int(self._escapes[row]), token_id)
        end = int(numbers[FILLED])
        before = self._rows.windows[row, max(0, end - anchors.cut.width + 1) : end]
        places = anchors.find(np.concatenate((before, emitted)))[:, 1].tolist()
        return list(dict.fromkeys(anchors.name_of(place) for place in places))

    def passed(self) -> tuple[()]:
        """None: what is exempt is told of the text as it is written."""
        return ()

    def _follow(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        arguments: tuple[Any, ...] = (*self._anchors.follow, *self._rows, self._escapes, rows, tokens)
        follow_decoded(*arguments)


@jit
def follow_decoded(
    begins: NDArray[np.uint32],
    remainders: NDArray[np.uint16],
    shift: np.uint64,
    spread: NDArray[np.uint64],
    oldest: np.uint64,
    prefix: int,
    width: int,
    classes: NDArray[np.uint8],
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    kinds: NDArray[np.uint8],
    is_code: bool,
    ignore_case: bool,
    numbers: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    windows: NDArray[np.uint8],
    prefixes: NDArray[np.int64],
    befores: NDArray[np.uint64],
    escapes: NDArray[np.int64],
    rows: NDArray[np.int64],
    tokens: NDArray[np.int64],
) -> None:
    """Follow `tokens[k]` in row `rows[k]`, one after another, as `follow_all` does, with escapes decoded."""
    symbols = np.empty(0, np.uint8)
    for k in range(len(tokens)):
        row, token = rows[k], tokens[k]
        if token < 0 or token >= len(kinds) or kinds[token] == UNKNOWN:
            forget(numbers, hashes, row)
            escapes[row] = OUTSIDE
        elif kinds[token] == TEXT:
            token_data = data[offsets[token] : offsets[token + 1]]
            room = 2 * (len(token_data) + MOST)
            if len(symbols) < room:
                symbols = np.empty(room, np.uint8)
            count, text_state, escape = symbols_of(
                classes, token_data, is_code, ignore_case, numbers[row, STATE], escapes[row], symbols
            )
            push(
                begins,
                remainders,
                shift,
                spread,
                oldest,
                prefix,
                width,
                classes,
                symbols,
                0,
                count,
                numbers,
                hashes,
                windows,
                prefixes,
                befores,
                row,
            )
            numbers[row, STATE], escapes[row] = text_state, escape


@jit
def completing_decoded(
    finding: Finding,
    oldest: np.uint64,
    width: int,
    classes: NDArray[np.uint8],
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    kinds: NDArray[np.uint8],
    is_code: bool,
    ignore_case: bool,
    numbers: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    window: NDArray[np.uint8],
    escape: int,
) -> NDArray[np.int64]:
    """The tokens that complete an anchor in one row, ascending: all but too short ones are walked through."""
    starts, remainders, shift = finding.search
    spread, prefix = finding.spread, finding.prefix
    end = numbers[FILLED]
    kept = min(end, width - 1)
    is_under_way = numbers[SEEN] - numbers[LATEST] < LOOK_AHEAD
    symbols = np.empty(kept, np.uint8)
    symbols[:] = window[end - kept : end]
    out = np.empty(len(kinds), np.int64)
    total = 0
    for token in range(len(kinds)):
        size = offsets[token + 1] - offsets[token]
        # Without a prefix behind it, a token has the last symbol of one, and a suffix: a byte emits one symbol, and a
        # space may stand before the first.
        if kinds[token] != TEXT or (not is_under_way and size + MOST <= LOOK_AHEAD):
            continue
        token_data = data[offsets[token] : offsets[token + 1]]
        room = kept + 2 * (size + MOST)
        if len(symbols) < room:
            longer = np.empty(room, np.uint8)
            longer[:kept] = symbols[:kept]
            symbols = longer
        count, _, _ = symbols_of(classes, token_data, is_code, ignore_case, numbers[STATE], escape, symbols[kept:])
        is_candidate = is_under_way
        hashed = hashes[0]
        # A prefix that ends in the token, with room for a suffix behind it.
        for i in range(count - LOOK_AHEAD):
            if is_candidate:
                break
            if end + i >= prefix:
                hashed -= oldest * spread[symbols[kept + i - prefix]]
            hashed = hashed * BASE + spread[symbols[kept + i]]
            if end + i + 1 >= prefix:
                low, high = part_of(starts, remainders, shift, mix(hashed))
                is_candidate = low < high
        if is_candidate and len(find_all(finding, symbols[: kept + count])):
            out[total] = token
            total += 1
    return out[:total]
