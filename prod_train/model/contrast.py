"""Adapters that look where the forget set differs from the retain set.

LoRA adds B A x to a layer's output. PEFT draws A at random, so A x is as large on other code as on the forget set, and
what B learns on the one moves the other. Here the rows of A are the directions d with the greatest

    d' F d / d' (R + ridge) d,

F and R being the means of x x' over the tokens of forget set and retain set: the first generalised eigenvectors of the
pair, as in common spatial patterns. B stays zero, so the model begins as it is. docs/design/surgical.md has the
measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prod_decode.errors import ProdError
from prod_train.data.rows import Batch, Row, collate
from prod_train.loss.objective import Encoder
from prod_train.model.inputs import batches_of, layers_by_input, see_tokens, weight_a
from prod_train.targets.targets import Shards, rows_digest

# Of the mean variance: F and R come from a few thousand tokens. From 1e-4 to 1e-2 the directions are as good.
RIDGE = 1e-2
# A wider input is projected to as many random orthonormal directions, in which F and R remain small enough to keep for
# every layer and to decompose in seconds.
WIDEST = 2048


def contrast(
    model: Any,
    encoder: Encoder,
    forget: Sequence[Row],
    retain: Sequence[Row],
    *,
    pad: int,
    batch_size: int,
    folder: Path,
    identity: str,
) -> None:
    """Set the A of new adapters, whose B is zero.

    The mean of |A x|^2 over the forget set stays what PEFT's initialisation makes it, so that a learning rate means
    what it did. A layer that does not run for the first row, an expert of a mixture, keeps what PEFT drew.

    Args:
        model: with its adapters.
        encoder: attached to it.
        forget: what to look for.
        retain: what to tell it from.
        pad: token id for padding.
        batch_size: rows a forward pass.
        folder: of stores; what is found is kept there, for other runs on the same rows.
        identity: of the model without its adapters.

    Raises:
        ProdError: no adapter is on a layer with an input, all are on experts' weights; the folder cannot be written.
    """
    model.eval()

    groups = layers_by_input(model, encoder, collate(forget[:1], pad).to(model.device))
    if not groups:
        raise ProdError(
            "--lora-init contrast: expected adapters on linear layers, got them on experts' weights alone: name layers "
            "with --lora-targets as well, or --lora-init random"
        )

    @cache
    def moments() -> list[dict[Any, Tensor]]:
        leaders = [layers[0] for layers in groups]
        sets = (batches_of(model, rows, pad, batch_size) for rows in (forget, retain))
        return [_second_moments(model, encoder, leaders, batches) for batches in sets]

    def make(numbers: range) -> list[dict[str, Tensor]]:
        return [{"A": _chosen(groups[number][0], *moments()).flatten()} for number in numbers]

    names = {module: name for name, module in model.named_modules()}
    key = {
        "kind": "contrast",
        "model": identity,
        "forget": rows_digest(forget),
        "retain": rows_digest(retain),
        "layers": [[names[layer] for layer in layers] for layers in groups],
        "rank": len(weight_a(groups[0][0])),
        "ridge": RIDGE,
        "widest": WIDEST,
    }
    store = Shards(folder, key, len(groups))
    store.fill(make, range(store.shards))
    for number, layers in enumerate(groups):
        for weight in map(weight_a, layers):
            chosen = store[number]["A"].view(-1, weight.shape[1])
            weight.data[: len(chosen)] = chosen.to(weight)


def _chosen(layer: Any, of_forget: dict[Any, Tensor], of_retain: dict[Any, Tensor]) -> Tensor:
    """The first rows of a layer's A, float32 [min(rank, width), width]; none where nothing comes in."""
    rank, width = weight_a(layer).shape
    wanted = of_forget.get(layer)
    if wanted is None or not wanted.any():
        return torch.zeros(0, width)
    unwanted = of_retain.get(layer, torch.zeros_like(wanted))
    chosen = directions(wanted.double().cpu(), unwanted.double().cpu(), rank)
    if width > len(wanted):
        chosen = chosen @ _projection(width, "cpu").T.double()
    return chosen.float()


def directions(wanted: Tensor, unwanted: Tensor, count: int) -> Tensor:
    """The directions of an input that have the most of one second moment for what they have of another.

    Args:
        wanted: float64 [d, d], the mean of x x', not all zero.
        unwanted: likewise, of other x; it may be zero.
        count: of directions.

    Returns:
        float64 [min(count, d), d], rows of equal length: the mean of |A x|^2 over the wanted x is that of as many rows
        drawn from U(-1/sqrt(d), 1/sqrt(d)), each of which has a third of the mean square of x's elements.
    """
    width = len(wanted)
    ridge = RIDGE * (wanted.trace() + unwanted.trace()) / (2 * width)
    root = torch.linalg.cholesky(unwanted + ridge * torch.eye(width, dtype=wanted.dtype))
    whitened = torch.linalg.solve_triangular(root, wanted, upper=False)
    whitened = torch.linalg.solve_triangular(root, whitened.T, upper=False)
    first = torch.linalg.eigh(whitened).eigenvectors[:, -count:]
    found = torch.linalg.solve_triangular(root.T, first, upper=True).T
    found = found / found.norm(dim=1, keepdim=True)
    square = torch.einsum("rd,de,re->", found, wanted, found)
    scaled: Tensor = found * (len(found) * wanted.trace() / (3 * width * square)).sqrt()
    return scaled


def _second_moments(model: Any, encoder: Encoder, layers: Sequence[Any], batches: Sequence[Batch]) -> dict[Any, Tensor]:
    """The mean of x x' over the tokens that come into each layer that runs: float32 [m, m], m = min(d, `WIDEST`)."""
    sums: dict[Any, Tensor] = {}
    counts: dict[Any, int] = {}

    def add(layer: Any, x: Tensor) -> None:
        if x.shape[1] > WIDEST:
            x = x @ _projection(x.shape[1], str(x.device))
        square = x.T @ x
        counts[layer] = counts.get(layer, 0) + len(x)
        sums[layer] = sums[layer] + square if layer in sums else square

    see_tokens(model, encoder, layers, batches, add)
    return {layer: square / max(1, counts[layer]) for layer, square in sums.items()}


@lru_cache(maxsize=8)
def _projection(width: int, device: str) -> Tensor:
    """float32 [width, WIDEST], orthonormal columns, always the same."""
    drawn = torch.randn(width, WIDEST, generator=torch.Generator().manual_seed(0))
    found: Tensor = torch.linalg.qr(drawn).Q.to(device)
    return found
