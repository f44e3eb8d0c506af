"""The shared kernel: prohibit, keep the nucleus, renormalise. Nothing else in this repository masks a logit.

The logits processors call it on the scores of one step, the trainer on the logits of the reference model. The formulas
are PROD's (arXiv 2506.17125). Throughout, the last dimension is the vocabulary and the dimensions before it, flattened
in C order, count the rows; NaN counts as -inf; a row with no score above -inf is *dead*.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.errors import ProdError, described

Indices: TypeAlias = Tensor | NDArray[np.integer[Any]]
Prohibited: TypeAlias = Tensor | tuple[Indices, Indices]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

# Models pad their output layer; DeepSeek-MoE has 102,400 columns for 100,015 tokens, the most that we know of. A larger
# difference is another model's tokenizer.
MOST_PADDING = 4096

# The distribution is computed for rows of about this many logits at a time, which bounds the temporaries.
_CHUNK_ELEMENTS = 1 << 22

# Where the vocabulary is cut to look for a live score: the first block is small because it nearly always has one.
_BLOCK_ENDS = (1 << 10, 1 << 13, 1 << 16)

# So many tokens are sorted at first. On SmolLM2-135M a nucleus of top_p = .8 has a median of 14 tokens and 423 at p99.
_SORTED = 512


def check_width(width: int, known: int, tokenizer: str, remedy: str, *, eos_ids: Sequence[int] | None = None) -> None:
    """Refuse scores that are not those of a vocabulary.

    Args:
        width: columns of the scores.
        known: size of the vocabulary.
        tokenizer: whose it is, for the message.
        remedy: what to do, for the message.
        eos_ids: tokens of which at least one must have a column.

    Raises:
        ProdError: the sizes differ by more than padding, or no EOS token has a column.
    """
    if abs(width - known) > MOST_PADDING or (eos_ids is not None and min(eos_ids) >= width):
        ends = "" if eos_ids is None else f" (EOS {eos_ids})"
        raise ProdError(
            f"the model scores {width} tokens but {tokenizer} has {known}{ends}: they do not belong together; {remedy}"
        )


def mask_prohibited_(
    scores: Tensor, rows: Indices, cols: Indices, *, fallback: int | Sequence[int] | None = None
) -> Tensor:
    """Set `scores` to -inf, in place, at the pairs (row, column); every other element keeps its bits.

    The plain loop, where `flat` is `scores` with its leading dimensions flattened::

        for row, col in zip(rows, cols):
            flat[row, col] = -inf
        for row in flat if fallback is not None else ():
            if not any(score > -inf for score in row):
                row[:] = -inf
                row[fallback] = 0

    No mask of the size of `scores` is built, and with `rows` and `cols` on the host nothing waits for the device.

    Args:
        scores: [..., V], float64, float32, float16 or bfloat16, on any device. One or two dimensions may have any
            strides; the leading ones of more must flatten without a copy.
        rows: [M], an integer tensor or NumPy array: which of the flattened leading dimensions; 0 for 1-D scores.
        cols: [M], likewise: which token. Duplicates and any order are fine. Indices on the host are checked. Indices on
            a GPU are trusted, since a check would stall it: there, a negative one counts from the end.
        fallback: token ids, such as EOS. Every dead row, banned from here or not, gets score 0 there and ends, where it
            would else emit token 0. A fallback token that is itself prohibited is let through in that case.

    Returns:
        `scores` itself.

    Raises:
        ProdError: another dtype or layout, lengths that differ, an index out of range; `scores` is untouched then.
    """
    flat = _view(scores)
    ends = _token_ids("fallback", fallback, flat.shape[1])
    host = _host_view(flat)
    if host is not None:
        host[_host_pairs(rows, cols, host.shape)] = -math.inf
        # A look at the answer costs nothing here, and the ends are hardly ever prohibited.
        if ends and not (host[:, ends[0]] > -math.inf).all():
            _end_dead_rows_(flat, ends)
        return scores
    flat[_pairs(rows, cols, flat)] = -math.inf
    if ends:
        _end_dead_rows_(flat, ends)
    return scores


def mask_padding_(scores: Tensor, known: int, rows: Indices | None = None) -> Tensor:
    """Set the columns from `known` on to -inf, in place: those that the model has beyond its vocabulary.

    Args:
        scores: as for `mask_prohibited_`.
        known: the size of the vocabulary; nothing happens if it is not below the last dimension.
        rows: [M], which rows, as for `mask_prohibited_`; None is all.

    Returns:
        `scores` itself. Every other element keeps its bits.

    Raises:
        ProdError: as `mask_prohibited_`.
    """
    flat = _view(scores)
    if known < flat.shape[1]:
        index = slice(None) if rows is None else _indices("rows", rows, len(flat), flat.device)
        flat[index, known:] = -math.inf
    return scores


def mask_columns_(scores: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Set the columns `cols` to -inf, in place, in the rows where `rows` is true; waits for no device.

    Args:
        scores: as for `mask_prohibited_`.
        rows: bool [N], one for each of the flattened leading dimensions, on the device of `scores`.
        cols: int64 [M], there as well.

    Returns:
        `scores` itself. Every other element keeps its bits.
    """
    flat = _view(scores)
    flat[:, cols] = flat[:, cols].masked_fill(rows[:, None], -math.inf)
    return scores


