"""The fused distillation loss over sparse targets, and the other objectives.

Public: `SparseTargets` and `distillation_loss`.
"""

from __future__ import annotations

from prod_train.loss.sparse import SparseTargets, distillation_loss

__all__ = ["SparseTargets", "distillation_loss"]
