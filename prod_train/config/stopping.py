"""Stop rules: when a run has forgotten enough or lost too much, and which checkpoint is its result."""

from __future__ import annotations

import math
from typing import Any

from prod_train.config.config import Config

# In the table of docs/reference/training.md three measurements are below 1/3, at 4.0 to 6.9 nats of KL; the next is at
# .37.
COLLAPSED_AGREEMENT = 1 / 3
COLLAPSED_SILENCE = 0.5


def forgotten(metrics: dict[str, Any]) -> float:
    """1 - greedy recitation: what `--stop-at-forget` looks at."""
    return 1 - float(metrics["forget"]["recitation"]["value"])


def utility_drop(metrics: dict[str, Any]) -> float:
    """1 - top-1 agreement with the starting model on held-out code: what `--max-utility-drop` looks at."""
    return 1 - float(metrics["holdout"]["agreement"]["value"]) if metrics["holdout"] else 0.0


def collapse(before: dict[str, Any], metrics: dict[str, Any]) -> str:
    """What shows that a model has become useless, and the remedy; or "".

    Args:
        before: metrics of the starting model, which may have little to say after these prompts itself.
        metrics: of the model.
    """
    signs = []
    agreement = 1 - utility_drop(metrics)
    if agreement < COLLAPSED_AGREEMENT:
        signs.append(
            f"it agrees with the starting model on {agreement:.3f} of the held-out tokens, less than "
            f"{COLLAPSED_AGREEMENT:.3f}"
        )
    first, last = (record["forget"].get("empty_output", {"value": 0.0, "n": 0}) for record in (before, metrics))
    if last["value"] - first["value"] >= COLLAPSED_SILENCE:
        silent = [round(metric["value"] * metric["n"]) for metric in (last, first)]
        signs.append(f"{silent[0]} of {last['n']} outputs have no text, before it were {silent[1]}")
    if not signs:
        return ""
    return (
        f"collapsed: {'; '.join(signs)}: train again with a lower --learning-rate or fewer --epochs, or keep an "
        "earlier checkpoint with --max-utility-drop"
    )


def stop_reason(config: Config, metrics: dict[str, Any]) -> str:
    """Why training should stop now, or "".

    Training goes on forgetting as it goes on, and damage grows with it, so a drop that is too large ends the run.
    """
    if config.max_utility_drop is not None and utility_drop(metrics) > config.max_utility_drop:
        return f"utility fell by {utility_drop(metrics):.3f}, more than --max-utility-drop {config.max_utility_drop}"
    if config.stop_at_forget is not None and forgotten(metrics) >= config.stop_at_forget:
        return f"forgot {forgotten(metrics):.3f}, at least --stop-at-forget {config.stop_at_forget}"
    return ""


def choose(config: Config, history: list[dict[str, Any]]) -> int | None:
    """The step whose checkpoint is the result; None if no checkpoint obeys, or there is none.

    Without stop rules it is the last. Among those within `--max-utility-drop`: if some reached `--stop-at-forget`, the
    one of them that dropped least, else the one that forgot most. With a recipe that is the last one: in the runs
    that it is made from the last had forgotten most, which recitation alone, of a few rows, need not show.
    """
    if config.stop_at_forget is None and config.max_utility_drop is None:
        return int(history[-1]["step"]) if history else None
    most = math.inf if config.max_utility_drop is None else config.max_utility_drop
    obeying = [record for record in history if utility_drop(record) <= most]
    if not obeying:
        return None
    if config.recipe is not None and config.stop_at_forget is None:
        return int(obeying[-1]["step"])
    enough = [r for r in obeying if config.stop_at_forget is not None and forgotten(r) >= config.stop_at_forget]
    best = min(enough, key=utility_drop) if enough else max(obeying, key=forgotten)
    return int(best["step"])
