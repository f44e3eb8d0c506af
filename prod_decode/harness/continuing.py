"""What a model writes after prompts, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inside, a torch model is in evaluation mode, without dropout; after it as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def continuations(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[NDArray[np.int64]],
    max_new_tokens: int,
    processors: Sequence[Any] = (),
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stops: Sequence[str] = (),
) -> list[list[int]]:
    """What a model writes after each prompt; from the first special token on left out.

    Args:
        model: a transformers model, or an adapter around one; of its own generation settings, those about sampling,
            beams and the repetition penalty are not used.
        tokenizer: its tokenizer.
        prompts: one batch of token ids, int64 [T] each, special tokens included.
        max_new_tokens: at most.
        processors: logits processors, such as `ProdLogitsProcessor`.
        temperature: 0: greedy; else sampled with torch's generator.
        top_p: for sampling: the nucleus; 1 is the whole distribution.
        stops: a row ends with the token that completes one of these within its output.
    """
    width = max(map(len, prompts))
    pad = padding_id(tokenizer)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros((len(prompts), width), dtype=torch.int64)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[i, width - len(prompt) :] = 1
    ends = ending_ids(tokenizer)
    sampled = temperature > 0
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=sampled,
        use_cache=True,
        num_beams=1,
        repetition_penalty=1.0,
        temperature=temperature if sampled else None,
        top_p=top_p if sampled else None,
        top_k=0 if sampled else None,
        pad_token_id=pad,
        eos_token_id=sorted(ends),
        logits_processor=list(processors),
        stopping_criteria=[_Stops(stops, tokenizer, width)] if stops else None,
    )[:, width:].tolist()
    return [list(takewhile(lambda token: token not in ends, tokens)) for tokens in output]


class _Stops:
    """Ends rows at strings, as a stopping criterion of `generate`.

    The `stop_strings` of transformers also count a string that begins in the prompt.
    """

    def __init__(self, stops: Sequence[str], tokenizer: Any, width: int) -> None:
        self.stops, self.tokenizer, self.width = stops, tokenizer, width
        # A token has at least a byte, and the newest one has the string's last.
        self.tail = max(len(stop.encode()) for stop in stops)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        del scores, kwargs
        texts = self.tokenizer.batch_decode(input_ids[:, self.width :][:, -self.tail :])
        return torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=input_ids.device)


def ending_ids(tokenizer: Any) -> set[int]:
    """The ids that end a text: every special token, the padding's among them.

    A tokenizer names one as its EOS: that of Qwen2.5-Coder ends a turn of a chat, and a file ends with `<|endoftext|>`.
    """
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {tokenizer.eos_token_id, tokenizer.pad_token_id, padding_id(tokenizer)}
    return {token_id for token_id in special | named if token_id is not None}


def padding_id(tokenizer: Any) -> int:
    """The token id that fills up batches; never looked at."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0):
        if token is not None:
            return int(token)
    return 0
