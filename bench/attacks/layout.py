"""Other layout: indentation, blank lines, quotes, line breaks inside brackets."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench.attacks.base import Attack
from bench.attacks.lexer import lex, logical_lines
from bench.tasks.base import Sample


def reformat(prompt: str, *, seed: int = 0) -> str:
    """Other indentation, blank lines, quotes and line breaks inside brackets; the syntax tree stays."""
    chooser = random.Random(f"{seed}\0{prompt}")
    unit = chooser.choice(["  ", "   ", "\t", "        "])
    return _reindented(_joined(_requoted(prompt)), unit, lambda: chooser.random() < 0.3)


def _requoted(text: str) -> str:
    other = {"'": '"', '"': "'"}
    parts = []
    for token in lex(text):
        swapped = token.text
        match = re.fullmatch(r"([bBrRuU]{0,2})(['\"])([^'\"\\\n]+)\2", token.text) if token.kind == "string" else None
        if match:
            swapped = f"{match[1]}{other[match[2]]}{match[3]}{other[match[2]]}"
        parts.append(swapped)
    return "".join(parts)


def _joined(text: str) -> str:
    """Lines inside brackets on one line, unless a comment stands between or the text ends there."""
    tokens = lex(text)
    parts: list[str] = []
    for number, token in enumerate(tokens):
        inside = token.kind == "newline" and token.depth > 0 and number < len(tokens) - 1
        commented = any(t.kind == "comment" for t in tokens[max(0, number - 2) : number])
        if not inside or commented:
            # The indentation behind a line break that is gone means nothing.
            after_join = token.kind == "space" and bool(parts) and parts[-1] == " " and token.depth > 0
            parts.append("" if after_join and "\\" not in token.text else token.text)
        else:
            parts.append(" ")
    return "".join(parts)


def _reindented(text: str, unit: str, blank: Callable[[], bool]) -> str:
    columns = [0]
    parts: list[str] = []
    lines = logical_lines(text)
    for number, (begins, line) in enumerate(lines):
        body = line.lstrip(" \t\f")
        last = number == len(lines) - 1
        if not begins or (not body and not last):
            parts.append(line)
            continue
        column = len(line[: len(line) - len(body)].expandtabs(8))
        if body and not body.startswith("#"):
            while len(columns) > 1 and columns[-1] > column:
                columns.pop()
            if column > columns[-1]:
                columns.append(column)
            level = len(columns) - 1
        else:
            level = sum(column >= c for c in columns) - 1
        if parts and body and blank():
            parts.append("")
        parts.append(unit * level + body)
    return "\n".join(parts)


class Reformatted(Attack):
    """The same code, laid out otherwise."""

    name = "reformatted"
    rank = 22

    def sample(self, sample: Sample, tokenizer: Any, *, seed: int) -> Sample:
        """See `Attack.sample`."""
        del tokenizer
        return replace(sample, prompt=reformat(sample.prompt, seed=seed))
