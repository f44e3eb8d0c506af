"""Files made by hand with a valid checksum: refused in one line or harmless, and never a crash or a traceback."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from prod_decode.blocklist import blocklist as module
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry, EntryInfo
from prod_decode.blocklist.portions import PORTION as PART
from prod_decode.blocklist.portions import Portion, _KeptPortions
from prod_decode.errors import ProdError
from prod_decode.match.automaton import NODE
from prod_decode.match.matcher import Matcher
from prod_decode.serving.guard import Guard
from prod_decode.storage.artifact import MAGIC, read_artifact, write_artifact
from prod_decode.text.patterns import Collected, Pattern
from prod_decode.tokens.vocabulary import Vocabulary

ENTRIES = [
    Entry("yaml.load("),
    Entry("yaml.load(", id="twice"),
    Entry("load", boundary="both"),
    Entry("load", id="anywhere", boundary="none"),
    Entry("yaml.loader", source="a ticket"),
    Entry("for i in range(n): f(i)\n" * 9, policy="quote", max_quote=40),
]
TEXT = "x = yaml . load (f)\n load yaml.loader \n" + "for i in range(n): f(i)\n" * 3
TOKENS = [b"</s>", *(bytes([code]) for code in range(32, 127)), b"yaml", b".load", b"(", b" load(f)", b"loader"]


def contents() -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        Blocklist.compile(ENTRIES).save(Path(folder) / "a")
        return read_artifact(Path(folder) / "a")


META, ARRAYS = contents()


def use(path: Path) -> bool:
    """Everything that is done with a file; whether it was refused, and then in one line."""
    try:
        loaded = Blocklist.load(path)
        list(loaded.scan(TEXT))
        loaded._unfiltered = 1 << 40
        list(loaded.scan(TEXT))
        assert len(list(loaded.entries())) == len(loaded)
        json.dumps(loaded.report.waived)
        matcher = Matcher(
            loaded.automaton, loaded.normalization, Vocabulary.from_bytes(TOKENS, eos_ids=[0]), loaded.entries_of
        )
        state = matcher.start()
        for code in TEXT.encode():
            for token in matcher.banned(state).tolist():
                matcher.blame(state, token)
            state = matcher.advance(state, max(1, code - 31))
        matcher.state_of([max(1, code - 31) for code in TEXT.encode()])
        guard = Guard([loaded.bind(Vocabulary.from_bytes(TOKENS, eos_ids=[0]))])
        for text in ("x = yaml.", "yaml.s", "yaml.safe_"):
            guard.mask_(torch.zeros(len(TOKENS)), [code - 31 for code in text.encode()])
        merged = Blocklist.merge([loaded, loaded])
        assert len(merged) == len(loaded)
    except ProdError as error:
        return "\n" not in str(error) or pytest.fail(f"more than a line: {error}")
    return False


def test_what_is_not_forged_is_not_refused(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", META, ARRAYS)
    assert not use(tmp_path / "a")


# ---- arrays --------------------------------------------------------------------------------------------------------

DTYPES = ["u1", "b1", "<i2", "<i4", "<u4", "<i8", "<f8", ">i4", ">i8"]
EXTREMES = [0, 1, -1, 255, 2**31 - 1, -(2**31), 2**62, 2**63 - 1, -(2**63)]


def values(name: str) -> st.SearchStrategy[tuple[str, str | None, int, int]]:
    fields = list(NODE.names or ()) if name == "nodes" else [None]
    size = max(1, ARRAYS[name].size)
    numbers = st.one_of(st.sampled_from(EXTREMES), st.integers(-3, 3), st.integers(0, 2 * size))
    return st.tuples(st.just(name), st.sampled_from(fields), st.integers(0, size - 1), numbers)


@given(st.lists(st.sampled_from(sorted(ARRAYS)).flatmap(values), min_size=1, max_size=3))
@example([("starts", None, 1, 2**63 - 1), ("starts", None, 2, -(2**63) + 5)])  # differences overflow, and so ascend
@example([("patterns", None, 1, 0)])  # one pattern twice: what is spelled out was written past the end
@example([("owner_starts", None, 1, 2**62)])
@example([("owners", None, 0, 99)])
@example([("record_starts", None, 1, -1)])
@example([("records", None, 0, 0)])
def test_values_lead_nowhere(changes: list[tuple[str, str | None, int, int]]) -> None:
    arrays = {name: array.copy() for name, array in ARRAYS.items()}
    for name, field, at, value in changes:
        target = arrays[name] if field is None else arrays[name][field]
        bits = 8 * target.dtype.itemsize
        wrapped = np.array([value & (2**64 - 1)], np.uint64).view("<i8").astype(target.dtype)[0]
        target.reshape(-1)[at] = wrapped if bits < 64 else np.int64(value)
    with tempfile.TemporaryDirectory() as folder:
        write_artifact(Path(folder) / "a", META, arrays)
        use(Path(folder) / "a")


@pytest.mark.parametrize("name", sorted(ARRAYS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_types_are_refused(tmp_path: Path, name: str, dtype: str) -> None:
    array = ARRAYS[name]["child"] if name == "nodes" else ARRAYS[name]
    changed = array.astype(dtype)
    write_artifact(tmp_path / "a", META, {**ARRAYS, name: changed})
    assert use(tmp_path / "a") == (changed.dtype != ARRAYS[name].dtype)


SHAPES: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "none": lambda array: array[:0],
    "shorter": lambda array: array[:-1],
    "longer": lambda array: np.concatenate((array, array[-1:])),
    "flat": lambda array: array.reshape(-1)[: array.size // 2],
    "deep": lambda array: array.reshape(1, *array.shape),
    "number": lambda array: array.reshape(-1)[:1].reshape(()),
}


@pytest.mark.parametrize("name", sorted(ARRAYS))
@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_are_refused(tmp_path: Path, name: str, shape: str) -> None:
    write_artifact(tmp_path / "a", META, {**ARRAYS, name: SHAPES[shape](ARRAYS[name])})
    assert use(tmp_path / "a")


@pytest.mark.parametrize("name", sorted(ARRAYS))
def test_a_missing_array_is_refused(tmp_path: Path, name: str) -> None:
    write_artifact(tmp_path / "a", META, {key: array for key, array in ARRAYS.items() if key != name})
    assert use(tmp_path / "a")
    with pytest.raises(ProdError, match="a: it has arrays or settings that no compiler writes"):
        Blocklist.load(tmp_path / "a", verify=False)


def test_every_record_is_read_with_care(tmp_path: Path) -> None:
    for record in ("[" * 100_000, "9" * 5000, "{}", '["a"]', '["a",1,"quote",40,null]', '["a","b","quote",true,null]'):
        packed = np.frombuffer(record.encode(), np.uint8)
        whole = [packed] * len(ENTRIES)
        starts = np.arange(len(ENTRIES) + 1, dtype=np.int64) * len(packed)
        write_artifact(tmp_path / "a", META, {**ARRAYS, "records": np.concatenate(whole), "record_starts": starts})
        for read in (lambda loaded: list(loaded.entries()), lambda loaded: list(loaded.scan(TEXT))):
            with pytest.raises(ProdError, match="the record of an entry is damaged"):
                read(Blocklist.load(tmp_path / "a"))


def test_patterns_that_share_everything_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns a, aa, aaa and so on: their length together is the square of the file's."""
    blocklist = Blocklist.compile([Entry("a" * n, boundary="none") for n in range(4, 200)])
    blocklist.save(tmp_path / "a")
    loaded = Blocklist.load(tmp_path / "a")
    assert loaded.automaton.spelled_bytes == sum(range(4, 200))
    monkeypatch.setattr(module, "_physical_memory", lambda: sum(range(4, 200)) - 1)
    with pytest.raises(ProdError, match=r"whose patterns take 19,894 bytes, expected at most the 19,893"):
        Blocklist.merge([loaded])
    monkeypatch.setattr("prod_decode.match.scan._MOST_SPELLED", 1 << 10)
    monkeypatch.setattr("prod_decode.match.automaton.Automaton.spell", lambda automaton: pytest.fail("spelled out"))
    loaded._unfiltered = 1 << 40
    assert len(list(loaded.scan("aaaaa"))) == 3


