"""The examples run: each as its header says, on tiny models. The server of vLLM runs in tests/vllm/test_example.py."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from prod_decode import Blocklist, Entry
from prod_decode.cli import build_parser
from tests import ROOT, without_first_start
from tests.docs.console import environment, make_commands
from tests.examples.taught import save_taught_model
from tests.tiny import SNIPPETS, write_snippets

EXAMPLES = ROOT / "examples"
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_commands(tmp_path_factory.mktemp("commands") / "bin")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One that knows the first four snippets by heart."""
    folder = tmp_path_factory.mktemp("taught")
    return save_taught_model(folder, write_snippets(folder / "rows.jsonl", 4))


def run(command: list[Any], commands: Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    settings = {**environment(commands), **variables}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=settings, capture_output=True, text=True, timeout=300, check=False)


def block(folder: Path) -> Path:
    Blocklist.compile([Entry("yaml.load("), Entry("pickle.load(")]).save(folder / "block.prod")
    return folder / "block.prod"


def test_every_example_says_what_it_does_and_how_to_run_it() -> None:
    programs = [path for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".sh")]
    assert len(programs) == 5
    for path in programs:
        name = path.relative_to(ROOT).as_posix()
        header = path.read_text()[:1200]
        assert re.search(rf"^#? *(python )?{re.escape(name)} ", header, re.MULTILINE), name
        assert (path.suffix == ".sh") == os.access(path, os.X_OK), name


def test_the_overview_names_them_all() -> None:
    linked = re.findall(r"\]\(([^)]+)\)", (EXAMPLES / "README.md").read_text())
    assert all((EXAMPLES / path).exists() for path in linked)
    assert {Path(path).parts[0] for path in linked} | {"README.md"} == {path.name for path in EXAMPLES.iterdir()}


# --- Hugging Face -----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_mask_transformers(
    tmp_path: Path, commands: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that knows the text by heart writes it, and does not write what is prohibited of it."""
    program = ["python", EXAMPLES / "mask_transformers.py", model]
    prompt, known = SNIPPETS[0]
    Blocklist.compile([Entry("yaml.load(")]).save(tmp_path / "other.prod")
    main = runpy.run_path(str(EXAMPLES / "mask_transformers.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["mask_transformers.py", model, str(tmp_path / "other.prod"), prompt])
    capsys.readouterr()
    assert main() == 0
    assert capsys.readouterr().out == f"{prompt}{known}\n"
    Blocklist.compile([Entry("a + b", id="sum")]).save(tmp_path / "sum.prod")
    guarded = run([*program, "sum.prod", prompt], commands, tmp_path)
    assert guarded.returncode == 0
    assert guarded.stdout.startswith(f"{prompt}    return a")
    assert "a + b" not in guarded.stdout
    assert re.fullmatch(r"sum: stepped in \d+ times\n", guarded.stderr)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "usage: python mask_transformers.py MODEL BLOCKLIST PROMPT\n"),
        (["m", "b", "x", "y"], "usage: python mask_transformers.py MODEL BLOCKLIST PROMPT\n"),
        (["bundled", "none.prod", "x"], "cannot read the blocklist none.prod: No such file or directory: check the "),
    ],
)
def test_mistakes_of_mask_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(EXAMPLES / "mask_transformers.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["mask_transformers.py", *words])
    assert main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(told)
    assert printed.err.count("\n") == 1


# --- CI ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A branch `main` with phrases and code."""
    folder = tmp_path / "a repository"
    (folder / "prohibited" / "documents").mkdir(parents=True)
    (folder / "prohibited" / "phrases.txt").write_text("yaml.load(\n")
    document = "".join(f"value_{n} = compute({n}, {n * n})\n" for n in range(12))
    (folder / "prohibited" / "documents" / "values.py").write_text(document)
    (folder / "old.py").write_text("yaml.load(f)\n")
    (folder / "gone.py").write_text("yaml.load(f)\n")
    git(folder, "init", "-q", "-b", "main")
    commit(folder)
    git(folder, "checkout", "-q", "-b", "change")
    return folder


def git(folder: Path, *words: str) -> None:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *names, *words], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "x")


