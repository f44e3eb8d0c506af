"""Vocabularies of real tokenizers, trained here on a few lines of Python, and of those that must be refused."""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import importlib.util
import io
import json
import re
import string
import textwrap
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import groupby, pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prod_decode import Blocklist, Entry
from prod_decode.errors import ProdError
from prod_decode.tokens.proof import _completion
from prod_decode.tokens.tokenizer_bytes import _read, byte_level_bytes, vocabulary_of
from prod_decode.tokens.vocabulary import SPECIAL, TEXT, UNKNOWN, Vocabulary
from tests import ROOT
from tests.smollm2 import smollm2_tokenizer

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")
tiktoken = pytest.importorskip("tiktoken")

from tokenizers import (  # noqa: E402
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast  # noqa: E402
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend  # noqa: E402

SNIPPET = '''
import hashlib, pickle, yaml

def load_config(path, default=None):
    """Read a file; café, 你好, 😀 and ünïcödé are fine."""
    with open(path, "rb") as handle:
        data = yaml.load(handle.read())
    if data is None and default is not None:
\t\treturn default
    return {key.lower(): value for key, value in data.items() if not key.startswith("_")}


class Digest(object):
    def __init__(self, name="sha256", size=4096):
        self.name, self.size = name, size

    def update(self, chunk: bytes) -> None:
        for i in range(0, len(chunk), self.size):
            self.state ^= hash(chunk[i:i + self.size]) & 0xFFFFFFFF
        assert self.state >= 0, f"{self.state!r} != 0"  # 你好吗 très bien
'''
PRINTABLE = [c for c in string.printable if not c.isspace()]
SPECIALS = ["<unk>", "<s>", "</s>"]


# Builders. Each trains once a process; those that a test changes are copied first.


@lru_cache
def byte_level() -> Tokenizer:
    """GPT-2, Qwen, SmolLM2; with every kind of added token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["</s>", "<s>"]
    )
    tokenizer.train_from_iterator([SNIPPET] * 3, trainer)
    tokenizer.add_tokens(
        [
            "    indent",  # leading spaces, so not in the byte table
            "a b",
            "\u00f8",  # in the byte table: the byte f8, which is no character
            "\u0120Gfoo",  # in the byte table: " Gfoo"
            AddedToken("<left>", lstrip=True, rstrip=True, special=False),
            AddedToken("\u4f60\u597dzz", normalized=False, special=False),
            AddedToken("qqq", single_word=True, special=False),
        ]
    )
    tokenizer.add_special_tokens(["<|im_end|>", AddedToken(" <mask>", lstrip=True, special=True)])
    return tokenizer


@lru_cache
def byte_fallback(strip: bool) -> Tokenizer:
    """Llama-2, CodeLlama and Mistral (`strip`), or Gemma."""
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    alphabet = [*PRINTABLE, "\u2581"]
    words.train_from_iterator(
        [SNIPPET.replace("\n", " ").replace("\t", " ")] * 3,
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, limit_alphabet=100, special_tokens=SPECIALS),
    )
    model = json.loads(words.to_str())["model"]
    vocab = dict(model["vocab"])
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if strip else spaces
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("eval(", "    indent", "\u4f60\u597dzz")])
    tokenizer.add_tokens(["normal"])  # with a prefix: shown with a space before it
    return tokenizer


@lru_cache
def metaspace() -> Tokenizer:
    """XLM-R and its like: no bytes, so that a character outside its alphabet has no token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = [*PRINTABLE, "\u2581", "\n", "\t", "\r"]
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=SPECIALS)
    tokenizer.train_from_iterator([SNIPPET.encode("ascii", "ignore").decode()] * 3, trainer)
    return tokenizer


@lru_cache
def sentencepiece_model() -> bytes:
    """With byte fallback and the normalisation of Llama-2: none."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for _ in range(3) for line in SNIPPET.splitlines() if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        required_chars="".join(PRINTABLE),
        user_defined_symbols=["<tool>", "    "],
        hard_vocab_limit=False,
        pad_id=3,
        minloglevel=2,
    )
    return model.getvalue()


@lru_cache
def sentencepiece_processor() -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())


class DecodingBackend(SentencePieceBackend):
    """A slow tokenizer that decodes with its model, as many outside transformers do, and numbers as fairseq's do."""

    kept, offset = 4, 7

    @property
    def vocab_size(self) -> int:
        return int(self.sp_model.get_piece_size()) + self.offset

    def _convert_token_to_id(self, token: str) -> int:
        token_id = int(self.sp_model.piece_to_id(token))
        return token_id if token_id < self.kept else token_id + self.offset

    def _convert_id_to_token(self, index: int) -> str:
        if self.kept <= index < self.kept + self.offset:
            return f"<madeup{index}>"
        return str(self.sp_model.id_to_piece(index if index < self.kept else index - self.offset))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return str(self.sp_model.decode(tokens)).strip()


class StrippingBackend(DecodingBackend):
    """Decodes what is between special tokens piece by piece, as transformers 4 does, and vLLM for slow tokenizers."""

    between = ""

    def _decode(self, token_ids: list[int], skip_special_tokens: bool = False, **_: Any) -> str:
        special = set(self.all_special_tokens)
        parts = []
        tokens = self.convert_ids_to_tokens(token_ids, skip_special_tokens=skip_special_tokens)
        for is_special, group in groupby(tokens, special.__contains__):
            pieces = list(group)
            parts += pieces if is_special else [self.convert_tokens_to_string(pieces)]
        return self.between.join(parts)


class SpacingBackend(StrippingBackend):
    between = " "


def slow_sentencepiece(backend: type = DecodingBackend, added: dict[int, AddedToken] | None = None) -> Any:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    with TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.model")
        path.write_bytes(sentencepiece_model())
        return backend(vocab_file=str(path), added_tokens_decoder=added or {}, **names)


@lru_cache
def ranks() -> dict[bytes, int]:
    """Mergeable ranks as tiktoken wants them, from the merges of the byte-level tokenizer, with a hole in the ids."""
    merges = json.loads(byte_level().to_str())["model"]["merges"]
    byte = {c: bytes([b]) for c, b in _gpt2_table().items()}
    tokens = [bytes([b]) for b in range(256)]
    tokens += [b"".join(byte[c] for c in left + right) for left, right in merges]
    return {token: i if i < 300 else i + 2 for i, token in enumerate(dict.fromkeys(tokens))}


