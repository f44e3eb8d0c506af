"""From a tokenizer to the bytes of its tokens, proved against its own decoder.

Every reader below follows the decoder that the tokenizer itself uses, and `_check` then compares the result with that
decoder for every token, in context. A tokenizer that is not understood, or whose decoder disagrees, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from prod_decode.errors import ProdError
from prod_decode.vocabulary import SPECIAL, TEXT, Vocabulary

_Decode = Callable[[list[list[int]]], list[str]]
_Encode = Callable[[str], list[int]]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBE = (
    "def load(path):\n    with open(path, 'rb') as f:\n\treturn yaml.load(f.read())  # caf\u00e9 \u4f60\u597d \U0001f600\n\n\n"
    "class A_1(object):\r\n        x = {'k': [1, 23, 456], \"q\": 0xFF}; y != ~x ^ 7 % 2 @ z\n"
)
_GROUP = 32


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        tokenizer: a `Vocabulary`; a transformers tokenizer backed by `tokenizers` or by SentencePiece; a
            `tokenizers.Tokenizer`; a `tiktoken.Encoding`; a `sentencepiece.SentencePieceProcessor`.

    Raises:
        ProdError: the bytes of its tokens cannot be derived, or its own decoder disagrees with them.
    """
    if isinstance(tokenizer, Vocabulary):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str") and hasattr(backend, "decode_batch"):
        return _from_tokenizers(tokenizer, backend)
    if hasattr(backend, "decode_single_token_bytes"):
        return _from_tiktoken(backend)
    pieces = getattr(tokenizer, "sp_model", tokenizer)
    if hasattr(pieces, "id_to_piece") and hasattr(pieces, "is_byte"):
        return _from_sentencepiece(tokenizer, pieces)
    raise ProdError(
        f"expected a tokenizer backed by tokenizers, tiktoken or SentencePiece, got {type(tokenizer).__name__}: its "
        "tokens' bytes cannot be derived; pass a prod_decode.vocabulary.Vocabulary.from_bytes(...) instead"
    )


def _from_tokenizers(tokenizer: Any, backend: Any) -> Vocabulary:
    if getattr(tokenizer, "clean_up_tokenization_spaces", False):
        raise ProdError(
            "the tokenizer removes spaces from decoded text (clean_up_tokenization_spaces is true), so that its output "
            "differs from its tokens: set tokenizer.clean_up_tokenization_spaces = False"
        )
    description = json.loads(backend.to_str())
    to_bytes = _token_decoder(description["decoder"])
    tokens = [backend.id_to_token(i) for i in range(backend.get_vocab_size(with_added_tokens=True))]
    highest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    tokens += [backend.id_to_token(i) for i in range(len(tokens), highest + 1)]
    special = {added["id"] for added in description["added_tokens"] if added["special"]}
    special |= {i for i in getattr(tokenizer, "all_special_ids", ()) if i is not None}
    eos = getattr(tokenizer, "eos_token_id", None)
    vocabulary = Vocabulary.from_bytes(
        [None if token is None else to_bytes(token) for token in tokens],
        special=special,
        eos_ids=[] if eos is None else eos if isinstance(eos, list) else [eos],
    )
    _check(
        vocabulary,
        lambda groups: backend.decode_batch(groups, skip_special_tokens=False),
        lambda text: backend.encode(text, add_special_tokens=False).ids,
    )
    return vocabulary


def _from_tiktoken(encoding: Any) -> Vocabulary:
    special = set(encoding.special_tokens_set)
    special_ids = {encoding.encode_single_token(token) for token in special}
    tokens: list[bytes | None] = []
    for token_id in range(encoding.n_vocab):
        try:
            tokens.append(encoding.decode_single_token_bytes(token_id))
        except KeyError:
            tokens.append(None)
    eos = [encoding.eot_token] if "<|endoftext|>" in special else []
    vocabulary = Vocabulary.from_bytes(tokens, special=special_ids, eos_ids=eos)
    _check(vocabulary, lambda groups: [encoding.decode(group) for group in groups], encoding.encode_ordinary)
    return vocabulary


