"""What a text is worth under a mask, by trying every token of the vocabulary, in float64."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from prod_decode import Blocklist, Entry
from prod_decode.match.automaton import Pattern
from tests import oracle

# Parts of each other, and of the tokens of the tiny model.
PARTS = ["re", "tu", "return", "rn", "de", "f", "def", " ", "    ", "\n", "(", ".", "x", "_"]
texts = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join)


@dataclass(frozen=True)
class Phrase:
    text: str
    whole_words: bool

    @property
    def symbols(self) -> bytes:
        return oracle.normalize(self.text.encode(), "code", False)


@st.composite
def phrases(draw: st.DrawFn) -> list[Phrase]:
    """Some, none of them in another: a blocklist need not keep one that is, and it counts where a prompt has both.

    None begins or ends with a blank, which says that a word begins or ends there.
    """
    found: list[Phrase] = []
    for text in draw(st.lists(texts.map(str.strip).filter(bool), min_size=1, max_size=4)):
        new = Phrase(text, draw(st.booleans()))
        if not any(new.symbols in old.symbols or old.symbols in new.symbols for old in found):
            found.append(new)
    return found


def compiled(chosen: Sequence[Phrase]) -> Blocklist:
    entries = [Entry(one.text, id=one.text, boundary="both" if one.whole_words else "none") for one in chosen]
    return Blocklist.compile(entries, allow_short=True)


@lru_cache(maxsize=1)
def byte_of_character() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    spelled = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    return [
        token.encode() if i in special else bytes(byte_of_character()[character] for character in token)
        for i, token in enumerate(spelled)
    ]


class Naive:
    """Scores by hand; `logits_of` gives a model's logits [T, V] after each of some ids."""

    def __init__(self, tokenizer: Any, chosen: Sequence[Phrase]) -> None:
        patterns = []
        for one in chosen:
            word = re.compile(rb"\w", re.ASCII)
            begins, ends = (one.whole_words and bool(word.match(one.symbols[at:][:1])) for at in (0, -1))
            patterns.append(Pattern(begins, one.symbols, ends))
        self.tokens = token_bytes(tokenizer)
        self.matcher = oracle.NaiveMatcher(self.tokens, set(tokenizer.all_special_ids), patterns, "code", False)

    def log_probs(self, text: list[int], prompt: int, logits: Tensor) -> Tensor:
        """Of the next token, float64 [V]."""
        scores = logits.double().clone()
        scores[len(self.tokens) :] = -torch.inf
        scores[sorted(self.matcher.banned_in_any(text, prompt, mixed=True))] = -torch.inf
        return scores.log_softmax(-1)

    def score(self, text: list[int], prompt: int, continuation: list[int], logits: Tensor) -> tuple[float, bool]:
        """The log-likelihood of a continuation, whose logits are [n, V], and whether it is the likeliest."""
        total, greedy = 0.0, True
        for i, token in enumerate(continuation):
            found = self.log_probs([*text, *continuation[:i]], prompt, logits[i])
            total += float(found[token])
            greedy &= int(found.argmax()) == token
        return total, greedy
