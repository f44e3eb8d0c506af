"""Replacements: the probability of what an entry prohibits goes to what it names instead.

The ban is the guarantee, and does not depend on anything here; this is a preference, which nothing relies on.

A phrase and its replacement share a beginning. Where a text has got into it, some tokens go on in the phrase, past what
is shared. Their probability goes to all tokens that go on in the replacement. If it was more than these had, the
replacement is *begun* with the token that comes, and is written to its end: at each of its places the probability of
all tokens goes to those that continue it.

What is begun is remembered by the text, so that beams, drafts and batches may reorder and drop it. Forgotten, it is a
preference lost.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.masking import move_mass_, prod_distribution
from prod_decode.match.automaton import Automaton
from prod_decode.match.matcher import Fork, Matcher
from prod_decode.match.trackers import Tracker
from prod_decode.text.normalize import CLASSES, WORD, Normalization
from prod_decode.text.patterns import Pattern
from prod_decode.tokens.vocabulary import TEXT, Vocabulary

# Texts in which a replacement is begun, and for how many tokens each is remembered; a draft is shorter.
_MOST_BEGUN = 4096
_REMEMBERED = 64

# Bytes at the end of a text in which a beginning is looked for, beyond twice its length: whitespace between its words.
_BLANKS = 64

Banned = tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]


@dataclass(frozen=True, slots=True)
class Move:
    """What is preferred at one step of one row.

    Attributes:
        row: of the scores.
        sources: int32 [n], the tokens whose probability is given away; None: of all but the targets.
        targets: int32 [m], those that get it.
        rest: what of the replacement is still to be written, at least one byte.
        fork: whose replacement it is.
    """

    row: int
    sources: NDArray[np.int32] | None
    targets: NDArray[np.int32]
    rest: bytes
    fork: Fork


@dataclass(frozen=True, slots=True)
class Begun:
    """A replacement that is begun with the token that comes: what is to be written, and whose it is."""

    rest: bytes
    fork: Fork


class Preference:
    """Follows the texts of a batch, like a tracker, and finds where a replacement can be written.

    Attributes:
        matcher: of the beginnings of phrases, as far as they part from their replacements (`Fork.parting`).
        tracker: of that, for `moves`.
    """

    def __init__(self, forks: Sequence[Fork], normalization: Normalization, vocabulary: Vocabulary) -> None:
        """Forks of one or more blocklists that normalise alike; of those of one phrase the first counts."""
        first = {fork.phrase: fork for fork in reversed(forks)}
        self._forks = list(first.values())
        # By every beginning that a fork shares: which forks.
        self._sharing: dict[bytes, list[int]] = {}
        for number, fork in enumerate(self._forks):
            for size in range(1, fork.shared + 1):
                self._sharing.setdefault(fork.phrase[:size], []).append(number)
        self._longest = max((fork.shared for fork in self._forks), default=0)
        patterns = sorted(set(map(_parting, self._forks)))
        self._normalization = normalization
        self._vocabulary = vocabulary
        self.matcher = Matcher(Automaton.build(patterns), normalization, vocabulary, _no_entries)
        self._spellings = Spellings(vocabulary)
        # Tokens that hold a whole pattern are found at every step; where nothing is begun, nothing can go on.
        self._whole = np.zeros(len(vocabulary), np.bool_)
        self._whole[self.matcher.fixed[0]] = True
        self.tracker: Tracker = self.matcher.track()
        self._known_ways: dict[tuple[int, int, bool], tuple[NDArray[np.int32], NDArray[np.int32], bytes]] = {}
        self._begun: OrderedDict[bytes, tuple[int, list[Begun]]] = OrderedDict()

    @classmethod
    def of(cls, matcher: Matcher) -> Preference | None:
        """That of a bound blocklist, if it has replacements that can be reached."""
        return cls(matcher.forks, matcher.normalization, matcher.vocabulary) if matcher.forks else None

    def moves(self, text_of: Callable[[int], NDArray[np.int64]], lengths: Sequence[int], banned: Banned) -> list[Move]:
        """What is preferred after the texts that `tracker` has.

        Args:
            text_of: all tokens of a row, int64 [T].
            lengths: of the text of every row, in tokens.
            banned: as for `find`.
        """
        return self.find(self.tracker, np.arange(len(lengths)), text_of, self._begun_before(text_of, lengths), banned)

    def find(
        self,
        tracker: Tracker,
        rows: NDArray[np.int64],
        text_of: Callable[[int], NDArray[np.int64]],
        begun: Mapping[int, tuple[int, Sequence[Begun]]],
        banned: Banned,
    ) -> list[Move]:
        """What is preferred in some rows of the scores, in the order in which it is to be applied.

        A row in which a replacement is begun has the moves that finish it and no others.

        Args:
            tracker: of `matcher`.
            rows: int64 [n], ascending: which rows those of the tracker are.
            text_of: all tokens of a row, int64 [T].
            begun: by row, its newest token, and what was begun before that.
            banned: the prohibited tokens of the step, as pairs, which get nothing.
        """
        found = [move for row, (token, all_begun) in begun.items() if (move := self._going_on(row, token, all_begun))]
        busy = {move.row for move in found}
        found += [move for move in self._arriving(tracker, rows, text_of) if move.row not in busy]
        moves = []
        for move in found:
            targets = np.setdiff1d(move.targets, banned[1][banned[0] == move.row])
            if len(targets):
                moves.append(replace(move, targets=targets))
        return moves

    def apply_(self, scores: Tensor, move: Move, text: NDArray[np.int64]) -> bool:
        """Move the probability of one row of `scores`, floats [B, V], in place, and remember what is begun by it.

        Returns:
            Whether anything could take it.
        """
        is_moved, begun = prefer_(scores[move.row], move)
        if begun is not None:
            # Of several that are begun here, the token that comes says which it is.
            self._begun.setdefault(_key(text), (len(text), []))[1].append(begun)
            if len(self._begun) > _MOST_BEGUN:
                self._begun.popitem(last=False)
        return is_moved

    def restart(self) -> None:
        """The tracker has no rows; what is begun is not forgotten."""
        self.tracker = self.matcher.track()

    def forget(self) -> None:
        """The next texts are others."""
        self._begun.clear()
        self.restart()

    def again(self) -> Preference:
        """One with no texts and the same tables."""
        twin = copy.copy(self)
        twin._begun = OrderedDict()
        twin.restart()
        return twin

    def _begun_before(
        self, text_of: Callable[[int], NDArray[np.int64]], lengths: Sequence[int]
    ) -> dict[int, tuple[int, list[Begun]]]:
        """For `find`, from the texts."""
        shortest = min(lengths, default=0)
        while self._begun and next(iter(self._begun.values()))[0] < shortest - _REMEMBERED:
            self._begun.popitem(last=False)
        found = {}
        for row in range(len(lengths)) if self._begun else ():
            text = text_of(row)
            if begun := self._begun.get(_key(text[:-1])):
                found[row] = int(text[-1]), begun[1]
        return found

    def _going_on(self, row: int, newest: int, begun: Sequence[Begun]) -> Move | None:
        """How a row finishes a replacement that is begun in it, if its newest token did go on in one."""
        token = self._vocabulary.token_bytes(newest) if 0 <= newest < len(self._vocabulary) else b""
        for before in begun:
            left = before.rest[len(token) :]
            if token and left and before.rest.startswith(token) and not self._is_shared(left, before.fork):
                return Move(row, None, self._spellings.of(left), left, before.fork)
        return None

    def _is_shared(self, left: bytes, fork: Fork) -> bool:
        """Whether what is written of a replacement is the beginning of the phrase as well."""
        replacement = np.frombuffer(fork.replacement.encode(), np.uint8)
        return len(self._normalization.fold(replacement[: len(replacement) - len(left)])[0]) <= fork.shared

    def _arriving(
        self,
        tracker: Tracker,
        rows: NDArray[np.int64],
        text_of: Callable[[int], NDArray[np.int64]],
    ) -> list[Move]:
        """The rows in which a token goes on in a phrase, past what it shares with its replacement."""
        places, tokens = tracker.banned()
        here = ~(self._whole[tokens] | tracker.closed[places])
        places, tokens = places[here], tokens[here]
        moves = []
        for place in np.unique(places).tolist():
            row = int(rows[place])
            written = self._end_of(text_of(row), 2 * self.matcher.automaton.longest + _BLANKS)
            symbols = self._normalization.fold(np.frombuffer(written, np.uint8))[0].tobytes()
            blank = written[-1:].isspace()
            is_here = np.zeros(len(self._vocabulary), np.bool_)
            is_here[tokens[places == place]] = True
            for number, begun in self._parted_at(symbols):
                on, targets, rest = self._ways(number, begun, blank)
                sources = on[is_here[on]]
                if len(sources):
                    moves.append(Move(row, sources, targets, rest, self._forks[number]))
        return moves

    def _ways(self, number: int, begun: int, blank: bool) -> tuple[NDArray[np.int32], NDArray[np.int32], bytes]:
        """The tokens that go on in the phrase of a fork and in its replacement, behind so many symbols; and its rest.

        Kept: behind `np.` part the hundred phrases of a list, and to read one takes 0.1 ms.
        """
        key = number, begun, blank
        if key not in self._known_ways:
            fork = self._forks[number]
            on = self._spellings.of(self._rest_of(fork.phrase, begun, blank))
            # What other forks part at is no way into this phrase: `np.ma` is the beginning of `np.matmul` too.
            long = np.array(
                [len(self._vocabulary.token_bytes(token)) >= fork.parting - begun for token in on], np.bool_
            )
            rest = self._rest_of(fork.replacement.encode(), begun, blank)
            self._known_ways[key] = on[long], self._spellings.of(rest), rest
        return self._known_ways[key]

    def _parted_at(self, symbols: bytes) -> list[tuple[int, int]]:
        """The numbers of the forks whose beginning a text ends with, and with how many symbols of what they share."""
        found: dict[int, int] = {}
        for size in range(min(self._longest, len(symbols)), 0, -1):
            beginning = symbols[-size:]
            if beginning in self._sharing and self._ends(symbols, beginning):
                for number in self._sharing[beginning]:
                    found.setdefault(number, size)
        return sorted(found.items())

    def _rest_of(self, text: bytes, begun: int, blank: bool) -> bytes:
        """What is left of a text behind so many symbols, without whitespace that already stands there."""
        _, origins = self._normalization.run(np.frombuffer(text, np.uint8))
        rest = text[origins[begun] :]
        return rest.lstrip() if blank else rest

    def _ends(self, symbols: bytes, beginning: bytes) -> bool:
        """Whether a text ends with the beginning of a fork, at the edge of a word if it begins with one."""
        before = symbols[-len(beginning) - 1 : -len(beginning)]
        in_word = bool(before) and CLASSES[before[0]] == WORD and CLASSES[beginning[0]] == WORD
        return symbols.endswith(beginning) and not in_word

    def _end_of(self, text: NDArray[np.int64], size: int) -> bytes:
        """The last bytes of a text, at least `size` if there are as many behind its last special token."""
        parts: list[bytes] = []
        for token in reversed(text.tolist()):
            if size <= 0 or not 0 <= token < len(self._vocabulary) or self._vocabulary.kinds[token] != TEXT:
                break
            parts.append(self._vocabulary.token_bytes(token))
            size -= len(parts[-1])
        return b"".join(reversed(parts))


def prefer_(row: Tensor, move: Move) -> tuple[bool, Begun | None]:
    """Move the probability of one row of scores, floats [V], in place.

    Returns:
        Whether anything could take it; and what is begun by it, if anything is.
    """
    width = row.shape[0]
    sources, targets = move.sources, move.targets[move.targets < width]
    begins = True
    if sources is not None:
        sources = np.setdiff1d(sources[sources < width], targets)
        probs = prod_distribution(row, (np.zeros(0, np.int64), np.zeros(0, np.int64)))
        begins = bool(probs[sources].sum() > probs[targets].sum())
    if not len(targets) or not move_mass_(row, sources, targets):
        return False, None
    return True, Begun(move.rest, move.fork) if begins else None


class Spellings:
    """The tokens with which a text can be written on: those that it begins with, and those that begin with it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        spelled = [
            (vocabulary.token_bytes(token), token) for token in np.flatnonzero(vocabulary.kinds == TEXT).tolist()
        ]
        self._sorted = sorted(pair for pair in spelled if pair[0])
        self._known: dict[bytes, NDArray[np.int32]] = {}

    def of(self, text: bytes) -> NDArray[np.int32]:
        """Token ids, int32 [n], ascending; each has at least one byte of `text`."""
        if text not in self._known:
            if len(self._known) >= _MOST_BEGUN:
                self._known.clear()
            self._known[text] = self._found(text)
        return self._known[text]

    def _found(self, text: bytes) -> NDArray[np.int32]:
        found = []
        for begin in (text[:n] for n in range(1, len(text))):
            at = bisect_left(self._sorted, (begin, -1))
            while at < len(self._sorted) and self._sorted[at][0] == begin:
                found.append(self._sorted[at][1])
                at += 1
        at = bisect_left(self._sorted, (text, -1))
        while at < len(self._sorted) and self._sorted[at][0].startswith(text):
            found.append(self._sorted[at][1])
            at += 1
        return np.array(sorted(found), np.int32)


def _no_entries(_pattern: int) -> list[str]:
    """Nobody is to blame for a preference."""
    return []


def _parting(fork: Fork) -> Pattern:
    """The beginning of a phrase by which a text is on its way to it, and not to the replacement."""
    return Pattern(bool(CLASSES[fork.phrase[0]] == WORD), fork.phrase[: fork.parting], False)


def _key(text: NDArray[np.int64]) -> bytes:
    return xxhash.xxh3_128_digest(np.ascontiguousarray(text).tobytes())
