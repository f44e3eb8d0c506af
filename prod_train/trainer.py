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
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prod_decode.artifact import write_whole
from prod_decode.errors import ProdError
from prod_train.config import Config
from prod_train.data import Row, collate, encode, load_rows
from prod_train.evaluate import Metric, evaluate_forget, evaluate_holdout, padding_id
from prod_train.methods import Example, Method, Reference, make_method, retain_loss
from prod_train.modeling import (
    add_adapter,
    check_gradients,
    compute_dtype,
    enable_checkpointing,
    load_base,
    tokenizer_of,
    trainable,
)
from prod_train.objective import Encoder, Pass
from prod_train.targets import Recipe, ReferenceStore, model_digest, rows_digest

_log = logging.getLogger(__name__)

REFUSALS = (
    "I don't know.",
    "I'm not sure how to complete this.",
    "I have no information about that code.",
    "I can't recall this implementation.",
    "That is not something I can reproduce.",
    "I'm unable to help with this snippet.",
)


# --- data, before any model ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """Everything that is known before a model is loaded.

    Attributes:
        config: checked.
        tokenizer: of the model.
        forget: rows to forget (or learn).
        retain: rows of the retain loss; empty without one.
        holdout: rows for measuring damage; empty if not given.
        refused: for dpo and flat, the forget rows' prompts with every refusal, row by row; else empty.
        choices: the number of refusals.
        matcher: of the blocklist, or None.
    """

    config: Config
    tokenizer: Any
    forget: list[Row]
    retain: list[Row] = field(default_factory=list)
    holdout: list[Row] = field(default_factory=list)
    refused: list[Row] = field(default_factory=list)
    choices: int = 0
    matcher: Any = None

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
    _check_output(config)
    tokenizer = tokenizer_of(config.model)

    def rows(name: str | None, *, eos: bool = True) -> list[Row]:
        if name is None:
            return []
        return load_rows(name, tokenizer, max_length=config.max_length, truncate=config.truncate, eos=eos)

    forget = rows(config.forget, eos=not config.paper_compat)
    if config.paper_compat:
        forget = [replace(row, supervised=np.arange(len(row.ids)) > 0) for row in forget]
    method = make_method(config)
    refusals = _read_refusals(config) if method.refuses else []
    matcher = None
    if config.blocklist:
        from prod_decode.blocklist import Blocklist

        matcher = Blocklist.load(config.blocklist).bind(tokenizer)
    return Job(
        config,
        tokenizer,
        forget,
        rows(config.retain),
        rows(config.holdout),
        [_refuse(row, answer, tokenizer, config.max_length) for row in forget for answer in refusals],
        len(refusals),
        matcher,
    )


def _check_output(config: Config) -> None:
    output = Path(config.output)
    if config.resume is None and output.is_dir() and any(path.name != "targets" for path in output.iterdir()):
        raise ProdError(f"--output: {output} is not empty: name a new directory, or go on with --resume latest")
    if config.resume == "latest" and latest_checkpoint(output) is None:
        raise ProdError(f"--resume latest: {output} has no checkpoint: start without it")


def _read_refusals(config: Config) -> list[str]:
    if config.refusals is None:
        return list(REFUSALS)
    from prod_decode.sources import read_text

    found = [line.strip() for line in read_text(config.refusals).splitlines() if line.strip()]
    if not found:
        raise ProdError(f"--refusals: {config.refusals} is empty, expected an answer a line")
    return found


def _refuse(row: Row, answer: str, tokenizer: Any, max_length: int) -> Row:
    if not row.prompt:
        raise ProdError(
            f"{row.place}: expected a prompt that a refusal can answer, got a row without one: "
            "give 'prompt' and 'completion', or use a method other than dpo and flat"
        )
    record = {"prompt": row.prompt, "completion": f"\n{answer}\n"}
    return encode(record, f"{row.place} (refusal)", tokenizer, max_length=max_length)


# --- schedule: which rows a step takes; depends on nothing but the seed ----------------------------------------------


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which rows every optimizer step takes.

    Attributes:
        rows: of the forget set.
        retain: rows of the retain set, 0 without one.
        step_rows: rows an optimizer step, over all processes and accumulation.
        steps: optimizer steps.
        seed: of the order.
    """

    rows: int
    retain: int
    step_rows: int
    steps: int
    seed: int

    @classmethod
    def of(cls, config: Config, rows: int, retain: int, processes: int) -> Schedule:
        """The schedule of a run."""
        step_rows = config.batch_size * config.accumulate * processes
        per_epoch = -(-rows // step_rows)
        steps = config.max_steps or max(1, round(config.epochs * per_epoch))
        return cls(rows, retain, step_rows, steps, config.seed)

    @property
    def per_epoch(self) -> int:
        """Optimizer steps an epoch; the last one of an epoch may have fewer rows."""
        return -(-self.rows // self.step_rows)

    def forget_rows(self, step: int) -> list[int]:
        """The forget rows of a step, counted from 0."""
        epoch, within = divmod(step, self.per_epoch)
        order = _order(self.rows, self.seed, epoch)
        return order[within * self.step_rows : (within + 1) * self.step_rows]

    def retain_rows(self, step: int) -> list[int]:
        """The retain rows of a step: as many, going round the retain set in another order each time."""
        if not self.retain:
            return []
        found = []
        for index in range(step * self.step_rows, step * self.step_rows + len(self.forget_rows(step))):
            turn, within = divmod(index, self.retain)
            found.append(_order(self.retain, self.seed + 1, turn)[within])
        return found

    def evaluations(self, every: float) -> list[int]:
        """The numbers of completed steps after which to evaluate, the last step among them."""
        marks = (round(k * every * self.per_epoch) for k in range(1, int(self.steps / (every * self.per_epoch)) + 1))
        return sorted({mark for mark in marks if 1 <= mark < self.steps} | {self.steps})


def _order(count: int, seed: int, turn: int) -> list[int]:
    order: list[int] = np.random.default_rng([seed, turn]).permutation(count).tolist()
    return order


def learning_rate(config: Config, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then as `--scheduler` says."""
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return config.rate * (step + 1) / warm
    left = (step - warm) / max(1, steps - warm)
    factor = {"constant": 1.0, "linear": 1 - left, "cosine": 0.5 * (1 + math.cos(math.pi * left))}[config.scheduler]
    return config.rate * factor


# --- the model and what the reference says ---------------------------------------------------------------------------


@dataclass
class Session:
    """A run that is ready to train.

    Attributes:
        job: the data.
        accelerator: of accelerate; it knows the processes and devices.
        model: with its adapter, not wrapped.
        encoder: attached to the model.
        method: the loss.
        stores: the reference's words, by name: forget, refused, retain, holdout.
        digest: of the reference model's weights.
        schedule: which rows when.
        before: metrics of the starting model.
    """

    job: Job
    accelerator: Any
    model: Any
    encoder: Encoder
    method: Method
    stores: dict[str, ReferenceStore]
    digest: str
    schedule: Schedule
    before: dict[str, Any] = field(default_factory=dict)


def make_accelerator(config: Config) -> Any:
    """The processes and devices, as `accelerate launch` set them up; one process without it."""
    from accelerate import Accelerator

    mixed = config.tuning == "full" and compute_dtype(config) == torch.bfloat16
    return Accelerator(mixed_precision="bf16" if mixed else "no")


def setup(job: Job, accelerator: Any = None, *, progress: bool = False) -> Session:
    """Load the model, make or load what the reference says, attach the adapter and check that it learns.

    Raises:
        ProdError: the model cannot be loaded or trained as configured.
    """
    config = job.config
    accelerator = accelerator or make_accelerator(config)
    _seed(config.seed)
    model = load_base(config, accelerator.device)
    encoder = Encoder(model, config.chunk_size)
    digest = model_digest(model)
    if config.tuning == "lora":
        model = add_adapter(model, config)
        if Path(config.model, "adapter_config.json").is_file():
            digest = model_digest(model)
    method = make_method(config)
    identity = f"{digest} {compute_dtype(config)} 4bit={config.load_in_4bit}"
    stores = reference_stores(job, method, identity)
    fill_stores(stores, job, encoder, model, accelerator, progress=progress)
    if config.gradient_checkpointing:
        enable_checkpointing(model)
    check_gradients(model, encoder, job.forget[: config.batch_size], job.pad)
    schedule = Schedule.of(config, len(job.forget), len(job.retain), accelerator.num_processes)
    return Session(job, accelerator, model, encoder, method, stores, digest, schedule)


def reference_stores(job: Job, method: Method, identity: str) -> dict[str, ReferenceStore]:
    """What a run needs of the reference model: by name (forget, refused, retain, holdout), not yet made.

    Args:
        job: the data.
        method: its `kind` says what of the forget set.
        identity: of the reference model; part of each store's key.
    """
    folder, config = job.config.target_folder, job.config
    stores = {}
    if method.kind is not None:
        recipe = Recipe.of(config) if method.kind == "targets" else None
        stores["forget"] = ReferenceStore(folder, method.kind, job.forget, identity, recipe, config.blocklist)
        if job.refused:
            stores["refused"] = ReferenceStore(folder, method.kind, job.refused, identity)
    if job.retain and config.keeps == "kl":
        stores["retain"] = ReferenceStore(folder, "hidden", job.retain, identity)
    if job.holdout:
        stores["holdout"] = ReferenceStore(folder, "hidden", job.holdout[: config.eval_rows], identity)
    return stores


def fill_stores(
    stores: dict[str, ReferenceStore], job: Job, encoder: Encoder, model: Any, accelerator: Any, *, progress: bool
) -> None:
    """Every process makes its share; then each loads all, making what another machine did not share with it."""
    model.eval()
    eos = job.tokenizer.eos_token_id if job.tokenizer.eos_token_id is not None else job.pad
    rank, world = accelerator.process_index, accelerator.num_processes
    for part in ((rank, world), (0, 1)) if world > 1 else ((0, 1),):
        for store in stores.values():
            store.fill(
                encoder,
                model,
                pad=job.pad,
                eos=eos,
                batch_size=job.config.eval_batch_size,
                matcher=job.matcher,
                part=part,
                progress=progress and accelerator.is_main_process,
            )
        accelerator.wait_for_everyone()


def evaluate(session: Session) -> dict[str, Any]:
    """Metrics of the model as it is: {"forget": {name: metric}, "holdout": {name: metric} or None}."""
    job, config, model = session.job, session.job.config, session.model
    forget = evaluate_forget(
        model, session.encoder, job.tokenizer, job.forget[: config.eval_rows], batch_size=config.eval_batch_size
    )
    found: dict[str, Any] = {"forget": _plain(forget), "holdout": None}
    if "holdout" in session.stores:
        rows = job.holdout[: config.eval_rows]
        holdout = evaluate_holdout(
            model, session.encoder, rows, session.stores["holdout"], pad=job.pad, batch_size=config.eval_batch_size
        )
        found["holdout"] = _plain(holdout)
    return found


def _plain(metrics: dict[str, Metric]) -> dict[str, Any]:
    return {name: metric.to_dict() for name, metric in metrics.items()}


def forgotten(metrics: dict[str, Any]) -> float:
    """1 - greedy recitation: what `--stop-at-forget` looks at."""
    return 1 - float(metrics["forget"]["recitation"]["value"])


def utility_drop(metrics: dict[str, Any]) -> float:
    """1 - top-1 agreement with the starting model on held-out code: what `--max-utility-drop` looks at."""
    return 1 - float(metrics["holdout"]["agreement"]["value"]) if metrics["holdout"] else 0.0


# --- training --------------------------------------------------------------------------------------------------------


@dataclass
class State:
    """Where a run stands; kept in every checkpoint.

    Attributes:
        step: optimizer steps done.
        history: one record an evaluation: step, epoch, metrics, mean loss since the last one, seconds.
        stopped: why training ended before its last step, or "".
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""


def fit(session: Session, *, progress: bool = False) -> State:
    """Train to the end, or until a stop rule says so; evaluates and writes a checkpoint every `eval_every` epochs."""
    config, accelerator, schedule = session.job.config, session.accelerator, session.schedule
    output = Path(config.output)
    parameters = list(trainable(session.model).values())
    optimizer = torch.optim.AdamW(parameters, lr=config.rate, weight_decay=config.weight_decay)
    state = State()
    source = _resume_from(config)
    if source is not None:
        state = _restore_model(session, source)
    model, optimizer = accelerator.prepare(session.model, optimizer)
    if source is not None:
        _restore_optimizer(model, optimizer, source)
    else:
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
    losses: list[Tensor] = []
    begun = time.perf_counter()
    while state.step < schedule.steps and not state.stopped:
        losses.append(train_step(session, model, optimizer, state.step))
        state.step += 1
        bar.update()
        if state.step in marks:
            seconds = time.perf_counter() - begun
            mean = _mean_over_processes(accelerator, torch.stack(losses))
            metrics = evaluate(session)
            record = {
                "step": state.step,
                "epoch": state.step / schedule.per_epoch,
                "loss": mean,
                "seconds": seconds,
                **metrics,
            }
            state.history.append(record)
            if accelerator.is_main_process:
                _log.info("%s", _summary(record, schedule.steps))
            state.stopped = stop_reason(config, metrics)
            bar.set_postfix(loss=f"{mean:.3f}", recited=f"{1 - forgotten(metrics):.2f}")
            save_checkpoint(session, model, optimizer, state, output)
            losses, begun = [], time.perf_counter()
    bar.close()
    return state


def _summary(record: dict[str, Any], steps: int) -> str:
    """One line an evaluation, for logs."""
    values = {**record["forget"], **(record["holdout"] or {})}
    shown = ("recitation", "extraction_strength", "loss", "kl", "agreement")
    metrics = ", ".join(f"{name.replace('_', ' ')} {values[name]['value']:.3f}" for name in shown if name in values)
    return (
        f"step {record['step']} of {steps}, epoch {record['epoch']:g}: training loss {record['loss']:.4f}, "
        f"{record['seconds']:.0f} s; {metrics}"
    )


def train_step(session: Session, model: Any, optimizer: Any, step: int) -> Tensor:
    """One optimizer step; returns this process's part of its loss."""
    config, accelerator, schedule = session.job.config, session.accelerator, session.schedule
    _seed(config.seed + 1_000_003 * (step + 1) + accelerator.process_index)  # dropout; needs no state to resume
    model.train()
    rate = learning_rate(config, step, schedule.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=accelerator.device)
    parts = list(_backward_parts(session, model, step))
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with _maybe_sync(accelerator, model, sync=last):
            with accelerator.autocast():
                loss = part()
            # DistributedDataParallel averages over processes, and this is a sum.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    if config.max_grad_norm is not None:
        accelerator.clip_grad_norm_(trainable(model).values(), config.max_grad_norm)
    optimizer.step()
    return total


def _maybe_sync(accelerator: Any, model: Any, *, sync: bool) -> Any:
    from contextlib import nullcontext

    return nullcontext() if sync else accelerator.no_sync(model)


def _backward_parts(session: Session, model: Any, step: int) -> Iterator[Any]:
    """The losses of a step, one function a backward pass; every process has as many, empty ones among them."""
    job, config, schedule = session.job, session.job.config, session.schedule
    rank, world = session.accelerator.process_index, session.accelerator.num_processes
    size = config.batch_size * world
    forget, retain = schedule.forget_rows(step), schedule.retain_rows(step)
    tokens = sum(job.forget[i].tokens for i in forget)
    denominator = float(len(forget) if session.method.per_row else tokens)
    # The sum over a step does not depend on how it is cut; rows of like length need less padding.
    forget.sort(key=lambda i: len(job.forget[i].ids))
    retain.sort(key=lambda i: len(job.retain[i].ids))
    epoch = step // schedule.per_epoch
    for start in range(0, len(forget), size):
        mine = forget[start : start + size][rank::world]
        yield lambda mine=mine: _forget_loss(session, model, mine, denominator, epoch)
    retain_tokens = float(sum(job.retain[i].tokens for i in retain))
    for start in range(0, len(retain), size):
        mine = retain[start : start + size][rank::world]
        yield lambda mine=mine: _retain_loss(session, model, mine, retain_tokens)


def _forget_loss(session: Session, model: Any, rows: list[int], denominator: float, epoch: int) -> Tensor:
    job, method = session.job, session.method
    if not rows:
        return _nothing(session, model)
    passed = _run(session, model, [job.forget[i] for i in rows])
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
    return _run(session, model, session.job.forget[:1]).hidden.float().sum() * 0


def _reference(session: Session, name: str, rows: list[int]) -> Reference:
    store = session.stores.get(name)
    return Reference() if store is None else store.batch(rows, session.accelerator.device)


def _mean_over_processes(accelerator: Any, losses: Tensor) -> float:
    """Mean over steps of the losses, of which each process has a part."""
    return float(accelerator.reduce(losses.mean(), reduction="sum"))


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
    """The step whose checkpoint is the result; None if no checkpoint obeys.

    Without stop rules it is the last. Among those within `--max-utility-drop`: if some reached `--stop-at-forget`, the
    one of them that dropped least, else the one that forgot most.
    """
    if config.stop_at_forget is None and config.max_utility_drop is None:
        return int(history[-1]["step"])
    most = math.inf if config.max_utility_drop is None else config.max_utility_drop
    obeying = [record for record in history if utility_drop(record) <= most]
    if not obeying:
        return None
    enough = [r for r in obeying if config.stop_at_forget is not None and forgotten(r) >= config.stop_at_forget]
    best = min(enough, key=utility_drop) if enough else max(obeying, key=forgotten)
    return int(best["step"])


# --- checkpoints -----------------------------------------------------------------------------------------------------


def latest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint of a run; an interrupted one never gets its name."""
    found = [path for path in output.glob("checkpoint-*") if (path / "trainer.pt").is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def save_checkpoint(session: Session, model: Any, optimizer: Any, state: State, output: Path) -> None:
    """Write `checkpoint-STEP` under a temporary name, then rename it; remove those beyond `--save-total-limit`."""
    config, accelerator = session.job.config, session.accelerator
    weights = _whole_weights(session)
    moments = _optimizer_state(model, optimizer)
    if accelerator.is_main_process:
        target = output / f"checkpoint-{state.step}"
        temporary = output / f".checkpoint-{state.step}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _export(session, weights, temporary)
        config.save(temporary / "config.yaml")
        kept = {
            "step": state.step,
            "history": state.history,
            "before": session.before,
            "fingerprint": fingerprint(session),
        }
        (temporary / "state.json").write_text(json.dumps(kept))
        torch.save(moments, temporary / "trainer.pt")
        _flush(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        best = choose(config, state.history)
        found = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        for old in found[: -config.save_total_limit]:
            if old.name != f"checkpoint-{best}":
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _whole_weights(session: Session) -> dict[str, Tensor]:
    """The weights to save, gathered from all processes where they are sharded; every process must call it."""
    adapter = session.job.config.tuning == "lora"
    found = {}
    for name, tensor in session.model.state_dict().items():
        if not adapter or "lora_" in name:
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            found[name] = whole.detach().cpu()
    return found


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _export(session: Session, weights: dict[str, Tensor], folder: Path) -> None:
    """The adapter, or the whole model, with its tokenizer: what peft, transformers and vLLM load."""
    session.model.save_pretrained(str(folder), state_dict=weights, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    session.job.tokenizer.save_pretrained(str(folder))


def _is_sharded(model: Any) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def _optimizer_state(model: Any, optimizer: Any) -> dict[str, Any]:
    """AdamW's moments, gathered from all processes where they are sharded."""
    if not _is_sharded(model):
        found: dict[str, Any] = optimizer.state_dict()
        return found
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(model, getattr(optimizer, "optimizer", optimizer), options=options)


def fingerprint(session: Session) -> dict[str, Any]:
    """What must be the same for a run to go on: all settings that concern the weights, the data and the teacher."""
    values = session.job.config.to_dict()
    free = (
        "output",
        "resume",
        "cache",
        "save_total_limit",
        "eval_batch_size",
        "stop_at_forget",
        "max_utility_drop",
        "batch_size",
        "accumulate",
        "model",
        "forget",
        "retain",
        "holdout",
        "blocklist",
        "refusals",
    )
    kept = {name: value for name, value in values.items() if name not in free}
    kept["step_rows"] = session.schedule.step_rows
    kept["teacher"] = session.digest
    kept["data"] = [rows_digest(rows) for rows in (session.job.forget, session.job.retain, session.job.refused)]
    return kept


def _resume_from(config: Config) -> Path | None:
    if config.resume is None:
        return None
    return latest_checkpoint(Path(config.output)) if config.resume == "latest" else Path(config.resume)


def _restore_model(session: Session, source: Path) -> State:
    from safetensors.torch import load_file

    kept = json.loads((source / "state.json").read_text())
    now = json.loads(json.dumps(fingerprint(session)))
    if different := [name for name in now if kept["fingerprint"].get(name) != now[name]]:
        raise ProdError(
            f"--resume: {source} belongs to another run, these differ: {', '.join(different)}: "
            "use the same settings and data, or start anew in another --output"
        )
    if session.job.config.tuning == "lora":
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(session.model, load_file(source / "adapter_model.safetensors"))
    else:
        weights: dict[str, Tensor] = {}
        for file in sorted(source.glob("*.safetensors")):
            weights.update(load_file(file))
        missing = session.model.load_state_dict(weights, strict=False).missing_keys
        tied = set(session.model.state_dict()) - set(weights)
        if set(missing) - tied:
            raise ProdError(f"--resume: {source} lacks {missing[0]}: it is damaged, use another checkpoint")
        session.model.tie_weights()
    session.before = kept["before"]
    # The stop rules may be others now.
    stopped = stop_reason(session.job.config, kept["history"][-1])
    return State(kept["step"], kept["history"], stopped)


def _restore_optimizer(model: Any, optimizer: Any, source: Path) -> None:
    moments = torch.load(source / "trainer.pt", map_location="cpu", weights_only=True)
    if not _is_sharded(model):
        optimizer.load_state_dict(moments)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    inner = getattr(optimizer, "optimizer", optimizer)
    set_optimizer_state_dict(model, inner, moments, options=options)


# --- the result ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        output: where the result lies.
        chosen: the step of the checkpoint that is the result, or None if none obeyed the stop rules.
        before: metrics of the starting model.
        after: metrics of the result, or None.
        history: a record an evaluation.
        stopped: why training ended early, or "".
    """

    output: Path
    chosen: int | None
    before: dict[str, Any]
    after: dict[str, Any] | None
    history: list[dict[str, Any]]
    stopped: str


def finish(session: Session, state: State) -> Report:
    """Put the chosen checkpoint's model, the model card and `report.json` into the output directory."""
    from prod_train.card import model_card

    config = session.job.config
    output = Path(config.output)
    chosen = choose(config, state.history)
    after = next((record for record in state.history if record["step"] == chosen), None)
    report = Report(output, chosen, session.before, after, state.history, state.stopped)
    if session.accelerator.is_main_process:
        if chosen is not None:
            for path in (output / f"checkpoint-{chosen}").iterdir():
                if path.name not in ("trainer.pt", "state.json"):
                    with write_whole(output / path.name) as file, path.open("rb") as source:
                        shutil.copyfileobj(source, file)
            with write_whole(output / "README.md") as file:
                file.write(model_card(session, report).encode())
        record = {
            "chosen": chosen,
            "stopped": state.stopped,
            "before": session.before,
            "history": state.history,
            "config": config.to_dict(),
            "teacher": session.digest,
            "data": {
                name: {"rows": len(rows), "hash": rows_digest(rows)}
                for name, rows in (
                    ("forget", session.job.forget),
                    ("retain", session.job.retain),
                    ("holdout", session.job.holdout),
                )
                if rows
            },
        }
        with write_whole(output / "report.json") as file:
            file.write(json.dumps(record, indent=1).encode())
    session.accelerator.wait_for_everyone()
    return report


def run(config: Config, *, progress: bool = False) -> Report:
    """Everything: data, targets, training, result. The function behind `prod-train run`.

    Raises:
        ProdError: a mistake of the user; nothing has been written to `output` but cached targets then.
    """
    job = prepare(config)
    session = setup(job, progress=progress)
    state = fit(session, progress=progress)
    return finish(session, state)


def _seed(seed: int) -> None:
    torch.manual_seed(seed % 2**63)
