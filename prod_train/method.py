"""What a method is: a loss on the forget set, its settings, and what must be made before training.

A method is one file in `prod_train/methods/`: nothing else names it. It imports torch where it computes, so that
`prod-train --help` needs none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np

from prod_train.option import Option

if TYPE_CHECKING:
    from torch import Tensor

    from prod_decode.blocklist.blocklist import Blocklist
    from prod_train.data.rows import Row
    from prod_train.loss.objective import Encoder, Pass
    from prod_train.loss.sparse import SparseTargets

_T = TypeVar("_T")

Kind = Literal["targets", "log_probs", "hidden"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How targets are made of logits; see `PROD` and `UNDIAL` for the formulas.

    Attributes:
        beta: None prohibits (PROD); a number is subtracted from the label's logit (UNDIAL).
        top_p: nucleus.
        max_n: tokens in it at most, or None.
        temperature: after the nucleus, or None.
        alpha: a prohibited token's target is `-alpha * p_ref`.
        paper_compat: prohibit nothing at the first position, and drop the next token there without renormalising.
        keep: None: every target is as above. A number: so is that of a position whose label is prohibited; any other
            position keeps the reference's so many likeliest tokens that are not prohibited, renormalised.
    """

    beta: float | None = None
    top_p: float = 0.8
    max_n: int | None = None
    temperature: float | None = None
    alpha: float = 0.0
    paper_compat: bool = False
    keep: int | None = None

    @classmethod
    def of(cls, settings: RunSettings, *more: str) -> Recipe:
        """The settings that all methods with targets have, and `more`, by name."""
        return cls(**{name: settings.value(name) for name in ("top_p", "max_n", "temperature", *more)})


@dataclass(frozen=True, slots=True)
class Reference:
    """What the frozen reference model says of the N supervised positions of a batch; only what a method asks for.

    Attributes:
        targets: N rows.
        log_probs: float32 [N], log p_ref(label).
        hidden: [N, d], its hidden states.
    """

    targets: SparseTargets | None = None
    log_probs: Tensor | None = None
    hidden: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """What a loss is made of: one batch of forget rows, and what else is known of them.

    Attributes:
        forget: forward pass of the forget rows.
        reference: of the reference model, as the method's `kind` says.
        denominator: tokens, or rows for a method that is `per_row`, of the whole optimizer step.
        refusal: forward pass of the same prompts with refusals, if the method `refuses`.
        refusal_reference: as `reference`, for the refusals.
    """

    forget: Pass
    reference: Reference
    denominator: float
    refusal: Pass | None = None
    refusal_reference: Reference | None = None


class RunSettings(Protocol):
    """What a method reads of a run's configuration."""

    def value(self, name: str) -> Any:
        """The value of an option or setting, its default resolved."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """What a method may look at before training, to choose what is prohibited.

    Attributes:
        model: the reference model, in evaluation mode.
        encoder: attached to it.
        rows: to forget, tokenised.
        tokenizer: the model's.
        pad: token id of padding.
        batch_size: rows a forward pass.
    """

    model: Any
    encoder: Encoder
    rows: Sequence[Row]
    tokenizer: Any
    pad: int
    batch_size: int


class Method(ABC):
    """A loss on the forget set.

    Attributes:
        name: as in `--method`.
        rank: where it stands in lists of methods, before those with a greater one; relatives stand beside each other.
        options: its settings, each with its default; None leaves it to the formula.
        needs: what of the reference model it uses on the forget set; None if nothing.
        refuses: whether it also sees a refusal for every row, drawn anew each epoch.
        per_row: whether the loss is a mean over rows; else it is a mean over supervised tokens. That mean is over all
            micro-batches and processes of an optimizer step.
        keeps_end: whether the loss is read at an appended EOS too, where it forgets nothing.
        forgets: False for ordinary fine-tuning.
        chooses: whether `blocklist` says what is prohibited where `--blocklist` does not.
        retain_loss: the default of `--retain-loss` where there is a retain set.
    """

    name: ClassVar[str]
    rank: ClassVar[int] = 100
    options: ClassVar[Mapping[Option, Any]] = {}
    needs: ClassVar[Kind | None] = None
    refuses: ClassVar[bool] = False
    per_row: ClassVar[bool] = False
    keeps_end: ClassVar[bool] = False
    forgets: ClassVar[bool] = True
    chooses: ClassVar[bool] = False
    retain_loss: ClassVar[Literal["nll", "kl"]] = "kl"

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings

    @property
    def kind(self) -> Kind | None:
        """`needs`, where the settings decide."""
        return self.needs

    @classmethod
    def problems(cls, settings: RunSettings) -> list[str]:
        """What is wrong with the settings beside each other: what was expected, what came, and the remedy."""
        del settings
        return []

    def recipe(self) -> Recipe:
        """How its targets are made, where `kind` is `targets`."""
        raise NotImplementedError(f"{self.name} needs no targets")

    def blocklist(self, teacher: Teacher) -> Blocklist:
        """What is prohibited, where it `chooses`."""
        raise NotImplementedError(f"{self.name} chooses nothing")

    def trained(self, row: Row) -> Row:
        """A row to forget with the tokens supervised that the loss is read at.

        The end of a text is no part of what must be forgotten: a model that is pushed away from it cannot stop. So an
        appended EOS is left out, unless the method `keeps_end`.
        """
        if self.keeps_end or not row.has_eos:
            return row
        return replace(row, supervised=row.supervised & (np.arange(len(row.ids)) < row.stop))

    @abstractmethod
    def loss(self, example: Example) -> Tensor:
        """The batch's part of the loss: a sum over its tokens or rows, divided by the example's denominator.

        Returns:
            A scalar in nats.
        """


def targets_loss(example: Example) -> Tensor:
    """Cross-entropy against the reference's targets, their constant entropy included; see `Method.loss`."""
    forget, targets = example.forget, given(example.reference.targets)
    return forget.head.cross_entropy(forget.hidden, targets, example.denominator)


def unused_replaced_rows(settings: RunSettings) -> list[str]:
    """What is wrong with `--no-replaced-rows` where nothing has a replacement; see `Method.problems`."""
    if settings.value("replaced_rows") or settings.value("blocklist") is not None:
        return []
    return ["--no-replaced-rows: expected --blocklist, whose entries may have replacements, it is missing"]


def given(value: _T | None) -> _T:
    """What the method asked for with `kind` or `refuses`."""
    if value is None:
        raise RuntimeError("the trainer did not pass what the method asks for")
    return value
