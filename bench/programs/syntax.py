"""Syntax trees of code that is cut off, begins in the middle or is in part Python 2: as much as can be parsed."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

_TRIMS = 40
_REWRITES = 3
_CONTINUES = {"elif": "if 1: pass", "else": "if 1: pass", "except": "try: pass", "finally": "try: pass"}
# What Python 2 wrote and Python 3 refuses, tried on the line that a SyntaxError names. Models trained on old code still
# write it.
_PYTHON_2 = (
    (re.compile(r"^(\s*|.*[:;]\s*)print\s*>>\s*([\w.]+)\s*,?\s*(.*?)(;?)$"), r"\1print(\3)\4"),
    (re.compile(r"^(\s*|.*?[:;]\s*)print(?:\s+|(?=[\"']))(.+?),?\s*$"), r"\1print(\2)"),
    (re.compile(r"^(\s*|.*:\s*)print$"), r"\1print()"),
    (re.compile(r"^(\s*|.*[:;]\s*)exec\s+(.+?)\s+in\s+(.+)$"), r"\1exec(\2, \3)"),
    (re.compile(r"^(\s*|.*[:;]\s*)exec(?:\s+|(?=[\"']))(.+)$"), r"\1exec(\2)"),
    (re.compile(r"^(\s*)except\s+([^:,()]+|\([^()]*\))\s*,\s*(\w+)\s*:"), r"\1except \2 as \3:"),
    (re.compile(r"^(\s*|.*:\s*)raise\s+([\w.]+)\s*,\s*(.+)$"), r"\1raise \2(\3)"),
    (re.compile(r"<>"), "!="),
    (re.compile(r"`([^`]+)`"), r"repr(\1)"),
    (re.compile(r"\b[uU][rR](?=[\"'])"), "r"),
    (re.compile(r"\b0([0-7]+)\b"), r"0o\1"),
    (re.compile(r"\b(\d+)[lL]\b"), r"\1"),
)


@dataclass(frozen=True, slots=True)
class Fragment:
    """What was parsed of a text.

    Attributes:
        trees: in the order of the text, with positions as in the text: lines from 1, columns in bytes of the line. In a
            line that was read as Python 2, columns are near.
        lines: lines that hold more than whitespace and comments.
        skipped: the numbers of those that could not be parsed.
        repaired: whether anything was added or dropped to make it parse.
    """

    trees: tuple[ast.Module, ...]
    lines: int
    skipped: tuple[int, ...]
    repaired: bool

    def statements(self) -> Iterator[ast.stmt]:
        """The statements of all trees."""
        for tree in self.trees:
            yield from tree.body


def unix(text: str) -> str:
    """With the line ends that a syntax tree counts."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def end_of(prompt: str) -> tuple[int, int]:
    """The place in a syntax tree where a prompt ends: line, from 1, and column in bytes of UTF-8."""
    text = unix(prompt)
    return text.count("\n") + 1, len(text.rpartition("\n")[2].encode("utf-8", "surrogatepass"))


def ends_behind(node: ast.AST, place: tuple[int, int]) -> bool:
    """Whether a node ends behind a place, as `end_of` gives it."""
    return (getattr(node, "end_lineno", 0), getattr(node, "end_col_offset", 0)) > place


def parse_fragment(text: str) -> Fragment:
    """Parse a piece of a program: the whole if it parses, else the longest pieces from the top that do.

    The end may be cut anywhere: brackets and strings are closed, blocks get a body, and what then still does not parse
    is dropped token by token. The beginning may be deeper than what follows, or an `else:`. Lines of Python 2 are read
    as what they mean. A line that resists is skipped.
    """
    text = unix(text).replace("\0", " ").replace("\f", " ")
    written = text.split("\n")
    counted = [number for number, line in enumerate(written, 1) if _is_code(line)]
    whole = _parse(text)
    if isinstance(whole, ast.Module):
        return Fragment((whole,), len(counted), (), False)
    # An odd number of triple quotes: the text ends inside a string, or it begins inside one.
    beginnings = ["", *(quote for quote in ('"""', "'''") if text.count(quote) % 2)]
    return max((_pieces(begin + text, written, len(counted)) for begin in beginnings), key=_code_in)


def _code_in(fragment: Fragment) -> int:
    """How much of a text a reading makes code of."""
    statements = sum(isinstance(node, ast.stmt) for tree in fragment.trees for node in ast.walk(tree))
    return statements - 2 * len(fragment.skipped)


