"""What every command and constructor raises for a user's mistake."""

from __future__ import annotations


class ProdError(ValueError):
    """A mistake in the input: the message says what was expected, what came, and the remedy, in one line.

    Commands print it without a traceback and exit with status 2.
    """
