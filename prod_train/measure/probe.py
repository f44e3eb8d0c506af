"""What a model recites of each row, as it is: from its prompt, and with more and more of the text given.

Writing takes most of the time. Of more rows than there is time for, `likeliest` reads all and finds those to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from prod_decode.harness.continuing import evaluating, padding_id
from prod_train.data.alike import COMPARED
from prod_train.data.rows import Row, by_length
from prod_train.loss.objective import Encoder
from prod_train.measure.evaluate import (
    RECITED_TOKENS,
    enforcing,
    first_choices,
    likelihoods,
    recitation,
    recite,
    to_recite,
    unmeasurable,
)

if TYPE_CHECKING:
    from prod_decode.match.matcher import Matcher

# Of the part to recite, how much of it the model is given beside the prompt.
GIVEN = (0.0, 0.25, 0.5)

# A token that is read takes so much of the time of one that is written (SmolLM2-135M in float32 on one core, eight rows
# at a time: 0.14 to 0.16).
_READ = 0.15


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote behind a beginning of a row.

    Attributes:
        given: share of the part to recite that it was given.
        truth: what it should not know: the text that follows, as far as it is compared.
        written: what it wrote.
        run: normalised characters of the longest run that both have.
        size: normalised characters of `truth`.
        verbatim: whether that is `VERBATIM_FROM` or more, or all of a shorter text.
        recitation: share of supervised tokens at their place, 0 to 1.
    """

    given: float
    truth: str
    written: str
    run: int
    size: int
    verbatim: bool
    recitation: float


@dataclass(frozen=True, slots=True)
class Probed:
    """What is known of one row.

    Attributes:
        row: it.
        probability: mean p(y) of its supervised tokens, with the true text before each.
        exact_memorisation: share of them that are the model's first choice.
        extraction_strength: 1 - k/T, k the tokens after which greedy decoding recites the rest.
        answers: by what was given; those behind which too little follows to be measured are left out.
        guarded: the same with a blocklist or index enforced; empty without one.
    """

    row: Row
    probability: float
    exact_memorisation: float
    extraction_strength: float
    answers: tuple[Answer, ...]
    guarded: tuple[Answer, ...] = ()

    @property
    def recites(self) -> bool:
        """Whether the model recites the row from its prompt."""
        return self.answers[0].verbatim


def probe(
    model: Any,
    encoder: Encoder,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    batch_size: int = 8,
    matcher: Matcher | None = None,
    tell: Callable[[float], object] = lambda _: None,
) -> list[Probed]:
    """Measure every row by itself.

    Args:
        model: in evaluation mode or not; it is left as it was.
        encoder: attached to it.
        tokenizer: its tokenizer.
        rows: tokenised; each can be measured, see `measurable`.
        batch_size: rows a forward pass; of like lengths.
        matcher: of a blocklist or a corpus index: everything is written a second time with it enforced.
        tell: is told what share of the work is done, 0 to 1.

    Returns:
        One for each row, in their order.
    """
    begun = [(number, given, _given(row, given)) for number, row in enumerate(rows) for given in GIVEN]
    begun = [one for one in begun if not unmeasurable(one[2], tokenizer)]
    matchers = [None] if matcher is None else [None, matcher]
    answers: dict[tuple[int, bool], dict[float, Answer]] = {
        (number, bool(guard)): {} for number in range(len(rows)) for guard in matchers
    }
    likely: dict[int, dict[str, float]] = {}
    reading = _batches([len(row.ids) for row in rows], batch_size)
    # Of one share at a time: those of like lengths then have as much to write.
    writing = [
        [at[i] for i in numbers]
        for share in GIVEN
        for at in [[number for number, (_, given, _) in enumerate(begun) if given == share]]
        for numbers in _batches([len(begun[i][2].ids) for i in at], batch_size)
    ]
    work = [_READ * sum(len(rows[i].ids) for i in numbers) for numbers in reading]
    work += [_cost([begun[i][2] for i in numbers]) for numbers in writing for _ in matchers]
    done = _shares(work)
    with evaluating(model), torch.no_grad():
        for numbers in reading:
            some = [rows[i] for i in numbers]
            found = likelihoods(model, encoder, some, pad=padding_id(tokenizer))
            likely |= dict(zip(numbers, found, strict=True))
            tell(next(done))
        for numbers in writing:
            for guard in matchers:
                outputs = recite(model, tokenizer, [begun[i][2] for i in numbers], enforcing(guard))
                for i, output in zip(numbers, outputs, strict=True):
                    number, given, row = begun[i]
                    answers[number, guard is not None][given] = _answer(row, given, output, tokenizer)
                tell(next(done))
    return [
        Probed(
            row,
            likely[number]["probability"],
            likely[number]["exact_memorisation"],
            likely[number]["extraction_strength"],
            tuple(answers[number, False].values()),
            tuple(answers.get((number, True), {}).values()),
        )
        for number, row in enumerate(rows)
    ]


