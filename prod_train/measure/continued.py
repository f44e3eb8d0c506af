"""What the model writes where it is asked for a row to forget: more rows, for another round of training.

Once a model is taught not to go on as the text does, it goes on in another way, and nothing was ever prohibited on that
way. These rows are it: behind the prompt, and behind more and more of the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode.blocklist.sources import read_json_lines
from prod_decode.errors import ProdError
from prod_decode.harness.continuing import continuations
from prod_decode.storage.files import write_whole
from prod_train.data.rows import Row, by_length

# Of the part to recite, how much of it the model is given.
GIVEN = (0.0, 0.25, 0.5, 0.75)


def continued_rows(
    model: Any, tokenizer: Any, rows: Sequence[Row], *, tokens: int, max_length: int, batch_size: int
) -> list[Row]:
    """What a model writes, greedily, behind 0, 25, 50 and 75 % of the part to recite of every row.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        rows: to be continued, each from `start` on.
        tokens: of a continuation, at most.
        max_length: tokens of a row, at most; one without room for a continuation is left out.
        batch_size: rows that are written together.

    Returns:
        Rows in which what was written is supervised. A continuation that ends at once is left out.
    """
    prompts = [
        (row, row.ids[:cut])
        for row in rows
        for cut in sorted({row.start + int(share * (row.stop - row.start)) for share in GIVEN})
        if cut < max_length
    ]
    found = []
    for batch in by_length([len(ids) for _, ids in prompts], batch_size):
        some = [prompts[i] for i in batch]
        written = continuations(model, tokenizer, [ids for _, ids in some], tokens)
        for (row, ids), output in zip(some, written, strict=True):
            # Many heads have more ids than the tokenizer; a model that has learned nothing else writes those too.
            known = list(takewhile(lambda token: token < len(tokenizer), output))
            whole = np.concatenate([ids, np.array(known, np.int64)])[:max_length]
            if known:
                found.append(_continuation(whole, len(ids), f"{row.place}, continued at token {len(ids)}"))
    return found


def _continuation(ids: NDArray[np.int64], start: int, place: str) -> Row:
    return Row(ids, np.arange(len(ids)) >= start, start, place)


def save_continued(path: Path, rows: Sequence[Row], tokenizer: Any) -> None:
    """Write them as JSONL: `place`, `ids`, `start`, and, for people, `given` and `written`."""
    with write_whole(path) as file:
        for row in rows:
            ids = row.ids.tolist()
            given, written = (tokenizer.decode(part) for part in (ids[: row.start], ids[row.start :]))
            record = {"place": row.place, "given": given, "written": written, "start": row.start, "ids": ids}
            file.write(f"{json.dumps(record, ensure_ascii=False)}\n".encode())


def load_continued(path: Path) -> Iterator[Row]:
    """The rows that `save_continued` wrote.

    Raises:
        ProdError: it did not write this.
    """
    for place, record in read_json_lines(path):
        try:
            yield _continuation(np.array(record["ids"], np.int64), record["start"], record["place"])
        except (LookupError, TypeError, ValueError, OverflowError):
            raise ProdError(f"{place} is damaged: remove {path}, and what is in it is written again") from None
