"""Measurements as records and as a table, and the timing that all benchmarks of speed share."""

from __future__ import annotations

import json
import multiprocessing
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode.storage.files import write_whole

ROUNDS = 3


@dataclass(frozen=True)
class Figure:
    """One measurement, a line of the JSON file.

    Attributes:
        what: the quantity, such as `mask, 100 patterns, code`.
        guard: whose it is: `prod_decode` or a peer.
        value: in `unit`, the mean where there is a distribution; None if it failed.
        unit: `us`, `s`, `ms`, `MB/s`, `MB/min` or `bytes`.
        p50: median of a distribution of times, where there is one.
        p99: its 99th percentile.
        worst: its maximum.
        ours_over_peer: our value divided by this one; below 1 we are faster (for rates: below 1 we are slower).
        goal: what docs/design/performance.md set out to reach, as text.
        met: whether we reach it; None if there is no goal.
        note: why it failed, or what else to know.
        machine: processor, cores and versions; the same for all figures of a run.
    """

    what: str
    guard: str
    value: float | None
    unit: str
    p50: float | None = None
    p99: float | None = None
    worst: float | None = None
    ours_over_peer: float | None = None
    goal: str | None = None
    met: bool | None = None
    note: str | None = None
    machine: str | None = None


def calls(run: Callable[[], object], times: int) -> list[int]:
    """Nanoseconds of each call, the fastest of the rounds."""
    fastest: list[int] = np.min([timed(run, times) for _ in range(ROUNDS)], axis=0).tolist()
    return fastest


def timed(run: Callable[[], object], times: int, clock: Callable[[], int] = time.perf_counter_ns) -> list[int]:
    """Nanoseconds of each of some calls, by a clock, after one that does not count."""
    run()
    taken = []
    for _ in range(times):
        begun = clock()
        run()
        taken.append(clock() - begun)
    return taken


def cpu_seconds(run: Callable[[], object], rounds: int) -> float:
    """The fastest of the rounds, after a run that does not count."""
    return min(timed(run, rounds, time.process_time_ns)) / 1e9


def distribution(
    what: str,
    guard: str,
    nanoseconds: Sequence[float],
    *,
    against: Sequence[float] | None = None,
    mean_goal: float | None = None,
    p99_goal: float | None = None,
    note: str | None = None,
) -> Figure:
    """A figure of many times of one thing.

    Args:
        what: as in `Figure`.
        guard: as in `Figure`.
        nanoseconds: the times.
        against: our times of the same, to compare means.
        mean_goal: microseconds that the mean should stay below.
        p99_goal: likewise the 99th percentile.
        note: as in `Figure`.
    """
    times: NDArray[np.float64] = np.array(nanoseconds, np.float64) / 1e3
    mean, p99 = float(times.mean()), float(np.percentile(times, 99))
    goal = goal_of(mean, mean_goal, "us")
    if p99_goal is not None:
        goal = {"goal": f"{goal['goal']}, p99 < {p99_goal:g} us", "met": goal["met"] and p99 < p99_goal}
    return Figure(
        what,
        guard,
        mean,
        "us",
        p50=float(np.median(times)),
        p99=p99,
        worst=float(times.max()),
        ours_over_peer=None if against is None else float(np.mean(against)) / 1e3 / mean,
        note=note,
        **goal,
    )


def goal_of(value: float, bound: float | None, unit: str, *, least: bool = False) -> dict[str, Any]:
    """`goal` and `met` of a figure; none without a bound. `least`: the value should be above it."""
    if bound is None:
        return {}
    return {"goal": f"{'>' if least else '<'} {bound:g} {unit}", "met": value > bound if least else value < bound}


def patterns(count: int) -> str:
    """So many patterns, in words."""
    return f"{count:,} patterns" if count > 1 else "1 pattern"


def save(figures: Sequence[Figure], path: str) -> None:
    """Write one JSON object a figure."""
    with write_whole(path) as file:
        file.write("".join(json.dumps(asdict(figure)) + "\n" for figure in figures).encode())


def table(figures: Sequence[Figure]) -> str:
    """The figures as aligned text, under the facts of the machine."""
    head = ("what", "guard", "mean", "p50", "p99", "worst", "ours/peer", "goal", "note")
    rows = [
        (
            figure.what,
            figure.guard,
            "failed" if figure.value is None else f"{_short(figure.value)} {figure.unit}",
            _short(figure.p50),
            _short(figure.p99),
            _short(figure.worst),
            _short(figure.ours_over_peer),
            "" if figure.goal is None else f"{figure.goal} {'met' if figure.met else 'MISSED'}",
            figure.note or "",
        )
        for figure in figures
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    return "\n".join([machine(), versions(), "", *lines])


def machine() -> str:
    """Processor, cores and Python."""
    return f"{_cpu()}, {multiprocessing.cpu_count()} cores, Python {platform.python_version()}"


def versions() -> str:
    """Of the packages that are measured, those that are installed."""
    packages = ("numba", "numpy", "torch", "transformers", "xgrammar", "llguidance", "ahocorasick_rs", "pyahocorasick")
    return ", ".join(f"{name} {version(name)}" for name in packages if _installed(name))


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _installed(name: str) -> bool:
    try:
        version(name)
    except ImportError:
        return False
    return True


def _cpu() -> str:
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    named = re.search(r"model name\s*:\s*(.+)", facts)
    return named[1] if named else platform.machine()
