"""Direct preference optimisation: a refusal over the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prod_train.method import Example, Method, given
from prod_train.option import BETA, REFUSALS

if TYPE_CHECKING:
    from torch import Tensor


class DPO(Method):
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290) of a refusal r over the forget set's answer y.

        L = mean_rows -log sigmoid(beta * (log(p(r|x) / p_ref(r|x)) - log(p(y|x) / p_ref(y|x))))

    As PROD's baseline does (arXiv 2506.17125), r is a random refusal; it is drawn anew each epoch.
    """

    name = "dpo"
    rank = 8
    options = {BETA: 0.1, REFUSALS: None}
    needs = "log_probs"
    refuses = True
    per_row = True

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        import torch.nn.functional as F  # noqa: N812

        forget, refusal, of_refusal = example.forget, given(example.refusal), given(example.refusal_reference)
        bad = forget.row_sums(forget.log_probs() - given(example.reference.log_probs))
        good = refusal.row_sums(refusal.log_probs() - given(of_refusal.log_probs))
        return -F.logsigmoid(self.settings.value("beta") * (good - bad)).sum() / example.denominator
