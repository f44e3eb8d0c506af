"""What runs in the interpreters of untrusted programs; `warden` passes this text with `-c`. Imports no package.

One process: `run_program`. Two: `serve` runs the program and lends a function of it; `run_tests` calls that. What the
program's process needs later it takes as local names before the program begins: what the program changes in `os`,
`sys` or `builtins` changes nothing here.

Descriptors: 3 to read and 4 to write, to the warden or, from `serve`, to the tests; 5 and 6 from the tests to `serve`.
"""

from __future__ import annotations

import marshal
import os
import sys
import types
from typing import Any, NoReturn

END, NONCE = b"end\n", 64


def run_program() -> NoReturn:
    """Run a program and its tests in one process, and prove the end of both.

    There is no secret in this process until the tests are through: then it says so, is given the nonce, and returns it.
    """
    import builtins

    read, write, leave, trace, profile = os.read, os.write, os._exit, sys.settrace, sys.setprofile
    end, nonce, run, prepare, keys, quick = END, NONCE, exec, compile, list, str.startswith
    (program, tests), _ = _begin()
    checks = prepare(tests, "tests.py", "exec") if tests else None
    space, names = _fresh_main(), vars(builtins)
    known = dict(names)
    run(prepare(program, "program.py", "exec"), space)
    if checks:
        trace(None)
        profile(None)
        for name in keys(names):
            if name not in known:
                del names[name]
        names.update(known)
        run(checks, {name: value for name, value in space.items() if name not in known or quick(name, "__")})
    write(4, end)
    write(4, read(3, nonce))
    leave(0)


def serve() -> NoReturn:
    """Run a program, and then call its function whenever the tests ask."""
    read, write, whole, take, give = os.read, os.write, _read_exactly, unpack, pack
    (program, name), _ = _begin()
    space = _fresh_main()
    exec(compile(program, "program.py", "exec"), space)
    function = space[name]
    while True:
        arguments, keywords = take(whole(3, read))
        try:
            answer = ["value", function(*arguments, **keywords)]
        except Exception as error:  # noqa: BLE001 (whatever it raises, the tests are told)
            answer = ["error", f"{type(error).__name__}: {error}"]
        data = give(answer)
        while data:
            data = data[write(4, data) :]


def run_tests() -> NoReturn:
    """Run trusted tests that call a function in another process, and prove the end."""
    (program, tests, setup, name), rules = _begin()
    parts = marshal.dumps(((program, name), rules))
    _write_all(6, len(parts).to_bytes(8, "big") + parts)

    def ask(*arguments: Any, **keywords: Any) -> Any:
        _write_all(6, pack([list(arguments), keywords]))
        kind, value = unpack(_read_exactly(5, os.read))
        if kind == "error":
            raise ProgramError(value)
        return value

    space = _fresh_main()
    exec(compile(setup, "setup.py", "exec"), space)
    space[name] = ask
    exec(compile(tests, "tests.py", "exec"), space)
    os.write(4, END)
    os.write(4, os.read(3, NONCE))
    os._exit(0)


class ProgramError(Exception):
    """The function under test raised something; the message names it."""


class Unknown:
    """Stands for a value of a type that does not cross between processes; equal to nothing else."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<a value of type {self.kind}>"


# ---- between processes ----------------------------------------------------------------------------------------------


def _begin() -> tuple[Any, Any]:
    """Read the first message, install the filter that it may bring with the code for that, and return the message."""
    parts, rules = marshal.loads(_read_exactly(3, os.read))
    for fd in range(3, 7):
        try:
            os.set_inheritable(fd, False)
        except OSError:
            break
    if rules:
        space: dict[str, Any] = {"__name__": "warden"}
        exec(rules[0], space)
        space["install_filter"](rules[1])
    return parts, rules


def _fresh_main() -> dict[str, Any]:
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = ["program.py"]
    return vars(main)


def _read_exactly(fd: int, read: Any) -> bytes:
    """A message: its length in 8 bytes, then so many bytes."""
    data, size = b"", 0
    while len(data) < 8 + size:
        chunk = read(fd, 8 + size - len(data))
        if not chunk:
            os._exit(1)  # the other process has ended; it has said why
        data += chunk
        if not size and len(data) == 8:
            size = int.from_bytes(data, "big")
    return data[8:]


def _write_all(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BrokenPipeError:
        os._exit(1)


def pack(value: Any) -> bytes:
    """A value of built-in types as a message, exactly; a subclass becomes its base, any other type `Unknown`.

    JSON and not pickle or marshal, since what comes back is not to be trusted.
    """
    import json

    data = json.dumps(_encode(value)).encode()
    return len(data).to_bytes(8, "big") + data


def unpack(data: bytes) -> Any:
    """The value that `pack` made a message of.

    Raises:
        ValueError, TypeError, KeyError, IndexError: it is not such a message.
    """
    import json

    return _decode(json.loads(data))


def _encode(value: Any) -> Any:
    if value is None or value is True or value is False:
        return value
    kinds: tuple[tuple[str, Any, Any], ...] = (
        ("int", int, hex),
        ("float", float, float.hex),
        ("complex", complex, lambda x: [float.hex(x.real), float.hex(x.imag)]),
        ("str", str, str),
        ("bytes", (bytes, bytearray), bytes.hex),
        ("list", list, lambda x: [_encode(item) for item in x]),
        ("tuple", tuple, lambda x: [_encode(item) for item in x]),
        ("set", (set, frozenset), lambda x: [_encode(item) for item in x]),
        ("dict", dict, lambda x: [[_encode(key), _encode(item)] for key, item in x.items()]),
    )
    for kind, base, encode in kinds:
        if isinstance(value, base):
            return [kind, encode(value)]
    if type(value).__module__ in ("decimal", "fractions"):
        return [type(value).__name__, str(value)]
    return ["unknown", type(value).__qualname__]


def _decode(data: Any) -> Any:
    if data is None or data is True or data is False:
        return data
    kind, value = data
    if kind == "Decimal":
        from decimal import Decimal

        return Decimal(value)
    if kind == "Fraction":
        from fractions import Fraction

        return Fraction(value)
    decoders: dict[str, Any] = {
        "int": lambda x: int(x, 16),
        "float": float.fromhex,
        "complex": lambda x: complex(*map(float.fromhex, x)),
        "str": str,
        "bytes": bytes.fromhex,
        "list": lambda x: [_decode(item) for item in x],
        "tuple": lambda x: tuple(_decode(item) for item in x),
        "set": lambda x: {_decode(item) for item in x},
        "dict": lambda x: {_decode(key): _decode(item) for key, item in x},
        "unknown": Unknown,
    }
    return decoders[kind](value)
