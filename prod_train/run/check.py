"""`prod-train check`: everything a run would do, once, and nothing of it kept."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prod_train.config.config import Config
from prod_train.config.schedule import Schedule
from prod_train.data.rows import Row, mark
from prod_train.model.modeling import trainable
from prod_train.model.projection import size_of
from prod_train.run.checkpoint import restore_model, restore_optimizer
from prod_train.run.job import Job, prepare
from prod_train.run.output import only_run, resume_from
from prod_train.run.session import Session, replacements, setup
from prod_train.run.trainer import train_step

# So many forget rows are given targets and one step; enough to see their sizes.
TRIED_ROWS = 16

# Of a cached target, for each supervised token: the mean on SmolLM2-135M and PROD.
TARGET_BYTES = 280


@dataclass(frozen=True)
class Preview:
    """What `check` found.

    Attributes:
        config: every value, defaults resolved.
        sets: for each data set: rows, tokens, supervised tokens, longest row in tokens, rows that were truncated.
        example: the first forget row as text, its supervised parts between `<<` and `>>`.
        replaced: the first row in which a replacement is written out, likewise; None without any.
        support: sizes of the target distributions of the first rows, in tokens: mean, median, p99, max; None without
            targets.
        moved: of the first rows, how many have replacements written out, at how many supervised tokens probability goes
            to one, and of how many; None without a blocklist that has any.
        parameters: of the model.
        trained: of them, those that train.
        steps: optimizer steps of the run.
        memory: estimates in bytes: weights, training (gradients and AdamW's two moments), activations, logits.
        step_loss: loss of one step, in nats.
        step_seconds: its time.
        peak: bytes: the highest that was allocated on the GPU, or None.
        notes: what makes the evidence weaker, a line each.
        seconds: of all steps together, if each takes as long as this one; without evaluations.
        disk: bytes that the output's directory may come to, estimated.
        recipe: what the recipe chose, a line each; empty without one.
    """

    config: dict[str, Any]
    sets: dict[str, dict[str, int]]
    example: str
    replaced: str | None
    support: dict[str, float] | None
    moved: dict[str, int] | None
    parameters: int
    trained: int
    steps: int
    memory: dict[str, int]
    step_loss: float
    step_seconds: float
    peak: int | None
    notes: tuple[str, ...]
    seconds: float
    disk: int
    recipe: tuple[str, ...] = ()


def check(config: Config) -> Preview:
    """Do a dry run; writes nothing to `config.output`.

    Raises:
        ProdError: whatever a run would raise before its first step.
    """
    config.validate()
    with only_run(Path(config.output)):
        pass  # no other run is writing there
    job = prepare(config)
    source = resume_from(job.config)
    with tempfile.TemporaryDirectory() as folder:
        resume = str(source.resolve()) if source else None
        dry = replace(config, cache=folder, output=folder, resume=resume, report_to="none")
        rows = job.forget[: max(TRIED_ROWS, config.batch_size * config.accumulate)]
        small = replace(
            job,
            config=dry,
            forget=rows,
            retain=job.retain[:TRIED_ROWS],
            holdout=[],
            refused=job.refused[: len(rows) * job.choices],
            replaced=job.replaced[:TRIED_ROWS],
            parted=job.parted[: len(rows)],
        )
        session = setup(small)
        optimizer = torch.optim.AdamW(trainable(session.model).values(), lr=config.rate)
        if source:
            restore_model(_with_all_rows(session, job), source)
        model, optimizer = session.accelerator.prepare(session.model, optimizer)
        if source:
            restore_optimizer(model, optimizer, source)
        begun = time.perf_counter()
        loss = float(train_step(session, model, optimizer, 0))
        seconds = time.perf_counter() - begun
    continued = len(session.job.continued)
    if not source:  # written behind some of the rows
        continued = continued * len(job.forget) // len(rows)
    per_epoch = -(-(len(job.trained) + continued) // session.schedule.step_rows)
    trained = job.trained[: len(job.forget)]
    weights = sum(p.numel() for p in session.model.parameters())
    steps = config.max_steps or max(1, round(config.epochs * per_epoch))
    return Preview(
        config.to_dict(),
        {name: _sizes(rows) for name, rows in (job.sets | {"forget": trained}).items()},
        mark(trained[0], job.tokenizer),
        mark(job.replaced[0], job.tokenizer) if job.replaced else None,
        _support(session),
        replacements(session),
        weights,
        sum(p.numel() for p in trainable(session.model).values()),
        steps,
        _memory(session, job),
        loss,
        seconds,
        torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        job.notes,
        steps * seconds,
        _disk(session, job),
    )


def _with_all_rows(session: Session, job: Job) -> Session:
    """The session as a run would have it, to be compared with what a checkpoint says of its run."""
    job = replace(
        session.job,
        forget=job.forget,
        replaced=job.replaced,
        parted=job.parted,
        retain=job.retain,
        holdout=job.holdout,
        refused=job.refused,
    )
    processes = session.accelerator.num_processes
    return replace(session, job=job, schedule=Schedule.of(job.config, len(job.trained), len(job.retain), processes))


def _sizes(rows: list[Row]) -> dict[str, int]:
    return {
        "rows": len(rows),
        "tokens": sum(len(row.ids) for row in rows),
        "supervised": sum(row.tokens for row in rows),
        "longest": max(len(row.ids) for row in rows),
        "truncated": sum(row.truncated for row in rows),
    }


def _support(session: Session) -> dict[str, float] | None:
    store = session.stores.get("forget")
    if store is None or store.kind != "targets":
        return None
    sizes = store.support_sizes()
    return {
        "mean": float(sizes.mean()),
        "median": float(np.median(sizes)),
        "p99": float(np.percentile(sizes, 99)),
        "max": float(sizes.max()),
    }


def _disk(session: Session, job: Job) -> int:
    """Rough: checkpoints, the result, and the reference's hidden states or targets, which are cached."""
    config, model = job.config, session.model
    weights: int = sum(p.numel() * p.element_size() for p in trainable(model).values())
    moments = 2 * weights
    width: int = model.config.get_text_config().hidden_size * next(iter(model.parameters())).element_size()
    kept: int = sum(row.tokens for rows in (job.retain, job.holdout[: config.eval_rows]) for row in rows)
    targets = TARGET_BYTES * sum(row.tokens for row in job.trained)
    cached = kept * width + targets + size_of(session.directions)
    return (config.save_total_limit + 1) * (weights + moments) + weights + cached


def _memory(session: Session, job: Job) -> dict[str, int]:
    """Rough sizes; activations as Korthikanti et al. (arXiv 2205.05198) count them, without the attention matrices."""
    config, model = job.config, session.model
    shape = model.config.get_text_config()
    longest = sorted((len(row.ids) for row in job.forget), reverse=True)[: config.batch_size]
    tokens = len(longest) * longest[0]
    width = next(iter(model.parameters())).element_size()
    layer = (2 if config.gradient_checkpointing else 17) * tokens * shape.hidden_size * width
    return {
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
        "training": sum(p.numel() * (p.element_size() + 8) for p in trainable(model).values())
        + size_of(session.directions),
        "activations": layer * shape.num_hidden_layers,
        "logits": 8 * min(config.chunk_size, tokens) * shape.vocab_size,
    }
