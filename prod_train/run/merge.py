"""Add an adapter to its base, for engines that load whole models only; what is written is measured before it counts."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prod_decode.errors import ProdError, reason
from prod_decode.storage.files import write_whole
from prod_decode.storage.models import ADAPTER, load_model, save_model
from prod_train.config.config import Config, saved_config
from prod_train.config.schedule import Schedule
from prod_train.loss.objective import Encoder
from prod_train.methods import make_method
from prod_train.model.modeling import base_name, load_adapter, load_whole
from prod_train.run.job import Job, read_sets
from prod_train.run.report import INTERVALS, card_head, table
from prod_train.run.session import Session, evaluate
from prod_train.targets.targets import ReferenceStore, model_digest, rows_digest

_log = logging.getLogger(__name__)

# Rows and tokens of the random text on which logits are compared.
PROBE = (4, 32)


@dataclass(frozen=True)
class Rounding:
    """How far the logits of the written model are from those of the base with the adapter on it, on random text.

    Attributes:
        difference: the greatest, of one logit.
        kl: KL(base with adapter || written), mean, in nats a token.
        agreement: share of equal first choices.
        adapter: the greatest difference that the adapter makes to its base, to compare with.
    """

    difference: float
    kl: float
    agreement: float
    adapter: float


@dataclass(frozen=True)
class Run:
    """What is known of the run that wrote an adapter.

    Attributes:
        config: its settings, `dtype` resolved.
        metrics: of this adapter, as the run measured it; {} if it did not.
        teacher: hash of the weights it started from.
        forget: hash of the rows to forget, or None if the run trained on others besides.
    """

    config: Config
    metrics: dict[str, Any]
    teacher: str
    forget: str | None


def merge(
    adapter: str,
    output: str,
    *,
    model: str | None = None,
    dtype: str = "auto",
    untie: bool = False,
    measure: bool = True,
) -> Path:
    """Write the base model with the adapter's weights added, its tokenizer, a model card and `report.json`.

    Before they get their name the files are loaded again, and their logits compared with those of the base with the
    adapter on it. Of an adapter that `prod-train run` wrote they are evaluated as well, if the run's data is there.

    Args:
        adapter: a directory that `prod-train run` or peft wrote.
        output: a directory that does not exist yet; it appears whole or not at all.
        model: the base, if it is not where the adapter's configuration says.
        dtype: of the result: auto (what the run measured in; without a run, that of the base), float32 or bfloat16.
        untie: write an output head that shares its weight with the embeddings as a weight of its own.
        measure: evaluate the result on the run's data.

    Raises:
        ProdError: not an adapter, or one that does not fit its base; `output` exists; or the result would not say what
            the base says with the adapter on it.
    """
    if not Path(adapter, ADAPTER).is_file():
        raise ProdError(f"{adapter}: expected the directory of an adapter, it has no {ADAPTER}")
    target = Path(output)
    if target.exists():
        raise ProdError(f"--output: {output} exists: name a new directory")
    run = run_of(Path(adapter))
    name = model or base_name(adapter)
    base, tokenizer = load_whole(name, dtype=run.config.dtype if run else "auto")
    used = base.dtype
    probe = torch.randint(len(base.get_input_embeddings().weight), PROBE, generator=torch.Generator().manual_seed(0))
    plain = _logits(base, probe)
    job = _data(run, tokenizer) if run and measure else None
    start = model_digest(base) if job else ""
    encoder = Encoder(base) if job else None
    adapted = load_adapter(base, adapter)
    wanted = _logits(adapted, probe)

    with tempfile.TemporaryDirectory() as folder:
        stores = {}
        if run and job and encoder and job.holdout and start == run.teacher:
            with adapted.disable_adapter():
                stores["holdout"] = _start(job, encoder, adapted, Path(folder))
        merged = _merged(adapted, adapter, dtype, untie=untie)

        def check(files: Path) -> None:
            merged.to("meta")  # with the written model beside it, it would take twice the memory
            written, _ = load_model(str(files))
            rounding = _rounding(wanted, _logits(written, probe), plain)
            _refuse_another(adapter, rounding, wanted, used, written.dtype)
            metrics = _evaluate(job, written, stores) if job else None
            _document(files, adapter, name, (used, written.dtype), rounding, run, metrics)

        return save_model(merged, tokenizer, target, check=check)


def run_of(adapter: Path) -> Run | None:
    """The run that wrote an adapter, from the files beside it, or None.

    Raises:
        ProdError: these files are damaged.
    """
    if not (adapter / "config.yaml").is_file():
        return None
    config = saved_config(adapter / "config.yaml")
    try:
        if (adapter / "report.json").is_file():
            record = json.loads((adapter / "report.json").read_text())
            found = [entry for entry in record["history"] if entry["step"] == record["chosen"]]
            return Run(config, found[0] if found else {}, record["teacher"], record["data"]["forget"]["hash"])
        state = json.loads((adapter / "state.json").read_text())
        fingerprint = state["fingerprint"]
        # Of what was trained on, which may be more than the rows to forget.
        more = config.continuations or (config.blocklist and config.replaced_rows)
        forget = None if more else fingerprint["data"][0]
        return Run(config, state["history"][-1], fingerprint["teacher"], forget)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ProdError(
            f"{adapter}: expected report.json or state.json as a run writes it beside config.yaml, got "
            f"{_damage(error)}: remove config.yaml to merge without them"
        ) from None


def _damage(error: Exception) -> str:
    if isinstance(error, LookupError):
        return f"one without {error.args[0]!r}"
    return reason(error)


def _data(run: Run, tokenizer: Any) -> Job | None:
    """The data of a run; None, with a word, if it is not there as it was."""
    try:
        forget, _, holdout = read_sets(run.config, tokenizer)
    except ProdError as error:
        _log.warning("the merged model is not evaluated: %s", error)
        return None
    if run.forget not in (None, rows_digest(forget)):
        _log.warning("the merged model is not evaluated: %s is not what the run read", run.config.forget)
        return None
    return Job(run.config, tokenizer, forget, holdout=holdout)


def _start(job: Job, encoder: Encoder, model: Any, folder: Path) -> ReferenceStore:
    """What the starting model says on the holdout set, to which the metrics there are distances."""
    model.eval()
    store = ReferenceStore(folder, "hidden", job.holdout[: job.config.eval_rows], "start")
    store.fill(encoder, model, pad=job.pad, eos=job.pad, batch_size=job.config.eval_batch_size)
    return store


def _evaluate(job: Job, model: Any, stores: dict[str, ReferenceStore]) -> dict[str, Any]:
    """The metrics of a run, of another model."""
    return evaluate(
        Session(
            job=job,
            accelerator=None,
            model=model,
            encoder=Encoder(model),
            method=make_method(job.config.method, job.config),
            stores=stores,
            digest="",
            schedule=Schedule.of(job.config, len(job.forget), 0, 1),
        )
    )


def _merged(adapted: Any, adapter: str, dtype: str, *, untie: bool) -> Any:
    """The model with the adapter's weights added.

    Raises:
        ProdError: they cannot be added.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    kind = adapted.peft_config["default"].peft_type.value
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise ProdError(f"{adapter}: expected an adapter that changes weights, got {kind}, which cannot be merged")
    if getattr(adapted.peft_config["default"], "layer_replication", None):
        raise ProdError(
            f"{adapter}: it repeats layers of its base (layer_replication), which have one weight that a merge cannot "
            "make several of: load it unmerged, with peft"
        )
    inner = adapted.get_base_model()
    ends = (inner.get_input_embeddings(), inner.get_output_embeddings())
    weights = [getattr(end, "base_layer", end) for end in ends if end is not None]
    if len(weights) == 2 and weights[0].weight is weights[1].weight:
        if untie:
            weights[1].weight = nn.Parameter(weights[1].weight.detach().clone(), requires_grad=False)
        elif any(isinstance(end, BaseTunerLayer) for end in ends):
            raise ProdError(
                f"{adapter}: it changes the embeddings or the output head, which share one weight in this base, and "
                "one weight cannot be both: use --untie to write the head as a weight of its own"
            )
    if dtype == "float32":
        adapted.float()
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ProdError(
            f"{adapter}: cannot be merged: {error}: use another checkpoint, or load it unmerged, with peft"
        ) from None
    if dtype != "auto":
        merged.to(getattr(torch, dtype))
    if merged.get_output_embeddings().weight is not merged.get_input_embeddings().weight:
        # Engines believe this rather than look for a head.
        for config in {id(c): c for c in (merged.config, merged.config.get_text_config())}.values():
            config.tie_word_embeddings = False
    return merged


