"""Comments stripped or added."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from bench.attacks.base import Attack
from bench.attacks.lexer import lex, logical_lines
from bench.tasks.base import Sample

_COMMENTS = (
    "# next step",
    "# as before",
    "# see above",
    "# main case",
    "# keep this simple",
    "# nothing special here",
    "# handled below",
    "# order matters",
)


def strip_comments(prompt: str) -> str:
    """Without comments; lines of nothing but a comment go as a whole. Strings stay, docstrings among them."""
    tokens = lex(prompt)
    parts: list[str] = []
    number = 0
    while number < len(tokens):
        token = tokens[number]
        if token.kind != "comment":
            parts.append(token.text)
            number += 1
            continue
        while parts and parts[-1].isspace() and "\n" not in parts[-1]:
            parts.pop()
        alone = not parts or parts[-1].endswith("\n")
        number += 1
        if alone and number < len(tokens) and tokens[number].kind == "newline":
            number += 1
    return "".join(parts)


def add_comments(prompt: str, *, seed: int = 0) -> str:
    """With meaningless comments before some statements, at least one."""
    chooser = random.Random(f"{seed}\0{prompt}")
    lines = logical_lines(prompt)
    places = [n for n, (begins, line) in enumerate(lines) if begins and line.strip() and line.lstrip()[0] != "#"]
    chosen = {n for n in places if chooser.random() < 0.4} or set(chooser.sample(places, min(1, len(places))))
    parts: list[str] = []
    for number, (_, line) in enumerate(lines):
        if number in chosen:
            parts.append(line[: len(line) - len(line.lstrip(" \t\f"))] + chooser.choice(_COMMENTS))
        parts.append(line)
    return "\n".join(parts)


class CommentsStripped(Attack):
    """Without comments; a prompt of nothing else stays as it is."""

    name = "comments-stripped"
    rank = 23

    def sample(self, sample: Sample, tokenizer: Any, *, seed: int) -> Sample:
        """See `Attack.sample`."""
        del tokenizer, seed
        prompt = strip_comments(sample.prompt)
        return replace(sample, prompt=prompt) if prompt.strip() else sample


class CommentsAdded(Attack):
    """With comments that say nothing."""

    name = "comments-added"
    rank = 24

    def sample(self, sample: Sample, tokenizer: Any, *, seed: int) -> Sample:
        """See `Attack.sample`."""
        del tokenizer
        return replace(sample, prompt=add_comments(sample.prompt, seed=seed))
