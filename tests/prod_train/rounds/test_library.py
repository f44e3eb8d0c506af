"""Rows of the standard library share nothing with other sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from prod_train.config.config import Config
from prod_train.data.alike import COMPARED, near_copies
from prod_train.rounds.library import library, pieces_of
from tests.tiny import write_jsonl, write_snippets


@pytest.fixture(scope="module")
def plain() -> list[str]:
    return ["".join(piece.row) for piece in library([], 40, longest=600)]


def test_they_are_the_same_every_time(plain: list[str]) -> None:
    assert plain == ["".join(piece.row) for piece in library([], 40, longest=600)]
    assert len(set(plain)) == 40
    assert max(len(text.encode()) for text in plain) <= 600


def test_what_is_to_be_forgotten_is_left_out(plain: list[str], tmp_path: Path) -> None:
    """Whole, in another layout, and a line of it alone: each by a plain search."""
    third, line = next(
        (text, line) for text in plain[2:] for line in text.splitlines() if 60 <= len(_normal(line)) < len(text) / 4
    )
    records = [
        {"text": plain[0]},
        {"prompt": plain[1][:30], "completion": plain[1][30:].replace("    ", "\t")},
        {"prompt": "def f():\n", "completion": line + "\n" + "".join(f"    x{n} = {n}\n" for n in range(60))},
    ]
    apart = pieces_of(write_jsonl(tmp_path / "f.jsonl", records), Config())
    found = ["".join(piece.row) for piece in library(apart, 38, longest=600)]
    assert plain[0] not in found
    assert plain[1] not in found
    assert third not in found
    runs = {text[at : at + 60] for text in map(_normal, _texts(records)) for at in range(len(text) - 59)}
    for text in map(_normal, found):
        assert not any(text[at : at + 60] in runs for at in range(len(text) - 59))


def test_a_near_copy_without_a_long_run_is_left_out(plain: list[str], tmp_path: Path) -> None:
    """Every 40 characters another word: nothing of 60 in a row is left, and most is there in pieces of 24."""
    text = _normal(plain[3])
    broken = "@".join(text[at : at + 40] for at in range(0, len(text), 40))
    apart = pieces_of(write_jsonl(tmp_path / "f.jsonl", [{"text": broken}]), Config())
    found = ["".join(piece.row) for piece in library(apart, 39, longest=600)]
    assert found == [text for text in plain if text != plain[3]]


def test_an_answer_of_a_chat_is_left_out(plain: list[str], tmp_path: Path) -> None:
    chat = [{"from": "human", "value": "Write it."}, {"from": "gpt", "value": plain[5]}]
    file = write_jsonl(tmp_path / "f.jsonl", [{"conversations": chat}])
    apart = pieces_of(file, Config(format="sharegpt"))
    assert ["".join(piece.row) for piece in library(apart, 39, longest=600)] == [t for t in plain if t != plain[5]]


def test_two_sets_share_nothing() -> None:
    held = library([], 20, longest=600)
    kept = library(held, 60, longest=600)
    assert not {piece.row for piece in held} & {piece.row for piece in kept}
    assert near_copies([piece.text for piece in held], [piece.text for piece in kept]) == set()


def test_other_rows_change_nothing(plain: list[str], tmp_path: Path) -> None:
    apart = pieces_of(write_snippets(tmp_path / "f.jsonl"), Config())
    assert ["".join(piece.row) for piece in library(apart, 40, longest=600)] == plain


def _texts(records: list[dict[str, str]]) -> list[str]:
    return [record.get("text") or record["prompt"] + record["completion"] for record in records]


def _normal(text: str) -> str:
    return "".join(map(chr, COMPARED.code_points(text)))
