"""The command line as a user runs it: output, exit status, and messages for mistakes."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from prod_decode.blocklist.blocklist import Blocklist, Match
from prod_decode.blocklist.entries import Entry
from prod_decode.blocklist.selection import CACHES
from prod_decode.cli import main
from prod_decode.command.generating import record
from prod_decode.command.generation import Generation
from prod_decode.command.terminal import exit_status
from prod_decode.tokens.vocabulary import Vocabulary
from tests import FIRST_START, ROOT, without_first_start

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def block(tmp_path: Path) -> str:
    (tmp_path / "phrases.txt").write_text("yaml.load(\npickle.load(\n")
    assert main(["compile", str(tmp_path / "phrases.txt"), "-o", str(tmp_path / "block.prod")]) == 0
    return str(tmp_path / "block.prod")


@pytest.mark.parametrize("data", [b"x = yaml.load(f)\n\n", "ok\n".encode("utf-16-le") + b"x = yaml.load(f)\n\n"])
def test_ascii_behind_a_mark_of_utf_16_is_found(
    tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    Blocklist.compile([Entry("yaml.load(")]).save(tmp_path / "block.prod")
    (tmp_path / "code.py").write_bytes(b"\xff\xfe" + data)
    assert main(["scan", str(tmp_path / "block.prod"), str(tmp_path / "code.py")]) == 1
    assert "yaml.load(" in capsys.readouterr().out


def test_compile_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = str(tmp_path / "block.prod")
    (tmp_path / "phrases.txt").write_text("yaml.load(\npickle.load(\n")
    assert main(["compile", str(tmp_path / "phrases.txt"), "-o", block]) == 0
    out = capsys.readouterr().out
    assert out == f"{block}: 2 phrases, 0 documents, 2 patterns, 24 nodes, {Path(block).stat().st_size:,} bytes\n"
    assert len(Blocklist.load(block)) == 2


@pytest.mark.parametrize("command", [[], ["compile"], ["merge"], ["info"], ["lists"], ["scan"], ["generate"]])
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
    assert printed.err == "prohibited places: 1, files read: 2\n"

    assert main(["scan", block, str(tmp_path / "code"), "--json", "--verify"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "path": f"{tmp_path}/code/bad.py",
        "line": 3,
        "column": 5,
        "end_line": 3,
        "start": 20,
        "end": 33,
        "entry": "yaml.load(",
        "text": "yaml . load (",
    }
    assert printed.err == "prohibited places: 1, files read: 2 (pyahocorasick agrees)\n"

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\nx = pickle.load(f)\n")))
    assert main(["scan", block, "-"]) == 1
    assert capsys.readouterr().out == "-:3:5: pickle.load(: pickle.load(\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\0yaml.load(")))
    assert main(["scan", block, "-"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "-:1:3: yaml.load(: yaml.load(\n"
    assert printed.err.startswith("not covered: the standard input is a binary file, expected UTF-8 text; only its")
    assert main(["scan", block, str(tmp_path / "code" / "good.py")]) == 0


@pytest.mark.slow
def test_scan_decodes_the_escapes_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = str(tmp_path / "block.prod")
    Blocklist.compile([Entry("import os\nos.system(", id="shell")]).save(block)
    call = json.dumps({"path": "é", "content": "import os\nos.system('ls')"}, ensure_ascii=False)
    (tmp_path / "calls.jsonl").write_text(f"{{}}\n{call}\n")
    (tmp_path / "calls.txt").write_text(call)
    capsys.readouterr()
    assert main(["scan", block, str(tmp_path / "calls.jsonl"), "--verify"]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path}/calls.jsonl:2:27: shell: import os\\nos.system(\n"
    assert printed.err == "prohibited places: 1, files read: 1 (pyahocorasick agrees)\n"
    assert main(["scan", block, str(tmp_path / "calls.jsonl"), "--no-escapes"]) == 0
    assert main(["scan", block, str(tmp_path / "calls.txt")]) == 0
    assert main(["scan", block, str(tmp_path / "calls.txt"), "--escapes"]) == 1


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
        (
            ["complie"],
            "info, lists, scan, index, generate, check-server, got 'complie'; did you mean 'compile'? See `prod",
        ),
        (
            ["generate", "--model", "m", "--blocklist", "a.prod", "--blocklist", "b.prod", "--prompt", "x"],
            "prod-decode generate: --blocklist: expected it once, got it again: join blocklists with `prod-decode",
        ),
        (["--verson"], "prod-decode: unknown option --verson; did you mean '--version'? See `prod-decode --help`"),
        (
            ["compile", "x.txt", "--max-qoute", "30"],
            "unknown option --max-qoute; did you mean '--max-quote'? See `prod-decode compile --help`",
        ),
        (
            ["compile", "x.txt", "-max-quote", "30"],
            "unknown option -max-quote; did you mean '--max-quote'? See `prod-decode compile --help`",
        ),
        (["compile", "x.txt", "-output", "y"], "unknown option -output; did you mean '--output'?"),
        (["compile", "{tmp}/none.txt", "-o{tmp}/y"], "cannot read {tmp}/none.txt: No such file"),
        (["compile", "x.txt", "--otput=y"], "unknown option --otput; did you mean '--output'?"),
        (["scan", "x", "y", "--zzz"], "prod-decode scan: unknown option --zzz; see `prod-decode scan --help`"),
        (
            ["compile", "x.txt", "-o", "{tmp}/y", "--normalize", "cdoe"],
            "argument --normalize: expected one of code, none, got 'cdoe'; did you mean 'code'?",
        ),
        (
            ["compile", "{tmp}/short.txt", "-o", "{tmp}/y", "--max-quote", "3"],
            "--max-quote: expected at least 6 characters",
        ),
        (["scan", "{tmp}/short.txt", "{tmp}", "--exclude", "/"], "{tmp}/short.txt is not a compiled blocklist"),
        (
            ["generate", "--model", "bundeld", "--blocklist", "{tmp}/good.prod", "--prompt", "x"],
            "prod-decode generate: cannot load the model 'bundeld': no such directory; did you mean 'bundled'?",
        ),
        (
            ["compile", "{tmp}/short.txt", "-o", "{tmp}/y", "--model", "bundeld"],
            "prod-decode compile: cannot load the model 'bundeld': no such directory; did you mean 'bundled'?",
        ),
        ([], "prod-decode: the following arguments are required: COMMAND; see `prod-decode --help`"),
        (["compile", "x.txt"], "the following arguments are required: -o/--output; see `prod-decode compile --help`"),
        (
            ["compile", "x.txt", "-o", "{tmp}/y", "--max-quote", "many"],
            "--max-quote: expected a whole number, got 'many'; see",
        ),
        (["compile", "{tmp}/none.txt", "-o", "{tmp}/y"], "cannot read {tmp}/none.txt: No such file or directory"),
        (
            ["compile", "{tmp}/shorts.txt", "-o", "{tmp}/y"],
            "cannot read {tmp}/shorts.txt: No such file or directory; did you mean '{tmp}/short.txt'?",
        ),
        (["info", "{tmp}/god.prod"], "{tmp}/god.prod: No such file or directory; did you mean '{tmp}/good.prod'?"),
        (["compile", "{tmp}/blank.txt", "-o", "{tmp}/y"], "{tmp}/blank.txt has no entries, expected one per line"),
        (["compile", "{tmp}/short.txt", "--strict", "-o", "{tmp}/y"], "'ab' is 2 normalised bytes, expected at least"),
        (["info", "{tmp}/pipe"], "{tmp}/pipe is a FIFO, expected a compiled blocklist"),
        (["scan", "{tmp}/pipe", "{tmp}"], "{tmp}/pipe is a FIFO, expected a compiled blocklist"),
        (["merge", "{tmp}/pipe", "-o", "{tmp}/y"], "{tmp}/pipe is a FIFO, expected a compiled blocklist"),
        (["info", "{tmp}"], "{tmp} is a directory, expected a compiled blocklist"),
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
        (
            ["generate", "--model", "m", "--blocklist", "b", "--prompt", "p", "--top-p", "2"],
            "argument --top-p: expected a number above 0, 1 at most, got 2",
        ),
        (
            ["generate", "--model", "m", "--blocklist", "b", "--prompt", "p", "--seed", str(2**64)],
            "argument --seed: expected a number of at least 0, 18446744073709551615 at most, got 18446744073709551616",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "short.txt").write_text("ab\n")
    Blocklist.compile([Entry("yaml.load(")]).save(tmp_path / "good.prod")
    os.mkfifo(tmp_path / "pipe")
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


def test_options_behind_a_double_dash_are_names(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["scan", block, "--", "--no-such"]) == 3
    assert "not covered: cannot read --no-such: No such file" in capsys.readouterr().err


def test_every_mistake_of_a_kind_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def said(*arguments: str) -> list[str]:
        try:
            status = main([*arguments])
        except SystemExit as leaving:
            status = leaving.code
        assert status == 2
        return [line.removeprefix(f"prod-decode {arguments[0]}: ") for line in capsys.readouterr().err.splitlines()]

    missing = "cannot read {}: No such file or directory: check the name"
    assert said("compile", "a", "b", "--allow", "c", "-o", "x.prod") == [missing.format(name) for name in "abc"]
    assert said("merge", "a", "b", "-o", "x.prod") == [
        "cannot read the blocklist a: No such file or directory: check the name",
        "cannot read the blocklist b: No such file or directory: check the name",
    ]
    Path("list.jsonl").write_text('{"txt": "eval("}\n{"text": "exec("}\n7\n')
    lines = said("compile", "list.jsonl", "-o", "x.prod")
    assert [line.partition(": ")[0] for line in lines] == ["list.jsonl:1", "list.jsonl:3"]
    assert lines[0].endswith("; did you mean 'text'?")
    Path("list.txt").write_text("ab\nexec(\ncd\n")
    assert [line[:10] for line in said("compile", "list.txt", "-o", "x.prod", "--strict")] == [
        "entry 'ab'",
        "entry 'cd'",
    ]
    for name in ("one.py", "two.py"):
        Path(name).write_text("x = 1\n")
    Path("list.txt").write_text("exec(\n")
    lines = said("compile", "list.txt", "one.py", "two.py", "-o", "x.prod", "--strict")
    assert [line.partition(",")[0] for line in lines[1:]] == [
        f"'{name}.py': shorter than max_quote" for name in ("one", "two")
    ]
    assert [line.partition(";")[0] for line in said("scan", "--jsno", "--exlude", "x", "a", "b")] == [
        "unknown option --jsno",
        "unknown option --exlude",
    ]
    assert not Path("x.prod").exists()


def test_a_list_that_was_read_as_a_document_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("phrase.list").write_text("yaml.load(\n")
    told = "read as a document each: phrase.list (lists are .txt, .jsonl and .ndjson files)"
    assert main(["compile", "phrase.list", "-o", "x.prod"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        told,
        "prod-decode compile: expected an entry that prohibits something, got 1 that prohibit nothing (1 read as a "
        "document and shorter than max_quote: lower it, or give phrases, in a .txt file or with the policy 'phrase')",
    ]
    Path("more.txt").write_text("eval(\n")
    assert main(["compile", "phrase.list", "more.txt", "-o", "x.prod"]) == 3
    assert capsys.readouterr().err.splitlines() == [
        told,
        "not covered: 'phrase.list': shorter than max_quote, read as a document; if it is a list of phrases, name it "
        ".txt",
    ]


def test_options_without_effect_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("yaml.load(\n")
    Path("a.py").write_text("".join(f"value_{n} = compute({n})\n" for n in range(30)))
    rows = [
        {"text": Path("a.py").read_text(), "id": "a", "policy": "quote", "max_quote": 50},
        {"text": "eval(", "boundary": "none"},
    ]
    Path("own.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def said(*arguments: str) -> list[str]:
        assert main(["compile", *arguments, "-o", "x.prod"]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("no effect: ")]

    documents = "for documents, and the sources have phrases alone"
    assert said("list.txt", "--max-quote", "30") == [f"no effect: --max-quote: {documents}"]
    assert said("list.txt", "--max-quote", "30", "--allow", "a.py") == [f"no effect: --max-quote, --allow: {documents}"]
    assert said("list.txt", "--allow", "a.py", "--allow-names", "os") == []  # commit points heed it
    assert said("a.py", "--boundary", "both") == [
        "no effect: --boundary: for phrases, and the sources have documents alone"
    ]
    assert said("own.jsonl", "--max-quote", "30", "--boundary", "both") == [
        "no effect: --max-quote: every document has a max_quote of its own",
        "no effect: --boundary: every phrase has a boundary of its own",
    ]
    assert said("own.jsonl", "a.py", "list.txt", "--max-quote", "30", "--boundary", "both") == []


@pytest.mark.slow
def test_a_variable_that_numba_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("yaml.load(\n")
    command = [sys.executable, "-m", "prod_decode.cli", "compile", "list.txt", "-o", "x.prod"]
    environment = {**ENVIRONMENT, "NUMBA_NUM_THREADS": "-1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "prod-decode compile: numba does not start: Number of threads specified must be > 0: set other values than "
        "NUMBA_NUM_THREADS=-1, or none\n"
    )


def test_generate_refuses_before_it_loads_the_model(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["generate", "--model", "/no/such/model", "--blocklist"]
    assert main([*base, block, "--prompt", ""]) == 2
    assert "expected a prompt of at least one token" in capsys.readouterr().err
    assert main([*base, block, "--prompt", os.fsdecode(b"caf\xe9")]) == 2
    assert "--prompt is not UTF-8 text" in capsys.readouterr().err
    assert main([*base, f"{block}.none", "--prompt", "x"]) == 2
    assert "cannot read the blocklist" in capsys.readouterr().err
    assert main([*base, block, "--prompt", "x", "--top-p", "0.9"]) == 2
    assert "--top-p is for sampling: expected --temperature above 0 beside it" in capsys.readouterr().err
    assert main([*base, block, "--prompt", "@"]) == 2
    assert "expected the name of a file or directory, got ''" in capsys.readouterr().err
    assert main([*base, block, "--prompt", "x"]) == 2
    assert "cannot load the model '/no/such/model'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "terminal", "no_color", "shown"),
    [
        ([], False, None, "x = yaml.safe_load("),
        ([], False, "1", "x = yaml.safe_load("),
        ([], True, "1", "x = yaml.[-load(-]{+safe_load(+}"),
        ([], True, None, "x = yaml.\x1b[9;31mload(\x1b[0m\x1b[32msafe_load(\x1b[0m"),
        ([], True, "", "x = yaml.\x1b[9;31mload(\x1b[0m\x1b[32msafe_load(\x1b[0m"),
        (["--compare"], False, None, "--- unprotected\n{}\n--- protected\n{}"),
    ],
)
def test_marks_are_for_people_and_colours_for_terminals(
    block: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    terminal: bool,
    no_color: str | None,
    shown: str,
) -> None:
    run = Generation("x = yaml.", ["safe_load("], [("load(", ("yaml.load(",))], Counter({"yaml.load(": 1}), 1.0)
    monkeypatch.setattr("prod_decode.command.generation.generate", lambda *_, **__: run)
    monkeypatch.setattr("prod_decode.storage.models.load_model", lambda *_, **__: (None, Vocabulary.from_bytes([b"a"])))
    monkeypatch.setattr("prod_decode.storage.models.require_name", lambda _: None)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    capsys.readouterr()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert main(["generate", "--model", "m", "--blocklist", block, "--prompt", "x", *arguments]) == 0
    marked = "x = yaml.[-load(-]{+safe_load(+}"
    printed = capsys.readouterr()
    assert printed.out == shown.replace("{}", marked) + "\n"
    assert printed.err == "yaml.load(: stepped in 1 time\n1.0 tokens a second\n"


def test_what_greedy_search_makes_of_no_use_is_told(
    block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prod_decode.storage.models.require_name", lambda _: sys.exit(7))
    capsys.readouterr()
    base = ["generate", "--model", "m", "--blocklist", block, "--prompt", "x", "--seed", "3", "--mode", "prod"]
    for more, told in (([], ["--seed", "--mode prod"]), (["--temperature", "1"], [])):
        with pytest.raises(SystemExit, match="7"):
            main([*base, *more])
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(": ")[:2] for line in lines] == [["no effect", option] for option in told]


@pytest.mark.long
def test_the_first_start_says_off_a_terminal_too_that_it_compiles(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("yaml.load(\n")
    command = [sys.executable, "-m", "prod_decode.cli", "compile", "list.txt", "-o", "x.prod"]
    environment = {**ENVIRONMENT, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    told = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        told.append(done.stderr)
    assert told[0].startswith(f"{FIRST_START}up to a minute in all (kept in ")
    assert told[0].count("\n") == 1
    assert told[1] == ""


@pytest.mark.slow
@pytest.mark.parametrize("lines", [20_000, 2])
def test_a_reader_that_goes_away_changes_no_status(tmp_path: Path, block: str, lines: int) -> None:
    (tmp_path / "many.py").write_text("yaml.load(\n" * lines)
    script = f"'{sys.executable}' -m prod_decode.cli scan '{block}' '{tmp_path}/many.py' 2>err; echo $? >status"
    # Without a reader from the start, so that it is the last flush that fails where there is little to print.
    reader = "head -n 1" if lines > 2 else "true"
    done = subprocess.run(
        ["sh", "-c", f"({script}) | {reader}"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (f"{tmp_path}/many.py:1:1: yaml.load(: yaml.load(\n" if lines > 2 else "")
    assert (tmp_path / "status").read_text() == "1\n"
    assert without_first_start((tmp_path / "err").read_text()) in ("", "prohibited places: 2, files read: 1\n")


class Broken(io.TextIOWrapper):
    """An output that nobody reads, or a disk that is full."""

    error: OSError = BrokenPipeError(errno.EPIPE, "Broken pipe")

    def write(self, _text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 7, ""),
        (OSError(errno.ENOSPC, "No space left"), 2, "x: cannot write to the standard output: No space left\n"),
    ],
)
def test_the_status_is_that_of_the_work_whoever_reads(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    status: int,
    told: str,
) -> None:
    with (tmp_path / "out").open("wb") as file:
        output = Broken(file)
        output.error = error
        monkeypatch.setattr(sys, "stdout", output)
        assert exit_status("x", lambda: sys.stdout.write("text") + 3) == status
    assert capsys.readouterr().err == told
    assert sys.stdout is output


# ---- what is not covered -------------------------------------------------------------------------------------------


def names_of(path: str) -> list[str]:
    return [info.id for info in Blocklist.load(path).entries()]


def test_named_files_that_are_no_lists_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list of phrases under another name would guard its whole text, and none of its phrases."""
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("yaml.load(\n")
    for name in ("phrases.lst", "a.py", "b.py", "c"):
        Path(name).write_text("yaml.load(\n" * 20)
    assert main(["compile", "list.txt", "phrases.lst", "a.py", "b.py", "c", "-o", "x.prod"]) == 0
    assert capsys.readouterr().err == (
        "read as a document each: phrases.lst, a.py, b.py and 1 more (lists are .txt, .jsonl and .ndjson files)\n"
    )
    assert main(["compile", "list.txt", "-o", "x.prod"]) == 0
    assert capsys.readouterr().err == ""


