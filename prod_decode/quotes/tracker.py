"""Follow outputs and refuse what would give away more of a document than its budget allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.quotes.given import NOTHING, Given, covers
from prod_decode.quotes.kernels import completing, follow_all, gives_more
from prod_decode.quotes.passed import Passed
from prod_decode.quotes.pieces import Pieces, range_of
from prod_decode.text.normalize import AFTER_OTHER, TEXT_STATES
from prod_decode.tokens.vocabulary import TEXT, TokenTable

# The last symbols of an output are kept in a row of this many pieces: it is emptied to one when it is full.
_KEPT = 8

_NO_ROWS = np.zeros(0, np.int32)

_Places = slice | NDArray[np.bool_] | NDArray[np.int64]


class BoundPieces:
    """The pieces of documents and the tokens of a vocabulary, normalised alike.

    Attributes:
        pieces: of the documents.
        table: of the tokens.
        name_of: names an entry.
        follow: what kernels take of the tokens.
    """

    def __init__(
        self,
        pieces: Pieces,
        table: TokenTable,
        kinds: NDArray[np.uint8],
        name_of: Callable[[int], str] = str,
    ) -> None:
        """Join them.

        Args:
            pieces: of documents.
            table: of the vocabulary, normalised as the documents are.
            kinds: of the vocabulary's tokens, uint8 [size].
            name_of: names the entry of a number, as `Pieces.owners` has it.
        """
        self.pieces, self.table, self.name_of = pieces, table, name_of
        # What special tokens show is no part of a text that leaves them out.
        self._kinds = kinds
        self.follow = (table.symbols, table.starts, table.next_state, kinds)
        # Of tokens that are as long as a piece, those with a whole one inside, by text state.
        self._inside = [self._pieces_inside(state) for state in range(TEXT_STATES)]
        self._compile()

    def __len__(self) -> int:
        """The number of token ids."""
        return len(self._kinds)

    def track(self, *, exempt_prompts: bool = False) -> QuoteTracker:
        """A tracker of a batch of texts, without rows at first.

        Args:
            exempt_prompts: what a prompt gives away, its output may give away as well, and it does not count.
        """
        return QuoteTracker(self, exempt_prompts=exempt_prompts)

    def holding(self, text_state: int, given: Given) -> NDArray[np.int32]:
        """The tokens with a whole piece inside that would give away more of such a document: int32 [n].

        Args:
            text_state: where an output ends.
            given: by it so far.
        """
        pieces = self.pieces
        tokens, found = self._inside[text_state]
        gives = gives_more(
            pieces.search.order, pieces.piece, pieces.starts, *given[:2], given.closed, given.pieces, found
        )
        return tokens[gives]

    def completing(
        self, window: NDArray[np.uint8], text_state: int, given: Given, holding: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        """The tokens that would give away more of a document whose budget is reached: int32 [n], ascending.

        Args:
            window: uint8 [k], the last symbols of the output, fewer than a piece.
            text_state: where it ends.
            given: by it so far.
            holding: of these tokens those that have a whole piece inside.
        """
        pieces, table = self.pieces, self.table
        tokens = completing(
            table.nodes,
            int(table.roots[text_state]),
            table.order,
            *pieces.search[:2],
            pieces.piece,
            window,
            pieces.starts,
            given.starts,
            given.ends,
            given.closed,
            given.pieces,
        )
        tokens = np.unique(np.concatenate((tokens, holding)))
        return tokens.compress(self._kinds[tokens] == TEXT)

    def symbols(self, text_state: int, token_id: int) -> NDArray[np.uint8]:
        """What a token emits."""
        starts = self.table.starts[text_state]
        return self.table.symbols[starts[token_id] : starts[token_id + 1]]

    def _compile(self) -> None:
        """Call every kernel once: at a step it would hold up the batch."""
        tracker = self.track()
        tracker.read(np.arange(1), [np.zeros(1, np.int64)], np.zeros(1, np.int64))
        tracker.advance(np.zeros(1, np.int64))
        NOTHING.more(self.pieces, np.zeros((1, 2), np.int64))
        closed = NOTHING._replace(closed=np.zeros(1, np.int64))
        self.completing(np.zeros(1, np.uint8), AFTER_OTHER, closed, self.holding(AFTER_OTHER, closed))

    def _pieces_inside(self, text_state: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Tokens and the parts of `order` with the pieces that they have inside, int64 [n, 2]."""
        lengths = np.diff(self.table.starts[text_state])[: len(self)]
        tokens, parts = [], []
        for token in np.flatnonzero((lengths >= self.pieces.piece) & (self._kinds == TEXT)).tolist():
            symbols = self.symbols(text_state, token)
            for begin in range(len(symbols) - self.pieces.piece + 1):
                low, high = range_of(*self.pieces.search[:2], symbols, begin, self.pieces.piece)
                if low < high:
                    tokens.append(token)
                    parts.append((low, high))
        return np.array(tokens, np.int32), np.array(parts, np.int64).reshape(-1, 2)


