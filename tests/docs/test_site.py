"""The site: pages in the order of the indexes, and links that lead out of `docs`.

`make docs` installs what these tests need.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import ROOT

pytest.importorskip("material")


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    return module


@pytest.fixture
def config(tmp_path: Path) -> Any:
    from mkdocs.config import load_config

    for name in ("docs/guide", "docs/results/more", "results/run"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "results/run/cells.jsonl"):
        (tmp_path / name).write_text("[c](CONTRIBUTING.md), [p](docs/guide/a.md#x), [no](nowhere.md)")
    (tmp_path / "results" / "run" / "a b.png").write_bytes(b"")
    for name in ("index.md", "guide/a.md", "guide/b.md", "guide/z.md", "results/index.md", "results/more/m.md"):
        (tmp_path / "docs" / name).write_text("[z](guide/z.md)" if name == "index.md" else "")
    found = load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(tmp_path / "docs"), site_dir=str(tmp_path / "site"))
    found.plugins._current_plugin = None
    return found


def files_of(hooks: ModuleType, config: Any) -> Any:
    from mkdocs.structure.files import get_files

    return hooks.on_files(get_files(config), config)


def rewritten(hooks: ModuleType, config: Any, page: str, markdown: str) -> tuple[str, Any]:
    from mkdocs.structure.pages import Page

    files = files_of(hooks, config)
    file = files.get_file_from_path(page)
    return hooks.on_page_markdown(markdown, Page(None, file, config), config, files), files


def test_pages_come_as_the_index_links_to_them(hooks: ModuleType, config: Any) -> None:
    files_of(hooks, config)
    assert config.nav == [
        {"Home": "index.md"},
        {"Guide": ["guide/z.md", "guide/a.md", "guide/b.md"]},
        {"Results": ["results/index.md", {"More": ["results/more/m.md"]}]},
        {"Project": ["project/changelog.md", "project/contributing.md", "project/security.md"]},
    ]


def test_a_link_out_of_docs_leads_to_a_copy(hooks: ModuleType, config: Any) -> None:
    text = "[c](../../results/run/cells.jsonl) ![p](../../results/run/) `[x](../../README.md)` [r](../../README.md#top)"
    found, files = rewritten(hooks, config, "guide/a.md", text)
    assert found == (
        "[c](../files/results/run/cells.jsonl.txt) ![p](../files/results/run/index.html) "
        "`[x](../../README.md)` [r](../index.md#top)"
    )
    listing = files.get_file_from_path("files/results/run/index.html").content_string
    assert '<li><a href="cells.jsonl.txt">cells.jsonl</a>, 62 bytes</li>' in listing
    assert '<li><a href="a%20b.png">a b.png</a>, 0 bytes</li>' in listing


def test_links_within_docs_and_to_nothing_stay(hooks: ModuleType, config: Any) -> None:
    """What leads nowhere is for MkDocs to report."""
    text = "[a](b.md#x) [b](../results/index.md) [c](../../nothing.md) [d](https://example.org/a.md) [e](#here)"
    found, _ = rewritten(hooks, config, "guide/a.md", text)
    assert found == text


def test_a_link_to_a_section_leads_to_its_index(hooks: ModuleType, config: Any) -> None:
    found, _ = rewritten(hooks, config, "guide/a.md", "[b](../results/)")
    assert found == "[b](../results/index.md)"


def test_pages_from_outside_link_into_the_site(hooks: ModuleType, config: Any) -> None:
    text = (Path(config.docs_dir).parent / "CHANGELOG.md").read_text()
    found, _ = rewritten(hooks, config, "project/changelog.md", text)
    assert found == "[c](contributing.md), [p](../guide/a.md#x), [no](nowhere.md)"
