"""Pages: whatever text they show, they are valid, do nothing, and show it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prod_decode.command.page import Html, beginning, element, join, page, table, warning, write_page
from prod_decode.errors import ProdError
from tests.pages import cells, parse, text_of

EVIL = "</code></pre></style><script>alert('&amp;\")</script><!-- ]]> "
texts = st.text(
    st.sampled_from([*"<>&'\"a\n\t\r -!]", "\0", "\x1b", "\ud800", "\u202e", "\u2028", "\ufffe", "é", "名"])
)


@given(texts, texts)
@example(EVIL, EVIL)
def test_any_text_is_shown_and_does_nothing(text: str, other: str) -> None:
    made = page(
        "a command",
        text,
        other,
        element("section", element("pre", "|", text), element("p", element("code", other, title=text), other)),
        table([text, other], [[other, text]], heads=1),
        warning(text),
    )
    root = parse(made)
    made.encode()
    code = next(root.iter("code"))
    pre = text_of(next(root.iter("pre"))).removeprefix("|")
    for shown in (text_of(root.find("body/header/h1")), pre, text_of(root.find(".//p[@class='warning']"))):  # type: ignore[arg-type]
        assert all(character.isprintable() or character in "\n\t" for character in shown)
        if text.isprintable():
            assert shown == text
    assert text_of(code) == text_of(root.find("body/header/p"))  # type: ignore[arg-type]
    assert cells(next(root.iter("table"))) == [[pre, text_of(code)], [text_of(code), pre]]


def test_what_cannot_be_printed_is_told() -> None:
    assert element("i", "a\x1b[2J\u202eb\ud800\r\n\tc\rd") == "<i>a\\x1b[2J\\u202eb\\ud800\r\n\tc\\rd</i>"


def test_text_is_escaped_once_and_markup_not() -> None:
    assert element("b", "<", element("i", "&"), class_='"', data_n="<") == (
        '<b class="&quot;" data-n="&lt;">&lt;<i>&amp;</i></b>'
    )
    assert join("<", Html("<hr/>"), between=", ") == "&lt;, <hr/>"
    assert element("img", src="a.png", alt="'") == '<img src="a.png" alt="&#x27;"/>'


@pytest.mark.parametrize(("text", "inside"), [("\nx", "\n\nx"), ("\r\nx", "\n\r\nx"), (" \nx", " \nx"), ("", "")])
def test_a_browser_drops_no_line(text: str, inside: str) -> None:
    assert element("pre", text) == f"<pre>{inside}</pre>"


def test_a_table_says_what_heads_are() -> None:
    made = table(["x", "y"], [["1", "2"]], heads=1, numeric=True)
    assert made == (
        '<div class="scroll"><table class="numeric"><thead><tr><th scope="col" class="label">x</th>'
        '<th scope="col" class="value">y</th></tr></thead>\n'
        '<tbody><tr><th scope="row">1</th><td>2</td></tr></tbody></table></div>'
    )


def test_a_page_says_what_made_it(tmp_path: Path) -> None:
    write_page(tmp_path / "x.html", page("prod-decode scan", "t", "l"))
    made = (tmp_path / "x.html").read_bytes()
    assert made.startswith(beginning("prod-decode scan"))
    assert not made.startswith(beginning("prod-decode"))
    assert b"Made by <code>prod-decode scan</code> of prod-code-unlearning " in made


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def full(_: object) -> Iterator[None]:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr("prod_decode.command.page.write_whole", full)
    with pytest.raises(ProdError, match=r"^cannot write .*x.html: No space left on device$"):
        write_page(tmp_path / "x.html", "x")