class _Rows(NamedTuple):
    """Where the outputs of a batch are.

    Attributes:
        states: int64 [B], text states.
        hashes: uint64 [B], of the last symbols, as many as a piece at most.
        windows: uint8 [B, room], the last symbols.
        filled: int64 [B], how many there are in a window.
    """

    states: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    windows: NDArray[np.uint8]
    filled: NDArray[np.int64]

    @classmethod
    def empty(cls, count: int, piece: int) -> _Rows:
        """Outputs without a symbol."""
        return cls(
            np.full(count, AFTER_OTHER, np.int64),
            np.zeros(count, np.uint64),
            np.zeros((count, _KEPT * piece), np.uint8),
            np.zeros(count, np.int64),
        )

    def set(self, at: _Places, other: _Rows, there: _Places) -> None:
        """Put rows of another batch in the place of some of these."""
        self.states[at] = other.states[there]
        self.hashes[at] = other.hashes[there]
        self.windows[at] = other.windows[there]
        self.filled[at] = other.filled[there]


class QuoteTracker:
    """The outputs of a batch, each read alone: what it has given away, and the tokens that would give away too much.

    As with every tracker, what is remembered is a cache of the texts. Special tokens are left out of them. A token
    without known bytes ends a piece; whoever must not let it pass has another tracker beside this one.

    A token is banned where it completes a piece of a document whose budget is reached, if the piece has a symbol that
    is not given away yet. So an output gives away at most `budget - 1` symbols and what one token adds.
    """

    any_closed = False

    def __init__(self, bound: BoundPieces, *, exempt_prompts: bool = False) -> None:
        self.bound = bound
        self._exempts = exempt_prompts
        self._rows = _Rows.empty(0, bound.pieces.piece)
        self._given: list[Given] = []
        # Rows in which a budget is reached: nearly always none.
        self._reached: list[int] = []
        # Of rows whose newest token gave away more, what was given away before it.
        self._before: dict[int, Given] = {}
        # What `holding` found, by the identity of what was given away, which is kept beside it, and the text state.
        self._held: dict[tuple[int, int], tuple[Given, NDArray[np.int32]]] = {}

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._given)

    @property
    def closed(self) -> NDArray[np.bool_]:
        """Which rows cannot be read, bool [B]: none."""
        return np.zeros(len(self), np.bool_)

    def read(self, rows: NDArray[np.int64], texts: Sequence[NDArray[np.int64]], prompts: NDArray[np.int64]) -> None:
        """Read whole texts, as `Tracker.read`."""
        if len(rows) and (most := int(rows.max()) + 1) > len(self):
            self.take(np.concatenate((np.arange(len(self)), np.full(most - len(self), -1))))
        for row, text, prompt in zip(rows.tolist(), texts, prompts.tolist(), strict=True):
            given = self._read(row, text[:prompt], NOTHING).uncounted() if self._exempts else NOTHING
            self._given[row] = self._read(row, text[prompt:], given)
        self._note()

    def advance(self, tokens: NDArray[np.int64]) -> None:
        """Every row one token on: int64 [B]."""
        found = self._follow(np.arange(len(self)), tokens)
        if self._before:
            self._before = {}
        if len(found):
            for row in np.unique(found[:, 0]).tolist():
                before = self._given[row]
                self._given[row] = before.more(self.bound.pieces, found[found[:, 0] == row, 1:])
                if self._given[row] is not before:
                    self._before[row] = before
            self._note()

    def take(self, sources: NDArray[np.int64]) -> None:
        """Rows come, go, move, are copied, as `Tracker.take`."""
        before = self._rows
        self._rows = _Rows.empty(len(sources), self.bound.pieces.piece)
        old = sources >= 0
        self._rows.set(old, before, sources[old])
        self._given = [self._given[source] if source >= 0 else NOTHING for source in sources.tolist()]
        if self._before:
            known = self._before
            self._before = {row: known[source] for row, source in enumerate(sources.tolist()) if source in known}
        self._note()

    def banned(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The banned tokens as sparse pairs, rows int32 [n], ascending, and token ids int32 [n], each pair once."""
        if not self._reached:
            return _NO_ROWS, _NO_ROWS
        rows, tokens = [], []
        for row in self._reached:
            state, given = int(self._rows.states[row]), self._given[row]
            found = self.bound.completing(self._window(row), state, given, self._holding(state, given))
            rows.append(np.full(len(found), row, np.int32))
            tokens.append(found)
        return np.concatenate(rows), np.concatenate(tokens)

    def _holding(self, text_state: int, given: Given) -> NDArray[np.int32]:
        """`BoundPieces.holding`, which changes only where more is given away.

        Banners are tokens of this kind, and code has thousands of places of one: with 738 files of Django listed, to
        look at all of them took 16 ms at every step of a row.
        """
        key = id(given), text_state
        if key not in self._held:
            self._held[key] = given, self.bound.holding(text_state, given)
        return self._held[key][1]

    def given(self, row: int) -> Given:
        """What the output of a row has given away."""
        return self._given[row]

    def blame(self, row: int, token_id: int) -> list[str]:
        """The ids of the entries of which a token would give away more than a row may; none: it is not banned."""
        given, pieces = self._given[row], self.bound.pieces
        if not len(given.closed):
            return []
        emitted = self.bound.symbols(int(self._rows.states[row]), token_id)
        parts = pieces.find(np.concatenate((self._window(row), emitted)))[:, 1:]
        places = pieces.places(parts[~np.isin(parts[:, 0], given.pieces)])
        found = {
            int(document)
            for place, document in zip(places.tolist(), pieces.documents_of(places).tolist(), strict=True)
            if document in given.closed and not covers(given.starts, given.ends, place, place + pieces.piece)
        }
        return [self.bound.name_of(int(pieces.owners[document])) for document in sorted(found)]

    def passed(self) -> list[Passed]:
        """What the newest token of each row gave away, as `Tracker.passed`."""
        return [one for row, before in sorted(self._before.items()) for one in self._passed(row, before)]

    def _passed(self, row: int, before: Given) -> Iterator[Passed]:
        pieces, now = self.bound.pieces, self._given[row]
        known = dict(zip(before.documents.tolist(), before.counts.tolist(), strict=True))
        for document, count in zip(now.documents.tolist(), now.counts.tolist(), strict=True):
            if count == known.get(document, 0):
                continue
            first, end = int(pieces.starts[document]), int(pieces.starts[document + 1])
            low, high = max(now.since(before, first, end), key=lambda run: run[1] - run[0])
            name = self.bound.name_of(int(pieces.owners[document]))
            text = pieces.text[low:high].tobytes().decode("utf-8", "replace")
            about = name, count, int(pieces.budgets[document]), (low - first, high - first), text
            yield Passed(row, "quoted", *about)
            if document in now.closed and document not in before.closed:
                yield Passed(row, "budget reached", *about)

    def _note(self) -> None:
        self._reached = [row for row, given in enumerate(self._given) if len(given.closed)]
        if self._held:
            current = set(map(id, self._given))
            self._held = {key: held for key, held in self._held.items() if key[0] in current}

    def _window(self, row: int) -> NDArray[np.uint8]:
        """The last symbols of an output, one fewer than a piece at most."""
        end = int(self._rows.filled[row])
        return self._rows.windows[row, max(0, end + 1 - self.bound.pieces.piece) : end]

    def _read(self, row: int, tokens: NDArray[np.int64], given: Given) -> Given:
        """Follow a text of its own from its start, in place of what the row had; what is given away after `given`."""
        self._rows.set(slice(row, row + 1), _Rows.empty(1, self.bound.pieces.piece), slice(None))
        found = self._follow(np.full(len(tokens), row), tokens.astype(np.int64, copy=False))
        self._before.pop(row, None)
        if len(found):
            is_newest = found[:, 0] == len(tokens) - 1
            before = given.more(self.bound.pieces, found[~is_newest, 1:])
            given = before.more(self.bound.pieces, found[is_newest, 1:])
            if given is not before:
                self._before[row] = before
        return given

    def _follow(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `follow_all`."""
        bound = self.bound
        return follow_all(*bound.pieces.search, bound.pieces.piece, *bound.follow, *self._rows, rows, tokens)
