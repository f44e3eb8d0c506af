"""Generate with a blocklist in the loop and remember where it stepped in."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prod_decode.errors import ProdError
from prod_decode.hf import Ban, ProdLogitsProcessor
from prod_decode.match.matcher import Matcher
from prod_decode.serving.hits import Hit


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated text.

    Attributes:
        prompt: the prompt.
        pieces: the text of each output token, special tokens empty; a character spelt by several tokens stands with the
            last of them.
        refused: for each output token, what it replaced: (text of the token that the model rated highest and that was
            banned, entry ids), or None.
        fired: how often each entry stepped in.
        seconds: wall-clock time of generating, prompt included.
        hits: whatever happened, in its order.
    """

    prompt: str
    pieces: list[str]
    refused: list[tuple[str, tuple[str, ...]] | None]
    fired: Counter[str]
    seconds: float
    hits: tuple[Hit, ...] = ()

    @property
    def output(self) -> str:
        """The generated text without the prompt."""
        return "".join(self.pieces)

    @property
    def text(self) -> str:
        """Prompt and output."""
        return self.prompt + self.output

    @property
    def tokens_per_second(self) -> float:
        """Output tokens a second of wall-clock time."""
        return len(self.pieces) / self.seconds if self.seconds else 0.0

    @property
    def banned_beside(self) -> dict[int, float]:
        """Where the likeliest token was allowed and others were banned: by position, their probability."""
        banned = [hit for hit in self.hits if hit.kind == "banned"]
        return {hit.position: hit.mass or 0.0 for hit in banned if not hit.likeliest}

    @property
    def is_ended_by_force(self) -> bool:
        """Whether the text ended since every token was banned."""
        return any(hit.kind == "ended" for hit in self.hits)


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    matcher: Matcher | None = None,
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    mode: str = "mask",
    exempt_prompt: bool = False,
    on_hit: Callable[[Hit], object] | None = None,
) -> Generation:
    """Continue `prompt`, greedily or by sampling, with the matcher's bans enforced.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        prompt: text; at least one token.
        matcher: what is prohibited; None generates freely.
        max_new_tokens: output tokens at most.
        temperature: 0 is greedy.
        top_p: for sampling; in mode `prod`, the nucleus of the PROD distribution.
        seed: of the sampling.
        mode: of `ProdLogitsProcessor`.
        exempt_prompt: of `ProdLogitsProcessor`.
        on_hit: told of every hit as well.

    Raises:
        ProdError: an empty prompt, or more tokens than the model has places for.
    """
    import torch

    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    length = inputs["input_ids"].shape[1]
    if length == 0:
        raise ProdError("expected a prompt of at least one token, got an empty one")
    room = getattr(model.config, "max_position_embeddings", length + max_new_tokens) - length
    if max_new_tokens > room:
        raise ProdError(
            f"the model has room for {max(0, room)} tokens behind this prompt, got {max_new_tokens}: ask for fewer"
        )
    bans: dict[int, Ban] = {}
    hits: list[Hit] = []

    def keep(hit: Hit) -> None:
        hits.append(hit)
        if on_hit is not None:
            on_hit(hit)

    processors = []
    fired: Counter[str] = Counter()
    if matcher is not None:
        processor = ProdLogitsProcessor(
            matcher,
            mode="prod" if mode == "prod" else "mask",
            top_p=top_p if mode == "prod" else 1.0,
            on_ban=lambda ban: bans.__setitem__(ban.position, ban),
            exempt_prompt=exempt_prompt,
            on_hit=keep,
        )
        processors.append(processor)
        fired = processor.fired
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        if mode == "prod" and matcher is not None:
            sampling["top_p"] = 1.0  # the processor's distribution is a nucleus already
    torch.manual_seed(seed)
    begun = time.perf_counter()
    with torch.inference_mode():
        sequences = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            logits_processor=processors,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            **sampling,
        )
    seconds = time.perf_counter() - begun
    for processor in processors:
        processor.finish(sequences)
    ids = sequences[0].tolist()
    pieces = _pieces(tokenizer, ids, length)
    refused = [
        None if (ban := bans.get(at)) is None else (tokenizer.decode([ban.token_id]), ban.entries)
        for at in range(length, len(ids))
    ]
    return Generation(prompt, pieces, refused, fired, seconds, tuple(hits))


def _pieces(tokenizer: Any, ids: list[int], length: int) -> list[str]:
    pieces = []
    before = tokenizer.decode(ids[:length], skip_special_tokens=True)
    for end in range(length + 1, len(ids) + 1):
        now = tokenizer.decode(ids[:end], skip_special_tokens=True)
        # A character that is not complete yet decodes to U+FFFD, which the next token replaces.
        complete = now.rstrip("\ufffd") if end < len(ids) else now
        pieces.append(complete[len(before) :])
        before = complete if len(complete) > len(before) else before
    return pieces
