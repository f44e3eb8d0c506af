"""The patterns of entries in portions: by several processes, and kept on disk for a compile that was stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.blocklist import portions
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.blocklist.portions import Preparing
from prod_decode.errors import ProdError
from prod_decode.storage.artifact import write_artifact
from tests.strategies import documents

TEXT = Path(portions.__file__).read_text()
DOCUMENTS = [Entry(TEXT[at : at + 900], id=f"d{at}", policy="quote") for at in range(0, 9000, 450)]
ENTRIES = [
    Entry("yaml.load("),
    *DOCUMENTS,
    Entry("x" * 20, id="short", policy="quote"),
    Entry("eval("),
    DOCUMENTS[3],
]


class Counted:
    """Costs that count how often they are asked, the same everywhere but at every seventh character."""

    def __init__(self, name: str = "seven", least: float = 0.01) -> None:
        self.fingerprint, self.asked, self.least = name, 0, least

    def __call__(self, text: str) -> tuple[float, ...]:
        self.asked += 1
        return tuple(self.least if at % 7 == 0 else 1.0 for at in range(len(text)))


def saved(folder: Path, entries: list[Entry] = ENTRIES, **options: Any) -> bytes:
    """The file of a blocklist compiled with these options."""
    Blocklist.compile(iter(entries), **{"allow": [TEXT[2000:4000]], **options}).save(folder / "out.prod")
    return (folder / "out.prod").read_bytes()


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "_PORTION", 2000)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries each call of `Preparing` was given."""
    calls: list[int] = []
    original = Preparing.__call__

    def counting(self: Preparing, entries: Any) -> Any:
        calls.append(len(entries))
        return original(self, entries)

    monkeypatch.setattr(Preparing, "__call__", counting)
    return calls


# ---- in portions ---------------------------------------------------------------------------------------------------


@given(st.lists(documents, max_size=6), st.integers(1, 600))
def test_portions_change_nothing(texts: list[str], size: int) -> None:
    entries = [
        Entry(text, id=f"{place % 4}-{text}", policy="quote", max_quote=12)
        for place, text in enumerate(texts)
        if text.strip()
    ]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        whole = saved(Path(folder), [*entries, *ENTRIES[:3], *entries[:2]])
        patch.setattr(portions, "_PORTION", size)
        assert saved(Path(folder), [*entries, *ENTRIES[:3], *entries[:2]]) == whole


