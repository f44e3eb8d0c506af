"""The index beside other guards, in one process, on one corpus and the same texts.

- `index`: ours, at K = 150, the default, and at K = 99, what Data Portraits bounds.
- `automaton`: our blocklist, which holds the text, at K = 150.
- `MemFree`: n-grams of 10 tokens in a Bloom filter (`bench/peers/ngrams.py`).
- `Data Portraits`: runs of 50 characters in a Bloom filter (`bench/peers/portraits.py`), of texts as they are and of
  our symbols; at 1 error in 1,000 look-ups, which takes 3 % of the text as its paper says, and at one so low that a
  step with a false ban is about as rare as with the index.

A peer's mask looks up every token. Where a sampler only asks whether the token that was drawn may stand, one look-up is
enough: the rows `one candidate`. What a writer gets out: `writer.py`. A banned token of other code is called wrong if
what it would complete stands nowhere in the corpus: searched for byte by byte, or, of n-grams, by 128 bits of others'
hashes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.corpora.walks import Follows, any_banned, begun, owned, timed
from bench.corpora.writer import Writer, leaked, spread_out
from bench.figures import Figure, distribution
from bench.peers.ngrams import Ngrams
from bench.peers.portraits import WIDTH, Portrait
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.corpus.index import CorpusIndex
from prod_decode.corpus.keys import Cut
from prod_decode.indexing.build import build
from prod_decode.indexing.engines import Local
from prod_decode.indexing.steps import Recipe
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.tokenizer_bytes import vocabulary_of
from prod_decode.tokens.vocabulary import Vocabulary

QUOTE = 150
# What Data Portraits bounds: a run of 99 has a whole one of its runs in it.
QUOTE_OF_PORTRAITS = 2 * WIDTH - 1

# Errors of Bloom filters: about as its paper's size, 3 % of the text, gives; and so few that a step is as rarely wrong.
ERROR, SELDOM = 1e-3, 1e-13

# Bytes between places from which a writer tries.
STRIDE = 47

_KEY = bytes(range(16))
_CODE, _AS_IS = Normalization("code"), Normalization("none")


@dataclass(frozen=True)
class Bound:
    """A guard that is built, and what was found out building it.

    Attributes:
        name: as in the table.
        nbytes: what it takes.
        seconds: of processor time, to build it from files.
        track: a tracker.
        copies: whether what the token at a place of a walk would complete stands in the corpus; None: exact by design.
    """

    name: str
    nbytes: int
    seconds: float
    track: Callable[[], Follows]
    copies: Callable[[NDArray[np.int64], int], bool] | None


@dataclass(frozen=True)
class Material:
    """What all of them are measured on.

    Attributes:
        tokenizer: of a model.
        folder: the corpus, as files.
        documents: its texts.
        walk: tokens of other code.
        rows: in how many rows it is followed for what it bans.
        steps: tokens of a walk whose time is taken.
    """

    tokenizer: Any
    folder: Path
    documents: list[str]
    walk: NDArray[np.int64]
    rows: int
    steps: int


def measure(material: Material, wanted: int, characters: int) -> Iterator[Figure]:
    """All figures of all guards.

    Args:
        material: what they are measured on.
        wanted: how many documents a writer wants, from all over.
        characters: of each, at most.
    """
    vocabulary = vocabulary_of(material.tokenizer)
    symbols = [_CODE.symbols(text) for text in material.documents]
    size = sum(map(len, symbols))
    read = sum(len(text.encode()) for text in material.documents)
    yield Figure("corpus", "all", read, "bytes", note=f"{len(symbols):,} files, {size:,} symbols")
    corpus = b"\0".join(symbols)
    writer = Writer(vocabulary)
    long = [text for text in material.documents if len(text) >= characters]
    texts = [text[:characters] for text in long[:: max(1, len(long) // wanted)]][:wanted] if long else []
    with tempfile.TemporaryDirectory() as work:
        for make in _makers(material, vocabulary, corpus, Path(work)):
            guard = make()
            name = guard.name
            yield Figure("bytes a symbol", name, guard.nbytes / size, "bytes")
            yield Figure("build", name, read / 1e6 / guard.seconds * 60, "MB/min")
            yield from timed(name, "mask and advance, a token", guard.track, material.walk, material.steps)
            yield from _one_candidate(guard, material)
            for layout, change in (("as it is", str), ("other layout", spread_out)):
                write = partial(writer.write, guard.track())
                found = leaked(write, [change(text) for text in texts], QUOTE, STRIDE)
                note = f"from {found.starts:,} places"
                yield Figure(f"longest run written, {layout}", name, found.longest, "symbols", note=note)
                share = found.beyond / found.starts
                yield Figure(f"runs of {QUOTE} written, {layout}", name, share, "of places", note=note)
            yield from _bans(guard, material)


def _bans(guard: Bound, material: Material) -> Iterator[Figure]:
    """What of other code is banned, and what of that is no copy."""
    places, steps = owned(guard.track(), material.walk, material.rows)
    note = f"{len(places):,} of {steps:,} steps"
    yield Figure("own token banned", guard.name, len(places) / steps, "of steps", note=note)
    looked = material.walk[: material.steps]
    some = any_banned(guard.track(), looked)
    note = f"{some:,} of {len(looked) - 1:,} steps"
    yield Figure("any token banned", guard.name, some / (len(looked) - 1), "of steps", note=note)
    wrong = 0
    if guard.copies is not None:
        length = len(material.walk) // material.rows
        for place in places.tolist():
            begin = place // length * length
            wrong += not guard.copies(material.walk[begin : place + 1], place - begin)
    note = f"{wrong:,} of {steps:,} steps"
    yield Figure("own token banned, no copy", guard.name, wrong / steps, "of steps", note=note)


def _one_candidate(guard: Bound, material: Material) -> Iterator[Figure]:
    """What it takes to follow a text and ask of the one token that was drawn."""
    tracker: Any = guard.track()
    if not hasattr(tracker, "refuses"):
        return
    walk = material.walk[: material.steps + 1]
    begun(tracker, walk[:1])
    clock, taken = time.perf_counter_ns, []
    for place in range(1, len(walk)):
        token = walk[place : place + 1]
        begin = clock()
        tracker.refuses(token)
        tracker.advance(token)
        taken.append(clock() - begin)
    yield distribution("one candidate and advance, a token, B=1", guard.name, taken[len(taken) // 100 :])


def _makers(material: Material, vocabulary: Vocabulary, corpus: bytes, work: Path) -> Iterator[Callable[[], Bound]]:
    """What builds each of the guards."""
    for quote in (QUOTE, QUOTE_OF_PORTRAITS):
        yield partial(_index, material, vocabulary, corpus, work, quote)
    yield partial(_automaton, material, vocabulary)
    yield partial(_memfree, material, vocabulary)
    for normalization in (_AS_IS, _CODE):
        for error in (ERROR, SELDOM):
            yield partial(_portrait, material, vocabulary, corpus, normalization, error)


def _seconds(begin: float) -> float:
    return time.process_time() - begin


def _read(folder: Path) -> list[str]:
    return [path.read_text("utf-8") for path in sorted(folder.rglob("*.py"))]


def _index(material: Material, vocabulary: Vocabulary, corpus: bytes, work: Path, quote: int) -> Bound:
    cut = Cut.of(quote, None, _CODE, _KEY)
    output = work / f"{quote}.pidx"
    recipe = Recipe(cut, common=0, attribution=False)
    warm = work / "warm"  # kernels are compiled, or read from disk
    warm.mkdir(exist_ok=True)
    (warm / "a.py").write_text("".join(f"value_{i} = {i * 7919}\n" for i in range(100)))
    build([warm], work / "warm.pidx", recipe, Local(1))
    begin = time.process_time()
    index: CorpusIndex = build([material.folder], output, recipe, Local(1))
    seconds = _seconds(begin)
    matcher = index.bind(vocabulary)
    copies = partial(_is_copied, vocabulary, _CODE, corpus, cut.width)
    return Bound(f"index, K={quote}", output.stat().st_size, seconds, matcher.track, copies)


def _automaton(material: Material, vocabulary: Vocabulary) -> Bound:
    Blocklist.compile([Entry("warm = 1\n" * 40, policy="quote", max_quote=QUOTE)])
    begin = time.process_time()
    entries = (
        Entry(text, id=str(number), policy="quote", max_quote=QUOTE)
        for number, text in enumerate(_read(material.folder))
    )
    blocklist = Blocklist.compile(entries, skipped=lambda _: None)
    seconds = _seconds(begin)
    with tempfile.TemporaryDirectory() as folder:
        blocklist.save(Path(folder) / "a.prod")
        size = (Path(folder) / "a.prod").stat().st_size
    return Bound(f"automaton, K={QUOTE}", size, seconds, blocklist.bind(vocabulary).track, None)


def _memfree(material: Material, vocabulary: Vocabulary) -> Bound:
    def encoded() -> Iterator[list[int]]:
        for text in _read(material.folder):
            yield material.tokenizer(text, add_special_tokens=False)["input_ids"]

    Ngrams([list(range(20))], len(vocabulary), ERROR)
    begin = time.process_time()
    ngrams = Ngrams(encoded(), len(vocabulary), ERROR)
    seconds = _seconds(begin)
    known = np.unique(np.concatenate([_two_hashes(np.array(text, np.int64), ngrams.n) for text in encoded()]))

    firsts = known["f0"].copy()

    def copied(text: NDArray[np.int64], place: int) -> bool:
        del place
        wanted = _two_hashes(text[-ngrams.n :], ngrams.n)
        low, high = np.searchsorted(firsts, wanted["f0"]), np.searchsorted(firsts, wanted["f0"], "right")
        return any(one in known["f1"][a:b] for one, a, b in zip(wanted["f1"], low, high, strict=True))

    return Bound("MemFree, 10 tokens, 1e-3", ngrams.bloom.nbytes, seconds, ngrams.track, copied)


def _two_hashes(tokens: NDArray[np.int64], n: int) -> NDArray[Any]:
    """128 bits for every n-gram, by other numbers than the filter's: a record array [m]."""
    found = np.zeros(max(0, len(tokens) - n + 1), "u8,u8")
    numbers = np.random.default_rng(12345).integers(1, 1 << 63, (2, n), np.uint64) * np.uint64(2) + np.uint64(1)
    for half, name in enumerate(("f0", "f1")):
        for place in range(n):
            window = tokens[place : place + len(found)].astype(np.uint64) + np.uint64(1)
            mixed = (window * np.uint64(0x9E3779B97F4A7C15)) ^ (window << np.uint64(29))
            found[name] += (mixed ^ (mixed >> np.uint64(31))) * numbers[half, place]
    return found


