"""The appendix: every cell of every run, and every figure of speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results_data import AGREEMENT, ATTACKS, KL, Results, interval, short, table

from bench.metrics import Value
from bench.unlearning.records import Cell

_DIGITS = {"verbatim_run": 0, KL: 3, AGREEMENT: 3, "humaneval": 3}


def appendix(results: Results) -> dict[str, str]:
    """Every page of the appendix by its file's name."""
    made = {f"{name}.md": _run_page(results, name) for name in results.runs}
    return {"index.md": _index(results), "speed.md": _speed_page(results), **made}


_MADE = "Made by `python docs/generate.py` from the records; do not edit.\n"


def _index(results: Results) -> str:
    rows = []
    for name in results.runs:
        manifest, cells = results.run(name)
        plan = manifest["plan"]
        seeds = ", ".join(map(str, sorted({cell.key.seed for cell in cells})))
        tasks = ", ".join(sorted({cell.key.task for cell in cells}))
        rows.append(
            (f"[{name}]({name}.md)", plan["model"], ", ".join(plan["protocols"]), tasks, seeds, str(len(cells)))
        )
    runs = table(("run", "model", "protocol", "tasks", "seeds", "cells"), rows)
    count = sum(len(results.speed(name)) for name in results.speeds)
    return (
        f"# Appendix: every figure\n\n{_MADE}\nEvery [cell](../../concepts/glossary.md#cell) of every run, with 95 % "
        f"intervals:\n\n{runs}\nAnd [every figure of speed](speed.md): {count} in {len(results.speeds)} files. The "
        "columns are explained in [the benchmark's page](../../reference/bench.md#what-is-measured).\n"
    )


def _run_page(results: Results, name: str) -> str:
    manifest, cells = results.run(name)
    plan, parts = manifest["plan"], [f"# {name}\n\n{_MADE}"]
    about = "; ".join(f"{key} {_listed(value)}" for key, value in sorted(plan.items()) if value not in (None, {}))
    packages = ", ".join(
        f"{key} {value}" for key, value in sorted(manifest["environment"].items()) if value is not None
    )
    parts.append(
        f"Records: [`results/{name}`](../../../results/{name}). Brackets: 95 % intervals, Wilson's for shares of yes "
        f"and no, otherwise a bootstrap over samples.\n\nPlan: {about}.\n\nEnvironment: {packages}.\n"
    )
    for task in sorted({cell.key.task for cell in cells}):
        mine = sorted((c for c in cells if c.key.task == task), key=lambda c: (_method(c), c.key.epoch, c.key.seed))
        versions = ", ".join(str(version) for version in sorted({cell.task_version for cell in mine}))
        parts.append(f"## {task}\n\nVersion of the task: {versions}.\n")
        plain = [cell for cell in mine if cell.key.attack == "none"]
        parts += ["### Without attack\n", _cells(plain, attacked=False)]
        attacked = sorted((c for c in mine if c.key.attack != "none"), key=lambda c: _place(c.key.attack))
        if attacked:
            parts += ["### Under attack\n", _cells(attacked, attacked=True)]
    return "\n".join(parts)


def _method(cell: Cell) -> tuple[bool, bool, str]:
    return cell.key.method != "base", cell.key.method != "untaught", cell.key.method


def _place(attack: str) -> tuple[int, str]:
    known = list(ATTACKS)
    return (known.index(attack) if attack in known else len(known)), attack


def _listed(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(sorted(value))
    return str(value)


def _cells(cells: Sequence[Cell], *, attacked: bool) -> str:
    """A row a cell; the number of samples in a column's head where all have the same."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.metrics))
    heads, columns = [], []
    for name in names:
        values = [cell.metrics.get(name) for cell in cells]
        sizes = {value.n for value in values if value is not None and value.value is not None}
        if not sizes:
            continue  # never measured in this run, such as whether a program runs
        heads.append(f"{name.replace('_', ' ')}, n={next(iter(sizes))}" if len(sizes) == 1 else name.replace("_", " "))
        columns.append([_sized(value, _DIGITS.get(name, 2), shown=len(sizes) > 1) for value in values])
    labels = ["attack"] if attacked else []
    keys = [
        [*([cell.key.attack] if attacked else []), cell.key.method, str(cell.key.epoch or ""), str(cell.key.seed)]
        for cell in cells
    ]
    rows = ([*key, *values] for key, values in zip(keys, zip(*columns, strict=True), strict=True))
    return table((*labels, "method", "epoch", "seed", *heads), rows)


def _sized(value: Value | None, digits: int, *, shown: bool) -> str:
    text = interval(value, digits)
    return f"{text}, n={value.n}" if shown and value is not None and value.value is not None else text


def _speed_page(results: Results) -> str:
    parts = [
        f"# Every figure of speed\n\n{_MADE}\nHow each is taken: `bench/speed/`. A ratio below 1: ours takes less."
    ]
    for name in results.speeds:
        figures = results.speed(name)
        parts.append(f"\n## {name}\n\nRecords: [`{name}.jsonl`](../../../results/performance/{name}.jsonl).")
        parts += [f"Machine: {machine}." for machine in sorted({figure.machine or "unknown" for figure in figures})]
        rows = (
            (
                figure.what,
                figure.guard,
                "failed" if figure.value is None else f"{short(figure.value)} {figure.unit}",
                *("" if part is None else short(part) for part in (figure.p50, figure.p99, figure.worst)),
                "" if figure.ours_over_peer is None else f"{figure.ours_over_peer:.3g}",
                "" if figure.goal is None else f"{figure.goal}: {'met' if figure.met else 'missed'}",
                figure.note or "",
            )
            for figure in figures
        )
        head = ("what", "guard", "mean or rate", "p50", "p99", "worst", "ours / peer", "goal", "note")
        parts.append("\n" + table(head, rows).rstrip())
    return "\n".join(parts) + "\n"
