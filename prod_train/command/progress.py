"""How far a command is, and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from prod_decode.command.terminal import note

# Seconds between two lines of a log.
EVERY = 30.0


class Progress:
    """Tells the share of the work that is done: on a terminal in one line, in a log every half a minute.

    The time left is an estimate: that the rest takes as long as what is done, for as much work.
    """

    def __init__(self, what: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._clock = what, clock
        self._begun = self._told = clock()
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, done: float) -> None:
        """Tell it.

        Args:
            done: the share, above 0, to 1.
        """
        now = self._clock()
        spent = now - self._begun
        left = spent * (1 - done) / done
        if self._is_terminal:
            line = f"{self._what}: {done:4.0%}, about {duration(left)} left"
            sys.stderr.write(f"\r{line:<60}" if done < 1 else f"\r{'':<60}\r")
            sys.stderr.flush()
        elif now - self._told >= EVERY and done < 1:
            self._told = now
            note(f"{self._what}: {done:.0%} done after {duration(spent)}, about {duration(left)} left")


def duration(seconds: float) -> str:
    """In words: seconds, from two minutes on minutes, from two hours on hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