def _gpt2_table() -> dict[str, int]:
    """OpenAI's own construction, to check ours."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    table = {chr(b): b for b in kept}
    for b in range(256):
        if b not in kept:
            table[chr(256 + len(table) - len(kept))] = b
    return table


@lru_cache
def tiktoken_encoding() -> Any:
    return tiktoken.Encoding(
        "tiny",
        pat_str=r"\s?\w+|\s+|[^\s\w]+",
        mergeable_ranks=ranks(),
        special_tokens={"<|endoftext|>": 900, "<|fim|>": 905},
    )


@lru_cache
def from_tiktoken() -> Any:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    with TemporaryDirectory() as folder:
        path = Path(folder, "tiny.tiktoken")
        path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks().items()))
        converted = TikTokenConverter(vocab_file=str(path), extra_special_tokens=["<|endoftext|>"]).converted()
    return fast(converted, eos_token="<|endoftext|>")


class FakeTekkenizer:
    """mistral-common 1.13's Tekkenizer, as far as its tokens and its text go, for where that package is not installed.

    Special tokens come first; each stretch without any is decoded alone.
    """

    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text())
        self.num_special_tokens = data["config"]["default_num_special_tokens"]
        self.n_words = data["config"]["default_vocab_size"]
        named = [token["token_str"] for token in data["special_tokens"]]
        self._special = named + [f"<SPECIAL_{i}>" for i in range(len(named), self.num_special_tokens)]
        self.eos_id = named.index("</s>")
        self._model = tiktoken.Encoding(
            "tekken",
            pat_str=data["config"]["pattern"],
            mergeable_ranks={base64.b64decode(token["token_bytes"]): token["rank"] for token in data["vocab"]},
            special_tokens={},
        )

    def is_special(self, token: int) -> bool:
        return token < self.num_special_tokens

    def is_byte(self, token_id: int) -> bool:
        return 0 <= token_id - self.num_special_tokens < 256

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        assert not bos
        assert not eos
        return [token + self.num_special_tokens for token in self._model.encode(s)]

    def decode(self, tokens: list[int], special_token_policy: str = "ignore") -> str:
        assert special_token_policy in ("ignore", "keep")
        text = ""
        for special, group in groupby(tokens, self.is_special):
            if not special:
                text += self._model.decode([token - self.num_special_tokens for token in group])
            elif special_token_policy == "keep":
                text += "".join(self._special[token] for token in group)
        return text

    def id_to_piece(self, token_id: int) -> str:
        return self.decode([token_id], "keep")

    def id_to_byte_piece(self, token_id: int) -> bytes:
        assert not self.is_special(token_id)
        return self._model.decode_single_token_bytes(token_id - self.num_special_tokens)


@lru_cache
def tekken_wrapped() -> tuple[Any, Any]:
    """transformers' MistralCommonBackend over a small tekken.json, and the Tekkenizer inside; or fakes of both."""
    tokens = [bytes([byte]) for byte in range(256)] + [token for token in ranks() if len(token) > 1]
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
    names += ["[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "eval("]
    data = {
        "config": {
            "pattern": r"\s?\w+|\s+|[^\s\w]+",
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) - 5 + 20,
            "default_num_special_tokens": 20,
            "version": "v3",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
        "special_tokens": [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(names)],
    }
    with TemporaryDirectory() as folder:
        path = Path(folder, "tekken.json")
        path.write_text(json.dumps(data))
        if importlib.util.find_spec("mistral_common") is None:
            data["vocab"] = data["vocab"][:-5]  # the vocabulary size says so
            path.write_text(json.dumps(data))
            tekken = FakeTekkenizer(path)
            inner = SimpleNamespace(instruct_tokenizer=SimpleNamespace(tokenizer=tekken), decode=tekken.decode)
            return SimpleNamespace(
                tokenizer=inner, all_special_ids=list(range(20)), decode=WithoutLanguage(inner)
            ), tekken
        from transformers.tokenization_mistral_common import MistralCommonBackend

        backend = MistralCommonBackend(path)
        return backend, backend.tokenizer.instruct_tokenizer.tokenizer


class WithoutLanguage:
    """MistralCommonBackend.decode."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        text = str(self._inner.decode(token_ids, "ignore" if skip_special_tokens else "keep"))
        return re.sub(r"^lang:[a-z]{2}", "", text) if skip_special_tokens else text


def fast(tokenizer: Tokenizer, **named: Any) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


# (builder, whether the decoder decodes any bytes as Python does, characters that it has tokens for)
ASCII = "abXYZ_019 .,()[]'\"=#\n\t"
ANY = ASCII + "\r\u00e9\u4f60\u597d\U0001f600\u00ff\u0120"
FAMILIES: dict[str, tuple[Callable[[], Any], bool, str]] = {
    "byte-level": (lambda: fast(byte_level(), eos_token="</s>", pad_token="<|im_end|>"), True, ANY),
    "byte-level raw": (byte_level, True, ANY),
    "byte fallback": (lambda: fast(byte_fallback(True), eos_token="</s>", unk_token="<unk>"), False, ANY),
    "byte fallback raw": (lambda: byte_fallback(True), False, ANY),
    "byte fallback without prefix": (lambda: fast(byte_fallback(False), eos_token="</s>"), False, ANY),
    "metaspace": (lambda: fast(metaspace(), eos_token="</s>", unk_token="<unk>"), False, ASCII),
    "sentencepiece": (sentencepiece_processor, False, ANY),
    "slow sentencepiece": (slow_sentencepiece, False, ANY),
    "tiktoken": (tiktoken_encoding, True, ANY),
    "from tiktoken": (from_tiktoken, True, ANY),
    "tekken": (lambda: tekken_wrapped()[1], True, ANY),
}


@lru_cache
def family(name: str) -> tuple[Any, Vocabulary]:
    tokenizer = FAMILIES[name][0]()
    return tokenizer, vocabulary_of(tokenizer)


def is_tekken(tokenizer: Any) -> bool:
    return hasattr(tokenizer, "id_to_byte_piece")


def decode(tokenizer: Any, ids: list[int]) -> str:
    """What a user of the tokenizer sees."""
    if isinstance(tokenizer, (tiktoken.Encoding, sentencepiece.SentencePieceProcessor)) or is_tekken(tokenizer):
        return str(tokenizer.decode(ids))
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def encode(tokenizer: Any, text: str) -> list[int]:
    if isinstance(tokenizer, tiktoken.Encoding):
        return list(tokenizer.encode_ordinary(text))
    if isinstance(tokenizer, sentencepiece.SentencePieceProcessor):
        return list(tokenizer.encode(text))
    if is_tekken(tokenizer):
        return list(tokenizer.encode(text, False, False))
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return list(getattr(encoded, "ids", encoded))


def text_ids(vocabulary: Vocabulary) -> list[int]:
    return [i for i, kind in enumerate(vocabulary.kinds.tolist()) if kind == TEXT]


def id_of(tokenizer: Any, token: str) -> int:
    """The id of a token of a `tokenizers.Tokenizer` or of a transformers tokenizer."""
    return int(tokenizer.token_to_id(token) if isinstance(tokenizer, Tokenizer) else tokenizer.get_vocab()[token])


# What every family must do.

families = pytest.mark.parametrize("name", FAMILIES)


@families
@given(st.data())
def test_bytes_decode_as_the_tokenizer_does(name: str, data: st.DataObject) -> None:
    tokenizer, vocabulary = family(name)
    ids = data.draw(st.lists(st.sampled_from(text_ids(vocabulary)), max_size=12))
    ours, theirs = vocabulary.decode(ids), decode(tokenizer, ids)
    if FAMILIES[name][1]:
        assert ours == theirs
    elif "\ufffd" not in ours + theirs:
        # Space at the ends is the decoder's own affair: SentencePiece adds one to a text and takes it away again.
        assert ours.strip() == theirs.strip()


@families
@given(st.data())
def test_words_stand_where_they_are_seen(name: str, data: st.DataObject) -> None:
    """Also amid broken bytes, of which decoders show more or fewer U+FFFD: no word begins on the screen alone."""
    tokenizer, vocabulary = family(name)
    ids = text_ids(vocabulary)
    broken = [i for i in ids if not vocabulary.token_bytes(i).isascii() or len(vocabulary.token_bytes(i)) == 1]
    drawn = data.draw(st.lists(st.sampled_from(broken) | st.sampled_from(ids), max_size=12))
    words = re.compile(r"[A-Za-z0-9_]+")
    assert words.findall(vocabulary.decode(drawn)) == words.findall(decode(tokenizer, drawn))


@families
@given(st.data())
def test_encoded_text_comes_back_as_bytes(name: str, data: st.DataObject) -> None:
    tokenizer, vocabulary = family(name)
    text = data.draw(st.text(FAMILIES[name][2], max_size=40))
    decoded = vocabulary.decode(encode(tokenizer, text))
    assert decoded in (text, " " + text)


@families
def test_special_tokens_add_no_text(name: str) -> None:
    _, vocabulary = family(name)
    ids = text_ids(vocabulary)
    special = [i for i, kind in enumerate(vocabulary.kinds.tolist()) if kind == SPECIAL]
    word = next(i for i in ids if vocabulary.token_bytes(i).isalpha())
    assert special
    assert all(vocabulary.token_bytes(i) == b"" for i in special)
    assert vocabulary.decode([word, *special, word]) == 2 * vocabulary.token_bytes(word).decode()
    assert set(vocabulary.eos_ids) <= set(special)


def test_special_tokens_by_family() -> None:
    def special(name: str) -> set[int]:
        return {i for i, kind in enumerate(family(name)[1].kinds.tolist()) if kind == SPECIAL}

    raw = byte_level()
    assert special("byte-level") == {id_of(raw, t) for t in ("</s>", "<s>", "<|im_end|>", " <mask>")}
    assert special("byte-level raw") == special("byte-level")
    assert special("byte fallback") == {0, 1, 2}
    assert special("sentencepiece") == {1, 2, 3}
    assert special("slow sentencepiece") == {0, 1, 2, 3}
    assert special("tiktoken") == {900, 905}
    assert special("tekken") == set(range(20))
    eos = {name: family(name)[1].eos_ids for name in FAMILIES}
    assert eos["byte-level"] == (id_of(raw, "</s>"),)
    assert eos["byte-level raw"] == ()
    assert eos["byte fallback"] == eos["sentencepiece"] == eos["slow sentencepiece"] == (2,)
    assert eos["tiktoken"] == (900,)
    assert eos["tekken"] == (2,)
    assert eos["from tiktoken"] == (family("from tiktoken")[0].eos_token_id,)


def test_bytes_of_chosen_tokens() -> None:
    raw, vocabulary = family("byte-level raw")
    expected = {
        "\u0120": b" ",
        "\u010a": b"\n",
        "    indent": b"    indent",
        "a b": b"a b",
        "\u00f8": b"\xf8",
        "\u0120Gfoo": b" Gfoo",
        "<left>": b"<left>",
        "\u4f60\u597dzz": "\u4f60\u597dzz".encode(),
    }
    assert {token: vocabulary.token_bytes(id_of(raw, token)) for token in expected} == expected
    for character, byte in _gpt2_table().items():
        assert vocabulary.token_bytes(id_of(raw, character)) == bytes([byte])

    raw, vocabulary = family("byte fallback raw")
    expected = {"\u2581return": b" return", "<0x0A>": b"\n", "<0xE4>": b"\xe4", "    indent": b"    indent"}
    expected["normal"] = b" normal"
    assert {token: vocabulary.token_bytes(id_of(raw, token)) for token in expected} == expected

    pieces, vocabulary = family("sentencepiece")
    _, shifted = family("slow sentencepiece")
    for token, spelled in {"<0x0A>": b"\n", "<0x61>": b"a", "<tool>": b"<tool>", "    ": b"    "}.items():
        token_id = pieces.piece_to_id(token)
        assert vocabulary.token_bytes(token_id) == shifted.token_bytes(token_id + DecodingBackend.offset) == spelled


def test_vocabulary_passes_through() -> None:
    vocabulary = Vocabulary.from_bytes([b"a"])
    assert vocabulary_of(vocabulary) is vocabulary


# Ids and tokens that are unlike others.


def test_ids_without_token_are_unknown() -> None:
    _, vocabulary = family("tiktoken")
    assert len(vocabulary) == 906
    assert [i for i in range(320) if vocabulary.kinds[i] == UNKNOWN] == [300, 301]
    assert vocabulary.kinds[899] == vocabulary.kinds[901] == UNKNOWN
    slow = slow_sentencepiece(added={600: AddedToken("<far>", special=False)})
    vocabulary = vocabulary_of(slow)
    assert len(vocabulary) == 601
    assert vocabulary.kinds[slow.vocab_size : 600].tolist() == [UNKNOWN] * (600 - slow.vocab_size)
    assert vocabulary.token_bytes(600) == b"<far>"

    description = json.loads(byte_level().to_str())
    vocab = description["model"]["vocab"]
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"] in vocab]
    hole = vocab.pop("".join(description["model"]["merges"].pop(-2)))
    vocabulary = vocabulary_of(Tokenizer.from_str(json.dumps(description)))
    assert len(vocabulary) == max(vocab.values()) + 1
    assert vocabulary.kinds[hole] == UNKNOWN


def test_empty_tokens_and_equal_bytes() -> None:
    description = json.loads(byte_level().to_str())
    vocab = description["model"]["vocab"]
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"] in vocab]
    empty = vocab[""] = max(vocab.values()) + 1
    tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.add_tokens([" return"])
    vocabulary = vocabulary_of(tokenizer)
    assert vocabulary.kinds[empty] == TEXT
    assert vocabulary.token_bytes(empty) == b""
    twins = [id_of(tokenizer, token) for token in (" return", "\u0120return")]
    assert [vocabulary.token_bytes(i) for i in twins] == [b" return"] * 2


def test_a_pad_token_that_is_only_named_is_text() -> None:
    """It is shown where special tokens are skipped as well: between two that are, nothing else would guard it."""
    raw = with_tokens(byte_level(), "<pad>")
    tokenizer = fast(raw, eos_token="</s>", pad_token="<pad>")
    assert tokenizer.decode([tokenizer.pad_token_id], skip_special_tokens=True) == "<pad>"
    vocabulary = vocabulary_of(tokenizer)
    assert vocabulary.kinds[tokenizer.pad_token_id] == TEXT
    assert vocabulary.token_bytes(tokenizer.pad_token_id) == b"<pad>"


def test_an_eos_that_is_shown_all_the_same_is_refused_until_it_is_special() -> None:
    tokenizer = fast(with_tokens(byte_level(), "<eos>"), eos_token="<eos>")
    assert tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=True) == "<eos>"
    with pytest.raises(ProdError, match=rf"leave out the special token id {tokenizer.eos_token_id}, got .*<eos>.*"):
        vocabulary_of(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<eos>"})
    assert vocabulary_of(tokenizer).eos_ids == (tokenizer.eos_token_id,)


def test_the_text_that_special_tokens_show() -> None:
    """Where special tokens are not skipped; what SentencePiece shows for its unknown token is always there."""
    pieces, vocabulary = family("sentencepiece")
    assert pieces.decode([pieces.piece_to_id("a"), 0, pieces.piece_to_id("b")]) == "a \u2047 b"
    assert vocabulary.token_bytes(0) == " \u2047 ".encode()
    assert [_read(pieces).tokens[i] for i in (1, 2, 3)] == [b"", b"", b""]
    # By `DecodingBackend`, which hands the names of tokens to the model; without special tokens it leaves out all four.
    assert [_read(slow_sentencepiece()).tokens[i] for i in range(4)] == [" \u2047 ".encode(), b"", b"", b""]
    evil = changed(byte_fallback(True))
    evil.add_special_tokens(["import os", "\u0120"])
    for name, token_id, shown in [
        ("byte-level", id_of(byte_level(), " <mask>"), b" <mask>"),
        ("byte fallback", 2, b"</s>"),
        ("metaspace", 2, b"</s>"),
        ("tiktoken", 900, b"<|endoftext|>"),
        ("tekken", 15, b"eval("),
        ("tekken", 19, b"<SPECIAL_19>"),
    ]:
        assert _read(family(name)[0]).tokens[token_id] == shown
    vocabulary_of(fast(evil))
    assert _read(evil).tokens[-2:] == [b"import os", "\u0120".encode()]


@families
@given(st.data())
def test_shown_special_tokens_decode_as_their_bytes(name: str, data: st.DataObject) -> None:
    vocabulary, reading = family(name)[1], reading_of(name)
    special = sorted(reading.special)
    known = [*text_ids(vocabulary), *special]
    ids = data.draw(st.lists(st.sampled_from(known) | st.sampled_from(special), max_size=12))
    for show in reading.showing.values():
        assert_same_text(b"".join(reading.tokens[i] or b"" for i in ids), show(ids), exact=FAMILIES[name][1])
    left = b"".join(reading.tokens[i] or b"" for i in ids if i not in reading.special)
    for skip in reading.skipping.values():
        assert_same_text(left, skip(ids), exact=FAMILIES[name][1])


@lru_cache
def reading_of(name: str) -> Any:
    return _read(family(name)[0])


def assert_same_text(ours: bytes, theirs: str, *, exact: bool) -> None:
    text = ours.decode(errors="replace")
    if exact and "\ufffd" not in text + theirs:
        assert text == theirs
    elif "\ufffd" not in text + theirs:
        assert text.strip() == theirs.strip()


# Tekken: mistral-common itself where it is installed, which it is in vLLM's environment.


def test_tekken_by_every_wrapper() -> None:
    backend, tekken = tekken_wrapped()
    honest = vocabulary_of(tekken)
    served = SimpleNamespace(  # vLLM's MistralTokenizer
        tokenizer=tekken, all_special_ids=list(range(20)), decode=WithoutLanguage(backend.tokenizer)
    )
    assert honest.token_bytes(20 + 0xC3) == b"\xc3"
    assert honest.token_bytes(20 + ord("a")) == b"a"
    assert honest.decode(tekken.encode(SNIPPET, False, False)) == SNIPPET
    assert len(honest) == tekken.n_words
    for wrapper in (backend, backend.tokenizer, served):
        with contextlib.nullcontext() if wrapper is backend.tokenizer else pytest.warns(UserWarning, match="lang"):
            vocabulary = vocabulary_of(wrapper)
        assert vocabulary.data.tolist() == honest.data.tolist()
        assert vocabulary.offsets.tolist() == honest.offsets.tolist()
        assert vocabulary.kinds.tolist() == honest.kinds.tolist()
        assert vocabulary.eos_ids == (2,)


def test_a_decoder_that_drops_the_language_is_said() -> None:
    """Voxtral's answers begin with it. So do those of a model that is asked to write it."""
    backend, tekken = tekken_wrapped()
    assert backend.decode(tekken.encode("lang:eneval(", False, False), skip_special_tokens=True) == "eval("
    with pytest.warns(UserWarning, match=r"'lang:eneval\(' as 'eval\('.*decode with its Tekkenizer"):
        vocabulary_of(backend)


def test_a_pad_token_that_is_ordinary_text_is_refused() -> None:
    tokenizer = fast(byte_level(), eos_token="</s>")
    tokenizer.pad_token = "!"
    with pytest.raises(ProdError, match=r"leave out the special token id \d+, got .*!.*add_special_tokens"):
        vocabulary_of(tokenizer)


def test_truncation_and_padding_of_the_file_are_no_loss() -> None:
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=600)
    assert len(vocabulary_of(tokenizer)) == len(family("byte-level raw")[1])
    assert tokenizer.truncation["max_length"] == 4
    assert tokenizer.padding["length"] == 600


def test_a_letter_among_byte_tokens_is_unknown() -> None:
    """Shown as U+FFFD beside a broken byte, it hides no longer that a word begins after it."""
    tokenizer, vocabulary = family("byte fallback")
    broken, letter, call = (tokenizer.convert_tokens_to_ids(t) for t in ("<0xFF>", "<0x61>", "eval("))
    assert tokenizer.decode([broken, letter, call]) == "\ufffd\ufffdeval("
    assert vocabulary.kinds[letter] == UNKNOWN
    matcher = Blocklist.compile([Entry("eval(")]).bind(vocabulary)
    assert letter in matcher.banned(matcher.start())
    assert call in matcher.banned(matcher.state_of([broken]))


# Tokenizers that must be refused.


def changed(tokenizer: Tokenizer, **parts: Any) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    for name, part in parts.items():
        setattr(copy, name, part)
    return copy


def trained_sentencepiece(**options: Any) -> Any:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SNIPPET.splitlines()),
        model_writer=model,
        vocab_size=420,
        hard_vocab_limit=False,
        required_chars="".join(PRINTABLE),
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def suffixed() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    return tokenizer


