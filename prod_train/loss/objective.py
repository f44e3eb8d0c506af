"""A causal language model without its output head, and the quantities that losses are made of.

The head never sees a whole sequence: `Encoder` gives the hidden states of the supervised positions alone, and `Head`
turns them into logits a chunk of rows at a time, so no [N, V] tensor ever exists. The gradient of a frozen head's chunk
is found while its logits are there; those of a head that trains are made again in the backward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prod_decode.errors import ProdError
from prod_train.data.rows import Batch
from prod_train.loss.sparse import DEFAULT_CHUNK_SIZE, SparseTargets, distillation_loss, with_gradient


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer: `logits = softcap * tanh(scale * (h @ weight.T + bias) / softcap)`.

    Attributes:
        weight: [V, d].
        bias: [V] or None.
        softcap: `final_logit_softcapping` (Gemma) or None.
        scale: `logit_scale` (Cohere), or one over `logits_scaling` (Granite).
        chunk_size: rows of logits that exist at once.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    chunk_size: int = DEFAULT_CHUNK_SIZE

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, V] in float32 (float64 for a float64 head), for a few rows."""
        z = F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        z = z.to(torch.promote_types(z.dtype, torch.float32)) * self.scale
        return z if self.softcap is None else self.softcap * (z / self.softcap).tanh()

    def log_probs(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """`log softmax(logits)[label]` of every row: [N] float32."""

        def of_chunk(h: Tensor, y: Tensor) -> Tensor:
            return self.logits(h).log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)

        return self._chunked(of_chunk, hidden, labels)

    def cross_entropy(self, hidden: Tensor, targets: SparseTargets, denominator: float) -> Tensor:
        """`-sum_v t(v) log p(v)` over rows, divided: `distillation_loss`, or its plain form for a head that trains."""
        if self._frozen:
            return distillation_loss(
                hidden,
                self.weight,
                targets,
                chunk_size=self.chunk_size,
                bias=self.bias,
                logit_softcap=self.softcap,
                logit_scale=self.scale,
                denominator=denominator,
            )
        targets.validate(len(self.weight))

        def of_chunk(h: Tensor, numbers: Tensor) -> Tensor:
            part = targets.slice(int(numbers[0]), int(numbers[-1]) + 1)
            row = torch.repeat_interleave(numbers - numbers[0], part.counts)
            log_p = self.logits(h).log_softmax(-1)
            return torch.zeros_like(log_p[:, 0]).index_add(0, row, -part.probs * log_p[row, part.ids])

        return self._chunked(of_chunk, hidden, torch.arange(len(hidden), device=hidden.device)).sum() / denominator

    def teach(
        self, hidden: Tensor, teacher: Tensor, labels: Tensor, target: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """KL(t || p) of every row, [N] float32, with `t = target(teacher's logits, labels)`, which gets no gradient.

        Args:
            hidden: [N, d].
            teacher: [N, d], hidden states of the teacher, for the same head.
            labels: int64 [N].
            target: from [n, V] logits, which it may change, and [n] labels to [n, V] probabilities.
        """

        def of_chunk(h: Tensor, h_teacher: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                t = target(self.logits(h_teacher), y)
                entropy = -torch.xlogy(t, t).sum(-1)
            return -(t * self.logits(h).log_softmax(-1)).sum(-1) - entropy

        return self._chunked(of_chunk, hidden, teacher.detach(), labels)

    @property
    def _frozen(self) -> bool:
        return not (self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad))

    def _chunked(self, function: Callable[..., Tensor], hidden: Tensor, *others: Tensor) -> Tensor:
        """`function` of a chunk of rows at a time, [N]; a row's value may depend on that row alone."""
        if not len(hidden):
            return hidden.sum(-1).float()
        chunks = list(zip(*(torch.split(tensor, self.chunk_size) for tensor in (hidden, *others)), strict=True))
        if not torch.is_grad_enabled() or (self._frozen and not hidden.requires_grad):
            return torch.cat([function(*chunk) for chunk in chunks])
        if not self._frozen:
            return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])
        values, gradients = zip(*(_value_and_gradient(function, *chunk) for chunk in chunks), strict=True)
        return with_gradient(hidden, torch.cat(values), torch.cat(gradients))


