"""`prod_train.loss.sparse` against the dense formula, written out below."""

import os
import subprocess
import sys
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from prod_decode.errors import ProdError
from prod_train.loss import sparse as loss_module
from prod_train.loss.sparse import SparseTargets, distillation_loss, sparse_kl
from tests.gpu import INTERPRETED, KERNEL_DEVICE, needs_kernels, needs_triton

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.usefixtures("one_thread")


def dense_loss(hidden, weight, target, *, bias=None, logit_softcap=None, logit_scale=None, denominator=None):
    """The specification: mean over rows with a target of `-sum_v t_v log_softmax(z)_v`."""
    z = hidden @ weight.T
    if bias is not None:
        z = z + bias
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    if logit_scale is not None:
        z = z * logit_scale
    if logit_softcap is not None:
        z = logit_softcap * (z / logit_softcap).tanh()
    live = (target != 0).any(-1)
    row_loss = -(target[live].to(z.dtype) * z[live].log_softmax(-1)).sum(-1)
    return row_loss.sum() / (max(1, int(live.sum())) if denominator is None else denominator)


def value_and_grad(function, hidden, *args, **options):
    hidden = hidden.detach().clone().requires_grad_()
    value = function(hidden, *args, **options)
    (grad,) = torch.autograd.grad(value, hidden)
    return value.detach(), grad


def cast(dtype, **options):
    return {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def assert_close(name, got, truth, budget):
    """Every element within `budget` of the truth, or a message that shows the worst one."""
    error = (got.double() - truth).abs().flatten()
    if error.numel() and not (error <= budget).all():
        worst = int(error.nan_to_num(nan=torch.inf).argmax())
        raise AssertionError(
            f"{name}: worst element {worst} of {list(truth.shape)}: got {got.flatten()[worst].item()!r}, "
            f"truth {truth.flatten()[worst].item()!r}, error {error[worst].item():.3g}, budget {budget:.3g}"
        )


def assert_as_good_as_dense(hidden, weight, targets, chunk_size, dtype, **options):
    """Two oracles, as in Cut Cross Entropy's tests: float64 is the truth, the dense formula in `dtype` the budget.

    Both make the same roundings in another order, so twice the dense formula's worst error is allowed, and two units in
    the last place of the largest element where the dense formula was lucky. In float64, where truth and dense formula
    are one, 1e-13 is allowed: some hundred roundings of numbers of size 1.
    """
    head = cast(dtype, hidden=hidden, weight=weight, **options)  # the truth starts from the rounded inputs
    args = (head.pop("hidden"), head.pop("weight"))
    target = targets.to_dense(len(weight))
    exact = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in head.items()}
    truths = value_and_grad(dense_loss, *(a.double() for a in args), target.double(), **exact)
    denses = value_and_grad(dense_loss, *args, target, **head)
    gots = value_and_grad(distillation_loss, *args, targets, chunk_size=chunk_size, **head)
    for name, got, dense, truth in zip(("loss", "gradient"), gots, denses, truths, strict=True):
        assert got.shape == truth.shape
        assert got.dtype == dense.dtype
        budget = 1e-13
        if dtype != torch.float64:
            ulp = torch.finfo(got.dtype).eps * truth.abs().max().item()
            budget = 2 * (dense.double() - truth).abs().max().item() + 2 * ulp
        assert_close(name, got, truth, budget)


