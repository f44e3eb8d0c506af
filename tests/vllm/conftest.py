"""Tests that need vLLM; not collected where it is missing. `make test` runs them in an environment of their own."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]
