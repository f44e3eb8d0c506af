"""A tiny model that knows some rows by heart, as a model does that has something to forget."""

from __future__ import annotations

from pathlib import Path

from prod_train.config.config import Config
from prod_train.run.trainer import run
from tests.tiny import save_tiny_model


def save_taught_model(folder: Path, rows: str) -> str:
    """Write it below `folder`; returns the directory's name.

    Args:
        folder: where its models go.
        rows: a JSONL file of `prompt` and `completion`.
    """
    # vLLM's kernels for the CPU take heads of 32 and more, of which this has four.
    model = save_tiny_model(folder / "untaught", width=128)
    taught = folder / "taught"
    run(
        Config(
            model=model,
            forget=rows,
            output=str(taught),
            method="learn",
            tuning="full",
            learning_rate=3e-3,
            epochs=40,
            eval_every=40,
        )
    )
    return str(taught)