@pytest.mark.slow
def test_several_processes_compile_what_one_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the same order, waived and too short documents and a repeated entry included; and a mistake comes through."""
    one = saved(tmp_path)
    monkeypatch.setattr(portions, "_PORTION", 2000)
    assert saved(tmp_path, jobs=2) == one
    assert saved(tmp_path, jobs=2, parts=tmp_path / "parts") == one
    report = Blocklist.load(tmp_path / "out.prod").report
    assert report.waived
    assert report.too_short == ["short"]
    with pytest.raises(ProdError, match=r"entry 'bad': expected a document to protect, got ' ', whitespace"):
        saved(tmp_path, [*ENTRIES, Entry(" ", id="bad", policy="quote")], jobs=2)


def test_jobs_are_counted_from_one() -> None:
    with pytest.raises(ProdError, match="expected jobs as a number above 0, got 0"):
        Blocklist.compile(ENTRIES, jobs=0)


# ---- kept on disk --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_portions")
def test_what_is_finished_is_not_made_again(tmp_path: Path, prepared: list[int]) -> None:
    first = saved(tmp_path, parts=tmp_path / "parts")
    assert len(prepared) == len(list((tmp_path / "parts").iterdir())) > 5
    prepared.clear()
    assert saved(tmp_path, parts=tmp_path / "parts") == first
    assert prepared == []
    longer = [*ENTRIES, Entry("pickle.loads(")]
    with_parts = saved(tmp_path, longer, parts=tmp_path / "parts")
    assert prepared == [len(longer) % 3 or 3]  # the last portion alone is another
    assert saved(tmp_path, longer) == with_parts


@pytest.mark.usefixtures("small_portions")
def test_a_compile_that_was_stopped_goes_on(tmp_path: Path) -> None:
    class Stopped(Counted):
        def __call__(self, text: str) -> tuple[float, ...]:
            if self.asked == 11:
                raise KeyboardInterrupt
            return super().__call__(text)

    documents = sum(entry.policy == "quote" for entry in ENTRIES)
    costs = Counted()
    whole = saved(tmp_path, costs=costs)
    assert costs.asked == documents
    assert whole != saved(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, costs=Stopped(), parts=tmp_path / "parts")
    again = Counted()
    assert saved(tmp_path, costs=again, parts=tmp_path / "parts") == whole
    assert 0 < again.asked <= documents - 8


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": "none"},
        {"ignore_case": True},
        {"allow": []},
        {"allow": [TEXT[2000:3000], TEXT[3000:4000]]},
        {"costs": Counted()},
        {"costs": Counted("nine", 0.5)},
        {"entries": [Entry(e.text, id=e.id, policy=e.policy, max_quote=90) for e in DOCUMENTS]},
        {"entries": [Entry(e.text, id=e.id, policy=e.policy, source="elsewhere") for e in DOCUMENTS]},
        {"entries": [Entry(e.text, id=e.id, policy=e.policy, cost=Counted()(e.text)) for e in DOCUMENTS]},
    ],
    ids=[
        "none",
        "case",
        "no free code",
        "parts of free code",
        "costs",
        "other costs",
        "max_quote",
        "source",
        "own costs",
    ],
)
@pytest.mark.usefixtures("small_portions")
def test_parts_of_other_settings_are_not_used(tmp_path: Path, options: dict[str, Any]) -> None:
    """Whatever patterns depend on: with parts left by another compile, the file is the one without."""
    settings = {"entries": DOCUMENTS, **options}
    saved(tmp_path, DOCUMENTS, parts=tmp_path / "parts", costs=Counted("four", 9.0))
    saved(tmp_path, DOCUMENTS, parts=tmp_path / "parts")
    assert saved(tmp_path, **settings, parts=tmp_path / "parts") == saved(tmp_path, **settings)


@pytest.mark.usefixtures("small_portions")
def test_what_cannot_be_guarded_is_told_again_and_has_no_costs(tmp_path: Path, prepared: list[int]) -> None:
    broken = [Entry("ab", id="1"), Entry("x" * 200 + "\ud800", id="2", policy="quote")]
    entries = [*DOCUMENTS[:3], *broken, *DOCUMENTS[3:]]
    files = []
    for _ in range(2):
        told: list[str] = []
        costs = Counted()
        files.append(saved(tmp_path, entries, parts=tmp_path / "parts", costs=costs, skipped=told.append))
        assert [why[:9] for why in told] == ["entry '1'", "entry '2'"]
        assert costs.asked == (len(DOCUMENTS) if len(files) == 1 else 0)
    assert files == [saved(tmp_path, DOCUMENTS, costs=Counted())] * 2
    with pytest.raises(ProdError, match=r"entry '1'.*expected at least 3"):
        saved(tmp_path, entries, parts=tmp_path / "parts", costs=Counted())


def test_short_phrases_are_refused_with_parts_of_a_compile_that_allowed_them(tmp_path: Path) -> None:
    saved(tmp_path, [Entry("ab")], allow_short=True, parts=tmp_path / "parts")
    with pytest.raises(ProdError, match="expected at least 3"):
        saved(tmp_path, [Entry("ab")], parts=tmp_path / "parts")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
@pytest.mark.usefixtures("small_portions")
def test_damaged_parts_are_made_again(tmp_path: Path, prepared: list[int], damage: str) -> None:
    whole = saved(tmp_path, parts=tmp_path / "parts")
    count = len(prepared)
    for path in (tmp_path / "parts").iterdir():
        data = path.read_bytes()
        if damage == "foreign":
            write_artifact(path, {}, {})
        else:
            broken = {"cut": data[:-64], "flipped": data[:-64] + bytes([data[-64] ^ 1]) + data[-63:], "empty": b""}
            path.write_bytes(broken[damage])
    assert saved(tmp_path, parts=tmp_path / "parts") == whole
    assert len(prepared) == 2 * count
    saved(tmp_path, parts=tmp_path / "parts")
    assert len(prepared) == 2 * count


def test_a_part_is_no_blocklist(tmp_path: Path) -> None:
    saved(tmp_path, parts=tmp_path / "parts")
    (part,) = (tmp_path / "parts").iterdir()
    with pytest.raises(ProdError, match="is part of a blocklist, expected a blocklist: name another file"):
        Blocklist.load(part)


def test_parts_need_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProdError, match=r"cannot keep parts in .*file: File exists"):
        saved(tmp_path, parts=tmp_path / "file")


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    """Of the command that was killed a part is left, and the file is the one of a command that was not."""
    (tmp_path / "docs").mkdir()
    lines = TEXT.splitlines()
    for number in range(60):
        text = "\n".join(f"{line}  # {number} {at}" for at, line in enumerate(lines * 12))
        (tmp_path / "docs" / f"{number:02}.py").write_text(text)
    base = [sys.executable, "-m", "prod_decode.cli", "compile", tmp_path / "docs", "--jobs", "2"]
    command = [*base, "--parts", tmp_path / "parts", "-o", tmp_path / "again.prod"]
    process = subprocess.Popen(command)
    while process.poll() is None and not list((tmp_path / "parts").glob("*.part")):
        pass
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "again.prod").exists()
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.part")}
    subprocess.run(command, check=True)
    assert {path: path.stat().st_mtime_ns for path in left} == left
    subprocess.run([*base, "-o", tmp_path / "once.prod"], check=True)
    assert (tmp_path / "again.prod").read_bytes() == (tmp_path / "once.prod").read_bytes()


def test_a_portion_under_another_portions_name_is_made_again(tmp_path: Path) -> None:
    first, second = ([Entry(text, id=text)] for text in ("yaml.load(", "harmless("))
    for name, entries in (("a", first), ("b", second)):
        Blocklist.compile(entries, parts=tmp_path / name)
    (own,), (others,) = ((tmp_path / name).iterdir() for name in ("a", "b"))
    own.write_bytes(others.read_bytes())
    assert [entry.id for entry in Blocklist.compile(first, parts=tmp_path / "a").entries()] == ["yaml.load("]
