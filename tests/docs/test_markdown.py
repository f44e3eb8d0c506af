"""Pages read the same on GitHub and in the site, whose Markdown wants blank lines before lists and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests import ROOT

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])

ITEM = re.compile(r" {0,3}(?:[-*]|\d+\.) ")


def parted(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Lines that the two read differently, with their number and why."""
    is_code = False
    before = ""
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code:
            if re.match(r" {1,3}(?:[-*]|\d+\.) ", line):
                yield number, "a list inside a list needs four spaces"
            elif ITEM.match(line) and before.strip() and not ITEM.match(before) and not before.startswith("  "):
                yield number, "a list needs a blank line before it"
            elif line.startswith("|") and before.strip() and not before.startswith("|"):
                yield number, "a table needs a blank line before it"
        before = line


@pytest.mark.parametrize("name", [str(page.relative_to(ROOT)) for page in PAGES])
def test_a_page_reads_the_same(name: str) -> None:
    assert list(parted((ROOT / name).read_text(encoding="utf-8").splitlines())) == []


def test_what_is_read_differently() -> None:
    page = "Text\n- item\n  more\n- item\n  - inner\n\n```\ncode\n- code\n```\nText\n| a |\n| b |\n\n- item\n    - in\n"
    assert list(parted(page.splitlines())) == [
        (2, "a list needs a blank line before it"),
        (5, "a list inside a list needs four spaces"),
        (12, "a table needs a blank line before it"),
    ]
