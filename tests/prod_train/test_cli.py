"""`prod-train`: flags, exit statuses, and what is left behind."""

import dataclasses
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from prod_train.cli import build_parser, main
from prod_train.config.config import Config, flag, make_config
from prod_train.run import recipes
from prod_train.run.check import check
from prod_train.run.recipes import package_functions, stdlib_functions, teach_and_forget
from tests.tiny import save_tiny_model, write_jsonl, write_snippets

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    return {
        "model": save_tiny_model(folder / "m"),
        "forget": write_snippets(folder / "f.jsonl", 3),
        "holdout": write_snippets(folder / "h.jsonl", 2, 5),
    }


def arguments(files, output, *more):
    words = (w for key, value in files.items() for w in (flag(key), value))
    return [*words, "--method", "prod", "--output", str(output), *more]


@pytest.mark.slow
def test_run_then_merge(files, tmp_path, capsys):
    status = main(["run", *arguments(files, tmp_path / "o", "--max-steps", "2", "--learning-rate", "1e-2", "--json")])
    record = json.loads(capsys.readouterr().out)
    assert status == 0
    assert record["chosen"] == 2
    assert set(record["after"]["holdout"]) == {"loss", "kl", "agreement"}
    # The resolved configuration is a configuration; its output's adapter is what is merged.
    assert make_config(str(tmp_path / "o" / "config.yaml"), {}).learning_rate == 0.01
    assert main(["merge", str(tmp_path / "o" / "config.yaml"), "--output", str(tmp_path / "m")]) == 0
    assert (tmp_path / "m" / "model.safetensors").exists()
    assert (tmp_path / "m" / "tokenizer.json").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_flag_beats_the_file(files, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(
        json.dumps({**files, "output": str(tmp_path / "o"), "max-steps": 3, "top_p": 0.5, "method": "prod"})
    )
    assert main(["check", str(file), "--max-steps", "7", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["config"]["max_steps"], plan["config"]["top_p"], plan["steps"]) == (7, 0.5, 7)


def test_check_shows_the_plan_and_writes_nothing(files, tmp_path, capsys):
    assert main(["check", *arguments(files, tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    for part in (
        "forget   3 rows",
        "truncated 0",
        "def add(a, b):\n<<    return a + b\n<eos>>>",
        "tokens in a target       mean",
        "trained 14,848",
        "optimizer steps          5",
        "memory, estimated",
        "one step                 loss",
    ):
        assert part in out
    assert not (tmp_path / "o").exists()
    settings = dict(line.split(maxsplit=1) for line in out.split("\n\n")[0].splitlines())
    assert (settings["lora-rank"], settings["lora-targets"], settings["truncate"]) == ("16", "not set", "no")
    no_names_of_python(out)


def no_names_of_python(text):
    """Neither attributes nor values nor classes."""
    assert not re.findall(r"\b(?!model_type)[a-z]+(?:_[a-z]+)+\b|\bNone\b|\bTrue\b|\bFalse\b|\b[A-Z]\w+Error\b", text)


def test_what_run_and_merge_print_is_for_people(files, tmp_path, capfd, caplog):
    with caplog.at_level("INFO"):
        assert main(["run", *arguments(files, tmp_path / "o", "--max-steps", "2")]) == 0
        assert main(["merge", str(tmp_path / "o"), "--output", str(tmp_path / "m")]) == 0
    out, err = capfd.readouterr()
    assert "| holdout KL, nats per token | 0.000 (0.000-0.000)" in out
    assert "In parentheses: 95 % bootstrap intervals over rows." in out
    assert f"{tmp_path}/o: the adapter after step 2, README.md, report.json and report.html" in err
    assert "Written in float32; the run measured in float32. On random text, its logits differ" in caplog.text
    for text in (out, err, *(record.getMessage() for record in caplog.records)):
        no_names_of_python(text.replace(str(tmp_path), ""))


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "got one without 'history'"), ("{", "got Expecting property name"), ("[]", "got TypeError: list indices")],
)
def test_merge_with_a_damaged_report(files, tmp_path, capsys, text, said):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": files["model"]}))
    (tmp_path / "config.yaml").write_text("model: m")
    (tmp_path / "report.json").write_text(text)
    assert main(["merge", str(tmp_path), "--output", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert f"expected report.json or state.json as a run writes it beside config.yaml, {said}" in error
    assert error.count("\n") == 1


def test_check_is_the_run_s_first_step(files, tmp_path):
    """Same targets, same rows, same loss."""
    from prod_train.run.trainer import run

    config = Config(**files, output=str(tmp_path / "o"), max_steps=1)
    plan = check(config)
    report = run(config)
    assert plan.step_loss == pytest.approx(report.history[0]["loss"], rel=1e-6)
    assert plan.support is not None
    assert plan.support["mean"] > 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "--model: expected a model, it is missing"),
        (("--methd", "prod"), "unknown flag --methd; did you mean '--method'? See `prod-train {command} --help`"),
        (
            ("--model", "bundeld"),
            "--model: cannot load the model 'bundeld': no such directory; did you mean 'bundled'?",
        ),
        (("nowhere.yaml",), "cannot read nowhere.yaml"),
        (("--top-p", "x", "--epochs", "0"), "--top-p: expected a number, got 'x'"),
        (("--top-p", "x", "--epochs", "0"), "--epochs: expected a number above 0, got 0"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_every_mistake_is_a_line_and_the_status_2(capsys, command, words, part):
    assert main([command, *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"prod-train {command}: ") for line in lines)
    part = part.format(command=command)
    assert sum(line.startswith(f"prod-train {command}: {part}") for line in lines) == 1


@pytest.mark.parametrize("word", ["--ouput", "--ouput=x", "-output"])
def test_what_a_misspelt_flag_gives_is_not_missing(files, tmp_path, capsys, word):
    words = [*arguments(files, tmp_path / "o")]
    at = words.index("--output")
    words[at : at + 2] = [word] if "=" in word else [word, "x"]
    assert main(["check", *words]) == 2
    told = f"unknown flag {word}; did you mean '--output'? See `prod-train check --help`"
    assert capsys.readouterr().err == f"prod-train check: {told}\n"


def test_every_wrong_row_is_a_line(files, tmp_path, capsys):
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "a"}, {"prompt": "a", "completion": "b"}, {"text": 5}])
    assert main(["check", *arguments({**files, "forget": bad}, tmp_path / "o")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [f"{bad}:1", f"{bad}:3"]


def test_bad_data_leaves_nothing_behind(files, tmp_path, capsys):
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "a", "completion": " "}])
    assert main(["run", *arguments({**files, "forget": bad}, tmp_path / "o")]) == 2
    assert "bad.jsonl:1: expected 'completion' to hold text" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_status_1_if_nothing_obeys(files, tmp_path, capsys):
    words = ("--max-utility-drop", "0", "--learning-rate", "0.1", "--max-steps", "4")
    assert main(["run", *arguments(files, tmp_path / "o", *words)]) == 1
    captured = capsys.readouterr()
    assert "no checkpoint that is left obeys --max-utility-drop 0.0" in captured.err
    assert "stopped: utility fell" in captured.out


