"""`prod_train.targets.targets`: the distributions, what is prohibited, and the store on disk."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError
from prod_train.data.rows import encode
from prod_train.loss.objective import Head
from prod_train.method import Recipe
from prod_train.targets.prohibited import prohibited_by, prohibited_next
from prod_train.targets.targets import SHARD_ROWS, Shards, make_targets
from tests.tiny import SNIPPETS, save_tiny_model

V, D = 41, 7


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("m")))


def naive_target(z, banned, top_p, temperature=None):
    """One position, in plain Python: prohibit, sort, add up, renormalise."""
    z = z.double().clone()
    z[list(banned)] = -torch.inf
    p = z.softmax(-1)
    order = sorted(range(len(p)), key=lambda v: (-p[v].item(), v))
    kept, total = [], 0.0
    for v in order:
        if kept and total > top_p:
            break
        kept.append(v)
        total += p[v].item()
    kept = [v for v in kept if p[v] > 0]
    weights = torch.tensor([(z[v] / (temperature or 1)).item() for v in kept]).double().softmax(-1)
    q = torch.zeros(len(p), dtype=torch.float64)
    q[kept] = weights
    return q


@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([0.3, 0.8, 0.97]), st.sampled_from([None, 0.5, 2.0]))
def test_targets_equal_the_formula_row_by_row(seed, rows, top_p, temperature):
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(rows, D, generator=g), torch.randn(V, D, generator=g)
    labels = torch.randint(V, (rows,), generator=g)
    recipe = Recipe(top_p=top_p, temperature=temperature)
    prohibited = (np.arange(rows - 1), labels[:-1].numpy())  # as for an EOS at the end
    got = make_targets(Head(weight, chunk_size=4), hidden, labels, prohibited, recipe, eos=0)
    z = hidden @ weight.T
    for i, row in enumerate(got.to_dense(V)):
        want = naive_target(z[i], [int(labels[i])] if i < rows - 1 else [], top_p, temperature)
        assert torch.allclose(row.double(), want, atol=1e-5)
        assert (row > 0).equal(want > 0)


def test_nothing_is_cut_when_the_whole_vocabulary_stays():
    hidden, weight = torch.randn(3, D), torch.randn(V, D)
    labels = torch.tensor([1, 2, 3])
    got = make_targets(Head(weight), hidden, labels, (np.arange(3), labels.numpy()), Recipe(top_p=1.0), eos=0)
    assert got.counts.tolist() == [V - 1] * 3


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_alpha_and_the_papers_first_position(alpha):
    torch.manual_seed(1)
    hidden, weight = torch.randn(4, D), torch.randn(V, D)
    z = hidden @ weight.T
    labels = z.argmax(-1)
    prohibited = (np.arange(4), labels.numpy())
    for compat in (False, True):
        recipe = Recipe(alpha=alpha, paper_compat=compat)
        got = make_targets(Head(weight, chunk_size=3), hidden, labels, prohibited, recipe, eos=0, first=True)
        for i, row in enumerate(got.to_dense(V)):
            want = naive_target(z[i], [] if compat and i == 0 else [int(labels[i])], 0.8)
            want[labels[i]] = -alpha * z[i].double().softmax(-1)[labels[i]]
            assert torch.allclose(row.double(), want, atol=1e-5)


def test_undial_lowers_the_labels_logit():
    torch.manual_seed(2)
    hidden, weight = torch.randn(4, D), torch.randn(V, D)
    labels = torch.tensor([5, 6, 7, 8])
    z = hidden @ weight.T
    z[torch.arange(4), labels] -= 3.0
    got = make_targets(Head(weight), hidden, labels, (np.arange(0), np.arange(0)), Recipe(beta=3.0, top_p=0.9), eos=0)
    for i, row in enumerate(got.to_dense(V)):
        assert torch.allclose(row.double(), naive_target(z[i], [], 0.9), atol=1e-5)


def test_where_everything_is_prohibited_the_target_is_eos():
    hidden, weight = torch.randn(3, D), torch.randn(V, D)
    everything = (np.full(V, 1), np.arange(V))
    got = make_targets(Head(weight), hidden, torch.tensor([1, 2, 3]), everything, Recipe(), eos=4).to_dense(V)
    assert got[1].nonzero().tolist() == [[4]]
    assert got[1, 4] == 1
    assert torch.allclose(got.sum(-1), torch.ones(3))


def test_prod_prohibits_the_next_token_but_not_an_appended_eos(tokenizer):
    row = encode({"prompt": SNIPPETS[0][0], "completion": SNIPPETS[0][1]}, "", tokenizer)
    rows, tokens = prohibited_next(row)
    labels = row.ids[row.supervised]
    assert tokens.tolist() == labels[:-1].tolist()
    assert rows.tolist() == list(range(len(labels) - 1))
    part = encode({"prompt": "ab", "completion": "cd", "spans": [[1, 2]]}, "", tokenizer)
    assert prohibited_next(part)[1].tolist() == part.ids[part.supervised].tolist()


def test_a_blocklist_prohibits_what_its_processor_would(tokenizer):
    """The state runs over the prompt too; oracle: ask the matcher for each prefix from scratch."""
    matcher = Blocklist.compile([Entry("return a"), Entry("def add(a, b):\n    re", boundary="none")]).bind(tokenizer)
    row = encode({"prompt": SNIPPETS[0][0], "completion": SNIPPETS[0][1]}, "", tokenizer)
    rows, tokens = prohibited_by(matcher, row)
    want = [
        (index, token)
        for index, at in enumerate(np.flatnonzero(row.supervised))
        for token in matcher.banned(matcher.state_of(row.ids[:at])).tolist()
    ]
    # Ids that the vocabulary does not know are banned everywhere; both list them.
    assert sorted(zip(rows.tolist(), tokens.tolist(), strict=True)) == sorted(want)
    assert any(tokenizer.decode([token]) == "a" for _, token in want)


def entries(rows):
    return [{"a": torch.full((row % 3,), float(row)), "b": torch.arange(row)} for row in rows]


def test_a_store_goes_on_where_it_was_stopped(tmp_path):
    count = 2 * SHARD_ROWS + 5
    calls = []

    def make(rows):
        calls.append(rows.start)
        return entries(rows)

    Shards(tmp_path, {"kind": "x"}, count).fill(make, [1])
    store = Shards(tmp_path, {"kind": "x"}, count)
    assert store.fill(make, range(store.shards)) == 2
    assert calls == [SHARD_ROWS, 0, 2 * SHARD_ROWS]
    for row, want in enumerate(entries(range(count))):
        got = store[row]
        assert set(got) == {"a", "b"}
        assert all(torch.equal(got[name], want[name]) for name in want)
    again = Shards(tmp_path, {"kind": "x"}, count)
    assert again.fill(make, range(3)) == 0
    assert all(torch.equal(again[count - 1][name], want[name]) for name in want)


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign"])
def test_a_damaged_shard_is_made_again(tmp_path, caplog, damage):
    key = {"kind": "x"}
    Shards(tmp_path, key, 5).fill(entries, [0])
    (path,) = tmp_path.glob("*/*.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-3])
    elif damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        other = tmp_path / "other"
        Shards(other, {"kind": "y"}, 5).fill(lambda _: entries(range(1, 6)), [0])
        path.write_bytes(next(other.glob("*/*.safetensors")).read_bytes())
    store = Shards(tmp_path, key, 5)
    assert store.fill(entries, [0]) == 1
    assert "made again" in caplog.text
    assert torch.equal(store[4]["b"], torch.arange(4))


def test_entries_stay_what_they_were_when_their_file_is_written_over(tmp_path):
    key = {"kind": "x"}
    Shards(tmp_path, key, 5).fill(entries, [0])
    store = Shards(tmp_path, key, 5)
    assert store.fill(entries, [0]) == 0
    (path,) = tmp_path.glob("*/*.safetensors")
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(store[4]["b"], torch.arange(4))


def test_another_key_is_another_store_and_a_forged_one_is_refused(tmp_path):
    Shards(tmp_path, {"kind": "x", "top_p": 0.8}, 5).fill(entries, [0])
    assert Shards(tmp_path, {"kind": "x", "top_p": 0.9}, 5).fill(entries, [0]) == 1
    for forged in (json.dumps({"kind": "z"}).encode(), b"\xff\xfe", b""):
        for about in tmp_path.glob("*/key.json"):
            about.write_bytes(forged)
        with pytest.raises(ProdError, match="expected the key of this run"):
            Shards(tmp_path, {"kind": "x", "top_p": 0.8}, 5)
