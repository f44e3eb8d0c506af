"""The adapter for mlx-lm; `docs/reference/engines.md` is its manual."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import numpy as np
import torch

from prod_decode.errors import ProdError
from prod_decode.match.matcher import Matcher
from prod_decode.serving.guard import Guard
from prod_decode.serving.hits import Hit


class ProdLogitsProcessor:
    """For mlx-lm: `generate(..., logits_processors=[ProdLogitsProcessor(matcher)])`, as the last one.

    mlx-lm shows processors the tokens of its own call: not the prompt if there is a `draft_model`, and not what a
    `prompt_cache` holds already. Both are read from the stack frames of mlx-lm's own loops, and refused. With
    `input_embeddings` and no prompt mlx-lm asks for the first token without any processor.
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
            eos_token_id: special tokens at which mlx-lm stops, such as one of `tokenizer.eos_token_ids`; default: the
                vocabulary's EOS.
            stop: the strings at which you cut the text, () if there are none; as for `guard.Guard`.
            json: as for `guard.Guard`.
            on_hit: called with each `Hit`, or an `AuditLog`.

        Raises:
            ProdError: no matcher, different vocabularies, or no EOS token.
        """
        self.guard = Guard(matchers, eos_token_id, stop=stop, json=json, on_hit=on_hit)

    def forget(self) -> None:
        """The next text is a prompt: for a prompt that is the last text with one token more."""
        self.guard.forget()

    def __call__(self, tokens: Any, logits: Any) -> Any:
        """Masked logits [1, V], float32, of the type of `logits`, an `mx.array`.

        Raises:
            ProdError: `logits` are not one row, a part of the text is hidden, or mlx-lm does not stop at EOS.
        """
        import mlx.core as mx

        if len(logits.shape) != 2 or logits.shape[0] != 1:
            raise ProdError(
                f"expected one row of logits [1, V] and its text, got {list(logits.shape)}: call this for each row"
            )
        text = np.array(tokens).reshape(-1)
        _check_history(sys._getframe(1), len(text))
        _check_text(sys._getframe(1))
        row = torch.tensor(np.array(logits.astype(mx.float32))).reshape(-1)
        return mx.array(self.guard.mask_(row, text).numpy()[None])


def _check_history(frame: FrameType | None, shown: int) -> None:
    """Refuse a text of which mlx-lm's loop shows `shown` tokens and has computed more."""
    while frame is not None and frame.f_globals.get("__name__") != "mlx_lm.generate":
        frame = frame.f_back
    while frame is not None and frame.f_globals.get("__name__") == "mlx_lm.generate":
        if frame.f_code.co_name == "speculative_generate_step":
            raise ProdError("expected the whole text, got no prompt, which draft_model hides: leave draft_model out")
        here = frame.f_locals
        cache = here.get("prompt_cache") or getattr(here.get("self"), "prompt_cache", None)
        if cache:
            # Further up, a batch does not say any more which of its rows this is.
            _refuse_hidden(_tokens_in(cache, here.get("e", 0)), shown)
            return
        frame = frame.f_back


def _check_text(frame: FrameType | None) -> None:
    """Refuse a detokenizer that leaves out spaces: `couldn't` is shown where ` n't` was written."""
    while frame is not None:
        here = frame.f_locals if frame.f_globals.get("__name__") == "mlx_lm.generate" else {}
        for name in ("detokenizer", "tokenizer"):
            shown = here.get(name)
            if getattr(shown, "clean_spaces", False) or getattr(shown, "clean_up_tokenization_spaces", False):
                raise ProdError(
                    "expected a tokenizer that leaves spaces as they are, got clean_up_tokenization_spaces=True, with "
                    "which mlx-lm removes some: set it to False"
                )
        frame = frame.f_back


def _refuse_hidden(held: int, shown: int) -> None:
    if held > shown:
        raise ProdError(
            f"expected the whole text, got {shown} tokens of it and {held} in prompt_cache: a pattern may begin in "
            "what is hidden; pass the whole prompt and no prompt_cache"
        )


def _tokens_in(cache: Sequence[Any], row: int) -> int:
    """The tokens of a row in the layers that count them; batches count each row's own."""
    held = 0
    for layer in cache:
        if (offset := getattr(layer, "offset", None)) is not None:
            counts = np.array(offset).reshape(-1)
            held = max(held, int(counts[row] if row < len(counts) else counts[0]))
    return held
