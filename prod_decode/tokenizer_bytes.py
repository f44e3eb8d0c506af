"""From a tokenizer to the bytes of its tokens, proved against its own decoder.

A reader derives the bytes from the tokens as the decoder of that family does. `_prove` then shows every token, in
context, to the functions that users call for their text, and sends a text through the encoder and back. A tokenizer
that is not understood, or that disagrees anywhere, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from prod_decode.errors import ProdError
from prod_decode.normalize import CLASSES, WORD
from prod_decode.vocabulary import TEXT, Vocabulary

_Decode = Callable[[list[int]], str]

_REMEDY = "pass a prod_decode.vocabulary.Vocabulary.from_bytes(...) if you know the bytes of its tokens"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_GROUP = 128

# What encoders lose: case, tabs, runs of spaces and newlines, spaces before punctuation and contractions, both ends.
_CODE = (
    "def load(path):\n    with open(path, 'rb') as f:\n\treturn yaml.load(f.read())  # it 's , they 've . don 't\n\n\n"
    "class A_1(object):\r\n        x = {'k': [1, 23, 456], \"q\": 0xFF}; y != ~x ^ 7 % 2 @ `z` | $w & \\v < t + s\n"
    "  abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 ! - ? * > / \n"
)
_PROBES = (_CODE, "  " + _CODE, "caf\u00e9", "\u4f60\u597d", "\U0001f600")


@dataclass(frozen=True, slots=True)
class _Reading:
    """A tokenizer as its reader understands it.

    Attributes:
        tokens: the bytes of every id; None where there is no token or its text depends on its neighbours.
        special: ids that add no text.
        decoders: the functions from ids to text, by the names under which users know them.
        encode: text to ids, without special tokens.
        skip_special: the decoder that leaves special tokens out, if there is one.
        shown: special ids that it shows all the same.
        eos_ids: ids that end an output.
    """

    tokens: list[bytes | None]
    special: set[int]
    decoders: dict[str, _Decode]
    encode: Callable[[str], list[int]]
    skip_special: _Decode | None = None
    shown: frozenset[int] = frozenset()
    eos_ids: tuple[int, ...] = ()


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
    reading = _read(tokenizer)
    vocabulary = Vocabulary.from_bytes(reading.tokens, special=reading.special, eos_ids=reading.eos_ids)
    _prove(vocabulary, reading)
    return vocabulary


def _read(tokenizer: Any) -> _Reading:
    if getattr(tokenizer, "clean_up_tokenization_spaces", False) and _cleans_up(tokenizer):
        raise ProdError(
            "expected a tokenizer that decodes its tokens unchanged, got one that removes spaces from the text "
            "(clean_up_tokenization_spaces is true): set tokenizer.clean_up_tokenization_spaces = False"
        )
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "get_added_tokens_decoder") and hasattr(backend, "decoder"):
        return _read_tokenizers(tokenizer, backend)
    if hasattr(tokenizer, "decode_single_token_bytes"):
        return _read_tiktoken(tokenizer)
    if hasattr(tokenizer, "sp_model") and hasattr(tokenizer, "convert_ids_to_tokens"):
        return _read_slow_sentencepiece(tokenizer)
    if hasattr(tokenizer, "id_to_piece") and hasattr(tokenizer, "is_byte"):
        return _read_sentencepiece(tokenizer)
    raise ProdError(
        f"expected a tokenizer backed by tokenizers, tiktoken or SentencePiece, got {type(tokenizer).__name__}: the "
        f"bytes of its tokens cannot be derived; {_REMEDY}"
    )


def _cleans_up(tokenizer: Any) -> bool:
    """Whether the flag takes effect: Llama 3's configuration sets it, and transformers 5 ignores it for BPE."""
    return " ," not in tokenizer.decode(tokenizer.encode("a , b", add_special_tokens=False))


