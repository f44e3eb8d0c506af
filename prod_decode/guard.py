"""One row of logits after one text: what the adapters for engines without batches have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.errors import ProdError
from prod_decode.masking import check_width, mask_padding_, mask_prohibited_
from prod_decode.matcher import Matcher


class Guard:
    """Masks one row of logits after one text, given whole: nothing is remembered, so nothing can be out of date.

    A text whose last tokens are not known ends with EOS, and so does one whose every token is banned.
    """

    def __init__(self, matchers: Sequence[Matcher]) -> None:
        """Check that there is something to enforce.

        Args:
            matchers: one for each blocklist, bound to one vocabulary that has an EOS token.

        Raises:
            ProdError: none, different vocabularies, or no EOS token.
        """
        if not matchers:
            raise ProdError("expected at least one matcher, got none: pass blocklist.bind(tokenizer)")
        vocabulary = matchers[0].vocabulary
        if any(matcher.vocabulary is not vocabulary for matcher in matchers):
            raise ProdError("expected matchers of one vocabulary, got several: bind every blocklist to one Vocabulary")
        if not vocabulary.eos_ids:
            raise ProdError("expected an EOS token to end rows whose every token is banned, got none in the tokenizer")
        self.matchers = list(matchers)
        self._known = len(vocabulary)
        self._ends = list(vocabulary.eos_ids)

    def mask_(self, row: Tensor, token_ids: Sequence[int] | NDArray[np.integer[Any]]) -> Tensor:
        """Mask `row`, floats [V] on any device, in place, after the text `token_ids`, prompt included.

        Raises:
            ProdError: the row is not of the vocabulary's size, but for padding.
        """
        text = np.asarray(token_ids, np.int64)
        width = row.shape[0]
        remedy = "bind the blocklist to the model's own tokenizer"
        check_width(width, self._known, "the tokenizer", remedy, eos_ids=self._ends)
        try:
            banned = np.concatenate([matcher.banned(matcher.state_of(text)) for matcher in self.matchers])
        except ProdError:
            banned = np.arange(width, dtype=np.int32)
        banned = banned[banned < width]
        mask_padding_(row, self._known)
        return mask_prohibited_(
            row, np.zeros(len(banned), np.int64), banned, fallback=[token for token in self._ends if token < width]
        )
