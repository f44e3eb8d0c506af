"""A tokenizer as what it really emits: the bytes of every token, and tries over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.errors import ProdError, brief
from prod_decode.storage.jit import jit
from prod_decode.text.escapes import decode_each
from prod_decode.text.normalize import (
    AFTER_BREAK,
    AFTER_OTHER,
    AFTER_SPACE,
    AFTER_WORD,
    CLASSES,
    TEXT_STATES,
    Normalization,
    fold,
    transduce,
)
from prod_decode.text.trie import build_trie, concatenate
from prod_decode.tokens.proof import check_bytes

TEXT, SPECIAL, UNKNOWN = 0, 1, 2

TOKEN_NODE = np.dtype(
    [("child", "<i4"), ("low", "<i4"), ("high", "<i4"), ("label", "u1"), ("height", "u1")], align=True
)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The bytes of every token id.

    Attributes:
        data: uint8 [bytes], the bytes of all tokens joined.
        offsets: int64 [size + 1], where each begins in `data`.
        kinds: uint8 [size]: `TEXT`; `SPECIAL`, which adds no text; `UNKNOWN`, an id that no token has.
        eos_ids: ids that end an output; all of them special.
        shown: of special ids, the bytes that stand for them where special tokens are not left out, if any do.
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    eos_ids: tuple[int, ...] = ()
    shown: Mapping[int, bytes] = field(default_factory=dict)
    _tables: dict[Normalization, TokenTable] = field(default_factory=dict, repr=False)
    _unescaped: dict[int, Vocabulary] = field(default_factory=dict, repr=False)

    @classmethod
    def from_bytes(
        cls,
        tokens: Sequence[bytes | None],
        *,
        special: Iterable[int] = (),
        eos_ids: Iterable[int] = (),
        decode: Callable[[list[int]], str] | None = None,
        _proved: bool = False,
    ) -> Vocabulary:
        """A vocabulary from the bytes of each id: b" load", not the `\u0120load` or `\u2581load` of vocabulary files.

        Args:
            tokens: the bytes of each id. At a special id: the text that it shows where special tokens are not skipped,
                b"" if it never shows one. None: no token has this id.
            special: ids that add no text where special tokens are skipped.
            eos_ids: ids that end an output; special as well.
            decode: ids to text, as users are shown it, with or without special tokens. With it the bytes are proved,
                as those of a tokenizer are; without it, only what looks like the spellings of a file is refused.

        Raises:
            ProdError: no token at all, tokens that are no bytes, a special id outside the vocabulary, spellings, or
                `decode` shows other text.
        """
        if not len(tokens):
            raise ProdError("expected at least one token, got an empty vocabulary")
        if wrong := [token for token in tokens if token is not None and not isinstance(token, bytes)]:
            raise ProdError(
                f"expected the bytes of each token, got {type(wrong[0]).__name__} {brief(wrong[0])!r}: pass bytes, as "
                "token.encode() gives where the text is what users are shown"
            )
        kinds = np.fromiter((UNKNOWN if token is None else TEXT for token in tokens), np.uint8, len(tokens))
        eos = tuple(dict.fromkeys(eos_ids))
        for token_id in {*special, *eos}:
            if not isinstance(token_id, int | np.integer) or not 0 <= token_id < len(tokens):
                raise ProdError(f"special token id {token_id!r} is outside the vocabulary of {len(tokens)} tokens")
            kinds[token_id] = SPECIAL
        if not _proved:
            check_bytes(tokens, set(np.flatnonzero(kinds == SPECIAL).tolist()), decode)
        data, offsets = concatenate(
            [token if token and kind == TEXT else b"" for token, kind in zip(tokens, kinds, strict=True)]
        )
        shown = {i: token for i in np.flatnonzero(kinds == SPECIAL).tolist() if (token := tokens[i])}
        return cls(data, offsets, kinds, eos, shown)

    def __len__(self) -> int:
        """The number of ids, from 0 to the highest."""
        return len(self.kinds)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to the text: none for special and unknown ids."""
        return self.data[self.offsets[token_id] : self.offsets[token_id + 1]].tobytes()

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of a sequence of tokens, special tokens left out; invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def known_texts(self, token_ids: NDArray[np.int64]) -> Iterator[bytes]:
        """The bytes of a sequence of tokens, int64 [n], special ones left out, apart where one is unknown.

        Nobody knows what an unknown token shows: what stands around it is not joined.
        """
        known = (token_ids >= 0) & (token_ids < len(self))
        known[known] = self.kinds[token_ids[known]] != UNKNOWN
        begin = 0
        for end in [*np.flatnonzero(~known).tolist(), len(token_ids)]:
            if begin < end:
                yield b"".join(map(self.token_bytes, token_ids[begin:end].tolist()))
            begin = end + 1

    def unescaped(self, escape: int) -> Vocabulary:
        """The tokens with JSON's escapes decoded, each from an escape state; special ones show nothing. Made once."""
        if escape not in self._unescaped:
            data, offsets = decode_each(self.data, self.offsets, escape)
            self._unescaped[escape] = Vocabulary(data, offsets, self.kinds, self.eos_ids)
        return self._unescaped[escape]

    def table(self, normalization: Normalization) -> TokenTable:
        """The tokens under a normalisation; built once for each."""
        if normalization not in self._tables:
            self._tables[normalization] = TokenTable.build(self, normalization)
        return self._tables[normalization]


