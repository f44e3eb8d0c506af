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
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from prod_decode.cli import Parser
from prod_train.loss import DEFAULT_CHUNK_SIZE, SparseTargets, distillation_loss

__all__ = ["loss_overhead"]

VARIANTS = ("paper step", "paper loss", "log_softmax", "fused", "fused 256", "products")
FUSED_CHUNKS = {"fused": DEFAULT_CHUNK_SIZE, "fused 256": 256}


def loss_overhead(
    rows: int = 512, vocab_size: int = 152_000, width: int = 896, support: int = 46, rounds: int = 2
) -> dict[str, dict[str, float]]:
    """Measure every variant in every round, one process at a time.

    Args:
        rows: supervised positions, N.
        vocab_size: V.
        width: d.
        support: target tokens a row; 46 is the mean of `top_p=.8` on SmolLM2-135M over Python code.
        rounds: passes over all variants, so that a slow spell of the machine meets each of them; the best counts.

    Returns:
        variant -> `seconds`, `extra_mb` (10**6 bytes: peak resident set less that before the first run) and `loss`, nan
        for the products.
    """
    results: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for variant in VARIANTS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
                new = child.submit(_measure, variant, rows, vocab_size, width, support).result()
            old = results.get(variant, new)
            results[variant] = {key: min(old[key], new[key]) for key in new}
    return results


def _measure(variant: str, rows: int, vocab_size: int, width: int, support: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).requires_grad_()
    weight = torch.randn(vocab_size, width, generator=generator).mul_(width**-0.5)
    # Distinct within a row, and without a temporary that would raise the peak before the first run.
    first = torch.randint(vocab_size, (rows, 1), generator=generator)
    ids = (first + torch.arange(support) * (vocab_size // support)) % vocab_size
    probs = torch.rand(rows, support, generator=generator).softmax(-1)
    targets = SparseTargets(ids.flatten(), probs.flatten(), torch.arange(rows + 1) * support)

    def loss() -> Tensor:
        if variant in FUSED_CHUNKS:
            return distillation_loss(hidden, weight, targets, chunk_size=FUSED_CHUNKS[variant])
        if variant == "paper step":
            target = _paper_targets(hidden.detach() @ weight.T, ids[:, 0])
        else:
            target = targets.to_dense(vocab_size)
        logits = hidden @ weight.T
        if variant == "log_softmax":
            return -(target * logits.log_softmax(-1)).sum() / rows
        return _paper_loss(logits, target)

    before = _peak_rss()
    seconds = float("inf")
    for _ in range(2):  # the first run also sets up threads and buffers
        hidden.grad = None
        start = time.perf_counter()
        if variant == "products":
            logits = hidden @ weight.T
            logits.backward(logits.detach())  # type: ignore[no-untyped-call]
            value = math.nan
        else:
            result = loss()
            result.backward()  # type: ignore[no-untyped-call]
            value = result.item()
        seconds = min(seconds, time.perf_counter() - start)
    return {"seconds": seconds, "extra_mb": (_peak_rss() - before) / 1e6, "loss": value}


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
    Parser(prog="python -m bench loss", description=(__doc__ or "").split("\n")[0]).parse_args(argv)
    results = loss_overhead()
    fused = results["fused"]
    print(f"{'variant':<12} {'seconds':>8} {'/ fused':>8} {'extra MB':>9} {'/ fused':>8} {'loss':>9}")
    for variant, row in results.items():
        times = [row[key] / fused[key] for key in ("seconds", "extra_mb")]
        print(
            f"{variant:<12} {row['seconds']:8.2f} {times[0]:7.1f}x {row['extra_mb']:9.0f} {times[1]:7.1f}x "
            f"{row['loss']:9.5f}"
        )
    return 0
