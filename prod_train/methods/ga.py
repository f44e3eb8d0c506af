"""Gradient ascent, bounded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prod_train.method import Example, Method
from prod_train.option import MAX_NLL

if TYPE_CHECKING:
    from torch import Tensor


class GA(Method):
    """Gradient ascent ("Knowledge Unlearning for Mitigating Privacy Risks in Language Models", arXiv 2210.01504).

        L = mean_t max(log p(y_t), -max_nll)

    The plain formula is `max_nll = inf`. It has no lower bound and ruins the model within steps, so by default a token
    that is already no likelier than a uniform guess, log V nats, is left alone.
    """

    name = "ga"
    rank = 4
    options = {MAX_NLL: None}

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        bound = self.settings.value("max_nll")
        if bound is None:
            bound = math.log(len(example.forget.head.weight))
        return example.forget.log_probs().clamp(min=-bound).sum() / example.denominator
