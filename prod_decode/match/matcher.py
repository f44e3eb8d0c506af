"""A blocklist bound to a vocabulary: which tokens would complete a prohibited pattern. The only stateful logic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from prod_decode.errors import ProdError, brief
from prod_decode.match import follow
from prod_decode.match.automaton import (
    ACCEPT,
    ACCEPT_END,
    BOUND_ROOT,
    MATCH,
    MATCH_END,
    ROOT,
    Automaton,
    step,
)
from prod_decode.match.exempt import ExemptingTracker
from prod_decode.match.tables import Tables
from prod_decode.match.tracker import TextTracker
from prod_decode.match.trackers import Combined, Tracker
from prod_decode.quotes.pieces import Pieces
from prod_decode.quotes.tracker import BoundPieces
from prod_decode.storage.jit import jit
from prod_decode.text.normalize import (
    AFTER_BREAK,
    AFTER_OTHER,
    AFTER_WORD,
    CLASSES,
    TEXT_STATES,
    WORD,
    WORD_BYTES,
    WORD_ENDS,
    Normalization,
)
from prod_decode.tokens.vocabulary import SPECIAL, UNKNOWN, Vocabulary

_CACHED_STATES = 1 << 16

_Origins = Callable[[str], tuple[str | None, str | None]]

# Sets of stop strings that a matcher is kept for; requests name them.
_CUTS = 64


class Fork(NamedTuple):
    """Where something else can be written instead of a phrase.

    Attributes:
        entry_id: whose phrase it is.
        phrase: normalised.
        shared: how many symbols the replacement, normalised, begins with alike; at least 1 and not all of either.
        parting: with how many symbols a text is on its way to the phrase: more than `shared`; where the phrase has a
            commit point, at least up to that, since a name that begins like it may be meant before; in one that is a
            single word, all of the name's next part, for the same reason.
        replacement: the text to write, as it was given.
    """

    entry_id: str
    phrase: bytes
    shared: int
    parting: int
    replacement: str


class Watch(Protocol):
    """What makes a tracker beside that of patterns, for the same vocabulary."""

    def track(self, *, exempt_prompts: bool = False) -> Tracker:
        """A tracker of a batch of texts, without rows at first."""


class CorpusWatch(Watch, Protocol):
    """A `Watch` that knows the tokens with JSON's escapes decoded as well."""

    def unescaped(self) -> Watch:
        """What makes a tracker of outputs that are decoded, for the same tokens."""


def _by_number(pattern: int) -> list[str]:
    """What patterns are called of which nobody says more."""
    return [str(pattern)]


def _is_no_quote(_pattern: int) -> bool:
    """Of patterns that nobody says it of; a function with a name, as pickles need."""
    return False


def _no_origin(_entry_id: str) -> tuple[None, None]:
    """Of entries that nobody says it of."""
    return None, None


class _Either:
    """What the first of two knows of an entry, else the second."""

    def __init__(self, first: _Origins, second: _Origins) -> None:
        self._both = first, second

    def __call__(self, entry_id: str) -> tuple[str | None, str | None]:
        for origin_of in self._both:
            if (known := origin_of(entry_id)) != (None, None):
                return known
        return None, None


