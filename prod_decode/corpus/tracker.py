"""Follow texts and refuse what would complete an anchor of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.corpus.ahead import Beginnings, LongEnds, even_set
from prod_decode.corpus.finding import Finding, find_all
from prod_decode.corpus.kernels import FILLED, LATEST, SEEN, STATE, any_near, completing_all, follow_all
from prod_decode.corpus.keys import LOOK_AHEAD, Cut, power
from prod_decode.corpus.table import Table
from prod_decode.corpus.winnow import EVERY_RUN, bound_of
from prod_decode.quotes.passed import Passed
from prod_decode.text.normalize import AFTER_OTHER, CLASSES, TEXT_STATES
from prod_decode.tokens.vocabulary import TEXT, Vocabulary

# The last symbols of a text are kept in a row of this many anchors: it is emptied to one when it is full.
_KEPT = 8

# More even symbols than any text has.
_NEVER = 1 << 62

NO_ROWS = np.zeros(0, np.int32)
NOTHING = np.zeros(0, np.int64)

_Places = slice | NDArray[np.bool_] | NDArray[np.int64]


class Anchors:
    """The anchors of a corpus, and how they are found in texts.

    Attributes:
        table: the anchors.
        cut: how they were cut.
        spread: uint64 [256], of symbols.
        oldest: what the oldest symbol of a prefix has been multiplied with.
        outliers: uint64 [words], as `outliers_of` makes it.
        finding: what `find_all` takes of them for texts.
        masking: the same for masks, which look every run up (`winnow`).
    """

    def __init__(self, table: Table, cut: Cut, outliers: NDArray[np.uint64] = EVERY_RUN) -> None:
        """See the attributes."""
        self.table, self.cut, self.outliers = table, cut, outliers
        self.spread = cut.spread
        self.oldest = power(cut.prefix - 1)
        scales = np.array([power(cut.width), power(cut.prefix), power(LOOK_AHEAD)], np.uint64)
        bits = outliers.view()
        bits.flags.writeable = False  # kernels are compiled once for what is and what is not
        self.finding = Finding(table.search, table.suffixes, self.spread, scales, cut.prefix, bound_of(cut), bits)
        self.masking = self.finding._replace(outliers=EVERY_RUN)

    def find(self, symbols: NDArray[np.uint8], *, every_run: bool = False) -> NDArray[np.int64]:
        """Every anchor in a text, uint8 [n], normalised: int64 [m, 2], where it begins and its place in the table.

        Args:
            symbols: of the text.
            every_run: look every run up, as masks do, rather than those that can be anchors.
        """
        symbols = symbols.view()
        symbols.flags.writeable = False  # kernels are compiled once for what is and what is not
        found: NDArray[np.int64] = find_all(self.masking if every_run else self.finding, symbols)
        return found

    def name_of(self, place: int) -> str:
        """What messages call the document of an anchor, by its place in the table."""
        return str(place)

    def check(self) -> None:
        """Refuse to go on where the anchors are no longer those that were built."""


class BoundAnchors:
    """The anchors of a corpus and the tokens of a vocabulary, normalised alike.

    Attributes:
        anchors: of the corpus.
        vocabulary: of the tokens.
        even: as it was given.
        table: of the tokens.
        needs: int64 [4], by text state, how many symbols at the end of a text must be even before a token longer than
            `LOOK_AHEAD` can complete an anchor; 0: one may always.
        follow: what `follow_all` takes of both.
        complete: what `completing_all` does.
    """

    def __init__(
        self, anchors: Anchors, even: tuple[NDArray[np.uint32], NDArray[np.uint32]], vocabulary: Vocabulary
    ) -> None:
        """Join them.

        Args:
            anchors: of the corpus.
            even: uint32 [n] twice, the low bits of the hashes of the prefixes and suffixes of those that are even
                (`winnow`).
            vocabulary: of the tokens.
        """
        self.anchors, self.vocabulary, self.even = anchors, vocabulary, even
        self.table = vocabulary.table(anchors.cut.normalization)
        cut, spread, kinds = anchors.cut, anchors.spread, vocabulary.kinds
        long_ends = LongEnds.of(self.table, kinds, spread, cut.width, even[1])
        inside = [self._anchors_inside(text_state) for text_state in range(TEXT_STATES)]
        self.needs = np.array(
            [
                0 if len(tokens) else int(long_ends.needs[begin]) if begin < end else _NEVER
                for (tokens, _), (begin, end) in zip(inside, pairwise(long_ends.begins.tolist()), strict=True)
            ],
            np.int64,
        )
        self.follow: tuple[Any, ...] = (
            *anchors.table.search,
            spread,
            anchors.oldest,
            cut.prefix,
            cut.width,
            CLASSES,
            self.table.symbols,
            self.table.starts,
            self.table.next_state,
            kinds,
            self.needs,
        )
        self.complete: tuple[Any, ...] = (
            *anchors.table.search,
            anchors.table.suffixes,
            spread,
            np.array([power(exponent) for exponent in range(cut.width)], np.uint64),
            self.table.order,
            *Beginnings.of(self.table, spread),
            *long_ends,
            even_set(*even),
            np.concatenate([tokens for tokens, _ in inside]),
            np.concatenate([ranks for _, ranks in inside]),
            np.cumsum([0, *(len(tokens) for tokens, _ in inside)]).astype(np.int64),
            self.needs,
        )
        self._compile()

    def __len__(self) -> int:
        """The number of token ids."""
        return len(self.vocabulary)

    def track(self, *, exempt_prompts: bool = False) -> CorpusTracker:
        """A tracker of a batch of texts, without rows at first.

        Args:
            exempt_prompts: the anchors that stand in a prompt may be repeated by its output.
        """
        return CorpusTracker(self, exempt_prompts=exempt_prompts)

    def completing(self, rows: Rows, exempt: NDArray[np.int64], exempt_begins: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `completing_all`."""
        arguments: tuple[Any, ...] = (
            *self.complete,
            rows.numbers,
            rows.windows,
            rows.hashes,
            rows.prefixes,
            rows.befores,
            exempt,
            exempt_begins,
        )
        found: NDArray[np.int64] = completing_all(*arguments)
        return found

    def symbols(self, text_state: int, token_id: int) -> NDArray[np.uint8]:
        """What a token emits."""
        starts = self.table.starts[text_state]
        return self.table.symbols[starts[token_id] : starts[token_id + 1]]

    def quoted_in(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places in the table of the anchors in a text, int64 [n], ascending, each once."""
        found = [
            self.anchors.find(self.anchors.cut.normalization.fold(np.frombuffer(text, np.uint8))[0])[:, 1]
            for text in self.vocabulary.known_texts(tokens)
        ]
        return np.unique(np.concatenate(found)) if found else NOTHING

    def _anchors_inside(self, text_state: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Tokens with a whole anchor inside, and its place in the table."""
        lengths = np.diff(self.table.starts[text_state])[: len(self)]
        tokens, ranks = [], []
        for token in np.flatnonzero((lengths >= self.anchors.cut.width) & (self.vocabulary.kinds == TEXT)).tolist():
            for _, rank in self.anchors.find(self.symbols(text_state, token), every_run=True).tolist():
                tokens.append(token)
                ranks.append(rank)
        return np.array(tokens, np.int32), np.array(ranks, np.int64)

    def _compile(self) -> None:
        """Call every kernel once: at a step it would hold up the batch."""
        tracker = self.track()
        tracker.read(np.arange(1), [np.zeros(1, np.int64)], np.zeros(1, np.int64))
        tracker.advance(np.zeros(1, np.int64))
        tracker.take(np.zeros(1, np.int64))
        tracker.completing()


class Rows(NamedTuple):
    """Where the texts of a batch are.

    Attributes:
        numbers: int64 [B, 5], of each its text state, how many symbols its window has, how many there were in all,
            how many at the end are even (no word ends among them), and after how many a prefix ended last.
        hashes: uint64 [B, 2], of the last symbols, as many as a prefix at most, and of all.
        windows: uint8 [B, room], the last symbols.
        prefixes: int64 [B, LOOK_AHEAD, 3], where prefixes ended last, each at its remainder: after how many symbols
            (-1: none), and its part of the table, from and to.
        befores: uint64 [B, LOOK_AHEAD], the hash of all symbols there.
    """

    numbers: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    windows: NDArray[np.uint8]
    prefixes: NDArray[np.int64]
    befores: NDArray[np.uint64]

    @classmethod
    def empty(cls, count: int, width: int) -> Rows:
        """Texts without a symbol."""
        numbers = np.zeros((count, 5), np.int64)
        numbers[:, STATE], numbers[:, LATEST] = AFTER_OTHER, -LOOK_AHEAD
        return cls(
            numbers,
            np.zeros((count, 2), np.uint64),
            np.zeros((count, _KEPT * width), np.uint8),
            np.full((count, LOOK_AHEAD, 3), -1, np.int64),
            np.zeros((count, LOOK_AHEAD), np.uint64),
        )

    def set(self, at: _Places, other: Rows, there: _Places) -> None:
        """Put rows of another batch in the place of some of these."""
        for name, mine in self._asdict().items():
            mine[at] = getattr(other, name)[there]

    def some(self, which: NDArray[np.int64]) -> Rows:
        """Copies of some of them, by their numbers."""
        return Rows(
            self.numbers[which], self.hashes[which], self.windows[which], self.prefixes[which], self.befores[which]
        )


class CorpusTracker:
    """The texts of a batch, prompts included, and the tokens that would complete an anchor of a corpus.

    As with every tracker, what is remembered is a cache of the texts. Special tokens are left out of them. A token
    without known bytes ends what is under way; whoever must not let it pass has another tracker beside this one.
    """

    any_closed = False

    def __init__(self, bound: BoundAnchors, *, exempt_prompts: bool = False) -> None:
        self.bound = bound
        self._exempts = exempt_prompts
        self._rows = Rows.empty(0, bound.anchors.cut.width)
        # Places in the table that each row may complete, and where those of the next row begin.
        self._exempt: list[NDArray[np.int64]] = []
        self._exempt_all, self._exempt_begins = NOTHING, np.zeros(1, np.int64)
        self._is_near = False
        # How many symbols there were before each row's newest token; -1: that is the prompt's.
        self._before = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._exempt)

    @property
    def closed(self) -> NDArray[np.bool_]:
        """Which rows cannot be read, bool [B]: none."""
        return np.zeros(len(self), np.bool_)

    def read(self, rows: NDArray[np.int64], texts: Sequence[NDArray[np.int64]], prompts: NDArray[np.int64]) -> None:
        """Read whole texts, as `Tracker.read`; `Anchors.check` may raise."""
        self.bound.anchors.check()
        if len(rows) and (most := int(rows.max()) + 1) > len(self):
            self.take(np.concatenate((np.arange(len(self)), np.full(most - len(self), -1))))
        for row, text, prompt in zip(rows.tolist(), texts, prompts.tolist(), strict=True):
            self._rows.set(slice(row, row + 1), Rows.empty(1, self.bound.anchors.cut.width), slice(None))
            rest, last = np.split(text.astype(np.int64, copy=False), [max(prompt, len(text) - 1)])
            self._follow(np.full(len(rest), row), rest)
            self._before[row] = self._rows.numbers[row, SEEN] if len(last) else -1
            self._follow(np.full(len(last), row), last)
            self._exempt[row] = self.bound.quoted_in(text[:prompt]) if self._exempts else NOTHING
        self._note()

    def advance(self, tokens: NDArray[np.int64]) -> None:
        """Every row one token on: int64 [B]."""
        if self._exempts:
            self._before = self._rows.numbers[:, SEEN].copy()
        self._is_near = self._follow(np.arange(len(self)), tokens)

    def take(self, sources: NDArray[np.int64]) -> None:
        """Rows come, go, move, are copied, as `Tracker.take`."""
        before = self._rows
        self._rows = Rows.empty(len(sources), self.bound.anchors.cut.width)
        old = sources >= 0
        self._rows.set(old, before, sources[old])
        self._exempt = [self._exempt[source] if source >= 0 else NOTHING for source in sources.tolist()]
        was = self._before
        self._before = np.full(len(sources), -1)
        self._before[old] = was[sources[old]]
        self._note()

    def banned(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The banned tokens as sparse pairs, rows int32 [n], ascending, and token ids int32 [n], each pair once."""
        if not self._is_near:
            return NO_ROWS, NO_ROWS
        found = self.completing()
        if not len(found):
            return NO_ROWS, NO_ROWS
        rows, tokens = np.divmod(np.unique(found), 1 << 32)
        is_text = self.bound.vocabulary.kinds[tokens] == TEXT
        return rows[is_text].astype(np.int32), tokens[is_text].astype(np.int32)

    def completing(self) -> NDArray[np.int64]:
        """See `completing_all`."""
        return self.bound.completing(self._rows, self._exempt_all, self._exempt_begins)

    def blame(self, row: int, token_id: int) -> list[str]:
        """The names of the documents of which a token would complete an anchor; none: it is not banned."""
        anchors, numbers = self.bound.anchors, self._rows.numbers[row]
        emitted = self.bound.symbols(int(numbers[STATE]), token_id)
        end = int(numbers[FILLED])
        before = self._rows.windows[row, max(0, end - anchors.cut.width + 1) : end]
        ranks = anchors.find(np.concatenate((before, emitted)))[:, 1]
        ranks = ranks[~np.isin(ranks, self._exempt[row])]
        return list(dict.fromkeys(anchors.name_of(rank) for rank in ranks.tolist()))

    def passed(self) -> list[Passed]:
        """What the newest tokens completed that is exempt, as `Tracker.passed`."""
        found = []
        anchors = self.bound.anchors
        for row, (exempt, before) in enumerate(zip(self._exempt, self._before.tolist(), strict=True)):
            if before < 0 or not len(exempt):
                continue
            numbers = self._rows.numbers[row]
            new, end = int(numbers[SEEN]) - before, int(numbers[FILLED])
            first = max(0, end - new - anchors.cut.width + 1)
            places = anchors.find(self._rows.windows[row, first:end])
            ranks = places[places[:, 0] + anchors.cut.width > end - first - new, 1]
            names = (anchors.name_of(rank) for rank in ranks[np.isin(ranks, exempt)].tolist())
            found += [Passed(row, "exempted", name) for name in dict.fromkeys(names)]
        return found

    def _note(self) -> None:
        self._exempt_begins = np.cumsum([0, *map(len, self._exempt)]).astype(np.int64)
        self._exempt_all = np.concatenate(self._exempt) if self._exempt else NOTHING
        self._is_near = bool(any_near(self._rows.numbers, self.bound.needs))

    def _follow(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> bool:
        """See `follow_all`."""
        arguments: tuple[Any, ...] = (*self.bound.follow, *self._rows, rows, tokens)
        return bool(follow_all(*arguments))
