"""FLAT: a refusal over the answer, with token probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prod_train.method import Example, Method, given
from prod_train.option import REFUSALS

if TYPE_CHECKING:
    from torch import Tensor


class FLAT(Method):
    """FLAT ("LLM Unlearning via Loss Adjustment with Only Forget Data", arXiv 2410.11143), with the KL divergence.

        L = mean_rows -P(r|x) + exp(P(y|x) - 1),  P(a|x) = mean_t p(a_t)

    P is a mean of token probabilities, not a log-probability; the refusal r is drawn anew each epoch.
    """

    name = "flat"
    rank = 9
    options = {REFUSALS: None}
    refuses = True
    per_row = True

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        both = (example.forget, given(example.refusal))
        bad, good = (p.row_sums(p.log_probs().exp()) / p.row_sizes() for p in both)
        return ((bad - 1).exp() - good).sum() / example.denominator
