"""`prod-decode index`: what it refuses, and what it says."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from prod_decode.cli import main

SOURCE = Path(textwrap.__file__).read_text()


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path("theirs", name).mkdir(parents=True)
    Path("theirs/one/a.py").write_text(SOURCE[:3000])
    Path("theirs/two/b.py").write_text(SOURCE[3000:6000])
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--max-quote many", "argument --max-quote: expected a whole number, got 'many'; see `prod-decode index build"),
        ("--width 1.5", "argument --width: expected a whole number, got '1.5'; see `prod-decode index build"),
        ("--common few", "argument --common: expected a whole number, got 'few'; see `prod-decode index build"),
        ("--common -1", "argument --common: expected a number of at least 0, got -1; see `prod-decode index build"),
        ("--jobs x", "argument --jobs: expected a whole number, got 'x'; see `prod-decode index build"),
        ("--jobs 0", "argument --jobs: expected a number above 0, got 0; see `prod-decode index build"),
        ("--max-quote 9", "max_quote: expected 48 to 4096 for an index, got 9: a shorter run is what a blocklist is"),
        ("--width 9", "width: expected 32 to 83 with max_quote 150, got 9"),
        ("-o x.prod", "expected the name of a corpus index to write, got x.prod, as a blocklist is named: name it x.p"),
    ],
)
def test_a_mistake_is_one_line(options: str, message: str, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["index", "build", "theirs", "-o", "a.pidx", *options.split()])
    except SystemExit as end:
        status = end.code
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(path.name for path in corpus.iterdir()) == ["theirs"]


def test_a_blocklist_is_not_named_as_an_index(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.txt").write_text("eval(\n")
    assert main(["compile", "list.txt", "-o", "x.pidx"]) == 2
    assert "got x.pidx, as a corpus index is named: name it x.prod\n" in capsys.readouterr().err


def test_an_index_is_merged_with_others_alone(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With itself, its files would count twice."""
    assert main(["index", "build", "theirs", "-o", "a.pidx", "--jobs", "1"]) == 0
    assert main(["index", "merge", "a.pidx", "./a.pidx", "-o", "b.pidx"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "merge" in line or "hold" in line]
    assert line.endswith("expected different indices, got a.pidx and a.pidx, which hold the same: name each once")
    assert not Path("b.pidx").exists()


def test_places_in_a_file_with_a_nul_are_those_of_its_bytes(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert main(["index", "build", "theirs", "-o", "a.pidx", "--jobs", "1"]) == 0
    data = "é".encode() * 50 + b"\0" + SOURCE[:3000].encode()
    Path("ours.bin").write_bytes(data)
    capsys.readouterr()
    assert main(["scan", "a.pidx", "ours.bin", "--json"]) == 1
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert data[found["start"] : found["end"]].decode("latin-1") == found["text"]
    assert found["text"] in SOURCE
