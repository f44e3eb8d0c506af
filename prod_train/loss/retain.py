"""The loss on the retain set, an option of every method."""

from __future__ import annotations

from torch import Tensor

from prod_train.loss.objective import Pass


def retain_loss(kind: str, retain: Pass, hidden: Tensor | None, denominator: float) -> Tensor:
    """Keep the model as it is elsewhere: a sum over tokens divided by `denominator`, in nats.

    Args:
        kind: `nll`: -log p(y). `kl`: KL(p_ref || p) over the whole vocabulary, from the reference's hidden states.
        retain: forward pass of the retain rows.
        hidden: for `kl`: [N, d], the reference model's hidden states.
        denominator: retain tokens of the whole optimizer step.
    """
    if kind == "nll":
        return -retain.log_probs().sum() / denominator

    if hidden is None:
        raise RuntimeError("the trainer did not pass the reference model's hidden states")

    def target(z: Tensor, labels: Tensor) -> Tensor:
        del labels
        return z.softmax(-1)

    return retain.head.teach(retain.hidden, hidden, retain.batch.labels, target).sum() / denominator
