"""Cross-entropy of a frozen output head against sparse targets, one tile of logits at a time.

For one row with hidden state `h`, logits `z = h @ W.T` and a target `t` that is zero but for a few tokens `k`, let
`S = sum_k t_k` and `lse = logsumexp(z)`. Then

    L     = -sum_k t_k * log_softmax(z)_k = S * lse - sum_k t_k * z_k
    dL/dz = S * softmax(z) - t
    dL/dh = dL/dz @ W

so the gradient is known as soon as `z` is. The forward pass therefore makes `z` for a few rows, turns it into `dL/dz`
in place, keeps `dL/dh` ([N, d]) and forgets the tile; the backward pass only scales. No [N, V] tensor ever exists.
`S` need not be 1 and a target may be negative (PROD, arXiv 2506.17125: `-alpha * p_ref(y)`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from prod_decode.errors import ProdError, described

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DEFAULT_CHUNK_SIZE", "SparseTargets", "distillation_loss", "sparse_kl"]

# Every chunk reads the whole head, so it must be large enough to pay for that. On 2 CPU cores (V=152k, d=896, fp32,
# N=1024) chunks of 64/128/256/512/1024 rows take 6.9/5.1/4.4/3.5/3.4 s and 57/95/169/319/617 MB. Reading a 16-bit head
# buys `chunk_size` FLOP a byte, and by their data sheets GPUs break even below 448 (A100: 156, H100: 295, L4: 400). 448
# takes a tenth of the memory of the dense formulas at N=512, which 512 just misses.
DEFAULT_CHUNK_SIZE = 448

_HEAD_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False, slots=True)
class SparseTargets:
    """One sparse target distribution a row, stored ragged: row `i` owns the entries `offsets[i]:offsets[i + 1]`.

    Attributes:
        ids: [M] int64, token ids, distinct within a row, in any order.
        probs: [M] floating point, the target's value at each id; may be negative and need not sum to 1 in a row.
        offsets: [N + 1] int64 from 0 to M, never decreasing; equal neighbours mean an unsupervised row.

    Raises:
        ProdError: dtypes, shapes, devices or offsets are not as above. `validate` checks ids and probs.
    """

    ids: Tensor
    probs: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        for name, tensor in (("ids", self.ids), ("offsets", self.offsets)):
            if tensor.dtype != torch.int64 or tensor.dim() != 1:
                raise ProdError(f"targets.{name}: expected 1-d int64, got {described(tensor)}: use .long().flatten()")
        if not self.probs.is_floating_point() or self.probs.shape != self.ids.shape:
            raise ProdError(
                f"targets.probs: expected one floating-point value per id, {list(self.ids.shape)}, "
                f"got {described(self.probs)}: build ids and probs together"
            )
        if not self.ids.device == self.probs.device == self.offsets.device:
            raise ProdError(
                f"targets: expected ids, probs and offsets on one device, got {self.ids.device}, {self.probs.device}, "
                f"{self.offsets.device}: move all three"
            )
        # One transfer from a GPU for all three.
        if not len(self.offsets) or bool(
            (self.offsets[0] != 0) | (self.offsets[-1] != len(self.ids)) | (self.counts < 0).any()
        ):
            raise ProdError(
                f"targets.offsets: expected to start at 0, never to decrease and to end at {len(self.ids)}, the number "
                f"of ids, got {self.offsets[:8].tolist()} ... {self.offsets[-1:].tolist()}: "
                "use the cumulative sum of the row lengths with a 0 in front"
            )

    def __len__(self) -> int:
        """Number of rows N, supervised or not."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> Tensor:
        """[N] int64: number of entries of each row."""
        return self.offsets.diff()

    def validate(self, vocab_size: int) -> int:
        """Check the values; `distillation_loss` does so on every call.

        Args:
            vocab_size: number of rows of the output head.

        Returns:
            The number of supervised rows. Of a GPU this and the check take one transfer.

        Raises:
            ProdError: an id outside [0, vocab_size), an id twice in one row, or a probability that is not finite.
        """
        bad_id = (self.ids < 0) | (self.ids >= vocab_size)
        bad_prob = ~self.probs.isfinite()
        keys = self._row_of_entry() * vocab_size + self.ids
        if len(self) * vocab_size < 2**31:  # a GPU sorts these in half the time
            keys = keys.int()
        keys = keys.sort().values
        twice = keys[1:] == keys[:-1]
        bad, live = torch.stack(
            [((bad_id | bad_prob).any() | twice.any()).long(), self.counts.count_nonzero()]
        ).tolist()
        if not bad:
            return int(live)
        if bad_id.any():
            raise ProdError(
                f"targets.ids: expected ids in [0, {vocab_size}), got {self.ids[bad_id][0].item()}: "
                "give an unsupervised position an empty row, not a label such as -100"
            )
        if bad_prob.any():
            raise ProdError(
                f"targets.probs: expected finite values, got {self.probs[bad_prob][0].item()} at id "
                f"{self.ids[bad_prob][0].item()}: make the targets again from finite reference logits"
            )
        row, token = divmod(int(keys[1:][twice][0]), vocab_size)
        raise ProdError(f"targets.ids: expected distinct ids in a row, got {token} twice in row {row}: add them up")

    def to(self, device: torch.device | str) -> SparseTargets:
        """The same targets on `device`; shares storage where they already are there."""
        return SparseTargets(self.ids.to(device), self.probs.to(device), self.offsets.to(device))

    def slice(self, start: int, stop: int) -> SparseTargets:
        """Rows `start:stop`; ids and probs are views.

        Raises:
            ProdError: not 0 <= start <= stop <= N.
        """
        if not 0 <= start <= stop <= len(self):
            raise ProdError(f"slice: expected 0 <= start <= stop <= {len(self)}, got {start}:{stop}: clip it first")
        offsets = self.offsets[start : stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return SparseTargets(self.ids[first:last], self.probs[first:last], offsets - first)

    def select(self, rows: Tensor | Sequence[int]) -> SparseTargets:
        """A copy of the given rows, in the given order; a row may come twice.

        Args:
            rows: [R] integers in [0, N), or [N] bool.

        Raises:
            ProdError: a row outside [0, N), or a mask of another length.
        """
        rows = torch.as_tensor(rows, device=self.ids.device)
        if rows.dtype == torch.bool:
            if rows.shape != (len(self),):
                raise ProdError(f"select: expected a mask of {len(self)} rows, got {described(rows)}: make one a row")
            rows = rows.nonzero().flatten()
        rows = rows.long()
        if (bad := (rows < 0) | (rows >= len(self))).any():
            raise ProdError(
                f"select: expected rows in [0, {len(self)}), got {rows[bad][0].item()}: count from the start"
            )
        counts = self.counts[rows]
        offsets = F.pad(counts.cumsum(0), (1, 0))
        moved = torch.repeat_interleave(self.offsets[rows] - offsets[:-1], counts)
        entries = moved + torch.arange(len(moved), device=moved.device)
        return SparseTargets(self.ids[entries], self.probs[entries], offsets)

    @classmethod
    def from_dense(cls, probs: Tensor) -> SparseTargets:
        """Keep what is not zero of a dense [N, V] tensor; for tests and small uses."""
        if probs.dim() != 2:
            raise ProdError(f"from_dense: expected [N, V], got {described(probs)}: use probs.flatten(0, -2)")
        rows, ids = probs.nonzero(as_tuple=True)
        return cls(ids, probs[rows, ids], F.pad((probs != 0).sum(-1).cumsum(0), (1, 0)))

    def to_dense(self, vocab_size: int) -> Tensor:
        """[N, vocab_size] in the dtype of `probs`; for tests and small uses."""
        self.validate(vocab_size)
        dense = self.probs.new_zeros(len(self), vocab_size)
        dense[self._row_of_entry(), self.ids] = self.probs
        return dense

    def _row_of_entry(self) -> Tensor:
        rows = torch.arange(len(self), device=self.ids.device)
        return torch.repeat_interleave(rows, self.counts, output_size=len(self.ids))


def distillation_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: SparseTargets,
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    bias: Tensor | None = None,
    logit_softcap: float | None = None,
    logit_scale: float | None = None,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of a frozen head against sparse targets, with the gradient to `hidden`.

    Equal to, but for rounding, and without any tensor of size [N, V]:

        z = logit_scale * (hidden @ weight.T + bias).float()
        z = logit_softcap * tanh(z / logit_softcap)
        loss = -(targets.to_dense(V) * z.log_softmax(-1)).sum() / denominator

    Both products with the head are made in the dtype of `weight`, autocast or not (a cast would copy the head); all
    between them is float32, or float64 for a float64 head. A row without targets costs no product, adds nothing and
    gets a gradient of exactly zero, whatever its hidden state holds.

    Args:
        hidden: [N, d] floating point, what the head is applied to: after the final norm, already shifted so that row i
            predicts what `targets` row i describes.
        weight: [V, d], the head. Frozen: it gets no gradient.
        targets: N rows of ids in [0, V), on the same device. Not changed.
        chunk_size: rows of logits that exist at once. Each logit takes 4 bytes, 2 more with a 16-bit head and 4 more
            with `logit_softcap`: 272 MB for 448 rows of a 152k vocabulary in fp32. On a GPU with Triton it takes what
            an element of the head does: 136 MB in bfloat16.
        bias: [V] in the dtype of `weight`, frozen too.
        logit_softcap: `final_logit_softcapping` of the model's configuration.
        logit_scale: factor on the logits (Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`).
        denominator: what the sum over rows is divided by. Default: the rows with a target, at least 1. Pass the
            count over all micro-batches and processes when gradients are accumulated: a mean of means would weigh
            every token by the luck of its batch.

    Returns:
        Scalar float32 (float64 for a float64 head). Differentiable once, by `hidden` only; where no gradient can be
        asked for (`torch.no_grad()`, or `hidden` does not require one) none is computed.

    Raises:
        ProdError: shapes, dtypes, devices, ids or options that do not fit; a weight or bias that requires a gradient
            while gradients are recorded; in the backward pass, `create_graph=True`.
    """
    live = _check_head(hidden, weight, bias, targets)
    scale = 1.0 if logit_scale is None else logit_scale
    if chunk_size < 1:
        raise ProdError(f"chunk_size: expected at least 1 row, got {chunk_size}: leave it out for {DEFAULT_CHUNK_SIZE}")
    if not (math.isfinite(scale) and scale):
        raise ProdError(f"logit_scale: expected a finite factor other than 0, got {logit_scale}: use None for no scale")
    if logit_softcap is not None and not 0 < logit_softcap < math.inf:
        raise ProdError(f"logit_softcap: expected a finite bound above 0, got {logit_softcap}: use None for no cap")
    divisor = max(1, live) if denominator is None else _divisor(denominator)

    differentiable = torch.is_grad_enabled() and hidden.requires_grad
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        head = _Head(weight, bias, scale, logit_softcap)
        total, grad = _sum_and_grad(hidden, head, targets, live, chunk_size, want_grad=differentiable)
    if grad is not None:
        total = with_gradient(hidden, total, grad)
    return total / divisor


def sparse_kl(
    hidden: Tensor,
    weight: Tensor,
    targets: SparseTargets,
    *,
    denominator: float | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """KL(t || p_theta) = cross-entropy - H(t): the part of `distillation_loss` that training can remove. Reports only.

    Args:
        hidden: as for `distillation_loss`, like all other arguments.
        weight: [V, d].
        targets: N rows, none negative; each should sum to 1.
        denominator: as for `distillation_loss`.
        **options: the other keywords of `distillation_loss`.

    Returns:
        Scalar in nats a row, without a gradient.

    Raises:
        ProdError: as `distillation_loss`, or a negative target (alpha > 0), which has no entropy.
    """
    if (negative := targets.probs < 0).any():
        raise ProdError(
            f"targets.probs: expected values of at least 0, got {targets.probs[negative][0].item()}: "
            "KL is undefined with alpha > 0, report distillation_loss"
        )
    divisor = _divisor(max(1, int(targets.counts.count_nonzero())) if denominator is None else denominator)
    with torch.no_grad():
        loss = distillation_loss(hidden, weight, targets, denominator=divisor, **options)
        return loss + torch.xlogy(targets.probs, targets.probs).sum(dtype=loss.dtype) / divisor


def with_gradient(hidden: Tensor, value: Tensor, grad: Tensor) -> Tensor:
    """A value whose gradient to `hidden` was found together with it.

    Args:
        hidden: [N, d], what the gradient flows to.
        value: scalar, or [N] of which each depends on its own row alone; without a gradient. Not changed.
        grad: [N, d], that of the scalar, or each row's own.

    Returns:
        A copy of `value`, differentiable once.

    Raises:
        ProdError: in the backward pass, `create_graph=True`.
    """
    return cast("Tensor", _WithGrad.apply(hidden, value, grad))  # type: ignore[no-untyped-call]


class _WithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, value: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        ctx.dtype = hidden.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():  # the engine's sign for create_graph=True
            raise ProdError(
                "loss: expected one backward pass, got create_graph=True: it has no second derivative, use a dense "
                "cross-entropy for that"
            )
        (grad,) = ctx.saved_tensors
        # A 16-bit grad times a float32 scalar would round the scalar first, and with it every gradient the same way.
        return (grad.to(grad_output.dtype) * grad_output.unsqueeze(-1)).to(ctx.dtype), None, None


@dataclass(frozen=True, slots=True)
class _Head:
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None


def _sum_and_grad(
    hidden: Tensor, head: _Head, targets: SparseTargets, live: int, chunk_size: int, *, want_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of the losses of all rows, `live` of them supervised, and its gradient [N, d] in the dtype of the head."""
    if live == len(targets):
        return _of_supervised(hidden, head, targets, chunk_size, want_grad=want_grad)
    # Rows without targets own no entries, so the others' follow each other without them too.
    rows = targets.counts.nonzero().flatten()
    packed = SparseTargets(targets.ids, targets.probs, F.pad(targets.offsets[rows + 1], (1, 0)))
    total, grad_rows = _of_supervised(hidden[rows], head, packed, chunk_size, want_grad=want_grad)
    if grad_rows is None:
        return total, None
    return total, head.weight.new_zeros(hidden.shape).index_copy_(0, rows, grad_rows)


def _of_supervised(
    hidden: Tensor, head: _Head, targets: SparseTargets, chunk_size: int, *, want_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """The same for rows that all have targets."""
    dtype = torch.promote_types(head.weight.dtype, torch.float32)
    if dtype == torch.float32 and _kernel_runs(hidden):
        return _with_kernel(hidden, head, targets, chunk_size, want_grad=want_grad)
    total = torch.zeros((), dtype=dtype, device=hidden.device)
    grad = head.weight.new_empty(hidden.shape) if want_grad else None
    row = targets._row_of_entry()
    edges = [*targets.offsets[:-1:chunk_size].tolist(), len(targets.ids)]
    for start, (first, last) in zip(range(0, len(hidden), chunk_size), pairwise(edges), strict=True):
        rows = slice(start, start + chunk_size)
        entries = row[first:last] - start, targets.ids[first:last], targets.probs[first:last].to(dtype)
        loss, grad_rows = _tile(hidden[rows], head, *entries, want_grad=want_grad)
        total += loss
        if grad is not None and grad_rows is not None:
            grad[rows] = grad_rows
    return total, grad


def _tile(
    hidden: Tensor, head: _Head, row: Tensor, ids: Tensor, probs: Tensor, *, want_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss of one chunk and its gradient; a function of its own so that the tile dies before the next one is made.

    `z` becomes in turn: logits, logits - max, exp(logits - max), dL/dz.
    """
    z = F.linear(hidden.to(head.weight.dtype), head.weight, head.bias).to(probs.dtype)
    if head.scale != 1:
        z.mul_(head.scale)
    slope = None
    if head.softcap is not None:
        z.div_(head.softcap).tanh_()
        slope = z.square().neg_().add_(1) if want_grad else None
        z.mul_(head.softcap)
    z.sub_(z.amax(-1, keepdim=True))
    flat, at = z.view(-1), row * z.shape[1] + ids
    target_z = flat[at]
    norm = z.exp_().sum(-1)
    # sum_k t_k * (lse - z_k) rather than S * lse - sum_k t_k * z_k: no difference of two large sums.
    loss = probs @ (norm.log()[row] - target_z)
    if not want_grad:
        return loss, None
    mass = torch.zeros_like(norm).index_add_(0, row, probs)
    z.mul_((head.scale * mass / norm).unsqueeze(-1))
    flat.index_add_(0, at, probs, alpha=-head.scale)
    if slope is not None:
        z.mul_(slope)
    return loss, z.to(head.weight.dtype) @ head.weight


def _kernel_runs(hidden: Tensor) -> bool:
    return hidden.is_cuda and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _with_kernel(
    hidden: Tensor, head: _Head, targets: SparseTargets, chunk_size: int, *, want_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """`_of_supervised` with the kernel, chunk after chunk in one tile; the host waits for nothing."""
    from prod_train.loss import kernels

    weight, count, vocab_size = head.weight, len(hidden), len(head.weight)
    hidden = hidden.to(weight.dtype)
    probs = targets.probs.float().contiguous()
    losses = torch.zeros(count, dtype=torch.float32, device=hidden.device)
    scratch = torch.empty_like(probs)
    grad = torch.empty_like(hidden) if want_grad else None
    # Rows begin at multiples of 16 elements, so that several are read at once whatever the vocabulary's size.
    tile = weight.new_empty(min(chunk_size, count), -(-vocab_size // 16) * 16)[:, :vocab_size]
    for start in range(0, count, chunk_size):
        rows = slice(start, start + chunk_size)
        z = tile[: len(losses[rows])]
        if head.bias is None:
            torch.mm(hidden[rows], weight.T, out=z)
        else:
            torch.addmm(head.bias, hidden[rows], weight.T, out=z)
        kernels.loss_and_gradient[(len(z),)](
            z,
            z.stride(0),
            vocab_size,
            targets.ids,
            probs,
            targets.offsets[start:],
            losses[rows],
            scratch,
            float(head.scale),
            head.softcap or 1.0,
            capped=head.softcap is not None,
            want_gradient=want_grad,
            block=kernels.BLOCK,
            entries=kernels.ENTRIES,
            num_warps=kernels.WARPS,
        )
        if grad is not None:
            torch.mm(z, weight, out=grad[rows])
    return losses.sum(), grad


def _check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: SparseTargets) -> int:
    """The number of supervised rows."""
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise ProdError(f"hidden: expected [N, d] floating point, got {described(hidden)}: use hidden.flatten(0, -2)")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1] or weight.dtype not in _HEAD_DTYPES:
        raise ProdError(
            f"weight: expected [V, {hidden.shape[1]}] in 16, 32 or 64 bit floating point, "
            f"got {described(weight)}: pass the unquantised weight of the output head, lm_head.weight"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ProdError(
            f"bias: expected {described(weight[:, 0])} like the rows of weight, got {described(bias)}: "
            "pass lm_head.bias, cast to the dtype of weight"
        )
    if len(targets) != len(hidden):
        raise ProdError(
            f"targets: expected {len(hidden)} rows, one per row of hidden, got {len(targets)}: "
            "select the same rows of both; an unsupervised row is an empty one"
        )
    for name, tensor in (("weight", weight), ("bias", bias), ("targets", targets.ids)):
        if tensor is not None and tensor.device != hidden.device:
            raise ProdError(
                f"{name}: expected it on {hidden.device} like hidden, got {tensor.device}: use .to() on one"
            )
    for name, tensor in (("weight", weight), ("bias", bias), ("targets.probs", targets.probs)):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ProdError(
                f"{name}: expected requires_grad=False (only hidden gets a gradient), got True: "
                f"leave the output head out of target_modules and freeze it, or pass {name}.detach()"
            )
    return targets.validate(len(weight))


def _divisor(denominator: float | Tensor) -> float:
    divisor = float(denominator)
    if not 0 < divisor < math.inf:
        raise ProdError(
            f"denominator: expected a finite count above 0, got {divisor}: pass the global number of supervised rows, "
            "at least 1"
        )
    return divisor
