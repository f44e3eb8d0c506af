"""Indices built from files: what they prohibit, that every way gives the same bytes, and what is refused."""

from __future__ import annotations

import functools
import gzip
import json
import logging
import os
import shutil
import tarfile
import textwrap
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prod_decode import Blocklist, Entry
from prod_decode.corpus.index import INDEX, CorpusIndex, load_source
from prod_decode.corpus.report import Source
from prod_decode.errors import ProdError
from prod_decode.indexing.build import Engine, build, new_key
from prod_decode.indexing.engines import Local, Ray
from prod_decode.indexing.merge import merge
from prod_decode.indexing.parts import PART
from prod_decode.indexing.sources import documents, plan
from prod_decode.indexing.steps import Recipe
from prod_decode.storage.artifact import read_artifact, write_artifact
from tests.prod_decode.corpus.corpora import KEY, anchors_of, cut_of, index_of, symbols

CUT = cut_of()
RECIPE = Recipe(CUT)
SOURCE = Path(textwrap.__file__).read_text()
FUNCTIONS = [SOURCE[at : at + 900] for at in range(0, 9000, 900)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Ten repositories, of which one has a copy of another's file, and a file that is too short."""
    for number, text in enumerate(FUNCTIONS):
        folder = tmp_path / "corpus" / f"repo{number}" / "pkg"
        folder.mkdir(parents=True)
        (folder / "a.py").write_text(text)
    (tmp_path / "corpus" / "repo3" / "copy.py").write_text(FUNCTIONS[0])
    (tmp_path / "corpus" / "repo4" / "short.py").write_text("x = 1\n")
    return tmp_path / "corpus"


def built(sources: Sequence[Path], output: Path, recipe: Recipe = RECIPE, engine: Engine | None = None, **options: Any):
    return build(sources, output, recipe, engine or Local(), **options)


def identities(index: CorpusIndex) -> set[tuple[int, int]]:
    """Of every anchor what is kept of its key and of its suffix."""
    table = index.table
    buckets = np.repeat(np.arange(len(table.starts) - 1), np.diff(table.starts.astype(np.int64)))
    return set(zip((buckets << 16 | table.remainders).tolist(), table.suffixes.tolist(), strict=True))


def test_an_index_has_the_anchors_of_its_documents_and_names_them(corpus: Path, tmp_path: Path) -> None:
    index = built([corpus], tmp_path / "a.pidx")
    assert len(index) == len(anchors_of(FUNCTIONS, CUT))
    assert identities(index) == identities(index_of(FUNCTIONS, CUT))
    report = index.report
    assert (report.files, report.copies, report.short, report.repositories) == (12, 1, 1, 10)
    assert report.symbols == sum(len(CUT.normalization.symbols(text)) for text in [*FUNCTIONS, FUNCTIONS[0], "x=1"])
    assert (report.common_anchors, report.waived, report.skipped) == (0, 0, 0)
    for number, text in enumerate(FUNCTIONS):
        places = list(index.scan(f"# mine\n{text}\n# mine"))
        found = max(places, key=lambda place: place.end - place.start)
        assert found.entry_id == f"repo{number}: pkg/a.py"
        assert places[0].start < len("# mine\n") + 2 * CUT.max_quote  # symbols, and layout
        assert places[-1].end > len("# mine\n") + len(text) - 2 * CUT.max_quote
        quoted = index.quoted(text)[0]
        assert (quoted.entry.id, quoted.entry.source, quoted.length) == (
            "pkg/a.py",
            f"repo{number}",
            len(CUT.normalization.symbols(text)),
        )
        assert 0.7 < quoted.share <= 1
    assert list(index.scan("nothing of it " * 40)) == []
    assert not (tmp_path / "a.pidx.work").exists()


def rows_of(texts: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"content": text, "path": f"{number}.py", "repo": f"r{number}", "license": "MIT"}
        for number, text in enumerate(texts)
    ]


def as_lines(path: Path) -> Path:
    path = path.with_suffix(".jsonl.gz")
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows_of(FUNCTIONS))
    return path


def as_zip(path: Path) -> Path:
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for number, text in enumerate(FUNCTIONS):
            archive.writestr(f"{number}.py", f"# SPDX-License-Identifier: MIT\n{text}")
    return path


