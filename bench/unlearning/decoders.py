"""What keeps prohibited text out at decode time: ours, and what people use without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, NoBadWordsLogitsProcessor

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError
from prod_decode.hf import ProdLogitsProcessor
from prod_decode.masking import mask_prohibited_

if TYPE_CHECKING:
    from prod_decode.match.matcher import Matcher

# Tokens of an n-gram that MemFree never completes, as in its paper.
MEMFREE_TOKENS = 10

# Lines shorter than that are everybody's: `return None`.
LINE_CHARACTERS = 20


class MemFree(LogitsProcessor):  # type: ignore[misc]  # mypy does not follow transformers
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
            raise ProdError(f"MemFree: expected n of at least 2 tokens, got {n}")
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


def decode_prod(entries: Sequence[Entry], tokenizer: Any) -> tuple[list[Any], Matcher]:
    """Ours: a blocklist of the entries, each with its own policy."""
    matcher = Blocklist.compile(entries).bind(tokenizer)
    return [ProdLogitsProcessor(matcher)], matcher


def bad_words(entries: Sequence[Entry], tokenizer: Any) -> tuple[list[Any], None]:
    """The `bad_words_ids` of transformers: token sequences, each phrase as it is and after a space.

    A document has no phrase; its lines of `LINE_CHARACTERS` or more stand for it.
    """
    texts = [part for entry in entries for part in (_lines(entry.text) if entry.policy == "quote" else [entry.text])]
    spellings = dict.fromkeys(spelling for text in texts for spelling in (text, f" {text}"))
    sequences = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in spellings]
    if not sequences:
        raise ProdError("bad_words: expected a phrase, or a document with a line of 20 characters, got none")
    return [NoBadWordsLogitsProcessor(sequences, eos_token_id=torch.tensor([tokenizer.eos_token_id]))], None


def memfree(entries: Sequence[Entry], tokenizer: Any) -> tuple[list[Any], None]:
    """MemFree's n-gram ban over all texts."""
    return [MemFree([entry.text for entry in entries], tokenizer)], None


def nothing(entries: Sequence[Entry], tokenizer: Any) -> tuple[list[Any], None]:
    """No processor."""
    del entries, tokenizer
    return [], None


MAKERS: dict[str, Callable[[Sequence[Entry], Any], tuple[list[Any], Any]]] = {
    "base": nothing,
    "decode": decode_prod,
    "bad-words": bad_words,
    "memfree": memfree,
}


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if len(line.strip()) >= LINE_CHARACTERS]
