"""How `bench overhead` treats its peers: limits, refusals, partial walks; and mistakes in its flags."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import main
from bench.figures import Figure, distribution, table
from bench.peers import peers, step_peers
from bench.peers.peers import Walked, peer_figures
from bench.peers.step_peers import BloomMemFree
from bench.speed import loss_overhead, overhead, train_overhead
from bench.speed.overhead_plot import PANELS, draw, series
from prod_decode.errors import ProdError
from prod_decode.storage.models import load_tokenizer

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


@pytest.mark.slow
def test_a_peer_that_compiles_too_long_fails_in_all_that_follows() -> None:
    figures = peer_figures(Fake, "", ["slow"], {"code": WALK, "near": WALK}, {"code": OURS}, "1 pattern", 0.01)
    whats = ["compile and bind, 1 pattern", "mask, 1 pattern, code", "mask, 1 pattern, near"]
    assert [figure.what for figure in figures] == whats
    assert {(figure.guard, figure.value, figure.note) for figure in figures} == {
        ("fake", None, "not done after 0.01 s")
    }
    printed = table(figures)
    assert printed.count("failed") == 3
    assert printed.count("not done after 0.01 s") == 3
    # The child that still compiles is killed: it would go on for 10 minutes beside what is measured next.
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


@pytest.mark.slow
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
    monkeypatch.setattr(peers, "_loaded", [Sluggish("")])
    walked = peers._walk_peer(WALK, 0.0, 0.3)
    assert len(walked.mask) == len(walked.advance) == 2
    ours = Walked(0.0, [1000, 3000, 10**9, 10**9, 10**9, 10**9], [1000] * 6)
    mask, _ = peers._walk_figures(Sluggish, "1 pattern, code", walked, ours)
    assert mask.value is not None
    assert mask.ours_over_peer == pytest.approx(2.0 / mask.value)
    assert mask.note == "the limit ended it after 2 of 6 steps"


def test_every_round_has_a_fresh_matcher_and_every_step_its_fastest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Fake("")
    monkeypatch.setattr(peers, "_loaded", [peer])
    walked = peers._walk_peer(WALK, 1.5, 60.0)
    assert (walked.compile_s, len(walked.mask), peer.made) == (1.5, 6, peers.ROUNDS)
    assert peers.fastest([Walked(1.0, [5, 9], [2, 2]), Walked(2.0, [7, 3], [4, 1])]) == Walked(1.0, [5, 3], [2, 1])


def test_goals_hold_for_mean_and_percentile() -> None:
    # The mean is 1.06 us, the 99th percentile 5 us.
    nanoseconds = [1_000] * 197 + [5_000] * 3
    good = distribution("mask", "prod_decode", nanoseconds, mean_goal=2.0, p99_goal=20.0)
    assert (good.goal, good.met) == ("< 2 us, p99 < 20 us", True)
    assert not distribution("mask", "prod_decode", nanoseconds, mean_goal=2.0, p99_goal=4.0).met
    assert not distribution("mask", "prod_decode", nanoseconds, mean_goal=1.0, p99_goal=20.0).met


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
    asked = []

    def measure(rows: int, *, device: str) -> dict[str, dict[str, float]]:
        asked.append((rows, device))
        return results

    monkeypatch.setattr(loss_overhead, "loss_overhead", measure)
    assert main(["loss"]) == 0
    assert "fused" in capsys.readouterr().out
    assert main(["loss", "--rows", "7"]) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main(["loss", "--device", "cuda"]) == 0
    assert asked == [(512, "cpu"), (7, "cpu"), (2048, "cuda")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows", "0"], "expected --rows as a number above 0, got 0"),
        (["--device", "cuda"], "expected a GPU for --device cuda, got none: run this on a machine with one"),
    ],
)
def test_what_loss_cannot_measure_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["loss", *flags]) == 2
    assert capsys.readouterr() == ("", f"bench loss: {message}\n")


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


@pytest.mark.slow
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=6),
    st.lists(st.integers(0, 30), min_size=3, max_size=6),
    st.integers(2, 4),
)
def test_the_bloom_filter_bans_what_the_n_grams_do(texts: list[list[int]], said: list[int], n: int) -> None:
    grams = {tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1)}
    expected = {token for token in range(31) if (*said[len(said) - n + 1 :], token) in grams}
    scores = BloomMemFree(texts, n)(torch.tensor([said, said]), torch.zeros(2, 31))
    for row in scores:
        assert set(torch.isinf(row).nonzero().flatten().tolist()) == expected


def test_one_n_gram_in_a_thousand_is_taken_for_another() -> None:
    rng = np.random.default_rng(0)
    peer = BloomMemFree(rng.integers(0, 10**6, (500, 20)).tolist(), 10, false_positives=1e-3)
    said = torch.from_numpy(rng.integers(0, 10**6, (8, 12)))
    wrong = int(torch.isinf(peer(said, torch.zeros(8, 50_000))).sum())
    assert 250 < wrong < 600  # of 400,000
    with pytest.raises(ProdError, match="expected n of at least 2 tokens, got 1"):
        BloomMemFree([], 1)


@pytest.mark.slow
def test_step_peers_mask_and_one_that_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer("bundled")
    line = "return self.value + other.value * other.other_value"
    ids = tokenizer(f"x = 1\n{line}", add_special_tokens=False)["input_ids"]
    text, scores = torch.tensor([ids[:-1]]), torch.zeros(1, len(tokenizer))
    for name in ("transformers bad words", "transformers sequence bias", "MemFree, Bloom filter"):
        masked = step_peers.STEP_PEERS[name]([line], tokenizer)(text, scores.clone())
        assert isinstance(masked, torch.Tensor)
        assert torch.isinf(masked).nonzero().tolist() == [[0, ids[-1]]], name

    def missing(lines: Sequence[str], tokenizer: Any) -> Any:
        raise ModuleNotFoundError("No module named 'vllm'")

    def slow(lines: Sequence[str], tokenizer: Any) -> Any:
        return lambda text, scores: time.sleep(0.2)

    monkeypatch.setattr(step_peers, "STEP_PEERS", {"vLLM": missing, "slow": slow, "quick": lambda *_: lambda *_: None})
    material = overhead.Material(tokenizer, [line], "", "", [])
    figures = overhead.step_peers(material, [line], "call", text, scores, [1000], 0.1)
    assert [(figure.guard, figure.value is None) for figure in figures] == [
        ("vLLM", True),
        ("slow", True),
        ("quick", False),
    ]
    assert figures[0].note == "not installed here: No module named 'vllm'"
    assert figures[1].note == "first call only after 0 s"


def test_plots_show_every_guard_by_number_of_patterns(tmp_path: Path) -> None:
    figures = [
        Figure("mask, 1 pattern, code", "prod_decode", 0.1, "us"),
        Figure("mask, 10,000 patterns, code", "prod_decode", 0.2, "us"),
        Figure("mask, 100 patterns, code", "prod_decode", 0.15, "us"),
        Figure("mask, 100 patterns, near", "prod_decode", 0.9, "us"),
        Figure("mask, 1 pattern, code", "peer", 2.0, "us"),
        Figure("mask, 100 patterns, code", "peer", None, "us"),
        Figure("scan, 100 patterns", "prod_decode (none)", 100.0, "MB/s"),
        Figure("compile, 100 patterns", "prod_decode", 1.0, "s"),
        Figure("timer", "perf_counter_ns", 0.1, "us"),
    ]
    assert series(figures, "mask", "code") == {
        "prod_decode": [(1, 0.1), (100, 0.15), (10_000, 0.2)],
        "peer": [(1, 2.0), (100, None)],
    }
    assert series(figures, "scan", "") == {"prod_decode (none)": [(100, 100.0)]}
    assert series(figures, "compile and bind", "") == {}
    assert len(PANELS) == 6
    draw(figures, tmp_path / "figures.png")
    assert (tmp_path / "figures.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["figures.png"]


def test_a_vocabulary_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "find_spec", lambda name: None)
    with pytest.raises(ProdError, match="--tokenizer tekken needs the package mistral-common: pip install"):
        overhead.gather("tekken", 1, steps=1)
