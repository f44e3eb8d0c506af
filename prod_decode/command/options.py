"""What sub-commands share: the parser, exit statuses, and what is not covered."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from prod_decode.command.terminal import USAGE, note
from prod_decode.errors import ProdError, one_line

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist

READ = (
    "Below a directory, hidden files are read too and links are followed; left out are directories named `.git`, "
    "`.hg`, `.svn`, `__pycache__`, `.mypy_cache`, `.pytest_cache` and `.ruff_cache`, and FIFOs, sockets and devices "
    "are not opened. Text is UTF-8, or UTF-16 or UTF-32 with a byte order mark; files that are no lists may be "
    "Latin-1. A FIFO that is named is read"
)

FOUND, UNCOVERED = 1, 3

STATUSES = {
    0: "done, and everything that was named is covered",
    FOUND: "`scan` found something, whether or not everything was covered",
    USAGE: "a mistake, told in one line; nothing was written",
    UNCOVERED: "done, but not everything was covered: what is left out, and why, stands on stderr",
}


if TYPE_CHECKING:
    # argparse has no public name for what `add_subparsers` returns.
    Commands = argparse._SubParsersAction[Any]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help ends with the meaning of each exit status."""

    def __init__(self, *, statuses: Mapping[int, str] | None = None, **options: Any) -> None:
        self.statuses = statuses or {}
        if statuses:
            options["formatter_class"] = argparse.RawDescriptionHelpFormatter
            options["epilog"] = "\n".join(["exit status:", *(f"  {status}  {statuses[status]}" for status in statuses)])
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where to read more, and exit with status 2."""
        self.exit(USAGE, one_line(f"{self.prog}: {message}; see `{self.prog} --help`") + "\n")


def add_coverage(parser: argparse.ArgumentParser, strict: str) -> None:
    """Add `--strict` and `--accept-uncovered`; `strict` says what the first refuses."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--strict", action="store_true", help=f"{strict}: status {USAGE}")
    group.add_argument(
        "--accept-uncovered",
        action="store_true",
        help=f"status 0, not {UNCOVERED}, where not everything was covered; it is listed all the same. A path that was "
        "named and cannot be read is not accepted",
    )


def positive(kind: type[int] | type[float], *, zero: bool = False, most: float = math.inf) -> type[int] | type[float]:
    """The type of an option for argparse: a number above 0, or from 0 with `zero`, to `most`."""

    def parse(text: str) -> float:
        value = kind(text)
        if not 0 <= value <= most or value == math.inf or (value == 0 and not zero):
            limit = "" if most == math.inf else f", {most} at most"
            raise argparse.ArgumentTypeError(
                f"expected a number {'of at least' if zero else 'above'} 0{limit}, got {text}"
            )
        return value

    parse.__name__ = kind.__name__  # argparse names the type in its message
    return parse  # type: ignore[return-value]


class Uncovered:
    """What a command did not cover: listed as it is found, and what it means for the exit status.

    Attributes:
        count: how much was not covered.
        reasons: what was listed, and why.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._strict, self._accepted = options.strict, options.accept_uncovered
        self._is_missing = False
        self.count = 0
        self.reasons: list[str] = []

    def __call__(self, why: str) -> None:
        """One thing, and why; raises with `--strict`."""
        if self._strict:
            raise ProdError(why)
        self.count += 1
        self.reasons.append(why)
        note(f"not covered: {why}")

    def missing(self, why: str) -> None:
        """Something that was named and is not there: a slip, which `--accept-uncovered` does not accept."""
        self(why)
        self._is_missing = True

    def add_ineffective(self, blocklist: Blocklist) -> None:
        """The entries that prohibit nothing, which `info --json` lists too."""
        too_short = set(blocklist.report.too_short)
        names = blocklist.ineffective()
        for name in names[:10]:
            self(f"{name!r}: {'shorter than max_quote' if name in too_short else 'free code all over'}")
        if len(names) > 10:
            self.count += len(names) - 10
            note(f"not covered: {len(names) - 10} more like these; `prod-decode info --json` lists them all")

    @property
    def status(self) -> int:
        """The exit status, if nothing else is the matter."""
        return UNCOVERED if self.count and (self._is_missing or not self._accepted) else 0


def load(file: str) -> Blocklist:
    """A compiled blocklist.

    Raises:
        ProdError: there is no such file, or it is none.
    """
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.storage.files import require_file

    require_file(file, "a compiled blocklist")
    return Blocklist.load(file)
