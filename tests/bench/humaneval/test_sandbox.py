"""Hostile programs are contained, none passes, none survives. Each runs in both kinds of isolation."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.humaneval import harness, sandbox, warden
from bench.humaneval.sandbox import Isolation, Limits, run
from prod_decode.errors import ProdError

# The name that every hostile process gives itself: how survivors are told from other processes of this machine.
MARK = f"hostile{os.getpid() % 10**6}"
NONCE = "0123456789abcdef" * 4
TESTS = "assert abs(answer() - 42) == 0\nNone"
# On a busy machine a second of CPU time may take many of wall time: only what sleeps is left to the wall's limit.
SMALL = Limits(seconds=60, cpu_seconds=1, memory=256 << 20, processes=8, file_size=1 << 20, disk=4 << 20, files=40)


def namespaces_are_permitted() -> bool:
    """Asked of the kernel and not of the sandbox: where it could use them, it must."""
    ask = "import ctypes, os; os._exit(ctypes.CDLL(None).unshare({flags}) != 0)"
    root = os.geteuid() == 0
    if root and int(Path("/proc/self/uid_map").read_text().split()[2]) == 1:
        return False  # root of a namespace that has no other user, whom the limit on processes may not bind
    flags = 0x6C020000 | (0 if root else 0x10000000)
    return subprocess.run([sys.executable, "-c", ask.format(flags=flags)], check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not namespaces_are_permitted(), reason="namespaces are not permitted here")


@pytest.fixture(params=[pytest.param("namespaces", marks=needs_namespaces), "filter"])
def isolation(request: pytest.FixtureRequest) -> Isolation:
    chosen: Isolation = request.param
    return chosen


@needs_namespaces
def test_namespaces_are_chosen_where_they_are_permitted() -> None:
    assert sandbox.choose_isolation() == "namespaces"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file of the user that must stay as it is."""
    path = tmp_path / "canary" / "secret.txt"
    path.parent.mkdir()
    path.write_text("sekrit-of-the-user")
    path.parent.chmod(0o777)
    path.chmod(0o666)
    return path


