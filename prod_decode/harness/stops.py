"""Where a completion of a program ends."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A completion ends before the first of these: text at the start of a line that cannot belong to the function any more.
# The first five are those of Chen et al. (arXiv 2107.03374); decorators and the end of a Markdown block came later and
# are in common use.
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@", "\n```")

# After a prompt that opens no function, as MBPP's, which is a docstring: the function is the completion's own, with
# whatever it needs before it.
STOPS_OF_MODULES = ("\nassert", "\nif", "\nprint", '\n"""', "\n```")

_FUNCTION = re.compile(r"^(async )?def ", re.MULTILINE)


def stops_after(prompt: str) -> tuple[str, ...]:
    """The stop sequences of a completion: `STOPS`, or `STOPS_OF_MODULES` after a prompt without a function."""
    return STOPS if _FUNCTION.search(prompt) else STOPS_OF_MODULES


def stop_at(completion: str, stops: Sequence[str] = STOPS) -> str:
    """The completion up to, and without, the first stop sequence in it.

    Every stop begins with a newline, so the text at the very start never counts: a model may begin with a comment.
    """
    return completion[: min((at for stop in stops if (at := completion.find(stop)) >= 0), default=len(completion))]
