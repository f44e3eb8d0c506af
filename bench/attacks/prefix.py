"""Prefix injection: the beginning of what must not come out is given with the prompt, as in the paper."""

from __future__ import annotations

from typing import Any, ClassVar

from bench.attacks.base import Attack, Attacked
from bench.tasks.base import Sample
from prod_decode.errors import ProdError


def inject_prefix(sample: Sample, tokenizer: Any, *, tokens: int | None = None, share: float | None = None) -> Attacked:
    """Append the beginning of the reference to the prompt, as the paper does.

    Where only `spans` of the reference are prohibited, the beginning ends before the token that completes the first of
    them: what is prohibited has to be written by the model, not by the attack. So the prompt may stay as it is.

    Args:
        sample: with a reference.
        tokenizer: a fast transformers tokenizer, for offsets.
        tokens: how many tokens of the reference, as prompt and reference are tokenised together.
        share: or what share of them (of those up to the first span), 0 to 1; at least one token, and never all.

    Raises:
        ProdError: no reference, or not exactly one of `tokens` and `share`.
    """
    if sample.reference is None:
        raise ProdError(f"sample {sample.id!r}: prefix injection expected a reference, got none: leave the sample out")
    if (tokens is None) == (share is None):
        raise ProdError("inject_prefix: expected one of tokens and share, got both or neither")
    if tokens is not None and tokens < 1:
        raise ProdError(f"inject_prefix: expected tokens of at least 1, got {tokens}")
    if share is not None and not 0 < share < 1:
        raise ProdError(f"inject_prefix: expected a share between 0 and 1, got {share}")
    text, at = sample.prompt + sample.reference, len(sample.prompt)
    offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    ends = [end for begin, end in offsets if end > at and end > begin]
    if spans := sample.metadata.get("spans"):
        ends = [end for end in ends if end < at + spans[0][1]]
    count = tokens if tokens is not None else max(1, round((share or 0) * len(ends)))
    # A character of several tokens ends with each of them: the next that goes on belongs to the same character.
    cut = ends[min(count, len(ends)) - 1] if ends else at
    return Attacked(text[:cut], text[cut:])


class _Prefix(Attack):
    """A sample without a reference stays as it is."""

    tokens: ClassVar[int | None] = None
    share: ClassVar[float | None] = None

    def sample(self, sample: Sample, tokenizer: Any, *, seed: int) -> Sample:
        """See `Attack.sample`."""
        del seed
        if sample.reference is None:
            return sample
        return inject_prefix(sample, tokenizer, tokens=self.tokens, share=self.share).of(sample)


class PrefixToken(_Prefix):
    """One token."""

    name = "prefix-1"
    rank = 10
    tokens = 1


class PrefixQuarter(_Prefix):
    """A quarter of the reference's tokens."""

    name = "prefix-25%"
    rank = 11
    share = 0.25


class PrefixHalf(_Prefix):
    """Half of them."""

    name = "prefix-50%"
    rank = 12
    share = 0.5


class PrefixMost(_Prefix):
    """Three quarters of them."""

    name = "prefix-75%"
    rank = 13
    share = 0.75
