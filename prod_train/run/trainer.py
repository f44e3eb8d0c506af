"""A run: prepare -> setup -> fit -> finish. One loop on accelerate, exact under any split of the work.

Every optimizer step is a list of rows that depends only on the seed and the number of the step, and losses are divided
by the tokens (or rows) of the whole step. So these give the same weights, but for the order of additions:

    batch 8 x 1                          = batch 1 x 8 accumulated
    2 processes, batch 4                 = 1 process, batch 8
    N steps, killed anywhere, resumed    = N steps

The usual mean of means would weigh each token by the luck of its batch. transformers' Trainer was the other choice; it
pads uneven batches with rows of their own, so the second line does not hold there.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prod_decode.errors import ProdError
from prod_decode.storage.files import write_whole
from prod_train.config.config import Config, saved_config
from prod_train.config.schedule import learning_rate
from prod_train.config.stopping import choose, collapse, forgotten, stop_reason
from prod_train.data.rows import Row, by_length, collate
from prod_train.loss.objective import Pass
from prod_train.loss.retain import retain_loss
from prod_train.measure.verdict import verdict
from prod_train.method import Example, Reference
from prod_train.model.modeling import trainable
from prod_train.model.projection import projected
from prod_train.run.checkpoint import State, restore_model, restore_optimizer, save_checkpoint
from prod_train.run.job import Job, prepare
from prod_train.run.output import checkpoints, mark, only_run, resume_from
from prod_train.run.page import run_page
from prod_train.run.report import RunReport, Whole, label, model_card
from prod_train.run.session import Session, evaluate, replacements, seed_torch, setup, tell_before
from prod_train.targets.targets import rows_digest

_log = logging.getLogger(__name__)


def fit(session: Session, *, progress: bool = False) -> State:
    """Train to the end, or until a stop rule says so; evaluates and writes a checkpoint every `eval_every` epochs.

    Without `progress`, a tenth of the steps is a line in the log.

    Raises:
        ProdError: a gradient is not finite. Checkpoints before it stay.
    """
    config, accelerator, schedule = session.job.config, session.accelerator, session.schedule
    output = Path(config.output)
    parameters = list(trainable(session.model).values())
    optimizer = torch.optim.AdamW(parameters, lr=config.rate, weight_decay=config.weight_decay)
    state = State()
    source = resume_from(config)
    if source is not None:
        state = restore_model(session, source)
        mark(output, unfinished=True)  # not before: a checkpoint that is refused leaves nothing
    model, optimizer = accelerator.prepare(session.model, optimizer)
    if source is not None:
        restore_optimizer(model, optimizer, source)
    else:
        tell_before(accelerator, "what the starting model recites, and what it does elsewhere")
        session.before = evaluate(session)
    from tqdm import tqdm

    marks = set(schedule.evaluations(config.eval_every))
    bar = tqdm(
        total=schedule.steps,
        initial=state.step,
        desc=config.method,
        unit="step",
        disable=not (progress and accelerator.is_main_process),
    )
    tracked = config.report_to != "none"
    if tracked:
        plain = {k: v for k, v in config.to_dict().items() if isinstance(v, (str, int, float))}
        accelerator.init_trackers("prod-train", config=plain)
    tell_every = max(1, -(-schedule.steps // 10))  # where no bar shows that something is done
    losses: list[Tensor] = []
    begun = time.perf_counter()
    while state.step < schedule.steps and not state.stopped:
        losses.append(train_step(session, model, optimizer, state.step))
        state.step += 1
        bar.update()
        if accelerator.is_main_process and not progress and state.step % tell_every == 0 and state.step not in marks:
            seconds = time.perf_counter() - begun
            _log.info(
                "step %d of %d, epoch %g: %.0f s", state.step, schedule.steps, state.step / schedule.per_epoch, seconds
            )
        if tracked:
            rate = learning_rate(config, state.step - 1, schedule.steps)
            loss = float(_over_processes(accelerator, losses[-1:]))
            accelerator.log({"train/loss": loss, "train/learning_rate": rate}, step=state.step)
        if state.step in marks:
            seconds = time.perf_counter() - begun
            of_steps = _over_processes(accelerator, losses)
            mean = float(of_steps.mean())
            metrics = evaluate(session)
            record = {
                "step": state.step,
                "epoch": state.step / schedule.per_epoch,
                "loss": mean,
                "losses": of_steps.tolist(),
                "seconds": seconds,
                **metrics,
            }
            state.history.append(record)
            if accelerator.is_main_process:
                _log.info("%s", _summary(record, schedule.steps))
                if collapsed := collapse(session.before, metrics):
                    _log.warning("%s", collapsed)
            if tracked:
                accelerator.log(_flat(metrics), step=state.step)
            state.stopped = stop_reason(config, metrics)
            bar.set_postfix(loss=f"{mean:.3f}", recited=f"{1 - forgotten(metrics):.2f}")
            save_checkpoint(session, model, optimizer, state, output)
            losses, begun = [], time.perf_counter()
    bar.close()
    if tracked:
        accelerator.end_training()
    return state


def _flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Names such as `forget/recitation`, as trackers group them."""
    found = {f"{group}/{name}": metric for group, of in metrics.items() if of for name, metric in of.items()}
    left_out = {f"{name}/left_out": sum(metric["left_out"].values()) for name, metric in found.items()}
    return {name: metric["value"] for name, metric in found.items()} | {name: n for name, n in left_out.items() if n}


