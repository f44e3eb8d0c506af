"""Utility: HumanEval's problems, completions made into programs, checked in the sandbox; pass@k with intervals.

Generating is not done here: a completion is text, from whatever engine, and scoring it again needs no model.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.humaneval.sandbox import Limits, choose_isolation, run
from bench.metrics import parses, pass_at_k, proportion
from prod_decode.command.options import Parser
from prod_decode.command.terminal import exit_status
from prod_decode.errors import ProdError
from prod_decode.harness.stops import stop_at
from prod_decode.storage.artifact import require_output
from prod_decode.storage.files import write_whole
from prod_train.measure.metric import Metric, bootstrap

HUB_HUMANEVAL = "openai/openai_humaneval:test"

# Ten seconds a program, as in the PROD paper; of CPU time, so that a busy machine gives the same score as an idle one.
LIMITS = Limits(seconds=60.0, cpu_seconds=10)


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of HumanEval.

    Attributes:
        task_id: such as `HumanEval/0`.
        prompt: imports, helpers, and the function's head with its docstring; a whole module by itself.
        entry_point: the function's name.
        test: source that defines `check(candidate)`.
        canonical_solution: the function's body.
    """

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote after a prompt.

    Attributes:
        task_id: of its problem.
        completion: the text, raw.
        truncated: whether a limit on tokens cut it off before the model or a stop sequence ended it.
    """

    task_id: str
    completion: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """The record of one completion.

    Attributes:
        task_id: of its problem.
        prompt_sha256: of the prompt, UTF-8.
        test_sha256: of the test and the entry point.
        completion: raw.
        filtered: what was run after the prompt.
        passed: whether the tests did.
        reason: see `bench.humaneval.sandbox.Outcome`.
        detail: likewise.
        parses: whether prompt and filtered completion do; see `bench.metrics.parses`.
        seconds: wall time.
        cpu_seconds: CPU time.
    """

    task_id: str
    prompt_sha256: str
    test_sha256: str
    completion: str
    filtered: str
    passed: bool
    reason: str
    detail: str
    parses: bool
    seconds: float
    cpu_seconds: float


def load_humaneval(name: str = HUB_HUMANEVAL) -> list[Problem]:
    """Read problems, in the order of the data set.

    Args:
        name: a `.jsonl` file, or anything else that `prod_train.data.reading.read_records` takes: a parquet file, a
            directory of `save_to_disk`, a hub name with an optional `:split`.

    Raises:
        ProdError: no such data, or rows of another shape.
    """
    from prod_decode.blocklist.sources import read_json_lines

    rows: Iterable[tuple[str, Mapping[str, Any]]]
    if name.endswith(".jsonl"):
        rows = read_json_lines(name)
    else:
        from prod_train.data.reading import read_records

        rows = read_records(name)
    problems = [Problem(*_strings(record, place, Problem.__slots__)) for place, record in rows]
    if not problems:
        raise ProdError(f"{name}: expected HumanEval's problems, got no rows")
    if twice := [task for task, count in Counter(problem.task_id for problem in problems).items() if count > 1]:
        raise ProdError(f"{name}: expected each problem once, got {twice[0]!r} more often: drop the copies")
    return problems


def load_completions(path: str) -> list[Completion]:
    """Read completions from JSON lines with `task_id`, `completion` and optionally `truncated`; other keys are left.

    Raises:
        ProdError: rows of another shape.
    """
    from prod_decode.blocklist.sources import read_json_lines

    found = []
    for place, record in read_json_lines(path):
        truncated = record.get("truncated", False)
        if not isinstance(truncated, bool):
            raise ProdError(f"{place}: expected 'truncated' to be true or false, got {truncated!r}")
        task, text = _strings(record, place, ("task_id", "completion"))
        found.append(Completion(task, text, truncated))
    return found


def _strings(record: Mapping[str, Any], place: str, keys: Iterable[str]) -> list[str]:
    values = []
    for key in keys:
        value = record.get(key)
        if not isinstance(value, str):
            got = f"{type(value).__name__}" if key in record else f"the keys {', '.join(sorted(record)) or '(none)'}"
            raise ProdError(f"{place}: expected {key!r} as a string, got {got}")
        values.append(value)
    return values


def check(problem: Problem, completion: Completion, limits: Limits = LIMITS) -> Checked:
    """Run a completion with the tests of its problem.

    The program is the prompt and the completion up to the first of `STOPS`. The tests, `check(entry_point)`, call it
    from a process of their own, where the prompt has defined what else they use; HumanEval's own script runs all in
    one process, where a program can decide the outcome instead of the tests. Only the standard library can be imported.

    Raises:
        ProdError: programs cannot be isolated here.
    """
    filtered = stop_at(completion.completion)
    # A line of its own between body and tests, whatever the completion ends with.
    program = f"{problem.prompt}{filtered}\n"
    tests = f"{problem.test}\n\ncheck({problem.entry_point})\n"
    outcome = run(program, tests, limits, function=problem.entry_point, setup=problem.prompt)
    cut = completion.truncated and filtered == completion.completion
    return Checked(
        problem.task_id,
        _sha256(problem.prompt),
        _sha256(tests),
        completion.completion,
        filtered,
        outcome.passed,
        outcome.reason,
        outcome.detail,
        parses(program[:-1] if cut else program, truncated=cut),
        outcome.seconds,
        outcome.cpu_seconds,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_all(
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    *,
    limits: Limits = LIMITS,
    jobs: int | None = None,
    done: Callable[[Checked], object] | None = None,
) -> list[Checked]:
    """Check completions, several at a time, and return their records in the order of the completions.

    Args:
        problems: every one must have a completion: a score over those that a model answered would flatter it.
        completions: one or more a problem.
        limits: of each program.
        jobs: programs at a time; default one a core. More would turn waiting into time-outs.
        done: called in this thread with each record.

    Raises:
        ProdError: completions that are missing, or of unknown problems; programs cannot be isolated here.
    """
    if jobs is not None and jobs < 1:
        raise ProdError(f"expected jobs as a number above 0, got {jobs}")
    known = {problem.task_id: problem for problem in problems}
    got = {completion.task_id for completion in completions}
    if unknown := sorted(got - set(known)):
        raise ProdError(f"expected completions of {len(known)} known problems, got one of {unknown[0]!r}")
    if missing := [task for task in known if task not in got]:
        raise ProdError(
            f"expected a completion for each of {len(known)} problems, {len(missing)} have none, the first is "
            f"{missing[0]}: give an empty completion where a model wrote nothing"
        )
    choose_isolation()  # before threads: the probe runs once
    records = []
    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        for record in pool.map(lambda each: check(known[each.task_id], each, limits), completions):
            records.append(record)
            if done is not None:
                done(record)
    return records


def pass_rate(records: Sequence[Checked], k: int = 1) -> Metric:
    """pass@k: the mean over problems of the unbiased estimate, with its 95 % interval.

    One sample a problem gives a proportion, with Wilson's interval; more give a bootstrap over problems.

    Raises:
        ProdError: no records, or a problem has fewer than k.
    """
    samples = Counter(record.task_id for record in records)
    if k == 1 and set(samples.values()) <= {1}:
        return proportion([record.passed for record in records])
    passed = Counter(record.task_id for record in records if record.passed)
    estimates = np.array([pass_at_k(n, passed[task], k) for task, n in samples.items()])
    return bootstrap(estimates, np.ones(len(estimates)), "better")


def main(argv: Sequence[str] | None = None) -> int:
    """Score completions; returns the exit status."""
    parser = Parser(prog="python -m bench humaneval", description="Score completions of HumanEval in the sandbox.")
    parser.add_argument(
        "--humaneval",
        default=HUB_HUMANEVAL,
        metavar="PATH",
        help="the problems: a .jsonl file, or a hub name (default %(default)s)",
    )
    parser.add_argument(
        "--completions",
        required=True,
        metavar="FILE",
        help="JSON lines with task_id, completion and optionally truncated; `canonical`: the data set's own solutions",
    )
    parser.add_argument("--out", metavar="FILE", help="one JSON record a completion")
    parser.add_argument("--jobs", type=int, metavar="N", help="programs at a time (default: one a core)")
    options = parser.parse_args(argv)
    return exit_status(
        "bench humaneval", lambda: _score(options.humaneval, options.completions, options.out, options.jobs)
    )


def _score(humaneval: str, source: str, out: str | None, jobs: int | None) -> int:
    from tqdm import tqdm

    if out is not None:
        require_output(out, [humaneval, source], replaces=None)
    problems = load_humaneval(humaneval)
    if source == "canonical":
        completions = [Completion(problem.task_id, problem.canonical_solution) for problem in problems]
    else:
        completions = load_completions(source)
    with tqdm(total=len(completions), disable=not sys.stderr.isatty()) as bar:
        records = check_all(problems, completions, jobs=jobs, done=lambda _: bar.update())
    if out is not None:
        write_records(out, records)
    score, parsed = pass_rate(records), proportion(record.parses for record in records)
    for name, metric in (("pass@1", score), ("parse rate", parsed)):
        print(f"{name:11} {metric.value:.3f}  [{metric.low:.3f}, {metric.high:.3f}]  n = {metric.n}")
    print(", ".join(f"{reason}: {count}" for reason, count in Counter(r.reason for r in records).most_common()))
    return 0


def write_records(path: str, records: Iterable[Checked]) -> None:
    """Write records as JSON lines, whole or not at all."""
    with write_whole(path) as file:
        for record in records:
            file.write(f"{json.dumps(asdict(record))}\n".encode())
