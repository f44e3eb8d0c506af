"""How the modules lie: in folders whose arrows point one way, and none takes another's private names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import ROOT

PACKAGES = ("prod_decode", "prod_train", "bench")  # each may import those before it


class Import(NamedTuple):
    """One name that a module imports, wherever: at the top, in a function, or for type checkers alone."""

    importer: str
    imported: str
    name: str


@cache
def modules() -> Mapping[str, Path]:
    files = (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports_in(importer: str, source: str, known: Set[str]) -> Iterator[Import]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(importer, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{importer} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Import(importer, whole, "") if whole in known else Import(importer, node.module or "", alias.name)


@cache
def imports() -> list[Import]:
    found = (imports_in(name, file.read_text(), modules().keys()) for name, file in modules().items())
    return [one for some in found for one in some if one.imported in modules()]


def folder(module: str) -> str:
    """A module's folder; a module beside a package's folders, such as `prod_decode.hf`, stands for itself."""
    file = modules()[module]
    return module if file.parent.parent == ROOT else ".".join(file.relative_to(ROOT).parent.parts)


def circle(edges: Set[tuple[str, str]]) -> list[str]:
    """The nodes of a circle; none if there is none: what nothing points at is taken away until nothing is left."""
    left = set(edges)
    while left:
        loose = {source for source, _ in left} - {target for _, target in left}
        if not loose:
            ends = {target for _, target in left} - {source for source, _ in left}
            if not ends:
                return sorted({source for source, _ in left})
            left = {(source, target) for source, target in left if target not in ends}
        left = {(source, target) for source, target in left if source not in loose}
    return []


def test_circles_are_found() -> None:
    assert circle({("a", "b"), ("b", "c"), ("c", "b"), ("c", "d"), ("d", "e")}) == ["b", "c"]
    assert circle({("a", "b"), ("b", "c"), ("a", "c")}) == []
    source = "from prod_decode import hf\ndef f():\n    from prod_decode.errors import ProdError\n"
    assert list(imports_in("x", source, {"prod_decode.hf"})) == [
        Import("x", "prod_decode.hf", ""),
        Import("x", "prod_decode.errors", "ProdError"),
    ]


def test_there_is_something_to_look_at() -> None:
    assert len(modules()) > 100
    assert Import("prod_decode.hf", "prod_decode.masking", "check_width") in imports()


def test_no_module_imports_in_a_circle() -> None:
    assert circle({(one.importer, one.imported) for one in imports() if one.importer != one.imported}) == []


def test_no_folder_imports_in_a_circle() -> None:
    pairs = {(folder(one.importer), folder(one.imported)) for one in imports()}
    assert circle({(source, target) for source, target in pairs if source != target}) == []


def test_packages_depend_in_one_direction() -> None:
    order = {name: number for number, name in enumerate(PACKAGES)}
    upward = [one for one in imports() if order[one.importer.split(".")[0]] < order[one.imported.split(".")[0]]]
    assert upward == []


def test_no_module_takes_the_private_names_of_another() -> None:
    assert [one for one in imports() if one.name.startswith("_") and not one.name.startswith("__")] == []
    assert [name for name in modules() if name.split(".")[-1].startswith("_") and not name.endswith("__main__")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_has_at_most_ten_modules_and_says_what_it_answers(package: str) -> None:
    for path in {file.parent for name, file in modules().items() if name.split(".")[0] == package}:
        count = len([file for file in path.glob("*.py") if file.name != "__init__.py"])
        assert count <= 10 or path == ROOT / "prod_train" / "methods", path  # one file for each method
        assert ast.get_docstring(ast.parse((path / "__init__.py").read_text())), path


def test_a_long_module_has_a_reason() -> None:
    page = (
        (ROOT / "docs" / "design" / "house.md")
        .read_text()
        .partition("## Modules of more than")[2]
        .partition("\n## ")[0]
    )
    reasons = dict(re.findall(r"^\| `([\w/]+\.py)` \| (.+) \|$", page, re.MULTILINE))
    long = {str(file.relative_to(ROOT)) for file in modules().values() if len(file.read_text().splitlines()) > 400}
    assert long == reasons.keys()
    assert min(map(len, reasons.values())) > 20
