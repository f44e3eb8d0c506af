"""Time and memory of the fused loss beside the dense formulas it replaces.

`python -m bench loss` prints a table; `loss_overhead()` returns its numbers. All variants make the logits, a
loss and its gradient to `hidden`, for a frozen head, from the same random inputs, each alone in a fresh process:

    paper step   as the paper's code trains (arXiv 2506.17125): reference logits, dense targets by masking and sorting
                 them, then the paper's loss
    paper loss   only its loss, `-sum q * log(softmax(z) + 1e-10)` under a mask; targets scattered from sparse ones
    log_softmax  what a careful author writes without a fused kernel; targets scattered likewise
    fused        `distillation_loss` on cached sparse targets, in chunks of the default size, 448 rows
    fused 256    the same in chunks of 256: half the memory, a head read twice as often
    products     the two products with the head that all others make, of the logits and of the gradient, and no loss

All but the first and the last must agree on the loss (but for the 1e-10). No loss can be faster than the products: what
the fused one saves is memory and, as its targets are cached, the rest of the paper's step. Its memory does not grow
with N; the others' does.

With `--device cuda` all of it is on a GPU: N=2048 in bfloat16, times by CUDA events, peaks by torch's allocator. There
`3 products` has one more: what a loss takes that makes the logits again in its backward pass, or trains the head.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from prod_decode.command.options import Parser
from prod_decode.command.terminal import exit_status
from prod_decode.errors import ProdError
from prod_train.loss.sparse import DEFAULT_CHUNK_SIZE, SparseTargets, distillation_loss

__all__ = ["loss_overhead"]

VARIANTS = ("paper step", "paper loss", "log_softmax", "fused", "fused 256", "products")
FUSED_CHUNKS = {"fused": DEFAULT_CHUNK_SIZE, "fused 256": 256}
THREE = "3 products"


def loss_overhead(
    rows: int = 512,
    vocab_size: int = 152_000,
    width: int = 896,
    support: int = 46,
    rounds: int = 2,
    device: str = "cpu",
) -> dict[str, dict[str, float]]:
    """Measure every variant in every round, one process at a time.

    Args:
        rows: supervised positions, N.
        vocab_size: V.
        width: d.
        support: target tokens a row; 46 is the mean of `top_p=.8` on SmolLM2-135M over Python code.
        rounds: passes over all variants, so that a slow spell of the machine meets each of them; the best counts.
        device: `cpu`, in float32, or `cuda`, in bfloat16.

    Returns:
        variant -> `seconds`, `extra_mb` (10**6 bytes: peak resident set, or peak of the GPU's memory, less that before
        the first run) and `loss`, nan for the products.
    """
    results: dict[str, dict[str, float]] = {}
    variants = VARIANTS if device == "cpu" else (*VARIANTS, THREE)
    for _ in range(rounds):
        for variant in variants:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
                new = child.submit(_measure, variant, rows, vocab_size, width, support, device).result()
            old = results.get(variant, new)
            results[variant] = {key: min(old[key], new[key]) for key in new}
    return results


def _measure(variant: str, rows: int, vocab_size: int, width: int, support: int, device: str) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    hidden = torch.randn(rows, width, generator=generator).to(device, dtype).requires_grad_()
    weight = torch.randn(vocab_size, width, generator=generator).mul_(width**-0.5).to(device, dtype)
    # Distinct within a row, and without a temporary that would raise the peak before the first run.
    first = torch.randint(vocab_size, (rows, 1), generator=generator)
    ids = ((first + torch.arange(support) * (vocab_size // support)) % vocab_size).to(device)
    probs = torch.rand(rows, support, generator=generator).softmax(-1).to(device)
    targets = SparseTargets(ids.flatten(), probs.flatten(), torch.arange(rows + 1, device=device) * support)

    def step() -> Tensor | None:
        hidden.grad = None
        if variant in ("products", THREE):
            logits = hidden @ weight.T
            logits.backward(logits.detach())  # type: ignore[no-untyped-call]
            if variant == THREE:
                hidden.detach() @ weight.T
            return None
        if variant in FUSED_CHUNKS:
            loss = distillation_loss(hidden, weight, targets, chunk_size=FUSED_CHUNKS[variant])
        else:
            target = (
                _paper_targets(hidden.detach() @ weight.T, ids[:, 0])
                if variant == "paper step"
                else targets.to_dense(vocab_size)
            )
            logits = hidden @ weight.T
            if variant == "log_softmax":
                loss = -(target * logits.log_softmax(-1, dtype=torch.float32)).sum() / rows
            else:
                loss = _paper_loss(logits, target)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    seconds, extra, value = _on_cpu(step) if device == "cpu" else _on_gpu(step)
    return {"seconds": seconds, "extra_mb": extra / 1e6, "loss": value}


def _on_cpu(step: Callable[[], Tensor | None]) -> tuple[float, float, float]:
    """Best time of two runs, peak beyond what was there in bytes, and the loss."""
    before = _peak_rss()
    seconds, value = math.inf, math.nan
    for _ in range(2):  # the first run also sets up threads and buffers
        start = time.perf_counter()
        loss = step()
        value = math.nan if loss is None else loss.item()
        seconds = min(seconds, time.perf_counter() - start)
    return seconds, _peak_rss() - before, value


def _on_gpu(step: Callable[[], Tensor | None]) -> tuple[float, float, float]:
    """Median time of 20 runs after 5, whatever they wait for included; peak beyond what was there; and the loss."""
    loss = None
    for _ in range(5):
        loss = step()
    value = math.nan if loss is None else loss.item()
    del loss
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = []
    for _ in range(20):
        event: Callable[..., Any] = torch.cuda.Event
        begun, ended = event(enable_timing=True), event(enable_timing=True)
        begun.record()
        step()
        ended.record()
        torch.cuda.synchronize()
        times.append(begun.elapsed_time(ended) / 1e3)
    return sorted(times)[len(times) // 2], torch.cuda.max_memory_allocated() - before, value


@torch.no_grad()
def _paper_targets(logits: Tensor, labels: Tensor, top_p: float = 0.8, alpha: float = 0.0) -> Tensor:
    """Dense targets by the operations of the paper's code, int64 one-hots and full sorts included."""
    reference = logits.softmax(-1)
    masked = logits.masked_fill(F.one_hot(labels, logits.shape[-1]).bool(), -torch.inf)
    ranked, order = masked.softmax(-1).sort(descending=True, dim=-1)
    drop = ranked.cumsum(-1) > top_p
    drop[:, 1:] = drop[:, :-1].clone()
    drop[:, 0] = False
    outside = torch.zeros_like(drop).scatter_(-1, order, drop)
    target = masked.masked_fill(outside, -torch.inf).softmax(-1)
    return torch.where(F.one_hot(labels, logits.shape[-1]).bool(), -alpha * reference, target)


