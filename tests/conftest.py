"""One Hypothesis profile, the same examples on every run; and what belongs to no single file."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Triton decides when it is imported whether kernels are compiled for a GPU or interpreted on the CPU. To test on a GPU:
# TRITON_INTERPRET=0 python -m pytest tests/prod_decode/device/test_bans.py
os.environ.setdefault("TRITON_INTERPRET", "1")

# Workers of xdist share the cores, in the processes that tests start too. With a thread for every core in each, threads
# wait for each other and burn processor time.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(workers))))

settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    max_examples=30,
)
# `make test-deep`
settings.register_profile("deep", parent=settings.get_profile("fixed"), max_examples=3000)
settings.load_profile("fixed")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: one that begins last, the demo of 8 minutes, leaves the other core idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Leave out of every collection of garbage what was imported: torch, transformers and some thousand tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On a machine that others use too, the small tensors of test_loss take 42 s with two threads and 7 s with one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