def _read_tokenizers(tokenizer: Any, backend: Any) -> _Reading:
    """A `tokenizers.Tokenizer`, alone (`tokenizer is backend`) or under a transformers tokenizer."""
    steps = _steps(None if backend.decoder is None else json.loads(backend.decoder.__getstate__()))
    to_bytes = _token_decoder(steps)
    size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    tokens = [None if (token := backend.id_to_token(i)) is None else to_bytes(token) for i in range(size)]
    added = backend.get_added_tokens_decoder()
    flagged = {token_id for token_id, token in added.items() if token.special}
    if tokenizer is backend:
        return _Reading(
            tokens,
            special=flagged,
            decoders={
                "decode(..., skip_special_tokens=False)": lambda ids: backend.decode(ids, skip_special_tokens=False),
                "decode(..., skip_special_tokens=True)": lambda ids: backend.decode(ids, skip_special_tokens=True),
            },
            encode=_unbounded(backend),
            skip_special=lambda ids: backend.decode(ids, skip_special_tokens=True),
        )
    named = _special_ids(tokenizer)
    return _Reading(
        tokens,
        special=flagged | named,
        decoders={
            "backend_tokenizer.decode": lambda ids: backend.decode(ids, skip_special_tokens=False),
            **_transformers_decoders(tokenizer),
        },
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        skip_special=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        shown=frozenset(named & set(added) - flagged),
        eos_ids=_eos_ids(tokenizer),
    )


def _read_tiktoken(encoding: Any) -> _Reading:
    names = set(encoding.special_tokens_set)
    tokens: list[bytes | None] = []
    for token_id in range(encoding.n_vocab):
        try:
            tokens.append(encoding.decode_single_token_bytes(token_id))
        except KeyError:
            tokens.append(None)
    return _Reading(
        tokens,
        special={encoding.encode_single_token(name) for name in names},
        decoders={"decode": encoding.decode},
        encode=encoding.encode_ordinary,
        eos_ids=(encoding.eot_token,) if "<|endoftext|>" in names else (),
    )


def _read_sentencepiece(pieces: Any) -> _Reading:
    size = pieces.get_piece_size()
    return _Reading(
        tokens=[_piece_bytes(pieces.id_to_piece(i)) for i in range(size)],
        special={i for i in range(size) if pieces.is_control(i) or pieces.is_unknown(i)},
        decoders={"decode": pieces.decode},
        encode=pieces.encode,
        eos_ids=(pieces.eos_id(),) if pieces.eos_id() >= 0 else (),
    )


def _read_slow_sentencepiece(tokenizer: Any) -> _Reading:
    """A transformers tokenizer over `sp_model`; its ids need not be those of the model (fairseq's are shifted)."""
    added = tokenizer.added_tokens_decoder
    tokens: list[bytes | None] = []
    for token_id in range(max(tokenizer.vocab_size, *(i + 1 for i in added), 0)):
        try:
            tokens.append(_piece_bytes(tokenizer.convert_ids_to_tokens(token_id)))
        except IndexError:  # a hole between the model's pieces and the added tokens
            tokens.append(None)
    return _Reading(
        tokens,
        special=_special_ids(tokenizer),
        decoders=_transformers_decoders(tokenizer),
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        skip_special=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        eos_ids=_eos_ids(tokenizer),
    )


def _transformers_decoders(tokenizer: Any) -> dict[str, _Decode]:
    return {
        "decode(..., skip_special_tokens=False)": lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        "decode(..., skip_special_tokens=True)": lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
    }


def _special_ids(tokenizer: Any) -> set[int]:
    return {i for i in tokenizer.all_special_ids if i is not None}


def _eos_ids(tokenizer: Any) -> tuple[int, ...]:
    eos = tokenizer.eos_token_id
    return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)


def _unbounded(backend: Any) -> Callable[[str], list[int]]:
    """The encoder of a `tokenizers.Tokenizer` without the truncation and padding that its file may ask for."""
    if backend.truncation or backend.padding:
        backend = type(backend).from_str(backend.to_str())
        backend.no_truncation()
        backend.no_padding()
    return lambda text: list(backend.encode(text, add_special_tokens=False).ids)


def _piece_bytes(piece: str) -> bytes:
    if spelled := _BYTE_TOKEN.fullmatch(piece):
        return bytes([int(spelled[1], 16)])
    return piece.replace("\u2581", " ").encode()


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


# One token at a time, then (byte level, Fuse) all tokens as one string, from which a Strip may take leading spaces. Any
# other order lets a step see the text of several tokens: after ByteFallback, Metaspace turns the bytes of U+2581, each
# a token, into a space.
_UNDERSTOOD = re.compile(
    r"(?:Replace |Metaspace )*(?:ByteLevel (?:Fuse )?(?:Strip )?|(?:ByteFallback )?(?:Fuse (?:Strip )?)?)"
)


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of the decoder of a `tokenizers.Tokenizer`, refused unless each token's share of the text is known."""
    steps = [] if decoder is None else list(_flatten(decoder))
    unlike = [
        step["type"]
        for step in steps
        if (step["type"] == "Replace" and "String" not in step["pattern"])
        or (step["type"] == "Strip" and (step["content"] != " " or step["stop"] != 0))
    ]
    if not steps or unlike or not _UNDERSTOOD.fullmatch("".join(step["type"] + " " for step in steps)):
        name = ", ".join(unlike or [step["type"] for step in steps]) or "none"
        raise ProdError(
            f"expected a tokenizer with a byte-level, Metaspace or byte-fallback decoder, got the decoder {name}: the "
            f"bytes of its tokens cannot be derived; {_REMEDY}"
        )
    return steps


