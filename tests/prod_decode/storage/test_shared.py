"""Loaded blocklists stay what they were, whatever happens to their files; and processes share their memory."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError
from prod_decode.storage import shared

FIRST, SECOND = "yaml.load(", "eval(request"


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies go: every file is large enough for one."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(shared, "SHARED_FROM", 1)
    return tmp_path / "tmp" / f"prod-decode-{os.geteuid()}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Blocklist.compile([Entry(FIRST)]).save(tmp_path / "block.prod")
    return tmp_path / "block.prod"


@pytest.fixture
def other(tmp_path: Path) -> bytes:
    """Another list, in a file of the same size."""
    Blocklist.compile([Entry(SECOND)]).save(tmp_path / "other.prod")
    return (tmp_path / "other.prod").read_bytes()


def found_by(blocklist: Blocklist) -> list[str]:
    return [match.entry_id for match in blocklist.scan(f"{FIRST} {SECOND}")]


def mapped_files() -> list[str]:
    """What this process has mapped, as the kernel says: `inode path`, a line a mapping."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split(maxsplit=4)[4] for line in lines if len(line.split()) > 5]


@pytest.mark.parametrize("is_shared", [False, True], ids=["read", "shared"])
@pytest.mark.parametrize("verify", [True, False])
def test_writing_over_the_file_changes_nothing(
    path: Path, other: bytes, copies: Path, monkeypatch: pytest.MonkeyPatch, *, is_shared: bool, verify: bool
) -> None:
    monkeypatch.setattr(shared, "SHARED_FROM", 1 if is_shared else 1 << 60)
    before = Blocklist.load(path, verify=verify)
    with path.open("r+b") as file:  # as `cp new old`, which keeps the inode, and rsync --inplace do
        file.write(other)
        file.truncate()
    assert found_by(before) == [FIRST]
    assert found_by(Blocklist.load(path, verify=verify)) == [SECOND]
    with path.open("r+b") as file:
        file.truncate(100)
    assert found_by(before) == [FIRST]
    with pytest.raises(ProdError, match="cut short"):
        Blocklist.load(path, verify=verify)
    assert copies.exists() == is_shared


@pytest.mark.usefixtures("copies")
def test_another_file_in_its_place_is_what_the_next_load_reads(path: Path, tmp_path: Path, other: bytes) -> None:
    before = Blocklist.load(path)
    (tmp_path / "new.prod").write_bytes(other)
    (tmp_path / "new.prod").replace(path)
    assert found_by(before) == [FIRST]
    assert found_by(Blocklist.load(path)) == [SECOND]