@torch.no_grad()
def _logits(model: Any, ids: Tensor) -> Tensor:
    model.eval()
    logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits.float().cpu()
    return logits


def _rounding(wanted: Tensor, written: Tensor, plain: Tensor) -> Rounding:
    t, z = wanted.log_softmax(-1), written.log_softmax(-1)
    return Rounding(
        (wanted - written).abs().max().item(),
        (t.exp() * (t - z)).sum(-1).mean().clamp(min=0).item(),
        (wanted.argmax(-1) == written.argmax(-1)).float().mean().item(),
        (wanted - plain).abs().max().item(),
    )


def _refuse_another(adapter: str, rounding: Rounding, wanted: Tensor, used: torch.dtype, written: torch.dtype) -> None:
    """Refuse what is no rounding: in float32 that is a thousandth, otherwise 2 % or half of what the adapter does."""
    exact = used == written == torch.float32
    scale = max(1.0, wanted.abs().max().item())
    limit = 1e-3 * scale if exact else max(0.02 * scale, 0.5 * rounding.adapter)
    if not rounding.difference <= limit:
        remedy = "load it unmerged, with peft" if written == torch.float32 else "use --dtype float32"
        raise ProdError(
            f"{adapter}: expected the merged model's logits to be those of base and adapter, got a difference of "
            f"{rounding.difference:.3g} where the adapter makes one of {rounding.adapter:.3g}: {remedy}"
        )


