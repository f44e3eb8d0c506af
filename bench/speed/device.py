"""What masking a step on a GPU costs: our kernels, a dense mask, and the matcher on the host with copies both ways.

All rows are ours and one token longer at every step, so that every slot advances. Walks are those of `bench overhead`:
code, and beginnings of patterns one after another, in which a pattern is under way nearly everywhere. Three ways:

    device      `DeviceMatcher.apply`, the two kernels
    dense       `masked_fill` with a bool mask [B, V] that is on the device already: what a dense mask costs at least
    host        fetch the newest tokens, `advance_all`, `banned_all`, send pairs, `mask_prohibited_`

Times of `device` and `dense` are CUDA events around each step, after steps that do not count: the kernels alone, if the
host is ahead, as it is in an engine. `host` is timed by the clock, since waiting is its cost.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.figures import Figure, save, table, versions
from bench.speed import overhead
from bench.speed.overhead import Material
from prod_decode.command.options import Parser
from prod_decode.device.bans import DeviceMatcher
from prod_decode.errors import ProdError
from prod_decode.masking import mask_prohibited_
from prod_decode.match.matcher import Matcher

WARM_UP = 20
GPU = "cuda"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure on the first GPU, print a table, and write JSON lines if asked to; 2 without a GPU."""
    parser = Parser(prog="python -m bench device", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--patterns", default="10,10000", metavar="N,N,...", help="default 10,10000")
    parser.add_argument("--batch", default="1,16,64,256", metavar="B,B,...", help="default 1,16,64,256")
    parser.add_argument("--columns", type=int, default=152_064, metavar="V", help="of the logits; default 152064")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="that count; default 400")
    parser.add_argument("--tokenizer", default="bundled", metavar="M", help="of which model; default `bundled`")
    parser.add_argument("--json", metavar="OUT", help="write one JSON object a figure")
    options = parser.parse_args(argv)
    try:
        if not torch.cuda.is_available():
            raise ProdError("expected a GPU that torch can use, got none: run this on a machine with one")
        counts, batches = overhead.numbers("--patterns", options.patterns), overhead.numbers("--batch", options.batch)
        material = overhead.gather(options.tokenizer, max(counts), steps=4 * (WARM_UP + options.steps))
        figures = measure(material, counts, batches, options)
        print(table(figures))
        if options.json:
            save(figures, options.json)
    except ProdError as error:
        print(f"bench device: {error}", file=sys.stderr)
        return 2
    return 0


def measure(
    material: Material, counts: Sequence[int], batches: Sequence[int], options: argparse.Namespace
) -> list[Figure]:
    """All figures: for each number of patterns, walk and batch, the three ways beside each other."""
    figures = []
    for count in counts:
        matcher = overhead.bind(material.lines[:count], material.tokenizer)
        walks = {
            "code": material.walk,
            "near": overhead.near_walk(material, material.lines[:count], len(material.walk)),
        }
        for name, found in walks.items():
            walk = overhead._without_matches(matcher, found)
            for batch in batches:
                print(f"measuring {count:,} patterns, {name}, B={batch} ...", file=sys.stderr, flush=True)
                step = Step(matcher, walk, batch, options.columns, options.steps)
                times = {"device": step.device(), "dense": step.dense(), "host": step.host()}
                mean = float(np.mean(times["device"]))
                figures += [
                    Figure(
                        what=f"mask a step, {count:,} patterns, {name}, B={batch}",
                        guard=guard,
                        value=float(np.mean(us)),
                        unit="us",
                        p50=float(np.percentile(us, 50)),
                        p99=float(np.percentile(us, 99)),
                        worst=max(us),
                        ours_over_peer=None if guard == "device" else mean / float(np.mean(us)),
                    )
                    for guard, us in times.items()
                ]
    machine = f"{torch.cuda.get_device_name()}; {versions()}"
    return [replace(figure, machine=machine) for figure in figures]


class Step:
    """A batch of texts, each a stretch of the walk that begins elsewhere, and three ways to mask its next step."""

    def __init__(self, matcher: Matcher, walk: Sequence[int], batch: int, columns: int, steps: int) -> None:
        self.matcher, self.batch, self.steps = matcher, batch, steps + WARM_UP
        tokens = np.resize(np.array(walk, np.int64), len(walk) + self.steps)
        first = np.arange(batch) * 7919 % len(walk)
        self.texts = np.stack([tokens[i : i + self.steps] for i in first])
        self.logits = torch.randn(batch, columns, device=GPU)
        self.ends = matcher.end_ids()

    def device(self) -> list[float]:
        """Microseconds of every step on the device."""
        guard = DeviceMatcher(self.matcher, GPU, slots=self.batch, backend="triton")
        inputs = {
            "slots": torch.arange(self.batch, device=GPU, dtype=torch.int32),
            "drafts": torch.zeros(self.batch, device=GPU, dtype=torch.int32),
            "input_ids": torch.zeros(self.batch, device=GPU, dtype=torch.int32),
            "token_ids": torch.from_numpy(self.texts).to(GPU, torch.int32),
            "enabled": torch.ones(self.batch, device=GPU, dtype=torch.int32),
        }
        # One tensor a step, made before, as an engine has them.
        lengths = torch.arange(1, self.steps + 1, device=GPU, dtype=torch.int32)[:, None].repeat(1, self.batch)
        positions = lengths.to(torch.int64) - 1
        return self._events(
            lambda i: guard.apply(self.logits, lengths=lengths[i], positions=positions[i], **inputs),
        )

    def dense(self) -> list[float]:
        """Microseconds of every step of a dense mask that is there already."""
        mask = torch.rand(self.logits.shape, device=GPU) < 1e-4
        return self._events(lambda i: self.logits.masked_fill_(mask, -torch.inf))  # noqa: ARG005

    def host(self) -> list[float]:
        """Microseconds of every step on the host, the newest tokens being on the device."""
        newest = torch.from_numpy(self.texts.T.copy()).to(GPU)
        states = np.full(self.batch, self.matcher.start(), np.int64)
        times = []
        for i in range(self.steps):
            torch.cuda.synchronize()
            begun = time.perf_counter_ns()
            states = self.matcher.advance_all(states, newest[i].cpu().numpy())
            mask_prohibited_(self.logits, *self.matcher.banned_all(states), fallback=self.ends)
            torch.cuda.synchronize()
            times.append((time.perf_counter_ns() - begun) / 1e3)
        return times[WARM_UP:]

    def _events(self, step: Callable[[int], Tensor]) -> list[float]:
        event: Callable[..., Any] = torch.cuda.Event
        marks = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(self.steps)]
        for i, (before, after) in enumerate(marks):
            # Half a millisecond for the GPU, so that the host is ahead and launching is not what is timed.
            torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
            before.record()
            step(i)
            after.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) * 1e3 for before, after in marks[WARM_UP:]]
