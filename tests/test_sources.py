"""Entries on disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from prod_decode.entries import Entry
from prod_decode.errors import ProdError
from prod_decode.sources import read_entries, read_json_lines, read_text, read_texts


def test_phrase_lists_have_one_phrase_a_line(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("yaml.load(\n\n  eval(\n")
    entries = list(read_entries([file], boundary="both"))
    assert [(entry.text, entry.policy, entry.boundary) for entry in entries] == [
        ("yaml.load(", "phrase", "both"),
        ("  eval(", "phrase", "both"),
    ]
    assert entries[1].source == f"{file}:3"


def test_json_lines_carry_every_field_and_defaults_fill_the_others(tmp_path: Path) -> None:
    file = tmp_path / "entries.jsonl"
    rows = [
        {"text": "a\u2028bc", "id": "separator", "source": "here", "boundary": "none"},
        {"text": "d" * 200, "policy": "quote", "max_quote": 50},
        {"text": "e" * 200, "policy": "quote"},
        {"text": "phrase"},
    ]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    assert list(read_entries([file], max_quote=70, boundary="both")) == [
        Entry("a\u2028bc", id="separator", source="here", boundary="none"),
        Entry("d" * 200, source=f"{file}:2", policy="quote", max_quote=50),
        Entry("e" * 200, source=f"{file}:3", policy="quote", max_quote=70),
        Entry("phrase", source=f"{file}:4", boundary="both"),
    ]


def test_a_directory_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # whoever runs this as root can read everything
    with pytest.raises(ProdError, match=r"cannot read .*closed: Permission denied"):
        list(read_entries([tmp_path]))


def test_directories_give_one_document_a_file_and_report_what_they_skip(tmp_path: Path) -> None:
    (tmp_path / "b" / "__pycache__").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "two.py").write_text("two = 2\n")
    (tmp_path / "a.py").write_text("one = 1\n")
    (tmp_path / "empty.py").write_text("\n")
    (tmp_path / "latin.py").write_bytes(b"caf\xe9")
    (tmp_path / "zero.bin").write_bytes(b"\0\1")
    (tmp_path / "b" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (tmp_path / ".git" / "config").write_text("x")
    (tmp_path / ".hidden").write_text("x")
    skipped: list[str] = []
    entries = list(read_entries([tmp_path], max_quote=60, skipped=lambda path, why: skipped.append(path.name)))
    assert [(Path(entry.name).name, entry.text, entry.policy, entry.max_quote) for entry in entries] == [
        ("a.py", "one = 1\n", "quote", 60),
        ("two.py", "two = 2\n", "quote", 60),
    ]
    assert sorted(skipped) == ["latin.py", "zero.bin"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "bom.py").write_bytes(b"\xef\xbb\xbfx = 1\r\n")
    assert list(read_texts([tmp_path / "bom.py"])) == [(tmp_path / "bom.py", "x = 1\r\n")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "abc"}\n{"text": ', r"x\.jsonl:2: expected a JSON object a line, got invalid JSON"),
        ("x.jsonl", b'["abc"]', r"x\.jsonl:1: expected a JSON object, got list"),
        ("x.jsonl", b'{"id": "abc"}', r"x\.jsonl:1: expected a key 'text', got id"),
        ("x.jsonl", b'{"text": 5}', r"x\.jsonl:1: expected 'text' to be a string, got 5"),
        ("x.jsonl", b'{"text": "abc", "cost": 1}', r"x\.jsonl:1: unknown key 'cost', expected some of boundary"),
        ("x.jsonl", b'{"text": "abc", "polcy": "quote"}', r"x\.jsonl:1: unknown key 'polcy', expected some of bound"),
        ("x.jsonl", b'{"text": "abc", "id": 7}', r"x\.jsonl:1: expected 'id' to be a string, got 7"),
        (
            "x.jsonl",
            b'{"text": "abc", "policy": "ban"}',
            r"x\.jsonl:1\): expected policy 'phrase' or 'quote', got 'ban'",
        ),
        ("x.py", b"\xff\xfe", r"x\.py is not UTF-8 text \(byte 0xff at 0\)"),
        ("x.py", b"a\0b", r"x\.py is a binary file, expected UTF-8 text"),
        ("x.py", b" \n", r"x\.py is empty, expected a document to protect"),
    ],
)
def test_what_a_named_file_may_not_be(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProdError, match=message):
        list(read_entries([tmp_path / name]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProdError, match=r"cannot read .*nowhere\.txt: No such file"):
        read_text(tmp_path / "nowhere.txt")
    with pytest.raises(ProdError, match=r"cannot read .*nowhere\.jsonl: No such file"):
        list(read_json_lines(tmp_path / "nowhere.jsonl"))
