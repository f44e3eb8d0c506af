"""Text to comparable symbols: what counts as the same code.

A *symbol* is a byte of the normalised text. Mode `none` keeps every byte. Mode `code` drops whitespace, except that any
run of it between two word characters is one space: `yaml . load (` equals `yaml.load(`, and `return x` never equals
`returnx`. Word characters are `[A-Za-z0-9_]`; whitespace is ASCII whitespace; every other byte, each byte of a
non-ASCII character included, is neither. `ignore_case` folds ASCII letters.

Both modes are finite transducers, so that they also run token by token. A *text state* is all that they remember:

====================  ===========================================  ====================================
text state            the text so far ends                         the next word character
====================  ===========================================  ====================================
`AFTER_OTHER`         nowhere, or in a character outside a word    begins a word
`AFTER_WORD`          inside a word                                continues it
`AFTER_SPACE`         in a word, then whitespace (`code` only)     emits the space, then begins a word
`AFTER_BREAK`         in a word, then a special token              may continue it and may begin one
====================  ===========================================  ====================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prod_decode.errors import ProdError
from prod_decode.storage.jit import inline, jit

AFTER_OTHER, AFTER_WORD, AFTER_SPACE, AFTER_BREAK = 0, 1, 2, 3
TEXT_STATES = 4

OTHER, WORD, SPACE = 0, 1, 2
WORD_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"


def _character_classes() -> NDArray[np.uint8]:
    classes = np.full(256, OTHER, np.uint8)
    classes[list(WORD_BYTES)] = WORD
    classes[list(b" \t\n\r\f\v")] = SPACE
    return classes


CLASSES = _character_classes()
# A word ends before these, and at the end of a text.
WORD_ENDS = CLASSES != WORD

# Bytes of a text between two marks.
_BLOCK = 1024

# Every byte as itself, and with ASCII capitals in lower case.
_ALIKE = np.arange(256, dtype=np.uint8)
_FOLDED = np.frombuffer(bytes(range(256)).lower(), np.uint8)
_ALIKE.flags.writeable = False


@dataclass(frozen=True, slots=True)
class Normalization:
    """How texts are compared: the mode, and whether ASCII letters are folded."""

    mode: Literal["none", "code"] = "code"
    ignore_case: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("none", "code"):
            raise ProdError(f"normalize must be 'none' or 'code', got {self.mode!r}")
        if not isinstance(self.ignore_case, bool):
            raise ProdError(f"ignore_case must be True or False, got {self.ignore_case!r}")

    def __str__(self) -> str:
        """In words, for messages."""
        layout = "ignores layout (normalize code)" if self.is_code else "compares as is (normalize none)"
        return f"{layout}{' and folds letters (ignore_case)' if self.ignore_case else ''}"

    @property
    def is_code(self) -> bool:
        """Whether whitespace is ignored."""
        return self.mode == "code"

    def symbols(self, text: str) -> bytes:
        """The normalised UTF-8 bytes of `text`, taken as a whole text.

        Raises:
            ProdError: `text` has a lone surrogate, which no UTF-8 output can contain.
        """
        codes = np.frombuffer(_encode(text, "utf-8"), np.uint8)
        symbols, _ = self.fold(codes)
        return symbols.tobytes()

    def code_points(self, text: str) -> NDArray[np.uint32]:
        """The normalised code points of `text`: uint32 [n]; the same text as `symbols`, one item a character."""
        return self.trace(text)[0]

    def trace(self, text: str) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """`code_points`, and for each the index of the character that it stands for: int64 [n]."""
        return self.run(np.frombuffer(_encode(text, "utf-32-le"), np.uint32))

    def run(self, codes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Normalise bytes (uint8 [n]) or code points (uint32 [n]).

        Returns:
            The symbols, [m] of the dtype of `codes`, and for each the index in `codes` of what it stands for: int64
            [m]. The space between two words stands for the first character of the run of whitespace.
        """
        symbols = np.empty_like(codes)
        origins = np.empty(len(codes), np.int64)
        count = _normalize(codes, self.is_code, self.ignore_case, CLASSES, symbols, origins)
        return symbols[:count], origins[:count]

    def fold(self, codes: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The symbols that `run` gives for bytes, several times as fast.

        Args:
            codes: the text, uint8 [n].

        Returns:
            The symbols, uint8 [m], and what `locate` needs to find out where they come from: int64 [blocks, 2].
        """
        if not self.is_code and not self.ignore_case:
            return codes, np.empty((0, 2), np.int64)
        symbols = np.empty(len(codes) + 1, np.uint8)
        marks = np.empty((len(codes) // _BLOCK + 1, 2), np.int64)
        count = _fold(codes, self.is_code, _FOLDED if self.ignore_case else _ALIKE, CLASSES, symbols, marks)
        return symbols[:count], marks

    def locate(
        self, codes: NDArray[np.uint8], marks: NDArray[np.int64], wanted: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Where some symbols come from: their `origins`, as `run` gives them.

        Args:
            codes: what was folded.
            marks: what `fold` returned.
            wanted: indices of symbols, int64 [k], ascending.

        Returns:
            Indices in `codes`, int64 [k].
        """
        if not self.is_code:
            return wanted
        origins = np.empty(len(wanted), np.int64)
        _locate(codes, CLASSES, marks, wanted, origins)
        return origins


def _encode(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise ProdError(
            f"text has the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which UTF-8 "
            "cannot carry: remove it, or read the source with its right encoding"
        ) from None


@inline
def fold(code: Any, ignore_case: bool) -> Any:
    """`code`, in lower case if it is an ASCII capital and case is ignored."""
    if ignore_case and 65 <= code <= 90:
        return code + 32
    return code


@inline
def transduce(text_state: int, kind: int, is_code: bool) -> tuple[int, int]:
    """The text state after a character of class `kind`, and how many symbols it emits: 0, 1, or 2 (a space first)."""
    if is_code and kind == SPACE:
        return (AFTER_OTHER if text_state == AFTER_OTHER else AFTER_SPACE), 0
    if kind == WORD:
        return AFTER_WORD, (2 if text_state == AFTER_SPACE else 1)
    return AFTER_OTHER, 1


@jit
def _normalize(
    codes: NDArray[Any],
    is_code: bool,
    ignore_case: bool,
    classes: NDArray[np.uint8],
    symbols: NDArray[Any],
    origins: NDArray[np.int64],
) -> int:
    count = 0
    state = AFTER_OTHER
    space_at = 0
    for i in range(len(codes)):
        code = codes[i]
        kind = classes[code] if code < 128 else OTHER
        before = state
        state, emitted = transduce(state, kind, is_code)
        if emitted == 0 and before == AFTER_WORD:
            space_at = i
        if emitted == 2:
            symbols[count] = 32
            origins[count] = space_at
            count += 1
        if emitted:
            symbols[count] = fold(code, ignore_case)
            origins[count] = i
            count += 1
    return count


@jit
def _fold(
    codes: NDArray[np.uint8],
    is_code: bool,
    folded: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    marks: NDArray[np.int64],
) -> int:
    """As `_normalize`, without a branch: a space and a character are always written, and kept by moving on.

    A mark for each block of the text: how many symbols came before it, and the text state. That is the state of
    `transduce` in two bits, which depend on less: whether the last character that is no space is of a word, and whether
    a space is behind it.
    """
    one = np.uint64(1)
    count, in_word, behind_space = np.uint64(0), np.uint64(0), np.uint64(0)
    for block in range(len(marks)):
        begin = block * _BLOCK
        marks[block, 0] = count
        marks[block, 1] = (AFTER_SPACE if behind_space else AFTER_WORD) if in_word else AFTER_OTHER
        for i in range(np.uint64(begin), np.uint64(min(begin + _BLOCK, len(codes)))):
            kind = classes[codes[i]]
            is_word, is_space = np.uint64(kind == WORD), np.uint64(is_code and kind == SPACE)
            symbols[count] = 32
            count += in_word & behind_space & is_word
            symbols[count] = folded[codes[i]]
            count += one - is_space
            in_word = in_word if is_space else is_word
            behind_space = is_space
    return int(count)


@jit
def _locate(
    codes: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    marks: NDArray[np.int64],
    wanted: NDArray[np.int64],
    origins: NDArray[np.int64],
) -> None:
    at = 0
    block = 0
    while at < len(wanted):
        while block + 1 < len(marks) and marks[block + 1, 0] <= wanted[at]:
            block += 1
        count, state = marks[block]
        begin = block * _BLOCK
        space_at = begin
        while state == AFTER_SPACE and classes[codes[space_at - 1]] == SPACE:
            space_at -= 1
        for i in range(begin, min(begin + _BLOCK, len(codes))):
            before = state
            state, emitted = transduce(state, classes[codes[i]], True)
            if emitted == 0 and before == AFTER_WORD:
                space_at = i
            count += emitted
            while at < len(wanted) and wanted[at] < count:
                origins[at] = space_at if emitted == 2 and wanted[at] == count - 2 else i
                at += 1
        block += 1
