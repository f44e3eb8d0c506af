"""Small indices made in memory, and the anchors that they have, by the definition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prod_decode.corpus.index import CorpusIndex
from prod_decode.corpus.keys import Cut, mixed
from prod_decode.corpus.report import IndexReport
from prod_decode.corpus.table import Table
from prod_decode.corpus.winnow import Winnower, identities_of, outliers_of
from prod_decode.text.normalize import Normalization

KEY = bytes(range(16))
NOTHING_KNOWN = IndexReport(0, 0, 0, 0, 0, 0, 0, 0, 0)


def cut_of(quote: int = 50, width: int | None = 32, normalization: Normalization | None = None) -> Cut:
    return Cut.of(quote, width, normalization or Normalization(), KEY)


def symbols(text: str, cut: Cut) -> np.ndarray:
    return np.frombuffer(cut.normalization.symbols(text), np.uint8)


def index_of(texts: Sequence[str], cut: Cut) -> CorpusIndex:
    """As `corpus.build` makes it, without files and sources."""
    chosen = [Winnower(cut).choose(symbols(text, cut)) for text in texts]
    keys = mixed(np.concatenate([one.prefixes for one in chosen]))
    suffixes = np.concatenate([one.suffixes for one in chosen]).astype(np.uint32)
    even = np.concatenate([one.even for one in chosen])
    order = np.lexsort((suffixes, keys))
    new = np.ones(len(order), np.bool_)
    new[1:] = (np.diff(keys[order]) != 0) | (np.diff(suffixes[order]) != 0)
    order = order[new]
    table = Table.of(keys[order], suffixes[order], np.zeros(0, np.uint32))
    nothing = np.zeros(0, np.uint8), np.zeros(1, np.int64)
    prefixes = np.concatenate([one.prefixes for one in chosen]).astype(np.uint32)
    evens = np.unique(np.stack((prefixes, suffixes), axis=1)[even], axis=0)
    identities = identities_of(*(np.concatenate(column) for column in zip(*(one[1:3] for one in chosen), strict=True)))
    return CorpusIndex(table, cut, NOTHING_KNOWN, evens, nothing, "small.pidx", outliers_of([identities], cut))


def anchors_of(texts: Sequence[str], cut: Cut) -> set[bytes]:
    """What an index of them prohibits."""
    found = set()
    for text in texts:
        whole = symbols(text, cut).tobytes()
        starts = Winnower(cut).choose(np.frombuffer(whole, np.uint8)).starts.tolist()
        found |= {whole[start : start + cut.width] for start in starts}
    return found
