"""CE-U: the model teaches itself, without the label."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from prod_train.method import Example, Method

if TYPE_CHECKING:
    from torch import Tensor

    from prod_train.data.rows import Row


class CEU(Method):
    """CE-U ("Cross Entropy Unlearning", arXiv 2503.01224): the model teaches itself, without the label.

        L = mean_t -sum_v q_t(v) log p(v),  q_t = softmax(z with z[y] = -inf), without gradient

    No reference model and no nucleus. The value reported is KL(q || p) = -log(1 - p(y)), which has the same gradient.
    The first token of an answer is left alone, as the code in open-unlearning does (`ignore_first_n_answer_tokens=1`),
    after a footnote to the paper's training settings. An answer is a whole completion behind a prompt; spans and
    texts are concerned from their first token on.
    """

    name = "ce-u"
    rank = 3

    def trained(self, row: Row) -> Row:
        """See `Method.trained`; without the first token of an answer, too."""
        row = super().trained(row)
        is_answer = bool(row.prompt) and bool(row.supervised[row.start : row.stop].all())
        if not is_answer or row.tokens < 2:
            return row
        return replace(row, supervised=row.supervised & (np.arange(len(row.ids)) > row.start))

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`."""
        from prod_decode.masking import prod_distribution

        forget = example.forget
        rows = forget.head.teach(forget.hidden, forget.hidden, forget.batch.labels, prod_distribution)
        return rows.sum() / example.denominator
