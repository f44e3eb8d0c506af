"""Tests, in the folders of what they test; run from the checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[1]

# Whether a command says this depends on what ran on this machine before.
FIRST_START = "compiling for this machine, once for each part: "


def without_first_start(text: str) -> str:
    """What a command printed, as if it was not the first on this machine."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(FIRST_START))
