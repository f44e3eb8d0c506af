"""What is asked of the reference model, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from prod_train.loss.sparse import SparseTargets

Kind = Literal["targets", "log_probs", "hidden"]


@dataclass(frozen=True, slots=True)
class Reference:
    """What the frozen reference model says of the N supervised positions of a batch; only what a method asks for.

    Attributes:
        targets: N rows.
        log_probs: float32 [N], log p_ref(label).
        hidden: [N, d], its hidden states.
    """

    targets: SparseTargets | None = None
    log_probs: Tensor | None = None
    hidden: Tensor | None = None
