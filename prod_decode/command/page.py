"""One look for every HTML page that is written: its frame and stylesheet, and elements in which all text is escaped.

Pages show code that nobody vouches for. So text becomes markup in one place, `element`, and whatever is not `Html` is
escaped there. A page is HTML and well-formed XML at once: an XML parser, which forgives nothing, can check it.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence

from prod_decode.errors import ProdError, printable
from prod_decode.storage.files import write_whole
from prod_decode.version import __version__

_VOID = ("img", "meta")


class Html(str):
    """Markup, in which all text is escaped."""

    __slots__ = ()


def element(name: str, /, *content: str, **attributes: str) -> Html:
    """An element; whatever of its content is no `Html` is text.

    Args:
        name: of the element.
        content: what stands in it, one after the other.
        attributes: by name; `class_` stands for `class`, `data_n` for `data-n`.
    """
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{given}/>")
    inside = join(*content)
    # HTML drops a line end at the very beginning of this element.
    first = "\n" if name == "pre" and inside.startswith(("\n", "\r")) else ""
    return Html(f"<{name}{given}>{first}{inside}</{name}>")


def _attribute(value: str) -> str:
    """XML takes what is no space, but white, for a space here."""
    return html.escape(printable(value)).replace("\n", "&#10;").replace("\r", "&#13;").replace("\t", "&#9;")


def join(*content: str, between: str = "") -> Html:
    """Several parts as one; whatever is no `Html` is text, in which characters that cannot be printed are escaped."""
    parts = (part if isinstance(part, Html) else html.escape(printable(part)) for part in (between, *content))
    separator, *rest = parts
    return Html(separator.join(rest))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, heads: int = 0, numeric: bool = False) -> Html:
    """A table that scrolls where the screen is narrower than it; a line end in a cell stays one.

    Args:
        head: one cell a column.
        rows: of as many cells.
        heads: so many cells at the beginning of each row say what the row is.
        numeric: no cell is wrapped; all but the heads are to the right.
    """
    kinds = ["label"] * heads + ["value"] * (len(head) - heads)
    titles = (element("th", cell, scope="col", class_=kind) for cell, kind in zip(head, kinds, strict=True))
    top = element("tr", *titles)
    body = (
        element(
            "tr",
            *(element("th", cell, scope="row") if at < heads else element("td", cell) for at, cell in enumerate(row)),
        )
        for row in rows
    )
    parts = element("thead", top), Html("\n"), element("tbody", join(*body, between=Html("\n")))
    return element("div", element("table", *parts, **{"class_": "numeric"} if numeric else {}), class_="scroll")


def warning(*content: str) -> Html:
    """A paragraph that must not be missed."""
    return element("p", *content, class_="warning")


def beginning(command: str) -> bytes:
    """How each page of a command begins, by which it is known again; a command is a few words."""
    return f"<!DOCTYPE html>\n<!-- made by {command} -->\n".encode()


def page(command: str, title: str, lead: str, *sections: Html) -> str:
    """A whole page, which needs nothing from outside.

    Args:
        command: what made it, such as `prod-decode scan`.
        title: its heading, and its title in the browser.
        lead: what it says in one paragraph.
        sections: what follows.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Html("\n"),
        element("title", title),
        Html(f"\n<style>{_STYLE}</style>"),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("p", lead)),
        Html("\n"),
        element("main", join(*sections, between=Html("\n"))),
        Html("\n"),
        element("footer", "Made by ", element("code", command), f" of prod-code-unlearning {__version__}."),
    )
    return beginning(command).decode() + element("html", head, Html("\n"), body, lang="en") + "\n"


def write_page(path: str | os.PathLike[str], text: str) -> None:
    """Write a page, as a whole or not at all.

    Raises:
        ProdError: it cannot be written.
    """
    try:
        with write_whole(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise ProdError(f"cannot write {path}: {error.strerror}") from None


# No `&` and no `<`: this stands in an XML document as it is.
_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1f2328; --soft: #59636e; --panel: #f6f8fa; --line: #d1d9e0;
  --red: #b3261e; --green: #1a7f37; --blue: #0969da; --marked: #b3261e; --on-marked: #fff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0d1117; --ink: #e6edf3; --soft: #9198a1; --panel: #151b23; --line: #3d444d;
    --red: #ff8a80; --green: #56d364; --blue: #58a6ff; --marked: #b3261e; --on-marked: #fff;
  }
}
* { box-sizing: border-box; }
body {
  max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem; overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { max-width: 48rem; margin: .5rem 0; }
a { color: var(--blue); }
section { margin-top: 1.5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
footer { margin-top: 2rem; font-size: 13px; color: var(--soft); }
.warning { border-left: 4px solid var(--red); padding-left: .75rem; }
pre, code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; tab-size: 4; }
h2 code { font-size: 1rem; }
pre { margin: 0; padding: .75rem; white-space: pre-wrap; }
figure { margin: .75rem 0; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
figure, pre { background: var(--panel); }
figcaption { font-size: 13px; padding: .4rem .75rem; border-bottom: 1px solid var(--line); color: var(--soft); }
figcaption code { color: var(--ink); }
ul { margin: .5rem 0; padding-left: 1.25rem; font-size: 14px; }
figcaption ul { margin: 0; padding: 0; list-style: none; font-size: 13px; }
.prompt { border-left: 3px solid var(--line); max-height: 14rem; overflow: auto; }
.pair, .triple { display: grid; gap: 1rem; margin: .75rem 0; }
.pair { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.triple { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.pair figure, .triple figure { margin: 0; }
@media (max-width: 45rem) { .pair, .triple { grid-template-columns: minmax(0, 1fr); } }
mark { background: var(--marked); color: var(--on-marked); border-radius: 2px; }
del { color: var(--red); }
ins { color: var(--green); font-weight: 600; text-decoration: underline dotted; text-underline-offset: 3px; }
.lines span { display: block; position: relative; padding-left: calc(var(--digits) * 1ch + 1.5ch); min-height: 1.5em; }
.lines span::before {
  content: attr(data-n); position: absolute; left: 0; width: calc(var(--digits) * 1ch); text-align: right;
  color: var(--soft);
}
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .75rem .3rem 0; text-align: left; vertical-align: top; }
th, td { white-space: pre-line; min-width: 4.5rem; }
thead th { color: var(--soft); font-weight: 600; overflow-wrap: normal; }
tbody th { font-weight: normal; min-width: 6.75rem; }
.numeric { font-size: 13px; overflow-wrap: normal; }
.numeric th, .numeric td { white-space: pre; min-width: 0; }
.numeric td, .numeric .value { text-align: right; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1rem; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
.bar { height: .4rem; min-width: 6rem; border-radius: 2px; background: var(--line); overflow: hidden; }
.bar span { display: block; height: 100%; background: var(--blue); }
.bar .bad { background: var(--red); }
.chart { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 0 .5rem; padding: .75rem; }
.chart svg { width: 100%; height: 12rem; overflow: visible; border: solid var(--soft); border-width: 0 0 1px 1px; }
.chart div { display: flex; justify-content: space-between; font-size: 13px; color: var(--soft); }
.chart .values { flex-direction: column; text-align: right; }
.chart .steps { grid-column: 2; }
.chart path { fill: none; stroke: var(--blue); stroke-width: 1.5px; vector-effect: non-scaling-stroke; }
.chart .means { stroke: var(--ink); stroke-width: 8px; stroke-linecap: round; }
"""
