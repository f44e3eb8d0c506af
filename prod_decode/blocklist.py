"""Entries and policies, compiled into one artifact that serves every tokenizer."""

from __future__ import annotations

import json
import multiprocessing
import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from prod_decode.anchors import FreeCode, choose_anchors, default_width
from prod_decode.artifact import read_artifact, write_artifact
from prod_decode.automaton import Automaton
from prod_decode.errors import ProdError
from prod_decode.normalize import CLASSES, WORD, Normalization
from prod_decode.patterns import Collected, Pattern
from prod_decode.scan import Filter

if TYPE_CHECKING:
    from prod_decode.matcher import Matcher

Policy = Literal["phrase", "quote"]
Boundary = Literal["start", "both", "none"]

DEFAULT_MAX_QUOTE = 120
SHORTEST_PATTERN = 3
# An anchor is half as wide.
SHORTEST_QUOTE = 2 * SHORTEST_PATTERN


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing prohibited.

    Attributes:
        text: a string (`phrase`) or a document (`quote`).
        id: its name in reports; default: the text of a short phrase, else the policy and a hash of the text.
        source: where it comes from, for people: a URL, a licence, a ticket.
        policy: `phrase`: the string may not be completed. `quote`: no verbatim run of `max_quote` normalised characters
            or more from this document.
        max_quote: for `quote` only, in characters; default 120.
        boundary: for `phrase` only: whether it must begin (`start`, `both`) and end (`both`) at the edge of a word. It
            concerns edges that are word characters and has no effect on others. Default `start`.
        cost: for `quote` only: for every character of the text what it costs to prohibit an anchor that ends there, in
            any unit, finite and above 0; the anchors are then the cheapest, not the fewest. See `prod_decode.costs`.
    """

    text: str
    id: str | None = None
    source: str | None = None
    policy: Policy = "phrase"
    max_quote: int | None = None
    boundary: Boundary | None = None
    cost: tuple[float, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ProdError(f"expected text to be a string, got {type(self.text).__name__}")
        if self.policy not in ("phrase", "quote"):
            raise ProdError(f"{self.label}: expected policy 'phrase' or 'quote', got {self.policy!r}")
        if self.boundary not in (None, "start", "both", "none"):
            raise ProdError(f"{self.label}: expected boundary 'start', 'both' or 'none', got {self.boundary!r}")
        if self.policy == "phrase" and self.max_quote is not None:
            raise ProdError(f"{self.label}: max_quote belongs to policy 'quote', this is a 'phrase': drop one")
        if self.policy == "quote" and self.boundary is not None:
            raise ProdError(f"{self.label}: boundary belongs to policy 'phrase', this is a 'quote': drop one")
        if self.max_quote is not None and (not isinstance(self.max_quote, int) or self.max_quote < SHORTEST_QUOTE):
            raise ProdError(
                f"{self.label}: expected max_quote to be a whole number of at least {SHORTEST_QUOTE} "
                f"characters, got {self.max_quote!r}"
            )
        if self.cost is not None:
            self._check_cost(self.cost)

    def _check_cost(self, cost: tuple[float, ...]) -> None:
        if self.policy == "phrase":
            raise ProdError(f"{self.label}: cost belongs to policy 'quote', this is a 'phrase': drop one")
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
        if self.policy == "phrase" and len(self.text) <= 60 and self.text.isprintable() and self.text.strip():
            return self.text
        return f"{self.policy}-{xxhash.xxh3_64_hexdigest(self.text.encode('utf-8', 'surrogatepass'))}"

    @property
    def label(self) -> str:
        """How messages call it: the id, and the source if there is one."""
        return f"entry {self.name!r}" + (f" ({self.source})" if self.source else "")


class Match(NamedTuple):
    """A prohibited pattern found in a text: `text[start:end]`, in characters, and the entry that prohibits it."""

    start: int
    end: int
    entry_id: str


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """What a compiled blocklist keeps of an entry: all but a document's text."""

    id: str
    source: str | None
    policy: Policy
    max_quote: int | None
    boundary: Boundary | None
    fingerprint: str

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
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What compiling did.

    Attributes:
        phrases: entries with policy `phrase`.
        documents: entries with policy `quote`.
        too_short: ids of documents shorter than their `max_quote`, of which nothing is prohibited.
        waived: (entry id, start, end) of the runs that may be quoted because they are free code, in characters of the
            normalised document.
    """

    phrases: int = 0
    documents: int = 0
    too_short: list[str] = field(default_factory=list)
    waived: list[tuple[str, int, int]] = field(default_factory=list)


class Blocklist:
    """Compiled entries. Immutable; made by `compile`, `load` or `merge`."""

    def __init__(
        self,
        automaton: Automaton,
        normalization: Normalization,
        owners: tuple[NDArray[np.int64], NDArray[np.int32]],
        records: tuple[NDArray[np.uint8], NDArray[np.int64]],
        report: Report,
    ) -> None:
        self.automaton = automaton
        self.normalization = normalization
        self.report = report
        self._owner_starts, self._owners = owners
        self._records, self._record_starts = records
        self._filter: Filter | None = None

    @classmethod
    def compile(
        cls,
        entries: Iterable[Entry],
        *,
        normalize: Literal["none", "code"] = "code",
        ignore_case: bool = False,
        allow: Iterable[str] = (),
        allow_short: bool = False,
        jobs: int = 1,
    ) -> Blocklist:
        """Compile entries.

        Args:
            entries: what is prohibited; ids must be unique, but for entries that differ in their source only.
            normalize: `code` ignores whitespace that does not separate words; `none` compares as is.
            ignore_case: fold ASCII letters.
            allow: texts that are free to use: no anchor of a `quote` entry occurs in them.
            allow_short: accept phrases of fewer than 3 normalised bytes, which ban very much.
            jobs: processes that choose the anchors of documents, where there are several megabytes of them.

        Raises:
            ProdError: an entry that prohibits nothing or would prohibit everything, or two entries with one id.
        """
        if jobs < 1:
            raise ProdError(f"expected jobs as a number above 0, got {jobs}: leave it out to use one process")
        normalization = Normalization(normalize, ignore_case)
        free = FreeCode(normalization.code_points(text) for text in allow)
        records, collected = _Records(), Collected()
        counts = {"phrase": 0, "quote": 0}
        too_short: list[str] = []
        waived: list[tuple[str, int, int]] = []
        for prepared in _prepare_all(entries, _Preparing(normalization, free, allow_short), jobs):
            info = prepared.info
            number, is_new = records.add(info)
            if not is_new:
                continue
            counts[info.policy] += 1
            if prepared.patterns is None:
                too_short.append(info.id)
                continue
            for pattern in prepared.patterns:
                collected.add(pattern, number)
            waived += [(info.id, start, end) for start, end in prepared.waived]
        report = Report(counts["phrase"], counts["quote"], too_short, waived)
        return cls._assemble(collected, records, normalization, report)

    @classmethod
    def merge(cls, blocklists: Sequence[Blocklist]) -> Blocklist:
        """One blocklist that prohibits what any of several does; they must normalise alike.

        Raises:
            ProdError: nothing to merge, different normalisations, or one id for two different entries.
        """
        if not blocklists:
            raise ProdError("expected at least one blocklist to merge, got none")
        normalization = blocklists[0].normalization
        records, collected = _Records(), Collected()
        too_short: dict[str, None] = {}
        waived: dict[tuple[str, int, int], None] = {}
        for blocklist in blocklists:
            if blocklist.normalization != normalization:
                raise ProdError(
                    f"cannot merge blocklists that normalise differently: expected {normalization}, got "
                    f"{blocklist.normalization}; compile them with the same normalize and ignore_case"
                )
            renumbered = np.fromiter((records.add(info)[0] for info in blocklist.entries()), np.int64, len(blocklist))
            owners = renumbered[blocklist._owners]
            indices = np.repeat(np.arange(len(blocklist._owner_starts) - 1), np.diff(blocklist._owner_starts))
            collected.extend(blocklist.automaton.spell(), indices, owners)
            too_short.update(dict.fromkeys(blocklist.report.too_short))
            waived.update(dict.fromkeys(blocklist.report.waived))
        phrases = sum(info.policy == "phrase" for info in records)
        report = Report(phrases, len(records) - phrases, list(too_short), list(waived))
        return cls._assemble(collected, records, normalization, report)

    @classmethod
    def _assemble(
        cls, collected: Collected, records: _Records, normalization: Normalization, report: Report
    ) -> Blocklist:
        patterns, owner_starts, owners = collected.sorted()
        return cls(Automaton.of(patterns), normalization, (owner_starts, owners), records.arrays(), report)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the blocklist to a file; a crash leaves what was there before."""
        automaton = self.automaton
        meta = {
            "normalize": self.normalization.mode,
            "ignore_case": self.normalization.ignore_case,
            "longest": automaton.longest,
            "report": asdict(self.report),
        }
        arrays = {
            "nodes": automaton.nodes,
            "rows": automaton.rows,
            "accepting": automaton.accepting,
            "starts": automaton.starts,
            "patterns": automaton.patterns,
            "lengths": automaton.lengths,
            "owner_starts": self._owner_starts,
            "owners": self._owners,
            "records": self._records,
            "record_starts": self._record_starts,
        }
        write_artifact(path, meta, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Blocklist:
        """Map a file that `save` wrote; processes that load one file share its memory.

        Args:
            path: the file.
            verify: check the whole file. Without, a million patterns load in milliseconds: only for a file that this
                machine has verified and nobody could change since, for a damaged one may crash the process or let
                patterns through.

        Raises:
            ProdError: the file is missing, foreign, of another version, cut short or damaged.
        """
        meta, arrays = read_artifact(path, verify=verify)
        report = meta["report"]
        automaton = Automaton(
            nodes=arrays["nodes"],
            rows=arrays["rows"],
            accepting=arrays["accepting"],
            starts=arrays["starts"],
            patterns=arrays["patterns"],
            lengths=arrays["lengths"],
            longest=meta["longest"],
        )
        if verify:
            automaton.validate()
        return cls(
            automaton,
            Normalization(meta["normalize"], meta["ignore_case"]),
            (arrays["owner_starts"], arrays["owners"]),
            (arrays["records"], arrays["record_starts"]),
            Report(
                report["phrases"],
                report["documents"],
                report["too_short"],
                [(entry_id, start, end) for entry_id, start, end in report["waived"]],
            ),
        )

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._record_starts) - 1

    def entry(self, number: int) -> EntryInfo:
        """What is kept of one entry, by its place in the order of compilation."""
        packed = self._records[self._record_starts[number] : self._record_starts[number + 1]]
        return _unpack(packed.tobytes())

    def entries(self) -> Iterator[EntryInfo]:
        """What is kept of every entry."""
        return map(self.entry, range(len(self)))

    def entries_of(self, pattern: int) -> list[str]:
        """The ids of the entries that prohibit a pattern, given by its index."""
        return [self.entry(number).id for number in self._owner_numbers(pattern)]

    def _owner_numbers(self, pattern: int) -> list[int]:
        numbers: list[int] = self._owners[self._owner_starts[pattern] : self._owner_starts[pattern + 1]].tolist()
        return numbers

    def bind(self, tokenizer: Any) -> Matcher:
        """The matcher of this blocklist for a tokenizer (see `tokenizer_bytes.vocabulary_of`).

        Raises:
            ProdError: the bytes of the tokenizer's tokens cannot be derived and proved.
        """
        from prod_decode.matcher import Matcher
        from prod_decode.tokenizer_bytes import vocabulary_of

        return Matcher(self.automaton, self.normalization, vocabulary_of(tokenizer), self.entries_of)

    def scan(self, text: str) -> Iterator[Match]:
        """Every prohibited pattern in `text`, in the order in which they end, in offsets of `text`.

        Of a `quote` entry these are its anchors: where one stands, `max_quote` characters of the document may.
        """
        codes = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        if self._filter is None:
            self._filter = Filter.of(self.automaton)
        automaton, normalization = self.automaton, self.normalization
        symbols, marks = normalization.fold(codes)
        found = np.empty((1024, 2), np.int64)
        count = self._filter.find(automaton, symbols, found)
        if not count:
            return
        if count > len(found):
            found = np.empty((count, 2), np.int64)
            self._filter.find(automaton, symbols, found)
        matches = [
            (last - length + 1, last, pattern)
            for last, where in found[:count].tolist()
            for pattern, length in automaton.patterns_at(where >> 1, ends_word=bool(where & 1))
        ]
        places = np.unique([place for first, last, _ in matches for place in (first, last)])
        origins = normalization.locate(codes, marks, places)
        continuations = np.flatnonzero((codes & 0xC0) == 0x80)  # bytes that begin no character
        characters = origins - np.searchsorted(continuations, origins, side="right")
        character = dict(zip(places.tolist(), characters.tolist(), strict=True))
        for first, last, pattern in matches:
            for entry_id in self.entries_of(pattern):
                yield Match(character[first], character[last] + 1, entry_id)


