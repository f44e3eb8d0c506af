"""The values that a run can be given: their names, texts, types and ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from prod_decode.errors import brief


@dataclass(frozen=True)
class Within:
    """The values that a number may have.

    Attributes:
        least: the smallest, or with `above` a number that it must exceed.
        most: the greatest. Beyond it is a slip: it would fill the memory, or not fit where it is used, hours later.
        above: whether `least` itself is too small.
    """

    least: float
    most: float
    above: bool = False

    def problem(self, value: float) -> str:
        """What is wrong with a value, or ""."""
        if self.least <= value <= self.most and not (self.above and value == self.least):
            return ""
        if (self.least, self.most) == (0, 1):
            expected = "a number from 0 to 1"
        elif math.isinf(value):
            expected = "a finite number"
        elif value > self.most:
            expected = f"at most {self.most:,}"
        else:
            expected = f"a number above {self.least:g}" if self.above else f"at least {self.least:,}"
        return f"expected {expected}, got {brief(value, 40)}"


COUNT = Within(1, 1_000_000_000)
COUNT_OR_NONE = Within(0, 1_000_000_000)
SHARE = Within(0, 1)
POSITIVE = Within(0, 1_000_000, above=True)
POSITIVE_OR_INF = Within(0, math.inf, above=True)
WEIGHT = Within(0, 1_000_000)
ANY = Within(-1_000_000, 1_000_000)


@dataclass(frozen=True, eq=False)
class Option:
    """A setting of one or more methods: a flag with dashes for underscores, and a key of the YAML file.

    Methods that mean the same share one; each has a default of its own.

    Attributes:
        name: as a Python name.
        kind: int, float, str, or bool.
        help: what it is, with its unit; names of methods and defaults are put around it.
        metavar: what stands for a value.
        within: the range of a number.
        unset: what a default of None means.
        is_file: whether the value names a file that must be there.
        group: under which heading `--help` has it.
    """

    name: str
    kind: type[Any]
    help: str
    metavar: str = ""
    within: Within | None = None
    unset: str = "none"
    is_file: bool = False
    group: Literal["what", "method"] = "method"


TOP_P = Option("top_p", float, "nucleus of the targets, 0 to 1", "P", SHARE)
MAX_N = Option("max_n", int, "tokens in the nucleus at most", "N", COUNT, unset="no limit")
TEMPERATURE = Option("temperature", float, "of the targets, after the nucleus", "T", POSITIVE)
BETA = Option("beta", float, "strength", "B", POSITIVE)
MAX_NLL = Option(
    "max_nll",
    float,
    "nats; a token less likely than that is left alone; inf is the plain, unbounded formula",
    "X",
    POSITIVE_OR_INF,
    unset="log of the vocabulary's size, a uniform guess",
)
REFUSALS = Option(
    "refusals", str, "a text file with an answer to prefer a line", "FILE", unset="built in", is_file=True
)
BLOCKLIST = Option(
    "blocklist",
    str,
    "prohibit what this compiled blocklist bans, in place of the next token or of anchors",
    "FILE",
    is_file=True,
    group="what",
)
REPLACED_ROWS = Option(
    "replaced_rows",
    bool,
    "also train on a copy of every forget row that has a phrase of --blocklist with a replacement: there the "
    "replacement is written out, and only what differs is supervised, as what is to be written (default on)",
)
CONTINUATIONS = Option(
    "continuations",
    int,
    "tokens that the model as it is writes behind the prompt of every forget row and behind 25, 50 and 75 % of its "
    "text; it is trained on these as well. For a second round, with the adapter of the first as --model and its "
    "anchors as --blocklist",
    "N",
    COUNT_OR_NONE,
)
