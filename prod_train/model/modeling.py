"""Models for training: the base, an adapter on it, and the checks that both do what is meant."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prod_decode.errors import ProdError, reason
from prod_decode.storage.models import (
    ADAPTER,
    BUNDLED,
    bundled_model,
    expect_all_weights,
    in_hub_format,
    is_gguf,
    load_model,
    load_tokenizer,
    loading,
    require_one,
)
from prod_train.config.config import BASE, Config
from prod_train.data.rows import Row, collate
from prod_train.loss.objective import Encoder, Pass
from prod_train.model.experts import expert_targets, expert_weights, is_called, tell_unadapted

_log = logging.getLogger(__name__)


def base_name(name: str) -> str:
    """The model an adapter's directory belongs to; any other name is its own.

    Raises:
        ProdError: the adapter's configuration cannot be read or names no base; or a model lies beside it.
    """
    about = Path(name, ADAPTER)
    if not about.is_file():
        return name
    require_one(about.parent)
    try:
        base = json.loads(about.read_text()).get("base_model_name_or_path")
    except (OSError, json.JSONDecodeError) as error:
        raise ProdError(f"cannot read {about}: {error}") from None
    if not base:
        raise ProdError(f"{about}: expected base_model_name_or_path to name the base model, it is empty")
    if Path(base).is_absolute() and not Path(base).exists():
        raise ProdError(
            f"{about}: its base model {base} is not there: if it was moved, write its new place there as "
            "base_model_name_or_path (prod-train merge takes it as --model, too)"
        )
    return str(base)


def base_of(config: Config) -> str:
    """The model to train, or the one that the adapter belongs to; with `--save-base` a GGUF file's is written first.

    Raises:
        ProdError: as `base_name`; or it cannot be loaded or written.
    """
    name = base_name(config.model)
    if not config.save_base:
        return name
    from accelerate import PartialState

    with PartialState().main_process_first():
        dtype = str(compute_dtype(config)).removeprefix("torch.")
        return in_hub_format(name, Path(config.output, BASE), dtype=dtype)


def portable_name(name: str) -> str:
    """A base as an adapter names it, to be found from any directory: a hub id, or an absolute path."""
    path = bundled_model() if name == BUNDLED else Path(name)
    return str(path.absolute()) if path.exists() else name


def tokenizer_of(name: str) -> Any:
    """The tokenizer of a model or of an adapter's base."""
    return load_tokenizer(base_name(name))


def compute_dtype(config: Config) -> torch.dtype:
    """`--dtype` with `auto` resolved."""
    if config.dtype == "auto":
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def load_base(config: Config, device: torch.device | str) -> Any:
    """The model to train, without a new adapter; one that `--model` names is on it, trainable.

    Raises:
        ProdError: it cannot be loaded as configured.
    """
    name = base_of(config)
    dtype = torch.float32 if config.tuning == "full" else compute_dtype(config)
    if config.load_in_4bit:
        expect_whole(name)
        model = load_4bit(name, dtype, device)
        check_finite(model.named_parameters(), name)
    else:
        model, _ = load_whole(name, dtype=str(dtype).removeprefix("torch."), device=str(device))
    model.requires_grad_(config.tuning == "full")
    return model


def load_whole(name: str, *, dtype: str = "auto", device: str | None = None) -> tuple[Any, Any]:
    """`prod_decode.storage.models.load_model`, of a model without an adapter and with finite weights.

    Raises:
        ProdError: as `load_model`; or transformers would load, or has loaded, an adapter that lies beside the model; or
            a weight is NaN or infinite.
    """
    expect_whole(name)
    model, tokenizer = load_model(name, dtype=dtype, device=device)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ProdError(
            f"{name}: expected a model alone, its repository has an {ADAPTER} too, which was loaded with it: download "
            f"it, and remove {ADAPTER} and adapter_model.* from the copy"
        )
    check_finite(model.named_parameters(), name)
    return model, tokenizer


def load_for_reading(name: str, dtype: str = "auto") -> Any:
    """A model that is not trained, with its adapter if `name` is the directory of one.

    Args:
        name: a hub id, a directory, a `.gguf` file, `bundled`, or an adapter's directory.
        dtype: `auto` (bfloat16 on a GPU, else float32), float32 or bfloat16.

    Raises:
        ProdError: as `load_whole` and `load_adapter`.
    """
    base = base_name(name)
    used = str(compute_dtype(Config(dtype=dtype))).removeprefix("torch.")
    model, _ = load_whole(base, dtype=used)
    if base != name:
        model = load_adapter(model, name)
    model.requires_grad_(False)
    return model.eval()


def expect_whole(name: str) -> None:
    """Refuse the directory of an adapter as a base.

    Raises:
        ProdError: it is one, or holds one beside a model: transformers would load it as well, without a word.
    """
    if (base := base_name(name)) != name or Path(name, ADAPTER).is_file():
        raise ProdError(
            f"{name}: expected a whole model as the base, it is an adapter itself, of {base}: add it to that first "
            f"(prod-train merge {name} --output DIR) and name the result"
        )


