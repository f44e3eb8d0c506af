"""The kernel against plain loops and an oracle in pure Python, by properties; its promises about memory and waiting."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prod_decode import masking
from prod_decode.errors import ProdError
from prod_decode.masking import (
    mask_columns_,
    mask_padding_,
    mask_prohibited_,
    move_mass_,
    nucleus_support,
    prod_distribution,
    renormalize_log_probs_,
)
from tests import strategies as own

INF, NAN = math.inf, math.nan
NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int64))

# A float32 exponent is off by 2^-24 of its size, which is at most 104 where exp is not 0: 6e-6, for each of the token
# and the normaliser. In float64: 745 * 2^-53 = 8e-14.
RTOL = {torch.float32: 2e-5, torch.float64: 4e-13}
# Below this, float32 has no relative precision left.
ATOL = 1e-36
# How near a cumulative probability may come to top_p before float32 may decide differently from the oracle.
MARGIN = 2e-6


def bits(x: Tensor) -> Tensor:
    """Equal where every bit is, NaN included."""
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def plain(x: Tensor) -> Tensor:
    """Logits as the kernel reads them, in float64: NaN is -inf, +inf is the largest finite value of the dtype."""
    x = torch.where(x == INF, torch.finfo(x.dtype).max, x).double()
    return torch.where(x.isnan(), -INF, x)


def matrix(x: Tensor) -> list[list[Any]]:
    """The rows of `x`, its leading dimensions flattened."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).tolist()


def softmax(z: list[float], temperature: float = 1.0) -> list[float]:
    top = max(z)
    if top == -INF:
        return [0.0] * len(z)
    weights = [math.exp((x - top) / temperature) for x in z]
    return [weight / math.fsum(weights) for weight in weights]


def oracle(
    z: list[float], banned: list[bool], *, top_p: float, max_n: int | None, temperature: float | None, alpha: float
) -> list[float]:
    """One row of the PROD distribution, token by token. Discards examples that are too near `top_p` to call."""
    left = [-INF if out else x for x, out in zip(z, banned, strict=True)]
    p = softmax(left)
    kept: list[int] = []
    before = 0.0
    for i in sorted(range(len(z)), key=lambda i: (-left[i], i)):
        assume(top_p == 0 or top_p >= 1 or abs(before - top_p) > MARGIN)
        if (kept and top_p < 1 and before > top_p) or len(kept) == max_n:
            break
        kept.append(i)
        before += p[i]
    q = softmax([x if i in kept else -INF for i, x in enumerate(left)], temperature or 1.0)
    if alpha:
        reference = softmax(z)
        q = [-alpha * reference[i] if out else q[i] for i, out in enumerate(banned)]
    return q


@st.composite
def cases(draw: st.DrawFn, **arguments: Any) -> tuple[Tensor, own.Ban]:
    z = draw(own.logits(**arguments))
    return z, draw(own.bans(tuple(z.shape)))


# ---- prod_distribution ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_sorted", [1, 2, 512], ids="sorts from {}".format)
@given(case=cases(), options=own.options(), alpha=st.sampled_from([0.0, 0.5, -2.0]))
def test_equals_the_oracle(
    first_sorted: int, case: tuple[Tensor, own.Ban], options: dict[str, Any], alpha: float
) -> None:
    z, ban = case
    with mock.patch.object(masking, "_SORTED", first_sorted):
        q = prod_distribution(z, ban.form, **options, alpha=alpha)
    assert q.shape == z.shape
    assert q.dtype == (torch.float64 if z.dtype == torch.float64 else torch.float32)
    expected = [
        oracle(row, out, alpha=alpha, **options) for row, out in zip(matrix(plain(z)), matrix(ban.mask), strict=True)
    ]
    expected_q = torch.tensor(expected, dtype=torch.float64).reshape(z.shape)
    torch.testing.assert_close(q.double(), expected_q, rtol=RTOL[q.dtype], atol=ATOL)


@given(case=cases(), options=own.options())
def test_living_rows_sum_to_one_and_prohibited_tokens_get_nothing(
    case: tuple[Tensor, own.Ban], options: dict[str, Any]
) -> None:
    z, ban = case
    q = prod_distribution(z, ban.form, **options)
    assert bool((q >= 0).all())
    assert bool((q[ban.mask] == 0).all())
    alive = ((plain(z) > -INF) & ~ban.mask).any(-1)
    torch.testing.assert_close(q.sum(-1), alive.to(q.dtype), rtol=1e-6, atol=0)


