"""The tables of corpora: guards side by side, false bans, a billion anchors, and what follows for larger ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from results_data import Results, quantity, short, table

from bench.figures import Figure
from prod_decode.errors import ProdError

PEERS, CHANCE, BILLION, LARGEST, SCAN = (
    f"corpora-{part}" for part in ("peers", "chance", "billion", "largest", "scan")
)

# What an index holds at most, and how the build cuts its work (`prod_decode/corpus/table.py`, `prod_decode/indexing`).
_MOST_ANCHORS = (1 << 32) - 1
_TASK, _SHARD = 16 << 20, 1 << 22

# Bytes of source. The Stack v2: its card, after near-duplicates are taken out, and before.
_SIZES = {
    "100 GB": 100e9,
    "1 TB": 1e12,
    "The Stack v2, deduplicated: 32.1 TB": 32.1e12,
    "The Stack v2: 67.5 TB": 67.5e12,
}


def _guards(results: Results, file: str) -> list[str]:
    return [guard for guard in dict.fromkeys(figure.guard for figure in results.speed(file)) if guard != "all"]


def _value(results: Results, file: str, what: str, guard: str | None = None) -> float:
    """A figure of a guard, or of the only one there is.

    Raises:
        ProdError: nobody measured it.
    """
    figure = results.timed(what, guard or _guards(results, file)[0], file)
    if figure.value is None:
        raise ProdError(f"results/performance/{file}.jsonl: expected {what!r}, got none: measure again")
    return figure.value


def _peers(results: Results) -> str:
    def row(guard: str) -> Iterable[str]:
        def of(what: str) -> float:
            return _value(results, PEERS, what, guard)

        yield guard
        yield f"{of('bytes a symbol'):.3f}"
        yield f"{of('build'):.0f}"
        yield " / ".join(short(of(f"mask and advance, a token, B={rows}")) for rows in (1, 16, 64))
        yield " / ".join(f"{of(f'longest run written, {layout}'):.0f}" for layout in ("as it is", "other layout"))
        yield f"{of('any token banned'):.2g}"
        yield f"{of('own token banned, no copy'):.1g}"

    head = (
        "guard",
        "bytes a symbol",
        "MB/min to build",
        "us a token at 1 / 16 / 64 rows",
        "longest run written, as it is / other layout",
        "steps with a ban",
        "own token wrongly banned",
    )
    return table(head, (row(guard) for guard in _guards(results, PEERS)))


def _chance(results: Results) -> str:
    def row(guard: str, what: str) -> tuple[str, ...]:
        figure = results.timed(what, guard, CHANCE)
        counted = (figure.note or "").partition(" [")[0]
        low, high, expected = (end or 0.0 for end in (figure.p50, figure.p99, figure.worst))
        return guard, what, counted, f"{figure.value or 0:.3g} [{low:.2g}, {high:.2g}]", f"{expected:.3g}"

    whats = ("prefixes hit, a look", "steps with a false ban")
    rows = (row(guard, what) for guard in _guards(results, CHANCE) for what in whats)
    return table(("table", "what", "counted", "rate", "expected"), rows)


def _billion(results: Results) -> str:
    guard = _guards(results, BILLION)[0]
    rows = [
        ("file", "file"),
        ("open", "open"),
        ("memory after opening", "resident memory after opening"),
        ("look-up of a prefix, on disk", "one look-up, on disk"),
        ("look-up of a prefix, in memory", "one look-up, in memory"),
    ]
    found = [(label, quantity(results.timed(what, guard, BILLION))) for label, what in rows]
    for where in ("on disk", "in memory"):
        times = (_value(results, BILLION, f"mask and advance, a token, {where}, B={rows}") for rows in (1, 16, 64))
        found.append((f"mask and advance at 1, 16, 64 rows, {where}", f"{' / '.join(map(short, times))} us a token"))
    return table(("what", guard), found)


def _largest(results: Results) -> str:
    guard = _guards(results, LARGEST)[0]

    def noted(figure: Figure) -> str:
        return f"{quantity(figure)} ({figure.note})" if figure.note else quantity(figure)

    found = [(what, noted(results.timed(what, guard, LARGEST))) for what in ("symbols", "anchors", "file", "build")]
    times = (_value(results, LARGEST, f"mask and advance, a token, B={rows}") for rows in (1, 16, 64))
    found.append(("mask and advance at 1, 16, 64 rows", f"{' / '.join(map(short, times))} us a token"))
    return table(("what", guard), found)


def _scan(results: Results) -> str:
    guards = _guards(results, SCAN)
    rows = ("scan", "normalise", "look up what can be an anchor", "look up every run")
    found = ((what, *(quantity(results.timed(what, guard, SCAN)) for guard in guards)) for what in rows)
    return table(("what", *guards), found)


def factors(results: Results) -> dict[str, float]:
    """What a larger corpus is reckoned from, each measured once."""
    corpus = results.timed("corpus", "all", PEERS)
    symbols = re.search(r"([\d,]+) symbols", corpus.note or "")
    if symbols is None or not corpus.value:
        raise ProdError(
            f"results/performance/{PEERS}.jsonl: expected the symbols of the corpus, got none: measure again"
        )
    return {
        "symbols a byte": int(symbols[1].replace(",", "")) / corpus.value,
        "anchors a symbol": _value(results, LARGEST, "anchors a symbol"),
        "bytes an anchor": _value(results, LARGEST, "bytes an anchor"),
        "parts, bytes a symbol": _value(results, LARGEST, "work folder after reading"),
        "MB of symbols a minute": _value(results, LARGEST, "build"),
        "pair of task and shard, us": _value(results, LARGEST, "a part of a task for a shard"),
    }


def _factors(results: Results) -> str:
    return table(("factor", "measured"), ((name, short(value)) for name, value in factors(results).items()))


def _beyond(results: Results) -> str:
    known = factors(results)

    def column(size: float) -> list[str]:
        symbols = size * known["symbols a byte"]
        anchors = symbols * known["anchors a symbol"]
        indices = max(1, -(-anchors // _MOST_ANCHORS))
        # Of one index: each is a build of its own.
        tasks = size / indices / _TASK
        shards = 1 << max(0, int((anchors / indices - 1) // _SHARD)).bit_length()
        reading = symbols / 1e6 / known["MB of symbols a minute"] / 60
        pairs = indices * tasks * shards * known["pair of task and shard, us"] / 1e6 / 3600
        return [
            f"{anchors:.1e}",
            f"{indices:,.0f}",
            f"{anchors * known['bytes an anchor'] / 1e9:,.0f} GB",
            f"{symbols * known['parts, bytes a symbol'] / 1e9:,.0f} GB",
            f"{reading:,.0f} + {pairs:,.0f} h",
        ]

    labels = (
        "anchors",
        "indices of at most 2^32",
        "files, and memory to have all of it",
        "shuffled",
        "hours of a core",
    )
    columns = [column(size) for size in _SIZES.values()]
    return table(("", *_SIZES), ((label, *cells) for label, *cells in zip(labels, *columns, strict=True)))


TABLES: dict[str, Callable[[Results], str]] = {
    "corpora-peers": _peers,
    "corpora-chance": _chance,
    "corpora-billion": _billion,
    "corpora-largest": _largest,
    "corpora-scan": _scan,
    "corpora-factors": _factors,
    "corpora-beyond": _beyond,
}

NUMBERS: dict[str, Callable[[Results], str]] = {
    "largest-file": lambda results: f"{_value(results, LARGEST, 'file') / 1e9:.2f} GB",
    "largest-minutes": lambda results: (
        f"{_value(results, LARGEST, 'symbols') / 1e6 / _value(results, LARGEST, 'build'):.0f}"
    ),
}