def _paper_loss(logits: Tensor, target: Tensor) -> Tensor:
    mask = (target.sum(-1) != 0).float()
    row_loss = -(target * (logits.softmax(-1) + 1e-10).log()).sum(-1)
    return (row_loss * mask).sum() / mask.sum()


def _peak_rss() -> int:
    """Highest resident set of this process in bytes.

    `getrusage().ru_maxrss` will not do: on Linux a child starts with its parent's peak.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row a variant, each with its cost in multiples of the fused loss."""
    parser = Parser(prog="python -m bench loss", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default cpu; cuda: in bfloat16")
    parser.add_argument("--rows", type=int, metavar="N", help="supervised positions; default 512, on a GPU 2048")
    options = parser.parse_args(argv)
    return exit_status("bench loss", lambda: _run(options.device, options.rows))


def _run(device: str, rows: int | None) -> int:
    if rows is not None and rows < 1:
        raise ProdError(f"expected --rows as a number above 0, got {rows}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ProdError("expected a GPU for --device cuda, got none: run this on a machine with one")
    results = loss_overhead(rows or (512 if device == "cpu" else 2048), device=device)
    fused = results["fused"]
    print(f"{'variant':<12} {'ms':>9} {'/ fused':>8} {'extra MB':>9} {'/ fused':>8} {'loss':>9}")
    for variant, row in results.items():
        times = [row[key] / fused[key] for key in ("seconds", "extra_mb")]
        print(
            f"{variant:<12} {row['seconds'] * 1e3:9.2f} {times[0]:7.2f}x {row['extra_mb']:9.0f} {times[1]:7.1f}x "
            f"{row['loss']:9.5f}"
        )
    return 0
