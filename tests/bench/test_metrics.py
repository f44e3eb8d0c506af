"""`bench.metrics`: hand-computed cases, an independent implementation of BLEU, and properties."""

from __future__ import annotations

import ast
import itertools
import math
import random
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from bench.metrics import (
    Point,
    dominates,
    hypervolume,
    paper_frontier,
    paper_points,
    pareto_dominance_ratio,
    pareto_front,
    parses,
    pass_at_k,
    proportion,
    sentence_bleu,
    utility_at,
    wilson,
)
from prod_decode.errors import ProdError
from tests.strategies import points

# ---- BLEU ---------------------------------------------------------------------------------------------------------

SACREBLEU = BLEU(smooth_method="none", tokenize="none", effective_order=False, lowercase=False)
token_lists = st.lists(st.integers(0, 3), min_size=1, max_size=24)


@given(st.lists(st.integers(0, 3), max_size=24), token_lists)
def test_bleu_is_sacrebleu_without_smoothing(output: list[int], truth: list[int]) -> None:
    expected = SACREBLEU.sentence_score(" ".join(map(str, output)), [" ".join(map(str, truth))]).score / 100
    assert sentence_bleu(output, truth) == pytest.approx(expected, abs=1e-12)


def test_bleu_by_hand() -> None:
    assert sentence_bleu("abcdef", "abcdef") == pytest.approx(1)
    # 4/5 unigrams, 3/4, 2/3, 1/2, and a reference longer by one.
    assert sentence_bleu("abcdx", "abcdef") == pytest.approx(
        math.exp(1 - 6 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )
    # The reference has two a: of five in the output two count. No penalty for what is too long.
    assert sentence_bleu("abcdaaa", "abcda") == pytest.approx((5 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25)


def test_bleu_without_smoothing_is_0_where_an_order_has_no_match() -> None:
    assert sentence_bleu("abcxabc", "abcdefg") == 0
    assert sentence_bleu("abc", "abc") == 0
    assert sentence_bleu("", "abcd") == 0
    with pytest.raises(ProdError, match="expected a reference of at least one token"):
        sentence_bleu("abcd", "")


@given(token_lists, st.permutations(range(4)))
def test_bleu_does_not_look_at_what_tokens_are(truth: list[int], names: list[int]) -> None:
    output = truth[::-1]
    assert sentence_bleu([names[t] for t in output], [names[t] for t in truth]) == sentence_bleu(output, truth)


# ---- trade-offs ---------------------------------------------------------------------------------------------------


def brute_ratio(ours: list[Point], theirs: list[Point]) -> float:
    beaten = [b for b in theirs if [a for a in ours if a != b and max(a[0], b[0]) == a[0] and max(a[1], b[1]) == a[1]]]
    return len(beaten) / len(theirs)


@given(points(), points(min_size=1))
def test_dominance_ratio_is_the_definition(ours: list[Point], theirs: list[Point]) -> None:
    assert pareto_dominance_ratio(ours, theirs) == brute_ratio(ours, theirs)


@pytest.mark.parametrize(("task", "ratio"), [("copyright", 0.75), ("insecure", 0.53), ("deprecated", 0.95)])
def test_the_papers_points_give_its_ratios(task: str, ratio: float) -> None:
    methods = paper_points(task)
    baselines = [point for name, found in methods.items() if name != "PROD" for point in found]
    assert set(methods) == {"PROD", "GA", "DPO", "NPO", "FLAT"}
    assert round(pareto_dominance_ratio(methods["PROD"], baselines), 2) == ratio


def test_dominance_by_hand() -> None:
    assert pareto_dominance_ratio([(0.5, 0.5)], [(0.5, 0.5)]) == 0
    assert pareto_dominance_ratio([(0.5, 0.5)], [(0.5, 0.4), (0.4, 0.5), (0.6, 0.4), (0.4, 0.6)]) == 0.5
    assert pareto_dominance_ratio([], [(0, 0)]) == 0
    assert not dominates((0, 1), (1, 0))
    with pytest.raises(ProdError, match="at least one point of the competitor"):
        pareto_dominance_ratio([(1, 1)], [])


@given(points(min_size=1), points(min_size=1), st.randoms(use_true_random=False))
def test_order_of_points_does_not_matter(ours: list[Point], theirs: list[Point], random: random.Random) -> None:
    def shuffled(values: list[Point]) -> list[Point]:
        return random.sample(values, len(values))

    assert pareto_dominance_ratio(shuffled(ours), shuffled(theirs)) == pareto_dominance_ratio(ours, theirs)
    assert hypervolume(shuffled(ours)) == hypervolume(ours)
    assert utility_at(shuffled(ours), 0.5) == utility_at(ours, 0.5)


@given(points(min_size=1), points(min_size=1), st.data())
def test_a_dominated_point_of_ours_changes_nothing(ours: list[Point], theirs: list[Point], data: st.DataObject) -> None:
    better = data.draw(st.sampled_from(ours))
    worse = (better[0] - data.draw(st.sampled_from([0, 0.125, 0.5])), better[1] - data.draw(st.sampled_from([0, 0.25])))
    more = [*ours, worse]
    assert pareto_dominance_ratio(more, theirs) == pareto_dominance_ratio(ours, theirs)
    assert hypervolume(more) == hypervolume(ours)
    assert pareto_front(more) == pareto_front(ours)


@given(points(), points(min_size=1), points())
def test_more_points_of_ours_never_lower_anything(ours: list[Point], theirs: list[Point], more: list[Point]) -> None:
    assert pareto_dominance_ratio(ours + more, theirs) >= pareto_dominance_ratio(ours, theirs)
    assert hypervolume(ours + more) >= hypervolume(ours)
    assert (utility_at(ours + more, 0.5) or 0) >= (utility_at(ours, 0.5) or 0)


@given(points(), st.sampled_from([(0.0, 0.0), (0.25, 0.5), (-0.5, 0.125)]))
def test_hypervolume_is_the_area_of_the_cells_below(found: list[Point], reference: Point) -> None:
    """Coordinates are multiples of 1/8, so every cell of that grid is dominated as a whole or not at all."""
    cells = itertools.product(range(-4, 8), repeat=2)
    corners = [((x + 1) / 8, (y + 1) / 8) for x, y in cells if x / 8 >= reference[0] and y / 8 >= reference[1]]
    covered = sum(any(u >= x and q >= y for u, q in found) for x, y in corners)
    assert hypervolume(found, reference) == covered / 64


@given(points())
def test_the_front_is_what_nothing_dominates(found: list[Point]) -> None:
    front = pareto_front(found)
    assert set(front) == {p for p in found if not any(dominates(other, p) for other in found)}
    assert front == sorted(set(front), reverse=True)


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(0.5, 0.5), (0.25, 1.0)]) == 0.5 * 0.5 + 0.25 * 0.5
    assert hypervolume([(0.5, 0.5), (0.25, 1.0)], (0.25, 0.25)) == 0.25 * 0.25
    assert hypervolume([(1.0, 0.25), (0.25, 1.0)], (0.0, 0.5)) == 0.25 * 0.5
    assert hypervolume([]) == 0