def _summary(record: dict[str, Any], steps: int) -> str:
    """One line an evaluation, for logs."""
    values = {**record["forget"], **record.get("replaced", {}), **(record["holdout"] or {})}
    shown = ("recitation", "extraction_strength", "writes_replacement", "writes_phrase", "loss", "kl", "agreement")
    words = {"loss": "holdout loss", "kl": "KL"}
    said = {words.get(name, label(name)): values[name]["value"] for name in shown if name in values}
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in said.items())
    left_out = sum(record["forget"]["recitation"]["left_out"].values())
    if left_out:
        metrics += f"; {left_out} forget rows left out"
    return (
        f"step {record['step']} of {steps}, epoch {record['epoch']:g}: training loss {record['loss']:.4f}, "
        f"{record['seconds']:.0f} s; {metrics}"
    )


@contextmanager
def _without_cudnn_attention() -> Iterator[None]:
    """Attention by torch's other kernels.

    With a mask, at lengths of 64 more than a multiple of 128, cuDNN's backward pass gives NaN for rows whose scores are
    all far below zero (pytorch/pytorch#196678). Qwen2.5-Coder-1.5B on an H200, torch 2.11, got NaN at a batch 64 wide.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@_without_cudnn_attention()
def train_step(session: Session, model: Any, optimizer: Any, step: int) -> Tensor:
    """One optimizer step; returns this process's part of its loss.

    Raises:
        ProdError: a gradient is not finite; the weights are as they were.
    """
    config, accelerator, schedule = session.job.config, session.accelerator, session.schedule
    seed_torch(config.seed + 1_000_003 * (step + 1) + accelerator.process_index)  # dropout; needs no state to resume
    model.train()
    rate = learning_rate(config, step, schedule.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=accelerator.device)
    parts = [(part, session.directions) for part in _forget_parts(session, model, step)]
    parts += [(part, {}) for part in _retain_parts(session, model, step)]
    for number, (part, directions) in enumerate(parts):
        last = number == len(parts) - 1
        with _maybe_sync(accelerator, model, sync=last), projected(directions):
            with accelerator.autocast():
                loss = part()
            # DistributedDataParallel averages over processes, and this is a sum.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    limit = math.inf if config.max_grad_norm is None else config.max_grad_norm
    norm = float(accelerator.clip_grad_norm_(trainable(model).values(), limit))
    if not math.isfinite(norm):
        raise ProdError(
            f"step {step + 1} of {schedule.steps}: expected finite gradients, got a norm of {norm} at a loss of "
            f"{total.item():.4g}: run it again with a lower --learning-rate or --dtype float32; checkpoints are kept"
        )
    optimizer.step()
    return total


def _maybe_sync(accelerator: Any, model: Any, *, sync: bool) -> Any:
    from contextlib import nullcontext

    return nullcontext() if sync else accelerator.no_sync(model)


def _forget_parts(session: Session, model: Any, step: int) -> list[Callable[[], Tensor]]:
    """The losses of a step on the forget set, one a backward pass; every process has as many, empty ones among them."""
    job, schedule = session.job, session.schedule
    rows = schedule.forget_rows(step)
    tokens = sum(job.trained[i].tokens for i in rows)
    denominator = float(len(rows) if session.method.per_row else tokens)
    epoch = step // schedule.per_epoch
    return [
        partial(_forget_loss, session, model, mine, denominator, epoch) for mine in _shares(session, rows, job.trained)
    ]


def _retain_parts(session: Session, model: Any, step: int) -> list[Callable[[], Tensor]]:
    """Those on the retain set, likewise."""
    job = session.job
    rows = session.schedule.retain_rows(step)
    tokens = float(sum(job.retain[i].tokens for i in rows))
    return [partial(_retain_loss, session, model, mine, tokens) for mine in _shares(session, rows, job.retain)]


def _shares(session: Session, numbers: list[int], rows: Sequence[Row]) -> list[list[int]]:
    """What this process has of each forward pass; the sum over a step does not depend on how it is cut."""
    rank, world = session.accelerator.process_index, session.accelerator.num_processes
    size = session.job.config.batch_size * world
    places = by_length([len(rows[i].ids) for i in numbers], size)
    return [[numbers[place] for place in some[rank::world]] for some in places]


def _forget_loss(session: Session, model: Any, rows: list[int], denominator: float, epoch: int) -> Tensor:
    job, method = session.job, session.method
    if not rows:
        return _nothing(session, model)
    passed = _run(session, model, [job.trained[i] for i in rows])
    reference = _reference(session, "forget", rows)
    if not method.refuses:
        return method.loss(Example(passed, reference, denominator))
    drawn = np.random.default_rng([job.config.seed, 7, epoch]).integers(0, job.choices, len(job.forget))
    numbers = [i * job.choices + int(drawn[i]) for i in rows]
    refusal = _run(session, model, [job.refused[i] for i in numbers])
    of_refusal = _reference(session, "refused", numbers)
    return method.loss(Example(passed, reference, denominator, refusal, of_refusal))


def _retain_loss(session: Session, model: Any, rows: list[int], denominator: float) -> Tensor:
    job = session.job
    if not rows:
        return _nothing(session, model)
    passed = _run(session, model, [job.retain[i] for i in rows])
    hidden = _reference(session, "retain", rows).hidden
    return job.config.retain_weight * retain_loss(job.config.keeps, passed, hidden, denominator)


def _run(session: Session, model: Any, rows: list[Row]) -> Pass:
    batch = collate(rows, session.job.pad).to(session.accelerator.device)
    return Pass(session.encoder(model, batch), session.encoder.head(), batch)


def _nothing(session: Session, model: Any) -> Tensor:
    """A loss of 0 that has been through the model: other processes wait for this one's gradients."""
    passed = _run(session, model, session.job.forget[:1])
    return (passed.hidden.float().sum() + passed.log_probs().sum()) * 0


