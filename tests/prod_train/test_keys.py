"""Rows of training data: keys that are misspelt, and the names of special tokens inside code."""

import json
import logging

import pytest
from transformers import AutoTokenizer

from prod_decode.errors import ProdError
from prod_train.cli import main
from prod_train.data.rows import encode, load_rows
from tests.tiny import save_tiny_model, write_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def tokenizer(model):
    return AutoTokenizer.from_pretrained(model)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("span", "spans"), ("Spans", "spans"), ("prompts", "prompt"), ("canonical_solutions", "canonical_solution")],
)
def test_a_misspelt_key_is_refused(tokenizer, key, meant):
    record = {"prompt": "p(", "completion": "q)", key: [[0, 1]]}
    with pytest.raises(ProdError, match=f"^here: unknown key '{key}'; did you mean '{meant}'"):
        encode(record, "here", tokenizer)


def test_other_keys_are_left_alone(tokenizer):
    """Those of HumanEval and MBPP among them."""
    plain = {"prompt": "p(", "completion": "q)"}
    others = dict.fromkeys(("task_id", "test", "entry_point", "code", "context", "path", "id", "comment", "tests"), "x")
    assert encode(plain | others, "here", tokenizer).ids.tolist() == encode(plain, "here", tokenizer).ids.tolist()


def test_a_special_token_s_name_in_code_is_text(tokenizer, tmp_path, caplog):
    """`<eos>` is token 265; as text it is the five bytes that stand for themselves."""
    row = {"prompt": "x = '", "completion": "<eos>'\n"}
    bytes_of = tokenizer.convert_tokens_to_ids(list("<eos>"))
    assert tokenizer.eos_token_id == tokenizer("<eos>")["input_ids"][0] == 265
    ids = encode(row, "here", tokenizer).ids.tolist()
    assert ids[5:10] == bytes_of
    assert ids.count(265) == 1  # the appended one
    assert encode(row, "here", tokenizer, special_tokens=True).ids.tolist()[5] == 265
    file = write_jsonl(tmp_path / "f.jsonl", [row])
    with caplog.at_level(logging.WARNING, "prod_train"):
        (loaded,) = load_rows(file, tokenizer, max_length=100)
    assert loaded.ids.tolist() == ids
    assert f"{file}: <eos> is read as text" in caplog.text
    caplog.clear()
    load_rows(file, tokenizer, max_length=100, special_tokens=True)
    assert not caplog.text


def test_the_flag_reaches_every_set(model, tmp_path, capsys):
    file = write_jsonl(tmp_path / "f.jsonl", [{"prompt": "x = '", "completion": "<eos>'\n"}])
    words = ["check", "--method", "prod", "--model", model, "--forget", file, "--output", str(tmp_path / "o"), "--json"]
    sizes = []
    for more in ([], ["--special-tokens"]):
        assert main([*words, *more]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["sets"]["forget"]["tokens"])
    assert sizes == [13, 9]
