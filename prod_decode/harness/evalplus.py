"""Samples for EvalPlus: what a model writes after its problems, under a mask or without one.

    python -m prod_decode.harness.evalplus --model M --blocklist block.prod --problems FILE.jsonl -o samples.jsonl

Nothing of EvalPlus is needed here; it scores the file where it is installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prod_decode.command.options import Parser, positive
from prod_decode.command.terminal import Progress, exit_status, note
from prod_decode.errors import Mistakes, ProdError

PROGRAM = "prod_decode.harness.evalplus"


class Problem(NamedTuple):
    """A problem: what EvalPlus calls it, and what a model continues."""

    task_id: str
    prompt: str


class Sample(NamedTuple):
    """One answer to a problem: a whole program, the prompt and what the model wrote."""

    task_id: str
    solution: str


def read_problems(path: str) -> list[Problem]:
    """The problems of a file of JSON lines with `task_id` and `prompt`, packed with gzip if it ends in `.gz`.

    Raises:
        ProdError: it cannot be read, a line is of another form, there is none, or two problems have one name. Of
            several such lines, each is said.
    """
    from prod_decode.blocklist.sources import read_json_lines, unpacked

    mistakes, found = Mistakes(), {}
    for place, record in read_json_lines(path, unpacked(path) if path.lower().endswith(".gz") else None):
        with mistakes.caught():
            task, prompt = (_text(record, key, place) for key in ("task_id", "prompt"))
            if task in found:
                raise ProdError(f"{place}: expected each problem once, got {task!r} again: drop the copy")
            found[task] = Problem(task, prompt)
    mistakes.refuse()
    if not found:
        raise ProdError(f"{path}: expected problems, got an empty file")
    return list(found.values())


def write_samples(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    matcher: Any = None,
    *,
    samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    batch_size: int = 8,
    exempt_prompt: bool = False,
    done: Callable[[int], object] | None = None,
) -> list[Sample]:
    """The answers of a model, those to a problem one after the other.

    A program ends before the first of `harness.stops.stops_after(prompt)` in what the model wrote.

    Args:
        model: a transformers causal language model, or an adapter around one.
        tokenizer: its tokenizer.
        problems: to answer; a prompt is at least a token.
        matcher: what is prohibited; None: nothing.
        samples: answers to each problem.
        temperature: 0 is greedy.
        top_p: for sampling.
        max_new_tokens: of an answer, at most.
        seed: of the sampling. Other sizes of batches draw other samples.
        batch_size: answers written together.
        exempt_prompt: of `ProdLogitsProcessor`.
        done: told after each batch how many answers there are.

    Raises:
        ProdError: a prompt is empty, or the model has no room for an answer.
    """
    import numpy as np
    import torch

    from prod_decode.harness.continuing import continuations
    from prod_decode.harness.stops import STOPS, STOPS_OF_MODULES, stop_at, stops_after
    from prod_decode.hf import ProdLogitsProcessor

    prompts = [tokenizer(problem.prompt)["input_ids"] for problem in problems]
    _require_room(model, problems, prompts, max_new_tokens)
    order = [number for number in range(len(problems)) for _ in range(samples)]
    # Rows of a batch have the same stops and about the same length.
    order.sort(key=lambda number: (stops_after(problems[number].prompt), len(prompts[number])))
    written: dict[int, list[Sample]] = {number: [] for number in range(len(problems))}
    torch.manual_seed(seed)
    count = 0
    for stops in (STOPS, STOPS_OF_MODULES):
        alike = [number for number in order if stops_after(problems[number].prompt) == stops]
        for start in range(0, len(alike), batch_size):
            batch = alike[start : start + batch_size]
            guards = []
            if matcher is not None:
                guards = [ProdLogitsProcessor(matcher.cut_by(stops), exempt_prompt=exempt_prompt)]
            with torch.inference_mode():
                outputs = continuations(
                    model,
                    tokenizer,
                    [np.array(prompts[number], np.int64) for number in batch],
                    max_new_tokens,
                    guards,
                    temperature=temperature,
                    top_p=top_p,
                    stops=stops,
                )
            for number, output in zip(batch, outputs, strict=True):
                problem = problems[number]
                completion = stop_at(_text_after(tokenizer, prompts[number], output), stops)
                written[number].append(Sample(problem.task_id, f"{problem.prompt}{completion}\n"))
            count += len(batch)
            if done is not None:
                done(count)
    return [sample for number in range(len(problems)) for sample in written[number]]


def _text_after(tokenizer: Any, prompt: Sequence[int], output: Sequence[int]) -> str:
    """What the output adds to the text; alone, some tokenizers decode it without the space that it begins with."""
    before, after = (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in ([*prompt], [*prompt, *output])
    )
    return str(after[len(before) :])


def _require_room(model: Any, problems: Sequence[Problem], prompts: Sequence[Sequence[int]], wanted: int) -> None:
    mistakes = Mistakes()
    places = getattr(model.config, "max_position_embeddings", None)
    for problem, prompt in zip(problems, prompts, strict=True):
        if not prompt:
            mistakes.add(f"{problem.task_id}: expected a prompt of at least one token, got an empty one")
        elif places is not None and len(prompt) + wanted > places:
            mistakes.add(
                f"{problem.task_id}: the model has room for {max(0, places - len(prompt))} tokens behind this prompt, "
                f"got --max-new-tokens {wanted}: ask for fewer"
            )
    mistakes.refuse()


def _text(record: dict[str, Any], key: str, place: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        got = type(value).__name__ if key in record else f"the keys {', '.join(sorted(record)) or '(none)'}"
        raise ProdError(f"{place}: expected {key!r} as a string, got {got}")
    return value


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(
        prog=f"python -m {PROGRAM}",
        description="Answer EvalPlus's problems with a model, under blocklists or without, for evalplus.evaluate.",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="M", help="a hub id, a directory, a .gguf file, or `bundled`")
    add(
        "--blocklist",
        action="extend",
        nargs="+",
        metavar="FILE",
        help="compiled blocklists, corpus indices or `list:NAME`; all of them count. Without, nothing is masked",
    )
    add("--problems", required=True, metavar="FILE", help="JSON lines with task_id and prompt; .gz is unpacked")
    add("-o", "--output", required=True, metavar="FILE", help="the samples, JSON lines with task_id and solution")
    add("--force", action="store_true", help="write over a file that is there")
    add("--samples", type=positive(int), default=1, metavar="N", help="answers to each problem; default 1")
    add("--temperature", type=positive(float, zero=True), default=0.0, metavar="T", help="0 (default) is greedy")
    add("--top-p", type=positive(float, most=1), default=1.0, metavar="P", help="nucleus, up to 1; default 1")
    add("--max-new-tokens", type=positive(int), default=512, metavar="N", help="of an answer; default 512")
    add("--seed", type=positive(int, zero=True, most=2**64 - 1), default=0, metavar="S", help="of sampling; default 0")
    add("--batch-size", type=positive(int), default=8, metavar="N", help="answers written together; default 8")
    add(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of the weights; auto: the model's own, of a GGUF file bfloat16 on a GPU, else float32",
    )
    add("--exempt-prompt", action="store_true", help="let an answer repeat what its prompt quotes of documents")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the samples; returns the exit status."""
    options = build_parser().parse_args(argv)
    return exit_status(PROGRAM, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from prod_decode.storage.artifact import require_new
    from prod_decode.storage.files import write_whole
    from prod_decode.storage.models import load_model, require_name

    if not options.temperature and (options.samples > 1 or options.top_p < 1):
        given = f"--samples {options.samples}" if options.samples > 1 else f"--top-p {options.top_p}"
        raise ProdError(f"{given} is for sampling: expected --temperature above 0 beside it, got 0; drop one")
    names = options.blocklist or []
    require_new(options.output, [options.problems, *names], force=options.force)
    problems = read_problems(options.problems)
    require_name(options.model)
    matcher = None
    sources = []
    if names:
        from prod_decode.harness.scoring import load_sources

        sources = load_sources(names)
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    if sources:
        from prod_decode.hf import ProdLogitsProcessor

        matcher = ProdLogitsProcessor(sources, tokenizer).matcher
    samples = write_samples(
        model,
        tokenizer,
        problems,
        matcher,
        samples=options.samples,
        temperature=options.temperature,
        top_p=options.top_p,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        batch_size=options.batch_size,
        exempt_prompt=options.exempt_prompt,
        done=Progress("answering", "answers", len(problems) * options.samples),
    )
    with write_whole(options.output) as file:
        for sample in samples:
            file.write(f"{json.dumps(sample._asdict())}\n".encode())
    masked = f"masked by {', '.join(names)}" if names else "without a blocklist"
    note(f"{Path(options.output)}: {len(samples)} samples for {len(problems)} problems, {masked}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