def test_merge_mistakes(files, tmp_path, capsys):
    assert main(["merge", files["model"], "--output", str(tmp_path / "x")]) == 2
    assert "it has no adapter_config.json" in capsys.readouterr().err
    assert main(["merge", files["model"], "--output", str(tmp_path / "x"), "--nope"]) == 2
    assert "unknown option --nope; did you mean '--untie'? See `prod-train merge --help`" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", [[], ["run"], ["check"], ["merge"], ["data"], ["probe"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith(" ".join(["usage: prod-train", *command]))
    if command in (["run"], ["check"]):
        for option in dataclasses.fields(Config):
            assert f"{flag(option.name)} " in words
            assert option.metadata["help"] in re.sub(r"(?<=\w-) (?=\w)", "", words)


def test_every_field_is_a_flag_of_run_and_check():
    for command in build_parser()._subparsers._group_actions[0].choices.items():
        name, parser = command
        flags = {word for action in parser._actions for word in action.option_strings}
        if name in ("run", "check"):
            assert {flag(option.name) for option in dataclasses.fields(Config)} <= flags


@pytest.mark.slow
def test_stdlib_functions_are_the_same_every_time_and_share_no_module():
    rows = stdlib_functions(24)
    recipes._stdlib.cache_clear()
    assert rows == stdlib_functions(24)
    held = stdlib_functions(24, skip=24)
    modules = [row["prompt"].splitlines()[0] for row in rows + held]
    assert len(set(modules)) == 48
    for row in rows:
        compile(row["prompt"].split("\n", 1)[1] + row["completion"], "row", "exec")


