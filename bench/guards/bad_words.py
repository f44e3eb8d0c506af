"""What transformers has for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.guards.base import Guard
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError

# Lines shorter than that are everybody's: `return None`.
LINE_CHARACTERS = 20


class BadWords(Guard):
    """The `bad_words_ids` of transformers: token sequences, each phrase as it is and after a space.

    A document has no phrase; its lines of `LINE_CHARACTERS` or more stand for it.
    """

    name = "bad-words"
    rank = 10

    def processors(self, entries: Sequence[Entry], tokenizer: Any) -> tuple[list[Any], None]:
        """See `Guard.processors`."""
        import torch
        from transformers import NoBadWordsLogitsProcessor

        texts = [part for entry in entries for part in _parts(entry)]
        spellings = dict.fromkeys(spelling for text in texts for spelling in (text, f" {text}"))
        sequences = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in spellings]
        if not sequences:
            raise ProdError("bad-words: expected a phrase, or a document with a line of 20 characters, got none")
        return [NoBadWordsLogitsProcessor(sequences, eos_token_id=torch.tensor([tokenizer.eos_token_id]))], None


def _parts(entry: Entry) -> list[str]:
    if entry.policy != "quote":
        return [entry.text]
    return [line.strip() for line in entry.text.splitlines() if len(line.strip()) >= LINE_CHARACTERS]