def _reference(session: Session, name: str, rows: list[int]) -> Reference:
    store = session.stores.get(name)
    return Reference() if store is None else store.batch(rows, session.accelerator.device)


def _over_processes(accelerator: Any, losses: list[Tensor]) -> Tensor:
    """The losses of steps, float [n], of which each process has a part."""
    whole: Tensor = accelerator.reduce(torch.stack(losses), reduction="sum")
    return whole


def finish(session: Session, state: State, whole: Whole | None = None) -> RunReport:
    """Put the chosen checkpoint's model, model card, `report.json` and `report.html` into the output directory.

    Args:
        session: of the run, or of the last of its rounds.
        state: as `fit` left it.
        whole: the run that this round is part of, if it is one: what is written is of all its rounds.
    """
    config, whole = session.job.config, whole or Whole(session.job.config)
    output = Path(config.output)
    source, chosen = _chosen(config, state, whole)
    before = whole.earlier["before"] if whole.earlier else session.before
    history = whole.history(state.history)
    after = next((record for record in history if record["step"] == chosen), None)
    stopped = state.stopped or (str(whole.earlier["stopped"]) if whole.earlier else "")
    report = RunReport(
        output,
        chosen,
        before,
        after,
        history,
        stopped,
        session.job.notes,
        collapse(before, after) if after else "",
        replacements(session),
        verdict(before, after, len(session.job.forget)),
        whole.recipe,
    )
    if session.accelerator.is_main_process:
        if source is not None:
            for path in source.rglob("*"):
                if path.is_file() and path.name not in ("trainer.pt", "state.json"):
                    target = output / path.relative_to(source)
                    target.parent.mkdir(exist_ok=True)
                    with write_whole(target) as file, path.open("rb") as opened:
                        shutil.copyfileobj(opened, file)
            if whole.earlier is not None:  # that of the checkpoint is of one round
                replace(whole.config, dtype=saved_config(source / "config.yaml").dtype).save(output / "config.yaml")
            with write_whole(output / "README.md") as file:
                file.write(model_card(session, report, whole).encode())
        record = {
            "verdict": report.verdict,
            "chosen": chosen,
            "stopped": report.stopped,
            "notes": list(report.notes),
            "collapsed": report.collapsed,
            "replaced": report.replaced,
            "recipe": list(report.recipe),
            "before": before,
            "history": history,
            "config": whole.config.to_dict(),
            "teacher": whole.earlier["teacher"] if whole.earlier else session.digest,
            "data": {name: {"rows": len(rows), "hash": rows_digest(rows)} for name, rows in session.job.sets.items()},
        }
        for name, text in (("report.html", run_page(record)), ("report.json", json.dumps(record, indent=1))):
            with write_whole(output / name) as file:
                file.write(text.encode())
    session.accelerator.wait_for_everyone()
    return report


