"""Engines in one process, on either model runner; as a program, so that it can be prepared before vLLM is there.

    python -m tests.vllm.in_process < job.json

The last line that it prints is the results, JSON. V2 needs Triton, and vLLM's own V2 runner for the CPU needs a Triton
that compiles for it. Here the interpreter runs every kernel, vLLM's and ours, and so a driver is enough that says so.
"""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

from tests.interpreter import in_blocks_of, quicken
from tests.vllm.engine import ENVIRONMENT, PROCESSOR, model_directory


def interpret() -> None:
    """Make Triton's interpreter what vLLM takes for Triton on the CPU, and what our matcher takes for a GPU."""
    os.environ["TRITON_INTERPRET"] = "1"
    quicken()
    from triton.backends import backends
    from triton.runtime.interpreter import InterpreterBuilder

    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    # A GPU takes any integer for a mask, the interpreter only bools; vLLM's n-gram kernels have others.
    def load_any(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return load(builder, pointers, mask, *rest)

    def store_any(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return store(builder, pointers, value, mask, *rest)

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load_any, store_any
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils import rejection_sample

    for function, *sizes in ((gumbel_sample, 1024), (rejection_sample, 1024, 8192)):
        for size in sizes:
            in_blocks_of(65536, function, size)


def watch_kernel() -> dict[str, int]:
    """Give V2's guards our kernel; how many rows it masked, and how many drafts that other drafts came before."""
    from prod_decode.device import slots
    from prod_decode.device.bans import DeviceMatcher

    seen = {"rows": 0, "banned_drafts": 0}

    class Watched(DeviceMatcher):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options, backend="triton")

        def apply(self, logits: Any, **inputs: Any) -> Any:
            masked = super().apply(logits, **inputs)
            drafts, tokens = inputs["drafts"].tolist(), inputs["input_ids"].tolist()
            seen["rows"] += len(drafts)
            seen["banned_drafts"] += sum(
                drafts[row] > 0
                and drafts[row + 1] > drafts[row]
                and bool(masked[row, tokens[row + 1]] == -float("inf"))
                for row in range(len(drafts) - 1)
            )
            return masked

    slots.DeviceMatcher = Watched  # type: ignore[misc]
    return seen


def write(options: dict[str, Any], requests: list[tuple[str, dict[str, Any]]], seen: dict[str, int]) -> dict[str, Any]:
    """What one engine writes; it is gone afterwards."""
    from vllm import LLM, SamplingParams
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    seen.update(dict.fromkeys(seen, 0))
    llm = LLM(
        model_directory(),
        dtype="float32",
        enforce_eager=True,
        disable_log_stats=False,
        seed=0,
        logits_processors=[PROCESSOR],
        **options,
    )
    prompts, params = zip(*requests, strict=True)
    outputs = llm.generate(list(prompts), [SamplingParams(**each) for each in params], use_tqdm=False)
    runner = type(llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner)
    result = {
        "runner": f"{runner.__module__}.{runner.__qualname__}",
        "texts": [output.outputs[0].text for output in outputs],
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "metrics": {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")},
        **seen,
    }
    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    return result


def main() -> None:
    """Run a job: `v2`; `engines`: options of `LLM` for each; `requests`: prompts and options of `SamplingParams`."""
    job = json.load(sys.stdin)
    os.environ.update(ENVIRONMENT)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(job["v2"]))
    if job["v2"]:
        interpret()
    seen = watch_kernel() if job["v2"] else {}
    results = [write(options, job["requests"], seen) for options in job["engines"]]
    sys.stdout.write(f"\n{json.dumps(results)}\n")


if __name__ == "__main__":
    main()
