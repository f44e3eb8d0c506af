"""No guard: the model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.guards.base import Guard
from prod_decode.blocklist.entries import Entry


class Nothing(Guard):
    """No processor."""

    name = "base"
    rank = 0
    in_vllm = True
    is_measured = True

    def processors(self, entries: Sequence[Entry], tokenizer: Any) -> tuple[list[Any], None]:
        """See `Guard.processors`."""
        del entries, tokenizer
        return [], None
