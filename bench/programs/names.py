"""What a name in a program stands for: import aliases, and variables whose class the text tells."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping
from dataclasses import dataclass

# Used where a program does not import the name: a fragment's imports are often out of sight.
CONVENTIONS = {
    "np": "numpy",
    "pd": "pandas",
    "tf": "tensorflow",
    "sns": "seaborn",
    "plt": "matplotlib.pyplot",
    "nn": "torch.nn",
    "F": "torch.nn.functional",
    "cPickle": "pickle",
    "_pickle": "pickle",
}
# Modules that were renamed: both names are the same thing.
RENAMED = {"cPickle": "pickle", "_pickle": "pickle", "commands": "subprocess", "ruamel_yaml": "ruamel.yaml"}


@dataclass(frozen=True, slots=True)
class Ref:
    """What an expression refers to: a module, class or function by its full path, or an instance of a class."""

    path: str
    instance: bool = False


class Names(ast.NodeVisitor):
    """Walks a program in its order and knows at every node what names stand for there.

    Subclasses override `visit_*` and call `generic_visit`, and ask `resolve`. Branches and loops are taken as straight
    lines: the last binding above wins.
    """

    def __init__(self, returns: Mapping[str, str] | None = None) -> None:
        """Start with nothing bound.

        Args:
            returns: full path of a function, method or class attribute -> class of the instance it gives. A call of a
                name in CapWords gives an instance of it, and `from_pretrained` an instance of its class, unasked.
        """
        self._returns = dict(returns or {})
        self._scopes: list[dict[str, Ref | None]] = [{}]
        self._attributes: dict[str, Ref | None] = {}
        self._stars: list[str] = []

    def walk(self, statement: ast.stmt) -> None:
        """Visit a statement of the top level; what nests deeper than Python recurses is left out."""
        try:
            self.visit(statement)
        except RecursionError:  # a model that repeats `1 + ` for ever: thousands of levels, and no call among them
            del self._scopes[1:]

    def is_bound(self, name: str) -> bool:
        """Whether the program gives the name a meaning."""
        return any(name in scope for scope in self._scopes)

    def bind(self, target: ast.expr, ref: Ref | None) -> None:
        """Let a target of an assignment stand for something, or for something unknown."""
        if isinstance(target, ast.Name):
            self._scopes[-1][target.id] = ref
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            self._attributes[f"{target.value.id}.{target.attr}"] = ref
        elif isinstance(target, ast.Tuple | ast.List):
            for element in target.elts:
                self.bind(element, None)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, None)

    def resolve(self, node: ast.expr) -> Ref | None:
        """What an expression stands for, or None if the text does not tell."""
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and (key := f"{node.value.id}.{node.attr}") in self._attributes:
                return self._attributes[key]
            return self._member(self.resolve(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self._result(node)
        if isinstance(node, ast.Subscript):
            return self._given(self._member(self.resolve(node.value), "__getitem__"))
        if isinstance(node, ast.Await | ast.NamedExpr):
            return self.resolve(node.value)
        return None

    def path(self, node: ast.expr) -> str:
        """The full path that an expression stands for; of a method, the class's path and its name; "" if unknown."""
        ref = self.resolve(node)
        return "" if ref is None or ref.instance else ref.path

    def _name(self, name: str) -> Ref | None:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        if name in CONVENTIONS:
            return Ref(CONVENTIONS[name])
        if self._stars and not hasattr(builtins, name):
            return Ref(f"{self._stars[-1]}.{name}")
        return Ref(RENAMED.get(name, name))

    def _member(self, of: Ref | None, name: str) -> Ref | None:
        if of is None:
            return None
        member = Ref(f"{of.path}.{name}")
        if of.instance and (given := self._returns.get(f"{member.path}!")):
            return Ref(given, instance=True)
        return member

    def _given(self, function: Ref | None) -> Ref | None:
        if function is None or function.instance:
            return None
        if (given := self._returns.get(function.path)) is not None:
            return Ref(given, instance=True)
        owner, _, name = function.path.rpartition(".")
        if name == "from_pretrained":
            return Ref(owner, instance=True)
        if name[:1].isupper() and not name.isupper():
            return Ref(function.path, instance=True)
        return None

    def _result(self, node: ast.Call) -> Ref | None:
        function = self.resolve(node.func)
        path = function.path if function else ""
        if path in ("__import__", "importlib.import_module", "builtins.__import__") and node.args:
            name = node.args[0]
            return Ref(name.value) if isinstance(name, ast.Constant) and isinstance(name.value, str) else None
        if path == "getattr" and len(node.args) >= 2:
            name = node.args[1]
            known = isinstance(name, ast.Constant) and isinstance(name.value, str)
            return self._member(self.resolve(node.args[0]), str(name.value)) if known else None  # type: ignore[attr-defined]
        return self._given(function)

    def visit_Import(self, node: ast.Import) -> None:  # noqa: D102
        for alias in node.names:
            root = alias.name.partition(".")[0]
            if alias.asname:
                self._scopes[-1][alias.asname] = Ref(RENAMED.get(alias.name, alias.name))
            else:
                self._scopes[-1][root] = Ref(RENAMED.get(root, root))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:  # noqa: D102
        if node.level or not node.module:
            for alias in node.names:
                self._scopes[-1][alias.asname or alias.name] = None
            return
        module = RENAMED.get(node.module, node.module)
        for alias in node.names:
            if alias.name == "*":
                self._stars.append(module)
            else:
                self._scopes[-1][alias.asname or alias.name] = Ref(f"{module}.{alias.name}")

    def visit_Assign(self, node: ast.Assign) -> None:  # noqa: D102
        self.visit(node.value)
        ref = self.resolve(node.value)
        for target in node.targets:
            if isinstance(target, ast.Tuple | ast.List) and isinstance(node.value, ast.Tuple | ast.List):
                pairs = zip(target.elts, node.value.elts, strict=False)
                for element, value in pairs:
                    self.bind(element, self.resolve(value))
            else:
                self.bind(target, ref)
            self.visit(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:  # noqa: D102
        if node.value is not None:
            self.visit(node.value)
        self.bind(node.target, self._annotated(node.annotation))
        self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:  # noqa: D102
        self.visit(node.value)
        self.bind(node.target, self.resolve(node.value))

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:  # noqa: D102
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, self.resolve(item.context_expr))
        for statement in node.body:
            self.visit(statement)

    visit_AsyncWith = visit_With  # noqa: N815

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:  # noqa: D102
        self.visit(node.iter)
        self.bind(node.target, None)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    visit_AsyncFor = visit_For  # noqa: N815

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:  # noqa: D102
        for decorator in node.decorator_list:
            self.visit(decorator)
        self._scopes[-1][node.name] = None
        self._function(node.args, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:  # noqa: D102
        self._function(node.args, [node.body])

    def _function(self, arguments: ast.arguments, body: list[ast.stmt] | list[ast.expr]) -> None:
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self.visit(default)
        scope: dict[str, Ref | None] = {}
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            scope[argument.arg] = self._annotated(argument.annotation)
        for rest in (arguments.vararg, arguments.kwarg):
            if rest is not None:
                scope[rest.arg] = None
        self._scopes.append(scope)
        for item in body:
            self.visit(item)
        self._scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:  # noqa: D102
        for expression in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(expression)
        self._scopes[-1][node.name] = None
        for statement in node.body:
            self.visit(statement)

    def _annotated(self, annotation: ast.expr | None) -> Ref | None:
        """An instance of the class that an annotation names; `X | None` and `Optional[X]` count as X."""
        if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
            return self._annotated(annotation.left) or self._annotated(annotation.right)
        if isinstance(annotation, ast.Subscript) and self.path(annotation.value) in ("Optional", "typing.Optional"):
            return self._annotated(annotation.slice)
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                return self._annotated(ast.parse(annotation.value, mode="eval").body)
            except SyntaxError:
                return None
        if not isinstance(annotation, ast.Name | ast.Attribute):
            return None
        path = self.path(annotation)
        return Ref(path, instance=True) if path and not hasattr(builtins, path) else None
