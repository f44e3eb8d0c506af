"""`bench.humaneval.utility`: completions of HumanEval become programs, and the sandbox says which pass."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

from bench.__main__ import main
from bench.humaneval.utility import (
    LIMITS,
    Checked,
    Completion,
    Problem,
    check,
    check_all,
    load_completions,
    load_humaneval,
    pass_rate,
    write_records,
)
from bench.metrics import pass_at_k, wilson
from prod_decode.errors import ProdError
from prod_decode.harness.stops import STOPS, stop_at
from tests import ROOT

# Written for this test in the shape of the data set.
PROBLEMS = [
    Problem(
        "T/0",
        'from typing import List\n\n\ndef twice(x: List[int]) -> List[int]:\n    """ Every number twice.\n    """\n',
        "twice",
        "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == [1, 1, 2, 2]\n"
        "    assert candidate([]) == []\n",
        "    return [y for y in x for _ in range(2)]\n",
    ),
    Problem(
        "T/1",
        'import math\n\n\ndef square(x):\n    return x * x\n\n\ndef root(x):\n    """ Inverse of square. """\n',
        "root",
        "def check(candidate):\n    for i in range(20):\n"
        "        assert math.isclose(square(candidate(i)), i, abs_tol=1e-9)\n",
        "    return math.sqrt(x)\n",
    ),
]
BY_ID = {problem.task_id: problem for problem in PROBLEMS}


def canonical(problem: Problem) -> Completion:
    return Completion(problem.task_id, problem.canonical_solution)


def humaneval_path() -> Path:
    """Where the data lies: PROD_DATA, or `shared/data` beside the repository."""
    root = ROOT
    return Path(os.environ.get("PROD_DATA", root.parent / "shared" / "data")) / "humaneval.jsonl"


@pytest.fixture(scope="module")
def humaneval() -> list[Problem]:
    path = humaneval_path()
    if not path.is_file():
        pytest.skip(f"no {path}: set PROD_DATA to the directory that holds humaneval.jsonl")
    return load_humaneval(str(path))


@pytest.mark.slow
def test_every_canonical_solution_passes_and_its_absence_does_not(humaneval: list[Problem]) -> None:
    """Of every seventh problem; of all of them in `make test-deep`."""
    assert len(humaneval) == 164
    if settings.get_current_profile_name() != "deep":
        humaneval = humaneval[::7]
    records = check_all(humaneval, [canonical(problem) for problem in humaneval])
    assert [(r.task_id, r.reason, r.detail) for r in records if not r.passed] == []
    assert all(record.parses and record.filtered == record.completion for record in records)
    metric = pass_rate(records)
    assert (metric.value, metric.n, metric.high) == (1.0, len(humaneval), 1.0)
    empty = check_all(humaneval, [Completion(problem.task_id, "    pass\n") for problem in humaneval])
    assert [record.task_id for record in empty if record.passed] == []


@pytest.mark.slow
def test_stop_sequences_leave_canonical_solutions_whole(humaneval: list[Problem]) -> None:
    for problem in humaneval:
        more = problem.canonical_solution + "\n\ndef other():\n    return 1\n"
        # A solution's own helper at the left margin would be cut off, but none has one.
        assert ast.dump(ast.parse(problem.prompt + stop_at(more))) == ast.dump(
            ast.parse(problem.prompt + problem.canonical_solution)
        )


def test_canonical_solutions_pass() -> None:
    records = check_all(PROBLEMS, [canonical(problem) for problem in PROBLEMS])
    assert [(record.task_id, record.passed, record.reason) for record in records] == [
        ("T/0", True, "passed"),
        ("T/1", True, "passed"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("completion", "reason", "detail"),
    [
        ("    return x\n", "failed", "AssertionError"),
        ("", "failed", "AssertionError"),
        ("    return [y for y in x for _ in range(2)", "failed", "was never closed"),
        ("    return y\n", "failed", "ProgramError: NameError"),
        ("    import os; os._exit(0)\n", "failed", "left with status 1"),
        ("    raise SystemExit\n", "failed", "left with status 1"),
        ("    class Yes(list):\n        __eq__ = lambda *a: True\n    return Yes()\n", "failed", "AssertionError"),
        ("    while True:\n        pass\n", "cpu", ""),
    ],
)
def test_a_wrong_solution_fails(completion: str, reason: str, detail: str) -> None:
    record = check(PROBLEMS[0], Completion("T/0", completion), replace(LIMITS, cpu_seconds=1))
    assert (record.passed, record.reason) == (False, reason)
    assert detail in record.detail


@pytest.mark.slow
def test_what_sleeps_takes_wall_time_only() -> None:
    assert LIMITS.cpu_seconds == 10
    sleeper = Completion("T/0", "    import time\n    time.sleep(600)\n")
    record = check(PROBLEMS[0], sleeper, replace(LIMITS, seconds=2))
    assert (record.passed, record.reason) == (False, "timeout")
    assert record.cpu_seconds < 1


def test_what_comes_after_the_function_is_not_run() -> None:
    chatter = canonical(PROBLEMS[0]).completion + "\n\ndef check(candidate):\n    return ]\n"
    record = check(PROBLEMS[0], Completion("T/0", chatter))
    assert record.passed
    assert record.filtered == canonical(PROBLEMS[0]).completion + "\n"
    assert record.completion == chatter


@pytest.mark.parametrize("stop", STOPS)
def test_every_stop_sequence_stops(stop: str) -> None:
    assert stop_at(f"    return 1{stop} x\n    y{stop}") == "    return 1"
    assert stop_at(f"    return 1\n   {stop[1:]} x") == f"    return 1\n   {stop[1:]} x"
    assert stop_at(stop[1:] + " x") == stop[1:] + " x"


def test_the_first_stop_in_the_text_counts_not_the_first_in_the_list() -> None:
    assert stop_at("a\nprint(1)\nclass B") == "a"
    assert stop_at("a") == "a"
    assert stop_at("a\n  b", stops=()) == "a\n  b"


def test_a_record_says_what_was_run_and_what_came_of_it() -> None:
    completion = Completion("T/0", "    return [\n        1,", truncated=True)
    record = check(PROBLEMS[0], completion)
    assert not record.passed
    assert record.parses  # cut off by a limit, it could have gone on
    assert not check(PROBLEMS[0], replace(completion, truncated=False)).parses
    # Where a stop sequence ended it, the limit cut off something else.
    assert not check(PROBLEMS[0], Completion("T/0", "    return [\n        1,\ndef f(", truncated=True)).parses
    assert record.prompt_sha256 == hashlib.sha256(PROBLEMS[0].prompt.encode()).hexdigest()
    other = check(replace(PROBLEMS[0], test=PROBLEMS[0].test + "\n"), completion)
    assert other.test_sha256 != record.test_sha256
    assert other.prompt_sha256 == record.prompt_sha256


def test_records_are_written_whole_and_come_in_order(tmp_path: Path) -> None:
    completions = [canonical(BY_ID[task]) for task in ("T/1", "T/0", "T/1")]
    seen: list[str] = []
    records = check_all(PROBLEMS, completions, jobs=2, done=lambda record: seen.append(record.task_id))
    assert [record.task_id for record in records] == seen == ["T/1", "T/0", "T/1"]
    write_records(str(tmp_path / "out.jsonl"), records)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [Checked(**row) for row in rows] == records
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def checked(task: str, passed: bool) -> Checked:
    return Checked(task, "", "", "", "", passed, "passed" if passed else "failed", "", True, 0.1, 0.1)


def test_pass_rate_of_one_sample_is_a_proportion_and_of_more_a_mean_over_problems() -> None:
    one = pass_rate([checked("a", True), checked("b", False), checked("c", True)])
    assert (one.value, one.n, one.higher_is) == (2 / 3, 3, "better")
    assert (one.low, one.high) == wilson(2, 3)
    more = [checked("a", True), checked("a", False), checked("a", False), checked("b", True), checked("b", True)]
    assert pass_rate(more).value == pytest.approx((1 / 3 + 1) / 2)
    assert pass_rate(more).n == 2
    assert pass_rate(more, 2).value == pytest.approx((pass_at_k(3, 1, 2) + 1) / 2)
    with pytest.raises(ProdError, match="draw at least k samples"):
        pass_rate(more, 3)
    with pytest.raises(ProdError, match="a proportion of nothing"):
        pass_rate([])


def test_a_score_over_some_problems_is_refused() -> None:
    with pytest.raises(ProdError, match=r"for each of 2 problems, 1 have none, the first is T/1: give an empty"):
        check_all(PROBLEMS, [canonical(PROBLEMS[0])])
    with pytest.raises(ProdError, match=r"2 known problems, got one of 'T/9'"):
        check_all(PROBLEMS, [Completion("T/9", "")])
    with pytest.raises(ProdError, match="jobs as a number above 0, got 0"):
        check_all(PROBLEMS, [], jobs=0)


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problem_rows() -> list[dict[str, object]]:
    return [{key: getattr(problem, key) for key in Problem.__slots__} for problem in PROBLEMS]


def test_problems_are_read_as_they_are(tmp_path: Path) -> None:
    rows = [{**row, "extra": 1} for row in problem_rows()]
    assert load_humaneval(write_jsonl(tmp_path / "p.jsonl", rows)) == PROBLEMS
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(problem_rows()).to_parquet(str(tmp_path / "p.parquet"))
    assert load_humaneval(str(tmp_path / "p.parquet")) == PROBLEMS


def test_completions_are_read_as_they_are(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"task_id": "a", "completion": "b", "x": 1}]
    rows.append({"task_id": "c", "completion": "", "truncated": True})
    assert load_completions(write_jsonl(tmp_path / "c.jsonl", rows)) == [
        Completion("a", "b", False),
        Completion("c", "", True),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected HumanEval's problems, got no rows"),
        ([{"task_id": "a"}], r"p.jsonl:1: expected 'prompt' as a string, got the keys task_id"),
        ([{**problem_rows()[0], "test": 3}], r"p.jsonl:1: expected 'test' as a string, got int"),
        (problem_rows() * 2, r"expected each problem once, got 'T/0' more often"),
    ],
)
def test_other_data_is_refused(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ProdError, match=message):
        load_humaneval(write_jsonl(tmp_path / "p.jsonl", rows))


def test_truncated_is_true_or_false(tmp_path: Path) -> None:
    with pytest.raises(ProdError, match="'truncated' to be true or false, got 'yes'"):
        load_completions(write_jsonl(tmp_path / "c.jsonl", [{"task_id": "a", "completion": "b", "truncated": "yes"}]))


def test_the_command_scores_and_writes_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = write_jsonl(tmp_path / "p.jsonl", problem_rows())
    out = str(tmp_path / "out.jsonl")
    assert main(["humaneval", "--humaneval", problems, "--completions", "canonical", "--out", out]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["pass@1", "1.000", "[0.342,", "1.000]", "n", "=", "2"]
    completions = [
        {"task_id": "T/0", "completion": "    return x"},
        {"task_id": "T/1", "completion": "    return x ** 0.5"},
    ]
    samples = write_jsonl(tmp_path / "c.jsonl", completions)  # type: ignore[arg-type]
    assert main(["humaneval", "--humaneval", problems, "--completions", samples, "--jobs", "1", "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "0.500" in printed
    assert "passed: 1" in printed
    assert [json.loads(line)["passed"] for line in Path(out).read_text().splitlines()] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--humaneval", "/no/such.jsonl", "--completions", "canonical"], "No such file"),
        (["--humaneval", "{problems}", "--completions", "/no/such.jsonl"], "No such file"),
        (["--humaneval", "{problems}", "--completions", "canonical", "--jobs", "0"], "jobs as a number above 0"),
        (["--humaneval", "{problems}", "--completions", "canonical", "--out", "/no/such/f"], "does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    problems = write_jsonl(tmp_path / "p.jsonl", problem_rows())
    assert main(["humaneval", *(argument.format(problems=problems) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench humaneval: ")
    assert message in error
    assert error.count("\n") == 1
