"""The vLLM processor with a clock, for `bench vllm`; a module of its own, since vLLM loads it in every process."""

from __future__ import annotations

import os
import struct
import time
from typing import Any

from prod_decode.vllm import ProdLogitsProcessor

# Rows, seconds of `update_state`, seconds of `apply`.
RECORD = struct.Struct("<qdd")


class Timed(ProdLogitsProcessor):
    """The processor, and a record of rows and seconds for every step in the file `$PROD_BENCH_TIMES`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._file = os.open(os.environ["PROD_BENCH_TIMES"], os.O_WRONLY | os.O_APPEND)
        self._updating = 0.0

    def update_state(self, batch_update: Any) -> None:
        """Timed."""
        begun = time.perf_counter()
        super().update_state(batch_update)
        self._updating += time.perf_counter() - begun

    def apply(self, logits: Any, ctx: Any = None) -> Any:
        """Timed."""
        begun = time.perf_counter()
        masked = super().apply(logits, ctx)
        os.write(self._file, RECORD.pack(len(logits), self._updating, time.perf_counter() - begun))
        self._updating = 0.0
        return masked