def check_finite(weights: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Refuse weights that are NaN or infinite: all that follows from them is too, and looks like another mistake.

    Args:
        weights: with their names; those that are no floating-point numbers (quantised ones) are not looked at.
        name: of the model or adapter, for the message.

    Raises:
        ProdError: with the first such weight and their number.
    """
    spoilt = {
        key: int((~weight.isfinite()).sum())
        for key, weight in weights
        if weight.is_floating_point() and not weight.is_meta and not weight.isfinite().all()
    }
    if spoilt:
        first, count = next(iter(spoilt.items()))
        raise ProdError(
            f"{name}: expected finite weights, {len(spoilt)} tensors have NaN or infinite ones, the first is {first} "
            f"with {count:,}: the file is damaged, its training diverged, or it does not fit the dtype: use another "
            "copy or checkpoint"
        )


def expect_4bit(name: str) -> None:
    """Refuse a base that bitsandbytes cannot keep in 4 bits, before anything is loaded.

    Raises:
        ProdError: a GGUF file, `bundled` among them; or bitsandbytes is not installed.
    """
    if is_gguf(name):
        raise ProdError(
            f"--load-in-4bit: expected a model's hub id or directory, got {name}, a GGUF file, which is loaded "
            "dequantised: drop the flag, or name the model that the file was made of"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ProdError(
            "--load-in-4bit: expected the package bitsandbytes, it is not installed: "
            "pip install 'prod-code-unlearning[4bit]', or drop the flag"
        )


def load_4bit(name: str, dtype: torch.dtype, device: torch.device | str) -> Any:
    """A model whose linear layers are kept in 4 bits (NF4), computing in `dtype`.

    Raises:
        ProdError: as `expect_4bit`; or it cannot be loaded.
    """
    expect_4bit(name)
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    with loading(name, "expected a model's hub id or directory that bitsandbytes can load in 4 bits"):
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": str(device)},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        expect_all_weights(name, info)
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks weights for good at the first pass in evaluation mode, and
        # no gradient goes through a repacked layer.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def add_adapter(model: Any, config: Config) -> Any:
    """LoRA on the model's linear layers, or the adapter that `--model` names.

    The default initialisation, no biases and no `modules_to_save`, so that vLLM loads the result.

    Raises:
        ProdError: no such layers, or the output head among them, which the fused loss needs frozen; or the adapter
            trains more than LoRA's matrices.
    """
    from peft import LoraConfig, get_peft_model

    if config.continues_adapter:
        adapted = load_adapter(model, config.model, is_trainable=True)
        expect_lora(adapted, config.model)
        return _with_base(adapted, config)
    targets = lora_targets(model, config)
    weights, layers = expert_weights(model), _linear_layers(model)
    experts = expert_targets(weights, config)
    modules = [name for name in targets if name not in experts or any(is_called(layer, name) for layer in layers)]
    tables = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end}
    widest = max((n for weight in model.parameters() if id(weight) not in tables for n in weight.shape), default=1)
    if config.lora_rank > widest:
        raise ProdError(f"--lora-rank: expected at most {widest:,}, the widest layer's width, got {config.lora_rank:,}")
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=modules,
        target_parameters=experts or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(config.seed)
    try:
        with warnings.catch_warnings():
            # peft takes layers' names for those of experts' weights, and finds no layer for the settings that it adds.
            warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match")
            adapted = get_peft_model(model, lora)
    except ValueError as error:
        raise ProdError(
            f"peft cannot adapt {type(model).__name__} so: {reason(error)}: change --lora-targets or --lora-dropout"
        ) from None
    tell_unadapted(adapted, weights, targets)
    return _with_base(adapted, config)


def _with_base(adapted: Any, config: Config) -> Any:
    """The adapter with the name of its base as others find it."""
    base = portable_name(base_of(config))
    if is_gguf(base):
        _log.warning(
            "the adapter's base is %s, which prod-train loads and peft alone cannot: for peft, --save-base writes it "
            "in the hub's format",
            base,
        )
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def expect_lora(adapted: Any, adapter: str) -> None:
    """Refuse an adapter that trains anything but LoRA's own weights: checkpoints keep these and nothing else.

    Raises:
        ProdError: names what else it trains.
    """
    settings = adapted.peft_config["default"]
    others = [name for name in trainable(adapted) if "lora_" not in name]
    found = [] if settings.peft_type == "LORA" else [f"peft_type {settings.peft_type.value}"]
    found += [
        f"{name} {value!r}"
        for name in ("bias", "modules_to_save", "trainable_token_indices")
        if (value := getattr(settings, name, None)) not in (None, "none")
    ]
    if not found and others:
        found = [f"{len(others)} weights besides, the first is {others[0]}"]
    if not isinstance(adapted.get_base_model().get_output_embeddings(), nn.Linear):
        found.append("an adapted output head, which the fused loss needs frozen")
    if found:
        raise ProdError(
            f"{adapter}: expected an adapter that trains LoRA's matrices only, got {' and '.join(found)}: add it to "
            "its base with prod-train merge, and train a new adapter on the result"
        )


def load_adapter(model: Any, adapter: str, *, is_trainable: bool = False) -> Any:
    """The model with the adapter of a directory on it.

    Raises:
        ProdError: the adapter has no weights, is of another model, some of its weights are not finite, or it is of
            another base each time that it is loaded.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, adapter, is_trainable=is_trainable)
        # What is missing begins at random, or at zero, and peft goes on.
        if lacking := [str(warning.message) for warning in caught if "missing adapter keys" in str(warning.message)]:
            raise ValueError(f"{lacking[0].split(',')[0]}, ...")
    except Exception as error:  # noqa: BLE001 (a damaged file is an exception of safetensors)
        raise ProdError(
            f"{adapter} does not fit its base: {reason(error)} (expected an adapter's weights, made for this base "
            "model)"
        ) from None
    # peft takes the first parts of a decomposition out of the base's weights when it loads one of PiSSA, and finds them
    # at random with so many iterations: the same files gave logits 7 apart.
    initial = str(getattr(adapted.peft_config["default"], "init_lora_weights", None))
    if initial.startswith("pissa_niter"):
        raise ProdError(
            f"{adapter}: expected an adapter that its files say all of, got init_lora_weights {initial!r}, with which "
            "peft changes the base at random whenever it loads them: save it again where it was trained, with peft's "
            "path_initial_model_for_weight_conversion"
        )
    check_finite(((key, weight) for key, weight in adapted.named_parameters() if ".default" in key), adapter)
    return adapted


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """By name; GPT-2's Conv1D is one too."""
    kinds = ("Conv1D", "Linear4bit")
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ in kinds}


