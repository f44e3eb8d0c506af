"""The page of the Python API: what a docstring becomes, and that nothing public is missing."""

from __future__ import annotations

import ast
import importlib.util
import re
from types import ModuleType

import pytest

import prod_decode
import prod_train
from tests import ROOT


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api_pages", ROOT / "docs" / "api_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCE = '''
class Guard(Base):
    """Guards.

    The plain loop::

        for row in rows:
            pass

    Attributes:
        fired: how often, by entry.
    """

    def __init__(self, source: int, *others: str, top_p: float = 1.0, _kept: bool = False) -> None:
        """Check.

        Args:
            source: [B, T], what is
                guarded: - and more.
            *others: names.

        Behind the arguments.

        Raises:
            ProdError: none.
        """

    @classmethod
    def load(cls, path: str) -> Guard:
        """A guard.

        Returns:
            One, or
            none.
        """

    def _hidden(self) -> None:
        """Not shown."""

    def undocumented(self) -> None: ...
'''

MARKDOWN = """
### `a.Guard`

```python
class Guard(source: int, *others: str, top_p: float = 1.0)
```

Guards.

The plain loop:

    for row in rows:
        pass

**Attributes**

- `fired`: how often, by entry.

**Construction**

Check.

**Arguments**

- `source`: [B, T], what is guarded: - and more.
- `*others`: names.

Behind the arguments.

**Errors**

- `ProdError`: none.

#### `a.Guard.load`

```python
@classmethod
def load(path: str) -> Guard
```

A guard.

**Returns** One, or none.
"""


def test_a_class_becomes_markdown(pages: ModuleType) -> None:
    node = ast.parse(SOURCE).body[0]
    found = re.sub(r"\n{3,}", "\n\n", "\n".join(pages._described(node, "a.Guard")))
    assert found == MARKDOWN


def test_a_record_shows_its_fields(pages: ModuleType) -> None:
    fields = "    ids: list[int] = field(default_factory=list)\n    cost: int = 3\n"
    node = ast.parse(f"@dataclass(frozen=True)\nclass Row:\n{fields}").body[0]
    assert "class Row(ids: list[int] = list(), cost: int = 3)\n" in "\n".join(pages._described(node, "Row"))


def test_no_line_begins_like_another_item(pages: ModuleType) -> None:
    """A dash that lands at the beginning of a line would be an item of its own."""
    text = "- `x`: " + "word " * 22 + "end - 2. tail"
    assert pages._wrapped(text) == "- `x`: " + "word " * 21 + "word\n  end - 2. tail"


def test_every_public_name_has_its_place(pages: ModuleType) -> None:
    page = pages.page()
    for package, prefix in ((prod_decode, ""), (prod_train, "prod_train.")):
        for name in package.__all__:
            if not name.startswith("__"):
                assert f"\n### `{prefix}{name}`\n" in page
    assert max(map(len, page.splitlines())) <= 120


def test_a_name_that_is_not_there_is_told(pages: ModuleType) -> None:
    with pytest.raises(LookupError, match=r"prod_decode\.hf: expected a class or function Bans, got none"):
        pages._definition("prod_decode.hf", "Bans")
