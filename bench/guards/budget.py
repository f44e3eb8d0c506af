"""Ours with quote budgets: no long run, and few characters of a document in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.guards.decode import Decode
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError
from prod_decode.match.matcher import Matcher

BUDGET = 240


class Budget(Decode):
    """The same, and of each document `BUDGET` characters at most, or a quarter of it, in pieces of 24."""

    name = "decode-budget"
    rank = 4
    # What is banned depends on the whole output, and given texts are measured place by place.
    is_measured = False

    def blocklist(self, entries: Sequence[Entry]) -> Blocklist:
        """See `Guard.blocklist`."""
        return super().blocklist([self._budgeted(entry) for entry in entries])

    def processors(self, entries: Sequence[Entry], tokenizer: Any) -> tuple[list[Any], Matcher]:
        """See `Guard.processors`."""
        if all(entry.policy != "quote" for entry in entries):
            raise ProdError("decode-budget: expected documents, got phrases alone: use it with the copyright task")
        return super().processors(entries, tokenizer)

    def _budgeted(self, entry: Entry) -> Entry:
        return replace(entry, budget=BUDGET) if entry.policy == "quote" else entry
