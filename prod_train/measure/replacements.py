"""What a model writes where a phrase with a replacement stood: the phrase, the replacement, or something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prod_decode.harness.continuing import continuations, evaluating
from prod_train.data.alike import COMPARED
from prod_train.data.rows import Row, by_length
from prod_train.measure.metric import Metric, bootstrap


def evaluate_replacements(model: Any, tokenizer: Any, rows: Sequence[Row], *, batch_size: int = 8) -> dict[str, Metric]:
    """How often greedy decoding goes on in the phrase, and how often in its replacement, from where the two part.

    `writes_replacement` and `writes_phrase`: shares of the places at which a replacement is written out, the row before
    it being what the model is given. Layout and spelling do not count.

    Args:
        model: in evaluation mode or not; it is left as it was.
        tokenizer: its tokenizer.
        rows: with `instead_of`, at least one.
        batch_size: places that are decoded together.
    """
    places = [
        (row.ids[:at], row.text[slice(*span)], before)
        for row in rows
        for at, span, before in zip(_begins(row), row.spans, row.instead_of, strict=False)  # the last may be cut off
    ]
    replaced, repeated = np.zeros(len(places)), np.zeros(len(places))
    with evaluating(model):
        for numbers in by_length([len(ids) for ids, _, _ in places], batch_size):
            some = [places[i] for i in numbers]
            # A token has at least a byte.
            most = max(len(text.encode()) for _, *texts in some for text in texts)
            written = continuations(model, tokenizer, [ids for ids, _, _ in some], most)
            for number, output, (_, new, old) in zip(numbers, written, some, strict=True):
                text = COMPARED.symbols(tokenizer.decode(output))
                replaced[number] = text.startswith(COMPARED.symbols(new))
                repeated[number] = text.startswith(COMPARED.symbols(old))
    weights = np.ones(len(places))
    return {
        "writes_replacement": bootstrap(replaced, weights, "better"),
        "writes_phrase": bootstrap(repeated, weights, "worse"),
    }


def _begins(row: Row) -> list[int]:
    """Where each stretch of supervised tokens begins."""
    return (np.flatnonzero(np.diff(row.supervised.astype(np.int8), prepend=0) == 1)).tolist()
