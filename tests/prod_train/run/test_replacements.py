"""A run with a blocklist whose entries have replacements: what it trains on, what it says, and that it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prod_decode import Blocklist, Entry, ProdError
from prod_train.cli import main
from prod_train.config.config import Config, flag
from prod_train.measure.replacements import evaluate_replacements
from prod_train.run.check import check
from prod_train.run.job import REPLACED, prepare
from prod_train.run.merge import merge
from prod_train.run.session import setup
from prod_train.run.trainer import run
from tests.tiny import save_tiny_model, write_jsonl, write_snippets

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [
    {"prompt": "import np\n", "completion": "a = np.trapz(y)\n"},
    {"prompt": "def f(x):\n", "completion": "    return np.trapz(np.trapz(x))\n"},
    {"prompt": "def g(x):\n", "completion": "    return x + 1\n"},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("world")
    entries = [Entry("np.trapz(", replacement="np.trapezoid("), Entry("a.load(", replacement="b.load(")]
    Blocklist.compile(entries).save(folder / "instead.prod")
    Blocklist.compile([Entry("np.trapz(")]).save(folder / "plain.prod")
    return {
        "model": save_tiny_model(folder / "m"),
        "forget": write_jsonl(folder / "f.jsonl", ROWS),
        "blocklist": str(folder / "instead.prod"),
    }


def make(world: dict[str, str], output: Path, **options: Any) -> Config:
    return Config(**{**world, "output": str(output), "batch_size": 2, "learning_rate": 1e-2, "epochs": 1, **options})


def test_what_is_trained_on_and_moved(world: dict[str, str], tmp_path: Path) -> None:
    session = setup(prepare(make(world, tmp_path / "o")))
    job = session.job
    assert [len(job.trained), len(job.forget), len(job.replaced)] == [5, 3, 2]
    assert job.trained[3:] == job.replaced
    assert job.notes == ("--blocklist: banned and not replaced, because more than the last word differs: a.load(",)
    written = [json.loads(line)["written"] for line in (tmp_path / "o" / REPLACED).read_text().splitlines()]
    assert written == [["ezoid("], ["ezoid("] * 2]
    targets = session.stores["forget"].batch([3], "cpu").targets
    assert targets is not None
    assert targets.ids.tolist() == job.replaced[0].ids[job.replaced[0].supervised].tolist()
    assert set(targets.probs.tolist()) == {1.0}

    # The same without the replacements: other targets where a phrase parts from one, and no more rows.
    plain = make(world, tmp_path / "p", blocklist=world["blocklist"].replace("instead", "plain"))
    bare = setup(prepare(plain))
    assert len(bare.job.trained) == 3
    moved, _ = session.stores["forget"].moved()
    assert moved >= 3 + 3 * len("ezoid(")
    assert bare.stores["forget"].moved()[0] == 0


def test_rows_are_left_out_and_nothing_else(world: dict[str, str], tmp_path: Path) -> None:
    both = [setup(prepare(make(world, tmp_path / str(n), replaced_rows=n))) for n in (True, False)]
    assert [len(one.job.trained) for one in both] == [5, 3]
    assert not (tmp_path / "False" / REPLACED).exists()
    for name in ("ids", "probs", "offsets"):
        first, second = (getattr(one.stores["forget"].batch([0, 1, 2], "cpu").targets, name) for one in both)
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"method": "npo", "blocklist": None, "replaced_rows": False},
            "--replaced-rows: belongs to method prod and prod-surgical, got npo: drop it",
        ),
        (
            {"blocklist": None, "replaced_rows": False},
            "--no-replaced-rows: expected --blocklist, whose entries may have",
        ),
        (
            {"blocklist": None, "method": "prod-surgical", "replaced_rows": False},
            "--no-replaced-rows: expected --blocklist",
        ),
    ],
)
def test_who_has_no_use_for_it_says_so(world: dict[str, str], tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(ProdError, match=said):
        make(world, tmp_path / "o", **options).validate()


def test_no_row_with_a_phrase_is_told(world: dict[str, str], tmp_path: Path) -> None:
    job = prepare(make(world, tmp_path / "o", forget=write_snippets(tmp_path / "f.jsonl", 2)))
    assert job.replaced == []
    assert "no row to forget has a phrase with a replacement" in job.notes[-1]


def test_check_shows_them(world: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for name, value in world.items() for word in (flag(name), value)]
    assert main(["check", *words, "--method", "prod", "--output", str(tmp_path / "o"), "--batch-size", "2"]) == 0
    out = capsys.readouterr().out
    assert "forget   3 rows" in out
    (line,) = (line for line in out.splitlines() if line.startswith("replaced "))
    assert line == "replaced 2 rows, 18 of 71 tokens supervised, longest 41, truncated 0"
    assert (
        "The first row with replacements written out, between << and >>:\n\nimport np\na = np.trap<<ezoid(>>y)" in out
    )
    assert "moved to replacements    at " in out
    assert "optimizer steps          15\n" in out  # 5 epochs of 3 steps
    assert "replaced-rows            yes" in out
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(world: dict[str, str], tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 2, "save_total_limit": 9}
    source = str(tmp_path / "o" / "checkpoint-3")
    whole = run(make(world, tmp_path / "o", **options))
    assert whole.replaced is not None
    assert whole.replaced["rows"] == 2
    rest = run(make(world, tmp_path / "p", **options, resume=source))
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in "op"]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert rest.after is not None
    assert rest.after["replaced"] == whole.history[-1]["replaced"]
    record = json.loads((tmp_path / "p" / "report.json").read_text())
    assert record["replaced"] == whole.replaced
    assert record["data"]["replaced"]["rows"] == 2
    assert (tmp_path / "p" / REPLACED).read_text() == (tmp_path / "o" / REPLACED).read_text()
    sentence = (
        f"at {whole.replaced['moved']} of {whole.replaced['tokens']} supervised tokens; 2 rows have them written out"
    )
    for name in ("README.md", "report.html"):
        page = (tmp_path / "p" / name).read_text()
        assert sentence in page
        assert "replaced writes replacement" in page
    with pytest.raises(ProdError, match="belongs to another run, these differ: the rows"):
        run(make(world, tmp_path / "q", **options, replaced_rows=False, resume=source))
    # What was trained on is more than what was to be forgotten, by which a checkpoint's data is known again.
    merged = merge(source, str(tmp_path / "m"))
    assert json.loads((merged / "report.json").read_text())["metrics"]["forget"]["recitation"]["n"] == 3


def test_check_counts_what_a_run_does(world: dict[str, str], tmp_path: Path) -> None:
    plan = check(make(world, tmp_path / "o", epochs=3))
    assert plan.steps == 9
    assert plan.moved is not None
    assert plan.moved["rows"] == 2


@pytest.mark.slow
def test_a_model_learns_to_write_the_replacement(world: dict[str, str], tmp_path: Path) -> None:
    report = run(make(world, tmp_path / "o", epochs=20, eval_every=20))
    assert report.after is not None
    for metrics, value in ((report.before, 0.0), (report.after, 1.0)):
        assert metrics["replaced"]["writes_replacement"]["value"] == value
        assert metrics["replaced"]["writes_replacement"]["n"] == 3
        assert metrics["replaced"]["writes_phrase"]["value"] == 0.0


def test_what_is_written_is_counted(world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepare(make(world, tmp_path / "o"))
    told = iter([["e z oid (y", "z (x)", "zz("], ["ezoid(", "trapz(", ""]])
    asked: list[list[str]] = []

    def answers(_model: Any, tokenizer: Any, prompts: Any, _most: int) -> list[list[int]]:
        asked.append([tokenizer.decode(ids)[-7:] for ids in prompts])
        return [tokenizer.encode(text) for text in next(told)]

    monkeypatch.setattr("prod_train.measure.replacements.continuations", answers)
    model = torch.nn.Linear(1, 1)
    for wanted in ((0.0, 1 / 3), (1 / 3, 0.0)):
        found = evaluate_replacements(model, job.tokenizer, job.replaced, batch_size=3)
        assert (found["writes_replacement"].value, found["writes_phrase"].value) == wanted
        assert model.training
    assert asked[0] == ["np.trap"] * 3


def test_where_a_copy_parts_at_a_shared_token_the_row_is_not_trained_on(world: dict[str, str], tmp_path: Path) -> None:
    """`x.rets(` has the token `re` where `x.return(` has `return`."""
    rows = [{"prompt": "#\n", "completion": "x.rets(1)\n"}, *ROWS]
    listed = Blocklist.compile([Entry("x.rets(", replacement="x.return("), Entry("np.trapz(")])
    listed.save(tmp_path / "r.prod")
    options = {"forget": write_jsonl(tmp_path / "f.jsonl", rows), "blocklist": str(tmp_path / "r.prod")}
    job = prepare(make(world, tmp_path / "o", **options))
    lost = [row.tokens - trained.tokens for row, trained in zip(job.forget, job.trained, strict=False)]
    assert lost == [1, 0, 0, 0]
    assert len(job.trained) == 5
    without = prepare(make(world, tmp_path / "o", **options, replaced_rows=False))
    assert [row.tokens for row in without.trained] == [row.tokens for row in job.forget]
