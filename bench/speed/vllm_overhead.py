"""What guarding costs inside vLLM: tokens a second beside no processor and beside `bad_words`, and the time of a step.

Two engines, one after the other since each takes the whole machine: one without a processor, which also runs
`bad_words`, and one with it, which runs requests without a blocklist and with 0, 10 and 10,000 patterns (lines of 30 to
60 characters of the standard library, as in `bench overhead`). Every case generates the same number of tokens greedily,
EOS ignored, from the same prompts: held-out code, in which beginnings of patterns are frequent. The cases of an engine
take turns, and each counts with the median of its rounds. The processor's own time is measured inside the worker,
around `update_state` and `apply`, and set against the wall-clock time of the same steps.

Where other programs run, tokens a second of the two engines are no fair comparison: look at the processor's share.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prod_decode.storage.files import write_whole

COUNTS = (0, 10, 10_000)
BATCHES = (1, 16, 64)


@dataclass(frozen=True, slots=True)
class Timing:
    """One case at one batch size.

    Attributes:
        case: what guards.
        batch: requests at once.
        tokens_per_second: output tokens of all requests, prefill included; the median of the rounds.
        ratio: that, to the case without a processor.
        own: microseconds of the processor in a step of the whole batch, the median; None where there is none.
        p99: the same, 99th percentile.
        share: its time as a part of all time, 0 to 1; None where there is none.
    """

    case: str
    batch: int
    tokens_per_second: float
    ratio: float
    own: float | None = None
    p99: float | None = None
    share: float | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    from bench.unlearning.plan import vllm_is_installed
    from prod_decode.command.options import Parser

    parser = Parser(prog="python -m bench vllm", description="What guarding costs inside vLLM.")
    parser.add_argument("--model", default="bundled", metavar="M", help="a directory, or `bundled` (default)")
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="output tokens a request (default 32)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of every case (default 3)")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), metavar="B", help="default 1 16 64")
    parser.add_argument("--dtype", default="float32", help="default float32")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args(argv)
    if not vllm_is_installed():
        print(
            "bench vllm: expected vLLM in this environment, got none: run it with .venv-vllm/bin/python",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    print(table(figures))
    if options.output:
        with write_whole(options.output) as file:
            file.write(json.dumps([asdict(figure) for figure in figures], indent=1).encode())
    return 0


def measure(options: argparse.Namespace, folder: Path) -> list[Timing]:
    """All figures, in the order of the table."""
    from bench.speed.overhead import gather
    from prod_decode import Blocklist, Entry
    from prod_decode.storage.models import in_hub_format

    model = in_hub_format(options.model, folder / "model", dtype="bfloat16")
    material = gather(model, max(COUNTS), steps=64 * max(options.batches))
    tokens = material.walk
    prompts = [{"prompt_token_ids": tokens[64 * i : 64 * i + 48]} for i in range(max(options.batches))]
    files = {}
    for count in COUNTS:
        files[str(count)] = str(folder / f"{count}.prod")
        entries = [Entry(line, boundary="none") for line in material.lines[:count]]
        Blocklist.compile(entries, normalize="none", allow_empty=count == 0).save(files[str(count)])
    times = folder / "times"
    times.touch()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["PROD_BENCH_TIMES"] = str(times)
    rated: dict[tuple[str, int], list[tuple[float, list[tuple[int, float, float]]]]] = {}
    engines: list[tuple[dict[str, Any], dict[str, dict[str, Any]]]] = [
        (
            {},
            {
                "no processor": {},
                "bad_words, 10": {"bad_words": material.lines[:10]},
                "bad_words, 30": {"bad_words": material.lines[:30]},
            },
        ),
        (
            {
                "logits_processors": ["bench.speed.vllm_timed:Timed"],
                "additional_config": {"prod": {"blocklists": files, "default": []}},
            },
            {
                "processor, no blocklist": {},
                **{f"{n:,} patterns": {"extra_args": {"prod_blocklists": [str(n)]}} for n in COUNTS},
            },
        ),
    ]
    for engine, cases in engines:
        for case, batch, rate in _rounds(model, engine, cases, prompts, options):
            rated.setdefault((case, batch), []).append((rate, _read(times)))
    return [_figure(case, batch, runs, rated["no processor", batch]) for (case, batch), runs in rated.items()]


def _rounds(
    model: str,
    engine: dict[str, Any],
    cases: dict[str, dict[str, Any]],
    prompts: list[dict[str, list[int]]],
    options: argparse.Namespace,
) -> Iterator[tuple[str, int, float]]:
    """(case, batch, output tokens a second) of every round."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model,
        dtype=options.dtype,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=max(options.batches),
        enable_prefix_caching=False,
        **engine,
    )
    common = {"temperature": 0, "max_tokens": options.tokens, "ignore_eos": True, "detokenize": False}
    try:
        llm.generate(prompts[:1], SamplingParams(**common), use_tqdm=False)
        for _ in range(options.rounds):
            for batch in options.batches:
                for case, more in cases.items():
                    _read(Path(os.environ["PROD_BENCH_TIMES"]))
                    begun = time.perf_counter()
                    outputs = llm.generate(prompts[:batch], SamplingParams(**common, **more), use_tqdm=False)
                    seconds = time.perf_counter() - begun
                    yield case, batch, sum(len(o.outputs[0].token_ids) for o in outputs) / seconds
    finally:
        llm.llm_engine.engine_core.shutdown()


def _read(times: Path) -> list[tuple[int, float, float]]:
    """(rows, seconds of `update_state`, seconds of `apply`) of the steps since the last call."""
    from bench.speed.vllm_timed import RECORD

    records = list(RECORD.iter_unpack(times.read_bytes()))
    os.truncate(times, 0)
    return records


def _figure(
    case: str,
    batch: int,
    runs: list[tuple[float, list[tuple[int, float, float]]]],
    unguarded: list[tuple[float, list[tuple[int, float, float]]]],
) -> Timing:
    rate = statistics.median(rate for rate, _ in runs)
    ratio = rate / statistics.median(rate for rate, _ in unguarded)
    steps = sorted(update + apply for _, records in runs for rows, update, apply in records if rows == batch)
    if not steps:
        return Timing(case, batch, rate, ratio)
    # A step of the batch yields one token a row.
    share = statistics.median(steps) * rate / batch
    return Timing(case, batch, rate, ratio, 1e6 * statistics.median(steps), 1e6 * steps[int(0.99 * len(steps))], share)


def table(figures: Sequence[Timing]) -> str:
    """As Markdown."""
    lines = [
        "| batch | guard | tokens/s | to no processor | own time a step: median | p99 | share of a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for f in sorted(figures, key=lambda figure: figure.batch):
        own = ["", "", ""] if f.own is None or f.p99 is None or f.share is None else [
            f"{f.own:.0f} us", f"{f.p99:.0f} us", f"{100 * f.share:.2f} %"
        ]  # fmt: skip
        lines.append(
            f"| {f.batch} | {f.case} | {f.tokens_per_second:.0f} | {f.ratio:.2f} | {own[0]} | {own[1]} | {own[2]} |"
        )
    return "\n".join(lines)