def _from_sentencepiece(tokenizer: Any, pieces: Any) -> Vocabulary:
    size = pieces.get_piece_size()
    tokens: list[bytes | None] = []
    special: set[int] = set()
    for token_id in range(size):
        piece = pieces.id_to_piece(token_id)
        if pieces.is_byte(token_id):
            tokens.append(bytes([int(piece[3:5], 16)]))
        else:
            tokens.append(piece.replace("\u2581", " ").encode())
        if pieces.is_control(token_id) or pieces.is_unknown(token_id):
            special.add(token_id)
    eos = pieces.eos_id()
    added = getattr(tokenizer, "added_tokens_decoder", {})
    for token_id, token in sorted(added.items()):
        tokens += [None] * (token_id + 1 - len(tokens))
        tokens[token_id] = str(token).encode()
        if getattr(token, "special", True):
            special.add(token_id)
    vocabulary = Vocabulary.from_bytes(tokens, special=special, eos_ids=[eos] if eos >= 0 else [])
    in_model = Vocabulary(
        vocabulary.data[: vocabulary.offsets[size]], vocabulary.offsets[: size + 1], vocabulary.kinds[:size]
    )
    _check(in_model, lambda groups: [pieces.decode(group) for group in groups], pieces.encode)
    return vocabulary


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (GPT-2's table).

    The printable bytes of Latin-1 stand for themselves; the others, in order, have the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return table


def _token_decoder(decoder: dict[str, Any] | None) -> Callable[[str], bytes]:
    """What the decoder of a `tokenizers` file does to one token, apart from the first of a text."""
    steps = [] if decoder is None else decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    unknown = sorted(set(kinds) - {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"})
    if unknown or not steps or kinds == ["Fuse"]:
        name = ", ".join(unknown) if unknown else "none"
        raise ProdError(
            f"expected a tokenizer with a byte-level, Metaspace or byte-fallback decoder, got the decoder {name}: its "
            "tokens' bytes cannot be derived; pass a prod_decode.vocabulary.Vocabulary.from_bytes(...) instead"
        )

    def to_bytes(token: str) -> bytes:
        for step in steps:
            match step["type"]:
                case "ByteLevel":
                    table = _byte_of_character()
                    if all(character in table for character in token):
                        return bytes(table[character] for character in token)
                case "Metaspace":
                    token = token.replace(step["replacement"], " ")
                case "Replace" if "String" in step["pattern"]:
                    token = token.replace(step["pattern"]["String"], step["content"])
                case "Replace":
                    token = re.sub(step["pattern"]["Regex"], step["content"], token)
                case "ByteFallback":
                    if spelled := _BYTE_TOKEN.fullmatch(token):
                        return bytes([int(spelled[1], 16)])
        return token.encode()

    return to_bytes


def _check(vocabulary: Vocabulary, decode: _Decode, encode: _Encode) -> None:
    """Compare every token, in context, with the tokenizer's decoder, and a text with its own encoding."""
    text_ids = [i for i, kind in enumerate(vocabulary.kinds.tolist()) if kind == TEXT]
    whole, partial = [], []
    for token_id in text_ids:
        (whole if _is_utf8(vocabulary.token_bytes(token_id)) else partial).append(token_id)
    # The first token of a group may lose a leading space (SentencePiece's decoder), hence one that has none.
    anchor = next((i for i in whole if vocabulary.token_bytes(i)[:1].isalnum()), None)
    lead = [] if anchor is None else [anchor]
    groups = [[*lead, *whole[i : i + _GROUP]] for i in range(0, len(whole), _GROUP)]
    _compare(vocabulary, groups, decode)
    _compare(vocabulary, [[*lead, *group] for group in _characters_from(vocabulary, partial)], decode)

    ids = encode(_PROBE)
    if any(not 0 <= i < len(vocabulary) or vocabulary.kinds[i] == SPECIAL for i in ids):
        raise _disagreement("encodes ordinary text to special or unknown tokens", _PROBE, vocabulary.decode(ids))
    if vocabulary.decode(ids).removeprefix(" ") != _PROBE:
        raise _disagreement("does not round-trip", _PROBE, vocabulary.decode(ids))


def _characters_from(vocabulary: Vocabulary, partial: Sequence[int]) -> Iterable[list[int]]:
    """Groups of tokens with partial characters that together spell valid UTF-8, so that decoders must agree on them.

    A token that no single other token, or three single bytes, completes is not checked this way: it then never appears
    in valid text either.
    """
    single = {vocabulary.token_bytes(i): i for i in partial if len(vocabulary.token_bytes(i)) == 1}
    continuation = single.get(b"\x80"), single.get(b"\xbf"), single.get(b"\x90")
    for token_id in partial:
        token = vocabulary.token_bytes(token_id)
        for first, last in _COMPLETIONS:
            spelled = first + token + last
            pieces = [single.get(spelled[i : i + 1]) for i in range(len(first))]
            ends = [single.get(bytes([byte])) for byte in last]
            if _is_utf8(spelled) and None not in pieces and None not in ends and None not in continuation:
                yield [i for i in (*pieces, token_id, *ends) if i is not None]
                break


_LEADS = (b"", b"\xc3", b"\xe4", b"\xf0", b"\xe4\xbd", b"\xf0\x9f", b"\xf0\x9f\x98", b"\xe0", b"\xed", b"\xf4", b"\xf1")
_TAILS = (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\x90\x80", b"\xbf", b"\xbf\xbf", b"\x90\x80\x80", b"\xa0\x80")
_COMPLETIONS = tuple((lead, tail) for lead in _LEADS for tail in _TAILS)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _compare(vocabulary: Vocabulary, groups: Iterable[list[int]], decode: _Decode) -> None:
    listed = list(groups)
    for group, theirs in zip(listed, decode(listed), strict=True):
        ours = vocabulary.decode(group)
        if ours != theirs:
            raise _disagreement("decodes its tokens to other text than their bytes", ours, theirs)


def _disagreement(what: str, expected: str, got: str) -> ProdError:
    at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
    window = slice(max(0, at - 8), at + 16)
    return ProdError(
        f"the tokenizer {what}: expected {expected[window]!r}, got {got[window]!r} at character {at}; it cannot be "
        "guarded exactly, so it is refused: pass a prod_decode.vocabulary.Vocabulary.from_bytes(...) if you know its bytes"
    )
