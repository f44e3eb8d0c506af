"""A copied run of a document is one place, from its first to its last anchor; a phrase is one each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.blocklist.blocklist import Blocklist, Match
from prod_decode.blocklist.entries import Entry
from prod_decode.cli import main
from prod_decode.command.scanning import Places

DOCUMENT = "".join(f"value_{n} = first({n}) + second[{n * 7}]  # step {n}\n" for n in range(30))


def places(blocklist: Blocklist, text: str, *, unescape: bool = False) -> list[Match]:
    matches = list(blocklist.scan(text, unescape=unescape))
    assert len(matches) > 1
    return Places(blocklist).of(text, matches, unescape=unescape)


@given(st.integers(6, 30), st.text("abcde_ é\n\t(", min_size=60, max_size=200).filter(str.strip), *[st.booleans()] * 2)
def test_a_whole_copy_is_one_place(limit: int, document: str, ignores_layout: bool, escaped: bool) -> None:
    mode = "code" if ignores_layout else "none"
    blocklist = Blocklist.compile(
        [Entry(document, policy="quote", max_quote=limit, id="d")], normalize=mode, allow_empty=True
    )
    copy = document.replace("\n", " \n\n   ") if ignores_layout else document
    text = f"?{json.dumps(copy) if escaped else copy}?"
    matches = list(blocklist.scan(text, unescape=escaped))
    expected = [(min(m.start for m in matches), max(m.end for m in matches))] if matches else []
    assert [(m.start, m.end) for m in Places(blocklist).of(text, matches, unescape=escaped)] == expected


@pytest.mark.parametrize("limit", [40, 41, 120])
def test_two_copies_are_two_places_and_each_document_has_its_own(limit: int) -> None:
    other = "".join(f"if table[{n}] is None and not {n * 3}: return -{n}\n" for n in range(40))
    texts = {"d": DOCUMENT, "o": other}
    blocklist = Blocklist.compile(
        [Entry(text, policy="quote", max_quote=limit, id=name) for name, text in texts.items()]
    )
    text = f"x = 1\n{DOCUMENT}xyz +\n{DOCUMENT}{other}"
    found = places(blocklist, text)
    assert [place.entry_id for place in found] == ["d", "d", "o"]
    second = 6 + len(DOCUMENT) + 5
    for place, begin in zip(found, (6, second, second + len(DOCUMENT)), strict=True):
        size = len(texts[place.entry_id])
        assert begin <= place.start < begin + limit * 2  # layout counts in the text, not in the limit
        assert begin + size - limit * 2 < place.end <= begin + size


@pytest.mark.parametrize(("between", "count"), [("", 1), (" \n ", 1), ("+", 1), ("+ -", 2)])
def test_what_stands_between(between: str, count: int) -> None:
    """Of a limit of 6, anchors of 3 characters begin at most 4 apart."""
    blocklist = Blocklist.compile([Entry("(a+b)*", policy="quote", max_quote=6, id="d")])
    (anchor,) = {"(a+b)*"[m.start : m.end] for m in blocklist.scan("(a+b)*")}
    assert len(places(blocklist, f"{anchor}{between}{anchor}")) == count


def test_phrases_are_places_each() -> None:
    blocklist = Blocklist.compile([Entry("eval("), Entry(DOCUMENT, policy="quote", max_quote=40, id="d")])
    found = places(blocklist, f"eval(eval( eval({DOCUMENT}")
    assert [place.entry_id for place in found] == ["eval("] * 3 + ["d"]


def test_the_command_tells_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Blocklist.compile([Entry(DOCUMENT, policy="quote", max_quote=40, id="d"), Entry("eval(")]).save("block.prod")
    Path("a.py").write_text(f"x = 1\n{DOCUMENT}eval(1)\n")
    assert main(["scan", "block.prod", "a.py", "--html", "out.html"]) == 1
    printed = capsys.readouterr()
    document, phrase = printed.out.splitlines()
    assert document.startswith("a.py:2:")
    assert ": d, lines 2-31: " in document
    assert phrase == "a.py:32:1: eval(: eval("
    assert printed.err.startswith("prohibited places: 2, files read: 1\n")
    page = Path("out.html").read_text()
    assert "lines 2-31 <code>d</code>" in page
    assert all(f'data-n="{line}"' in page for line in range(1, 33))
    assert main(["scan", "block.prod", "a.py", "--json", "--verify"]) == 1
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["line"], first["end_line"], last["line"], last["end_line"]) == (2, 31, 32, 32)
    assert first["text"] == Path("a.py").read_text()[first["start"] : first["end"]]
