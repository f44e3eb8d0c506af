"""How `bench overhead` treats its peers: limits, refusals, partial walks; and mistakes in its flags."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import loss_overhead, overhead, train_overhead
from bench.__main__ import main
from bench.overhead import Walked, peer_figures

WALK = list(range(6))
OURS = Walked(0.5, [100] * 6, [200] * 6)


class Fake:
    """A peer that accepts everything, unless a subclass says otherwise."""

    guard = "fake"
    note: str | None = None

    def __init__(self, tokenizer_folder: str) -> None:
        self.folder = tokenizer_folder
        self.made = 0

    def compile(self, lines: Sequence[str]) -> None:
        if lines == ["slow"]:
            time.sleep(600)

    def start(self) -> tuple[Callable[[], Any], Callable[[int], bool]]:
        self.made += 1
        return lambda: None, lambda token_id: True

    def complaint(self) -> str:
        return "too hard for me"


class Refusing(Fake):
    def start(self) -> tuple[Callable[[], Any], Callable[[int], bool]]:
        return lambda: None, lambda token_id: token_id != 3


class Sluggish(Fake):
    def start(self) -> tuple[Callable[[], Any], Callable[[int], bool]]:
        return lambda: time.sleep(0.2), lambda token_id: True


def test_a_peer_that_compiles_too_long_fails_in_all_that_follows() -> None:
    figures = peer_figures(Fake, "", ["slow"], {"code": WALK, "near": WALK}, {"code": OURS}, "1 pattern", 0.01)
    whats = ["compile and bind, 1 pattern", "mask, 1 pattern, code", "mask, 1 pattern, near"]
    assert [figure.what for figure in figures] == whats
    assert {(figure.guard, figure.value, figure.note) for figure in figures} == {
        ("fake", None, "not done after 0.01 s")
    }
    printed = overhead.table(figures)
    assert printed.count("failed") == 3
    assert printed.count("not done after 0.01 s") == 3
    # The child that still compiles is killed: it would go on for 10 minutes beside what is measured next.
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_a_refusal_fails_one_walk_and_not_the_next() -> None:
    walks = {"code": WALK, "near": WALK[:3]}
    ours = {"code": OURS, "near": Walked(0.5, [100] * 3, [200] * 3)}
    compiled, refused, mask, advance = peer_figures(Refusing, "", [], walks, ours, "1 pattern", 60.0)
    assert compiled.value is not None
    assert compiled.ours_over_peer == pytest.approx(0.5 / compiled.value)
    assert refused.value is None
    assert refused.note == "ValueError: refused token 3 after 3 steps of a walk without patterns: too hard for me"
    for figure, mean in ((mask, 0.1), (advance, 0.2)):
        assert figure.value is not None
        assert figure.ours_over_peer == pytest.approx(mean / figure.value)


def test_a_walk_that_the_limit_ends_is_compared_on_the_steps_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "_loaded", [Sluggish("")])
    walked = overhead._walk_peer(WALK, 0.0, 0.3)
    assert len(walked.mask) == len(walked.advance) == 2
    ours = Walked(0.0, [1000, 3000, 10**9, 10**9, 10**9, 10**9], [1000] * 6)
    mask, _ = overhead._walk_figures(Sluggish, "1 pattern, code", walked, ours)
    assert mask.value is not None
    assert mask.ours_over_peer == pytest.approx(2.0 / mask.value)
    assert mask.note == "the limit ended it after 2 of 6 steps"


def test_every_round_has_a_fresh_matcher_and_every_step_its_fastest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Fake("")
    monkeypatch.setattr(overhead, "_loaded", [peer])
    walked = overhead._walk_peer(WALK, 1.5, 60.0)
    assert (walked.compile_s, len(walked.mask), peer.made) == (1.5, 6, overhead.ROUNDS)
    assert overhead._fastest([Walked(1.0, [5, 9], [2, 2]), Walked(2.0, [7, 3], [4, 1])]) == Walked(1.0, [5, 3], [2, 1])


def test_goals_hold_for_mean_and_percentile() -> None:
    # The mean is 1.06 us, the 99th percentile 5 us.
    nanoseconds = [1_000] * 197 + [5_000] * 3
    good = overhead._distribution("mask", "prod_decode", nanoseconds, mean_goal=2.0, p99_goal=20.0)
    assert (good.goal, good.met) == ("< 2 us, p99 < 20 us", True)
    assert not overhead._distribution("mask", "prod_decode", nanoseconds, mean_goal=2.0, p99_goal=4.0).met
    assert not overhead._distribution("mask", "prod_decode", nanoseconds, mean_goal=1.0, p99_goal=20.0).met


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["overhead", "--time-limit", "0"], "bench overhead: expected --time-limit as seconds above 0, got 0"),
        (["overhead", "--time-limit", "nan"], "bench overhead: expected --time-limit as seconds above 0, got nan"),
        (["overhead", "--json", "/no/such/folder/x"], "bench overhead: expected --json in a folder that exists"),
        (["train", "--rows", "0"], "bench train: expected --rows as a number above 0, got 0"),
    ],
)
def test_a_mistake_is_found_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(overhead, "gather", None)
    monkeypatch.setattr(train_overhead, "train_overhead", None)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "flags"),
    [("overhead", ["--nonsense"]), ("overhead", ["--time-limit", "soon"]), ("loss", ["--rows"]), ("demo", ["--fast"])],
)
def test_an_unknown_flag_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], command: str, flags: list[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, *flags])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m bench {command}: ")
    assert flags[0] in error
    assert error.count("\n") == 1


def test_loss_is_dispatched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    results = {"fused": {"seconds": 1.0, "extra_mb": 2.0, "loss": 3.0}}
    monkeypatch.setattr(loss_overhead, "loss_overhead", lambda: results)
    assert main(["loss"]) == 0
    assert "fused" in capsys.readouterr().out


def test_figures_say_on_which_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = overhead.Figure("load", "prod_decode", 1.0, "ms")
    monkeypatch.setattr(overhead, "timer", lambda: figure)
    monkeypatch.setattr(overhead, "artifacts", lambda material: [figure])

    class Tokenizer:
        def save_pretrained(self, folder: str) -> None:
            assert Path(folder).is_dir()

    figures = overhead.measure(overhead.Material(Tokenizer(), [], "", "", []), [], peers=False, limit=1.0)
    assert len(figures) == 2
    assert all("cores, Python" in (f.machine or "") and "numba" in (f.machine or "") for f in figures)