# ---- header --------------------------------------------------------------------------------------------------------


def packed(header: bytes, body: bytes) -> bytes:
    header += b" " * (-(len(header) + 32) % 64)
    head = MAGIC + struct.pack("<Q", len(header)) + header
    return head + xxhash.xxh3_128_digest(head) + body


def plain() -> tuple[dict[str, Any], bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_artifact(Path(folder) / "a", META, ARRAYS)
        data = (Path(folder) / "a").read_bytes()
    end = 16 + struct.unpack("<Q", data[8:16])[0]
    return json.loads(data[16:end]), data[end + 16 :]


HEADER, BODY = plain()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a JSON value."""
    inside: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in inside for found in places(part, (*path, key)))]


json_values = st.one_of(
    st.sampled_from([None, True, False, -1, 0, 1, 63, 64, 2**31, 2**63, 10**300, 1.5, float("nan"), "", "x", [], {}]),
    st.sampled_from(["O", "|O", "V0", "<U9", ">i4", "<i4", "M8", "|V12", "<c8", "i4,i4", {"": ["", 0]}, {"": 1}, [-1]]),
    st.recursive(st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
)


@given(st.sampled_from(places(HEADER)), json_values)
@example(("arrays", "nodes", "at"), -64)
@example(("arrays", "rows", "at"), 32)
@example(("arrays", "nodes", "shape"), [2**62, 2**62])
@example(("arrays", "nodes", "type", "fail"), ["<i4", 10])
@example(("arrays", "nodes", "type", "fail"), ["|O", 4])
@example(("meta", "report", "waived"), [["a", 1]])
@example(("meta", "report", "replacements"), [["a", "yaml.load("]])
@example(("meta", "report", "replacements"), [["a", "yaml.load(", "yaml.\ud800"]])
@example(("meta", "report", "replacements"), [["a", "yaml.\ud800", "yaml.s"]])
@example(("meta", "report", "replacements"), [["a", "yaml.load(", "yaml."]])
@example(("meta", "report", "replacements"), [["a", "yaml.", "yaml.s"]])
@example(("meta", "report", "replacements"), [["a", "", ""]])
@example(("meta", "report", "replacements"), [["a", "yaml.l", "yaml.safe_load("]])
@example(("meta", "report", "commit_points"), [["a", 1]])
def test_headers_lead_nowhere(path: tuple[Any, ...], value: Any) -> None:
    header = json.loads(json.dumps({"header": HEADER}))
    inner = header
    for key in ("header", *path)[:-1]:
        inner = inner[key]
    inner[("header", *path)[-1]] = value
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").write_bytes(packed(json.dumps(header["header"]).encode(), BODY))
        use(Path(folder) / "a")


@pytest.mark.parametrize("path", [path for path in places(HEADER) if path])
def test_nothing_may_be_missing_from_a_header(tmp_path: Path, path: tuple[Any, ...]) -> None:
    header = json.loads(json.dumps(HEADER))
    inner = header
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    (tmp_path / "a").write_bytes(packed(json.dumps(header).encode(), BODY))
    assert use(tmp_path / "a")


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b"9" * 5000, b'"\xff"', b"", b"{", b"[]", b"{}", b'{"version":"1"}']
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "a").write_bytes(packed(header, BODY))
    with pytest.raises(ProdError, match="a has a header that no compiler writes: compile the blocklist again"):
        Blocklist.load(tmp_path / "a")


# ---- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("ends", [-1, 8]), ("ends", [9, 8]), ("ends", [4, 2**40]), ("owners", [0, 1]), ("flags", [0, 4]), ("data", [1])],
)
def test_a_forged_part_is_made_again(tmp_path: Path, name: str, value: list[int]) -> None:
    entry = EntryInfo.of(Entry("text", id="a"))
    collected = Collected()
    for symbols in (b"text", b"more"):
        collected.add(Pattern(False, symbols, False), 0)
    store = _KeptPortions(tmp_path)
    store.put("key", Portion([entry], collected))
    assert store.get("key") is not None
    (path,) = tmp_path.iterdir()
    meta, arrays = read_artifact(path, form=PART)
    forged = {**arrays, name: np.array(value).astype(arrays[name].dtype)}
    write_artifact(path, meta, forged, form=PART)
    assert store.get("key") is None
