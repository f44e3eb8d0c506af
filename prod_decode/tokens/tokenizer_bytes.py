"""From a tokenizer to the bytes of its tokens, proved against its own decoder.

A reader derives the bytes from the tokens as the decoder of that family does. `_prove` then shows every token, in
context, to the functions that users call for their text, and sends a text through the encoder and back. A tokenizer
that is not understood, or that disagrees anywhere, is refused.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from prod_decode.errors import ProdError
from prod_decode.text.normalize import CLASSES, WORD
from prod_decode.tokens.vocabulary import Vocabulary

_Decode = Callable[[list[int]], str]
_A = TypeVar("_A")
_R = TypeVar("_R")

_REMEDY = "pass a prod_decode.tokens.vocabulary.Vocabulary.from_bytes(...) if you know the bytes of its tokens"
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
        tokens: the bytes of every id, for a special one those that it shows where special tokens are not skipped; None
            where there is no token or its text depends on its neighbours.
        special: ids that add no text where special tokens are skipped. A token that is named special and shown all the
            same is text.
        showing: the functions from ids to text that show special tokens, by the names under which users know them.
        skipping: those that leave special tokens out.
        encode: text to ids, without special tokens; None: not known.
        unknown: ids that are text and stand for all characters that have no token.
        eos_ids: ids that end an output.
    """

    tokens: Sequence[bytes | None]
    special: set[int]
    showing: dict[str, _Decode]
    skipping: dict[str, _Decode] = field(default_factory=dict)
    encode: Callable[[str], list[int]] | None = None
    unknown: frozenset[int] = frozenset()
    eos_ids: tuple[int, ...] = ()


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
    _prove(reading)
    return vocabulary


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level token (GPT-2, Llama 3, Qwen) as `get_vocab` spells it: `\u0120load` is b" load".

    A token with a character that stands for no byte is an added one: it stands for itself.
    """
    try:
        return bytes(map(_byte_of_character().__getitem__, token))
    except KeyError:
        return token.encode()


# How vocabulary files write tokens, and what makes bytes of that. In a real vocabulary more tokens begin with a space
# than with U+0120 and a letter (Maltese has such words). Llama has 256 names of bytes, whatever its other tokens are.
_SPELLED = (
    (re.compile(rb"\xc4\xa0[A-Za-z]"), None, "GPT-2's characters for bytes", "byte_level_bytes(token)"),
    (re.compile(rb"\xe2\x96\x81[A-Za-z]"), None, "U+2581 for spaces", "token.replace('\\u2581', ' ').encode()"),
    (re.compile(rb"<0x[0-9A-F]{2}>\Z"), 128, "names of bytes", "bytes([int(token[3:5], 16)])"),
)


def check_bytes(tokens: Sequence[bytes | None], special: set[int], decode: _Decode | None) -> None:
    """What `Vocabulary.from_bytes` asks of the bytes that it is given: no spellings, or all proved with `decode`.

    Raises:
        ProdError: the bytes are those of another notation, or `decode` shows other text.
    """
    if decode is not None:
        reading = _Reading(tokens, special, showing={"decode": decode})
        _prove(_Reading(tokens, special, {}, {"decode": decode}) if _skips(reading, decode) else reading)
        return
    text = _text_of(_Reading(tokens, special, {})).values()
    spaces = sum(token.startswith(b" ") for token in text)
    for pattern, most, notation, recipe in _SPELLED:
        if sum(pattern.match(token) is not None for token in text) > (spaces if most is None else most):
            raise ProdError(
                f"expected the bytes of each token, got tokens with {notation}, which guard nothing: take {recipe} "
                f"(prod_decode.tokens.tokenizer_bytes has byte_level_bytes), or pass decode= to have them proved"
            )


def _skips(reading: _Reading, decode: _Decode) -> bool:
    """Whether a decoder of which nothing else is known leaves special tokens out: the first that has bytes decides."""
    shown = next((i for i in sorted(reading.special) if reading.tokens[i]), None)
    text = _text_of(reading)
    edge = _edge(text)
    return shown is not None and _tried("decodes", decode)([edge, shown, edge]) == 2 * text[edge].decode()


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
    if (tekken := _tekkenizer(tokenizer)) is not None:
        return _read_tekken(tokenizer, tekken)
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
    encode = _tried("encodes", lambda text: tokenizer.encode(text, add_special_tokens=False))
    return " ," not in _tried("decodes", tokenizer.decode)(encode("a , b"))


def _tried(what: str, call: Callable[[_A], _R]) -> Callable[[_A], _R]:
    """The call with one line for what it raises: WordLevel and Unigram encode nothing that they have no token for."""

    def tried(argument: _A) -> _R:
        try:
            return call(argument)
        except ProdError:
            raise
        except Exception as error:  # noqa: BLE001 - `tokenizers` raises Exception itself
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ProdError(
                f"expected a tokenizer that {what} any text, got one that raises {reason!r}: give it an unknown token "
                f"or byte fallback, or {_REMEDY}"
            ) from None

    return tried


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
            showing={_SHOWING: lambda ids: backend.decode(ids, skip_special_tokens=False)},
            skipping={_SKIPPING: lambda ids: backend.decode(ids, skip_special_tokens=True)},
            encode=_unbounded(backend),
        )
    eos_ids = _eos_ids(tokenizer)
    # Tokens that are named special but not flagged so are shown wherever they stand: they are text. An EOS may not be,
    # since it ends a row that has nothing left; `_prove_special` refuses it.
    named = _special_ids(tokenizer) - (set(added) - flagged - set(eos_ids))
    showing = {"backend_tokenizer.decode": lambda ids: backend.decode(ids, skip_special_tokens=False)}
    return _Reading(
        tokens,
        special=flagged | named,
        showing={**showing, _SHOWING: _showing(tokenizer)},
        skipping={_SKIPPING: _skipping(tokenizer)},
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        eos_ids=eos_ids,
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


def _read_tekken(tokenizer: Any, tekken: Any) -> _Reading:
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
    return _Reading(
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


def _read_sentencepiece(pieces: Any) -> _Reading:
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
    return _Reading(
        tokens,
        special,
        showing={"decode": pieces.decode},
        encode=pieces.encode,
        unknown=unknown,
        eos_ids=(pieces.eos_id(),) if pieces.eos_id() >= 0 else (),
    )


def _read_slow_sentencepiece(tokenizer: Any) -> _Reading:
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
    return _Reading(
        tokens,
        special,
        showing={_SHOWING: _showing(tokenizer)},
        skipping={_SKIPPING: _skipping(tokenizer)},
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        eos_ids=_eos_ids(tokenizer),
    )


def _seen(decode: _Decode, tokens: Sequence[bytes | None], special: Iterable[int], token_id: int) -> bytes:
    """What a decoder shows for a token between two words; `_prove` tells whether it does so elsewhere."""
    text = _text_of(_Reading(tokens, set(special), {}))
    edge = _edge(text)
    word = text[edge].decode()
    return _tried("decodes", decode)([edge, token_id, edge]).removeprefix(word).removesuffix(word).encode()


_SHOWING, _SKIPPING = (f"decode(..., skip_special_tokens={skip})" for skip in (False, True))


def _showing(tokenizer: Any) -> _Decode:
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def _skipping(tokenizer: Any) -> _Decode:
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


def _text_of(reading: _Reading) -> dict[int, bytes]:
    return {i: token for i, token in enumerate(reading.tokens) if token is not None and i not in reading.special}


def _edge(text: dict[int, bytes]) -> int:
    """A token that is a word, beside which others can be proved: decoders may strip spaces from the ends of a text."""
    edge = next((i for i, token in text.items() if token.isalnum()), None)
    if edge is None:
        raise ProdError(
            "expected a tokenizer with a token that is a word without a space, beside which the others can be proved, "
            f"got none; {_REMEDY}"
        )
    return edge


def _prove(reading: _Reading) -> None:
    """Compare every token, in context, with every decoder, and texts with their encoding.

    Raises:
        ProdError: they differ, or a token cannot be put to the proof.
    """
    text = _text_of(reading)
    edge = _edge(text)
    whole = [i for i, token in text.items() if _is_utf8(token)]
    partial = sorted(text.keys() - set(whole))
    groups = [whole[i : i + _GROUP] for i in range(0, len(whole), _GROUP)]
    groups += [[i for at in partial[j : j + _GROUP] for i in (at, edge)] for j in range(0, len(partial), _GROUP)]
    groups += _characters_from(text, partial)
    decoders = {name: _tried("decodes", decode) for name, decode in {**reading.showing, **reading.skipping}.items()}
    for name, decode in decoders.items():
        _prove_groups(text, edge, groups, name, decode)
        _prove_ends(text, whole, edge, name, decode)
    shown = {i: reading.tokens[i] or b"" for i in sorted(reading.special)}
    among = _among(shown, text, whole)
    for name in reading.showing:
        _prove_groups(text | shown, edge, among, name, decoders[name])
        _prove_ends(text | shown, list(shown), edge, name, decoders[name])
    for name in reading.skipping:
        _prove_skipped(text | dict.fromkeys(shown, b""), edge, among, name, decoders[name])
    if reading.encode is not None:
        _prove_round_trip(reading, text, edge, _tried("encodes", reading.encode), decoders)


def _prove_groups(text: dict[int, bytes], edge: int, groups: Iterable[list[int]], name: str, decode: _Decode) -> None:
    for group in groups:
        if _differ(text, edge, group, decode):
            culprits = [[i] for i in group if _differ(text, edge, [i], decode)]
            ids = culprits[0] if culprits else group
            what = f"turns the token ids {str(ids)[:80]} into other text than their bytes ({name})"
            raise _disagreement(what, *(_differ(text, edge, ids, decode) or ("", "")))


def _differ(text: dict[int, bytes], edge: int, ids: list[int], decode: _Decode) -> tuple[str, str] | None:
    """The text of some tokens, between words, by their bytes and by their decoder, if these differ."""
    ids = [edge, *ids, edge]
    ours = _joined(text, ids)
    theirs = decode(ids)
    return None if ours == theirs else (ours, theirs)


def _joined(text: dict[int, bytes], ids: Iterable[int]) -> str:
    return b"".join(map(text.__getitem__, ids)).decode(errors="replace")


def _prove_ends(text: dict[int, bytes], ids: list[int], edge: int, name: str, decode: _Decode) -> None:
    """Compare, as the first and as the last of a text, every token with spaces that do not stand at its beginning.

    Decoders may strip spaces from the ends of a text and from nowhere else. Metaspace drops every U+2581 of a first
    token: `a\u2581b` shows what `ab` shows, and `return\u2581` before `x` is one word with it.
    """
    for token_id in ids:
        if b" " in text[token_id].lstrip(b" "):
            first, last = [token_id, edge], [edge, token_id]
            ours, theirs = _joined(text, first), decode(first)
            if ours.lstrip() != theirs.lstrip():
                raise _disagreement(f"drops spaces inside the token id {token_id} at the start ({name})", ours, theirs)
            ours, theirs = _joined(text, last), decode(last)
            if ours.rstrip() != theirs.rstrip():
                raise _disagreement(f"drops spaces inside the token id {token_id} at the end ({name})", ours, theirs)


def _among(special: Iterable[int], text: dict[int, bytes], whole: list[int]) -> list[list[int]]:
    """For each special token a group in which it stands beside itself and beside all that decoders may strip there.

    Slow tokenizers decode what is between special tokens piece by piece, and a piece may lose spaces at its ends.
    """
    kinds: tuple[Callable[[bytes], bool], ...] = (
        lambda token: token.startswith(b" ") and token.strip() != b"",
        lambda token: token.endswith(b" ") and token.strip() != b"",
        lambda token: token == b" ",
        lambda token: token.startswith(b"\n"),
        lambda token: token.strip() != b"" and not token.strip().isalnum(),
    )
    beside = [i for kind in kinds for i in [next((i for i in whole if kind(text[i])), None)] if i is not None]
    return [[i, i, *(each for at in beside for each in (at, i))] for i in special]


def _prove_skipped(text: dict[int, bytes], edge: int, groups: Iterable[list[int]], name: str, decode: _Decode) -> None:
    for group in groups:
        if differ := _differ(text, edge, group, decode):
            ours, theirs = _differ(text, edge, group[:1], decode) or differ
            raise ProdError(
                f"expected {name} to leave out the special token id {group[0]}, got {theirs!r} instead of {ours!r}: "
                "its text would escape the matcher; make it special with tokenizer.add_special_tokens(...) or choose "
                "another token"
            )


def _prove_round_trip(
    reading: _Reading,
    text: dict[int, bytes],
    edge: int,
    encode: Callable[[str], list[int]],
    decoders: dict[str, _Decode],
) -> None:
    for probe in _PROBES:
        ids = encode(probe)
        unknown = {i for i in ids if i not in text or i in reading.unknown}
        if unknown and not probe.isascii() and unknown <= reading.special | reading.unknown:
            continue  # no token for such a character: the model neither sees nor writes it
        decoded = _joined(text, (i for i in ids if i not in unknown))
        expected = " " + probe if decoded.startswith(" " + probe[:4]) else probe  # SentencePiece puts a space before it
        if unknown:
            what = f"encodes ordinary text to special or unknown token ids {sorted(unknown)}"
            raise _disagreement(what, expected, decoded)
        if decoded != expected:
            raise _disagreement("does not round-trip", expected, decoded)
        for name, decode in decoders.items():
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