class _Records:
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
        self._data += _pack(info)
        self._starts.append(len(self._data))
        return number, True

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> EntryInfo:
        return _unpack(bytes(self._data[self._starts[number] : self._starts[number + 1]]))

    def __iter__(self) -> Iterator[EntryInfo]:
        return map(self.__getitem__, range(len(self)))

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """uint8 [bytes], and int64 [entries + 1] where each begins."""
        return np.frombuffer(self._data, np.uint8), np.frombuffer(self._starts, np.int64)


class _Prepared(NamedTuple):
    """An entry's record and patterns; None for a document that is too short to have any."""

    info: EntryInfo
    patterns: list[Pattern] | None
    waived: list[tuple[int, int]]


@dataclass(frozen=True)
class _Preparing:
    """Finds an entry's patterns."""

    normalization: Normalization
    free: FreeCode
    allow_short: bool

    def __call__(self, entry: Entry) -> _Prepared:
        info = EntryInfo.of(entry)
        if info.max_quote is None:
            return _Prepared(info, [_phrase(entry, self.normalization, self.allow_short)], [])
        return _Prepared(info, *_anchors(entry, info.max_quote, self.normalization, self.free))

    def all(self, entries: list[Entry]) -> list[_Prepared]:
        """Of several entries."""
        return [self(entry) for entry in entries]