def with_tokens(tokenizer: Tokenizer, *added: str) -> Tokenizer:
    copy = changed(tokenizer)
    copy.add_tokens(list(added))
    return copy


def without_bytes(*gone: str) -> Tokenizer:
    description = json.loads(byte_level().to_str())
    model = description["model"]
    for character in gone:
        del model["vocab"][character]
    model["merges"] = [m for m in model["merges"] if not any(character in "".join(m) for character in gone)]
    model["vocab"] = {
        t: i for t, i in model["vocab"].items() if len(t) == 1 or not any(character in t for character in gone)
    }
    return Tokenizer.from_str(json.dumps(description))


def without_letter() -> Tokenizer:
    description = json.loads(byte_fallback(True).to_str())
    model = description["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if token != "Q"}
    model["merges"] = [m for m in model["merges"] if "Q" not in "".join(m)]
    return Tokenizer.from_str(json.dumps(description))


def cleaning(tokenizer: Any, *, honest: bool) -> Any:
    """Cleans up the text that it decodes, as BERT's do; not `honest`: and does not say so."""

    class Cleaning(PreTrainedTokenizerFast):  # type: ignore[misc]
        def _decode(self, *args: Any, **kwargs: Any) -> str:
            return str(super()._decode(*args, **kwargs)).replace(" .", ".").replace(" ,", ",")

    return Cleaning(tokenizer_object=tokenizer, clean_up_tokenization_spaces=honest)


def test_a_clean_up_that_transformers_ignores_is_no_obstacle() -> None:
    # As in Llama 3's configuration; transformers 5 does not clean up after BPE.
    tokenizer = fast(byte_level(), clean_up_tokenization_spaces=True)
    assert len(vocabulary_of(tokenizer)) == len(tokenizer)


def sequence(*steps: Any) -> Any:
    return decoders.Sequence(list(steps))


SPACES = decoders.Replace("\u2581", " ")
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no tokenizer": (object, "backed by tokenizers, tiktoken or SentencePiece, got object.*from_bytes"),
    "WordPiece": (word_piece, "expected .* decoder, got the decoder WordPiece: .*from_bytes"),
    "WordLevel": (lambda: Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), "got the decoder none"),
    "no decoder": (lambda: changed(byte_level(), decoder=None), "got the decoder none"),
    "BPEDecoder": (suffixed, "got the decoder BPEDecoder"),
    "CTC": (lambda: changed(byte_level(), decoder=decoders.CTC()), "got the decoder CTC"),
    "Regex": (
        lambda: changed(byte_fallback(True), decoder=decoders.Replace(Regex("\u2581"), " ")),
        "got the decoder Replace",
    ),
    "Metaspace after bytes": (
        lambda: changed(byte_fallback(True), decoder=sequence(decoders.ByteFallback(), decoders.Metaspace())),
        "got the decoder ByteFallback, Metaspace",
    ),
    "Replace after Fuse": (
        lambda: changed(byte_fallback(True), decoder=sequence(SPACES, decoders.Fuse(), decoders.Replace("ab", "c"))),
        "got the decoder Replace, Fuse, Replace",
    ),
    "Strip of letters": (
        lambda: changed(byte_fallback(True), decoder=sequence(SPACES, decoders.Fuse(), decoders.Strip("a", 1, 0))),
        "got the decoder Strip",
    ),
    "Strip at the end": (
        lambda: changed(byte_fallback(True), decoder=sequence(SPACES, decoders.Fuse(), decoders.Strip(" ", 0, 1))),
        "got the decoder Strip",
    ),
    "Strip of each token": (
        lambda: changed(byte_fallback(True), decoder=sequence(SPACES, decoders.Strip(" ", 1, 0))),
        "got the decoder Replace, Strip",
    ),
    "byte tokens shown as such": (
        lambda: changed(byte_fallback(True), decoder=sequence(SPACES, decoders.Fuse())),
        "does not round-trip",
    ),
    "spaces inside a first token": (
        lambda: with_tokens(metaspace(), "a\u2581b"),
        r"drops spaces inside the token id \d+ at the start",
    ),
    "lower case": (
        lambda: changed(byte_level(), normalizer=normalizers.Lowercase()),
        "does not round-trip: expected .*A_1.*, got .*a_1",
    ),
    "stripped": (lambda: changed(byte_level(), normalizer=normalizers.Strip()), "does not round-trip"),
    "stripped at the start": (
        lambda: changed(byte_level(), normalizer=normalizers.Strip(left=True, right=False)),
        "does not round-trip: expected '  def",
    ),
    "no newlines": (lambda: changed(byte_level(), normalizer=normalizers.Replace("\n", " ")), "does not round-trip"),
    "no carriage returns": (
        lambda: changed(byte_level(), normalizer=normalizers.Replace("\r", "")),
        "does not round-trip",
    ),
    "one space for several": (
        lambda: changed(byte_level(), normalizer=normalizers.Replace(Regex(" +"), " ")),
        "does not round-trip",
    ),
    "no accents": (
        lambda: changed(byte_level(), normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
        "does not round-trip: expected 'caf\u00e9', got 'cafe'",
    ),
    "spaces between special tokens": (
        lambda: slow_sentencepiece(SpacingBackend),
        r"other text than their bytes \(decode\(\.\.\., skip_special_tokens=False",
    ),
    "pieces stripped between special tokens": (
        lambda: slow_sentencepiece(StrippingBackend),
        r"other text than their bytes \(decode\(\.\.\., skip_special_tokens=False",
    ),
    "an added token that its own decoder breaks": (
        lambda: with_tokens(byte_level(), "\u00e9"),
        "does not round-trip: expected 'caf\u00e9', got 'caf\ufffd'",
    ),
    "words only": (
        lambda: changed(byte_level(), pre_tokenizer=pre_tokenizers.Whitespace()),
        "does not round-trip",
    ),
    "cleaned up": (lambda: cleaning(byte_level(), honest=True), "clean_up_tokenization_spaces = False"),
    "cleaned up in secret": (lambda: cleaning(byte_level(), honest=False), r"decode\(\.\.\., skip_special_tokens"),
    "a byte without token": (
        lambda: without_bytes("\u00e1"),
        r"expected a token for the byte e1, .* token id \d+ .*from_bytes",
    ),
    "a letter without token": (
        without_letter,
        r"encodes ordinary text to special or unknown token ids \[\d+\]: expected '.*Q",
    ),
    "no word": (
        lambda: changed(Tokenizer(models.BPE({"(": 0, " a": 1}, [])), decoder=decoders.Fuse()),
        "expected a tokenizer with a token that is a word",
    ),
    "SentencePiece that normalises": (
        lambda: trained_sentencepiece(model_type="unigram", byte_fallback=True),
        "does not round-trip",
    ),
    "SentencePiece without newlines": (
        lambda: trained_sentencepiece(
            model_type="unigram", normalization_rule_name="identity", remove_extra_whitespaces=False
        ),
        r"encodes ordinary text to special or unknown token ids \[0\]",
    ),
    # transformers' own slow tokenizer shows a newline that is a byte token as the six characters <0x0A>.
    "slow SentencePiece": (lambda: slow_sentencepiece(SentencePieceBackend), "other text than their bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    build, message = REFUSED[name]
    with pytest.raises(ProdError, match=message) as refusal:
        vocabulary_of(build())
    assert "\n" not in str(refusal.value)


class Tampered:
    """A `tokenizers.Tokenizer` with one token changed, in what it says of it or in how it shows it."""

    def __init__(
        self,
        honest: Tokenizer,
        token_id: int,
        *,
        says: str | None = None,
        shows: Callable[[str], str] | None = None,
        skipping: tuple[bool, ...] = (False, True),
    ) -> None:
        self._honest, self._token_id, self._says, self._shows, self._skipping = honest, token_id, says, shows, skipping

    def __getattr__(self, name: str) -> Any:
        return getattr(self._honest, name)

    def id_to_token(self, token_id: int) -> str | None:
        if token_id == self._token_id and self._says is not None:
            return self._says
        return self._honest.id_to_token(token_id)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        if self._shows is None or self._token_id not in ids or skip_special_tokens not in self._skipping:
            return self._honest.decode(ids, skip_special_tokens=skip_special_tokens)
        at = ids.index(self._token_id)
        before, after = (
            self._honest.decode(part, skip_special_tokens=skip_special_tokens) for part in (ids[:at], ids[at + 1 :])
        )
        token = self._honest.decode([self._token_id], skip_special_tokens=skip_special_tokens)
        return before + self._shows(token) + after


@pytest.mark.parametrize("shows", [lambda _: "", lambda text: text + "(", lambda text: text.swapcase() + "\n"])
@pytest.mark.parametrize("raw", [byte_level(), byte_fallback(False)], ids=["byte-level", "byte-fallback"])
def test_one_token_shown_as_other_text_is_found(raw: Tokenizer, shows: Callable[[str], str]) -> None:
    honest = vocabulary_of(raw)
    for token_id in (*range(0, len(honest), 13), len(honest) - 1):
        if honest.kinds[token_id] == UNKNOWN or (honest.kinds[token_id] == SPECIAL and shows("") == ""):
            continue
        with pytest.raises(ProdError, match=r"other text than their bytes|leave out the special token"):
            vocabulary_of(Tampered(raw, token_id, shows=shows))


@pytest.mark.parametrize("raw", [byte_level(), byte_fallback(False)], ids=["byte-level", "byte-fallback"])
def test_one_token_with_the_bytes_of_another_is_found(raw: Tokenizer) -> None:
    """Also where both are parts of characters, which look alike when they stand alone."""
    honest = vocabulary_of(raw)
    partial = [i for i in text_ids(honest) if "\ufffd" in honest.decode([i])]
    # Bytes that no UTF-8 has (c0, c1, f5 to ff) are U+FFFD wherever they stand, whichever they are.
    partial = [i for i in partial if not set(honest.token_bytes(i)) & {0xC0, 0xC1, *range(0xF5, 0x100)}]
    whole = [i for i in text_ids(honest) if i not in partial]
    assert len(partial) > 100
    for ids in (partial, whole[::11]):
        for token_id, other in pairwise(ids):
            assert honest.token_bytes(token_id) != honest.token_bytes(other)
            with pytest.raises(ProdError, match=r"turns the token ids|expected a token for the byte"):
                vocabulary_of(Tampered(raw, token_id, says=raw.id_to_token(other)))


@pytest.mark.parametrize("skipping", [True, False])
def test_one_token_shown_as_other_text_by_one_decoder_is_found(skipping: bool) -> None:
    raw = byte_level()
    with pytest.raises(ProdError, match=rf"other text than their bytes .*skip_special_tokens={skipping}"):
        vocabulary_of(Tampered(raw, id_of(raw, "return"), shows=str.upper, skipping=(skipping,)))


@given(st.text(min_size=1), st.data())
def test_any_part_of_a_text_is_completed_to_characters(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    first = data.draw(st.integers(0, len(encoded) - 1))
    part = encoded[first : data.draw(st.integers(first + 1, len(encoded)))]
    before, after = _completion(part)
    (before + part + after).decode()


def test_the_disagreement_names_the_token() -> None:
    raw = byte_level()
    token_id = id_of(raw, "return")
    with pytest.raises(
        ProdError, match=rf"token ids \[{token_id}\] .*expected '0return0', got '0reTURN0' at character 3"
    ):
        vocabulary_of(Tampered(raw, token_id, shows=lambda _: "reTURN"))


# Spaces that do not lead.


def spelled(
    decoder: Any, tokens: Iterable[str] = (), special: Iterable[str] = (), byte_fallback: bool = False
) -> Tokenizer:
    """A vocabulary of characters and of the tokens given, with U+2581 for a space; text is encoded by character."""
    alphabet = [*PRINTABLE, "\u2581", "\n", "\t", "\r", "<unk>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*alphabet, *tokens]))}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=byte_fallback))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<unk>", *special])
    return tokenizer


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_space_that_ends_a_first_token_is_lost(scheme: str) -> None:
    tokenizer = spelled(decoders.Metaspace(prepend_scheme=scheme), ["return\u2581"])
    ids = [id_of(tokenizer, token) for token in ("return\u2581", "x", "(")]
    assert tokenizer.decode(ids) == "returnx("
    for each in (tokenizer, fast(tokenizer)):
        with pytest.raises(ProdError, match=rf"drops spaces inside the token id {ids[0]} at the start"):
            vocabulary_of(each)


def test_a_space_inside_a_special_token_that_is_lost() -> None:
    """Skipped it shows nothing, shown as the first of a text it loses its space."""
    tokenizer = spelled(decoders.Metaspace(), special=["eval(\u2581x)"])
    assert tokenizer.decode([id_of(tokenizer, "eval(\u2581x)")], skip_special_tokens=False) == "eval(x)"
    with pytest.raises(ProdError, match="drops spaces inside the token id"):
        vocabulary_of(tokenizer)


def test_spaces_that_end_tokens_are_text_where_they_are_kept() -> None:
    replaced = decoders.Sequence([SPACES, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    for decoder in (decoders.Metaspace(prepend_scheme="never"), replaced):
        tokenizer = spelled(decoder, ["return\u2581"])
        vocabulary = vocabulary_of(tokenizer)
        ids = [id_of(tokenizer, token) for token in ("return\u2581", "x", "(")]
        assert tokenizer.decode(ids) == vocabulary.decode(ids) == "return x("


def suffix_sentencepiece(**options: Any) -> Any:
    return trained_sentencepiece(
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        treat_whitespace_as_suffix=True,
        **options,
    )


def test_sentencepiece_with_spaces_as_suffixes() -> None:
    pieces = suffix_sentencepiece(add_dummy_prefix=False)
    vocabulary = vocabulary_of(pieces)
    ended = next(
        i
        for i in text_ids(vocabulary)
        if vocabulary.token_bytes(i).rstrip(b" ").isalpha() and vocabulary.token_bytes(i).endswith(b" ")
    )
    x = pieces.piece_to_id("x")
    for ids in ([ended, x], [x, ended, x], [x, ended], [ended, ended, x]):
        assert vocabulary.decode(ids) == pieces.decode(ids)
    with pytest.raises(ProdError, match="does not round-trip"):  # it writes a space at the end of each text
        vocabulary_of(suffix_sentencepiece())


DECODERS = st.sampled_from(
    [
        *(decoders.Metaspace(prepend_scheme=scheme) for scheme in ("first", "always", "never")),
        *(
            decoders.Sequence([decoders.Replace("\u2581", " "), *steps])
            for steps in (
                [decoders.Fuse()],
                [decoders.ByteFallback(), decoders.Fuse()],
                [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)],
                [decoders.Fuse(), decoders.Strip(" ", 2, 0)],
            )
        ),
    ]
)
PARTS = st.sampled_from(["a", "x", "\u2581", "\u2581", "(", "\n", " ", "<0x28>", "<0x2", "8>", "\u0120", "return"])
SPELLINGS = st.lists(st.lists(PARTS, min_size=2, max_size=3).map("".join), max_size=3, unique=True)


@given(DECODERS, SPELLINGS, SPELLINGS, st.booleans())
def test_what_is_accepted_shows_its_bytes(decoder: Any, tokens: list[str], special: list[str], fallback: bool) -> None:
    """From the first token of a text on, special tokens shown or skipped; but for spaces at its ends."""
    tokenizer = spelled(decoder, tokens, special, fallback)
    try:
        vocabulary_of(tokenizer)
    except ProdError:
        return
    reading = _read(tokenizer)
    odd = [i for i, token in enumerate(reading.tokens) if token is not None and len(token) != 1]
    for ids in product([*odd, *(id_of(tokenizer, token) for token in ("x", "\u2581"))], repeat=3):
        for skip in (False, True):
            shown = b"".join(reading.tokens[i] or b"" for i in ids if not (skip and i in reading.special))
            assert_same_text(shown, tokenizer.decode(list(ids), skip_special_tokens=skip), exact=False)


# Spellings of bytes.


def test_a_sentencepiece_symbol_that_looks_like_a_byte_is_text() -> None:
    options = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    symbols = ["\n", "\t", "\r", "    ", "<0x28>"]
    pieces = trained_sentencepiece(
        **options, user_defined_symbols=symbols, allow_whitespace_only_pieces=True, character_coverage=1.0
    )
    token_id = pieces.piece_to_id("<0x28>")
    assert not pieces.is_byte(token_id)
    assert pieces.decode([token_id]) == "<0x28>"
    assert vocabulary_of(pieces).token_bytes(token_id) == b"<0x28>"


def test_a_byte_by_its_spelling_is_one_to_byte_fallback() -> None:
    """The decoder asks no model; to Rust, which reads the digits, `+8` is a number as well."""
    steps = [SPACES, decoders.ByteFallback(), decoders.Fuse()]
    tokenizer = spelled(decoders.Sequence(steps), ["<0x28>"])
    token_id = id_of(tokenizer, "<0x28>")
    assert tokenizer.decode([token_id]) == "("
    assert vocabulary_of(tokenizer).token_bytes(token_id) == b"("
    with pytest.raises(ProdError, match="other text than their bytes"):
        vocabulary_of(spelled(decoders.Sequence(steps), ["<0x+8>"]))
    tokenizer = spelled(decoders.Sequence([SPACES, decoders.Fuse()]), ["<0x28>"], byte_fallback=True)
    assert vocabulary_of(tokenizer).token_bytes(token_id) == tokenizer.decode([token_id]).encode() == b"<0x28>"


@pytest.mark.parametrize(
    ("tokens", "recipe"),
    [
        (["load", "\u0120load", "\u0120import", "("], r"take byte_level_bytes\(token\)"),
        (["load", "\u2581load", " ", "("], None),
        (["load", "\u2581load", "("], r"take token.replace\('\\u2581', ' '\).encode\(\)"),
        (["\u0120or\u0121", "\u0120a", " a", " b", " c"], None),
        ([" a", " b", *(f"<0x{byte:02X}>" for byte in range(256))], r"take bytes\(\[int\(token\[3:5\], 16\)\]\)"),
        ([" a", "<0x28>"], None),
        (["eval", "##uate", "("], r"take \(token\[2:\] if token.startswith\('##'\) else ' ' \+ token\).encode\(\)"),
        (["eval</w>", "(", "(</w>"], r"take token.replace\('</w>', ' '\).encode\(\)"),
        ([" a", " b", "##", "##x", "i</w>"], None),
    ],
)
def test_spellings_are_no_bytes(tokens: list[str], recipe: str | None) -> None:
    spellings = [token.encode() for token in tokens]
    if recipe is None:
        assert len(Vocabulary.from_bytes(spellings)) == len(tokens)
    else:
        with pytest.raises(ProdError, match=f"expected the bytes of each token, .*{recipe}") as refusal:
            Vocabulary.from_bytes(spellings)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("tokens", "special", "message"),
    [
        ([b"a", "load"], [], "expected the bytes of each token, got str 'load': pass bytes, as token.encode"),
        ("load", [], "expected the bytes of each token, got str 'l'"),
        (b"load", [], "expected the bytes of each token, got int '108'"),
        ([b"a"], "0", "special token id '0' is outside the vocabulary of 1 tokens"),
    ],
)
def test_what_is_no_vocabulary(tokens: Any, special: Any, message: str) -> None:
    with pytest.raises(ProdError, match=f"^{message}"):
        Vocabulary.from_bytes(tokens, special=special)


def test_real_spellings_are_no_bytes() -> None:
    for tokenizer in (byte_level(), byte_fallback(True), metaspace()):
        vocabulary = tokenizer.get_vocab()
        with pytest.raises(ProdError, match="expected the bytes of each token"):
            Vocabulary.from_bytes([token.encode() for token in sorted(vocabulary, key=vocabulary.__getitem__)])


def test_the_recipe_of_the_page_runs() -> None:
    """Ids without gaps, as the page says: those of the byte-level tokenizer."""
    tokenizer, honest = family("byte-level")
    page = (ROOT / "docs" / "reference" / "tokenizers.md").read_text()
    names = {"tokenizer": tokenizer, "blocklist": Blocklist.compile([Entry("yaml.load(")])}
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert names["matcher"].vocabulary.data.tolist() == honest.data.tolist()
    assert names["matcher"].vocabulary.eos_ids == honest.eos_ids


def test_the_recipe_gives_the_bytes() -> None:
    raw, vocabulary = family("byte-level raw")
    spellings = raw.get_vocab()
    special = [i for i, kind in enumerate(vocabulary.kinds.tolist()) if kind == SPECIAL]
    tokens = [byte_level_bytes(token) for token in sorted(spellings, key=spellings.__getitem__)]
    made = Vocabulary.from_bytes(tokens, special=special, decode=raw.decode)
    assert made.data.tolist() == vocabulary.data.tolist()
    assert made.offsets.tolist() == vocabulary.offsets.tolist()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", ["byte-level raw", "byte fallback raw", "metaspace"])
def test_given_bytes_are_proved(name: str, skip: bool) -> None:
    tokenizer = family(name)[0]
    reading = reading_of(name)

    def show(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=skip))

    known = [i for i, token in enumerate(reading.tokens) if token is not None]
    vocabulary = Vocabulary.from_bytes(reading.tokens, special=reading.special, decode=show)
    assert vocabulary.data.tolist() == family(name)[1].data.tolist()
    for token_id in known[::37]:
        tokens = list(reading.tokens)
        tokens[token_id] = (tokens[token_id] or b"") + b"!"
        if skip and token_id in reading.special:
            continue
        with pytest.raises(ProdError, match=r"other text than their bytes|to leave out|expected a token for the byte"):
            Vocabulary.from_bytes(tokens, special=reading.special, decode=show)


# Tokenizers that raise.


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (models.WordLevel({"a": 0, " b": 1}), r"Missing \[UNK\] token"),
        (models.Unigram([("a", -1.0), ("\u2581b", -2.0)]), "`unk_id` is missing"),
        (models.WordPiece({"a": 0, "##b": 1}), r"Missing \[UNK\] token"),
    ],
    ids=["WordLevel", "Unigram", "WordPiece"],
)
def test_a_tokenizer_that_raises_is_refused(model: Any, reason: str) -> None:
    tokenizer = changed(Tokenizer(model), decoder=decoders.Fuse())
    for each in (tokenizer, fast(tokenizer), fast(tokenizer, clean_up_tokenization_spaces=True)):
        with pytest.raises(ProdError, match=rf"a tokenizer that encodes any text, got .*{reason}.*unknown token"):
            vocabulary_of(each)


