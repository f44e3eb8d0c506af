"""UNDIAL: distil the reference model with the label made less likely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prod_train.method import Example, Kind, Method, Recipe, given, targets_loss
from prod_train.option import BETA, MAX_N, TEMPERATURE, TOP_P

if TYPE_CHECKING:
    from torch import Tensor


class UNDIAL(Method):
    """UNDIAL (arXiv 2402.10052): distil the reference model with the label's logit lowered.

        L = mean_t -sum_v q_t(v) log p(v),  q_t = softmax(z_ref - beta * onehot(y))

    `top_p` below 1 keeps the nucleus of q only, renormalised, and makes the targets sparse; that is not in the paper.
    """

    name = "undial"
    rank = 2
    options = {TOP_P: 1.0, MAX_N: None, TEMPERATURE: None, BETA: 10.0}

    @property
    def kind(self) -> Kind:
        """Sparse targets for a nucleus; else hidden states, from which the logits are made again."""
        sparse = self.settings.value("top_p") < 1 or self.settings.value("max_n") is not None
        return "targets" if sparse else "hidden"

    def recipe(self) -> Recipe:
        """See `Method.recipe`."""
        return Recipe.of(self.settings, "beta")

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`; without the constant entropy of q where the whole vocabulary is kept."""
        if self.kind == "targets":
            return targets_loss(example)

        import torch

        def target(z: Tensor, labels: Tensor) -> Tensor:
            z[torch.arange(len(z), device=z.device), labels] -= self.settings.value("beta")
            return (z / (self.settings.value("temperature") or 1.0)).softmax(-1)

        forget = example.forget
        rows = forget.head.teach(forget.hidden, given(example.reference.hidden), forget.batch.labels, target)
        return rows.sum() / example.denominator
