"""The file: what comes back, what is refused, and what a crash leaves behind."""

from __future__ import annotations

import gzip
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError
from prod_decode.match.automaton import NODE
from prod_decode.storage import artifact
from prod_decode.storage.artifact import read_artifact, write_artifact
from prod_decode.storage.files import write_whole

OLD = {"values": np.arange(100)}
ENTRIES = [
    Entry("yaml.load("),
    Entry("caf\u00e9 = 1", id="\u65e5\u672c"),
    Entry("for i in range(n): f(i)\n" * 9, policy="quote", max_quote=40),
]
TEXT = "x = yaml . load (f)\ncaf\u00e9  = 1\n" + "for i in range(n): f(i)\n" * 3
AUTOMATON_ARRAYS = ("nodes", "rows", "accepting", "starts", "patterns", "lengths")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "block.prod"
    Blocklist.compile(ENTRIES).save(path)
    return path.read_bytes()


# ---- what comes back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [ENTRIES, []], ids=["entries", "none"])
def test_a_blocklist_comes_back_bit_by_bit(tmp_path: Path, entries: list[Entry]) -> None:
    compiled = Blocklist.compile(entries, ignore_case=True, allow_empty=True)
    compiled.save(tmp_path / "block.prod")
    loaded = Blocklist.load(tmp_path / "block.prod")
    for name in AUTOMATON_ARRAYS:
        before, after = getattr(compiled.automaton, name), getattr(loaded.automaton, name)
        assert after.dtype == before.dtype
        assert after.shape == before.shape
        assert after.tobytes() == before.tobytes()
        assert not after.flags.writeable
        assert not after.flags.owndata
        assert after.ctypes.data % 64 == 0
    assert loaded.automaton.longest == compiled.automaton.longest
    assert loaded.normalization == compiled.normalization
    assert list(loaded.scan(TEXT)) == list(compiled.scan(TEXT))
    assert bool(list(loaded.scan(TEXT))) == bool(entries)


array_types = st.sampled_from([np.dtype(t) for t in ("u1", "<i4", "<i8", "<f8")] + [NODE])


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.text(max_size=5), npst.arrays(array_types, npst.array_shapes(max_dims=2, min_side=0)), max_size=4
    ),
    st.dictionaries(st.text(max_size=5), st.one_of(st.text(max_size=5), st.integers(), st.booleans())),
)
def test_any_arrays_and_meta_come_back(arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_artifact(Path(folder) / "a", meta, {name: array[::-1] for name, array in arrays.items()})
        meta_back, arrays_back = read_artifact(Path(folder) / "a")
    assert meta_back == meta
    assert list(arrays_back) == list(arrays)
    for name, array in arrays.items():
        back = arrays_back[name]
        assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array[::-1].tobytes())
        assert not back.flags.writeable


# ---- what is refused -----------------------------------------------------------------------------------------------


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ProdError) as caught:
        Blocklist.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_file_that_was_cut_is_refused(tmp_path: Path, saved: bytes) -> None:
    path = tmp_path / "cut.prod"
    for size in [*range(200), *range(200, len(saved), 100), len(saved) - 1]:
        message = refusal(path, saved[:size])
        if size >= 200:
            assert "is cut short: compile the blocklist again" in message or f"has {size} bytes, expected" in message


def test_a_file_that_goes_on_is_refused(tmp_path: Path, saved: bytes) -> None:
    message = refusal(tmp_path / "long.prod", saved + b"\n")
    assert f"has {len(saved) + 1} bytes, expected {len(saved)}: compile the blocklist again" in message


def test_every_flipped_bit_is_found(tmp_path: Path, saved: bytes) -> None:
    path = tmp_path / "flipped.prod"
    random = np.random.default_rng(0)
    data_at = 16 + int.from_bytes(saved[8:16], "little") + 16
    # The magic, the length and the first of the header; the last of it and its checksum; the last byte; any others.
    bits = {*range(8 * 24), *range(8 * (data_at - 20), 8 * (data_at + 2)), *range(8 * len(saved) - 8, 8 * len(saved))}
    bits.update(random.integers(0, 8 * data_at, 100).tolist(), random.integers(0, 8 * len(saved), 200).tolist())
    for bit in sorted(bits):
        data = bytearray(saved)
        data[bit >> 3] ^= 1 << (bit & 7)
        message = refusal(path, bytes(data))
        if bit >= 8 * 16:
            assert "is damaged" in message


def test_padding_is_covered_by_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "padded"
    write_artifact(path, {}, {"three": np.ones(3, np.uint8)})
    data = path.read_bytes()
    assert data.endswith(b"\1\1\1" + bytes(61))
    path.write_bytes(data[:-1] + b"\1")
    with pytest.raises(ProdError, match="its checksum is wrong"):
        read_artifact(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty, expected a compiled blocklist"),
        (b"yaml.load(\n", r"is not a compiled blocklist: make one with `prod-decode compile \S+ -o FILE`"),
        (b"PRODBLK", "is not a compiled blocklist"),
        (b"PRODBLK\x02" + bytes(200), "is not a compiled blocklist"),
        (gzip.compress(b"text", mtime=0), "is not a compiled blocklist"),
        (artifact.MAGIC, "is cut short"),
        (artifact.MAGIC + b"\xff" * 100, "is cut short"),
        (artifact.MAGIC + bytes(100), "is damaged"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(data)
    with pytest.raises(ProdError, match=message):
        Blocklist.load(path)


def test_what_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProdError, match=r"cannot read the blocklist .*nothing: No such file"):
        Blocklist.load(tmp_path / "nothing")
    with pytest.raises(ProdError, match=r"cannot read the blocklist .*: Is a directory"):
        Blocklist.load(tmp_path)

    def forbid(path: Path, flags: int) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    # Tests may run as root, whom no mode of a file stops.
    monkeypatch.setattr(os, "open", forbid)
    with pytest.raises(ProdError, match=r"cannot read the blocklist .*secret: Permission denied"):
        Blocklist.load(tmp_path / "secret")


def test_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "VERSION", 2)
        write_artifact(tmp_path / "new", {}, OLD)
    with pytest.raises(ProdError, match="new has format version 2, expected 1: compile the blocklist again"):
        read_artifact(tmp_path / "new")


