"""What every command and constructor raises for a user's mistake, and how such a message repeats what it was given."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

# Longer ones are cut. A path has up to 4,096 characters; a file may hold a key or a value of a megabyte.
LONGEST_WORD = 400
LONGEST_MESSAGE = 6000
# Mistakes of one kind that are told, each in a line; of more, how many there are.
MOST_MISTAKES = 20

_P = ParamSpec("_P")
_T = TypeVar("_T")

# What may move the cursor, colour the screen, or reorder what stands around it, is not printable.
_ANY_BUT_LINE_ENDS = re.compile(r"\r(?!\n)|[^\r\n\t]")
_LINE_ENDS = re.compile(r"\s*[\n\r\u2028\u2029]\s*")


class ProdError(ValueError):
    """A mistake in the input: the message says what was expected, what came, and the remedy, in one line.

    Commands print it without a traceback, each mistake on a line, and exit with status 2. Whatever it repeats, it is
    one line of at most `LONGEST_MESSAGE` characters, in which no word has more than `LONGEST_WORD`.

    Attributes:
        mistakes: one or more, each such a line.
    """

    def __init__(self, message: str = "", *more: str) -> None:
        """Of several mistakes each has its own sentence; the text has them one after the other."""
        self.mistakes = tuple(map(_bounded, (message, *more)))
        super().__init__(brief("; ".join(self.mistakes), LONGEST_MESSAGE))


class UnknownKeywordError(ProdError, TypeError):
    """A keyword that a constructor or function does not have; for Python, and whoever catches it, a TypeError."""


class Mistakes:
    """Mistakes that are found one after the other and told together, of very many the first and how many more."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._count = 0

    def __len__(self) -> int:
        """How many there are so far."""
        return self._count

    def add(self, *messages: str) -> None:
        """One or more, each a line."""
        self._count += len(messages)
        self._first += messages[: MOST_MISTAKES - len(self._first)]

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Keep what is raised inside, and go on."""
        try:
            yield
        except ProdError as error:
            self.add(*error.mistakes)

    def refuse(self) -> None:
        """End here if there are any.

        Raises:
            ProdError: all of them.
        """
        if self._count:
            more = self._count - len(self._first)
            raise ProdError(*self._first, *([f"{more:,} more like these"] if more else []))


def clear_keywords(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The same function, which tells an unknown keyword in one line, with the one that was meant."""

    @wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except TypeError:
            known = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
            unknown = [name for name in kwargs if name not in known]
            if not unknown:
                raise
            name = function.__qualname__.removesuffix(".__init__")
        expected = f": expected some of {', '.join(known)}"
        raise UnknownKeywordError(
            *(f"{name}: unknown keyword {brief(word)!r}{did_you_mean(word, known) or expected}" for word in unknown)
        )

    return called


def _bounded(message: str) -> str:
    words = " ".join(message.splitlines()).split(" ")
    return brief(" ".join(brief(word, LONGEST_WORD) for word in words), LONGEST_MESSAGE)


def brief(value: object, most: int = 120) -> str:
    """A value for a message: text as it is, anything else as `repr` has it; of a longer one its beginning and end."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # of a whole number, more than 4,300 digits are not printed
        return f"{type(value).__name__} of too many digits"
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 3]}...{text[-end:]}"


def closest(word: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """What somebody may have meant: the most like of the known words, if it is at least so like (0 to 1)."""
    return next(iter(difflib.get_close_matches(word[:LONGEST_WORD], list(known), 1, likeness)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: which known one it resembles, or ""."""
    meant = closest(word, known)
    return "" if meant is None else f"; did you mean {meant!r}?"


def described(value: object) -> str:
    """A tensor or array for a message, by dtype, shape, and strides unless contiguous; anything else by its type."""
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        return type(value).__name__
    strides = "" if getattr(value, "is_contiguous", lambda: True)() else f" with strides {value.stride()}"  # type: ignore[attr-defined]
    return f"{value.dtype} of shape {tuple(value.shape)}{strides}"


def reason(error: BaseException, most: int = 500) -> str:
    """What another library's error says, in one line: a name that it had instead of a sentence is told as well."""
    text = " ".join(str(error).split())
    said = isinstance(error, OSError | ImportError) or (isinstance(error, ValueError) and " " in text)
    return brief(text if said and text else f"{type(error).__name__}: {text}".rstrip(": "), most)


def printable(text: str) -> str:
    """The text with every character escaped that `str.isprintable` refuses; tabs and line ends stay."""
    return text if text.isprintable() else _ANY_BUT_LINE_ENDS.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def one_line(text: str, most: int = LONGEST_MESSAGE) -> str:
    """The text as one printable line, of a longer one its beginning and end."""
    return brief(printable(_LINE_ENDS.sub(" ", text.rstrip())).replace("\t", "\\t"), most)