def move_mass_(row: Tensor, sources: Indices | None, targets: Indices) -> bool:
    """Give the probability of some tokens to others, in place: the distribution in which a replacement is preferred.

    With `p = softmax(row)`, M the sum of p over `sources` and T that over `targets`, `softmax(row)` becomes::

        q[t] = p[t] * (T + M) / T    for t in targets
        q[s] = 0                     for s in sources, but for targets
        q[v] = p[v]                  elsewhere

    Scores that were log-probabilities still are.

    Args:
        row: [V], floats as for `mask_prohibited_`.
        sources: [M], as the columns of `mask_prohibited_`; None: all but the targets.
        targets: [N], likewise.

    Returns:
        Whether there was anything to give it to; if not (T = 0), `row` keeps its bits.

    Raises:
        ProdError: as `mask_prohibited_`, or `row` has not one dimension.
    """
    if row.ndim != 1:
        raise ProdError(f"row: expected scores [V], got {described(row)}; pass each row by itself")
    gain = _indices("targets", targets, row.shape[0], row.device)
    z = _finite(row)
    weights = (z - _top(z)).exp_()
    kept = torch.zeros(row.shape[0], dtype=torch.bool, device=row.device)
    kept[gain] = True
    lost = ~kept
    if sources is not None:
        lost = torch.zeros_like(kept)
        lost[_indices("sources", sources, row.shape[0], row.device)] = True
        lost &= ~kept
    total, moved = weights[kept].double().sum(), weights[lost].double().sum()
    if not total > 0:
        return False
    row[kept] = (z[kept] + torch.log1p(moved / total)).to(row.dtype)
    row[lost] = -math.inf
    return True


def prod_distribution(
    logits: Tensor,
    prohibited: Prohibited,
    *,
    top_p: float = 1.0,
    max_n: int | None = None,
    temperature: float | None = None,
    alpha: float = 0.0,
) -> Tensor:
    """The PROD distribution: what the model would say without the prohibited tokens and without its unreliable tail.

    For each row, in this order:

    1. the logits of prohibited tokens become -inf;
    2. the nucleus stays: in descending order, every token for which those before it have together a probability of at
       most `top_p`, and not more than `max_n`. The probabilities are those after step 1, at temperature 1. The top
       token always stays; among equal logits the lower id comes first;
    3. `q = softmax(logits that stayed / temperature)`;
    4. if `alpha`: `q[y] = -alpha * softmax(logits)[y]` for prohibited y, with the logits as given.

    +inf counts as the largest finite value of the dtype. The result is never NaN; a row without a token left is all 0,
    apart from step 4. No gradient flows. The host waits for a GPU.

    Args:
        logits: [..., V], float64, float32, float16 or bfloat16, on any device; not modified.
        prohibited: one of: a pair `(rows, cols)` as for `mask_prohibited_`; an integer tensor of shape
            `logits.shape[:-1]`, one token a row, negative where nothing is prohibited; a bool tensor of shape
            `logits.shape`. Not modified.
        top_p: at least 0; from 1 on every token stays. The paper uses 0.8.
        max_n: tokens, at least 1; None is no limit.
        temperature: above 0; None is 1. Beyond [1e-30, 1e30] those bounds are used.
        alpha: any finite number. The paper's best is 0.

    Returns:
        A new tensor of `logits.shape` on its device: float32, or float64 for float64 logits. The temporaries are those
        of a chunk of rows, not of all.

    Raises:
        ProdError: an argument of another dtype, shape or range than stated above.
    """
    probs = torch.empty(_matrix_shape("logits", logits), dtype=_working_dtype(logits), device=logits.device)
    for start, q in _distributions(logits, prohibited, top_p=top_p, max_n=max_n, temperature=temperature, alpha=alpha):
        probs[start : start + len(q)] = q
    return probs.view(logits.shape)


