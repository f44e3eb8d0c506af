"""Commit points: nothing that was banned becomes possible, nothing that is free becomes banned."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prod_decode import Blocklist, Entry, ProdError
from prod_decode.blocklist.commit import commit_lengths
from prod_decode.blocklist.names import NameTables
from prod_decode.command.terminal import exit_status
from prod_decode.text.patterns import Pattern

OS = {b"path", b"sep", b"sysconf", b"system", b"sys", b"environ"}


def kept(phrase: str, names: set[bytes] | None, *texts: str, whole: bool = False) -> str:
    """What is left of a phrase where these are the names in `os`, and these texts are free."""
    pattern = Pattern(True, phrase.encode(), whole)
    tables = {"os": names}.get
    (length,) = commit_lengths([pattern], [text.encode() for text in texts], tables, least=3)
    return phrase.encode()[:length].decode()


@pytest.mark.parametrize(
    ("phrase", "left"),
    [
        ("os.system(", "os.syst"),
        ("x=os.system(", "x=os.syst"),
        ("from os import system", "from os import syst"),
        ("os.popen(", "os.po"),
        ("os.sys.exit(", "os.sys.exit("),  # nothing is known of what stands in os.sys
        ("macos.system(", "macos.system("),
        ("x.os.system(", "x.os.system("),
        ("system(", "system("),
        ("os.", "os."),
        ("import os", "import os"),
        ("os.sépar(", "os.sé"),  # whole characters
    ],
)
def test_phrases(phrase: str, left: str) -> None:
    assert kept(phrase, OS) == left


def test_free_code_counts_as_names_do() -> None:
    assert kept("os.system(", OS, "os.systems = 1") == "os.system("
    assert kept("os.system(", OS, "os.system") == "os.system("
    assert kept("os.system(", OS, "os.system('x')") == "os.syst"  # the phrase itself
    assert kept("os.system(", OS, "macos.systems = 1") == "os.syst"
    assert kept("os.system", OS, "os.systems", whole=True) == "os.system"
    assert kept("os.system", OS, "os.system x", whole=True) == "os.syst"


def test_a_module_of_which_not_all_is_known_shortens_nothing() -> None:
    assert kept("os.system(", None, "os.path.join(a)\nos.sep\nos.environ") == "os.system("


WORDS = st.text("ab(", min_size=1, max_size=4)
PHRASES = st.builds(lambda head, tail: head + tail, st.sampled_from(["m.", "from m import ", "x(m.", "", "n."]), WORDS)
TEXTS = st.lists(st.sampled_from(["m.", "a", "b", "(", " ", "from m import ", "n.", "\n"]), max_size=12).map("".join)
NAMES = st.sets(st.text("ab", min_size=1, max_size=4), max_size=5)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[set[str]], str]:
    """Makes a module of the name `m` that has these names."""
    folder = tmp_path_factory.mktemp("packages")

    def make(names: set[str]) -> str:
        (folder / "m.py").write_text("".join(f"{name} = 1\n" for name in sorted(names)))
        return "m"

    sys.path.insert(0, str(folder))
    try:
        yield make
    finally:
        sys.path.remove(str(folder))


@given(st.lists(PHRASES, min_size=1, max_size=4, unique=True), NAMES, st.lists(TEXTS, max_size=3), TEXTS, st.booleans())
@example(["m.aba("], {"ab", "b"}, [], "m.aba(", True)
@example(["m.ab"], {"b"}, [], "m.ab", True)
@example(["m.ab"], {"ab"}, ["m.a"], "m.ab", False)
def test_what_was_banned_stays_banned_and_what_is_free_stays_free(
    package: Callable[[set[str]], str], phrases: list[str], names: set[str], free: list[str], text: str, whole: bool
) -> None:
    entries = [Entry(phrase, id=phrase, boundary="both" if whole else "start") for phrase in phrases]
    plain = Blocklist.compile(entries, allow_short=True)
    early = Blocklist.compile(entries, allow=free, allow_names=[package(names)], allow_short=True)

    def found(blocklist: Blocklist, text: str) -> set[str]:
        return {match.entry_id for match in blocklist.scan(text)}

    assert found(plain, text) <= found(early, text)
    for one in [*free, *(f"m.{name}" for name in names), *(f"from m import {name}" for name in names)]:
        own = {phrase for phrase in phrases if one.endswith(phrase.rstrip("("))}
        assert found(early, one) - own == found(plain, one) - own
    for entry_id, left in early.report.commit_points:
        assert left != entry_id
        assert "".join(entry_id.split()).startswith("".join(left.split()))


def test_the_points_are_kept_and_merged(tmp_path: Path) -> None:
    early = Blocklist.compile([Entry("os.system("), Entry("pickle.load(")], allow_names=["stdlib"])
    assert early.report.commit_points == [("os.system(", "os.syst")]
    early.save(tmp_path / "early.prod")
    loaded = Blocklist.load(tmp_path / "early.prod")
    assert loaded.report == early.report
    assert [match[:2] for match in loaded.scan("os.system_exec(cmd)")] == [(0, 7)]
    merged = Blocklist.merge([loaded, Blocklist.compile([Entry("hashlib.md5(")], allow_names=["hashlib"])])
    assert merged.report.commit_points == [("os.system(", "os.syst"), ("hashlib.md5(", "hashlib.m")]


def test_a_whole_word_that_is_shortened_need_not_end() -> None:
    early = Blocklist.compile([Entry("os.system", boundary="both")], allow_names=["os"])
    assert early.report.commit_points == [("os.system", "os.syst")]
    assert [match[:2] for match in early.scan("os.system(x)")] == [(0, 7)]


def test_a_file_without_points_is_one_that_0_2_0_reads(tmp_path: Path) -> None:
    Blocklist.compile([Entry("os.system(")]).save(tmp_path / "plain.prod")
    assert b"commit_points" not in (tmp_path / "plain.prod").read_bytes()


def test_names_are_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "pack/__init__.py": "from .inside import *\nfrom .away import *\nif 1:\n    import os as system\n1 / 0\n",
        "pack/inside.py": "__all__ = ['shown', 'also']\n__all__ += ['later']\nshown = also = later = hidden = 1\n",
        "pack/plain.py": "class A:\n    def one(self): self.two = three = 1\nclass B(A): pass\n[x for x in y]\n",
        "pack/stubbed.py": "",
        "pack/stubbed.pyi": "def typed() -> None: ...\n",
        "pack/inner/__init__.py": "from ..plain import *\nfrom pack.inside import shown as again\n",
        "pack/made.py": "globals()['at_run_time'] = 1\nfixed = 1\n",
        "pack/broken.py": "raise SystemExit\nvars()['x'] = 1\n",
        "pack/takes.py": "from .broken import *\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    names = NameTables(["pack"])
    submodules = {"inside", "plain", "stubbed", "inner", "made", "broken", "takes"}
    assert names("pack") == {"shown", "also", "later", "system"} | submodules | {"__init__"}
    assert names("pack.plain") == {"A", "B"}
    assert names("pack.plain.A") == {"one"}
    assert names("pack.plain.B") is None  # also those of its base
    assert names("pack.stubbed") == {"typed"}
    assert names("pack.inner") == {"A", "B", "again", "__init__"}
    assert names("pack.broken") is None
    assert names("pack.takes") is None
    assert names("pack.nowhere") is None
    assert names("os") is None
    assert "pack.made" not in sys.modules


def test_what_is_made_at_run_time_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_names.py").write_text("globals()['at_run_time'] = 1\nfixed = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert {"at_run_time", "fixed"} <= (NameTables(["made_names"])("made_names") or set())
    hashes = NameTables(["stdlib"])("hashlib") or set()
    assert {"sha1", "sha256", "md5"} <= hashes  # by globals()
    assert "system" in (NameTables(["os"])("os") or set())  # from posix, which is compiled


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("nump", "expected the name of an installed package, or `stdlib`, got 'nump': install it here; did you mean"),
        ("../x", "expected the name of an installed package, or `stdlib`, got '../x': install it here"),
        ("", "expected the name of an installed package, or `stdlib`, got '': install it here"),
    ],
)
def test_a_package_that_is_not_there(package: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    def compile_list() -> int:
        Blocklist.compile([Entry("os.system(")], allow_names=[package])
        return 0

    assert exit_status("x", compile_list) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(ProdError, match="allow_names: expected a list of str"):
        Blocklist.compile([Entry("os.system(")], allow_names="numpy")
