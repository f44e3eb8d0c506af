"""What a probe found, in words and as a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prod_train.measure.verdict import characters

if TYPE_CHECKING:
    from prod_train.measure.probe import Answer, Probed

COMMAND = "prod-train probe"
MEANING = "Recited: a run of 60 characters or more, or all of a shorter text. Layout is left out."


@dataclass(frozen=True, slots=True)
class Others:
    """The rows that were only read.

    Attributes:
        rows: how many.
        run: normalised characters of the longest run of the model's first choices in any of them.
    """

    rows: int
    run: int


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        model: as it was named.
        forget: the data, as it was named.
        blocklist: as it was named, or None.
        rows: what the model knows best first: recited from the prompt, with a quarter given, with half; then by the
            longest run.
        sources: of each row, in that order, where its code is from.
        left_out: rows that cannot be measured, by reason.
        others: the rows that were only read, since others are likelier to be recited; None if all were written.
    """

    model: str
    forget: str
    blocklist: str | None
    rows: list[Probed]
    sources: list[str]
    left_out: Mapping[str, int]
    others: Others | None = None

    def verdict(self) -> str:
        """In one sentence, without a full stop."""
        return f"{self.model} {_recited([row.answers[0] for row in self.rows], self.of)}"

    def details(self) -> Iterator[str]:
        """A line for each thing that the verdict leaves out."""
        parts = []
        for share, words in ((0.25, "a quarter of the text"), (0.5, "half")):
            answers = [answer for row in self.rows for answer in row.answers if answer.given == share]
            if answers:
                recited = sum(answer.verbatim for answer in answers)
                parts.append(f"given {words} {recited} of {len(answers)}")
        if parts:
            yield f"{', '.join(parts)}"
        if self.blocklist is not None:
            yield f"with {self.blocklist} it {_recited([row.guarded[0] for row in self.rows], self.of)}"
        if self.others is not None and self.others.rows:
            yield (
                f"only read: {self.others.rows:,} rows that it is less likely to recite; the longest run of first "
                f"choices there: {characters(self.others.run)}"
            )
        for reason, count in self.left_out.items():
            yield f"left out: {count} rows, whose part to recite has {reason}"

    @property
    def of(self) -> str:
        """How many rows there are, in words."""
        return f"{len(self.rows)} {'row' if len(self.rows) == 1 else 'rows'}"

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "model": self.model,
            "forget": self.forget,
            "blocklist": self.blocklist,
            "verdict": self.verdict(),
            "recited": sum(row.recites for row in self.rows),
            "longest_run": max(row.answers[0].run for row in self.rows),
            "left_out": dict(self.left_out),
            "only_read": None if self.others is None else asdict(self.others),
            "rows": [
                {
                    "place": row.row.place,
                    "source": source,
                    "recites": row.recites,
                    "probability": row.probability,
                    "exact_memorisation": row.exact_memorisation,
                    "extraction_strength": row.extraction_strength,
                    "prompt": row.row.prompt,
                    "answers": [asdict(answer) for answer in row.answers],
                    "guarded": [asdict(answer) for answer in row.guarded],
                }
                for row, source in zip(self.rows, self.sources, strict=True)
            ],
        }


def _recited(answers: Sequence[Answer], of: str) -> str:
    longest = max(answer.run for answer in answers)
    return f"recites {sum(answer.verbatim for answer in answers)} of {of}: longest run {characters(longest)}"
