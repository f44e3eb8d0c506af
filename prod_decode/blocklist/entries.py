"""What is prohibited: entries, and what a compiled blocklist keeps of each."""

from __future__ import annotations

import json
import reprlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from prod_decode.errors import ProdError, brief, clear_keywords, did_you_mean

Policy = Literal["phrase", "quote"]
Boundary = Literal["start", "both", "none"]

DEFAULT_MAX_QUOTE = 120
DEFAULT_PIECE = 24
SHORTEST_PATTERN = 3
# An anchor is half as wide.
SHORTEST_QUOTE = 2 * SHORTEST_PATTERN
# Shorter runs are in every text; and what a file says of longer ones would take long to check.
SHORTEST_PIECE = 6
LONGEST_PIECE = 256


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing prohibited.

    Attributes:
        text: a string (`phrase`) or a document (`quote`). Where whitespace is ignored, a phrase of `return` and a blank
            is found only where that word ends, and one that begins with a blank and a word only where the word begins,
            whatever `boundary` says.
        id: its name in reports; default: the text of a short phrase, else the policy and a hash of the text.
        source: where it comes from, for people: a URL, a path, a ticket.
        policy: `phrase`: the string may not be completed. `quote`: no verbatim run of `max_quote` normalised characters
            or more from this document.
        max_quote: for `quote` only, in characters; default 120.
        boundary: for `phrase` only: whether it must begin (`start`, `both`) and end (`both`) at the edge of a word. It
            concerns edges that are word characters and has no effect on others. Default `start`.
        cost: for `quote` only: for every character of the text what it costs to prohibit an anchor that ends there, in
            any unit, finite and above 0; the anchors are then the cheapest, not the fewest. See
            `prod_decode.command.costs`.
        replacement: for `phrase` only: what to write instead. It can be reached at decode time where it differs from
            the phrase in the last word and not before, as `np.trapezoid(` does from `np.trapz(`; from a phrase of one
            word behind its first 4 characters, as `BeitImageProcessor` from `BeitFeatureExtractor`.
        budget: for `quote` only: how many of the document's normalised characters one output may give away in pieces,
            each counted once; then it may write no piece that would give away more. A document of fewer than four times
            that has a quarter of its length. Characters outside ASCII count as their bytes in UTF-8. Default: any
            number, in runs below `max_quote`.
        piece: for `quote` with a budget only: the shortest run of normalised characters that counts, 6 to 256 and below
            `max_quote`; default 24.
        license: under which licence the text is, for people: an SPDX id such as `GPL-3.0-only`.
    """

    text: str
    id: str | None = None
    source: str | None = None
    policy: Policy = "phrase"
    max_quote: int | None = None
    boundary: Boundary | None = None
    cost: tuple[float, ...] | None = field(default=None, repr=False)
    replacement: str | None = None
    budget: int | None = None
    piece: int | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ProdError(f"expected text to be a string, got {type(self.text).__name__}")
        for name in ("id", "source", "replacement", "license"):
            value = getattr(self, name)
            if not isinstance(value, (str, type(None))):
                raise ProdError(f"expected {name} to be a string, got {reprlib.repr(value)}")
        if self.policy not in ("phrase", "quote"):
            raise ProdError(
                f"{self.label}: expected policy 'phrase' or 'quote', got {reprlib.repr(self.policy)}"
                f"{_meant(self.policy, ('phrase', 'quote'))}"
            )
        if self.boundary not in (None, "start", "both", "none"):
            raise ProdError(
                f"{self.label}: expected boundary 'start', 'both' or 'none', got {reprlib.repr(self.boundary)}"
                f"{_meant(self.boundary, ('start', 'both', 'none'))}"
            )
        for policy, names in _OF_POLICY.items():
            for name in names:
                if self.policy != policy and getattr(self, name) is not None:
                    raise ProdError(
                        f"{self.label}: {name} belongs to policy {policy!r}, this is a {self.policy!r}: drop {name}, "
                        "or change the policy"
                    )
        if self.max_quote is not None and (not isinstance(self.max_quote, int) or self.max_quote < SHORTEST_QUOTE):
            raise ProdError(
                f"{self.label}: expected max_quote to be a whole number of at least {SHORTEST_QUOTE} "
                f"characters, got {reprlib.repr(self.max_quote)}"
            )
        self._check_budget()
        if self.cost is not None:
            self._check_cost(self.cost)

    def _check_budget(self) -> None:
        for name, value in (("budget", self.budget), ("piece", self.piece)):
            least = 1 if name == "budget" else SHORTEST_PIECE
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ProdError(
                    f"{self.label}: expected {name} to be a whole number of at least {least} characters, got "
                    f"{reprlib.repr(value)}{': leave out the quotes' if isinstance(value, str) else ''}"
                )
        if self.piece is not None and self.budget is None:
            raise ProdError(f"{self.label}: piece belongs to a budget, and there is none: give one, or drop piece")
        piece, limit = self.piece or DEFAULT_PIECE, self.max_quote or DEFAULT_MAX_QUOTE
        if self.budget is not None and piece > (most := min(LONGEST_PIECE, limit - 1)):
            raise ProdError(
                f"{self.label}: expected pieces of at most {most} characters, since runs of max_quote {limit} are not "
                f"written at all, got piece {piece}: lower piece"
            )

    def _check_cost(self, cost: tuple[float, ...]) -> None:
        if not hasattr(cost, "__len__"):
            raise ProdError(f"{self.label}: expected a cost for each character, got {brief(cost)}")
        if len(cost) != len(self.text):
            raise ProdError(
                f"{self.label}: expected a cost for each of {len(self.text)} characters, got {len(cost)} costs"
            )
        wrong = next((value for value in cost if not 0 < value < float("inf")), None)
        if wrong is not None:
            raise ProdError(f"{self.label}: expected costs that are finite and above 0, got {wrong!r}")

    @property
    def name(self) -> str:
        """The id, given or derived."""
        if self.id:
            return self.id
        if self.policy != "quote" and len(self.text) <= 60 and self.text.isprintable() and self.text.strip():
            return self.text
        kind = self.policy if self.policy in ("phrase", "quote") else "entry"  # in the message that refuses it
        return f"{kind}-{xxhash.xxh3_64_hexdigest(self.text.encode('utf-8', 'surrogatepass'))}"

    @property
    def label(self) -> str:
        """How messages call it: the id, and the source if there is one."""
        return label_of(self.name, self.source)


def label_of(name: str, source: str | None) -> str:
    """How messages call an entry of this id: by it, and by the source if there is one."""
    return f"entry {brief(name)!r}" + (f" ({source})" if source else "")


# What `dataclass` makes names itself: "Entry.__init__() got an unexpected keyword argument".
Entry.__init__ = clear_keywords(Entry.__init__)  # type: ignore[method-assign]

# What an entry of one policy alone may have.
_OF_POLICY = {"phrase": ("replacement", "boundary"), "quote": ("max_quote", "budget", "piece", "cost")}

_KEYS = {field.name for field in fields(Entry)} - {"cost"}
# What `prod-decode lists NAME --json` prints beside them: for people.
_FACTS = {"instead", "library", "since", "gone", "cwe"}


class Defaults(NamedTuple):
    """What entries have that do not say.

    Attributes:
        boundary: of a `phrase`.
        max_quote: of a `quote`; so are the others.
        budget: see `Entry`.
        piece: only with a budget.
    """

    boundary: Boundary | None = None
    max_quote: int | None = None
    budget: int | None = None
    piece: int | None = None

    def of(self, policy: object, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of an `Entry`, those that are given and those that are not."""
        if policy != "quote":
            return {"boundary": self.boundary, **given}
        quoting = {"max_quote": self.max_quote, "budget": self.budget, **given}
        return {"piece": self.piece if quoting["budget"] is not None else None, **quoting}


