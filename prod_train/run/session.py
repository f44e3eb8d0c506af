"""The model, what the reference model says, and how both are measured: a run that is ready to train."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prod_decode.storage.files import write_whole
from prod_train.config.config import Config
from prod_train.config.schedule import Schedule
from prod_train.data.replaced import save_replaced
from prod_train.loss.objective import Encoder
from prod_train.measure.continued import continued_rows, load_continued, save_continued
from prod_train.measure.evaluate import evaluate_forget, evaluate_holdout
from prod_train.measure.metric import Metric
from prod_train.measure.replacements import evaluate_replacements
from prod_train.method import Method, Teacher
from prod_train.methods import make_method
from prod_train.model.contrast import contrast
from prod_train.model.modeling import (
    add_adapter,
    check_gradients,
    compute_dtype,
    enable_checkpointing,
    load_base,
)
from prod_train.model.projection import common_directions, expect_inputs
from prod_train.run.job import ANCHORS, CONTINUED, REPLACED, Job
from prod_train.run.output import resume_from
from prod_train.targets.targets import ReferenceStore, model_digest

if TYPE_CHECKING:
    from prod_decode.match.matcher import Matcher

_log = logging.getLogger(__name__)


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
        directions: off which the gradients of the forget loss are projected, see `prod_train.model.projection`.
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
    directions: dict[nn.Module, Tensor] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)


def make_accelerator(config: Config) -> Any:
    """The processes and devices, as `accelerate launch` set them up; one process without it. And a tracker, if any."""
    from accelerate import Accelerator

    tracker = None if config.report_to == "none" else config.report_to
    mixed = config.tuning == "full" and compute_dtype(config) == torch.bfloat16
    return Accelerator(mixed_precision="bf16" if mixed else "no", log_with=tracker, project_dir=config.output)


def setup(job: Job, accelerator: Any = None, *, progress: bool = False) -> Session:
    """Load the model, make or load what the reference says, attach the adapter and check that it learns.

    Raises:
        ProdError: the model cannot be loaded or trained as configured.
    """
    config = job.config
    accelerator = accelerator or make_accelerator(config)
    seed_torch(config.seed)
    model = load_base(config, accelerator.device)
    encoder = Encoder(model, config.chunk_size)
    base = digest = model_digest(model)
    if config.tuning == "lora":
        model = add_adapter(model, config)
        if config.continues_adapter:
            digest = model_digest(model)
        if config.gradient_projection:
            expect_inputs(model)
    if config.lora_init == "contrast" and config.resume is None:
        tell_before(accelerator, "the directions that adapters begin with, of --forget and --retain")
        contrast(
            model,
            encoder,
            job.forget,
            job.retain,
            pad=job.pad,
            batch_size=config.eval_batch_size,
            folder=config.target_folder,
            identity=_identity(base, config),
        )
    method = make_method(config.method, config)
    if method.chooses and job.matcher is None:
        job = with_anchors(job, method, encoder, model, accelerator)
    if job.replaced and accelerator.is_main_process:
        Path(config.output).mkdir(parents=True, exist_ok=True)
        save_replaced(Path(config.output, REPLACED), job.replaced)
    if config.continuations:
        job = with_continuations(job, model, accelerator)
    identities = {"start": _identity(digest, config), "base": _identity(base, config)}
    stores = reference_stores(job, method, identities)
    fill_stores(stores, job, encoder, model, accelerator, progress=progress)
    if config.gradient_checkpointing:
        enable_checkpointing(model)
    check_gradients(model, encoder, job.forget[: config.batch_size], job.pad)
    schedule = Schedule.of(config, len(job.trained), len(job.retain), accelerator.num_processes)
    directions = {}
    if config.gradient_projection:
        tell_before(accelerator, "the directions that the inputs of adapters have most of on --retain")
        directions = common_directions(
            model,
            encoder,
            job.retain,
            config.gradient_projection,
            pad=job.pad,
            batch_size=config.eval_batch_size,
            folder=config.target_folder,
            identity=identities["start"],
        )
    return Session(job, accelerator, model, encoder, method, stores, digest, schedule, directions)


def tell_before(accelerator: Any, what: str) -> None:
    """Log what is done before the first step, where a CPU has minutes to do and no bar shows it."""
    if accelerator.is_main_process:
        _log.info("before the first step: %s", what)


def _identity(digest: str, config: Config) -> str:
    return f"{digest} {compute_dtype(config)} 4bit={config.load_in_4bit}"


def with_anchors(job: Job, method: Method, encoder: Encoder, model: Any, accelerator: Any) -> Job:
    """The job with a matcher of what the method chooses; it is in `ANCHORS`."""

    def make(path: Path) -> None:
        tell_before(accelerator, "the anchors of --forget")
        model.eval()
        teacher = Teacher(model, encoder, job.forget, job.tokenizer, job.pad, job.config.eval_batch_size)
        method.blocklist(teacher).save(path)

    return job.guarded_by(str(_made_once(ANCHORS, job, accelerator, make)))


def with_continuations(job: Job, model: Any, accelerator: Any) -> Job:
    """The job with what the model writes itself where it is asked for what it should forget; it is in `CONTINUED`."""
    config = job.config

    def make(path: Path) -> None:
        tell_before(accelerator, f"what the model writes behind {len(job.forget)} beginnings")
        model.eval()
        rows = continued_rows(
            model,
            job.tokenizer,
            job.forget,
            tokens=min(config.continuations, config.max_length),  # a row is cut there
            max_length=config.max_length,
            batch_size=config.eval_batch_size,
        )
        save_continued(path, rows, job.tokenizer)

    return replace(job, continued=list(load_continued(_made_once(CONTINUED, job, accelerator, make))))


def _made_once(name: str, job: Job, accelerator: Any, make: Callable[[Path], None]) -> Path:
    """A file in the output's directory, made by one process, and not again when a run goes on, from another one too."""
    path = Path(job.config.output, name)
    if accelerator.is_main_process:
        source = resume_from(job.config)
        before = path if source is None else source.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if source is None or not before.is_file():
            make(path)
        elif before.resolve() != path.resolve():
            with write_whole(path) as file:
                file.write(before.read_bytes())
    accelerator.wait_for_everyone()
    return path


