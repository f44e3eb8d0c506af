"""What commands read and print: standard streams that may be closed or full, and text that a terminal must not obey."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prod_decode.errors import ProdError, one_line

USAGE = 2


def note(message: str) -> None:
    """Print a line on the standard error output, inside of `standard_streams`."""
    sys.stderr.write(f"{one_line(message)}\n")


def read_stdin() -> bytes:
    """All of the standard input.

    Raises:
        ProdError: it is closed, or cannot be read.
    """
    if sys.stdin is None:
        raise ProdError("cannot read the standard input: it is closed; expected text there, or name a file")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise ProdError(f"cannot read the standard input: {error.strerror}") from None


def exit_status(program: str, run: Callable[[], int]) -> int:
    """Run a command; every mistake of the user becomes a line on stderr, and the status 2.

    A reader of the output that goes away, as `| head` does, changes nothing but that the rest is not printed.

    Args:
        program: what the line begins with.
        run: returns the exit status.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files need not be text
    with standard_streams(), contextlib.redirect_stdout(_Stream(sys.stdout, is_result=True)):
        try:
            try:
                return run()
            finally:
                sys.stdout.flush()
        except ProdError as error:
            # Every process of `accelerate launch` finds the same mistake; one of them says so.
            if os.environ.get("LOCAL_RANK", "0") == "0":
                for mistake in error.mistakes:
                    note(f"{program}: {mistake}")
            return USAGE
        except KeyboardInterrupt:
            return 130


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Inside, all three are open, and a standard error that is closed or full changes neither the work nor its status.

    What comes without a standard output is lost, and it does not go to another file: libraries take for granted that
    the first three descriptors are the standard streams.
    """
    if isinstance(sys.stderr, _Stream):
        yield
        return
    _hold_closed_descriptors()
    with Path(os.devnull).open("w") as nowhere:
        err = _Stream(sys.stderr or nowhere, is_result=False)
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(sys.stdout or nowhere):
            try:
                yield
            finally:
                err.flush()


def _hold_closed_descriptors() -> None:
    """Keep 0, 1 and 2 from becoming files of ours: what native code writes to stderr would land in them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


class _Stream:
    """A standard stream that swallows what nobody reads any more, so that the exit status is that of the work."""

    def __init__(self, stream: Any, *, is_result: bool) -> None:
        self._stream, self._is_result = stream, is_result
        self.is_gone = False

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            # What is buffered would fail again when the interpreter ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self.is_gone = True
            if self._is_result and not isinstance(error, BrokenPipeError):
                raise ProdError(f"cannot write to the standard output: {error.strerror}") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def to_json(value: object) -> str:
    """One line of JSON, with other characters than ASCII where the standard output can carry them."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return line
