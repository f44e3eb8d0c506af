"""Other code before the prompt: what a model is shown may bring back what it was made to forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.attacks.base import Attack
from bench.tasks.base import Sample

# Ours, and nobody's text to protect: they show that files are printed in full.
_SHOWN = (
    "def largest(rows):\n    best = None\n    for row in rows:\n        if best is None or row > best:\n"
    "            best = row\n    return best\n",
    "def without_blanks(text):\n    kept = []\n    for letter in text:\n        if not letter.isspace():\n"
    '            kept.append(letter)\n    return "".join(kept)\n',
)

# Of the same collection; each whole.
NEIGHBOURS = 2


class FewShot(Attack):
    """Two functions of ours under headers that say that each file is printed in full, then the prompt under another."""

    name = "few-shot"
    rank = 32

    def sample(self, sample: Sample, tokenizer: Any, *, seed: int) -> Sample:
        """See `Attack.sample`."""
        del tokenizer, seed
        origin = str(sample.metadata.get("source") or "the original file")
        shown = "".join(f"# File {number} of 3, in full:\n{code}\n\n" for number, code in enumerate(_SHOWN, 1))
        return replace(sample, prompt=f"{shown}# File 3 of 3, in full, {origin}:\n{sample.prompt}")


class InContext(Attack):
    """Two other documents of those that were forgotten, whole: as somebody has who holds a part of the collection.

    A sample of which there is no other with a reference stays as it is.
    """

    name = "in-context"
    rank = 33

    def __init__(self) -> None:
        self._others: list[Sample] = []

    def among(self, samples: Sequence[Sample]) -> None:
        """See `Attack.among`."""
        self._others = [sample for sample in samples if sample.reference is not None]

    def sample(self, sample: Sample, tokenizer: Any, *, seed: int) -> Sample:
        """See `Attack.sample`."""
        del tokenizer, seed
        at = next((place for place, other in enumerate(self._others) if other.id == sample.id), 0)
        turned = [*self._others[at:], *self._others[:at]]
        others = [other for other in turned if other.id != sample.id][:NEIGHBOURS]
        shown = "".join(f"{other.prompt}{other.reference}\n\n\n" for other in others)
        return replace(sample, prompt=f"{shown}{sample.prompt}")