class Matcher:
    """Tracks text token by token and tells which tokens are banned next.

    A *state* is an int, `node * 4 + text state`; it depends on the last `longest` symbols only, so that it can always
    be computed again from the tokens (`state_of`). Methods change nothing but caches: one matcher serves any number of
    sequences and threads.

    Banned tokens are those that complete a pattern, even if the output ended right after them:

        {t for t in range(len(vocabulary)) if t completes a pattern that was not complete before it}

    and every id that the vocabulary does not know. A special token may complete one with the text that is shown for it;
    once it stands there, a state has the text without it. `track` follows the other readings of a text as well, and
    what it has given away of documents with a budget, which a state does not know.

    Attributes:
        vocabulary: the tokens.
        normalization: of texts and patterns.
        automaton: the patterns.
        table: the tokens, normalised.
        tables: what kernels take of both.
        ends: bool [256], the symbols before which a word may end.
        forks: where replacements can be written.
        quotes: the pieces of documents with a budget, and what names the entry of a number.
        corpora: what else its trackers follow texts with, such as a corpus index.
        exempts_prompts: whether its trackers let an output repeat what its prompt quotes.
        origin_of: source and licence of an entry, given by its id, as far as they are known.
    """

    def __init__(
        self,
        automaton: Automaton,
        normalization: Normalization,
        vocabulary: Vocabulary,
        entries_of: Callable[[int], Iterable[str]] = _by_number,
        ends: NDArray[np.bool_] = WORD_ENDS,
        forks: Sequence[Fork] = (),
        quotes: Sequence[tuple[Pieces, Callable[[int], str]]] = (),
        is_quote: Callable[[int], bool] = _is_no_quote,
        *,
        corpora: Sequence[CorpusWatch] = (),
        exempts_prompts: bool = False,
        origin_of: _Origins = _no_origin,
    ) -> None:
        self.vocabulary = vocabulary
        self.normalization = normalization
        self._entries_of = entries_of
        self.automaton = automaton
        self.table = vocabulary.table(normalization)
        self.ends = ends
        self.forks = tuple(forks)
        self.quotes = tuple(quotes)
        self._is_quote = is_quote
        self.corpora = tuple(corpora)
        self.exempts_prompts = exempts_prompts
        self.origin_of: _Origins = origin_of
        self.tables = Tables.of(automaton, self.table, vocabulary.kinds, ends)
        self._cut_by: dict[bytes, Matcher] = {}
        self._cache: dict[int, NDArray[np.int32]] = {}
        for token_id in vocabulary.eos_ids:
            for text_state in range(TEXT_STATES):
                if names := self.blame(ROOT * TEXT_STATES + text_state, token_id):
                    spelled = vocabulary.shown[token_id].decode("utf-8", "replace")
                    raise ProdError(
                        f"expected an EOS token that no entry prohibits, got {spelled!r}, which entry {names[0]!r} "
                        "does: no output could end; take the entry out"
                    )

    @cached_property
    def fixed(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The tokens banned whatever came before, by text state: int32 [n], and int64 [5] where each state's begin.

        A whole pattern lies inside of them, or nobody knows their bytes. Found when first asked for: that visits every
        token, and a server may have bound a thousand lists that no request asks for.
        """
        fixed = [self._completed_inside(state) for state in range(TEXT_STATES)]
        starts = np.concatenate(([0], np.cumsum([len(tokens) for tokens in fixed]))).astype(np.int64)
        tokens = np.concatenate(fixed)
        tokens.flags.writeable = starts.flags.writeable = False
        return tokens, starts

    def cut_by(self, stops: Iterable[str] | None) -> Matcher:
        """The matcher for an output that the engine cuts where one of these strings begins, inside a token or not.

        A word may then end before the first character of a stop string: with ` evaluate` and the stop string `uate` the
        output ends in `eval`. None: the output may be cut anywhere, as where the stop string stays in it. States are
        the same for both matchers.

        Raises:
            ProdError: a string in place of a list of them, or something else in it.
        """
        stops = None if stops is None else _strings(stops)
        firsts = set(WORD_BYTES) if stops is None else {stop.encode()[0] for stop in stops if stop}
        if self.normalization.ignore_case:
            firsts |= set(bytes(firsts).lower())
        symbols = bytes(sorted(symbol for symbol in firsts if CLASSES[symbol] == WORD))
        if not symbols or not (self.automaton.patterns & 1).any():
            return self
        if symbols not in self._cut_by:
            if len(self._cut_by) >= _CUTS:
                self._cut_by.clear()
            ends = self.ends.copy()
            ends[list(symbols)] = True
            self._cut_by[symbols] = self.again(ends=ends)
        return self._cut_by[symbols]

    def again(self, *, vocabulary: Vocabulary | None = None, ends: NDArray[np.bool_] | None = None) -> Matcher:
        """The same patterns for another vocabulary, or with words that end elsewhere."""
        twin = Matcher(
            self.automaton,
            self.normalization,
            self.vocabulary if vocabulary is None else vocabulary,
            self._entries_of,
            self.ends if ends is None else ends,
            self.forks,
            self.quotes,
            self._is_quote,
            # Of the same tokens: those with escapes decoded are its own (`match.unescaped`).
            corpora=self.corpora if vocabulary is None else (),
            exempts_prompts=self.exempts_prompts,
            origin_of=self.origin_of,
        )
        if vocabulary is None and self.quotes:
            # Found once: for each set of stop strings it would hold up a step.
            twin._bound_quotes = self._bound_quotes
        return twin

    def beside(self, other: Matcher) -> Matcher:
        """The matcher whose trackers follow texts with what another one has besides patterns, such as an index.

        Raises:
            ProdError: the other one has patterns of its own, or another vocabulary.
        """
        if len(other.automaton.patterns) or other.quotes:
            raise ProdError("expected one blocklist and indices, got two blocklists: join them with Blocklist.merge")
        if other.vocabulary is not self.vocabulary:
            raise ProdError("expected matchers of one vocabulary, got several: bind all to one Vocabulary")
        twin = self.again()
        twin.corpora += other.corpora
        twin.origin_of = _Either(self.origin_of, other.origin_of)
        return twin

    def exempting_prompts(self) -> Matcher:
        """The matcher whose trackers let an output repeat what its prompt quotes, for "add type hints to this file".

        What stands in the prompt of a document (policy `quote`) may be written again, and does not count towards a
        budget. Everything else of the document stays prohibited, and phrases do. States are the same for both.
        """
        if self.exempts_prompts:
            return self
        twin = self.again()
        twin.exempts_prompts = True
        return twin

    def track(self) -> Tracker:
        """A tracker of a batch of texts, without rows at first: of all their readings, and of their budgets."""
        readings: Tracker = TextTracker(self)
        if self.exempts_prompts:
            readings = ExemptingTracker(TextTracker(self), self, self._is_quote)
        watches: list[Watch] = [*(self._bound_quotes if self.quotes else ()), *self.corpora]
        if not watches:
            return readings
        return Combined([readings, *(watch.track(exempt_prompts=self.exempts_prompts) for watch in watches)])

    @cached_property
    def _bound_quotes(self) -> list[BoundPieces]:
        """The pieces of documents, each with the tokens."""
        return [BoundPieces(pieces, self.table, self.vocabulary.kinds, name_of) for pieces, name_of in self.quotes]

    def __len__(self) -> int:
        """The number of token ids."""
        return len(self.vocabulary)

    def start(self) -> int:
        """The state of the empty text."""
        return ROOT * TEXT_STATES + AFTER_OTHER

    def advance(self, state: int, token_id: int) -> int:
        """The state after one more token; O(bytes of the token).

        Raises:
            ProdError: the vocabulary does not know the token.
        """
        after = follow.advance(
            *self.tables.follow,
            state,
            token_id,
        )
        if after < 0:
            raise self._unknown_token(token_id)
        return int(after)

    def end_prompt(self, state: int) -> int:
        """The state where the prompt ends: what is returned alone begins a word, even inside one."""
        return state + AFTER_BREAK - AFTER_WORD if state % TEXT_STATES == AFTER_WORD else state

    def state_of(self, token_ids: Sequence[int] | NDArray[np.integer[Any]]) -> int:
        """The state of a whole text, from its tokens; reads only as many of the last ones as can matter.

        Raises:
            ProdError: the vocabulary does not know one of the tokens that matter.
        """
        return int(self.states_of(np.asarray(token_ids, np.int64).reshape(1, -1))[0])

    def states_of(self, token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The states of a batch of texts, int64 [B], from their tokens, int64 [B, T]."""
        states = np.empty(len(token_ids), np.int64)
        bad = follow.states_of(
            *self.tables.follow,
            self.automaton.longest,
            token_ids,
            states,
        )
        if bad >= 0:
            raise self._unknown_token(int(token_ids.flat[bad]))
        return states

    def advance_all(self, states: NDArray[np.int64], token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """`advance` for a batch: int64 [B] states and int64 [B] tokens to int64 [B] states."""
        after = np.empty(len(states), np.int64)
        bad = follow.advance_all(
            *self.tables.follow,
            states,
            token_ids,
            after,
        )
        if bad >= 0:
            raise self._unknown_token(int(token_ids[bad]))
        return after

    def banned(self, state: int) -> NDArray[np.int32]:
        """The banned tokens: int32 [n], ascending, read-only; does not change the state."""
        cached = self._cache.get(state)
        if cached is None:
            if len(self._cache) >= _CACHED_STATES:
                self._cache.clear()
            _, cached = self.banned_all(np.array([state], np.int64))
            cached = np.sort(cached)
            cached.flags.writeable = False
            self._cache[state] = cached
        return cached

    def banned_all(self, states: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The banned tokens of a batch as sparse pairs (rows int32 [n], token ids int32 [n]), rows ascending."""
        rows, tokens = _banned_all(*self.tables.complete, *self.fixed, states)
        return rows, tokens

    def blame(self, state: int, token_id: int) -> list[str]:
        """The ids of the entries whose patterns the token would complete in this state, in the order in which they end.

        None for an id without known bytes, which is banned although it completes nothing.

        Raises:
            ProdError: the id is outside the vocabulary.
        """
        return self._names(self.completed(state, token_id))

    def completed(self, state: int, token_id: int) -> list[int]:
        """The indices of the patterns that the token would complete in this state, in the order in which they end.

        Raises:
            ProdError: the id is outside the vocabulary.
        """
        if not 0 <= token_id < len(self):
            raise self._unknown_token(token_id)
        table, text_state = self.table, state % TEXT_STATES
        shown = token_id if table.aliases[token_id] < 0 else table.aliases[token_id]
        return self._completed(
            state, table.symbols[table.starts[text_state, shown] : table.starts[text_state, shown + 1]]
        )

    def blame_symbols(self, state: int, symbols: NDArray[np.uint8]) -> list[str]:
        """What `blame` says, for the symbols that a token emits in this state, uint8 [n]."""
        return self._names(self._completed(state, symbols))

    def _completed(self, state: int, symbols: NDArray[np.uint8]) -> list[int]:
        node, text_state = divmod(state, TEXT_STATES)
        nodes, rows = self.automaton.nodes, self.automaton.rows
        found: list[int] = []
        in_word = text_state == AFTER_WORD
        for i in range(len(symbols)):
            is_word = bool(CLASSES[symbols[i]] == WORD)
            node = int(step_once(nodes, rows, node, symbols[i], is_word and not in_word))
            in_word = is_word
            ends_word = i + 1 == len(symbols) or bool(self.ends[symbols[i + 1]])
            found.extend(index for index, _ in self.automaton.patterns_at(node, ends_word=ends_word))
        return found

    def _names(self, patterns: Iterable[int]) -> list[str]:
        return list(dict.fromkeys(entry_id for pattern in patterns for entry_id in self._entries_of(pattern)))

    def end_ids(self, given: int | Sequence[int] | None = None) -> list[int]:
        """The ids that end a text without a token left: `given`, by default those of the vocabulary.

        Raises:
            ProdError: none at all, or one that is no special token.
        """
        ids = list(self.vocabulary.eos_ids) if given is None else [given] if isinstance(given, int) else list(given)
        if not ids:
            raise ProdError(
                "expected an EOS token to end rows whose every token is banned, got none in the tokenizer: pass "
                "eos_token_id=..."
            )
        for token_id in ids:
            is_id = isinstance(token_id, int | np.integer) and 0 <= token_id < len(self)
            if not is_id or self.vocabulary.kinds[token_id] != SPECIAL:
                raise ProdError(
                    f"eos_token_id: expected ids of special tokens, got {token_id!r}, which adds text or does not "
                    "exist; use the id of a special token, since text could complete a pattern"
                )
        return ids

    def _completed_inside(self, text_state: int) -> NDArray[np.int32]:
        table = self.table
        banned = self.vocabulary.kinds == UNKNOWN
        _mark_inside(
            self.automaton.nodes,
            self.automaton.rows,
            CLASSES,
            self.ends,
            table.nodes,
            int(table.roots[text_state]),
            table.order,
            text_state == AFTER_WORD,
            table.scratch.stack,
            banned,
        )
        return np.flatnonzero(banned).astype(np.int32)

    def _unknown_token(self, token_id: int) -> ProdError:
        return ProdError(
            f"token id {token_id} has no known bytes in the vocabulary of {len(self)} tokens: the text so far cannot "
            "be checked; use the tokenizer that belongs to the model"
        )


def _strings(stops: Iterable[str]) -> list[str]:
    """Stop strings as a list; one string is not taken for its characters."""
    found = [] if isinstance(stops, str) else list(stops)
    if isinstance(stops, str) or not all(isinstance(stop, str) for stop in found):
        raise ProdError(f"stop: expected a list of strings, got {brief(stops)!r}: pass their texts, as ['END']")
    return found


@jit
def step_once(nodes: NDArray[Any], rows: NDArray[np.int32], node: int, symbol: int, begins_word: bool) -> int:
    """`automaton.step`, callable from Python."""
    return step(nodes, rows, node, symbol, begins_word)


@jit
def _mark_inside(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    ends: NDArray[np.bool_],
    token_nodes: NDArray[Any],
    token_root: int,
    order: NDArray[np.int32],
    in_word: bool,
    stack: NDArray[np.int64],
    banned: NDArray[np.bool_],
) -> None:
    """Mark the tokens inside of which a pattern ends that begins there too.

    The automaton follows the trie of the tokens, beginnings that tokens share once: a fifth of the time that following
    each token took (SmolLM2's vocabulary).
    """
    stack[0, 0] = token_root
    stack[0, 1] = (ROOT << 2) | (in_word << 1)
    depth = 1
    while depth > 0:
        depth -= 1
        there = stack[depth, 0]
        node, was_word, pending = stack[depth, 1] >> 2, stack[depth, 1] & 2, stack[depth, 1] & 1
        for v in range(token_nodes[there].child, token_nodes[there + 1].child):
            symbol = token_nodes[v].label
            is_word = classes[symbol] == WORD
            after = step(nodes, rows, node, symbol, is_word and was_word == 0)
            flags = nodes[after].flags
            if flags & MATCH or (pending and ends[symbol]):
                for i in range(token_nodes[v].low, token_nodes[v].high):
                    banned[order[i]] = True
                continue
            first, last = token_nodes[v].child, token_nodes[v + 1].child
            if flags & MATCH_END:
                own_end = token_nodes[first].low if first < last else token_nodes[v].high
                for i in range(token_nodes[v].low, own_end):
                    banned[order[i]] = True
            if first < last:
                stack[depth, 0] = v
                stack[depth, 1] = (after << 2) | (is_word << 1) | ((flags & MATCH_END) != 0)
                depth += 1


@jit
def _banned_all(
    nodes: NDArray[Any],
    token_nodes: NDArray[Any],
    roots: NDArray[np.int32],
    order: NDArray[np.int32],
    ends: NDArray[np.bool_],
    stamps: NDArray[np.int64],
    scratch: NDArray[np.int32],
    stack: NDArray[np.int64],
    fixed: NDArray[np.int32],
    fixed_starts: NDArray[np.int64],
    states: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    out_rows = np.empty(max(64, 4 * len(states)), np.int32)
    out_tokens = np.empty(len(out_rows), np.int32)
    total = 0
    for row in range(len(states)):
        text_state = states[row] & 3
        fixed_from, fixed_to = fixed_starts[text_state], fixed_starts[text_state + 1]
        count = continuations(
            nodes, token_nodes, roots[text_state], order, ends, stamps, scratch, stack, states[row] >> 2
        )
        needed = total + count + fixed_to - fixed_from
        if needed > len(out_rows):
            grown_rows = np.empty(2 * needed, np.int32)
            grown_tokens = np.empty(2 * needed, np.int32)
            grown_rows[:total] = out_rows[:total]
            grown_tokens[:total] = out_tokens[:total]
            out_rows, out_tokens = grown_rows, grown_tokens
        epoch = stamps[0]
        for i in range(count):
            out_rows[total] = row
            out_tokens[total] = scratch[i]
            total += 1
        for i in range(fixed_from, fixed_to):
            if stamps[fixed[i] + 1] != epoch:
                out_rows[total] = row
                out_tokens[total] = fixed[i]
                total += 1
    return out_rows[:total], out_tokens[:total]


@jit
def continuations(
    nodes: NDArray[Any],
    token_nodes: NDArray[Any],
    token_root: int,
    order: NDArray[np.int32],
    ends: NDArray[np.bool_],
    stamps: NDArray[np.int64],
    out: NDArray[np.int32],
    stack: NDArray[np.int64],
    node: int,
) -> int:
    """Write to `out`, each once, the tokens that complete a pattern which is under way at `node`; return their number.

    Every pattern under way is a descendant of a node on the failure chain. From each of those, descend the automaton
    and the token trie along equal labels. `stamps[0]` numbers the calls; `stamps[t + 1]` is the last call that wrote
    token `t`.
    """
    stamps[0] += 1
    count = 0
    longest_token = token_nodes[token_root].height
    while node > BOUND_ROOT and nodes[node].near <= longest_token:
        depth = 0
        if nodes[node].below <= longest_token:
            stack[0, 0] = node
            stack[0, 1] = token_root
            depth = 1
        while depth > 0:
            depth -= 1
            here, there = stack[depth, 0], stack[depth, 1]
            mine, my_end = nodes[here].child, nodes[here + 1].child
            theirs, their_end = token_nodes[there].child, token_nodes[there + 1].child
            while mine < my_end and theirs < their_end:
                label, their_label = nodes[mine].label, token_nodes[theirs].label
                if label < their_label:
                    mine += 1
                elif label > their_label:
                    theirs += 1
                else:
                    flags = nodes[mine].flags
                    if flags & ACCEPT:
                        count = _emit(order, token_nodes[theirs].low, token_nodes[theirs].high, stamps, out, count)
                    else:
                        if flags & ACCEPT_END:
                            count = _emit_word_ends(token_nodes, theirs, order, ends, stamps, out, count)
                        if nodes[mine].below <= token_nodes[theirs].height:
                            stack[depth, 0] = mine
                            stack[depth, 1] = theirs
                            depth += 1
                    mine += 1
                    theirs += 1
        node = nodes[node].fail
    return count


@jit
def _emit(
    order: NDArray[np.int32], low: int, high: int, stamps: NDArray[np.int64], out: NDArray[np.int32], count: int
) -> int:
    for i in range(low, high):
        token = order[i]
        if stamps[token + 1] != stamps[0]:
            stamps[token + 1] = stamps[0]
            out[count] = token
            count += 1
    return count


@jit
def _emit_word_ends(
    token_nodes: NDArray[Any],
    there: int,
    order: NDArray[np.int32],
    ends: NDArray[np.bool_],
    stamps: NDArray[np.int64],
    out: NDArray[np.int32],
    count: int,
) -> int:
    """The tokens below `there` in which the word ends there: with the token, or before a symbol of `ends`."""
    first, last = token_nodes[there].child, token_nodes[there + 1].child
    own_end = token_nodes[first].low if first < last else token_nodes[there].high
    count = _emit(order, token_nodes[there].low, own_end, stamps, out, count)
    for v in range(first, last):
        if ends[token_nodes[v].label]:
            count = _emit(order, token_nodes[v].low, token_nodes[v].high, stamps, out, count)
    return count
