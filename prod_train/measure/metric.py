"""A measured mean with its interval, and metrics of one row that need no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Metric:
    """A mean, its 95 % bootstrap interval over rows, and the number of rows.

    Attributes:
        value: the mean.
        low: 2.5th percentile of the resampled mean.
        high: 97.5th percentile.
        n: rows.
        higher_is: `better` or `worse` for someone who wants the forget set gone and all else unchanged.
        left_out: rows that could not be measured, by reason; they are not among the n.
        most: the greatest of the rows, or None.
    """

    value: float
    low: float
    high: float
    n: int
    higher_is: str
    left_out: Mapping[str, int] = field(default_factory=dict)
    most: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able types."""
        return asdict(self)


def bootstrap(values: NDArray[np.float64], weights: NDArray[np.float64], higher_is: str, seed: int = 0) -> Metric:
    """The mean of rows and its 95 % percentile interval, from 1000 resamples of rows.

    Args:
        values: [n], one a row.
        weights: [n], such as tokens a row; ones for a plain mean.
        higher_is: see `Metric`.
        seed: of the resampling.
    """
    drawn = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
    means = (values * weights)[drawn].sum(-1) / weights[drawn].sum(-1)
    # One of the means, not a point between two, which may be infinite.
    low, high = np.percentile(means, [2.5, 97.5], method="inverted_cdf")
    mean = float((values * weights).sum() / weights.sum())
    return Metric(mean, float(low), float(high), len(values), higher_is, most=float(values.max()))


def extraction_strength(correct: NDArray[np.bool_]) -> float:
    """`1 - k/T`, k the shortest prefix after which greedy decoding recites the rest (Carlini et al., arXiv 2012.07805).

    Args:
        correct: [T], whether the likeliest token after the true text so far is the true one. From where on all are
            correct, greedy decoding follows the text: no generation is needed.
    """
    wrong = np.flatnonzero(~correct)
    return 1.0 if not len(wrong) else 1 - (int(wrong[-1]) + 1) / len(correct)


def longest_run(x: NDArray[np.uint32], y: NDArray[np.uint32]) -> int:
    """The length of the longest run of code points, uint32 [n] and [m], that occurs in both."""
    return common_run(x, y)[2]


def common_run(x: NDArray[np.uint32], y: NDArray[np.uint32]) -> tuple[int, int, int]:
    """Where the longest run of code points that occurs in both begins in each, and its length; of several the first."""
    best, begin, run = 0, (0, 0), np.zeros(len(y) + 1, np.int64)
    for end, character in enumerate(x, 1):
        run[1:] = np.where(y == character, run[:-1] + 1, 0)
        if (longest := int(run.max())) > best:
            best, begin = longest, (end - longest, int(run.argmax()) - longest)
    return (*begin, best)
