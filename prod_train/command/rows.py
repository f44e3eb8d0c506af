"""How rows are read and a model is loaded, where nothing is trained: options that sub-commands share."""

from __future__ import annotations

import argparse
from typing import Any

from prod_decode.command.options import positive
from prod_train.data.formats import FORMS


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
