"""Entries on disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from prod_decode.blocklist.entries import Entry
from prod_decode.blocklist.sources import read_entries, read_json_lines, read_text, read_texts
from prod_decode.errors import ProdError
from prod_decode.storage.files import require_file


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
    skipped: list[str] = []
    (tmp_path / "z.py").write_text("z")
    assert [entry.text for entry in read_entries([tmp_path], skipped=skipped.append)] == ["z"]
    assert skipped == [f"cannot read {tmp_path}/closed: Permission denied"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with everything that one may have in it."""
    (tmp_path / "b" / "__pycache__").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".d").mkdir()
    (tmp_path / "b" / "two.py").write_text("two = 2\n")
    (tmp_path / "a.py").write_text("one = 1\n")
    (tmp_path / "empty.py").write_text("\n")
    (tmp_path / "latin.py").write_bytes(b"caf\xe9")
    (tmp_path / "control.py").write_bytes(b"quote\x93")
    (tmp_path / "zero.bin").write_bytes(b"eval(\0\xff")
    (tmp_path / "b" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (tmp_path / ".git" / "config").write_text("x")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / ".d" / "c.txt").write_text("notes")
    (tmp_path / "b" / "loop").symlink_to("..")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "self").symlink_to("self")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


SKIPPED = [
    "cannot read {}/dangling: No such file or directory",
    "{}/pipe is a FIFO: not opened",
    "cannot read {}/self: Too many levels of symbolic links",
]


