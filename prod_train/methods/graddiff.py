"""Gradient difference: ascent on what to forget, descent on what to retain."""

from __future__ import annotations

from prod_train.method import RunSettings
from prod_train.methods.ga import GA


class GradDiff(GA):
    """Gradient difference (Liu et al., "Continual Learning and Private Unlearning", arXiv 2203.12817).

    `GA` on the forget set, bounded likewise, and a retain loss, which this method requires (default NLL):

        L = mean_forget max(log p, -max_nll) + retain_weight * mean_retain -log p
    """

    name = "graddiff"
    rank = 5
    retain_loss = "nll"

    @classmethod
    def problems(cls, settings: RunSettings) -> list[str]:
        """See `Method.problems`."""
        if settings.value("retain_loss") == "none":
            return ["--retain: graddiff needs a data set for its retain loss, or use --method ga"]
        return []
