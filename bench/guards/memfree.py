"""MemFree's n-gram ban."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import LogitsProcessor

from bench.guards.base import Guard
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError
from prod_decode.masking import mask_prohibited_

# Tokens of an n-gram that MemFree never completes, as in its paper.
MEMFREE_TOKENS = 10


class NgramBan(LogitsProcessor):  # type: ignore[misc]  # mypy does not follow transformers
    """Never completes an n-gram of tokens that occurs in a prohibited text (Ippolito et al., arXiv 2210.17546).

    The paper keeps the n-grams in a Bloom filter and asks it for every candidate token; a dictionary from the first
    n - 1 tokens to the last one gives the same bans without false positives.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Any, n: int = MEMFREE_TOKENS) -> None:
        """Remember the n-grams.

        Args:
            texts: what is prohibited, tokenised each by itself.
            tokenizer: of the model.
            n: tokens of an n-gram, at least 2; a shorter text is one n-gram as a whole.
        """
        if n < 2:
            raise ProdError(f"NgramBan: expected n of at least 2 tokens, got {n}")
        self._next: dict[tuple[int, ...], set[int]] = {}
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            size = min(n, len(ids))
            for start in range(len(ids) - size + 1):
                *begin, last = ids[start : start + size]
                self._next.setdefault(tuple(begin), set()).add(last)
        self._sizes = sorted({len(begin) for begin in self._next})

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask what would complete an n-gram; a new tensor.

        Args:
            input_ids: int64 [B, T].
            scores: float [B, V].
        """
        rows: list[int] = []
        columns: list[int] = []
        for row, ids in enumerate(input_ids.tolist()):
            for size in self._sizes:
                found = self._next.get(tuple(ids[len(ids) - size :]), ())
                rows += [row] * len(found)
                columns += found
        return mask_prohibited_(scores.clone(), np.array(rows, np.int64), np.array(columns, np.int64))


class MemFree(Guard):
    """The n-gram ban over all texts."""

    name = "memfree"
    rank = 11

    def processors(self, entries: Sequence[Entry], tokenizer: Any) -> tuple[list[Any], None]:
        """See `Guard.processors`."""
        return [NgramBan([entry.text for entry in entries], tokenizer)], None
