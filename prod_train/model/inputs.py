"""What comes into the layers that have an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prod_train.data.rows import Batch, Row, by_length, collate
from prod_train.loss.objective import Encoder
from prod_train.model.experts import on_experts

ADAPTER = "default"  # as PEFT calls it


def weight_a(layer: Any) -> Tensor:
    """The matrix A of a LoRA layer, [rank, width]."""
    weight: Tensor = layer.lora_A[ADAPTER].weight
    return weight


def batches_of(model: Any, rows: Sequence[Row], pad: int, batch_size: int) -> list[Batch]:
    """Rows in batches of like lengths, on the model's device."""
    numbers = by_length([len(row.ids) for row in rows], batch_size)
    return [collate([rows[i] for i in some], pad).to(model.device) for some in numbers]


def adapted(model: Any) -> dict[str, Any]:
    """The LoRA layers of a model that have an input, by name: not those on the weights of experts."""
    from peft.tuners.lora import LoraLayer

    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer) and ADAPTER in m.lora_A}
    return {name: layer for name, layer in layers.items() if not on_experts(layer)}


def layers_by_input(model: Any, encoder: Encoder, batch: Batch) -> list[list[Any]]:
    """The LoRA layers that run for a batch, in groups that are given one and the same tensor, as query and key are."""
    groups: list[tuple[Tensor, list[Any]]] = []

    def note(layer: Any, x: Tensor) -> None:
        known = next((layers for given, layers in groups if given is x), None)
        if known is None:
            groups.append((x, [layer]))
        else:
            known.append(layer)

    with _watched(list(adapted(model).values()), note), torch.no_grad():
        encoder.states(model, batch)
    return [layers for _, layers in groups]


def see_tokens(
    model: Any,
    encoder: Encoder,
    layers: Sequence[Any],
    batches: Sequence[Batch],
    see: Callable[[Any, Tensor], None],
) -> None:
    """Call `see` with a layer and the tokens that come into it, float32 [n, width], padding left out."""

    def pick(mask: Tensor, layer: Any, x: Tensor) -> None:
        # Some models put the tokens of all rows into one list. An expert of a mixture is given some of the tokens, and
        # which of them are padding is not known.
        flat = x.reshape(-1, x.shape[-1])
        see(layer, (flat[mask.flatten()] if len(flat) == mask.numel() else flat).float())

    for batch in batches:
        with _watched(layers, partial(pick, batch.attention_mask.bool())), torch.no_grad():
            encoder.states(model, batch)


@contextmanager
def _watched(layers: Sequence[Any], see: Callable[[Any, Tensor], None]) -> Iterator[None]:
    """Call `see` with layer and input, whenever one of the layers runs."""
    hooks = [layer.register_forward_pre_hook(lambda layer, given: see(layer, given[0])) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