def problem(rows, vocab, width, *, support=5, alpha=0.0, empty=0.0, seed=0, gain=2.0):
    """Random hidden states, head, and `support` targets a row, one of them `-alpha * p`; logits of size `gain`."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=g, dtype=torch.float64) * gain
    weight = torch.randn(vocab, width, generator=g, dtype=torch.float64) * width**-0.5
    dense = torch.zeros(rows, vocab, dtype=torch.float64)
    if support:
        ids = torch.stack(
            [torch.randperm(vocab, generator=g)[:support] for _ in range(rows)] or [torch.zeros(0)]
        ).long()
        probs = torch.rand(rows, support, generator=g, dtype=torch.float64)
        probs /= probs.sum(-1, keepdim=True)
        probs[:, 0] *= -alpha if alpha else 1
        dense.scatter_(1, ids.reshape(rows, support), probs)
    dense[torch.rand(rows, generator=g) < empty] = 0
    return hidden, weight, SparseTargets.from_dense(dense.float())


class Watch(TorchDispatchMode):
    """Every tensor made inside: the largest, how many of at least `tile` elements live at once, and the products."""

    def __init__(self, tile=sys.maxsize):
        super().__init__()
        self.tile, self.largest, self.most_tiles, self.products, self.tiles = tile, 0, 0, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.largest = max(self.largest, tensor.numel())
                if tensor.numel() >= self.tile:
                    self.tiles.append(weakref.ref(tensor))
        live = {t.data_ptr() for ref in self.tiles if (t := ref()) is not None}
        self.most_tiles = max(self.most_tiles, len(live))
        return out


# --- the loss and its gradient ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "vocab", "width", "chunk_size"),
    [
        (1, 257, 13, 512),
        (7, 257, 13, 3),
        (129, 257, 13, 50),
        (1, 32_016, 8, 1),
        (129, 32_016, 8, 64),
        (7, 128_001, 8, 4),
    ],
)
def test_matches_dense_formula(rows, vocab, width, chunk_size, dtype):
    assert_as_good_as_dense(*problem(rows, vocab, width, empty=0.2 * (rows > 1), seed=rows), chunk_size, dtype)


OPTIONS = {
    "plain": {},
    "bias": {"bias": torch.linspace(-3, 3, 257, dtype=torch.float64)},
    "softcap": {"logit_softcap": 2.5},
    "scale": {"logit_scale": 0.0625},
    "negative scale": {"logit_scale": -1.5},
    "all": {"bias": torch.linspace(3, -3, 257, dtype=torch.float64), "logit_softcap": 1.5, "logit_scale": 2.0},
    "denominator": {"denominator": 1000},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_head_options_and_negative_targets(options, alpha, dtype):
    assert_as_good_as_dense(*problem(33, 257, 13, alpha=alpha, empty=0.2), 8, dtype, **options)


def test_large_logits_neither_overflow_nor_cancel():
    hidden, weight, targets = problem(9, 257, 13, gain=3e4)
    assert_as_good_as_dense(hidden, weight, targets, 4, torch.float32)
    # The target is far ahead of all others: the loss, 7e-6, is less than the last place of lse = 1e4 in float32.
    weight = torch.eye(4, dtype=torch.float64)
    hidden = torch.tensor([[1e4, 1e4 - 12, 1e4 - 14, 0]], dtype=torch.float64)
    targets = SparseTargets.from_dense(torch.tensor([[1.0, 0, 0, 0]]))
    got = distillation_loss(hidden.float(), weight.float(), targets)
    assert got.item() == pytest.approx(dense_loss(hidden, weight, targets.to_dense(4)).item(), rel=0.05)


@pytest.mark.parametrize("rows", [0, 5])
def test_no_supervised_row(rows):
    hidden, weight, targets = problem(rows, 257, 13, support=0)
    loss, grad = value_and_grad(distillation_loss, hidden, weight, targets)
    assert loss == 0
    assert grad.shape == hidden.shape
    assert (grad == 0).all()


def test_unsupervised_rows_cost_nothing_and_leak_nothing():
    hidden, weight, targets = problem(40, 257, 13, empty=0.5)
    empty = targets.counts == 0
    assert 0 < empty.sum() < 40
    poisoned = hidden.clone()
    poisoned[empty] = torch.nan
    loss, grad = value_and_grad(distillation_loss, hidden, weight, targets, chunk_size=7)
    with Watch() as watch:
        got_loss, got_grad = value_and_grad(distillation_loss, poisoned, weight, targets, chunk_size=7)
    assert got_loss == loss
    assert got_grad.equal(grad)
    assert (got_grad[empty] == 0).all()
    assert watch.products == 2 * -(-int((~empty).sum()) // 7)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 20),
    chunk_size=st.integers(1, 25),
    alpha=st.sampled_from([0.0, 0.7]),
    data=st.data(),
)
def test_independent_of_chunks_and_of_row_order(seed, rows, chunk_size, alpha, data):
    hidden, weight, targets = problem(rows, 31, 6, support=3, alpha=alpha, empty=0.3, seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    loss, grad = value_and_grad(distillation_loss, hidden, weight, targets, chunk_size=rows)
    got_loss, got_grad = value_and_grad(
        distillation_loss, hidden[order], weight, targets.select(order), chunk_size=chunk_size
    )
    assert_close("loss", got_loss, loss, 1e-13)
    assert_close("gradient", got_grad, grad[order], 1e-13)


def test_parts_over_the_global_count_add_up():
    hidden, weight, targets = problem(20, 257, 13, empty=0.3)
    count = targets.counts.count_nonzero()
    loss, grad = value_and_grad(distillation_loss, hidden, weight, targets)
    parts = [
        value_and_grad(distillation_loss, hidden[a:b], weight, targets.slice(a, b), denominator=count)
        for a, b in [(0, 3), (3, 3), (3, 20)]
    ]
    assert_close("loss", sum(p[0] for p in parts), loss, 1e-14)
    assert_close("gradient", torch.cat([p[1] for p in parts]), grad, 1e-14)


def test_gradcheck():
    hidden, weight, targets = problem(6, 17, 5, alpha=0.5, empty=0.3)
    bias = torch.linspace(-1, 1, 17, dtype=torch.float64)
    options = {"bias": bias, "logit_softcap": 2.0, "logit_scale": 0.7, "chunk_size": 4}
    assert torch.autograd.gradcheck(lambda h: distillation_loss(h, weight, targets, **options), hidden.requires_grad_())


# --- the kernel ------------------------------------------------------------------------------------------------------


@pytest.fixture
def kernel(monkeypatch):
    """The calls that went to the kernel: all do, interpreted unless there is a GPU, and in several blocks."""
    from prod_train.loss import kernels as loss_kernels

    monkeypatch.setattr(loss_kernels, "BLOCK", 128)
    monkeypatch.setattr(loss_kernels, "ENTRIES", 16)
    calls = []
    original = loss_module._with_kernel
    monkeypatch.setattr(loss_module, "_kernel_runs", lambda hidden: True)
    monkeypatch.setattr(loss_module, "_with_kernel", lambda *args, **rest: calls.append(1) or original(*args, **rest))
    return calls


def on_device(hidden, weight, targets, **options):
    moved = {k: v.to(KERNEL_DEVICE) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    return (hidden.to(KERNEL_DEVICE), weight.to(KERNEL_DEVICE), targets.to(KERNEL_DEVICE)), moved


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("rows", "vocab", "chunk_size", "support"), [(1, 257, 512, 5), (7, 257, 3, 130), (9, 1000, 4, 65)]
)
def test_the_kernel_matches_the_dense_formula(kernel, rows, vocab, chunk_size, support, dtype):
    given = problem(rows, vocab, 13, support=support, empty=0.2 * (rows > 1), seed=rows)
    args, _ = on_device(*given)
    assert_as_good_as_dense(*args, chunk_size, dtype)
    assert kernel


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_kernel_with_head_options_and_negative_targets(kernel, options, alpha, dtype):
    args, options = on_device(*problem(33, 257, 13, alpha=alpha, empty=0.2), **options)
    assert_as_good_as_dense(*args, 8, dtype, **options)
    assert kernel


@needs_kernels
def test_the_kernel_with_large_logits(kernel):
    args, _ = on_device(*problem(9, 257, 13, gain=3e4))
    assert_as_good_as_dense(*args, 4, torch.float32)
    hidden = torch.tensor([[1e4, 1e4 - 12, 1e4 - 14, 0]], dtype=torch.float64)
    targets = SparseTargets.from_dense(torch.tensor([[1.0, 0, 0, 0]]))
    truth = dense_loss(hidden, torch.eye(4, dtype=torch.float64), targets.to_dense(4)).item()
    args, _ = on_device(hidden.float(), torch.eye(4), targets)
    assert distillation_loss(*args).item() == pytest.approx(truth, rel=0.05)
    assert kernel


@pytest.mark.slow
@needs_kernels
def test_the_kernel_without_a_gradient_and_without_rows(kernel):
    (hidden, weight, targets), _ = on_device(*problem(20, 257, 13))
    hidden, weight = hidden.float(), weight.float()
    expected, _ = value_and_grad(distillation_loss, hidden, weight, targets, chunk_size=7)
    with torch.no_grad():
        assert distillation_loss(hidden, weight, targets, chunk_size=7).item() == expected.item()
    (hidden, weight, targets), _ = on_device(*problem(5, 257, 13, support=0))
    loss, grad = value_and_grad(distillation_loss, hidden.float(), weight.float(), targets)
    assert loss == 0
    assert grad.shape == hidden.shape
    assert (grad == 0).all()
    assert kernel


@pytest.mark.slow
@needs_kernels
def test_the_kernel_leaves_nothing_of_unsupervised_rows(kernel):
    (hidden, weight, targets), _ = on_device(*problem(40, 257, 13, empty=0.5))
    hidden, weight = hidden.float(), weight.float()
    empty = targets.counts == 0
    assert 0 < empty.sum() < 40
    poisoned = hidden.clone()
    poisoned[empty] = torch.nan
    loss, grad = value_and_grad(distillation_loss, hidden, weight, targets, chunk_size=7)
    got_loss, got_grad = value_and_grad(distillation_loss, poisoned, weight, targets, chunk_size=7)
    assert got_loss == loss
    assert got_grad.equal(grad)
    assert (got_grad[empty] == 0).all()
    assert kernel


@needs_kernels
@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter copies tensors; see tests/conftest.py")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_kernel_holds_one_tile(kernel, dtype):
    rows, vocab, chunk_size = 50, 1024, 8
    (hidden, weight, targets), _ = on_device(*problem(rows, vocab, 4))
    hidden, weight = hidden.to(dtype).requires_grad_(), weight.to(dtype)
    with Watch(tile=chunk_size * vocab) as watch:
        distillation_loss(hidden, weight, targets, chunk_size=chunk_size).backward()
    assert watch.largest == chunk_size * vocab
    assert watch.most_tiles == 1
    assert kernel


COMPILE = """
from prod_train.loss import kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