def test_compile_goes_on_and_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("yaml.load(\nab\nbroken\ufffd\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("x = 1\n")
    (tmp_path / "code" / "b.bin").write_bytes(b"\0")
    out = str(tmp_path / "out.prod")
    command = ["compile", str(tmp_path / "list.txt"), str(tmp_path / "code"), "-o", out]
    assert main([*command, "--strict"]) == 2
    assert not Path(out).exists()
    assert capsys.readouterr().err.count("\n") == 1
    assert main(command) == 3
    error = capsys.readouterr().err
    assert [line.partition(": ")[2] for line in error.splitlines() if line.startswith("not covered: ")] == [
        f"{tmp_path}/code/b.bin is a binary file, expected UTF-8 text",
        f"entry 'ab' ({tmp_path}/list.txt:2): 'ab' is 2 normalised bytes, expected at least 3: it would ban a great "
        "deal; make it longer or pass --allow-short (allow_short=True)",
        f"entry 'broken\ufffd' ({tmp_path}/list.txt:3): text has U+FFFD at character 6, which decoders write for "
        "broken bytes, so it cannot be guarded: remove it, or read the source with its right encoding",
        f"'{tmp_path}/code/a.py': shorter than max_quote",
    ]
    assert names_of(out) == ["yaml.load(", f"{tmp_path}/code/a.py"]
    assert main([*command, "--accept-uncovered"]) == 0
    assert capsys.readouterr().err == error
    (tmp_path / "code" / "b.bin").unlink()
    (tmp_path / "list.txt").write_text("yaml.load(\n")
    assert main(command) == 3
    assert main([*command, "--strict"]) == 2
    assert main([*command, "--max-quote", "6", "--strict"]) == 2
    (tmp_path / "code" / "a.py").write_text("x = 12345\n")
    assert main([*command, "--max-quote", "6", "--strict"]) == 0


def test_documents_that_prohibit_nothing_are_named_up_to_a_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "code").mkdir()
    for name in range(12):
        (tmp_path / "code" / f"{name:02}.py").write_text(f"x = {name}\n")
    (tmp_path / "list.txt").write_text("yaml.load(\n")
    command = ["compile", str(tmp_path / "list.txt"), str(tmp_path / "code"), "-o", str(tmp_path / "out.prod")]
    assert main(command) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[9:] == [
        f"not covered: '{tmp_path}/code/09.py': shorter than max_quote",
        "not covered: 2 more like these; `prod-decode info --json` lists them all",
    ]


