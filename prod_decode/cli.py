"""`prod-decode`: compile, merge, inspect and scan blocklists and indices, and generate with one in the loop."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from prod_decode.command import generating, lists, scanning
from prod_decode.command.options import FOUND, STATUSES, Parser
from prod_decode.command.terminal import exit_status, standard_streams
from prod_decode.indexing import command as indexing
from prod_decode.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns one of `STATUSES`."""
    with standard_streams():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if sys.stderr.isatty():
        logging.getLogger("prod_decode").setLevel(logging.INFO)
    # That the first start compiles, and why it takes long: in a log of CI too.
    logging.getLogger("prod_decode.storage.jit").setLevel(logging.INFO)
    return exit_status(f"prod-decode {options.command}", lambda: options.run(options))


def build_parser() -> argparse.ArgumentParser:
    """The parser of every sub-command; `docs/reference/cli.md` is made from it."""
    parser = Parser(
        prog="prod-decode", description="Keep a code model from emitting prohibited code.", statuses=STATUSES
    )
    parser.add_argument("--version", action="version", version=f"prod-decode {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (lists, scanning, indexing, generating):
        module.add_to(commands)

    add = commands.add_parser("check-server", help="whether a vLLM server enforces blocklists; exit status 1 if not")
    add.add_argument("url", metavar="URL", help="such as http://localhost:8000")
    add.add_argument("--model", metavar="M", help="the model's name there (default: the first one)")
    add.add_argument("--list", action="append", default=[], metavar="NAME", help="a blocklist that requests add")
    add.add_argument("--api-key", metavar="KEY", help="default: the variable OPENAI_API_KEY")
    add.set_defaults(run=_check_server)
    return parser


def _check_server(options: argparse.Namespace) -> int:
    from prod_decode.serving.check_server import check_server

    key = options.api_key or os.environ.get("OPENAI_API_KEY")
    found = check_server(options.url, model=options.model, names=options.list, api_key=key)
    about = ""
    if found.report:
        lists = ", ".join(found.report["enforced"]) or "none"
        about = f" (prod-decode {found.report['version']}, vLLM {found.report['vllm']}; lists: {lists})"
    print(f"{options.url}: {'enforced' if found.enforced else f'NOT ENFORCED: {found.reason}'}{about}")
    return 0 if found.enforced else FOUND


if __name__ == "__main__":
    sys.exit(main())
