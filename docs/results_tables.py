"""The tables of the pages, and the single numbers in their sentences, by the names that the marks have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import results_corpora as corpora
from results_data import (
    AGREEMENT,
    ALL,
    ATTACKS,
    BEST_RELEARNED,
    COPIES,
    GEMMA_COPYRIGHT,
    GEMMA_NAMES,
    KL,
    LICENCES,
    NATURAL,
    NEAR_FUNCTIONS,
    NEAR_MODULES,
    QWEN,
    QWEN_CODE,
    QWEN_KEPT,
    QWEN_LISTS,
    QWEN_MASK,
    QWEN_NAMES,
    QWEN_REPLACED,
    RELEARNING,
    REPLACED,
    REPLACED_TAUGHT,
    SEEDS,
    SMALL,
    Results,
    bleu,
    interval,
    known,
    number,
    quantity,
    spread,
    table,
)

from bench.attacks.weights import RELEARNING_RATES, relearning
from bench.figures import Figure
from bench.metrics import paper_points, pareto_dominance_ratio, wilson
from bench.models.training import FIRST_ROUND, LEARN_RATE
from bench.unlearning.profiles import SECOND_ROUND, UNTAUGHT
from bench.unlearning.records import FORGET, Cell
from prod_decode.errors import ProdError

_FOUR = ("ga", "npo", "dpo", "flat")  # what the paper compares PROD with
_PATTERNS = ("1 pattern", "100 patterns", "10,000 patterns")


def _leaks(results: Results) -> str:
    rows = (
        ("copied functions, SmolLM2, asked plainly", ALL, "copyright", "verbatim", "none"),
        ("copied functions, SmolLM2, sampled 3 times", ALL, "copyright", "verbatim", "sampled"),
        ("copied functions, Qwen, asked plainly", QWEN_MASK, "copyright", "verbatim", "none"),
        ("deprecated calls, SmolLM2, asked plainly", ALL, "deprecated", "deprecated", "none"),
        ("deprecated calls, SmolLM2, names changed", ALL, "deprecated", "deprecated", "renamed"),
        ("deprecated calls, Qwen (not taught), asked plainly", QWEN_NAMES, "deprecated", "deprecated", "none"),
        ("insecure code, SmolLM2, asked plainly", ALL, "insecure", "insecure", "none"),
        ("insecure code, Qwen (not taught), asked plainly", QWEN_CODE, "insecure", "insecure", "none"),
    )
    return table(
        ("what comes out", "no guard", "with the mask"),
        (
            (
                label,
                *(interval(results.value(run, task, method, metric, attack=attack)) for method in ("base", "decode")),
            )
            for label, run, task, metric, attack in rows
        ),
    )


def _copies(results: Results) -> str:
    def row(method: str) -> Iterable[str]:
        for metric, digits in (("verbatim", 2), ("verbatim_run", 0), ("verbatim_share", 2)):
            yield interval(results.value(SMALL, "copyright", method, metric), digits)
        yield interval(bleu(results, method))

    head = ("what writes", "copied verbatim", "longest run, characters", "that run, share of the text", "BLEU")
    return table(head, ((label, *row(method)) for method, label in COPIES.items()))


def _collateral_records(results: Results) -> dict[tuple[int, int | None, str], dict[str, Any]]:
    files = (results.folder / "collateral" / name for name in ("django.jsonl", "qwen-humaneval.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {(record["max_quote"], record["budget"], record["kind"]): record for record in records}


def _changed(results: Results, limit: int, budget: int | None) -> float:
    found = _collateral_records(results)[limit, budget, "functions"]
    return float(found["changed_outputs"] / found["outputs"])


def _collateral(results: Results) -> str:
    by_setting = _collateral_records(results)
    settings = dict.fromkeys((limit, budget) for limit, budget, _ in by_setting)

    def row(limit: int, budget: int | None) -> Iterable[str]:
        yield f"`max_quote={limit}`" + (f", `budget={budget}`" if budget else "")
        for kind in ("functions", "modules"):
            found = by_setting[limit, budget, kind]
            low, high = wilson(found["changed_outputs"], found["outputs"])
            yield f"{found['changed_outputs'] / found['outputs']:.3f} [{low:.3f}, {high:.3f}]"
            yield f"{found['changed_steps'] / found['steps']:.1e}"
        found = by_setting[limit, budget, "completions"]
        yield f"{found['changed_outputs']} of {found['outputs']}"

    head = (
        "list",
        "functions changed, n=500",
        "of their steps",
        "modules changed, n=50",
        "of their steps",
        "HumanEval changed",
    )
    return table(head, (row(*setting) for setting in settings))


def _replaced(results: Results) -> str:
    decoded = ("base", "decode", "decode-commit", "decode-replace")
    alone = (
        ("SmolLM2: its prompt's job, safely", REPLACED, "insecure", "as_intended"),
        ("SmolLM2: only calls that exist", REPLACED, "insecure", "resolves"),
        ("Qwen: its prompt's job, safely", QWEN_REPLACED, "insecure", "as_intended"),
        ("Qwen: only calls that exist", QWEN_REPLACED, "insecure", "resolves"),
        ("Qwen: the call in place of a deprecated one", QWEN_REPLACED, "deprecated", "replacement"),
        ("Qwen: only calls that exist, these prompts", QWEN_REPLACED, "deprecated", "resolves"),
    )
    taught = (
        ("SmolLM2, taught: the same", "replacement"),
        ("SmolLM2, taught: only calls that exist", "resolves"),
    )

    def of_taught(method: str, metric: str) -> str:
        values = results.over_seeds(REPLACED_TAUGHT, "deprecated", method, metric)
        if len(values) > 1:
            return spread(values)
        return interval(results.value(REPLACED_TAUGHT, "deprecated", method, metric))

    rows = [
        (label, *(interval(results.value(run, task, method, metric)) for method in decoded))
        for label, run, task, metric in alone
    ]
    rows += [(label, *(of_taught(method, metric) for method in decoded)) for label, metric in taught]
    head = ("no guard", "ban at the end", "from the commit point", "with replacements")
    return table(("share of outputs with", *head), rows)


def _in_weights(results: Results) -> str:
    methods = {
        "base": "taught, no guard",
        "decode-replace": "with replacements in the mask",
        "prod-replace": "in the weights",
        "prod-replace+decode-replace": "both",
    }
    metrics = (
        ("deprecated call", "deprecated"),
        ("the new call", "replacement"),
        ("only calls that exist", "resolves"),
        ("agreement elsewhere", AGREEMENT),
    )
    rows = (
        (label, *(spread(results.over_seeds(REPLACED_TAUGHT, "deprecated", method, metric)) for _, metric in metrics))
        for method, label in methods.items()
    )
    return table(("SmolLM2, three seeds", *(label for label, _ in metrics)), rows)


_BUDGETED = {
    "base": "no guard",
    "decode": "the mask, `max_quote=60`",
    "decode-budget": "the same with `budget=240`",
    "untaught": "never saw the text",
}


def _near(results: Results) -> str:
    metrics = (("near copies", "near_copy"), ("quoted", "quoted_share"), ("1 - BLEU", FORGET))
    runs = (("functions", NEAR_FUNCTIONS), ("modules", NEAR_MODULES))
    rows = (
        (
            label,
            *(interval(results.value(run, "copyright", method, metric)) for _, run in runs for _, metric in metrics),
        )
        for method, label in _BUDGETED.items()
    )
    return table(("what writes", *(f"{kind}: {label}" for kind, _ in runs for label, _ in metrics)), rows)


def _near_goals(results: Results) -> str:
    runs = (("20 functions", NEAR_FUNCTIONS), ("10 modules", NEAR_MODULES))

    def one(run: str, metric: str) -> float:
        return known(results.value(run, "copyright", "decode-budget", metric))

    def rows() -> Iterator[tuple[str, str, float, bool]]:
        for label, run in runs:
            yield "near copies: 0", label, one(run, "near_copy"), one(run, "near_copy") == 0
        share = one(NEAR_MODULES, "quoted_share")
        yield "quoted share of documents over 1,500 characters: at most 0.10", "10 modules", share, share <= 0.1
        for label, run in runs:
            yield "1 - BLEU: at least 0.85", label, one(run, FORGET), one(run, FORGET) >= 0.85
        found = _collateral_records(results)[120, 240, "completions"]
        share = found["changed_outputs"] / found["outputs"]
        yield "completions of HumanEval changed: 0", "Qwen, `max_quote=120`", share, share == 0

    return table(
        ("goal", "measured on", "found", ""),
        ((goal, where, f"{share:.2f}", "met" if met else "**missed**") for goal, where, share, met in rows()),
    )


# Of the 20 prompts; `integrate.simps` begins its own replacement, and so cannot be told from it.
_REACHED = 19 / 20


def _goals(results: Results) -> str:
    def one(run: str, task: str, method: str, metric: str) -> float:
        return known(results.value(run, task, method, metric))

    def taught(method: str, metric: str) -> float:
        return fmean(results.over_seeds(REPLACED_TAUGHT, "deprecated", method, metric))

    def rows() -> Iterator[tuple[str, str, float, bool]]:
        runs = (("SmolLM2", REPLACED), ("Qwen", QWEN_REPLACED))
        for model, run in runs:
            for task in ("insecure", "deprecated"):
                share = one(run, task, "decode-replace", "resolves") / one(run, task, "base", "resolves")
                yield "only calls that exist: 0.95 of the rate with no guard", f"{model}, {task}", share, share >= 0.95
        for model, run in runs:
            share = one(run, "deprecated", "decode-replace", "deprecated")
            yield "deprecated calls: 0", model, share, share == 0
        share = taught("decode-replace", "replacement") / _REACHED
        yield "the new call: 0.95 of what can be reached", "SmolLM2, taught", share, share >= 0.95
        share = taught("prod-replace", "replacement")
        yield "the new call: 0.9 of those that used the old one", "SmolLM2, taught, in the weights", share, share >= 0.9

    return table(
        ("goal", "measured on", "found", ""),
        ((goal, where, f"{share:.2f}", "met" if met else "**missed**") for goal, where, share, met in rows()),
    )


def _dominance(results: Results) -> str:
    paper = [
        pareto_dominance_ratio(theirs["PROD"], [p for name in theirs if name != "PROD" for p in theirs[name]])
        for theirs in map(paper_points, ("copyright", "insecure", "deprecated"))
    ]
    names = ("smollm2-names", "smollm2-deprecated-seed2")
    runs = {"copyright": (SMALL, SEEDS), "insecure": (SMALL, *names), "deprecated": (SMALL, *names)}

    def over(task: str, ours: str, theirs: Sequence[str], where: Sequence[str], utility: str) -> str:
        found = []
        for run in where:
            for seed in sorted({cell.key.seed for cell in results.cells(run, task)}):
                mine = results.points(run, task, ours, utility, seed)
                others = [p for other in theirs for p in results.points(run, task, other, utility, seed)]
                if mine and others:
                    found.append(f"{pareto_dominance_ratio(mine, others):.2f}")
        return ", ".join(found) or "not run"

    rows = [("the paper: PROD over GA, NPO, DPO, FLAT; HumanEval, 7B", *(f"{ratio:.2f}" for ratio in paper))]
    for ours, theirs, label, where in (
        ("prod", _FOUR, "`prod` over the same four", None),
        ("prod-surgical", _FOUR, "`prod-surgical` over the same four", None),
        ("prod-surgical", ("prod",), "`prod-surgical` over `prod`, retain set", runs),
        ("prod-surgical-2", ("prod",), "second round over `prod`, retain set", runs),
        ("prod-surgical-2", ("npo",), "second round over `npo`, retain set", runs),
    ):
        shown = [over(task, ours, theirs, where[task] if where else (ALL,), AGREEMENT) for task in runs]
        rows.append((f"{label}; agreement, 135M", *shown))
    kept = {"copyright": (QWEN,), "insecure": (), "deprecated": (QWEN_KEPT,)}
    for ours, theirs in (("prod-surgical", "prod"), ("prod-surgical", "npo")):
        shown = [over(task, ours, (theirs,), kept[task], "humaneval") for task in kept]
        rows.append((f"`{ours}` over `{theirs}`, retain set; HumanEval, 1.5B", *shown))
    return table(("whose points dominate whose; utility, model", "copyright", "insecure", "deprecated"), rows)


def _beside(results: Results) -> str:
    pairs = (
        ("mask for a token, 1 pattern", "mask, 1 pattern, code", "xgrammar", "smollm2"),
        ("mask for a token, 100 patterns", "mask, 100 patterns, code", "llguidance", "smollm2"),
        ("mask for a token, 10,000 patterns", "mask, 10,000 patterns, code", "llguidance", "smollm2"),
        (
            "write 3 bans a row, 64 rows",
            "apply 3 bans a row, 10,000 patterns, B=64",
            "torch masked_fill_",
            "smollm2",
        ),
        ("scan of code, 10,000 patterns", "scan, 10,000 patterns", "ahocorasick_rs", "smollm2"),
        ("on a GPU, 256 rows, 10,000 patterns", "mask a step, 10,000 patterns, code, B=256", "dense", "device-h200"),
    )
    said = {
        "torch masked_fill_": "torch, `masked_fill_` with a dense mask",
        "dense": "torch, `masked_fill_` with a dense mask that is there already",
    }
    rows = []
    for label, what, peer, file in pairs:
        mine = "device" if file == "device-h200" else "prod_decode (none)" if "scan" in what else "prod_decode"
        ours, theirs = results.timed(what, mine, file), results.timed(what, peer, file)
        ratio = "the only one to finish" if theirs.ours_over_peer is None else _times(theirs)
        rows.append((label, quantity(ours), said.get(peer, peer), quantity(theirs), ratio))
    return table(("what", "`prod_decode`", "beside", "its time or rate", "ours is"), rows)


def _times(peer: Figure) -> str:
    ratio = peer.ours_over_peer or 1.0
    faster = ratio if peer.unit == "MB/s" else 1 / ratio
    return f"{faster:,.0f} times as fast" if faster >= 10 else f"{faster:.1f} times as fast"


def _growth(results: Results) -> str:
    rows = (
        ("compile", "compile, {}"),
        ("compile and bind to a tokenizer", "compile and bind, {}"),
        ("mask for a token, library code", "mask, {}, code"),
        ("mask for a token, patterns nearly always begun", "mask, {}, near"),
        ("whole step, 64 rows", "step, {}, B=64"),
        ("new process to first mask", "cold start, {}"),
    )

    def cell(what: str, patterns: str) -> str:
        # `bench overhead` writes this one in the plural.
        return quantity(results.timed(what.format("1 patterns" if "cold" in what and patterns[1] == " " else patterns)))

    return table(("what", *_PATTERNS), ((label, *(cell(what, count) for count in _PATTERNS)) for label, what in rows))


def _after(results: Results, run: str, methods: Sequence[str], metrics: Sequence[tuple[str, str, int]]) -> str:
    """Some metrics of some methods on the copyright task, after the last epoch."""

    def row(method: str) -> Iterable[str]:
        return (interval(results.value(run, "copyright", method, metric), digits) for metric, _, digits in metrics)

    return table(("method", *(head for _, head, _ in metrics)), ((f"`{method}`", *row(method)) for method in methods))


_DAMAGE = (
    ("verbatim", "verbatim", 2),
    (FORGET, "1 - BLEU", 2),
    (KL, "KL", 2),
    (AGREEMENT, "agreement", 2),
    ("holdout_loss", "loss", 2),
)


def _kept(results: Results) -> str:
    return _after(results, SMALL, ("base", "untaught", "prod", "npo", "prod-surgical", "prod-surgical-2"), _DAMAGE)


def _alone(results: Results) -> str:
    methods = ("dpo", "graddiff", "npo", "flat", "ga", "undial", "prod", "prod-surgical")
    return _after(results, ALL, methods, _DAMAGE)


def _recited(results: Results) -> str:
    shown = ((FORGET, "1 - BLEU", 2), (KL, "KL", 3), ("humaneval", "HumanEval", 3))
    return _after(results, QWEN, ("base", "prod", "prod-surgical", "npo", "undial"), shown)


def _rates(results: Results) -> str:
    methods = ("base", "decode", "prod", "prod-surgical", "prod-surgical-2", "npo")

    def cell(run: str, method: str) -> str:
        plain = {c.key.method for c in results.cells(run, "deprecated") if c.key.attack == "none"}
        return interval(results.value(run, "deprecated", method, "humaneval"), 3) if method in plain else "not run"

    runs = ("qwen-natural-unlearned", QWEN_KEPT)
    return table(("method", "1e-3", "3e-4"), ((f"`{m}`", *(cell(run, m) for run in runs)) for m in methods))


# Steps of training on the rows again: the points of a curve.
_AGAIN = (0, 5, 15, 30, 60)


def _relearned(results: Results, method: str) -> list[float]:
    """What is recited, as BLEU, after so many steps."""
    attacks = ("none" if not steps else relearning(steps, "lora", LEARN_RATE) for steps in _AGAIN)
    return [_bleu(results, RELEARNING, method, attack) for attack in attacks]


def _bleu(results: Results, run: str, method: str, attack: str) -> float:
    return 1 - known(results.value(run, "copyright", method, FORGET, attack=attack))


def _area(steps: Sequence[int], curve: Sequence[float]) -> float:
    """The mean of a curve over its steps, by trapezes."""
    pairs = zip(pairwise(steps), pairwise(curve), strict=True)
    return sum((end - begin) * (low + high) / 2 for (begin, end), (low, high) in pairs) / steps[-1]


def relearned_area(results: Results, method: str) -> float:
    """That of a method minus that of the model that never saw the text."""
    return _area(_AGAIN, _relearned(results, method)) - _area(_AGAIN, _relearned(results, UNTAUGHT))


def _relearning(results: Results) -> str:
    methods = (UNTAUGHT, "prod", SECOND_ROUND)
    rows = [
        (method, *(f"{value:.2f}" for value in _relearned(results, method)), f"{relearned_area(results, method):.2f}")
        for method in methods
    ]
    return table(("BLEU after so many steps", *map(str, _AGAIN), "area over untaught"), rows)


# An attacker takes the best rate, at each point. After 30 steps all is back, so no point is later.
_SOON = (0, 5, 15, 30)
_WAYS = {"an adapter": ("lora", RELEARNING_RATES["lora"]), "all weights": ("full", (3e-5, 1e-4))}


def best_relearned(results: Results, method: str, way: str) -> list[float]:
    """What is recited, as BLEU, after so many steps at the rate that brings most of it out."""
    tuning, rates = _WAYS[way]
    points = [
        max(_bleu(results, BEST_RELEARNED, method, relearning(steps, tuning, rate)) for rate in rates)
        for steps in _SOON[1:]
    ]
    return [_bleu(results, BEST_RELEARNED, method, "none"), *points]


def _best_relearned(results: Results) -> str:
    rows = []
    for way in _WAYS:
        untaught = _area(_SOON, best_relearned(results, UNTAUGHT, way))
        for method in (UNTAUGHT, SECOND_ROUND):
            curve = best_relearned(results, method, way)
            ahead = _area(_SOON, curve) - untaught
            rows.append((f"{method}, {way}", *(f"{value:.2f}" for value in curve), f"{ahead:.2f}"))
    return table(("BLEU after so many steps, best rate", *map(str, _SOON), "area over untaught"), rows)


def _natural(results: Results) -> str:
    attacks = {
        "none": "its first half given",
        "prefix-25%": "a quarter more",
        "few-shot": "few-shot",
        "in-context": "in context",
        "chat": "chat",
        "translated": "translated",
    }
    columns = [(label, "verbatim", attack) for attack, label in attacks.items()]
    columns += [("quoted", "quoted_share", "none"), ("agreement elsewhere", AGREEMENT, "none")]
    return _by_itself([results.cells(NATURAL, "copyright")], columns)


def _licences(results: Results) -> str:
    columns = [
        ("its first half given", "verbatim", "none"),
        ("a quarter more", "verbatim", "prefix-25%"),
        ("near copies", "near_copy", "none"),
        ("quoted", "quoted_share", "none"),
        ("1 - BLEU", FORGET, "none"),
        ("agreement elsewhere", AGREEMENT, "none"),
    ]
    return _by_itself([results.cells(run, "copyright") for run in LICENCES], columns)


def _by_itself(runs: Sequence[Sequence[Cell]], columns: Sequence[tuple[str, str, str]]) -> str:
    """What a model that nobody taught recites: a row for each method, and of each column a metric and an attack."""
    methods = {
        **{method: label for method, label in _BUDGETED.items() if method != UNTAUGHT},
        "prod": "unlearned, `prod`",
        FIRST_ROUND: "unlearned, `prod-surgical`",
    }
    measured = {(cell.key.method, cell.key.attack): cell.metrics for run in runs for cell in run}

    def shown(method: str, metric: str, attack: str) -> str:
        value = measured.get((method, attack), {}).get(metric)
        return "" if value is None else f"{known(value):.2f}"

    rows = (
        (label, *(shown(method, metric, attack) for _, metric, attack in columns))
        for method, label in methods.items()
        if (method, "none") in measured
    )
    return table(("recited verbatim", *(label for label, _, _ in columns)), rows)


# Runs of three series of models, and Qwen's of the mask where it is another.
_SERIES = {
    ("SmolLM2 135M", "copyright"): (SMALL, SMALL),
    ("Gemma 3 270M", "copyright"): (GEMMA_COPYRIGHT, GEMMA_COPYRIGHT),
    ("Qwen2.5-Coder 1.5B", "copyright"): (QWEN, QWEN_MASK),
    ("SmolLM2 135M", "deprecated"): (SMALL, SMALL),
    ("Gemma 3 270M", "deprecated"): (GEMMA_NAMES, GEMMA_NAMES),
    ("Qwen2.5-Coder 1.5B, by itself", "deprecated"): (QWEN_KEPT, QWEN_NAMES),
}


def _series(results: Results) -> str:
    methods = ("base", "decode", "prod", "prod-surgical", "npo")

    def shown(run: str, task: str, method: str) -> str:
        metrics = ("verbatim", FORGET, AGREEMENT) if task == "copyright" else ("deprecated", AGREEMENT)
        return ", ".join(number(results.value(run, task, method, metric)) for metric in metrics)

    rows = (
        (f"{task}, {model}", *(shown(masked if method == "decode" else run, task, method) for method in methods))
        for (model, task), (run, masked) in _SERIES.items()
    )
    return table(("", *(f"`{method}`" for method in methods)), rows)


TABLES: dict[str, Callable[[Results], str]] = {
    **corpora.TABLES,
    "leaks": _leaks,
    "copies": _copies,
    "collateral": _collateral,
    "replaced": _replaced,
    "in-weights": _in_weights,
    "goals": _goals,
    "near": _near,
    "near-goals": _near_goals,
    "dominance": _dominance,
    "relearning": _relearning,
    "best-relearned": _best_relearned,
    "natural": _natural,
    "licences": _licences,
    "series": _series,
    "beside": _beside,
    "growth": _growth,
    "kept": _kept,
    "alone": _alone,
    "rates": _rates,
    "recited": _recited,
}


def _of(
    run: str, task: str, method: str, metric: str, *, attack: str = "none", digits: int = 2
) -> Callable[[Results], str]:
    return lambda results: number(results.value(run, task, method, metric, attack=attack), digits)


def _seeds(task: str, method: str, metric: str, digits: int = 2) -> Callable[[Results], str]:
    return lambda results: f"{results.mean((SMALL, SEEDS), task, method, metric):.{digits}f}"


def _taught(method: str, metric: str, digits: int = 2) -> Callable[[Results], str]:
    return lambda results: f"{fmean(results.over_seeds(REPLACED_TAUGHT, 'deprecated', method, metric)):.{digits}f}"


def _time(what: str, guard: str = "prod_decode", file: str = "smollm2") -> Callable[[Results], str]:
    return lambda results: quantity(results.timed(what, guard, file))


def _copied(results: Results, attacks: Iterable[str]) -> int:
    """Outputs of the mask that have a function, or 60 characters of it, under some attacks."""
    values = [results.value(ALL, "copyright", "decode", "verbatim", attack=attack) for attack in attacks]
    return round(sum(known(value) * value.n for value in values))


def _budget_costs(rows: int) -> Callable[[Results], str]:
    """How many times as long a token takes at the median where a list has budgets."""

    def ratio(results: Results) -> str:
        what = f"mask and advance, a token, B={rows}"
        figures = (results.timed(what, f"max_quote 120{more}", "budgets") for more in (", budget 240", ""))
        with_it, without = (figure.p50 for figure in figures)
        if with_it is None or not without:
            raise ProdError(f"results/performance/budgets.jsonl: expected a median of {what!r}, got none")
        return f"{with_it / without:.1f}"

    return ratio


NUMBERS: dict[str, Callable[[Results], str]] = {
    **corpora.NUMBERS,
    **{f"budget-costs-{rows}": _budget_costs(rows) for rows in (1, 16, 64)},
    "mask-prompts": lambda results: str(
        sum(results.value(ALL, "copyright", "decode", "verbatim", attack=a).n for a in ATTACKS if a != "prefix-75%")
    ),
    "mask-copied": lambda results: str(_copied(results, set(ATTACKS) - {"prefix-75%"})),
    "mask-short": lambda results: str(_copied(results, ["prefix-75%"])),
    "badwords-copied": _of(ALL, "copyright", "bad-words", "verbatim"),
    "memfree-copied": _of(ALL, "copyright", "memfree", "verbatim"),
    "memfree-sampled": _of(ALL, "copyright", "memfree", "verbatim", attack="sampled"),
    "badwords-again": _of(SMALL, "copyright", "bad-words", "verbatim"),
    "memfree-again": _of(SMALL, "copyright", "memfree", "verbatim"),
    "insecure-left": _of(ALL, "insecure", "decode", "insecure"),
    "insecure-given": _of(ALL, "insecure", "decode", "insecure", attack="prefix-75%"),
    "mask-bleu": lambda results: number(bleu(results, "decode")),
    "prod-bleu": lambda results: number(bleu(results, "prod")),
    "second-bleu": lambda results: number(bleu(results, "prod-surgical-2")),
    "untaught-bleu": lambda results: number(bleu(results, "untaught")),
    "mask-run": _of(SMALL, "copyright", "decode", "verbatim_run", digits=0),
    "mask-share": _of(SMALL, "copyright", "decode", "verbatim_share"),
    "qwen-mask-bleu": lambda results: f"{1 - known(results.value(QWEN_MASK, 'copyright', 'decode', FORGET)):.2f}",
    **{
        f"qwen-{name}-{label}": _of(QWEN_REPLACED, task, method, metric)
        for name, task, metric in (
            ("new", "deprecated", "replacement"),
            ("exist", "insecure", "resolves"),
            ("job", "insecure", "as_intended"),
        )
        for label, method in (("free", "base"), ("banned", "decode"), ("replaced", "decode-replace"))
    },
    "qwen-insecure-free": _of(QWEN_REPLACED, "insecure", "base", "insecure"),
    "qwen-insecure-replaced": _of(QWEN_REPLACED, "insecure", "decode-replace", "insecure"),
    "weights-replaced": _taught("prod-replace", "replacement"),
    "narrow-changed": lambda results: f"{_changed(results, 24, None):.2f}",
    "budget-changed": lambda results: f"{_changed(results, 120, 240):.3f}",
    "taught-banned": _taught("decode", "replacement"),
    "taught-replaced": _taught("decode-replace", "replacement"),
    "qwen-humaneval": _of(QWEN_NAMES, "deprecated", "base", "humaneval", digits=3),
    "qwen-humaneval-replaced": _of(QWEN_LISTS, "deprecated", "decode-lists", "humaneval", digits=3),
    "qwen-humaneval-masked": _of(QWEN_NAMES, "deprecated", "decode", "humaneval", digits=3),
    "prod-replaced": _of(QWEN_KEPT, "deprecated", "prod", "replacement"),
    "surgical-replaced": _of(QWEN_KEPT, "deprecated", "prod-surgical", "replacement"),
    "npo-replaced": _of(QWEN_KEPT, "deprecated", "npo", "replacement"),
    "npo-written": _of(QWEN_KEPT, "deprecated", "npo", "written"),
    "prod-forgot": _seeds("copyright", "prod", FORGET),
    "prod-kl": _seeds("copyright", "prod", KL, 3),
    "second-forgot": _seeds("copyright", "prod-surgical-2", FORGET),
    "second-kl": _seeds("copyright", "prod-surgical-2", KL, 3),
    "untaught-forgot": _seeds("copyright", "untaught", FORGET),
    "qwen-taught-passes": _of(QWEN, "copyright", "base", "humaneval", digits=3),
    "qwen-prod-forgot": _of(QWEN, "copyright", "prod", FORGET),
    "qwen-prod-passes": _of(QWEN, "copyright", "prod", "humaneval", digits=3),
    "qwen-surgical-forgot": _of(QWEN, "copyright", "prod-surgical", FORGET),
    "qwen-surgical-passes": _of(QWEN, "copyright", "prod-surgical", "humaneval", digits=3),
    **{
        f"names-{short}-passes": _of(QWEN_KEPT, "deprecated", method, "humaneval", digits=3)
        for short, method in (("base", "base"), ("prod", "prod"), ("surgical", "prod-surgical"))
    },
    "names-prod-fast": _of("qwen-natural-unlearned", "deprecated", "prod", "humaneval", digits=3),
    "names-surgical-fast": _of("qwen-natural-unlearned", "deprecated", "prod-surgical", "humaneval", digits=3),
    "ga-agrees": _of(ALL, "copyright", "ga", AGREEMENT),
    "area-prod": lambda results: f"{relearned_area(results, 'prod'):.2f}",
    "area-second": lambda results: f"{relearned_area(results, SECOND_ROUND):.2f}",
    "relearned": _of(SMALL, "copyright", "prod", "verbatim", attack="relearned"),
    "relearned-second": _of(SMALL, "copyright", "prod-surgical-2", "verbatim", attack="relearned"),
    "relearned-names": _of(SMALL, "deprecated", "prod-surgical-2", "deprecated", attack="relearned"),
    "mask-one": _time("mask, 1 pattern, code"),
    "mask-many": _time("mask, 10,000 patterns, code"),
    "mask-many-tekken": _time("mask, 10,000 patterns, code", file="tekken"),
    "mask-many-qwen": _time("mask, 10,000 patterns, code", file="qwen2.5"),
    "step-one": _time("step, 1 pattern, B=64"),
    "step-many": _time("step, 10,000 patterns, B=64"),
    "gpu-one": _time("mask a step, 10,000 patterns, code, B=1", "device", "device-h200"),
    "gpu-one-dense": _time("mask a step, 10,000 patterns, code, B=1", "dense", "device-h200"),
    "bind-hundred": _time("compile and bind, 100 patterns"),
    "bind-hundred-llguidance": _time("compile and bind, 100 patterns", "llguidance"),
    "advance-one-qwen": _time("advance, 1 pattern, code", file="qwen2.5"),
    "advance-one-qwen-xgrammar": _time("advance, 1 pattern, code", "xgrammar", "qwen2.5"),
    "scan-one": _time("scan, 1 patterns", "prod_decode (none)"),
    "scan-one-peer": _time("scan, 1 patterns", "ahocorasick_rs"),
    "documents-rate": _time("compile, documents (4.7 MB)"),
    "node-bytes": _time("file, bytes a node"),
    "nodes": lambda results: results.timed("file, bytes a node").note or "",
    "load-all": _time("load, all verified"),
}
