"""The pages: links lead somewhere, and no page is longer than a reader stays."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "`code`", text)


@cache
def anchors(page: Path) -> frozenset[str]:
    """The headings of a page as GitHub and MkDocs spell them."""
    heads = re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.MULTILINE)
    return frozenset(re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", head.strip().lower())) for head in heads)


def links(page: Path) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", prose(page))


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


@pytest.mark.slow
def test_the_readme_s_program_prints_what_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text()
    code, shown = re.findall(r"```python\n(.*?)```\n\n    \$ python first.py\n((?:    [^\n]*\n)+)", readme, re.DOTALL)[
        0
    ]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == textwrap.dedent(shown)


# Where a reader looks something up, or the reasons are written out.
LONG = ("docs/reference/", "docs/design/", "docs/results/appendix/", "CHANGELOG.md")
SHORT_PAGES = [name for name in NAMES if not name.startswith(LONG)]


def paragraphs(page: Path) -> Iterator[str]:
    """Blocks of prose: not headings, tables, lists' frames or code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.splitlines() if not line.startswith(("|", "    ", "#", "!["))]
        items = re.split(r"\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines))
        yield from (item for item in items if item.strip())


# Made from docstrings and measurements, or a list of what changed.
LISTS = ("docs/reference/python.md", "docs/results/appendix/", "CHANGELOG.md")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(LISTS)])
def test_prose_is_short(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith(("|", "![", "    "))] == []
    assert [text for text in paragraphs(ROOT / name) if len(text.split()) > 90] == []


@pytest.mark.parametrize("name", SHORT_PAGES)
def test_a_page_is_short(name: str) -> None:
    page = ROOT / name
    lines = page.read_text().splitlines()
    assert len(lines) <= 150
    tables = re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE)
    assert max((table.count("\n") - 2 for table in tables), default=0) <= 8 or name in ROWS


# Tables with more rows, and why: a list that is looked up cannot be cut.
ROWS: dict[str, str] = {}
