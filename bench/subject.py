"""A model under test: what it writes, what it still knows of the forget set, and how far it moved elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.records import Value
from prod_decode.models import load_model, load_tokenizer
from prod_train.data import Row
from prod_train.evaluate import continuations, evaluate_forget, evaluate_holdout, padding_id
from prod_train.modeling import load_4bit
from prod_train.objective import Encoder
from prod_train.targets import ReferenceStore, model_digest

if TYPE_CHECKING:
    from prod_decode.matcher import Matcher

_RECALL = ("extraction_strength", "exact_memorisation", "probability", "recitation", "verbatim", "verbatim_run")


@dataclass(frozen=True, slots=True)
class Writing:
    """What a model wrote after each prompt.

    Attributes:
        outputs: texts.
        tokens: of each output.
        seconds: wall-clock time of all.
    """

    outputs: list[str]
    tokens: list[int]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of all rows of a batch together."""
        return sum(self.tokens) / self.seconds if self.seconds else 0.0


class Subject:
    """A model with, or without, an adapter, in evaluation mode."""

    def __init__(self, name: str, *, dtype: str = "float32", four_bit: bool = False, batch_size: int = 8) -> None:
        """Load a model.

        Args:
            name: as for `prod-train run --model`, but no adapter.
            dtype: of its weights, or of the computation in 4 bits.
            four_bit: quantise it (NF4; needs bitsandbytes).
            batch_size: rows a forward pass.

        Raises:
            ProdError: it cannot be loaded so.
        """
        if four_bit:
            self.base = load_4bit(name, getattr(torch, dtype), "cuda" if torch.cuda.is_available() else "cpu")
            self.tokenizer = load_tokenizer(name)
        else:
            self.base, self.tokenizer = load_model(name, dtype=dtype)
        self.model = self.base
        self.name = name
        self.encoder = Encoder(self.base)
        self.digest = model_digest(self.base)
        self._batch_size = batch_size

    def adapt(self, adapter: Path | None) -> None:
        """Put an adapter on the base in place of the one before, or take it away."""
        from peft import PeftModel

        if isinstance(self.model, PeftModel):
            self.base = self.model.unload()
            self.model = self.base
        if adapter is not None:
            self.model = PeftModel.from_pretrained(self.base, str(adapter))
        self.model.eval()

    def write(
        self,
        prompts: Sequence[str | list[int]],
        max_new_tokens: int,
        processors: Sequence[Any] = (),
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Writing:
        """Continue prompts, texts or token ids: greedily at temperature 0, else sampled with `seed`."""
        ids = [self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt for prompt in prompts]
        encoded = [np.array(prompt, np.int64) for prompt in ids]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # rows of like length need less padding
        outputs: list[list[int]] = [[]] * len(encoded)
        torch.manual_seed(seed)
        begun = time.perf_counter()
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            written = continuations(
                self.model,
                self.tokenizer,
                [encoded[i] for i in chosen],
                max_new_tokens,
                processors,
                temperature=temperature,
            )
            for i, tokens in zip(chosen, written, strict=True):
                outputs[i] = tokens
        seconds = time.perf_counter() - begun
        return Writing([self.tokenizer.decode(tokens) for tokens in outputs], [len(t) for t in outputs], seconds)

    def recall(self, rows: Sequence[Row], matcher: Matcher | None = None) -> dict[str, Value]:
        """What it still knows of rows to forget; see `evaluate_forget`."""
        found = evaluate_forget(
            self.model, self.encoder, self.tokenizer, rows, batch_size=self._batch_size, matcher=matcher
        )
        return {name: Value.of(found[name]) for name in _RECALL}

    def reference(self, rows: Sequence[Row], folder: Path) -> ReferenceStore:
        """What this model, as it is, says of held-out rows; kept on disk for comparison with what it becomes."""
        store = ReferenceStore(folder, "hidden", rows, self.digest)
        pad = padding_id(self.tokenizer)
        store.fill(self.encoder, self.model, pad=pad, eos=pad, batch_size=self._batch_size)
        return store

    def moved(self, rows: Sequence[Row], reference: ReferenceStore, matcher: Matcher | None = None) -> dict[str, Value]:
        """How far it is from a reference on held-out rows: `holdout_loss`, `holdout_kl`, `holdout_agreement`."""
        found = evaluate_holdout(
            self.model,
            self.encoder,
            rows,
            reference,
            pad=padding_id(self.tokenizer),
            batch_size=self._batch_size,
            matcher=matcher,
        )
        return {f"holdout_{name}": Value.of(metric) for name, metric in found.items()}
