"""Ways to forget, each a small class with its formula and source."""

from __future__ import annotations

from prod_decode.errors import ProdError
from prod_train.config.config import METHODS, Config
from prod_train.methods.base import Example, Method
from prod_train.methods.distillation import CEU, PROD, UNDIAL, Surgical
from prod_train.methods.likelihood import GA, GradDiff, Learn
from prod_train.methods.preference import DPO, FLAT, NPO, SimNPO
from prod_train.methods.retain import retain_loss
from prod_train.targets.reference import Reference

__all__ = [
    "CEU",
    "DPO",
    "FLAT",
    "GA",
    "NPO",
    "PROD",
    "UNDIAL",
    "Example",
    "GradDiff",
    "Learn",
    "Method",
    "Reference",
    "SimNPO",
    "Surgical",
    "make_method",
    "retain_loss",
]

_CLASSES: dict[str, type[Method]] = {
    cls.name: cls for cls in (PROD, Surgical, UNDIAL, CEU, GA, GradDiff, NPO, SimNPO, DPO, FLAT, Learn)
}


def make_method(config: Config) -> Method:
    """The method a configuration names, with its settings.

    Raises:
        ProdError: an unknown name.
    """
    if config.method not in _CLASSES:
        raise ProdError(f"--method: expected {', '.join(METHODS)}, got {config.method!r}")
    return _CLASSES[config.method](config)
