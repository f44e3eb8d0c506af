"""`prod-train`: train a model to forget, see beforehand what that would do, and merge the result."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prod_decode.command.options import Parser
from prod_decode.command.terminal import USAGE, duration, exit_status, standard_streams, to_json
from prod_decode.errors import ProdError, brief, closest, did_you_mean
from prod_decode.version import __version__
from prod_train.command import data, evaluate, probe, push
from prod_train.config.config import Config, flag, given_fields, make_config, plain_type, saved_config
from prod_train.run.output import is_first

_log = logging.getLogger(__name__)

USELESS = 1

# Of a run that names neither a recipe nor a method: the best that is known for who does not know which.
DEFAULT_RECIPE = "balanced"

STATUSES = {
    0: "done",
    USELESS: "trained, but no checkpoint that is left obeys the stop rules, or the result has collapsed",
    USAGE: "a mistake, told in one line",
}

_GROUPS = {
    "what": "what to train",
    "data": "data",
    "method": "method",
    "training": "training",
    "evaluation": "evaluation, stop rules and checkpoints",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns one of `STATUSES`."""
    with standard_streams():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    try:
        options, unknown = build_parser().parse_known_args(argv)
    except SystemExit as leaving:
        if leaving.code != USAGE:
            raise
        return USAGE
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for package in ("prod_train", "prod_decode"):
        logging.getLogger(package).setLevel(logging.INFO)
    return exit_status(f"prod-train {options.command}", lambda: _told(lambda: _called(options, unknown)))


