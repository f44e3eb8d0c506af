"""Hooks of MkDocs: the order of the pages, and links that lead out of `docs`.

Links in pages lead to files, as on GitHub. What lies outside of `docs` becomes a part of the site: the files in
`OUTSIDE` as pages, any other file as it is, and a directory as a list of its files. So the site is whole without a
repository's address.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

# As a reader wants them: what it does, why, the evidence, and then what is looked up.
SECTIONS = ("guide", "concepts", "results", "reference", "design", "project")
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
# What browsers show; other files are given them as text, which they would download otherwise.
_SHOWN = (".html", ".json", ".pdf", ".png", ".svg", ".txt")

_CODE_OR_LINK = re.compile(r"^```.*?^```|`[^`\n]*`|(?<=\]\()([^)\s]+)(?=\))", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside, and order all of them as the indexes link to them."""
    for source, uri in OUTSIDE.items():
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    pages = [file.src_uri for file in files.documentation_pages()]
    sections = [{name.capitalize(): _ordered(name, pages)} for name in SECTIONS]
    config.nav = [{"Home": "index.md"}, *(section for section in sections if all(section.values()))]
    return files


def _ordered(folder: str, pages: Sequence[str]) -> list[Any]:
    """The pages in a folder, as its index and that of the site link to them; then its folders, each with theirs."""
    inside = sorted(PurePosixPath(uri) for uri in pages if uri.startswith(f"{folder}/"))
    order = [f"{folder}/index.md", *_links(f"{folder}/index.md"), *_links("index.md")]
    here = [str(path) for path in inside if str(path.parent) == folder]
    here.sort(key=lambda uri: order.index(uri) if uri in order else len(order))
    below = dict.fromkeys(path.relative_to(folder).parts[0] for path in inside if str(path.parent) != folder)
    return [*here, *({name.capitalize(): _ordered(f"{folder}/{name}", pages)} for name in below)]


def _links(index: str) -> Iterator[str]:
    """The pages that a page links to, as paths below `docs`."""
    page = DOCS / index
    if page.is_file():
        for found in _CODE_OR_LINK.finditer(page.read_text(encoding="utf-8")):
            target = (page.parent / (found[1] or "").partition("#")[0]).resolve()
            if found[1] and target.is_relative_to(DOCS):
                yield target.relative_to(DOCS).as_posix()


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that lead out of `docs` into links within the site."""
    here = Path(page.file.abs_src_path or "").resolve().parent

    def link(found: re.Match[str]) -> str:
        path, mark, anchor = (found[1] or "").partition("#")
        target = (here / path).resolve()
        is_outside = path and ":" not in path and target.exists() and target.is_relative_to(ROOT)
        if not is_outside or (here.is_relative_to(DOCS) and files.get_file_from_path(_within(target)) is not None):
            return found[0]
        uri = _publish(target, config, files)
        return quote(os.path.relpath(uri, Path(page.file.src_uri).parent)) + mark + anchor

    return _CODE_OR_LINK.sub(link, markdown)


def _within(target: Path) -> str:
    return target.relative_to(DOCS).as_posix() if target.is_relative_to(DOCS) else ""


def _publish(target: Path, config: MkDocsConfig, files: Files) -> str:
    """Where a file or directory of the repository is in the site, as a path below `docs`; it is added if need be."""
    name = target.relative_to(ROOT).as_posix()
    if name in OUTSIDE:
        return OUTSIDE[name]
    for within in filter(None, (_within(target), _within(target / "index.md"))):
        if files.get_file_from_path(within) is not None:
            return within
    uri = f"files/{name}"
    if target.is_dir():
        uri += "/index.html"
    elif target.suffix not in _SHOWN:
        uri += ".txt"
    if files.get_file_from_path(uri) is None:
        if target.is_dir():
            added = File.generated(config, uri, content=_listing(target, uri, config, files))
        else:
            added = File.generated(config, uri, abs_src_path=str(target))
        files.append(added)
    return uri


def _listing(folder: Path, uri: str, config: MkDocsConfig, files: Files) -> str:
    """A page of the files that lie in a directory, not in those below it."""
    title = html.escape(folder.relative_to(ROOT).as_posix())
    rows = [
        '<!doctype html>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">',
        '<meta name="color-scheme" content="light dark">\n<style>body { font-family: system-ui; margin: 2em }</style>',
        f"<title>{title}</title>\n<h1>{title}</h1>\n<ul>",
    ]
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        link = quote(os.path.relpath(_publish(path, config, files), Path(uri).parent))
        rows.append(f'<li><a href="{link}">{html.escape(path.name)}</a>, {path.stat().st_size:,} bytes</li>')
    return "\n".join([*rows, "</ul>", ""])
