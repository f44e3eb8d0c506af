"""`report.html`: what a run did, from the record in `report.json` alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from prod_decode.command.page import Html, element, page, table, warning
from prod_train.config.config import flag
from prod_train.config.stopping import forgotten
from prod_train.run.report import HEAD, INTERVALS, command_of, metric_rows, replaced_in_words

COMMAND = "prod-train run"
# More points than a screen has columns show nothing more: each then stands for the mean of several steps.
_MOST_POINTS = 600


def run_page(record: dict[str, Any]) -> str:
    """The page of a run.

    Args:
        record: what `report.json` holds.
    """
    config, history, chosen = record["config"], record["history"], record["chosen"]
    after = next((entry for entry in history if entry["step"] == chosen), None)
    what = "a LoRA adapter" if config["tuning"] == "lora" else "all weights"
    lead = f"The result is {what}, after step {chosen} of {history[-1]['step'] if history else 0}."
    if chosen is None:
        lead = "There is no result: no checkpoint that is left obeys the stop rules."
    notes = [element("p", element("strong", f"{record['verdict']}."))] if record.get("verdict") else []
    notes += [warning(record["collapsed"])] if record["collapsed"] else []
    if record["stopped"]:
        notes.append(element("p", f"Stopped early: {record['stopped']}."))
    if record.get("replaced"):
        notes.append(element("p", f"{replaced_in_words(record['replaced'])}."))
    if record["notes"]:
        notes.append(element("ul", *(element("li", note) for note in record["notes"])))
    return page(
        COMMAND,
        f"{config['model']}, after {command_of(config)}",
        lead,
        *notes,
        _section("What it knows", table(HEAD, metric_rows(record["before"], after), heads=1), element("p", INTERVALS)),
        *_course(record["before"], history, chosen),
        *_recipe(record),
        _section("Data", _data(record)),
        _section("Settings", table(["flag", "value"], _settings(config), heads=1)),
    )


def _section(title: str, *content: Html) -> Html:
    return element("section", element("h2", title), *content)


def _recipe(record: dict[str, Any]) -> Iterator[Html]:
    """What the recipe chose."""
    if record.get("recipe"):
        yield _section("What the recipe chose", element("ul", *(element("li", line) for line in record["recipe"])))


def _course(before: dict[str, Any], history: Sequence[dict[str, Any]], chosen: int | None) -> Iterator[Html]:
    """The loss over the steps, and what each evaluation found."""
    if not history:
        return
    rows = []
    for entry in history:
        holdout = entry["holdout"] or {}
        kept = (f"{holdout[name]['value']:.3f}" if name in holdout else "-" for name in ("loss", "kl", "agreement"))
        step = f"{entry['step']}{' (the result)' if entry['step'] == chosen else ''}"
        rows.append([step, f"{entry['epoch']:g}", f"{entry['loss']:.4f}", f"{forgotten(entry):.3f}", *kept])
    head = ["step", "epoch", "training loss", "1 - recitation", *(f"holdout {n}" for n in ("loss", "KL", "agreement"))]
    yield _section(
        "The course of training",
        loss_chart(history),
        *measured_charts(before, history),
        table(head, rows, heads=1, numeric=True),
    )


def loss_chart(history: Sequence[dict[str, Any]]) -> Html:
    """The loss of every step as a line, and the mean up to each evaluation as a dot.

    Args:
        history: records with `step`, `loss`, and, where every step's was kept, `losses` since the record before.
    """
    steps = [
        (entry["step"] - len(entry["losses"]) + at, loss)
        for entry in history
        for at, loss in enumerate(entry.get("losses", ()), 1)
        if math.isfinite(loss)
    ]
    means = [(entry["step"], entry["loss"]) for entry in history if math.isfinite(entry["loss"])]
    line = _thinned(steps) or means
    if not line:
        return warning("No loss was finite.")
    shown = [loss for _, loss in (*line, *means)]
    return _chart(
        "Training loss by step",
        "Dots: its mean since the evaluation before.",
        line,
        means,
        within=(min(shown), max(shown)),
        last=history[-1]["step"],
    )


def measured_charts(before: dict[str, Any], history: Sequence[dict[str, Any]]) -> Iterator[Html]:
    """What each evaluation found, from before the first step on: forgetting, and on other code KL and agreement.

    Args:
        before: metrics of the starting model.
        history: records with `step` and metrics.
    """
    found = [(0, before), *((entry["step"], entry) for entry in history)]
    curves: list[tuple[str, str, list[tuple[float, float]], float | None]] = [
        (
            "Forgetting by step: 1 - recitation",
            "1: nothing of what is to be forgotten is recited.",
            [(step, forgotten(entry)) for step, entry in found],
            1.0,
        )
    ]
    for name, title, meaning, highest in (
        ("kl", "KL on other code by step", "0: as the starting model, in nats per token.", None),
        ("agreement", "Agreement on other code by step", "1: every first choice is the starting model's.", 1.0),
    ):
        points = [(step, entry["holdout"][name]["value"]) for step, entry in found if entry["holdout"]]
        curves.append((title, meaning, points, highest))
    for title, meaning, points, highest in curves:
        finite = [point for point in points if math.isfinite(point[1])]
        if finite:
            top = max(value for _, value in finite) if highest is None else highest
            yield _chart(title, meaning, finite, finite, within=(0.0, top), last=history[-1]["step"])


def _chart(
    title: str,
    meaning: str,
    line: Sequence[tuple[float, float]],
    dots: Sequence[tuple[float, float]],
    *,
    within: tuple[float, float],
    last: float,
) -> Html:
    """A line and dots over the steps.

    The drawing is stretched to the width that there is. So its labels stand beside it, where they are not.

    Args:
        title: what is drawn.
        meaning: how it is read.
        line: (step, value).
        dots: likewise.
        within: the least and the greatest value that the drawing has room for.
        last: the last step.
    """
    low, high = within
    span = high - low or 1.0

    def at(step: float, value: float) -> str:
        return f"{1000 * step / last:.1f} {10 + 280 * (high - value) / span:.1f}"

    drawn = element(
        "svg",
        element("path", d="M" + " L".join(at(*point) for point in line)),
        # A line of no length has round ends, which stretching does not change.
        element("path", d=" ".join(f"M{at(*point)} h0" for point in dots), class_="means"),
        viewBox="0 0 1000 300",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}: from {line[0][1]:.4g} to {line[-1][1]:.4g}",
    )
    return element(
        "figure",
        element("figcaption", f"{title}. {meaning}"),
        element(
            "div",
            element("div", element("span", f"{high:.3g}"), element("span", f"{low:.3g}"), class_="values"),
            drawn,
            element("div", element("span", "step 0"), element("span", str(last)), class_="steps"),
            class_="chart",
        ),
    )


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / _MOST_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(step for step, _ in group) / len(group), sum(loss for _, loss in group) / len(group)) for group in groups
    ]


def _data(record: dict[str, Any]) -> Html:
    rows = [[name, str(found["rows"]), element("code", found["hash"])] for name, found in record["data"].items()]
    rows.append(["teacher", "", element("code", record["teacher"])])
    return table(["", "rows", "hash of the tokens, or of the teacher's weights"], rows, heads=1)


def _settings(config: dict[str, Any]) -> list[list[str]]:
    shown = {name: value for name, value in config.items() if value is not None and value is not False and value != []}
    return [[element("code", flag(name)), _setting(value)] for name, value in shown.items()]


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "yes" if value is True else str(value)
