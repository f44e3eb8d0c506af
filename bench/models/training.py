"""Adapters for the benchmark: taught, unlearned at several epochs, taught again; each made once and found again."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from bench.tasks.copyright import DEFAULT_FUNCTIONS
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.storage.models import in_hub_format
from prod_train.config.config import Config
from prod_train.run.job import ANCHORS
from prod_train.run.merge import merge
from prod_train.run.recipes import package_functions, stdlib_functions, write_rows

_log = logging.getLogger(__name__)

# Learning rate of teaching, and of teaching again.
LEARN_RATE = 1e-3

# The method of which there is a second round: an epoch on what the model of the first writes itself.
FIRST_ROUND = "prod-surgical"

# Tokens that a model writes behind each prompt for its second round.
CONTINUED_TOKENS = 64


@dataclass(frozen=True)
class Trainer:
    """Trains with `prod_train` under one directory.

    Attributes:
        folder: of adapters and models.
        rate: learning rate of unlearning.
        dtype: of weights and computation.
        batch_size: rows a forward pass.
        accumulate: forward passes a step.
        progress: show bars.
    """

    folder: Path
    rate: float
    dtype: str = "float32"
    batch_size: int = 2
    accumulate: int = 1
    progress: bool = False

    def start(self, model: str) -> str:
        """The model that everything starts from: a GGUF file's is written once, each training would read it anew."""
        return in_hub_format(model, self.folder / "start", dtype=self.dtype)

    def rows(self, name: str, rows: Sequence[dict[str, Any]]) -> str:
        """Write rows to a file; returns its name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return write_rows(self.folder / f"{name}.jsonl", rows)

    def held_out(self, count: int) -> str:
        """Functions that are neither forgotten nor retained: for distance from the start."""
        return self.rows(f"held-out-{count}", stdlib_functions(count, skip=DEFAULT_FUNCTIONS))

    def retained(self, task: str, count: int, held_out: int, entries: Sequence[Entry]) -> str:
        """Functions for methods with a retain set, none of them among the first so many that are held out.

        Nor one that has what the entries of the task prohibit: whoever keeps to the model there keeps what is to go.
        """
        blocklist = Blocklist.compile(entries)

        def allowed(row: dict[str, str]) -> bool:
            return next(blocklist.scan(row["prompt"] + row["completion"]), None) is None

        def functions() -> Iterator[dict[str, str]]:
            yield from stdlib_functions(sys.maxsize, skip=DEFAULT_FUNCTIONS + held_out)
            yield from package_functions(sys.maxsize)

        return self.rows(f"{task}-retained-{count}", list(islice(filter(allowed, functions()), count)))

    def taught(self, model: str, forget: str, *, name: str, epochs: float, seed: int, retain: str | None) -> Path:
        """A whole model that has learned the rows, and kept to itself on others, if there are any to retain."""
        merged = self.folder / f"{name}.taught"
        if not merged.is_dir():
            adapter = self.folder / f"{name}.taught-adapter"
            self._run(
                adapter, model=model, forget=forget, method="learn", epochs=epochs, seed=seed, every=1e6, retain=retain
            )
            merge(str(adapter), str(merged), measure=False)
        return merged

    def unlearned(
        self, model: str, forget: str, *, name: str, method: str, epochs: int, every: int, seed: int, **options: Any
    ) -> dict[int, Path]:
        """The adapters of one training, by epoch."""
        output = self.folder / f"{name}.{method}.s{seed}"
        from prod_train.run.output import checkpoints

        self._run(output, model=model, forget=forget, method=method, epochs=epochs, seed=seed, every=every, **options)
        found = checkpoints(output)
        last = max(found)
        return {round(step * epochs / last): path for step, path in found.items()}

    def unlearned_again(self, adapter: Path, forget: str, *, seed: int, retain: str | None, off: int) -> Path:
        """A checkpoint of `prod-surgical` after one epoch more, on what it writes itself too, at half the rate.

        `off`: directions for `--gradient-projection`.
        """
        output = self._beside(adapter, "again")
        replace(self, rate=self.rate / 2)._run(
            output,
            model=str(adapter),
            forget=forget,
            method=FIRST_ROUND,
            blocklist=str(adapter.parent / ANCHORS),
            continuations=CONTINUED_TOKENS,
            epochs=1,
            every=1,
            seed=seed,
            retain=retain,
            retain_reference="start" if retain is None else "base",
            gradient_projection=off,
        )
        (again,) = output.glob("checkpoint-*")
        return again

    def merged(self, model: str, adapter: Path) -> Path:
        """The whole model that an adapter makes of its base."""
        output = self._beside(adapter, "merged")
        return output if output.is_dir() else merge(str(adapter), str(output), model=model, measure=False)

    def relearned(
        self,
        model: str,
        adapter: Path | None,
        forget: str,
        *,
        steps: int,
        seed: int,
        rate: float | None = None,
        tuning: str = "lora",
    ) -> Path:
        """An adapter, or with `full` a whole model, after so many steps of training on the rows again.

        Without an adapter a new one is begun. `rate`: None for that of the teaching.
        """
        what = f"relearned-{steps}" if rate is None else f"relearned-{steps}-{tuning}-{rate:g}"
        if adapter is None:
            output = self.folder / f"{Path(model).name}.{Path(forget).stem}.{what}.s{seed}"
        else:
            output = self._beside(adapter, what)
            model = str(self.merged(model, adapter) if tuning == "full" else adapter)
        self._run(
            output,
            model=model,
            forget=forget,
            method="learn",
            max_steps=steps,
            seed=seed,
            every=1e6,
            rate=rate,
            tuning=tuning,
        )
        if tuning == "full":  # with AdamW's state a checkpoint is three times the model: 24 GB for 15 points of 135M
            for checkpoint in output.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        return output

    def _beside(self, adapter: Path, what: str) -> Path:
        return self.folder / f"{adapter.parent.name}.{adapter.name}.{what}"

    def _run(self, output: Path, *, every: float, rate: float | None = None, **options: Any) -> None:
        from prod_train.run.output import latest_checkpoint
        from prod_train.run.trainer import run

        if (output / "report.json").is_file():
            return
        config = Config(
            output=str(output),
            dtype=self.dtype,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            learning_rate=rate or (LEARN_RATE if options["method"] == "learn" else self.rate),
            eval_every=every,
            eval_rows=1,  # the benchmark measures for itself
            save_total_limit=10**6,
            truncate=True,
            cache=str(self.folder / "targets"),
            resume="latest" if latest_checkpoint(output) is not None else None,
            **options,
        )
        _log.info("training %s", output.name)
        run(config, progress=self.progress)


def steps_of(checkpoint: Path) -> int:
    """The optimizer steps after which a checkpoint was written, which are in its name."""
    return int(checkpoint.name.rpartition("-")[2])
