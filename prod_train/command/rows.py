"""How rows are read and written, and a model is loaded, where nothing is trained: what sub-commands share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from prod_decode.command.options import positive
from prod_decode.errors import ProdError
from prod_train.data.formats import FORMS, JSON_FILES


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options of `reading`, and `--dtype`."""
    parser.add_argument(
        "--format", choices=FORMS, default="auto", help="what a row is, as for `run`: a chat's answers are rows"
    )
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="KEY=COLUMN", help="what columns are called, as for `run`"
    )
    parser.add_argument(
        "--max-length", type=positive(int), default=1024, metavar="N", help="tokens of a row, EOS included (1024)"
    )
    parser.add_argument("--truncate", action="store_true", help="cut rows longer than --max-length, otherwise refused")
    parser.add_argument(
        "--special-tokens", action="store_true", help="the name of a special token in a row is that token, not text"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of the weights; auto: bfloat16 on a GPU, else float32",
    )


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """What a command line says of reading rows, as options that `load_rows` and `Config` both have."""
    return {
        "max_length": options.max_length,
        "truncate": options.truncate,
        "special_tokens": options.special_tokens,
        "columns": tuple(options.columns),
    }


def require_rows_output(output: str, inputs: Iterable[str], *, force: bool | None = None) -> None:
    """Refuse a file that rows cannot or may not be written to.

    Args:
        output: its name.
        inputs: what is read.
        force: whether --force is given; None where there is no such option.

    Raises:
        ProdError: it is named as no file of rows, cannot be written, is an input, or holds something.
    """
    from prod_decode.storage.artifact import require_new

    if not output.lower().endswith(JSON_FILES):
        raise ProdError(f"expected a file name that ends in .jsonl to write, got {output!r}")
    require_new(output, inputs, force=force)


def write_rows(files: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """All files with their records, a line each, or none: each takes its name when all are written.

    Columns of a table that JSON has no value for, such as dates, become strings. A lone surrogate is escaped.
    """
    from prod_decode.storage.files import write_whole

    with ExitStack() as stack:
        for path, records in files.items():
            file = stack.enter_context(write_whole(path))
            try:
                for record in records:
                    line = json.dumps(record, ensure_ascii=False, default=str)
                    file.write(f"{line}\n".encode(errors="backslashreplace"))
                file.flush()
            except OSError as error:
                raise ProdError(f"cannot write {path}: {error.strerror}") from None
