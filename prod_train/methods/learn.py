"""Ordinary fine-tuning, with which PROD's protocol begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prod_train.method import Example, Method

if TYPE_CHECKING:
    from torch import Tensor


class Learn(Method):
    """Ordinary fine-tuning: `L = mean_t -log p(y_t)`. The first half of PROD's protocol memorises the forget set so."""

    name = "learn"
    rank = 99
    forgets = False
    keeps_end = True

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        return -example.forget.log_probs().sum() / example.denominator