def test_a_point_at_the_level_has_reached_it() -> None:
    assert utility_at([(0.5, 0.5), (0.25, 0.75)], 0.5) == 0.5
    assert utility_at([(0.5, 0.5), (0.25, 0.75)], 0.51) == 0.25
    assert utility_at([(0.5, 0.5)], 0.51) is None


def test_best_utility_as_in_the_papers_table() -> None:
    at = {
        task: {name: utility_at(found, 0.85) for name, found in paper_points(task).items()}
        for task in ("copyright", "insecure", "deprecated")
    }
    assert {name: round(value or 0, 3) for name, value in at["copyright"].items()} == {
        "PROD": 0.238, "GA": 0.104, "DPO": 0.122, "NPO": 0.073, "FLAT": 0
    }  # fmt: skip
    assert {name: round(value or 0, 3) for name, value in at["insecure"].items()} == {
        "PROD": 0.25, "GA": 0.079, "DPO": 0.055, "NPO": 0.079, "FLAT": 0.152
    }  # fmt: skip
    assert at["deprecated"]["GA"] is None
    assert at["deprecated"]["DPO"] == pytest.approx(0.207, abs=5e-4)
    with pytest.raises(ProdError, match=r"unknown task 'quantum': expected one of copyright, insecure, deprecated"):
        paper_points("quantum")


