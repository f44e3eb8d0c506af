"""report.html: what report.json holds, for people."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from prod_train.config.config import Config
from prod_train.run.page import loss_chart, measured_charts, run_page
from prod_train.run.trainer import run
from tests.pages import cells, parse, text_of
from tests.tiny import tiny_world, write_snippets


def metric(value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 7, "higher_is": "worse", "left_out": {}, **more}


def evaluation(recitation: float, agreement: float, **more: Any) -> dict[str, Any]:
    return {
        "forget": {
            "recitation": metric(recitation, 0.1, 0.9, left_out={"longer <than> 512": 2}),
            "verbatim_run": metric(61.2, 40.0, 80.7),
        },
        "holdout": {name: metric(agreement, 0.25, 0.75) for name in ("loss", "kl", "agreement")},
        **more,
    }


RECORD: dict[str, Any] = {
    "chosen": 2,
    "stopped": "forgot 0.900, at least --stop-at-forget 0.9",
    "notes": ["3 of 7 rows <are> both"],
    "collapsed": "",
    "before": evaluation(0.875, 1.0),
    "history": [
        evaluation(0.5, 0.75, step=2, epoch=1.0, loss=3.0, losses=[4.0, 2.0], seconds=1.0),
        evaluation(0.25, 0.5, step=3, epoch=1.5, loss=1.0, losses=[1.0], seconds=1.0),
    ],
    "config": {
        "model": "org/<script>alert(1)</script>",
        "tuning": "lora",
        "method": "prod",
        "learning_rate": 0.0003,
        "lora_targets": ["q_proj", "v_proj"],
        "truncate": True,
        "retain": None,
        "load_in_4bit": False,
    },
    "teacher": "0123abcd",
    "data": {"forget": {"rows": 7, "hash": "feed"}},
}


def test_a_page_says_what_was_trained_and_what_came_out() -> None:
    root = parse(run_page(RECORD))
    assert text_of(next(root.iter("h1"))) == "org/<script>alert(1)</script>, after prod-train run --method prod"
    said = [text_of(part) for part in root.iter("p")]
    assert said[:2] == [
        "The result is a LoRA adapter, after step 2 of 3.",
        "Stopped early: forgot 0.900, at least --stop-at-forget 0.9.",
    ]
    assert [text_of(part) for part in root.iter("li")] == ["3 of 7 rows <are> both"]
    metrics, course, data, settings = (cells(part) for part in root.iter("table"))
    assert metrics == [
        ["metric", "before", "after", "rows"],
        ["forget recitation", "0.875 (0.100-0.900)", "0.500 (0.100-0.900)", "7; 2 left out: longer <than> 512"],
        ["forget verbatim run, characters", "61 (40-81)", "61 (40-81)", "7"],
        ["holdout loss, nats per token", "1.000 (0.250-0.750)", "0.750 (0.250-0.750)", "7"],
        ["holdout KL, nats per token", "1.000 (0.250-0.750)", "0.750 (0.250-0.750)", "7"],
        ["holdout agreement", "1.000 (0.250-0.750)", "0.750 (0.250-0.750)", "7"],
    ]
    assert course == [
        ["step", "epoch", "training loss", "1 - recitation", "holdout loss", "holdout KL", "holdout agreement"],
        ["2 (the result)", "1", "3.0000", "0.500", "0.750", "0.750", "0.750"],
        ["3", "1.5", "1.0000", "0.750", "0.500", "0.500", "0.500"],
    ]
    assert data[1:] == [["forget", "7", "feed"], ["teacher", "", "0123abcd"]]
    assert settings[1:] == [
        ["--model", "org/<script>alert(1)</script>"],
        ["--tuning", "lora"],
        ["--method", "prod"],
        ["--learning-rate", "0.0003"],
        ["--lora-targets", "q_proj v_proj"],
        ["--truncate", "yes"],
    ]


def test_a_run_without_a_result_or_held_out_code_says_so() -> None:
    record = {**copy.deepcopy(RECORD), "chosen": None, "collapsed": "collapsed: it agrees on <0.1>"}
    for entry in (record["before"], *record["history"]):
        entry["holdout"] = None
    root = parse(run_page(record))
    said = [text_of(part) for part in root.iter("p")]
    assert said[0] == "There is no result: no checkpoint that is left obeys the stop rules."
    assert said[1] == "collapsed: it agrees on <0.1>"
    metrics, course, *_ = (cells(part) for part in root.iter("table"))
    assert [row[2] for row in metrics[1:]] == ["-", "-"]
    assert [row[4:] for row in course[1:]] == [["-"] * 3, ["-"] * 3]
    empty = parse(run_page({**record, "history": []}))
    assert "The course of training" not in text_of(empty)


def drawn(history: list[dict[str, Any]]) -> tuple[Element, list[str | None], list[str]]:
    from xml.etree import ElementTree as ET

    figure = ET.fromstring(loss_chart(history))
    return figure, [path.get("d") for path in figure.iter("path")], [text_of(part) for part in figure.iter("span")]


def test_each_step_is_a_point_and_each_evaluation_a_dot() -> None:
    figure, paths, labels = drawn(RECORD["history"])
    # 1000 wide for 3 steps; loss 4 at 10 below the top, loss 1 at 290.
    assert paths == ["M333.3 10.0 L666.7 196.7 L1000.0 290.0", "M666.7 103.3 h0 M1000.0 290.0 h0"]
    assert labels == ["4", "1", "step 0", "3"]
    assert next(figure.iter("svg")).get("aria-label") == "Training loss by step: from 4 to 1"


def test_forgetting_and_damage_are_curves_from_before_the_first_step() -> None:
    from xml.etree import ElementTree as ET

    history = copy.deepcopy(RECORD["history"])
    history[0]["holdout"]["kl"]["value"] = math.inf
    figures = [ET.fromstring(figure) for figure in measured_charts(RECORD["before"], history)]
    lines = [next(figure.iter("path")).get("d") for figure in figures]
    # 1 - recitation is 0.125, 0.5, 0.75 on a scale from 0 to 1; the KL that is infinite has no point.
    assert lines == [
        "M0.0 255.0 L666.7 150.0 L1000.0 80.0",
        "M0.0 10.0 L1000.0 150.0",
        "M0.0 10.0 L666.7 80.0 L1000.0 150.0",
    ]
    names = [next(figure.iter("svg")).get("aria-label") for figure in figures]
    assert names == [
        "Forgetting by step: 1 - recitation: from 0.125 to 0.75",
        "KL on other code by step: from 1 to 0.5",
        "Agreement on other code by step: from 1 to 0.5",
    ]
    for entry in history:
        entry["holdout"] = None
    assert len(list(measured_charts({**RECORD["before"], "holdout": None}, history))) == 1
    page = run_page(RECORD)
    assert page.count("<figure>") == 4


def test_verdict_and_recipe_are_on_the_page() -> None:
    config = {**RECORD["config"], "recipe": "balanced"}
    more = {"verdict": "recites 0 of <7> rows", "recipe": ["recipe <balanced>: two rounds"], "config": config}
    root = parse(run_page({**RECORD, **more}))
    assert text_of(next(root.iter("h1"))).endswith(", after prod-train run --recipe balanced")
    assert [text_of(part) for part in root.iter("strong")] == ["recites 0 of <7> rows."]
    assert "recipe <balanced>: two rounds" in [text_of(part) for part in root.iter("li")]


def test_what_cannot_be_drawn_is_left_out() -> None:
    history = [{"step": 2, "loss": math.inf, "losses": [math.nan, math.inf]}, {"step": 4, "loss": 2.0}]
    assert drawn(history)[1] == ["M1000.0 10.0", "M1000.0 10.0 h0"]  # a record from before losses were kept
    assert "No loss was finite." in loss_chart(history[:1])
    assert drawn([{"step": 1, "loss": 0.0, "losses": [0.0]}])[1] == ["M1000.0 10.0", "M1000.0 10.0 h0"]


def test_of_many_steps_means_are_drawn() -> None:
    losses = [0.0, 0.0, 3.0, 3.0, 3.0, 0.0] * 300
    paths = drawn([{"step": 1800, "loss": 0.0, "losses": losses}])[1][0] or ""
    assert paths.count(" L") == 599
    assert paths.startswith("M1.1 150.0 L2.8 10.0 L")  # the means 1 of steps 1 to 3, and 2 of steps 4 to 6


@pytest.mark.usefixtures("one_thread")
def test_a_run_writes_its_page_and_the_loss_of_each_step(tmp_path: Path) -> None:
    world = tiny_world(tmp_path)
    holdout = write_snippets(tmp_path / "h.jsonl", 2, 7)
    config = Config(**world, holdout=holdout, output=str(tmp_path / "o"), max_steps=5, eval_every=2)
    report = run(config)
    record = json.loads((tmp_path / "o" / "report.json").read_text())
    page = (tmp_path / "o" / "report.html").read_text()
    assert page == run_page(record)
    parse(page)
    steps = [0, *(entry["step"] for entry in report.history)]
    for entry, before in zip(report.history, steps, strict=False):
        assert len(entry["losses"]) == entry["step"] - before
        assert entry["loss"] == pytest.approx(sum(entry["losses"]) / len(entry["losses"]), rel=1e-6)
    assert len(set(report.history[0]["losses"])) > 1
