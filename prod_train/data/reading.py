"""From files, folders and hub names to raw rows, in whatever form somebody has them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prod_decode.errors import ProdError, brief, did_you_mean, reason
from prod_train.data.formats import DATA_FILES, JSON_FILES, PACKED, TABLES, suffix_of

Record = Mapping[str, Any]

# What is meant as a file and not found must not be looked for on the hub, whose names may have dots too.
_FILES = (*DATA_FILES, ".txt", ".zst", ".gz")
_READ = "expected .jsonl, .csv, .parquet, a folder of such files, a save_to_disk directory or a hub name"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[^/]+)?")
_LONGEST_FIELD = 2**31 - 1  # the most that the module csv takes where a C long has 32 bits

# What a row of a form has, unless columns are called otherwise.
_KEYS = {"auto": (), "messages": ("messages",), "sharegpt": ("conversations",), "alpaca": ("instruction",)}

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
}


def read_records(name: str, *, form: str = "auto", columns: Sequence[str] = ()) -> Iterator[tuple[str, Record]]:
    """The raw rows of a data set, each with its place for messages.

    Args:
        name: a `.jsonl`, `.csv`, `.tsv` or `.parquet` file, the first three also with `.gz` behind it; a folder of such
            files, taken in the order of their names; a directory written by `datasets.save_to_disk`; or a hub name with
            an optional `:split` (default `train`).
        form: one of `prod_train.data.formats.FORMS`. `auto`: rows as they are. Otherwise rows come as `messages`, a
            list of `role` and `content`: `sharegpt` makes them of `conversations`, `alpaca` of `instruction`, `input`,
            `output` and `system`. A prompt with its completion stays as it is: one set of a run may have another form.
        columns: `KEY=COLUMN`: what other columns are called. With some, a row has only these keys, and `spans`; a
            prompt with its completion and none of the columns stays as it is.

    Raises:
        ProdError: it does not exist, cannot be read, or has rows of another form.
    """
    named = _named(columns)
    asked = {*named.values(), *_KEYS[form]}
    for place, record in _raw(name):
        is_plain = isinstance(record.get("prompt"), str) and isinstance(record.get("completion"), str)
        stays = is_plain and not asked & record.keys()
        yield place, record if stays else _in_form(_renamed(record, named, place), form, place)


def _raw(name: str) -> Iterator[tuple[str, Record]]:
    path = Path(name)
    if path.is_dir() and not any((path / file).is_file() for file in ("state.json", "dataset_dict.json")):
        files = sorted(file for file in path.rglob("*") if suffix_of(file.name) in DATA_FILES and file.is_file())
        if not files:
            raise ProdError(f"cannot read {name}: {_READ}, got a folder without any")
        for file in files:
            yield from _raw(str(file))
        return
    kind = suffix_of(name)
    if kind in (*JSON_FILES, *TABLES):
        if not path.exists():
            raise ProdError(f"cannot read {name}: no such file")
        from prod_decode.blocklist.sources import read_json_lines, unpacked

        data = unpacked(path) if name.lower().endswith(PACKED) else None
        yield from read_json_lines(path, data) if kind in JSON_FILES else _table(path, data, kind)
        return
    for number, record in enumerate(_load_dataset(name, path)):
        yield f"{name} row {number}", record


def _table(path: Path, data: bytes | None, kind: str) -> Iterator[tuple[str, Record]]:
    """The lines of a CSV or TSV file, whose first one names the columns."""
    from prod_decode.blocklist.sources import decode_text, read_text

    text = read_text(path) if data is None else decode_text(data, path)
    csv.field_size_limit(_LONGEST_FIELD)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="," if kind == ".csv" else "\t", strict=True)
    try:
        names = rows.fieldnames or ()
        if not names or len(set(names)) < len(names):
            raise ProdError(
                f"{path}:1: expected a line that names the columns, each once, got {brief(str(names), 100)}"
            )
        for row in rows:
            place = f"{path}:{rows.line_num}"
            if None in row or None in row.values():
                raise ProdError(f"{place}: expected {len(names)} fields, as the first line has, got more or fewer")
            yield place, row
    except csv.Error as error:
        raise ProdError(f"{path}:{rows.line_num}: expected {kind[1:].upper()}, got {error}") from None


def _load_dataset(name: str, path: Path) -> Any:
    try:
        import datasets
    except ImportError:
        raise ProdError(f"{name}: reading this needs the package datasets: pip install datasets") from None
    hub, _, split = name.partition(":")
    try:
        if path.is_dir():
            data = datasets.load_from_disk(name)
        elif path.suffix.lower() == ".parquet":
            if not path.is_file():
                raise ProdError(f"cannot read {name}: no such file")
            data = datasets.Dataset.from_parquet(name)
        elif path.exists() or path.suffix.lower() in _FILES or not _HUB_NAME.fullmatch(name):
            raise ProdError(f"cannot read {name}: {_READ if path.exists() else 'no such file'}")
        else:
            data = datasets.load_dataset(hub, split=split or "train")
    except ProdError:
        raise
    except Exception as error:  # noqa: BLE001 (the library raises what its many back ends raise)
        raise ProdError(f"cannot read {name}: {reason(error)} ({_READ}[:split])") from None
    if isinstance(data, datasets.DatasetDict):
        if split not in data and len(data) != 1:
            splits = brief(", ".join(data))
            raise ProdError(f"{name}: expected one split, got {splits}: save the one you mean by itself")
        data = data[split or next(iter(data))]
    return data


def _named(columns: Sequence[str]) -> dict[str, str]:
    """Column by key."""
    known = ("prompt", "completion", "text", "messages", "conversations", "instruction", "input", "output", "system")
    found: dict[str, str] = {}
    for pair in columns:
        key, given, column = pair.partition("=")
        if not given or not column:
            raise ProdError(f"--columns: expected KEY=COLUMN, such as completion=code, got {brief(pair)!r}")
        if key not in known:
            raise ProdError(
                f"--columns: expected one of {', '.join(known)} before =, got {brief(key)!r}{did_you_mean(key, known)}"
            )
        found[key] = column
    return found


def _renamed(record: Record, named: Mapping[str, str], place: str) -> Record:
    if not named:
        return record
    for column in named.values():
        if column not in record:
            there = brief(", ".join(map(repr, record)), 200) or "none"
            raise ProdError(f"{place}: expected the column {column!r} of --columns, got {there}")
    spans = {"spans": record["spans"]} if record.get("spans") is not None else {}
    return {**{key: record[column] for key, column in named.items()}, **spans}


def _in_form(record: Record, form: str, place: str) -> Record:
    if form == "sharegpt":
        return {"messages": _spoken(record.get("conversations"), place), **_rest(record)}
    if form == "alpaca":
        return {"messages": _instructed(record, place), **_rest(record)}
    if form == "messages" and record.get("messages") is None:
        raise ProdError(f"{place}: expected the key 'messages', got {brief(', '.join(map(repr, record)), 200)}")
    if form == "auto" and not {"messages", "prompt", "completion", "text"} & record.keys():
        for key, other in (("conversations", "sharegpt"), ("instruction", "alpaca")):
            if record.get(key) is not None:
                raise ProdError(f"{place}: rows with {key!r} are read with --format {other}")
    return record


def _rest(record: Record) -> dict[str, Any]:
    return {key: record[key] for key in ("spans",) if record.get(key) is not None}


def _spoken(turns: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(turns, (list, tuple)):
        raise ProdError(f"{place}: expected 'conversations' to be a list, got {type(turns).__name__}")
    messages = []
    for turn in turns:
        speaker = turn.get("from") if isinstance(turn, Mapping) else None
        if speaker not in _SPEAKERS:
            raise ProdError(
                f"{place}: expected turns with 'from' (human, gpt or system) and 'value', got {brief(repr(turn), 80)}"
            )
        messages.append({"role": _SPEAKERS[speaker], "content": turn.get("value")})
    return messages


def _instructed(record: Record, place: str) -> list[dict[str, Any]]:
    asked, given = record.get("instruction"), record.get("input")
    if not isinstance(asked, str) or not isinstance(given, str | None):
        raise ProdError(f"{place}: expected 'instruction' to be a string, and 'input' if there is one")
    said = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    return [
        *said,
        {"role": "user", "content": f"{asked}\n\n{given}" if given else asked},
        {"role": "assistant", "content": record.get("output")},
    ]
