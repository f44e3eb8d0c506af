"""PROD at anchors only: as few places as stop every long quotation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from prod_train.method import Example, Method, Recipe, RunSettings, Teacher, targets_loss, unused_replaced_rows
from prod_train.option import (
    BLOCKLIST,
    CONTINUATIONS,
    COUNT,
    COUNT_OR_NONE,
    MAX_N,
    REPLACED_ROWS,
    TEMPERATURE,
    TOP_P,
    Option,
)

if TYPE_CHECKING:
    from torch import Tensor

    from prod_decode.blocklist.blocklist import Blocklist

_log = logging.getLogger(__name__)

ALLOW = Option(
    "allow", str, "a file or directory of code that is free to use: no anchor occurs in it", "PATH", group="what"
)
MAX_QUOTE = Option(
    "max_quote",
    int,
    "characters of a forget row that may not be quoted in a row; an anchor is half as wide",
    "N",
    COUNT,
)
OPENING = Option(
    "opening",
    int,
    "characters at the beginning of a forget row in which every token is prohibited, so that what is written goes "
    "another way from the start",
    "N",
    COUNT_OR_NONE,
)
KEEP = Option(
    "keep",
    int,
    "tokens of the reference model's distribution that are its target where nothing is prohibited",
    "N",
    COUNT,
)


class Surgical(Method):
    """PROD at anchors only; this project's own (docs/design/surgical.md).

    To stop every quote of `max_quote` characters it is enough to prohibit one anchor in each window of so many. They
    are where the reference model has alternatives: the sum of -log(1 - p_ref(y)) over the tokens y that complete them
    is the least possible. B is what a blocklist of these anchors bans, z and q are as in PROD where y is in B, and

        q = softmax(z with -inf at B, its `keep` largest)

    at every other position: the model is told to stay as it is. The loss is PROD's. So is what a blocklist of one's own
    does where it has replacements.
    """

    name = "prod-surgical"
    rank = 1
    options = {
        BLOCKLIST: None,
        ALLOW: None,
        MAX_QUOTE: 24,
        OPENING: 0,
        REPLACED_ROWS: True,
        CONTINUATIONS: 0,
        KEEP: 256,
        TOP_P: 0.8,
        MAX_N: None,
        TEMPERATURE: None,
    }
    needs = "targets"
    keeps_end = True
    chooses = True

    @classmethod
    def problems(cls, settings: RunSettings) -> list[str]:
        """See `Method.problems`."""
        from prod_decode.blocklist.entries import SHORTEST_QUOTE  # and with it numba, which `--help` can do without

        found = unused_replaced_rows(settings)
        allow, max_quote = settings.value("allow"), settings.value("max_quote")
        if 1 <= max_quote < SHORTEST_QUOTE:
            found.append(f"--max-quote: expected at least {SHORTEST_QUOTE} characters, got {max_quote}")
        if allow is not None and settings.value("blocklist") is not None:
            found.append("--allow: concerns anchors, which --blocklist has already: drop one of the two")
        if allow is not None and not Path(allow).exists():
            found.append(f"--allow: cannot read {allow}: no such file or directory")
        return found

    def recipe(self) -> Recipe:
        """See `Method.recipe`."""
        return Recipe.of(self.settings, "keep")

    def blocklist(self, teacher: Teacher) -> Blocklist:
        """The anchors that the reference model can do without."""
        from prod_decode.blocklist.sources import read_texts
        from prod_decode.tokens.tokenizer_bytes import vocabulary_of
        from prod_train.targets.anchors import choose_blocklist

        allow = self.settings.value("allow")
        return choose_blocklist(
            teacher.model,
            teacher.encoder,
            teacher.rows,
            vocabulary_of(teacher.tokenizer),
            max_quote=self.settings.value("max_quote"),
            opening=self.settings.value("opening"),
            allow=(text for _, text in read_texts([allow], skipped=_not_read)) if allow else (),
            pad=teacher.pad,
            batch_size=teacher.batch_size,
        )

    def loss(self, example: Example) -> Tensor:
        """See `Method.loss`; the constant entropy of q is included."""
        return targets_loss(example)


def _not_read(why: str) -> None:
    _log.warning("--allow: not read, and so not free: %s", why)
