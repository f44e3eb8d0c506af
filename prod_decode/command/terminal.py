"""What commands read and print: standard streams that may be closed or full, and text that a terminal must not obey."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prod_decode.errors import ProdError, one_line

USAGE = 2
INTERRUPTED = 130

# Seconds between two lines of progress in a log.
EVERY = 30.0


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
            return INTERRUPTED
        except Exception as error:
            # A kernel, or the loading of one, that is interrupted ends with an error of its own.
            if _comes_of_an_interrupt(error):
                return INTERRUPTED
            raise


def _comes_of_an_interrupt(error: BaseException) -> bool:
    before = error.__cause__ or error.__context__
    return before is not None and (isinstance(before, KeyboardInterrupt) or _comes_of_an_interrupt(before))


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


class Progress:
    """Tells how much of the work is done: on a terminal in one line, in a log every half a minute.

    The time left is an estimate: that the rest takes as long as what is done, for as much work.
    """

    def __init__(
        self,
        what: str,
        unit: str = "",
        total: float = 1.0,
        *,
        already: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The work begins now.

        Args:
            what: is done.
            unit: of the work; "": shares are told, and no rate.
            total: how much there is, above 0.
            already: how much of it was done before.
            clock: in seconds.
        """
        self._what, self._unit, self._total, self._already, self._clock = what, unit, total, already, clock
        self._begun = self._told = clock()
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, done: float) -> None:
        """Tell it.

        Args:
            done: how much of the total, what was done before too.
        """
        now = self._clock()
        spent, new = now - self._begun, done - self._already
        if done < self._total and new <= 0:
            return
        share = done / self._total
        left = spent * (self._total - done) / new if new > 0 else 0.0
        rate = f", {new / spent * 60:,.0f} {self._unit} per minute" if self._unit and spent > 0 else ""
        amounts = f"{done:,.0f} of {self._total:,.0f} {self._unit}{rate}"
        if self._is_terminal:
            line = f"{self._what}: {share:4.0%}, {f'{amounts}, ' if self._unit else ''}about {duration(left)} left"
            sys.stderr.write(f"\r{line:<78}" if done < self._total else f"\r{'':<78}\r")
            sys.stderr.flush()
        elif now - self._told >= EVERY and done < self._total:
            self._told = now
            told = f" ({amounts})" if self._unit else ""
            note(f"{self._what}: {share:.0%} done after {duration(spent)}{told}, about {duration(left)} left")


def duration(seconds: float) -> str:
    """In words: seconds, from two minutes on minutes, from two hours on hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
