"""Where the steps of a build run: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from prod_decode.errors import ProdError, reason
from prod_decode.storage.processes import pool_of

_T = TypeVar("_T")
_R = TypeVar("_R")

# Seconds in which a cluster answers.
_ANSWERS = 10.0

# Steps that a Ray cluster is handed at a time for each of its processors: more would only wait there.
_WAITING = 4


class Local:
    """Processes of this machine."""

    def __init__(self, jobs: int = 1) -> None:
        """So many at a time; 1: this process."""
        if jobs < 1:
            raise ProdError(f"jobs: expected 1 or more, got {jobs}")
        self._jobs = jobs

    def run(self, step: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[tuple[int, _R]]:
        """As `build.Engine.run`."""
        if self._jobs == 1 or len(items) < 2:
            for number, item in enumerate(items):
                yield number, step(item)
            return
        with pool_of(min(self._jobs, len(items))) as pool:
            numbers = {pool.submit(step, item): number for number, item in enumerate(items)}
            try:
                for done in as_completed(numbers):
                    yield numbers[done], done.result()
            except BrokenProcessPool:
                raise ProdError(
                    "a process of the build was killed, perhaps for want of memory: use --resume, and fewer --jobs"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)


class Ray:
    """A Ray cluster, of which every machine reaches the sources and the work folder under the same names."""

    def __init__(self, address: str | None = None) -> None:
        """Connect.

        Args:
            address: of the cluster, as `ray.init` takes it; None: one of this machine, for this build.

        Raises:
            ProdError: Ray is not installed, or does not answer.
        """
        try:
            import ray
        except ImportError:
            raise ProdError(
                "the engine ray needs Ray: pip install 'prod-code-unlearning[ray]', or --engine local"
            ) from None
        self._ray: Any = ray
        if not ray.is_initialized():
            if address is not None:
                _knock(address)
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (ConnectionError, OSError, RuntimeError, ValueError) as error:
                raise ProdError(f"cannot reach Ray at {address or 'this machine'}: {reason(error)}") from None

    def run(self, step: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[tuple[int, _R]]:
        """As `build.Engine.run`; what ran on a machine that is gone runs again."""
        ray = self._ray
        remote = ray.remote(max_retries=5)(step_on_ray)
        most = max(1, int(_WAITING * ray.cluster_resources().get("CPU", 1)))
        waiting: dict[Any, int] = {}
        left = iter(enumerate(items))
        while True:
            while len(waiting) < most and (following := next(left, None)) is not None:
                waiting[remote.remote(step, following[1])] = following[0]
            if not waiting:
                return
            done, _ = ray.wait(list(waiting), num_returns=1)
            for reference in done:
                try:
                    made = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, ProdError) else error from None
                yield waiting.pop(reference), made


def _knock(address: str) -> None:
    """Refuse an address at which nobody answers: Ray waits for a minute, and ends the process.

    Raises:
        ProdError: there is nobody.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # `auto` and the like, of which Ray itself says that there is nothing
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS).close()
    except (OSError, OverflowError) as error:
        raise ProdError(
            f"cannot reach Ray at {address}: {reason(error)}; expected the HOST:PORT that `ray start --head` prints"
        ) from None


def step_on_ray(step: Callable[[_T], _R], item: _T) -> _R:
    """A step, as a Ray task."""
    return step(item)
