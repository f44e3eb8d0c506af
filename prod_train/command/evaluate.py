"""`evaluate`: what a run measures, of a result or of any model, later and on other rows."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prod_decode.command.options import positive
from prod_decode.command.terminal import to_json
from prod_decode.errors import ProdError, printable
from prod_train.command.rows import add_reading, reading

if TYPE_CHECKING:
    from prod_decode.command.options import Commands
    from prod_train.config.config import Config
    from prod_train.run.job import Job


def add_to(commands: Commands) -> None:
    """Add the sub-command."""
    add = commands.add_parser(
        "evaluate",
        help="what a run measures, of its result or of any model, on any rows",
        description="What a run measures, of its result or of any model, on any rows.",
        allow_abbrev=False,
    )
    add.add_argument(
        "model",
        metavar="MODEL",
        help="the output directory of `run` or another adapter's, which is compared with its base; or a hub id, a "
        "directory, a .gguf file, `bundled`",
    )
    add.add_argument("--forget", required=True, metavar="F", help="what it should not recite, as for `run`")
    add.add_argument(
        "--holdout", metavar="H", help="other code, as for `run`: how far an adapter has moved its base there"
    )
    add_reading(add)
    add.add_argument(
        "--rows", type=positive(int), default=64, metavar="N", help="rows of each set, the first ones (64)"
    )
    add.add_argument("--batch-size", type=positive(int), default=8, metavar="N", help="rows a forward pass (8)")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=_evaluate)


def _measured(config: Config, job: Job) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The metrics of an adapter's base and of the adapter on it; of a whole model None and its own."""
    from prod_train.config.schedule import Schedule
    from prod_train.loss.objective import Encoder
    from prod_train.methods import make_method
    from prod_train.model.modeling import load_for_reading
    from prod_train.run.session import Session, evaluate
    from prod_train.targets.targets import ReferenceStore

    model = load_for_reading(config.model, config.dtype)
    encoder = Encoder(model)
    session = Session(
        job=job,
        accelerator=None,
        model=model,
        encoder=encoder,
        method=make_method(config.method, config),
        stores={},
        digest="",
        schedule=Schedule.of(config, len(job.forget), 0, 1),
    )
    if not config.continues_adapter:
        return None, evaluate(session)
    with tempfile.TemporaryDirectory() as folder, model.disable_adapter():
        if job.holdout:
            store = ReferenceStore(Path(folder), "hidden", job.holdout[: config.eval_rows], "base")
            store.fill(encoder, model, pad=job.pad, eos=job.pad, batch_size=config.eval_batch_size)
            session.stores["holdout"] = store
        before = evaluate(session)
    return before, evaluate(session)


def _evaluate(options: argparse.Namespace) -> int:
    from prod_decode.storage.models import quiet

    quiet()
    from prod_train.config.config import Config
    from prod_train.measure.verdict import verdict
    from prod_train.model.modeling import tokenizer_of
    from prod_train.run.job import Job, read_sets
    from prod_train.run.report import INTERVALS, metric_rows, table

    config = Config(
        model=options.model,
        forget=options.forget,
        holdout=options.holdout,
        format=options.format,
        **reading(options),
        eval_rows=options.rows,
        eval_batch_size=options.batch_size,
        dtype=options.dtype,
    )
    if options.holdout is not None and not config.continues_adapter:
        raise ProdError(
            f"--holdout: expected an adapter, which is compared with its base, got {options.model}: name the output "
            "directory of `run`"
        )
    tokenizer = tokenizer_of(config.model)
    forget, _, holdout = read_sets(config, tokenizer)
    before, after = _measured(config, Job(config, tokenizer, forget, holdout=holdout))
    said = verdict(before, after, len(forget))
    if options.json:
        found: dict[str, Any] = {"model": options.model, "verdict": said, "before": before, "after": after}
        print(to_json(found))
        return 0
    if before is not None:
        print(table(before, after))
    else:
        for name, value, _, rows in metric_rows(after, None):
            print(f"{name:36} {value:24} {rows} rows")
    print(f"\n{INTERVALS}\n{printable(said)}")
    return 0
