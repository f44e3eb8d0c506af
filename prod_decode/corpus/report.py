"""What an index was made of: where its documents come from, and how much of them there is."""

from __future__ import annotations

from dataclasses import dataclass

from prod_decode.blocklist.entries import EntryInfo


@dataclass(frozen=True, slots=True)
class Source:
    """Where a document of a corpus comes from.

    Attributes:
        path: within its repository, or wherever it was read.
        repo: its repository; "": unknown.
        license: an SPDX expression; "": unknown.
        symbols: how long it is, normalised; 0: unknown.
    """

    path: str
    repo: str = ""
    license: str = ""
    symbols: int = 0

    def __str__(self) -> str:
        """In a line: repository, path, licence."""
        where = f"{self.repo}: {self.path}" if self.repo else self.path
        return f"{where} ({self.license})" if self.license else where

    def described(self, max_quote: int) -> EntryInfo:
        """As an entry of a blocklist is described."""
        return EntryInfo(self.path, self.repo or None, "quote", max_quote, None, "", license=self.license or None)


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What an index was made of.

    Attributes:
        files: documents that were read.
        copies: how many of them were the same as an earlier one.
        short: how many were shorter than `max_quote`, so that nothing of them is prohibited.
        symbols: of all documents but copies, normalised.
        repositories: how many there were.
        common: from more than so many repositories on, an anchor is no evidence of copying; 0: never.
        common_anchors: how many anchors were left out for that.
        waived: windows of `max_quote` symbols in which only common anchors, or such of free code, can be chosen, so
            that they may be quoted.
        skipped: files that could not be read.
    """

    files: int
    copies: int
    short: int
    symbols: int
    repositories: int
    common: int
    common_anchors: int
    waived: int
    skipped: int