class Scratch(NamedTuple):
    """Memory for `matcher.continuations`.

    Attributes:
        stamps: int64 [size + 1]: the number of the last call, and of the last one that wrote each token.
        tokens: int32 [size], what a call writes.
        stack: int64 [n, 2], pairs of nodes to visit.
    """

    stamps: NDArray[np.int64]
    tokens: NDArray[np.int32]
    stack: NDArray[np.int64]

    @classmethod
    def of(cls, size: int, deepest: int) -> Scratch:
        """For a vocabulary of `size`, whose tokens emit at most `deepest` symbols."""
        stack = np.empty((256 * (deepest + 2), 2), np.int64)
        return cls(np.zeros(size + 1, np.int64), np.empty(size, np.int32), stack)


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """The symbols that every token emits in every text state, and tries over them.

    In mode `code` the symbols of a token depend on the text before it: ` load` emits `load` after `.` and a space and
    `load` after a word. So there is one trie for each text state (two states share theirs), over symbols rather than
    bytes: no walk ever meets a token that consists of whitespace.

    A special token emits nothing. What it emits where special tokens are shown belongs to its *alias*, an id behind
    those of the vocabulary, so that one set of kernels follows both readings. The tries have special tokens as they are
    shown.

    Attributes:
        symbols: uint8 [n].
        starts: int64 [4, size + aliases + 1]: token `t` emits `symbols[starts[s, t] : starts[s, t + 1]]` in text state
            `s`.
        next_state: uint8 [4, size + aliases], the text state after the token.
        kinds: uint8 [size + aliases]: those of the vocabulary; aliases are `TEXT`.
        aliases: int32 [size], the alias of each special token that is shown, else -1.
        nodes: `TOKEN_NODE` [nodes + 1]: the tries. The tokens below a node are `order[low:high]`, those that end at
            it first; `height` is the length of the longest continuation (255: or longer).
        roots: int32 [4], the root of each text state's trie.
        order: int32, token ids in the order of their symbols, a stretch for each trie.
        deepest: the largest number of symbols that a token emits.
        scratch: what the kernels that find banned tokens write to; all matchers of a vocabulary share it, since they
            hold the GIL meanwhile.
    """

    symbols: NDArray[np.uint8]
    starts: NDArray[np.int64]
    next_state: NDArray[np.uint8]
    kinds: NDArray[np.uint8]
    aliases: NDArray[np.int32]
    nodes: NDArray[Any]
    roots: NDArray[np.int32]
    order: NDArray[np.int32]
    deepest: int
    scratch: Scratch

    @classmethod
    def build(cls, vocabulary: Vocabulary, normalization: Normalization) -> TokenTable:
        """Normalise every token for every text state and sort the results into tries."""
        states = (AFTER_OTHER, AFTER_WORD, AFTER_SPACE) if normalization.is_code else (AFTER_OTHER,)
        trie_of = (0, 1, 2, 1) if normalization.is_code else (0, 0, 0, 0)
        known, shown = len(vocabulary), vocabulary.shown
        size = known + len(shown)
        special = np.fromiter(shown, np.int64, len(shown))
        added, ends = concatenate(list(shown.values()))
        data = np.concatenate((vocabulary.data, added))
        offsets = np.concatenate((vocabulary.offsets, len(vocabulary.data) + ends[1:]))
        kinds = np.concatenate((vocabulary.kinds, np.full(len(shown), TEXT, np.uint8)))
        ids = np.concatenate((np.arange(known), special))
        aliases = np.full(known, -1, np.int32)
        aliases[special] = np.arange(known, size)
        next_state = np.empty((TEXT_STATES, size), np.uint8)
        parts: list[NDArray[np.uint8]] = []
        starts: list[NDArray[np.int64]] = []
        strings: list[bytes] = []
        orders: list[NDArray[np.int64]] = []
        base = 0
        for state in range(TEXT_STATES):
            begins = np.empty(size + 1, np.int64)
            symbols = np.empty(2 * len(data) + 1, np.uint8)
            count = _token_symbols(
                data,
                offsets,
                kinds,
                state,
                normalization.is_code,
                normalization.ignore_case,
                CLASSES,
                symbols,
                begins,
                next_state[state],
            )
            if state not in states:
                continue
            emitted = symbols[:count].tobytes()
            texts = [emitted[a:b] for a, b in pairwise(begins.tolist())]
            order = sorted(range(size), key=texts.__getitem__)
            parts.append(symbols[:count])
            starts.append(begins + base)
            orders.append(ids[order])
            strings.extend(texts[i] for i in order)
            base += count
        trie = build_trie(*concatenate(strings), tuple(range(0, size * len(states), size)))
        nodes = np.zeros(len(trie.label) + 1, TOKEN_NODE)
        nodes["child"] = trie.child
        nodes["label"][:-1] = trie.label
        _span(nodes, trie.node_of)
        return cls(
            symbols=np.concatenate(parts),
            starts=np.stack([starts[trie] for trie in trie_of]),
            next_state=next_state,
            kinds=kinds,
            aliases=aliases,
            nodes=nodes,
            roots=np.array(trie_of, np.int32),
            order=np.concatenate(orders).astype(np.int32),
            deepest=trie.longest,
            scratch=Scratch.of(known, trie.longest),
        )


