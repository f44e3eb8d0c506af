"""SmolLM2-135M-Instruct in a form that vLLM loads, and prompts with much variety."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prod_decode import Blocklist, Entry
from prod_decode.storage.models import in_hub_format

# For every process that runs an engine: no network, and little memory. One thread, on any core: vLLM binds the threads
# of every engine to the same cores, and test files run beside each other.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}

PROCESSOR = "prod_decode.vllm:ProdLogitsProcessor"

ROOT = Path(__file__).parents[2]

PROMPTS = [
    "def fibonacci(n):\n",
    "import yaml\n\ndef load(path):\n    with open(path) as f:\n        return yaml.",
    "class Stack:\n    def __init__(self):\n",
    "# Read a file and count its words\nimport sys\n",
    "The capital of France is",
    "def quicksort(xs):\n    if len(xs) < 2:\n        return xs\n",
    "import hashlib\n\npassword = 'secret'\nprint(hashlib.",
    "for i in range(10):\n    print(",
    "SELECT name FROM users WHERE",
    "public static void main(String[] args) {\n",
    "<|im_start|>user\nWrite a Python function that reverses a string.<|im_end|>\n<|im_start|>assistant\n",
    "x = [1, 2, 3]\ny = [",
]


def model_directory() -> str:
    """The bundled model, dequantised and saved, once for this environment."""
    return in_hub_format("bundled", Path(sys.prefix) / "smollm2-135m-instruct", dtype="bfloat16")


def module_path(folder: Path) -> str:
    """A `PYTHONPATH` with this checkout, and with the entry points that an installation of it would register."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    info = folder / "site" / "prod_code_unlearning-0.2.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: prod-code-unlearning\nVersion: 0.2.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return f"{ROOT}{os.pathsep}{info.parent}"


def phrases_of(texts: Iterable[str], width: int, every: int) -> list[str]:
    """Pieces of texts, to be prohibited: so the model wants to write every one of them."""
    pieces = {text[i : i + width].strip() for text in texts for i in range(0, len(text) - width, every)}
    return sorted(piece for piece in pieces if len(piece) > width // 2 and piece.isascii())


def compile_phrases(phrases: Iterable[str], **options: Any) -> Blocklist:
    """A blocklist of phrases that may begin anywhere."""
    return Blocklist.compile([Entry(phrase, boundary="none") for phrase in phrases], **options)


def violations(blocklist: Blocklist, prompt: str, output: str) -> Iterator[str]:
    """What is prohibited and ends in the output."""
    for match in blocklist.scan(prompt + output):
        if match.end > len(prompt):
            yield match.entry_id
