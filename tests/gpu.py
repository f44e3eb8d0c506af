"""What runs Triton's kernels in the tests: a GPU, or the interpreter on the CPU; see tests/conftest.py."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

from tests.interpreter import quicken

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
KERNEL_DEVICE = "cpu" if INTERPRETED else "cuda"

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs the package triton")
needs_kernels = pytest.mark.skipif(
    find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs the package triton, and a GPU if TRITON_INTERPRET is 0",
)

if INTERPRETED and find_spec("triton") is not None:
    quicken()
