"""Entries and policies, compiled into one artifact that serves every tokenizer."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from prod_decode.blocklist.anchors import FreeCode
from prod_decode.blocklist.commit import commit_phrases
from prod_decode.blocklist.entries import LONGEST_PIECE, Entry, EntryInfo, Records, label_of, unpack, unpack_id
from prod_decode.blocklist.portions import Costs, Preparing, prepare_all
from prod_decode.blocklist.replacements import parting_length, replacements_of, shared_length, watch_replacements
from prod_decode.errors import Mistakes, ProdError, brief, clear_keywords
from prod_decode.match.automaton import LAYOUT, Automaton
from prod_decode.match.scan import Filter
from prod_decode.quotes.compile import (
    Budgeted,
    are_lengths,
    arrays_of,
    compile_pieces,
    layout_of,
    merge_pieces,
    pieces_from,
)
from prod_decode.quotes.pieces import Pieces
from prod_decode.quotes.quoted import quotations
from prod_decode.storage.artifact import (
    are_laid_out,
    are_ranges,
    is_count,
    read_artifact,
    require_output,
    write_artifact,
)
from prod_decode.storage.files import as_path
from prod_decode.text.escapes import Decoded, readings
from prod_decode.text.normalize import Normalization
from prod_decode.text.patterns import Collected

if TYPE_CHECKING:
    from prod_decode.match.matcher import Matcher


_T = TypeVar("_T")
_LAYOUT = LAYOUT | {
    "owner_starts": (np.dtype("<i8"), 1),
    "owners": (np.dtype("<i4"), 1),
    "records": (np.dtype("u1"), 1),
    "record_starts": (np.dtype("<i8"), 1),
}


# What a report need not have; of two these are lists of so many words each.
_WORDS = {"commit_points": 2, "replacements": 3}
_OPTIONAL = {*_WORDS, "pieces"}


class Match(NamedTuple):
    """A prohibited pattern found in a text: `text[start:end]`, in characters, and the entry that prohibits it."""

    start: int
    end: int
    entry_id: str


@dataclass(frozen=True, slots=True)
class CompileReport:
    """What compiling did.

    Attributes:
        phrases: entries with policy `phrase`.
        documents: entries with policy `quote`.
        too_short: ids of documents of which nothing is prohibited: shorter than their `max_quote`, and without a budget
            or shorter than a piece.
        waived: (entry id, start, end) of the runs that may be quoted because they are free code, in characters of the
            normalised document.
        commit_points: (entry id, beginning) of the phrases that are prohibited from a beginning on, normalised.
        replacements: (entry id, phrase, replacement) of the phrases that have one; the phrase is normalised.
        pieces: the lengths of pieces of which there are documents with a budget, ascending.
    """

    phrases: int = 0
    documents: int = 0
    too_short: list[str] = field(default_factory=list)
    waived: list[tuple[str, int, int]] = field(default_factory=list)
    commit_points: list[tuple[str, str]] = field(default_factory=list)
    replacements: list[tuple[str, str, str]] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)


class Budget(NamedTuple):
    """How much of one document an output may give away.

    Attributes:
        entry: what is kept of it.
        characters: that it may give away, before no piece may give away more.
        length: of the document, both normalised.
    """

    entry: EntryInfo
    characters: int
    length: int


class Quoted(NamedTuple):
    """How much a text has in common with one document.

    Attributes:
        entry: what is kept of it.
        characters: of the document that stand in the text in pieces, each counted once, normalised.
        length: of the document, normalised.
        longest: the longest run in common, normalised.
        spans: (start, end) of what the text has in pieces, in characters of the text, ascending and apart.
    """

    entry: EntryInfo
    characters: int
    length: int
    longest: int
    spans: list[tuple[int, int]]

    @property
    def share(self) -> float:
        """Of the document, 0 to 1."""
        return self.characters / self.length


def most_quoted(found: Iterable[Quoted]) -> list[Quoted]:
    """Of each document the reading of a text that has most of it, those with the most characters first."""
    most: dict[tuple[str, str | None, int], Quoted] = {}
    for one in found:
        document = one.entry.id, one.entry.source, one.length  # two repositories may have a file of one name
        if document not in most or most[document].characters < one.characters:
            most[document] = one
    return sorted(most.values(), key=lambda one: (-one.characters, one.entry.id))


class Blocklist:
    """Compiled entries. Immutable; made by `compile`, `load` or `merge`."""

    def __init__(
        self,
        automaton: Automaton,
        normalization: Normalization,
        owners: tuple[NDArray[np.int64], NDArray[np.int32]],
        records: tuple[NDArray[np.uint8], NDArray[np.int64]],
        report: CompileReport,
        pieces: tuple[Pieces, ...] = (),
    ) -> None:
        self.automaton = automaton
        self.normalization = normalization
        self.report = report
        self.pieces = pieces
        self._owner_starts, self._owners = owners
        self._records, self._record_starts = records
        self._filter: Filter | None = None
        self._unfiltered = 0  # symbols scanned without

    @classmethod
    @clear_keywords
    def compile(
        cls,
        entries: Iterable[Entry],
        *,
        normalize: Literal["none", "code"] = "code",
        ignore_case: bool = False,
        allow: Iterable[str] = (),
        allow_names: Iterable[str] = (),
        allow_short: bool = False,
        jobs: int = 1,
        costs: Costs | None = None,
        parts: str | os.PathLike[str] | None = None,
        skipped: Callable[[str], object] | None = None,
        allow_empty: bool = False,
    ) -> Blocklist:
        """Compile entries.

        Args:
            entries: what is prohibited; ids must be unique, but for entries that differ in their source only.
            normalize: `code` ignores whitespace that does not separate words; `none` compares as is.
            ignore_case: fold ASCII letters.
            allow: texts that are free to use: no anchor of a `quote` entry occurs in them, and no piece in them counts.
            allow_names: installed packages, such as `numpy`, or `stdlib`. A phrase whose last word is the name of
                something in one of their modules is prohibited from its *commit point* on: the shortest beginning that
                no other name there, and no text of `allow`, begins with. See `blocklist.commit`.
            allow_short: accept phrases of fewer than 3 normalised bytes, which ban very much.
            jobs: processes that find the patterns, where there are several megabytes of entries. They are spawned: a
                script that asks for more than one needs `if __name__ == "__main__":`.
            costs: for documents without costs of their own; see `costs.ModelCosts`.
            parts: a directory in which the patterns of every two megabytes of entries are kept as soon as they are
                found. A compile that was stopped goes on from there, and one with more entries begins there.
            skipped: told of every entry that cannot be guarded, and why: a phrase that is too short, broken characters.
                It is left out, and not in the blocklist's records. Without, it is an error.
            allow_empty: accept a list that prohibits nothing: something to compare others with, and no protection.

        Raises:
            ProdError: no entries, or none that prohibits anything, without `allow_empty`; an entry that cannot be
                guarded; a replacement that is prohibited itself; two entries with one id; something else than entries
                and texts; or a directory that cannot be written.
        """
        if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
            raise ProdError(f"expected jobs as a number above 0, got {jobs!r}")
        for flag, value in (("allow_short", allow_short), ("allow_empty", allow_empty)):
            if not isinstance(value, bool):
                raise ProdError(f"{flag} must be True or False, got {value!r}")
        parts = None if parts is None else as_path(parts)
        replaced: list[Entry] = []
        budgeted: dict[str, Entry] = {}
        entries = watch_replacements(_each(entries, Entry, "entries", "pass [Entry({})]"), replaced)
        entries = _watch_budgets(entries, budgeted)
        normalization = Normalization(normalize, ignore_case)
        packages = list(_each(allow_names, str, "allow_names", "pass their names, as ['numpy']"))
        texts: list[bytes] = []
        free = FreeCode(_free(allow, normalization, texts if packages else None))
        records, collected, mistakes = Records(), Collected(), Mistakes()
        counts = {"phrase": 0, "quote": 0}
        too_short: list[str] = []
        waived: list[tuple[str, int, int]] = []
        refused = 0
        prepare = Preparing(normalization, free, allow_short)
        for portion in prepare_all(entries, prepare, jobs=jobs, costs=costs, parts=parts):
            for _, why in portion.refused:
                (skipped or mistakes.add)(why)
            mistakes.refuse()
            refused += len(portion.refused)
            left_out = {place for place, _ in portion.refused}
            numbers = np.full(len(portion.infos), -1, np.int64)
            for place, info in enumerate(portion.infos):
                if place in left_out:
                    continue
                number, is_new = records.add(info)
                if is_new:
                    numbers[place] = number
                    counts[info.policy] += 1
            collected.append(portion.collected, numbers)
            new = [place for place in portion.too_short if numbers[place] >= 0]
            too_short += [portion.infos[place].id for place in new]
            waived += [(portion.infos[place].id, a, b) for place, a, b in portion.waived if numbers[place] >= 0]
        replacements = replacements_of(replaced, records, normalization)
        committed = []
        if packages:
            texts += [normalization.symbols(text) for *_, text in replacements]
            committed = commit_phrases(collected, records, normalization, texts, packages)
        pieces = compile_pieces(
            _budgeted(budgeted, records, normalization),
            lambda symbols, width: free.in_bytes.contains(symbols.astype(np.uint32), width),
        )
        counted = {records[int(owner)].id for group in pieces for owner in group.counted()} if too_short else ()
        too_short = [name for name in too_short if name not in counted]
        report = CompileReport(counts["phrase"], counts["quote"], too_short, waived, committed, replacements)
        blocklist = cls._assemble(collected, records, normalization, report, pieces)
        if not len(blocklist.automaton.patterns) and not counted and not allow_empty:
            raise ProdError(_no_patterns(len(blocklist), len(too_short), refused))
        return blocklist

    @classmethod
    def merge(cls, blocklists: Sequence[Blocklist]) -> Blocklist:
        """One blocklist that prohibits what any of several does; they must normalise alike.

        Raises:
            ProdError: nothing to merge, different normalisations, one id for two different entries, or patterns that
                fill the machine's memory.
        """
        blocklists = list(_each(blocklists, Blocklist, "blocklists", "pass [Blocklist.load({})]"))
        if not blocklists:
            raise ProdError("expected at least one blocklist to merge, got none")
        normalization = blocklists[0].normalization
        records, collected = Records(), Collected()
        too_short: dict[str, None] = {}
        waived: dict[tuple[str, int, int], None] = {}
        committed: dict[tuple[str, str], None] = {}
        replacements: dict[tuple[str, str, str], None] = {}
        pieces: list[tuple[tuple[Pieces, ...], NDArray[np.int64]]] = []
        for blocklist in blocklists:
            if blocklist.normalization != normalization:
                raise ProdError(
                    f"cannot merge blocklists that normalise differently: the first {normalization}, another "
                    f"{blocklist.normalization}: compile them alike"
                )
            _require_memory(blocklist)
            renumbered = np.fromiter((records.add(info)[0] for info in blocklist.entries()), np.int64, len(blocklist))
            pieces.append((blocklist.pieces, renumbered))
            owners = renumbered[blocklist._owners]
            indices = np.repeat(np.arange(len(blocklist._owner_starts) - 1), np.diff(blocklist._owner_starts))
            collected.extend(blocklist.automaton.spell(), indices, owners)
            too_short.update(dict.fromkeys(blocklist.report.too_short))
            waived.update(dict.fromkeys(blocklist.report.waived))
            committed.update(dict.fromkeys(blocklist.report.commit_points))
            replacements.update(dict.fromkeys(blocklist.report.replacements))
        phrases = sum(info.policy == "phrase" for info in records)
        report = CompileReport(
            phrases, len(records) - phrases, list(too_short), list(waived), list(committed), list(replacements)
        )
        return cls._assemble(collected, records, normalization, report, merge_pieces(pieces))

    @classmethod
    def _assemble(
        cls,
        collected: Collected,
        records: Records,
        normalization: Normalization,
        report: CompileReport,
        pieces: tuple[Pieces, ...],
    ) -> Blocklist:
        patterns, owner_starts, owners = collected.drain()
        report = replace(report, pieces=[group.piece for group in pieces])
        blocklist = cls(Automaton.of(patterns), normalization, (owner_starts, owners), records.arrays(), report, pieces)
        for entry_id, _, text in report.replacements:
            if found := next(blocklist.scan(text), None):
                replaced, other = (label_of(name, blocklist.origin_of(name)[0]) for name in (entry_id, found.entry_id))
                raise ProdError(
                    f"{replaced}: expected a replacement that nothing prohibits, got {brief(text)!r}, which {other} "
                    "does: change one of them"
                )
        return blocklist

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the blocklist to a file; a crash leaves what was there before.

        Raises:
            ProdError: the file cannot be written, or there is one already that is neither a blocklist nor empty.
        """
        require_output(path)
        automaton = self.automaton
        meta = {
            "normalize": self.normalization.mode,
            "ignore_case": self.normalization.ignore_case,
            "longest": automaton.longest,
            # A file that has none of them can be read by versions that do not know them.
            "report": {name: value for name, value in asdict(self.report).items() if name not in _OPTIONAL or value},
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
            **arrays_of(self.pieces),
        }
        write_artifact(path, meta, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Blocklist:
        """A file that `save` wrote, as it is now: writing over the file later does not change what is enforced.

        To deploy another list, write it beside the old one, `mv` it over that, and load again (restart the server).

        Args:
            path: the file.
            verify: check the whole file. Without, a file of 16 MB or more that this user has loaded before on this
                machine opens in milliseconds: only its header is read, and memory comes from the copy that was checked
                then. Any other is read, and its checksum compared. That no index leads astray is taken on trust: only
                for files that nobody made by hand.

        Files of 16 MB and more are copied once to `prod-decode-UID` in the system's temporary folder (`TMPDIR`), which
        only this user may enter; processes that load one file share the memory of that copy. A copy that no process
        uses is removed when the next one is made. Without such a place or room, each process reads the file.

        Raises:
            ProdError: the file is missing, foreign, of another version, cut short or damaged.
        """
        meta, arrays = read_artifact(path, verify=verify)
        try:
            return cls._of(meta, arrays, verify=verify)
        except ProdError as error:
            raise ProdError(f"{path}: {error}") from None

    @classmethod
    def _of(cls, meta: dict[str, Any], arrays: dict[str, NDArray[Any]], *, verify: bool) -> Blocklist:
        """What the contents of a file say; a checksum does not tell who wrote them."""
        if not (
            are_laid_out(arrays, _LAYOUT)
            and len(arrays["record_starts"])
            and _is_meta(meta)
            and are_laid_out(arrays, layout_of(meta["report"].get("pieces", ())))
        ):
            raise ProdError("it has arrays or settings that no compiler writes: compile the blocklist again")
        automaton = Automaton(**{name: arrays[name] for name in LAYOUT}, longest=meta["longest"])
        report = meta["report"]
        pieces = pieces_from(arrays, report.get("pieces", ()))
        if verify:
            automaton.validate()
            entries = len(arrays["record_starts"]) - 1
            owned = _are_owned(arrays, entries) and all(group.validate(entries) for group in pieces)
            if report["phrases"] + report["documents"] != entries or not owned:
                raise ProdError("its entries and their patterns contradict each other: compile the blocklist again")
        return cls(
            automaton,
            Normalization(meta["normalize"], meta["ignore_case"]),
            (arrays["owner_starts"], arrays["owners"]),
            (arrays["records"], arrays["record_starts"]),
            CompileReport(
                **{
                    **report,
                    "waived": [(entry_id, start, end) for entry_id, start, end in report["waived"]],
                    **{name: [tuple(words) for words in report.get(name, ())] for name in _WORDS},
                }
            ),
            pieces,
        )

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._record_starts) - 1

    def entry(self, number: int) -> EntryInfo:
        """What is kept of one entry, by its place in the order of compilation."""
        return unpack(self._packed(number))

    def _id(self, number: int) -> str:
        return unpack_id(self._packed(number))

    def _packed(self, number: int) -> bytes:
        return self._records[self._record_starts[number] : self._record_starts[number + 1]].tobytes()

    def entries(self) -> Iterator[EntryInfo]:
        """What is kept of every entry."""
        return map(self.entry, range(len(self)))

    def origin_of(self, entry_id: str) -> tuple[str | None, str | None]:
        """Source and licence of an entry, given by its id, as far as they are known; of no entry neither is.

        The first call takes 3 us an entry.
        """
        wanted = np.uint64(_hash_of(entry_id))
        hashes, numbers = self._by_id
        for place in range(int(np.searchsorted(hashes, wanted)), len(hashes)):
            if hashes[place] != wanted:
                break
            if (info := self.entry(int(numbers[place]))).id == entry_id:
                return info.source, info.license
        return None, None

    @cached_property
    def _by_id(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The hashes of the ids, ascending, and the number of each one's entry: a string each would take ten times."""
        hashes = np.fromiter((_hash_of(self._id(number)) for number in range(len(self))), np.uint64, len(self))
        numbers = np.argsort(hashes, kind="stable")
        return hashes[numbers], numbers

    def ineffective(self) -> list[str]:
        """The ids of entries that prohibit nothing: documents that are too short, or free code all over."""
        owners = np.concatenate([self._owners, *(group.counted() for group in self.pieces)])
        return [self._id(number) for number in np.setdiff1d(np.arange(len(self)), owners).tolist()]

    def budgets(self) -> Iterator[Budget]:
        """Of every document that has one, in the order of the lengths of pieces, then of compilation."""
        for group in self.pieces:
            for owner, budget, length in zip(group.owners, group.budgets, np.diff(group.starts) - 1, strict=True):
                yield Budget(self.entry(int(owner)), int(budget), int(length))

    def unreached(self) -> list[str]:
        """The ids of entries whose replacement cannot be written: too much of the phrase differs."""
        return [entry_id for entry_id, _, shared, _ in self._replaced() if not shared]

    def _replaced(self) -> Iterator[tuple[str, str, int, str]]:
        """Of every entry with a replacement its id, phrase, how many symbols of that are shared, and replacement."""
        for entry_id, phrase, text in self.report.replacements:
            yield entry_id, phrase, shared_length(phrase, text, self.normalization), text

    def entries_of(self, pattern: int) -> list[str]:
        """The ids of the entries that prohibit a pattern, given by its index."""
        return [self._id(number) for number in self._owner_numbers(pattern)]

    def is_quote(self, pattern: int) -> bool:
        """Whether documents alone prohibit a pattern, given by its index."""
        return all(self.entry(number).policy == "quote" for number in self._owner_numbers(pattern))

    def _owner_numbers(self, pattern: int) -> list[int]:
        numbers: list[int] = self._owners[self._owner_starts[pattern] : self._owner_starts[pattern + 1]].tolist()
        return numbers

    def bind(self, tokenizer: Any) -> Matcher:
        """The matcher of this blocklist for a tokenizer (see `tokenizer_bytes.vocabulary_of`).

        Raises:
            ProdError: the bytes of the tokenizer's tokens cannot be derived and proved.
        """
        from prod_decode.match.matcher import Fork, Matcher
        from prod_decode.tokens.tokenizer_bytes import vocabulary_of

        commits = {entry_id: len(left.encode()) for entry_id, left in self.report.commit_points}
        forks = [
            Fork(
                entry_id,
                phrase.encode(),
                shared,
                max(parting_length(phrase.encode(), shared), commits.get(entry_id, 0)),
                text,
            )
            for entry_id, phrase, shared, text in self._replaced()
            if shared
        ]
        return Matcher(
            self.automaton,
            self.normalization,
            vocabulary_of(tokenizer),
            self.entries_of,
            forks=forks,
            quotes=[(group, self._id) for group in self.pieces],
            is_quote=self.is_quote,
            origin_of=self.origin_of,
        )

    def quoted(self, text: str, *, unescape: bool = False) -> list[Quoted]:
        """What `text` has in common with each document that has a budget, those with the most characters first.

        Args:
            text: a whole text. Pieces in free code do not count.
            unescape: also count with JSON's escapes decoded; of each document the reading that has more of it.

        Raises:
            ProdError: `text` is no string, or no document has a budget, so that no pieces are kept.
        """
        codes = codes_of(text)
        if not self.pieces:
            raise ProdError(
                "expected documents with a budget, whose pieces are kept, got none: compile the blocklist with "
                "--budget N (Entry(..., budget=N))"
            )
        return most_quoted(one for decoded in readings(codes, unescape) for one in self._quoted(decoded, codes))

    def _quoted(self, decoded: Decoded, codes: NDArray[np.uint8]) -> Iterator[Quoted]:
        """What a decoded text has of each document, in characters of the text `codes` that it comes from."""
        symbols, origins = self.normalization.run(decoded.codes)
        continuations = np.flatnonzero((codes & 0xC0) == 0x80)  # bytes that begin no character
        for group in self.pieces:
            for document, given, longest, runs in quotations(group, symbols):
                starts = decoded.origins(origins[runs[:, 0]])[0]
                ends = decoded.origins(origins[runs[:, 1] - 1])[1] + 1
                edges = (at - np.searchsorted(continuations, at) for at in (starts, ends))
                length = int(group.starts[document + 1] - group.starts[document]) - 1
                spans = list(zip(*(at.tolist() for at in edges), strict=True))
                yield Quoted(self.entry(int(group.owners[document])), given, length, longest, spans)

    def scan(self, text: str, *, unescape: bool = False) -> Iterator[Match]:
        """Every prohibited pattern in `text`, in the order in which they end, in offsets of `text`.

        Of a `quote` entry these are its anchors: where one stands, `max_quote` characters of the document may.

        Args:
            text: a whole text.
            unescape: also find what is there with JSON's escapes decoded, as they are in strings of JSON.

        Raises:
            ProdError: `text` is no string.
        """
        codes = codes_of(text)
        plain, *decoded = readings(codes, unescape)
        if not decoded:
            yield from self._matches(plain, codes)
            return
        both = [match for one in (plain, *decoded) for match in self._matches(one, codes)]
        yield from sorted(dict.fromkeys(both), key=lambda match: (match.end, match.start))

    def _matches(self, decoded: Decoded, codes: NDArray[np.uint8]) -> Iterator[Match]:
        """What stands in a decoded text, in characters of the text `codes` that it comes from."""
        normalization = self.normalization
        symbols, marks = normalization.fold(decoded.codes)
        found = self._filter_for(len(symbols)).find(self.automaton, symbols)
        if not len(found):
            return
        last, patterns, lengths = found.T
        starts, ends = decoded.characters(
            codes, lambda wanted: normalization.locate(decoded.codes, marks, wanted), last + 1 - lengths, last
        )
        owned, owners = _members(self._owner_starts, patterns)
        numbers, named = np.unique(self._owners[owners], return_inverse=True)
        ids = [self._id(number) for number in numbers.tolist()]
        for place, name in zip(owned.tolist(), named.tolist(), strict=True):
            yield Match(int(starts[place]), int(ends[place]), ids[name])

    def _filter_for(self, symbols: int) -> Filter:
        """A filter, once so much has been scanned that making one, 25 ns a node, pays: it saves .2 us a symbol."""
        if self._filter is None:
            self._unfiltered += symbols
            if 8 * self._unfiltered < len(self.automaton):
                return Filter.none()
            self._filter = Filter.of(self.automaton)
        return self._filter


def _hash_of(entry_id: str) -> int:
    return xxhash.xxh3_64_intdigest(entry_id.encode("utf-8", "surrogatepass"))


def codes_of(text: str) -> NDArray[np.uint8]:
    """The bytes of a text."""
    if not isinstance(text, str):
        raise ProdError(f"expected text as a string, got {type(text).__name__}: decode bytes, read files first")
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def _is_meta(meta: dict[str, Any]) -> bool:
    report = meta.get("report")
    return (
        meta.get("normalize") in ("none", "code")
        and isinstance(meta.get("ignore_case"), bool)
        and is_count(meta.get("longest"))
        and meta["longest"] < 1 << 31
        and isinstance(report, dict)
        and report.keys() - _OPTIONAL == {"phrases", "documents", "too_short", "waived"}
        and is_count(report["phrases"])
        and is_count(report["documents"])
        and isinstance(report["too_short"], list)
        and all(isinstance(entry_id, str) for entry_id in report["too_short"])
        and isinstance(report["waived"], list)
        and all(isinstance(run, list) and len(run) == 3 and isinstance(run[0], str) for run in report["waived"])
        and all(is_count(start) and is_count(end) for _, start, end in report["waived"])
        and all(_are_words(report.get(name, []), count) for name, count in _WORDS.items())
        and are_lengths(report.get("pieces", []), LONGEST_PIECE)
    )


def _are_words(rows: object, count: int) -> bool:
    """Whether these are lists of an id and so many texts less one, which UTF-8 can carry."""
    return isinstance(rows, list) and all(
        isinstance(row, list)
        and len(row) == count
        and all(isinstance(word, str) for word in row)
        and all(word == word.encode("utf-8", "ignore").decode() for word in row[1:])
        for row in rows
    )


def _watch_budgets(entries: Iterable[Entry], budgeted: dict[str, Entry]) -> Iterator[Entry]:
    """The entries; of those that have a budget the first of each id goes into `budgeted` as well."""
    for entry in entries:
        if entry.budget is not None:
            budgeted.setdefault(entry.name, entry)
        yield entry


def _budgeted(entries: Mapping[str, Entry], records: Records, normalization: Normalization) -> Iterator[Budgeted]:
    """Those of the entries that were not refused."""
    for number, info in enumerate(records) if entries else ():
        if info.budget is not None and info.piece is not None:
            yield Budgeted(number, normalization.symbols(entries[info.id].text), info.budget, info.piece)


def _free(allow: Iterable[str], normalization: Normalization, kept: list[bytes] | None) -> Iterator[NDArray[np.uint32]]:
    """Free code, normalised, as code points; its symbols go into `kept`."""
    for text in _each(allow, str, "allow", "pass their texts, as [{}]"):
        if kept is not None:
            kept.append(normalization.symbols(text))
        yield normalization.code_points(text)


def _are_owned(arrays: dict[str, NDArray[Any]], entries: int) -> bool:
    """Whether every pattern has owners, in ascending order, and every entry a record."""
    starts, owners = arrays["owner_starts"], arrays["owners"]
    if not are_ranges(starts, len(arrays["patterns"]), len(owners)):
        return False
    if not are_ranges(arrays["record_starts"], entries, len(arrays["records"])):
        return False
    rising = owners[1:] > owners[:-1]
    rising[starts[1:-1] - 1] = True  # between two patterns
    return bool(rising.all()) and int(owners.min(initial=0)) >= 0 and int(owners.max(initial=-1)) < entries


def _require_memory(blocklist: Blocklist) -> None:
    """Refuse patterns that, spelled out for each owner, are more than this machine could hold."""
    automaton, owned = blocklist.automaton, np.diff(blocklist._owner_starts)
    lengths = np.repeat(automaton.lengths, np.diff(automaton.starts)).astype(np.int64)
    needed = int((lengths * owned[automaton.patterns >> 1]).sum())
    if needed > (memory := _physical_memory()):
        raise ProdError(
            f"cannot merge a blocklist whose patterns take {needed:,} bytes, expected at most the {memory:,} of this "
            "machine's memory: compile the entries of all lists together"
        )


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _each(items: Iterable[_T], kind: type[_T], name: str, remedy: str) -> Iterator[_T]:
    """The items, checked one by one. A string is a sequence too, and not meant as one.

    Args:
        items: what should hold instances of `kind`.
        kind: what is expected.
        name: what messages call them.
        remedy: what to do about something else, which stands in it as `{}`.
    """

    def refuse(expected: str, got: object) -> ProdError:
        shown = f" {reprlib.repr(got)}" if isinstance(got, (str, bytes)) else ""
        advice = "pass a list of it" if isinstance(got, kind) else remedy.format(shown.strip() or "...")
        return ProdError(f"{name}: expected {expected}, got {type(got).__name__}{shown}: {advice}")

    if isinstance(items, (str, bytes, kind)) or not isinstance(items, Iterable):
        raise refuse(f"a list of {kind.__name__}", items)
    for item in items:
        if not isinstance(item, kind):
            raise refuse(f"{kind.__name__} alone in the list", item)
        yield item


def _no_patterns(entries: int, too_short: int, refused: int) -> str:
    """What to say of entries none of which prohibits anything."""
    if not entries + refused:
        return "expected at least one entry, got none: a blocklist that prohibits nothing would guard nothing"
    reasons = {
        "cannot be guarded": refused,
        "read as a document and shorter than max_quote: lower it, or give phrases, in a .txt file or with the policy "
        "'phrase'": too_short,
        "free code all over": entries - too_short,
    }
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    return f"expected an entry that prohibits something, got {entries + refused} that prohibit nothing ({told})"


def _members(starts: NDArray[np.int64], which: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the ranges `starts[i] : starts[i + 1]`, i in `which`: for every member the place of its i, and the member."""
    counts = starts[which + 1] - starts[which]
    places = np.repeat(np.arange(len(which)), counts)
    return places, np.arange(len(places)) + np.repeat(starts[which] - (np.cumsum(counts) - counts), counts)