def _value_and_gradient(function: Callable[..., Tensor], hidden: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """Values of rows, [n], and the gradient of each to its own row, [n, d]: what their sum's is, row by row."""
    leaf = hidden.detach().requires_grad_()
    values = function(leaf, *others)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient


class Encoder:
    """Runs a causal language model and returns what its output head would be applied to."""

    def __init__(self, base: Any, chunk_size: int = DEFAULT_CHUNK_SIZE) -> None:
        """Attach to a model.

        Args:
            base: the transformers model, which adapters may be injected into later.
            chunk_size: of the `Head`s.

        Raises:
            ProdError: it is not known how this model makes its logits from its hidden states.
        """
        output = base.get_output_embeddings()
        decoder = base.get_decoder()
        if output is None or decoder is None or decoder is base:
            raise ProdError(f"{type(base).__name__}: expected a causal language model with an output head")
        self._base = base
        self._chunk_size = chunk_size
        self._kept = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
        self._last: Tensor | None = None
        self._hook = decoder.register_forward_hook(self._remember)
        self._check()

    def _remember(self, module: Any, arguments: Any, output: Any) -> None:
        del module, arguments
        self._last = output[0]

    def head(self) -> Head:
        """The output head as it is now; gathers its weight where it is sharded."""
        output, config = self._base.get_output_embeddings(), self._base.config
        weight, bias = output.weight, getattr(output, "bias", None)
        if hasattr(weight, "full_tensor"):
            weight, bias = weight.full_tensor(), bias.full_tensor() if bias is not None else None
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        return Head(weight, bias, getattr(config, "final_logit_softcapping", None), scale, self._chunk_size)

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """The hidden states of the supervised positions, [N, d].

        Args:
            model: the model itself, or a wrapper of it (an adapter, DistributedDataParallel) whose forward is called.
            batch: on the model's device.
        """
        return self.states(model, batch).flatten(0, 1)[batch.position]

    def states(self, model: Any, batch: Batch) -> Tensor:
        """The hidden states of all positions, [B, T, d]."""
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **self._kept)
        hidden, self._last = self._last, None
        if hidden is None:
            raise ProdError("the model's decoder did not run: was it replaced after this encoder was attached to it?")
        return hidden

    @torch.no_grad()
    def _check(self) -> None:
        """Compare our logits with the model's own on two tokens: a family may do to them what we do not know."""
        ids = torch.tensor([[0, 1]], device=self._base.device)
        theirs = self._base(input_ids=ids, use_cache=False).logits.float()
        hidden, self._last = self._last, None
        ours = self.head().logits(hidden[0]) if hidden is not None else theirs.new_zeros(())
        difference = (ours - theirs).abs().max().item()
        if not difference <= 0.02 * max(1.0, theirs.abs().max().item()):
            raise ProdError(
                f"{type(self._base).__name__}: expected logits that are its head applied to its last hidden state, got "
                f"a difference of {difference:.3g}: this family is not supported"
            )


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass: the hidden states of the supervised positions, the head, and what they belong to.

    Attributes:
        hidden: [N, d].
        head: the output head.
        batch: its labels are those of `hidden`.
    """

    hidden: Tensor
    head: Head
    batch: Batch

    def log_probs(self) -> Tensor:
        """The log-probability of every supervised token, [N]."""
        return self.head.log_probs(self.hidden, self.batch.labels)

    def row_sums(self, values: Tensor) -> Tensor:
        """[N] values summed by row of the batch: [B]."""
        return values.new_zeros(self.batch.rows).index_add(0, self.batch.row, values)

    def row_sizes(self) -> Tensor:
        """The number of supervised positions of every row, [B] float, at least 1."""
        return self.row_sums(torch.ones_like(self.batch.row, dtype=torch.float32)).clamp(min=1)
