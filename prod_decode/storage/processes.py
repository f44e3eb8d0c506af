"""Processes of this machine that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor


def pool_of(count: int, begin: Callable[..., object] | None = None, *arguments: object) -> ProcessPoolExecutor:
    """A pool of processes that calls `begin` in each of them first.

    A process whose parent was killed waits for work for ever: both ends of the pipe that it reads are its own.

    Args:
        count: how many.
        begin: a function of a module.
        arguments: of `begin`.
    """
    # Not forked: threads of numba and of the caller would be left behind in the middle of what they do.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (begin, arguments))


def _begin(begin: Callable[..., object] | None, arguments: tuple[object, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
