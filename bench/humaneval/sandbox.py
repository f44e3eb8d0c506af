"""Run an untrusted Python program and say whether it passed its tests. Linux only; elsewhere it refuses.

What a program gets: a fresh interpreter of the running Python with the standard library only (or the `packages` of a
directory beside it), no input, an environment of a few fixed variables, no file descriptor but its output and those of
the harness, an empty working directory in memory, and limits on time, memory, output, files and processes (`Limits`).
Two ways keep it from everything else:

`namespaces` (preferred): its own processes, mounts, network, IPC and users. It sees a file system of read-only system
    directories and `/tmp`, which is gone afterwards and empty (but for the way to an interpreter or to `packages` that
    lie below it, which is read-only); no `/proc`, no home, no network, not even loopback. Its process 1
    ends with the warden, and the kernel ends every process of the namespace with process 1, whatever its session,
    signal handling or number of forks. Started by root, it runs as a user of its own without capabilities, since the
    limit on processes does not bind root; otherwise it needs unprivileged user namespaces. A filter of system calls
    takes away what escapes the limit on memory (shared memory that belongs to no process), sockets, ptrace, and new
    namespaces.
`filter` (where namespaces are not permitted, as in many containers): the filter alone, stricter: one process, no other
    program, no signal, no socket, no change to any file. A program that writes a temporary file fails here and passes
    there; it can read what the user can read, and can hand it to nobody but the captured output.

Neither is taken on trust: the first `run` has a probe try what must not work, and refuses to go on if any of it does.
The limits on memory (address space) and CPU time hold for each process by the kernel, and for all together by a look
every 0.1 s.

A program passes only with proof that it came to its end after the tests: when both are through, the harness says so,
is then given a nonce that was nowhere in its process before, and returns it. Ending early, with any status, by
`os._exit`, `exec` or otherwise, or printing anything, is no proof. There are two ways to test:

- A program with a `function` to call: the tests run in another process, which alone can give the proof, and see nothing
  but the values that the function returns, as built-in types. Nothing that the program does to its own process helps
  it: it has to return the right values. What is lost: arguments are copies, so tests cannot look at what a function
  does to them in place; a value of any other type equals nothing.
- A program as a whole, with tests in its process. Before they run, built-in functions and the trace functions are as
  they were, and names of the program that hide built-ins are taken away. Not covered here: a program written against
  this very harness can speak its protocol on its descriptors; one that changes modules which the tests use
  (`math.isclose`), returns objects that equal everything, or keeps a thread running beside the tests can satisfy
  asserts that it should not. Such a program lies about itself only; the limits hold all the same.

A kernel bug is beyond this sandbox: for code of attackers use a
virtual machine.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from prod_decode.errors import ProdError

_WARDEN = Path(__file__).with_name("warden.py")
_HARNESS = Path(__file__).with_name("harness.py")
_MACHINES = ("x86_64", "aarch64")
# What setting up, tearing down and a busy machine may take beyond the program's own time before the warden is killed.
_GRACE = 30.0

Isolation = Literal["namespaces", "filter"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall time, start of the interpreter included.
        cpu_seconds: a whole number, of each process, and of all together.
        memory: bytes of address space of each process, and of resident memory of all together.
        file_size: bytes a file.
        disk: bytes of all files together; they are in memory.
        files: number of files and directories.
        processes: processes and threads. With `filter` there is one process, and memory limits its threads.
        open_files: descriptors a process.
        output: bytes on stdout and stderr; the program is ended when it writes more.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory: int = 512 << 20
    file_size: int = 16 << 20
    disk: int = 32 << 20
    files: int = 256
    processes: int = 16
    open_files: int = 64
    output: int = 64 << 10

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0 or (field.type == "int" and not isinstance(value, int)):
                raise ProdError(f"expected a limit {field.name} above 0 of type {field.type}, got {value!r}")
        if self.memory < 64 << 20:
            raise ProdError(
                f"expected a limit memory of 64 MiB or more, got {self.memory}: Python does not start in it"
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    Attributes:
        passed: it came to its end, after the tests, and proved it.
        reason: `passed`; `failed`: it ended by itself without proof, as by an exception or by leaving early;
            `timeout`, `cpu`, `memory`, `output`: ended at that limit. A program that catches `MemoryError` or an
            error of the file system, and goes on, is judged by how it goes on.
        detail: for people: the last line of its output, or the signal that ended it.
        output: what it wrote on stdout and stderr.
        seconds: wall time.
        cpu_seconds: of all its processes that were waited for; far less than `seconds` at a timeout means that it
            slept or the machine was busy.
    """

    passed: bool
    reason: Literal["passed", "failed", "timeout", "cpu", "memory", "output"]
    detail: str
    output: str
    seconds: float
    cpu_seconds: float


