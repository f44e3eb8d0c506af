"""Calls in processes of their own, several at a time, each with its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from typing import Any

from prod_decode.errors import ProdError


def call_in_processes(function: Callable[..., int], calls: Iterable[tuple[Any, ...]], *, jobs: int) -> int:
    """Call a function with each tuple of arguments, at most `jobs` at the same time.

    Small products gain little from a second thread, and much from a second process. On 2 cores those of SmolLM2-135M in
    float32 for 20 rows take .10 to .13 s with two threads, and .14 s in each of two processes with one.

    Args:
        function: of a module; returns an exit status and prints why it is not 0.
        calls: its arguments, which are pickled.
        jobs: processes. Each has as many threads for torch as there are cores for it.

    Returns:
        0, or the first other status: then the other calls are ended, as they are if this process ends in any way.

    Raises:
        ProdError: a process was killed.
    """
    # Not forked: torch has threads.
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    waiting = iter(calls)
    running: dict[Any, multiprocessing.context.SpawnProcess] = {}  # by what tells that it has ended
    try:
        while True:
            while len(running) < jobs and (arguments := next(waiting, None)) is not None:
                process = context.Process(target=_call, args=(function, arguments, threads))
                process.start()
                running[process.sentinel] = process
            if not running:
                return 0
            for sentinel in wait(list(running)):
                process = running.pop(sentinel)
                process.join()
                if status := process.exitcode or 0:
                    if status < 0:
                        raise ProdError(
                            f"expected an exit status, a process was ended by signal {-status}: run it again, with "
                            "fewer --jobs if the memory did not suffice"
                        )
                    return status
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _call(function: Callable[..., int], arguments: tuple[Any, ...], threads: int) -> None:
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    sys.exit(function(*arguments))


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
