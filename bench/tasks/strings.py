"""What strings in a program are made of, and which values come from its users; one function deep."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from bench.programs.names import Names
from bench.tasks.insecure_tables import ESCAPES, REQUEST


@dataclass(frozen=True, slots=True)
class Hole:
    """A part of a string that the program fills in."""

    node: ast.expr


# Stands for a value that the text does not show, as behind `**fields`.
_UNKNOWN = ast.Name("_", ast.Load())
Template = tuple["str | Hole", ...]
# What they give is no text, or text that has been made safe.
_HARMLESS = {"int", "float", "len", "id", "bool", "shlex.quote", "pipes.quote", "quote"}
_FORMAT_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_PERCENT_FIELD = re.compile(r"%%|%(?:\((\w+)\))?[-#0 +]*[\d*]*(?:\.[\d*]+)?([a-zA-Z])")


class Strings(Names):
    """A walk that also knows of what parts strings are made, and which values come from a request or a user.

    Attributes:
        functions: those that the walk is in, outermost first.
        statement: the innermost one that it is in.
    """

    def __init__(self) -> None:
        """Start outside of everything."""
        super().__init__()
        self.functions: list[ast.FunctionDef | ast.AsyncFunctionDef] = []
        self.statement: ast.stmt | None = None
        self._strings: list[dict[str, Template]] = [{}]
        self._tainted: list[set[str]] = [set()]

    def walk(self, statement: ast.stmt) -> None:
        """See `Names.walk`."""
        super().walk(statement)
        # What was begun in a statement that was left out.
        del self._strings[1:], self._tainted[1:], self.functions[:]
        self.statement = None

    # ---- scopes and assignments

    def visit(self, node: ast.AST) -> None:
        """Note the statement."""
        before = self.statement
        if isinstance(node, ast.stmt):
            self.statement = node
        super().visit(node)
        self.statement = before

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:  # noqa: N802
        """Open a scope for strings too; what a route passes to the function comes from users."""
        self._strings.append({})
        self._tainted.append(self._route_parameters(node))
        self.functions.append(node)
        super().visit_FunctionDef(node)
        self.functions.pop()
        self._tainted.pop()
        self._strings.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def _route_parameters(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
        routed = any(
            isinstance(d, ast.Call)
            and isinstance(d.func, ast.Attribute)
            and d.func.attr in ("route", "get", "post", "put")
            for d in node.decorator_list
        )
        return {a.arg for a in node.args.args if a.arg not in ("self", "request")} if routed else set()

    def visit_Assign(self, node: ast.Assign) -> None:  # noqa: N802
        """Note of what parts the targets are."""
        super().visit_Assign(node)
        for target in node.targets:
            self._assigned(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:  # noqa: N802
        """Note of what parts the target is."""
        super().visit_AnnAssign(node)
        if node.value is not None:
            self._assigned(node.target, node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:  # noqa: N802
        """Make a string longer."""
        self.visit(node.value)
        name = key_of(node.target)
        if isinstance(node.op, ast.Add) and name:
            before = self._strings[-1].get(name)
            if before is not None:
                self._strings[-1][name] = (*before, *(self.template(node.value) or (Hole(node.value),)))
            if self.is_tainted(node.value):
                self._tainted[-1].add(name)

    def _assigned(self, target: ast.expr, value: ast.expr) -> None:
        name = key_of(target)
        if not name:
            return
        template = self.template(value)
        if template is None:
            self._strings[-1].pop(name, None)
        else:
            self._strings[-1][name] = template
        if self.is_tainted(value):
            self._tainted[-1].add(name)
        else:
            self._tainted[-1].discard(name)

    # ---- templates

    def template(self, node: ast.expr) -> Template | None:
        """The parts of a string that is built here or in a variable; None for what is no string in sight."""
        if isinstance(node, ast.Constant):
            return (node.value,) if isinstance(node.value, str) else None
        if isinstance(node, ast.JoinedStr):
            parts: list[str | Hole] = []
            for value in node.values:
                if isinstance(value, ast.Constant):
                    parts.append(str(value.value))
                elif isinstance(value, ast.FormattedValue):
                    parts += self._constant(value.value) or (Hole(value.value),)
            return tuple(parts)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self.template(node.left), self.template(node.right)
            if left is None and right is None:
                return None
            return (*(left or (Hole(node.left),)), *(right or (Hole(node.right),)))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            left = self.template(node.left)
            return None if left is None else tuple(self._percent(left, node.right))
        if isinstance(node, ast.IfExp):
            return self.template(node.body) or self.template(node.orelse)
        if isinstance(node, ast.Call):
            return self._template_of_call(node)
        if name := key_of(node):
            for strings in reversed(self._strings):
                if name in strings:
                    return strings[name]
        return None

    def _template_of_call(self, node: ast.Call) -> Template | None:
        if isinstance(node.func, ast.Attribute):
            if node.func.attr == "format":
                inner = self.template(node.func.value)
                return None if inner is None else tuple(self._format(inner, node))
            if node.func.attr in ("strip", "lower", "upper", "encode", "rstrip", "lstrip", "replace"):
                return self.template(node.func.value)
            if node.func.attr == "join" and len(node.args) == 1 and isinstance(node.args[0], ast.List | ast.Tuple):
                glue = self.template(node.func.value) or (" ",)
                parts: list[str | Hole] = []
                for element in node.args[0].elts:
                    parts += (*(self.template(element) or (Hole(element),)), *glue)
                return tuple(parts) if any(isinstance(part, str) and part.strip() for part in parts) else None
        path = self.path(node.func)
        if path.rpartition(".")[2] in ("text", "dedent", "SQL", "str", "cleandoc", "unicode") and node.args:
            return self.template(node.args[0])
        return None

    def _constant(self, node: ast.expr) -> Template | None:
        """The template of a part, if it is known text."""
        template = self.template(node)
        return template if template is not None and all(isinstance(part, str) for part in template) else None

    def _percent(self, template: Template, right: ast.expr) -> Iterator[str | Hole]:
        values = list(right.elts) if isinstance(right, ast.Tuple) and right.elts else [right]
        named = (
            {k.value: v for k, v in zip(right.keys, right.values, strict=True) if isinstance(k, ast.Constant)}
            if isinstance(right, ast.Dict)
            else {}
        )

        def value(field: re.Match[str]) -> str | ast.expr:
            if field[0] == "%%":
                return "%"
            found = named.get(field[1]) if field[1] else (values.pop(0) if len(values) > 1 else values[0])
            return found or right

        return self._filled(template, _PERCENT_FIELD, value)

    def _format(self, template: Template, call: ast.Call) -> Iterator[str | Hole]:
        named = {k.arg: k.value for k in call.keywords if k.arg}
        numbers = count()

        def value(field: re.Match[str]) -> str | ast.expr:
            if field[0] in ("{{", "}}"):
                return field[0][0]
            name = re.split(r"[.\[:!]", field[1] or "")[0]
            index = next(numbers) if not name else int(name) if name.isdigit() else -1
            return named.get(name) or (call.args[index] if 0 <= index < len(call.args) else _UNKNOWN)

        return self._filled(template, _FORMAT_FIELD, value)

    def _filled(
        self, template: Template, fields: re.Pattern[str], value: Callable[[re.Match[str]], str | ast.expr]
    ) -> Iterator[str | Hole]:
        """A template with its fields replaced: by text, or by what the program fills in."""
        for part in template:
            if isinstance(part, Hole):
                yield part
                continue
            at = 0
            for field in fields.finditer(part):
                yield part[at : field.start()]
                at = field.end()
                found = value(field)
                if isinstance(found, str):
                    yield found
                else:
                    yield from self._constant(found) or (Hole(found),)
            yield part[at:]

    def holes(self, template: Template) -> Iterator[tuple[str, Hole]]:
        """The holes that are not known to be harmless, each with the text before it."""
        before = ""
        for part in template:
            if isinstance(part, str):
                before += part
                continue
            if not self._is_harmless(part.node):
                yield before, part
            before += "?"

    def _is_harmless(self, node: ast.expr) -> bool:
        """A number, a constant, or a list of placeholders."""
        if isinstance(node, ast.Constant):
            return True
        if isinstance(node, ast.Name) and node.id.isupper():
            return True
        if isinstance(node, ast.Call) and self._callee(node) in _HARMLESS:
            return True
        return any(
            isinstance(n, ast.Constant) and n.value in ("?", "%s", "?,", "%s,", ",?", ",%s") for n in ast.walk(node)
        )

    def _callee(self, call: ast.Call) -> str:
        """What is called, by its path, or by its last name where the path is not known."""
        return self.path(call.func) or (call.func.attr if isinstance(call.func, ast.Attribute) else "")

    # ---- taint, one function deep

    def is_tainted(self, node: ast.expr) -> bool:
        """Whether text from a request or a user gets into an expression without passing a function that cleans it."""
        if isinstance(node, ast.Call):
            name = self._callee(node)
            if ESCAPES.search(name.rpartition(".")[2]):
                return False
            if REQUEST.search(dotted(node.func)) or REQUEST.search(name):
                return True
        if isinstance(node, ast.Attribute | ast.Subscript) and REQUEST.search(dotted(node)):
            return True
        if name := key_of(node):
            return any(name in tainted for tainted in self._tainted)
        return any(
            self.is_tainted(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)
        ) or any(self.is_tainted(child.value) for child in ast.iter_child_nodes(node) if isinstance(child, ast.keyword))


def key_of(node: ast.expr) -> str:
    """The name of a variable or of an attribute of one; "" for others."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return ""


def dotted(node: ast.expr) -> str:
    """An expression as it is written, calls and subscripts left out."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return dotted(node.func)
    if isinstance(node, ast.Subscript):
        return dotted(node.value)
    return ""


def last_of(node: ast.AST) -> str:
    """The last name of a dotted expression; "" for others."""
    return node.id if isinstance(node, ast.Name) else str(getattr(node, "attr", ""))
