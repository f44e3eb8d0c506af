"""Source files in pieces: against files that are put together of known parts, and written out."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prod_train.data.pieces import Piece, blocks, cut, halves, python_pieces

PYTHON = '''"""Doc."""
import os
X = 1
Y = """
# no comment"""

# About f.
@dec(
    1)
def f(a,
      b): return a + b

class A(B):
    """Doc."""
    n = 3

    # method
    def m(self):
        # first
        return 1

    async def k(self): pass

if X:
    def g(): pass
'''


def texts(pieces: list[Piece]) -> list[str]:
    return [piece.before + piece.text for piece in pieces]


def test_a_module_is_functions_classes_and_what_stands_between() -> None:
    found = python_pieces(PYTHON, 10_000)
    assert [(piece.line, piece.last, piece.text[: piece.head]) for piece in found] == [
        (1, 1, ""),
        (3, 5, ""),
        (7, 11, "# About f.\n@dec(\n    1)\ndef f(a,\n      b): "),
        (13, 22, "class A(B):\n"),
        (24, 25, ""),
    ]
    lines = PYTHON.splitlines(keepends=True)
    assert [piece.text for piece in found] == ["".join(lines[piece.line - 1 : piece.last]) for piece in found]


def test_of_a_class_that_is_too_long_each_method_is_a_piece() -> None:
    found = [piece for piece in python_pieces(PYTHON, 80) if piece.before]
    assert [(piece.line, piece.text, piece.text[: piece.head]) for piece in found] == [
        (14, '    """Doc."""\n    n = 3\n', ""),
        (
            17,
            "    # method\n    def m(self):\n        # first\n        return 1\n",
            "    # method\n    def m(self):\n        # first\n",
        ),
        (22, "    async def k(self): pass\n", "    async def k(self): "),
    ]
    assert {piece.before for piece in found} == {"class A(B):\n"}
    assert found[1].parted(by_signature=True) == (
        "class A(B):\n    # method\n    def m(self):\n        # first\n",
        "        return 1\n",
    )


def test_a_method_of_a_class_in_a_class_stands_behind_both() -> None:
    source = "class A:\n    class B:\n        def f(self):\n            return 1234567890\n"
    (found,) = python_pieces(source, 60)
    assert (found.before, found.text[: found.head]) == ("class A:\n    class B:\n", "        def f(self):\n")


@pytest.mark.parametrize("source", ["print 1", "def f(:\n", "x = 1\n" + "(" * 500 + ")" * 500, "a\0b"])
def test_what_is_no_python_is_said_with_its_line(source: str) -> None:
    with pytest.raises(ValueError, match=r"^\d+: "):
        python_pieces(source, 100)


def test_escapes_in_the_strings_of_others_are_no_warnings_of_ours() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert python_pieces("x = '\\d'\n", 100)


def test_a_line_of_a_string_is_no_comment() -> None:
    first, second = 'Y = """\n# no comment"""\n', "def f():\n    return 1\n"
    assert texts(python_pieces(first + second, 100)) == [first, second]


# --- files that are put together of known parts -----------------------------------------------------------------------


name = st.from_regex(r"[a-z]{1,4}", fullmatch=True).filter(lambda word: word.isidentifier() and not _is_keyword(word))


def _is_keyword(word: str) -> bool:
    import keyword

    return keyword.iskeyword(word)


@st.composite
def definitions(draw: st.DrawFn) -> str:
    """A function or class at the top of a module, with the comments and decorators that belong to it."""
    above = draw(st.sampled_from(["", "# comment\n", "# one\n# two\n", "@dec\n", "# why\n@dec(\n  1,\n)\n"]))
    head = draw(st.sampled_from(["def {}(a):", "async def {}(\n    a,\n    b=2):", "class {}(B):", "def {}() -> int:"]))
    body = draw(
        st.sampled_from(
            [
                " return 1\n",
                "\n    return 1\n",
                '\n    """Doc\n\n# no comment\n"""\n',
                "\n    # why\n\n    @d\n    def inner():\n        pass\n",
            ]
        )
    )
    if "class" in head or "\n    @d" in body:
        body = body.replace("return 1", "x = 1")
    return above + head.format(draw(name)) + body


@st.composite
def statements(draw: st.DrawFn) -> str:
    return draw(
        st.sampled_from(["{} = 1\n", "{} = [\n  1,\n\n  2]\n", "if {}:\n    pass\nelse:\n    pass\n", "{}()\n"])
    ).format(draw(name))


imports = st.sampled_from(["import os\n", "from a import (\n    b,\n)\n"])
parts = st.one_of(
    definitions().map(lambda text: ("definition", text)),
    statements().map(lambda text: ("statement", text)),
    imports.map(lambda text: ("import", text)),
)


@given(st.lists(st.tuples(parts, st.integers(1, 3)), max_size=8))
def test_a_module_put_together_comes_apart(chosen: list[tuple[tuple[str, str], int]]) -> None:
    """Statements with nothing between them are one piece; blank lines between them belong to it."""
    wanted: list[str] = []
    source = ""
    before = ""
    for (kind, text), blank in chosen:
        gap = "\n" * blank
        if kind == "statement" and before == "statement":
            wanted[-1] += gap + text
        elif kind != "import":
            wanted.append(text)
        source += gap + text
        before = kind
    found = python_pieces(source, 10_000)
    assert [piece.text for piece in found] == wanted
    for piece in found:
        assert "".join(source.splitlines(keepends=True)[piece.line - 1 : piece.last]) == piece.text


@given(definitions())
def test_a_signature_is_what_stands_before_the_body(text: str) -> None:
    """The prompt with another body parses, and has the same signature."""
    (piece,) = python_pieces(text, 10_000)
    prompt, completion = piece.parted(by_signature=True)
    assert prompt + completion == text
    other = prompt.rstrip(" ") + (" pass\n" if not prompt.endswith("\n") else "    pass\n")
    (new,), (old,) = ast.parse(other).body, ast.parse(text).body
    assert len(new.body) == 1
    assert ast.unparse(new.body[0]) == "pass"
    new.body = old.body
    assert ast.dump(new) == ast.dump(old)


# --- other languages --------------------------------------------------------------------------------------------------

JAVA = """// SPDX-License-Identifier: MIT

package x;
import y;

public class A {
    int n;

    int f() {
        return 1;
    }

    int g() {
        if (n) {
            return 2;

        }
        return 3;
    }
}
static int z()
{
  return 3;
}
else {
}
"""


def test_blocks() -> None:
    found = blocks(JAVA, 10_000)
    lines = JAVA.splitlines(keepends=True)
    assert [(piece.line, piece.last, piece.text[: piece.head]) for piece in found] == [
        (6, 20, "public class A {\n"),
        (21, 26, "static int z()\n{\n"),
    ]
    assert [piece.text for piece in found] == ["".join(lines[piece.line - 1 : piece.last]) for piece in found]


def test_blocks_that_are_too_long_come_apart_at_the_least_indented_blank_line() -> None:
    found = blocks(JAVA, 100)
    assert [(piece.line, piece.last) for piece in found[:3]] == [(6, 11), (13, 20), (21, 26)]
    assert found[1].text[: found[1].head] == "    int g() {\n"
    assert blocks("a = 1\n\nb = 2\nend\nc = 3\n", 1000) == [
        Piece("a = 1\n", 1),
        Piece("b = 2\nend\n", 3, 6),
        Piece("c = 3\n", 5),
    ]


def test_the_end_of_a_part_and_the_next_method_stay_apart() -> None:
    long = "    int f() {\n        a(1, 2, 3, 4);\n\n        b();\n    }\n\n"
    short = "    int g() { return 1; }\n\n    int h() { return 2; }\n"
    found = blocks("class A {\n\n" + long + short, 54)
    assert [piece.text for piece in found] == [
        "class A {\n\n",
        "    int f() {\n        a(1, 2, 3, 4);\n\n",
        "        b();\n    }\n\n",
        short,
    ]


# As source files have them: indented, blank, closing, going on, and longer than any limit.
line = st.builds(
    lambda margin, text: f"{margin}{text}" if text else "",
    st.sampled_from(["", "", "  ", "    ", "\t", "      "]),
    st.sampled_from(["", "", "a = 1", "f(x) {", "}", "} else {", "end", "// note", "import x", "x" * 50, "\x0c", "é"]),
)
sources = st.lists(line, max_size=25).map("\n".join)


@given(sources, st.integers(1, 60))
@example("\n".join(" " * n + "x" for n in range(300)), 40)
def test_parts_are_the_text_and_as_long_as_they_may_be(text: str, longest: int) -> None:
    found = cut(Piece(text, 7), longest)
    assert "".join(piece.text for piece in found) == text
    numbers = [7 + "".join(piece.text for piece in found[:at]).count("\n") for at in range(len(found))]
    assert [piece.line for piece in found] == numbers
    for piece in found:
        # What is longer has one line that says something, and lines that begin none: blank, closing, going on.
        lines = [one for one in piece.text.split("\n")[1:] if one.strip()]
        assert len(piece.text) <= longest or all(re.match(r"\s*([)\]}{]|end\b|else\b)", one) for one in lines)


@given(sources, st.integers(1, 200))
def test_blocks_are_of_the_text_in_order_and_leave_out_only_what_says_nothing(text: str, longest: int) -> None:
    lines = text.split("\n")
    seen: set[int] = set()
    for piece in blocks(text, longest):
        own = piece.text.removesuffix("\n").split("\n")
        assert lines[piece.line - 1 : piece.line - 1 + len(own)] == own
        numbers = set(range(piece.line, piece.line + len(own)))
        assert not numbers & seen
        seen |= numbers
    left = [one.strip() for number, one in enumerate(lines, 1) if number not in seen]
    assert set(left) <= {"", "// note", "import x"}


@given(st.text(alphabet="ab \n", max_size=30))
def test_halves_join_and_are_cut_at_a_space(text: str) -> None:
    prompt, rest = halves(text)
    assert prompt + rest == text
    assert rest.startswith(" ") or not prompt


def test_a_method_that_is_too_long_is_cut_behind_its_signature() -> None:
    parts = [piece for piece in python_pieces(PYTHON, 70) if "def m" in piece.text or "return 1" in piece.text]
    assert [piece.text for piece in parts] == [
        "    # method\n    def m(self):\n        # first\n        return 1\n",
    ]
    parts = [piece for piece in python_pieces(PYTHON.replace("# first", "x = 1"), 60) if piece.line in (17, 18, 19, 20)]
    assert [(piece.text, piece.head) for piece in parts] == [
        ("    # method\n    def m(self):\n        x = 1\n", 30),
        ("        return 1\n", 0),
    ]


def test_a_function_that_is_too_long_keeps_its_signature_once() -> None:
    body = "".join(f"    x{n} = {n}\n" for n in range(20))
    source = textwrap.dedent("def f():\n") + body
    found = python_pieces(source, 100)
    assert "".join(piece.text for piece in found) == source
    assert [piece.head for piece in found] == [9, *([0] * (len(found) - 1))]
    assert max(len(piece.text) for piece in found) <= 100
