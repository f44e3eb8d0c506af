"""What keeps prohibited text out while a model generates. Found where it is put (docs/guide/add-to-bench.md)."""

from __future__ import annotations

from collections.abc import Mapping

from bench.guards.base import Guard
from prod_train.registry import classes_in

GUARDS: Mapping[str, type[Guard]] = classes_in(__name__, __path__, Guard)  # type: ignore[type-abstract]
