"""Methods that compare whole answers: with the reference model's, or with a refusal."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from prod_train.methods.base import Example, Method, given


class NPO(Method):
    """Negative preference optimisation (Zhang et al., arXiv 2404.05868), on log-probabilities of whole answers.

    L = mean_rows -2/beta * log sigmoid(-beta * (log p(y|x) - log p_ref(y|x)))
    """

    name = "npo"
    needs = "log_probs"
    per_row = True

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        beta = self.config.strength
        ratio = example.forget.row_sums(example.forget.log_probs() - given(example.reference.log_probs))
        return -2 / beta * F.logsigmoid(-beta * ratio).sum() / example.denominator


class SimNPO(Method):
    """SimNPO (Fan et al., arXiv 2410.07163): NPO without a reference model, normalised by length.

    L = mean_rows -2/beta * log sigmoid(-beta/|y| * log p(y|x) - gamma)
    """

    name = "simnpo"
    per_row = True

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        beta = self.config.strength
        mean = example.forget.row_sums(example.forget.log_probs()) / example.forget.row_sizes()
        return -2 / beta * F.logsigmoid(-beta * mean - self.config.gamma).sum() / example.denominator


class DPO(Method):
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290) of a refusal r over the forget set's answer y.

        L = mean_rows -log sigmoid(beta * (log(p(r|x) / p_ref(r|x)) - log(p(y|x) / p_ref(y|x))))

    As PROD's baseline does (arXiv 2506.17125), r is a random refusal; it is drawn anew each epoch.
    """

    name = "dpo"
    needs = "log_probs"
    refuses = True
    per_row = True

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        forget, refusal, of_refusal = example.forget, given(example.refusal), given(example.refusal_reference)
        bad = forget.row_sums(forget.log_probs() - given(example.reference.log_probs))
        good = refusal.row_sums(refusal.log_probs() - given(of_refusal.log_probs))
        return -F.logsigmoid(self.config.strength * (good - bad)).sum() / example.denominator


class FLAT(Method):
    """FLAT ("LLM Unlearning via Loss Adjustment with Only Forget Data", arXiv 2410.11143), with the KL divergence.

        L = mean_rows -P(r|x) + exp(P(y|x) - 1),  P(a|x) = mean_t p(a_t)

    P is a mean of token probabilities, not a log-probability; the refusal r is drawn anew each epoch.
    """

    name = "flat"
    refuses = True
    per_row = True

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        both = (example.forget, given(example.refusal))
        bad, good = (p.row_sums(p.log_probs().exp()) / p.row_sizes() for p in both)
        return ((bad - 1).exp() - good).sum() / example.denominator