def entry_from(record: dict[str, Any], place: str, defaults: Defaults) -> Entry:
    """The entry that a JSON object describes; `place` is its source, and begins messages.

    Args:
        record: the object.
        place: `file:line`.
        defaults: for what it does not name.

    Raises:
        ProdError: it describes none.
    """
    if unknown := sorted(set(record) - _KEYS - _FACTS):
        known = sorted(_KEYS)
        raise ProdError(
            *(
                f"{place}: unknown key {key!r}, expected some of {', '.join(known)}{did_you_mean(key, known)}"
                for key in unknown
            )
        )
    if "text" not in record:
        raise ProdError(f"{place}: expected a key 'text', got {', '.join(sorted(record)) or 'an empty object'}")
    for key in ("id", "source", "replacement", "license", *sorted(_FACTS)):
        if not isinstance(record.get(key), (str, type(None))):
            raise ProdError(f"{place}: expected {key!r} to be a string, got {reprlib.repr(record[key])}")
    if not isinstance(record["text"], str):
        raise ProdError(f"{place}: expected 'text' to be a string, got {reprlib.repr(record['text'])}")
    given = {key: value for key, value in record.items() if value is not None and key in _KEYS}
    return Entry(**{"source": place, **defaults.of(record.get("policy"), given)})


def _meant(value: object, known: tuple[str, ...]) -> str:
    return did_you_mean(value, known) if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """What a compiled blocklist keeps of an entry, as it was asked for: all but its text."""

    id: str
    source: str | None
    policy: Policy
    max_quote: int | None
    boundary: Boundary | None
    fingerprint: str
    budget: int | None = None
    piece: int | None = None
    license: str | None = None

    @classmethod
    def of(cls, entry: Entry) -> EntryInfo:
        """The record of an entry, its defaults resolved."""
        quote = entry.policy == "quote"
        return cls(
            id=entry.name,
            source=entry.source,
            policy=entry.policy,
            max_quote=(entry.max_quote or DEFAULT_MAX_QUOTE) if quote else None,
            boundary=None if quote else entry.boundary or "start",
            fingerprint=xxhash.xxh3_64_hexdigest(entry.text.encode("utf-8", "surrogatepass")),
            budget=entry.budget,
            piece=None if entry.budget is None else entry.piece or DEFAULT_PIECE,
            license=entry.license,
        )


