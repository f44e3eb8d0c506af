"""The guide does what it says: every command of its pages is run, and prints what the page shows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests import ROOT
from tests.docs.console import Step, blocks_of, difference, make_commands, matches, run_page, steps_of
from tests.examples.taught import save_taught_model
from tests.tiny import save_tiny_model

GUIDE = ROOT / "docs" / "guide"

# Their code is that of tests/prod_train/methods/test_registry.py and tests/bench/test_registries.py.
OTHERS = {"add-a-method.md", "add-to-bench.md"}

# Where a page takes minutes with `bundled`, a small model stands in for it: then numbers differ from those of the page,
# which are of a run with `bundled`, and everything else is compared.
STAND_INS = {"from-a-folder.md": "tiny", "measure.md": "tiny", "unlearn-and-serve.md": "taught"}
# With the blanks that put it below others of its column.
_NUMBER = re.compile(r" *\d(?:[\d,.]*\d)?")

# What no page runs here, in order. A block that is added to these is added here, with a reason that a reader accepts.
NOT_RUN = [
    ("a-chat-model.md", "a minute, and the same as on the page that unlearns"),
    ("a-chat-model.md", "ten minutes"),
    ("mask-a-model.md", "downloads packages"),
    ("measure.md", "downloads packages"),
    ("other-engines.md", "needs llama-cpp-python; `make test-llama` tests the adapter"),
    (
        "protect-a-repository.md",
        "needs pre-commit; the output is of a trial",
    ),
    ("serve-with-vllm.md", "downloads packages"),
    ("serve-with-vllm.md", "starts a server that runs until it is stopped"),
    ("serve-with-vllm.md", "needs the extra gguf"),
    ("serve-with-vllm.md", "starts a server that runs until it is stopped"),
    ("serve-with-vllm.md", "needs the server; tests/vllm/test_example.py checks one"),
    (
        "serve-with-vllm.md",
        "needs the server; tests/vllm/test_example.py asks one",
    ),
    ("trusted-benchmarks.md", "needs EvalPlus and a model of yours"),
    ("trusted-benchmarks.md", "downloads packages"),
    (
        "trusted-benchmarks.md",
        "needs lm_eval, a model and the data of a task; make test-eval runs a task of its own",
    ),
    ("unlearn-and-serve.md", "downloads packages"),
    ("unlearning.md", "one second, and the others need its rows"),
    ("unlearning.md", "one second, and the others need its rows"),
    ("unlearning.md", "five minutes; tests/prod_train/command/test_probe.py does the same in small"),
    ("unlearning.md", "ten minutes; tests/prod_train/command/test_probe.py does the same in small"),
    ("unlearning.md", "two minutes; tests/prod_train/command/test_probe.py does the same in small"),
]

ROWS = ("forget.jsonl", "retain.jsonl", "holdout.jsonl")

PAGES = sorted(page.name for page in GUIDE.glob("*.md") if page.name not in OTHERS)

# Ten seconds or more each, with the bundled model.
LONG = {
    "a-chat-model.md",
    "corpora.md",
    "limit-quoting.md",
    "see-what-stepped-in.md",
    "trusted-benchmarks.md",
    "unlearn-and-serve.md",
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_commands(tmp_path_factory.mktemp("commands") / "bin")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "m")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> str:
    """It knows what the page has it forget."""
    folder = tmp_path_factory.mktemp("taught")
    page = (GUIDE / "unlearn-and-serve.md").read_text()
    rows = "".join(block.text for block in blocks_of(page) if block.title in ROWS)
    (folder / "rows.jsonl").write_text(rows)
    return save_taught_model(folder, str(folder / "rows.jsonl"))


@pytest.fixture
def model(name: str, request: pytest.FixtureRequest) -> str | None:
    """What stands in for `bundled`."""
    return str(request.getfixturevalue(STAND_INS[name])) if name in STAND_INS else None


def without_numbers(step: Step) -> Step:
    return replace(step, **{of: [_NUMBER.sub("0", line) for line in getattr(step, of)] for of in ("expected", "got")})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else pytest.mark.slow) for name in PAGES]
)
def test_a_page_shows_what_its_commands_print(name: str, tmp_path: Path, commands: Path, model: str | None) -> None:
    text = (GUIDE / name).read_text()
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "results").symlink_to(ROOT / "results")
    (folder / "examples").symlink_to(ROOT / "examples")
    if model:
        (folder / "MODEL").symlink_to(model)
        steps = [without_numbers(step) for step in run_page(text.replace("bundled", "MODEL"), folder, commands)]
    else:
        steps = run_page(text, folder, commands)
    wrong = [found for step in steps if (found := difference(step))]
    assert not wrong, f"{name}:\n" + "\n".join(wrong)


def test_nothing_is_left_out_silently() -> None:
    reasons = [(name, block.reason) for name in PAGES for block in blocks_of((GUIDE / name).read_text())]
    assert [(name, reason) for name, reason in reasons if reason] == NOT_RUN


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_read_in_one_go(name: str) -> None:
    lines = (GUIDE / name).read_text().splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize(
    ("title", "example"),
    [(".pre-commit-config.yaml", ".pre-commit-config.yaml"), (".github/workflows/prohibited-code.yml", "workflow.yml")],
)
def test_files_that_nothing_reads_here_are_those_of_the_examples(title: str, example: str) -> None:
    (shown,) = [b.text for b in blocks_of((GUIDE / "protect-a-repository.md").read_text()) if b.title == title]
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "examples" / "pre_commit" / example).read_text())


# --- that the above can fail ------------------------------------------------------------------------------------------


PAGE = """# A page