@given(case=cases(elements=own.GRID), options=own.options())
def test_kept_tokens_keep_their_ratios(case: tuple[Tensor, own.Ban], options: dict[str, Any]) -> None:
    z, ban = case
    assume((options["temperature"] or 1) > 0.5)  # so that no kept probability underflows
    q = prod_distribution(z, ban.form, **options)
    for row, logits in zip(q.reshape(-1, q.shape[-1]).double(), z.reshape(-1, z.shape[-1]).double(), strict=True):
        kept = row > 0
        log_ratio = row[kept].log() - logits[kept] / (options["temperature"] or 1)
        torch.testing.assert_close(log_ratio, log_ratio[:1].expand_as(log_ratio), rtol=0, atol=2e-5)


@given(
    case=cases(elements=own.GRID, dtypes=(torch.float32, torch.float64)),
    options=own.options(),
    shift=st.integers(-1000, 1000),
)
def test_a_shift_of_the_logits_changes_no_bit(
    case: tuple[Tensor, own.Ban], options: dict[str, Any], shift: int
) -> None:
    z, ban = case
    assert torch.equal(prod_distribution(z + shift, ban.form, **options), prod_distribution(z, ban.form, **options))


@given(data=st.data(), options=own.options())
def test_commutes_with_a_permutation_of_the_vocabulary(data: st.DataObject, options: dict[str, Any]) -> None:
    z = data.draw(own.distinct_logits())
    mask = data.draw(own.bans(tuple(z.shape))).mask
    order = torch.tensor(data.draw(st.permutations(range(z.shape[-1]))))
    for row, out in zip(matrix(z), matrix(mask), strict=True):
        oracle(row, out, alpha=0.0, **options)  # discards what is too near top_p
    q = prod_distribution(z, mask, **options)
    torch.testing.assert_close(
        prod_distribution(z[..., order], mask[..., order], **options), q[..., order], rtol=1e-6, atol=ATOL
    )


@given(case=cases(elements=own.GRID), top_p=st.floats(0, 0.999), max_n=st.none() | st.integers(1, 9))
def test_the_nucleus_is_the_smallest_that_exceeds_top_p(
    case: tuple[Tensor, own.Ban], top_p: float, max_n: int | None
) -> None:
    z, ban = case
    q = prod_distribution(z, ban.form, top_p=top_p, max_n=max_n)
    for row, logits, out in zip(matrix(q), matrix(z), matrix(ban.mask), strict=True):
        left = [-INF if banned else x for x, banned in zip(logits, out, strict=True)]
        p = softmax(left)
        kept = [i for i, x in enumerate(row) if x > 0]
        # No token outside comes before one inside, by (logit, lower id).
        assert kept == sorted(
            sorted((i for i in range(len(p)) if not out[i]), key=lambda i: (-left[i], i))[: len(kept)]
        )
        assert len(kept) <= (max_n or len(p))
        complete = len(kept) == max_n or len(kept) == len(p) - sum(out)
        assert complete or math.fsum(p[i] for i in kept) > top_p - MARGIN
        last = max(kept, key=lambda i: (-left[i], i), default=None)
        assert math.fsum(p[i] for i in kept if i != last) <= top_p + MARGIN


@given(case=cases(), options=own.options())
def test_the_sparse_form_is_the_dense_form(case: tuple[Tensor, own.Ban], options: dict[str, Any]) -> None:
    z, ban = case
    q = prod_distribution(z, ban.form, **options)
    ids, probs, offsets = nucleus_support(z, ban.form, **options)
    assert (ids.dtype, probs.dtype, offsets.dtype) == (torch.int64, torch.float32, torch.int64)
    bounds = offsets.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == len(ids) == len(probs)
    for exact, row, (start, end) in zip(matrix(q), matrix(q.float()), pairwise(bounds), strict=True):
        support = [i for i, x in enumerate(exact) if x != 0]
        assert ids[start:end].tolist() == support
        assert probs[start:end].tolist() == [row[i] for i in support]


