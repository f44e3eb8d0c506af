"""A lexer of Python that does not mind where a text begins or ends."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple


class Token(NamedTuple):
    """A piece of a text."""

    kind: Literal["name", "number", "string", "comment", "newline", "space", "other"]
    text: str
    depth: int  # brackets that are open before it


_LEX = re.compile(
    r"""
    (?P<string>\b[rRbBuUfFtT]{0,2}(?:'''(?:\\.|(?!''').)*(?:'''|\Z)|\"\"\"(?:\\.|(?!\"\"\").)*(?:\"\"\"|\Z)|
        '(?:\\.|[^'\\\n])*(?:'|(?=\n)|\Z)|"(?:\\.|[^"\\\n])*(?:"|(?=\n)|\Z))
      |(?:'''(?:\\.|(?!''').)*(?:'''|\Z)|\"\"\"(?:\\.|(?!\"\"\").)*(?:\"\"\"|\Z)|
        '(?:\\.|[^'\\\n])*(?:'|(?=\n)|\Z)|"(?:\\.|[^"\\\n])*(?:"|(?=\n)|\Z)))
    |(?P<comment>\#[^\n]*)
    |(?P<name>[^\W\d]\w*)
    |(?P<number>\d[\w.]*)
    |(?P<newline>\n)
    |(?P<space>(?:[ \t\f]|\\\n)+)
    |(?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


def lex(text: str) -> list[Token]:
    """All tokens, which joined are the text."""
    tokens = []
    depth = 0
    for match in _LEX.finditer(text):
        kind: Any = match.lastgroup
        tokens.append(Token(kind, match[0], depth))
        if match[0] in ("(", "[", "{"):
            depth += 1
        elif match[0] in (")", "]", "}"):
            depth = max(0, depth - 1)
    return tokens


def logical_lines(text: str) -> list[tuple[bool, str]]:
    """The lines, each with whether a statement may begin there: no bracket, string or backslash is open."""
    begins = {0}
    at = 0
    for token in lex(text):
        at += len(token.text)
        if token.kind == "newline" and token.depth == 0:
            begins.add(at)
    lines: list[tuple[bool, str]] = []
    at = 0
    for line in text.split("\n"):
        lines.append((at in begins, line))
        at += len(line) + 1
    return lines
