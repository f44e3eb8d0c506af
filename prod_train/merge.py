"""Add an adapter to its base, for engines that load whole models only."""

from __future__ import annotations

from pathlib import Path

from prod_decode.errors import ProdError
from prod_decode.models import load_model, save_model
from prod_train.config import ADAPTER
from prod_train.modeling import base_name, load_adapter


def merge(adapter: str, output: str, *, model: str | None = None, dtype: str = "auto") -> Path:
    """Write the base model with the adapter's weights added, and its tokenizer.

    Args:
        adapter: a directory that `prod-train run` or peft wrote.
        output: a directory that does not exist yet; it appears whole or not at all.
        model: the base, if it is not where the adapter's configuration says.
        dtype: of the result: auto (that of the base), float32 or bfloat16.

    Raises:
        ProdError: not an adapter, or one that does not fit its base; or `output` exists.
    """
    if not Path(adapter, ADAPTER).is_file():
        raise ProdError(f"{adapter}: expected the directory of an adapter, it has no {ADAPTER}")
    target = Path(output)
    if target.exists():
        raise ProdError(f"--output: {output} exists: name a new directory")
    base, tokenizer = load_model(model or base_name(adapter), dtype=dtype, device="cpu")
    try:
        merged = load_adapter(base, adapter).merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ProdError(f"{adapter}: cannot be merged: {error}: use another checkpoint") from None
    return save_model(merged, tokenizer, target)
