"""The three tasks: verbatim copying, insecure calls, deprecated interfaces."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bench.tasks.base import Sample, Score, Task
from prod_decode.errors import ProdError, did_you_mean

__all__ = ["TASKS", "Sample", "Score", "Task", "load_task"]

TASKS = {
    "copyright": "CopyrightTask",
    "insecure": "InsecureTask",
    "deprecated": "DeprecatedTask",
}


def load_task(name: str, *arguments: Any, **options: Any) -> Task[Any]:
    """A task by name; the rest goes to its `load`.

    Raises:
        ProdError: there is no such task, or its data cannot be used.
    """
    if name not in TASKS:
        raise ProdError(f"expected a task among {', '.join(TASKS)}, got {name!r}{did_you_mean(name, TASKS)}")
    task: Task[Any] = getattr(import_module(f"bench.tasks.{name}"), TASKS[name]).load(*arguments, **options)
    return task
