"""The adapter for mlx-lm; `docs/engines.md` is its manual. Not run against mlx-lm itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from prod_decode.guard import Guard
from prod_decode.matcher import Matcher


class ProdLogitsProcessor:
    """For mlx-lm: `generate(..., logits_processors=[ProdLogitsProcessor(matcher)])`, as the last one.

    With a `prompt_cache`, mlx-lm shows only the tokens of this call: a pattern may begin in the cached part unseen.
    """

    def __init__(self, *matchers: Matcher) -> None:
        self.guard = Guard(matchers)

    def __call__(self, tokens: Any, logits: Any) -> Any:
        """Masked logits [1, V], float32, of the type of `logits`, an `mx.array`."""
        import mlx.core as mx

        row = torch.tensor(np.array(logits.astype(mx.float32))).reshape(-1)
        return mx.array(self.guard.mask_(row, np.array(tokens)).numpy()[None])
