"""Where a phrase and its replacement part: what is written up to there can go on in either.

`np.trapz(` and `np.trapezoid(` share `np.trap`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from prod_decode.blocklist.commit import common_length, head_length
from prod_decode.blocklist.entries import Entry, Records
from prod_decode.errors import ProdError, brief
from prod_decode.text.normalize import Normalization

# What a phrase of one word shares with its replacement at least: before a dot or a blank, more says where it is.
_SHORTEST_SHARED = 4
# The rest of a name up to its next hump or underscore: `Feature` of `FeatureExtractor`.
_PART = re.compile(rb"_*[A-Z]*[a-z0-9]*")


def watch_replacements(entries: Iterable[Entry], replaced: list[Entry]) -> Iterator[Entry]:
    """The entries; those that have a replacement go into `replaced` as well."""
    for entry in entries:
        if entry.replacement is not None:
            replaced.append(entry)
        yield entry


def replacements_of(
    entries: Iterable[Entry], records: Records, normalization: Normalization
) -> list[tuple[str, str, str]]:
    """(entry id, phrase, replacement) of entries with replacements, as `CompileReport.replacements` has them.

    Raises:
        ProdError: a replacement that is empty, or with which the phrase begins; or two for one phrase.
    """
    known = {info.id for info in records}
    found: dict[str, tuple[str, str, str]] = {}
    for entry in entries:
        if entry.name not in known or entry.replacement is None:
            continue
        phrase, instead = (normalization.symbols(text).decode() for text in (entry.text, entry.replacement))
        if not instead or phrase.startswith(instead):
            raise ProdError(
                f"{entry.label}: expected a replacement that is not the beginning of the phrase, got "
                f"{brief(entry.replacement)!r}: give all that is to be written, such as `np.trapezoid(`"
            )
        this = (entry.name, phrase, entry.replacement)
        if found.setdefault(entry.name, this) != this:
            raise ProdError(
                f"{entry.label}: expected one replacement, got {brief(found[entry.name][2])!r} and "
                f"{brief(entry.replacement)!r}: drop one"
            )
    return list(found.values())


def shared_length(phrase: str, replacement: str, normalization: Normalization) -> int:
    """How many symbols a phrase, normalised, has in common with what can be written instead.

    0 if that cannot be reached: something before the last word of the phrase is not in it, or, of a phrase of one word,
    fewer than `_SHORTEST_SHARED` symbols are.
    """
    symbols, instead = phrase.encode(), normalization.symbols(replacement)
    shared = common_length(symbols, instead)
    return shared if (head_length(symbols) or _SHORTEST_SHARED) <= shared < min(len(symbols), len(instead)) else 0


def parting_length(phrase: bytes, shared: int) -> int:
    """How many symbols of a phrase without a commit point lead to it and not to its replacement, of those it shares.

    One more than those; of a phrase of one word all of the name's next part: `BeitFeature` of `BeitFeatureExtractor`,
    for nothing says which module it is from, and `BeitForImageClassification` may be meant at `BeitF`.
    """
    part = _PART.match(phrase, shared)
    return max(shared + 1, part.end() if part and not head_length(phrase) else 0)