def reference_stores(job: Job, method: Method, identities: Mapping[str, str]) -> dict[str, ReferenceStore]:
    """What a run needs of the reference model: by name (forget, refused, retain, holdout), not yet made.

    Args:
        job: the data.
        method: its `kind` says what of the forget set.
        identities: of the reference models, `start` and `base`; part of each store's key.
    """
    folder, config = job.config.target_folder, job.config
    stores = {}
    if method.kind is not None:
        recipe = method.recipe() if method.kind == "targets" else None
        stores["forget"] = ReferenceStore(folder, method.kind, job.trained, identities["start"], recipe, job.blocklist)
        if job.refused:
            stores["refused"] = ReferenceStore(folder, method.kind, job.refused, identities["start"])
    if job.retain and config.keeps == "kl":
        stores["retain"] = ReferenceStore(folder, "hidden", job.retain, identities[config.retain_reference])
    if job.holdout:
        rows = job.holdout[: config.eval_rows]
        stores["holdout"] = ReferenceStore(folder, "hidden", rows, identities[config.holdout_reference])
    return stores


def fill_stores(
    stores: dict[str, ReferenceStore], job: Job, encoder: Encoder, model: Any, accelerator: Any, *, progress: bool
) -> None:
    """Every process makes its share; then each loads all, making what another machine did not share with it."""
    if stores:
        tell_before(accelerator, f"what the starting model says of the rows of {', '.join(stores)}")
    model.eval()
    eos = job.tokenizer.eos_token_id if job.tokenizer.eos_token_id is not None else job.pad
    rank, world = accelerator.process_index, accelerator.num_processes
    references = {"retain": job.config.retain_reference, "holdout": job.config.holdout_reference}
    for part in ((rank, world), (0, 1)) if world > 1 else ((0, 1),):
        for name, store in stores.items():
            without = references.get(name) == "base"
            with model.disable_adapter() if without else nullcontext():
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


def evaluate(session: Session, matcher: Matcher | None = None) -> dict[str, Any]:
    """Metrics of the model as it is: {"forget": {name: metric}, "holdout": {name: metric} or None}.

    With rows in which replacements are written out, also {"replaced": {name: metric}}, without a matcher.

    Args:
        session: with the model.
        matcher: of a blocklist that is enforced at decode time.
    """
    job, config, model = session.job, session.job.config, session.model
    forget = evaluate_forget(
        model,
        session.encoder,
        job.tokenizer,
        job.forget,
        batch_size=config.eval_batch_size,
        limit=config.eval_rows,
        matcher=matcher,
    )
    found: dict[str, Any] = {"forget": _plain(forget), "holdout": None}
    if "holdout" in session.stores:
        rows = job.holdout[: config.eval_rows]
        holdout = evaluate_holdout(
            model,
            session.encoder,
            rows,
            session.stores["holdout"],
            pad=job.pad,
            batch_size=config.eval_batch_size,
            matcher=matcher,
        )
        found["holdout"] = _plain(holdout)
    if job.replaced and matcher is None:
        rows = job.replaced[: config.eval_rows]
        found["replaced"] = _plain(evaluate_replacements(model, job.tokenizer, rows, batch_size=config.eval_batch_size))
    return found


def replacements(session: Session) -> dict[str, int] | None:
    """What became of the blocklist's replacements, as `RunReport.replaced`; None without any that can be reached."""
    job = session.job
    if job.matcher is None or not job.matcher.forks:
        return None
    moved, tokens = session.stores["forget"].moved()
    return {"rows": len(job.replaced), "moved": moved, "tokens": tokens}


def _plain(metrics: dict[str, Metric]) -> dict[str, Any]:
    return {name: metric.to_dict() for name, metric in metrics.items()}


def seed_torch(seed: int) -> None:
    """Seed torch with any int."""
    torch.manual_seed(seed % 2**63)
