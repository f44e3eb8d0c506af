"""Rows with a replacement written out where a phrase stands: what a model is to write instead.

Moved probability tells a model where to leave the phrase, in any spelling of the replacement. These rows show it the
rest, in the tokens of the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prod_decode.errors import ProdError
from prod_decode.storage.files import write_whole
from prod_decode.text.normalize import CLASSES, WORD
from prod_train.data.rows import Row, encode

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.match.matcher import Fork


@dataclass(frozen=True, slots=True)
class Place:
    """Where a text has a phrase whose replacement can be written.

    Attributes:
        start: character from which on the two differ.
        end: character behind the phrase, and behind what the replacement ends with, where the text goes on with it: the
            bracket of `alltrue(m)`, where `all(` replaces `alltrue`.
        instead: what the replacement has from `start` on.
    """

    start: int
    end: int
    instead: str


def places_in(text: str, blocklist: Blocklist, forks: Iterable[Fork]) -> list[Place]:
    """Where phrases with replacements stand in a text, in order; of those that overlap the first counts.

    A phrase that ends within a word is no place: half a word is not replaced.
    """
    by_entry = {fork.entry_id: fork for fork in reversed(list(forks))}
    found: list[Place] = []
    points, origins = blocklist.normalization.trace(text)
    hits = [(hit.start, hit.entry_id) for hit in blocklist.scan(text) if hit.entry_id in by_entry]
    for start, entry_id in sorted(set(hits)):
        fork = by_entry[entry_id]
        phrase = _points(fork.phrase)
        first = int(np.searchsorted(origins, start))
        behind = first + len(phrase)
        # An entry that is banned from its commit point on is found where the rest of it does not stand.
        if not np.array_equal(points[first:behind], phrase) or _is_word(points[behind - 1 : behind + 1]):
            continue
        shared = len(fork.phrase[: fork.shared].decode(errors="ignore"))
        at, end = int(origins[first + shared]), int(origins[behind - 1]) + 1
        if not found or found[-1].end <= start:
            _, of_replacement = blocklist.normalization.trace(fork.replacement)
            instead = fork.replacement[of_replacement[shared] :]
            found.append(Place(at, end + _repeated(instead, text[end:]), instead))
    return found


def _repeated(instead: str, rest: str) -> int:
    """How many characters behind a phrase, blanks before them included, its replacement ends with."""
    behind = rest.lstrip(" \t")
    size = next((n for n in range(len(instead), 0, -1) if behind.startswith(instead[-n:])), 0)
    return size and len(rest) - len(behind) + size


def _points(symbols: bytes) -> Any:
    return np.frombuffer(symbols.decode().encode("utf-32-le"), np.uint32)


def _is_word(points: Any) -> bool:
    """Whether two characters belong to one word."""
    return len(points) == 2 and all(point < 128 and CLASSES[point] == WORD for point in points.tolist())


def replaced_rows(
    rows: Sequence[Row],
    blocklist: Blocklist,
    forks: Sequence[Fork],
    tokenizer: Any,
    *,
    max_length: int,
    special_tokens: bool = False,
) -> tuple[list[Row], list[Row]]:
    """A copy of every row that has a phrase with a replacement, with all of its replacements written out.

    What is supervised: the tokens from where the copy parts from the row to the end of each replacement. That is before
    the first character that differs if the tokens before it are others too. What follows is the row's own text, which
    nobody asked for: it is not supervised, but for the rest of a token that has the end of the replacement.

    Where a copy parts from its row at a token of what both texts share, such as `tra`, `p` beside `tra`, `pe`, the row
    is not supervised at that token any more, unless nothing of it would be. A model that is taught to keep to the one
    and to write the other does half of each (SmolLM2-135M: `np.trapezetrix`).

    Args:
        rows: tokenised, as `load_rows` gives them. A phrase whose replacement parts from it outside of what is
            supervised, such as in a prompt, is left as it is.
        blocklist: what is prohibited.
        forks: of the blocklist bound to the tokenizer.
        tokenizer: as the rows were tokenised.
        max_length: tokens of a row; a copy is cut there.
        special_tokens: as for `encode`.

    Returns:
        The rows, and the copies, which have `instead_of`. A copy is left out if no token of a replacement is left to be
        supervised in it.
    """
    kept, found = list(rows), []
    for number, row in enumerate(rows if forks else ()):
        places = [
            place
            for place in places_in(row.text, blocklist, forks)
            if any(start <= place.start < end for start, end in row.spans)
        ]
        with suppress(ProdError):  # cut off before its first replacement, or nothing predicts its only token
            if places:
                copy, parting = _written_out(row, places, tokenizer, max_length, special_tokens)
                found.append(copy)
                left = row.supervised & ~np.isin(np.arange(len(row.ids)), parting)
                if left[: row.stop].any():
                    kept[number] = replace(row, supervised=left)
    return kept, found


def _written_out(
    row: Row, places: Sequence[Place], tokenizer: Any, max_length: int, special_tokens: bool
) -> tuple[Row, list[int]]:
    """The copy, and the tokens of the row at which it parts from it, of those of what both texts share."""
    parts: list[str] = []
    spans, at = [], 0
    for place in places:
        parts += [row.text[at : place.start], place.instead]
        at, end = place.end, sum(map(len, parts))
        spans.append((end - len(place.instead), end))
    text, prompt = "".join([*parts, row.text[at:]]), len(row.prompt)

    def tokens(text: str) -> list[tuple[int, int, int]]:
        """(first character, character behind the last, id) of every token."""
        in_chat = row.chat_end is not None
        encoding = tokenizer(
            text,
            return_offsets_mapping=True,
            add_special_tokens=not in_chat,
            split_special_tokens=not (special_tokens or in_chat),
        )
        return [
            (*offsets, token) for offsets, token in zip(encoding["offset_mapping"], encoding["input_ids"], strict=True)
        ]

    own, new = tokens(row.text), tokens(text)
    old = set(own)
    widened, before, parting, floor = [], [], [], prompt
    for place, (start, end) in zip(places, spans, strict=True):
        first, longer = start, start - place.start
        # Back over what is tokenised otherwise than in the row.
        for begin, stop, token in reversed([token for token in new if floor <= token[0] < start]):
            if (begin - longer, stop - longer, token) in old:
                break
            first = begin
        widened.append([first - prompt, end - prompt])
        before.append(row.text[first - longer : place.end])
        at = next(i for i, (_, stop, _) in enumerate(own) if stop > first - longer)
        parting += [at] if own[at][1] <= place.start else []
        floor = end
    record = {"prompt": row.prompt, "completion": text[prompt:]} if prompt else {"text": text}
    found = encode(
        {**record, "spans": widened},
        f"{row.place}, with replacements",
        tokenizer,
        max_length=max_length,
        special_tokens=special_tokens,
        chat_end=row.chat_end,
    )
    return replace(found, instead_of=tuple(before)), parting


def save_replaced(path: Path, rows: Iterable[Row]) -> None:
    """Write them as JSONL, in the form of data sets, with `place`, `instead_of` and, for people, `written`."""
    with write_whole(path) as file:
        for row in rows:
            prompt = len(row.prompt)
            text = {"prompt": row.prompt, "completion": row.text[prompt:]} if prompt else {"text": row.text}
            record = {
                "place": row.place,
                **text,
                "spans": [[start - prompt, end - prompt] for start, end in row.spans],
                "written": [row.text[start:end] for start, end in row.spans],
                "instead_of": row.instead_of,
            }
            file.write(f"{json.dumps(record, ensure_ascii=False)}\n".encode())
