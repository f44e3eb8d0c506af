"""The names that installed modules have, for the commit points of phrases.

They are read from source: a list may be compiled for packages whose code nobody wants to run. A module whose source
does not say all its names, because it is compiled or makes names while it is imported, is imported. If that fails, its
names count as unknown, and no phrase is shortened for its sake: with a part of them it would become too short.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import logging
import sys
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from prod_decode.errors import ProdError, did_you_mean, reason

STDLIB = "stdlib"

# How code calls modules, by the conventions of their own documentation.
ALIASES = {
    "np": "numpy",
    "pd": "pandas",
    "plt": "matplotlib.pyplot",
    "mpl": "matplotlib",
    "sns": "seaborn",
    "tf": "tensorflow",
    "nn": "torch.nn",
    "F": "torch.nn.functional",
    "nx": "networkx",
    "ET": "xml.etree.ElementTree",
}

# What a module calls, or has, where names are made that its source does not show.
_MAKERS = ("globals", "vars", "locals", "setattr", "exec", "__getattr__", "modules")

_log = logging.getLogger(__name__)


class NameTables:
    """What stands in modules and classes of some packages."""

    def __init__(self, packages: Iterable[str]) -> None:
        """Find the packages.

        Args:
            packages: the names by which they are imported, such as `numpy`; `stdlib` is the whole standard library.

        Raises:
            ProdError: one of them is not installed here.
        """
        self._tops: set[str] = set()
        for package in packages:
            if package == STDLIB:
                self._tops |= sys.stdlib_module_names
                continue
            if not all(map(str.isidentifier, package.split("."))) or _Source.find(package.partition(".")[0]) is None:
                near = did_you_mean(package, [STDLIB, *ALIASES.values(), *sys.stdlib_module_names])
                raise ProdError(
                    f"expected the name of an installed package, or `{STDLIB}`, got {package!r}: install it here{near}"
                )
            self._tops.add(package.partition(".")[0])
        self._sources: dict[str, _Source | None] = {}
        self._names: dict[str, set[str] | None] = {}

    def __call__(self, dotted: str) -> set[str] | None:
        """All names in a module or class, by its dotted name or a usual alias such as `np`.

        Returns:
            None if it is not in one of the packages, or its names cannot be found out.
        """
        top, dot, rest = dotted.partition(".")
        dotted = ALIASES.get(top, top) + dot + rest
        if dotted.partition(".")[0] not in self._tops:
            return None
        if self._source(dotted) is not None:
            return self._module(dotted)
        module, _, name = dotted.rpartition(".")
        source = self._source(module) if module else None
        return None if source is None else source.classes.get(name)

    def _source(self, module: str) -> _Source | None:
        if module not in self._sources:
            self._sources[module] = _Source.find(module)
        return self._sources[module]

    def _module(self, module: str) -> set[str] | None:
        if module not in self._names:
            self._names[module] = set()  # where modules take all of each other's names
            self._names[module] = self._read(module)
        return self._names[module]

    def _read(self, module: str) -> set[str] | None:
        source = self._source(module)
        if source is None:
            return set()  # not installed, such as what is there on another system: nothing comes from it
        names = source.bound | source.listed | source.submodules
        if source.is_partial:
            try:
                names |= set(dir(importlib.import_module(module)))
            except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever the code of others does)
                _log.warning("the names of %s are not known, no phrase is shortened by them: %s", module, reason(error))
                return None
        for star in source.stars:
            found = self._exported(source.resolve(star))
            if found is None:
                return None
            names |= found
        return names

    def _exported(self, module: str) -> set[str] | None:
        """What `from module import *` gives."""
        names, source = self._module(module), self._source(module)
        if names is None:
            return None
        if source is not None and source.listed and not source.is_partial:
            return source.listed
        return {name for name in names if not name.startswith("_")}


class _Source:
    """The source of a module: what can be known of it without running it."""

    def __init__(self, module: str, files: Sequence[Path], folder: Path | None) -> None:
        self.module = module
        self._folder = folder
        self._trees = [_parse(path) for path in files]

    @classmethod
    def find(cls, module: str) -> _Source | None:
        """A module's, found without importing what it is in."""
        within: list[str] | None = None
        spec: importlib.machinery.ModuleSpec | None = None
        if module in sys.builtin_module_names:
            return cls(module, [], None)
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:count]), within)
            if spec is None:
                return None
            within = list(spec.submodule_search_locations or ())
        if spec is None or spec.origin is None:
            return None
        origin = Path(spec.origin)
        stub = origin.parent / (origin.name.partition(".")[0] + ".pyi")
        files = [path for path in (origin, stub) if path.suffix in (".py", ".pyi") and path.is_file()]
        return cls(module, files, origin.parent if spec.submodule_search_locations else None)

    @cached_property
    def is_partial(self) -> bool:
        """Whether it has names that its source does not show."""
        return (
            not self._trees
            or any(tree is None for tree in self._trees)
            or any(_word(node) in _MAKERS for tree in self._trees if tree for node in ast.walk(tree))
        )

    @cached_property
    def submodules(self) -> set[str]:
        """The modules in it, if it is a package."""
        return {
            path.name.partition(".")[0]
            for path in (self._folder.iterdir() if self._folder else ())
            if path.is_dir() or path.suffix in (".py", ".so", ".pyd")
        }

    @cached_property
    def bound(self) -> set[str]:
        """The names that are assigned, defined or imported at its top level."""
        return set().union(*(_bound(tree.body)[0] for tree in self._trees if tree))

    @cached_property
    def stars(self) -> list[ast.ImportFrom]:
        """Its imports of all names of another module."""
        return [star for tree in self._trees if tree for star in _bound(tree.body)[1]]

    @cached_property
    def listed(self) -> set[str]:
        """The strings in what is assigned to `__all__` or added to it."""
        return {
            part.value
            for tree in self._trees
            for node in (tree.body if tree else ())
            if "__all__" in map(_word, ast.walk(node))
            for part in ast.walk(node)
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.isidentifier()
        }

    @cached_property
    def classes(self) -> dict[str, set[str]]:
        """The names in its classes that have no bases, whose names would be in them too."""
        return {
            node.name: _bound(node.body)[0]
            for tree in self._trees
            for node in (tree.body if tree else ())
            if isinstance(node, ast.ClassDef) and not node.bases
        }

    def resolve(self, star: ast.ImportFrom) -> str:
        """The dotted name of the module of an import."""
        if not star.level:
            return star.module or ""
        around = self.module.split(".")
        around = around[: len(around) - star.level + (self._folder is not None)]
        return ".".join([*around, *([star.module] if star.module else [])])


def _parse(path: Path) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings of code that is not ours
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError, RecursionError):
            return None


def _word(node: ast.AST) -> str | None:
    """The name that an expression or definition is about."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.name if isinstance(node, ast.FunctionDef) else None


def _bound(body: list[ast.stmt]) -> tuple[set[str], list[ast.ImportFrom]]:
    """The names that statements bind in their own scope, and the imports of all names of another module."""
    names: set[str] = set()
    stars = []
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names if alias.name != "*"}
            stars += [node] * any(alias.name == "*" for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif not isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            waiting += ast.iter_child_nodes(node)
    return names, stars
