"""A blocklist bound to a vocabulary: which tokens would complete a prohibited pattern. The only stateful logic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode._jit import inline, jit
from prod_decode.automaton import (
    ACCEPT,
    ACCEPT_END,
    BOUND_ROOT,
    ROOT,
    Automaton,
    step,
    walk,
)
from prod_decode.errors import ProdError
from prod_decode.normalize import AFTER_OTHER, AFTER_WORD, CLASSES, TEXT_STATES, WORD, Normalization
from prod_decode.vocabulary import SPECIAL, UNKNOWN, Vocabulary

_CACHED_STATES = 1 << 16


class Matcher:
    """Tracks text token by token and tells which tokens are banned next.

    A *state* is an int, `node * 4 + text state`; it depends on the last `longest` symbols only, so that it can always
    be computed again from the tokens (`state_of`). Methods change nothing but caches: one matcher serves any number of
    sequences and threads.

    Banned tokens are those that complete a pattern, even if the output ended right after them:

        {t for t in range(len(vocabulary)) if t completes a pattern that was not complete before it}

    and every id that the vocabulary does not know.
    """

    def __init__(
        self,
        automaton: Automaton,
        normalization: Normalization,
        vocabulary: Vocabulary,
        entries_of: Callable[[int], Iterable[str]] = lambda pattern: [str(pattern)],
    ) -> None:
        self.vocabulary = vocabulary
        self._entries_of = entries_of
        self._automaton = automaton
        self._table = table = vocabulary.table(normalization)
        self._stamps = np.zeros(len(vocabulary) + 1, np.int64)
        self._scratch = np.empty(len(vocabulary), np.int32)
        self._stack = np.empty((256 * (table.deepest + 2), 2), np.int64)
        fixed = [self._completed_inside(state) for state in range(TEXT_STATES)]
        self._fixed = np.concatenate(fixed)
        self._fixed_starts = np.concatenate(([0], np.cumsum([len(tokens) for tokens in fixed]))).astype(np.int64)
        for array in (self._fixed, self._fixed_starts):
            array.flags.writeable = False
        self._cache: dict[int, NDArray[np.int32]] = {}

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
        after = _advance(
            self._automaton.nodes,
            self._automaton.rows,
            CLASSES,
            self._table.symbols,
            self._table.starts,
            self._table.next_state,
            self.vocabulary.kinds,
            state,
            token_id,
        )
        if after < 0:
            raise self._unknown_token(token_id)
        return int(after)

    def state_of(self, token_ids: Sequence[int] | NDArray[np.integer[Any]]) -> int:
        """The state of a whole text, from its tokens; reads only as many of the last ones as can matter.

        Raises:
            ProdError: the vocabulary does not know one of the tokens that matter.
        """
        return int(self.states_of(np.asarray(token_ids, np.int64).reshape(1, -1))[0])

    def states_of(self, token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The states of a batch of texts, int64 [B], from their tokens, int64 [B, T]."""
        states = np.empty(len(token_ids), np.int64)
        bad = _states_of(
            self._automaton.nodes,
            self._automaton.rows,
            CLASSES,
            self._table.symbols,
            self._table.starts,
            self._table.next_state,
            self.vocabulary.kinds,
            self._automaton.longest,
            token_ids,
            states,
        )
        if bad >= 0:
            raise self._unknown_token(int(token_ids.flat[bad]))
        return states

    def advance_all(self, states: NDArray[np.int64], token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """`advance` for a batch: int64 [B] states and int64 [B] tokens to int64 [B] states."""
        after = np.empty(len(states), np.int64)
        bad = _advance_all(
            self._automaton.nodes,
            self._automaton.rows,
            CLASSES,
            self._table.symbols,
            self._table.starts,
            self._table.next_state,
            self.vocabulary.kinds,
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
        rows, tokens = _banned_all(
            self._automaton.nodes,
            self._table.nodes,
            self._table.roots,
            self._table.order,
            self._fixed,
            self._fixed_starts,
            CLASSES,
            self._stamps,
            self._scratch,
            self._stack,
            states,
        )
        return rows, tokens

    def blame(self, state: int, token_id: int) -> list[str]:
        """The ids of the entries whose patterns the token would complete in this state, in the order in which they end.

        None for an id without known bytes, which is banned although it completes nothing.

        Raises:
            ProdError: the id is outside the vocabulary.
        """
        node, text_state = divmod(state, TEXT_STATES)
        table, nodes, rows = self._table, self._automaton.nodes, self._automaton.rows
        if not 0 <= token_id < len(self):
            raise self._unknown_token(token_id)
        symbols = table.symbols[table.starts[text_state, token_id] : table.starts[text_state, token_id + 1]]
        found: list[int] = []
        in_word = text_state == AFTER_WORD
        for i in range(len(symbols)):
            is_word = bool(CLASSES[symbols[i]] == WORD)
            node = int(step_once(nodes, rows, node, symbols[i], is_word and not in_word))
            in_word = is_word
            ends_word = i + 1 == len(symbols) or bool(CLASSES[symbols[i + 1]] != WORD)
            found.extend(index for index, _ in self._automaton.patterns_at(node, ends_word=ends_word))
        return list(dict.fromkeys(entry_id for pattern in found for entry_id in self._entries_of(pattern)))

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
        """The tokens that are banned whatever came before: a whole pattern lies inside, or nobody knows their bytes."""
        return np.flatnonzero(
            _completes(
                self._automaton.nodes,
                self._automaton.rows,
                CLASSES,
                self._table.symbols,
                self._table.starts,
                self.vocabulary.kinds,
                text_state,
            )
        ).astype(np.int32)

    def _unknown_token(self, token_id: int) -> ProdError:
        return ProdError(
            f"token id {token_id} has no known bytes in the vocabulary of {len(self)} tokens: the text so far cannot "
            "be checked; use the tokenizer that belongs to the model"
        )


@jit
def step_once(nodes: NDArray[Any], rows: NDArray[np.int32], node: int, symbol: int, begins_word: bool) -> int:
    """`automaton.step`, callable from Python."""
    return step(nodes, rows, node, symbol, begins_word)


@inline
def _advance_inline(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    state: int,
    token: int,
) -> int:
    if token < 0 or token >= len(kinds) or kinds[token] == UNKNOWN:
        return -1
    node = state >> 2
    text_state = state & 3
    in_word = text_state == AFTER_WORD
    for i in range(starts[text_state, token], starts[text_state, token + 1]):
        is_word = classes[symbols[i]] == WORD
        node = step(nodes, rows, node, symbols[i], is_word and not in_word)
        in_word = is_word
    return int((node << 2) | next_state[text_state, token])


@jit
def _advance(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    state: int,
    token: int,
) -> int:
    return _advance_inline(nodes, rows, classes, symbols, starts, next_state, kinds, state, token)


@jit
def _advance_all(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    states: NDArray[np.int64],
    tokens: NDArray[np.int64],
    after: NDArray[np.int64],
) -> int:
    """Fill `after`; the index of the first unknown token, or -1."""
    for row in range(len(states)):
        state = _advance_inline(nodes, rows, classes, symbols, starts, next_state, kinds, states[row], tokens[row])
        if state < 0:
            return row
        after[row] = state
    return -1


@jit
def _states_of(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    longest: int,
    tokens: NDArray[np.int64],
    states: NDArray[np.int64],
) -> int:
    """Fill `states`; the flat index of the first unknown token that was read, or -1.

    The walk begins `longest + 1` symbols before the end. Two things are unknown there: the text state, which decides
    whether the first symbol begins a word and whether a space comes before it. Both concern the symbol at the very
    front only, which no pattern that is still under way can contain. A token emits the fewest symbols after
    `AFTER_OTHER`, so counting those never stops too late.
    """
    for row in range(len(tokens)):
        first = int(tokens.shape[1])
        seen = 0
        while first > 0 and seen <= longest:
            first -= 1
            token = tokens[row, first]
            if token < 0 or token >= len(kinds) or kinds[token] == UNKNOWN:
                return int(row * tokens.shape[1] + first)
            seen += starts[AFTER_OTHER, token + 1] - starts[AFTER_OTHER, token]
        state = ROOT * TEXT_STATES + AFTER_OTHER
        for i in range(first, tokens.shape[1]):
            state = _advance_inline(nodes, rows, classes, symbols, starts, next_state, kinds, state, tokens[row, i])
        states[row] = state
    return -1


@jit
def _completes(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    kinds: NDArray[np.uint8],
    text_state: int,
) -> NDArray[np.bool_]:
    completes = np.zeros(len(kinds), np.bool_)
    for token in range(len(kinds)):
        emitted = symbols[starts[text_state, token] : starts[text_state, token + 1]]
        _, matched = walk(nodes, rows, classes, ROOT, text_state, emitted)
        completes[token] = matched or kinds[token] == UNKNOWN
    return completes


@jit
def _banned_all(
    nodes: NDArray[Any],
    token_nodes: NDArray[Any],
    roots: NDArray[np.int32],
    order: NDArray[np.int32],
    fixed: NDArray[np.int32],
    fixed_starts: NDArray[np.int64],
    classes: NDArray[np.uint8],
    stamps: NDArray[np.int64],
    scratch: NDArray[np.int32],
    stack: NDArray[np.int64],
    states: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    out_rows = np.empty(max(64, 4 * len(states)), np.int32)
    out_tokens = np.empty(len(out_rows), np.int32)
    total = 0
    for row in range(len(states)):
        text_state = states[row] & 3
        fixed_from, fixed_to = fixed_starts[text_state], fixed_starts[text_state + 1]
        count = _continuations(
            nodes, token_nodes, roots[text_state], order, classes, stamps, scratch, stack, states[row] >> 2
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
def _continuations(
    nodes: NDArray[Any],
    token_nodes: NDArray[Any],
    token_root: int,
    order: NDArray[np.int32],
    classes: NDArray[np.uint8],
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
                            count = _emit_word_ends(token_nodes, theirs, order, classes, stamps, out, count)
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
    classes: NDArray[np.uint8],
    stamps: NDArray[np.int64],
    out: NDArray[np.int32],
    count: int,
) -> int:
    """The tokens below `there` in which the word ends there: with the token, or before a symbol outside a word."""
    first, last = token_nodes[there].child, token_nodes[there + 1].child
    own_end = token_nodes[first].low if first < last else token_nodes[there].high
    count = _emit(order, token_nodes[there].low, own_end, stamps, out, count)
    for v in range(first, last):
        if classes[token_nodes[v].label] != WORD:
            count = _emit(order, token_nodes[v].low, token_nodes[v].high, stamps, out, count)
    return count