def _called(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Run the sub-command; `run` and `check` tell what they do not know with all that is wrong with the values."""
    if "config" in options:
        return int(options.run(options, unknown))
    if unknown:
        raise ProdError(f"unexpected argument {brief(unknown[0])!r}; see `prod-train {options.command} --help`")
    return int(options.run(options))


def _told(run: Callable[[], int]) -> int:
    """Run a command; a package that is missing, or a file that the system refuses, is a mistake told in one line."""
    try:
        return run()
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package in ("prod_decode", "prod_train"):
            raise
        raise ProdError(
            f"expected the package {package}, it is not installed: pip install 'prod-code-unlearning[train,gguf]'"
        ) from None
    except OSError as error:
        if error.filename is None:
            raise
        raise ProdError(f"cannot open {brief(os.fsdecode(error.filename))}: {error.strerror}") from None


def build_parser() -> argparse.ArgumentParser:
    """The parser of every sub-command; the fields of `Config` are its flags."""
    parser = Parser(
        prog="prod-train",
        description="Train a code model to forget prohibited code.",
        statuses=STATUSES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"prod-train {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (data, probe, evaluate, push):
        module.add_to(commands)
    for name, text, function in (
        ("run", "train, evaluate, and write an adapter (or model), a model card, report.json and report.html", _run),
        ("check", "a dry run: configuration, data, targets, memory and one step; writes nothing", _check),
    ):
        add = commands.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}.", allow_abbrev=False)
        add.add_argument(
            "config", nargs="?", metavar="CONFIG.yaml", help="values for the flags below; a flag given here wins"
        )
        _add_fields(add)
        add.add_argument(
            "--push-to-hub",
            metavar="OWNER/NAME",
            help="upload the result to a private repository of the hub, as `prod-train push` does",
        )
        add.add_argument("--json", action="store_true", help="print one JSON object")
        add.set_defaults(run=function)
        add.keeps_unknown = True  # told with all that is wrong with the values
    add = commands.add_parser(
        "merge",
        help="write a whole model from an adapter",
        description="Write a whole model from an adapter.",
        allow_abbrev=False,
    )
    add.add_argument("adapter", metavar="ADAPTER", help="the output directory of `run`, or the YAML file of that run")
    add.add_argument("--output", required=True, metavar="DIR", help="directory to write; it must not exist")
    add.add_argument("--model", metavar="M", help="the base, if it is not where the adapter says")
    add.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="default: what the run measured in; without a run, the base's",
    )
    add.add_argument(
        "--untie",
        action="store_true",
        help="write an output head that shares its weight with the embeddings as a weight of its own, which an adapter "
        "on either needs",
    )
    add.add_argument(
        "--no-evaluate",
        action="store_true",
        help="do not measure the result on the data of the run; logits are compared",
    )
    add.set_defaults(run=_merge)
    return parser


def _add_fields(parser: argparse.ArgumentParser) -> None:
    from typing import get_type_hints

    kinds = get_type_hints(Config)
    groups = {name: parser.add_argument_group(title) for name, title in _GROUPS.items()}
    for option in dataclasses.fields(Config):
        kind, _ = plain_type(kinds[option.name])
        about = option.metadata
        # argparse takes a help text for a %-format.
        arguments: dict[str, Any] = {"help": about["help"].replace("%", "%%"), "default": argparse.SUPPRESS}
        if kind is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        elif about["choices"]:
            arguments["metavar"] = "{" + ",".join(about["choices"]) + "}"
        else:
            arguments["metavar"] = about["metavar"]
            arguments |= {"nargs": "+"} if kind is tuple else {}
        groups[about["group"]].add_argument(flag(option.name), **arguments)


def _configuration(options: argparse.Namespace, unknown: Sequence[str]) -> tuple[Config, frozenset[str]]:
    """The run that is asked for, and which of its fields were given."""
    names = {option.name for option in dataclasses.fields(Config)}
    given = {name: value for name, value in vars(options).items() if name in names}
    problems = [_unknown(word, names, options.command) for word in unknown if word.startswith("-")] or [
        f"unexpected argument {brief(word)!r}" for word in unknown
    ]
    # The value of a flag that is not known looks like the name of a file.
    file = options.config if not problems or Path(options.config or "").is_file() else None
    try:
        config = make_config(file, given, recipe=DEFAULT_RECIPE)
    except ProdError as error:
        # What a misspelt flag was meant to give is not missing as well.
        meant = tuple(f"{name}: " for word in unknown if (name := _meant(word, names)))
        mistakes = [one for one in error.mistakes if not (one.startswith(meant) and one.endswith("it is missing"))]
        raise ProdError(*problems, *mistakes) from None
    if problems:
        raise ProdError(*problems)
    found = given_fields(file, given)
    if config.recipe is not None and "recipe" not in found and is_first():
        _log.info("neither --recipe nor --method is given: this is --recipe %s", config.recipe)
    if options.push_to_hub is not None:
        push.expect_pushable(options.push_to_hub, config.model, is_adapter=config.tuning == "lora")
    return config, found


def _meant(word: str, names: set[str]) -> str | None:
    return closest(word.partition("=")[0], map(flag, sorted(names))) if word.startswith("-") else None


def _unknown(word: str, names: set[str], command: str) -> str:
    meant = did_you_mean(word.partition("=")[0], map(flag, sorted(names)))
    return f"unknown flag {brief(word)}{meant}{' See' if meant else '; see'} `prod-train {command} --help`"


def _run(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    config, given = _configuration(options, unknown)
    from prod_decode.storage.models import quiet

    quiet()
    from prod_train.rounds.run import run
    from prod_train.run.report import INTERVALS, replaced_in_words, table

    report = run(config, given, progress=sys.stderr.isatty())
    if not is_first():
        return 0
    if options.json:
        print(
            json.dumps(
                {
                    "output": str(report.output),
                    "verdict": report.verdict,
                    "recipe": report.recipe,
                    "chosen": report.chosen,
                    "stopped": report.stopped,
                    "notes": report.notes,
                    "replaced": report.replaced,
                    "collapsed": report.collapsed,
                    "before": report.before,
                    "after": report.after,
                    "history": report.history,
                }
            )
        )
    else:
        print(f"{table(report.before, report.after)}\n\n{INTERVALS}")
        if report.stopped:
            print(f"stopped: {report.stopped}")
        if report.replaced:
            print(replaced_in_words(report.replaced))
        for note in report.notes:
            print(note)
        print(report.verdict)
    if report.chosen is None:
        print(
            f"prod-train run: no checkpoint that is left obeys --max-utility-drop {config.max_utility_drop}: "
            "lower --learning-rate, add --retain, or evaluate more often with --eval-every; "
            f"{report.output} has the checkpoints",
            file=sys.stderr,
        )
        return USELESS
    what = "adapter" if config.tuning == "lora" else "model"
    print(
        f"{report.output}: the {what} after step {report.chosen}, README.md, report.json and report.html",
        file=sys.stderr,
    )
    if report.collapsed:
        print(f"prod-train run: {report.collapsed}", file=sys.stderr)
        return USELESS
    if options.push_to_hub is not None:
        _pushed(report.output, options.push_to_hub)
    return 0


def _pushed(output: Path, repo: str) -> None:
    """Upload what a run has written; it is there whatever becomes of that."""
    try:
        print(f"uploaded: {push.Push.of(output, repo).upload(public=False)}", file=sys.stderr)
    except ProdError as error:
        raise ProdError(
            f"{error}; {output} has the result: `prod-train push {output} {repo}` uploads it later"
        ) from None


def _check(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    config, given = _configuration(options, unknown)
    from prod_decode.storage.models import quiet

    quiet()
    from prod_train.rounds.check import check

    plan = check(config, given)
    if options.json:
        print(to_json(dataclasses.asdict(plan)))
        return 0
    for key, value in plan.config.items():
        print(f"{key.replace('_', '-'):24} {_plain(value)}")
    print()
    for line in plan.recipe:
        print(line)
    print("\n" if plan.recipe else "", end="")
    for name, sizes in plan.sets.items():
        print(
            f"{name:8} {sizes['rows']:,} rows, {sizes['supervised']:,} of {sizes['tokens']:,} tokens supervised, "
            f"longest {sizes['longest']:,}, truncated {sizes['truncated']:,}"
        )
    for note in plan.notes:
        print(note)
    print(f"\nThe first row to forget; supervised is what stands between << and >>:\n\n{plan.example}\n")
    if plan.replaced is not None:
        print(f"The first row with replacements written out, between << and >>:\n\n{plan.replaced}\n")
    if plan.support:
        mean, median, p99, most = (round(plan.support[name]) for name in ("mean", "median", "p99", "max"))
        print(f"tokens in a target       mean {mean}, median {median}, 99 of 100 at most {p99}, the largest {most}")
    if plan.moved:
        moved, tokens = plan.moved["moved"], plan.moved["tokens"]
        print(f"moved to replacements    at {moved:,} of {tokens:,} supervised tokens of the first rows")
    print(f"parameters               {plan.parameters:,}, trained {plan.trained:,}")
    print(f"optimizer steps          {plan.steps:,}")
    memory = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in plan.memory.items())
    print(f"memory, estimated        {memory}; in all {sum(plan.memory.values()) / 1e9:.2f} GB")
    if plan.peak is not None:
        print(f"memory, measured         {plan.peak / 1e9:.2f} GB on the GPU")
    print(f"one step                 loss {plan.step_loss:.4f}, {plan.step_seconds:.2f} s")
    print(f"time, roughly            {duration(plan.seconds)} if every step is like this one; evaluations come on top")
    print(f"disk, roughly            {plan.disk / 1e6:,.0f} MB in --output")
    return 0


def _plain(value: Any) -> str:
    """A setting as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        value = " ".join(value) or None
    return "not set" if value is None else str(value)


def _merge(options: argparse.Namespace) -> int:
    from prod_decode.storage.models import quiet

    quiet()
    from prod_train.run.merge import merge

    adapter = options.adapter
    if adapter.lower().endswith((".yaml", ".yml")):
        adapter = saved_config(Path(adapter)).output
    print(
        merge(
            adapter,
            options.output,
            model=options.model,
            dtype=options.dtype,
            untie=options.untie,
            measure=not options.no_evaluate,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