def run(
    program: str,
    tests: str = "",
    limits: Limits | None = None,
    *,
    function: str | None = None,
    setup: str = "",
    packages: str | None = None,
    isolation: Isolation | None = None,
) -> Outcome:
    """Run a program and its tests.

    Args:
        program: untrusted source.
        tests: trusted source, such as calls and asserts; empty: the program passes if it ends by itself.
        limits: default `Limits()`.
        function: a name that the program defines and the tests call. With it the tests run in a process of their own;
            arguments and results must be of built-in types. Without it they run in the program's process and have all
            of its names.
        setup: trusted source that defines what else the tests use; with `function` only.
        packages: a directory of installed packages, such as `sysconfig.get_path("purelib")`, which the program may read
            and import; default none. Large ones need more than the default limits.
        isolation: see the module; default the better of those that work here.

    Raises:
        ProdError: programs cannot be isolated here.
    """
    chosen = isolation or choose_isolation()
    _require(chosen)
    return _run(program, tests, limits or Limits(), chosen, function, setup, packages)


def _run(
    program: str,
    tests: str,
    limits: Limits,
    isolation: Isolation,
    function: str | None = None,
    setup: str = "",
    packages: str | None = None,
) -> Outcome:
    _require_linux()
    nonce = secrets.token_hex(32)
    # Of a virtual environment, the interpreter that it was made from, also where it has a copy and not a link.
    interpreter = str(Path(getattr(sys, "_base_executable", "") or sys.executable).resolve())
    imported = str(Path(packages).resolve()) if packages else None
    # An interpreter may name its libraries by the path that it was built for, which may lead through a link.
    visible = [interpreter, str(Path(sys.base_prefix).resolve()), sys.base_prefix, *([imported] if imported else [])]
    with tempfile.TemporaryDirectory(prefix="prod-sandbox-") as root:
        config = {
            "namespaces": isolation == "namespaces",
            "program": program,
            "tests": tests,
            "function": function,
            "setup": setup,
            "harness": _HARNESS.read_text(encoding="utf-8"),
            "limits": asdict(limits),
            "root": root,
            "interpreter": interpreter,
            "visible": list(dict.fromkeys(visible)),
            "packages": imported,
        }
        request = json.dumps(config).encode()
        warden = subprocess.Popen(
            [interpreter, "-I", "-S", "-B", str(_WARDEN)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
        )
        try:
            answer, error = warden.communicate(
                len(request).to_bytes(8, "big") + request + nonce.encode(), timeout=limits.seconds + _GRACE
            )
        except subprocess.TimeoutExpired:
            return Outcome(False, "timeout", "the sandbox did not end in time", "", limits.seconds + _GRACE, 0.0)
        finally:
            warden.kill()  # its children die with it
            warden.wait()
    if warden.returncode != 0:
        last = (error.decode(errors="replace").strip().splitlines() or [f"status {warden.returncode}"])[-1]
        raise ProdError(f"the sandbox broke: {last}; please report this as a bug")
    found: dict[str, Any] = json.loads(answer)
    if "error" in found:
        remedy = "" if "chmod" in found["error"] else f"; {_REMEDY}"
        raise ProdError(f"cannot isolate programs with {isolation}: {found['error']}{remedy}")
    return _judge(found, nonce, limits)


def _judge(found: dict[str, Any], nonce: str, limits: Limits) -> Outcome:
    reason, status = found["reason"], found["status"]
    passed = secrets.compare_digest(found["proof"].encode(), nonce.encode())
    lines = found["output"].strip().splitlines()
    detail = lines[-1][:200] if lines else ""
    if passed:
        reason = "passed"
    elif reason == "ended":
        # At the limit on CPU time the kernel sends SIGKILL, as others do too.
        killed = status == 128 + 9
        reason = "cpu" if killed and found["cpu_seconds"] > limits.cpu_seconds - 0.5 else "failed"
        detail = detail or (f"signal {status - 128}" if status > 128 else f"left with status {status}")
    return Outcome(passed, reason, detail, found["output"], found["seconds"], found["cpu_seconds"])


_REMEDY = (
    "permit unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, and on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns=0), run as root, or in a virtual machine"
)


def _require_linux() -> None:
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        raise ProdError(
            f"untrusted programs run on Linux on {' or '.join(_MACHINES)} only, this is {platform.system()} on "
            f"{platform.machine()}: run it in a Linux virtual machine or container"
        )


@functools.cache
def choose_isolation() -> Isolation:
    """The better of the two ways that works here, tried once; see the module.

    Raises:
        ProdError: neither works; the message says why not.
    """
    _require_linux()
    try:
        _require("namespaces")
    except ProdError as first:
        try:
            _require("filter")
        except ProdError as second:
            raise ProdError(f"{first}; and without them: {second}") from None
        return "filter"
    return "namespaces"


@functools.cache
def _require(isolation: Isolation) -> None:
    """Have a probe try what must not work, and raise if any of it does."""
    _require_linux()
    limits = Limits(processes=8)
    with tempfile.TemporaryDirectory(prefix="prod-probe-") as folder:
        # A user without an entry in /etc/passwd and without HOME has no home, and `~` stays as it is.
        home = os.path.expanduser("~")  # noqa: PTH111
        places = ["/", "/usr", "/etc", "/tmp", folder, home, str(Path.cwd()), sys.prefix, sys.base_prefix]
        if isolation == "namespaces":
            places = [place for place in places if place != "/tmp"]  # its own
        probe = _PROBE.format(
            places=places, parent=os.getpid(), processes=limits.processes, memory=limits.memory, folder=folder
        )
        outcome = _run(probe, "", limits, isolation)
        left = list(Path(folder).iterdir())
    if not outcome.passed:
        raise ProdError(f"the probe of {isolation} did not end: {outcome.reason}, {outcome.detail}; {_REMEDY}")
    if left or outcome.output.strip() != "contained":
        raise ProdError(f"{isolation} do not contain a program here: {outcome.output.strip()[:200]}; {_REMEDY}")


_PROBE = """
import ctypes, os, signal, socket, subprocess
open_gates = []

def attempt(name, action):
    try:
        found = action()
    except (OSError, MemoryError):
        return
    if found is not False:
        open_gates.append(name)

def connect():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("192.0.2.1", 9))

def write(folder):
    with open(os.path.join(folder, "prod-probe"), "x"):
        os.remove(os.path.join(folder, "prod-probe"))

def fork():
    children = []
    try:
        for _ in range({processes} + 1):
            child = os.fork()
            if not child:
                signal.pause()
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

def call(*arguments):
    return ctypes.CDLL(None).syscall(*map(ctypes.c_long, arguments)) >= 0

for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
    attempt(f"socket {{family}}", lambda: socket.socket(family, socket.SOCK_DGRAM))
attempt("network", connect)
for place in {places!r}:
    attempt(f"write to {{place}}", lambda: write(place))
attempt("more processes", fork)
attempt("signal", lambda: os.kill({parent}, 0))
attempt("root", lambda: os.getuid() != 0 and os.setuid(0))
attempt("memory", lambda: bytearray({memory}))
attempt("memfd", lambda: os.memfd_create("x"))
attempt("user namespace", lambda: call({{"x86_64": 272, "aarch64": 97}}[os.uname().machine], 0x10000000))
for fd in range(5, 64):
    attempt(f"descriptor {{fd}}", lambda: os.fstat(fd))
open_gates += sorted(set(os.environ) - {{"HOME", "LANG", "LC_CTYPE", "PATH", "PYTHONHASHSEED"}})
print("open: " + ", ".join(open_gates) if open_gates else "contained")
"""
