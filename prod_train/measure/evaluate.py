"""How much a model still recites, and how far it has moved elsewhere; with the number of rows and intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.errors import ProdError
from prod_decode.harness.continuing import continuations, evaluating, padding_id
from prod_decode.masking import mask_prohibited_
from prod_train.data.alike import COMPARED, VERBATIM_FROM
from prod_train.data.rows import Row, by_length, collate
from prod_train.loss.objective import Encoder, Head
from prod_train.measure.metric import Metric, bootstrap, extraction_strength, longest_run
from prod_train.targets.prohibited import Prohibition, prohibited_by
from prod_train.targets.targets import ReferenceStore

if TYPE_CHECKING:
    from prod_decode.match.matcher import Matcher

# Greedy decoding listens for so many tokens of a row; what lies beyond does not count.
RECITED_TOKENS = 256


def evaluate_forget(
    model: Any,
    encoder: Encoder,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    batch_size: int = 8,
    limit: int | None = None,
    matcher: Matcher | None = None,
) -> dict[str, Metric]:
    """What the model still knows of the forget set.

    `evaluate_likelihood` and `evaluate_recitation` together: what it gives the true text, and what it writes itself.
    Both of the rows that are `measurable`, and each metric has the number of the others.

    Args:
        model: in evaluation mode or not; it is left as it was.
        encoder: attached to it.
        tokenizer: its tokenizer.
        rows: tokenised.
        batch_size: rows a forward pass.
        limit: rows to measure at most, the first ones that can be; None: all.
        matcher: of a blocklist that is enforced at decode time; what it bans has probability 0 everywhere here.

    Raises:
        ProdError: no row can be measured.
    """
    pad = padding_id(tokenizer)
    rows, left_out = measurable(rows, tokenizer, limit)
    likelihood = evaluate_likelihood(model, encoder, rows, pad=pad, batch_size=batch_size, matcher=matcher)
    found = likelihood | evaluate_recitation(model, tokenizer, rows, batch_size=batch_size, matcher=matcher)
    return {name: replace(metric, left_out=left_out) for name, metric in found.items()}


def measurable(rows: Sequence[Row], tokenizer: Any, limit: int | None = None) -> tuple[list[Row], dict[str, int]]:
    """The rows that can show whether a model recites them.

    Where the part to recite is one token, a guess is all there is to see; where it has no text, any output has all of
    it, and where it has one character, nearly any output.

    Args:
        rows: tokenised.
        tokenizer: as they were tokenised.
        limit: rows to find; None: all.

    Returns:
        The first rows that can, and, by reason, the number of those on the way to them that cannot.

    Raises:
        ProdError: there is none.
    """
    chosen: list[Row] = []
    left_out: dict[str, int] = {}
    for row in rows:
        if len(chosen) == limit:
            break
        if reason := unmeasurable(row, tokenizer):
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            chosen.append(row)
    if not chosen:
        why = ", ".join(f"{count} with {reason}" for reason, count in left_out.items()) or "no rows"
        raise ProdError(
            "--forget: expected a row that can be measured, with a completion (or second half of a text) of two tokens "
            f"and two characters or more, got {why}: give longer completions"
        )
    return chosen, left_out


def unmeasurable(row: Row, tokenizer: Any) -> str:
    """Why a row cannot show whether a model recites it, see `measurable`; empty if it can."""
    truth = to_recite(row)
    if len(truth) < 2:
        return "under two tokens"
    if len(COMPARED.code_points(tokenizer.decode(truth))) < 2:
        return "under two characters"
    return ""


@torch.no_grad()
def evaluate_likelihood(
    model: Any,
    encoder: Encoder,
    rows: Sequence[Row],
    *,
    pad: int,
    batch_size: int = 8,
    matcher: Matcher | None = None,
) -> dict[str, Metric]:
    """How likely the model finds the forget set, with the true text before every token; nothing is generated.

    `exact_memorisation`: the share of supervised tokens that are the model's first choice; `probability`: their mean
    p(y); `extraction_strength`: see the function.

    Args:
        model: in evaluation mode or not; it is left as it was.
        encoder: attached to it.
        rows: tokenised.
        pad: token id of padding.
        batch_size: rows a forward pass.
        matcher: see `evaluate_forget`.
    """
    with evaluating(model):
        batches = _batches(rows, batch_size)
        return _means(
            [one for batch in batches for one in likelihoods(model, encoder, batch, pad=pad, matcher=matcher)]
        )


@torch.no_grad()
def likelihoods(
    model: Any, encoder: Encoder, rows: Sequence[Row], *, pad: int, matcher: Matcher | None = None
) -> list[dict[str, float]]:
    """What `evaluate_likelihood` takes the means of, for each row of one batch; the model is in evaluation mode."""
    found = []
    for row, right, p in zip(rows, *first_choices(model, encoder, rows, pad, matcher), strict=True):
        part = row.supervised[row.start : row.stop]
        found.append(
            {
                "exact_memorisation": float(right[part].mean()),
                "probability": float(p[part].mean()),
                "extraction_strength": extraction_strength(right),
            }
        )
    return found


@torch.no_grad()
def evaluate_recitation(
    model: Any, tokenizer: Any, rows: Sequence[Row], *, batch_size: int = 8, matcher: Matcher | None = None
) -> dict[str, Metric]:
    """What the model recites of the forget set when it decodes greedily after `ids[:start]`.

    `recitation`: the share of supervised tokens (EOS apart, of the first `RECITED_TOKENS`) that stand at their place.
    `verbatim_run`: normalised characters of the longest run that the output shares with the true text; `verbatim`: the
    share of rows where it has `VERBATIM_FROM` or more, or the whole text. `empty_output`: the share of rows where it
    has no text.

    Args:
        model: in evaluation mode or not; it is left as it was.
        tokenizer: its tokenizer.
        rows: tokenised.
        batch_size: rows a forward pass.
        matcher: see `evaluate_forget`.
    """
    found = []
    with evaluating(model):
        processors = enforcing(matcher)
        for chosen in _batches(rows, batch_size):
            for row, output in zip(chosen, recite(model, tokenizer, chosen, processors), strict=True):
                found.append(recitation(row, output, tokenizer))
    return _means(found)


def enforcing(matcher: Matcher | None) -> list[Any]:
    """The logits processors that enforce a blocklist; none without one."""
    if matcher is None:
        return []
    from prod_decode.hf import ProdLogitsProcessor

    return [ProdLogitsProcessor(matcher)]


def recitation(row: Row, output: Sequence[int], tokenizer: Any) -> dict[str, float]:
    """What `evaluate_recitation` takes the means of, for one row and the tokens that were written for it."""
    truth = COMPARED.code_points(tokenizer.decode(to_recite(row)))
    written = COMPARED.code_points(tokenizer.decode(output))
    run = longest_run(written, truth)
    return {
        "recitation": _recited(row, output),
        "verbatim_run": float(run),
        "verbatim": float(run >= min(VERBATIM_FROM, len(truth))),
        "empty_output": float(not len(written)),
    }


def to_recite(row: Row) -> list[int]:
    """The tokens that a model should recite of a row: what greedy decoding is compared with."""
    return [int(token) for token in row.ids[row.start : row.stop][:RECITED_TOKENS]]


def _batches(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    for batch in by_length([len(row.ids) for row in rows], size):
        yield [rows[i] for i in batch]


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, Metric]:
    """Of what was found of each row, by name."""
    return {name: bootstrap(np.array([row[name] for row in rows]), np.ones(len(rows)), "worse") for name in rows[0]}


def first_choices(
    model: Any, encoder: Encoder, rows: Sequence[Row], pad: int, matcher: Matcher | None
) -> tuple[list[NDArray[np.bool_]], list[NDArray[np.float64]]]:
    """For each row, over `ids[start:stop]`: whether the token is the likeliest one, and its probability."""
    batch = collate(rows, pad).to(model.device)
    states, head = encoder.states(model, batch), encoder.head()
    right, chance = [], []
    for i, row in enumerate(rows):
        hits, probabilities = [], []
        banned = _banned(matcher, row, row.start, row.stop)
        hidden, labels = states[i, row.start - 1 : row.stop - 1], batch.input_ids[i, row.start : row.stop]
        for begin in range(0, len(hidden), head.chunk_size):
            y = labels[begin : begin + head.chunk_size]
            z = _masked(head.logits(hidden[begin : begin + head.chunk_size]), banned, begin)
            hits.append(z.argmax(-1) == y)
            probabilities.append(z.softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1))
        right.append(torch.cat(hits).cpu().numpy())
        chance.append(torch.cat(probabilities).double().cpu().numpy())
    return right, chance


def _banned(matcher: Matcher | None, row: Row, start: int, stop: int) -> Prohibition | None:
    """What a blocklist bans before each of the tokens `start:stop`, counted from `start`."""
    if matcher is None:
        return None
    every = np.zeros(len(row.ids), np.bool_)
    every[start:stop] = True
    return prohibited_by(matcher, replace(row, supervised=every))


def _masked(z: Tensor, banned: Prohibition | None, begin: int) -> Tensor:
    """Logits of the positions from `begin`, with what is banned there at -inf."""
    if banned is None:
        return z
    here = (banned[0] >= begin) & (banned[0] < begin + len(z))
    return mask_prohibited_(z, banned[0][here] - begin, banned[1][here])


def recite(model: Any, tokenizer: Any, rows: Sequence[Row], processors: Sequence[Any] = ()) -> list[list[int]]:
    """Greedy decoding after each row's `ids[:start]`, as long as what it should recite; EOS and later left out.

    Args:
        model: a transformers model, or an adapter around one.
        tokenizer: its tokenizer.
        rows: one batch.
        processors: logits processors, such as `ProdLogitsProcessor`.
    """
    wanted = [min(RECITED_TOKENS, row.stop - row.start) for row in rows]
    prompts = [row.ids[: row.start] for row in rows]
    outputs = continuations(model, tokenizer, prompts, max(wanted), processors)
    return [tokens[:length] for tokens, length in zip(outputs, wanted, strict=True)]


def _recited(row: Row, output: Sequence[int]) -> float:
    truth = row.ids[row.start : row.stop][:RECITED_TOKENS]
    counts = row.supervised[row.start : row.stop][:RECITED_TOKENS]
    if not counts.any():
        return 0.0
    got = np.full(len(truth), -1, np.int64)
    got[: len(output)] = output[: len(truth)]
    return float((got == truth)[counts].mean())


@torch.no_grad()
def evaluate_holdout(
    model: Any,
    encoder: Encoder,
    rows: Sequence[Row],
    reference: ReferenceStore,
    *,
    pad: int,
    batch_size: int = 8,
    matcher: Matcher | None = None,
) -> dict[str, Metric]:
    """How far the model has moved on code it was not trained on; all means over supervised tokens.

    `loss`: -log p(y) in nats; it can fall while the model is damaged, so look at the others. `kl`: KL(reference ||
    model) in nats. `agreement`: the share of positions where both have the same first choice.

    Args:
        model: in evaluation mode or not; it is left as it was.
        encoder: attached to it.
        rows: tokenised.
        reference: hidden states of the reference model for these rows.
        pad: token id of padding.
        batch_size: rows a forward pass.
        matcher: of a blocklist that is enforced at decode time; a banned token costs infinite loss and KL, since the
            masked model gives it no probability.
    """
    sums: dict[str, list[float]] = {"loss": [], "kl": [], "agreement": []}
    sizes = []
    with evaluating(model):
        for numbers in by_length([len(row.ids) for row in rows], batch_size):
            batch = collate([rows[i] for i in numbers], pad).to(model.device)
            hidden, head = encoder(model, batch), encoder.head()
            teacher = reference.batch(numbers, model.device).hidden
            if teacher is None:
                raise RuntimeError("expected a store of hidden states")
            for i, number in enumerate(numbers):
                here = batch.row == i
                banned = prohibited_by(matcher, rows[number]) if matcher is not None else None
                moved = _moved(head, hidden[here], teacher[here], batch.labels[here], banned)
                sizes.append(float(here.sum()))
                for name, values in moved.items():
                    sums[name].append(float(values.mean()))
    better = {"loss": "worse", "kl": "worse", "agreement": "better"}
    return {name: bootstrap(np.array(v), np.array(sizes), better[name]) for name, v in sums.items()}


def _moved(
    head: Head, hidden: Tensor, teacher: Tensor, labels: Tensor, banned: Prohibition | None
) -> dict[str, Tensor]:
    """`loss`, `kl` and `agreement` of each position, float32 [N]."""
    parts: dict[str, list[Tensor]] = {"loss": [], "kl": [], "agreement": []}
    for begin in range(0, len(hidden), head.chunk_size):
        end = begin + head.chunk_size
        z = _masked(head.logits(hidden[begin:end]), banned, begin).log_softmax(-1)
        t = head.logits(teacher[begin:end]).log_softmax(-1)
        parts["loss"].append(-z.gather(-1, labels[begin:end, None]).squeeze(-1))
        # Rounding can make a sum that is 0 slightly negative.
        parts["kl"].append((t.exp() * (t - z)).sum(-1).clamp(min=0))
        parts["agreement"].append((z.argmax(-1) == t.argmax(-1)).float())
    return {name: torch.cat(values) for name, values in parts.items()}