def lora_targets(model: Any, config: Config) -> list[str]:
    """The names of what gets an adapter: those given, or every linear layer inside the decoder's blocks.

    Raises:
        ProdError: as `add_adapter`.
    """
    head = model.get_output_embeddings()
    layers = _linear_layers(model)
    names = {name.rpartition(".")[2] for name in layers}
    linear = {
        name.rpartition(".")[2]
        for name, module in layers.items()
        if module is not head and any(part.isdigit() for part in name.split("."))
    }
    if not config.lora_targets:
        if not linear:
            raise ProdError(f"{type(model).__name__}: found no linear layers to adapt: name them with --lora-targets")
        return sorted(linear)
    experts = expert_weights(model)
    for wanted in config.lora_targets:
        if any(key.endswith(f".{wanted}") for key in experts):
            continue
        chosen = [module for name, module in layers.items() if is_called(name, wanted)]
        if head in chosen:
            raise ProdError(
                f"--lora-targets: {wanted} is the output head, which the fused loss needs frozen: leave it out "
                "(every other linear layer may be adapted)"
            )
        if not chosen:
            raise ProdError(
                f"--lora-targets: no linear layer is called {wanted}, expected some of {', '.join(sorted(names))}"
                + (", or " + ", ".join(sorted({key.rpartition(".")[2] for key in experts})) if experts else "")
            )
    return list(config.lora_targets)


def enable_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; inputs get gradients, without which adapters would get none."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def check_gradients(model: Any, encoder: Encoder, rows: list[Row], pad: int) -> None:
    """One forward and backward pass of a plain cross-entropy: every adapter, or every weight, must get a gradient.

    With activation checkpointing and inputs that need no gradient, `lora_B` silently stays at zero for ever. `lora_A`
    is left out, whose gradient is zero as long as `lora_B` is.

    Raises:
        ProdError: names what gets none.
    """
    training = model.training
    model.train()
    batch = collate(rows, pad).to(model.device)
    loss = -Pass(encoder(model, batch), encoder.head(), batch).log_probs().sum()
    # Not differentiable at all is the worst case of what this looks for.
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    parameters = trainable(model)
    adapters = {n: p for n, p in parameters.items() if "lora_B" in n}
    deaf = [n for n, p in (adapters or parameters).items() if p.grad is None or not p.grad.any()]
    model.zero_grad(set_to_none=True)
    model.train(training)
    if not parameters:
        raise ProdError("nothing would be trained: the model has no parameter that requires a gradient")
    if deaf and (adapters or len(deaf) == len(parameters)):
        raise ProdError(
            f"{len(deaf)} of {len(adapters or parameters)} trained layers get no gradient, the first is {deaf[0]}: "
            "with --gradient-checkpointing the inputs must require one (enable_input_require_grads); else leave the "
            "layer out with --lora-targets"
        )
