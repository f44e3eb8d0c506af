"""The command line as a user runs it: output, exit status, and messages for mistakes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from prod_decode.blocklist import Blocklist, Match
from prod_decode.cli import main


@pytest.fixture
def block(tmp_path: Path) -> str:
    (tmp_path / "phrases.txt").write_text("yaml.load(\npickle.load(\n")
    assert main(["compile", str(tmp_path / "phrases.txt"), "-o", str(tmp_path / "block.prod")]) == 0
    return str(tmp_path / "block.prod")


def test_compile_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = str(tmp_path / "block.prod")
    (tmp_path / "phrases.txt").write_text("yaml.load(\npickle.load(\n")
    assert main(["compile", str(tmp_path / "phrases.txt"), "-o", block]) == 0
    out = capsys.readouterr().out
    assert out == f"{block}: 2 phrases, 0 documents, 2 patterns, 24 nodes, {Path(block).stat().st_size:,} bytes\n"
    assert len(Blocklist.load(block)) == 2


@pytest.mark.parametrize("command", [[], ["compile"], ["merge"], ["info"], ["scan"], ["generate"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(" ".join(["usage: prod-decode", *command]))


def test_info_as_text_and_as_json(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["info", block, "--json", "--entries"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["phrases"], facts["patterns"], facts["nodes"], facts["longest_pattern"]) == (2, 2, 24, 12)
    assert [entry["id"] for entry in facts["entries"]] == ["yaml.load(", "pickle.load("]
    assert main(["info", block, "--entries"]) == 0
    text = capsys.readouterr().out
    assert "longest_pattern  12\n" in text
    assert "  pickle.load(  phrase, boundary start, from " in text


def test_scan_names_file_line_column_and_entry(
    tmp_path: Path, block: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "bad.py").write_text("import yaml\n# é\nx = yaml . load (\n  y)\n")
    (tmp_path / "code" / "good.py").write_text("x = yaml.safe_load(y)\n")
    capsys.readouterr()
    assert main(["scan", block, str(tmp_path / "code")]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path}/code/bad.py:3:5: yaml.load(: yaml . load (\n"
    assert printed.err == "prohibited places: 1, files: 2\n"

    assert main(["scan", block, str(tmp_path / "code"), "--json", "--verify"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "path": f"{tmp_path}/code/bad.py",
        "line": 3,
        "column": 5,
        "start": 20,
        "end": 33,
        "entry": "yaml.load(",
        "text": "yaml . load (",
    }
    assert printed.err == "prohibited places: 1, files: 2 (pyahocorasick agrees)\n"

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\nx = pickle.load(f)\n")))
    assert main(["scan", block, "-"]) == 1
    assert capsys.readouterr().out == "-:3:5: pickle.load(: pickle.load(\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\xff")))
    assert main(["scan", block, "-"]) == 2
    assert "the standard input is not UTF-8 text (byte 0xff at 1)" in capsys.readouterr().err
    assert main(["scan", block, str(tmp_path / "code" / "good.py")]) == 0


def test_verify_reports_a_match_that_pyahocorasick_does_not_find(
    tmp_path: Path, block: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.py").write_text("yaml.load(")
    monkeypatch.setattr(Blocklist, "scan", lambda self, text: iter([Match(0, 10, "yaml.load(")] * 2))
    assert main(["scan", block, str(tmp_path / "x.py"), "--verify"]) == 2
    assert "entry yaml.load(: scan found 2, pyahocorasick 1; please report" in capsys.readouterr().err


def test_verify_without_its_package_says_what_to_install(
    tmp_path: Path, block: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ahocorasick", None)
    assert main(["scan", block, str(tmp_path), "--verify"]) == 2
    assert "--verify needs pyahocorasick: pip install 'prod-code-unlearning[audit]'" in capsys.readouterr().err


def test_allowed_code_is_reported_as_waived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = "".join(f"name_{i} = other_{i} + {i}\n" for i in range(40))
    (tmp_path / "doc.py").write_text(document)
    (tmp_path / "free.py").write_text(document[:400])
    out = str(tmp_path / "out.prod")
    assert main(["compile", str(tmp_path / "doc.py"), "--allow", str(tmp_path / "free.py"), "-o", out]) == 0
    assert "waived: characters 0-" in capsys.readouterr().err
    assert list(Blocklist.load(out).scan(document[:400])) == []
    assert list(Blocklist.load(out).scan(document[300:]))


def test_merge(tmp_path: Path, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "more.txt").write_text("eval(\nyaml.load(\n")
    more, out = str(tmp_path / "more.prod"), str(tmp_path / "all.prod")
    main(["compile", str(tmp_path / "more.txt"), "-o", more, "--boundary", "none"])
    capsys.readouterr()
    assert main(["merge", block, more, "-o", out]) == 2
    assert "two different entries have the id 'yaml.load('" in capsys.readouterr().err
    assert not Path(out).exists()
    main(["compile", str(tmp_path / "more.txt"), "-o", more])
    assert main(["merge", block, more, "-o", out]) == 0
    found = Blocklist.load(out).scan("eval(pickle.load(yaml.load(")
    assert [match.entry_id for match in found] == ["eval(", "pickle.load(", "yaml.load("]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "prod-decode: the following arguments are required: COMMAND; see `prod-decode --help`"),
        (["compile", "x.txt"], "the following arguments are required: -o/--output; see `prod-decode compile --help`"),
        (["compile", "x.txt", "-o", "{tmp}/y", "--max-quote", "many"], "--max-quote: invalid int value: 'many'"),
        (["compile", "{tmp}/none.txt", "-o", "{tmp}/y"], "cannot read {tmp}/none.txt: No such file or directory"),
        (["compile", "{tmp}/blank.txt", "-o", "{tmp}/y"], "no entries in {tmp}/blank.txt: expected at least one"),
        (["compile", "{tmp}/short.txt", "-o", "{tmp}/y"], "'ab' is 2 normalised bytes, expected at least 3"),
        (["compile", "{tmp}/short.txt", "-o", "{tmp}/no/y"], "cannot write {tmp}/no/y: the directory {tmp}/no does"),
        (["compile", "{tmp}/short.txt", "-o", "{tmp}"], "cannot write {tmp}: it is a directory, expected a file name"),
        (["info", "{tmp}/short.txt"], "{tmp}/short.txt is not a compiled blocklist: make one with `prod-decode"),
        (["scan", "{tmp}/none.prod", "{tmp}"], "cannot read the blocklist {tmp}/none.prod: No such file or directory"),
        (
            ["generate", "--model", "m", "--blocklist", "b", "--prompt", "p", "--temperature", "-1"],
            "argument --temperature: expected a number of at least 0, got -1",
        ),
        (
            ["generate", "--model", "m", "--blocklist", "b", "--prompt", "p", "--max-new-tokens", "0"],
            "argument --max-new-tokens: expected a number above 0, got 0",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "short.txt").write_text("ab\n")
    before = sorted(tmp_path.iterdir())
    try:
        status = main([argument.format(tmp=tmp_path) for argument in arguments])
    except SystemExit as leaving:
        status = leaving.code
    error = capsys.readouterr().err
    assert status == 2
    assert message.format(tmp=tmp_path) in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_generate_refuses_before_it_loads_the_model(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["generate", "--model", "/no/such/model", "--blocklist"]
    assert main([*base, block, "--prompt", ""]) == 2
    assert "expected a prompt of at least one token" in capsys.readouterr().err
    assert main([*base, f"{block}.none", "--prompt", "x"]) == 2
    assert "cannot read the blocklist" in capsys.readouterr().err
    assert main([*base, block, "--prompt", "x"]) == 2
    assert "cannot load the model '/no/such/model'" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, block: str) -> None:
    (tmp_path / "many.py").write_text("yaml.load(\n" * 20_000)
    command = f"'{sys.executable}' -m prod_decode.cli scan '{block}' '{tmp_path}/many.py' | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/many.py:1:1: yaml.load(: yaml.load(\n"
    assert done.stderr == ""


def test_the_page_of_options_is_up_to_date() -> None:
    script = Path(__file__).parent.parent / "docs" / "make_cli.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert done.returncode == 0, "run `make docs`"


def test_importing_the_package_loads_no_engine() -> None:
    check = (
        "import sys, prod_decode; print([n for n in ('torch', 'transformers', 'vllm', 'numba') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
