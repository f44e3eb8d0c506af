"""`generate`: a model with a blocklist in the loop."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from prod_decode.command.options import load_source, positive
from prod_decode.command.terminal import note, read_stdin, to_json
from prod_decode.errors import ProdError, printable

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.command.generation import Generation
    from prod_decode.command.options import Commands
    from prod_decode.corpus.index import CorpusIndex


def add_to(commands: Commands) -> None:
    """Add the sub-commands of this module."""
    add = commands.add_parser("generate", help="continue a prompt and show where the blocklist stepped in")
    add.add_argument("--model", required=True, metavar="M", help="a hub id, a directory, a .gguf file, or `bundled`")
    add.add_argument(
        "--blocklist", required=True, metavar="FILE", help="a compiled blocklist, a corpus index, or `list:NAME`"
    )
    add.add_argument(
        "--prompt", required=True, metavar="P", help="text to continue; `-` reads standard input, `@FILE` a file"
    )
    add.add_argument("--max-new-tokens", type=positive(int), default=200, metavar="N", help="default 200")
    add.add_argument(
        "--temperature", type=positive(float, zero=True), default=0.0, metavar="T", help="0 (default) is greedy"
    )
    add.add_argument(
        "--top-p", type=positive(float, most=1), default=1.0, metavar="P", help="nucleus, up to 1; default 1"
    )
    add.add_argument("--seed", type=positive(int, zero=True, most=2**64 - 1), help="of sampling; default 0")
    add.add_argument(
        "--mode", choices=["mask", "prod"], default="mask", help="`prod`: the whole PROD distribution, nucleus included"
    )
    add.add_argument(
        "--compare",
        action="store_true",
        help="also generate without the blocklist; the tokens that were refused are shown off a terminal too",
    )
    add.add_argument("--json", action="store_true", help="as one JSON object")
    add.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> int:
    from prod_decode.blocklist.sources import decode_text, read_text
    from prod_decode.storage.models import load_model, require_name

    if options.top_p < 1 and not options.temperature:
        raise ProdError("--top-p is for sampling: expected --temperature above 0 beside it, got 0; drop one")
    if options.seed is not None and not options.temperature:
        note("no effect: --seed: it is for sampling, with --temperature above 0")
    if options.mode == "prod" and not options.temperature:
        note("no effect: --mode prod: without --temperature the likeliest token is taken, as with `mask`")
    blocklist = load_source(options.blocklist)
    prompt = options.prompt
    if prompt == "-":
        prompt = decode_text(read_stdin(), "the standard input")
    elif prompt.startswith("@"):
        prompt = read_text(prompt[1:])
    if not prompt:
        raise ProdError("expected a prompt of at least one token, got an empty one")
    if not prompt.isascii() and any("\ud800" <= c <= "\udfff" for c in prompt):
        raise ProdError("--prompt is not UTF-8 text: convert it first, or set a UTF-8 locale")
    require_name(options.model)

    from prod_decode.command.generation import generate
    from prod_decode.command.render import mark_bans, to_terminal

    model, tokenizer = load_model(options.model)
    matcher = blocklist.bind(tokenizer)
    runs: dict[str, Generation] = {}
    for name, guard in (("unprotected", None), ("protected", matcher)):
        if guard is not None or options.compare:
            runs[name] = generate(
                model,
                tokenizer,
                prompt,
                guard,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                seed=options.seed or 0,
                mode=options.mode,
            )
    if options.json:
        print(to_json({name: record(run, blocklist) for name, run in runs.items()}))
        return 0
    is_terminal = sys.stdout.isatty()
    for name, run in runs.items():
        if options.compare:
            print(f"--- {name}")
        color = is_terminal and not os.environ.get("NO_COLOR")
        # A file, or another program, gets the text; a comparison is for people, wherever it is kept.
        shown = to_terminal(mark_bans(run), color=color) if is_terminal or options.compare else printable(run.output)
        print(printable(run.prompt) + shown)
    for entry_id, count in runs["protected"].fired.most_common():
        note(f"{entry_id}: stepped in {count} time{'s' if count > 1 else ''}")
    if not runs["protected"].fired:
        note("no entry of the blocklist stepped in")
    note(f"{runs['protected'].tokens_per_second:.1f} tokens a second")
    return 0


def record(run: Generation, blocklist: Blocklist | CorpusIndex) -> dict[str, object]:
    """A run as `--json` shows it."""
    return {
        "prompt": run.prompt,
        "output": run.output,
        "bans": [
            {"at": at, "refused": refused[0], "entries": list(refused[1])}
            for at, refused in enumerate(run.refused)
            if refused is not None
        ],
        "fired": dict(run.fired),
        # A match that ends in the prompt is the user's own.
        "matches": [match._asdict() for match in blocklist.scan(run.text) if match.end > len(run.prompt)],
        "tokens": len(run.pieces),
        "seconds": run.seconds,
    }