def nucleus_support(
    logits: Tensor,
    prohibited: Prohibited,
    *,
    top_p: float = 1.0,
    max_n: int | None = None,
    temperature: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The non-zeros of `prod_distribution(..., alpha=0)`, ragged: the form in which the trainer keeps its targets.

    Arguments and errors are those of `prod_distribution`.

    Returns:
        `(ids, probs, offsets)` on the device of `logits`: int64 [M], float32 [M], int64 [N + 1]. Flattened row r has
        the tokens `ids[offsets[r] : offsets[r + 1]]`, ascending, with the probabilities at the same places of `probs`.
    """
    rows, ids, probs = [], [], []
    for start, q in _distributions(logits, prohibited, top_p=top_p, max_n=max_n, temperature=temperature, alpha=0.0):
        row, token = q.nonzero(as_tuple=True)
        rows.append(row + start)
        ids.append(token)
        probs.append(q[row, token].float())
    count, _ = _matrix_shape("logits", logits)
    offsets = torch.searchsorted(torch.cat(rows), torch.arange(count + 1, device=logits.device))
    return torch.cat(ids), torch.cat(probs), offsets


def renormalize_log_probs_(scores: Tensor, rows: Indices | None = None) -> Tensor:
    """Make masked log-probabilities sum to 1 again, in place: subtract its logsumexp from each row.

    Beam search compares sums of scores between rows, so they must be log-probabilities; sampling does not need this.

    Args:
        scores: as for `mask_prohibited_`.
        rows: [M], which rows, as for `mask_prohibited_`; None is all.

    Returns:
        `scores` itself. Dead rows and those not named keep their bits; in the others NaN becomes -inf.

    Raises:
        ProdError: as `mask_prohibited_`.
    """
    flat = _view(scores)
    index = slice(None) if rows is None else _indices("rows", rows, len(flat), flat.device)
    part = flat[index]
    log_q = _finite(part).log_softmax(-1)
    # NaN is all of a dead row and nothing else.
    flat[index] = torch.where(log_q.isnan(), part, log_q.to(part.dtype))
    return scores


def _end_dead_rows_(flat: Tensor, ends: list[int]) -> None:
    """Make every dead row of `flat` -inf except for score 0 at the columns `ends`, without waiting for the device."""
    on_host = flat.device.type == "cpu"
    alive = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    blocks = flat.tensor_split(_BLOCK_ENDS, dim=-1)
    # [64, 152k] takes 0.1 ms instead of 5 if this stops as soon as every row is known to be alive.
    for block in (flat[:, ends], *blocks) if on_host else blocks:
        # Not amax, which is NaN where any score is.
        alive |= (block > -math.inf).any(-1)
        if on_host and bool(alive.all()):
            return
    dead = ~alive
    flat.masked_fill_(dead.unsqueeze(-1), -math.inf)
    for token in ends:
        flat[:, token].masked_fill_(dead, 0.0)


def _distributions(
    logits: Tensor,
    prohibited: Prohibited,
    *,
    top_p: float,
    max_n: int | None,
    temperature: float | None,
    alpha: float,
) -> Iterator[tuple[int, Tensor]]:
    """Yield `(first row, q of the rows from there)`, which the caller may keep; at least once, even for no rows."""
    _check_options(top_p, max_n, temperature, alpha)
    flat = logits.detach().reshape(_matrix_shape("logits", logits))
    banned = _prohibited(prohibited, logits, flat)
    step = max(1, _CHUNK_ELEMENTS // flat.shape[1])
    for start in range(0, max(1, len(flat)), step):
        z = _finite(flat[start : start + step])
        index: Tensor | tuple[Tensor, Tensor]
        if isinstance(banned, Tensor):
            index = banned[start : start + step]
        else:
            rows, cols = banned
            here = (rows >= start) & (rows < start + step)
            index = rows[here] - start, cols[here]
        reference = _softmax_(z.clone(), None)[index] if alpha else None
        z[index] = -math.inf
        _keep_nucleus_(z, top_p, max_n)
        _softmax_(z, temperature)
        if reference is not None:
            z[index] = -alpha * reference
        yield start, z


def _finite(logits: Tensor) -> Tensor:
    """A copy in the working precision, with NaN as -inf and +inf as the largest finite value of the original dtype."""
    largest = torch.finfo(logits.dtype).max
    return logits.to(_working_dtype(logits)).nan_to_num(nan=-math.inf, posinf=largest, neginf=-math.inf)


def _top(z: Tensor) -> Tensor:
    """The largest logit of each row, [N, 1]; finite for dead rows too, so that subtracting it makes no NaN."""
    return z.amax(-1, keepdim=True).clamp_(min=torch.finfo(z.dtype).min)


def _softmax_(z: Tensor, temperature: float | None) -> Tensor:
    """Softmax over the last dimension in place; dead rows become 0."""
    z.sub_(_top(z))
    if temperature is not None:
        # Beyond these bounds float32 would turn the temperature into 0 or inf, and 0 / 0 or -inf / inf into NaN.
        z.div_(min(max(temperature, 1e-30), 1e30))
    z.exp_()
    # The top token contributes exp(0) = 1, so only the sum of a dead row is below 1.
    return z.div_(z.sum(-1, keepdim=True).clamp_(min=1))


def _keep_nucleus_(z: Tensor, top_p: float, max_n: int | None) -> None:
    """Set the logits outside the nucleus to -inf in place."""
    most = min(max_n or z.shape[1], z.shape[1])
    if top_p >= 1 and most == z.shape[1]:
        return
    top = _top(z)
    limit = torch.full_like(top, math.inf)
    if top_p < 1:
        limit = top_p * (z - top).exp_().sum(-1, keepdim=True).double()
    last, equals = _last_kept(z, limit, most, most if top_p >= 1 else _SORTED)
    z.masked_fill_(z < last, -math.inf)
    # Of the tokens equal to the last one kept, the first by id stay.
    row, token = (z == last).nonzero(as_tuple=True)
    rank = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    surplus = rank >= equals[row, 0]
    z[row[surplus], token[surplus]] = -math.inf


def _last_kept(z: Tensor, limit: Tensor, most: int, sort: int) -> tuple[Tensor, Tensor]:
    """The logit of the last token kept in each row and how many tokens equal to it are kept, both [N, 1].

    Sorts the top `sort` tokens, and more for those rows alone that need it: a full sort of [64, 152k] takes 12 times
    as long as the top 1024. Tokens are weighed relative to the top one: `limit` is top_p times the sum of all weights.
    """
    sort = min(sort, most)
    values = z.topk(sort, dim=-1).values
    mass = (values.double() - _top(values)).exp_().cumsum_(-1)
    kept = (1 + (mass <= limit).sum(-1, keepdim=True)).clamp_(max=sort)
    last = values.gather(-1, kept - 1)
    equals = kept - (values > last).sum(-1, keepdim=True)
    if sort < most:
        (more,) = ((mass[:, -1:] <= limit) & (values[:, -1:] > -math.inf))[:, 0].nonzero(as_tuple=True)
        if len(more):
            last[more], equals[more] = _last_kept(z[more], limit[more], most, 32 * sort)
    return last, equals


def _working_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _matrix_shape(name: str, scores: Tensor) -> tuple[int, int]:
    """(rows, vocabulary) of `scores` with its leading dimensions flattened."""
    if scores.dtype not in _FLOATS or scores.ndim == 0 or scores.shape[-1] == 0:
        raise ProdError(
            f"{name}: expected float64, float32, float16 or bfloat16 of shape [..., V] with V >= 1, "
            f"got {described(scores)}; pass what the model's output layer returns"
        )
    return math.prod(scores.shape[:-1]), scores.shape[-1]


def _view(scores: Tensor) -> Tensor:
    """`scores` as a matrix that shares its memory."""
    shape = _matrix_shape("scores", scores)
    try:
        return scores.view(shape)
    except RuntimeError:
        raise ProdError(
            f"scores: expected leading dimensions that flatten without a copy, got {described(scores)}; "
            f"use `scores = scores.contiguous()` first"
        ) from None


def _host_view(flat: Tensor) -> NDArray[Any] | None:
    """`flat` as a NumPy array that shares its memory, for what only writes. torch's indexing takes 3 times as long.

    None where there is none: on another device, for bfloat16, under autograd.
    """
    try:
        host: NDArray[Any] = flat.numpy()
    except (RuntimeError, TypeError):
        return None
    # Autograd counts what is written, to find a tensor that it keeps for the way back and that has changed since.
    if not flat.is_inference():
        torch.autograd.graph.increment_version(flat)
    return host


def _require_indices(name: str, values: Indices) -> None:
    if isinstance(values, Tensor):
        integers = values.dtype in _INTEGERS
    else:
        integers = isinstance(values, np.ndarray) and values.dtype.kind in "iu"
    if not integers or values.ndim != 1:
        raise ProdError(
            f"{name}: expected a 1-D int64 tensor or NumPy integer array, got {described(values)}; "
            f"use `np.asarray({name}, dtype=np.int64)`"
        )


def _host_indices(name: str, values: Indices, bound: int) -> NDArray[np.int64]:
    """`values` on the host, int64 [M], checked to be integers in 0 .. bound - 1."""
    _require_indices(name, values)
    host = (values.numpy(force=True) if isinstance(values, Tensor) else values).astype(np.int64, copy=False)
    # As unsigned numbers the negative ones are too large, so one comparison does.
    if host.size and host.view(np.uint64).max() >= bound:
        wrong = host[host.view(np.uint64) >= bound][0]
        raise ProdError(
            f"{name}: expected indices from 0 to {bound - 1}, got {wrong}; were they made for these scores?"
        )
    return host


def _indices(name: str, values: Indices, bound: int, device: torch.device) -> Tensor:
    """`values` as int64 [M] on `device`, checked as `_host_indices` does if they come from the host."""
    if isinstance(values, Tensor) and "cpu" not in (values.device.type, device.type):
        _require_indices(name, values)
        return values.to(device, torch.int64)
    # A copy, because torch takes no array that is read-only or runs backwards. Pageable memory is staged before this
    # returns, so the copy may go. A blocking one would wait for the GPU.
    host = np.array(_host_indices(name, values, bound))
    return torch.from_numpy(host).to(device, non_blocking=True)


def _host_pairs(rows: Indices, cols: Indices, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    row, col = _host_indices("rows", rows, shape[0]), _host_indices("cols", cols, shape[1])
    _check_lengths(row, col)
    return row, col


def _pairs(rows: Indices, cols: Indices, flat: Tensor) -> tuple[Tensor, Tensor]:
    row = _indices("rows", rows, flat.shape[0], flat.device)
    col = _indices("cols", cols, flat.shape[1], flat.device)
    _check_lengths(row, col)
    return row, col


def _check_lengths(row: Indices, col: Indices) -> None:
    if len(row) != len(col):
        raise ProdError(
            f"rows and cols: expected equal lengths, got {len(row)} and {len(col)}; repeat a row for each of its tokens"
        )


def _prohibited(prohibited: Prohibited, logits: Tensor, flat: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """Any form of `prohibited` as a bool matrix like `flat` or as checked pairs, on its device."""
    if isinstance(prohibited, tuple) and len(prohibited) == 2:
        return _pairs(*prohibited, flat)
    if isinstance(prohibited, Tensor):
        if prohibited.dtype == torch.bool and prohibited.shape == logits.shape:
            return prohibited.reshape(flat.shape).to(flat.device)
        if prohibited.dtype in _INTEGERS and prohibited.shape == logits.shape[:-1]:
            token = prohibited.reshape(-1)
            (row,) = (token >= 0).nonzero(as_tuple=True)
            return _pairs(row, token[row], flat)
    raise ProdError(
        f"prohibited: expected a pair (rows, cols), an integer tensor of shape {tuple(logits.shape[:-1])} or a bool "
        f"tensor of shape {tuple(logits.shape)}, got {described(prohibited)}; use -1 where nothing is prohibited"
    )


def _token_ids(name: str, tokens: int | Sequence[int] | None, bound: int) -> list[int]:
    if tokens is None:
        return []
    ids = list(tokens) if isinstance(tokens, Sequence) else [tokens]
    if not ids or not all(isinstance(token, int | np.integer) and 0 <= token < bound for token in ids):
        raise ProdError(
            f"{name}: expected None, a token id from 0 to {bound - 1} or a non-empty sequence of them, got {tokens!r}; "
            f"use the tokenizer's EOS id"
        )
    return ids


def _check_options(top_p: float, max_n: int | None, temperature: float | None, alpha: float) -> None:
    if not top_p >= 0:
        raise ProdError(f"top_p: expected a number of at least 0, got {top_p!r}; use 1 to keep every token")
    if max_n is not None and not (isinstance(max_n, int | np.integer) and max_n >= 1):
        raise ProdError(f"max_n: expected an integer of at least 1, got {max_n!r}; use None for no limit")
    if temperature is not None and not temperature > 0:
        raise ProdError(
            f"temperature: expected a number above 0, got {temperature!r}; use max_n=1 for the top token alone"
        )
    if not math.isfinite(alpha):
        raise ProdError(f"alpha: expected a finite number, got {alpha!r}; use 0 for none")
