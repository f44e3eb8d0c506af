"""Each method's loss and gradient against its formula, written out on dense logits in float64."""

import copy
import math

import numpy as np
import pytest
import torch

from prod_decode.errors import ProdError
from prod_decode.storage.models import load_model
from prod_train.config.config import Config
from prod_train.data.rows import Batch, Row
from prod_train.loss.objective import Head, Pass
from prod_train.loss.retain import retain_loss
from prod_train.loss.sparse import SparseTargets
from prod_train.method import Example, Reference
from prod_train.methods import METHODS, make_method
from prod_train.model.modeling import trainable
from prod_train.run.job import REFUSALS, prepare
from prod_train.run.session import setup
from prod_train.run.trainer import train_step
from tests.tiny import SNIPPETS, save_tiny_model, write_snippets

V, D = 37, 9
DENOMINATOR = 5.0


def problem(seed=0, rows=(4, 0, 3), requires_grad=False):
    """(Pass in float64, the same hidden states with gradient, reference hidden states)."""
    g = torch.Generator().manual_seed(seed)
    n = sum(rows)
    hidden = torch.randn(n, D, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64, requires_grad=requires_grad)
    labels = torch.randint(V, (n,), generator=g)
    row = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))
    empty = torch.zeros(0, dtype=torch.long)
    batch = Batch(empty, empty, empty, labels, row, len(rows))
    teacher = torch.randn(n, D, generator=g, dtype=torch.float64)
    return Pass(hidden, Head(weight, chunk_size=2), batch), teacher


def log_p(passed):
    return (passed.hidden @ passed.head.weight.T).log_softmax(-1)


def label_log_p(passed):
    return log_p(passed)[torch.arange(len(passed.hidden)), passed.batch.labels]


def by_row(passed, values, how):
    found = []
    for i in range(passed.batch.rows):
        mine = values[passed.batch.row == i]
        found.append(getattr(mine, how)() if len(mine) else mine.sum())
    return torch.stack(found)


def reference_of(passed, teacher):
    """What the reference says, and its dense probabilities."""
    log_ref = (teacher @ passed.head.weight.detach().T).log_softmax(-1)
    chosen = log_ref[torch.arange(len(teacher)), passed.batch.labels]
    return log_ref, chosen


def config_of(method, **options):
    return Config(model="m", forget="f", output="o", method=method, retain="r", **options)


def naive(method, config, forget, teacher, refusal, refusal_teacher):
    """The formulas of the papers, dense."""
    y = forget.batch.labels
    n = torch.arange(len(y))
    log_ref, ref = reference_of(forget, teacher)
    if method == "prod":  # here with targets that were drawn by hand
        return None
    if method == "undial":
        z = log_ref.clone()
        z[n, y] -= 10.0
        q = z.softmax(-1)
        return (q * (q.log() - log_p(forget))).sum()
    if method == "ce-u":
        p = log_p(forget).exp().detach()
        p[n, y] = 0
        q = p / p.sum(-1, keepdim=True)
        return (torch.xlogy(q, q) - q * log_p(forget)).sum()
    if method in ("ga", "graddiff"):
        return torch.maximum(label_log_p(forget), torch.tensor(-math.log(V))).sum()
    if method == "learn":
        return -label_log_p(forget).sum()
    if method == "npo":
        ratio = by_row(forget, label_log_p(forget) - ref, "sum")
        return (2 / 0.1 * torch.log(1 + (0.1 * ratio).exp())).sum()
    if method == "simnpo":
        mean = by_row(forget, label_log_p(forget), "mean")
        return (-2 / 2.5 * torch.log(1 / (1 + (2.5 * mean + config.gamma).exp()))).sum()
    if method == "dpo":
        _, refusal_ref = reference_of(refusal, refusal_teacher)
        good = by_row(refusal, label_log_p(refusal) - refusal_ref, "sum")
        bad = by_row(forget, label_log_p(forget) - ref, "sum")
        return -torch.log(1 / (1 + (-0.1 * (good - bad)).exp())).sum()
    if method == "flat":
        good = by_row(refusal, label_log_p(refusal).exp(), "mean")
        bad = by_row(forget, label_log_p(forget).exp(), "mean")
        return (-good + (bad - 1).exp()).sum()
    raise AssertionError(method)


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("prod")])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("head_trains", [False, True])
def test_equals_its_formula(method, seed, head_trains):
    forget, teacher = problem(seed, requires_grad=head_trains)
    refusal, refusal_teacher = problem(seed + 100, rows=(1, 2, 5), requires_grad=head_trains)
    options = {"gamma": 0.3} if method == "simnpo" else {}
    config = config_of(method, **options)
    made = make_method(config.method, config)
    reference = Reference(log_probs=reference_of(forget, teacher)[1], hidden=teacher)
    of_refusal = Reference(log_probs=reference_of(refusal, refusal_teacher)[1])
    got = made.loss(Example(forget, reference, DENOMINATOR, refusal, of_refusal))
    want = naive(method, config, forget, teacher, refusal, refusal_teacher) / DENOMINATOR
    assert torch.allclose(got, want, rtol=1e-6, atol=0)  # row sizes are float32 counts
    passes = [forget, refusal] if made.refuses else [forget]
    leaves = [leaf for p in passes for leaf in (p.hidden, p.head.weight) if leaf.requires_grad]
    for mine, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["prod", "prod-surgical"])
