"""The picture: all of the text in its columns, marked where it was marked; the one in the pages is of real output."""

from __future__ import annotations

import json
import re
from collections import Counter
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

from hypothesis import given
from hypothesis import strategies as st

from bench.report.before_after import ADVANCE, COLUMNS, LEADING, MARGIN, before_after, draw
from prod_decode.blocklist.blocklist import Match
from prod_decode.command.generation import Generation
from tests import ROOT

SVG = "{http://www.w3.org/2000/svg}"


def drawn(without: list[list[str]], guarded: list[list[str]], rows: int = 99) -> Element:
    made = draw(
        {"about": "<what> it shows", "without": without, "guarded": guarded, "replaced": guarded[:1], "rows": rows}
    )
    root = ET.fromstring(made)
    assert root.findtext(f"{SVG}title") == "<what> it shows"
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg",
        "title",
        "style",
        "rect",
        "circle",
        "text",
    }
    assert not re.search(r"url\(|@import|//", root.findtext(f"{SVG}style") or "//")
    return root


def lines(root: Element, side: int) -> list[list[tuple[int, str, str]]]:
    """(column, text, style) of each line of a part, whose title stands above it."""
    found: dict[int, list[tuple[int, str, str]]] = {}
    half = -1
    for text in root.iter(f"{SVG}text"):
        half += text.get("class") == "head"
        if half == side and text.get("class") != "head":
            column = round((float(text.get("x", "nan")) - MARGIN) / ADVANCE)
            assert float(text.get("textLength", "nan")) == round(ADVANCE * len(text.text or ""), 1)
            at = int(text.get("y", "nan"))
            found.setdefault(at, []).append((column, text.text or "", text.get("class") or ""))
    assert all((y - min(found)) % LEADING == 0 for y in found)
    return [sorted(found[y]) for y in sorted(found)]


words = st.text(st.sampled_from([*"ab<&\"'()"]), min_size=1, max_size=70)


@given(st.lists(st.lists(words, min_size=1, max_size=3), min_size=1, max_size=4))
def test_all_of_a_text_is_drawn_in_its_columns(text: list[list[str]]) -> None:
    spans = [[word, "plain"] for line in text for word in [*line, "\n"]]
    shown = lines(drawn(spans, [["x", "plain"]]), 0)
    assert all(column + len(part) <= COLUMNS for line in shown for column, part, _ in line)
    assert "".join(part for line in shown for _, part, _ in line) == "".join(word for line in text for word in line)
    assert len(shown) == sum(-(-len("".join(line)) // COLUMNS) for line in text)


def test_halves_are_marked_and_cut() -> None:
    root = drawn(
        [["import os\n\tos.", "prompt"], ["system(", "prohibited"], ["c)\n1\n2\n3", "plain"]],
        [["os.", "prompt"], ["system", "refused"], ["popen", "instead"], ["(", "plain"]],
        rows=3,
    )
    assert lines(root, 0) == [
        [(0, "import os", "prompt")],
        [(0, "    os.", "prompt"), (7, "system(", "prohibited"), (14, "c)", "plain")],
        [(0, "...", "prompt")],
    ]
    assert lines(root, 1) == [
        [(0, "os.", "prompt"), (3, "system", "refused"), (9, "popen", "instead"), (14, "(", "plain")]
    ]
    assert lines(root, 2) == [[(0, "os.", "prompt")]]
    marked = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == "marked"]
    assert [(rect.get("x"), rect.get("width")) for rect in marked] == [
        (f"{MARGIN + 7 * ADVANCE:.1f}", f"{7 * ADVANCE:.1f}")
    ]


def test_a_place_that_begins_in_the_prompt_is_marked_whole() -> None:
    free = Generation("import os\nos.", ["sys", "tem(", "c)"], [None] * 3, Counter(), 1.0)
    guarded = Generation("import os\nos.", ["popen", "(", "c)"], [("system", ("x",)), None, None], Counter(), 1.0)
    replaced = Generation("import os\nos.", ["walk", "(", "c)"], [("system", ("x",)), None, None], Counter(), 1.0)
    matches = [Match(0, 6, "import"), Match(10, 20, "os.system(")]
    made = before_after("about", free, guarded, replaced, matches, 8)
    assert made == {
        "about": "about",
        "without": [["import os\n", "prompt"], ["os.system(", "prohibited"], ["c)", "plain"]],
        "guarded": [["import os\nos.", "prompt"], ["system", "refused"], ["popen", "instead"], ["(c)", "plain"]],
        "replaced": [["import os\nos.", "prompt"], ["system", "refused"], ["walk", "instead"], ["(c)", "plain"]],
        "rows": 8,
    }


def test_the_picture_of_the_pages_is_drawn_from_what_a_model_wrote() -> None:
    images = ROOT / "docs" / "images"
    picture = json.loads((images / "before-after.json").read_text())
    assert draw(picture) == (images / "before-after.svg").read_text()
    styles = [{style for _, style in picture[side]} for side in ("without", "guarded", "replaced")]
    assert "prohibited" in styles[0]
    for guarded in styles[1:]:
        assert {"refused", "instead"} <= guarded
        assert "prohibited" not in guarded