def processes_of(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            words = (folder / "comm").read_text().strip(), (folder / "cmdline").read_text()
        except OSError:
            continue
        if state != "Z" and (words[0] == mark or mark in words[1]):
            found.append(f"{folder.name}: {words}")
    return found


HOSTILE = {
    "fork bomb": """
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """,
    "memory": """
        kept = []
        while True:
            kept.append(bytearray(1 << 24))
    """,
    "memory of many": """
        import signal
        for _ in range(6):
            if not os.fork():
                block = b"x" * (90 << 20)
                signal.pause()
        time.sleep(60)
    """,
    "endless output": """
        while True:
            print("x" * 1000)
    """,
    "endless loop": """
        while True:
            pass
    """,
    "endless loop in the tests": """
        def answer():
            while True:
                pass
    """,
    "sleep": "time.sleep(600)",
    "stopped": "os.kill(os.getpid(), 19); time.sleep(600)",
    "files outside": """
        for action in (os.remove, lambda p: open(p, "a").write("gone"), lambda p: os.rename(p, p + ".old"),
                       lambda p: os.truncate(p, 0), lambda p: os.chmod(p, 0), lambda p: os.link(p, p + "2"),
                       lambda p: os.symlink(p, p + "3"), lambda p: os.mkdir(p + ".d"), lambda p: os.utime(p, (0, 0))):
            try:
                action(CANARY)
            except OSError as error:
                print(type(error).__name__)
    """,
    "huge file": """
        try:
            with open("/tmp/huge", "wb", buffering=0) as file:
                while file.write(bytes(1 << 16)):
                    pass
        except OSError:
            pass
        for i in range(100):
            try:
                with open(f"/tmp/{i}", "wb", buffering=0) as file:
                    file.write(bytes(1 << 19))
            except OSError:
                pass
    """,
    "network": """
        import socket
        for address in ("127.0.0.1", "192.0.2.1"):
            try:
                socket.create_connection((address, 9), timeout=1)
            except OSError as error:
                print(error)
    """,
    "kill": """
        for process in (os.getppid(), 1, -1, PARENT):
            for number in (15, 9):
                try:
                    os.kill(process, number)
                except OSError as error:
                    print(error)
    """,
    "exit": "os._exit(0)",
    "exit in the tests": """
        def answer():
            os._exit(0)
    """,
    "SystemExit": "raise SystemExit(0)",
    "SystemExit in the tests": """
        def answer():
            sys.exit(0)
    """,
    "patched exits and asserts": """
        import builtins
        class Never(BaseException):
            pass
        builtins.AssertionError = Never
        builtins.exec = builtins.compile = lambda *a, **k: None
        builtins.__build_class__ = None
        sys.exit = os._exit = lambda *a: None
        sys.excepthook = lambda *a: os.write(1, b"ok")
        def answer():
            return 41
    """,
    "hidden built-ins": """
        import builtins
        builtins.abs = abs = lambda x: 0
        def answer():
            return 41
    """,
    "trace over asserts": """
        def trace(frame, event, argument):
            if frame.f_code.co_filename == "tests.py" and event == "line":
                frame.f_lineno = frame.f_lineno + 1
            return trace
        sys.settrace(trace)
        sys._getframe(1).f_trace = trace
        def answer():
            return 41
    """,
    "claims": """
        for fd in range(1, 64):
            for claim in (b"ok", b"passed", b"end" + bytes([10]) + b"0" * 64):
                try:
                    os.write(fd, claim)
                except OSError:
                    pass
        os._exit(0)
    """,
    "look for the nonce": """
        import gc, re
        seen = [repr(os.environ), repr(sys.argv)]
        frame = sys._getframe()
        while frame:
            seen += [repr(frame.f_locals), repr(frame.f_globals), repr(frame.f_code.co_consts)]
            frame = frame.f_back
        seen += [repr(item) for item in gc.get_objects()[:20000] if isinstance(item, (dict, list, tuple))]
        found = sorted(set(re.findall("[0-9a-f]{64}", " ".join(seen))))
        for guess in found or ["0" * 64]:
            os.write(4, b"end" + bytes([10]) + guess.encode())
        print(found)
        os._exit(0)
    """,
    "close everything": """
        os.closerange(0, 64)
        def answer():
            return 42
    """,
    "daemon": """
        if not os.fork():
            os.setsid()
            if not os.fork():
                while True:
                    time.sleep(1)
            os._exit(0)
        time.sleep(0.3)
        os._exit(0)
    """,
    "signals ignored": """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            pass
    """,
    "environment and descriptors": """
        print(dict(os.environ), os.getcwd())
        for fd in range(64):
            try:
                print(fd, os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd))
            except OSError:
                pass
    """,
    "delete the harness": """
        import shutil
        shutil.rmtree(os.path.dirname(CANARY), ignore_errors=True)
        for name in ("harness", "exec", "write"):
            globals().pop(name, None)
        frame = sys._getframe(1)
        frame.f_globals.clear()
        sys.modules.clear()
    """,
    "threads": """
        import threading
        started = 0
        try:
            for _ in range(10_000):
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                started += 1
        except RuntimeError:
            print("threads:", started)
    """,
    "recursion": """
        sys.setrecursionlimit(10**9)
        def f(x):
            return [f(x + 1)]
        f(0)
    """,
    "another program": "os.execv('/bin/true', ['true'])",
    "another program that stays": f"""
        import subprocess
        subprocess.Popen(["/bin/sleep", "{600 + os.getpid() % 7}.{MARK[7:]}"], start_new_session=True)
        os._exit(0)
    """,
    "crash": "import ctypes; ctypes.string_at(0)",
    "many files": """
        made = 0
        try:
            for made in range(100_000):
                open(f"/tmp/f{made}", "x").close()
        except OSError:
            print("files:", made)
    """,
    "input": "print(repr(sys.stdin.read())); input()",
    "look at others": """
        for path in ("/proc/1/mem", f"/proc/{PARENT}/environ", "/proc/self/mem"):
            try:
                print(open(path, "rb").read(10))
            except OSError as error:
                print(error)
    """,
    "not Python": "x = = 1",
    "not text": "x = '\ud800'",
}


def hostile(name: str, canary: Path) -> str:
    begin = f"""\
import ctypes, os, sys, time
ctypes.CDLL(None).prctl(15, {MARK!r}.encode())
CANARY, PARENT = {str(canary)!r}, {os.getpid()}
"""
    return begin + textwrap.dedent(HOSTILE[name])


REASONS = {
    "fork bomb": "cpu",
    "memory of many": "memory",
    "endless output": "output",
    "endless loop": "cpu",
    "endless loop in the tests": "cpu",
    "signals ignored": "cpu",
    "sleep": "timeout",
    "stopped": "timeout",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_contained_and_does_not_pass(
    name: str, isolation: Isolation, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROD_TEST_TOKEN", "sekrit-of-the-environment")
    monkeypatch.setattr(secrets, "token_hex", lambda size: NONCE)
    before = canary.stat().st_mtime
    limits = replace(SMALL, seconds=2) if REASONS.get(name) == "timeout" else SMALL
    outcome = run(hostile(name, canary), TESTS, limits, isolation=isolation)
    assert not outcome.passed
    assert outcome.seconds < limits.seconds + 1
    assert len(outcome.output) <= SMALL.output
    assert processes_of(MARK) == []
    assert (canary.read_text(), canary.stat().st_mtime) == ("sekrit-of-the-user", before)
    assert [path.name for path in canary.parent.iterdir()] == [canary.name]
    assert "sekrit" not in outcome.output
    assert NONCE not in outcome.output
    # With the filter no child starts to begin with, and a signal to oneself is refused.
    refused = isolation == "filter" and name in ("memory of many", "stopped")
    assert outcome.reason == ("failed" if refused else REASONS.get(name, outcome.reason))


# Programs that decide the outcome in the tests' stead if the tests run in their process: (program, tests).
FORGERIES = {
    "protocol": ("import os; os.write(4, b'end\\n'); os.write(4, os.read(3, 64)); os._exit(0)", TESTS),
    "equal to everything": (
        "class Yes(int):\n    __eq__ = lambda *a: True\ndef answer():\n    return Yes(41)",
        "assert answer() == 42",
    ),
    "another module": (
        "import math\nmath.isclose = lambda *a: True\ndef answer():\n    return 41",
        "import math\nassert math.isclose(answer(), 42)",
    ),
    "frames": (
        "import sys\ndef answer():\n    sys._getframe(1).f_globals['abs'] = lambda x: 0\n    return 41",
        "found = answer()\nassert abs(found - 42) == 0",
    ),
}
# What else a program may try that is only lent to tests in another process.
LENT = {
    "kills the tests": "import os, signal\ndef answer():\n    [kill(p) for p in range(2, 64)]\n    return 41\n"
    "def kill(p):\n    try:\n        p != os.getpid() and os.kill(p, 9)\n    except OSError:\n        pass\n",
    "garbage": "import os\ndef answer():\n    os.write(4, b'\\xff' * 64)\n    return 42",
    "no JSON": "import os\ndef answer():\n    os.write(4, bytes(7) + bytes([3]) + b'abc')\n    return 42",
    "another type": "def answer():\n    return type('Two', (), {'__sub__': lambda a, b: 0})()",
    "raises": "def answer():\n    raise ValueError('no answer')",
    "ends": "import os\ndef answer():\n    os._exit(0)",
    "not there": "def question():\n    return 42",
    "loops": "def answer():\n    while True: pass",
    "daemon": f"import ctypes, os, time\nctypes.CDLL(None).prctl(15, {MARK!r}.encode())\ndef answer():\n"
    "    if not os.fork():\n        os.setsid()\n        while True: time.sleep(1)\n    return 41",
    "recites": "print('sekrit')\ndef answer(): return 41",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_fails_where_tests_have_their_own_process(name: str, isolation: Isolation) -> None:
    program, tests = FORGERIES[name]
    outcome = run(program, tests, SMALL, function="answer", isolation=isolation)
    assert (outcome.passed, outcome.reason) == (False, "failed")


@pytest.mark.xfail(strict=True, reason="not covered where tests run in the program's process, as the module says")
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_fails_in_one_process(name: str) -> None:
    program, tests = FORGERIES[name]
    assert not run(program, tests, SMALL).passed


@pytest.mark.slow
@pytest.mark.parametrize("name", LENT)
def test_a_program_that_lends_a_function_cannot_pass_without_the_right_value(name: str, isolation: Isolation) -> None:
    outcome = run(LENT[name], TESTS, SMALL, function="answer", isolation=isolation)
    assert not outcome.passed
    assert processes_of(MARK) == []
    if name == "raises":
        assert outcome.detail.endswith("ProgramError: ValueError: no answer")
    if name == "not there":
        assert outcome.detail == "KeyError: 'answer'"
    if name == "loops":
        assert outcome.reason == "cpu"


def test_values_come_back_as_they_were(isolation: Isolation) -> None:
    program = "def same(*a, **k):\n    print('called')\n    return a, k"
    tests = r"""
values = (1, -2**70, 1.5, float("inf"), 1j, "\u00e9\ud800", b"\xff", [1, (2,)], {3}, {"a": None, (1,): True}, helper())
assert same(*values, key=False) == (values, {"key": False})
assert [type(v) for v in same(*values)[0]] == [type(v) for v in values]
for i in range(300):
    assert same(i) == ((i,), {})
"""
    outcome = run(program, tests, SMALL, function="same", setup="def helper(): return 'h'", isolation=isolation)
    assert outcome.passed, outcome
    assert outcome.output.count("called") == 302


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.binary(max_size=5)
    | st.text(st.characters(), max_size=5) | st.decimals() | st.fractions()
)  # fmt: skip
hashable = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(hashable.filter(lambda x: "sNaN" not in repr(x)), max_size=3)
        | st.dictionaries(hashable.filter(lambda x: "sNaN" not in repr(x)), inner, max_size=3)
    ),
    max_leaves=10,
)


@example(-0.0)
@example([float("nan"), -(2**64)])
@given(values)
def test_what_is_packed_is_unpacked_exactly(value: object) -> None:
    def shown(x: object) -> str:
        """repr tells -0.0, nan and types apart; of a set in any order."""
        return re.sub(r"\{.*\}", lambda m: "".join(sorted(m[0])), repr(x), flags=re.DOTALL)

    packed = harness.pack(value)
    assert int.from_bytes(packed[:8], "big") == len(packed) - 8
    assert shown(harness.unpack(packed[8:])) == shown(value)


def test_subclasses_come_as_their_base_and_strangers_equal_nothing() -> None:
    class Number(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    def sent(value: object) -> object:
        return harness.unpack(harness.pack(value)[8:])

    assert sent(Number(3)) == 3
    assert sent(Number(3)) != 4
    assert sent([Number(3), object(), range(3)])[1:] != [object(), range(3)]  # type: ignore[index]
    assert repr(sent(range(3))) == "<a value of type range>"


def test_survivors_would_be_seen() -> None:
    """The check above can fail: a process with that name is found, and one with the mark among its arguments."""
    named = f"import ctypes, time; ctypes.CDLL(None).prctl(15, {MARK!r}.encode()); print(flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", named], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert len(processes_of(MARK)) == 1
    finally:
        child.kill()
        child.communicate()
    assert processes_of(MARK) == []


def test_the_probe_sees_open_gates(tmp_path: Path) -> None:
    """Run without isolation, the probe finds what is open."""
    probe = sandbox._PROBE.format(
        places=[str(tmp_path), "/no/such"], parent=os.getpid(), processes=2, memory=1 << 20, folder=str(tmp_path)
    )
    environment = {**os.environ, "PROD_TEST_TOKEN": "x"}
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=environment)
    for gate in (f"write to {tmp_path}", "more processes", "signal", "memory", "PROD_TEST_TOKEN", "socket 2"):
        assert gate in done.stdout
    assert "/no/such" not in done.stdout