def _chosen(config: Config, state: State, whole: Whole) -> tuple[Path | None, int | None]:
    """The checkpoint that is the result, and its step among those of all rounds; of the round before if none obeys."""
    output = Path(config.output)
    kept = checkpoints(output)
    if (resumed := resume_from(config)) is not None:
        kept = checkpoints(resumed.parent) | kept
    step = choose(config, [record for record in state.history if record["step"] in kept])
    if step is not None:
        return kept[step], step + whole.steps
    if whole.earlier is None:
        return None, None
    return checkpoints(Path(config.model))[whole.earlier["chosen"]], int(whole.earlier["chosen"])


def run(config: Config, *, progress: bool = False) -> RunReport:
    """Everything: data, targets, training, result. The function behind `prod-train run` without a recipe.

    Raises:
        ProdError: a mistake of the user; another run writes to `output`; or the disk does not take what is written.
            `output` has at most complete checkpoints, cached targets, anchors and continuations then.
    """
    config.validate()
    with only_run(Path(config.output)):
        job = prepare(config)
        if job.config.resume is None:
            mark(Path(config.output), unfinished=True)
        return train(job, progress=progress)


def train(job: Job, whole: Whole | None = None, *, progress: bool = False) -> RunReport:
    """A run, or a round of one, in a directory that no other run writes to; see `run`."""
    session = setup(job, progress=progress)
    report = finish(session, fit(session, progress=progress), whole)
    mark(Path(job.config.output), unfinished=False)
    return report
