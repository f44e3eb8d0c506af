"""A model under test: what it writes, what it still knows of the forget set, and how far it moved elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.metrics import Value
from prod_decode.harness.continuing import continuations, padding_id
from prod_decode.storage.models import load_model, load_tokenizer
from prod_train.data.rows import Row, by_length
from prod_train.loss.objective import Encoder
from prod_train.measure.evaluate import evaluate_holdout, evaluate_likelihood
from prod_train.model.modeling import load_4bit
from prod_train.targets.targets import ReferenceStore, model_digest

if TYPE_CHECKING:
    from prod_decode.match.matcher import Matcher

# Rows that are generated together. SmolLM2-135M on 2 cores: 78 tokens/s with 8 rows, 199 with 24, 228 with 48. On a
# GPU, HumanEval's 164 problems are one batch.
GENERATED, GENERATED_ON_GPU = 32, 192


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
    """A model with, or without, an adapter, in evaluation mode.

    Attributes:
        base: the model without.
        model: with it.
        tokenizer: the model's.
        name: as it was given.
        encoder: of the loss, attached to `base`.
        digest: of the base's weights.
        adapter: directory of the adapter, or None.
    """

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
        self.adapter: Path | None = None
        self._batch_size = batch_size

    def adapt(self, adapter: Path | None) -> None:
        """Put an adapter on the base in place of the one before, or take it away."""
        from peft import PeftModel

        if isinstance(self.model, PeftModel):
            self.base = self.model.unload()
            self.model = self.base
        if adapter is not None:
            self.model = PeftModel.from_pretrained(self.base, str(adapter))
        self.adapter = adapter
        self.model.eval()

    def encode(self, prompt: str, reference: str | None = None) -> tuple[list[int], str]:
        """A prompt's tokens, as they are when the reference follows.

        Many tokenizers have tokens such as newline and indentation in one. A prompt that ends with the newline then
        ends with a token that stands there in no document, after which a model that knows the rest by heart writes
        something else. So what belongs to a token that goes on in the reference is left to the model.

        Args:
            prompt: text.
            reference: what may follow; None: nothing is left out.

        Returns:
            Token ids, special tokens included, and the end of the prompt that is not in them.
        """
        if reference is None:
            return list(self.tokenizer(prompt)["input_ids"]), ""
        encoding = self.tokenizer(prompt + reference, return_offsets_mapping=True)
        ends = [end for _, end in encoding["offset_mapping"]]
        count = sum(1 for _ in takewhile(lambda end: end <= len(prompt), ends))
        return list(encoding["input_ids"][:count]), prompt[max(ends[:count], default=0) :]

    def write(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        processors: Sequence[Any] = (),
        *,
        temperature: float = 0.0,
        seed: int = 0,
        stops: Sequence[str] = (),
    ) -> Writing:
        """Continue prompts.

        Args:
            prompts: token ids, special tokens included.
            max_new_tokens: at most.
            processors: logits processors.
            temperature: 0: greedy.
            seed: of the sampling.
            stops: a row ends with the token that completes one of these within its output.
        """
        encoded = [np.array(prompt, np.int64) for prompt in prompts]
        outputs: list[list[int]] = [[]] * len(encoded)
        torch.manual_seed(seed)
        begun = time.perf_counter()
        together = GENERATED if self.model.device.type == "cpu" else GENERATED_ON_GPU
        for chosen in by_length([len(ids) for ids in encoded], together):
            written = continuations(
                self.model,
                self.tokenizer,
                [encoded[i] for i in chosen],
                max_new_tokens,
                processors,
                temperature=temperature,
                stops=stops,
            )
            for i, tokens in zip(chosen, written, strict=True):
                outputs[i] = tokens
        seconds = time.perf_counter() - begun
        return Writing([self.tokenizer.decode(tokens) for tokens in outputs], [len(t) for t in outputs], seconds)

    def recall(self, rows: Sequence[Row], matcher: Matcher | None = None) -> dict[str, Value]:
        """How likely it still finds rows to forget; see `evaluate_likelihood`."""
        found = evaluate_likelihood(
            self.model,
            self.encoder,
            rows,
            pad=padding_id(self.tokenizer),
            batch_size=self._batch_size,
            matcher=matcher,
        )
        return {name: Value.of(metric) for name, metric in found.items()}

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
