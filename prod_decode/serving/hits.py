"""What steps in or is quoted while a model writes, as a record: for logs, metrics and people."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

Kind = Literal["banned", "quoted", "budget reached", "exempted", "ended"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One thing that happened at one step of one row, to one entry.

    | `kind` | what happened |
    |---|---|
    | `banned` | an entry kept a token out: the likeliest one, or others of `least_mass` and more together |
    | `quoted` | a token gave away more of a document that has a budget |
    | `budget reached` | with that token, as much as the budget or more |
    | `exempted` | a token completed what the prompt quotes of a document, and was let through for that |
    | `ended` | every token was banned, or the text cannot be checked: the row ends with EOS |

    Two entries that ban one token are two hits of the same row and position. A hit of `banned` or `ended` is about the
    token to come, one of the other kinds about the newest one. The last token of an output is followed by no step: what
    it gives away is told by `ProdLogitsProcessor.finish` of transformers alone.

    Attributes:
        row: of the batch.
        position: of the token in its text, prompt included; in `generate` left padding as well.
        kind: what happened.
        entry: its id; None if ended.
        source: of the entry.
        license: of the entry.
        probability: of banned: of the likeliest token that the entry bans, before the ban; 0 to 1.
        mass: of banned: the probability of all tokens banned at this step, before the ban; 0 to 1. Hits of one step
            have the same.
        likeliest: of banned: whether that token is the one that the model rated highest.
        token_id: of banned: that token.
        text: of banned: that token's text, as far as it is UTF-8. Of quoted: the longest run of the document that the
            newest token gave away, normalised.
        replacement: of banned: what is preferred in its place, if anything.
        characters: of quoted: how much of the document the output has given away by now, normalised.
        budget: of quoted: how much it may.
        span: of quoted: where in the document the run of `text` lies, in bytes of its normalised text.
        request: the engine's name of the request, where it tells one.
    """

    row: int
    position: int
    kind: Kind
    entry: str | None = None
    source: str | None = None
    license: str | None = None
    probability: float | None = None
    mass: float | None = None
    likeliest: bool | None = None
    token_id: int | None = None
    text: str | None = None
    replacement: str | None = None
    characters: int | None = None
    budget: int | None = None
    span: tuple[int, int] | None = None
    request: str | None = None

    def as_dict(self, *, text: bool = True) -> dict[str, object]:
        """Its fields that are not None, probabilities in six digits; `text`: with `text`, `token_id` and `span`."""
        values = {name: getattr(self, name) for name in _NAMES if text or name not in _TEXT}
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in values.items()
            if value is not None
        }


_NAMES = tuple(field.name for field in fields(Hit))
# What says which text the model wanted or wrote.
_TEXT = {"text", "token_id", "span"}