```text title="some/a.txt"
one
two
```

```console
$ cat some/a.txt
one
...
$ grep -c two \\
    some/a.txt
1
$ cd some && (echo out; echo err >&2; exit 3)
out
err
$ echo $? && ls
3
a.txt
```

<!-- not run: no such command -->
```console
$ no-such-command
fine
```
"""


def wrong_in(page: str, tmp_path: Path, commands: Path) -> list[str]:
    (tmp_path / "page").mkdir()
    return [found for step in run_page(page, tmp_path / "page", commands) if (found := difference(step))]


@pytest.mark.slow
def test_a_right_page(tmp_path: Path, commands: Path) -> None:
    assert wrong_in(PAGE, tmp_path, commands) == []
    assert [block.reason for block in blocks_of(PAGE)] == [None, None, "no such command"]


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("one\n...", "one", "line 9: $ cat some/a.txt\n  the page shows:\n    one\n  it printed:\n    one\n    two\n"),
        ("one\n...", "two\n...", "line 9: "),
        ("one\n...", "one\ntwo\n...", "line 9: "),
        ("\n1\n", "\n2\n", "line 12: $ grep -c two \\\n    some/a.txt\n"),
        ("out\nerr\n", "out\n", "line 15: "),
        ("\n3\n", "\n0\n", "line 18: "),
        ("<!-- not run: no such command -->\n", "", "line 24: $ no-such-command\n  the page shows:\n    fine\n"),
    ],
)
def test_a_wrong_page(tmp_path: Path, commands: Path, right: str, wrong: str, message: str) -> None:
    assert right in PAGE
    (found,) = wrong_in(PAGE.replace(right, wrong), tmp_path, commands)
    assert message in found


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\nx = 1\n```\n", "line 2: a block of python needs a title or a mark"),
        ("    pip install x\n", "expected fenced blocks"),
        ("```console\n$ true\n", "expected fenced blocks"),
        ("<!-- not run: why -->\n\n```console\n$ true\n```\n", "expected fenced blocks"),
        ("<!-- not run -->\n```console\n$ true\n```\n", "expected fenced blocks"),
    ],
)
def test_a_block_that_nothing_would_check_is_refused(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blocks_of(page)


def test_what_a_first_start_says_is_no_part_of_a_page(tmp_path: Path, commands: Path) -> None:
    page = "```console\n$ echo 'compiling for this machine, once for each part: up to'; echo out\nout\n```\n"
    assert wrong_in(page, tmp_path, commands) == []


@pytest.mark.parametrize("command", ["echo 'x", "exit 0"])
def test_a_page_at_whose_end_the_shell_does_not_arrive(tmp_path: Path, commands: Path, command: str) -> None:
    with pytest.raises(ValueError, match="expected 2 commands that end, got 0; the shell said: "):
        wrong_in(f"```console\n$ {command}\n$ true\n```\n", tmp_path, commands)


def test_a_console_begins_with_a_command() -> None:
    (block,) = blocks_of("```console\nprod-decode info\n```\n")
    with pytest.raises(ValueError, match="line 2: expected a command, got 'prod-decode info'"):
        list(steps_of(block))


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        ([], [], True),
        ([], ["a"], False),
        (["a"], [], False),
        (["a"], ["a "], True),
        (["..."], [], False),
        (["...", "b"], ["a", "b", "b"], True),
        (["a", "...", "c"], ["a", "c"], False),
        (["a..."], ["abc"], False),
    ],
)
def test_lines_that_are_left_out(expected: list[str], got: list[str], same: bool) -> None:
    assert matches(expected, got) == same
    assert (difference(Step("x", expected, got)) is None) == same


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [("| loss | 0.174 (0.1-1) | 3 |", "| loss | 12 (1,000-2) | 3 |", True), ("| loss | 1 |", "| gain | 1 |", False)],
)
def test_where_a_model_stands_in_numbers_may_differ(expected: str, got: str, same: bool) -> None:
    assert (difference(without_numbers(Step("x", [expected], [got]))) is None) == same
