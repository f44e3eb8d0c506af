"""What a report makes of cells: series, means over seeds, attacks that are missing and attacks that are not made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from bench.metrics import Value
from bench.report.plots import draw_epochs
from bench.report.report import report
from bench.report.series import Series, attacked, by_epoch, points, series_of
from bench.unlearning.plan import Plan
from bench.unlearning.profiles import PROFILES, SECOND_ROUND
from bench.unlearning.records import Cell, Key, RunFolder
from tests.pages import parse

PLAN = Plan(
    replace(
        PROFILES["smoke"],
        methods=("base", "prod", "ga"),
        attacks=("renamed", "relearned"),
        attacked=("base", "prod"),
        epochs=4,
        every=2,
    ),
    "bundled",
    ("copyright", "insecure"),
)


def cell(key: Key, leak: float = 0.5, *, utility: float | None = 0.5, quality: float | None = 0.25) -> Cell:
    metrics = {
        "verbatim": Value(leak, leak, leak, 4, "worse"),
        "holdout_agreement": Value(utility, 0, 1, 4, "better"),
        "forget_quality": Value(quality, 0, 1, 4, "better"),
    }
    return Cell(key, metrics, 1.0, 40.0, 1)


def key(method: str = "prod", epoch: int = 4, attack: str = "none", seed: int = 0, protocol: str = "learn") -> Key:
    return Key("copyright", protocol, method, epoch, attack, seed)


PROD = Series("prod", "learn", "prod")
MEASURED = st.tuples(st.integers(1, 5), st.integers(0, 2), st.floats(0, 1), st.floats(0, 1))


@given(st.lists(MEASURED, max_size=8, unique_by=lambda x: x[:2]), st.randoms(use_true_random=False))
def test_points_are_means_over_seeds_by_epoch(found: list[tuple[int, int, float, float]], random: object) -> None:
    cells = [cell(key(epoch=e, seed=s), utility=u, quality=q) for e, s, u, q in found]
    cells += [
        cell(key(epoch=9, attack="renamed")),
        cell(key(epoch=8), quality=None),
        cell(key(epoch=7), utility=None),
        cell(key(epoch=6, protocol="natural")),
        cell(key("ga", epoch=6)),
    ]
    random.shuffle(cells)  # type: ignore[attr-defined]
    expected = []
    for epoch in sorted({e for e, *_ in found}):
        mine = [(u, q) for e, _, u, q in found if e == epoch]
        expected.append(tuple(sum(column) / len(mine) for column in zip(*mine, strict=True)))
    assert [pytest.approx(pair) for pair in points(cells, PROD, "holdout_agreement")] == expected
    utilities = by_epoch([c for c in cells if c.key.epoch < 6], PROD, "holdout_agreement")
    assert [value for _, value in utilities] == [pytest.approx(u) for u, _ in expected]


def test_series_name_their_protocol_where_there_are_several() -> None:
    keys = [key("prod"), key("ga"), key("decode", 0), key("base", 0), key("prod+decode")]
    assert [series.label for series in series_of(keys)] == ["base", "decode", "ga", "prod", "prod+decode"]
    both = series_of([*keys[:1], key("prod", protocol="natural")])
    assert [series.label for series in both] == ["prod, learn", "prod, natural"]
    assert [len(series.cells([cell(keys[0])])) for series in both] == [1, 0]


def test_what_is_missing_differs_from_what_is_not_made() -> None:
    cells = [cell(key("base", 0)), cell(key("prod", 2)), cell(key("prod", attack="renamed"), 0.75)]
    base, prod = attacked(PLAN, "copyright", cells)
    # Only adapters can be relearned; the cell after epoch 2 is not the last one.
    assert (base.label, base.cells) == ("base", {"none": cells[0], "renamed": None})
    assert (prod.label, prod.cells) == ("prod", {"none": None, "renamed": cells[2], "relearned": None})
    assert not attacked(PLAN, "insecure", cells)
    assert [mine.label for mine in attacked(PLAN, "copyright", cells[2:])] == ["prod"]


def test_seeds_are_attacked_one_by_one() -> None:
    plan = replace(PLAN, profile=replace(PLAN.profile, seeds=(0, 1)))
    first, second = attacked(plan, "copyright", [cell(key()), cell(key(seed=1), 0.75)])
    assert (first.label, second.label) == ("prod, seed 0", "prod, seed 1")
    assert second.cells["none"] is not None
    assert second.cells["none"].key.seed == 1


def test_the_page_shows_figures_and_says_missing(tmp_path: Path) -> None:
    store = RunFolder(tmp_path, {"plan": PLAN.to_dict(), "environment": {"torch": "2"}})
    for made in (key("base", 0), key("base", 0, "renamed"), key("prod", 2), key("prod"), key("prod", attack="renamed")):
        store.put(cell(made, 0.75 if made.attack == "renamed" else 0.5), [])
    page = report(tmp_path).read_text()
    parse(page)
    drawn = ("pareto", "speed", "epochs", "attacks")
    for name in drawn:
        assert f'src="copyright-{name}.png"' in page
        assert (tmp_path / f"copyright-{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert page.count("<td>missing</td>") == 2  # relearned, in two tables
    assert '<th scope="row">relearned</th><td>-</td><td>missing</td>' in page
    assert '<th scope="row">renamed</th><td>0.750' in page
    assert "share dominated by prod<" in page
    assert "share dominated by prod-surgical" not in page
    assert "Nothing was measured." in page
    assert not list(tmp_path.glob("insecure-*"))
    missing = sum(1 for _ in PLAN.all_keys()) - 5
    assert f"<strong>{missing} planned cells are missing</strong>" in page


def test_a_line_by_epoch_begins_with_what_the_training_began_with() -> None:
    begun = [cell(key("base", 0), utility=1.0, quality=0.0), cell(key("decode", 0), utility=0.9, quality=0.5)]
    trained = [cell(key(name, epoch)) for name in ("prod", "prod+decode") for epoch in (2, 4)]
    axes = Figure().subplots()
    draw_epochs(axes, [*begun, *trained], "copyright")
    lines = [list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()]
    assert lines == [
        [(0, 0.0), (2, 0.25), (4, 0.25)],
        [(0, 1.0), (2, 0.5), (4, 0.5)],
        [(0, 0.5), (2, 0.25), (4, 0.25)],
        [(0, 0.9), (2, 0.5), (4, 0.5)],
    ]
    axes = Figure().subplots()
    draw_epochs(axes, trained[:2], "copyright")
    assert [len(line.get_xdata()) for line in axes.get_lines()] == [2, 2]


def test_a_second_round_begins_where_the_first_ended() -> None:
    first = [cell(key("prod-surgical", epoch), quality=epoch / 10) for epoch in (2, 4)]
    axes = Figure().subplots()
    draw_epochs(axes, [*first, cell(key(SECOND_ROUND, 5), quality=0.9)], "copyright")
    *_, quality, _ = ([*zip(*line.get_data(), strict=True)] for line in axes.get_lines())
    assert quality == [(4, 0.4), (5, 0.9)]


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    from bench.__main__ import main

    store = RunFolder(tmp_path, {"plan": PLAN.to_dict(), "environment": {}})
    store.put(cell(key()), [])
    (tmp_path / "cells.jsonl").write_text('{"key": {}}\n')
    assert main(["report", str(tmp_path)]) == 2
    assert not (tmp_path / "index.html").exists()