def _portrait(
    material: Material, vocabulary: Vocabulary, corpus: bytes, normalization: Normalization, error: float
) -> Bound:
    Portrait(["warm = 1\n" * 40], normalization, error)
    begin = time.process_time()
    portrait = Portrait(_read(material.folder), normalization, error)
    seconds = _seconds(begin)
    if not normalization.is_code:
        corpus = b"\0".join(text.encode() for text in material.documents)
    copies = partial(_is_copied, vocabulary, normalization, corpus, WIDTH)
    name = f"Data Portraits, {'our symbols' if normalization.is_code else 'as it is'}, {error:.0e}"
    return Bound(name, portrait.bloom.nbytes, seconds, partial(portrait.track, vocabulary), copies)


def _is_copied(
    vocabulary: Vocabulary, normalization: Normalization, corpus: bytes, width: int, text: NDArray[np.int64], place: int
) -> bool:
    """Whether a run of `width` symbols that ends in the last token of a text stands in the corpus, byte for byte."""
    del place
    tail = text[-4 * width :]
    before = _symbols(vocabulary, normalization, tail[:-1])
    whole = _symbols(vocabulary, normalization, tail)
    ends = range(max(len(before), width - 1) + 1, len(whole) + 1)
    return any(whole[end - width : end] in corpus for end in ends)


def _symbols(vocabulary: Vocabulary, normalization: Normalization, tokens: NDArray[np.int64]) -> bytes:
    text = b"".join(map(vocabulary.token_bytes, tokens.tolist()))
    return normalization.fold(np.frombuffer(text, np.uint8))[0].tobytes()


def laid_out(files: Sequence[tuple[Path, str]], folder: Path) -> list[str]:
    """Write files below a folder, each under a number; their texts in that order."""
    for number, (path, text) in enumerate(files):
        target = folder / f"{path.parts[-2] if len(path.parts) > 1 else 'x'}" / f"{number:06d}.py"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, "utf-8")
    return _read(folder)
