"""`generate`: a model with a blocklist in the loop."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING

from prod_decode.command.options import Once, load_source, positive
from prod_decode.command.terminal import note, read_stdin, to_json
from prod_decode.errors import ProdError, printable

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.command.generation import Generation
    from prod_decode.command.options import Commands
    from prod_decode.corpus.index import CorpusIndex
    from prod_decode.serving.audit_log import AuditLog


def add_to(commands: Commands) -> None:
    """Add the sub-commands of this module."""
    add = commands.add_parser("generate", help="continue a prompt and show where the blocklist stepped in")
    add.add_argument("--model", required=True, metavar="M", help="a hub id, a directory, a .gguf file, or `bundled`")
    add.add_argument(
        "--blocklist",
        action=Once,
        required=True,
        metavar="FILE",
        help="a compiled blocklist, a corpus index, or `list:NAME`",
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
    add.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of the weights; auto: the model's own, of a GGUF file bfloat16 on a GPU, else float32",
    )
    add.add_argument(
        "--exempt-prompt",
        action="store_true",
        help="let the output repeat what the prompt quotes of documents",
    )
    add.add_argument(
        "--audit-log",
        metavar="FILE",
        help="add a line of JSON to this file for whatever is banned, quoted, exempted or ended",
    )
    add.add_argument("--audit-text", action="store_true", help="in the audit log, also what the model wanted or wrote")
    add.add_argument("--json", action="store_true", help="as one JSON object")
    add.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> int:
    from prod_decode.blocklist.sources import decode_text, read_text
    from prod_decode.serving.audit_log import AuditLog
    from prod_decode.storage.models import require_name

    if options.top_p < 1 and not options.temperature:
        raise ProdError("--top-p is for sampling: expected --temperature above 0 beside it, got 0; drop one")
    if options.seed is not None and not options.temperature:
        note("no effect: --seed: it is for sampling, with --temperature above 0")
    if options.mode == "prod" and not options.temperature:
        note("no effect: --mode prod: without --temperature the likeliest token is taken, as with `mask`")
    if options.audit_text and not options.audit_log:
        note("no effect: --audit-text: it is for --audit-log FILE")
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
    with nullcontext() if options.audit_log is None else AuditLog(options.audit_log, text=options.audit_text) as log:
        return _run(options, blocklist, prompt, log)


def _run(options: argparse.Namespace, blocklist: Blocklist | CorpusIndex, prompt: str, log: AuditLog | None) -> int:
    from prod_decode.command.generation import generate
    from prod_decode.command.render import mark_bans, to_terminal
    from prod_decode.storage.models import load_model

    model, tokenizer = load_model(options.model, dtype=options.dtype)
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
                exempt_prompt=options.exempt_prompt,
                on_hit=log,
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
    _tell(runs["protected"])
    note(f"{runs['protected'].tokens_per_second:.1f} tokens a second")
    return 0


def _tell(run: Generation) -> None:
    """What happened, a line each."""
    for entry_id, count in run.fired.most_common():
        note(f"{entry_id}: stepped in {count} time{'s' if count > 1 else ''}")
    if beside := run.banned_beside:
        more = f"{len(beside)} {'more ' if run.fired else ''}step{'s' if len(beside) > 1 else ''}"
        note(
            f"banned although the likeliest token was allowed: {sum(beside.values()):.2f} of probability in all, at "
            f"{more}"
        )
    quoted = {hit.entry: hit for hit in run.hits if hit.kind == "quoted"}
    reached = {hit.entry for hit in run.hits if hit.kind == "budget reached"}
    for entry, hit in quoted.items():
        then = ", which is reached" if entry in reached else ""
        note(f"{entry}: quoted {hit.characters} characters, of a budget of {hit.budget}{then}")
    for entry, count in Counter(hit.entry for hit in run.hits if hit.kind == "exempted").items():
        note(f"{entry}: let through {count} time{'s' if count > 1 else ''}, since the prompt quotes it")
    if run.is_ended_by_force:
        note("ended by force: every token was banned")
    if not run.fired and not run.hits:
        note("no entry of the blocklist stepped in")


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
        # As `AuditLog` writes them; `banned_beside`: at steps whose likeliest token was allowed.
        "hits": [hit.as_dict() for hit in run.hits],
        "banned_beside": {"steps": len(run.banned_beside), "mass": sum(run.banned_beside.values())},
        "ended_by_force": run.is_ended_by_force,
        # A match that ends in the prompt is the user's own.
        "matches": [match._asdict() for match in blocklist.scan(run.text) if match.end > len(run.prompt)],
        "tokens": len(run.pieces),
        "seconds": run.seconds,
    }
