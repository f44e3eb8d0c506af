"""The page of a scan: each place with its entry, and nothing written over that is no such page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from bisect import bisect_left
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.blocklist.blocklist import Blocklist, Match
from prod_decode.blocklist.entries import Entry
from prod_decode.cli import main
from prod_decode.command import scanning
from prod_decode.command.page import page
from prod_decode.command.scanning import excerpts
from prod_decode.text.normalize import Normalization
from tests import ROOT
from tests.pages import cells, parse, text_of

NO_PAGE = "it is there and is no page of a scan; name another, or remove it first"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    entries = [Entry("yaml.load(", source="CWE-502 <&>"), Entry("<script>"), Entry("pickle.load(", id="p\x1b[m")]
    Blocklist.compile(entries).save("block.prod")
    Path("code").mkdir()
    return tmp_path


def scanned(*arguments: str, status: int = 1) -> Element:
    assert main(["scan", "block.prod", *arguments, "--html", "out.html"]) == status
    return parse(Path("out.html").read_text())


@pytest.mark.usefixtures("here")
def test_a_page_has_each_place_file_by_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("code/<script>&.py").write_text("import yaml\n# é </pre><script>\nx = yaml . load (\n  y)\n" + "a\n" * 9)
    Path("code/b.py").write_bytes(b"a\r\n\r\npickle.load(yaml.load(\r\n")
    root = scanned("code")
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 4
    assert printed.err == "prohibited places: 4, files read: 2\nthe page: out.html\n"
    assert text_of(next(root.iter("h1"))) == "4 prohibited places in 2 of 2 files"
    entries, files = (cells(table) for table in root.iter("table"))
    assert entries == [
        ["entry", "places", "source"],
        ["yaml.load(", "2", "CWE-502 <&>"],
        ["<script>", "1", ""],
        ["p\\x1b[m", "1", ""],
    ]
    assert files == [["file", "places"], ["code/<script>&.py", "2"], ["code/b.py", "2"]]
    found = [
        [[text_of(part) for part in section.iter(name)] for name in ("h2", "li", "mark", "pre")]
        for section in root.iter("section")
    ]
    assert found == [
        [
            ["code/<script>&.py"],
            ["2:11 <script>", "3:5 yaml.load("],
            ["<script>", "yaml . load ("],
            ["import yaml\n# é </pre><script>\nx = yaml . load (\n  y)\na\n"],
        ],
        [
            ["code/b.py"],
            ["3:1 p\\x1b[m", "3:13 yaml.load("],
            ["pickle.load(yaml.load("],
            ["a\n\npickle.load(yaml.load(\n"],
        ],
    ]
    numbers = [[line.get("data-n") for line in pre] for pre in root.iter("pre")]
    assert numbers == [["1", "2", "3", "4", "5"], ["1", "2", "3"]]
    assert [link.get("href") for link in root.iter("a")] == [f"#{part.get('id')}" for part in root.iter("section")]


@pytest.mark.usefixtures("here")
def test_a_page_says_what_was_not_covered_and_that_nothing_was_found() -> None:
    Path("code/a.py").write_text("x = 1\n")
    root = scanned("code", status=0)
    assert text_of(next(root.iter("h1"))) == "Nothing prohibited in 1 file"
    assert not list(root.iter("table"))
    root = scanned("code", "no<ne", status=3)
    (item,) = map(text_of, root.iter("li"))
    assert item == "cannot read no<ne: No such file or directory: check the name"
    assert "Not covered: 1" in text_of(root)


lines = st.lists(st.text("ab", max_size=4), max_size=40).map("\n".join)


@given(lines, st.data())
def test_each_place_is_in_one_excerpt_with_lines_around_it(text: str, data: st.DataObject) -> None:
    ends = [at for at, character in enumerate(text) if character == "\n"]
    starts = data.draw(st.lists(st.integers(0, max(0, len(text) - 1)), max_size=5))
    matches = [Match(at, min(len(text), at + data.draw(st.integers(1, 9))), "x") for at in starts]
    found = excerpts(text, ends, matches)
    assert sorted(match for excerpt in found for match in excerpt.matches) == sorted(matches)
    count = text.count("\n") + (not text.endswith("\n"))
    shown = [line for excerpt in found for line in range(excerpt.first, excerpt.last + 1)]
    assert shown == sorted(set(shown))
    wanted = {
        line
        for match in matches
        for line in range(bisect_left(ends, match.start) - 2, bisect_left(ends, max(match.start, match.end - 1)) + 3)
        if 0 <= line < count
    }
    assert set(shown) == wanted
    assert all(later.first > earlier.last + 1 for earlier, later in pairwise(found))


@pytest.mark.parametrize(
    ("places", "shown"),
    [
        ([(3, 4), (8, 9)], [(1, 10)]),  # what touches is one
        ([(3, 4), (9, 10)], [(1, 5), (7, 11)]),
        ([(0, 9), (1, 2)], [(0, 10)]),  # one in the other
        ([(18, 20)], [(16, 19)]),
    ],
)
def test_excerpts_that_touch_are_one(places: list[tuple[int, int]], shown: list[tuple[int, int]]) -> None:
    """Of 20 lines of a character each, which stands at twice the number of its line."""
    matches = [Match(2 * first, 2 * end - 1, "x") for first, end in places]
    found = excerpts("a\n" * 20, list(range(1, 40, 2)), matches)
    assert [(excerpt.first, excerpt.last) for excerpt in found] == shown


@pytest.mark.usefixtures("here")
def test_long_lines_and_long_excerpts_are_cut_around_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "MOST_LINES", 40)
    monkeypatch.setattr(scanning, "MOST_NAMED", 12)
    Path("code/a.js").write_text("a" * 5000 + " yaml.load(" + "b" * 5000 + " <script>" + "c" * 5000)
    Path("code/b.py").write_text("".join(f"{at} = yaml.load(\n" for at in range(1, 121)))
    root = scanned("code")
    (line,), shown = ([text_of(part) for part in pre] for pre in root.iter("pre"))
    assert len(line) < 500
    assert line.startswith("..." + "a" * 116 + " yaml.load(" + "b" * 87 + "...")
    assert line.endswith("b <script>" + "c" * 87 + "..." + "c" * 30 + "\n")
    left_out = "... 80 lines: `prod-decode scan --json` has every place ...\n"
    assert shown[18:22] == ["19 = yaml.load(\n", "20 = yaml.load(\n", left_out, "101 = yaml.load(\n"]
    assert len(shown) == 41
    assert "12:6 and 108 more yaml.load(" in text_of(root)


@pytest.mark.usefixtures("here")
def test_more_places_than_a_page_shows_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "MOST_PLACES", 3)
    monkeypatch.setattr(scanning, "MOST_ROWS", 2)
    for name in "abc":
        Path(f"code/{name}.py").write_text("yaml.load(\n\n\n\n\n\npickle.load(\n")
    Path("code/d.py").write_text("<script>\n")
    root = scanned("code", "none", "nor this", "nor that", status=1)
    assert text_of(next(root.iter("h1"))) == "7 prohibited places in 4 of 4 files"
    assert len(list(root.iter("mark"))) == 3
    said = [text_of(part) for part in root.iter("p")]
    for part in ("4 more places are not shown here: --json lists them all.", "and 1 more entries", "and 2 more files"):
        assert part in said
    assert "Not covered: 3" in said
    assert [text_of(link) for link in root.iter("a")] == ["code/a.py", "code/b.py"]


@pytest.mark.usefixtures("here")
def test_a_page_is_written_over_and_not_looked_through() -> None:
    Path("code/a.py").write_text("yaml.load(\n")
    Path("code/out.html").touch()
    for _ in range(2):
        assert main(["scan", "block.prod", "code", "--html", "code/out.html"]) == 1
        assert "1 prohibited place in 1 of 1 file<" in Path("code/out.html").read_text()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("-", "expected the name of a file to write, got '-': it is not printed"),
        ("", "expected the name of a file or directory, got '': is a variable not set?"),
        ("new/", "expected the name of a file to write, got 'new/', which is that of a directory"),
        ("code", "cannot write code: it is a directory, expected a file name"),
        ("none/x.html", "cannot write none/x.html: the directory "),
        ("code/a.py", "cannot write code/a.py: the same file is an input; name another"),
        ("block.prod", "expected the name of a page of a scan to write, got block.prod, as a blocklist is named"),
        (
            "other.prod",
            "expected the name of a page of a scan to write, got other.prod, as a blocklist is named: name another",
        ),
        ("demo.html", "cannot write demo.html: it is there and is no page of a scan; name another, or remove it first"),
    ],
)
def test_no_other_file_is_lost(output: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("code/a.py").write_text("yaml.load(\n")
    Blocklist.compile([Entry("eval(")]).save("other.prod")
    Path("demo.html").write_text(page("python -m bench demo", "t", "l"))
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert main(["scan", "block.prod", "code/a.py", "--html", output]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"prod-decode scan: {message}")
    assert told.err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("here")
def test_a_scan_that_stops_writes_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("code/a.py").write_text("yaml.load(\n")
    assert main(["scan", "block.prod", "code", "none", "--strict", "--html", "out.html"]) == 2
    monkeypatch.setattr(Blocklist, "scan", lambda self, text: iter([Match(0, 10, "yaml.load(")] * 2))
    assert main(["scan", "block.prod", "code", "--verify", "--html", "out.html"]) == 2
    assert not Path("out.html").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_page_is_whole_whoever_reads_the_lines() -> None:
    for name in "ab":
        Path(f"code/{name}.py").write_text("yaml.load(\n" * 20_000)
    script = f"'{sys.executable}' -m prod_decode.cli scan block.prod code --html out.html | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["sh", "-c", script], env=environment, capture_output=True, check=True)
    assert "40,000 prohibited places in 2 of 2 files<" in Path("out.html").read_text()


@pytest.mark.usefixtures("here")
def test_names_that_are_not_text_are_shown() -> None:
    Path("code", os.fsdecode(b"b\xe9.py")).write_text("yaml.load(")
    assert [text_of(part) for part in scanned("code").iter("h2")] == ["code/b\\udce9.py"]


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A document of 40 lines; it is also a blocklist with a budget, and one without."""
    monkeypatch.chdir(tmp_path)
    text = "".join(f"value_{number:02} = {number * 7919}\n" for number in range(40))
    marked = Path("theirs.py")
    marked.write_text(f"# SPDX-License-Identifier: GPL-3.0-only OR MIT\n{text}")
    for name, options in (("with", ["--budget", "60"]), ("without", [])):
        assert main(["compile", "theirs.py", "-o", f"{name}.prod", *options]) == 0
    return text


