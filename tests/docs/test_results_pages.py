"""The pages of results: what they show is what the records say, and a change on either side is noticed."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.metrics import Value
from prod_decode.errors import ProdError
from tests import ROOT

sys.path.append(str(ROOT / "docs"))
import generate
import results_data
import results_pages
import results_svg

QUESTIONS = sorted(page for page in (ROOT / "docs" / "results").glob("*.md") if page.name != "index.md")
NAMES = [page.stem for page in QUESTIONS]


@pytest.fixture(scope="module")
def made() -> dict[Path, str]:
    return results_pages.make(ROOT)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "results", tmp_path / "results")
    return tmp_path


def differing(root: Path) -> list[str]:
    found = results_pages.make(root)
    return sorted(path.name for path, text in found.items() if path.read_text() != text)


def test_everything_is_what_the_records_make_of_it(made: dict[Path, str]) -> None:
    assert [path.name for path, text in made.items() if not path.exists() or path.read_text() != text] == []
    assert results_pages.leftovers(ROOT, made) == []


def test_a_number_that_was_changed_by_hand_is_noticed(copy: Path) -> None:
    page = copy / "docs" / "results" / "near-copies.md"
    text = page.read_text()
    assert "<!-- n: mask-bleu -->0.54<!-- /n -->" in text
    page.write_text(text.replace("<!-- n: mask-bleu -->0.54", "<!-- n: mask-bleu -->0.45"))
    assert differing(copy) == ["near-copies.md"]


def test_a_cell_that_was_changed_is_noticed(copy: Path) -> None:
    path = copy / "results" / "qwen-replaced" / "cells.jsonl"
    cells = [json.loads(line) for line in path.read_text().splitlines()]
    mine = next(c for c in cells if (c["key"]["task"], c["key"]["method"]) == ("deprecated", "decode-replace"))
    assert mine["metrics"]["replacement"]["value"] == 38 / 54
    mine["metrics"]["replacement"]["value"] = 0.5
    path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    assert differing(copy) == [
        "qwen-replaced.md",
        "what-comes-instead.md",
        "what-comes-instead.svg",
    ]


def test_the_check_names_what_is_out_of_date(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "HERE", copy / "docs")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 0
    figure = copy / "docs" / "results" / "figures" / "how-fast.svg"
    figure.write_text(figure.read_text().replace("10 us", "11 us"))
    (copy / "docs" / "results" / "appendix" / "old-run.md").write_text("# old-run\n")
    assert generate.main() == 1
    assert capsys.readouterr().err == (
        "docs/results/figures/how-fast.svg is not what the sources make of it: run `make docs`\n"
        "docs/results/appendix/old-run.md is not what the sources make of it: run `make docs`\n"
    )
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    assert differing(copy) == []
    assert not (copy / "docs" / "results" / "appendix" / "old-run.md").exists()


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> results_data.Results:
    monkeypatch.setattr(results_pages, "NUMBERS", {"one": lambda _: "0.97"})
    monkeypatch.setattr(results_pages, "TABLES", {"two": lambda _: results_data.table(("a", "b"), [("1", "2")])})
    return results_data.Results(ROOT / "results")


def test_marks_are_filled(results: results_data.Results) -> None:
    before = "# T\n\nIt is <!-- n: one -->old<!-- /n -->.\n\n<!-- made: two -->\nold\n\nolder\n<!-- end -->\n\nEnd.\n"
    after = (
        "# T\n\nIt is <!-- n: one -->0.97<!-- /n -->.\n\n"
        "<!-- made: two -->\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n<!-- end -->\n\nEnd.\n"
    )
    assert results_pages.fill(before, results, "t.md") == after
    assert results_pages.fill(after, results, "t.md") == after


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("It is <!-- n: three -->1<!-- /n -->.", "t.md: expected one of one, got 'three': mend the mark"),
        ("<!-- made: one -->\n<!-- end -->", "t.md: expected one of two, got 'one': mend the mark"),
        ("It is\n<!-- n: one -->1<!-- /n -->.", "expected a word before a number's mark, got one that begins a line"),
        ("It is <!-- n: one -->1.", "t.md: expected an end for every mark, got one without"),
        (
            "It is <!-- n: one -->1, not <!-- n: one -->2<!-- /n -->.",
            "t.md: expected an end for every mark, got one without",
        ),
        (
            "<!-- made: two -->\n\nWords.\n\n<!-- made: two -->\n<!-- end -->",
            "t.md: expected an end for every mark, got one without",
        ),
        ("<!-- made: two -->\n| a |", "t.md: expected an end for every mark, got one without"),
    ],
)
def test_a_mark_that_is_wrong_is_refused(results: results_data.Results, text: str, message: str) -> None:
    with pytest.raises(ProdError, match=re.escape(message)):
        results_pages.fill(text, results, "t.md")


def test_what_was_not_measured_is_refused() -> None:
    results = results_data.Results(ROOT / "results")
    with pytest.raises(ProdError, match=r"results/smollm2-small: expected verbatim of flat on copyright \(none\)"):
        results.value("smollm2-small", "copyright", "flat", "verbatim")
    with pytest.raises(ProdError, match=r"smollm2.jsonl: expected 'mask, 7 patterns' of prod_decode, got none"):
        results.timed("mask, 7 patterns")


def test_intervals_have_a_leading_zero_and_a_reason_where_there_is_no_number() -> None:
    assert results_data.interval(Value(0.5, 0.25, 1.0, 20, "worse")) == "0.50 [0.25, 1.00]"
    assert results_data.interval(Value(57.4, 56.0, 58.6, 20, "worse"), 0) == "57 [56, 59]"
    assert results_data.interval(Value(None, None, None, 20, "worse", "infinite")) == "infinite"
    assert results_data.interval(None) == ""


def test_the_papers_ratios_are_those_of_its_figures(made: dict[Path, str]) -> None:
    page = made[ROOT / "docs" / "results" / "what-unlearning-costs.md"]
    assert "| the paper: PROD over GA, NPO, DPO, FLAT; HumanEval, 7B | 0.75 | 0.53 | 0.95 |" in page
    # By hand: `prod` (0.8948, 0.70) and (0.8889, 0.85) beat both points of FLAT, (0.8146, 0.20) and (0.7409, 0.65), and
    # the first of DPO, (0.7863, 0.75), but not (0.7666, 0.90) nor any of GA and NPO, whose forget quality is 1: 3 of 8.
    assert "| `prod` over the same four; agreement, 135M | 0.00 | 0.50 | 0.38 |" in page


@pytest.mark.parametrize("page", QUESTIONS, ids=NAMES)
def test_a_page_answers_one_question(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= 110
    assert text.splitlines()[2].startswith("**")  # the answer
    assert re.findall(r"!\[[^]]+\]\((.+?)\)", text) == [f"figures/{page.stem}.svg"]
    assert len(re.findall(r"^\|[ -|]+\|$\n", text, re.MULTILINE)) > 0
    assert text.count("<!-- made: ") == 1
    assert len([line for line in text.splitlines() if line.startswith("|")]) <= 2 + 8
    assert "\n## How this was measured\n\n    " in text
    assert "](appendix/" in text


def test_every_name_is_used(made: dict[Path, str]) -> None:
    text = "\n".join(text for path, text in made.items() if path.suffix == ".md")
    assert set(re.findall(r"<!-- n: ([\w-]+) -->", text)) == set(results_pages.NUMBERS)
    assert set(re.findall(r"<!-- made: ([\w-]+) -->", text)) == set(results_pages.TABLES)
    assert set(results_pages.FIGURES) == set(NAMES)


def texts(svg: str) -> Iterator[tuple[str, float, float]]:
    """Each text with where it begins and ends, if a letter is no wider than 0.6 of its height."""
    for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        style, text = node.get("class", ""), node.text or ""
        width = len(text) * (13 if "small" in style else 15) * 0.6
        x = float(node.get("x", "nan"))
        left = x - width if "end" in style else x - width / 2 if "mid" in style else x
        yield text, left, left + width


@pytest.mark.parametrize("name", NAMES)
def test_no_text_of_a_figure_is_cut(made: dict[Path, str], name: str) -> None:
    svg = made[ROOT / "docs" / "results" / "figures" / f"{name}.svg"]
    assert [text for text, left, right in texts(svg) if left < 0 or right > results_svg.WIDTH] == []
    assert "prefers-color-scheme:dark" in svg


def test_an_axis_places_values() -> None:
    plain = results_svg.Axis("x", 0.5, 1.0, (0.5, 1.0))
    assert [plain.place(x) for x in (0.5, 0.75, 1.0)] == [0.0, 0.5, 1.0]
    log = results_svg.Axis("x", 10.0, 100_000.0, (10.0,), log=True)
    assert [log.place(x) for x in (10.0, 1_000.0, 100_000.0)] == [0.0, 0.5, 1.0]
    assert math.isclose(log.place(100.0), 0.25)


def test_a_bar_is_as_long_as_its_value() -> None:
    svg = results_svg.bars("t", [results_svg.Group("", [results_svg.Bar("b", 0.5, 0.25, 0.75, 0)])], "axis")
    nodes = list(ET.fromstring(svg))
    bar = next(node for node in nodes if node.get("class") == "f0")
    assert (bar.get("x"), bar.get("width")) == ("16.0", "185.0")  # half of 370
    whisker = next(node for node in nodes if node.get("class") == "whisker")
    assert [point.split(",")[0] for point in (whisker.get("points") or "").split()] == ["108.5", "293.5"]
