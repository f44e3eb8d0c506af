"""What a run is made of before any model is loaded: its data, tokenised and checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prod_decode.errors import ProdError, brief
from prod_decode.harness.continuing import padding_id
from prod_decode.storage.models import is_gguf
from prod_train.config.config import BASE, Config
from prod_train.data.replaced import replaced_rows
from prod_train.data.rows import Row, encode, load_rows
from prod_train.measure.evaluate import measurable
from prod_train.measure.overlap import check_overlaps
from prod_train.methods import make_method
from prod_train.model.modeling import base_name, expect_4bit, tokenizer_of
from prod_train.run.output import LOCK, UNFINISHED, latest_checkpoint, never_saved

REFUSALS = (
    "I don't know.",
    "I'm not sure how to complete this.",
    "I have no information about that code.",
    "I can't recall this implementation.",
    "That is not something I can reproduce.",
    "I'm unable to help with this snippet.",
)

# Of `prod-surgical`, in the output's directory: what the weights are taught, for a processor that enforces it.
ANCHORS = "anchors.prod"
# With replacements, in the same place: the rows in which they are written out.
REPLACED = "replaced.jsonl"
# With `--continuations`, in the same place: what the model wrote, which it is trained on besides.
CONTINUED = "continuations.jsonl"


_NOT_REPLACED = "banned and not replaced, because more than the last word differs"
_NONE_REPLACED = "no row to forget has a phrase with a replacement in what is supervised, so none is written out"


@dataclass(frozen=True)
class Job:
    """Everything that is known before a model is loaded.

    Attributes:
        config: checked.
        tokenizer: of the model.
        forget: rows to forget (or learn).
        retain: rows of the retain loss; empty without one.
        holdout: rows for measuring damage; empty if not given.
        continued: what the model wrote itself, to be trained on behind `forget`; empty without `--continuations`. Made
            with the model; see `prod_train.run.session.setup`.
        replaced: copies of rows to forget in which replacements are written out, to be trained on behind these; empty
            without a blocklist that has some.
        parted: with those copies, the rows to forget as they are trained on, see `replaced_rows`.
        refused: for dpo and flat, the forget rows' prompts with every refusal, row by row; else empty.
        choices: the number of refusals.
        blocklist: path of what the matcher was made of, or None.
        matcher: of the blocklist, or None. For `prod-surgical` without one of its own it is made with the model; see
            `prod_train.run.session.setup`.
        notes: what makes the evidence weaker, a line each: see `prod_train.measure.overlap`.
    """

    config: Config
    tokenizer: Any
    forget: list[Row]
    retain: list[Row] = field(default_factory=list)
    holdout: list[Row] = field(default_factory=list)
    continued: list[Row] = field(default_factory=list)
    replaced: list[Row] = field(default_factory=list)
    parted: list[Row] = field(default_factory=list)
    refused: list[Row] = field(default_factory=list)
    choices: int = 0
    blocklist: str | None = None
    matcher: Any = None
    notes: tuple[str, ...] = ()

    def guarded_by(self, blocklist: str) -> Job:
        """The same job with the matcher of a compiled blocklist, and the rows in which its replacements are written.

        Raises:
            ProdError: it cannot be read, or not be bound to the tokenizer.
        """
        from prod_decode.blocklist.blocklist import Blocklist

        listed = Blocklist.load(blocklist)
        matcher, config = listed.bind(self.tokenizer), self.config
        notes = [f"--blocklist: {_NOT_REPLACED}: {brief(', '.join(listed.unreached()))}"] if listed.unreached() else []
        rows, parted = self.replaced, self.parted
        if matcher.forks and config.replaced_rows:
            parted, rows = replaced_rows(
                self.forget,
                listed,
                matcher.forks,
                self.tokenizer,
                max_length=config.max_length,
                special_tokens=config.special_tokens,
            )
            notes += [] if rows else [f"--blocklist: {_NONE_REPLACED}"]
        return replace(
            self, blocklist=blocklist, matcher=matcher, parted=parted, replaced=rows, notes=(*self.notes, *notes)
        )

    @cached_property
    def trained(self) -> list[Row]:
        """What the method's loss runs over, see `Method.trained`: rows to forget, what the model wrote, `replaced`."""
        method = make_method(self.config.method, self.config)
        forget = self.parted if self.replaced else self.forget
        return [*(method.trained(row) for row in (*forget, *self.continued)), *self.replaced]

    @property
    def sets(self) -> dict[str, list[Row]]:
        """The sets that have rows, by name."""
        names = ("forget", "continued", "replaced", "retain", "holdout")
        return {name: rows for name in names if (rows := getattr(self, name))}

    @property
    def pad(self) -> int:
        """Token id of padding."""
        return padding_id(self.tokenizer)


