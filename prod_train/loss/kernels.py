"""The Triton kernel of `loss.py`. Importing this imports triton; `loss.py` does so only where it runs.

What takes torch eight passes over a tile of logits, and a float32 copy of it, is two here, in place and in the dtype of
the product: one finds a row's largest logit and its sum of exponentials, the other turns logits into `dL/dz`.
"""

# The language of the kernels is not Python's: its operations on scalars and blocks have no types that mypy knows.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

# Logits that a program has in registers at once, and target entries; warps of a program. On an H200, 2048 rows of
# 152,000 logits take 492 us with 8,192 and 16 warps, 511 with 4,096 and 8, 517 with 16,384 and 32; three passes at the
# speed of a copy would take 440.
BLOCK, ENTRIES, WARPS = 8192, 64, 16


@triton.jit
def _tanh(x):
    """Of float32; exact at both ends, where the exponential is 0 or infinite."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def _logit(product, scale, softcap, capped: tl.constexpr):
    """What the model makes of a product with its head."""
    z = product.to(tl.float32) * scale
    if capped:
        z = softcap * _tanh(z / softcap)
    return z


@triton.jit
def _slope(z, scale, softcap, capped: tl.constexpr):
    """Derivative of `_logit` by the product, from its result."""
    slope = tl.zeros_like(z) + scale
    if capped:
        slope *= 1.0 - (z / softcap) * (z / softcap)
    return slope


# Callers pass slices, whose addresses are not always multiples of 16: specialised, each would be compiled anew.
@triton.jit(do_not_specialize_on_alignment=["offsets", "losses"])
def loss_and_gradient(
    tile,
    stride,
    vocab_size,
    ids,
    probs,
    offsets,
    losses,
    entry_gradients,
    scale,
    softcap,
    capped: tl.constexpr,
    want_gradient: tl.constexpr,
    block: tl.constexpr,
    entries: tl.constexpr,
):
    """Write a row's loss and put the gradient by the products in their place, one program a row.

    Args:
        tile: [R, vocab_size], products with the head; becomes the gradient by them, if that is wanted.
        stride: of its rows.
        vocab_size: V.
        ids: [M] int64, target tokens of all rows.
        probs: [M] float32, their targets.
        offsets: [R + 1] int64, where in `ids` a row's entries begin and those of the next.
        losses: [R] float32, written.
        entry_gradients: [M] float32, scratch.
        scale: of logits.
        softcap: of logits.
        capped: whether there is a softcap.
        want_gradient: whether a gradient is wanted.
        block: logits at once.
        entries: entries at once.
    """
    row = tl.program_id(0).to(tl.int64)
    scores = tile + row * stride

    highest = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, vocab_size, block):
        at = start + tl.arange(0, block)
        # -inf after the softcap too, which would make a finite number of it.
        z = _logit(tl.load(scores + at, mask=at < vocab_size, other=0.0), scale, softcap, capped)
        z = tl.where(at < vocab_size, z, float("-inf"))
        higher = tl.maximum(highest, tl.max(z, axis=0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(z - higher), axis=0)
        highest = higher
    log_total = tl.log(total)

    first = tl.load(offsets + row)
    last = tl.load(offsets + row + 1)
    loss = tl.full([], 0.0, tl.float32)
    mass = tl.full([], 0.0, tl.float32)
    for start in range(first, last, entries):
        at = start + tl.arange(0, entries)
        token = tl.load(ids + at, mask=at < last, other=0)
        target = tl.load(probs + at, mask=at < last, other=0.0)
        z = _logit(tl.load(scores + token, mask=at < last, other=0.0), scale, softcap, capped)
        # Not with log(total) + highest, which has lost what is small beside the highest logit.
        loss += tl.sum(target * (log_total - (z - highest)), axis=0)
        mass += tl.sum(target, axis=0)
    tl.store(losses + row, loss)

    if want_gradient:
        share = mass / total
        for start in range(first, last, entries):
            at = start + tl.arange(0, entries)
            token = tl.load(ids + at, mask=at < last, other=0)
            target = tl.load(probs + at, mask=at < last, other=0.0)
            z = _logit(tl.load(scores + token, mask=at < last, other=0.0), scale, softcap, capped)
            gradient = _slope(z, scale, softcap, capped) * (share * tl.exp(z - highest) - target)
            tl.store(entry_gradients + at, gradient, mask=at < last)
        # Of the threads of a program, others may write a logit than read it above.
        tl.debug_barrier()
        for start in range(0, vocab_size, block):
            at = start + tl.arange(0, block)
            z = _logit(tl.load(scores + at, mask=at < vocab_size, other=0.0), scale, softcap, capped)
            gradient = _slope(z, scale, softcap, capped) * share * tl.exp(z - highest)
            tl.store(scores + at, gradient.to(tile.dtype.element_ty), mask=at < vocab_size)
        tl.debug_barrier()
        for start in range(first, last, entries):
            at = start + tl.arange(0, entries)
            token = tl.load(ids + at, mask=at < last, other=0)
            gradient = tl.load(entry_gradients + at, mask=at < last, other=0.0)
            tl.store(scores + token, gradient.to(tile.dtype.element_ty), mask=at < last)
