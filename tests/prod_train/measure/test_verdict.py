"""The verdict is what was measured, in words."""

from __future__ import annotations

from typing import Any

import pytest

from prod_train.measure.verdict import verdict


def metrics(verbatim: float, most: float | None, empty: float, agreement: float | None, n: int = 24) -> dict[str, Any]:
    return {
        "forget": {
            "verbatim": {"value": verbatim, "n": n},
            "verbatim_run": {"value": 1.0, "n": n} | ({} if most is None else {"most": most}),
            "empty_output": {"value": empty, "n": n},
        },
        "holdout": None if agreement is None else {"agreement": {"value": agreement}},
    }


BEFORE = metrics(23 / 24, 210, 0, 1)


@pytest.mark.parametrize(
    ("after", "rows", "said"),
    [
        (
            metrics(0, 59, 0, 0.98),
            24,
            "recites 0 of 24 rows, before 23; longest run 59 characters; other code: 0.98 of first choices unchanged",
        ),
        (
            metrics(1 / 24, 1, 0.5, None),
            1000,
            "recites 1 of the 24 rows of 1,000 that were measured, before 23; longest run 1 character; "
            "outputs without text: 12, before 0; other code: not measured, without --holdout",
        ),
        # As a report of an older version has it.
        (metrics(0, None, 0, 1), 24, "recites 0 of 24 rows, before 23; other code: 1.00 of first choices unchanged"),
        (None, 24, "there is no result"),
    ],
)
def test_what_is_said(after: dict[str, Any] | None, rows: int, said: str) -> None:
    assert verdict(BEFORE, after, rows) == said


def test_a_model_without_a_before() -> None:
    assert verdict(None, metrics(0.5, 100, 0.25, None, 4), 4) == (
        "recites 2 of 4 rows; longest run 100 characters; outputs without text: 1"
    )
