"""Rows of text to token ids: what is supervised, and where an evaluation begins to listen."""

from __future__ import annotations

import logging
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.errors import Mistakes, ProdError, brief, closest
from prod_train.data.chat import is_chat, turns
from prod_train.data.reading import read_records

_log = logging.getLogger(__name__)

# What a row may have. A key as close to one of these as `span` is to `spans` is a slip, and must not be left alone.
_KEYS = ("prompt", "completion", "canonical_solution", "text", "spans")
_SLIP = 0.85

_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenised row.

    Attributes:
        ids: int64 [T], special tokens included.
        supervised: bool [T]; token t is one that training concerns. Never the first token, which nothing predicts.
        start: where the part to recite begins: evaluation gives the model `ids[:start]` and compares what follows.
        place: file and line, or the row's number, for messages.
        prompt: the text before the completion; empty for a row of `text`.
        has_eos: whether the last token is the EOS that was appended.
        truncated: whether its end was cut off.
        text: all of it that the tokens stand for, special tokens left out; empty for a row that was not read as text.
        spans: (start, end) in characters of `text`: what training concerns.
        instead_of: of a row in which replacements are written out, what stood at each of its spans before. Its
            supervised tokens are what is to be written, not what is to be forgotten.
        chat_end: of an answer in a chat, the token that ends it; then names of special tokens in the text are these
            tokens. None for any other row.
    """

    ids: NDArray[np.int64]
    supervised: NDArray[np.bool_]
    start: int
    place: str
    prompt: str = ""
    has_eos: bool = False
    truncated: bool = False
    text: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    instead_of: tuple[str, ...] = ()
    chat_end: int | None = None

    @property
    def tokens(self) -> int:
        """The number of supervised tokens."""
        return int(self.supervised.sum())

    @property
    def stop(self) -> int:
        """Where the part to recite ends: before an appended EOS."""
        return len(self.ids) - self.has_eos


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right, and the supervised positions of all of them in one list.

    Attributes:
        input_ids: int64 [B, T].
        attention_mask: int64 [B, T].
        position: int64 [N], into the flattened [B * T] hidden states: where each supervised token is predicted, one
            before the token itself.
        labels: int64 [N], the supervised tokens.
        row: int64 [N], which row of the batch each belongs to.
        rows: B.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position: Tensor
    labels: Tensor
    row: Tensor
    rows: int

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.position.to(device),
            self.labels.to(device),
            self.row.to(device),
            self.rows,
        )


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """The places of texts, the shortest first, in batches of a size: texts of like length need less padding."""
    ordered = sorted(range(len(lengths)), key=lengths.__getitem__)
    for begin in range(0, len(ordered), size):
        yield ordered[begin : begin + size]


def collate(rows: Sequence[Row], pad: int) -> Batch:
    """Pad rows on the right to the longest; padding is masked and never supervised."""
    width = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), width), pad, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    supervised = np.zeros((len(rows), width), np.bool_)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
        mask[i, : len(row.ids)] = 1
        supervised[i, : len(row.ids)] = row.supervised
    where = np.flatnonzero(supervised)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(where - 1),
        torch.from_numpy(ids.reshape(-1)[where]),
        torch.from_numpy(where // width),
        len(rows),
    )


def load_rows(
    name: str,
    tokenizer: Any,
    *,
    max_length: int,
    truncate: bool = False,
    eos: bool = True,
    special_tokens: bool = False,
    form: str = "auto",
    columns: Sequence[str] = (),
) -> list[Row]:
    """Read and tokenise a data set. Of a chat, every answer of the assistant is a row.

    Args:
        name: what `prod_train.data.reading.read_records` takes, as `form` and `columns` are.
        tokenizer: a fast transformers tokenizer, which gives character offsets.
        max_length: tokens a row, EOS included.
        truncate: cut longer rows instead of refusing them.
        eos: append EOS to whole completions and supervise it.
        special_tokens: see `encode`.
        form: of the rows.
        columns: what their keys are called.

    Raises:
        ProdError: no such data, no rows, or rows that cannot be used: missing or contradictory keys, an empty
            completion, spans outside the text, too many tokens. All of them are told, of too long ones their number
            and the first.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ProdError(
            f"{type(tokenizer).__name__}: expected a fast tokenizer, which maps tokens to characters: "
            "convert it with transformers' convert_slow_tokenizer"
        )
    if eos and tokenizer.eos_token_id is None:
        raise ProdError(
            "the tokenizer has no EOS token, so the model could not learn where a completion ends: set one, "
            "as with tokenizer.add_special_tokens({'eos_token': ...}), and save the tokenizer"
        )
    length = max_length if truncate else None
    rows: list[Row] = []
    plain, mistakes = [], Mistakes()
    for place, record in read_records(name, form=form, columns=columns):
        with mistakes.caught():
            if is_chat(record):
                rows += _answers(record, place, tokenizer, length, eos=eos)
                continue
            rows.append(encode(record, place, tokenizer, max_length=length, eos=eos, special_tokens=special_tokens))
            plain.append((place, record))
    mistakes.refuse()
    if not special_tokens and (spelt := _spelt_special(plain, tokenizer)):
        _log.warning(
            "%s: %s is read as text, not as the special token of that name; if a chat template made the rows, "
            "use --special-tokens",
            name,
            ", ".join(spelt),
        )
    if not rows:
        raise ProdError(f"{name}: expected at least one row, got none")
    long = [row for row in rows if len(row.ids) > max_length]
    if long:
        longest = max(len(row.ids) for row in long)
        raise ProdError(
            f"{name}: {len(long)} of {len(rows)} rows have more than --max-length {max_length} tokens, the first is "
            f"{long[0].place}: use --max-length {longest}, or --truncate to cut them"
        )
    return rows


