"""The patterns of entries, portion by portion: in several processes, and kept on disk for a compile that is stopped."""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from prod_decode.blocklist.anchors import FreeCode, choose_anchors, default_width
from prod_decode.blocklist.entries import SHORTEST_PATTERN, Entry, EntryInfo, pack, unpack
from prod_decode.errors import ProdError
from prod_decode.storage.artifact import Format, are_laid_out, are_ranges, is_count, read_artifact, write_artifact
from prod_decode.storage.processes import pool_of
from prod_decode.text.normalize import CLASSES, WORD, Normalization
from prod_decode.text.patterns import Collected, Pattern
from prod_decode.text.trie import concatenate
from prod_decode.version import __version__

# Characters of entries that a process takes at a time; fewer altogether are not worth starting one.
_PORTION = 2_000_000

# Another number wherever the patterns of an entry, or what is kept of them, become others.
PORTION = Format(b"PRODPRT\x02", "part of a blocklist", "compile {} again", "compile the blocklist again")

_BLANKS = " \t\n\r\f\v"

# U+FFFD, which stands for broken bytes, and lone surrogates, which no UTF-8 has.
_BROKEN = re.compile("[\ufffd\ud800-\udfff]")

_LAYOUT: dict[str, tuple[Any, int]] = {
    "data": (np.dtype("u1"), 1),
    "ends": (np.dtype("<i8"), 1),
    "flags": (np.dtype("u1"), 1),
    "owners": (np.dtype("<i8"), 1),
    "records": (np.dtype("u1"), 1),
    "record_starts": (np.dtype("<i8"), 1),
}


class Costs(Protocol):
    """What it costs to prohibit what ends with each character of a document; `fingerprint` tells two of them apart."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that the costs depend on, but for the document."""

    def __call__(self, text: str) -> tuple[float, ...]:
        """A cost for each character."""


