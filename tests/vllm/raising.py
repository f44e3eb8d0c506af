"""A processor with a bug, for the test of what vLLM does then."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prod_decode.vllm import ProdLogitsProcessor


class Raising(ProdLogitsProcessor):
    """Raises at the first step."""

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Not what it should."""
        del logits, ctx
        raise RuntimeError("a bug in a logits processor")
