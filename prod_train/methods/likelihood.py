"""Methods that push the likelihood of the forget set down, or, for `learn`, up."""

from __future__ import annotations

import math

from torch import Tensor

from prod_train.methods.base import Example, Method


class Learn(Method):
    """Ordinary fine-tuning: `L = mean_t -log p(y_t)`. The first half of PROD's protocol memorises the forget set so."""

    name = "learn"
    keeps_end = True

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        return -example.forget.log_probs().sum() / example.denominator


class GA(Method):
    """Gradient ascent ("Knowledge Unlearning for Mitigating Privacy Risks in Language Models", arXiv 2210.01504).

        L = mean_t max(log p(y_t), -max_nll)

    The plain formula is `max_nll = inf`. It has no lower bound and ruins the model within steps, so by default a token
    that is already no likelier than a uniform guess, log V nats, is left alone.
    """

    name = "ga"

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        bound = self.config.max_nll
        if bound is None:
            bound = math.log(len(example.forget.head.weight))
        return example.forget.log_probs().clamp(min=-bound).sum() / example.denominator


class GradDiff(GA):
    """Gradient difference (Liu et al., "Continual Learning and Private Unlearning", arXiv 2203.12817).

    `GA` on the forget set, bounded likewise, and a retain loss, which this method requires (default NLL):

        L = mean_forget max(log p, -max_nll) + retain_weight * mean_retain -log p
    """

    name = "graddiff"