@dataclass
class Portion:
    """Some entries and their patterns.

    Attributes:
        infos: of the entries, in their order.
        collected: their patterns; owners are places in `infos`.
        too_short: places in `infos` of documents that have no patterns.
        waived: (place, start, end) of the runs that may be quoted.
        refused: (place, why) of entries that cannot be guarded; they have no patterns.
    """

    infos: list[EntryInfo] = field(default_factory=list)
    collected: Collected = field(default_factory=Collected)
    too_short: list[int] = field(default_factory=list)
    waived: list[tuple[int, int, int]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Preparing:
    """Finds the patterns of entries.

    Attributes:
        normalization: of texts and patterns.
        free: what no anchor may occur in.
        allow_short: accept phrases of fewer than `SHORTEST_PATTERN` bytes.
    """

    normalization: Normalization
    free: FreeCode
    allow_short: bool

    def __call__(self, entries: Iterable[Entry]) -> Portion:
        """The patterns of some entries."""
        portion = Portion()
        for place, entry in enumerate(entries):
            portion.infos.append(EntryInfo.of(entry))
            try:
                self._add(portion, entry, place)
            except ProdError as error:
                portion.refused.append((place, str(error)))
        return portion

    def _add(self, portion: Portion, entry: Entry, place: int) -> None:
        max_quote = portion.infos[place].max_quote
        if max_quote is None:
            portion.collected.add(_phrase(entry, self.normalization, self.allow_short), place)
            return
        patterns, waived = _anchors(entry, max_quote, self.normalization, self.free)
        if patterns is None:
            portion.too_short.append(place)
            return
        for pattern in patterns:
            portion.collected.add(pattern, place)
        portion.waived += [(place, start, end) for start, end in waived]

    def fingerprint(self, entries: Sequence[Entry], costs: Costs | None) -> str:
        """A hash of all that the patterns of these entries depend on."""
        total = xxhash.xxh3_128()
        settings = [
            __version__,
            self.normalization.mode,
            self.normalization.ignore_case,
            self.free.fingerprint,
            self.allow_short,
            costs.fingerprint if costs is not None else None,
        ]
        total.update(json.dumps(settings).encode())
        for entry in entries:
            total.update(b"\n" + pack(EntryInfo.of(entry)))
            if entry.cost is not None:
                total.update(np.array(entry.cost).tobytes())
        return total.hexdigest()


def prepare_all(
    entries: Iterable[Entry],
    prepare: Preparing,
    *,
    jobs: int = 1,
    costs: Costs | None = None,
    parts: str | os.PathLike[str] | None = None,
) -> Iterator[Portion]:
    """The entries' patterns, in their order, by several processes if there is enough to do.

    Args:
        entries: what is prohibited.
        prepare: finds their patterns.
        jobs: processes.
        costs: for documents without costs of their own.
        parts: a directory, made if need be. Every portion is kept there as soon as it is done, and those that are there
            are not made again.

    Raises:
        ProdError: `parts` cannot be written.
    """
    store = None if parts is None else _KeptPortions(Path(parts))
    portions = _portions(entries)
    begun = list(islice(portions, 2))
    waiting: deque[Callable[[], Portion]] = deque()
    with ExitStack() as stack:
        submit: Callable[[Sequence[Entry]], Callable[[], Portion]] = partial(partial, prepare)
        if len(begun) > 1 and jobs > 1:
            pool = stack.enter_context(pool_of(jobs, _adopt, prepare))

            def submit(some: Sequence[Entry]) -> Callable[[], Portion]:
                return pool.submit(_prepare_here, some).result

        for portion in chain(begun, portions):
            waiting.append(_begin(portion, prepare, costs, store, submit))
            # So that neither entries nor patterns pile up.
            if len(waiting) > (2 * jobs if jobs > 1 else 0):
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()


_prepare: Preparing


def _adopt(prepare: Preparing) -> None:
    """In a process of the pool: free code is sent once, not with every portion."""
    global _prepare  # noqa: PLW0603 (a process of the pool does nothing else)
    _prepare = prepare


def _prepare_here(entries: Sequence[Entry]) -> Portion:
    return _prepare(entries)


def _begin(
    entries: Sequence[Entry],
    prepare: Preparing,
    costs: Costs | None,
    store: _KeptPortions | None,
    submit: Callable[[Sequence[Entry]], Callable[[], Portion]],
) -> Callable[[], Portion]:
    """Begin with a portion, unless it is there already; what is returned waits for it."""
    key = prepare.fingerprint(entries, costs) if store is not None else ""
    if store is not None and (kept := store.get(key)) is not None:
        return lambda: kept
    if costs is not None:
        entries = [replace(entry, cost=costs(entry.text)) if _lacks_costs(entry) else entry for entry in entries]
    wait = submit(entries)

    def finish() -> Portion:
        portion = wait()
        if store is not None:
            store.put(key, portion)
        return portion

    return finish


def _lacks_costs(entry: Entry) -> bool:
    """Whether it is a document without costs, whose text a tokenizer can read."""
    return entry.policy == "quote" and entry.cost is None and not _BROKEN.search(entry.text)


class _KeptPortions:
    """Portions on disk, each under the hash of all that it depends on."""

    def __init__(self, folder: Path) -> None:
        """Make the directory.

        Raises:
            ProdError: it cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ProdError(f"cannot keep parts in {folder}: {error.strerror}; name a directory") from None
        self._folder = folder

    def get(self, key: str) -> Portion | None:
        """A portion that `put` kept, if it is there and whole."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            meta, arrays = read_artifact(path, form=PORTION, shared=False)
            if not are_laid_out(arrays, _LAYOUT) or not are_ranges(
                arrays["record_starts"], len(arrays["record_starts"]) - 1, len(arrays["records"])
            ):
                return None
            packed, starts = arrays["records"].tobytes(), arrays["record_starts"].tolist()
            infos = [unpack(packed[start:end]) for start, end in pairwise(starts)]
            # A file under another's name is another's portion.
            if meta.get("key") != key or not _is_whole(meta, arrays, len(infos)):
                return None
        except ProdError:
            return None
        collected = Collected.of({name: arrays[name] for name in ("data", "ends", "flags", "owners")})
        waived = [(place, a, b) for place, a, b in meta["waived"]]
        return Portion(infos, collected, meta["too_short"], waived, [(place, why) for place, why in meta["refused"]])

    def put(self, key: str, portion: Portion) -> None:
        """Keep a portion.

        Raises:
            ProdError: it cannot be written.
        """
        packed = [pack(info) for info in portion.infos]
        records, starts = concatenate(packed)
        meta = {"key": key, "too_short": portion.too_short, "waived": portion.waived, "refused": portion.refused}
        arrays = {**portion.collected.arrays(), "records": records, "record_starts": starts}
        write_artifact(self._path(key), meta, arrays, form=PORTION)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.part"


def _is_whole(meta: dict[str, Any], arrays: dict[str, NDArray[Any]], entries: int) -> bool:
    """Whether a file says what `_KeptPortions.put` writes of so many entries; a checksum does not tell who wrote it."""
    count = len(arrays["ends"])
    owners, starts = arrays["owners"], np.concatenate((np.zeros(1, np.int64), arrays["ends"]))
    waived, refused = meta.get("waived"), meta.get("refused")
    return (
        are_ranges(starts, count, len(arrays["data"]))
        and len(arrays["flags"]) == count
        and len(owners) == count
        and int(arrays["flags"].max(initial=0)) <= 3
        and 0 <= int(owners.min(initial=0)) <= int(owners.max(initial=0)) < entries
        and isinstance(meta.get("too_short"), list)
        and all(is_count(place) and place < entries for place in meta["too_short"])
        and isinstance(waived, list)
        and all(isinstance(run, list) and len(run) == 3 and all(map(is_count, run)) for run in waived)
        and all(run[0] < entries for run in waived)
        and isinstance(refused, list)
        and all(isinstance(item, list) and len(item) == 2 and isinstance(item[1], str) for item in refused)
        and all(is_count(item[0]) and item[0] < entries for item in refused)
    )


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
        raise ProdError(f"{entry.label}: expected some text to prohibit, got {_nothing(entry.text)}")
    if len(symbols) < SHORTEST_PATTERN and not allow_short:
        raise ProdError(
            f"{entry.label}: {symbols.decode('utf-8', 'replace')!r} is {len(symbols)} normalised bytes, expected "
            f"at least {SHORTEST_PATTERN}: it would ban a great deal; make it longer or pass --allow-short "
            "(allow_short=True)"
        )
    boundary = entry.boundary or "start"
    # Whitespace that is dropped at an edge still says that no word goes on there: `return ` is not `returned`.
    blank_before = normalization.is_code and entry.text[0] in _BLANKS
    blank_behind = normalization.is_code and entry.text[-1] in _BLANKS
    return Pattern(
        bound=(blank_before or boundary != "none") and bool(CLASSES[symbols[0]] == WORD),
        symbols=symbols,
        whole=(blank_behind or boundary == "both") and bool(CLASSES[symbols[-1]] == WORD),
    )


def _nothing(text: str) -> str:
    if not text:
        return "an empty text"
    return (
        f"{reprlib.repr(text)}, whitespace, which the mode `code` ignores: remove it, or compile with "
        "--normalize none (normalize='none')"
    )


def _anchors(
    entry: Entry, max_quote: int, normalization: Normalization, free: FreeCode
) -> tuple[list[Pattern] | None, list[tuple[int, int]]]:
    if not _symbols(entry, normalization):
        raise ProdError(f"{entry.label}: expected a document to protect, got {_nothing(entry.text)}")
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