def test_compile_says_which_letters_ignore_case_does_not_fold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("\u00c9tat(\n\u65e5\u672c\nMD5(\n\u00f1and\u00fa\n")
    command = ["compile", str(tmp_path / "list.txt"), "-o", str(tmp_path / "out.prod")]
    assert main([*command, "--ignore-case"]) == 0
    assert capsys.readouterr().err == (
        f"--ignore-case folds ASCII letters only: other letters in entry '\u00c9tat(' ({tmp_path}/list.txt:1) and 1 "
        "more are compared as they are\n"
    )
    assert main(command) == 0
    assert capsys.readouterr().err == ""


def test_scan_goes_on_and_a_hit_wins(tmp_path: Path, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.bin").write_bytes(b"\0yaml.load\0(")
    os.mkfifo(tmp_path / "code" / "pipe")
    paths = [str(tmp_path / "none"), str(tmp_path / "code")]
    capsys.readouterr()
    assert main(["scan", block, *paths]) == 3
    assert capsys.readouterr().err.splitlines() == [
        f"not covered: cannot read {tmp_path}/none: No such file or directory: check the name",
        f"not covered: {tmp_path}/code/a.bin is a binary file, expected UTF-8 text; only its bytes were looked through",
        f"not covered: {tmp_path}/code/pipe is a FIFO: not opened",
        "prohibited places: 0, files read: 1, not covered: 3",
    ]
    # A path that was named and is not there is a slip: nothing accepts it.
    assert main(["scan", block, *paths, "--accept-uncovered"]) == 3
    assert main(["scan", block, paths[1], "--accept-uncovered"]) == 0
    assert main(["scan", block, *paths, "--strict"]) == 2
    (tmp_path / "code" / "b.bin").write_bytes(b"\0\xff yaml.load(\xff")
    (tmp_path / "code" / "utf-16.py").write_bytes("pickle . load(".encode("utf-16"))
    capsys.readouterr()
    for option in ([], ["--accept-uncovered"]):
        assert main(["scan", block, *paths, *option]) == 1
        assert capsys.readouterr().out == (
            f"{tmp_path}/code/b.bin:1:4: yaml.load(: yaml.load(\n"
            f"{tmp_path}/code/utf-16.py:1:1: pickle.load(: pickle . load(\n"
        )


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str) -> str:
    """A repository with the list's own sources and copies of others' code in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("src/a.py", "src/vendor/b.py", "src/vendor/deep/c.py", "docs/a.md"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("yaml.load(f)\n")
    return block


@pytest.mark.parametrize(
    ("patterns", "paths", "found", "excluded"),
    [
        (["**/phrases.txt", "**/vendor"], ["."], ["docs/a.md", "src/a.py"], "1 file and 1 folder"),
        (["/phrases.txt", "src/vendor/"], ["."], ["docs/a.md", "src/a.py"], "1 file and 1 folder"),
        (["./phrases.txt", "src/vendor/*"], ["."], ["docs/a.md", "src/a.py"], "2 files and 1 folder"),
        (["*.py", "*.txt"], ["."], ["docs/a.md"], "4 files"),
        (["**/a.*"], ["."], ["phrases.txt", "src/vendor/b.py", "src/vendor/deep/c.py"], "2 files"),
        (["vendor/deep", "src/a.py"], ["src"], ["src/vendor/b.py"], "1 file and 1 folder"),
        (["src/vendor"], ["src/a.py", "src/vendor/b.py", "./src/vendor/deep/c.py"], ["src/a.py"], "2 files"),
        (["vendor"], ["src/vendor"], ["src/vendor/b.py", "src/vendor/deep/c.py"], None),
        (["A.PY"], ["src/a.py"], ["src/a.py"], None),
    ],
)
def test_what_is_excluded_is_not_looked_through_and_counted(
    sources: str,
    patterns: list[str],
    paths: list[str],
    found: list[str],
    excluded: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    options = [word for pattern in patterns for word in ("--exclude", pattern)]
    assert main(["scan", sources, *paths, *options]) == 1
    printed = capsys.readouterr()
    assert sorted({line.partition(":")[0] for line in printed.out.splitlines()}) == found
    summary, *told = printed.err.splitlines()
    assert summary.partition(", excluded: ")[2] == (excluded or "")
    assert told == (
        [] if excluded else [f"no effect: --exclude {pattern}: nothing was excluded by it" for pattern in patterns]
    )


def test_nothing_is_left_to_look_through(sources: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["scan", sources, "src", "--exclude", "*"]) == 3
    assert capsys.readouterr().err.splitlines() == [
        "not covered: src has no files to read in it, but for what is excluded",
        "prohibited places: 0, files read: 0, not covered: 1, excluded: 1 file and 1 folder",
    ]
    assert main(["scan", sources, "src", "--exclude", ""]) == 2
    assert capsys.readouterr().err == (
        "prod-decode scan: --exclude: expected a pattern such as 'vendor' or 'docs/*.md', got ''\n"
    )


def test_the_page_says_what_was_excluded(sources: str, tmp_path: Path) -> None:
    assert main(["scan", sources, "src", "--exclude", "vendor", "--html", "page.html"]) == 1
    assert "excluded: 1 folder" in (tmp_path / "page.html").read_text()


def test_a_file_that_is_named_twice_counts_once(sources: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("zero.bin").write_bytes(b"\0")
    for paths in (
        ["src/a.py", "zero.bin"] * 2,
        ["src/a.py", "./src/../src/a.py", str(Path("src/a.py").absolute()), "zero.bin", "./zero.bin"],
        ["src/a.py", "zero.bin", "link.py"],
    ):
        if "link.py" in paths:
            Path("link.py").symlink_to("src/a.py")
        capsys.readouterr()
        assert main(["scan", sources, *paths]) == 1
        printed = capsys.readouterr()
        assert printed.out == "src/a.py:1:1: yaml.load(: yaml.load(\n"
        assert printed.err.splitlines()[1:] == ["prohibited places: 1, files read: 2, not covered: 1"]
    assert main(["scan", sources, "src", ".", "docs"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) == 6  # of the phrases two


def test_a_blocklist_is_no_hit_of_itself(tmp_path: Path, block: str) -> None:
    (tmp_path / "phrases.txt").unlink()
    (tmp_path / "a.py").write_text("x = 1\n")
    assert main(["scan", block, str(tmp_path)]) == 0
    assert main(["scan", block, block]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_names_that_are_not_text_are_printed(tmp_path: Path, block: str, as_json: list[str]) -> None:
    (tmp_path / "code").mkdir()
    file = tmp_path / "code" / os.fsdecode(b"b\xe9.py")
    file.write_text("yaml . load('\u00e9\U0001f600')\nyaml.load\u2028(", encoding="utf-8")
    phrases = str(tmp_path / "e.txt")
    Path(phrases).write_text("('\u00e9\U0001f600'\n", encoding="utf-8")
    assert main(["compile", phrases, "-o", block]) == 0
    command = [sys.executable, "-m", "prod_decode.cli", "scan", block, str(tmp_path / "code"), *as_json]
    for encoding in ("utf-8:strict", "ascii:strict"):
        environment = {**ENVIRONMENT, "PYTHONIOENCODING": encoding}
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        told = without_first_start(done.stderr.decode())
        assert (done.returncode, told) == (1, "prohibited places: 1, files read: 1\n")
        if as_json:
            record = json.loads(done.stdout)
            assert (record["path"], record["text"]) == (str(file), "('\u00e9\U0001f600'")
        else:
            assert done.stdout.startswith(f"{tmp_path}/code/b\\udce9.py:1:12: ".encode())


def test_the_help_names_every_directory_that_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["scan", "--help"])
    text = capsys.readouterr().out
    assert [name for name in CACHES if f"`{name}`" not in text] == []


def test_every_exit_status_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert re.findall(r"^  (\d)  ", text, re.MULTILINE) == ["0", "1", "2", "3"]


def test_matches_of_the_prompt_are_not_the_outputs() -> None:
    blocklist = Blocklist.compile([Entry("yaml.load(")])
    run = Generation("yaml.load(x)\nyaml.lo", ["ad", "(y)\n", "yaml.load("], [None] * 3, Counter(), 1.0)
    assert record(run, blocklist)["matches"] == [
        {"start": 13, "end": 23, "entry_id": "yaml.load("},
        {"start": 26, "end": 36, "entry_id": "yaml.load("},
    ]


@pytest.mark.slow
def test_the_page_of_options_is_up_to_date() -> None:
    script = ROOT / "docs" / "generate.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert done.returncode == 0, "run `make docs`"


def test_importing_the_package_loads_no_engine() -> None:
    check = (
        "import sys, prod_decode; print([n for n in ('torch', 'transformers', 'vllm', 'numba') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_info_tells_replacements_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"text": "yaml.load(", "replacement": "yaml.safe_load("},
        {"text": "pickle.load(", "replacement": "json.load("},
    ]
    (tmp_path / "e.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    output = str(tmp_path / "a.prod")
    assert main(["compile", str(tmp_path / "e.jsonl"), "-o", output]) == 0
    assert "banned and not replaced, because more than the last word differs: pickle.load(" in capsys.readouterr().err
    assert main(["info", output, "--entries"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{'replacements':16} 1" in lines
    assert f"{'not replaced':16} 1, because more than the last word differs" in lines
    assert any(line.startswith("  pickle.load(") and ", not replaced by 'json.load('" in line for line in lines)
    assert any(line.startswith("  yaml.load(") and ", replaced by 'yaml.safe_load('" in line for line in lines)
    assert main(["info", output, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["replacements"]
    assert {one["entry"]: one["reached"] for one in found} == {"yaml.load(": True, "pickle.load(": False}


def test_mistakes_of_lists_name_their_places_and_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "a.prod")

    def said(name: str, *rows: dict[str, object]) -> str:
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        assert main(["compile", str(tmp_path / name), "-o", output]) == 2
        return capsys.readouterr().err.replace(f"{tmp_path}/", "")

    assert said("a.jsonl", {"text": "os.system(", "replacement": "os.popen("}, {"text": "os.popen("}).endswith(
        "entry 'os.system(' (a.jsonl:1): expected a replacement that nothing prohibits, got 'os.popen(', which entry "
        "'os.popen(' (a.jsonl:2) does: change one of them\n"
    )
    assert said("b.jsonl", {"text": "x" * 200, "id": "x", "policy": "quote", "replacement": "y"}).endswith(
        "entry 'x' (b.jsonl:1): replacement belongs to policy 'phrase', this is a 'quote': drop replacement, or change "
        "the policy\n"
    )
    assert said("c.jsonl", {"text": "x" * 200, "policy": "quote", "budget": "240"}).endswith(
        "got '240': leave out the quotes\n"
    )
    (tmp_path / "d.txt").write_text("eval(\n")
    assert main(["compile", str(tmp_path / "d.txt"), "-o", output]) == 0
    capsys.readouterr()
    assert main(["compile", output, "-o", str(tmp_path / "b.prod")]) == 2
    assert "join such files with prod-decode merge" in capsys.readouterr().err
    assert main(["compile", str(tmp_path / "d.txt"), "-o", str(tmp_path / "no" / "b.prod")]) == 2
    assert "does not exist: make it first" in capsys.readouterr().err
