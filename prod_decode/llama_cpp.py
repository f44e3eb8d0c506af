"""The adapter for llama-cpp-python; `docs/engines.md` is its manual."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prod_decode.guard import Guard
from prod_decode.matcher import Matcher


class ProdLogitsProcessors(list[Any]):
    """For llama-cpp-python: `llm(prompt, logits_processor=ProdLogitsProcessors(matcher))`.

    A list, as `llama_cpp.LogitsProcessorList` is, with this one processor; others may be put before it.
    `draft_model` is not supported: the processor is then shown drafts beyond the position that it is asked for.
    """

    def __init__(self, *matchers: Matcher) -> None:
        super().__init__([_ProdLogitsProcessor(Guard(matchers))])

    def extend(self, others: Any) -> Any:
        """Put others first and return the list: llama-cpp-python 0.3 takes what `extend` returns.

        It does so when a request has `logit_bias`; with a plain list that is None, and nothing would be enforced.
        """
        self[:0] = list(others)
        return self


class _ProdLogitsProcessor:
    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def __call__(self, input_ids: NDArray[np.intc], scores: NDArray[np.single]) -> NDArray[np.single]:
        """A masked copy of `scores`, float32 [V]."""
        masked: NDArray[np.single] = self.guard.mask_(torch.tensor(scores), input_ids).numpy()
        return masked