def test_the_papers_points_say_where_they_come_from() -> None:
    facts = paper_frontier()
    assert "Digitised" in facts["source"]
    curve = facts["epochs_0_to_9_copyright"]["CodeLlama-7b"]
    assert len(curve["HE_k"]) == len(curve["FQ"]) == 10


# ---- proportions --------------------------------------------------------------------------------------------------


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_pass(samples: int, data: st.DataObject) -> None:
    passed, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
    assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_many_samples_is_exact() -> None:
    assert pass_at_k(1000, 1, 500) == 0.5
    assert pass_at_k(100_000, 1, 1) == pytest.approx(1e-5, rel=1e-9)
    with pytest.raises(ProdError, match="draw at least k samples"):
        pass_at_k(1, 1, 2)
    with pytest.raises(ProdError, match="passed=3"):
        pass_at_k(2, 3, 1)


def test_wilson_by_hand() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    with pytest.raises(ProdError, match="a proportion of nothing"):
        wilson(0, 0)
    with pytest.raises(ProdError, match="got 3 of 2"):
        wilson(3, 2)


@given(st.integers(1, 200), st.data())
def test_wilson_holds_the_score_test(n: int, data: st.DataObject) -> None:
    """The interval is where the normal test of p does not reject: at its ends (p_hat - p)^2 = z^2 p(1-p)/n."""
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))
    for end in (low, high):
        assert (successes / n - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, rel=1e-4, abs=1e-9)
    wider = wilson(successes, n, 0.99)
    assert wider[0] <= low
    assert wider[1] >= high


def test_a_proportion_knows_its_n() -> None:
    metric = proportion([True, False, True, True], "worse")
    assert (metric.value, metric.n, metric.higher_is) == (0.75, 4, "worse")
    assert (metric.low, metric.high) == wilson(3, 4)
    with pytest.raises(ProdError, match="a proportion of nothing"):
        proportion([])


# ---- what parses --------------------------------------------------------------------------------------------------

MODULE = textwrap.dedent('''\
    import os


    @decorated
    class A(object):
        """Doc
        string."""

        def f(self, x: int = 3, *rest) -> dict[str, int]:
            try:
                with open(f"{x}.txt") as file, lock:
                    y = [
                        a for a in file
                        if a
                    ]
            except (OSError, ValueError):
                return {"a": 1, **{
                    "b": 2}}
            finally:
                z = x + \\
                    1
            if x > 1 and not y:
                return lambda q: q ** 2
            elif x:
                pass
            else:
                raise ValueError("a" 'b')
            while True: break
    ''')


@pytest.mark.parametrize("cut", range(1, len(MODULE)))
def test_every_beginning_of_a_module_parses_as_truncated(cut: int) -> None:
    text = MODULE[:cut]
    # Of the first line alone nothing but the line itself can be judged.
    assert parses(text, truncated=True) or "\n" not in text.strip()
    try:
        ast.parse(text)
    except SyntaxError:
        assert not parses(text)
    else:
        assert parses(text)


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\nprint 'a'\ny = 2",
        "def f(:\n    pass\nx",
        "x = (1,\n  2]\ny",
        "def f():\nreturn 1\nx",
        "else:\n    x = 1\ny",
        "x = [1\n  2 3\n",
        "the quick brown fox",
        "\nthe quick brown fox",
        "the quick brown fox\njumps over",
        "a b\x00\n",
        "(" * 5000 + "\nx",
        "\ud800\nx = 1\n",
    ],
)
def test_what_cannot_become_a_module_does_not_parse(text: str) -> None:
    assert not parses(text, truncated=True)
    assert not parses(text)
