"""What an attack is: a way to ask again for what must not come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from bench.models.training import Trainer
    from bench.tasks.base import Sample


@dataclass(frozen=True, slots=True)
class Attacked:
    """A prompt after an attack.

    Attributes:
        prompt: the new prompt.
        reference: what of the reference is still to be recited, as it was written.
        adapted: the same in the names and the style of the new prompt; None where the attack changes neither.
    """

    prompt: str
    reference: str | None
    adapted: str | None = None

    def of(self, sample: Sample) -> Sample:
        """The sample under the attack; the adapted reference is `adapted` in its metadata."""
        metadata = sample.metadata if self.adapted is None else {**sample.metadata, "adapted": self.adapted}
        return replace(sample, prompt=self.prompt, reference=self.reference, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Weights:
    """A model: an adapter on the one that everything starts from, or a whole one.

    Attributes:
        model: directory or hub name.
        adapter: directory, or None.
        four_bit: whether it is quantised when it is loaded.
    """

    model: str
    adapter: Path | None
    four_bit: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """What an attack on weights may use.

    Attributes:
        trainer: of the run.
        rows: file with the whole rows that were forgotten.
        steps: optimizer steps that forgetting took.
        seed: of training.
    """

    trainer: Trainer
    rows: str
    steps: int
    seed: int


class Attack:
    """A way to ask again. Each method is one place where an attack may step in, and by default changes nothing.

    Attributes:
        name: as in `--attacks`.
        rank: where it stands in lists, before those with a greater one.
        on_weights: whether it changes the model, and so needs one that was trained.
        on_untaught: whether, if so, the model that was never taught is attacked as well, as a yardstick.
        temperature: of sampling; 0 is greedy. Above 0, of several trials a prompt the worst counts.
        in_full: whether the profile `full` makes it; else it is made only where it is named.
        kind: what lists of choices show once for all attacks of one kind; empty: its name.
    """

    name: ClassVar[str]
    rank: ClassVar[int] = 100
    kind: ClassVar[str] = ""
    on_weights: ClassVar[bool] = False
    on_untaught: ClassVar[bool] = False
    temperature: ClassVar[float] = 0.0
    in_full: ClassVar[bool] = True

    @classmethod
    def problem(cls) -> str:
        """Why it cannot be made here, with the remedy; "" if it can."""
        return ""

    def among(self, samples: Sequence[Sample]) -> None:
        """All samples of the task, told before the first is asked for."""

    def sample(self, sample: Sample, tokenizer: Any, *, seed: int) -> Sample:
        """The sample with another prompt: a pure function. What the attack does not apply to stays as it is.

        What parses still parses, with the same syntax tree (up to names, where names are what is changed); a prompt
        that breaks off in the middle of a line still breaks off there.
        """
        del tokenizer, seed
        return sample

    def token_ids(self, prompt: str, tokenizer: Any, *, seed: int) -> list[int] | None:
        """The prompt as other tokens than the usual ones, special tokens included; None for the usual ones."""
        del prompt, tokenizer, seed
        return None

    def weights(self, weights: Weights, setting: Setting) -> Weights:
        """Another model, made of one that was trained to forget."""
        del setting
        return weights
