"""What sub-commands share: the parser, exit statuses, and what is not covered."""

from __future__ import annotations

import argparse
import itertools
import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from prod_decode.command.terminal import USAGE, note
from prod_decode.errors import Mistakes, ProdError, brief, did_you_mean, one_line

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.blocklist.ready import Targets
    from prod_decode.corpus.index import CorpusIndex

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


# What a type of an option reads, by its name.
_NUMBERS = {"int": "a whole number", "float": "a number"}

# What argparse takes for an option, known or not: no number, and no text with a space.
_OPTION = re.compile(r"-(-|[A-Za-z])[^ ]*$")

if TYPE_CHECKING:
    # argparse has no public name for what `add_subparsers` returns.
    Commands = argparse._SubParsersAction[Any]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are a line each, and whose help ends with the meaning of each exit status.

    Attributes:
        keeps_unknown: options that it does not know are left to whoever calls `parse_known_args`. Otherwise they are
            errors of the sub-command that has them; argparse has its parent tell them, with the parent's `--help`, and
            only where no option is missing.
    """

    def __init__(self, *, statuses: Mapping[int, str] | None = None, **options: Any) -> None:
        self.statuses = statuses or {}
        self.keeps_unknown = False
        if statuses:
            options["formatter_class"] = argparse.RawDescriptionHelpFormatter
            options["epilog"] = "\n".join(["exit status:", *(f"  {status}  {statuses[status]}" for status in statuses)])
        super().__init__(**options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse has it; see `keeps_unknown`."""
        words = sys.argv[1:] if args is None else list(args)
        if not self.keeps_unknown and (unknown := self._unknown(words)):
            known = [name for name in self._option_string_actions if name.startswith("--")]
            self._exit(*(f"unknown option {brief(name)}{did_you_mean(name, known)}" for name in unknown))
        return super().parse_known_args(words, namespace)

    def _unknown(self, words: Sequence[str]) -> list[str]:
        """The words that argparse takes for options of this parser, which has no such option."""
        own = words[: words.index("--")] if "--" in words else words
        if self._subparsers is not None:  # behind the sub-command's name, they are that one's
            own = list(itertools.takewhile(lambda word: word.startswith("-"), own))
        names = [word.partition("=")[0] for word in own if _OPTION.match(word)]
        known = self._option_string_actions

        def is_known(name: str) -> bool:
            if name in known:
                return True
            if not name.startswith("--"):  # `-oFILE` is one; `-output` would be `-o utput`
                return name[:2] in known and f"-{name}" not in known
            return self.allow_abbrev and any(one.startswith(name) for one in known)

        return [name for name in names if not is_known(name)]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            meant = did_you_mean(value, known) if isinstance(value, str) else ""
            raise argparse.ArgumentError(action, f"expected one of {', '.join(known)}, got {brief(value)!r}{meant}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            kind = _NUMBERS.get(getattr(action.type, "__name__", ""))
            if kind is None or not isinstance(error.__context__, ValueError):
                raise
            raise argparse.ArgumentError(action, f"expected {kind}, got {brief(arg_string)!r}") from None

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where to read more, and exit with status 2."""
        self._exit(message)

    def hint(self, message: str) -> str:
        """The end of a message: where to read more."""
        return f"{' See' if message.endswith('?') else '; see'} `{self.prog} --help`"

    def _exit(self, *messages: str) -> NoReturn:
        lines = (one_line(f"{self.prog}: {message}{self.hint(message)}") for message in messages)
        self.exit(USAGE, "".join(f"{line}\n" for line in lines))


class Once(argparse.Action):
    """An option that protects, and may not be given twice: the last one would count, and nobody would say so."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep the value; an error if there is one."""
        if getattr(namespace, self.dest, None) is not None:
            parser.error(f"{option_string}: expected it once, got it again: join blocklists with `prod-decode merge`")
        setattr(namespace, self.dest, values)


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


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add `--target`."""
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="LIBRARY==VERSION",
        help="of `list:NAME`, leave out what this version, such as numpy==2.1, does not deprecate; `python` is the "
        "standard library. Give it again for another library",
    )


def tell_targets(targets: Targets, lists: bool) -> None:
    """What versions left out, and which of them had no effect; `lists`: whether there was a list to leave it out of."""
    from prod_decode.blocklist.ready import libraries

    for line in targets.told():
        note(line)
    unused = targets.unused()
    if unused and not lists:
        note(
            "no effect: --target: for lists that come with the package, and there is none among the sources: list:NAME"
        )
        return
    for name in unused:
        note(f"no effect: --target {name}: the lists have no entries of it{did_you_mean(name, libraries())}")


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

    def add_ineffective(self, blocklist: Blocklist, named: Collection[str] = ()) -> None:
        """The entries that prohibit nothing, which `info --json` lists too.

        Args:
            blocklist: has them.
            named: files that were named and read as documents: perhaps they were meant as lists.
        """
        too_short = set(blocklist.report.too_short)
        names = blocklist.ineffective()

        def why(name: str) -> str:
            if name not in too_short:
                return f"{name!r}: free code all over"
            meant = ", read as a document; if it is a list of phrases, name it .txt" if name in named else ""
            return f"{name!r}: shorter than max_quote{meant}"

        if self._strict:
            mistakes = Mistakes()
            mistakes.add(*map(why, names))
            mistakes.refuse()
        for name in names[:10]:
            self(why(name))
        if len(names) > 10:
            self.count += len(names) - 10
            note(f"not covered: {len(names) - 10} more like these; `prod-decode info --json` lists them all")

    @property
    def status(self) -> int:
        """The exit status, if nothing else is the matter."""
        return UNCOVERED if self.count and (self._is_missing or not self._accepted) else 0


def load_all(files: Sequence[str]) -> list[Blocklist]:
    """Compiled blocklists.

    Raises:
        ProdError: with each file that is not there, or is none.
    """
    mistakes, found = Mistakes(), []
    for file in files:
        with mistakes.caught():
            found.append(load(file))
    mistakes.refuse()
    return found


def load_source(file: str) -> Blocklist | CorpusIndex:
    """A compiled blocklist, as `load`, or a corpus index.

    Raises:
        ProdError: there is no such file or list, or it is neither.
    """
    from prod_decode.blocklist.ready import list_named
    from prod_decode.corpus.index import load_source
    from prod_decode.storage.files import require_file

    if list_named(file) is not None:
        return load(file)
    require_file(file, "a compiled blocklist or a corpus index")
    return load_source(file)


def load(file: str) -> Blocklist:
    """A compiled blocklist, or one compiled of the list that comes with the package as `list:NAME`.

    Raises:
        ProdError: there is no such file or list, or it is none.
    """
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.blocklist.ready import list_named, read_list
    from prod_decode.storage.files import require_file

    if (name := list_named(file)) is not None:
        return Blocklist.compile(read_list(name))
    require_file(file, "a compiled blocklist")
    return Blocklist.load(file)