def test_isolation_that_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_PROBE", "print('open: everything')")
    sandbox._require.cache_clear()
    sandbox.choose_isolation.cache_clear()
    try:
        with pytest.raises(ProdError, match=r"namespaces .*; and without them: filter do not contain .*everything"):
            run("x = 1")
        monkeypatch.setattr(sandbox, "_PROBE", "print('contained')\nraise SystemExit(1)")
        with pytest.raises(ProdError, match="the probe of filter did not end: failed"):
            run("x = 1", isolation="filter")
    finally:
        sandbox._require.cache_clear()
        sandbox.choose_isolation.cache_clear()


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("linux", "riscv64")])
def test_elsewhere_it_refuses(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(ProdError, match="untrusted programs run on Linux on x86_64 or aarch64 only") as caught:
        sandbox._run("x = 1", "", Limits(), "namespaces")
    assert "\n" not in str(caught.value)


def test_a_finite_bomb_stops_at_the_limit(isolation: Isolation) -> None:
    """Before anything endless: how many processes there are when fork fails."""
    program = """
import os, signal
children = []
try:
    for _ in range(12):
        child = os.fork()
        if not child:
            signal.pause()
        children.append(child)
except OSError:
    pass
print("children:", len(children))
"""
    outcome = run(program, limits=SMALL, isolation=isolation)
    assert outcome.passed
    expected = 0 if isolation == "filter" else SMALL.processes - 1
    assert outcome.output == f"children: {expected}\n"


@needs_namespaces
def test_files_stop_at_their_limits() -> None:
    program = """
import os
def fill(name):
    with open(name, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            return error.strerror
print(fill("a"), os.path.getsize("a"))
for i in range(5):
    why = fill(str(i))
print(why, sum(os.path.getsize(name) for name in filter(os.path.isfile, os.listdir())) <= LIMIT)
for name in filter(os.path.isfile, os.listdir()):
    os.remove(name)
made = 0
try:
    while True:
        open(f"f{made}", "x").close()
        made += 1
except OSError as error:
    print(error.strerror, made)
    """.replace("LIMIT", str(SMALL.disk))
    outcome = run(program, limits=SMALL)
    assert outcome.passed, outcome
    assert outcome.output.splitlines() == [
        f"File too large {SMALL.file_size}",
        "No space left on device True",
        f"No space left on device {SMALL.files - 1}",
    ]


def test_descriptors_stop_at_their_limit(isolation: Isolation) -> None:
    program = """
import os
opened = []
try:
    while True:
        opened.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(error.strerror, max(opened))
"""
    assert run(program, limits=SMALL, isolation=isolation).output == f"Too many open files {SMALL.open_files - 1}\n"


def test_what_a_good_program_may_do(isolation: Isolation) -> None:
    program = """
import concurrent.futures, decimal, hashlib, json, math, os, random, re, sys, tempfile, threading, typing
def answer():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return sum(pool.map(int, ["40", "2"]))
print("out")
print("err", file=sys.stderr)
"""
    if isolation == "namespaces":
        program += """
import multiprocessing.util, subprocess
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("text")
    file.seek(0)
    assert file.read() == "text"
assert not any(map(os.path.isfile, os.listdir("."))) and os.getcwd() == "/tmp"
assert subprocess.run(["/bin/echo", "hello"], capture_output=True, text=True).stdout == "hello\\\\n"
assert (os.getuid() != 0) and os.environ["HOME"] == "/tmp"
""".replace("\\\\", "\\")
    outcome = run(program, TESTS, SMALL, isolation=isolation)
    assert (outcome.passed, outcome.reason) == (True, "passed"), outcome
    assert outcome.output == "out\nerr\n"
    assert outcome.cpu_seconds > 0


@needs_namespaces
def test_in_namespaces_the_users_files_are_not_even_seen(canary: Path) -> None:
    program = f"import os; print([os.path.lexists(p) for p in ({str(canary)!r}, '/proc', '/etc/passwd', '/home')])"
    outcome = run(program, isolation="namespaces")
    assert outcome.output == "[False, False, False, False]\n"


def test_two_runs_of_the_same_program_are_alike(isolation: Isolation) -> None:
    """Order of sets of strings included: a score repeats."""
    program = "print(list({str(i) for i in range(50)}))"
    assert run(program, isolation=isolation).output == run(program, isolation=isolation).output


def test_details_are_for_people(isolation: Isolation) -> None:
    assert run("x = 1", "assert x == 2, 'x is not 2'", isolation=isolation).detail == "AssertionError: x is not 2"
    assert run("import os; os._exit(3)", isolation=isolation).detail == "left with status 3"
    crashed = run("import ctypes; ctypes.string_at(0)", isolation=isolation)
    assert crashed.detail == f"signal {signal.SIGSEGV}"


def test_large_programs_and_texts_arrive(isolation: Isolation) -> None:
    program = "x = " + repr("\u65e5" * 300_000)
    assert run(program, "assert x == '\u65e5' * 300_000", isolation=isolation).passed


def test_the_warden_dies_with_its_parent(tmp_path: Path, isolation: Isolation) -> None:
    """A killed benchmark leaves nothing running."""
    mark = f"orphan{os.getpid() % 10**6}"
    halves = f"{mark[:3]!r} + {mark[3:]!r}"  # the mark itself would stand among the parent's arguments
    program = f"import ctypes, time; ctypes.CDLL(None).prctl(15, ({halves}).encode())\nwhile True: time.sleep(0.1)"
    script = (
        f"from bench.humaneval.sandbox import *\nrun({program!r}, limits=Limits(seconds=60), isolation={isolation!r})"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(sandbox.__file__).parents[2])
    try:
        until = time.monotonic() + 60
        while not processes_of(mark) and time.monotonic() < until:
            time.sleep(0.1)
        assert processes_of(mark)
    finally:
        parent.kill()
        parent.wait()
    until = time.monotonic() + 30
    while processes_of(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(mark) == []


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"seconds": 0}, "seconds above 0"),
        ({"processes": -1}, "processes above 0"),
        ({"cpu_seconds": 1.5}, "cpu_seconds above 0 of type int"),
        ({"memory": 1 << 20}, "64 MiB or more"),
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, int], message: str) -> None:
    with pytest.raises(ProdError, match=message):
        Limits(**limits)  # type: ignore[arg-type]