def test_directories_give_one_document_a_file_and_report_what_they_skip(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    skipped: list[str] = []
    entries = list(read_entries([tree], max_quote=60, skipped=skipped.append))
    assert [(Path(entry.name).relative_to(tree).as_posix(), entry.text) for entry in entries] == [
        (".hidden", "hidden"),
        ("a.py", "one = 1\n"),
        ("latin.py", "caf\u00e9"),
        (".d/c.txt", "notes"),
        ("b/two.py", "two = 2\n"),
    ]
    assert {(entry.policy, entry.max_quote) for entry in entries} == {("quote", 60)}
    assert skipped == [
        *(why.format(tree) for why in SKIPPED),
        f"{tree}/control.py is not UTF-8 text (byte 0x93 at 5): convert it first",
        f"{tree}/zero.bin is a binary file, expected UTF-8 text",
    ]
    assert caplog.messages == [
        f"{tree}: its 1 .txt and .jsonl files are documents; name them to read them as lists",
        f"{tree}/latin.py is not UTF-8 text: read as Latin-1",
    ]


def test_whoever_asks_for_bytes_gets_all_files_and_hears_of_those_that_are_no_text(tree: Path) -> None:
    skipped: list[str] = []
    read = read_texts([tree], skipped=skipped.append, binary=True, leave_out=[tree / "a.py", tree / "no.py"])
    assert {path.relative_to(tree).as_posix(): text for path, text in read} == {
        ".hidden": "hidden",
        "control.py": "quote\x93",
        "empty.py": "\n",
        "latin.py": "caf\u00e9",
        "zero.bin": "eval(\0\xff",
        ".d/c.txt": "notes",
        "b/two.py": "two = 2\n",
    }
    looked = "; only its bytes were looked through"
    assert sorted(skipped) == sorted(
        [
            *(why.format(tree) for why in SKIPPED),
            f"{tree}/control.py is not UTF-8 text (byte 0x93 at 5): convert it first{looked}",
            f"{tree}/zero.bin is a binary file, expected UTF-8 text{looked}",
        ]
    )


def test_without_a_listener_what_is_not_covered_is_an_error(tree: Path) -> None:
    for name, why in [
        ("control.py", "is not UTF-8 text"),
        ("dangling", "No such file or directory"),
        ("pipe", "is a FIFO: not opened"),
    ]:
        with pytest.raises(ProdError, match=rf"{name}:? {why}"):
            list(read_texts([tree]))
        (tree / name).unlink()


def test_a_directory_without_files_covers_nothing(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    skipped: list[str] = []
    assert list(read_texts([tmp_path], skipped=skipped.append)) == []
    (tmp_path / "empty.py").write_text("\n")
    assert list(read_entries([tmp_path], skipped=skipped.append)) == []
    assert skipped == [f"{tmp_path} has no files to read in it", f"{tmp_path} has no text in it"]


@pytest.mark.parametrize("suffix", [".TXT", ".Jsonl", ".NDJSON"])
def test_capitals_in_a_suffix_make_no_difference(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"list{suffix}"
    file.write_text("eval(\n" if suffix == ".TXT" else '{"text": "eval("}')
    assert list(read_entries([file])) == [Entry("eval(", source=f"{file}:1")]
    with pytest.raises(ProdError, match=r"has \.txt and \.jsonl files alone, .*: name the files to read them as lists"):
        list(read_entries([tmp_path]))


def test_lines_end_with_lf_or_crlf_and_nothing_is_stripped(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_bytes("one\u2028two\x0cthree \r\n\tfour\x85\r\n \r\nfive".encode())
    assert [(entry.text, entry.source) for entry in read_entries([file])] == [
        ("one\u2028two\x0cthree ", f"{file}:1"),
        ("\tfour\x85", f"{file}:2"),
        ("five", f"{file}:4"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-32-be"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("be") else ""
    (tmp_path / "a.py").write_bytes(f"{mark}caf\u00e9 \U0001f600\r\n".encode(encoding))
    assert read_text(tmp_path / "a.py") == "caf\u00e9 \U0001f600\r\n"
    (tmp_path / "a.py").write_bytes("\ufeff".encode(encoding) + b"\xff")
    with pytest.raises(ProdError, match=rf"a\.py is not {encoding[:6].rstrip('-').upper()} text \(byte 0x.. at "):
        read_text(tmp_path / "a.py")


def test_a_byte_that_is_not_utf_8_leaves_the_utf_8_around_it(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes("caf\u00e9".encode() + b"\xe9")
    assert list(read_texts([tmp_path])) == [(tmp_path / "a.py", "caf\u00e9\u00e9")]


@pytest.mark.parametrize("read", [read_text, lambda path: list(read_texts([path], skipped=print, binary=True))])
def test_a_device_is_not_read(read: Any) -> None:
    with pytest.raises(ProdError, match="cannot read /dev/zero: it is a device, expected a file"):
        read("/dev/zero")


def test_a_fifo_that_is_named_is_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"yaml.load(")
    os.close(writer)
    try:
        assert read_text(f"/dev/fd/{reader}") == "yaml.load("
    finally:
        os.close(reader)


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
        ("x.jsonl", b'{"text": "abc", "replacement": 7}', r"x\.jsonl:1: expected 'replacement' to be a string, got 7"),
        (
            "x.jsonl",
            b'{"text": "abc", "policy": "ban"}',
            r"x\.jsonl:1\): expected policy 'phrase' or 'quote', got 'ban'",
        ),
        (
            "x.jsonl",
            b'{"text": ' + b"[" * 100_000,
            r"x\.jsonl:1: expected a JSON object a line, got invalid JSON \(max",
        ),
        ("x.jsonl", b'{"text": ' + b"1" * 5000 + b"}", r"x\.jsonl:1: expected a JSON object a line, .*4300 digits"),
        ("x.jsonl", b'{"text": [' + b"7, " * 500 + b"7]}", r"to be a string, got \[7, 7, 7, 7, 7, 7, \.\.\.\]$"),
        ("x.jsonl", b"\n \n", r"x\.jsonl has no entries, expected one per line"),
        ("x.txt", b"\n \n", r"x\.txt has no entries, expected one per line"),
        ("x.txt", b"caf\xe9", r"x\.txt is not UTF-8 text \(byte 0xe9 at 3\): convert it first"),
        ("x.py", b"\x93", r"x\.py is not UTF-8 text \(byte 0x93 at 0\)"),
        ("x.py", b"a\0b", r"x\.py is a binary file, expected UTF-8 text"),
        ("x.py", b" \n", r"x\.py is empty, expected a document to protect"),
    ],
)
def test_what_a_named_file_may_not_be(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProdError, match=message):
        list(read_entries([tmp_path / name]))


def test_every_wrong_line_and_every_missing_source_is_told(tmp_path: Path) -> None:
    """And nothing is given behind the first mistake: whoever compiles what comes would do that for nothing."""
    (tmp_path / "a.jsonl").write_text('{"text": "good("}\n[]\n{"txt": "x", "polcy": 1}\n{"text": 5}\n{"text": "late("}')
    (tmp_path / "b.txt").write_bytes(b"one\rtwo\nfine(\n\rthree")
    (tmp_path / "c.txt").write_bytes(b"\xff")
    given: list[Entry] = []
    with pytest.raises(ProdError) as caught:
        given.extend(read_entries([tmp_path / "a.jsonl", tmp_path / "b.txt", tmp_path / "c.txt"]))
    names = [message.removeprefix(f"{tmp_path}/").partition(": ")[0] for message in caught.value.mistakes]
    assert names == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:3", "a.jsonl:4", "b.txt:1", "b.txt:3", *names[6:]]
    assert names[6].startswith("c.txt is not UTF-8 text")
    assert caught.value.mistakes[2].endswith("; did you mean 'text'?")
    assert [entry.text for entry in given] == ["good("]
    for read in (read_entries, read_texts):
        with pytest.raises(ProdError) as caught:
            list(read([tmp_path / "no", tmp_path / "b.txt", tmp_path / "nor"]))
        told = [message for message in caught.value.mistakes if "No such file" in message]
        why = "No such file or directory: check the name"
        assert told == [f"cannot read {tmp_path}/{name}: {why}" for name in ("no", "nor")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("#include <gpl.h>\n#!/bin/x\nx = 1  # y\n", None),
        (
            "eval(\n# calls\x1b[m of ours\n",
            "2: banned as it stands, as there are no comments in lists: # calls\\x1b[m of ours",
        ),
        ("# a\n  # b\n", "1: banned as it stands, as there are no comments in lists: # a, and 1 more"),
    ],
)
def test_what_looks_like_a_comment_is_a_phrase_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, told: str | None
) -> None:
    file = tmp_path / "list.txt"
    file.write_text(text)
    assert [entry.text for entry in read_entries([file])] == text.splitlines()
    remedy = "; remove it, or keep it as a .jsonl entry"
    assert caplog.messages == ([f"{file}:{told}{remedy}"] if told else [])


def test_of_very_many_mistakes_the_first_are_told_and_how_many_more(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[]\n" * 5000)
    for read in (lambda name: read_entries([name]), read_json_lines):
        with pytest.raises(ProdError) as caught:
            list(read(tmp_path / "a.jsonl"))
        assert len(caught.value.mistakes) == 21
        assert caught.value.mistakes[19].startswith(f"{tmp_path}/a.jsonl:20: ")
        assert caught.value.mistakes[20] == "4,980 more like these"


def test_without_a_listener_everything_in_a_directory_is_told(tree: Path) -> None:
    with pytest.raises(ProdError) as caught:
        list(read_texts([tree]))
    assert len(caught.value.mistakes) == 5


def test_a_carriage_return_within_a_phrase_is_no_line_end(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes(b"yaml.load(\reval(\r")
    with pytest.raises(ProdError, match=r"old.txt:1: expected lines that end with LF or CRLF, got a CR within one"):
        list(read_entries([tmp_path / "old.txt"]))


def test_a_key_that_stands_twice_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "yaml.load(", "id": "a", "text": "harmless("}\n')
    with pytest.raises(ProdError, match=r"x.jsonl:1: .*the key 'text' stands there twice"):
        list(read_entries([tmp_path / "x.jsonl"]))


@pytest.mark.parametrize(
    "content",
    [
        *map(json.dumps, [[{"text": "yaml.load("}], {"text": "yaml.load("}, [1, {"text": "x", "id": "y"}]]),
        '\n{"text": "yaml.load("}\n{"text": "pickle.load("}\n',
        '\ufeff{"text": "yaml.load("}\nnot json\n',
    ],
)
def test_entries_in_a_json_file_are_no_document(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ProdError, match=r"x.json has entries in it, which are read from .jsonl files"):
        list(read_entries([tmp_path / "x.json"]))


def test_other_json_is_a_document(tmp_path: Path) -> None:
    texts = ['{"name": "text"}', '["text"]', "[" * 9999, "no JSON"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.json").write_text(text)
    assert [entry.text for entry in read_entries(tmp_path / f"{number}.json" for number in range(4))] == texts


@pytest.mark.parametrize("name", ["", "a\0b"])
@pytest.mark.parametrize(
    "read",
    [
        read_text,
        lambda name: list(read_texts([name])),
        lambda name: list(read_entries([name])),
        lambda name: list(read_json_lines(name)),
        lambda name: require_file(name, "a file"),
    ],
)
def test_no_name_is_not_the_current_directory(read: Any, name: str) -> None:
    with pytest.raises(ProdError, match=r"expected the name of a file or directory, got '.*': is a variable not set\?"):
        read(name)


@pytest.mark.parametrize("read", [read_entries, read_texts], ids=lambda read: read.__name__)
@pytest.mark.parametrize("paths", ["nowhere", b"nowhere", Path("nowhere")])
def test_one_path_is_not_taken_for_its_characters(read: Any, paths: Any) -> None:
    with pytest.raises(ProdError, match=r"^expected a list of files and directories, got .* alone: pass it as \["):
        list(read(paths))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProdError, match=r"cannot read .*nowhere\.txt: No such file"):
        read_text(tmp_path / "nowhere.txt")
    with pytest.raises(ProdError, match=r"cannot read .*nowhere\.jsonl: No such file"):
        list(read_json_lines(tmp_path / "nowhere.jsonl"))