def _pieces(text: str, written: list[str], count: int) -> Fragment:
    """The fragment of a text, in positions of the lines that were written."""
    lines = [_spaces(line) for line in text.split("\n")]
    shifts = [len(before) - len(after) for before, after in zip(written, lines, strict=True)]
    trees: list[ast.Module] = []
    skipped: list[int] = []
    modernised: dict[int, int] = {}
    at = 0
    while at < len(lines):
        if not _is_code(lines[at]):
            at += 1
            continue
        tree, stop = _longest(lines, at, modernised)
        if tree is None:
            skipped.append(at + 1)
            at += 1
            continue
        _place(tree, lines, shifts, at)
        trees.append(tree)
        at = stop
    return Fragment(tuple(trees), count, tuple(skipped), True)


def parses(text: str) -> bool:
    """Whether Python 3 accepts the text as it is."""
    return isinstance(_parse(text), ast.Module)


def _parse(text: str) -> ast.Module | SyntaxError:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        try:
            return ast.parse(text)
        except SyntaxError as error:
            return error
        except (ValueError, RecursionError, MemoryError) as error:  # lone surrogates; nesting deeper than the parser's
            return SyntaxError(str(error), ("", 1, 1, "", 1, 1))


def _longest(lines: list[str], at: int, modernised: dict[int, int]) -> tuple[ast.Module | None, int]:
    """The tree of the longest piece that begins at line `at`, and where the next begins. Changes Python 2 `lines`."""
    indent = len(lines[at]) - len(lines[at].lstrip())
    word = re.match(r"\s*(\w*)", lines[at])
    opening = _CONTINUES.get(word[1] if word else "")
    shallow = _shallow(lines, at)
    stop = len(lines)
    while stop > at:
        piece = [line[indent:] if number < shallow else line for number, line in enumerate(lines[at:stop], at)]
        head = [opening] if opening else []
        tree = _parse("\n".join([*head, *piece]))
        if isinstance(tree, ast.Module):
            return _shifted(tree, at - len(head)), stop
        line = at + (tree.lineno or 1) - 1 - len(head)
        if at <= line < stop and modernised.get(line, 0) < _REWRITES:
            modernised[line] = modernised.get(line, 0) + 1
            if changed := _modern(lines, line):
                lines[line] = changed
                continue
        closed = _closed("\n".join([*head, *piece]), whole=stop == len(lines))
        if closed is not None:
            return _shifted(closed, at - len(head)), stop
        stop = min(stop - 1, max(line, at)) if line < stop else stop - 1
        while stop > at and not _is_code(lines[stop - 1]):
            stop -= 1
    return None, at + 1


def _shallow(lines: list[str], at: int) -> int:
    """The first line of code behind line `at` that is less indented; the lines before it are moved to the left."""
    indent = len(lines[at]) - len(lines[at].lstrip())
    for number in range(at + 1, len(lines)):
        if lines[number].strip() and lines[number][:indent].strip():
            return number
    return len(lines)


def _modern(lines: list[str], line: int) -> str | None:
    """The line in Python 3, or None if it is none of Python 2."""
    for pattern, replacement in _PYTHON_2:
        changed = pattern.sub(replacement, lines[line])
        if changed != lines[line]:
            return changed
    return None


def _closed(text: str, *, whole: bool) -> ast.Module | None:
    """The tree of a text after its open ends were closed; of the very end of a text, tokens may be dropped."""
    quote, brackets = _open_ends(text)
    cut_off = whole and (not text.endswith("\n") or text.endswith("\\\n") or quote is not None or bool(brackets))
    for _ in range(_TRIMS if cut_off else 1):
        tree = _parse(close(text))
        if isinstance(tree, ast.Module):
            return tree
        shorter = re.sub(r"(\w+|[^\w\s]|\\\n)\s*$", "", text, count=1)
        # Never past the line that is cut off: whole lines are for the caller to give up.
        if not shorter.strip() or shorter.rstrip(" ").endswith("\n") or shorter == text:
            return None
        text = shorter
    return None


