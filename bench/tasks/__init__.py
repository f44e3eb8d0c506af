"""What must not come out: copies, insecure calls, old interfaces. See docs/guide/add-to-bench.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.tasks.base import Sample, Score, Setup, Task
from prod_train.registry import classes_in

__all__ = ["TASKS", "Sample", "Score", "Setup", "Task"]

TASKS: Mapping[str, type[Task[Any]]] = classes_in(__name__, __path__, Task)  # type: ignore[type-abstract]
