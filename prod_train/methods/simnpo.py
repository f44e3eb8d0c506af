"""SimNPO: NPO without a reference model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prod_train.method import Example, Method
from prod_train.option import ANY, BETA, Option

if TYPE_CHECKING:
    from torch import Tensor

GAMMA = Option("gamma", float, "margin", "G", ANY)


class SimNPO(Method):
    """SimNPO (Fan et al., arXiv 2410.07163): NPO without a reference model, normalised by length.

    L = mean_rows -2/beta * log sigmoid(-beta/|y| * log p(y|x) - gamma)
    """

    name = "simnpo"
    rank = 7
    options = {BETA: 2.5, GAMMA: 0.0}
    per_row = True

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        import torch.nn.functional as F  # noqa: N812

        beta = self.settings.value("beta")
        mean = example.forget.row_sums(example.forget.log_probs()) / example.forget.row_sizes()
        total: Tensor = -2 / beta * F.logsigmoid(-beta * mean - self.settings.value("gamma")).sum()
        return total / example.denominator
