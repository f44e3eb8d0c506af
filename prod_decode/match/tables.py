"""The arrays that kernels take, gathered once for each matcher.

They are handed over as arguments of their own (`*tables.follow`): numba takes a record of seven arrays in 3.6 us and
seven arrays in 1.7 us, and a call that follows one token does little else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.match.automaton import Automaton
from prod_decode.text.normalize import CLASSES
from prod_decode.tokens.vocabulary import TokenTable


class Follow(NamedTuple):
    """What a token is followed with.

    Attributes:
        nodes: of the automaton.
        rows: of the automaton.
        classes: uint8 [256], of symbols.
        symbols: what tokens emit, of a `TokenTable`; so are the next two.
        starts: where each token's begin.
        next_state: the text state after each.
        kinds: uint8, of the tokens that may be followed.
    """

    nodes: NDArray[Any]
    rows: NDArray[np.int32]
    classes: NDArray[np.uint8]
    symbols: NDArray[np.uint8]
    starts: NDArray[np.int64]
    next_state: NDArray[np.uint8]
    kinds: NDArray[np.uint8]


class Complete(NamedTuple):
    """What the tokens that complete a pattern are found with.

    Attributes:
        nodes: of the automaton.
        token_nodes: the tries of a `TokenTable`; so are the next two.
        roots: int32 [4], by text state.
        order: token ids.
        ends: bool [256], the symbols before which a word may end.
        stamps: of its scratch; so are the last two.
        tokens: what is found.
        stack: pairs of nodes to visit.
    """

    nodes: NDArray[Any]
    token_nodes: NDArray[Any]
    roots: NDArray[np.int32]
    order: NDArray[np.int32]
    ends: NDArray[np.bool_]
    stamps: NDArray[np.int64]
    tokens: NDArray[np.int32]
    stack: NDArray[np.int64]

    def below(self, root: int, **others: Any) -> tuple[Any, ...]:
        """The same for one trie: `root` stands in the place of `roots`, as `continuations` takes it."""
        return Complete(**{**self._asdict(), "roots": root, **others})


class Tables(NamedTuple):
    """Both, for an automaton and a vocabulary."""

    follow: Follow
    complete: Complete

    @classmethod
    def of(cls, automaton: Automaton, table: TokenTable, kinds: NDArray[np.uint8], ends: NDArray[np.bool_]) -> Tables:
        """The arrays of an automaton and of a vocabulary's tokens.

        Args:
            automaton: the patterns.
            table: the tokens, normalised alike.
            kinds: of the tokens that may be followed.
            ends: bool [256], the symbols before which a word may end.
        """
        return cls(
            Follow(automaton.nodes, automaton.rows, CLASSES, table.symbols, table.starts, table.next_state, kinds),
            Complete(automaton.nodes, table.nodes, table.roots, table.order, ends, *table.scratch),
        )
