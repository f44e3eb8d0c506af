"""Attacks on the weights, by anyone who has them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import ClassVar

from bench.attacks.base import Attack, Setting, Weights


class _Relearning(Attack):
    """The adapter is trained on the forgotten rows again; `steps`: None for as many as forgetting took."""

    on_weights = True
    steps: ClassVar[int | None] = None

    def weights(self, weights: Weights, setting: Setting) -> Weights:
        """See `Attack.weights`."""
        if weights.adapter is None and not self.on_untaught:
            return weights
        steps = setting.steps if self.steps is None else self.steps
        again = setting.trainer.relearned(weights.model, weights.adapter, setting.rows, steps=steps, seed=setting.seed)
        return Weights(weights.model, again)


class Relearned(_Relearning):
    """For as many steps as forgetting took."""

    name = "relearned"
    rank = 50


class _Point(_Relearning):
    """A point of a relearning curve.

    The model that never saw the text learns it as well: what an unlearned one is ahead of it was not forgotten.
    """

    on_untaught = True


class Relearned5(_Point):
    """Five steps."""

    name = "relearned-5"
    rank = 52
    steps = 5


class Relearned15(_Point):
    """Fifteen."""

    name = "relearned-15"
    rank = 53
    steps = 15


class Relearned30(_Point):
    """Thirty."""

    name = "relearned-30"
    rank = 54
    steps = 30


class Relearned60(_Point):
    """Sixty."""

    name = "relearned-60"
    rank = 55
    steps = 60


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