def test_without_verifying_a_file_that_must_be_read_is_checked_as_well(tmp_path: Path) -> None:
    path = tmp_path / "block.prod"
    Blocklist.compile([Entry("yaml.load(")]).save(path)
    whole = path.read_bytes()
    assert [match.entry_id for match in Blocklist.load(path, verify=False).scan("yaml.load(x)")] == ["yaml.load("]
    for damaged, message in (
        (whole[:-70] + bytes([whole[-70] ^ 1]) + whole[-69:], "is damaged"),
        (whole[:-64], "expected"),
        (whole[:40] + b"\xff" + whole[41:], "is damaged"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ProdError, match=message):
            Blocklist.load(path, verify=False)


def test_arrays_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "block.prod"
    Blocklist.compile([Entry("yaml.load(")]).save(path)
    meta, arrays = read_artifact(path)
    rows = arrays["rows"].copy()
    rows[0, 0] = -1
    write_artifact(path, meta, {**arrays, "rows": rows})
    with pytest.raises(ProdError, match="contradict each other"):
        Blocklist.load(path)


@pytest.mark.parametrize("target", ["missing/block.prod", "folder"])
def test_what_cannot_be_written_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ProdError, match=rf"cannot write .*{target}: (No such file|it is a directory)"):
        write_artifact(tmp_path / target, {}, OLD)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


# ---- what a crash leaves behind ------------------------------------------------------------------------------------

# Dies at the n-th call of one function, in the middle of writing over the file that is its argument.
CHILD = """
import os, signal, sys, tempfile
from pathlib import Path
import numpy as np
from prod_decode.storage.artifact import write_artifact

path, stage, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])

def die_at_last(function):
    def wrapped(*args, **kwargs):
        global calls
        calls -= 1
        if calls == 0:
            if stage == "write":
                function(args[0][: len(args[0]) // 2])
                opened[0].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped

opened = []
open_temporary = tempfile.NamedTemporaryFile
def open_dying(**options):
    opened.append(open_temporary(**options))
    opened[0].write = die_at_last(opened[0].write)
    return opened[0]

if stage == "write":
    tempfile.NamedTemporaryFile = open_dying
elif stage == "fsync":
    os.fsync = die_at_last(os.fsync)
else:
    setattr(Path, stage, die_at_last(getattr(Path, stage)))
write_artifact(path, {}, {"values": np.zeros(50_000), "more": np.ones(7)})
"""


@pytest.mark.parametrize(("stage", "call"), [("write", 1), ("write", 2), ("write", 4), ("fsync", 1), ("replace", 1)])
def test_a_killed_process_leaves_the_old_file(tmp_path: Path, stage: str, call: int) -> None:
    path = tmp_path / "block.prod"
    write_artifact(path, {"age": "old"}, OLD)
    before = path.read_bytes()
    child = subprocess.run([sys.executable, "-c", CHILD, str(path), stage, str(call)], check=False, timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert read_artifact(path)[0] == {"age": "old"}
    # It died in the middle: half a file is there under another name, and is in nobody's way.
    assert len(list(tmp_path.iterdir())) == 2
    write_artifact(path, {"age": "new"}, OLD)
    assert read_artifact(path)[0] == {"age": "new"}


def require_old_file_only(path: Path) -> None:
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    (tmp_path / "block.prod").write_bytes(b"old")
    return tmp_path / "block.prod"


@pytest.mark.parametrize("function", ["os.fsync", "pathlib.Path.chmod", "pathlib.Path.replace"])
@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(5, "Input/output error"), ProdError, r"cannot write .*block\.prod: Input/output error"),
        (KeyboardInterrupt("Ctrl-C"), KeyboardInterrupt, "Ctrl-C"),
    ],
)
def test_an_error_leaves_the_old_file_and_nothing_else(
    old_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    error: BaseException,
    raised: type[BaseException],
    message: str,
) -> None:
    def fail(*args: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        with pytest.raises(raised, match=message):
            write_artifact(old_file, {}, OLD)
    require_old_file_only(old_file)


@pytest.mark.parametrize("size", [3000, 300_000])  # more fits the buffer of the file, or does not
def test_a_full_disk_leaves_the_old_file_and_nothing_else(old_file: Path, size: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ProdError, match=r"cannot write .*block.prod: File too large"):
            write_artifact(old_file, {}, {"values": np.zeros(size, np.uint8)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    require_old_file_only(old_file)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt(), ZeroDivisionError()])
def test_an_error_in_the_block_leaves_the_old_file_and_is_not_hidden(old_file: Path, error: BaseException) -> None:
    def write_half() -> None:
        with write_whole(old_file) as file:
            file.write(b"half of the ne")
            raise error

    with pytest.raises(type(error)) as caught:
        write_half()
    assert caught.value is error
    require_old_file_only(old_file)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_mode_is_that_of_any_file_of_the_user(tmp_path: Path, mask: int, mode: int) -> None:
    old = os.umask(mask)
    try:
        write_artifact(tmp_path / "a", {}, OLD)
    finally:
        assert os.umask(old) == mask
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
