"""Attacks on the weights, by anyone who has them."""

from __future__ import annotations

from importlib.util import find_spec

from bench.attacks.base import Attack, Setting, Weights


class Relearned(Attack):
    """The adapter is trained on the forgotten rows again, for as many steps as forgetting took."""

    name = "relearned"
    rank = 50
    on_weights = True

    def weights(self, weights: Weights, setting: Setting) -> Weights:
        """See `Attack.weights`."""
        if weights.adapter is None:
            return weights
        again = setting.trainer.relearned(weights.adapter, setting.rows, steps=setting.steps, seed=setting.seed)
        return Weights(weights.model, again)


class FourBit(Attack):
    """The adapter is merged into the model, and that is quantised to 4 bits."""

    name = "4bit"
    rank = 51
    on_weights = True

    @classmethod
    def problem(cls) -> str:
        """See `Attack.problem`."""
        if find_spec("bitsandbytes") is not None:
            return ""
        return "4bit needs bitsandbytes, which is not installed: pip install 'prod-code-unlearning[4bit]'"

    def weights(self, weights: Weights, setting: Setting) -> Weights:
        """See `Attack.weights`."""
        if weights.adapter is None:
            return weights
        return Weights(str(setting.trainer.merged(weights.model, weights.adapter)), None, four_bit=True)
