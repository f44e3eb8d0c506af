"""`prod_decode.storage.jit`: where machine code is kept, what makes it stale, and that no disk stops a program."""

from __future__ import annotations

import importlib.util
import logging
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numba
import pytest

import prod_decode
from prod_decode.storage import jit as _jit
from prod_decode.storage import own_folder as private

KERNEL = "from prod_decode.storage.jit import jit\n@jit\ndef kernel(x):\n    return x + 41\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in a folder with no room for machine code; nor is there a home. True for root as well."""
    obstacle = tmp_path / "a file"
    obstacle.touch()
    monkeypatch.setenv("HOME", str(obstacle))
    monkeypatch.setenv("XDG_CACHE_HOME", str(obstacle))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(_jit, "_told", set())
    (tmp_path / "temporary").mkdir(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = tmp_path / "read only" / "kernels.py"
    path.parent.mkdir()
    path.write_text(KERNEL)
    (path.parent / "__pycache__").touch()
    return path


def started(source: Path) -> ModuleType:
    """The module as in another process: nothing is compiled but what is on disk."""
    spec = importlib.util.spec_from_file_location("kernels", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hits(module: ModuleType) -> int:
    """How many times machine code came from the disk, by numba's own count, for one call that must be right."""
    assert module.kernel(1) == 42
    return sum(module.kernel.stats.cache_hits.values())


def own_folder(source: Path) -> Path:
    return source.parents[1] / "temporary" / f"prod-decode-{os.geteuid()}"


def test_without_a_cache_or_a_home_code_is_kept_in_a_temporary_folder_of_the_user_alone(
    source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "prod_decode"):
        module = started(source)
        assert list(own_folder(source).parent.iterdir()) == []  # import writes nothing
        assert [hits(module), hits(started(source))] == [0, 1]
    found = own_folder(source).stat()
    assert (stat.filemode(found.st_mode), found.st_uid) == ("drwx------", os.geteuid())
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(
        f"compiling for this machine, once for each part: up to a minute in all (kept in {own_folder(source)}"
    )


def _open_to_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)


def _link(folder: Path) -> None:
    (folder.parent.parent / "elsewhere").mkdir(0o700)
    folder.symlink_to(folder.parent.parent / "elsewhere")


def _replaceable(folder: Path) -> None:
    folder.parent.chmod(0o777)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_open_to_others, "with mode 0700, got drwxrwx---"),
        (_link, "with mode 0700, got lrwxrwxrwx"),
        (Path.touch, "with mode 0700, got -rw"),
        (_replaceable, "others can replace "),
    ],
)
def test_a_folder_that_others_could_fill_is_not_used(
    source: Path, caplog: pytest.LogCaptureFixture, spoil: object, reason: str
) -> None:
    """Whoever writes there runs code in this process. The kernel is compiled in memory, and one line says so."""
    spoil(own_folder(source))  # type: ignore[operator]
    before = sorted(source.parents[1].rglob("*"))
    first = started(source)
    assert [hits(first), hits(started(source))] == [0, 0]
    assert [path for path in source.parents[1].rglob("*.nb?") if path not in before] == []
    (line,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert reason in line
    assert line.startswith("machine code cannot be kept, so that every start compiles for up to a minute: ")
    assert line.endswith("Set NUMBA_CACHE_DIR to a folder with room that this user can write, and nobody else")


def test_a_folder_of_another_user_is_not_used(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)  # what is made now is not this user's
    with pytest.raises(OSError, match="prod-decode-4242 to be a folder of user 4242"):
        private.own_folder()
    assert hits(started(source)) == 0


def test_a_sticky_temporary_folder_of_root_or_the_user_is_used(source: Path) -> None:
    own_folder(source).parent.chmod(0o1777)
    assert private.own_folder() == own_folder(source)


def test_numbas_variable_comes_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "named"))
    assert [hits(started(source)), hits(started(source))] == [0, 1]
    assert list((tmp_path / "named").rglob("*.nbi"))
    assert not own_folder(source).exists()


