"""The prompt's own names replaced, or written in another case style."""

from __future__ import annotations

import ast
import builtins
import keyword
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from bench.attacks.base import Attack, Attacked
from bench.attacks.lexer import lex
from bench.programs.syntax import parse_fragment
from bench.tasks.base import Sample

_WORDS = re.findall(
    r"\w+",
    "amount anchor basis batch bound branch bucket cell chunk cursor delta digit draft entry field figure flag "
    "frame gauge graph group handle index input item joint label layer limit line link listing mark matrix measure "
    "member model node number object offset order output pack page pair part path piece place point portion probe "
    "quantity range record region result root row sample scale segment series shape share sign slot source span "
    "stage state step store stream subject table target term text thing token total track tree unit value vector "
    "view width zone ",
)


def rename_identifiers(prompt: str, reference: str | None = None, *, seed: int = 0) -> Attacked:
    """Give the prompt's own variables, parameters and functions other names, each the same name everywhere.

    Left alone are names that others fix: imports, attributes, keyword arguments, builtins, and names inside f-strings.

    Args:
        prompt: may be incomplete.
        reference: what is adapted alike.
        seed: of the choice of names.
    """
    chooser = random.Random(f"{seed}\0{prompt}")
    taken = _all_names(prompt + "\n" + (reference or ""))

    def fresh(name: str) -> str:
        while True:
            new = "_".join(chooser.sample(_WORDS, 2))
            if name[:1].isupper():
                new = "".join(part.capitalize() for part in new.split("_"))
            if name.isupper():
                new = "_".join(chooser.sample(_WORDS, 2)).upper()
            if new not in taken:
                return new

    mapping: dict[str, str] = {}
    for name in _own_names(prompt, reference or ""):
        mapping[name] = fresh(name)
        taken.add(mapping[name])
    return _renamed(prompt, reference, mapping)


def change_case(
    prompt: str, reference: str | None = None, *, style: Literal["camel", "snake", "swap"] = "swap"
) -> Attacked:
    """Write the prompt's own names in another case style: snake_case as camelCase, or the other way round.

    Args:
        prompt: may be incomplete.
        reference: what is adapted alike.
        style: what to turn names into; `swap`: whatever the prompt does not use more of.
    """
    names = list(_own_names(prompt, reference or ""))
    if style == "swap":
        camels = sum(name != to_snake(name) for name in names)
        style = (
            "snake" if 2 * camels > sum(name != to_camel(name) or name != to_snake(name) for name in names) else "camel"
        )
    convert = to_camel if style == "camel" else to_snake
    taken = _all_names(prompt + "\n" + (reference or ""))
    mapping: dict[str, str] = {}
    for name in names:
        new = convert(name)
        if new != name and new not in taken and not keyword.iskeyword(new) and not hasattr(builtins, new):
            mapping[name] = new
            taken.add(new)
    return _renamed(prompt, reference, mapping)


def to_camel(name: str) -> str:
    """`snake_case` as `camelCase`; constants, CapWords and names with underscores at the ends stay."""
    if name.isupper() or name.startswith("_") or name.endswith("_") or "_" not in name:
        return name
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


def to_snake(name: str) -> str:
    """`camelCase` as `snake_case`; constants, CapWords and names with underscores at the ends stay."""
    if name.isupper() or name[:1].isupper() or name.startswith("_"):
        return name
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "_" + match[1].lower(), name)


def _renamed(prompt: str, reference: str | None, mapping: Mapping[str, str]) -> Attacked:
    if reference is None:
        return Attacked(_replace_names(prompt, mapping), None)
    # Together, so that a string which begins in the prompt is still a string in the reference.
    adapted = _replace_names(prompt + reference, mapping)
    head = _replace_names(prompt, mapping)
    tail = adapted[len(head) :] if adapted.startswith(head) else _replace_names(reference, mapping)
    return Attacked(head, reference, tail)


def _replace_names(text: str, mapping: Mapping[str, str]) -> str:
    parts: list[str] = []
    after_dot = False
    tokens = lex(text)
    for number, token in enumerate(tokens):
        # A name at the very end may be the beginning of a longer one.
        cut_off = number == len(tokens) - 1
        if token.kind == "name" and not after_dot and (not cut_off or text.endswith("\n")):
            parts.append(mapping.get(token.text, token.text))
        else:
            parts.append(token.text)
        if token.kind not in ("space", "newline", "comment"):
            after_dot = token.text == "."
    return "".join(parts)


def _all_names(text: str) -> set[str]:
    return {match[0] for match in re.finditer(r"[^\W\d]\w*", text)}


def _own_names(prompt: str, reference: str) -> Iterator[str]:
    """Names that the prompt binds and nobody outside relies on, in the order of their first binding."""
    bound: dict[str, None] = {}
    fixed: set[str] = set(keyword.kwlist) | set(keyword.softkwlist) | set(dir(builtins)) | {"self", "cls"}
    for statement in parse_fragment(prompt).statements():
        for node in _in_order(statement):
            for name in _binds(node):
                bound.setdefault(name)
    for text in (prompt, prompt + reference):
        for statement in parse_fragment(text).statements():
            for node in ast.walk(statement):
                fixed.update(_fixes(node))
    # Inside f-strings names are not tokens before Python 3.12; and where a tree is in doubt, names of strings stay.
    for token in lex(prompt + reference):
        if token.kind == "string" and "f" in re.match(r"\w*", token.text)[0].lower():  # type: ignore[index]
            fixed.update(_all_names(token.text))
    for name in bound:
        if name not in fixed and not (name.startswith("__") and name.endswith("__")) and name.strip("_"):
            yield name


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def _binds(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        yield node.name or ""


def _fixes(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0]
            yield from alias.name.split(".")
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from node.module.split(".")
    elif isinstance(node, ast.keyword) and node.arg:
        yield node.arg
    elif isinstance(node, ast.MatchClass):
        yield from node.kwd_attrs
    elif isinstance(node, ast.JoinedStr):
        yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name))
    elif isinstance(node, ast.ClassDef):
        # Whatever a class body binds can be reached as an attribute.
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield statement.name
            else:
                yield from (name for n in ast.walk(statement) for name in _binds(n))


class Renamed(Attack):
    """Variables, parameters and functions have other names."""

    name = "renamed"
    rank = 20

    def sample(self, sample: Sample, tokenizer: Any, *, seed: int) -> Sample:
        """See `Attack.sample`."""
        del tokenizer
        return rename_identifiers(sample.prompt, sample.reference, seed=seed).of(sample)


class OtherCase(Attack):
    """snake_case becomes camelCase, or the other way round."""

    name = "case"
    rank = 21

    def sample(self, sample: Sample, tokenizer: Any, *, seed: int) -> Sample:
        """See `Attack.sample`."""
        del tokenizer, seed
        return change_case(sample.prompt, sample.reference).of(sample)