def as_tar(path: Path) -> Path:
    folder = path.with_suffix(".d")
    folder.mkdir()
    for number, text in enumerate(FUNCTIONS):
        (folder / f"{number}.py").write_text(f"# SPDX-License-Identifier: MIT\n{text}")
    path = path.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    return path


def as_parquet(path: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    path = path.with_suffix(".parquet")
    parquet.write_table(pa.Table.from_pylist(rows_of(FUNCTIONS)), path)
    return path


@pytest.mark.parametrize("made", [as_lines, as_zip, as_tar, as_parquet])
def test_archives_lines_and_rows_are_read(made: Callable[[Path], Path], tmp_path: Path) -> None:
    path = made(tmp_path / "gh")
    index = built([path], tmp_path / "a.pidx")
    assert index.report.files == len(FUNCTIONS)
    for number, text in enumerate(FUNCTIONS):
        found = max(index.scan(text), key=lambda place: place.end - place.start)
        repo = f"r{number}" if made in (as_lines, as_parquet) else "gh"
        assert found.entry_id == f"{repo}: {number}.py (MIT)"


class KilledError(Exception):
    pass


class Dying:
    """An engine that dies after so many items."""

    def __init__(self, after: int) -> None:
        self.left = after

    def run(self, step: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for number, made in Local().run(step, items):
            if not self.left:
                raise KilledError
            self.left -= 1
            yield number, made


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tasks and several shards of small sources."""
    monkeypatch.setattr("prod_decode.indexing.sources._TASK", 2000)
    monkeypatch.setattr("prod_decode.indexing.build._SHARD", 32)


@pytest.fixture
def few_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of each: every file that is written waits for the disk."""
    monkeypatch.setattr("prod_decode.indexing.sources._TASK", 12_000)
    monkeypatch.setattr("prod_decode.indexing.build._SHARD", 512)


@pytest.fixture
def common(corpus: Path) -> Path:
    """All repositories have one more file in common."""
    for folder in corpus.iterdir():
        (folder / "vendored.py").write_text(SOURCE[-2000:])
    return corpus


@pytest.mark.slow
def test_a_build_that_was_killed_anywhere_gives_the_same_bytes(
    common: Path, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prod_decode.indexing.build._SHARD", 128)
    recipe = Recipe(CUT, common=5)
    output = tmp_path / "a.pidx"
    built([common], output, recipe)
    expected = output.read_bytes()
    killed = 0
    for after in range(0, 40, 2):
        output.unlink()
        try:
            built([common], output, recipe, Dying(after))
        except KilledError:
            killed += 1
            assert not output.exists()
            # Another key is given and not taken.
            built([common], output, Recipe(CUT._replace(key=new_key()), common=5), resume=True)
        assert output.read_bytes() == expected
    assert killed == 20


def test_progress_is_told_of_every_step(common: Path, tmp_path: Path, small_shards: None) -> None:
    """In bytes of sources where they are known; what an earlier build did is told as such."""
    begun: list[tuple[str, str, float, float]] = []
    told: list[list[float]] = []

    def progress(*step: Any) -> Callable[[float], object]:
        begun.append(step)
        told.append([])
        return told[-1].append

    recipe = Recipe(CUT, common=5)
    with pytest.raises(KilledError):
        built([common], tmp_path / "a.pidx", recipe, Dying(3), progress=progress)
    built([common], tmp_path / "a.pidx", recipe, resume=True, progress=progress)
    killed, reading, counting, again, joining = begun
    assert [step[:2] for step in begun[1:]] == [
        ("reading", "MB"),
        ("counting", "shards"),
        ("choosing again", "MB"),
        ("joining", "shards"),
    ]
    size = sum(path.stat().st_size for path in common.rglob("*.py"))
    assert killed[2] == reading[2] == again[2] == pytest.approx(size / 1e6, rel=0.01)
    assert killed[3] == 0
    # One more was done than was told of when it was killed.
    assert told[0][-1] < reading[3] < reading[2]
    assert counting[2] == joining[2] >= 2
    for step, amounts in zip(begun[1:], told[1:], strict=True):
        assert amounts == sorted(amounts)
        assert amounts[-1] == pytest.approx(step[2])


def die_once(marker: Path, item: int) -> int:
    """Kill the process in which the third item is worked on, the first time."""
    if item == 3 and not marker.exists():
        marker.touch()
        os._exit(1)
    return item * item


def arrays_in(path: Path) -> dict[str, int]:
    """A byte in the middle of each array of a file that is not empty."""
    data = path.read_bytes()
    size = int.from_bytes(data[8:16], "little")
    _, arrays = read_artifact(path, verify=False, form=PART, mapped=True)
    begins = {name: place["at"] for name, place in json.loads(data[16 : 16 + size])["arrays"].items()}
    return {name: 32 + size + begins[name] + array.nbytes // 2 for name, array in arrays.items() if array.nbytes}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("common_from", "kinds"),
    [
        (0, {"part": "scj", "shards": "j", "joined": ""}),  # nothing is chosen again: parts are read by shards alone
        (5, {"part": "j", "again": "j", "common": "j"}),
    ],
)
def test_damage_in_the_work_folder_is_found(
    common_from: int,
    kinds: dict[str, str],
    common: Path,
    tmp_path: Path,
    few_shards: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is another bit of what is done: the same bytes come of it, or it is told which file to remove."""
    recipe, output, work = Recipe(CUT, common=common_from), tmp_path / "a.pidx", tmp_path / "a.pidx.work"
    built([common], output, recipe)
    expected = output.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(CorpusIndex, "save", None)
        with pytest.raises(TypeError):
            built([common], output, recipe)
    whole = work.rename(tmp_path / "whole")
    for kind, made in kinds.items():  # what is made of it is made again
        refused = 0
        for name, at in arrays_in(whole / f"{kind}.0000001").items():
            shutil.copytree(whole, work)
            for path in work.glob("*.0*"):
                if path.name[0] in made:
                    path.unlink()
            path = work / f"{kind}.0000001"
            data = bytearray(path.read_bytes())
            data[at] ^= 1
            path.write_bytes(data)
            try:
                built([common], output, recipe, resume=True)
            except ProdError as error:
                assert f"{path} is damaged (its checksum is wrong): remove it, and go on with --resume" in str(error)  # noqa: PT017
                refused += 1
                path.unlink()
                if refused == 1:
                    built([common], output, recipe, resume=True)
                shutil.rmtree(work, ignore_errors=True)
            else:
                assert name in ("bounds", "sums", "waived", "chosen")
            assert output.read_bytes() == expected, name
        assert refused


@pytest.mark.slow
@pytest.mark.parametrize("bits", [0, 2])
def test_shards_are_more_or_fewer_than_what_has_a_checksum(
    bits: int, common: Path, tmp_path: Path, few_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    built([common], tmp_path / "a.pidx", Recipe(CUT, common=5))
    monkeypatch.setattr("prod_decode.indexing.parts._RANGE_BITS", bits)
    monkeypatch.setattr("prod_decode.indexing.parts.RANGES", 1 << bits)
    built([common], tmp_path / "b.pidx", Recipe(CUT, common=5))
    assert (tmp_path / "a.pidx").read_bytes() == (tmp_path / "b.pidx").read_bytes()


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[str]:
    """A real one, of two workers, on this machine."""
    ray = pytest.importorskip("ray")
    try:
        context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:  # where no sockets or shared memory may be had
        pytest.skip(f"Ray does not start here: {error}")
    yield context.address_info["address"]
    ray.shutdown()


@pytest.mark.long
def test_processes_and_a_ray_cluster_give_the_same_bytes(
    common: Path, tmp_path: Path, small_shards: None, ray_cluster: str
) -> None:
    recipe = Recipe(CUT, common=5)
    engines: dict[str, Engine] = {"one": Local(), "two": Local(2), "ray": Ray(ray_cluster)}
    for name, engine in engines.items():
        built([common], tmp_path / name, recipe, engine)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == (tmp_path / "ray").read_bytes()


@pytest.mark.slow
def test_what_ran_in_a_worker_that_died_runs_again(tmp_path: Path, ray_cluster: str) -> None:
    found = dict(Ray(ray_cluster).run(functools.partial(die_once, tmp_path / "died"), list(range(9))))
    assert found == {number: number * number for number in range(9)}
    assert (tmp_path / "died").exists()


@pytest.mark.slow
def test_a_mistake_in_a_step_on_ray_is_told_as_such(tmp_path: Path, ray_cluster: str) -> None:
    (tmp_path / "damaged.zip").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(ProdError, match="get it again, or leave it out"):
        built([tmp_path / "damaged.zip"], tmp_path / "a.pidx", engine=Ray(ray_cluster))


def test_a_process_that_is_killed_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProdError, match="a process of the build was killed, perhaps for want of memory: use --resume"):
        list(Local(2).run(functools.partial(die_once, tmp_path / "died"), list(range(9))))


def test_a_repository_is_where_git_says_so(tmp_path: Path) -> None:
    """Named itself, or somewhere below what was named; else the folder below that."""
    for folder in ("mine/.git", "all/group/theirs/.git", "all/other/src"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("mine/pkg/a.py", "all/group/theirs/a.py", "all/other/src/a.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(FUNCTIONS[len(name) % 7])
    (tmp_path / "package" / "sub").mkdir(parents=True)
    for name in ("package/__init__.py", "package/sub/a.py"):
        (tmp_path / name).write_text(FUNCTIONS[7])
    tasks = plan([tmp_path / name for name in ("mine", "all", "package")], skipped=lambda _: None)
    found = [source for task in tasks for source, _ in documents(task, lambda _: None)]
    assert found == [
        Source("pkg/a.py", "mine"),
        Source("a.py", "group/theirs"),
        Source("src/a.py", "other"),
        Source("__init__.py", "package"),
        Source("sub/a.py", "package"),
    ]


def test_what_many_repositories_have_may_be_quoted_and_is_told(common: Path, tmp_path: Path) -> None:
    text = SOURCE[-2000:]
    kept = built([common], tmp_path / "kept.pidx", Recipe(CUT, common=10))
    assert list(kept.scan(text))
    index = built([common], tmp_path / "left.pidx", Recipe(CUT, common=9))
    assert list(index.scan(text)) == []
    assert index.report.common_anchors >= len(anchors_of([text], CUT))
    assert index.report.waived == 10 * (len(CUT.normalization.symbols(text)) - CUT.max_quote + 1)
    # Nothing else is lost: what only one repository has.
    for document in FUNCTIONS:
        assert list(index.scan(document))


def test_a_window_with_a_common_anchor_takes_another_one(corpus: Path, tmp_path: Path) -> None:
    """Code that is in every repository, each time with something else behind it: the windows across are kept."""
    shared = CUT.normalization.symbols(SOURCE[-80:]).decode()
    texts = []
    for number, folder in enumerate(sorted(corpus.iterdir())):
        texts.append(shared + CUT.normalization.symbols(FUNCTIONS[number][:100]).decode())
        (folder / "pkg" / "a.py").write_text(texts[-1])
    index = built([corpus], tmp_path / "a.pidx", Recipe(CUT, common=5))
    assert index.report.common_anchors > 0
    for text in texts:
        whole = np.frombuffer(text.encode(), np.uint8)
        places = {int(at) for at, _ in index.find(whole).tolist()}
        windows = range(len(whole) - CUT.max_quote + 1)
        bare = [w for w in windows if not places & set(range(w, w + CUT.max_quote - CUT.width + 1))]
        # Without an anchor are at most windows of which every possible anchor lies in what is shared.
        assert all(w + CUT.max_quote <= len(shared) + CUT.max_quote - CUT.width for w in bare)
        assert len(bare) < len(windows)


def test_free_code_is_never_chosen(corpus: Path, tmp_path: Path) -> None:
    free = tmp_path / "free.py"
    free.write_text(FUNCTIONS[2])
    index = built([corpus], tmp_path / "a.pidx", allow=[free])
    assert list(index.scan(FUNCTIONS[2])) == []
    assert index.report.waived == len(CUT.normalization.symbols(FUNCTIONS[2])) - CUT.max_quote + 1
    assert list(index.scan(FUNCTIONS[3]))


def test_indices_of_one_key_are_merged(corpus: Path, tmp_path: Path) -> None:
    parts = [sorted(corpus.iterdir())[:1], sorted(corpus.iterdir())[1:]]
    one, other = (built(part, tmp_path / f"{number}.pidx") for number, part in enumerate(parts))
    assert one.table.bits < other.table.bits
    both = merge([one, other])
    both.save(tmp_path / "both.pidx")
    both = CorpusIndex.load(tmp_path / "both.pidx", verify=True)
    assert len(both) == len(index_of(FUNCTIONS, CUT))
    for text in FUNCTIONS:
        found = [[at for at, _ in index.find(symbols(text, CUT)).tolist()] for index in (both, one, other)]
        assert found[0] == sorted({*found[1], *found[2]})
        named = max(one.quoted(text) + other.quoted(text), key=lambda quoted: quoted.characters)
        assert both.quoted(text)[0].entry == named.entry
    assert both.report.files == 12
    for twice in ([one, one], [one, CorpusIndex.load(tmp_path / "0.pidx")], [other, one, other]):
        with pytest.raises(ProdError, match="which hold the same: name each once"):
            merge(twice)
    different = built([corpus], tmp_path / "d.pidx", Recipe(CUT._replace(key=bytes(16))))
    with pytest.raises(ProdError, match=r"expected indices of one key, got 0\.pidx and d\.pidx: build one with"):
        merge([one, different])


def test_what_cannot_be_read_is_told(corpus: Path, tmp_path: Path) -> None:
    (corpus / "repo1" / "binary").write_bytes(b"\0\1\2" * 100)
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"content": 3}\n[]\n{"content": "%s"}\nnot json\n' % ("x = f(1)\\n" * 30))
    told: list[str] = []
    index = built([corpus, lines], tmp_path / "a.pidx", skipped=told.append)
    assert index.report.skipped == len(told) == 4
    assert [any(part in line for line in told) for part in ("binary", ":1: expected source", ":2:", ":4:")] == [
        True
    ] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ["nowhere"]}, "cannot read nowhere: No such file or directory"),
        ({"sources": ["damaged.zip"]}, "cannot read .*damaged.zip: .*; get it again, or leave it out"),
        ({"sources": ["short.py"]}, "expected a document of 50 symbols and more that is no free code, got none in 1"),
    ],
)
def test_what_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("damaged.zip").write_bytes(b"PK\3\4 nothing")
    Path("short.py").write_text("x = 1\n")
    with pytest.raises(ProdError, match=message):
        built([Path(name) for name in options["sources"]], tmp_path / "a.pidx")
    assert not (tmp_path / "a.pidx").exists()


def test_a_work_folder_is_not_taken_for_another_builds(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        built([corpus], tmp_path / "a.pidx", engine=Dying(0))
    with pytest.raises(ProdError, match=r"a\.pidx\.work is there, from a build that did not end: pass --resume"):
        built([corpus], tmp_path / "a.pidx")
    with pytest.raises(ProdError, match="is of a build with other sources or options"):
        built([corpus], tmp_path / "a.pidx", Recipe(CUT, common=3), resume=True)
    (corpus / "repo1" / "new.py").write_text(SOURCE)
    with pytest.raises(ProdError, match="is of a build with other sources or options"):
        built([corpus], tmp_path / "a.pidx", resume=True)


def test_what_a_failed_build_leaves_is_told(
    corpus: Path, tmp_path: Path, small_shards: None, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(b"PK\3\4 nothing")
    with pytest.raises(ProdError, match="get it again"):
        built([corpus, damaged], tmp_path / "a.pidx")
    assert caplog.messages == [f"what is done is kept in {tmp_path}/a.pidx.work: go on with --resume, or remove it"]
    caplog.clear()
    with pytest.raises(ProdError, match="get it again"):
        built([damaged, corpus], tmp_path / "b.pidx")
    assert caplog.messages == []
    assert not (tmp_path / "b.pidx.work").exists()  # nothing was done
    built([corpus], tmp_path / "b.pidx", resume=True)
    assert caplog.messages == [
        f"no effect: --resume: there is nothing to go on with in {tmp_path}/b.pidx.work, a new build begins"
    ]


def test_a_build_goes_on_with_its_own_key_and_free_code(corpus: Path, tmp_path: Path) -> None:
    free = tmp_path / "free.py"
    free.write_text(FUNCTIONS[2])
    with pytest.raises(KilledError):
        built([corpus], tmp_path / "a.pidx", engine=Dying(1), allow=[free])
    built([corpus], tmp_path / "a.pidx", Recipe(CUT._replace(key=new_key())), allow=[free], resume=True)
    built([corpus], tmp_path / "b.pidx", allow=[free])
    assert (tmp_path / "a.pidx").read_bytes() == (tmp_path / "b.pidx").read_bytes()


def test_what_is_left_without_a_plan_is_not_gone_on_with(corpus: Path, tmp_path: Path) -> None:
    """Hashes of another key would protect nothing."""
    with pytest.raises(KilledError):
        built([corpus], tmp_path / "a.pidx", engine=Dying(1))
    (tmp_path / "a.pidx.work" / "plan.json").unlink()
    with pytest.raises(ProdError, match=r"a\.pidx\.work, which no build has planned: name another"):
        built([corpus], tmp_path / "a.pidx", resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_the_user_is_no_work_folder(resume: bool, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").write_text("kept")
    for name in ("mine", "mine/keep.txt"):
        with pytest.raises(ProdError, match="which no build has planned: name another"):
            built([corpus], tmp_path / "a.pidx", work=tmp_path / name, resume=resume)
    assert (tmp_path / "mine" / "keep.txt").read_text() == "kept"
    (tmp_path / "empty").mkdir()
    assert len(built([corpus], tmp_path / "a.pidx", work=tmp_path / "empty", resume=resume))


def test_sources_that_were_changed_are_told(common: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KilledError):
        built([common], tmp_path / "a.pidx", engine=Dying(1))
    (common / "repo2" / "pkg" / "a.py").write_text(FUNCTIONS[5])
    with pytest.raises(ProdError, match="is of a build with other sources or options, or they were changed"):
        built([common], tmp_path / "a.pidx", resume=True)

    class Changing(Local):
        """Between reading and choosing again."""

        def run(self, step: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            yield from super().run(step, items)
            (common / "repo3" / "vendored.py").write_text(SOURCE)

    with pytest.raises(ProdError, match="was changed while it was read"):
        built([common], tmp_path / "b.pidx", Recipe(CUT, common=5), Changing())


def test_two_builds_do_not_work_in_one_folder(corpus: Path, tmp_path: Path) -> None:
    class Asking(Local):
        """While another build is at work."""

        def run(self, step: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            with pytest.raises(ProdError, match=r"another build is at work in .*a\.pidx\.work: wait for it"):
                built([corpus], tmp_path / "a.pidx", resume=True)
            yield from super().run(step, items)

    assert len(built([corpus], tmp_path / "a.pidx", engine=Asking()))


def test_an_index_among_its_sources_is_none_of_them(corpus: Path) -> None:
    for resume in (False, True):
        with pytest.raises(KilledError):
            built([corpus], corpus / "a.pidx", engine=Dying(1), resume=resume)
    first = built([corpus], corpus / "a.pidx", resume=True)
    again = built([corpus], corpus / "a.pidx")
    assert first.report == again.report
    assert again.report.files == 12


def test_names_that_are_no_text(corpus: Path, tmp_path: Path) -> None:
    """As file systems have them, and rows."""
    (corpus / os.fsdecode(b"r\xff") / "b").mkdir(parents=True)
    (corpus / os.fsdecode(b"r\xff") / "b" / os.fsdecode(b"c\xff.py")).write_text(SOURCE[-900:])
    lines = tmp_path / "x.jsonl"
    row = {"content": SOURCE[-2000:-1000], "path": "\ud800", "repo": "\ud801", "license": "\ud802"}
    lines.write_text(json.dumps(row))
    index = built([corpus, lines], tmp_path / "a.pidx")
    (found,) = index.scan(SOURCE[-900:])
    assert found.entry_id == os.fsdecode(b"r\xff: b/c\xff.py")
    (found,) = index.scan(SOURCE[-2000:-1000])
    assert found.entry_id == "\ud801: \ud800 (\ud802)"


def encrypted(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.py", SOURCE)
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag, here and in the directory
    data[data.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)


def of_an_unknown_method(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.py", SOURCE)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 10] = 77
    path.write_bytes(data)


def lzma_damaged(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.py", SOURCE)
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz"])
def test_what_is_no_archive_is_told_in_a_short_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ProdError) as told:
        built([tmp_path / name], tmp_path / "a.pidx")
    assert str(told.value) == (
        f"cannot read {tmp_path / name}: no archive of any kind that can be read, or cut short; get it again, or leave "
        "it out"
    )


@pytest.mark.parametrize("spoil", [encrypted, of_an_unknown_method, lzma_damaged])
def test_an_archive_that_cannot_be_read_is_a_mistake_in_one_line(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    spoil(tmp_path / "a.zip")
    with pytest.raises(ProdError, match=r"cannot read .*a\.zip: .*; get it again, or leave it out"):
        built([tmp_path / "a.zip"], tmp_path / "a.pidx")


@pytest.mark.parametrize("record", [b'["a","b","c",1e999]', b"[" * 200_000, b'"a"', b"\xff"])
def test_forged_records_and_numbers(record: bytes, corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pidx"
    built([corpus], path)
    meta, arrays = read_artifact(path, form=INDEX)
    arrays = {name: array.copy() for name, array in arrays.items()}
    documents = len(arrays["record_starts"]) - 1
    forged = {
        **arrays,
        "records": np.frombuffer(record * documents, np.uint8),
        "record_starts": np.arange(documents + 1) * len(record),
    }
    write_artifact(path, meta, forged, form=INDEX)
    assert [found.entry_id for found in CorpusIndex.load(path, verify=False).scan(FUNCTIONS[0])] == ["a.pidx"]
    assert CorpusIndex.load(path, verify=False).quoted(FUNCTIONS[0])
    for name, value in (("width", 32.0), ("max_quote", 50.5), ("width", True), ("key", "zz"), ("normalize", [])):
        write_artifact(path, {**meta, name: value}, arrays, form=INDEX)
        with pytest.raises(ProdError, match="has a header that no build writes"):
            CorpusIndex.load(path)


def test_a_damaged_index_is_refused(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pidx"
    built([corpus], path)
    whole = path.read_bytes()
    meta, arrays = read_artifact(path, form=INDEX)
    arrays = {name: array.copy() for name, array in arrays.items()}
    for at in (10, 100, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ProdError):
            CorpusIndex.load(path, verify=True)
    for cut in (0, 7, 200, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ProdError):
            CorpusIndex.load(path)
    # Order, with a checksum that is right.
    for name in ("remainders", "starts"):
        write_artifact(path, meta, {**arrays, name: arrays[name][::-1]}, form=INDEX)
        with pytest.raises(ProdError, match="has anchors out of order"):
            CorpusIndex.load(path, verify=True)


def test_a_forged_index_stops_nothing_but_itself(corpus: Path, tmp_path: Path) -> None:
    """Nobody reads all of an index when it is opened: whatever stands there, kernels stay within it."""
    path = tmp_path / "a.pidx"
    built([corpus], path)
    meta, arrays = read_artifact(path, form=INDEX)
    arrays = {name: array.copy() for name, array in arrays.items()}
    generator = np.random.default_rng(0)
    for name in ("starts", "remainders", "suffixes", "documents", "records", "record_starts", "even", "outliers"):
        for _ in range(3):
            info = np.iinfo(arrays[name].dtype)
            forged = generator.integers(info.min, info.max, arrays[name].shape, arrays[name].dtype, endpoint=True)
            write_artifact(path, meta, {**arrays, name: forged}, form=INDEX)
            index = CorpusIndex.load(path, verify=False)
            for text in FUNCTIONS[:2]:
                list(index.scan(text))
    for name in arrays:
        write_artifact(path, meta, {**arrays, name: arrays[name][:-1].copy()}, form=INDEX)
        try:
            list(CorpusIndex.load(path, verify=False).scan(FUNCTIONS[0]))
        except ProdError as error:
            assert "has a header that no build writes" in str(error)  # noqa: PT017
    for words in (0, 3):
        write_artifact(path, meta, {**arrays, "outliers": np.zeros(words, np.uint64)}, form=INDEX)
        with pytest.raises(ProdError, match="has a header that no build writes"):
            CorpusIndex.load(path)


def test_an_index_of_an_earlier_version_finds_the_same(corpus: Path, tmp_path: Path) -> None:
    """It has no outliers: every run of a text is looked up."""
    path = tmp_path / "a.pidx"
    index = built([corpus], path)
    meta, arrays = read_artifact(path, form=INDEX)
    assert 64 * len(arrays["outliers"]) > 4 * int(np.bitwise_count(arrays["outliers"]).sum()) > 0
    del arrays["outliers"]
    write_artifact(tmp_path / "old.pidx", meta, arrays, form=INDEX)
    old = CorpusIndex.load(tmp_path / "old.pidx", verify=True)
    for text in FUNCTIONS:
        assert old.quoted(text) == index.quoted(text) != []
    merge([old, built([corpus / "repo1"], tmp_path / "b.pidx")]).save(tmp_path / "both.pidx")
    assert CorpusIndex.load(tmp_path / "both.pidx").quoted(FUNCTIONS[0])[0].characters


def test_a_small_index_is_read_whole_and_a_large_one_is_told(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.pidx"
    built([corpus], path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:])
    with pytest.raises(ProdError, match="is damaged"):
        load_source(path)
    monkeypatch.setattr("prod_decode.corpus.index.VERIFIED", 100)
    assert not caplog.messages
    load_source(path)
    assert caplog.messages == [f"{path} is opened without reading all of it: `prod-decode index verify` does"]
    with pytest.raises(ProdError, match="is damaged"):
        load_source(path, verify=True)


def test_a_blocklist_is_no_index(corpus: Path, tmp_path: Path) -> None:
    built([corpus], tmp_path / "a.pidx")
    Blocklist.compile([Entry("eval(")]).save(tmp_path / "a.prod")
    with pytest.raises(ProdError, match=r"a\.prod is a blocklist, expected a corpus index: name another file"):
        CorpusIndex.load(tmp_path / "a.prod")
    with pytest.raises(ProdError, match=r"a\.pidx is a corpus index, expected a blocklist: name another file"):
        Blocklist.load(tmp_path / "a.pidx")


def test_two_copies_side_by_side_are_two_places(corpus: Path, tmp_path: Path) -> None:
    index = built([corpus], tmp_path / "a.pidx")
    text = FUNCTIONS[1] + FUNCTIONS[6]
    first, second = index.scan(text)
    assert (first.entry_id, second.entry_id) == ("repo1: pkg/a.py", "repo6: pkg/a.py")
    assert first.end <= len(FUNCTIONS[1]) + CUT.width
    assert second.start >= len(FUNCTIONS[1]) - CUT.width


def test_what_strings_of_json_quote_is_counted(corpus: Path, tmp_path: Path) -> None:
    index = built([corpus], tmp_path / "a.pidx")
    other = json.dumps(["é" * 9, FUNCTIONS[2]])
    plain, decoded = (index.quoted(text, unescape=True) for text in (FUNCTIONS[2], other))
    assert [(one.entry, one.characters, one.longest) for one in decoded] == [
        (one.entry, one.characters, one.longest) for one in plain
    ]
    (start, end), *_ = decoded[0].spans
    assert json.loads(f'"{other[start:end]}"') in FUNCTIONS[2]
    # What stands there as it is counts as well, whichever reading has more of a document.
    assert index.quoted(f"{FUNCTIONS[1]}\\", unescape=True) == index.quoted(FUNCTIONS[1])


def test_a_file_that_is_written_into_is_refused(corpus: Path, tmp_path: Path) -> None:
    from tests.prod_decode.corpus.test_tracker import VOCABULARY

    path = tmp_path / "a.pidx"
    index = built([corpus], path)
    tracker = index.bind(VOCABULARY).track()
    text = [np.zeros(0, np.int64)]
    tracker.read(np.arange(1), text, np.zeros(1, np.int64))
    with path.open("r+b") as file:
        file.seek(-8, 2)
        file.write(bytes(8))
    with pytest.raises(ProdError, match="was written into while it was in use"):
        tracker.read(np.arange(1), text, np.zeros(1, np.int64))


def test_without_attribution_a_match_names_the_index(corpus: Path, tmp_path: Path) -> None:
    index = built([corpus], tmp_path / "a.pidx", Recipe(CUT, attribution=False))
    (found,) = index.scan(FUNCTIONS[0])
    assert found.entry_id == "a.pidx"
    with pytest.raises(ProdError, match=r"expected an index with attribution, got a\.pidx"):
        index.quoted(FUNCTIONS[0])
    assert index.size < built([corpus], tmp_path / "b.pidx").size


def test_the_key_is_another_one_each_time() -> None:
    assert new_key() != new_key()
    assert len(new_key()) == len(KEY)