@jit
def _token_symbols(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    kinds: NDArray[np.uint8],
    start_state: int,
    is_code: bool,
    ignore_case: bool,
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
) -> int:
    count = 0
    for token in range(len(kinds)):
        starts[token] = count
        state = start_state
        if kinds[token] == SPECIAL and state == AFTER_WORD:
            # Decoded without special tokens, the text goes on with the word; decoded with them, or cut there (the
            # answer to a chat template that ends in a special token), a word begins. Both readings must be clean.
            state = AFTER_BREAK
        for i in range(offsets[token], offsets[token + 1]):
            state, emitted = transduce(state, classes[data[i]], is_code)
            if emitted == 2:
                symbols[count] = 32
                count += 1
            if emitted:
                symbols[count] = fold(data[i], ignore_case)
                count += 1
        next_state[token] = state
    starts[len(kinds)] = count
    return count


@jit
def _span(nodes: NDArray[Any], node_of: NDArray[np.int64]) -> None:
    """Fill `low`, `high` and `height` of a trie whose i-th string ends at `node_of[i]`."""
    count = len(nodes) - 1
    for node in range(count):
        nodes[node].low = len(node_of)
    for i in range(len(node_of)):
        node = node_of[i]
        nodes[node].low = min(nodes[node].low, i)
        nodes[node].high = max(nodes[node].high, i + 1)
    for node in range(count - 1, -1, -1):
        for v in range(nodes[node].child, nodes[node + 1].child):
            nodes[node].low = min(nodes[node].low, nodes[v].low)
            nodes[node].high = max(nodes[node].high, nodes[v].high)
            nodes[node].height = max(nodes[node].height, min(255, nodes[v].height + 1))
