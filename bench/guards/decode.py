"""Ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.guards.base import Guard
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.hf import ProdLogitsProcessor
from prod_decode.match.matcher import Matcher


class Decode(Guard):
    """A blocklist of the entries, each with its own policy."""

    name = "decode"
    rank = 1
    in_vllm = True
    is_measured = True

    def processors(self, entries: Sequence[Entry], tokenizer: Any) -> tuple[list[Any], Matcher]:
        """See `Guard.processors`."""
        matcher = Blocklist.compile(entries).bind(tokenizer)
        return [ProdLogitsProcessor(matcher)], matcher
