"""The adapter for TensorRT-LLM; `docs/engines.md` is its manual. Not run against TensorRT-LLM itself."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from prod_decode.guard import Guard
from prod_decode.matcher import Matcher


class ProdLogitsProcessor:
    """For TensorRT-LLM's PyTorch backend: `SamplingParams(logits_processor=ProdLogitsProcessor(matcher))`."""

    def __init__(self, *matchers: Matcher) -> None:
        self.guard = Guard(matchers)

    def __call__(
        self, req_id: int, logits: Tensor, token_ids: list[list[int]], stream_ptr: int | None, client_id: int | None
    ) -> None:
        """Mask `logits`, [beams, V] or [beams, 1, V], in place; `token_ids` has the text of every beam."""
        del req_id, client_id
        on = nullcontext() if stream_ptr is None else torch.cuda.stream(torch.cuda.ExternalStream(stream_ptr))  # type: ignore[no-untyped-call]
        with on:
            for row, text in zip(logits.view(len(token_ids), -1), token_ids, strict=True):
                self.guard.mask_(row, text)
