"""The proof that bytes are those of a tokenizer's tokens: every token, in context, shown by its own decoders.

`prove` shows every token to the functions that users call for its text, and sends a text through the encoder and back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from prod_decode.errors import ProdError

Decode = Callable[[list[int]], str]
_A = TypeVar("_A")
_R = TypeVar("_R")
REMEDY = "pass a prod_decode.tokens.vocabulary.Vocabulary.from_bytes(...) if you know the bytes of its tokens"
_GROUP = 128
# What encoders lose: case, tabs, runs of spaces and newlines, spaces before punctuation and contractions, both ends.
_CODE = (
    "def load(path):\n    with open(path, 'rb') as f:\n\treturn yaml.load(f.read())  # it 's , they 've . don 't\n\n\n"
    "class A_1(object):\r\n        x = {'k': [1, 23, 456], \"q\": 0xFF}; y != ~x ^ 7 % 2 @ `z` | $w & \\v < t + s\n"
    "  abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 ! - ? * > / \n"
)
_PROBES = (_CODE, "  " + _CODE, "caf\u00e9", "\u4f60\u597d", "\U0001f600")


@dataclass(frozen=True, slots=True)
class Reading:
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
    showing: dict[str, Decode]
    skipping: dict[str, Decode] = field(default_factory=dict)
    encode: Callable[[str], list[int]] | None = None
    unknown: frozenset[int] = frozenset()
    eos_ids: tuple[int, ...] = ()


# How vocabulary files write tokens, and what makes bytes of that. In a real vocabulary more tokens begin with a space
# than with U+0120 and a letter (Maltese has such words). Llama has 256 names of bytes, whatever its other tokens are.
_SPELLED = (
    (re.compile(rb"\xc4\xa0[A-Za-z]"), None, "GPT-2's characters for bytes", "byte_level_bytes(token)"),
    (re.compile(rb"\xe2\x96\x81[A-Za-z]"), None, "U+2581 for spaces", "token.replace('\\u2581', ' ').encode()"),
    (re.compile(rb"<0x[0-9A-F]{2}>\Z"), 128, "names of bytes", "bytes([int(token[3:5], 16)])"),
    (
        re.compile(rb"##[A-Za-z]"),
        None,
        "## where a word goes on",
        "(token[2:] if token.startswith('##') else ' ' + token).encode()",
    ),
    (re.compile(rb"(?s:.*)[A-Za-z]</w>\Z"), None, "</w> where a word ends", "token.replace('</w>', ' ').encode()"),
)


def check_bytes(tokens: Sequence[bytes | None], special: set[int], decode: Decode | None) -> None:
    """What `Vocabulary.from_bytes` asks of the bytes that it is given: no spellings, or all proved with `decode`.

    Raises:
        ProdError: the bytes are those of another notation, or `decode` shows other text.
    """
    if decode is not None:
        reading = Reading(tokens, special, showing={"decode": decode})
        prove(Reading(tokens, special, {}, {"decode": decode}) if _skips(reading, decode) else reading)
        return
    text = text_of(Reading(tokens, special, {})).values()
    spaces = sum(token.startswith(b" ") for token in text)
    for pattern, most, notation, recipe in _SPELLED:
        if sum(pattern.match(token) is not None for token in text) > (spaces if most is None else most):
            raise ProdError(
                f"expected the bytes of each token, got tokens with {notation}, which guard nothing: take {recipe} "
                f"(prod_decode.tokens.tokenizer_bytes has byte_level_bytes), or pass decode= to have them proved"
            )


def _skips(reading: Reading, decode: Decode) -> bool:
    """Whether a decoder of which nothing else is known leaves special tokens out: the first that has bytes decides."""
    shown = next((i for i in sorted(reading.special) if reading.tokens[i]), None)
    text = text_of(reading)
    edge = edge_of(text)
    return shown is not None and tried("decodes", decode)([edge, shown, edge]) == 2 * text[edge].decode()


def tried(what: str, call: Callable[[_A], _R]) -> Callable[[_A], _R]:
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
                f"or byte fallback, or {REMEDY}"
            ) from None

    return tried


def text_of(reading: Reading) -> dict[int, bytes]:
    """The bytes of the tokens that are text, by id."""
    return {i: token for i, token in enumerate(reading.tokens) if token is not None and i not in reading.special}


def edge_of(text: dict[int, bytes]) -> int:
    """A token that is a word, beside which others can be proved: decoders may strip spaces from the ends of a text."""
    edge = next((i for i, token in text.items() if token.isalnum()), None)
    if edge is None:
        raise ProdError(
            "expected a tokenizer with a token that is a word without a space, beside which the others can be proved, "
            f"got none; {REMEDY}"
        )
    return edge


def prove(reading: Reading) -> None:
    """Compare every token, in context, with every decoder, and texts with their encoding.

    Raises:
        ProdError: they differ, or a token cannot be put to the proof.
    """
    text = text_of(reading)
    edge = edge_of(text)
    whole = [i for i, token in text.items() if _is_utf8(token)]
    partial = sorted(text.keys() - set(whole))
    groups = [whole[i : i + _GROUP] for i in range(0, len(whole), _GROUP)]
    groups += [[i for at in partial[j : j + _GROUP] for i in (at, edge)] for j in range(0, len(partial), _GROUP)]
    groups += _characters_from(text, partial)
    decoders = {name: tried("decodes", decode) for name, decode in {**reading.showing, **reading.skipping}.items()}
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
        _prove_round_trip(reading, text, edge, tried("encodes", reading.encode), decoders)


def _prove_groups(text: dict[int, bytes], edge: int, groups: Iterable[list[int]], name: str, decode: Decode) -> None:
    for group in groups:
        if _differ(text, edge, group, decode):
            culprits = [[i] for i in group if _differ(text, edge, [i], decode)]
            ids = culprits[0] if culprits else group
            what = f"turns the token ids {str(ids)[:80]} into other text than their bytes ({name})"
            raise _disagreement(what, *(_differ(text, edge, ids, decode) or ("", "")))


def _differ(text: dict[int, bytes], edge: int, ids: list[int], decode: Decode) -> tuple[str, str] | None:
    """The text of some tokens, between words, by their bytes and by their decoder, if these differ."""
    ids = [edge, *ids, edge]
    ours = _joined(text, ids)
    theirs = decode(ids)
    return None if ours == theirs else (ours, theirs)


def _joined(text: dict[int, bytes], ids: Iterable[int]) -> str:
    return b"".join(map(text.__getitem__, ids)).decode(errors="replace")


def _prove_ends(text: dict[int, bytes], ids: list[int], edge: int, name: str, decode: Decode) -> None:
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


def _prove_skipped(text: dict[int, bytes], edge: int, groups: Iterable[list[int]], name: str, decode: Decode) -> None:
    for group in groups:
        if differ := _differ(text, edge, group, decode):
            ours, theirs = _differ(text, edge, group[:1], decode) or differ
            raise ProdError(
                f"expected {name} to leave out the special token id {group[0]}, got {theirs!r} instead of {ours!r}: "
                "its text would escape the matcher; make it special with tokenizer.add_special_tokens(...) or choose "
                "another token"
            )


def _prove_round_trip(
    reading: Reading,
    text: dict[int, bytes],
    edge: int,
    encode: Callable[[str], list[int]],
    decoders: dict[str, Decode],
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
                f"{token_id} ({token!r}), got none: its bytes cannot be proved; {REMEDY}"
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
        f"guarded exactly, so it is refused: {REMEDY}"
    )