def test_a_decoder_that_raises_is_refused() -> None:
    def decode(ids: list[int]) -> str:
        raise OverflowError("no\nmore")

    with pytest.raises(ProdError, match=r"a tokenizer that decodes any text, got one that raises 'no': .*from_bytes"):
        Vocabulary.from_bytes([b"a"], decode=decode)


# The real one.


def test_smollm2() -> None:
    tokenizer = smollm2_tokenizer()
    vocabulary = vocabulary_of(tokenizer)
    assert len(vocabulary) == len(tokenizer) == 49152
    assert [i for i, kind in enumerate(vocabulary.kinds.tolist()) if kind != TEXT] == list(range(17))
    assert vocabulary.eos_ids == (tokenizer.eos_token_id,)
    for path in (argparse.__file__, ast.__file__, textwrap.__file__):
        text = Path(path).read_text()
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert vocabulary.decode(ids) == text == tokenizer.decode(ids)


@given(st.lists(st.integers(17, 49151), max_size=16))
@settings(max_examples=300)
def test_smollm2_decodes_any_tokens_as_their_bytes(ids: list[int]) -> None:
    tokenizer = smollm2_tokenizer()
    assert smollm2_vocabulary().decode(ids) == tokenizer.decode(ids)


@lru_cache
def smollm2_vocabulary() -> Vocabulary:
    return vocabulary_of(smollm2_tokenizer())
