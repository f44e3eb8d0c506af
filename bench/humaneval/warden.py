"""What stands between `sandbox` and an untrusted program. Run by path in a fresh interpreter; imports no package.

    sandbox -> this process -> init (process 1 of its own namespaces) -> the program

It reads a line of JSON, isolates, runs the program to its end or to a limit, and prints a line of JSON. What protects
is in `bench.humaneval.sandbox`; how is here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import marshal
import os
import platform
import resource
import selectors
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

# ---- system calls that Python has no function for -------------------------------------------------------------------

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
ALL_NEW = 0x7E020000  # every CLONE_NEW* that fits into the flags of clone, CLONE_NEWCGROUP included
CLONE_THREAD = 0x00010000
MS_NOSUID, MS_NODEV, MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 1, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = -100, 0x8000, 442
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 1, 4, 22, 24, 36
PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> int:
    """Call a function of the C library; OSError names it if it fails."""
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _prctl(option: int, value: int) -> None:
    _call("prctl", option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [os.fsencode(text) if text is not None else None for text in (source, target, kind, data)]
    _call("mount", encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])


def _restrict_mount(path: str, attributes: int) -> None:
    """Add attributes to the mount at a path and all below it, which a plain remount of a bind mount does not reach."""
    wanted = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0), 32)
    _call(
        "syscall",
        ctypes.c_long(SYS_MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        os.fsencode(path),
        ctypes.c_uint(AT_RECURSIVE),
        wanted,
        ctypes.c_size_t(32),
    )


# ---- the system call filter -----------------------------------------------------------------------------------------

EPERM, EROFS, ENOSYS = 1, 30, 38
# Numbers above this one are newer than this table: the program gets ENOSYS, as from an older kernel.
NEWEST_KNOWN = 462

# Without namespaces, arguments that are refused. prctl: 1 takes back the signal that ends a process with its parent.
# fcntl: F_SETOWN and F_SETOWN_EX make the kernel signal another process. ioctl: FIOSETOWN and SIOCSPGRP likewise;
# FS_IOC_SETFLAGS and FS_IOC_FSSETXATTR change a file that is only open for reading; TIOCSTI types into a terminal.
_PRCTL, _FCNTL, _IOCTL = (1,), (8, 15), (0x8901, 0x8902, 0x40086602, 0x401C5820, 0x5412)

# For each machine: its number for seccomp; calls refused always; calls refused without namespaces; clone; calls refused
# for some values of the argument at a position; calls that open a file, with the position of their flags. Memory that
# belongs to no process (shm, memfd, message queues) would escape the limit on memory; the rest reaches other processes,
# the network or rarely used parts of the kernel.
_MACHINES: dict[str, dict[str, Any]] = {
    "x86_64": {
        "audit": 0xC000003E,
        "never": [
            29, 30, 31, 41, 64, 65, 66, 68, 69, 70, 71, 101, 103, 134, 135, 153, 154, 155, 161, 163, 164, 165, 166,
            167, 169, 172, 173, 175, 176, 179, 212, 220, 227, 237, 238, 240, 246, 248, 249, 250, 256, 272, 279, 298,
            300, 303, 304, 308, 310, 311, 312, 313, 319, 321, 323, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434,
            438, 442, 443, 447,
        ],
        "alone": [
            57, 58, 59, 62, 76, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 129, 132, 133, 141, 142, 144, 188, 189,
            190, 197, 198, 199, 200, 203, 234, 235, 241, 251, 258, 259, 260, 261, 263, 264, 265, 266, 268, 280, 297,
            302, 314, 316, 322, 424, 452,
        ],
        "clone": 56,
        "with": {157: (0, _PRCTL), 72: (1, _FCNTL), 16: (1, _IOCTL)},
        "opens": {2: 1, 257: 2},
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "never": [
            18, 39, 40, 41, 51, 58, 60, 89, 92, 97, 104, 105, 106, 112, 116, 117, 142, 170, 180, 186, 187, 188, 189,
            190, 191, 192, 193, 194, 195, 196, 198, 217, 218, 219, 224, 235, 237, 238, 239, 241, 262, 264, 265, 268,
            270, 271, 272, 273, 279, 280, 282, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 442, 443, 447,
        ],
        "alone": [
            5, 6, 7, 14, 15, 16, 30, 33, 34, 35, 36, 37, 38, 45, 52, 53, 54, 55, 88, 118, 119, 122, 129, 130, 131, 138,
            140, 181, 221, 240, 261, 274, 276, 281, 424, 452,
        ],
        "clone": 220,
        "with": {167: (0, _PRCTL), 25: (1, _FCNTL), 29: (1, _IOCTL)},
        "opens": {56: 2},
    },
}  # fmt: skip
# clone3 and openat2 take their flags from memory, where a filter cannot look: ENOSYS makes callers use the older ones.
_CLONE3, _OPENAT2 = 435, 437
_O_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def system_call_filter(machine: str, *, alone: bool) -> bytes:
    """The seccomp program (classic BPF) for a machine.

    Args:
        machine: as `platform.machine()` says; one of `x86_64`, `aarch64`.
        alone: also refuse new processes, other programs, signals and every change to files.
    """
    table = _MACHINES[machine]
    load, equal, greater, some_bit, back = 0x20, 0x15, 0x25, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    lines: list[tuple[int, int, int, int]] = [(load, 0, 0, 4), (equal, 1, 0, table["audit"]), (back, 0, 0, kill)]

    def refuse(condition: int, value: int, error: int) -> None:
        lines.extend([(condition, 0, 1, value), (back, 0, 0, 0x00050000 | error)])

    lines.append((load, 0, 0, 0))
    refuse(greater, NEWEST_KNOWN, ENOSYS)
    refuse(equal, _CLONE3, ENOSYS)
    refuse(equal, _OPENAT2, ENOSYS)
    for number in [*table["never"], *(table["alone"] if alone else [])]:
        refuse(equal, number, EPERM)
    # Each of these ends the program, so the register may be loaded anew. Both machines are little-endian.
    lines.append((equal, 0, 6 if alone else 4, table["clone"]))
    lines.append((load, 0, 0, 16))
    refuse(some_bit, ALL_NEW, EPERM)
    if alone:
        lines.extend([(some_bit, 1, 0, CLONE_THREAD), (back, 0, 0, 0x00050000 | EPERM)])
    lines.append((back, 0, 0, allow))
    for number, (position, values) in table["with"].items() if alone else ():
        lines.extend([(equal, 0, 2 + 2 * len(values), number), (load, 0, 0, 16 + 8 * position)])
        for value in values:
            refuse(equal, value, EPERM)
        lines.append((back, 0, 0, allow))
    for number, position in table["opens"].items() if alone else ():
        lines.extend([(equal, 0, 4, number), (load, 0, 0, 16 + 8 * position)])
        refuse(some_bit, _O_WRITES, EROFS)
        lines.append((back, 0, 0, allow))
    lines.append((back, 0, 0, allow))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def install_filter(program: bytes) -> None:
    """Apply a filter to this process and its children for good."""
    kept = ctypes.create_string_buffer(program, len(program))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(kept)))
    _call("prctl", PR_SET_SECCOMP, ctypes.c_ulong(2), fprog, ctypes.c_ulong(0), ctypes.c_ulong(0))


# ---- isolation ------------------------------------------------------------------------------------------------------

# What programs may read besides the interpreter: shared libraries and tools, no configuration, no one's files.
_VISIBLE = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_NOBODY = 65534
# Above what distributions give to people, services and containers; the process id makes it unique on the machine.
_FIRST_UID = 0x70000000


def enter_namespaces() -> bool:
    """Leave the host's network, IPC and name, and its processes for children to come.

    Returns:
        Whether it took a user namespace: then this process cannot become another user, and need not.
    """
    spaces = CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if os.geteuid() == 0 and _may_become(_FIRST_UID):
        try:
            _call("unshare", ctypes.c_int(spaces))
        except OSError:
            pass
        else:
            return False
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", ctypes.c_int(spaces | CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{_NOBODY} {uid} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{_NOBODY} {gid} 1", encoding="ascii")
    return True


def _may_become(uid: int) -> bool:
    """Whether this user namespace has that user; a container's may not."""
    lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    return any(int(first) <= uid < int(first) + int(count) for first, _, count in map(str.split, lines))


