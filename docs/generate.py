"""Write the generated pages; `--check` names those that are out of date and exits with status 1.

The page of options is made from the parsers' actions and not from `format_help`, whose layout differs between Python
versions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import api_pages

import prod_decode.cli
import prod_train.cli
from prod_decode.errors import ProdError
from prod_train.config.config import Config
from prod_train.methods import METHODS
from prod_train.option import Option

HERE = Path(__file__).resolve().parent


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


def methods_page() -> str:
    """Every method of `prod-train`, in a table."""
    rows = [
        "# Methods of `prod-train`\n",
        "Made by `make docs` from `prod_train/methods/`, where each has its formula; a test keeps it true.",
        "[Add one](../guide/add-a-method.md).\n",
        "| `--method` | what it is, and its source | options and defaults | of the model as it was it needs |",
        "|---|---|---|---|",
    ]
    needs = {
        None: "nothing",
        "targets": "its likeliest tokens, made once",
        "log_probs": "probabilities of the text, made once",
        "hidden": "hidden states, made once",
    }
    for name, method in METHODS.items():
        about = (method.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip().rstrip(":.")
        options = ", ".join(
            f"`--{option.name.replace('_', '-')}` {_default(option, value)}" for option, value in method.options.items()
        )
        needed = needs[method(Config(method=name)).kind]
        rows.append(f"| `{name}` | {' '.join(about.split())} | {options or 'none'} | {needed} |")
    return "\n".join(rows) + "\n"


def _default(option: Option, value: object) -> str:
    if option.kind is bool:
        return "on" if value else "off"
    return f"({option.unset})" if value is None else f"{value:g}"


def main() -> int:
    """Write or check the pages."""
    sys.path.insert(0, str(HERE.parent))  # `bench` stays in the checkout and is in no environment
    import results_pages

    pages = {HERE / "reference" / "cli.md": page(), HERE / "reference" / "methods.md": methods_page()}
    try:
        pages |= results_pages.make(HERE.parent)
    except ProdError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    leftovers = results_pages.leftovers(HERE.parent, pages)
    pages[HERE / "reference" / "python.md"] = api_pages.page()
    if "--check" in sys.argv[1:]:
        stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        for path in (*stale, *leftovers):
            name = path.relative_to(HERE.parent)
            sys.stderr.write(f"{name} is not what the sources make of it: run `make docs`\n")
        return int(bool(stale or leftovers))
    for path, text in pages.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in leftovers:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