kernel = kernels.loss_and_gradient
for machine in ("cuda", "hip"):
    target = GPUTarget("cuda", 80, 32) if machine == "cuda" else GPUTarget("hip", "gfx942", 64)
    for tile in ("bf16", "fp16", "fp32"):
        for capped in (True, False):
            types = {"tile": "*" + tile, "stride": "i32", "vocab_size": "i32", "scale": "fp32", "softcap": "fp32"}
            types |= {"ids": "*i64", "offsets": "*i64"} | dict.fromkeys(("probs", "losses", "entry_gradients"), "*fp32")
            constants = {"capped": capped, "want_gradient": True, "block": kernels.BLOCK, "entries": kernels.ENTRIES}
            source = ASTSource(
                fn=kernel,
                signature={name: types.get(name, "constexpr") for name in kernel.arg_names},
                constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
            )
            compiled = triton.compile(source, target=target, options={"num_warps": 16 if machine == "cuda" else 8})
            assert len(compiled.asm["cubin" if machine == "cuda" else "hsaco"]) > 1000
            assert "st.local" not in compiled.asm.get("ptx", "")
    print("compiled for", machine)
"""


@needs_triton
@pytest.mark.long
def test_the_kernel_compiles_for_gpus(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout == "compiled for cuda\ncompiled for hip\n", result.stderr


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "options", "tiles"),
    [(torch.float32, {}, 1), (torch.bfloat16, {}, 2), (torch.float32, {"logit_softcap": 30.0}, 2)],
    ids=["float32", "bfloat16", "softcap"],
)
def test_holds_one_tile_of_logits_at_a_time(dtype, options, tiles):
    rows, vocab, chunk_size = 50, 1009, 8
    hidden, weight, targets = problem(rows, vocab, 4)
    hidden, weight = hidden.to(dtype).requires_grad_(), weight.to(dtype)
    with Watch(tile=chunk_size * vocab) as watch:
        distillation_loss(hidden, weight, targets, chunk_size=chunk_size, **options).backward()
    assert watch.largest == chunk_size * vocab
    assert watch.most_tiles == tiles
    assert hidden.grad is not None


def test_makes_no_gradient_that_nobody_asked_for():
    hidden, weight, targets = problem(20, 257, 13)
    products = []
    for requires_grad, enabled in [(True, True), (False, True), (True, False)]:
        with torch.set_grad_enabled(enabled), Watch() as watch:
            loss = distillation_loss(hidden.clone().requires_grad_(requires_grad), weight, targets, chunk_size=5)
        assert loss.requires_grad == (requires_grad and enabled)
        products.append(watch.products)
    assert products == [8, 4, 4]


# --- autograd and precision ------------------------------------------------------------------------------------------


def test_backward_scales_and_can_be_repeated():
    hidden, weight, targets = problem(20, 257, 13)
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16()
    loss = distillation_loss(hidden, weight, targets, denominator=1)
    (one,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (two,) = torch.autograd.grad(loss * 1.003, hidden, retain_graph=True)  # 1.003 is 1 in bfloat16
    (again,) = torch.autograd.grad(loss, hidden)
    assert again.equal(one)
    assert two.equal((one.float() * 1.003).bfloat16())
    assert not two.equal(one)


def test_second_derivative_is_refused():
    hidden, weight, targets = problem(3, 17, 5)
    loss = distillation_loss(hidden.requires_grad_(), weight, targets)
    with pytest.raises(ProdError, match=r"create_graph=True: it has no second derivative, use a dense"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_autocast_changes_nothing():
    hidden, weight, targets = problem(20, 257, 13)
    hidden, weight = hidden.float(), weight.float()
    loss, grad = value_and_grad(distillation_loss, hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        got_loss, got_grad = value_and_grad(distillation_loss, hidden, weight, targets)
    assert got_loss == loss
    assert got_grad.equal(grad)


@pytest.mark.parametrize(("hidden_dtype", "weight_dtype"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_mixed_precision_computes_in_the_dtype_of_the_head(hidden_dtype, weight_dtype):
    hidden, weight, targets = problem(20, 257, 13)
    head = weight.to(getattr(torch, weight_dtype))
    hidden = hidden.to(getattr(torch, hidden_dtype))
    loss, grad = value_and_grad(distillation_loss, hidden, head, targets)
    same_loss, same_grad = value_and_grad(distillation_loss, hidden.to(head.dtype), head, targets)
    assert loss == same_loss
    assert loss.dtype == torch.float32
    assert grad.dtype == hidden.dtype
    assert grad.bfloat16().equal(same_grad.bfloat16())


def test_inputs_are_not_changed():
    hidden, weight, targets = problem(9, 257, 13, alpha=0.5)
    hidden, weight = hidden.float(), weight.float()  # the dtype of the targets: nothing is copied by a cast
    inputs = [hidden, weight, targets.ids, targets.probs, targets.offsets]
    before = [t.clone() for t in inputs]
    value_and_grad(distillation_loss, hidden, weight, targets, logit_softcap=2.0, bias=weight[:, 0].clone())
    assert all(a.equal(b) for a, b in zip(inputs, before, strict=True))


def test_kl_is_zero_at_the_target_and_positive_elsewhere():
    hidden, weight, _ = problem(9, 17, 13)
    model = (hidden @ weight.T).softmax(-1)
    assert sparse_kl(hidden, weight, SparseTargets.from_dense(model)).item() == pytest.approx(0, abs=1e-14)
    other = (hidden @ weight.T * 0.5).softmax(-1)
    truth = torch.nn.functional.kl_div(model.log(), other, reduction="sum") / 4
    got = sparse_kl(hidden.requires_grad_(), weight, SparseTargets.from_dense(other), denominator=4, chunk_size=2)
    assert got.item() == pytest.approx(truth.item(), rel=1e-12)
    assert not got.requires_grad
    with pytest.raises(ProdError, match=r"at least 0, got -.*report distillation_loss"):
        sparse_kl(*problem(9, 17, 13, alpha=0.5))


def test_failure_shows_the_worst_element():
    with pytest.raises(AssertionError, match=r"gradient: worst element 2 of \[2, 2\]: got 5\.0, truth 3\.0, error 2,"):
        assert_close("gradient", torch.tensor([[1, 2.1], [5, 4]]), torch.tensor([[1, 2], [3, 4]]).double(), 1e-3)
    with pytest.raises(AssertionError, match="worst element 1"):
        assert_close("loss", torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 1.0]).double(), 1e-3)


# --- SparseTargets ---------------------------------------------------------------------------------------------------


dense_targets = st.integers(0, 6).flatmap(
    lambda rows: st.lists(
        st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0, -0.5]), min_size=4, max_size=4), min_size=rows, max_size=rows
    ).map(lambda values: torch.tensor(values).reshape(rows, 4))
)


@given(dense_targets, st.data())
def test_targets_behave_like_the_rows_of_a_dense_tensor(dense, data):
    targets = SparseTargets.from_dense(dense)
    rows = len(dense)
    assert len(targets) == rows
    assert len(targets.ids) == dense.count_nonzero()
    assert targets.counts.equal((dense != 0).sum(-1))
    assert targets.to_dense(4).equal(dense)
    assert targets.to("cpu").to_dense(4).equal(dense)
    stop = data.draw(st.integers(0, rows))
    start = data.draw(st.integers(0, stop))
    assert targets.slice(start, stop).to_dense(4).equal(dense[start:stop])
    picks = data.draw(st.lists(st.integers(0, rows - 1), max_size=9)) if rows else []
    assert targets.select(picks).to_dense(4).equal(dense[torch.tensor(picks, dtype=torch.long)])
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), dtype=torch.bool)
    assert targets.select(mask).to_dense(4).equal(dense[mask])


IDS, PROBS, OFFSETS = torch.tensor([3, 1, 2]), torch.tensor([0.5, 0.5, 1.0]), torch.tensor([0, 2, 2, 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": IDS.int()}, r"targets\.ids: expected 1-d int64, got torch.int32 of shape \(3,\): use \.long"),
        ({"offsets": OFFSETS[None]}, r"targets\.offsets: expected 1-d int64, got torch.int64 of shape \(1, 4\)"),
        ({"probs": PROBS[:2]}, r"targets\.probs: .* per id, \[3\], got torch.float32 of shape \(2,\): build"),
        ({"probs": PROBS.int()}, r"targets\.probs: expected one floating-point value .* got torch.int32"),
        ({"probs": PROBS.to("meta")}, r"on one device, got cpu, meta, cpu: move all three"),
        ({"offsets": OFFSETS[:0]}, r"targets\.offsets: expected to start at 0, .* got \[\] .* cumulative sum"),
        ({"offsets": torch.tensor([1, 3])}, r"end at 3, .* got \[1, 3\]"),
        ({"offsets": torch.tensor([0, 2])}, r"end at 3, .* got \[0, 2\]"),
        ({"offsets": torch.tensor([0, 2, 1, 3])}, r"never to decrease .* got \[0, 2, 1, 3\]"),
    ],
)
def test_malformed_targets_are_refused(changes, message):
    with pytest.raises(ProdError, match=message):
        SparseTargets(**{"ids": IDS, "probs": PROBS, "offsets": OFFSETS, **changes})


@pytest.mark.parametrize(
    ("ids", "probs", "message"),
    [
        ([3, -100, 2], [0.5, 0.5, 1], r"targets\.ids: expected ids in \[0, 5\), got -100: give .* an empty row"),
        ([3, 5, 2], [0.5, 0.5, 1], r"expected ids in \[0, 5\), got 5"),
        (
            [3, 1, 2],
            [0.5, 0.5, torch.inf],
            r"targets\.probs: expected finite values, got inf at id 2: make the targets",
        ),
        ([4, 1, 1], [0.5, torch.nan, 1], r"targets\.probs: expected finite values, got nan at id 1"),
        ([3, 3, 2], [0.5, 0.5, 1], r"expected distinct ids in a row, got 3 twice in row 0: add them up"),
    ],
)
def test_targets_that_do_not_fit_the_head_are_refused(ids, probs, message):
    targets = SparseTargets(torch.tensor(ids), torch.tensor(probs), OFFSETS)
    with pytest.raises(ProdError, match=message):
        distillation_loss(torch.zeros(3, 4), torch.zeros(5, 4), targets)


def test_rows_of_a_vocabulary_that_is_too_large_for_32_bits_are_told_apart():
    # Rows 0 and 2 differ by 2**32.
    targets = SparseTargets(torch.tensor([5, 5]), torch.tensor([1.0, 1.0]), torch.tensor([0, 1, 1, 2]))
    assert targets.validate(2**31) == 2


def test_one_id_may_be_in_two_rows():
    SparseTargets(torch.tensor([0, 4, 4]), PROBS, OFFSETS).validate(5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.slice(1, 4), r"slice: expected 0 <= start <= stop <= 3, got 1:4"),
        (lambda t: t.slice(-1, 2), r"got -1:2"),
        (lambda t: t.select([0, 3]), r"select: expected rows in \[0, 3\), got 3"),
        (lambda t: t.select([-1]), r"got -1: count from the start"),
        (
            lambda t: t.select(torch.ones(2, dtype=torch.bool)),
            r"select: expected a mask of 3 rows, got torch.bool of",
        ),
        (lambda t: t.to_dense(3), r"expected ids in \[0, 3\), got 3"),
        (
            lambda _: SparseTargets.from_dense(torch.zeros(2)),
            r"from_dense: expected \[N, V\], got torch.float32 of",
        ),
    ],
)
def test_bad_rows_are_refused(call, message):
    with pytest.raises(ProdError, match=message):
        call(SparseTargets(IDS, PROBS, OFFSETS))


# --- what the loss refuses -------------------------------------------------------------------------------------------


HIDDEN, WEIGHT = torch.zeros(3, 4), torch.zeros(5, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden": HIDDEN[None]},
            r"hidden: expected \[N, d\] .* got torch.float32 of shape \(1, 3, 4\): use hidden\.flatten\(0, -2\)",
        ),
        ({"hidden": HIDDEN.long()}, r"hidden: expected .* got torch.int64"),
        ({"hidden": HIDDEN[:2]}, r"targets: expected 2 rows, .* got 3: select the same rows"),
        ({"hidden": HIDDEN.to("meta")}, r"weight: expected it on meta like hidden, got cpu"),
        (
            {"weight": WEIGHT.T},
            r"weight: expected \[V, 4\] .* got torch.float32 .* \(4, 5\) .*: pass .* lm_head\.weight",
        ),
        ({"weight": WEIGHT.char()}, r"weight: .* got torch.int8 .* unquantised"),
        ({"weight": WEIGHT.clone().requires_grad_()}, r"weight: expected requires_grad=False .* target_modules"),
        ({"bias": WEIGHT[:, 0].clone().requires_grad_()}, r"bias: expected requires_grad=False .* bias\.detach\(\)"),
        (
            {"bias": torch.zeros(4)},
            r"bias: expected .* \(5,\) .* got torch.float32 of shape \(4,\)",
        ),
        (
            {"bias": torch.zeros(5).double()},
            r"bias: expected torch.float32 .* got torch.float64 of shape \(5,\)",
        ),
        (
            {"targets": SparseTargets(IDS, PROBS.clone().requires_grad_(), OFFSETS)},
            r"targets\.probs: expected requires_grad=False .* pass targets\.probs\.detach\(\)",
        ),
        ({"chunk_size": 0}, r"chunk_size: expected at least 1 row, got 0"),
        ({"logit_scale": 0.0}, r"logit_scale: expected a finite factor other than 0, got 0\.0"),
        ({"logit_scale": float("nan")}, r"logit_scale: .* got nan"),
        ({"logit_softcap": 0.0}, r"logit_softcap: expected a finite bound above 0, got 0\.0: use None"),
        ({"denominator": 0}, r"denominator: expected a finite count above 0, got 0\.0: pass the global number"),
        ({"denominator": torch.tensor(torch.nan)}, r"denominator: .* got nan"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"hidden": HIDDEN, "weight": WEIGHT, "targets": SparseTargets(IDS, PROBS, OFFSETS), **changes}
    with pytest.raises(ProdError, match=message):
        distillation_loss(**arguments)


def test_a_trainable_head_may_be_evaluated():
    with torch.no_grad():
        distillation_loss(HIDDEN, WEIGHT.clone().requires_grad_(), SparseTargets(IDS, PROBS, OFFSETS))


@pytest.mark.slow
def test_package_exports_lazily():
    code = (
        "import sys, prod_train; assert 'torch' not in sys.modules; assert 'SparseTargets' in dir(prod_train);"
        "from prod_train import SparseTargets, distillation_loss; assert 'torch' in sys.modules;"
        "print(distillation_loss.__module__, hasattr(prod_train, 'nonsense'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "prod_train.loss.sparse False\n", done.stderr
