"""Negative preference optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prod_train.method import Example, Method, given
from prod_train.option import BETA

if TYPE_CHECKING:
    from torch import Tensor


class NPO(Method):
    """Negative preference optimisation (Zhang et al., arXiv 2404.05868), on log-probabilities of whole answers.

    L = mean_rows -2/beta * log sigmoid(-beta * (log p(y|x) - log p_ref(y|x)))
    """

    name = "npo"
    rank = 6
    options = {BETA: 0.1}
    needs = "log_probs"
    per_row = True

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        import torch.nn.functional as F  # noqa: N812

        beta = self.settings.value("beta")
        ratio = example.forget.row_sums(example.forget.log_probs() - given(example.reference.log_probs))
        total: Tensor = -2 / beta * F.logsigmoid(-beta * ratio).sum()
        return total / example.denominator
