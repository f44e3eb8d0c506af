"""What a run did, and the model card that says so: with what, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prod_decode.storage.models import is_on_hub
from prod_train.config.config import Config
from prod_train.run.session import Session
from prod_train.targets.targets import rows_digest

FORGET = (
    "recitation",
    "verbatim",
    "verbatim_run",
    "exact_memorisation",
    "extraction_strength",
    "probability",
    "empty_output",
)
HOLDOUT = ("loss", "kl", "agreement")
REPLACED = ("writes_replacement", "writes_phrase")
HEAD = ("metric", "before", "after", "rows")
INTERVALS = "In parentheses: 95 % bootstrap intervals over rows. KL and agreement are with the starting model."
# What else than the name without underscores a reader is told.
_LABELS = {"verbatim_run": "verbatim run, characters", "loss": "loss, nats per token", "kl": "KL, nats per token"}


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        output: where the result lies.
        chosen: the step of the checkpoint that is the result, or None if none that is left obeyed the stop rules.
        before: metrics of the starting model.
        after: metrics of the result, or None.
        history: a record an evaluation.
        stopped: why training ended early, or "".
        notes: what makes the evidence weaker, a line each.
        collapsed: why the result is useless, or "".
        replaced: what became of the blocklist's replacements, or None without any: rows in which they are written out,
            supervised tokens at which probability goes to one, and all supervised tokens.
        verdict: what was measured, in words.
        recipe: what the recipe chose, a line each; empty without one.
    """

    output: Path
    chosen: int | None
    before: dict[str, Any]
    after: dict[str, Any] | None
    history: list[dict[str, Any]]
    stopped: str
    notes: tuple[str, ...] = ()
    collapsed: str = ""
    replaced: dict[str, int] | None = None
    verdict: str = ""
    recipe: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole:
    """The run that a round is part of, as its report tells it.

    Attributes:
        config: of all rounds together.
        recipe: what the recipe chose, a line each.
        earlier: what `report.json` holds of the round before, or None.
    """

    config: Config
    recipe: tuple[str, ...] = ()
    earlier: Mapping[str, Any] | None = None

    @property
    def steps(self) -> int:
        """Of the round before; those of this one are counted on from there."""
        return int(self.earlier["history"][-1]["step"]) if self.earlier else 0

    def history(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The evaluations of all rounds: steps and epochs go on, and each says which round it is of."""
        if self.earlier is None:
            return [dict(record) for record in records]
        before = self.earlier["history"]
        steps, epochs = before[-1]["step"], before[-1]["epoch"]
        later = [{**one, "step": one["step"] + steps, "epoch": one["epoch"] + epochs, "round": 2} for one in records]
        return [*({**one, "round": 1} for one in before), *later]


def model_card(session: Session, report: RunReport, whole: Whole) -> str:
    """Markdown with the front matter that the hub reads."""
    job, config = session.job, whole.config
    adapter = config.tuning == "lora"
    settings = {
        key: value
        for key, value in config.to_dict().items()
        if value is not None and value is not False and value != []
    }
    lines = [
        *card_head(config.model, "peft" if adapter else "transformers"),
        f"# {config.model}, after `{command_of(config.to_dict())}`",
        "",
        f"**{report.verdict}.**",
        "",
        f"{'A LoRA adapter' if adapter else 'All weights'}; step {report.chosen}"
        + (f"; stopped: {report.stopped}" if report.stopped else "")
        + ".",
        "",
        *([f"**{report.collapsed}.**", ""] if report.collapsed else []),
        table(report.before, report.after),
        "",
        INTERVALS,
        "",
        *(f"- {note}" for note in report.notes),
        *([""] if report.notes else []),
        *([f"{replaced_in_words(report.replaced)}.", ""] if report.replaced else []),
        *(f"- {line}" for line in report.recipe),
        *([""] if report.recipe else []),
        "| | rows | hash of the tokens |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {len(rows)} | `{rows_digest(rows)}` |" for name, rows in job.sets.items()]
    lines += [f"| teacher | | `{whole.earlier['teacher'] if whole.earlier else session.digest}` |", "", "```yaml"]
    lines += [f"{key}: {value}" for key, value in settings.items()]
    return "\n".join([*lines, "```", ""])


def card_head(base: str, library: str) -> list[str]:
    """The lines that a model card begins with, for the hub, which refuses a base that it does not have."""
    named = [f"base_model: {base}"] if is_on_hub(base) else []
    return ["---", *named, f"library_name: {library}", "tags: [unlearning, prod-train]", "---", ""]


def command_of(config: Mapping[str, Any]) -> str:
    """What made a result, for its title."""
    if config.get("recipe") is not None:
        return f"prod-train run --recipe {config['recipe']}"
    return f"prod-train run --method {config['method']}"


def replaced_in_words(replaced: Mapping[str, int]) -> str:
    """What became of the replacements, in one sentence without a full stop."""
    return (
        f"Replacements: probability is moved at {replaced['moved']:,} of {replaced['tokens']:,} supervised tokens; "
        f"{replaced['rows']:,} rows have them written out"
    )


def table(before: dict[str, Any], after: dict[str, Any] | None) -> str:
    """The metrics before and after, one a row, in Markdown."""
    head, *rows = (f"| {' | '.join(row)} |" for row in (HEAD, *metric_rows(before, after)))
    return "\n".join([head, "|---" * len(HEAD) + "|", *rows])


def metric_rows(before: Mapping[str, Any], after: Mapping[str, Any] | None) -> list[list[str]]:
    """The metrics before and after, one a row, in the columns of `HEAD`."""
    rows = []
    for group, names in (("forget", FORGET), ("replaced", REPLACED), ("holdout", HOLDOUT)):
        for name in names:
            first = (before.get(group) or {}).get(name)
            second = ((after or {}).get(group) or {}).get(name)
            if first:
                rows.append([f"{group} {label(name)}", _cell(first), _cell(second), _rows(first)])
    return rows


def label(name: str) -> str:
    """A metric as people read it, with its unit if it has one."""
    return _LABELS.get(name, name.replace("_", " "))


def _rows(metric: dict[str, Any]) -> str:
    """The number of rows, and of those that were left out, by reason."""
    left_out = (f"{count} left out: {reason}" for reason, count in metric.get("left_out", {}).items())
    return "; ".join([str(metric["n"]), *left_out])


def _cell(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "-"
    digits = 0 if metric["value"] > 10 else 3
    return f"{metric['value']:.{digits}f} ({metric['low']:.{digits}f}-{metric['high']:.{digits}f})"
