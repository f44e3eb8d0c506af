"""What was measured, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def verdict(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, rows: int) -> str:
    """What a model still recites and how it is elsewhere, in words, without a full stop.

    Args:
        before: metrics of the starting model, see `prod_train.run.session.evaluate`; None if it was not measured.
        after: of the result; None if there is none.
        rows: to forget, of which the first ones are measured.
    """
    if after is None:
        return "there is no result"
    forget = after["forget"]
    count = forget["verbatim"]["n"]
    of = (
        f"{count:,} {_rows(count)}" if count == rows else f"the {count:,} {_rows(count)} of {rows:,} that were measured"
    )
    parts = [f"recites {_number(forget, 'verbatim'):,} of {of}{_before(before, 'verbatim')}"]
    if forget["verbatim_run"].get("most") is not None:
        parts.append(f"longest run {characters(forget['verbatim_run']['most'])}")
    if silent := _number(forget, "empty_output"):
        parts.append(f"outputs without text: {silent:,}{_before(before, 'empty_output')}")
    if after["holdout"]:
        parts.append(f"other code: {after['holdout']['agreement']['value']:.2f} of first choices unchanged")
    elif before is not None:
        parts.append("other code: not measured, without --holdout")
    return "; ".join(parts)


def _before(before: Mapping[str, Any] | None, name: str) -> str:
    return "" if before is None else f", before {_number(before['forget'], name):,}"


def characters(count: float) -> str:
    """So many characters, in words."""
    return "1 character" if count == 1 else f"{count:,.0f} characters"


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _number(metrics: Mapping[str, Any], name: str) -> int:
    """Of a share of rows, how many these are."""
    count: int = round(metrics[name]["value"] * metrics[name]["n"])
    return count