@torch.no_grad()
def likeliest(
    model: Any,
    encoder: Encoder,
    tokenizer: Any,
    rows: Sequence[Row],
    count: int,
    *,
    batch_size: int = 8,
    tell: Callable[[float], object] = lambda _: None,
) -> tuple[list[Row], int]:
    """The rows that a model is likeliest to recite, found by reading them: nothing is written.

    Greedy decoding follows a text as long as each of its tokens is the model's first choice. So the longest run of
    first choices is what the model would write by itself if it were given all that stands before.

    Args:
        model: in evaluation mode or not; it is left as it was.
        encoder: attached to it.
        tokenizer: its tokenizer.
        rows: tokenised; each can be measured, see `measurable`.
        count: rows to find, 1 or more.
        batch_size: rows a forward pass; of like lengths.
        tell: is told what share of the work is done, 0 to 1.

    Returns:
        Those with the longest runs (of equal runs the first), in the order of `rows`; and the longest run of the others
        in normalised characters, 0 where there are none.
    """
    pad, runs = padding_id(tokenizer), np.zeros(len(rows), np.int64)
    reading = _batches([len(row.ids) for row in rows], batch_size)
    done = _shares([sum(len(rows[i].ids) for i in numbers) for numbers in reading])
    with evaluating(model):
        for numbers in reading:
            some = [rows[i] for i in numbers]
            rights, _ = first_choices(model, encoder, some, pad, None)
            for i, right in zip(numbers, rights, strict=True):
                runs[i] = _longest(rows[i], right, tokenizer)
            tell(next(done))
    order = np.argsort(-runs, kind="stable")
    return [rows[i] for i in np.sort(order[:count])], int(runs[order[count:]].max(initial=0))


def _longest(row: Row, right: NDArray[np.bool_], tokenizer: Any) -> int:
    """Normalised characters of the longest run of first choices, `right` bool [stop - start]."""
    edges = np.flatnonzero(np.diff(np.pad(right, 1).astype(np.int8)))
    return max(
        (
            len(COMPARED.code_points(tokenizer.decode(row.ids[row.start + begin : row.start + end])))
            for begin, end in zip(edges[::2], edges[1::2], strict=True)
        ),
        default=0,
    )


def _given(row: Row, share: float) -> Row:
    """The row with a share of its part to recite given."""
    return replace(row, start=row.start + int(share * (row.stop - row.start)))


def _batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    return [*by_length(lengths, size)]


def _cost(rows: Sequence[Row]) -> float:
    """Of a batch that is continued, in tokens that are written."""
    steps = max(min(RECITED_TOKENS, row.stop - row.start) for row in rows)
    return len(rows) * steps + _READ * sum(row.start for row in rows)


def _shares(work: Sequence[float]) -> Iterator[float]:
    total, done = sum(work), 0.0
    for one in work:
        done += one
        yield done / total


def _answer(row: Row, given: float, output: Sequence[int], tokenizer: Any) -> Answer:
    truth, written = tokenizer.decode(to_recite(row)), tokenizer.decode(output)
    found = recitation(row, output, tokenizer)
    size = len(COMPARED.code_points(truth))
    verbatim = bool(found["verbatim"])
    return Answer(given, truth, written, int(found["verbatim_run"]), size, verbatim, found["recitation"])
