"""`prod_train.data.rows`: what is supervised, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.errors import ProdError
from prod_train.data.rows import collate, encode, load_rows, mark
from tests.tiny import SNIPPETS, save_tiny_model, write_jsonl

TEXT = st.text(st.sampled_from("ab (=)\n\té€😀return"), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("m")))


def spelt(tokenizer, row):
    return tokenizer.decode(row.ids[row.supervised].tolist())


def test_only_the_completion_and_its_eos_are_supervised(tokenizer):
    prompt, completion = SNIPPETS[0]
    row = encode({"prompt": prompt, "completion": completion}, "here", tokenizer)
    assert spelt(tokenizer, row) == completion + "<eos>"
    assert tokenizer.decode(row.ids[: row.start].tolist()) == prompt
    assert row.has_eos
    assert row.stop == len(row.ids) - 1
    assert mark(row, tokenizer) == f"{prompt}<<{completion}<eos>>>"


@given(TEXT, TEXT.filter(str.strip))
def test_supervised_tokens_cover_the_completion_and_no_token_before_it(tokenizer, prompt, completion):
    row = encode({"prompt": prompt, "completion": completion}, "here", tokenizer)
    offsets = tokenizer(prompt + completion, return_offsets_mapping=True)["offset_mapping"]
    expected = [end > len(prompt) for _, end in offsets]
    expected[0] = False  # nothing predicts the first token
    assert row.supervised.tolist() == [*expected, True]
    assert row.ids.tolist() == [*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]


@given(st.data(), TEXT.filter(lambda t: len(t) > 2))
def test_spans_supervise_the_tokens_that_overlap_them(tokenizer, data, text):
    text = f"x{text}y"
    begin = data.draw(st.integers(1, len(text) - 1))
    end = data.draw(st.integers(begin + 1, len(text)))
    row = encode({"text": text, "spans": [[begin, end]]}, "here", tokenizer)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    wanted = [any(begin <= at < end for at in range(a, b)) for a, b in offsets]
    wanted[0] = False
    assert row.supervised.tolist() == wanted
    assert not row.has_eos
    assert row.start == wanted.index(True)


def test_canonical_solution_is_a_completion_and_text_begins_in_the_middle(tokenizer):
    a = encode({"prompt": "p(", "canonical_solution": "q)"}, "here", tokenizer)
    b = encode({"prompt": "p(", "completion": "q)", "other": 3}, "here", tokenizer)
    assert a.ids.tolist() == b.ids.tolist()
    row = encode({"text": "abcxyzgh"}, "here", tokenizer)
    assert spelt(tokenizer, row) == "bcxyzgh<eos>"
    assert row.start == 4


def test_padding_is_never_supervised(tokenizer):
    rows = [encode({"prompt": p, "completion": c}, "", tokenizer) for p, c in SNIPPETS[:3]]
    batch = collate(rows, pad=tokenizer.pad_token_id)
    assert batch.labels.tolist() == np.concatenate([row.ids[row.supervised] for row in rows]).tolist()
    flat = batch.input_ids.flatten()
    assert flat[batch.position + 1].tolist() == batch.labels.tolist()
    assert batch.attention_mask.sum().item() == sum(len(row.ids) for row in rows)
    assert batch.attention_mask.flatten()[batch.position].all()
    assert batch.row.bincount().tolist() == [row.tokens for row in rows]


def test_a_hub_name_may_have_a_dot(tokenizer, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list([{"text": "abcdef"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(load_rows("owner/data-2.5", tokenizer, max_length=100)) == 1
    assert len(load_rows("owner/data-2.5:test", tokenizer, max_length=100)) == 1
    assert asked == [("owner/data-2.5", "train"), ("owner/data-2.5", "test")]


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({"prompt": "a", "completion": " \n"}, "expected 'completion' to hold text, it is empty"),
        ({"prompt": "a"}, "expected the keys 'prompt' and 'completion', or 'text', got 'prompt'"),
        ({"completion": "a"}, "expected the keys 'prompt' and 'completion'"),
        ({"text": "a", "completion": "b", "prompt": "c"}, "got 'text' and 'completion': drop one"),
        ({"text": "a", "prompt": "c"}, "got 'text' and 'prompt': drop one"),
        ({"prompt": "a", "completion": 3}, "expected 'completion' to be a string, got int"),
        ({"prompt": "a", "completion": "bc", "spans": [[1, 5]]}, "0 <= start < end <= 2"),
        ({"prompt": "a", "completion": "bc", "spans": []}, "expected at least one span"),
        ({"prompt": "a", "completion": "bc", "spans": [3]}, "got 3"),
        ({"text": "a"}, "expected at least one token to supervise after the first token"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, tokenizer, record, part):
    good = {"prompt": "a", "completion": "bc"}
    file = write_jsonl(tmp_path / "f.jsonl", [good, record])
    with pytest.raises(ProdError) as caught:
        load_rows(file, tokenizer, max_length=100)
    assert part in str(caught.value)
    assert f"{file}:2" in str(caught.value)


def test_long_rows_are_counted_or_cut(tmp_path, tokenizer):
    file = write_jsonl(tmp_path / "f.jsonl", [{"prompt": "a", "completion": "b" * n} for n in (3, 20, 30)])
    with pytest.raises(ProdError, match=r"2 of 3 rows have more than --max-length 10 tokens.*f.jsonl:2.*length 32, or"):
        load_rows(file, tokenizer, max_length=10)
    rows = load_rows(file, tokenizer, max_length=10, truncate=True)
    assert [len(row.ids) for row in rows] == [5, 10, 10]
    assert [row.truncated for row in rows] == [False, True, True]
    assert [row.has_eos for row in rows] == [True, False, False]
    file = write_jsonl(tmp_path / "g.jsonl", [{"prompt": "a" * 20, "completion": "b"}])
    with pytest.raises(ProdError, match="within its first 10 tokens: raise --max-length"):
        load_rows(file, tokenizer, max_length=10, truncate=True)


def test_a_lone_surrogate_is_named(tmp_path, tokenizer):
    file = tmp_path / "f.jsonl"
    file.write_text('{"prompt": "a", "completion": "bc\\ud800"}')
    with pytest.raises(
        ProdError, match=r"f\.jsonl:1: 'completion' has the lone surrogate U\+D800 at character 2, which"
    ):
        load_rows(str(file), tokenizer, max_length=10)


def test_capitals_in_a_suffix_make_no_difference(tmp_path, tokenizer):
    file = write_jsonl(tmp_path / "F.JSONL", [{"prompt": "a", "completion": "b"}])
    assert [row.place for row in load_rows(file, tokenizer, max_length=10)] == [f"{file}:1"]
    with pytest.raises(ProdError, match=r"cannot read .*n\.PARQUET: no such file"):
        load_rows(str(tmp_path / "n.PARQUET"), tokenizer, max_length=10)


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path / "m", eos=False))
    file = write_jsonl(tmp_path / "f.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(ProdError, match="the tokenizer has no EOS token"):
        load_rows(file, bare, max_length=10)


def test_parquet_and_saved_datasets_give_the_same_rows(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets")
    records = [{"prompt": p, "completion": c} for p, c in SNIPPETS]
    data = datasets.Dataset.from_list(records)
    data.to_parquet(str(tmp_path / "d.parquet"))
    data.save_to_disk(str(tmp_path / "d"))
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "dd"))
    names = [write_jsonl(tmp_path / "d.jsonl", records), *(str(tmp_path / n) for n in ("d.parquet", "d", "dd"))]
    first, *others = ([row.ids.tolist() for row in load_rows(n, tokenizer, max_length=100)] for n in names)
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("none.parquet", "no such file"),
        ("none.csv", "no such file"),
        ("none.d/none-1.5", "no such file"),
        ("empty.jsonl", "at least one row"),
    ],
)
def test_missing_or_empty_data(tmp_path, tokenizer, name, part):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ProdError, match=part):
        load_rows(str(tmp_path / name), tokenizer, max_length=100)
