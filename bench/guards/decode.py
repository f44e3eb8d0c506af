"""Ours: the ban at the end of a phrase, at its commit point, and with its replacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, ClassVar

from bench.guards.base import Guard
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.blocklist.ready import READY, read_list
from prod_decode.hf import ProdLogitsProcessor
from prod_decode.match.matcher import Matcher

# Whose names commit points are found in, where they are installed.
LIBRARIES = (
    "numpy",
    "pandas",
    "scipy",
    "seaborn",
    "sklearn",
    "tensorflow",
    "torch",
    "transformers",
    "requests",
    "yaml",
)


class Decode(Guard):
    """A blocklist of the entries, each with its own policy."""

    name = "decode"
    rank = 1
    in_vllm = True
    is_measured = True
    allows_names: ClassVar[bool] = False
    replaces: ClassVar[bool] = False

    def blocklist(self, entries: Sequence[Entry]) -> Blocklist:
        """See `Guard.blocklist`."""
        if not self.replaces:
            entries = [replace(entry, replacement=None) for entry in entries]
        names = [name for name in LIBRARIES if find_spec(name)] if self.allows_names else []
        return Blocklist.compile(entries, allow_names=["stdlib", *names] if self.allows_names else ())

    def processors(self, entries: Sequence[Entry], tokenizer: Any) -> tuple[list[Any], Matcher]:
        """See `Guard.processors`."""
        matcher = self.blocklist(entries).bind(tokenizer)
        return [ProdLogitsProcessor(matcher)], matcher


class Commit(Decode):
    """The same from the commit points on that the names of installed libraries give."""

    name = "decode-commit"
    rank = 2
    allows_names = True


class Replace(Commit):
    """The same with the replacements of the entries."""

    name = "decode-replace"
    rank = 3
    replaces = True


class Lists(Decode):
    """The lists that come with the package, with their replacements, whatever the task prohibits."""

    name = "decode-lists"
    rank = 5
    replaces = True

    def blocklist(self, entries: Sequence[Entry]) -> Blocklist:
        """See `Guard.blocklist`."""
        del entries
        return super().blocklist([entry for name in READY for entry in read_list(name)])
