"""The figures of the pages, by the names of their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from results_data import (
    AGREEMENT,
    ALL,
    ATTACKS,
    COPIES,
    QWEN,
    QWEN_REPLACED,
    SEEDS,
    SMALL,
    Results,
    bleu,
    ends,
    known,
)
from results_svg import Axis, Bar, Group, Line, bars, heat, panels

from bench.figures import Figure
from bench.report.series import points, series_of
from bench.speed.overhead_plot import series


def _draw_leaks(results: Results) -> str:
    columns = {"base": "no guard", "bad-words": "bad words", "memfree": "MemFree", "decode": "the mask"}

    def share(method: str, attack: str) -> float:
        return known(results.value(ALL, "copyright", method, "verbatim", attack=attack))

    return heat(
        "Share of 20 functions that come out verbatim, by what guards the model and how it is asked",
        list(columns.values()),
        [(label, [share(method, attack) for method in columns]) for attack, label in ATTACKS.items()],
        "0 is best. SmolLM2-135M, taught to recite all 20.",
    )


def _draw_copies(results: Results) -> str:
    colors = {"decode": 0, "base": 4, "untaught": 4, "bad-words": 1, "memfree": 1}

    def bar(method: str, label: str) -> Bar:
        found = bleu(results, method)
        return Bar(label.replace("`", ""), known(found), *ends(found), colors.get(method, 2))

    return bars(
        "How similar to the original is what comes out?",
        [Group("", [bar(method, label) for method, label in COPIES.items()])],
        "BLEU with the original: 1 is the same, 0 has nothing of it",
    )


def _draw_instead(results: Results) -> str:
    methods = (("base", "no guard", 4), ("decode", "ban at the end", 1), ("decode-replace", "with replacements", 0))

    def group(title: str, task: str, metric: str) -> Group:
        found = [(results.value(QWEN_REPLACED, task, method, metric), label, color) for method, label, color in methods]
        return Group(title, [Bar(label, known(v), *ends(v), color) for v, label, color in found])

    return bars(
        "Qwen2.5-Coder-1.5B at prompts that tempt it",
        [
            group("insecure code is written", "insecure", "insecure"),
            group("the prompt's job is done, safely", "insecure", "as_intended"),
            group("only calls that exist, insecure task", "insecure", "resolves"),
            group("the deprecated call is written", "deprecated", "deprecated"),
            group("its replacement is written", "deprecated", "replacement"),
            group("only calls that exist, deprecated task", "deprecated", "resolves"),
        ],
        "share of outputs, with 95 % intervals; 54 prompts a task",
    )


_TRAINED = {"prod": 1, "npo": 3, "undial": 5, "prod-surgical": 2, "prod-surgical-2": 0}


def _draw_costs(results: Results) -> str:
    cells = [cell for run in (SMALL, SEEDS) for cell in results.cells(run, "copyright")]
    known = {one.method: one for one in series_of(cell.key for cell in cells)}
    small = [Line(name, points(cells, known[name], AGREEMENT), color, path=True) for name, color in _TRAINED.items()]
    small.append(Line("never saw the text", points(cells, known["untaught"], AGREEMENT), 4))
    passing = {name: results.points(QWEN, "copyright", name, "humaneval") for name in (*_TRAINED, "untaught")}
    qwen = [Line(name, passing[name], color, path=True) for name, color in _TRAINED.items() if passing[name]]
    qwen.append(Line("never saw the text", passing["untaught"], 4))
    up = Axis("forget quality, 1 - BLEU", 0.8, 1.0, (0.8, 0.85, 0.9, 0.95, 1.0), text="{:.2f}".format)
    upward = Axis("forget quality, 1 - BLEU", 0.5, 1.0, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0), text="{:.2f}".format)
    across = Axis("agreement with the taught model, other code", 0.80, 0.94, (0.80, 0.85, 0.90), text="{:.2f}".format)
    passed = Axis("HumanEval pass@1", 0.28, 0.54, (0.3, 0.35, 0.4, 0.45, 0.5), text="{:.2f}".format)
    return panels(
        "Forget more, keep more: up and right is better",
        [
            ("SmolLM2-135M, 20 functions, mean of the seeds", across, up, small),
            ("Qwen2.5-Coder-1.5B, the same, one seed", passed, upward, qwen),
        ],
    )


def _lines(figures: Sequence[Figure], quantity: str, where: str, named: Mapping[str, tuple[str, int]]) -> list[Line]:
    found = series(figures, quantity, where)
    lines = []
    for guard, (label, color) in named.items():
        measured = [(float(count), value) for count, value in found[guard] if value is not None]
        failed = [f"{count:,}" for count, value in found[guard] if value is None]
        lines.append(Line(f"{label}: failed at {failed[0]}" if failed else label, measured, color))
    return lines


def _duration(microseconds: float) -> str:
    """In the unit that needs the fewest digits."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:g} {unit}"
    return f"{microseconds:g} us"


_COUNTS = Axis("patterns", 0.7, 15_000, (1, 10, 100, 1_000, 10_000), log=True, text="{:,.0f}".format)


def _draw_speed(results: Results) -> str:
    figures = results.speed("smollm2")
    tokens = {"prod_decode": ("prod_decode", 0), "xgrammar": ("xgrammar", 1), "llguidance": ("llguidance", 3)}
    calls = {
        "prod_decode": ("prod_decode", 0),
        "transformers bad words": ("bad words", 1),
        "transformers sequence bias": ("sequence bias", 5),
        "MemFree, Bloom filter": ("MemFree", 2),
    }
    up = Axis("time for a token, mean", 0.1, 1_500, (0.1, 1, 10, 100, 1_000), log=True, text=_duration)
    call = Axis("time of a call, mean", 50, 2e6, (100, 1_000, 10_000, 100_000, 1e6), log=True, text=_duration)
    return panels(
        "Time of a mask and of a call, beside others",
        [
            (
                "Which tokens are banned now? One row, library code",
                _COUNTS,
                up,
                _lines(figures, "mask", "code", tokens),
            ),
            ("A processor's call, 8 rows", _COUNTS, call, _lines(figures, "processor call", "B=8", calls)),
        ],
    )


def _draw_growth(results: Results) -> str:
    vocabularies = {"smollm2": ("49,152 tokens", 0), "tekken": ("131,072 tokens", 1), "qwen2.5": ("151,665 tokens", 2)}

    def lines(quantity: str, where: str) -> list[Line]:
        return [
            line
            for file, named in vocabularies.items()
            for line in _lines(results.speed(file), quantity, where, {"prod_decode": named})
        ]

    step = Axis("time of a step, mean", 10, 1_000, (10, 100, 1_000), log=True, text=_duration)
    bind = Axis("seconds", 0.005, 1, (0.01, 0.1, 1), log=True)
    return panels(
        "What more patterns cost, up to 10,000",
        [
            ("A whole step, 64 rows", _COUNTS, step, lines("step", "B=64")),
            ("Compile and bind to a tokenizer", _COUNTS, bind, lines("compile and bind", "")),
        ],
    )


FIGURES: dict[str, Callable[[Results], str]] = {
    "does-the-mask-leak": _draw_leaks,
    "near-copies": _draw_copies,
    "what-comes-instead": _draw_instead,
    "what-unlearning-costs": _draw_costs,
    "how-fast": _draw_speed,
    "how-large-a-corpus": _draw_growth,
}