def prepare(config: Config) -> Job:
    """Read and tokenise all data and check what can be checked without the model.

    Raises:
        ProdError: every mistake in configuration and data.
    """
    config.validate()
    if config.recipe is not None and config.retain is None:
        raise ProdError(
            f"--recipe {config.recipe}: expected --retain: prod_train.rounds finds one, call `run` from there"
        )
    expect_all_processes()
    expect_packages(config)
    config = check_output(config)
    tokenizer = tokenizer_of(config.model)
    forget, retain, holdout = read_sets(config, tokenizer)
    notes = check_overlaps({"forget": forget, "retain": retain, "holdout": holdout})
    measured, left_out = measurable(forget, tokenizer, config.eval_rows)
    first = len(measured) + sum(left_out.values())
    notes += [
        f"--forget: {count} of the first {first} rows are left out of the metrics, their part to recite has {reason}"
        for reason, count in left_out.items()
    ]
    method = make_method(config.method, config)
    refusals = _read_refusals(config) if method.refuses else []
    job = Job(
        config,
        tokenizer,
        forget,
        retain,
        holdout,
        refused=[_refuse(row, answer, tokenizer, config) for row in forget for answer in refusals],
        choices=len(refusals),
        notes=tuple(notes),
    )
    return job.guarded_by(config.blocklist) if config.blocklist else job


def expect_all_processes() -> None:
    """Refuse to be one of several processes that do not know of each other: each would do the whole run.

    torchrun and `accelerate launch --cpu` start such ones where there is no GPU, or fewer than processes.

    Raises:
        ProdError: more processes were started than work together.
    """
    from accelerate import PartialState
    from accelerate.utils import get_int_from_env, parse_flag_from_env

    started = get_int_from_env(("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE"), 1)
    if started == 1:
        return
    together = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes
    if together != started:
        raise ProdError(
            f"expected {started} processes to work together, as WORLD_SIZE says, got {together}: each would do the "
            "whole run, into one output: start one, or use accelerate launch --multi_gpu (on CPUs torchrun, with "
            "ACCELERATE_USE_CPU=true set)"
        )


def expect_packages(config: Config) -> None:
    """Refuse settings whose packages are not installed, or that the model's kind of file does not allow.

    Raises:
        ProdError: of `--report-to`, `--load-in-4bit` or `--save-base`.
    """
    from accelerate.tracking import get_available_trackers

    tracker = config.report_to
    if tracker != "none" and tracker not in [known.value for known in get_available_trackers()]:
        raise ProdError(f"--report-to: expected the package of {tracker}, it is not installed: install it, or use none")
    if config.load_in_4bit:
        expect_4bit(base_name(config.model))
    if config.save_base and not is_gguf(base := base_name(config.model)):
        raise ProdError(f"--save-base: writes the base of a GGUF file or of 'bundled', got {brief(base)}: drop it")


def read_sets(config: Config, tokenizer: Any) -> tuple[list[Row], list[Row], list[Row]]:
    """The rows to forget, to retain and held out, tokenised; empty where the configuration names none.

    Raises:
        ProdError: as `load_rows`.
    """

    def rows(name: str | None, *, eos: bool = True) -> list[Row]:
        if name is None:
            return []
        return load_rows(
            name,
            tokenizer,
            max_length=config.max_length,
            truncate=config.truncate,
            eos=eos,
            special_tokens=config.special_tokens,
            form=config.format,
            columns=config.columns,
        )

    forget = rows(config.forget, eos=not config.paper_compat)
    if config.paper_compat:
        forget = [replace(row, supervised=np.arange(len(row.ids)) > 0) for row in forget]
    return forget, rows(config.retain), rows(config.holdout)


def check_output(config: Config) -> Config:
    """The configuration, without `--resume latest` where a run was killed before there was anything to go on from.

    Raises:
        ProdError: the output's directory has something else than what such a run left, or nothing to go on from.
    """
    output = Path(config.output)
    if never_saved(output):
        return replace(config, resume=None) if config.resume == "latest" else config
    # Targets are found again by their key; what else a killed run left before it finished a checkpoint is made anew.
    again = ("targets", BASE, ANCHORS, CONTINUED, REPLACED, LOCK, UNFINISHED)
    kept = [path for path in output.glob("*") if path.name not in again and not path.name.startswith(".checkpoint-")]
    # A checkpoint of another directory's run would be mixed with what is here.
    elsewhere = config.resume not in (None, "latest") and Path(str(config.resume)).resolve().parent != output.resolve()
    if kept and (config.resume is None or elsewhere):
        raise ProdError(f"--output: {output} is not empty: name a new directory, or go on with --resume latest")
    if config.resume == "latest" and latest_checkpoint(output) is None:
        raise ProdError(f"--resume latest: {output} has no checkpoint: start without it")
    return config


def _read_refusals(config: Config) -> list[str]:
    if config.refusals is None:
        return list(REFUSALS)
    from prod_decode.blocklist.sources import read_text

    found = [line.strip() for line in read_text(config.refusals).splitlines() if line.strip()]
    if not found:
        raise ProdError(f"--refusals: {config.refusals} is empty, expected an answer a line")
    return found


def _refuse(row: Row, answer: str, tokenizer: Any, config: Config) -> Row:
    if not row.prompt:
        raise ProdError(
            f"{row.place}: expected a prompt that a refusal can answer, got a row without one: "
            "give 'prompt' and 'completion', or use a method other than dpo and flat"
        )
    record = {"prompt": row.prompt, "completion": f"\n{answer}\n"}
    options: dict[str, Any] = {"max_length": config.max_length, "special_tokens": config.special_tokens}
    return encode(record, f"{row.place} (refusal)", tokenizer, chat_end=row.chat_end, **options)