@given(case=cases(), options=own.options())
def test_inputs_are_not_modified(case: tuple[Tensor, own.Ban], options: dict[str, Any]) -> None:
    z, ban = case
    parts = ban.form if isinstance(ban.form, tuple) else (ban.form,)
    given_z, given_parts = z.clone(), [part.tolist() for part in parts]
    prod_distribution(z, ban.form, **options, alpha=0.5)
    nucleus_support(z, ban.form, **options)
    assert torch.equal(bits(z), bits(given_z))
    assert [part.tolist() for part in parts] == given_parts


@given(case=cases(), options=own.options(), chunk=st.integers(1, 60))
def test_the_size_of_a_chunk_changes_nothing(case: tuple[Tensor, own.Ban], options: dict[str, Any], chunk: int) -> None:
    z, ban = case
    whole = prod_distribution(z, ban.form, **options, alpha=0.5), *nucleus_support(z, ban.form, **options)
    with mock.patch.object(masking, "_CHUNK_ELEMENTS", chunk):
        parts = prod_distribution(z, ban.form, **options, alpha=0.5), *nucleus_support(z, ban.form, **options)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=RTOL[torch.float32], atol=ATOL)


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-12, 1e12, 1e40, 1e300, INF])
def test_no_temperature_makes_nan(temperature: float) -> None:
    z = torch.tensor([[3.0, 1.0, 3.0, -INF], [INF, 1.0, NAN, -1e38]])
    q = prod_distribution(z, torch.tensor([-1, 1]), temperature=temperature)
    first = [0.5, 0.0, 0.5, 0.0] if temperature < 1 else [1 / 3, 1 / 3, 1 / 3, 0.0]
    torch.testing.assert_close(q, torch.tensor([first, [1.0, 0.0, 0.0, 0.0]]))


def test_ties_go_to_the_lower_id_and_top_p_is_what_came_before() -> None:
    z = torch.zeros(5)
    # The probabilities before each token are 0, .25, .5, .75: exact, so the third stays at .5.
    assert prod_distribution(z, torch.tensor(1), top_p=0.5).tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3, 0])
    assert prod_distribution(z, torch.tensor(1), top_p=0.49).tolist() == [0.5, 0, 0.5, 0, 0]
    assert prod_distribution(z, torch.tensor(-1), max_n=2).tolist() == [0.5, 0.5, 0, 0, 0]


def test_no_gradient_flows() -> None:
    z = torch.zeros(3, requires_grad=True)
    assert not prod_distribution(z, torch.tensor(0)).requires_grad
    assert not nucleus_support(z, torch.tensor(0))[1].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_odd_vocabulary_of_real_size(dtype: torch.dtype) -> None:
    """Rows whose nucleus needs the first, a longer and a complete sort, against a complete sort in float64."""
    size = 128_001
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(4, size, generator=random, dtype=torch.float64)
    scale = torch.tensor([[0.1], [2.0], [4.0], [8.0]])
    z = torch.cat([noise * scale, torch.zeros(1, size), torch.full((1, size), -INF)]).to(dtype)
    rows, cols = np.repeat(np.arange(len(z)), 50), torch.randint(size, (len(z) * 50,), generator=random)
    q = prod_distribution(z, (rows, cols), top_p=0.8, temperature=0.7)
    left = z.double()
    left[rows, cols] = -INF
    values, order = left.sort(dim=-1, descending=True, stable=True)
    p = values[:5].softmax(-1)
    stays = p.cumsum(-1) - p <= 0.8
    counts = stays.sum(-1)
    if dtype == torch.float32:
        assert counts.tolist()[0] > 32 * 512 > counts.tolist()[1] > 512 > counts.tolist()[2]
    expected = torch.zeros(len(z), size, dtype=torch.float64)
    expected[:5].scatter_(-1, order[:5], values[:5].div(0.7).masked_fill(~stays, -INF).softmax(-1))
    # The last token kept may differ where the cumulative probability is within the error of a float32 sum of top_p.
    assert ((q > 0) != (expected > 0)).sum(-1).max() <= 1
    both = (q > 0) & (expected > 0)
    torch.testing.assert_close(q[both].double(), expected[both], rtol=2e-4 if dtype != torch.float64 else 1e-9, atol=0)