# Characters of entries that a process takes at a time; fewer altogether are not worth starting one.
_PORTION = 2_000_000


def _prepare_all(entries: Iterable[Entry], prepare: _Preparing, jobs: int) -> Iterator[_Prepared]:
    """The entries' patterns, in their order, by several processes if there is enough to do."""
    portions = _portions(entries)
    begun = list(islice(portions, 2)) if jobs > 1 else []
    if len(begun) < 2:
        for portion in chain(begun, portions):
            yield from prepare.all(portion)
        return
    # Not forked: the caller may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting: deque[Future[list[_Prepared]]] = deque()
        for portion in chain(begun, portions):
            waiting.append(pool.submit(prepare.all, portion))
            if len(waiting) > 2 * jobs:  # so that neither entries nor patterns pile up
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _portions(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    portion: list[Entry] = []
    size = 0
    for entry in entries:
        portion.append(entry)
        size += len(entry.text)
        if size >= _PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _phrase(entry: Entry, normalization: Normalization, allow_short: bool) -> Pattern:
    symbols = _symbols(entry, normalization)
    if not symbols:
        raise ProdError(f"{entry.label}: expected some text to prohibit, got {entry.text!r}")
    if len(symbols) < SHORTEST_PATTERN and not allow_short:
        raise ProdError(
            f"{entry.label}: {symbols.decode('utf-8', 'replace')!r} is {len(symbols)} normalised bytes, expected "
            f"at least {SHORTEST_PATTERN}: it would ban a great deal; make it longer or pass --allow-short "
            "(allow_short=True)"
        )
    boundary = entry.boundary or "start"
    return Pattern(
        bound=boundary != "none" and bool(CLASSES[symbols[0]] == WORD),
        symbols=symbols,
        whole=boundary == "both" and bool(CLASSES[symbols[-1]] == WORD),
    )


def _anchors(
    entry: Entry, max_quote: int, normalization: Normalization, free: FreeCode
) -> tuple[list[Pattern] | None, list[tuple[int, int]]]:
    if not _symbols(entry, normalization):
        raise ProdError(f"{entry.label}: expected a document to protect, got an empty one")
    text, origins = normalization.trace(entry.text)
    if len(text) < max_quote:
        return None, []
    width = default_width(max_quote)
    cost = None if entry.cost is None else np.array(entry.cost)[origins[width - 1 :]]
    anchors = choose_anchors(text, max_quote, width=width, cost=cost, free=free)
    patterns = (
        Pattern(False, text[start:end].tobytes().decode("utf-32-le").encode(), False) for start, end in anchors.spans
    )
    return list(patterns), anchors.waived


def _symbols(entry: Entry, normalization: Normalization) -> bytes:
    if "\ufffd" in entry.text:
        raise ProdError(
            f"{entry.label}: text has U+FFFD at character {entry.text.index(chr(0xFFFD))}, which decoders write for "
            "broken bytes, so it cannot be guarded: remove it, or read the source with its right encoding"
        )
    try:
        return normalization.symbols(entry.text)
    except ProdError as error:
        raise ProdError(f"{entry.label}: {error}") from None


def _require_equal(first: EntryInfo, second: EntryInfo) -> None:
    """Two lists may prohibit the same thing for their own reasons: everything but the source must agree."""
    if first != replace(second, source=first.source):
        raise ProdError(
            f"two different entries have the id {first.id!r} (sources {first.source!r} and {second.source!r}): "
            "give each its own id"
        )


def _pack(info: EntryInfo) -> bytes:
    fields = [info.id, info.fingerprint, info.policy, info.max_quote or info.boundary, info.source]
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _unpack(packed: bytes) -> EntryInfo:
    entry_id, fingerprint, policy, detail, source = json.loads(packed.decode("utf-8", "surrogatepass"))
    quote = policy == "quote"
    return EntryInfo(entry_id, source, policy, detail if quote else None, None if quote else detail, fingerprint)