LOAD = """
import sys, tempfile
from prod_decode.storage import shared
from prod_decode.storage.artifact import read_artifact
shared.SHARED_FROM = 1
tempfile.tempdir = sys.argv[2]
sys.stdin.readline()
meta, arrays = read_artifact(sys.argv[1])
print([line.split()[4] for line in open("/proc/self/maps") if "prod-decode-" in line])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_processes_that_start_together_share_one_copy(path: Path, copies: Path) -> None:
    arguments = [sys.executable, "-c", LOAD, str(path), str(copies.parent)]
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    (copy,) = copies.iterdir()
    assert outputs == [f"{[str(copy.stat().st_ino)]}\n"] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_copy_is_mapped_and_only_its_owner_may_enter(path: Path, copies: Path) -> None:
    loaded = [Blocklist.load(path), Blocklist.load(path, verify=False)]
    (copy,) = copies.iterdir()
    assert copy.read_bytes() == path.read_bytes()
    assert (copies.stat().st_mode & 0o777, copy.stat().st_mode & 0o777) == (0o700, 0o600)
    assert [line for line in mapped_files() if str(path) in line] == []
    assert len([line for line in mapped_files() if str(copy) in line]) == len(loaded)


def test_verified_before_means_that_only_the_header_is_read(
    path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Blocklist.load(path)

    def forbid(*arguments: Any) -> None:
        raise AssertionError("the file is read")

    monkeypatch.setattr(shared, "_chunks", forbid)
    assert found_by(Blocklist.load(path, verify=False)) == [FIRST]


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("verify", [True, False])
def test_of_a_damaged_file_no_copy_is_kept(path: Path, copies: Path, *, verify: bool) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-70] + bytes([data[-70] ^ 1]) + data[-69:])
    with pytest.raises(ProdError, match="is damaged"):
        Blocklist.load(path, verify=verify)
    assert list(copies.iterdir()) == []


def test_a_damaged_file_is_refused_where_a_copy_of_the_whole_one_is(path: Path, copies: Path) -> None:
    loaded = Blocklist.load(path)
    data = path.read_bytes()
    path.write_bytes(data[:-70] + bytes([data[-70] ^ 1]) + data[-69:])
    with pytest.raises(ProdError, match="is damaged"):
        Blocklist.load(path)
    assert found_by(loaded) == [FIRST]


@pytest.mark.parametrize("damage", [b"", b"\0" * 64], ids=["cut", "overwritten"])
def test_a_damaged_copy_is_not_used(path: Path, copies: Path, damage: bytes) -> None:
    data = path.read_bytes()
    Blocklist.load(path)
    (copy,) = copies.iterdir()
    copy.write_bytes((data[:-64] + damage)[: len(data)])
    assert found_by(Blocklist.load(path)) == [FIRST]
    Blocklist.load(path)
    (copy,) = copies.iterdir()
    assert copy.read_bytes() == data


def no_folder(copies: Path) -> None:
    shutil.rmtree(copies.parent)


def a_file(copies: Path) -> None:
    copies.touch()


def open_to_a_group(copies: Path) -> None:
    copies.mkdir()
    copies.chmod(0o770)


def a_link(copies: Path) -> None:
    (copies.parent / "theirs").mkdir(mode=0o700)
    copies.symlink_to("theirs")


def replaceable(copies: Path) -> None:
    copies.parent.chmod(0o777)


@pytest.mark.parametrize("spoil", [no_folder, a_file, open_to_a_group, a_link, replaceable])
@pytest.mark.parametrize("verify", [True, False])
def test_without_a_safe_place_the_file_is_read(path: Path, copies: Path, spoil: Any, *, verify: bool) -> None:
    spoil(copies)
    assert found_by(Blocklist.load(path, verify=verify)) == [FIRST]
    assert not [found for found in copies.parent.rglob("*") if found.is_file() and found != copies]


def test_a_folder_of_another_user_is_not_used(path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    copies.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    copies.rename(copies.with_name(f"prod-decode-{mine + 1}"))
    assert found_by(Blocklist.load(path)) == [FIRST]
    assert [found.name for found in copies.parent.rglob("*")] == [f"prod-decode-{mine + 1}"]


def test_on_a_full_disk_the_file_is_read(path: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert found_by(Blocklist.load(path)) == [FIRST]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(copies.iterdir()) == []
    usage = shutil.disk_usage(copies)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=2 * path.stat().st_size - 1))
    assert found_by(Blocklist.load(path)) == [FIRST]
    assert list(copies.iterdir()) == []


def test_a_copy_that_nobody_uses_goes_when_another_is_made(path: Path, other: bytes, copies: Path) -> None:
    first = Blocklist.load(path)
    path.write_bytes(other)
    second = Blocklist.load(path)
    assert len(list(copies.iterdir())) == 2  # both are in use
    assert found_by(first) == [FIRST]
    del first
    Blocklist.compile([Entry("pickle.load(")]).save(path)
    third = Blocklist.load(path)
    assert len(list(copies.iterdir())) == 2
    assert (found_by(second), len(third)) == ([SECOND], 1)


DIE = """
import os, signal, sys, tempfile
from prod_decode.storage import shared
from prod_decode.storage.artifact import read_artifact
shared.SHARED_FROM = 1
tempfile.tempdir = sys.argv[2]
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
read_artifact(sys.argv[1])
"""


def test_a_process_that_is_killed_leaves_nothing_that_is_used(path: Path, copies: Path) -> None:
    child = subprocess.run([sys.executable, "-c", DIE, str(path), str(copies.parent)], check=False, timeout=100)
    assert child.returncode == -signal.SIGKILL
    (left,) = copies.iterdir()
    loaded = Blocklist.load(path)
    (copy,) = copies.iterdir()
    assert copy.name != left.name
    assert found_by(loaded) == [FIRST]