@pytest.mark.slow
def test_scan_in_ci_looks_at_what_a_branch_changes(repository: Path, commands: Path) -> None:
    scan = [EXAMPLES / "scan_in_ci" / "scan.sh", "main", "prohibited/phrases.txt", "prohibited/documents/"]
    (repository / "gone.py").unlink()
    (repository / "prohibited" / "phrases.txt").write_text("yaml.load(\npickle.load(\n")
    commit(repository)
    done = run(scan, commands, repository)
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["no files to scan"]), done.stderr
    (repository / "new file.py").write_text("x = yaml.safe_load(f)\n")
    commit(repository)
    done = run(scan, commands, repository)
    assert (done.returncode, without_first_start(done.stderr)) == (0, "prohibited places: 0, files read: 1\n")
    (repository / "--json").write_text("\n")
    (repository / "copied.py").write_text((repository / "prohibited" / "documents" / "values.py").read_text())
    (repository / "new file.py").write_text("x = 1\ny = pickle . load(f)\n")
    commit(repository)
    done = run(scan, commands, repository)
    assert done.returncode == 1
    found = done.stdout.splitlines()[1:]
    assert found[-1] == "new file.py:2:5: pickle.load(: pickle . load("
    assert {line.partition(":")[0] for line in found} == {"copied.py", "new file.py"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "usage: {} BASE SOURCE...; such as: {} origin/main prohibited/phrases.txt prohibited/documents/\n"),
        (["main"], "usage: "),
        (["no-such", "prohibited/"], "{}: expected a branch or commit to compare with, got 'no-such', which "),
        (["--help", "prohibited/"], "{}: expected a branch or commit to compare with, got '--help', which "),
    ],
)
def test_scan_in_ci_tells_mistakes_from_findings(repository: Path, commands: Path, words: list[str], told: str) -> None:
    script = EXAMPLES / "scan_in_ci" / "scan.sh"
    done = run([script, *words], commands, repository)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(told.replace("{}", str(script)))
    assert done.stderr.count("\n") == 1


# --- unlearning -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_unlearn_and_serve(tmp_path: Path, commands: Path, model: str) -> None:
    write_snippets(tmp_path / "forget.jsonl", 4)
    write_snippets(tmp_path / "retain.jsonl", 2, 4)
    write_snippets(tmp_path / "holdout.jsonl", 1, 6)
    rows = ["forget.jsonl", "retain.jsonl", "holdout.jsonl"]
    words = [EXAMPLES / "unlearn_and_serve.sh", model, *rows, "out", "--max-steps", "2"]
    done = run(words, commands, tmp_path, SERVE_OPTIONS="--max-model-len 512")
    assert done.returncode == 0, done.stderr
    where, _, command = done.stdout.splitlines()[-1].partition(": ")
    assert where == "in the environment that has vLLM"
    serve = [str(EXAMPLES / "vllm" / "serve.sh"), "out/merged", "out/forgotten.prod", "out/forgotten.prod"]
    serve += ["--max-model-len", "512"]
    assert shlex.split(command) == serve
    assert (tmp_path / "out" / "merged" / "model.safetensors").is_file()
    settings = json.loads((tmp_path / "out" / "run" / "report.json").read_text())["config"]
    assert [settings[name] for name in ("forget", "retain", "holdout")] == rows
    blocklist = Blocklist.load(tmp_path / "out" / "forgotten.prod")
    assert [info.id for info in blocklist.entries()] == ["row 1", "row 2", "row 3", "row 4"]
    # Half of the characters that are no whitespace: the first has 9, `returna+b`. Limits below 6 are refused.
    assert [info.max_quote for info in blocklist.entries()] == [6, 10, 14, 10]
    assert list(blocklist.scan("    return a + b\n"))


# --- pre-commit and GitHub --------------------------------------------------------------------------------------------


def hook() -> dict[str, Any]:
    (found,) = HOOKS
    return dict(found)


def test_the_hook_is_one_that_pre_commit_takes() -> None:
    assert set(hook()) <= {"id", "name", "description", "entry", "language", "args", "types", "require_serial"}
    assert (hook()["id"], hook()["language"], hook()["types"]) == ("prod-decode-scan", "python", ["text"])
    command, *words = shlex.split(hook()["entry"])
    scripts = (ROOT / "pyproject.toml").read_text()
    assert f'\n{command} = "prod_decode.cli:main"\n' in scripts
    parsed = build_parser().parse_args([*words, *hook()["args"], "a.py", "--json"])
    assert (parsed.command, parsed.file, parsed.paths, parsed.json) == ("scan", "block.prod", ["a.py", "--json"], False)


def test_the_example_names_the_hook() -> None:
    (repo,) = yaml.safe_load((EXAMPLES / "pre_commit" / ".pre-commit-config.yaml").read_text())["repos"]
    (used,) = repo["hooks"]
    assert used["id"] == hook()["id"]
    parsed = build_parser().parse_args(["scan", *used["args"], "a.py"])
    assert (parsed.file, parsed.paths) == ("block.prod", ["a.py"])
    excluded = {
        name for name in ("phrases.txt", "vendor/a.py", "a/vendor/b.py", "a.py") if re.search(used["exclude"], name)
    }
    assert excluded == {"phrases.txt", "vendor/a.py"}


