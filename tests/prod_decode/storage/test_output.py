"""What takes the place of a file, and what no output may take the place of."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.cli import main
from prod_decode.errors import ProdError
from prod_decode.storage.artifact import require_output
from prod_decode.storage.files import write_whole


def write(path: Path, data: bytes = b"new") -> None:
    with write_whole(path) as file:
        file.write(data)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "block.prod"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert (path.read_bytes(), mode_of(path)) == (b"new", mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_that_root_replaces_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "block.prod"
    path.write_bytes(b"old")
    path.chmod(0o600)
    os.chown(path, 1234, 2345)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid, mode_of(path)) == (1234, 2345, 0o600)


def test_an_owner_that_cannot_be_kept_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "block.prod"
    path.write_bytes(b"old")
    old = path.stat()

    def forbid(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", forbid)
    monkeypatch.setattr(
        "prod_decode.storage.files.replaceable", lambda path: os.stat_result((*old[:4], 99, 99, *old[6:]))
    )
    write(path)
    assert path.read_bytes() == b"new"


def test_a_symlink_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "v1.prod").write_bytes(b"old")
    (tmp_path / "real" / "current").symlink_to("v1.prod")
    link = tmp_path / "block.prod"
    link.symlink_to("real/current")
    write(link)
    assert link.is_symlink()
    assert (tmp_path / "real" / "current").is_symlink()
    assert (tmp_path / "real" / "v1.prod").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["block.prod", "current", "real", "v1.prod"]


def test_a_symlink_that_leads_nowhere_yet_gets_its_file(tmp_path: Path) -> None:
    link = tmp_path / "block.prod"
    link.symlink_to("v2.prod")
    write(link)
    assert link.is_symlink()
    assert (tmp_path / "v2.prod").read_bytes() == b"new"


def test_another_hard_link_keeps_the_old_content(tmp_path: Path) -> None:
    path, kept = tmp_path / "block.prod", tmp_path / "kept.prod"
    path.write_bytes(b"old")
    kept.hardlink_to(path)
    write(path)
    assert (path.read_bytes(), kept.read_bytes()) == (b"new", b"old")


def test_a_name_may_be_as_long_as_names_are(tmp_path: Path) -> None:
    write(tmp_path / ("n" * 250))
    assert (tmp_path / ("n" * 250)).read_bytes() == b"new"


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def listening(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return path


def device(path: Path) -> Path:
    path.symlink_to(os.devnull)  # the node itself is nothing to try this on
    return path


@pytest.mark.parametrize("make", [pipe, listening, device])
def test_what_is_no_file_is_refused_and_stays(tmp_path: Path, make: object) -> None:
    path = make(tmp_path / "out")  # type: ignore[operator]
    before = path.stat().st_mode
    for refused in (lambda: write(path), lambda: require_output(path)):
        with pytest.raises(ProdError, match="out: it is a device, pipe or socket, expected a file name"):
            refused()
    assert path.stat().st_mode == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_no_blocklist(tmp_path: Path) -> None:
    with pytest.raises(ProdError, match=r"cannot read the blocklist .*out: it is a device, pipe or socket"):
        Blocklist.load(pipe(tmp_path / "out"))


# ---- inputs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def phrases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "phrases.txt").write_text("yaml.load(\n")
    (tmp_path / "link.txt").symlink_to("src/phrases.txt")
    (tmp_path / "hard.txt").hardlink_to("src/phrases.txt")
    (tmp_path / "tree").symlink_to("src")
    return tmp_path / "src" / "phrases.txt"


@pytest.mark.parametrize("output", ["src/phrases.txt", "src/../src/phrases.txt", "link.txt", "hard.txt"])
@pytest.mark.parametrize("arguments", [["src/phrases.txt"], ["src/phrases.txt", "--allow", "link.txt"]])
def test_an_input_is_no_output(
    phrases: Path, capsys: pytest.CaptureFixture[str], output: str, arguments: list[str]
) -> None:
    assert main(["compile", *arguments, "-o", output]) == 2
    assert capsys.readouterr().err == (
        f"prod-decode compile: cannot write {output}: the same file is an input; name another\n"
    )
    assert phrases.read_text() == "yaml.load(\n"


@pytest.mark.parametrize("command", ["compile", "merge"])
@pytest.mark.parametrize("output", ["src/phrases.txt", "tree/phrases.txt", "link.txt"])
def test_a_file_that_is_no_blocklist_is_not_lost(
    phrases: Path, capsys: pytest.CaptureFixture[str], command: str, output: str
) -> None:
    Path("other.txt").write_text("eval(\n")
    assert main([command, "other.txt", "-o", output]) == 2
    assert capsys.readouterr().err == (
        f"prod-decode {command}: cannot write {output}: it is there and is no blocklist; name another, or remove it "
        "first\n"
    )
    assert phrases.read_text() == "yaml.load(\n"


@pytest.mark.usefixtures("phrases")
def test_an_empty_file_may_become_a_blocklist() -> None:
    Path("made").touch()  # as `mktemp` does
    assert main(["compile", "src/phrases.txt", "-o", "made"]) == 0


@pytest.mark.usefixtures("phrases")
@pytest.mark.parametrize("output", ["-", ""])
def test_a_blocklist_is_not_printed(capsys: pytest.CaptureFixture[str], output: str) -> None:
    assert main(["compile", "src/phrases.txt", f"--output={output}"]) == 2
    assert re.search(rf"expected the name of a file.*, got {output!r}", capsys.readouterr().err)
    assert not Path("-").exists()


@pytest.mark.usefixtures("phrases")
def test_a_directory_that_cannot_be_written_is_found_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert main(["compile", "missing.txt", "-o", "out.prod"]) == 2
    assert capsys.readouterr().err == "prod-decode compile: cannot write out.prod: Permission denied\n"


@pytest.mark.usefixtures("phrases")
def test_a_file_that_is_written_counts_whoever_takes_the_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Opened for reading: it refuses to be written, as a full disk does.
    with os.fdopen(os.open(os.devnull, os.O_RDONLY), "w") as refusing:
        monkeypatch.setattr(sys, "stdout", refusing)
        assert main(["compile", "src/phrases.txt", "-o", "out.prod"]) == 0
    assert "1 phrases" in (told := capsys.readouterr().err)
    assert "cannot write to the standard output: Bad file descriptor" in told


@pytest.mark.usefixtures("phrases")
@pytest.mark.parametrize("parts", ["src", "src/sub", "tree/sub", "src/../src"])
@pytest.mark.parametrize("flags", [[], ["--strict"], ["--accept-uncovered"]])
def test_sources_are_not_left_out_with_the_parts_of_a_compile(
    capsys: pytest.CaptureFixture[str], parts: str, flags: list[str]
) -> None:
    Path("src/code.py").write_text("print(1)\n" * 40)
    Path("src/sub").mkdir()
    Path("src/sub/more.py").write_text("print(2)\n" * 40)
    before = sorted(Path().rglob("*"))
    assert main(["compile", "src", "-o", "out.prod", "--parts", parts, *flags]) == 2
    assert capsys.readouterr().err == (
        f"prod-decode compile: --parts: {parts} has sources in it, which would be left out with it: name another "
        "directory\n"
    )
    assert main(["compile", "src/code.py", "--allow", "src", "-o", "out.prod", "--parts", parts, *flags]) == 2
    assert sorted(Path().rglob("*")) == before


@pytest.mark.usefixtures("phrases")
@pytest.mark.parametrize(
    ("save", "message"),
    [
        ("src/phrases.txt", "it is there and is no blocklist"),
        ("new/", "got 'new/', which is that of a directory"),
        ("", "got '': is a variable not set"),
        ("a\0b", "got 'a.x00b': is a variable not set"),
        (None, "as text or Path, got None"),
        (5, "as text or Path, got 5"),
        (b"x", "as text or Path, got b'x'"),
    ],
)
def test_python_too_loses_no_file_and_takes_names_alone(save: Any, message: str) -> None:
    blocklist = Blocklist.compile([Entry("yaml.load(")])
    with pytest.raises(ProdError, match=message):
        blocklist.save(save)
    if save not in ("src/phrases.txt", "new/"):
        with pytest.raises(ProdError, match=message):
            Blocklist.load(save)
        if save is not None:
            with pytest.raises(ProdError, match=message):
                Blocklist.compile([Entry("yaml.load(")], parts=save)
    assert Path("src/phrases.txt").read_text() == "yaml.load(\n"


@pytest.mark.parametrize("command", [["info"], ["scan"], ["merge", "-o", "x.prod"], ["generate"], ["compile"]])
def test_a_name_that_is_too_long_is_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    more = {"scan": ["x"], "generate": ["--model", "m", "--prompt", "x"], "compile": ["-o", "y.prod"]}
    name, *rest = command
    flag = ["--blocklist"] if name == "generate" else []
    assert main([name, *rest, *flag, "a" * 300, *more.get(name, [])]) == 2
    assert re.fullmatch(rf"prod-decode {name}: cannot read .*: File name too long\n", capsys.readouterr().err)


@pytest.mark.usefixtures("phrases")
def test_what_is_not_covered_stays_that_in_a_merge(capsys: pytest.CaptureFixture[str]) -> None:
    Path("short.py").write_text("x = 1\n")
    assert main(["compile", "src/phrases.txt", "short.py", "-o", "a.prod"]) == 3
    told = "not covered: 'short.py': shorter than max_quote"
    assert told in capsys.readouterr().err
    assert main(["merge", "a.prod", "-o", "b.prod"]) == 3
    assert capsys.readouterr().err == f"{told}\n"
    assert main(["merge", "a.prod", "-o", "b.prod", "--accept-uncovered"]) == 0
    assert main(["merge", "a.prod", "-o", "c.prod", "--strict"]) == 2
    assert not Path("c.prod").exists()


@pytest.mark.usefixtures("phrases")
def test_what_a_compile_keeps_in_its_input_is_no_input(capsys: pytest.CaptureFixture[str]) -> None:
    Path("src/code.py").write_text("print(1)\n" * 40)
    for _ in range(2):
        assert main(["compile", "src", "-o", "src/block.prod", "--parts", "src/parts"]) == 3
        assert capsys.readouterr().err.count("not covered") == 1  # the list of phrases, as a document


def test_inputs_are_looked_at_before_anything_is_read(phrases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "missing.txt", "src/phrases.txt", "-o", "src/phrases.txt"]) == 2
    assert "the same file is an input" in capsys.readouterr().err


@pytest.mark.usefixtures("phrases")
def test_a_new_file_may_stand_in_an_input_directory(capsys: pytest.CaptureFixture[str]) -> None:
    Path("src/code.py").write_text("print(1)\n" * 40)
    for _ in range(2):
        assert main(["compile", "src", "src/phrases.txt", "-o", "src/block.prod", "--accept-uncovered"]) == 0
        assert capsys.readouterr().out.startswith("src/block.prod: 1 phrases")


def test_merge_may_write_over_one_of_its_files(tmp_path: Path) -> None:
    a, b = tmp_path / "a.prod", tmp_path / "b.prod"
    Blocklist.compile([Entry("yaml.load(")]).save(a)
    Blocklist.compile([Entry("pickle.load(")]).save(b)
    assert main(["merge", str(a), str(b), "-o", str(a)]) == 0
    assert [info.id for info in Blocklist.load(a).entries()] == ["yaml.load(", "pickle.load("]
