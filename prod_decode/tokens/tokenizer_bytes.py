"""From a tokenizer to the bytes of its tokens, proved against its own decoder.

A reader derives the bytes from the tokens as the decoder of that family does. `prove` then shows every token, in
context, to the functions that users call for their text, and sends a text through the encoder and back. A tokenizer
that is not understood, or that disagrees anywhere, is refused.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from prod_decode.errors import ProdError
from prod_decode.text.normalize import CLASSES, WORD
from prod_decode.tokens.proof import REMEDY, Decode, Reading, edge_of, prove, text_of, tried
from prod_decode.tokens.vocabulary import Vocabulary

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        tokenizer: a `Vocabulary`; a transformers tokenizer backed by `tokenizers` or by SentencePiece; a
            `tokenizers.Tokenizer`; a `tiktoken.Encoding`; a `sentencepiece.SentencePieceProcessor`; mistral-common's
            `Tekkenizer`, or what wraps one: its `MistralTokenizer`, transformers' `MistralCommonBackend`, vLLM's.

    Raises:
        ProdError: the bytes of its tokens cannot be derived, or its own decoder disagrees with them.
    """
    if isinstance(tokenizer, Vocabulary):
        return tokenizer
    reading = _read(tokenizer)
    vocabulary = Vocabulary.from_bytes(reading.tokens, special=reading.special, eos_ids=reading.eos_ids, _proved=True)
    prove(reading)
    return vocabulary


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level token (GPT-2, Llama 3, Qwen) as `get_vocab` spells it: `\u0120load` is b" load".

    A token with a character that stands for no byte is an added one: it stands for itself.
    """
    try:
        return bytes(map(_byte_of_character().__getitem__, token))
    except KeyError:
        return token.encode()


def _read(tokenizer: Any) -> Reading:
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
    if (tekken := _tekkenizer(tokenizer)) is not None:
        return _read_tekken(tokenizer, tekken)
    if hasattr(tokenizer, "sp_model") and hasattr(tokenizer, "convert_ids_to_tokens"):
        return _read_slow_sentencepiece(tokenizer)
    if hasattr(tokenizer, "id_to_piece") and hasattr(tokenizer, "is_byte"):
        return _read_sentencepiece(tokenizer)
    if isinstance(tokenizer, str):
        raise ProdError(
            f"expected a tokenizer, got the text {tokenizer[:80]!r}: pass what "
            f"transformers.AutoTokenizer.from_pretrained({tokenizer[:80]!r}) gives"
        )
    raise ProdError(
        f"expected a tokenizer backed by tokenizers, tiktoken or SentencePiece, got {type(tokenizer).__name__}: the "
        f"bytes of its tokens cannot be derived; {REMEDY}"
    )


def _cleans_up(tokenizer: Any) -> bool:
    """Whether the flag takes effect: Llama 3's configuration sets it, and transformers 5 ignores it for BPE."""
    encode = tried("encodes", lambda text: tokenizer.encode(text, add_special_tokens=False))
    return " ," not in tried("decodes", tokenizer.decode)(encode("a , b"))


def _read_tokenizers(tokenizer: Any, backend: Any) -> Reading:
    """A `tokenizers.Tokenizer`, alone (`tokenizer is backend`) or under a transformers tokenizer."""
    steps = _steps(None if backend.decoder is None else json.loads(backend.decoder.__getstate__()))
    to_bytes = _token_decoder(steps)
    size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    tokens = [None if (token := backend.id_to_token(i)) is None else to_bytes(token) for i in range(size)]
    added = backend.get_added_tokens_decoder()
    flagged = {token_id for token_id, token in added.items() if token.special}
    if tokenizer is backend:
        return Reading(
            tokens,
            special=flagged,
            showing={_SHOWING: lambda ids: backend.decode(ids, skip_special_tokens=False)},
            skipping={_SKIPPING: lambda ids: backend.decode(ids, skip_special_tokens=True)},
            encode=_unbounded(backend),
        )
    eos_ids = _eos_ids(tokenizer)
    # Tokens that are named special but not flagged so are shown wherever they stand: they are text. An EOS may not be,
    # since it ends a row that has nothing left; `_prove_special` refuses it.
    named = _special_ids(tokenizer) - (set(added) - flagged - set(eos_ids))
    showing = {"backend_tokenizer.decode": lambda ids: backend.decode(ids, skip_special_tokens=False)}
    return Reading(
        tokens,
        special=flagged | named,
        showing={**showing, _SHOWING: _showing(tokenizer)},
        skipping={_SKIPPING: _skipping(tokenizer)},
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        eos_ids=eos_ids,
    )


def _read_tiktoken(encoding: Any) -> Reading:
    names = set(encoding.special_tokens_set)
    tokens: list[bytes | None] = []
    for token_id in range(encoding.n_vocab):
        try:
            tokens.append(encoding.decode_single_token_bytes(token_id))
        except KeyError:
            tokens.append(None)
    return Reading(
        tokens,
        special={encoding.encode_single_token(name) for name in names},
        showing={"decode": encoding.decode},
        encode=encoding.encode_ordinary,
        eos_ids=(encoding.eot_token,) if "<|endoftext|>" in names else (),
    )


def _tekkenizer(tokenizer: Any) -> Any:
    """The `Tekkenizer` that a tokenizer is or, in mistral-common, transformers and vLLM, wraps; None: there is none."""
    for _ in range(4):
        if hasattr(tokenizer, "id_to_byte_piece") and hasattr(tokenizer, "n_words"):
            return tokenizer
        tokenizer = getattr(tokenizer, "instruct_tokenizer", None) or getattr(tokenizer, "tokenizer", None)
    return None


