"""Lists that come with the package, and which of their entries concern a version of a library."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from prod_decode.blocklist.entries import Boundary, Entry
from prod_decode.errors import ProdError, brief, did_you_mean

if TYPE_CHECKING:
    from packaging.version import Version

LIST = "list:"

# What each is; its entries are in lists/NAME.jsonl.
READY = {
    "deprecated-python": "interfaces that Python's libraries deprecate or have removed",
    "insecure-python": "calls and settings that are weaknesses, by their CWE number",
}

_PINNED = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*==\s*(\S+)\s*")


@dataclass(frozen=True, slots=True)
class ReadyEntry:
    """An entry of a list that comes with the package, and why it is there.

    Attributes:
        text: the phrase.
        boundary: as `Entry` has it.
        source: where its maker, or who keeps the list of weaknesses, says so.
        replacement: what can be written instead where the phrase has been begun.
        instead: for people, where nothing can: code, or a few words.
        library: what has it, by its name in the package index; `python` is the standard library.
        since: the first version in which it is deprecated; None if that is not known.
        gone: the first version without it; None if there is none, or it is not known.
        cwe: as `CWE-502`.
    """

    text: str
    boundary: Boundary
    source: str
    replacement: str | None = None
    instead: str | None = None
    library: str | None = None
    since: str | None = None
    gone: str | None = None
    cwe: str | None = None

    def entry(self, list_name: str) -> Entry:
        """What `Blocklist.compile` takes."""
        source = ", ".join(filter(None, (LIST + list_name, self.cwe, self.source)))
        return Entry(self.text, id=self.text, source=source, boundary=self.boundary, replacement=self.replacement)


class Targets:
    """The versions that code is written for.

    Attributes:
        left_out: how many entries of each library were left out because its version still has them.
        kept: how many were not.
    """

    def __init__(self, pinned: Iterable[str] = ()) -> None:
        """Take versions such as `numpy==2.1`.

        Raises:
            ProdError: something else, or two versions of one library.
        """
        self._versions: dict[str, Version] = {}
        self.left_out: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        for text in [pinned] if isinstance(pinned, str) else pinned:
            name, version = _parse(text)
            if self._versions.setdefault(name, version) != version:
                raise ProdError(f"expected one version of {name}, got {self._versions[name]} and {version}: drop one")

    def keeps(self, entry: ReadyEntry) -> bool:
        """Whether an entry is deprecated or gone in its library's version, which counts it; else whether none is known.

        Of a library that has no version here all are kept, and so is an entry of which no version is known.
        """
        version = self._versions.get(_plain(entry.library or ""))
        if version is None:
            return True
        known = [_version(text) for text in (entry.since, entry.gone) if text]
        keeps = not known or min(known) <= version
        (self.kept if keeps else self.left_out)[_plain(entry.library or "")] += 1
        return keeps

    def unused(self) -> list[str]:
        """The libraries of which no entry was seen: perhaps slips."""
        return [name for name in self._versions if not self.kept[name] + self.left_out[name]]

    def told(self) -> list[str]:
        """What was left out, a line for each library."""
        return [
            f"left out: {count} of {count + self.kept[name]} entries of {name}, which {self._versions[name]} does not "
            "deprecate"
            for name, count in self.left_out.items()
        ]


def read_list(name: str, *, targets: Iterable[str] | Targets = ()) -> list[Entry]:
    """The entries of a list that comes with the package, for `Blocklist.compile`.

    Args:
        name: `deprecated-python` or `insecure-python`.
        targets: versions of libraries, such as `numpy==2.1`: what these do not deprecate yet is left out.

    Raises:
        ProdError: there is no such list, or a target is no version.
    """
    targets = targets if isinstance(targets, Targets) else Targets(targets)
    return [entry.entry(name) for entry in ready_entries(name) if targets.keeps(entry)]


def ready_entries(name: str) -> Iterator[ReadyEntry]:
    """The entries of a list, with all that is known of each.

    Raises:
        ProdError: there is no such list.
    """
    require_list(name)
    text = files("prod_decode.blocklist").joinpath("lists", f"{name}.jsonl").read_text(encoding="utf-8")
    return (ReadyEntry(**json.loads(line)) for line in text.splitlines())


def require_list(name: str) -> None:
    """Refuse the name of a list that there is not.

    Raises:
        ProdError: with the name that was meant.
    """
    if name not in READY:
        raise ProdError(f"unknown list {brief(name)!r}, expected one of {', '.join(READY)}{did_you_mean(name, READY)}")


def list_named(source: object) -> str | None:
    """The name behind `list:`; None if that is not how a source begins. `./list:x` is a file."""
    return source[len(LIST) :] if isinstance(source, str) and source.startswith(LIST) else None


def libraries() -> list[str]:
    """The libraries of all entries."""
    return sorted({entry.library for name in READY for entry in ready_entries(name) if entry.library})


def _parse(text: object) -> tuple[str, Version]:
    match = _PINNED.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ProdError(f"expected a library and its version, as numpy==2.1, got {brief(text)!r}")
    from packaging.version import InvalidVersion

    try:
        return _plain(match[1]), _version(match[2])
    except InvalidVersion:
        raise ProdError(f"expected a version such as 2.1 behind {match[1]}==, got {brief(match[2])!r}") from None


def _version(text: str) -> Version:
    from packaging.version import Version

    return Version(text)


def _plain(name: str) -> str:
    """A library's name as it is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()
