"""PROD and its relatives: cross-entropy against a distribution without the prohibited tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from prod_decode.masking import prod_distribution
from prod_train.data.rows import Row
from prod_train.methods.base import Example, Method, given
from prod_train.targets.reference import Kind


class PROD(Method):
    """PROD ("Large Language Model Unlearning for Source Code", arXiv 2506.17125).

    With z the frozen reference model's logits at position t and B what is prohibited there (the forget set's next
    token, or what a blocklist bans):

        z[y] = -inf for y in B;  keep the nucleus top_p (max_n);  q = softmax(z_kept / temperature)
        q[y] = -alpha * p_ref(y) for y in B
        L = mean_t -sum_v q_t(v) log p(v)

    At an appended EOS nothing is prohibited: the end of a text is not part of what must be forgotten.
    """

    name = "prod"
    needs = "targets"
    keeps_end = True

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`; the constant entropy of q is included."""
        forget, targets = example.forget, given(example.reference.targets)
        return forget.head.cross_entropy(forget.hidden, targets, example.denominator)


class Surgical(PROD):
    """PROD at anchors only; this project's own (docs/surgical.md).

    To stop every quote of `max_quote` characters it is enough to prohibit one anchor in each window of so many. They
    are where the reference model has alternatives: the sum of -log(1 - p_ref(y)) over the tokens y that complete them
    is the least possible. B is what a blocklist of these anchors bans, z and q are as in PROD where y is in B, and

        q = softmax(z with -inf at B, its `keep` largest)

    at every other position: the model is told to stay as it is. The loss is PROD's.
    """

    name = "prod-surgical"


class UNDIAL(PROD):
    """UNDIAL (arXiv 2402.10052): distil the reference model with the label's logit lowered.

        L = mean_t -sum_v q_t(v) log p(v),  q_t = softmax(z_ref - beta * onehot(y))

    `top_p` below 1 keeps the nucleus of q only, renormalised, and makes the targets sparse; that is not in the paper.
    """

    name = "undial"
    keeps_end = False

    @property
    def kind(self) -> Kind:
        """Sparse targets for a nucleus; else hidden states, from which the logits are made again."""
        sparse = self.config.nucleus < 1 or self.config.max_n is not None
        return "targets" if sparse else "hidden"

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`; without the constant entropy of q where the whole vocabulary is kept."""
        if self.kind == "targets":
            return super().loss(example)

        def target(z: Tensor, labels: Tensor) -> Tensor:
            z[torch.arange(len(z), device=z.device), labels] -= self.config.strength
            return (z / (self.config.temperature or 1.0)).softmax(-1)

        forget = example.forget
        rows = forget.head.teach(forget.hidden, given(example.reference.hidden), forget.batch.labels, target)
        return rows.sum() / example.denominator


class CEU(Method):
    """CE-U ("Cross Entropy Unlearning", arXiv 2503.01224): the model teaches itself, without the label.

        L = mean_t -sum_v q_t(v) log p(v),  q_t = softmax(z with z[y] = -inf), without gradient

    No reference model and no nucleus. The value reported is KL(q || p) = -log(1 - p(y)), which has the same gradient.
    The first token of an answer is left alone, as the code in open-unlearning does (`ignore_first_n_answer_tokens=1`),
    after a footnote to the paper's training settings. An answer is a whole completion behind a prompt; spans and
    texts are concerned from their first token on.
    """

    name = "ce-u"

    def trained(self, row: Row) -> Row:
        """See `Method.trained`; without the first token of an answer, too."""
        row = super().trained(row)
        is_answer = bool(row.prompt) and bool(row.supervised[row.start : row.stop].all())
        if not is_answer or row.tokens < 2:
            return row
        return replace(row, supervised=row.supervised & (np.arange(len(row.ids)) > row.start))

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        forget = example.forget
        rows = forget.head.teach(forget.hidden, forget.hidden, forget.batch.labels, prod_distribution)
        return rows.sum() / example.denominator