def _read_tekken(tokenizer: Any, tekken: Any) -> Reading:
    special = {i for i in range(tekken.n_words) if tekken.is_special(i)}
    if hasattr(tokenizer, "all_special_ids"):  # a wrapper with the methods of transformers
        showing, skipping = {_SHOWING: _showing(tokenizer)}, {_SKIPPING: _skipping(tokenizer)}
        text = "lang:eneval("
        if (shown := skipping[_SKIPPING](tekken.encode(text, bos=False, eos=False))) != text:
            warnings.warn(
                f"{type(tokenizer).__name__}.decode(..., skip_special_tokens=True) shows a text that begins with "
                f"{text!r} as {shown!r}, so that a prohibited word could begin there unseen: decode with its "
                "Tekkenizer, tokenizer.tokenizer, or together with the prompt",
                stacklevel=4,
            )
    else:
        showing = {"decode(..., 'keep')": lambda ids: tokenizer.decode(ids, "keep")}
        skipping = {"decode(..., 'ignore')": lambda ids: tokenizer.decode(ids, "ignore")}
    return Reading(
        tokens=[
            tekken.id_to_piece(i).encode() if i in special else tekken.id_to_byte_piece(i)
            for i in range(tekken.n_words)
        ],
        special=special,
        showing=showing,
        skipping=skipping,
        encode=lambda text: tekken.encode(text, bos=False, eos=False),
        eos_ids=(tekken.eos_id,),
    )


def _read_sentencepiece(pieces: Any) -> Reading:
    """Control tokens are never shown. The unknown token always is, as the model says: " \u2047 " unless trained so."""
    tokens: list[bytes | None] = [
        _piece_bytes(pieces, i, pieces.id_to_piece(i)) for i in range(pieces.get_piece_size())
    ]
    special = {i for i in range(len(tokens)) if pieces.is_control(i)}
    unknown = frozenset(i for i in range(len(tokens)) if pieces.is_unknown(i))
    for token_id in special:
        tokens[token_id] = b""
    for token_id in unknown:
        tokens[token_id] = _seen(pieces.decode, tokens, special | unknown, token_id)
    return Reading(
        tokens,
        special,
        showing={"decode": pieces.decode},
        encode=pieces.encode,
        unknown=unknown,
        eos_ids=(pieces.eos_id(),) if pieces.eos_id() >= 0 else (),
    )


def _read_slow_sentencepiece(tokenizer: Any) -> Reading:
    """A transformers tokenizer over `sp_model`; its ids need not be those of the model (fairseq's are shifted).

    What special tokens show is up to its class: nothing, their names, or what the model shows for them.
    """
    added = tokenizer.added_tokens_decoder
    pieces = tokenizer.sp_model
    tokens: list[bytes | None] = []
    for token_id in range(max(tokenizer.vocab_size, *(i + 1 for i in added), 0)):
        try:
            piece = tokenizer.convert_ids_to_tokens(token_id)
            tokens.append(_piece_bytes(pieces, pieces.piece_to_id(piece), piece))
        except IndexError:  # a hole between the model's pieces and the added tokens
            tokens.append(None)
    special = _special_ids(tokenizer)
    for token_id in special:
        tokens[token_id] = _seen(_showing(tokenizer), tokens, special, token_id)
    return Reading(
        tokens,
        special,
        showing={_SHOWING: _showing(tokenizer)},
        skipping={_SKIPPING: _skipping(tokenizer)},
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        eos_ids=_eos_ids(tokenizer),
    )


def _seen(decode: Decode, tokens: Sequence[bytes | None], special: Iterable[int], token_id: int) -> bytes:
    """What a decoder shows for a token between two words; `prove` tells whether it does so elsewhere."""
    text = text_of(Reading(tokens, set(special), {}))
    edge = edge_of(text)
    word = text[edge].decode()
    return tried("decodes", decode)([edge, token_id, edge]).removeprefix(word).removesuffix(word).encode()


_SHOWING, _SKIPPING = (f"decode(..., skip_special_tokens={skip})" for skip in (False, True))


def _showing(tokenizer: Any) -> Decode:
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def _skipping(tokenizer: Any) -> Decode:
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)


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


def _piece_bytes(pieces: Any, piece_id: int, piece: str) -> bytes:
    """The bytes of a piece. `<0x28>` may be a symbol of six characters: the model knows, its spelling does not tell."""
    return bytes([int(piece[3:5], 16)]) if pieces.is_byte(piece_id) else piece.replace("\u2581", " ").encode()


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
            f"bytes of its tokens cannot be derived; {REMEDY}"
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

    ByteFallback goes by a token's spelling alone: `<0x28>` is the byte 28 even if the model has no byte fallback.

    ByteFallback writes U+FFFD for every byte of a run of byte tokens that is not valid UTF-8 as a whole. The `a` of
    `<0xFF><0x61>` is not on the screen, where an `eval(` after it begins a word, but it is among the bytes, where that
    does not. Encoders write a letter as a byte token only if it has no token of its own, and then `_prove_round_trip`
    refuses the tokenizer.
    """
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
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
        if byte_level:
            return byte_level_bytes(token)
        if bytes_spelled and (spelled := _BYTE_TOKEN.fullmatch(token)):
            byte = int(spelled[1], 16)
            return None if CLASSES[byte] == WORD else bytes([byte])
        return token.encode()

    return to_bytes