def _flatten(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _flatten(step)
    else:
        yield decoder


def _token_decoder(steps: list[dict[str, Any]]) -> Callable[[str], bytes | None]:
    """What the steps do to one token, apart from the first of a text; None: what its neighbours decide.

    ByteFallback writes U+FFFD for every byte of a run of byte tokens that is not valid UTF-8 as a whole. The `a` of
    `<0xFF><0x61>` is not on the screen, where an `eval(` after it begins a word, but it is among the bytes, where that
    does not. Encoders write a letter as a byte token only if it has no token of its own, and then `_prove_round_trip`
    refuses the tokenizer.
    """
    table = _byte_of_character() if any(step["type"] == "ByteLevel" for step in steps) else None
    bytes_spelled = any(step["type"] == "ByteFallback" for step in steps)
    replacements: list[tuple[str, str]] = []
    for step in steps:
        if step["type"] == "Metaspace":
            replacements.append((step["replacement"], " "))
        elif step["type"] == "Replace":
            replacements.append((step["pattern"]["String"], step["content"]))

    def to_bytes(token: str) -> bytes | None:
        for old, new in replacements:
            token = token.replace(old, new)
        if table is not None:
            try:
                return bytes(map(table.__getitem__, token))
            except KeyError:  # an added token, such as one with a real space: it stands for itself
                return token.encode()
        if bytes_spelled and (spelled := _BYTE_TOKEN.fullmatch(token)):
            byte = int(spelled[1], 16)
            return None if CLASSES[byte] == WORD else bytes([byte])
        return token.encode()

    return to_bytes


def _prove(vocabulary: Vocabulary, reading: _Reading) -> None:
    """Compare every token, in context, with every decoder, and texts with their encoding.

    Raises:
        ProdError: they differ, or a token cannot be put to the proof.
    """
    text = {i: reading.tokens[i] or b"" for i, kind in enumerate(vocabulary.kinds.tolist()) if kind == TEXT}
    whole = [i for i, token in text.items() if _is_utf8(token)]
    edge = next((i for i in whole if text[i].isalnum()), None)
    if edge is None:
        raise ProdError(
            "expected a tokenizer with a token that is a word without a space, beside which the others can be proved, "
            f"got none; {_REMEDY}"
        )
    groups = [whole[i : i + _GROUP] for i in range(0, len(whole), _GROUP)]
    partial = sorted(text.keys() - set(whole))
    groups += [[i for at in partial[j : j + _GROUP] for i in (at, edge)] for j in range(0, len(partial), _GROUP)]
    groups += _characters_from(text, partial)
    for name, decode in reading.decoders.items():
        for group in groups:
            if _differ(text, edge, group, decode):
                culprits = [[i] for i in group if _differ(text, edge, [i], decode)]
                ids = culprits[0] if culprits else group
                what = f"turns the token ids {str(ids)[:80]} into other text than their bytes ({name})"
                raise _disagreement(what, *(_differ(text, edge, ids, decode) or ("", "")))
    _prove_first(text, whole, edge, *list(reading.decoders.items())[-1])
    _prove_special(reading, edge)
    _prove_round_trip(vocabulary, reading, text, edge)


def _differ(text: dict[int, bytes], edge: int, ids: list[int], decode: _Decode) -> tuple[str, str] | None:
    """The text of some tokens by their bytes and by their decoder, if these differ.

    They stand between words, because decoders may strip spaces from the ends of a text.
    """
    ids = [edge, *ids, edge]
    ours = b"".join(map(text.__getitem__, ids)).decode(errors="replace")
    theirs = decode(ids)
    return None if ours == theirs else (ours, theirs)


def _prove_first(text: dict[int, bytes], whole: list[int], edge: int, name: str, decode: _Decode) -> None:
    """Where a decoder takes spaces from the first token of a text, compare every token that has others inside.

    Metaspace drops each U+2581 there, so that `a\u2581b` shows what `ab` shows.
    """
    led = next((i for i in whole if text[i].startswith(b" ") and text[i].strip()), None)
    if led is None or decode([led, edge]).startswith(" "):
        return
    for token_id in whole:
        if b" " in text[token_id].lstrip(b" "):
            ours, theirs = (text[token_id] + text[edge]).decode(), decode([token_id, edge])
            if ours.lstrip() != theirs.lstrip():
                raise _disagreement(f"drops spaces inside the token id {token_id} at the start ({name})", ours, theirs)


def _prove_special(reading: _Reading, edge: int) -> None:
    if reading.skip_special is None:
        return
    without = reading.skip_special([edge, edge])
    for token_id in sorted(reading.special - reading.shown):
        if (theirs := reading.skip_special([edge, token_id, edge])) != without:
            raise ProdError(
                f"expected decode(..., skip_special_tokens=True) to leave out the special token id {token_id}, got "
                f"{theirs!r} instead of {without!r}: its text would escape the matcher; make it special with "
                "tokenizer.add_special_tokens(...) or choose another token"
            )


def _prove_round_trip(vocabulary: Vocabulary, reading: _Reading, text: dict[int, bytes], edge: int) -> None:
    for probe in _PROBES:
        ids = reading.encode(probe)
        unknown = {i for i in ids if i not in text}
        if unknown and not probe.isascii() and all(i in reading.special for i in unknown):
            continue  # no token for such a character: the model neither sees nor writes it
        decoded = vocabulary.decode(i for i in ids if i in text)
        expected = " " + probe if decoded.startswith(" " + probe[:4]) else probe  # SentencePiece puts a space before it
        if unknown:
            what = f"encodes ordinary text to special or unknown token ids {sorted(unknown)}"
            raise _disagreement(what, expected, decoded)
        if decoded != expected:
            raise _disagreement("does not round-trip", expected, decoded)
        for name, decode in reading.decoders.items():
            if differ := _differ(text, edge, ids, decode):
                raise _disagreement(f"turns tokens into other text than their bytes ({name})", *differ)


# Bytes that begin a character which any one, two or three continuation bytes complete.
_OPENERS = (b"", b"\xc3", b"\xe1", b"\xf1")
# The least second byte that UTF-8 allows after these.
_SECOND = {0xE0: 0xA0, 0xF0: 0x90}


def _completion(token: bytes) -> tuple[bytes, bytes]:
    """The bytes that must stand before and after a token with partial characters so that they become whole ones."""
    inside = 0
    while inside < min(3, len(token)) and _continues(token[inside]):
        inside += 1
    at = len(token) - 1
    while at >= max(0, len(token) - 3) and _continues(token[at]):
        at -= 1
    if at < 0 or token[at] < 0xC0 or _continues(token[at]):
        return _OPENERS[inside], b""
    missing = (1 if token[at] < 0xE0 else 2 if token[at] < 0xF0 else 3) - (len(token) - 1 - at)
    closer = bytes([0x80] * missing)
    if missing and at == len(token) - 1:
        closer = bytes([_SECOND.get(token[at], 0x80)]) + closer[1:]
    return _OPENERS[inside], closer


def _continues(byte: int) -> bool:
    return byte & 0xC0 == 0x80


def _characters_from(text: dict[int, bytes], partial: list[int]) -> Iterator[list[int]]:
    """For every token with partial characters, a group of tokens in which they become whole ones.

    Alone they are all U+FFFD, which would prove little. A token that no neighbours make valid (one with the byte ff)
    shows U+FFFD wherever it stands; there the decoders agree on how many.

    Raises:
        ProdError: the single bytes that complete a token are missing from the vocabulary.
    """
    single = {token: i for i, token in text.items() if len(token) == 1}
    for token_id in partial:
        token = text[token_id]
        before, after = _completion(token)
        try:
            yield [
                *(single[bytes([byte])] for byte in before),
                token_id,
                *(single[bytes([byte])] for byte in after),
            ]
        except KeyError as error:
            raise ProdError(
                f"expected a token for the byte {error.args[0].hex()}, to make whole characters with token id "
                f"{token_id} ({token!r}), got none: its bytes cannot be proved; {_REMEDY}"
            ) from None


def _is_utf8(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def _disagreement(what: str, expected: str, got: str) -> ProdError:
    pairs: Iterable[tuple[str, str]] = zip(expected, got, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(got)))
    window = slice(max(0, at - 8), at + 16)
    return ProdError(
        f"the tokenizer {what}: expected {expected[window]!r}, got {got[window]!r} at character {at}; it cannot be "
        f"guarded exactly, so it is refused: {_REMEDY}"
    )
