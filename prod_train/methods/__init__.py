"""Ways to forget, one a file: each with its formula, its source, its settings, and what it prepares.

A file that is put here is found, and its options become flags (docs/guide/add-a-method.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from prod_decode.errors import ProdError
from prod_train.method import Method, RunSettings
from prod_train.option import Option
from prod_train.registry import classes_in

METHODS: Mapping[str, type[Method]] = classes_in(__name__, __path__, Method)  # type: ignore[type-abstract]

# Every option of a method, in the order of the methods that have it, and these by name with their defaults.
OPTIONS: Mapping[Option, Mapping[str, object]] = {
    option: {name: cls.options[option] for name, cls in METHODS.items() if option in cls.options}
    for option in dict.fromkeys(option for cls in METHODS.values() for option in cls.options)
}


def make_method(name: str, settings: RunSettings) -> Method:
    """The method of a name, with its settings.

    Raises:
        ProdError: an unknown name.
    """
    if name not in METHODS:
        raise ProdError(f"--method: expected {', '.join(METHODS)}, got {name!r}")
    return METHODS[name](settings)