@pytest.mark.slow
def test_package_functions_are_the_same_every_time_and_no_two_have_a_name():
    rows = package_functions(100)
    assert rows[:70] == package_functions(70)
    modules, functions = zip(*(row["prompt"].split("\n", 1) for row in rows), strict=True)
    assert len({function.partition("(")[0] for function in functions}) == 100
    assert not {module.partition("/")[0] for module in modules} & {
        "# test",
        "# idlelib",
        "# encodings",
        "# site-packages",
    }
    own = {row["prompt"].split("\n", 1)[0] for row in stdlib_functions(1000)}
    assert all("/" in module for module in modules)
    assert not own & set(modules)
    for row in rows:
        compile(row["prompt"] + row["completion"], "row", "exec")


@pytest.mark.slow
def test_the_protocol_in_small(files, tmp_path):
    """Taught, masked, unlearned, both, on the tiny model: the functions of the demo, and what the mask guarantees."""
    said = []
    found = teach_and_forget(
        tmp_path / "d", model=files["model"], functions=1, held_out=2, learn_epochs=2, forget_epochs=2, say=said.append
    )
    assert list(found) == ["taught", "masked", "unlearned", "both"]
    assert len(said) == 4
    assert found["masked"].verbatim_rate == found["both"].verbatim_rate == 0
    assert found["taught"].holdout_kl == pytest.approx(0, abs=1e-5)
    assert found["unlearned"].holdout_kl > 1e-4
    assert all(recital.tokens_per_second > 0 for recital in found.values())


@pytest.fixture
def full(tmp_path):
    """A device that is full for whoever writes."""
    if Path("/dev/full").is_char_device():
        return "/dev/full"
    try:
        os.mknod(tmp_path / "full", 0o666 | stat.S_IFCHR, os.makedev(1, 7))
    except OSError:
        pytest.skip("needs /dev/full, or the right to make it")
    return str(tmp_path / "full")


@pytest.mark.slow
@pytest.mark.parametrize("closed", [True, False])
def test_a_standard_error_that_is_lost_changes_nothing(files, tmp_path, capsys, monkeypatch, full, closed):
    """`2>&-` and `2>/dev/full`: nothing of it goes to the standard output either."""
    words = arguments(files, tmp_path / "o", "--max-steps", "1")
    with open(full, "w", buffering=1) as lost:  # noqa: PTH123
        monkeypatch.setattr("sys.stderr", None if closed else lost)
        commands = [
            ["check", *words],
            ["run", *words],
            ["merge", str(tmp_path / "o"), "--output", str(tmp_path / "m")],
            ["check", "--nope"],
        ]
        found = [main(command) for command in commands]
        monkeypatch.undo()
    assert found == [0, 0, 0, 2]
    assert "nope" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("redirect", ["2>&-", ">&-", ">FULL", "2>FULL", "<&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_or_full(redirect, full):
    command = f'"{sys.executable}" -m prod_train.cli check --nope {redirect.replace("FULL", full)}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    said = [line.partition(": ")[2] for line in done.stderr.splitlines()]
    whole = [
        "unknown flag --nope; did you mean '--opening'? See `prod-train check --help`",
        "--model: expected a model, it is missing",
    ]
    assert said[:2] == ([] if "2>" in redirect else whole)


def test_output_that_is_lost_is_one_line(files, tmp_path, monkeypatch, capsys, full):
    with open(full, "w") as lost:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", lost)
        assert main(["check", *arguments(files, tmp_path / "o")]) == 2
        monkeypatch.undo()
    error = capsys.readouterr().err
    assert error == "prod-train check: cannot write to the standard output: No space left on device\n"
