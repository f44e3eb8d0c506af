"""Marked texts: nothing of the text is lost, and columns keep their width."""

from __future__ import annotations

import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from prod_decode.blocklist.blocklist import Match
from prod_decode.command.generation import Generation
from prod_decode.command.render import mark_bans, mark_prohibited, side_by_side, to_html, to_terminal

texts = st.text(alphabet="ab <&\n\t", max_size=30)


@given(texts, st.lists(st.tuples(st.integers(-5, 30), st.integers(0, 12)), max_size=5))
def test_marking_keeps_the_text_and_marks_what_matches_cover(text: str, places: list[tuple[int, int]]) -> None:
    matches = [Match(start, start + length, "x") for start, length in places]
    spans = mark_prohibited(text, matches)
    assert "".join(part for part, _ in spans) == text
    marked = [style == "prohibited" for part, style in spans for _ in part]
    assert marked == [any(start <= i < start + length for start, length in places) for i in range(len(text))]


def run(pieces: list[str], refused: dict[int, str]) -> Generation:
    replaced = [(refused[i], ("entry",)) if i in refused else None for i in range(len(pieces))]
    return Generation("prompt", pieces, replaced, Counter(), 1.0)


def test_a_refused_token_stands_before_what_came_instead() -> None:
    spans = mark_bans(run(["x = yaml.", "safe_", "load("], {1: "load(\n"}))
    assert spans == [("x = yaml.", "plain"), ("load(\\n", "refused"), ("safe_", "instead"), ("load(", "plain")]
    assert to_terminal(spans, color=False) == "x = yaml.[-load(\\n-]{+safe_+}load("
    assert re.sub(r"\x1b\[[0-9;]*m", "", to_terminal(spans, color=True)) == "x = yaml.load(\\nsafe_load("
    assert "\x1b[9;31mload(\\n\x1b[0m" in to_terminal(spans, color=True)


def test_html_escapes_everything() -> None:
    spans = mark_bans(run(["<b>", "&"], {1: "<script>"}))
    assert to_html(spans) == '&lt;b&gt;<del class="refused">&lt;script&gt;</del><ins class="instead">&amp;</ins>'


@given(texts, texts, st.booleans())
def test_columns_hold_both_texts_within_the_width(left: str, right: str, color: bool) -> None:
    page = side_by_side([[(left, "prohibited")], [(right, "refused")]], width=43, color=color)
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in page.split("\n")]
    if not (left or right):
        return
    assert all(len(row) <= 43 for row in rows)
    columns = ["".join(row[:20].rstrip() for row in rows), "".join(row[23:].rstrip() for row in rows)]
    for shown, text, brackets in zip(columns, (left, right), (">><<", "[--]"), strict=True):
        squeezed = "".join(text.split())
        expected = squeezed if color or not text else brackets[:2] + squeezed + brackets[2:]
        assert "".join(shown.split()) == expected