@pytest.mark.slow
def test_the_hook_as_pre_commit_calls_it(tmp_path: Path, commands: Path) -> None:
    block(tmp_path)
    (tmp_path / "good.py").write_text("yaml.safe_load(f)\n")
    (tmp_path / "bad.py").write_text("\nyaml.load(f)\n")
    call = [*shlex.split(hook()["entry"]), *hook()["args"]]
    done = run([*call, "good.py"], commands, tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    done = run([*call, "bad.py", "good.py"], commands, tmp_path)
    assert (done.returncode, done.stdout) == (1, "bad.py:2:1: yaml.load(: yaml.load(\n")
    # Without a blocklist nothing passes.
    (tmp_path / "block.prod").unlink()
    done = run([*call, "good.py"], commands, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


def steps() -> Iterator[dict[str, Any]]:
    yield from ACTION["runs"]["steps"]


def test_the_action_is_a_composite_one_and_pastes_nothing_into_its_scripts() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert ACTION["inputs"]["blocklist"]["required"] is True
    scripts = [step for step in steps() if "run" in step]
    assert [step["name"] for step in scripts] == ["install", "scan"]
    used = set()
    for step in scripts:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]
        used |= set(re.findall(r"\$\{\{ inputs\.(\w+) \}\}", " ".join(step["env"].values())))
        for name in step["env"]:
            assert f'"${name}"' in step["run"]
    assert used == set(ACTION["inputs"])


def test_the_example_gives_the_action_inputs_that_it_has() -> None:
    workflow = yaml.safe_load((EXAMPLES / "pre_commit" / "workflow.yml").read_text())
    (call,) = [step for step in workflow["jobs"]["scan"]["steps"] if "with" in step]
    assert set(call["with"]) <= set(ACTION["inputs"])
    assert {name for name, about in ACTION["inputs"].items() if about.get("required")} <= set(call["with"])


def test_the_workflow_of_the_scan_calls_the_script() -> None:
    workflow = yaml.safe_load((EXAMPLES / "scan_in_ci" / "workflow.yml").read_text())
    last = workflow["jobs"]["scan"]["steps"][-1]["run"]
    header = (EXAMPLES / "scan_in_ci" / "scan.sh").read_text()
    assert "examples/scan_in_ci/scan.sh origin/main prohibited/phrases.txt prohibited/documents/" in header
    assert last == './scan.sh "origin/$GITHUB_BASE_REF" prohibited/phrases.txt prohibited/documents/'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("paths", "options", "status", "printed"),
    [
        ("src\n", "", 0, ""),
        ("src\na folder\n", "", 1, "a folder/bad.py:1:1: yaml.load(: yaml.load(\n"),
        (".", "--json\n", 1, '"entry": "yaml.load("'),
        ("src\nno such folder\n", "", 3, ""),
        ("src\nno such folder\n", "--accept-uncovered\n", 3, ""),
        ("src\nbinary\n", "", 3, ""),
        ("src\nbinary\n", "--accept-uncovered\n", 0, ""),
        ("$(touch pasted)\n`touch pasted`\n; touch pasted\n", "", 3, ""),
        ("--accept-uncovered\nno such folder\n", "", 3, ""),
    ],
)
def test_the_script_of_the_action(
    tmp_path: Path, commands: Path, paths: str, options: str, status: int, printed: str
) -> None:
    done = run_action(tmp_path, commands, PATHS=paths, OPTIONS=options)
    assert done.returncode == status, done.stderr
    assert printed in done.stdout
    assert bool(printed) == bool(done.stdout)
    assert not (tmp_path / "pasted").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exclude", "status", "told"),
    [
        ("a folder\nbinary/*\n", 0, "excluded: 1 file and 1 folder\n"),
        (
            "--json\n$(touch pasted)\n\nbinary\n",
            1,
            "no effect: --exclude $(touch pasted): nothing was excluded by it\n",
        ),
    ],
)
def test_what_the_action_excludes(tmp_path: Path, commands: Path, exclude: str, status: int, told: str) -> None:
    done = run_action(tmp_path, commands, PATHS=".", EXCLUDE=exclude)
    assert done.returncode == status, done.stderr
    assert done.stdout == ("a folder/bad.py:1:1: yaml.load(: yaml.load(\n" if status else "")
    assert told in done.stderr
    assert not (tmp_path / "pasted").exists()


def run_action(folder: Path, commands: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """The step that scans, as GitHub calls it, in a folder with code that is good, prohibited, and no text."""
    (script,) = [step["run"] for step in steps() if step.get("name") == "scan"]
    block(folder)
    for name, code in {"src": b"x = 1\n", "a folder": b"yaml.load(f)\n", "binary": b"\x00\xff\xfe"}.items():
        (folder / name).mkdir()
        (folder / name / "bad.py").write_bytes(code)
    (folder / "temp" / "prod-decode").mkdir(parents=True)
    (folder / "temp" / "prod-decode" / "bin").symlink_to(commands)
    shell = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]
    given = {"BLOCKLIST": "block.prod", "EXCLUDE": "", "OPTIONS": "", "RUNNER_TEMP": str(folder / "temp"), **inputs}
    return run(shell, commands, folder, **given)


def test_scripts_are_of_bash() -> None:
    for path in EXAMPLES.rglob("*.sh"):
        assert path.read_text().startswith("#!/usr/bin/env bash\n")
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_the_client_compiles() -> None:
    path = EXAMPLES / "vllm" / "client.py"
    compile(path.read_text(), str(path), "exec")
    assert sys.version_info >= (3, 11)
