"""Generation through vLLM: one engine for a model, its adapters and blocklists."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from bench.models.subject import Writing
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.errors import ProdError
from prod_decode.harness.continuing import ending_ids
from prod_train.config.config import Config

# Tokens of a prompt and its output, and of the prompts of a step; and requests of a step.
_LENGTH, _REQUESTS = 4096, 64


class VllmWriter:
    """Writes as `bench.models.subject.Subject.write` does, with continuous batching."""

    def __init__(self, model: str, blocklists: Mapping[str, Blocklist], folder: Path, *, dtype: str) -> None:
        """Start the engine; it takes half of a GPU's memory, since the model under test is there a second time.

        Args:
            model: a directory or hub name.
            blocklists: to which output can be held, by name.
            folder: for them.
            dtype: of weights and computation.

        Raises:
            ProdError: vLLM does not start.
        """
        # A prompt's step of a large model may take minutes on a few cores; vLLM gives it five.
        os.environ.setdefault("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "3600")
        from vllm import LLM

        folder.mkdir(parents=True, exist_ok=True)
        files = {name: str(folder / f"{name}.prod") for name in blocklists}
        for name, blocklist in blocklists.items():
            blocklist.save(files[name])
        self._adapters: dict[Path, int] = {}
        try:
            self._llm = LLM(
                model,
                dtype=dtype,
                enforce_eager=True,
                enable_lora=True,
                max_lora_rank=Config.lora_rank,
                max_model_len=_LENGTH,
                max_num_batched_tokens=_LENGTH,
                max_num_seqs=_REQUESTS,
                # On a CPU, vLLM 0.32 cannot draw from a request's own generator while it reads prompts in chunks.
                enable_chunked_prefill=False,
                gpu_memory_utilization=_share(),
                logits_processors=["prod_decode.vllm:ProdLogitsProcessor"],
                additional_config={"prod": {"blocklists": files, "default": []}},
            )
        except (RuntimeError, ValueError, ImportError) as error:
            raise ProdError(f"vLLM does not start with {model}: {error}; use --engine transformers") from error

    def write(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        *,
        blocklist: str | None,
        adapter: Path | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        stops: Sequence[str] = (),
    ) -> Writing:
        """Continue prompts.

        Args:
            prompts: token ids, special tokens included.
            max_new_tokens: at most.
            blocklist: the name of one; None: of none.
            adapter: of `prod_train`, on the model.
            temperature: 0: greedy.
            seed: of the sampling.
            stops: see `Subject.write`.

        Raises:
            ProdError: vLLM stopped.
        """
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        extra: dict[str, Any] = {"extra_args": {"prod_blocklists": [blocklist]}} if blocklist else {}
        tokenizer = self._llm.get_tokenizer()
        ends = ending_ids(tokenizer)
        params = [
            SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                seed=1_000_003 * seed + number if temperature else None,
                stop=list(stops),
                stop_token_ids=sorted(ends),
                **extra,
            )
            for number in range(len(prompts))
        ]
        lora = None
        if adapter is not None:
            number = self._adapters.setdefault(adapter, len(self._adapters) + 1)
            lora = LoRARequest(str(number), number, str(adapter))
        begun = time.perf_counter()
        try:
            found = self._llm.generate(
                [{"prompt_token_ids": prompt} for prompt in prompts], params, lora_request=lora, use_tqdm=False
            )
        except EngineDeadError as error:
            raise ProdError(
                "vLLM stopped; its log above says why. What was measured is kept: run it again, or with "
                "--engine transformers in another --out"
            ) from error
        seconds = time.perf_counter() - begun
        written = [list(takewhile(lambda token: token not in ends, request.outputs[0].token_ids)) for request in found]
        return Writing([tokenizer.decode(tokens) for tokens in written], list(map(len, written)), seconds)

    def close(self) -> None:
        """End the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()


def _share() -> float:
    """Of the device's memory, what vLLM may take: half, or nine tenths of what is free if that is less.

    It does not start if it is asked to take what others have.
    """
    import psutil
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
    else:
        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    return min(0.5, round(0.9 * free / total, 2))
