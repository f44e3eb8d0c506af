"""Hypothesis strategies, one section for each module under test. Sizes are small, odd values frequent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

# ---- masking: logits, prohibited sets, options --------------------------------------------------------------------

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# Multiples of 1/8 below 16: exact in every dtype, with many ties, and exact under shifts by whole numbers in float32.
GRID = st.integers(-127, 127).map(lambda i: i / 8)
# What a broken or masked model emits, and numbers at the ends of the dtypes.
SPECIAL = st.sampled_from([-np.inf, np.inf, np.nan, 0.0, -0.0, 65504.0, -65504.0, 1e30, -1e30, 3e38, -3e38, 1e-40])
ORDINARY = st.floats(-40, 40)


def shapes(max_columns: int = 24) -> st.SearchStrategy[tuple[int, ...]]:
    """[..., V] with no to three leading dimensions, some of them empty."""
    leading = st.lists(st.sampled_from([1, 2, 3, 2, 3, 0]), max_size=3).map(tuple)
    return st.tuples(leading, st.integers(1, max_columns)).map(lambda pair: (*pair[0], pair[1]))


@st.composite
def integers(draw: st.DrawFn, shape: tuple[int, ...], bound: int = 256) -> Tensor:
    """int64 below `bound` <= 256, all in one draw. `hypothesis.extra.numpy` is slower and makes most of them equal."""
    size = math.prod(shape)
    return torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.int64).reshape(shape) % bound


@st.composite
def logits(
    draw: st.DrawFn,
    elements: st.SearchStrategy[float] = GRID | ORDINARY | SPECIAL,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
) -> Tensor:
    """Logits with many ties, on the CPU. What is out of a dtype's range is +inf or -inf, as from a real model."""
    palette = torch.tensor(draw(st.lists(elements, min_size=1, max_size=12)), dtype=torch.float64)
    return palette[draw(integers(draw(shapes()), len(palette)))].to(draw(st.sampled_from(dtypes)))


@st.composite
def distinct_logits(draw: st.DrawFn) -> Tensor:
    """float32 logits, multiples of 1/4, no two equal in a row."""
    return draw(integers(draw(shapes()))).argsort(dim=-1, stable=True) / 4


@dataclass(frozen=True)
class Ban:
    """A prohibited set in one of the forms that the kernel takes, and as a bool tensor that tests can index."""

    form: Any
    mask: Tensor


@st.composite
def pairs(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """(rows, cols) into the flattened leading dimensions: any order, duplicates; NumPy arrays or tensors."""
    count = math.prod(shape[:-1])
    size = draw(st.integers(0, 2 * shape[-1])) if count else 0
    dtype = draw(st.sampled_from([torch.int64, torch.int32]))
    rows, cols = (draw(integers((size,), bound)).to(dtype) for bound in (max(count, 1), shape[-1]))
    if draw(st.booleans()):
        return rows, cols
    # As a matcher may hand them out: read-only, and views with any stride.
    views = rows.numpy()[::-1], cols.numpy()[::-1]
    views[0].flags.writeable = False
    return views


@st.composite
def bans(draw: st.DrawFn, shape: tuple[int, ...]) -> Ban:
    """A prohibited set for logits of that shape, in each of the three forms."""
    kind = draw(st.sampled_from(["pairs", "tokens", "mask"]))
    if kind == "mask":
        mask = draw(integers(shape)) < draw(st.integers(0, 256))
        return Ban(mask, mask)
    if kind == "tokens":
        tokens = draw(integers(shape[:-1], shape[-1] + 2)) - 2
        return Ban(tokens, tokens.unsqueeze(-1) == torch.arange(shape[-1]))
    rows, cols = draw(pairs(shape))
    mask = torch.zeros(math.prod(shape[:-1]), shape[-1], dtype=torch.bool)
    for row, col in zip(rows.tolist(), cols.tolist(), strict=True):
        mask[row, col] = True
    return Ban((rows, cols), mask.view(shape))


def options() -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments of `nucleus_support`; `prod_distribution` takes `alpha` besides."""
    return st.fixed_dictionaries(
        {
            "top_p": st.sampled_from([0.0, 0.8, 1.0, 2.0]) | st.floats(0, 1),
            "max_n": st.none() | st.integers(1, 9) | st.just(99),
            "temperature": st.none() | st.floats(0.05, 20),
        }
    )
