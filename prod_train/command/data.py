"""`data`: rows to forget, to retain and to hold out, from source files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prod_decode.command.options import positive
from prod_decode.command.terminal import note, to_json
from prod_decode.errors import Mistakes
from prod_train.command.rows import require_rows_output, write_rows

if TYPE_CHECKING:
    from prod_decode.command.options import Commands
    from prod_train.data.sets import Cut

_PLACES = 3


def add_to(commands: Commands) -> None:
    """Add the sub-command."""
    add = commands.add_parser(
        "data",
        help="make the rows to forget, to retain and to hold out from source files",
        description="Make the rows to forget, to retain and to hold out from source files.",
        allow_abbrev=False,
    )
    add.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="code to forget: files, and directories, of which source files are read (known by their suffixes). Python "
        "is cut into functions, classes and what stands between them, any other language into blocks; what is longer "
        "than --longest is cut further",
    )
    add.add_argument("-o", "--output", required=True, metavar="OUT", help="the rows to forget: a .jsonl file to write")
    add.add_argument(
        "--retain-from",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="code that the model shall go on writing: files and directories, of which rows to retain are made. Files "
        "of SRC are left out, and so are near copies of a row to forget",
    )
    add.add_argument(
        "--retain-output", metavar="OUT", help="the rows to retain (default: retain.jsonl beside --output)"
    )
    add.add_argument(
        "--holdout",
        type=positive(int),
        default=0,
        metavar="N",
        help="so many rows of files of --retain-from are held out: drawn at random, whole files as far as they fit "
        "(default: none)",
    )
    add.add_argument(
        "--holdout-output", metavar="OUT", help="the rows held out (default: holdout.jsonl beside --output)"
    )
    add.add_argument(
        "--prompt",
        choices=["signature", "opening"],
        default="signature",
        help="what the model is given of a piece. signature: what stands before the body of a function or class, or "
        "the first lines of a block through one that ends in `{` or `:`; opening: the first half, cut at a space, as "
        "in the paper (default signature; what has none is cut in halves)",
    )
    add.add_argument(
        "--shortest",
        type=positive(int),
        default=60,
        metavar="N",
        help="characters of a completion, layout left out; shorter ones are left out (default 60)",
    )
    add.add_argument(
        "--longest",
        type=positive(int),
        default=2000,
        metavar="N",
        help="characters of a piece; a longer one is cut into parts of whole lines (default 2000)",
    )
    add.add_argument(
        "--rows", type=positive(int), metavar="N", help="to forget at most, drawn at random (default: all)"
    )
    add.add_argument(
        "--retain-rows", type=positive(int), metavar="N", help="to retain at most, drawn at random (default: all)"
    )
    add.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files and directories, as `prod-decode scan --exclude` does. Give it again for another pattern",
    )
    add.add_argument(
        "--seed", type=positive(int, zero=True), default=0, metavar="N", help="of what is drawn; default 0"
    )
    add.add_argument("--force", action="store_true", help="write over files that are there")
    add.add_argument("--json", action="store_true", help="print one JSON object, with all that was left out")
    add.set_defaults(run=_data)


def _data(options: argparse.Namespace) -> int:
    from prod_decode.blocklist.selection import Selection
    from prod_train.data.documents import Left, read_documents
    from prod_train.data.sets import Wanted, make_sets

    outputs = _outputs(options)
    left = Left()
    selections = [Selection(options.exclude), Selection(options.exclude)]
    forget, free = (
        read_documents(paths, options.longest, left, selection=selection)
        for paths, selection in zip((options.sources, options.retain_from), selections, strict=True)
    )
    wanted = Wanted(
        options.prompt == "signature",
        options.shortest,
        options.longest,
        options.rows,
        options.retain_rows,
        options.holdout,
        options.seed,
    )
    sets = make_sets(forget, free, wanted, left)
    write_rows({outputs[name]: (cut.record() for cut in sets[name]) for name in outputs})
    if options.json:
        print(to_json({"sets": {name: _about(sets[name], outputs[name]) for name in outputs}, "told": left.places}))
    else:
        _print_table([(name, _about(sets[name], outputs[name])) for name in outputs])
    for line in left.lines(_PLACES):
        note(line)
    for pattern in selections[0].unused():
        if pattern in selections[1].unused():
            note(f"no effect: --exclude {pattern}: nothing was excluded by it")
    return 0


def _outputs(options: argparse.Namespace) -> dict[str, str]:
    """The file of each set that is made.

    Raises:
        ProdError: it cannot or may not be written, or options contradict each other.
    """
    mistakes = Mistakes()
    if not options.retain_from:
        for flag, given in (
            ("--holdout", options.holdout),
            ("--retain-output", options.retain_output),
            ("--retain-rows", options.retain_rows),
        ):
            if given:
                mistakes.add(
                    f"{flag}: expected --retain-from beside it, with code that shall stay, got none: name some"
                )
    if options.holdout_output and not options.holdout:
        mistakes.add("--holdout-output: expected --holdout beside it, the number of rows, got none: add it")
    beside = Path(options.output).parent
    outputs = {"forget": options.output}
    if options.retain_from:
        outputs["retain"] = options.retain_output or str(beside / "retain.jsonl")
    if options.holdout:
        outputs["holdout"] = options.holdout_output or str(beside / "holdout.jsonl")
    for output in outputs.values():
        with mistakes.caught():
            require_rows_output(output, [*options.sources, *options.retain_from], force=options.force)
    if len({os.path.realpath(output) for output in outputs.values()}) < len(outputs):
        mistakes.add(f"expected a file for each set, got {', '.join(outputs.values())}: name others")
    mistakes.refuse()
    return outputs


def _about(cuts: Sequence[Cut], output: str) -> dict[str, str | int]:
    return {
        "rows": len(cuts),
        "files": len({cut.source for cut in cuts}),
        "characters": sum(len(cut.prompt) + len(cut.completion) for cut in cuts),
        "output": output,
    }


def _print_table(sets: Sequence[tuple[str, Mapping[str, str | int]]]) -> None:
    print(f"{'set':8} {'rows':>8} {'files':>8} {'characters':>12}  written to")
    for name, about in sets:
        print(f"{name:8} {about['rows']:8,} {about['files']:8,} {about['characters']:12,}  {about['output']}")
