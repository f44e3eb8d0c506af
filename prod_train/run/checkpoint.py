"""Checkpoints that appear whole or not at all, and a run that goes on from one with the same result."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from prod_decode.errors import ProdError, reason
from prod_decode.storage.files import readable_as_usual
from prod_train.config.config import flag
from prod_train.config.schedule import learning_rate
from prod_train.config.stopping import choose, stop_reason
from prod_train.model.modeling import compute_dtype
from prod_train.run.output import checkpoints
from prod_train.run.session import Session
from prod_train.targets.targets import rows_digest


@dataclass
class State:
    """Where a run stands; kept in every checkpoint.

    Attributes:
        step: optimizer steps done.
        history: one record an evaluation: step, epoch, metrics; since the last one, the loss of each step, their mean
            and the seconds.
        stopped: why training ended before its last step, or "".
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""


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
        # What `auto` stood for here: `merge` writes in the dtype that the metrics were measured in.
        replace(config, dtype=str(compute_dtype(config)).removeprefix("torch.")).save(temporary / "config.yaml")
        kept = {
            "step": state.step,
            "steps": session.schedule.steps,
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
        for step, old in list(checkpoints(output).items())[: -config.save_total_limit]:
            if step != best:
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
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _export(session: Session, weights: dict[str, Tensor], folder: Path) -> None:
    """The adapter, or the whole model, with its tokenizer: what peft, transformers and vLLM load."""
    # Without this peft asks the hub whether the base's vocabulary has other embeddings now.
    options = {"save_embedding_layers": False} if session.job.config.tuning == "lora" else {}
    session.model.save_pretrained(str(folder), state_dict=weights, safe_serialization=True, **options)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    session.job.tokenizer.save_pretrained(str(folder))
    readable_as_usual(folder)


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
        "recipe",  # what it chose stands in the other values
        "output",
        "resume",
        "report_to",
        "cache",
        "save_base",
        "special_tokens",  # the rows' hashes have these
        "format",
        "columns",
        "replaced_rows",
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
        # These two give the number of steps; see `_check_steps`.
        "epochs",
        "max_steps",
    )
    kept = {name: value for name, value in values.items() if name not in free}
    kept["step_rows"] = session.schedule.step_rows
    kept["teacher"] = session.digest
    kept["data"] = [rows_digest(rows) for rows in (session.job.trained, session.job.retain, session.job.refused)]
    kept["holdout"] = rows_digest(session.job.holdout)
    blocklist = session.job.blocklist
    kept["blocklist"] = xxhash.xxh3_128_hexdigest(Path(blocklist).read_bytes()) if blocklist else None
    return kept


# What of a fingerprint is no flag, or not all that its flag names.
_SAID = {
    "step_rows": "rows per optimizer step (--batch-size times --accumulate times processes)",
    "teacher": "the starting model's weights (--model)",
    "data": "the rows (--forget, --retain, --refusals, --replaced-rows)",
    "holdout": "the rows of --holdout",
    "blocklist": "the content of --blocklist",
}


def _said(name: str) -> str:
    return _SAID.get(name, flag(name))


@contextmanager
def _whole(source: Path) -> Iterator[None]:
    """Read a file of a checkpoint inside; safetensors, pickle and torch each raise their own for a damaged one."""
    try:
        yield
    except ProdError:
        raise
    except Exception as error:  # noqa: BLE001
        raise ProdError(f"--resume: {source} is damaged ({reason(error)}): use another checkpoint") from None


def restore_model(session: Session, source: Path) -> State:
    """Load a checkpoint's weights into the session's model; returns where the run stood.

    Raises:
        ProdError: the checkpoint belongs to another run, or is damaged.
    """
    from safetensors.torch import load_file

    with _whole(source):
        kept = json.loads((source / "state.json").read_text())
        for name in ("fingerprint", "step", "steps", "before", "history"):
            kept[name]
    now = json.loads(json.dumps(fingerprint(session)))
    # An option that there was not yet had its default.
    before = {option.name: option.default for option in fields(session.job.config)} | kept["fingerprint"]
    if different := [name for name in now if before.get(name) != now[name]]:
        raise ProdError(
            f"--resume: {source} belongs to another run, these differ: {', '.join(map(_said, different))}: "
            "use the same settings and data, or start anew in another --output"
        )
    _check_steps(session, source, kept["step"], kept["steps"])
    if session.job.config.tuning == "lora":
        from peft import set_peft_model_state_dict

        with _whole(source):
            set_peft_model_state_dict(session.model, load_file(source / "adapter_model.safetensors"))
    else:
        weights: dict[str, Tensor] = {}
        with _whole(source):
            for file in sorted(source.glob("*.safetensors")):
                weights.update(load_file(file))
        own = session.model.state_dict()
        present = {own[name].data_ptr() for name in weights if name in own}
        lacking = [name for name in own if name not in weights and own[name].data_ptr() not in present]  # not tied
        if lacking:
            raise ProdError(f"--resume: {source} lacks {lacking[0]}: it is damaged, use another checkpoint")
        session.model.load_state_dict(weights, strict=False)
        session.model.tie_weights()
    session.before = kept["before"]
    # The stop rules may be others now.
    stopped = stop_reason(session.job.config, kept["history"][-1])
    return State(kept["step"], kept["history"], stopped)


def _check_steps(session: Session, source: Path, done: int, before: int) -> None:
    """A run may end later, or earlier, than it was to, if its steps so far would have been the same."""
    config, now = session.job.config, session.schedule.steps
    if done > now:
        raise ProdError(f"--resume: {source} is of step {done}, expected one of the {now} of this run: raise --epochs")
    different = [k for k in range(done) if learning_rate(config, k, before) != learning_rate(config, k, now)]
    if different:
        raise ProdError(
            f"--resume: {source} was to be one of {before} steps, this run has {now}, and with --scheduler "
            f"{config.scheduler} and --warmup {config.warmup} its learning rate would have been another from step "
            f"{different[0] + 1} on: give the --epochs or --max-steps of that run, or train its result further, as "
            "--model of another --output; a run with --scheduler constant and without --warmup can be made longer"
        )


def restore_optimizer(model: Any, optimizer: Any, source: Path) -> None:
    """Load AdamW's moments, after `accelerator.prepare`."""
    with _whole(source):
        moments = torch.load(source / "trainer.pt", map_location="cpu", weights_only=True)
    if not _is_sharded(model):
        optimizer.load_state_dict(moments)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    inner = getattr(optimizer, "optimizer", optimizer)
    set_optimizer_state_dict(model, inner, moments, options=options)