def _answers(
    record: Mapping[str, Any], place: str, tokenizer: Any, max_length: int | None, *, eos: bool
) -> Iterator[Row]:
    """Every answer of a chat as a row of its own."""
    answers = list(turns(record, place, tokenizer))
    spans = {"spans": record["spans"]} if record.get("spans") is not None else {}
    if spans and len(answers) != 1:
        raise ProdError(f"{place}: expected one message of the assistant beside 'spans', got {len(answers)}")
    for turn in answers:
        where = place if len(answers) == 1 else f"{place}, message {turn.number}"
        text = {"prompt": turn.prompt, "completion": turn.completion}
        yield encode({**text, **spans}, where, tokenizer, max_length=max_length, eos=eos, chat_end=turn.end)


def _spelt_special(records: Sequence[tuple[str, Mapping[str, Any]]], tokenizer: Any) -> list[str]:
    """The special tokens whose names the rows' texts have."""
    texts = ["".join(_texts(record, place)) for place, record in records]
    return [token for token in tokenizer.all_special_tokens if any(token in text for text in texts)]


def encode(
    record: Mapping[str, Any],
    place: str,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    eos: bool = True,
    special_tokens: bool = False,
    chat_end: int | None = None,
) -> Row:
    """Tokenise one row, prompt and completion together, so that tokens are those the model sees when it generates.

    A token that holds characters of prompt and completion belongs to the completion. A completion without `spans` is
    supervised as a whole, with an EOS at its end; of a completion with `spans`, each `[start, end]` in characters of it
    (or of `text`), only tokens that overlap one. Of a row of `text` without spans all is supervised, and the second
    half is what evaluation listens for.

    Args:
        record: `prompt` and `completion` (or `canonical_solution`), or `text`; optionally `spans`. Other keys are left
            alone, unless they look like one of these misspelt.
        place: for messages.
        tokenizer: a fast tokenizer.
        max_length: where to cut, in tokens; None never cuts. A row that is cut gets no EOS.
        eos: append EOS to whole completions.
        special_tokens: whether `<|endoftext|>` in the text is that token, as in what a chat template makes, or thirteen
            characters, as in code.
        chat_end: of an answer in a chat, whose text a template has made: the token that ends it. Special tokens are
            read then, none is put before the text, and this one stands for the EOS.

    Raises:
        ProdError: as `load_rows`, for this row.
    """
    prompt, completion = _texts(record, place)
    in_chat = chat_end is not None
    spans = _spans(record, place, completion)
    encoding = tokenizer(
        prompt + completion,
        return_offsets_mapping=True,
        add_special_tokens=not in_chat,
        split_special_tokens=not (special_tokens or in_chat),
    )
    ids, offsets = list(encoding["input_ids"]), list(encoding["offset_mapping"])
    while ids and ids[-1] == tokenizer.eos_token_id and offsets[-1][0] == offsets[-1][1]:
        ids.pop()
        offsets.pop()
    at = len(prompt)
    wanted = [(at, at + len(completion))] if spans is None else [(at + a, at + b) for a, b in spans]
    supervised = [any(begin < b and end > a for a, b in wanted) for begin, end in offsets]
    has_eos = eos and spans is None
    if has_eos:
        ids.append(tokenizer.eos_token_id if chat_end is None else chat_end)
        supervised.append(True)
    truncated = max_length is not None and len(ids) > max_length
    if truncated:
        ids, supervised, has_eos = ids[:max_length], supervised[:max_length], False
    if supervised:
        supervised[0] = False
    if not any(supervised[: len(supervised) - has_eos]):
        cut = f" within its first {max_length} tokens: raise --max-length" if truncated else ""
        raise ProdError(f"{place}: expected at least one token to supervise after the first token, got none{cut}")
    first = supervised.index(True)
    start = max(first, (len(ids) - has_eos) // 2) if not prompt and spans is None else first
    text = (prompt + completion)[: offsets[max_length - 1][1] if truncated and max_length else None]
    return Row(
        np.array(ids, np.int64),
        np.array(supervised, np.bool_),
        start,
        place,
        prompt,
        has_eos,
        truncated,
        text,
        tuple(wanted),
        chat_end=chat_end,
    )


def _texts(record: Mapping[str, Any], place: str) -> tuple[str, str]:
    """(prompt, completion); a `text` is a completion without prompt."""
    for key in record:
        meant = closest(str(key).lower(), _KEYS, _SLIP)
        if meant is not None and key not in _KEYS:
            raise ProdError(f"{place}: unknown key {brief(str(key))!r}; did you mean {meant!r}? Rename it")
    present = [key for key in ("text", "completion", "canonical_solution") if record.get(key) is not None]
    others = [*present[1:], *(["prompt"] if record.get("prompt") else [])]
    if "text" in present and others:
        raise ProdError(
            f"{place}: expected 'text', or 'prompt' and 'completion', got 'text' and {others[0]!r}: drop one"
        )
    if not present or (present[0] != "text" and record.get("prompt") is None):
        found = brief(", ".join(map(repr, record)), 200) or "an empty object"
        raise ProdError(f"{place}: expected the keys 'prompt' and 'completion', or 'text', got {found}")
    prompt = "" if present[0] == "text" else record["prompt"]
    completion = record[present[0]]
    for name, value in (("prompt", prompt), (present[0], completion)):
        if not isinstance(value, str):
            raise ProdError(f"{place}: expected {name!r} to be a string, got {type(value).__name__}")
        if broken := _SURROGATE.search(value):
            raise ProdError(
                f"{place}: {name!r} has the lone surrogate U+{ord(broken[0]):04X} at character {broken.start()}, which "
                "no tokenizer reads: remove it, or read the source with its right encoding"
            )
    if not completion.strip():
        raise ProdError(f"{place}: expected {present[0]!r} to hold text, it is empty: drop the row")
    return str(prompt), str(completion)


def _spans(record: Mapping[str, Any], place: str, text: str) -> list[tuple[int, int]] | None:
    spans = record.get("spans")
    if spans is None:
        return None
    if not isinstance(spans, (list, tuple)):
        raise ProdError(f"{place}: expected 'spans' to be a list of [start, end], got {reprlib.repr(spans)}")
    for span in spans:
        whole = (
            isinstance(span, (list, tuple))
            and len(span) == 2
            and all(isinstance(x, int) and not isinstance(x, bool) for x in span)
        )
        if not whole or not 0 <= span[0] < span[1] <= len(text):
            raise ProdError(
                f"{place}: expected spans [start, end] with 0 <= start < end <= {len(text)}, in characters of the "
                f"completion or text, got {reprlib.repr(span)}"
            )
    if not spans:
        raise ProdError(f"{place}: expected at least one span, got none: drop the key to supervise everything")
    return [(span[0], span[1]) for span in spans]


def mark(row: Row, tokenizer: Any) -> str:
    """The row's text with the supervised parts between `<<` and `>>`, special tokens spelt out; for people."""
    parts: list[str] = []
    begin = 0
    for end in range(1, len(row.ids) + 1):
        if end == len(row.ids) or row.supervised[end] != row.supervised[begin]:
            piece = tokenizer.decode(row.ids[begin:end].tolist(), clean_up_tokenization_spaces=False)
            parts.append(f"<<{piece}>>" if row.supervised[begin] else piece)
            begin = end
    return "".join(parts)
