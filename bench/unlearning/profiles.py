"""How much a benchmark run measures."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

from bench.attacks import ATTACKS
from bench.guards import GUARDS
from bench.models.training import FIRST_ROUND
from prod_train.config.config import Config, default_of
from prod_train.methods import METHODS

# The model before it was taught, as if it had never seen what is to be forgotten: what unlearning would be at best.
UNTAUGHT = "untaught"
# What is measured once, at epoch 0.
UNTRAINED = (*GUARDS, UNTAUGHT)
SECOND_ROUND = f"{FIRST_ROUND}-2"
# `prod` with the blocklist of the guard `decode-replace`.
REPLACING = "prod-replace"
TRAINED = (*(name for name, method in METHODS.items() if method.forgets), SECOND_ROUND, REPLACING)
PROTOCOLS = ("learn", "natural")


@dataclass(frozen=True, slots=True)
class Profile:
    """The size of a run.

    Attributes:
        samples: of each task, the first ones; None for all.
        held_out: functions of the standard library for KL and agreement; 0: outputs alone are measured.
        learn_epochs: of teaching, in the protocol `learn`.
        epochs: of unlearning.
        every: epochs between cells of one training.
        max_new_tokens: of an output that may recite a document.
        max_line_tokens: of an output of the other tasks, where the next lines count.
        methods: in the order in which they run.
        protocols: `learn`, `natural`.
        attacks: what is done to prompts and models, besides `none`.
        attacked: the methods to which it is done, after their last epoch.
        trials: outputs a prompt in the attack by sampling.
        seeds: of training and sampling.
        humaneval: problems, 0 for none, None for all; only with `--humaneval`.
        humaneval_each: for every cell without attack; else for the methods of `attacked`, after their last epoch.
        rate: learning rate of unlearning.
        retain: whether every method keeps to the taught model on other functions, and not only one that needs them.
        retained: so many other functions; None for as many as are held out.
        learn_retain: whether the model is taught to keep to itself on those functions while it learns.
        max_quote: characters between the places that prod-surgical prohibits.
        opening: characters at the beginning in which it prohibits every token.
        lora_init: what the adapters of a method with a retain set begin with, as in `prod_train.config.config.Config`.
        gradient_projection: of those methods, as in `prod_train.config.config.Config`.
        batch_size: rows a step of training.
    """

    samples: int | None
    held_out: int
    learn_epochs: float
    epochs: int
    every: int
    max_new_tokens: int
    max_line_tokens: int
    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    attacks: tuple[str, ...]
    attacked: tuple[str, ...]
    trials: int
    seeds: tuple[int, ...]
    humaneval: int | None
    humaneval_each: bool
    rate: float = 3e-4
    retain: bool = False
    retained: int | None = None
    learn_retain: bool = False
    max_quote: int = default_of("max_quote")
    opening: int = default_of("opening")
    lora_init: str = Config.lora_init
    gradient_projection: int = Config.gradient_projection
    batch_size: int = 2

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Of the fields that were added later, by name."""
        return {f.name: f.default for f in fields(cls) if f.default is not MISSING}


PROFILES = {
    "smoke": Profile(
        samples=4,
        held_out=4,
        learn_epochs=12,
        epochs=6,
        every=6,
        max_new_tokens=64,
        max_line_tokens=32,
        methods=("base", "decode", "prod", "npo", "ga", "prod+decode"),
        protocols=("learn",),
        attacks=("prefix-25%",),
        attacked=("base", "decode", "prod", "prod+decode"),
        trials=1,
        seeds=(0,),
        humaneval=20,
        humaneval_each=False,
        rate=5e-4,
        batch_size=1,
    ),
    "small": Profile(
        samples=20,
        held_out=20,
        learn_epochs=12,
        epochs=6,
        every=3,
        max_new_tokens=128,
        max_line_tokens=64,
        methods=(*UNTRAINED, "prod", FIRST_ROUND, SECOND_ROUND, "npo", "prod+decode"),
        protocols=("learn",),
        attacks=("prefix-25%", "renamed", "instruction-1", "sampled", "relearned", "4bit"),
        attacked=("base", "decode", "prod", SECOND_ROUND),
        trials=3,
        seeds=(0,),
        humaneval=164,
        humaneval_each=False,
        rate=1e-3,
        retain=True,
        retained=120,
        learn_retain=True,
        opening=48,
        lora_init="contrast",
    ),
    "full": Profile(
        samples=None,
        held_out=24,
        learn_epochs=12,
        epochs=10,
        every=1,
        max_new_tokens=300,
        max_line_tokens=300,
        methods=(*UNTRAINED, *TRAINED, "prod+decode"),
        protocols=PROTOCOLS,
        attacks=tuple(name for name, attack in ATTACKS.items() if attack.in_full),
        attacked=(*GUARDS, *TRAINED, "prod+decode"),
        trials=16,
        seeds=(0, 1, 2),
        humaneval=None,
        humaneval_each=True,
    ),
}
