"""Source files in pieces: functions, classes, and what stands between them.

*Python* is cut along its syntax tree:

- A function is a piece, with its decorators and the comments directly above it.
- A class that is no longer than the limit is one. Of a longer one, each method is a piece, and so is what stands
  between them; before it, in its prompt, stands the class's own first line.
- What else stands at the top of a module is a piece for each run of statements. Imports belong to none.

*Other languages* are cut into blocks. A block begins at a line that is not indented, behind a blank line or behind a
line that begins with a closing bracket or `end`; a line that only goes on, such as `else`, begins none. Blocks of
nothing but comments and imports are left out.

A piece longer than the limit is cut into parts of whole lines, as near to the limit as may be: at the least indented
lines behind a blank line, or else at the least indented lines. So Java's methods come apart, and not their lines.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

_CLOSES = re.compile(r"[)\]}]|end\b")
_GOES_ON = re.compile(r"[)\]}{]|(end|else|elif|elsif|elseif|catch|except|finally|rescue|ensure|then|do)\b")
_SAYS_NOTHING = re.compile(
    r"\s*($|//|/?\*|#(?!\s*(define|if|el|end|undef))|--|;;|%|<!--|(import|using|use|package|include|require)\b|from\b.*\bimport\b)"
)
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Definition = _Function | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a source file, of whole lines.

    Attributes:
        text: it.
        line: its first line, from 1.
        head: so many of its characters are its signature; 0 if it has none.
        before: what belongs before it in a prompt: the first line of its class.
    """

    text: str
    line: int
    head: int = 0
    before: str = ""

    @property
    def last(self) -> int:
        """Its last line, from 1."""
        return self.line + self.text.rstrip("\n").count("\n")

    def parted(self, *, by_signature: bool) -> tuple[str, str]:
        """Prompt and completion: cut behind the signature, or, without one, in halves at a space."""
        at = self.head if by_signature and self.head else len(halves(self.text)[0])
        return self.before + self.text[:at], self.text[at:]