@pytest.mark.parametrize("head_trains", [False, True])
def test_prod_equals_its_formula(method, head_trains):
    forget, _ = problem(3, requires_grad=head_trains)
    g = torch.Generator().manual_seed(5)
    dense = torch.rand(7, V, generator=g, dtype=torch.float64) * (torch.rand(7, V, generator=g) < 0.2)
    dense[2] = 0
    dense[4, 3] = -0.4  # alpha
    config = config_of(method)
    reference = Reference(targets=SparseTargets.from_dense(dense))
    got = make_method(config.method, config).loss(Example(forget, reference, DENOMINATOR))
    want = -(dense * log_p(forget)).sum() / DENOMINATOR
    assert torch.allclose(got, want, rtol=1e-12)
    leaves = [forget.hidden, *([forget.head.weight] if head_trains else [])]
    for mine, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def test_plain_gradient_ascent_has_no_bound():
    forget, _ = problem(1)
    got = make_method("ga", config_of("ga", max_nll=math.inf)).loss(Example(forget, Reference(), 1.0))
    assert torch.allclose(got, label_log_p(forget).sum())
    assert (label_log_p(forget) < -math.log(V)).any()


@pytest.mark.parametrize("kind", ["nll", "kl"])
@pytest.mark.parametrize("head_trains", [False, True])
def test_retain_losses(kind, head_trains):
    retain, teacher = problem(7, requires_grad=head_trains)
    log_ref, _ = reference_of(retain, teacher)
    kl = (log_ref.exp() * (log_ref - log_p(retain))).sum()
    want = (-label_log_p(retain).sum() if kind == "nll" else kl) / DENOMINATOR
    got = retain_loss(kind, retain, teacher, DENOMINATOR)
    assert torch.allclose(got, want)
    leaves = [leaf for leaf in (retain.hidden, retain.head.weight) if leaf.requires_grad]
    for mine, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("loss", ["log_probs", "teach"])
def test_rows_weigh_as_the_caller_says_and_have_no_second_derivative(loss):
    passed, teacher = problem(11)
    labels, weights = passed.batch.labels, torch.linspace(-2, 3, 7, dtype=torch.float64)
    if loss == "log_probs":
        got, want = passed.head.log_probs(passed.hidden, labels), label_log_p(passed)
    else:
        got = passed.head.teach(passed.hidden, teacher, labels, lambda z, y: z.softmax(-1))
        log_ref, _ = reference_of(passed, teacher)
        want = (log_ref.exp() * (log_ref - log_p(passed))).sum(-1)
    assert torch.allclose(got, want)
    mine, theirs = (torch.autograd.grad(x @ weights, passed.hidden, retain_graph=True)[0] for x in (got, want))
    assert torch.allclose(mine, theirs, atol=1e-12)
    with pytest.raises(ProdError, match=r"create_graph=True: it has no second derivative"):
        torch.autograd.grad(got.sum(), passed.hidden, create_graph=True)


def test_softcap_scale_and_bias_of_the_head():
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((5, D), (V, D), (V,)))
    head = Head(weight, bias, softcap=2.0, scale=0.7, chunk_size=3)
    z = 2.0 * torch.tanh(0.7 * (hidden @ weight.T + bias) / 2.0)
    assert torch.allclose(head.logits(hidden), z)
    labels = torch.arange(5)
    assert torch.allclose(head.log_probs(hidden, labels), z.log_softmax(-1)[labels, labels])
    targets = SparseTargets.from_dense(torch.eye(V, dtype=torch.float64)[:5])
    assert torch.allclose(head.cross_entropy(hidden, targets, 1.0), -z.log_softmax(-1)[labels, labels].sum())


def test_unknown_methods_are_refused():
    with pytest.raises(ProdError, match="expected prod, prod-surgical, undial"):
        make_method("magic", config_of("magic"))


# --- what of a row the loss is read at -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    forget, retain = write_snippets(folder / "f.jsonl"), write_snippets(folder / "r.jsonl", 2, 7)
    return {"model": save_tiny_model(folder / "m"), "forget": forget, "retain": retain}


def positions(tokenizer, prompt, answer, *, eos, skip=0):
    """(ids, the tokens that the loss is read at): the answer's, without its first `skip`, with its EOS or without."""
    start, ids = len(tokenizer(prompt)["input_ids"]), tokenizer(prompt + answer)["input_ids"]
    return [*ids, tokenizer.eos_token_id], range(start + skip, len(ids) + eos)


def said(model, ids, places):
    """log p, float64 [n, V], where these tokens are predicted."""
    log_p = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return log_p[[place - 1 for place in places]]


