"""The page of events: every line that the packages log, and every note of a command, is on it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests import ROOT

PAGE = " ".join((ROOT / "docs" / "reference" / "events.md").read_text(encoding="utf-8").replace("`", "").split())
SOURCES = sorted([*(ROOT / "prod_decode").rglob("*.py"), *(ROOT / "prod_train").rglob("*.py")])

LOGS = ("info", "warning", "error")
# Messages that consist of what varies, or that a reader is not meant to see.
LEFT_OUT = {"%s", "%s\n\n%s"}


def messages(source: str) -> Iterator[str]:
    """What is logged, warned of, or noted, with `...` for what varies."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = ast.unparse(node.func)
        name = called.rpartition(".")[2]
        if not ((name in LOGS and "log" in called.lower()) or called in ("note", "_tell", "warnings.warn")):
            continue
        for argument in node.args:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield re.sub(r"%(\.0f|[sd])( %%)?", "...", argument.value)
            elif isinstance(argument, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in argument.values]
                yield "".join(map(str, parts))


def pieces(message: str) -> list[str]:
    """Those parts of a message that do not vary and are long enough to be told from others."""
    return [piece.strip(" ;:,()") for piece in message.replace("`", "").split("...") if len(piece.strip(" ;:,()")) > 9]


def logged() -> Iterator[tuple[str, str]]:
    for path in SOURCES:
        for message in messages(path.read_text(encoding="utf-8")):
            yield path.relative_to(ROOT).as_posix(), " ".join(message.split())


FOUND = [(where, said) for where, said in logged() if pieces(said)]


def test_there_are_messages() -> None:
    where = {path for path, _ in FOUND}
    assert {"prod_decode/vllm.py", "prod_decode/sglang.py", "prod_decode/storage/jit.py"} <= where
    assert {"prod_decode/command/scanning.py", "prod_train/targets/targets.py"} <= where


@pytest.mark.parametrize(("where", "said"), FOUND)
def test_a_message_is_on_the_page(where: str, said: str) -> None:
    """Its first part stands there; of a long one the beginning, since a remedy need not be repeated."""
    assert pieces(said)[0][:40] in PAGE, f"{where}: {said}"


def test_what_counts_as_a_message() -> None:
    source = '_log.warning("%s is damaged (%s): again", a, b)\nnote(f"waived: {a} more")\nprint("no")\n'
    assert list(messages(source)) == ["... is damaged (...): again", "waived: ... more"]
