"""What every method has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy as np
from torch import Tensor

from prod_train.config.config import Config
from prod_train.data.rows import Row
from prod_train.loss.objective import Pass
from prod_train.targets.reference import Kind, Reference

_T = TypeVar("_T")


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


class Method(ABC):
    """A loss on the forget set.

    Attributes:
        name: as in `--method`.
        needs: what of the reference model it uses on the forget set; None if nothing.
        refuses: whether it also sees a refusal for every row, drawn anew each epoch.
        per_row: whether the loss is a mean over rows; else it is a mean over supervised tokens. That mean is over all
            micro-batches and processes of an optimizer step.
        keeps_end: whether the loss is read at an appended EOS too, where it forgets nothing.
    """

    name: ClassVar[str]
    needs: ClassVar[Kind | None] = None
    refuses: ClassVar[bool] = False
    per_row: ClassVar[bool] = False
    keeps_end: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def kind(self) -> Kind | None:
        """`needs`, where the settings decide."""
        return self.needs

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


def given(value: _T | None) -> _T:
    """What the method asked for with `kind` or `refuses`."""
    if value is None:
        raise RuntimeError("the trainer did not pass what the method asks for")
    return value
