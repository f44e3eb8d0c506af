"""The adapter for TensorRT-LLM; `docs/reference/engines.md` is its manual. Not run against TensorRT-LLM itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from prod_decode.errors import ProdError
from prod_decode.match.matcher import Matcher
from prod_decode.serving.guard import Guard
from prod_decode.serving.hits import Hit

# Requests of which the length is remembered; more than an engine works on at a time.
_REQUESTS = 4096


class ProdLogitsProcessor:
    """For TensorRT-LLM's PyTorch backend: `SamplingParams(logits_processor=ProdLogitsProcessor(matcher))`.

    One for each `LLM`, started with `disable_overlap_scheduler=True`, `enable_chunked_prefill=False` and without
    speculative decoding. Otherwise processors are not shown the newest tokens: a text that does not grow by one token
    from step to step is refused.
    """

    def __init__(
        self,
        *matchers: Matcher,
        eos_token_id: int | Sequence[int] | None = None,
        stop: Sequence[str] | None = None,
        json: bool = False,
        on_hit: Callable[[Hit], object] | None = None,
    ) -> None:
        """Check that there is something to enforce.

        Args:
            matchers: one for each blocklist, bound to one vocabulary.
            eos_token_id: special tokens at which the engine stops: `SamplingParams.end_id`; default: the vocabulary's.
            stop: `SamplingParams.stop`, () if there are none; as for `guard.Guard`.
            json: as for `guard.Guard`.
            on_hit: called with each `Hit`, or an `AuditLog`.

        Raises:
            ProdError: no matcher, different vocabularies, or no EOS token.
        """
        self.guard = Guard(matchers, eos_token_id, stop=stop, json=json, on_hit=on_hit)
        # Of every request, the length of its text at first, which is the prompt's, and at the last step.
        self._lengths: dict[int, tuple[int, int]] = {}

    def __call__(
        self, req_id: int, logits: Tensor, token_ids: list[list[int]], stream_ptr: int | None, client_id: int | None
    ) -> None:
        """Mask `logits`, [beams, V] or [beams, 1, V], in place; `token_ids` has the text of every beam.

        Raises:
            ProdError: there are not as many rows as texts, a part of a text is hidden, or the engine does not stop at
                EOS.
        """
        del client_id
        if logits.shape[:-1].numel() != len(token_ids):
            raise ProdError(
                f"expected a row of logits for each of {len(token_ids)} texts, got {list(logits.shape)}: turn "
                "speculative decoding off"
            )
        prompt = self._check_growth(req_id, len(token_ids[0]))
        on = nullcontext() if stream_ptr is None else torch.cuda.stream(torch.cuda.ExternalStream(stream_ptr))  # type: ignore[no-untyped-call]
        with on:
            for beam, (row, text) in enumerate(zip(logits.view(len(token_ids), -1), token_ids, strict=True)):
                self.guard.mask_(row, text, prompt=prompt, place=(beam, str(req_id)))

    def _check_growth(self, req_id: int, length: int) -> int:
        """The length of the prompt."""
        prompt, before = self._lengths.pop(req_id, (length, length - 1))
        if length != before + 1:
            raise ProdError(
                f"expected the text of request {req_id} to have grown by one token, got {length} after {before}: some "
                "are hidden; start with disable_overlap_scheduler=True and enable_chunked_prefill=False, without "
                "speculative decoding, and make one processor for each LLM"
            )
        if len(self._lengths) >= _REQUESTS:
            # The one that has not been asked about for the longest time.
            del self._lengths[next(iter(self._lengths))]
        self._lengths[req_id] = prompt, length
        return prompt
