"""Data sets of the hub as sources: the same library reads a folder here, as there is no hub in a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from prod_decode.errors import ProdError
from prod_decode.indexing import hub
from prod_decode.indexing.build import build
from prod_decode.indexing.engines import Local
from prod_decode.indexing.hub import HubName
from prod_decode.indexing.sources import documents, plan
from prod_decode.indexing.steps import Recipe
from tests.prod_decode.corpus.corpora import cut_of

RECIPE = Recipe(cut_of())
SOURCE = Path(textwrap.__file__).read_text()
TEXTS = [SOURCE[at : at + 900] for at in range(0, 5400, 900)]
# Of The Stack, of its deduplicated form, and of GitHub Code.
STACK = ("content", "max_stars_repo_path", "max_stars_repo_name", "max_stars_repo_licenses")
GITHUB = ("code", "path", "repo_name", "license")


def rows_of(names: tuple[str, ...], numbers: range) -> list[dict[str, object]]:
    content, path, repo, license_ = names
    named: object = ["MIT", "ISC"] if license_.endswith("s") else "MIT"
    return [{"size": 1, content: TEXTS[n], path: f"src/{n}.py", repo: f"o/r{n}", license_: named} for n in numbers]


def as_parquet(folder: Path, names: tuple[str, ...]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True)
    for share in range(3):
        rows = rows_of(names, range(2 * share, 2 * share + 2))
        parquet.write_table(pa.Table.from_pylist(rows), folder / f"train-{share}.parquet")


def as_lines(folder: Path, names: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    for share in range(3):
        rows = rows_of(names, range(2 * share, 2 * share + 2))
        (folder / f"train-{share}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_names() -> None:
    assert HubName.of("hub:a/b") == HubName("a/b")
    text = "hub:a/b,split=test,config=c,data_dir=data/python,revision=main"
    assert HubName.of(text) == HubName("a/b", "test", "c", "data/python", "main")
    for name in ("hub:a/b", text, "hub:a/b,revision=main"):
        assert str(HubName.of(name)) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hub:", r"hub:: expected hub:NAME\[,split=S\].*, got no name"),
        ("hub:a/b,splt=test", "got 'splt=test'; did you mean 'split'?"),
        ("hub:a/b,name=c", "got 'name=c'"),
        ("hub:a/b,test", "got 'test'"),
        ("hub:a/b,split=", "got 'split='"),
        ("hub:a/b,split=a,split=b", "expected split once, got it again: name the data set twice to read both"),
    ],
)
def test_names_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ProdError, match=message):
        plan([text], skipped=lambda _: None)


@pytest.mark.slow
@pytest.mark.parametrize(("made", "names"), [(as_parquet, STACK), (as_lines, GITHUB)])
def test_a_data_set_is_read_share_by_share(made: object, names: tuple[str, ...], tmp_path: Path) -> None:
    made(tmp_path / "stack" / "data" / "python", names)  # type: ignore[operator]
    (tmp_path / "stack" / "data" / "other").mkdir()
    (tmp_path / "stack" / "data" / "other" / "a.jsonl").write_text('{"content": "other"}\n')
    source = f"hub:{tmp_path}/stack,data_dir=data/python"
    tasks = plan([source], skipped=lambda _: None)
    assert [(task.kind, task.share) for task in tasks] == [("hub", (number, 3)) for number in range(3)]
    found = [list(documents(task, pytest.fail)) for task in tasks]
    assert [text for share in found for _, text in share] == TEXTS
    license_ = "MIT OR ISC" if names is STACK else "MIT"
    assert str(found[1][0][0]) == f"o/r2: src/2.py ({license_})"
    index = build([source], tmp_path / "a.pidx", RECIPE, Local())
    assert (index.report.files, index.report.repositories, index.report.skipped) == (6, 6, 0)
    assert [next(index.scan(text)).entry_id for text in TEXTS] == [
        f"o/r{number}: src/{number}.py ({license_})" for number in range(6)
    ]


@pytest.mark.slow
def test_a_data_set_that_was_changed_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_lines(tmp_path / "stack", STACK)
    source = f"hub:{tmp_path}/stack"

    class Killed(Local):
        def run(self, step, items):  # type: ignore[no-untyped-def]
            yield 0, step(items[0])
            raise KeyboardInterrupt

    def begun(name: str) -> None:
        with pytest.raises(KeyboardInterrupt):
            build([source], tmp_path / name, RECIPE, Killed())

    begun("a.pidx")
    whole = build([source], tmp_path / "b.pidx", RECIPE, Local())
    read: list[int] = []
    rows = hub.rows

    def noted(text: str, share: int, *rest: object) -> object:
        read.append(share)
        return rows(text, share, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(hub, "rows", noted)
    assert len(build([source], tmp_path / "a.pidx", RECIPE, Local(), resume=True)) == len(whole)
    assert read == [1, 2]  # a share that was read is not read again
    begun("c.pidx")
    file = tmp_path / "stack" / "train-2.jsonl"
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 10**9))
    with pytest.raises(ProdError, match="is of a build with other sources or options, or they were changed"):
        build([source], tmp_path / "c.pidx", RECIPE, Local(), resume=True)


@pytest.mark.slow
def test_the_revision_of_the_hub_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a branch leads to later is not read, and a plan knows it."""
    as_lines(tmp_path / "stack", STACK)
    whole = hub.shares_of(f"hub:{tmp_path}/stack")
    asked = []
    found = hub._builder_of

    def of_a_hub(named: HubName) -> object:
        asked.append(named)
        builder = found(named._replace(revision=""))
        files = builder.config.data_files["train"]
        files.origin_metadata = [("o/stack", "c0ffee") for _ in files]
        return builder

    monkeypatch.setattr(hub, "_builder_of", of_a_hub)
    shares = hub.shares_of(f"hub:{tmp_path}/stack,revision=main")
    assert shares.name == f"hub:{tmp_path}/stack,revision=c0ffee"
    assert shares.total == whole.total
    assert shares.state != whole.state
    list(hub.rows(shares.name, 0, 3, shares.state, ("content",)))
    assert asked[-1].revision == "c0ffee"


@pytest.mark.slow
def test_a_data_set_without_code_is_refused(tmp_path: Path) -> None:
    """The Stack v2 names files by their hash, and has none of their text."""
    (tmp_path / "ids").mkdir()
    (tmp_path / "ids" / "a.jsonl").write_text('{"blob_id": "4d", "path": "a.py"}\n')
    with pytest.raises(
        ProdError, match="expected a column content, text or code with source code, got blob_id, path: name a data set"
    ):
        build([f"hub:{tmp_path}/ids"], tmp_path / "a.pidx", RECIPE, Local())
    with pytest.raises(ProdError, match=r"cannot read hub:.*ids,split=test: Bad split: test.*; check the name, the"):
        plan([f"hub:{tmp_path}/ids,split=test"], skipped=lambda _: None)


@pytest.mark.slow
def test_a_name_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "prod_decode.cli", "index", "build", "hub:no/such", "-o", "a.pidx"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("prod-decode index: cannot read hub:no/such: Couldn't reach 'no/such' on the Hub")
    assert line.endswith("check the name, the network, and whether `hf auth login` is needed")
    assert list(tmp_path.glob("a.pidx*")) == []


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ProdError, match=r"^hub:a/b: data sets of the hub are read with datasets: pip install"):
        plan(["hub:a/b"], skipped=lambda _: None)
