"""How much a benchmark run measures."""

from __future__ import annotations

from dataclasses import dataclass

from prod_train.config import METHODS

# At decode time, in `bench.decoders`.
DECODERS = ("base", "decode", "bad-words", "memfree")
TASKS = ("copyright", "insecure", "deprecated")
TRAINED = tuple(method for method in METHODS if method != "learn")
PROTOCOLS = ("learn", "natural")


@dataclass(frozen=True, slots=True)
class Profile:
    """The size of a run.

    Attributes:
        samples: of each task, the first ones; None for all.
        held_out: functions of the standard library for KL and agreement.
        learn_epochs: of teaching, in the protocol `learn`.
        epochs: of unlearning.
        every: epochs between cells of one training.
        max_new_tokens: of an output.
        methods: in the order in which they run.
        protocols: `learn`, `natural`.
        attacks: what is done to prompts and models, besides `none`.
        trials: outputs a prompt in the attack by sampling.
        seeds: of training and sampling.
        humaneval: problems, 0 for none, None for all; only with `--humaneval`.
    """

    samples: int | None
    held_out: int
    learn_epochs: float
    epochs: int
    every: int
    max_new_tokens: int
    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    attacks: tuple[str, ...]
    trials: int
    seeds: tuple[int, ...]
    humaneval: int | None


_PREFIXES = ("prefix-1", "prefix-25%", "prefix-50%", "prefix-75%")
_STYLES = ("renamed", "case", "reformatted", "comments-stripped", "comments-added", "instruction-1", "tokenised")
ON_WEIGHTS = ("relearned", "4bit")
ATTACKS = (*_PREFIXES, *_STYLES, "sampled", *ON_WEIGHTS)

PROFILES = {
    "smoke": Profile(
        samples=6,
        held_out=8,
        learn_epochs=20,
        epochs=8,
        every=8,
        max_new_tokens=96,
        methods=("base", "decode", "prod", "npo", "ga", "prod+decode"),
        protocols=("learn",),
        attacks=("prefix-25%",),
        trials=1,
        seeds=(0,),
        humaneval=20,
    ),
    "small": Profile(
        samples=24,
        held_out=24,
        learn_epochs=12,
        epochs=6,
        every=1,
        max_new_tokens=128,
        methods=(*DECODERS, *TRAINED, "prod+decode"),
        protocols=("learn",),
        attacks=ATTACKS,
        trials=4,
        seeds=(0,),
        humaneval=164,
    ),
    "full": Profile(
        samples=None,
        held_out=24,
        learn_epochs=12,
        epochs=10,
        every=1,
        max_new_tokens=300,
        methods=(*DECODERS, *TRAINED, "prod+decode"),
        protocols=PROTOCOLS,
        attacks=ATTACKS,
        trials=16,
        seeds=(0, 1, 2),
        humaneval=None,
    ),
}
