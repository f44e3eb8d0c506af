"""Bake the PROD distribution into a model's weights.

Names are imported on first use, so `import prod_train` costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prod_train.loss import SparseTargets, distillation_loss

__all__ = ["SparseTargets", "distillation_loss"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("prod_train.loss"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
