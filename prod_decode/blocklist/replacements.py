"""Where a phrase and its replacement part: what is written up to there can go on in either.

`np.trapz(` and `np.trapezoid(` share `np.trap`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prod_decode.blocklist.commit import common_length, head_length
from prod_decode.blocklist.entries import Entry, Records
from prod_decode.errors import ProdError, brief
from prod_decode.text.normalize import Normalization


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

    0 if that cannot be reached: something before the last word of the phrase is not in it.
    """
    symbols, instead = phrase.encode(), normalization.symbols(replacement)
    shared = common_length(symbols, instead)
    return shared if 0 < head_length(symbols) <= shared < min(len(symbols), len(instead)) else 0
