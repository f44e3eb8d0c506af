"""`CorpusIndex`: the anchors of a corpus in a file, which texts may not complete."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prod_decode.blocklist.blocklist import Blocklist, Match, Quoted, codes_of, most_quoted
from prod_decode.blocklist.entries import EntryInfo
from prod_decode.corpus.finding import runs_of
from prod_decode.corpus.keys import KEY_BYTES, Cut
from prod_decode.corpus.report import IndexReport, Source
from prod_decode.corpus.table import Table
from prod_decode.corpus.tracker import Anchors
from prod_decode.corpus.unescaped import WatchedAnchors
from prod_decode.corpus.winnow import EVERY_RUN
from prod_decode.errors import ProdError
from prod_decode.storage.artifact import Format, are_laid_out, is_count, read_artifact, write_artifact
from prod_decode.storage.files import as_path
from prod_decode.text.escapes import Decoded, readings
from prod_decode.text.normalize import Normalization

if TYPE_CHECKING:
    from prod_decode.match.matcher import Matcher

INDEX = Format(
    b"PRODIDX\x01",
    "corpus index",
    "make one with `prod-decode index build {} -o FILE`",
    "build it again, or copy it again and rename the copy",
)

# Bytes of an index that are read when it is opened: 50 ms.
VERIFIED = 1 << 28

_log = logging.getLogger(__name__)

_LAYOUT: dict[str, tuple[Any, int]] = {
    "starts": (np.dtype("<u4"), 1),
    "remainders": (np.dtype("<u2"), 1),
    "suffixes": (np.dtype("<u4"), 1),
    "documents": (np.dtype("<u4"), 1),
    "even": (np.dtype("<u4"), 2),
    "records": (np.dtype("u1"), 1),
    "record_starts": (np.dtype("<i8"), 1),
    "outliers": (np.dtype("<u8"), 1),
}


class CorpusIndex(Anchors):
    """The anchors of a corpus: no window of `max_quote` symbols of a document can be written without one of them.

    The file holds hashes and no text. It is mapped, and may be larger than memory.

    Attributes:
        report: what it was made of.
        name: its file's name.
        outliers: of `outliers_of`, uint64 [words].
        even: uint32 [n, 2], of the even anchors (`winnow`) the low bits of the hashes of prefix and suffix, ascending.
        records: uint8 [bytes], the `Source` of each document, as JSON.
        record_starts: int64 [documents + 1], where each begins.
    """

    def __init__(
        self,
        table: Table,
        cut: Cut,
        report: IndexReport,
        even: NDArray[np.uint32],
        records: tuple[NDArray[np.uint8], NDArray[np.int64]],
        name: str,
        outliers: NDArray[np.uint64] = EVERY_RUN,
    ) -> None:
        """From its parts: see `load`, and `prod_decode.indexing.build`."""
        super().__init__(table, cut, outliers)
        self.report, self.name = report, name
        self.even = even
        self.records, self.record_starts = records
        self._origins: dict[str, tuple[str | None, str | None]] = {}
        self._watched: _Watched | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool | None = None) -> CorpusIndex:
        """The index of a file that `prod-decode index build` wrote.

        Writing into the file while it is used changes what is prohibited: replace it by renaming another one, as
        `index build` does. It is looked at when a text is begun, and refused if it was written into.

        Args:
            path: the file.
            verify: read all of it, compare its checksum, and look whether it is in order. None: if it has at most
                `VERIFIED` bytes; of a larger one a line is logged.

        Raises:
            ProdError: no such file, not an index, of another version, cut short, or damaged as far as that is read.
        """
        source = as_path(path)
        if verify is None:
            verify = not source.is_file() or source.stat().st_size <= VERIFIED
            if not verify:
                _log.warning("%s is opened without reading all of it: `prod-decode index verify` does", source)
        meta, arrays = read_artifact(source, verify=verify, form=INDEX, mapped=True)
        watched = _Watched(source)
        arrays = {"outliers": EVERY_RUN, **arrays}  # files of earlier versions have none
        table = None
        if _is_meta(meta) and are_laid_out(arrays, _LAYOUT):
            table = Table(*(arrays[name] for name in ("starts", "remainders", "suffixes", "documents")))
        if table is None or not table.is_laid_out() or not _are_laid_out(arrays):
            raise ProdError(f"{source} has a header that no build writes: {INDEX.again}")
        if verify and not (table.is_sorted() and _are_named(table, arrays)):
            raise ProdError(f"{source} has anchors out of order: {INDEX.again}")
        cut = Cut.of(
            meta["max_quote"],
            meta["width"],
            Normalization(meta["normalize"], meta["ignore_case"]),
            bytes.fromhex(meta["key"]),
        )
        records = arrays["records"], arrays["record_starts"]
        report, even = IndexReport(**meta["report"]), arrays["even"]
        found = cls(table, cut, report, even, records, source.name, arrays["outliers"])
        found._watched = watched
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it; a crash at any moment leaves the file that was there before.

        Raises:
            ProdError: the file cannot be written.
        """
        cut, report = self.cut, self.report
        meta = {
            "max_quote": cut.max_quote,
            "width": cut.width,
            "normalize": cut.normalization.mode,
            "ignore_case": cut.normalization.ignore_case,
            "key": cut.key.hex(),
            "report": {name: getattr(report, name) for name in IndexReport.__slots__},
        }
        arrays: dict[str, NDArray[Any]] = {
            "starts": self.table.starts,
            "remainders": self.table.remainders,
            "suffixes": self.table.suffixes,
            "documents": self.table.documents,
            "even": self.even,
            "records": self.records,
            "record_starts": self.record_starts,
            "outliers": self.outliers,
        }
        write_artifact(path, meta, arrays, form=INDEX)

    def __len__(self) -> int:
        """The number of anchors."""
        return len(self.table)

    def entries(self) -> Iterator[EntryInfo]:
        """What is known of entries by themselves: none, as a match names its document."""
        return iter(())

    @property
    def attributes(self) -> bool:
        """Whether it knows which document an anchor is of."""
        return len(self.table.documents) > 0

    @property
    def size(self) -> int:
        """The bytes of its arrays."""
        arrays = (*vars(self.table).values(), self.even, self.records, self.record_starts, self.outliers)
        return sum(array.nbytes for array in arrays)

    def source(self, place: int) -> Source | None:
        """Where the first document with an anchor comes from, by the anchor's place in the table; None: unknown."""
        return self._source(int(self.table.documents[place])) if self.attributes else None

    def _source(self, number: int) -> Source | None:
        if number + 1 >= len(self.record_starts):
            return None
        begin, end = self.record_starts[number : number + 2].tolist()
        try:
            path, repo, license_, symbols = json.loads(self.records[max(0, begin) : max(0, end)].tobytes())
            return Source(str(path), str(repo), str(license_), int(symbols))
        except (OverflowError, RecursionError, TypeError, ValueError):  # of a file that nobody verified
            return None

    def name_of(self, place: int) -> str:
        """What messages call the document of an anchor: its source, or the index where that is unknown."""
        source = self.source(place)
        name = str(source or self.name)
        if source is not None:
            self._origins[name] = source.repo or None, source.license or None
        return name

    def origin_of(self, name: str) -> tuple[str | None, str | None]:
        """Repository and licence of a document, by the name that `name_of` gave it, as far as they are known."""
        return self._origins.get(name, (None, None))

    def bind(self, tokenizer: Any) -> Matcher:
        """The matcher of this index for a tokenizer (see `tokenizer_bytes.vocabulary_of`).

        Raises:
            ProdError: the bytes of the tokenizer's tokens cannot be derived and proved, or the file was written into.
        """
        from prod_decode.match.automaton import Automaton
        from prod_decode.match.matcher import Matcher
        from prod_decode.tokens.tokenizer_bytes import vocabulary_of

        vocabulary = vocabulary_of(tokenizer)
        return Matcher(
            Automaton.build([]),
            self.cut.normalization,
            vocabulary,
            corpora=[WatchedAnchors(self, (self.even[:, 0], self.even[:, 1]), vocabulary)],
            origin_of=self.origin_of,
        )

    def scan(self, text: str, *, unescape: bool = False) -> Iterator[Match]:
        """Every run of anchors in `text`, in the order in which they begin, in offsets of `text`.

        Anchors are one run where another of the same document follows within a window of `max_quote` symbols. It is
        named after that document, as far as that is known. Around a run, up to `max_quote` symbols of the
        document may stand.

        Args:
            text: a whole text.
            unescape: also find what is there with JSON's escapes decoded, as they are in strings of JSON.

        Raises:
            ProdError: `text` is no string.
        """
        codes = codes_of(text)
        found = [match for decoded in readings(codes, unescape) for match in self._runs(decoded, codes)]
        yield from sorted(dict.fromkeys(found))

    def quoted(self, text: str, *, unescape: bool = False) -> list[Quoted]:
        """What `text` has of each document of the corpus, those with the most characters first.

        Counted are characters from the first to the last anchor of every run. An anchor that several documents have
        counts for the first of them.

        Args:
            text: a whole text.
            unescape: also count with JSON's escapes decoded; of each document the reading that has more of it.

        Raises:
            ProdError: `text` is no string, or the index was built without attribution.
        """
        if not self.attributes:
            raise ProdError(f"expected an index with attribution, got {self.name}: build it without --no-attribution")
        codes = codes_of(text)
        return most_quoted(one for decoded in readings(codes, unescape) for one in self._quoted(decoded, codes))

    def _quoted(self, decoded: Decoded, codes: NDArray[np.uint8]) -> Iterator[Quoted]:
        """What a decoded text has of each document, in characters of the text `codes` that it comes from."""
        symbols, marks = self.cut.normalization.fold(decoded.codes)
        anchors = self.find(symbols)
        owners = self.table.documents[anchors[:, 1]]
        for owner in np.unique(owners).tolist():
            begins = np.unique(anchors[owners == owner, 0])
            breaks = np.flatnonzero(np.diff(begins) > self.cut.reach) + 1
            firsts = begins[np.concatenate(([0], breaks))]
            lasts = begins[np.concatenate((breaks, [len(begins)])) - 1] + self.cut.width - 1
            starts, ends = decoded.characters(
                codes, lambda wanted: self.cut.normalization.locate(decoded.codes, marks, wanted), firsts, lasts
            )
            source = self._source(owner) or Source(self.name)
            lengths = lasts - firsts + 1
            yield Quoted(
                source.described(self.cut.max_quote),
                min(int(lengths.sum()), source.symbols or int(lengths.sum())),
                max(source.symbols, 1),
                int(lengths.max()),
                list(zip(starts.tolist(), ends.tolist(), strict=True)),
            )

    def _runs(self, decoded: Decoded, codes: NDArray[np.uint8]) -> Iterator[Match]:
        """Where runs of anchors stand in the text, each named after the document to which most of them belong."""
        symbols, marks = self.cut.normalization.fold(decoded.codes)
        anchors = self.find(symbols)
        if not len(anchors):
            return
        owners = self.table.documents[anchors[:, 1]] if self.attributes else self.table.documents
        runs = runs_of(np.ascontiguousarray(anchors[:, 0]), owners, self.cut.reach)
        starts, ends = decoded.characters(
            codes,
            lambda wanted: self.cut.normalization.locate(decoded.codes, marks, wanted),
            anchors[runs[:, 0], 0],
            anchors[runs[:, 1] - 1, 0] + self.cut.width - 1,
        )
        names: dict[int, str] = {}
        for start, end, (first, behind, is_mixed) in zip(starts.tolist(), ends.tolist(), runs.tolist(), strict=True):
            at = first + _most_common(owners[first:behind]) if is_mixed else first
            owner = int(owners[at]) if self.attributes else 0
            if owner not in names:
                names[owner] = self.name_of(int(anchors[at, 1]))
            yield Match(start, end, names[owner])

    def check(self) -> None:
        """Refuse a file that was written into since it was loaded: what is prohibited is no longer what was built.

        Raises:
            ProdError: it was.
        """
        if self._watched is not None:
            self._watched.check()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the same file."""
        if self._watched is not None:
            return CorpusIndex.load, (self._watched.path,)
        records = self.records, self.record_starts
        return CorpusIndex, (self.table, self.cut, self.report, self.even, records, self.name, self.outliers)


def _most_common(owners: NDArray[np.uint32]) -> int:
    """Where the one that is there most often stands first."""
    listed = owners.tolist()
    return int(listed.index(Counter(listed).most_common(1)[0][0]))


class _Watched:
    """A file that must not be written into."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        self._state = self._now()

    def __del__(self) -> None:
        if (descriptor := getattr(self, "_descriptor", None)) is not None:
            os.close(descriptor)

    def check(self) -> None:
        if self._now() != self._state:
            raise ProdError(
                f"{self.path} was written into while it was in use, so that it is not known what it prohibits: restart "
                "with the new file, and replace an index by renaming another one"
            )

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns


def load_source(path: str | os.PathLike[str], *, verify: bool | None = None) -> Blocklist | CorpusIndex:
    """A compiled blocklist or a corpus index, whichever a file is.

    Args:
        path: the file.
        verify: of an index, as `CorpusIndex.load` takes it; a blocklist always is.

    Raises:
        ProdError: it is neither, or damaged.
    """
    try:
        with as_path(path).open("rb") as file:
            begins = file.read(len(INDEX.magic)) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        begins = b""  # said by whoever reads it
    return CorpusIndex.load(path, verify=verify) if begins == INDEX.magic else Blocklist.load(path)


def _is_meta(meta: Mapping[str, Any]) -> bool:
    report, key = meta.get("report"), meta.get("key")
    if not isinstance(report, dict) or report.keys() != set(IndexReport.__slots__):
        return False
    numbers = [*report.values(), meta.get("max_quote"), meta.get("width")]
    if not all(map(is_count, numbers)) or not isinstance(key, str):
        return False
    try:
        is_key = len(bytes.fromhex(key)) == KEY_BYTES
        Cut.of(meta["max_quote"], meta["width"], Normalization(meta["normalize"], meta["ignore_case"]), bytes(16))
    except (KeyError, TypeError, ValueError):
        return False
    return is_key


def _are_laid_out(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the arrays beside the table have the shapes that kernels rely on."""
    words = len(arrays["outliers"])
    return len(arrays["record_starts"]) > 0 and arrays["even"].shape[1] == 2 and words > 0 and words & (words - 1) == 0


def _are_named(table: Table, arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether every anchor has a document, and every document a record."""
    starts = arrays["record_starts"]
    rising = int(starts[0]) == 0 and int(starts[-1]) == len(arrays["records"]) and bool((np.diff(starts) > 0).all())
    return rising and (not len(table.documents) or int(table.documents.max()) < len(starts) - 1)