class Records:
    """What is kept of entries, packed, and the number of each by its id."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._starts = array("q", [0])
        # By a hash of the id: a string of its own for each of a million entries would take as much as their patterns.
        self._numbers: dict[int, int] = {}

    def add(self, info: EntryInfo) -> tuple[int, bool]:
        """The entry's number, and whether it is new.

        Raises:
            ProdError: another entry has its id.
        """
        key = xxhash.xxh3_64_intdigest(info.id.encode("utf-8", "surrogatepass"))
        while (number := self._numbers.get(key)) is not None:
            known = self[number]
            if known.id == info.id:
                _require_equal(known, info)
                return number, False
            key += 1  # another id with the same hash
        self._numbers[key] = number = len(self)
        self._data += pack(info)
        self._starts.append(len(self._data))
        return number, True

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> EntryInfo:
        return unpack(bytes(self._data[self._starts[number] : self._starts[number + 1]]))

    def __iter__(self) -> Iterator[EntryInfo]:
        return map(self.__getitem__, range(len(self)))

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """uint8 [bytes], and int64 [entries + 1] where each begins."""
        return np.frombuffer(self._data, np.uint8), np.frombuffer(self._starts, np.int64)


def _require_equal(first: EntryInfo, second: EntryInfo) -> None:
    """Two lists may prohibit the same thing for their own reasons: all must agree but source and licence."""
    if first != replace(second, source=first.source, license=first.license):
        raise ProdError(
            f"two different entries have the id {first.id!r} (sources {first.source!r} and {second.source!r}): "
            "give each its own id"
        )


def pack(info: EntryInfo) -> bytes:
    """A record as bytes."""
    fields = [info.id, info.fingerprint, info.policy, info.max_quote or info.boundary, info.source]
    # Without these, versions that do not know them can read it.
    if more := [info.budget, info.piece, info.license] if info.budget or info.license else []:
        fields += more
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def unpack_id(packed: bytes) -> str:
    """The id of a record that `pack` made; a tenth of the time of the whole record."""
    entry_id: str = _fields(packed)[0]
    return entry_id


def unpack(packed: bytes) -> EntryInfo:
    """The record that `pack` was given.

    Raises:
        ProdError: `pack` did not make it.
    """
    entry_id, fingerprint, policy, detail, source, *more = _fields(packed)
    limit, boundary = (detail, None) if policy == "quote" else (None, detail)
    return EntryInfo(entry_id, source, policy, limit, boundary, fingerprint, *more)


def _fields(packed: bytes) -> list[Any]:
    try:
        fields = json.loads(packed.decode("utf-8", "surrogatepass"))
        entry_id, fingerprint, policy, detail, source, *more = fields
        budget, piece, license_ = more or (None, None, None)
    except (ValueError, TypeError, RecursionError):
        raise ProdError("the record of an entry is damaged: compile the blocklist again") from None
    strings = isinstance(entry_id, str) and isinstance(fingerprint, str) and (source is None or isinstance(source, str))
    strings = strings and (license_ is None or isinstance(license_, str))
    quote = policy == "quote" and _is_size(detail)
    phrase = policy == "phrase" and detail in ("start", "both", "none")
    budgeted = (quote and _is_size(budget) and _is_size(piece)) or (budget is None and piece is None)
    if not (strings and budgeted and (quote or phrase)):
        raise ProdError("the record of an entry is damaged: compile the blocklist again")
    return fields  # type: ignore[no-any-return]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
