"""Other code, to keep and to measure damage on, where the user has given none: Python's standard library."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prod_decode.text.hashes import substring_hashes
from prod_train.config.config import Config
from prod_train.data.alike import COMPARED, VERBATIM_FROM, Text, compared, near_copies
from prod_train.data.chat import is_chat
from prod_train.data.reading import read_records
from prod_train.run.recipes import package_functions, stdlib_functions


class Piece(NamedTuple):
    """Code as it is compared.

    Attributes:
        row: its prompt and completion.
        text: for near copies.
        runs: uint64, a hash of every run of `VERBATIM_FROM` normalised characters.
    """

    row: tuple[str, str]
    text: Text
    runs: NDArray[np.uint64]


def pieces_of(name: str, config: Config) -> list[Piece]:
    """The rows of a data set, as far as they are ones: `load_rows` says what is wrong with the others.

    Args:
        name: of the data set.
        config: with the form of its rows.
    """
    rows = []
    for _, record in read_records(name, form=config.format, columns=config.columns):
        found = record if isinstance(record, Mapping) else {}
        if is_chat(found):
            rows.append(("", "\n".join(_said(found))))
            continue
        parts = [found.get(key) for key in ("prompt", "completion", "canonical_solution", "text")]
        prompt, *rest = (part if isinstance(part, str) else "" for part in parts)
        rows.append((prompt, "".join(rest)))
    return list(_pieces((_carried(prompt), _carried(completion)) for prompt, completion in rows))


def _carried(text: str) -> str:
    """What of a text UTF-8 carries: a lone surrogate is in no code that could be shared."""
    return text.encode("utf-8", "replace").decode()


def _said(record: Mapping[str, Any]) -> Iterator[str]:
    """The messages of a chat, as far as they are texts."""
    for key in ("messages", "prompt", "completion"):
        for message in record.get(key) or ():
            if isinstance(message, Mapping) and isinstance(message.get("content"), str):
                yield message["content"]


def library(apart: Sequence[Piece], count: int, *, longest: int) -> list[Piece]:
    """The first so many functions of the running Python's standard library that share nothing with other code.

    Left out is what is a near copy of any of it (`prod_train.data.alike`), or has a run of 60 characters in common with
    it: nothing can be kept and forgotten, or be trained on and be held out. All that there are come in the same order
    on every machine with the same Python.

    Args:
        apart: the other code.
        count: at most.
        longest: bytes of a function.
    """
    known = np.unique(np.concatenate([np.empty(0, np.uint64), *(piece.runs for piece in apart)]))
    free = [
        piece
        for piece in _library()
        if len("".join(piece.row).encode()) <= longest and not np.isin(piece.runs, known).any()
    ]
    copies = near_copies([piece.text for piece in apart], [piece.text for piece in free])
    return [piece for number, piece in enumerate(free) if number not in copies][:count]


@cache
def _library() -> tuple[Piece, ...]:
    rows = (*stdlib_functions(sys.maxsize), *package_functions(sys.maxsize))
    return tuple(_pieces((row["prompt"], row["completion"]) for row in rows))


def _pieces(rows: Iterable[tuple[str, str]]) -> Iterator[Piece]:
    for prompt, completion in rows:
        points = COMPARED.code_points(prompt + completion)
        yield Piece((prompt, completion), compared(prompt, completion), substring_hashes(points, VERBATIM_FROM))