# ---- mask_prohibited_ ----------------------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Tensor, Any, Any]:
    """Scores in every layout that is taken, and pairs into them."""
    z = draw(own.logits())
    layout = draw(st.sampled_from(["contiguous", "transposed", "strided", "sliced batch"]))
    if z.ndim == 2 and layout == "transposed":
        z = z.t().contiguous().t()
    elif z.ndim <= 2 and layout == "strided":
        z = torch.stack([z, z], -1)[..., 1]
    elif layout == "sliced batch":
        z = torch.cat([z, z])[: len(z)]
    return z, *draw(own.pairs(tuple(z.shape)))


def loop(z: Tensor, rows: Any, cols: Any, fallback: int | list[int] | None) -> Tensor:
    """The docstring's loop."""
    flat = z.clone(memory_format=torch.contiguous_format).reshape(math.prod(z.shape[:-1]), z.shape[-1])
    for row, col in zip(rows.tolist(), cols.tolist(), strict=True):
        flat[row, col] = -INF
    for row in flat if fallback is not None else ():
        if not any(score > -INF for score in row.tolist()):
            row[:] = -INF
            row[fallback] = 0
    return flat.view(z.shape)


@given(case=layouts(), data=st.data())
def test_mask_equals_the_loop_bit_for_bit(case: tuple[Tensor, Any, Any], data: st.DataObject) -> None:
    z, rows, cols = case
    ids = st.integers(0, z.shape[-1] - 1)
    fallback = data.draw(st.none() | ids | st.lists(ids, min_size=1, max_size=3))
    expected = loop(z, rows, cols, fallback)
    assert mask_prohibited_(z, rows, cols, fallback=fallback) is z
    assert torch.equal(bits(z.contiguous()), bits(expected))


@pytest.mark.parametrize("dtype", own.FLOATS)
def test_fallback_ends_dead_rows_alone(dtype: torch.dtype) -> None:
    z = torch.tensor(
        [[1, 2, 3], [1, 2, 3], [-INF, NAN, 5], [NAN, -INF, 5], [NAN, NAN, NAN], [-INF, -INF, -1]], dtype=dtype
    )
    rows, cols = np.array([0, 1, 1, 1, 2]), np.array([0, 0, 1, 2, 2])
    mask_prohibited_(z, rows, cols, fallback=[1, 2])
    dead, out = [-INF, 0, 0], -INF
    expected = [[out, 2, 3], dead, dead, [NAN, out, 5], dead, [out, out, -1]]
    torch.testing.assert_close(z, torch.tensor(expected, dtype=dtype), equal_nan=True)


@pytest.mark.parametrize("alive", [0, 1023, 1024, 5000, 69_999, None])
def test_fallback_looks_at_every_block_of_the_vocabulary(alive: int | None) -> None:
    z = torch.full((2, 70_000), -INF)
    z[1, 7] = 1.0
    if alive is not None:
        z[0, alive] = -3.0
    mask_prohibited_(z, *NOTHING, fallback=2)
    assert z[0, 2] == (0 if alive is None else -INF)
    assert int((z > -INF).sum()) == 2


