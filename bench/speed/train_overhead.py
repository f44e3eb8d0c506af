"""What cached targets save: one epoch of PROD on a LoRA adapter, with and without them, in one process.

`python -m bench train` prints a table; `train_overhead()` returns its numbers. Both variants take the same
optimizer steps on the same rows of standard-library functions; only what happens before them differs:

    cached    targets are loaded from disk once and reused
    uncached  the reference model runs and its targets are made in every epoch, as the paper's code does
    plain     a cross-entropy on the next tokens instead of PROD's targets: what a LoRA step costs anyway

Rounds alternate, so that a slow spell of the machine meets each variant; the best round counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from prod_decode.command.options import Parser
from prod_decode.command.terminal import exit_status
from prod_decode.errors import ProdError
from prod_decode.storage.models import quiet
from prod_train.config.config import Config
from prod_train.methods import make_method
from prod_train.model.modeling import trainable
from prod_train.run.job import prepare
from prod_train.run.recipes import stdlib_functions, write_rows
from prod_train.run.session import Session, fill_stores, reference_stores, setup
from prod_train.run.trainer import train_step

__all__ = ["train_overhead"]


def train_overhead(model: str = "bundled", rows: int = 16, rounds: int = 2) -> dict[str, float]:
    """Measure every variant in every round.

    Args:
        model: as for `prod-train run --model`.
        rows: functions in an epoch.
        rounds: passes over all variants; the best counts.

    Returns:
        variant -> seconds an epoch.
    """
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        forget = write_rows(Path(folder, "forget.jsonl"), stdlib_functions(rows))
        config = Config(model=model, forget=forget, output=str(Path(folder, "out")), batch_size=2, accumulate=2)
        session = setup(prepare(config))
        plain = replace(session, method=make_method("learn", config))
        optimizer = torch.optim.AdamW(trainable(session.model).values(), lr=0.0)
        train_step(session, session.model, optimizer, 0)  # the first step also sets up threads and buffers
        for number in range(rounds):
            for variant in ("cached", "uncached", "plain"):
                begun = time.perf_counter()
                if variant == "uncached":
                    _make_again(session, Path(folder, f"again-{number}"))
                chosen = plain if variant == "plain" else session
                for step in range(session.schedule.per_epoch):
                    train_step(chosen, session.model, optimizer, step)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - begun
                best[variant] = min(best.get(variant, seconds), seconds)
    return best


def _make_again(session: Session, folder: Path) -> None:
    job = replace(session.job, config=replace(session.job.config, cache=str(folder)))
    stores = reference_stores(job, session.method, {"start": "again", "base": "again"})
    with session.model.disable_adapter():
        fill_stores(stores, job, session.encoder, session.model, session.accelerator, progress=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row a variant, with its cost beside the uncached epoch."""
    parser = Parser(prog="python -m bench train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="bundled", metavar="M", help="as for `prod-train run --model`")
    parser.add_argument("--rows", type=int, default=16, metavar="N", help="functions in an epoch (default 16)")
    options = parser.parse_args(argv)
    return exit_status("bench train", lambda: _run(options.model, options.rows))


def _run(model: str, rows: int) -> int:
    if rows < 1:
        raise ProdError(f"expected --rows as a number above 0, got {rows}")
    quiet()
    seconds = train_overhead(model, rows)
    print(f"{'variant':<10} {'seconds an epoch':>17} {'/ uncached':>11}")
    for variant, value in seconds.items():
        print(f"{variant:<10} {value:17.2f} {value / seconds['uncached']:11.2f}")
    return 0
