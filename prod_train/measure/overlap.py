"""Rows that two data sets share, or that one has twice: what cannot be trained, and what makes evidence weaker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prod_decode.errors import ProdError
from prod_train.data.alike import COMPARED, VERBATIM_FROM, digest
from prod_train.data.rows import Row

# So many places are named in a message; the rest is counted.
_NAMED = 3

_FORBIDDEN = {
    ("forget", "retain"): "a row cannot be forgotten and kept",
    ("forget", "holdout"): "what is forgotten there would be measured as damage",
}
_WEAKER = {
    ("retain", "holdout"): "damage is measured on what is trained to stay",
    ("forget", "forget"): "they weigh twice, and intervals count them as independent",
    ("retain", "retain"): "they weigh twice",
    ("holdout", "holdout"): "they weigh twice, and intervals count them as independent",
}


# Where a text was first, and which of its characters training concerns in any row that has it.
_Seen = tuple[str, NDArray[np.bool_]]
_WHOLE = b"text"


@dataclass(frozen=True, slots=True)
class Overlap:
    """Rows of `later` that `earlier` has as well; both are one set if it has rows twice.

    Attributes:
        earlier: name of a set.
        later: name of a set.
        rows: of `later`, all of them.
        places: (of `later`, of `earlier`) for every row that both have.
    """

    earlier: str
    later: str
    rows: int
    places: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        pairs = ", ".join(f"{later} = {earlier}" for later, earlier in self.places[:_NAMED])
        more = f" and {len(self.places) - _NAMED} more" if len(self.places) > _NAMED else ""
        where = "in it before" if self.earlier == self.later else f"in --{self.earlier} too"
        why = (_FORBIDDEN | _WEAKER)[self.earlier, self.later]
        return f"--{self.later}: {len(self.places)} of {self.rows} rows are {where} ({pairs}{more}): {why}"


def check_overlaps(sets: Mapping[str, Sequence[Row]]) -> list[str]:
    """Refuse sets that contradict each other; say what else they share.

    Two rows are the same where their texts are, whitespace that separates no words left out, and training concerns a
    character of both; or where they have a completion or span of 60 characters or more in common. A text that occurs
    *within* a longer one is not looked for.

    Args:
        sets: `forget`, `retain` and `holdout`, any of them empty or absent.

    Returns:
        A line for every pair of sets, and every set, that makes evidence weaker: rows in `retain` and `holdout`, and
        rows that a set has twice.

    Raises:
        ProdError: `forget` shares rows with `retain` or with `holdout`.
    """
    found = {(overlap.earlier, overlap.later): overlap for overlap in _overlaps(sets)}
    if refused := [str(found[pair]) for pair in _FORBIDDEN if pair in found]:
        raise ProdError(f"{'; '.join(refused)}; drop these rows from one of the sets")
    return [str(found[pair]) for pair in _WEAKER if pair in found]


def _overlaps(sets: Mapping[str, Sequence[Row]]) -> Iterator[Overlap]:
    known: dict[str, dict[bytes, _Seen]] = {}
    for later, rows in sets.items():
        known[later] = {}
        pairs: dict[str, list[tuple[str, str]]] = {earlier: [] for earlier in known}
        for row in rows:
            keys = dict(_keys(row))
            for earlier, index in known.items():
                among = [key for key in keys if key in index and (earlier != later or key.startswith(_WHOLE))]
                met = (index[key][0] for key in among if (index[key][1] & keys[key]).any())
                if (place := next(met, None)) is not None:
                    pairs[earlier].append((row.place, place))
            for key, mask in keys.items():
                first, before = known[later].get(key, (row.place, mask))
                known[later][key] = (first, before | mask)
        yield from (Overlap(earlier, later, len(rows), tuple(found)) for earlier, found in pairs.items() if found)


def _keys(row: Row) -> Iterator[tuple[bytes, NDArray[np.bool_]]]:
    """A hash of the whole text, then of every span that is long enough to be told from others; what each concerns."""
    points, origins = COMPARED.trace(row.text)
    concerned = np.zeros(len(points), np.bool_)
    for start, end in row.spans:
        concerned |= (start <= origins) & (origins < end)
    yield _WHOLE + digest(points), concerned
    for start, end in row.spans:
        span = COMPARED.code_points(row.text[start:end])
        if len(span) >= VERBATIM_FROM:
            yield b"span" + digest(span), np.ones(1, np.bool_)
