"""Tests that need vLLM; not collected where it is missing. `make test` runs them in an environment of their own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]

# The files that take longest, in order: two workers that begin with these end at the same time. In the order of the
# alphabet, one had nothing to do for the last 85 s.
_LONGEST = (
    "test_engine.py",
    "test_v2_engine.py",
    "test_server.py",
    "test_example.py",
    "test_start.py",
    "test_writer.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those first that take longest; the hook of tests/conftest.py has sorted before."""
    here = Path(__file__).parent
    ranks = {here / name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))