def build_root(root: str, visible: Sequence[str], limits: dict[str, Any]) -> None:
    """Make a new root file system in memory, with a read-only view of what an interpreter needs, and change to it.

    Args:
        root: an empty directory.
        visible: what the program may read besides system directories: absolute paths of files and directories.
        limits: see `bench.humaneval.sandbox.Limits`.
    """
    # Process 1 alone: in mounts that it shares with the warden, the change of root would be the warden's too.
    _call("unshare", ctypes.c_int(CLONE_NEWNS))
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=16m,nr_inodes=2048,mode=755")
    # What is visible may lie below /tmp, which is the program's own here. A program that could rename a directory on
    # the way there could put files of its own in the place of those that the tests import; a mount cannot be renamed.
    outside = [path for path in visible if path.startswith("/tmp/")]
    names = {path.split("/")[2] for path in outside}
    size = f"size={limits['disk']},nr_inodes={limits['files'] + len(names)},mode=1777"
    Path(root, "tmp").mkdir()
    _mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, size)
    ways = [f"{root}/tmp/{name}" for name in names if f"/tmp/{name}" not in outside]
    for way in ways:
        Path(way).mkdir()
        _mount("tmpfs", way, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=256,mode=755")
    for path in [*_VISIBLE, *sorted(visible, key=len)]:  # a directory before what is in it
        _show(root, path, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    for path in _DEVICES:
        _show(root, path, ATTR_RDONLY | ATTR_NOSUID | ATTR_NOEXEC)
    for way in ways:
        _restrict_mount(way, ATTR_RDONLY)
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", MNT_DETACH)
    _mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir("/tmp")


def _show(root: str, path: str, attributes: int) -> None:
    there = Path(root + path)
    if not os.path.lexists(path) or os.path.lexists(there):
        return
    there.parent.mkdir(parents=True, exist_ok=True)
    if Path(path).is_symlink():
        there.symlink_to(Path(path).readlink())
        return
    if Path(path).is_dir():
        there.mkdir()
    else:
        there.touch()
    _mount(path, str(there), None, MS_BIND | MS_REC)
    _restrict_mount(str(there), attributes)


def drop_privileges(uid: int | None, capabilities: int) -> None:
    """Lose every capability for good, and become another user.

    Args:
        uid: whom to become; None stays the same user.
        capabilities: how many the kernel knows.
    """
    for capability in range(capabilities):
        try:
            _prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            break  # without CAP_SETPCAP the set is what it was, and no_new_privs keeps it from being used
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    _call("capset", header, ctypes.create_string_buffer(24))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def _require_readable(interpreter: str, packages: str | None) -> None:
    """Say so where root installed under a umask of 077: the program would fail for a reason that is not its own."""

    def require(path: str) -> None:
        if not os.access(path, os.R_OK | os.X_OK):
            raise PermissionError(f"its user may not read {path}: chmod -R go+rX {packages or interpreter}")

    require(interpreter)
    if packages:
        require(packages)
        for entry in os.scandir(packages):
            if entry.is_dir():
                require(entry.path)


def set_limits(limits: dict[str, Any], processes: int | None) -> None:
    """The limits that the kernel keeps for each process.

    Args:
        limits: see `bench.humaneval.sandbox.Limits`.
        processes: of the user in its namespace, threads included; None sets no limit.
    """
    if processes is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    for what, value in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, limits["file_size"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_STACK, 8 << 20),
    ):
        resource.setrlimit(what, (value, value))


# ---- the program ----------------------------------------------------------------------------------------------------

# The hash seed is fixed so that a program that depends on the order of a set gives the same result every time; -I
# would ignore it, and does no more than -s -P where this is the whole environment. No site-packages: -S.
ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"}
FLAGS = ["-s", "-P", "-S", "-B", "-u", "-c"]

# As in `bench.humaneval.harness`.
_END, _NONCE = b"end\n", 64


def _become(config: dict[str, Any], role: str, fds: Sequence[int], uid: int | None, capabilities: int) -> NoReturn:
    """The last steps in a process that will run untrusted code, or tests.

    Args:
        config: of the request.
        role: the function of `bench.humaneval.harness` to run.
        fds: become stdout and stderr, and then 3, 4 and so on.
        uid: see `drop_privileges`.
        capabilities: likewise.
    """
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY)
    # To numbers above 19 first, so that none is overwritten before it is used.
    moved = [os.dup2(fd, 20 + i) for i, fd in enumerate((null, fds[0], *fds))]
    for target, fd in enumerate(moved):
        os.dup2(fd, target)
        os.set_inheritable(fd, False)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # which Python ignores
    processes = None
    if config["namespaces"]:
        # The tests' process comes on top; and in a user namespace the warden and process 1 are of the same user.
        processes = config["limits"]["processes"] + bool(config["function"]) + (2 if uid is None else 0)
    # Without namespaces all that the user runs would count, and the filter refuses new processes anyway.
    set_limits(config["limits"], processes)
    drop_privileges(uid, capabilities)
    _require_readable(config["interpreter"], config["packages"])
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if config["namespaces"]:
        install_filter(system_call_filter(platform.machine(), alone=False))
    command = [config["interpreter"], *FLAGS, f"{config['harness']}\n{role}()\n"]
    environment = dict(ENVIRONMENT)
    if config["packages"]:
        # Libraries of linear algebra would start a thread for every core of the machine.
        environment |= {"PYTHONPATH": config["packages"], "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    os.execve(config["interpreter"], command, environment)


def _be_init(config: dict[str, Any], pipes: tuple[int, int, int], setup: int, uid: int | None) -> NoReturn:
    """Start the program, and the tests if they have a process of their own; end with the process that has the proof.

    In namespaces this is process 1, which takes every process with it, also those that have left the session.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(PR_SET_DUMPABLE, 0)
    capabilities = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii")) + 1
    if config["namespaces"]:
        build_root(config["root"], config["visible"], config["limits"])

    def start(role: str, *fds: int) -> int:
        process = os.fork()
        if process == 0:
            _reporting(setup, lambda: _become(config, role, fds, uid, capabilities))
        return process

    output, answers, reports = pipes
    program = None
    if config["function"]:
        calls, calls_end = os.pipe()
        results, results_end = os.pipe()
        program = start("serve", output, calls, results_end)
        deciding = start("run_tests", output, answers, reports, results, calls_end)
    else:
        deciding = start("run_program", output, answers, reports)
    os.closerange(0, 64)
    ended: dict[int, int] = {}
    while deciding not in ended:
        process, status = os.wait()
        ended[process] = os.waitstatus_to_exitcode(status)
    if program is not None and ended[deciding] != 0:
        # The tests may have ended because the program did, whose files close a moment before it can be waited for.
        until = time.monotonic() + 0.5
        while program not in ended and time.monotonic() < until:
            process, status = os.waitpid(program, os.WNOHANG)
            if process:
                ended[program] = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.005)
    codes = [code if code >= 0 else 128 - code for code in (ended[deciding], ended.get(program or 0, 0))]
    os._exit(codes[1] if codes[1] > 128 else codes[0])


def _reporting(setup: int, start: Callable[[], NoReturn]) -> NoReturn:
    """Run what does not return; if it does fail, say why where `_confine` reads it."""
    try:
        start()
    except BaseException as error:  # noqa: BLE001 (this process must end here, whatever happens)
        os.write(setup, f"{' '.join(str(error).split())}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(1)


def _usage(root: int) -> tuple[int, float]:
    """What a process and its descendants use.

    Returns:
        Bytes of resident memory, shared pages counted for each; CPU seconds, with those of the dead that were waited
        for.
    """
    page, tick = resource.getpagesize(), os.sysconf("SC_CLK_TCK")
    found: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 (a Path for each of hundreds, ten times a second)
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            # Of proc(5): ppid, rss, and utime, stime, cutime, cstime, each two places earlier without pid and name.
            found[int(entry)] = [int(fields[1]), int(fields[21]), sum(map(int, fields[11:15]))]
    below, grew = {root}, True
    while grew:
        more = {process for process, (parent, _, _) in found.items() if parent in below} - below
        below |= more
        grew = bool(more)
    used = [found[process] for process in below if process in found]
    return sum(rss for _, rss, _ in used) * page, sum(ticks for _, _, ticks in used) / tick


def _confine(config: dict[str, Any]) -> dict[str, Any]:
    """Isolate, run, watch; returns `proof`, `reason`, `status`, `output`, `seconds` and `cpu_seconds`."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.umask(0o022)
    with contextlib.suppress(OSError):  # it only makes the kernel choose well if the machine runs out of memory
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    uid: int | None = None
    if config["namespaces"] and not enter_namespaces():
        uid = _FIRST_UID + os.getpid()
    output, output_end = os.pipe()
    answers_end, answers = os.pipe()
    reports, reports_end = os.pipe()
    setup, setup_end = os.pipe()
    begun = time.monotonic()
    process = os.fork()
    if process == 0:
        os.close(0)  # the nonce will come there
        os.open("/dev/null", os.O_RDONLY)
        for fd in (output, answers, reports, setup):
            os.close(fd)
        pipes = (output_end, answers_end, reports_end)
        _reporting(setup_end, lambda: _be_init(config, pipes, setup_end, uid))
    for fd in (output_end, answers_end, reports_end, setup_end):
        os.close(fd)
    try:
        if error := _read_all(setup):
            raise OSError(error.decode(errors="replace").splitlines()[0])  # the tests' process may say it as well
        found = _watch(config, process, begun, output, answers, reports)
    finally:
        os.kill(process, signal.SIGKILL)
        _, status, usage = os.wait4(process, 0)  # of process 1: returns when its whole namespace is gone
        seconds = usage.ru_utime + usage.ru_stime + _reap_orphans()
    code = os.waitstatus_to_exitcode(status)
    found["status"] = code if code >= 0 else 128 - code
    found["cpu_seconds"] = seconds
    return found


def _reap_orphans() -> float:
    """Wait for what process 1 leaves where it has no namespace: the kernel kills it. Returns CPU seconds."""
    seconds = 0.0
    while True:
        try:
            _, _, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return seconds
        seconds += usage.ru_utime + usage.ru_stime


def _watch(
    config: dict[str, Any], process: int, begun: float, output: int, answers: int, reports: int
) -> dict[str, Any]:
    limits = config["limits"]
    rules = b"" if config["namespaces"] else system_call_filter(platform.machine(), alone=True)
    install = (Path(__file__).read_text(encoding="utf-8"), rules) if rules else None
    given = [config["program"], config["tests"]]
    if config["function"]:
        given += [config["setup"], config["function"]]
    parts = marshal.dumps((given, install))
    os.set_blocking(answers, False)
    pending, ending = len(parts).to_bytes(8, "big") + parts, False
    said, report, proof, reason = bytearray(), bytearray(), "", "ended"
    deadline, look = begun + limits["seconds"], begun + 0.2
    ended = os.pidfd_open(process)
    with selectors.DefaultSelector() as selector:
        for fd in (output, reports, ended):
            selector.register(fd, selectors.EVENT_READ)
        selector.register(answers, selectors.EVENT_WRITE)
        while not proof:
            now = time.monotonic()
            if now >= deadline:
                reason = "timeout"
                break
            if now >= look:
                resident, cpu = _usage(process)
                if resident > limits["memory"] or cpu > limits["cpu_seconds"]:
                    reason = "memory" if resident > limits["memory"] else "cpu"
                    break
                look = now + 0.1
            ready = {key.fd for key, _ in selector.select(min(deadline, look) - now)}
            if answers in ready:
                try:
                    pending = pending[os.write(answers, pending) :]
                except BrokenPipeError:
                    pending = b""
                if not pending:
                    selector.unregister(answers)
            for fd, kept in ((output, said), (reports, report)):
                if fd in ready:
                    chunk = os.read(fd, 65536)
                    kept.extend(chunk)
                    if not chunk:
                        selector.unregister(fd)
            if len(said) > limits["output"]:
                reason = "output"
                break
            if not ending and report.startswith(_END):
                ending = True
                pending = _read_exactly(0, _NONCE)
                selector.register(answers, selectors.EVENT_WRITE)
            if len(report) >= len(_END) + _NONCE:
                proof = report[len(_END) : len(_END) + _NONCE].decode(errors="replace")
            if ended in ready and not ready & {output, reports}:
                break
    return {
        "proof": proof,
        "reason": reason,
        "output": said[: limits["output"]].decode(errors="replace"),
        "seconds": time.monotonic() - begun,
    }


def _read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(fd, size - len(data))
        if not chunk:
            raise OSError("expected more on standard input, it ended")
        data += chunk
    return data


def _read_all(fd: int) -> bytes:
    data = b""
    while chunk := os.read(fd, 65536):
        data += chunk
    return data


def main() -> None:
    """Serve one request of `bench.humaneval.sandbox`."""
    config = json.loads(_read_exactly(0, int.from_bytes(_read_exactly(0, 8), "big")))
    try:
        found = _confine(config)
    except OSError as error:
        found = {"error": str(error)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
