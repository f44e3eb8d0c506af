"""What a token did that nothing prevented: it gave away more of a document, or repeated what the prompt quotes."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Passed(NamedTuple):
    """What the newest token of a row did.

    Attributes:
        row: of the tracker.
        kind: `quoted`: it gave away more of a document that has a budget; `budget reached`: with that, as much as the
            budget or more; `exempted`: it completed what the prompt quotes, and is let through for that alone.
        entry_id: whose document it is.
        characters: how many of the document's symbols the row has given away by now; None if exempted.
        budget: how many it may; None if exempted.
        span: where in the document the longest run lies that this token gave away, in symbols; None if exempted.
        text: that run, normalised; None if exempted.
    """

    row: int
    kind: Literal["quoted", "budget reached", "exempted"]
    entry_id: str
    characters: int | None = None
    budget: int | None = None
    span: tuple[int, int] | None = None
    text: str | None = None
