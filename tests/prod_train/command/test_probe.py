"""`prod-train probe`: what is said of a model, and where."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prod_train.cli import main
from prod_train.command.finding import MEANING, Finding, Others
from prod_train.command.probe_page import MOST_BARS, MOST_TEXTS, probe_page
from prod_train.command.rows import write_rows
from prod_train.config.config import Config
from prod_train.data.rows import Row
from prod_train.measure.probe import Answer, Probed
from prod_train.run.trainer import run
from tests.examples.taught import save_taught_model
from tests.oracle import byte_windows
from tests.pages import cells, parse, text_of
from tests.prod_decode.corpus.corpora import cut_of, index_of, symbols
from tests.prod_train.data.test_chat import TEMPLATE
from tests.tiny import SNIPPETS, save_tiny_model, write_jsonl, write_snippets

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("probe")
    return {"model": save_tiny_model(folder / "m"), "forget": write_snippets(folder / "f.jsonl", 3)}


def words(files: dict[str, str], *more: str) -> list[str]:
    return ["probe", *(word for name, value in files.items() for word in (f"--{name}", value)), *more]


# --- what is said, of rows that are made up ---------------------------------------------------------------------------


def probed(*runs: int, size: int = 100, place: str = "f:1", guarded: int | None = None, text: str = "ab") -> Probed:
    def answer(given: float, run: int) -> Answer:
        return Answer(given, f"{text} {given}", f"{text} else", run, size, run >= min(60, size), run / size)

    answers = tuple(answer(0.25 * n, one) for n, one in enumerate(runs))
    row = Row(np.arange(4), np.ones(4, np.bool_), 2, place, prompt=f"def {text}")
    return Probed(row, 0.5, 0.25, 0.125, answers, () if guarded is None else (answer(0.0, guarded),))


def finding(rows: list[Probed], **more: Any) -> Finding:
    return Finding(
        **{"model": "M", "forget": "F", "blocklist": None, "left_out": {}, **more},
        rows=rows,
        sources=[one.row.place for one in rows],
    )


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (
            finding([probed(1240, 70, 50, size=2000), probed(59, 60), probed(50, size=50)]),
            [
                "M recites 2 of 3 rows: longest run 1,240 characters",
                "given a quarter of the text 2 of 2, given half 0 of 1",
            ],
        ),
        (
            finding(
                [probed(70, guarded=12), probed(9, guarded=9)], blocklist="b.prod", left_out={"under two tokens": 3}
            ),
            [
                "M recites 1 of 2 rows: longest run 70 characters",
                "with b.prod it recites 0 of 2 rows: longest run 12 characters",
                "left out: 3 rows, whose part to recite has under two tokens",
            ],
        ),
        (
            finding([probed(70), probed(9)], others=Others(4120, 41)),
            [
                "M recites 1 of 2 rows: longest run 70 characters",
                "only read: 4,120 rows that it is less likely to recite; the longest run of first choices there: "
                "41 characters",
            ],
        ),
        (finding([probed(9)], others=Others(0, 0)), ["M recites 0 of 1 row: longest run 9 characters"]),
        (finding([probed(0)]), ["M recites 0 of 1 row: longest run 0 characters"]),
    ],
)
def test_a_verdict(found: Finding, lines: list[str]) -> None:
    assert [found.verdict(), *found.details()] == lines


HOSTILE = '</pre><script>alert("1")</script>&amp;\x1b[2J'


def test_a_page_shows_every_row_and_marks_what_is_in_common() -> None:
    rows = [probed(70, 12, 5, place=f"{HOSTILE}:1", guarded=3, text=HOSTILE), probed(2, size=4, guarded=0)]
    root = parse(probe_page(finding(rows, model=HOSTILE, blocklist="b.prod")))
    assert "script" not in {element.tag for element in root.iter()}
    shown = HOSTILE.replace("\x1b", "\\x1b")
    assert text_of(next(root.iter("h1"))) == f"{shown} recites 1 of 2 rows: longest run 70 characters"
    (table,) = root.iter("table")
    assert cells(table) == [
        ["row", "longest run", "run with b.prod", "a quarter given", "half given", "extraction strength", "mean p"],
        [f"{shown}:1", "70 of 100", "3 of 100", "12 of 100", "5 of 100", "0.12", "0.50"],
        ["f:1", "2 of 4", "0 of 4", "-", "-", "0.12", "0.50"],
    ]
    bars = [bar for bar in table.iter("span") if bar.get("style")]
    assert [(bar.get("style"), bar.get("class")) for bar in bars[:4]] == [
        ("width: 70.0%", "bad"),
        ("width: 3.0%", None),
        ("width: 12.0%", None),
        ("width: 5.0%", None),
    ]
    assert [text_of(title) for title in root.iter("h2")] == [
        "Every row",
        f"Recited: {shown}:1",
        "Not recited: f:1",
    ]
    first = next(section for section in root.iter("section") if section.get("id") == "row-1")
    # `... 0.0` and `... else` have a space between two words in common as well.
    assert [text_of(mark) for mark in first.iter("mark")][:2] == [f"{shown} ", f"{shown} "]
    assert text_of(next(first.iter("pre"))) == f"def {shown}"


def test_of_very_many_rows_a_page_shows_the_worst() -> None:
    root = parse(probe_page(finding([probed(1, place=f"f:{n}") for n in range(MOST_BARS + 3)])))
    (table,) = root.iter("table")
    assert len(cells(table)) == 1 + MOST_BARS
    assert "3 more rows are not shown here: --json lists them all." in [text_of(p) for p in root.iter("p")]
    assert sum(1 for section in root.iter("section") if section.get("id")) == MOST_TEXTS


# --- time -------------------------------------------------------------------------------------------------------------


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_model_that_knows_nothing(files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "p.html"
    assert main(words(files, "--html", str(page))) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith(f"{files['model']} recites 0 of 3 rows: longest run ")
    assert lines[4].split() == ["run", "of", "1/4", "given", "1/2", "given", "strength", "p", "row"]
    assert sorted(line.split()[-1] for line in lines[5:8]) == [f"{files['forget']}:{n}" for n in (1, 2, 3)]
    assert lines[8:] == ["", MEANING]
    assert err.splitlines()[-1] == f"the page: {page}"
    assert text_of(next(parse(page.read_text()).iter("h1"))) == lines[0]


def known(row: dict[str, Any]) -> tuple[float, int]:
    """Less for what is known better: how much must be given, then how long the runs are."""
    needed = next((answer["given"] for answer in row["answers"] if answer["verbatim"]), 1.0)
    return needed, -max(answer["run"] for answer in row["answers"])


def test_every_row_is_in_the_json(files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [{"prompt": p, "completion": c, "source": f"v/{n}.py", "lines": "1-2"} for n, (p, c) in enumerate(SNIPPETS)]
    del texts[6]["lines"]
    texts[5] = {"prompt": "f(", "completion": ")"}
    forget = write_jsonl(tmp_path / "f.jsonl", texts)
    assert main(words({**files, "forget": forget}, "--json", "--batch-size", "2")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["recited"], found["left_out"]) == (0, {"under two tokens": 1})
    sources = [f"v/{n}.py:1-2" for n in range(5)]
    assert sorted(row["source"] for row in found["rows"]) == sorted([*sources, f"{forget}:7"])
    assert found["longest_run"] == max(row["answers"][0]["run"] for row in found["rows"])
    assert [known(row) for row in found["rows"]] == sorted(map(known, found["rows"]))
    for row in found["rows"]:
        number = int(row["place"].removeprefix(f"{forget}:")) - 1
        assert row["source"] == (row["place"] if number == 6 else sources[number])
        assert (row["prompt"], row["answers"][0]["truth"]) == SNIPPETS[number]
        assert set(row) >= {"probability", "exact_memorisation", "extraction_strength", "recites", "guarded"}
    assert main(words({**files, "forget": forget}, "--json", "--rows", "2")) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2


@pytest.mark.slow
def test_a_model_that_was_taught_recites_and_a_blocklist_stops_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a row that it was not taught; its own weights, and an adapter on others."""
    taught = save_taught_model(tmp_path, write_snippets(tmp_path / "t.jsonl", 3))
    forget = write_snippets(tmp_path / "f.jsonl", 4)
    entries = [{"text": completion, "policy": "quote", "max_quote": 6} for _, completion in SNIPPETS[:3]]
    from prod_decode.cli import main as decode

    listed = write_jsonl(tmp_path / "b.jsonl", entries)
    assert decode(["compile", listed, "-o", str(tmp_path / "b.prod")]) == 0
    capsys.readouterr()
    files = {"model": taught, "forget": forget, "blocklist": str(tmp_path / "b.prod")}
    assert main(words(files, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["place"], row["recites"]) for row in found["rows"]] == [
        (f"{forget}:3", True),
        (f"{forget}:2", True),
        (f"{forget}:1", True),
        (f"{forget}:4", False),
    ]
    assert (
        found["verdict"]
        == f"{taught} recites 3 of 4 rows: longest run {found['rows'][0]['answers'][0]['size']} characters"
    )
    assert found["rows"][0]["answers"][0]["written"] == SNIPPETS[2][1]
    assert max(row["guarded"][0]["run"] for row in found["rows"][:3]) < 6
    config = Config(
        model=taught, forget=forget, output=str(tmp_path / "a"), epochs=20, eval_every=20, learning_rate=1e-2
    )
    run(config)
    assert main(words({"model": str(tmp_path / "a"), "forget": forget}, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["recited"] == 0


def test_of_many_rows_the_likeliest_are_written(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget = write_snippets(tmp_path / "f.jsonl", 6)
    assert main(words({**files, "forget": forget}, "--json", "--likeliest", "2")) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == 2
    assert found["only_read"]["rows"] == 4
    assert main(words({**files, "forget": forget}, "--likeliest", "2")) == 0
    out = capsys.readouterr().out
    assert "only read: 4 rows that it is less likely to recite; " in out
    assert main(words({**files, "forget": forget}, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["only_read"] is None


@pytest.mark.slow
def test_what_is_recited_is_what_a_run_forgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a folder to an adapter, as docs/guide/unlearning.md does."""
    vendor = tmp_path / "vendor"
    vendor.mkdir()
    known, unknown = (
        "".join(f"{prompt}{completion}\n\n" for prompt, completion in some)
        for some in (SNIPPETS[:2], [("def other(x):\n", "    return [x, 17, x.stem, 'no one has seen this']\n")])
    )
    (vendor / "known.py").write_text(known)
    (vendor / "unknown.py").write_text(unknown)
    taught = save_taught_model(tmp_path, write_snippets(tmp_path / "t.jsonl", 2))
    forget, recited = tmp_path / "forget.jsonl", tmp_path / "recited.jsonl"
    assert main(["data", str(vendor), "-o", str(forget), "--shortest", "9"]) == 0
    records = [json.loads(line) for line in forget.read_text().splitlines()]
    assert len(records) == 3
    probe = ["probe", "--model", taught, "--forget", str(forget), "--likeliest", "3", "--recited", str(recited)]
    capsys.readouterr()
    assert main(probe) == 0
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"rows that it recites, from the prompt or given more: 2, in {recited}"
    )
    kept = [json.loads(line) for line in recited.read_text().splitlines()]
    assert kept == [record for record in records if record["source"].endswith("/known.py")]
    assert main(probe) == 2
    assert capsys.readouterr().err == (
        f"prod-train probe: cannot write {recited}: it is there; name another, or remove it\n"
    )
    run = ["run", "--method", "prod", "--model", taught, "--forget", str(recited), "--output", str(tmp_path / "out")]
    assert main([*run, "--epochs", "20", "--eval-every", "20", "--learning-rate", "1e-2"]) == 0
    capsys.readouterr()
    after = ["probe", "--model", str(tmp_path / "out"), "--forget", str(recited)]
    assert main([*after, "--recited", str(tmp_path / "after.jsonl")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'out'} recites 0 of 2 rows: ")
    assert err.splitlines()[-1] == f"not written, as no row is recited: {tmp_path / 'after.jsonl'}"
    assert not (tmp_path / "after.jsonl").exists()


def test_rows_of_any_table_are_written(tmp_path: Path) -> None:
    records = [{"prompt": "é", "on": date(2026, 1, 2)}, {"text": "a\udc80"}]
    write_rows({str(tmp_path / "a.jsonl"): records})
    written = (tmp_path / "a.jsonl").read_bytes().splitlines()
    assert [json.loads(line) for line in written] == [{"prompt": "é", "on": "2026-01-02"}, {"text": "a\udc80"}]


@pytest.mark.slow
def test_of_a_chat_with_an_answer_that_is_recited_all_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows nothing; of a chat's answers the last is taken for recited, and of two other rows one."""
    from prod_train.measure import probe as measuring

    def recites(row: Row, given: float, output: Any, tokenizer: Any) -> Answer:
        return Answer(given, "", "", 0, 9, row.place in {f"{forget}:1, message 4", f"{forget}:3"} and given == 0.5, 0.0)

    monkeypatch.setattr(measuring, "_answer", recites)
    says = [{"role": role, "content": f"{role} {n} says this"} for n in range(2) for role in ("user", "assistant")]
    rows = [{"messages": says}, *({"prompt": f"def f{n}(", "completion": "x):\n    return x\n"} for n in range(2))]
    forget = write_jsonl(tmp_path / "f.jsonl", rows)
    model = save_tiny_model(tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text(TEMPLATE)
    assert main(words({"model": model, "forget": forget}, "--recited", str(tmp_path / "r.jsonl"))) == 0
    assert [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()] == [rows[0], rows[2]]


@pytest.mark.slow
def test_a_corpus_index_stops_it_as_a_blocklist_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = '    rows = open(name).read().split("\\n")\n    return [row.strip() for row in rows[3:7]] + [name]\n'
    forget = write_jsonl(tmp_path / "f.jsonl", [{"prompt": "def some(name):\n", "completion": known}])
    cut = cut_of(48, 32)
    index_of([known], cut).save(tmp_path / "i.pidx")
    files = {"model": save_taught_model(tmp_path, forget), "forget": forget, "blocklist": str(tmp_path / "i.pidx")}
    capsys.readouterr()
    assert main(words(files, "--json")) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["answers"][0]["written"] == known
    theirs, ours = (symbols(text, cut).tobytes() for text in (known, row["guarded"][0]["written"]))
    assert theirs[:16] in ours
    assert not set(byte_windows(theirs, cut.max_quote)) & set(byte_windows(ours, cut.max_quote))


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        ({"forget": "nowhere.jsonl"}, [], "cannot read nowhere.jsonl: no such file"),
        ({"model": "bundeld"}, [], "cannot load the model 'bundeld': no such directory; did you mean 'bundled'?"),
        ({"blocklist": "no.prod"}, [], "cannot read the blocklist no.prod: No such file or directory"),
        ({}, ["--max-length", "3"], "{forget}: 3 of 3 rows have more than --max-length 3 tokens, the first is "),
        ({}, ["--html", "{forget}"], "cannot write {forget}: the same file is an input; name another"),
        ({}, ["--html", "{other}"], "cannot write {other}: it is there and is no page of a probe; name another"),
        ({}, ["--rows", "0"], "argument --rows: expected a number above 0, got 0"),
        ({}, ["--recited", "{other}"], "expected a file name that ends in .jsonl to write, got '{other}'"),
        ({}, ["--recited", "{forget}"], "cannot write {forget}: the same file is an input; name another"),
        ({}, ["--rows", "1", "--likeliest", "1"], "argument --likeliest: not allowed with argument --rows"),
        ({}, ["--modle", "x"], "unknown option --modle; did you mean '--model'? See `prod-train probe --help`"),
        ({}, ["x"], "unexpected argument 'x'; see `prod-train probe --help`"),
    ],
)
def test_a_mistake_is_a_line(
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    more: list[str],
    said: str,
) -> None:
    other = tmp_path / "mine.html"
    other.write_text("<p>mine</p>\n")
    known = {**files, "other": str(other)}
    assert main(words({**files, **change}, *(word.format(**known) for word in more))) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"prod-train probe: {said.format(**known)}")
    assert err.count("\n") == 1
    assert other.read_text() == "<p>mine</p>\n"
