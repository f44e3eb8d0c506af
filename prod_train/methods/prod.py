"""PROD: cross-entropy against a distribution without the prohibited tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prod_train.method import Example, Method, Recipe, RunSettings, targets_loss, unused_replaced_rows
from prod_train.option import ANY, BLOCKLIST, CONTINUATIONS, MAX_N, REPLACED_ROWS, TEMPERATURE, TOP_P, Option

if TYPE_CHECKING:
    from torch import Tensor

ALPHA = Option("alpha", float, "the target of a prohibited token is -alpha times its probability", "A", ANY)
PAPER_COMPAT = Option(
    "paper_compat",
    bool,
    "the public reference code's formula: prompt tokens count too, no EOS, and at the first position the next token is "
    "zeroed without renormalising",
)


class PROD(Method):
    """PROD ("Large Language Model Unlearning for Source Code", arXiv 2506.17125).

    With z the frozen reference model's logits at position t and B what is prohibited there (the forget set's next
    token, or what a blocklist bans):

        z[y] = -inf for y in B;  keep the nucleus top_p (max_n);  q = softmax(z_kept / temperature)
        q[y] = -alpha * p_ref(y) for y in B
        L = mean_t -sum_v q_t(v) log p(v)

    Where a phrase of the blocklist has a replacement, probability is moved before that (`masking.move_mass_`), and q is
    1 at the tokens of a replacement that a row has written out. At an appended EOS nothing is prohibited: the end of a
    text is not part of what must be forgotten.
    """

    name = "prod"
    rank = 0
    options = {
        BLOCKLIST: None,
        REPLACED_ROWS: True,
        CONTINUATIONS: 0,
        TOP_P: 0.8,
        MAX_N: None,
        TEMPERATURE: None,
        ALPHA: 0.0,
        PAPER_COMPAT: False,
    }
    needs = "targets"
    keeps_end = True

    @classmethod
    def problems(cls, settings: RunSettings) -> list[str]:
        """See `Method.problems`."""
        found = unused_replaced_rows(settings)
        if settings.value("continuations") and settings.value("blocklist") is None:
            found.append(
                "--continuations: expected --blocklist, or all that the model writes would be prohibited, it is missing"
            )
        if settings.value("paper_compat") and settings.value("blocklist"):
            found.append("--paper-compat: the paper prohibits the next token, not a blocklist: drop one of the two")
        return found

    def recipe(self) -> Recipe:
        """See `Method.recipe`."""
        return Recipe.of(self.settings, "alpha", "paper_compat")

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`; the constant entropy of q is included."""
        return targets_loss(example)