def _document(
    files: Path,
    adapter: str,
    base: str,
    dtypes: tuple[torch.dtype, torch.dtype],
    rounding: Rounding,
    run: Run | None,
    metrics: dict[str, Any] | None,
) -> None:
    """Write the model card and `report.json`, and say the same in short."""
    used, written = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    said = (
        f"Written in {written}; {'the run measured' if run else 'the adapter was loaded'} in {used}. On random text, "
        f"its logits differ from those of base and adapter by {rounding.difference:.2g} at most; the adapter changes "
        f"them by up to {rounding.adapter:.2g}. The KL is {rounding.kl:.2g} nats per token, and "
        f"{100 * rounding.agreement:.1f} % of the first choices are the same."
    )
    if written != "float32":
        said += " --dtype float32 rounds less."
    if run and run.config.load_in_4bit:
        said += " The run measured a base in 4 bits; this is one in full."
    _log.info("%s", said)
    lines = card_head(base, "transformers")
    lines += [f"# {base} with {adapter} merged into it", "", said, ""]
    if metrics:
        compared = table(run.metrics if run else {}, metrics).replace("| before | after |", "| adapter | merged |", 1)
        _log.info("%s\n\n%s", compared, INTERVALS)
        lines += [
            "As the run measured the adapter, and measured again with these files:",
            "",
            compared,
            "",
            INTERVALS,
            "",
        ]
    record = {
        "adapter": adapter,
        "base": base,
        "dtype": written,
        "measured_dtype": used,
        "rounding": asdict(rounding),
        "adapter_metrics": run.metrics if run else None,
        "metrics": metrics,
        "config": run.config.to_dict() if run else None,
    }
    for name, text in (("README.md", "\n".join(lines)), ("report.json", json.dumps(record, indent=1))):
        with write_whole(files / name) as file:
            file.write(text.encode())
