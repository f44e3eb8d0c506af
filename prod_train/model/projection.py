"""Gradients of the forget loss that leave alone what the inputs of adapters have in common on the retain set.

A step of the forget loss moves LoRA's A along the inputs of the forget set. Most of such an input is what all code has:
a few directions hold nine tenths of its energy, and what is learned along them acts on other code as well. So the
gradient of A in the forget loss is projected off the directions that the inputs have most of on the retain set. The
gradient of the retain loss keeps them.

After "collapse of irrelevant representations" (CIR, arXiv 2509.11816), which projects off the mean and the principal
components of a layer's inputs and of the gradients at its output; here it is the inputs of A alone.
docs/design/surgical.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from prod_decode.errors import ProdError
from prod_train.data.rows import Row, collate
from prod_train.loss.objective import Encoder
from prod_train.model.experts import on_experts
from prod_train.model.inputs import ADAPTER, adapted, batches_of, layers_by_input, see_tokens, weight_a
from prod_train.targets.targets import Shards, rows_digest

# Columns of a sketch beyond the directions that are wanted: with as many again what is found is nearly the best.
_SPARE = 32
# Of the norm of C, added to its diagonal: the first that is more than what was rounded of the sums.
_SHIFTS = [10.0**k for k in range(-12, 0)]


def common_directions(
    model: Any,
    encoder: Encoder,
    rows: Sequence[Row],
    count: int,
    *,
    pad: int,
    batch_size: int,
    folder: Path,
    identity: str,
) -> dict[nn.Module, Tensor]:
    """The directions that the inputs of adapters have most of.

    Args:
        model: with its adapters.
        encoder: attached to it.
        rows: of the retain set, at least one.
        count: of directions.
        pad: token id for padding.
        batch_size: rows a forward pass.
        folder: of stores; what is found is kept there, for other runs on the same rows.
        identity: of the model with its adapters.

    Returns:
        By the module of A: float32 [width, n], orthonormal columns, on the model's device; n is at most `count`, less
        than the width, and no more than the inputs have. Where the width is more than 2 `count` + 32 they are nearly
        the best: with amplitudes that fall as k^-0.5 they have 0.98 of the energy of those, as k^-1 all but 0.0002.

    Raises:
        ProdError: the folder cannot be written.
    """
    layers = adapted(model)
    model.eval()
    groups = layers_by_input(model, encoder, collate(rows[:1], pad).to(model.device))
    grouped = {layer for group in groups for layer in group}
    groups += [[layer] for layer in layers.values() if layer not in grouped]  # experts that the first row does not need
    names = {layer: name for name, layer in layers.items()}

    def make(numbers: range) -> list[dict[str, Tensor]]:
        leaders = [groups[number][0] for number in numbers]
        sketches = {layer: _Sketch(weight_a(layer).shape[1], count, model.device) for layer in leaders}
        see_tokens(model, encoder, leaders, batches_of(model, rows, pad, batch_size), lambda at, x: sketches[at].add(x))
        return [{"directions": sketches[layer].first(count).flatten()} for layer in leaders]

    key = {
        "kind": "common",
        "model": identity,
        "rows": rows_digest(rows),
        "layers": [[names[layer] for layer in group] for group in groups],
        "count": count,
    }
    store = Shards(folder, key, len(groups))
    store.fill(make, range(store.shards))
    found: dict[nn.Module, Tensor] = {}
    for number, group in enumerate(groups):
        width = weight_a(group[0]).shape[1]
        flat = store[number]["directions"].to(model.device)
        found |= {layer.lora_A[ADAPTER]: flat.view(width, len(flat) // width) for layer in group}
    return found


def expect_inputs(model: Any) -> None:
    """Refuse adapters that are on no layer with an input: on embeddings, and on the bare weights of experts.

    Raises:
        ProdError: with their number and the first one's name.
    """
    from peft.tuners.lora import LoraLayer

    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and (on_experts(module) or ADAPTER in module.lora_embedding_A)
    ]
    if found:
        raise ProdError(
            f"--gradient-projection: {len(found)} adapters are on no layer with an input, the first on {found[0]}: "
            "begin with adapters on linear layers alone (--lora-targets), or --gradient-projection 0"
        )


def size_of(directions: Mapping[nn.Module, Tensor]) -> int:
    """Bytes of directions, those of layers with one input once."""
    return sum({common.data_ptr(): common.nbytes for common in directions.values()}.values())


class _Sketch:
    """What is kept of the inputs of a layer: Y = C O, C the sum of x x', O drawn once: [width, columns].

    It is as wide as what is wanted of it and not as C, which would take 300 MB for each layer with 9,000 inputs. In
    float64 where there is such: the first token of a text may have 10,000 times the energy of others.
    """

    def __init__(self, width: int, count: int, device: torch.device) -> None:
        columns = min(width, 2 * count + _SPARE)
        drawn = torch.randn(width, columns, generator=torch.Generator().manual_seed(0))
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._test = torch.linalg.qr(drawn.double()).Q.to(device, dtype)
        self._sum = torch.zeros_like(self._test)

    def add(self, x: Tensor) -> None:
        """Tokens, float32 [n, width]."""
        x = x.to(self._test)
        self._sum += x.T @ (x @ self._test)

    def first(self, count: int) -> Tensor:
        """float32 [width, n]: the first eigenvectors of Nyström's approximation of C; n as `common_directions` says.

        Algorithm 3 of Tropp, Yurtsever, Udell and Cevher, Fixed-rank approximation of a positive-semidefinite matrix
        from streaming data (2017). With as many columns as C has it is C itself, but for the shift.
        """
        test, total = self._test.double().cpu(), self._sum.double().cpu()
        norm = float(total.norm())
        for shift in (share * norm for share in _SHIFTS):
            shifted = total + shift * test
            core = test.T @ shifted
            root, failed = torch.linalg.cholesky_ex((core + core.T) / 2)
            if not failed:
                halves = torch.linalg.solve_triangular(root, shifted.T, upper=False).T
                vectors, roots, _ = torch.linalg.svd(halves, full_matrices=False)
                there = int((roots.square() > 2 * shift).sum())
                first: Tensor = vectors[:, : min(count, there, len(test) - 1)].float()
                return first.contiguous()
        return torch.zeros(len(test), 0)  # nothing comes in


@contextmanager
def projected(directions: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Within it, outputs are as they were and gradients of A are projected off the directions of its layer.

    Forward and backward pass belong in it, since activation checkpointing runs a layer again in the backward pass. It
    is done in the forward pass, where sharded weights are whole, and not to gradients, which are there at other times
    under each way of distributing.

    Args:
        directions: of `common_directions`.
    """
    hooks = [layer.register_forward_hook(partial(_hold, common)) for layer, common in directions.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hold(common: Tensor, layer: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
    """A x, whose gradient knows of x no more than what is off the common directions."""
    x, weight = given[0], cast("Tensor", layer.weight)
    common = common.to(x)
    # Zero, and so is its gradient for x; that for A is minus the part of x along the directions.
    return output + x @ common @ common.T @ (weight.detach() - weight).T