def halves(text: str) -> tuple[str, str]:
    """Cut a text in two, before the space that half of its spaces and words precede; joined they are the text."""
    parts = text.split(" ")
    prompt = " ".join(parts[: len(parts) // 2])
    return prompt, text[len(prompt) :]


def python_pieces(text: str, longest: int) -> list[Piece]:
    """The pieces of a Python module; a single line may be longer than `longest`.

    Args:
        text: whose lines end with LF.
        longest: characters of a piece.

    Raises:
        ValueError: it is no Python, or nested too deep; begins with the line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings, which are not our code's
            tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{error.lineno or 0}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"0: {error or 'nested too deep'}") from None
    lines = _lines(text)
    return [part for piece in _of_body(tree.body, lines, longest, "") for part in cut(piece, longest)]


def _of_body(body: Sequence[ast.stmt], lines: Sequence[str], longest: int, before: str) -> Iterator[Piece]:
    """Pieces of a module's or class's statements."""
    run: list[ast.stmt] = []
    above = 0  # so many lines belong to what stands above
    for node in body:
        is_import = isinstance(node, ast.Import | ast.ImportFrom)
        if is_import or isinstance(node, _Definition):
            yield from _run(run, lines, before)
            run = []
            if isinstance(node, _Definition):
                yield from _of_definition(node, lines, above, longest, before)
        else:
            run.append(node)
        above = node.end_lineno or 0
    yield from _run(run, lines, before)


def _run(nodes: Sequence[ast.stmt], lines: Sequence[str], before: str) -> Iterator[Piece]:
    if nodes:
        first = nodes[0].lineno - 1
        yield Piece("".join(lines[first : nodes[-1].end_lineno]), first + 1, 0, before)


def _of_definition(node: _Definition, lines: Sequence[str], above: int, longest: int, before: str) -> Iterator[Piece]:
    first = _start(node)
    margin = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
    while first > above and lines[first - 1].startswith(f"{margin}#"):
        first -= 1
    text = "".join(lines[first : node.end_lineno])
    inside = _start(node.body[0])
    signature = lines[inside].encode()[: node.body[0].col_offset].decode()
    begins_line = not signature.strip()  # or else it stands behind the signature's colon
    head = sum(map(len, lines[first:inside])) + (0 if begins_line else len(signature))
    if isinstance(node, ast.ClassDef) and len(text) > longest and begins_line:
        yield from _of_body(node.body, lines, longest, before + text[:head])
    else:
        yield Piece(text, first + 1, head, before)


def _start(node: ast.stmt) -> int:
    """The number of its first line, from 0, decorators included."""
    decorators = node.decorator_list if isinstance(node, _Definition) else []
    return min([node.lineno, *(one.lineno for one in decorators)]) - 1


def blocks(text: str, longest: int) -> list[Piece]:
    """The pieces of a file in any language; a single line may be longer than `longest`.

    Args:
        text: whose lines end with LF.
        longest: characters of a piece.
    """
    lines = _lines(text)
    begins = [at for at in range(1, len(lines)) if _begins_block(lines[at - 1], lines[at])]
    found = []
    for first, end in pairwise([0, *begins, len(lines)]):
        block = _trimmed(lines[first:end])
        if not all(map(_SAYS_NOTHING.match, block)):
            skipped = next(at for at, line in enumerate(lines[first:end]) if line.strip())
            parts = cut(Piece("".join(block), first + skipped + 1), longest)
            found += [replace(part, head=_head(_lines(part.text))) for part in parts]
    return found


def _begins_block(previous: str, line: str) -> bool:
    """Whether a block begins at a line; see the module's text."""
    if not line.strip() or line[0].isspace() or _GOES_ON.match(line):
        return False
    return not previous.strip() or _CLOSES.match(previous) is not None


def _head(block: Sequence[str]) -> int:
    """Characters through the first line that ends in `{` or `:`, or else the first line; 0 if nothing follows."""
    opening = next((at for at, line in enumerate(block) if line.rstrip().endswith(("{", ":"))), 0)
    return sum(map(len, block[: opening + 1])) if opening + 1 < len(block) else 0


def cut(piece: Piece, longest: int) -> list[Piece]:
    """The piece, or, if it is longer, its parts; only the first has its signature, which stays whole if it is short."""
    if len(piece.text) <= longest:
        return [piece]
    lines = _lines(piece.text)
    whole = piece.text.count("\n", 0, piece.head) if piece.head <= longest // 2 else 0
    found = []
    for first, end in _parts(lines, whole, longest):
        text = "".join(lines[first:end])
        head = piece.head if first == 0 and piece.head < len(text) else 0
        found.append(replace(piece, text=text, line=piece.line + first, head=head))
    return found


def _parts(lines: Sequence[str], whole: int, longest: int) -> list[tuple[int, int]]:
    """Ranges of lines, one behind the other, each no longer than `longest` where whole lines allow it.

    What is too long is cut where `_marks` says, again and again; neighbours of one such cut are put together again as
    long as they fit. The first `whole` lines stay together with the next.
    """
    ends = [0, *accumulate(map(len, lines))]
    found: list[tuple[int, int]] = []
    of: list[tuple[int, int]] = []  # what each was cut out of
    waiting = [((0, len(lines)), (0, 0))]
    while waiting:
        (first, end), parent = waiting.pop()
        marks = [] if ends[end] - ends[first] <= longest else _marks(lines, max(first, whole), end)
        if marks:
            parts = pairwise([first, *marks, end])
            waiting += [(part, (first, end)) for part in reversed([*parts])]
        elif found and of[-1] == parent and ends[end] - ends[found[-1][0]] <= longest:
            found[-1] = (found[-1][0], end)
        else:
            found.append((first, end))
            of.append(parent)
    return found


def _marks(lines: Sequence[str], first: int, end: int) -> list[int]:
    """The least indented lines behind a blank line, or else the least indented lines; none if there is one line."""
    inside = [at for at in range(first + 1, end) if lines[at].strip() and not _GOES_ON.match(lines[at].lstrip())]
    marks = [at for at in inside if not lines[at - 1].strip()] or inside
    least = min((_indent(lines[at]) for at in marks), default=0)
    return [at for at in marks if _indent(lines[at]) == least]


def _indent(line: str) -> int:
    """Columns of its margin."""
    shown = line.expandtabs()
    return len(shown) - len(shown.lstrip())


def _lines(text: str) -> list[str]:
    """With their line ends: those that Python and compilers know, and not form feeds, as `splitlines` has them."""
    found = [f"{line}\n" for line in text.split("\n")]
    found[-1] = found[-1][:-1]
    return found if found[-1] else found[:-1]


def _trimmed(lines: Sequence[str]) -> list[str]:
    """Without blank lines at either end."""
    said = [at for at, line in enumerate(lines) if line.strip()]
    return list(lines[said[0] : said[-1] + 1]) if said else []
