"""The pages of results: figures, tables and single numbers, all of them from `results/`.

A page in docs/results has the words. What was measured stands between marks, and is written anew each time:

    <!-- made: NAME -->             a table; an empty line inside each mark
    <!-- end -->
    <!-- n: NAME -->0.97<!-- /n --> one number in a sentence, never at the beginning of a line

`TABLES` and `NUMBERS` (results_tables.py, results_corpora.py) and `FIGURES` (results_figures.py) say what each name is.
Every figure is a file in docs/results/figures. Behind the pages is an appendix (results_appendix.py) with every cell of
every run and every figure of speed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from results_appendix import appendix
from results_data import Results
from results_figures import FIGURES
from results_tables import NUMBERS, TABLES

from prod_decode.errors import ProdError

# Neither reaches beyond the next mark: what stands behind a mark without its end would be lost.
_BLOCK = re.compile(r"<!-- made: (?P<name>[\w-]+) -->\n(?:(?!<!-- made: ).)*?<!-- end -->", re.DOTALL)
_NUMBER = re.compile(r"<!-- n: (?P<name>[\w-]+) -->[^<\n]*<!-- /n -->")


def make(root: Path) -> dict[Path, str]:
    """Every file of docs/results as it should be, and what was measured in docs/design: the pages filled anew.

    Args:
        root: of the checkout.

    Raises:
        ProdError: a mark names nothing, or has no end.
    """
    results, folder = Results(root / "results"), root / "docs" / "results"
    design = root / "docs" / "design"
    measured = (design / f"{name}.md" for name in ("measurements", "corpora", "corpora-measured"))
    pages = [*sorted(folder.glob("*.md")), *measured]
    made = {page: fill(page.read_text(encoding="utf-8"), results, page.name) for page in pages}
    made |= {folder / "figures" / f"{name}.svg": draw(results) for name, draw in FIGURES.items()}
    made |= {folder / "appendix" / name: text for name, text in appendix(results).items()}
    return made


def leftovers(root: Path, made: Iterable[Path]) -> list[Path]:
    """What lies in the folders of figures and of the appendix, and is not made any more."""
    folder = root / "docs" / "results"
    found = [*(folder / "figures").glob("*"), *(folder / "appendix").glob("*")]
    return sorted(set(found) - set(made))


def fill(text: str, results: Results, page: str) -> str:
    """A page with its tables and numbers.

    Args:
        text: the page, marks included.
        results: where they come from.
        page: its name, for messages.

    Raises:
        ProdError: a mark names nothing, has no end, or begins a line, where Markdown would end the paragraph.
    """

    def made(names: Mapping[str, Callable[[Results], str]], name: str) -> str:
        if name not in names:
            raise ProdError(f"{page}: expected one of {', '.join(sorted(names))}, got {name!r}: mend the mark")
        return names[name](results)

    if re.search(r"^\s*<!-- n:", text, re.MULTILINE):
        raise ProdError(f"{page}: expected a word before a number's mark, got one that begins a line: move the break")
    text, blocks = _BLOCK.subn(lambda m: f"<!-- made: {m['name']} -->\n\n{made(TABLES, m['name'])}\n<!-- end -->", text)
    text, numbers = _NUMBER.subn(lambda m: f"<!-- n: {m['name']} -->{made(NUMBERS, m['name'])}<!-- /n -->", text)
    if blocks != text.count("<!-- made: ") or numbers != text.count("<!-- n: "):
        raise ProdError(f"{page}: expected an end for every mark, got one without: add <!-- end --> or <!-- /n -->")
    return text
