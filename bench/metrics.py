"""Metrics of outputs and of trade-offs between forgetting and utility: pure functions on plain data.

A *point* is (utility, forget quality), both better when higher: one model, or one epoch of a training run.
"""

from __future__ import annotations

import ast
import json
import math
import warnings
from codeop import PyCF_ALLOW_INCOMPLETE_INPUT  # type: ignore[attr-defined]  # typeshed leaves it out
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import NormalDist
from typing import Any

from prod_decode.errors import ProdError
from prod_train.measure.metric import Metric

Point = tuple[float, float]

_BLEU_ORDER = 4


@dataclass(frozen=True, slots=True)
class Value:
    """One metric.

    Attributes:
        value: a mean; None if it could not be measured.
        low: of the 95 % interval, or None.
        high: likewise.
        n: samples that it is a mean over.
        higher_is: `better` or `worse`, for someone who wants the forget set gone and all else unchanged.
        reason: why there is no value, else "".
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    higher_is: str
    reason: str = ""

    @classmethod
    def of(cls, metric: Metric) -> Value:
        """A metric that was measured."""
        return cls(metric.value, metric.low, metric.high, metric.n, metric.higher_is)

    @classmethod
    def missing(cls, higher_is: str, reason: str) -> Value:
        """A metric that could not be measured, and why."""
        return cls(None, None, None, 0, higher_is, reason)


def sentence_bleu(output: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """BLEU-4 of one output against one reference, not smoothed (Papineni et al., ACL 2002, https://aclanthology.org/P02-1040).

    `BP * (p1 * p2 * p3 * p4) ** (1/4)`; `p_n` is the share of the output's n-grams that are in the reference, each
    counted at most as often as there; `BP = min(1, exp(1 - len(truth) / len(output)))`. Without smoothing it is 0
    as soon as one `p_n` is: also for every output or reference of fewer than four tokens, equal ones included.

    Args:
        output: tokens, such as token ids.
        truth: tokens of the reference.

    Raises:
        ProdError: the reference is empty.
    """
    if not truth:
        raise ProdError("expected a reference of at least one token to compare with, got none: leave the row out")
    if min(len(output), len(truth)) < _BLEU_ORDER:
        return 0.0
    logs = 0.0
    for n in range(1, _BLEU_ORDER + 1):
        found, wanted = (Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (output, truth))
        common = (found & wanted).total()
        if not common:
            return 0.0
        logs += math.log(common / found.total())
    return math.exp(min(0.0, 1 - len(truth) / len(output)) + logs / _BLEU_ORDER)


def dominates(a: Point, b: Point) -> bool:
    """Whether a is at least as good as b in both coordinates and better in one."""
    return a[0] >= b[0] and a[1] >= b[1] and (a[0] > b[0] or a[1] > b[1])


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other dominates, each once, by falling utility."""
    front: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def pareto_dominance_ratio(ours: Iterable[Point], theirs: Sequence[Point]) -> float:
    """The share of the competitor's points that at least one of ours Pareto-dominates; equal points do not count.

    The name is the PROD paper's (arXiv 2506.17125), whose formula is not public; this one is the project's own.

    Args:
        ours: points; none dominate nothing.
        theirs: points of one competitor, or of several together; a point that stands there twice counts twice.

    Raises:
        ProdError: the competitor has no points.
    """
    if not theirs:
        raise ProdError("expected at least one point of the competitor, got none: a share of nothing has no value")
    front = pareto_front(ours)
    return sum(any(dominates(a, b) for a in front) for b in theirs) / len(theirs)


def hypervolume(points: Iterable[Point], reference: Point = (0.0, 0.0)) -> float:
    """The area that is dominated by the points and dominates the reference (Zitzler and Thiele, 1998).

    Args:
        points: those not better than the reference in both coordinates add nothing.
        reference: the corner to measure from: the worst that counts, the same in every comparison.
    """
    area, height = 0.0, reference[1]
    for utility, quality in pareto_front(p for p in points if p[0] > reference[0] and p[1] > reference[1]):
        area += (utility - reference[0]) * (quality - height)
        height = quality
    return area


def utility_at(points: Iterable[Point], forget_quality: float) -> float | None:
    """The best utility among points of at least this forget quality; None if there is none.

    Nothing is interpolated between points: a model in between was not trained.
    """
    return max((utility for utility, quality in points if quality >= forget_quality), default=None)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The chance that one of k samples passes: `1 - C(n-c, k) / C(n, k)`, unbiased (Chen et al., arXiv 2107.03374).

    Args:
        samples: n, how many were drawn.
        passed: c, how many of them passed.
        k: at most n.

    Raises:
        ProdError: the numbers do not fit.
    """
    if not (1 <= k <= samples and 0 <= passed <= samples):
        raise ProdError(
            f"expected 1 <= k <= samples and 0 <= passed <= samples, got k={k}, samples={samples}, passed={passed}: "
            "draw at least k samples a problem"
        )
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, JASA 22, 1927): it holds at 0, at n and for few trials.

    `(p + z^2/2n -+ z * sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`.

    Args:
        successes: of n trials.
        n: at least 1.
        confidence: between 0 and 1.

    Raises:
        ProdError: the numbers do not fit.
    """
    if not (0 <= successes <= n and n > 0 and 0 < confidence < 1):
        raise ProdError(
            f"expected 0 <= successes <= n, n > 0 and 0 < confidence < 1, got {successes} of {n} at {confidence}: "
            "a proportion of nothing has no interval"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, shrink = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / shrink
    # Rounding can leave 0 and 1, the exact ends of these two cases, by an ulp.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def proportion(outcomes: Iterable[bool], higher_is: str = "better") -> Metric:
    """The share of outcomes that are true, with its Wilson interval of 95 %.

    Raises:
        ProdError: no outcomes.
    """
    found = [bool(outcome) for outcome in outcomes]
    low, high = wilson(sum(found), len(found))
    return Metric(sum(found) / len(found), low, high, len(found), higher_is)


def parses(text: str, *, truncated: bool = False) -> bool:
    """Whether the text is a Python module, or the beginning of one where it was truncated.

    A whole text counts if `ast.parse` of the running Python accepts it. One that was cut off by a limit of tokens
    would fail by where the limit fell, so it also counts if it could still become a module: it, or it without its
    unfinished last line, is accepted or ends too early: within brackets, a triple-quoted string, after a block's
    header, a decorator, a backslash or a `try` without handler. A text of one line is judged with that line, so that
    one long line of garbage does not count as an empty module.

    Args:
        text: prompt and completion together, from the start of the file.
        truncated: whether a limit cut it off; False if the model ended it, or a stop sequence did.
    """
    if not truncated:
        return _compiles(text, 0)
    head, newline, _ = text.rpartition("\n")
    return _compiles(text, PyCF_ALLOW_INCOMPLETE_INPUT) or (
        bool(newline) and bool(head.strip()) and _compiles(head + newline, PyCF_ALLOW_INCOMPLETE_INPUT)
    )


def _compiles(text: str, flags: int) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of an invalid escape sequence in the text
            compile(text, "<output>", "exec", ast.PyCF_ONLY_AST | flags)
    except SyntaxError as error:
        return bool(flags) and error.msg == "incomplete input"
    except (ValueError, RecursionError, MemoryError):
        # A NUL or a lone surrogate; nesting that the parser gives up on.
        return False
    return True


def paper_frontier() -> dict[str, Any]:
    """The points digitised from the PROD authors' figures: `codellama_7b` -> task -> method -> points, and more.

    `source` says where they come from and how accurate they are.
    """
    facts: dict[str, Any] = json.loads((files("bench") / "data" / "paper_frontier.json").read_text(encoding="utf-8"))
    return facts


def paper_points(task: str) -> dict[str, list[Point]]:
    """The paper's CodeLlama-7B points of a task, by method.

    Args:
        task: `copyright`, `insecure` or `deprecated`.

    Raises:
        ProdError: another task.
    """
    tasks = paper_frontier()["codellama_7b"]
    if task not in tasks:
        raise ProdError(f"unknown task {task!r}: expected one of {', '.join(tasks)}")
    return {method: [(float(u), float(q)) for u, q in points] for method, points in tasks[task].items()}
