"""Prohibited places of a text, as `scan` tells them: a copied run of a document is one, however many anchors it has."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from prod_decode.blocklist.anchors import default_width
from prod_decode.text.escapes import decode_text

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist, Match

# What is looked at between two matches, in characters of the text: layout, and at most two others.
_LONGEST_GAP = 1000


class Places:
    """Matches of a blocklist as places.

    Every window of K characters of a document has an anchor of at least `default_width(K)` characters in it. So two
    neighbouring anchors of one copied run have at most K + 1 - 2 * default_width(K) characters between them: one if K
    is even, two if it is odd. What stands nearer than that is one place. A phrase is a place each time.
    """

    def __init__(self, blocklist: Blocklist) -> None:
        self._blocklist = blocklist

    def of(self, text: str, matches: Iterable[Match], *, unescape: bool) -> list[Match]:
        """The places of `text`, by where they begin; each from the first to the last character of its matches.

        Args:
            text: what was scanned.
            matches: all that `Blocklist.scan` found in it.
            unescape: whether JSON's escapes were decoded.
        """
        found: list[Match] = []
        latest: dict[str, int] = {}  # of a document, the number of its last place
        for match in sorted(matches):
            most = self._gaps.get(match.entry_id)
            if most is not None:
                at = latest.get(match.entry_id)
                if at is not None and self._touch(text, found[at].end, match.start, most, unescape):
                    found[at] = found[at]._replace(end=max(found[at].end, match.end))
                    continue
                latest[match.entry_id] = len(found)
            found.append(match)
        return found

    @cached_property
    def _gaps(self) -> dict[str, int]:
        """By the id of every document, how many characters may be between two anchors of one run."""
        if not self._blocklist.report.documents:
            return {}
        limits = ((info.id, info.max_quote) for info in self._blocklist.entries())
        return {name: limit + 1 - 2 * default_width(limit) for name, limit in limits if limit is not None}

    def _touch(self, text: str, end: int, start: int, most: int, unescape: bool) -> bool:
        if start - end > _LONGEST_GAP:
            return False
        between = decode_text(text[end:start]) if unescape else text[end:start]
        codes = np.frombuffer(between.encode("utf-8", "surrogatepass"), np.uint8)
        symbols, _ = self._blocklist.normalization.fold(codes)
        return int(((symbols & 0xC0) != 0x80).sum()) <= most  # bytes that begin a character
