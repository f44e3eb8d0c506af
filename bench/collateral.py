"""What a list of documents changes in code that has nothing to do with them: idioms that it bans.

Functions and modules of other packages are followed as outputs, token by token, and so are completions of HumanEval
that a model wrote. A step is *changed* if the code's own next token is banned there; an output, if any of its steps is.
No model is asked: one that would have written this code is stopped at these steps. Where it wrote greedily, an output
that is not changed is what it writes under the mask.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.corpora.walks import ROWS as ROWS_TIMED
from bench.corpora.walks import timed, tokens_of
from bench.figures import Figure, save, table
from bench.humaneval.utility import HUB_HUMANEVAL, load_completions, load_humaneval
from bench.metrics import wilson
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.blocklist.sources import read_texts
from prod_decode.command.options import Parser, positive
from prod_decode.command.terminal import exit_status
from prod_decode.errors import ProdError
from prod_decode.harness.stops import stop_at
from prod_decode.match.matcher import Matcher
from prod_decode.storage.artifact import require_output
from prod_decode.storage.models import load_tokenizer

# Characters of a function; shorter ones are one idiom.
SHORTEST_FUNCTION = 200
# Outputs that are followed beside each other.
ROWS = 50
# Steps whose time is taken: an output as long as the modules.
STEPS = 2000


@dataclass(frozen=True, slots=True)
class Setting:
    """How documents are prohibited.

    Attributes:
        max_quote: characters.
        budget: characters, or None.
    """

    max_quote: int
    budget: int | None

    @property
    def name(self) -> str:
        """Both in words."""
        return f"max_quote {self.max_quote}" + (f", budget {self.budget}" if self.budget else "")


@dataclass(frozen=True, slots=True)
class Changed:
    """What one setting changes in outputs of one kind.

    Attributes:
        kind: `functions`, `modules` or `completions`.
        max_quote: of the setting; so is the next.
        budget: or None.
        documents: in the list.
        characters: of the documents, as they are.
        outputs: that were followed.
        steps: their tokens, but for prompts.
        changed_steps: those whose own token is banned.
        changed_outputs: those with such a step.
    """

    kind: str
    max_quote: int
    budget: int | None
    documents: int
    characters: int
    outputs: int
    steps: int
    changed_steps: int
    changed_outputs: int


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table, and write a JSON line for each of its rows with `--out`."""
    parser = Parser(prog="python -m bench collateral", description=__doc__)
    parser.add_argument("listed", metavar="DIR", help="documents that are prohibited: Python files")
    parser.add_argument("code", nargs="+", metavar="CODE", help="directories of other Python code")
    parser.add_argument("--settings", default="120,60,24,120+240,60+240", metavar="K[+B],...")
    parser.add_argument("--functions", type=positive(int), default=500, metavar="N")
    parser.add_argument("--modules", type=positive(int), default=50, metavar="N")
    parser.add_argument("--module-tokens", type=positive(int), default=2000, metavar="N", help="of a module, the first")
    parser.add_argument("--tokenizer", default="bundled", metavar="M")
    parser.add_argument("--humaneval", default=HUB_HUMANEVAL, metavar="DATA", help="the problems of --completions")
    parser.add_argument("--completions", metavar="FILE", help="JSON lines with task_id and completion, greedy ones")
    parser.add_argument("--out", metavar="FILE", help="write JSON lines there")
    parser.add_argument(
        "--speed", metavar="FILE", help="also measure what a token costs under each setting, and write it there"
    )
    options = parser.parse_args(argv)
    return exit_status("bench collateral", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    settings = [_setting(text) for text in options.settings.split(",")]
    for file in filter(None, (options.out, options.speed)):
        require_output(file, replaces=None)
    tokenizer = load_tokenizer(options.tokenizer)
    listed = [text for text in _python([options.listed]) if text.strip()]
    modules = list(_python(options.code))
    whole = (_encoded(tokenizer, text) for text in _spread(modules, 4 * options.modules))
    long = (tokens[: options.module_tokens] for tokens in whole if len(tokens) >= options.module_tokens)
    outputs: dict[str, tuple[list[list[int]], list[int] | None]] = {
        "functions": ([_encoded(tokenizer, text) for text in _spread(_functions(modules), options.functions)], None),
        "modules": (list(islice(long, options.modules)), None),
    }
    if options.completions:
        outputs["completions"] = _completions(tokenizer, options.humaneval, options.completions)
    walk = tokens_of(tokenizer, modules, max(ROWS_TIMED) * (STEPS + 1)) if options.speed else None
    found: list[Changed] = []
    speeds: list[Figure] = []
    for setting in settings:
        entries = (
            Entry(text, id=str(n), policy="quote", max_quote=setting.max_quote, budget=setting.budget)
            for n, text in enumerate(listed)
        )
        blocklist = Blocklist.compile(entries, skipped=lambda _: None)
        matcher = blocklist.bind(tokenizer)
        for kind, (texts, begins) in outputs.items():
            steps, changed = follow(matcher, texts, begins)
            one = Changed(
                kind,
                setting.max_quote,
                setting.budget,
                len(blocklist),
                sum(map(len, listed)),
                len(texts),
                steps,
                sum(changed),
                sum(map(bool, changed)),
            )
            found.append(one)
            print(_line(one), flush=True)
        if walk is None:
            continue
        for rows in ROWS_TIMED:
            speeds += timed(setting.name, "mask and advance, a token", matcher.track, walk, rows * STEPS, [rows])
    if options.speed:
        print(table(speeds))
        save(speeds, options.speed)
    if options.out:
        Path(options.out).write_text("".join(f"{json.dumps(asdict(one))}\n" for one in found))
    return 0


def follow(
    matcher: Matcher, texts: Sequence[Sequence[int]], begins: Sequence[int] | None = None
) -> tuple[int, list[int]]:
    """The steps of some outputs in all, and of each how many have their own token banned.

    Args:
        matcher: follows them.
        texts: token ids of prompts and outputs.
        begins: where each output begins; None: behind the first token.
    """
    begins = [1] * len(texts) if begins is None else begins
    lengths = [len(text) - begin for text, begin in zip(texts, begins, strict=True)]
    steps, changed = 0, [0] * len(texts)
    # The longest first, so that rows end from behind.
    order = sorted(range(len(texts)), key=lambda number: -lengths[number])
    for start in range(0, len(texts), ROWS):
        numbers = order[start : start + ROWS]
        prompts = [np.array(texts[number][: begins[number]], np.int64) for number in numbers]
        outputs = [texts[number][begins[number] :] for number in numbers]
        tracker = matcher.track()
        tracker.read(np.arange(len(numbers)), prompts, np.array(list(map(len, prompts)), np.int64))
        rows = len(numbers)
        for place in range(max(map(len, outputs), default=0)):
            while rows and len(outputs[rows - 1]) <= place:
                rows -= 1
            if rows < len(tracker):
                tracker.take(np.arange(rows))
            tokens = np.array([output[place] for output in outputs[:rows]], np.int64)
            banned_rows, banned = tracker.banned()
            for row in np.unique(banned_rows[tokens[banned_rows] == banned]).tolist():
                changed[numbers[row]] += 1
            steps += rows
            tracker.advance(tokens)
    return steps, changed


def _line(one: Changed) -> str:
    low, high = wilson(one.changed_outputs, one.outputs)
    return (
        f"{Setting(one.max_quote, one.budget).name}: of {one.outputs} {one.kind} {one.changed_outputs} changed "
        f"({one.changed_outputs / max(1, one.outputs):.3f} [{low:.3f}, {high:.3f}]); of {one.steps:,} steps "
        f"{one.changed_steps:,} ({one.changed_steps / max(1, one.steps):.1e})"
    )


def _setting(text: str) -> Setting:
    limit, plus, budget = text.partition("+")
    if not limit.isdecimal() or (plus and not budget.isdecimal()):
        raise ProdError(f"--settings: expected numbers such as 120 or 120+240, got {text!r}")
    return Setting(int(limit), int(budget) if plus else None)


def _python(folders: Iterable[str]) -> Iterator[str]:
    """The texts of Python files that can be read."""
    for path, text in read_texts(folders, skipped=lambda _: None):
        if path.suffix == ".py":
            yield text


def _functions(modules: Iterable[str]) -> Iterator[str]:
    """The functions of modules, outermost ones and methods."""
    for text in modules:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        lines = text.split("\n")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                source = "\n".join(lines[node.lineno - 1 : node.end_lineno]).strip()
                if len(source) >= SHORTEST_FUNCTION:
                    yield source


def _spread(texts: Iterable[str], count: int) -> Iterator[str]:
    """So many of them at most, from all over, each once."""
    distinct = list(dict.fromkeys(texts))
    return islice(distinct[:: max(1, len(distinct) // count)], count)


def _completions(tokenizer: Any, problems: str, path: str) -> tuple[list[list[int]], list[int]]:
    """Prompts of HumanEval with what a model wrote after them, and where that begins.

    Raises:
        ProdError: a completion is of no problem, or rows have another shape.
    """
    prompts = {problem.task_id: problem.prompt for problem in load_humaneval(problems)}
    texts, begins = [], []
    for one in load_completions(path):
        if one.task_id not in prompts:
            raise ProdError(f"{path}: expected completions of the problems of {problems}, got one of {one.task_id!r}")
        prompt = _encoded(tokenizer, prompts[one.task_id])
        texts.append([*prompt, *_encoded(tokenizer, stop_at(one.completion))])
        begins.append(len(prompt))
    return texts, begins


def _encoded(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
