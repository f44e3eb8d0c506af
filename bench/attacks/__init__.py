"""Ways to get out again what a model was made to forget: what is put here is found (docs/guide/add-to-bench.md)."""

from __future__ import annotations

from collections.abc import Mapping

from bench.attacks.base import Attack
from prod_train.registry import classes_in

ATTACKS: Mapping[str, type[Attack]] = classes_in(__name__, __path__, Attack)