class Watch(TorchDispatchMode):
    """Records every new storage, and keeps it so that no address comes twice."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.inputs = {x.untyped_storage().data_ptr() for x in inputs}
        self.storages: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.inputs:
                self.storages[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return result

    def sizes(self) -> list[int]:
        """Bytes of each, the largest first."""
        return sorted((storage.nbytes() for storage in self.storages.values()), reverse=True)


@pytest.mark.parametrize("dtype", own.FLOATS)
def test_mask_allocates_for_the_pairs_alone(dtype: torch.dtype) -> None:
    z = torch.zeros(16, 100_000, dtype=dtype)
    rows, cols = np.repeat(np.arange(16), 3), np.arange(48)
    for fallback in (None, 99):
        with Watch(z) as watch:
            mask_prohibited_(z, rows, cols, fallback=fallback)
        assert max(watch.sizes(), default=0) <= rows.nbytes
    with Watch(z) as watch:
        mask_prohibited_(z, rows, cols, fallback=0)
    assert watch.sizes()[0] == 16 * 1024  # one block of bools


def test_autograd_is_told_of_what_is_masked() -> None:
    x, w = torch.zeros(2, 3), torch.ones(2, 3, requires_grad=True)
    kept = (x * w).sum()  # x is kept for the way back
    mask_prohibited_(x, np.array([1]), np.array([2]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_a_negative_index_of_any_width_is_refused(dtype: type) -> None:
    z = torch.zeros(200, 300)
    with pytest.raises(ProdError, match="cols: expected indices from 0 to 299, got -1"):
        mask_prohibited_(z, np.array([3], dtype), np.array([-1], dtype))
    assert (z == 0).all()


def test_distribution_allocates_for_one_chunk_beside_its_result() -> None:
    z = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    with mock.patch.object(masking, "_CHUNK_ELEMENTS", 4000), Watch(z) as watch:
        prod_distribution(z, torch.zeros(64, dtype=torch.int64), top_p=0.8, alpha=0.5)
    result, temporary = watch.sizes()[:2]
    assert result == 64 * 1000 * 4
    assert temporary <= 4000 * 8


def test_mask_waits_for_no_device() -> None:
    """On the meta device whatever reads a value on the host raises, as `set_sync_debug_mode` does on a GPU."""
    z = torch.zeros(4, 2000, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        bool(z.any())
    rows, cols = np.array([0, 3]), torch.tensor([5, 6])
    for on in ("cpu", "meta"):
        assert mask_prohibited_(z, torch.from_numpy(rows).to(on), cols.to(on), fallback=[1, 2]) is z
    assert renormalize_log_probs_(z, rows) is z


# ---- renormalize_log_probs_ ----------------------------------------------------------------------------------------


@given(case=layouts(), data=st.data())
def test_renormalized_rows_sum_to_one(case: tuple[Tensor, Any, Any], data: st.DataObject) -> None:
    z, rows, cols = case
    z.copy_(z.double().nan_to_num(posinf=0).clamp(max=200).log_softmax(-1).nan_to_num(nan=-INF))
    mask_prohibited_(z, rows, cols)
    before = z.clone(memory_format=torch.contiguous_format)
    count = math.prod(z.shape[:-1])
    chosen = data.draw(st.none() | st.lists(st.integers(0, count - 1), max_size=count) if count else st.none())
    assert renormalize_log_probs_(z, None if chosen is None else np.array(chosen, dtype=np.int64)) is z
    tolerance = 8 * torch.finfo(z.dtype).eps
    for i, (old, new) in enumerate(zip(before.view(count, z.shape[-1]), z.reshape(count, z.shape[-1]), strict=True)):
        alive = bool((old > -INF).any())
        if alive and (chosen is None or i in chosen):
            below = old.double() - old.double().max()
            expected = below - below.exp().sum().log()
            torch.testing.assert_close(new.double(), expected, rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(bits(new), bits(old))


def test_renormalize_counts_nan_as_nothing() -> None:
    z = torch.tensor([[NAN, math.log(0.25), math.log(0.25)], [NAN, -INF, NAN]])
    renormalize_log_probs_(z)
    half = -math.log(2)
    torch.testing.assert_close(z, torch.tensor([[-INF, half, half], [NAN, -INF, NAN]]), equal_nan=True)


# ---- errors --------------------------------------------------------------------------------------------------------

ROWS, COLS = np.array([0, 1]), np.array([3, 4])
SCORES = "expected float64, float32, float16 or bfloat16 of shape [..., V] with V >= 1, got {}; pass what the model's"
INDEX = "{0}: expected a 1-D int64 tensor or NumPy integer array, got {1}; use `np.asarray({0}, dtype=np.int64)`"
RANGE = "{}: expected indices from 0 to {}, got {}; were they made for these scores?"
FALLBACK = (
    "fallback: expected None, a token id from 0 to 4 or a non-empty sequence of them, got {}; use the tokenizer's"
)


@pytest.mark.parametrize(
    ("scores", "rows", "cols", "fallback", "message"),
    [
        (
            torch.zeros(2, 5, dtype=torch.int64),
            ROWS,
            COLS,
            None,
            "scores: " + SCORES.format("torch.int64 of shape (2, 5)"),
        ),
        (torch.tensor(1.0), ROWS, COLS, None, "scores: " + SCORES.format("torch.float32 of shape ()")),
        (torch.zeros(2, 0), ROWS, COLS, None, "scores: " + SCORES.format("torch.float32 of shape (2, 0)")),
        (
            torch.zeros(2, 3, 5).transpose(0, 1),
            ROWS,
            COLS,
            None,
            "scores: expected leading dimensions that flatten without a copy, got torch.float32 of shape (3, 2, 5) "
            "with strides (5, 15, 1); use `scores = scores.contiguous()` first",
        ),
        (torch.zeros(2, 5), [0, 1], COLS, None, INDEX.format("rows", "list")),
        (torch.zeros(2, 5), ROWS, COLS * 1.0, None, INDEX.format("cols", "float64 of shape (2,)")),
        (torch.zeros(2, 5), ROWS, torch.tensor([True, False]), None, INDEX.format("cols", "torch.bool of shape (2,)")),
        (torch.zeros(2, 5), ROWS[None], COLS, None, INDEX.format("rows", "int64 of shape (1, 2)")),
        (
            torch.zeros(2, 5),
            ROWS,
            COLS[:1],
            None,
            "rows and cols: expected equal lengths, got 2 and 1; repeat a row for",
        ),
        (torch.zeros(2, 5), ROWS + 1, COLS, None, RANGE.format("rows", 1, 2)),
        (torch.zeros(2, 5), torch.tensor([0, -1]), COLS, None, RANGE.format("rows", 1, -1)),
        (torch.zeros(2, 5), ROWS, COLS + 1, None, RANGE.format("cols", 4, 5)),
        (torch.zeros(5), ROWS, COLS, None, RANGE.format("rows", 0, 1)),
        (torch.zeros(2, 5), ROWS, COLS, 5, FALLBACK.format("5")),
        (torch.zeros(2, 5), ROWS, COLS, [1, -1], FALLBACK.format("[1, -1]")),
        (torch.zeros(2, 5), ROWS, COLS, [], FALLBACK.format("[]")),
        (torch.zeros(2, 5), ROWS, COLS, "2", FALLBACK.format("'2'")),
    ],
)
def test_mask_says_what_is_wrong_and_changes_nothing(
    scores: Tensor, rows: Any, cols: Any, fallback: Any, message: str
) -> None:
    before = scores.clone()
    with pytest.raises(ProdError) as error:
        mask_prohibited_(scores, rows, cols, fallback=fallback)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert torch.equal(scores, before)


FORMS = (
    "prohibited: expected a pair (rows, cols), an integer tensor of shape (2,) or a bool tensor of shape (2, 5), "
    "got {}; use -1 where nothing is prohibited"
)


@pytest.mark.parametrize("function", [prod_distribution, nucleus_support])
@pytest.mark.parametrize(
    ("prohibited", "options", "message"),
    [
        (None, {}, FORMS.format("NoneType")),
        ((ROWS, COLS, COLS), {}, FORMS.format("tuple")),
        (torch.zeros(5, dtype=torch.bool), {}, FORMS.format("torch.bool of shape (5,)")),
        (torch.zeros(2, 5), {}, FORMS.format("torch.float32 of shape (2, 5)")),
        (torch.zeros(2, 1, dtype=torch.int64), {}, FORMS.format("torch.int64 of shape (2, 1)")),
        (torch.tensor([0, 5]), {}, RANGE.format("cols", 4, 5)),
        ((ROWS, COLS + 1), {}, RANGE.format("cols", 4, 5)),
        (NOTHING, {"top_p": -0.1}, "top_p: expected a number of at least 0, got -0.1; use 1 to keep every token"),
        (NOTHING, {"top_p": NAN}, "top_p: expected a number of at least 0, got nan"),
        (NOTHING, {"max_n": 0}, "max_n: expected an integer of at least 1, got 0; use None for no limit"),
        (NOTHING, {"max_n": 1.5}, "max_n: expected an integer of at least 1, got 1.5"),
        (
            NOTHING,
            {"temperature": 0.0},
            "temperature: expected a number above 0, got 0.0; use max_n=1 for the top token alone",
        ),
        (NOTHING, {"temperature": NAN}, "temperature: expected a number above 0, got nan"),
    ],
)
def test_distribution_says_what_is_wrong(function: Any, prohibited: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProdError) as error:
        function(torch.zeros(2, 5), prohibited, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_remaining_arguments_are_checked_too() -> None:
    with pytest.raises(ProdError, match=r"alpha: expected a finite number, got inf; use 0 for none"):
        prod_distribution(torch.zeros(2, 5), NOTHING, alpha=INF)
    with pytest.raises(ProdError, match=r"^logits: expected float64.* got torch.int32 of shape \(2, 5\)"):
        prod_distribution(torch.zeros(2, 5, dtype=torch.int32), NOTHING)
    with pytest.raises(ProdError, match=r"^rows: expected indices from 0 to 1, got 2"):
        renormalize_log_probs_(torch.zeros(2, 5), np.array([2]))


@given(own.logits(), st.data())
def test_moved_mass_goes_to_the_targets_alone(scores: Tensor, data: st.DataObject) -> None:
    """Beside float64: what the sources had is shared out among the targets in proportion, and nothing else changes."""
    flat = scores.reshape(-1, scores.shape[-1])
    assume(len(flat))
    row, width = flat[0].clone(), scores.shape[-1]
    targets = data.draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=4))
    sources = data.draw(st.none() | st.lists(st.integers(0, width - 1), max_size=4))
    largest = torch.finfo(row.dtype).max
    before = row.double().nan_to_num(nan=-math.inf, posinf=largest, neginf=-math.inf)
    weights = (before - before.amax().clamp(min=-largest)).exp()
    lost = set(range(width) if sources is None else sources) - set(targets)
    total, given_away = (sum(weights[i].item() for i in some) for some in (set(targets), lost))
    after = row.clone()
    moved = move_mass_(after, None if sources is None else np.array(sources, np.int64), torch.tensor(targets))
    # Where float32 and float64 disagree about whether anything is left of the targets, either answer will do.
    assume(total == 0 or total > 1e-30)
    assert moved == (total > 0)
    if not moved:
        assert torch.equal(after.nan_to_num(), row.nan_to_num())
        return
    for i in range(width):
        if i in lost:
            assert after[i] == -math.inf
        elif i not in targets:
            assert after[i] == row[i] or bool(after[i].isnan() and row[i].isnan())
        else:
            expected = before[i] + math.log1p(given_away / total)
            error = 8 * torch.finfo(row.dtype).eps * max(1.0, abs(expected.item()))
            assert after[i] == expected or abs(after[i].double() - expected) <= error or expected > largest


def test_moved_log_probabilities_still_are() -> None:
    row = torch.randn(1000, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    for sources in (None, np.arange(0, 500, 7)):
        after = row.clone()
        assert move_mass_(after, sources, np.array([3, 700]))
        assert abs(after.logsumexp(-1).item()) < 1e-5
        if sources is None:
            assert after.gt(-math.inf).nonzero().flatten().tolist() == [3, 700]
    with pytest.raises(ProdError, match=r"row: expected scores \[V\]"):
        move_mass_(row[None], None, np.array([3]))


def test_columns_of_chosen_rows() -> None:
    scores = torch.arange(12.0).reshape(3, 4)
    got = mask_columns_(scores, torch.tensor([True, False, True]), torch.tensor([0, 3]))
    assert got is scores
    assert scores.tolist() == [[-INF, 1, 2, -INF], [4, 5, 6, 7], [-INF, 9, 10, -INF]]
    assert mask_columns_(scores.clone(), torch.zeros(3, dtype=torch.bool), torch.tensor([1])).equal(scores)


@given(own.logits(), st.data())
def test_padding_equals_the_loop_bit_for_bit(scores: Tensor, data: st.DataObject) -> None:
    flat = scores.reshape(-1, scores.shape[-1])
    known = data.draw(st.integers(0, scores.shape[-1] + 1))
    rows = data.draw(st.none() | st.lists(st.integers(0, len(flat) - 1), max_size=3)) if len(flat) else None
    want = flat.clone()
    for row in range(len(flat)) if rows is None else rows:
        for column in range(known, flat.shape[1]):
            want[row, column] = -math.inf
    got = mask_padding_(scores, known, None if rows is None else np.array(rows, np.int64))
    assert got is scores
    assert got.reshape(want.shape).equal(want) or (got.reshape(want.shape).nan_to_num(9).equal(want.nan_to_num(9)))
