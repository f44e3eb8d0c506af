"""Write docs/cli.md from the parsers themselves; `--check` exits with status 1 if the page is out of date.

The page is made from the parsers' actions and not from `format_help`, whose layout differs between Python versions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import prod_decode.cli
import prod_train.cli

PAGE = Path(__file__).with_name("cli.md")


def sections(parser: argparse.ArgumentParser, about: str | None) -> Iterator[str]:
    """The options of a parser and of all its sub-commands, as Markdown."""
    yield f"## {parser.prog}\n\n{about}\n\n{_table(parser)}{_statuses(parser)}"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            shown: dict[str, str] = {}
            for name, command in action.choices.items():
                same = shown.setdefault(_table(command), command.prog)
                if same == command.prog:
                    yield from sections(command, _sentence(helps[name] or ""))
                else:
                    yield f"## {command.prog}\n\n{_sentence(helps[name] or '')} Its options are those of `{same}`.\n"


def _table(parser: argparse.ArgumentParser) -> str:
    rows = [
        f"| `{_name(action)}` | {(action.help or '') % vars(action)} |"
        for action in parser._actions
        if _is_documented(action)
    ]
    return "\n".join(["| option | meaning |", "|---|---|", *rows]) + "\n" if rows else ""


def _statuses(parser: argparse.ArgumentParser) -> str:
    statuses = parser.statuses if isinstance(parser, prod_decode.cli.Parser) else {}
    rows = [f"| {status} | {meaning} |" for status, meaning in statuses.items()]
    return "\n".join(["", "| exit status | meaning |", "|---|---|", *rows]) + "\n" if rows else ""


def _is_documented(action: argparse.Action) -> bool:
    return not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))


def _name(action: argparse.Action) -> str:
    value = action.metavar or "\\|".join(map(str, action.choices or ()))
    if not action.option_strings:
        return f"{value}{' ...' if action.nargs == '+' else ''}"
    return ", ".join(action.option_strings) + (f" {value}" if value and action.nargs != 0 else "")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def page() -> str:
    """The whole page."""
    head = "# Command line\n\nMade by `make docs` from the commands themselves; a test keeps it true.\n"
    parsers = (prod_decode.cli.build_parser(), prod_train.cli.build_parser())
    parts = [section for parser in parsers for section in sections(parser, parser.description)]
    return "\n".join([head, *parts]).rstrip() + "\n"


def main() -> int:
    """Write or check the page."""
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