def test_what_is_quoted_is_shown_with_licence_and_lines(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = document.splitlines(keepends=True)
    Path("some.py").write_text(f"import os;\n{''.join(lines[3:6])}(1);\n{''.join(lines[30:32])}")
    Path("little.py").write_text(f"# {lines[7]}{lines[8]}")
    Path("none.py").write_text("import os\n")
    capsys.readouterr()
    assert main(["scan", "with.prod", "some.py", "little.py", "none.py", "--quoted", "--html", "out.html"]) == 1
    printed = capsys.readouterr()
    first, second, third = (len(Normalization().symbols("".join(lines[a:b]))) for a, b in ((3, 6), (30, 32), (7, 9)))
    length = len(Normalization().symbols(Path("theirs.py").read_text()))
    beyond, within = f"{(first + second) / length:.1%}", f"{third / length:.1%}"
    assert printed.out.splitlines() == [
        f"some.py: quotes {first + second} of {length} characters ({beyond}, budget 60) of theirs.py (GPL-3.0-only OR "
        f"MIT); longest run {first}; lines 2-4, 6-7",
        f"little.py: quotes {third} of {length} characters ({within}, budget 60) of theirs.py (GPL-3.0-only OR MIT); "
        f"longest run {third}; lines 1-2",
    ]
    assert printed.err.startswith("prohibited places: 0, files read: 3, documents quoted beyond their budget: 1\n")
    root = parse(Path("out.html").read_text())
    title = "1 document quoted beyond its budget, in 3 files"
    assert text_of(next(root.iter("h1"))) == title
    (table,) = (cells(table) for table in root.iter("table"))
    assert table[2][3] == "60"
    assert table[1] == [
        "some.py",
        "theirs.py",
        f"{first + second} of {length}",
        "60, exceeded",
        beyond,
        f"{first}",
        "GPL-3.0-only OR MIT",
        "theirs.py",
    ]
    assert [text_of(mark).strip() for mark in root.iter("mark")][:3] == [line.strip() for line in lines[3:6]]
    assert main(["scan", "with.prod", "little.py", "none.py", "--quoted", "--json"]) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    (run,) = record.pop("runs")
    assert Path("little.py").read_text()[run["start"] : run["end"]] == "".join(lines[7:9]).strip()
    assert record == {
        "path": "little.py",
        "quoted": "theirs.py",
        "characters": third,
        "length": length,
        "share": round(third / length, 4),
        "longest": third,
        "budget": 60,
        "source": "theirs.py",
        "license": "GPL-3.0-only OR MIT",
    }


@pytest.mark.parametrize("file", ["tool.json", "call.py"])
def test_what_stands_in_strings_of_json_is_quoted_as_well(
    file: str, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line is shorter than a piece, so that nothing is in common before the line ends are decoded."""
    lines = "".join(document.splitlines(keepends=True)[3:9])
    Path("plain.py").write_text(lines)
    Path(file).write_text(json.dumps({"é": "\U0001f600", "content": lines}))
    more = ["--escapes"] if file.endswith(".py") else []
    capsys.readouterr()
    found = []
    for name in ("plain.py", file):
        main(["scan", "with.prod", name, "--quoted", "--json", *more])
        (record,) = (one for one in map(json.loads, capsys.readouterr().out.splitlines()) if "quoted" in one)
        found.append({key: record[key] for key in ("quoted", "characters", "length", "longest")})
    assert found[0] == found[1]
    assert found[0]["characters"] > 60
    text = Path(file).read_text()
    (run,) = Blocklist.load("with.prod").quoted(text, unescape=True)[0].spans
    assert json.loads(f'"{text[slice(*run)]}"').strip() == lines.strip()


@pytest.mark.usefixtures("document")
def test_quoted_wants_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["scan", "without.prod", "theirs.py", "--quoted"]) == 2
    assert "--quoted: expected a blocklist with budgets, got without.prod, which has none" in capsys.readouterr().err
    assert main(["compile", "theirs.py", "-o", "x.prod", "--piece", "30"]) == 0
    assert "no effect: --piece: no document has a budget without a piece of its own" in capsys.readouterr().err
    assert main(["compile", "theirs.py", "-o", "x.prod", "--piece", "5", "--budget", "9"]) == 2
    assert "--piece: expected at least 6 characters, got 5" in capsys.readouterr().err
    assert main(["info", "with.prod", "--entries"]) == 0
    assert "quote, max_quote 120, budget 60 of " in capsys.readouterr().out
    assert main(["info", "with.prod", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["budgets"]
    assert (found["entry"], found["characters"], found["piece"]) == ("theirs.py", 60, 24)