def test_without_any_home_nothing_is_written_below_the_current_directory(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user without an entry in /etc/passwd: `~` stays as it is, and numba would take it for a folder's name."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert [hits(started(source)), hits(started(source))] == [0, 1]
    assert list((tmp_path / "here").iterdir()) == []


@pytest.fixture
def beside(source: Path) -> Path:
    """The same module where machine code can be kept beside it."""
    (source.parent / "__pycache__").unlink()
    return source


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"no pickle at all"])
def test_files_that_were_cut_short_are_compiled_again(beside: Path, suffix: str, content: bytes) -> None:
    assert [hits(started(beside)), hits(started(beside))] == [0, 1]
    (path,) = (beside.parent / "__pycache__").glob(f"*{suffix}")
    path.write_bytes(content)
    assert [hits(started(beside)), hits(started(beside))] == [0, 1]


def test_a_full_disk_costs_the_cache_and_not_the_program(beside: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel lets no file grow beyond a byte: "File too large", another OSError of the same place."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[0][1]))
    try:
        assert hits(started(beside)) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    (line,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "File too large. Set NUMBA_CACHE_DIR to a folder with room" in line


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installation of the package that is not the one under test."""
    folder = tmp_path_factory.mktemp("an installation")
    here = Path(prod_decode.__file__).parent
    shutil.copytree(here, folder / "prod_decode", ignore=shutil.ignore_patterns("__pycache__"))
    yield folder
    shutil.rmtree(folder)


def python(code: str, folder: Path, **environment: str) -> str:
    """What a program prints that imports the package from a folder."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "XDG"))}
    own |= {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path[1:]]), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=own, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
def test_an_edit_in_any_file_of_the_package_makes_machine_code_stale(copy: Path, tmp_path: Path) -> None:
    """After an upgrade that changed a function in one file, callers in files that stayed the same must not run the old
    version, which their machine code holds."""
    package = copy / "prod_decode"
    callee = "from prod_decode.storage.jit import inline, jit\n@inline\ndef f(x):\n    return x + {0}\n"
    callee += "@jit\ndef h(x):\n    return x * {0}\n"
    caller = "from prod_decode.storage.jit import jit\nfrom prod_decode.callee import f, h\n"
    caller += "@jit\ndef g(x):\n    return f(x), h(x)\n"
    (package / "caller.py").write_text(caller)
    ask = "from prod_decode.caller import g; print(g(2), sum(g.stats.cache_hits.values()))"
    found = []
    for number in (3, 3, 4):
        (package / "callee.py").write_text(callee.format(number))
        found.append(python(ask, copy, NUMBA_CACHE_DIR=str(tmp_path)).strip())
    assert found == ["(5, 6) 0", "(5, 6) 1", "(6, 8) 0"]


def test_a_read_only_installation_without_a_home_is_imported(copy: Path, tmp_path: Path) -> None:
    """And compiles: the rest of what a function does there is above."""
    for folder in {path.parent for path in (copy / "prod_decode").rglob("*.py")}:
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        (folder / "__pycache__").touch()
    (tmp_path / "file").touch()
    code = """
import numpy as np
import prod_decode.match.matcher, prod_decode.match.scan, prod_decode.text.hashes, prod_decode.text.patterns
import prod_decode.tokens.vocabulary
print(prod_decode.__file__, prod_decode.text.hashes.substring_hashes(np.zeros(1, np.uint32), 1)[0])
"""
    environment = dict.fromkeys(("HOME", "XDG_CACHE_HOME"), str(tmp_path / "file"))
    printed = python(code, copy, TMPDIR=str(tmp_path), **environment)
    assert printed == f"{copy / 'prod_decode' / '__init__.py'} {0xE220A8397B1DCDAF}\n"  # splitmix64 of 0


@pytest.mark.parametrize("terminal", [True, False])
def test_a_command_says_what_it_waits_for(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a log of CI too, which would stand still for half a minute; what else is only of interest, on a terminal."""
    from prod_decode.cli import main

    log = logging.getLogger("prod_decode")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    try:
        assert main(["info", "no such file.prod"]) == 2
        assert log.getChild("storage.jit").isEnabledFor(logging.INFO)
        assert log.isEnabledFor(logging.INFO) == terminal
    finally:
        log.setLevel(logging.NOTSET)
