"""Pages as a browser reads them, checked by two parsers: one of XML, which forgives nothing, and one of HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

PHRASING = {"a", "code", "del", "img", "ins", "mark", "strong", "span"}
ELEMENTS = PHRASING | {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section", "h1", "h2", "h3", "p"),
    *("ul", "li", "table", "thead", "tbody", "tr", "th", "td", "div", "figure", "figcaption", "pre", "svg", "path"),
}


class _Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.events: list[object] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.events.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.events.append(tag)

    def handle_data(self, data: str) -> None:
        self.events.append(data.replace("\r\n", "\n"))


def _expected(element: Element) -> list[object]:
    name = element.tag.lower()
    found: list[object] = [(name, {key.lower(): value for key, value in element.attrib.items()}), element.text or ""]
    for child in element:
        found += [*_expected(child), child.tail or ""]
    return [*found, name]


def _joined(events: list[object]) -> list[object]:
    """Neighbouring texts as one, empty ones left out."""
    found: list[object] = []
    for event in events:
        is_text = isinstance(event, str) and event not in ELEMENTS
        if is_text and found and isinstance(found[-1], list):
            found[-1][0] += event
        else:
            found.append([event] if is_text else event)
    return [event for event in found if event != [""]]


def parse(text: str) -> Element:
    """The `html` element of a page, which is valid, does nothing, and asks for nothing from outside."""
    assert text.startswith("<!DOCTYPE html>\n")
    root = ET.fromstring(text)
    seen = _Seen(text).events
    assert _joined(seen[seen.index(("html", {"lang": "en"})) :]) == _joined([*_expected(root), "\n"])
    everything = list(root.iter())
    assert {element.tag for element in everything} <= ELEMENTS
    assert [len(list(root.iter(name))) for name in ("title", "style", "h1", "main")] == [1, 1, 1, 1]
    assert not re.search(r"url\(|@import|expression|//", root.findtext("head/style") or "//")
    ids = [element.get("id") for element in everything if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in everything:
        assert not [name for name in element.attrib if name.startswith("on")]
        assert re.fullmatch(r"[\w.-]*", element.get("src") or "")
        link = element.get("href") or ""
        assert link in {f"#{name}" for name in ids} or re.fullmatch(r"[\w.-]*", link), link
        if element.tag in ("p", "h1", "h2", "h3", "code", "pre", "mark", "del", "ins"):
            assert {child.tag for child in element.iter()} <= PHRASING | {element.tag}, element.tag
        if element.tag == "img":
            assert element.get("alt")
    return root


def text_of(element: Element) -> str:
    return "".join(element.itertext())


def cells(table: Element) -> list[list[str]]:
    """A table's rows, its head the first."""
    return [[text_of(cell) for cell in row] for row in table.iter("tr")]
