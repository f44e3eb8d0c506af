"""Where `prod-surgical` prohibits: at anchors that the reference model can do without, as a blocklist.

A processor with the same blocklist enforces exactly what the weights are taught, place by place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prod_decode.blocklist.anchors import FreeCode, default_width
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import SHORTEST_QUOTE, Entry
from prod_decode.command.costs import character_costs, token_costs
from prod_decode.errors import ProdError
from prod_decode.tokens.vocabulary import Vocabulary
from prod_train.data.alike import COMPARED
from prod_train.data.rows import Row, collate
from prod_train.loss.objective import Encoder


def choose_blocklist(
    model: Any,
    encoder: Encoder,
    rows: Sequence[Row],
    vocabulary: Vocabulary,
    *,
    max_quote: int,
    opening: int = 0,
    allow: Iterable[str] = (),
    pad: int,
    batch_size: int,
) -> Blocklist:
    """Anchors in what is supervised in rows, so that no run of it can be quoted, each where it costs the model least.

    Args:
        model: the reference model, in evaluation mode.
        encoder: attached to it.
        rows: tokenised.
        vocabulary: the bytes of the tokens.
        max_quote: characters that may not be quoted in a row, whitespace that separates no words not counted. Of a
            shorter supervised part one anchor is prohibited.
        opening: characters, counted likewise, at the beginning of each supervised part in which every token is
            prohibited, so that greedy decoding takes another way from the start. Only in parts that go on for a quote
            and more behind it.
        allow: texts that are free to use; no anchor occurs in them.
        pad: token id of padding.
        batch_size: rows a forward pass.

    Raises:
        ProdError: the supervised parts have no text, or are free to use all over.
    """
    allowed = list(allow)
    # Anchors are kept out of free code where they are compiled; the phrases of an opening are not.
    free = FreeCode(map(COMPARED.code_points, allowed) if opening else ())
    entries = (
        entry
        for row, costs in zip(rows, _costs(model, encoder, rows, pad, batch_size), strict=True)
        for entry in _entries(row, costs, vocabulary, max_quote, opening, free)
    )
    first = next(entries, None)
    if first is None:
        raise ProdError(f"expected text in what {len(rows)} rows supervise, got whitespace: there is nothing to forget")
    return Blocklist.compile(chain([first], entries), normalize="code", allow=allowed, allow_short=True)


@torch.no_grad()
def _costs(
    model: Any, encoder: Encoder, rows: Sequence[Row], pad: int, batch_size: int
) -> Iterator[NDArray[np.float64]]:
    """For each row, the costs of its supervised tokens, float64 [n]."""
    head = encoder.head()
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        batch = collate(some, pad).to(model.device)
        found = token_costs(head.log_probs(encoder(model, batch), batch.labels).cpu().numpy())
        row = batch.row.cpu().numpy()
        yield from (found[row == i] for i in range(len(some)))


def _entries(
    row: Row,
    costs: NDArray[np.float64],
    vocabulary: Vocabulary,
    max_quote: int,
    opening: int,
    free: FreeCode,
) -> Iterator[Entry]:
    """The entries for every stretch of supervised tokens."""
    places = np.flatnonzero(row.supervised)
    for stretch in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) > 1) + 1):
        tokens = [vocabulary.token_bytes(int(row.ids[places[i]])) for i in stretch]
        text, cost = character_costs(tokens, costs[stretch])
        length = len(COMPARED.code_points(text))
        if opening and length >= opening + max_quote:
            before = [vocabulary.token_bytes(int(token)) for token in row.ids[: places[stretch[0]]]]
            for phrase in _opening(before, tokens, opening, default_width(max_quote)):
                points = COMPARED.code_points(phrase)
                if not free.contains(points, len(points)).any():
                    yield Entry(phrase, source=row.place, boundary="none")
        if length >= SHORTEST_QUOTE:
            yield Entry(text, source=row.place, policy="quote", max_quote=min(max_quote, length), cost=cost)
        elif length:
            yield Entry(text, source=row.place, boundary="none")


def _opening(before: Sequence[bytes], tokens: Sequence[bytes], opening: int, width: int) -> Iterator[str]:
    """The `width` characters that each token completes, until there are `opening` of them behind those before.

    Where fewer than `width` come before, as at the start of a file, there is no phrase: `#` or `import` alone would be
    prohibited everywhere.
    """
    context, data, text = b"".join(before).decode(errors="ignore"), b"", ""
    for token in tokens:
        if len(COMPARED.code_points(text)) >= opening:
            return
        data += token
        text = data.decode(errors="ignore")
        _, origins = COMPARED.trace(context + text)
        if text.strip() and len(origins) >= width:  # without text it would be the end of what comes before
            yield (context + text)[origins[len(origins) - width] :]
