"""Attacks on the weights, by anyone who has them."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product
from typing import ClassVar

from bench.attacks.base import Attack, Setting, Weights
from bench.models.training import LEARN_RATE


class _Relearning(Attack):
    """The model is trained on the forgotten rows again.

    Attributes:
        steps: of training; None for as many as forgetting took.
        rate: the peak of the learning rate; None for that of the teaching.
        tuning: `lora` goes on with the adapter, or begins one where there is none; `full` trains all weights of what
            the adapter was merged into.
    """

    on_weights = True
    steps: ClassVar[int | None] = None
    rate: ClassVar[float | None] = None
    tuning: ClassVar[str] = "lora"

    def weights(self, weights: Weights, setting: Setting) -> Weights:
        """See `Attack.weights`."""
        if weights.adapter is None and not self.on_untaught:
            return weights
        again = setting.trainer.relearned(
            weights.model,
            weights.adapter,
            setting.rows,
            steps=setting.steps if self.steps is None else self.steps,
            seed=setting.seed,
            rate=self.rate,
            tuning=self.tuning,
        )
        return Weights(str(again), None) if self.tuning == "full" else Weights(weights.model, again)


class Relearned(_Relearning):
    """For as many steps as forgetting took."""

    name = "relearned"
    rank = 50


class _Point(_Relearning):
    """A point of a relearning curve.

    The model that never saw the text learns it as well: what an unlearned one is ahead of it was not forgotten.
    """

    on_untaught = True


# An attacker chooses the rate, so a curve is the best of several.
RELEARNING_STEPS = (5, 15, 30, 60)
RELEARNING_RATES = {"lora": (3e-4, LEARN_RATE, 3e-3), "full": (1e-5, 3e-5, 1e-4)}

_TAUGHT = ("lora", LEARN_RATE)  # as the model was taught


def relearning(steps: int, tuning: str, rate: float) -> str:
    """The name of a point of a curve, such as `relearned-15`, `relearned-15-3e-4`, `relearned-15-full-1e-5`."""
    if (tuning, rate) == _TAUGHT:
        return f"relearned-{steps}"
    return f"relearned-{steps}-full-{_brief(rate)}" if tuning == "full" else f"relearned-{steps}-{_brief(rate)}"


def _kind(tuning: str, rate: float) -> str:
    taught = (tuning, rate) == _TAUGHT
    first, *others = [rate] if taught else [one for one in RELEARNING_RATES[tuning] if (tuning, one) != _TAUGHT]
    steps = f"{', '.join(map(str, RELEARNING_STEPS[1:]))} steps"
    rates = f"; or {', '.join(map(_brief, others))}" if others else ""
    return f"{relearning(RELEARNING_STEPS[0], tuning, first)} (or {steps}{rates})"


def _brief(rate: float) -> str:
    return f"{rate:.0e}".replace("e-0", "e-")


def _point(place: int, steps: int, tuning: str, rate: float) -> type:
    values = {
        "__module__": __name__,
        "__doc__": f"{steps} steps at {rate:g}, {tuning}.",
        "name": relearning(steps, tuning, rate),
        "rank": 52 + place,
        "in_full": (tuning, rate) == _TAUGHT,
        "kind": _kind(tuning, rate),
        "steps": steps,
        "tuning": tuning,
        "rate": rate,
    }
    return type(f"Relearning{place}", (_Point,), values)


_WAYS = [(tuning, rate) for tuning, rates in RELEARNING_RATES.items() for rate in rates]

# A class each, which the registry finds among the names of this module.
globals().update(
    {
        f"Relearning{place}": _point(place, steps, *way)
        for place, (way, steps) in enumerate(product(_WAYS, RELEARNING_STEPS))
    }
)


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
