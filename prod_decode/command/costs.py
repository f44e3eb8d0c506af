"""What it costs a model to prohibit a token: how much of its distribution has to move elsewhere.

Without a token of probability p, the rest renormalised, a distribution is at KL(masked || original) = -log(1 - p) nats
from what it was. So where the model has good alternatives a prohibition costs next to nothing, and where it has none it
costs a great deal; `prod_decode.blocklist.anchors` puts the anchors of a document where they are cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from prod_decode.errors import ProdError

if TYPE_CHECKING:
    from prod_decode.tokens.vocabulary import Vocabulary

# A token costs at least and at most that, in nats: sums of costs must be positive and finite.
LEAST, MOST = 1e-6, 20.0


def token_costs(log_probs: NDArray[Any]) -> NDArray[np.float64]:
    """-log(1 - p) of tokens with these natural logarithms of p, [n], within `LEAST` and `MOST`: float64 [n]."""
    rest = -np.expm1(np.minimum(np.asarray(log_probs, np.float64), 0.0))
    with np.errstate(divide="ignore"):
        return np.clip(-np.log(rest), LEAST, MOST)


def character_costs(tokens: Sequence[bytes], costs: Sequence[float] | NDArray[Any]) -> tuple[str, tuple[float, ...]]:
    """The text of tokens, and for every character of it the cost of the token in which its last byte lies.

    Args:
        tokens: the bytes of each.
        costs: of prohibiting each, as long.

    Returns:
        The text without characters that are cut at its edges, and as many costs.

    Raises:
        ProdError: bytes inside are no UTF-8.
    """
    data = b"".join(tokens)
    each = np.repeat(np.asarray(costs, np.float64), [len(token) for token in tokens])
    start = 0
    while start < min(3, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    try:
        text = data[start:].decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            raise ProdError(f"expected tokens that spell UTF-8, got {error}") from None
        text = data[start : start + error.start].decode()
    lengths = [len(character.encode()) for character in text]
    ends = start + np.cumsum(lengths, dtype=np.int64) - 1
    return text, tuple(each[ends].tolist())


class ModelCosts:
    """From a document to the cost of prohibiting what ends with each of its characters."""

    def __init__(self, model: Any, tokenizer: Any, vocabulary: Vocabulary, *, window: int = 512) -> None:
        """Ask a model.

        Args:
            model: a transformers causal language model.
            tokenizer: its tokenizer.
            vocabulary: the bytes of its tokens; see `tokenizer_bytes.vocabulary_of`.
            window: tokens of a forward pass; a longer document is read in windows that overlap by half.
        """
        self._model, self._tokenizer, self._vocabulary, self._window = model, tokenizer, vocabulary, window

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights and the window."""
        import torch

        total = xxhash.xxh3_128(str(self._window).encode())
        for name, weights in self._model.state_dict().items():
            total.update(name.encode())
            total.update(weights.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return total.hexdigest()

    def __call__(self, text: str) -> tuple[float, ...]:
        """Each character's cost.

        Raises:
            ProdError: the tokenizer changes the text.
        """
        ids = list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        if not ids:
            return ()
        tokens = [self._vocabulary.token_bytes(i) for i in ids]
        spelled, costs = character_costs(tokens, token_costs(self._log_probs(ids)))
        at = spelled.find(text)  # some tokenizers put a space first
        if at < 0:
            raise ProdError(
                f"expected a tokenizer that spells a document as it is, got {spelled[:40]!r} for {text[:40]!r}: "
                "compile it without costs"
            )
        return costs[at : at + len(text)]

    def _log_probs(self, ids: list[int]) -> NDArray[np.float64]:
        import torch

        found = np.zeros(len(ids))  # nothing predicts the first: it costs the most, no place for an anchor to end
        done = 1
        while done < len(ids):
            start = max(0, done - self._window // 2)
            part = torch.tensor([ids[start : start + self._window]], device=self._model.device)
            with torch.no_grad():
                z = self._model(input_ids=part, use_cache=False).logits[0, done - start - 1 : -1].float()
            labels = part[0, done - start :]
            found[done : done + len(labels)] = z.log_softmax(-1)[torch.arange(len(labels)), labels].cpu().numpy()
            done += len(labels)
        return found
