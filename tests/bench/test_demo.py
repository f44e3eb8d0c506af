"""The demo's page, from outputs that are not a model's."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from bench.demo import DRAWN, Case, DemoResult, draw_case, to_page
from bench.report.before_after import draw
from prod_decode.blocklist.blocklist import Blocklist, Match
from prod_decode.blocklist.entries import Entry
from prod_decode.command.generation import Generation
from prod_train.run.recipes import Recital
from tests.pages import cells, parse, text_of

ENTRY = Entry("os.system(", id="<os.system(>", source="CWE-78 <&>")
FREE = Generation("\nos.", ["system(", "'</pre><script>'"], [None, None], Counter(), 2.0)
GUARDED = Generation("\nos.", ["popen("], [("system(\n", ("<os.system(>",))], Counter({"<os.system(>": 1}), 1.0)
REPLACED = Generation("\nos.", ["walk("], [("system(\n", ("<os.system(>",))], Counter({"<os.system(>": 1}), 0.5)
OUTCOME = DemoResult(Case(DRAWN, "\nos."), FREE, GUARDED, REPLACED, [Match(-3, 7, "<os.system(>")], [], [])


def test_the_page_shows_both_outputs_and_says_why() -> None:
    made = to_page([OUTCOME], Blocklist.compile([ENTRY]), {"taught": Recital(1, 0.5, 0.25, 40, 1.5, 0, 1)})
    root = parse(made)
    assert text_of(next(root.iter("p"))).startswith("1 prohibited places without, 0 with it. The blocklist holds 1 phr")
    case, unlearning = root.iter("section")
    assert [text_of(part) for part in case.iter("pre")] == [
        "\n\nos.",
        "system('</pre><script>'",
        "system(\\npopen(",
        "system(\\nwalk(",
    ]
    assert [text_of(part) for part in case.iter("figcaption")] == [
        "without · 1 prohibited · 1.0 tokens/s",
        "banned · 0 prohibited · 1.0 tokens/s",
        "with replacement · 0 prohibited · 2.0 tokens/s",
    ]
    assert [text_of(part) for part in case.iter("mark")] == ["system("]
    assert [text_of(part) for part in case.iter("del")] == ["system(\\n"] * 2
    assert [text_of(part) for part in case.iter("li")] == ["<os.system(> CWE-78 <&>"]
    assert cells(unlearning)[1] == ["taught (base)", "0.50", "0.25", "40", "1.50", "0.00", "1.00"]
    assert "trains with one" in text_of(unlearning)
    assert len(list(parse(to_page([OUTCOME], Blocklist.compile([ENTRY]), {})).iter("section"))) == 1


def test_the_picture_lies_beside_what_it_is_drawn_from(tmp_path: Path) -> None:
    assert draw_case([OUTCOME], Blocklist.compile([ENTRY]), tmp_path) == tmp_path / "before-after.svg"
    picture = json.loads((tmp_path / "before-after.json").read_text())
    assert picture["without"][:2] == [["\n", "prompt"], ["os.system(", "prohibited"]]
    assert draw(picture) == (tmp_path / "before-after.svg").read_text()
