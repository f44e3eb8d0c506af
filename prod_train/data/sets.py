"""The sets of a run, made of source files: what to forget, to retain and to hold out, with nothing in two of them.

A file is in one set. What is a near copy (`prod_train.data.alike`) of a row to forget is neither retained nor held out,
and what is one of a row held out is not retained. So rows are only ever left out: a function that was moved to the set
of its copy would bring its file into two.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prod_decode.errors import ProdError
from prod_train.data.alike import COMPARED, Text, compared, near_copies
from prod_train.data.documents import Document, Left

SETS = ("forget", "retain", "holdout")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the rows shall be like.

    Attributes:
        by_signature: whether a prompt is the signature of a piece that has one; otherwise its first half.
        shortest: normalised characters of a completion.
        longest: characters of a piece.
        rows: to forget, at most, drawn at random; None: all.
        retained: to retain, likewise.
        held_out: rows of the holdout, exactly.
        seed: of what is drawn.
    """

    by_signature: bool = True
    shortest: int = 60
    longest: int = 2000
    rows: int | None = None
    retained: int | None = None
    held_out: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """A piece of a document as a row.

    Attributes:
        prompt: its beginning.
        completion: its rest.
        source: name of the document.
        first: its first line there, from 1.
        last: its last line.
        license: of the document, or None.
        compared: its text, as rows are compared.
    """

    prompt: str
    completion: str
    source: str
    first: int
    last: int
    license: str | None
    compared: Text

    @property
    def place(self) -> str:
        """Where it begins."""
        return f"{self.source}:{self.first}"

    def record(self) -> dict[str, Any]:
        """As a line of a JSONL file."""
        return {
            "prompt": self.prompt,
            "completion": self.completion,
            "source": self.source,
            "lines": f"{self.first}-{self.last}",
            "license": self.license,
        }


def make_sets(forget: Sequence[Document], free: Sequence[Document], wanted: Wanted, left: Left) -> dict[str, list[Cut]]:
    """The rows of each set, in the order of the documents.

    Args:
        forget: what shall be forgotten.
        free: what may be retained and held out.
        wanted: what the rows shall be like.
        left: is told what is in no row, or in none of the set that its file is in.

    Raises:
        ProdError: a set that is asked for would be empty, or the holdout too small.
    """
    draw = random.Random(wanted.seed)  # noqa: S311 (no secret)
    known = {document.digest for document in forget}
    for document in free:
        if document.digest in known:
            left.add("left out, files to forget that --retain-from has too", document.name)
    forgotten = _cuts(forget, wanted, left)
    if not forgotten:
        raise ProdError(f"expected code to make rows of, got none{_why(left)}")
    others = _cuts((document for document in free if document.digest not in known), wanted, left)
    others = _apart(forgotten, others, "left out of --retain-from, near copies of rows to forget", left)
    if free and not others:
        raise ProdError(f"--retain-from: expected code to make rows of, got none{_why(left)}")
    held_out = _held_out(others, wanted.held_out, draw)
    files = {cut.source for cut in held_out}
    chosen = set(map(id, held_out))
    for cut in others:
        if cut.source in files and id(cut) not in chosen:
            left.add("left out, more than --holdout asks for", cut.place)
    retained = [cut for cut in others if cut.source not in files]
    retained = _apart(held_out, retained, "left out of rows to retain, near copies of rows held out", left)
    if held_out and not retained:
        raise ProdError(
            f"--holdout: expected rows to retain beside {wanted.held_out} held out, --retain-from has {len(others)} in "
            f"{len({cut.source for cut in others})} files, and a file is in one set: ask for fewer, or name more code"
        )
    return {
        "forget": _drawn(forgotten, wanted.rows, draw, "left out, more than --rows asks for", left),
        "retain": _drawn(retained, wanted.retained, draw, "left out, more than --retain-rows asks for", left),
        "holdout": held_out,
    }


def _why(left: Left) -> str:
    return "".join(f"; {line}" for line in left.lines(1))


def _cuts(documents: Iterable[Document], wanted: Wanted, left: Left) -> list[Cut]:
    """All rows of documents; of those with the same text, the first."""
    known: set[bytes] = set()
    found = []
    for document in documents:
        for piece in document.pieces:
            place = f"{document.name}:{piece.line}"
            prompt, completion = piece.parted(by_signature=wanted.by_signature)
            if len(piece.text) > wanted.longest:
                left.add("left out, a line longer than --longest", place)
            elif len(COMPARED.code_points(completion)) < wanted.shortest:
                left.add("left out, a completion shorter than --shortest", place)
            elif not prompt.strip():
                left.add("left out, no space to cut a prompt at", place)
            else:
                text = compared(prompt, completion)
                if text.digests[0] in known:
                    left.add("left out, the same text as a row before", place)
                    continue
                known.add(text.digests[0])
                found.append(Cut(prompt, completion, document.name, piece.line, piece.last, document.license, text))
    return found


def _apart(earlier: Sequence[Cut], later: Sequence[Cut], why: str, left: Left) -> list[Cut]:
    """Those of `later` that are near copies of none of `earlier`."""
    if not earlier or not later:
        return list(later)
    copies = near_copies([cut.compared for cut in earlier], [cut.compared for cut in later])
    for number in sorted(copies):
        left.add(why, later[number].place)
    return [cut for number, cut in enumerate(later) if number not in copies]


def _held_out(cuts: Sequence[Cut], count: int, draw: random.Random) -> list[Cut]:
    """Rows of files drawn at random: whole files as long as they fit, then the beginning of the smallest other one."""
    if not count:
        return []
    sizes = Counter(cut.source for cut in cuts)
    order = sorted(sizes)
    draw.shuffle(order)
    room, chosen = count, {}
    for name in order:
        if sizes[name] <= room:
            chosen[name] = sizes[name]
            room -= sizes[name]
    rest = [name for name in order if name not in chosen]
    if room and rest:
        chosen[min(rest, key=sizes.__getitem__)] = room
        room = 0
    if room:
        raise ProdError(f"--holdout: expected at most {len(cuts)}, the rows that --retain-from has, got {count}")
    return [*_first(cuts, chosen)]


def _first(cuts: Sequence[Cut], counts: dict[str, int]) -> Iterator[Cut]:
    seen: Counter[str] = Counter()
    for cut in cuts:
        seen[cut.source] += 1
        if seen[cut.source] <= counts.get(cut.source, 0):
            yield cut


def _drawn(cuts: Sequence[Cut], count: int | None, draw: random.Random, why: str, left: Left) -> list[Cut]:
    if count is None or count >= len(cuts):
        return list(cuts)
    chosen = set(draw.sample(range(len(cuts)), count))
    for number, cut in enumerate(cuts):
        if number not in chosen:
            left.add(why, cut.place)
    return [cut for number, cut in enumerate(cuts) if number in chosen]
