"""Classes that are found where they are put: one file each, and nothing else names it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

from prod_decode.errors import ProdError

_T = TypeVar("_T")


def classes_in(package: str, path: Iterable[str], base: type[_T]) -> dict[str, type[_T]]:
    """The classes of a kind that the modules of a package define and that have a `name`, by that name.

    Args:
        package: its `__name__`.
        path: its `__path__`.
        base: what they derive from; it has a `rank`, by which they are ordered, then by name.

    Raises:
        ProdError: two have one name.
    """
    found: dict[str, type[_T]] = {}
    for info in iter_modules(path):
        module = import_module(f"{package}.{info.name}")
        for cls in vars(module).values():
            if not (isinstance(cls, type) and issubclass(cls, base) and cls.__module__ == module.__name__):
                continue
            if (name := getattr(cls, "name", None)) is None:
                continue
            if name in found:
                raise ProdError(
                    f"{module.__name__}.{cls.__name__}: expected a name of its own, got {name!r}, which "
                    f"{found[name].__module__}.{found[name].__name__} has: rename one"
                )
            found[name] = cls
    return dict(sorted(found.items(), key=lambda pair: (getattr(pair[1], "rank", 0), pair[0])))