def nucleus_without(log_ref, token, top_p):
    """PROD's target, one token at a time; nothing is prohibited for None."""
    p = log_ref.exp().clone()
    if token is not None:
        p[token] = 0
    p /= p.sum()
    kept, mass = torch.zeros_like(p), 0.0
    for index in p.argsort(descending=True).tolist():
        if mass > top_p:
            break
        kept[index], mass = p[index], mass + p[index].item()
    return kept / kept.sum()


def step_by_its_formula(method, tokenizer, now, before, refusals):
    """The loss of one step over all rows, from the formulas of docs/reference/training.md; both models in float64."""
    ends = method in ("prod", "learn")
    tokens, rows = [], []
    for (prompt, answer), refusal in zip(SNIPPETS, refusals, strict=True):
        ids, places = positions(tokenizer, prompt, answer, eos=ends, skip=method == "ce-u")
        log_p, log_ref = said(now, ids, places), said(before, ids, places)
        y = [ids[place] for place in places]
        mine = log_p[range(len(y)), y]
        ratio = (mine - log_ref[range(len(y)), y]).sum()
        ids_r, places_r = positions(tokenizer, prompt, f"\n{refusal}\n", eos=True)
        y_r = [ids_r[place] for place in places_r]
        good = said(now, ids_r, places_r)[range(len(y_r)), y_r]
        good_ratio = (good - said(before, ids_r, places_r)[range(len(y_r)), y_r]).sum()
        for at, token in enumerate(y):
            p, ref = log_p[at].exp(), log_ref[at].exp()
            if method == "prod":
                q = nucleus_without(log_ref[at], None if token == tokenizer.eos_token_id else token, 0.8)
                tokens.append(-(q * log_p[at]).sum())
            elif method == "undial":
                q = ref * torch.ones_like(ref).index_fill(0, torch.tensor(token), math.exp(-10))
                q /= q.sum()
                tokens.append((q * (q.log() - log_p[at])).sum())
            elif method == "ce-u":
                tokens.append(-torch.log(1 - p[token]))
            elif method == "learn":
                tokens.append(-log_p[at, token])
            else:
                tokens.append(log_p[at, token].clamp(min=-math.log(len(p))))
        rows.append(
            {
                "npo": 2 / 0.1 * torch.log(1 + (0.1 * ratio).exp()),
                "simnpo": 2 / 2.5 * torch.log(1 + (2.5 / len(y) * mine.sum()).exp()),
                "dpo": torch.log(1 + (-0.1 * (good_ratio - ratio)).exp()),
                "flat": (mine.exp().mean() - 1).exp() - good.exp().mean(),
            }.get(method)
        )
    return sum(tokens) / len(tokens) if rows[0] is None else sum(rows) / len(rows)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", [name for name in METHODS if name != "prod-surgical"])
def test_a_step_forgets_no_eos(world, tmp_path, method):
    """The whole way from the text to the loss of a step, with an adapter that has moved."""
    options = {"retain_weight": 0.0} if method == "graddiff" else {"retain": None}
    config = Config(**{**world, "output": str(tmp_path), "method": method, "batch_size": 7, "epochs": 1, **options})
    session = setup(prepare(config))
    before = load_model(world["model"])[0].double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in session.model.named_parameters():
            if "lora_B" in name:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    now = copy.deepcopy(session.model).double().eval()
    chosen = np.random.default_rng([config.seed, 7, 0]).integers(0, len(REFUSALS), len(SNIPPETS))
    with torch.no_grad():
        refusals = [REFUSALS[i] for i in chosen]
        want = step_by_its_formula(method, session.job.tokenizer, now, before, refusals).item()
    optimizer = torch.optim.AdamW(trainable(session.model).values(), lr=1e-3)
    model, optimizer = session.accelerator.prepare(session.model, optimizer)
    assert train_step(session, model, optimizer, 0).item() == pytest.approx(want, rel=1e-4)


def test_what_the_first_token_of_an_answer_is():
    """CE-U leaves it alone; a span's is what must be forgotten, and an answer of one token too."""
    ids = np.arange(6)

    def row(supervised, start, prompt="p", has_eos=True):
        return Row(ids, np.isin(ids, supervised), start, "", prompt, has_eos)

    for name, given, want in (
        ("ce-u", row([2, 3, 4, 5], 2), [3, 4]),
        ("ce-u", row([2, 3, 4, 5], 2, has_eos=False), [3, 4, 5]),
        ("ce-u", row([2, 4], 2, has_eos=False), [2, 4]),
        ("ce-u", row([1, 2, 3, 4, 5], 3, prompt=""), [1, 2, 3, 4]),
        ("ce-u", row([4, 5], 4), [4]),
        ("ga", row([2, 3, 4, 5], 2), [2, 3, 4]),
        ("undial", row([2, 3, 4, 5], 2), [2, 3, 4]),
        ("prod", row([2, 3, 4, 5], 2), [2, 3, 4, 5]),
        ("prod-surgical", row([2, 3, 4, 5], 2), [2, 3, 4, 5]),
        ("learn", row([2, 3, 4, 5], 2), [2, 3, 4, 5]),
    ):
        trained = make_method(name, config_of(name)).trained(given)
        assert np.flatnonzero(trained.supervised).tolist() == want, name
        assert trained.stop == given.stop
