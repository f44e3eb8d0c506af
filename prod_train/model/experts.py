"""Experts of a mixture: weights of three dimensions in transformers, not layers; which of them get an adapter."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from prod_decode.errors import ProdError
from prod_train.config.config import Config, flag

_log = logging.getLogger(__name__)


def expert_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights with a dimension for the experts of a mixture, by name: transformers keeps them so, and not as layers."""
    return {
        f"{owner}.{name}": weight
        for owner, module in model.named_modules()
        if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        for name, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3 and len(weight) > 1 and any(part.isdigit() for part in owner.split("."))
    }


def expert_targets(weights: Collection[str], config: Config) -> list[str]:
    """Those of `--lora-targets` that are weights of experts.

    Args:
        weights: the names of `expert_weights`.
        config: with the targets.

    Raises:
        ProdError: they cannot be adapted with these settings.
    """
    wanted = [name for name in config.lora_targets if any(key.endswith(f".{name}") for key in weights)]
    if wanted and config.lora_dropout:
        raise ProdError(
            f"{flag('lora_dropout')}: does not fit {wanted[0]} of --lora-targets, a weight of experts: drop it"
        )
    return wanted


def is_called(layer: str, target: str) -> bool:
    """Whether a target of an adapter means a layer: by its whole name, or by the last parts of it."""
    return f".{layer}".endswith(f".{target}")


def on_experts(layer: object) -> bool:
    """Whether a LoRA layer is one on experts' weights. Its input is not what its A is multiplied by."""
    from peft.tuners.lora.layer import ParamWrapper

    return isinstance(layer, ParamWrapper)


def tell_unadapted(adapted: Any, weights: Mapping[str, nn.Parameter], targets: Sequence[str]) -> None:
    """Log what keeps all that it knows: experts' weights without an adapter, and layers that peft left out.

    In models that transformers 4 had with a layer for each expert (DeepSeek, GLM, Ernie), peft takes the names of these
    layers, `gate_proj`, for the weights that they are in transformers 5. Experts then have adapters that nobody asked
    for, and layers of that name, those of shared experts and of blocks without experts, have none.

    Args:
        adapted: the model with its adapters.
        weights: of `expert_weights`, from before.
        targets: what should have an adapter, as in `--lora-targets`.
    """
    wrapped = [module for module in adapted.modules() if on_experts(module)]
    held = {id(wrapper.get_param()) for wrapper in wrapped}
    if left := {name: weight for name, weight in weights.items() if id(weight) not in held}:
        _log.warning(
            "%.0f %% of the model's weights are those of experts (%s), which get no adapter, so that what they know "
            "stays in them: name them with --lora-targets, beside the linear layers (not every engine loads such ones; "
            "all load a merged model)",
            100 * _share(left.values(), adapted),
            _last_two(left),
        )
    bare = {
        name: module.weight
        for name, module in adapted.get_base_model().named_modules()
        if isinstance(module, nn.Linear) and any(is_called(name, target) for target in targets)
    }
    if bare:
        _log.warning(
            "peft puts adapters on the experts' weights of this kind of model (%s), and not on %d linear layers (%s), "
            "%.0f %% of its weights, so that what these know stays in them (not every engine loads adapters of "
            "experts; all load a merged model)",
            ", ".join(sorted({str(wrapper.parameter_name) for wrapper in wrapped})),
            len(bare),
            _last_two(bare),
            100 * _share(bare.values(), adapted),
        )


def _last_two(names: Iterable[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[-2:]) for name in names}))


def _share(weights: Iterable[Tensor], adapted: Any) -> float:
    """Of the base's weights."""
    whole = sum(weight.numel() for name, weight in adapted.named_parameters() if "lora_" not in name)
    return float(sum(weight.numel() for weight in weights) / whole)