# ---- the filter, interpreted ----------------------------------------------------------------------------------------


def decide(program: bytes, audit: int, number: int, arguments: tuple[int, ...]) -> int:
    """A small interpreter of classic BPF, for the instructions that the filter has."""
    lines = [
        (int.from_bytes(program[i : i + 2], "little"), program[i + 2], program[i + 3],
         int.from_bytes(program[i + 4 : i + 8], "little"))
        for i in range(0, len(program), 8)
    ]  # fmt: skip
    data = {0: number, 4: audit} | {16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate(arguments)}
    at, register = 0, 0
    while True:
        code, yes, no, value = lines[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            register = data[value]
        else:
            true = {0x15: register == value, 0x25: register > value, 0x45: bool(register & value)}[code]
            at += yes if true else no


ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("alone", [False, True])
def test_every_call_is_decided_as_the_tables_say(machine: str, alone: bool) -> None:
    program = warden.system_call_filter(machine, alone=alone)
    table = warden._MACHINES[machine]
    refused = set(table["never"]) | (set(table["alone"]) if alone else set())
    assert len(program) // 8 < 4096
    assert decide(program, 0x40000003, 1, (0,) * 6) == KILL  # 32-bit calls have other numbers
    for number in range(600):
        if number == table["clone"] or number in table["with"] or number in table["opens"]:
            continue
        expected = ALLOW
        if number > warden.NEWEST_KNOWN or number in (435, 437):
            expected = ERRNO | 38
        elif number in refused:
            expected = ERRNO | 1
        assert decide(program, table["audit"], number, (0,) * 6) == expected, number
    assert decide(program, table["audit"], 0x40000000 + 39, (0,) * 6) == ERRNO | 38  # x32

    def clone(flags: int) -> int:
        return decide(program, table["audit"], table["clone"], (flags, 0, 0, 0, 0, 0))

    for number, (position, bad) in table["with"].items():
        for value in (*bad, 2, 3, 0x5401):
            arguments = [1 << 20] * 6
            arguments[position] = value
            expected = ERRNO | 1 if alone and value in bad else ALLOW
            assert decide(program, table["audit"], number, tuple(arguments)) == expected
    thread = 0x3D0F00
    assert clone(thread) == ALLOW
    assert clone(17) == (ERRNO | 1 if alone else ALLOW)
    for new in (0x20000, 0x10000000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000):
        assert clone(17 | new) == ERRNO | 1
        assert clone(thread | new) == ERRNO | 1
    for number, position in table["opens"].items():
        for flags, writes in ((os.O_RDONLY | os.O_CLOEXEC, False), (1, True), (2, True), (0o100, True), (0o1000, True)):
            arguments = [0] * 6
            arguments[position] = flags
            expected = ERRNO | 30 if alone and writes else ALLOW
            assert decide(program, table["audit"], number, tuple(arguments)) == expected


def test_the_tables_mean_the_same_calls() -> None:
    """By the names in the C library's headers, where they are installed: both machines refuse the same calls."""
    folders = [Path("/usr/include"), *Path("/usr/include").glob("x86_64-*")]
    found = [folder / "asm/unistd_64.h" for folder in folders if (folder / "asm/unistd_64.h").is_file()]
    generic = Path("/usr/include/asm-generic/unistd.h")
    if platform.machine() != "x86_64" or not found or not generic.is_file():
        pytest.skip("no <asm/unistd_64.h> of x86_64 and <asm-generic/unistd.h> here")
    names: dict[str, dict[int, str]] = {}
    for machine, path in (("x86_64", found[0]), ("aarch64", generic)):
        pairs = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
        names[machine] = {int(number): name for name, number in reversed(pairs)}
    # Calls newer than some of these headers.
    newer = {443: "quotactl_fd", 447: "memfd_secret", 452: "fchmodat2"}

    def named(machine: str, numbers: Iterable[int]) -> set[str]:
        return {names[machine].get(number, newer.get(number, str(number))) for number in numbers}

    old = {"uselib", "modify_ldt", "iopl", "ioperm"}  # of x86_64 only
    x86, arm = warden._MACHINES["x86_64"], warden._MACHINES["aarch64"]
    assert named("x86_64", x86["never"]) - old == named("aarch64", arm["never"])
    assert {"socket", "ptrace", "unshare", "mount", "memfd_create", "shmget"} <= named("aarch64", arm["never"])
    # The generic table has only the newer of each pair: unlinkat and not unlink.
    old = {"fork", "vfork", "chmod", "chown", "lchown", "creat", "link", "symlink", "unlink", "mkdir", "rmdir", "mknod"}
    old |= {"rename", "utime", "utimes", "futimesat"}
    assert named("x86_64", x86["alone"]) - old == named("aarch64", arm["alone"])
    assert old <= named("x86_64", x86["alone"])
    for key in ("with", "opens"):
        assert named("x86_64", x86[key]) - {"open"} == named("aarch64", arm[key])
    assert named("x86_64", [x86["clone"]]) == named("aarch64", [arm["clone"]]) == {"clone"}


def test_packages_are_there_only_where_they_are_asked_for(isolation: Isolation) -> None:
    """NumPy, as a package with native code; it can be read and not written."""
    program = "import numpy\nassert numpy.ones(3).sum() == 3\n"
    limits = Limits(seconds=60, memory=2 << 30)
    packages = str(Path(np.__file__).parents[1])  # purelib has none in an environment on top of another
    assert run(program, limits=limits, packages=packages, isolation=isolation).passed
    missing = run(program, limits=limits, isolation=isolation)
    assert "No module named 'numpy'" in missing.detail
    write = f"open({str(Path(packages) / 'prod_written_by_a_test.py')!r}, 'w')"
    assert not run(write, limits=limits, packages=packages, isolation=isolation).passed
    assert not (Path(packages) / "prod_written_by_a_test.py").exists()


# ---- any place ------------------------------------------------------------------------------------------------------


@pytest.fixture
def below_tmp() -> Iterator[Path]:
    """Where the sandbox has a folder of its own, wherever the temporary folder of this machine is."""
    mask = os.umask(0o022)  # as the Makefile installs: root's programs run as a user who must be able to read this
    try:
        with tempfile.TemporaryDirectory(prefix="prod-test-", dir="/tmp") as folder:
            Path(folder).chmod(0o755)
            yield Path(folder)
    finally:
        os.umask(mask)


@pytest.mark.parametrize("name", ["", "a b/it's \u65e5", os.fsdecode(b"not UTF-8 \xe9/x")])
@pytest.mark.parametrize("link", [False, True])
def test_packages_may_lie_anywhere_below_tmp(below_tmp: Path, name: str, link: bool, isolation: Isolation) -> None:
    packages = below_tmp / name
    packages.mkdir(parents=True, exist_ok=True)
    (packages / "lent.py").write_text("NUMBER = 42")
    if link:
        (packages / "link").symlink_to(packages)
        packages /= "link"
    outcome = run("from lent import NUMBER", "assert NUMBER == 42", packages=str(packages), isolation=isolation)
    assert (outcome.passed, outcome.output) == (True, "")


@needs_namespaces
@pytest.mark.parametrize("name", ["", "deep/er"])
def test_what_lies_below_tmp_cannot_be_replaced(below_tmp: Path, name: str) -> None:
    """The tests import from there in a process of their own, while the program has /tmp to write."""
    packages = below_tmp / name
    packages.mkdir(parents=True, exist_ok=True)
    (packages / "lent.py").write_text("NUMBER = 42")
    (packages / "other").mkdir()
    program = f"""
import os
def attempts():
    found = []
    ways = [{str(packages)!r}]
    while ways[-1] != "/tmp":
        ways.append(os.path.dirname(ways[-1]))
    for way in ways[:-1]:
        for action in (lambda: os.rename(way, way + "-old"), lambda: os.rmdir(way), lambda: os.mkdir(way + "/new"),
                       lambda: os.chmod(way, 0o777), lambda: os.symlink("/usr", way + "/link"),
                       lambda: open(way + "/lent.py", "w")):
            try:
                action()
                found.append(way)
            except OSError:
                pass
    open("/tmp/mine", "x").close()
    return found, os.listdir("/tmp")
"""
    tests = f"""
found, names = attempts()
assert found == [] and {{"mine", {below_tmp.name!r}}} <= set(names), (found, names)
from lent import NUMBER
assert NUMBER == 42
"""
    outcome = run(program, tests, SMALL, function="attempts", packages=str(packages), isolation="namespaces")
    assert outcome.passed, outcome


@needs_namespaces
def test_the_way_to_packages_costs_the_program_no_files(below_tmp: Path) -> None:
    (below_tmp / "packages").mkdir()
    count = """
made = 0
try:
    while True:
        open(f"f{made}", "x").close()
        made += 1
except OSError:
    print(made)
"""
    outcome = run(count, limits=SMALL, packages=str(below_tmp / "packages"), isolation="namespaces")
    assert outcome.output == f"{SMALL.files - 1}\n"


@pytest.mark.parametrize("place", ["/tmp", "with space", "link"])
def test_the_temporary_and_the_current_folder_may_be_anywhere(
    below_tmp: Path, place: str, isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe's too: /tmp as the current directory or as HOME is not what a program may write there."""
    (below_tmp / "with space").mkdir()
    (below_tmp / "link").symlink_to("with space")
    folder = str(below_tmp / place)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.setenv("HOME", folder)
    monkeypatch.chdir(folder)
    sandbox._require.cache_clear()
    try:
        assert run("x = 1", isolation=isolation).passed
    finally:
        sandbox._require.cache_clear()


def test_a_user_without_a_home_runs_programs(isolation: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    sandbox._require.cache_clear()
    try:
        assert run("x = 1", isolation=isolation).passed
    finally:
        sandbox._require.cache_clear()


@pytest.mark.parametrize("private", ["packages", "packages/lent"])
def test_what_was_installed_for_root_alone_is_read_or_refused_with_the_remedy(
    below_tmp: Path, private: str, isolation: Isolation
) -> None:
    """Root's programs run as another user. They must not fail as if that were their fault."""
    packages = below_tmp / "packages"
    (packages / "lent").mkdir(parents=True)
    (packages / "lent" / "__init__.py").write_text("NUMBER = 42")
    (below_tmp / private).chmod(0o700)

    def passes(**options: Any) -> bool:
        program = "from lent import NUMBER\ndef number():\n    return NUMBER\n"
        return run(program, "assert 1", packages=str(packages), isolation=isolation, **options).passed

    if isolation == "namespaces" and os.geteuid() == 0:
        # Once, although the tests' process finds the same.
        refused = re.escape(f"with namespaces: its user may not read {below_tmp / private}: chmod -R go+rX {packages}")
        for options in ({}, {"function": "number"}):
            with pytest.raises(ProdError, match=rf"^cannot isolate programs {refused}$"):
                passes(**options)
        (below_tmp / private).chmod(0o755)
    assert passes()


def test_an_environment_may_have_a_copy_of_the_interpreter(
    below_tmp: Path, isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `python -m venv --copies` makes; it finds its library by a file beside it, which programs do not see."""
    copy = below_tmp / "bin" / "python"
    copy.parent.mkdir()
    shutil.copy(sys.executable, copy)
    monkeypatch.setattr(sys, "executable", str(copy))
    assert run("x = 1", isolation=isolation).passed
