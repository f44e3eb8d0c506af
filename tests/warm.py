"""Commands that begin at once: processes forked from one that has imported what every command needs.

To import torch, transformers and the package takes 4 s of processor time, to load the bundled model 4, and to end the
interpreter after that 1; the pages and examples run some 150 commands. Each is still a process of its own, with its own
arguments, directory, environment and streams. tests/prod_decode/test_cli.py and `.ci/wheel.py` start the real console
scripts, and tests/prod_decode/storage/test_models.py loads the bundled model.

This file is the server, and, as a program, what a shell starts in a command's place:

    python -IS tests/warm.py SOCKET KIND [ARGUMENT ...]     KIND: a module with `main`, or `python`
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import sys

# torch and transformers import some of these late, each for a large part of the time.
MODULES = (
    "torch._dynamo",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
    "datasets",
    "gguf",
    "peft",
    "prod_decode.cli",
    "prod_decode.hf",
    "prod_decode.indexing.build",
    "prod_train.cli",
    "prod_train.run.trainer",
)

# What `python` is asked for that needs these modules; other options go to an interpreter of their own.
_BENCH = ["-m", "bench"]


@functools.cache
def server() -> str:
    """The socket of a server that lives as long as this process, and begins with its environment."""
    import subprocess
    import tempfile
    from pathlib import Path

    place = Path(tempfile.mkdtemp(prefix="prod-warm-"), "socket")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from tests.warm import serve; serve()", str(place)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        raise RuntimeError("the process that starts the commands of the tests has ended, see its traceback above")
    _SERVERS.append(process)
    return str(place)


_SERVERS: list[object] = []  # their pipes stay open


def serve() -> None:
    """Import and load, then start commands until the pipe to the process that started this one is closed."""
    import gc
    import importlib
    import select
    import shutil
    from pathlib import Path

    for module in MODULES:
        importlib.import_module(module)
    _keep_bundled()
    gc.freeze()  # what is collected in a child would copy all of this
    place = sys.argv[1]
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(place)
    listening.listen()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    children: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [], 0.01 if children else None)
        for number, connection in list(children.items()):
            pid, status = os.waitpid(number, os.WNOHANG)
            if pid:
                with contextlib.suppress(OSError):  # whoever asked was ended meanwhile
                    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                del children[number]
                connection.close()
        if sys.stdin in ready:
            shutil.rmtree(Path(place).parent)
            os._exit(0)
        if listening in ready:
            connection, _ = listening.accept()
            child = os.fork()
            if not child:
                listening.close()
                _end(functools.partial(_become, connection))
            children[child] = connection


def _keep_bundled() -> None:
    from prod_decode.storage import models

    model, tokenizer = models.load_model("bundled", device="cpu")
    load_model, load_tokenizer = models.load_model, models.load_tokenizer

    def model_of(name, *, dtype="auto", device=None):  # type: ignore[no-untyped-def]
        kept = (name, device) == ("bundled", None) and dtype in ("auto", "float32")
        return (model, tokenizer) if kept else load_model(name, dtype=dtype, device=device)

    def tokenizer_of(name, **options):  # type: ignore[no-untyped-def]
        return tokenizer if name == "bundled" and not options else load_tokenizer(name, **options)

    models.load_model, models.load_tokenizer = model_of, tokenizer_of


def _become(connection: socket.socket) -> None:
    """Be the command that is asked for."""
    import io
    import runpy
    from importlib import import_module
    from pathlib import Path

    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    kind, arguments, folder, environment = json.loads(message)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r")))
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), errors="backslashreplace", write_through=True)
    if kind == "python" and arguments[:2] == _BENCH:
        sys.argv = arguments[1:]
        runpy.run_module("bench", run_name="__main__", alter_sys=True)
        return
    if kind == "python":
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")
        return
    sys.argv = [kind, *arguments]
    sys.exit(import_module(kind).main())


def _end(command):  # type: ignore[no-untyped-def]
    """Run a command and end as the interpreter does, but for taking apart every module."""
    import atexit
    import threading
    import traceback

    status = 0
    try:
        command()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    os._exit(status)


def _ask() -> None:
    """Have the server run a command with this process's streams, directory and environment; end as it does."""
    place, kind, *arguments = sys.argv[1:]
    if kind == "python" and arguments[:2] != _BENCH and (not arguments or arguments[0].startswith("-")):
        os.execv(sys.executable, [sys.executable, *arguments])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        message = json.dumps([kind, arguments, os.getcwd(), dict(os.environ)])  # noqa: PTH109 (no pathlib)
        socket.send_fds(connection, [message.encode()], [0, 1, 2])
        status = int(connection.recv(16) or b"1")
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    _ask()
