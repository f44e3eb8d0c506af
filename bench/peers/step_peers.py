"""What else masks a step of a batch: transformers, MemFree's Bloom filter, vLLM's bad words. Token sequences, all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.errors import ProdError
from prod_decode.masking import mask_prohibited_
from prod_decode.text.hashes import BASE, substring_hashes


class BloomMemFree:
    """Never completes an n-gram of tokens that occurs in a prohibited text (Ippolito et al., arXiv 2210.17546).

    As in the paper the n-grams are in a Bloom filter, which is asked for every candidate token; so it needs 4 bytes or
    so an n-gram, and a token in a million is banned without reason. A text of fewer than n tokens is not guarded.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], n: int = 10, *, false_positives: float = 1e-6) -> None:
        """Fill the filter.

        Args:
            sequences: the texts' token ids.
            n: tokens of an n-gram, at least 2.
            false_positives: share of other n-grams that it takes for one of its own.
        """
        if n < 2:
            raise ProdError(f"MemFree: expected n of at least 2 tokens, got {n}")
        self.n = n
        hashes = [substring_hashes(np.array(ids, np.uint32), n) for ids in sequences]
        keys = np.unique(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)
        # Two halves of one key make all probes: in fewer bits two keys would often have all of them in common.
        bits = max(1 << 12, math.ceil(-len(keys) * math.log(false_positives) / math.log(2) ** 2))
        self._probes = max(1, round(-math.log2(false_positives)))
        self._bits = np.uint64(bits)
        self._filter = np.zeros(-(-bits // 8), np.uint8)
        for number in range(self._probes):
            place = self._place(keys, number)
            np.bitwise_or.at(
                self._filter, place >> np.uint64(3), np.uint8(1) << (place & np.uint64(7)).astype(np.uint8)
            )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask, in place, every token that completes an n-gram.

        Args:
            input_ids: int64 [B, T].
            scores: float [B, V].
        """
        rows: list[NDArray[np.int64]] = []
        columns: list[NDArray[np.int64]] = []
        for row, ids in enumerate(input_ids.tolist()):
            if len(ids) >= self.n - 1:
                found = self._completing(ids[len(ids) - self.n + 1 :], scores.shape[1])
                rows.append(np.full(len(found), row))
                columns.append(found)
        if not rows:
            return scores
        return mask_prohibited_(scores, np.concatenate(rows), np.concatenate(columns))

    def _completing(self, prefix: Sequence[int], width: int) -> NDArray[np.int64]:
        before = substring_hashes(np.array(prefix, np.uint32), len(prefix))
        keys = before * np.uint64(BASE) + substring_hashes(np.arange(width, dtype=np.uint32), 1)
        left = np.arange(width)
        for number in range(self._probes):
            place = self._place(keys, number)
            hit = (self._filter[place >> np.uint64(3)] >> (place & np.uint64(7)).astype(np.uint8)) & 1 == 1
            left, keys = left[hit], keys[hit]
        return left

    def _place(self, keys: NDArray[np.uint64], number: int) -> NDArray[np.uint64]:
        """Of one probe (Kirsch and Mitzenmacher, Less Hashing, Same Performance, 2006)."""
        first, second = keys & np.uint64(0xFFFFFFFF), (keys >> np.uint64(32)) | np.uint64(1)
        return np.asarray((first + np.uint64(number) * second) % self._bits)


def transformers_bad_words(lines: Sequence[str], tokenizer: Any) -> Callable[[Tensor, Tensor], object]:
    """`bad_words_ids` of `generate`."""
    from transformers import NoBadWordsLogitsProcessor

    found: Callable[[Tensor, Tensor], object] = NoBadWordsLogitsProcessor(_sequences(lines, tokenizer), None)
    return found


def transformers_sequence_bias(lines: Sequence[str], tokenizer: Any) -> Callable[[Tensor, Tensor], object]:
    """`sequence_bias` of `generate`, minus infinity for every line."""
    from transformers import SequenceBiasLogitsProcessor

    bias = {tuple(ids): -math.inf for ids in _sequences(lines, tokenizer)}
    found: Callable[[Tensor, Tensor], object] = SequenceBiasLogitsProcessor(bias)
    return found


def memfree_bloom(lines: Sequence[str], tokenizer: Any) -> Callable[[Tensor, Tensor], object]:
    """MemFree over n-grams of 10 tokens."""
    return BloomMemFree(_sequences(lines, tokenizer))


def vllm_bad_words(lines: Sequence[str], tokenizer: Any) -> Callable[[Tensor, Tensor], object]:
    """The function with which vLLM's sampler bans `bad_words`; its server takes 128 of them at most."""
    from vllm.v1.sample.ops.bad_words import apply_bad_words

    sequences = _sequences(lines, tokenizer)

    def run(input_ids: Tensor, scores: Tensor) -> object:
        rows = range(len(scores))
        return apply_bad_words(scores, dict.fromkeys(rows, sequences), input_ids.tolist())

    return run


STEP_PEERS: dict[str, Callable[[Sequence[str], Any], Callable[[Tensor, Tensor], object]]] = {
    "transformers bad words": transformers_bad_words,
    "transformers sequence bias": transformers_sequence_bias,
    "MemFree, Bloom filter": memfree_bloom,
    "vLLM bad_words": vllm_bad_words,
}


def _sequences(lines: Sequence[str], tokenizer: Any) -> list[list[int]]:
    return [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