def close(text: str) -> str:
    """The text with strings and brackets closed, and a body for blocks that have none yet."""
    quote, brackets = _open_ends(text)
    if quote is not None:
        text = re.sub(r"\\$", "", text) + quote
    text = text.rstrip() if not quote else text
    if text.endswith("\\"):
        text = text[:-1]
    text += "".join(reversed(brackets))
    lines = text.split("\n")
    while lines and not _is_code(lines[-1]):
        lines.pop()
    if not lines:
        return text
    last = lines[-1]
    indent = " " * (len(last) - len(last.lstrip()))
    if last.lstrip().startswith("@"):
        lines.append(f"{indent}def _(): pass")
    elif _without_comment(last).endswith(":"):
        lines[-1] = _without_comment(last)
        lines.append(f"{indent} pass")
    elif re.match(r"\s*(async\s+)?(def|class|if|elif|else|for|while|with|try|except|finally)\b", last):
        head = f"{last.rstrip()}:\n{indent} pass"
        if isinstance(_parse("\n".join([*lines[:-1], head, *_handlers([*lines, f"{indent} pass"])])), ast.Module):
            lines[-1:] = head.split("\n")
    return "\n".join([*lines, *_handlers(lines)])


def _handlers(lines: list[str]) -> list[str]:
    """An `except` for each `try` that is still open at the end, innermost first."""
    open_tries: list[int] = []
    for line in lines:
        if not _is_code(line):
            continue
        indent = len(line) - len(line.lstrip())
        while open_tries and indent < open_tries[-1]:
            open_tries.pop()
        if open_tries and indent == open_tries[-1]:
            open_tries.pop()
        if re.match(r"\s*try\s*:\s*(#.*)?$", line):
            open_tries.append(indent)
    return [f"{' ' * indent}except Exception: pass" for indent in reversed(open_tries)]


def _open_ends(text: str) -> tuple[str | None, list[str]]:
    """The quote that would end the string at the end, or None; and the closing brackets that lack, outermost first."""
    brackets: list[str] = []
    at = 0
    while at < len(text):
        character = text[at]
        if character == "#":
            at = text.find("\n", at)
            if at < 0:
                break
        elif character in "'\"":
            quote = text[at : at + 3] if text[at : at + 3] == character * 3 else character
            end = _string_end(text, at + len(quote), quote)
            if end < 0:
                return quote, brackets
            at = end
        elif character in "([{":
            brackets.append({"(": ")", "[": "]", "{": "}"}[character])
        elif character in ")]}" and brackets and brackets[-1] == character:
            brackets.pop()
        at += 1
    return None, brackets


def _string_end(text: str, at: int, quote: str) -> int:
    """The index of the last character of a string, or -1; a simple string that meets the end of a line ends there."""
    while at < len(text):
        if text[at] == "\\":
            at += 2
        elif text.startswith(quote, at):
            return at + len(quote) - 1
        elif text[at] == "\n" and len(quote) == 1:
            return at
        else:
            at += 1
    return -1


def _is_code(line: str) -> bool:
    stripped = line.strip()
    return bool(stripped) and not stripped.startswith("#")


def _without_comment(line: str) -> str:
    """The line before a comment, if it has no string that could hold a `#`."""
    return (line.split("#", maxsplit=1)[0] if "'" not in line and '"' not in line else line).rstrip()


def _spaces(line: str) -> str:
    body = line.lstrip(" \t")
    return line[: len(line) - len(body)].expandtabs(8) + body


def _shifted(tree: ast.Module, lines: int) -> ast.Module:
    # A tree that begins with a made-up `if` or `try` would else end up with a line 0.
    ast.increment_lineno(tree, lines)
    return tree


def _place(tree: ast.Module, lines: list[str], shifts: list[int], at: int) -> None:
    """Put back the columns that were cut off the front of the lines, or that tabs did not have."""
    indent, shallow = len(lines[at]) - len(lines[at].lstrip()), _shallow(lines, at)

    def moved(line: int, column: int) -> int:
        if not 1 <= line <= len(lines):
            return column
        cut = indent if line - 1 < shallow else 0
        return max(0, column + cut + shifts[line - 1])

    for node in ast.walk(tree):
        if isinstance(node, ast.expr | ast.stmt | ast.excepthandler | ast.arg | ast.keyword | ast.alias):
            node.col_offset = moved(node.lineno, node.col_offset)
            if node.end_lineno is not None and node.end_col_offset is not None:
                node.end_col_offset = moved(node.end_lineno, node.end_col_offset)
