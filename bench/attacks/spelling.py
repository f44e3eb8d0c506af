"""Other token sequences for the same text: a mask that knows text by its usual tokens misses these."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from bench.attacks.base import Attack
from prod_decode.errors import ProdError
from prod_decode.tokens.tokenizer_bytes import vocabulary_of


def tokenisations(text: str, tokenizer: Any, *, count: int = 4, seed: int = 0) -> list[list[int]]:
    """Other token sequences that spell the same text: in pieces as small as the vocabulary allows, and at random.

    Args:
        text: what they decode to.
        tokenizer: see `tokenizer_bytes.vocabulary_of`.
        count: at most so many, all different and none the usual one; fewer where there are no others.
        seed: of the random ones.

    Raises:
        ProdError: the tokenizer's bytes are not known, or no token sequence spells the text.
    """
    vocabulary = vocabulary_of(tokenizer)
    ids: dict[bytes, int] = {}
    for token in range(len(vocabulary)):
        if spelled := vocabulary.token_bytes(token):
            ids.setdefault(spelled, token)
    data = text.encode("utf-8")
    longest = min(max(map(len, ids), default=0), 32)
    steps: list[list[int]] = [[] for _ in data] + [[0]]
    for at in range(len(data) - 1, -1, -1):
        steps[at] = [
            n for n in range(1, min(longest, len(data) - at) + 1) if data[at : at + n] in ids and steps[at + n]
        ]
    if not steps[0]:
        raise ProdError(f"no sequence of tokens spells {text[:40]!r}: the vocabulary lacks one of its bytes")

    def walk(choose: Callable[[Sequence[int]], int]) -> list[int]:
        at, sequence = 0, []
        while at < len(data):
            n = choose(steps[at])
            sequence.append(ids[data[at : at + n]])
            at += n
        return sequence

    usual = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    chooser = random.Random(f"{seed}\0{text}")
    choices: list[Callable[[Sequence[int]], int]] = [lambda s: s[0], lambda s: s[len(s) // 2], lambda s: s[-1]]
    choices += [chooser.choice] * (4 * count)
    found: list[list[int]] = []
    for choose in choices:
        sequence = walk(choose)
        if (
            len(found) < count
            and sequence != usual
            and sequence not in found
            and tokenizer.decode(sequence, clean_up_tokenization_spaces=False) == text
        ):
            found.append(sequence)
    return found


def respelled(text: str, tokenizer: Any, *, seed: int = 0) -> list[int]:
    """The text as other tokens than the usual ones; the usual ones where there are no others. Special tokens stay."""
    whole = list(tokenizer(text)["input_ids"])
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    found = tokenisations(text, tokenizer, count=1, seed=seed)
    return [*whole[: len(whole) - len(plain)], *found[0]] if found and whole[-len(plain) :] == plain else whole


class Tokenised(Attack):
    """The prompt in other tokens than its usual ones."""

    name = "tokenised"
    rank = 31

    def token_ids(self, prompt: str, tokenizer: Any, *, seed: int) -> list[int]:
        """See `Attack.token_ids`."""
        return respelled(prompt, tokenizer, seed=seed)
