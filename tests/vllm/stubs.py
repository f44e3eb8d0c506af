"""What a processor needs of vLLM's configuration, and a vocabulary small enough to ask about every token."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.sample.logits_processor import LogitsProcessor, LogitsProcessors
from vllm.v1.worker.gpu_input_batch import InputBatch

from prod_decode import Blocklist, Entry, Vocabulary

EOS, BOS, HOLE = 0, 1, 2
# Columns that the model has beyond the vocabulary.
EXTRA = 3

PIECES = ["a", "b", "_", ".", "(", " ", "\n", "ab", "ba", "aab", "b.", ".a", " a", " b", "a(", "(b", "  ", "_b", "bab"]
TOKENS: list[bytes | None] = [b"</s>", b"<s>", None, *(piece.encode() for piece in PIECES)]
VOCABULARY = Vocabulary.from_bytes(TOKENS, special=[BOS], eos_ids=[EOS])
TEXT_IDS = list(range(HOLE + 1, len(TOKENS)))
WIDTH = len(TOKENS) + EXTRA


def config(prod: object = None, **model: Any) -> SimpleNamespace:
    """A `VllmConfig` as far as the processor reads it; `model` overrides its `model_config`."""
    return SimpleNamespace(
        additional_config={} if prod is None else {"prod": prod},
        parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        model_config=SimpleNamespace(
            **{
                "logits_processors": ["prod_decode.vllm:ProdLogitsProcessor"],
                "enable_prompt_embeds": False,
                "is_diffusion": False,
                "logprobs_mode": "raw_logprobs",
                "tokenizer": "model",
                "tokenizer_mode": "auto",
                "tokenizer_revision": None,
                "trust_remote_code": False,
                "get_vocab_size": lambda: WIDTH,
                "try_get_generation_config": lambda: {"eos_token_id": EOS},
                **model,
            }
        ),
    )


def input_batch(processor: LogitsProcessor, rows: int, tokens: int) -> InputBatch:
    """vLLM's own batch of so many rows and tokens, with one processor."""
    return InputBatch(
        rows,
        tokens,
        tokens,
        torch.device("cpu"),
        WIDTH,
        [16],
        [8],
        logitsprocs=LogitsProcessors([processor]),
        logitsprocs_need_output_token_ids=True,
    )


def save(folder: Path, name: str, phrases: list[str], **options: Any) -> str:
    """A compiled blocklist in a file."""
    path = folder / f"{name}.prod"
    entries = [Entry(phrase, boundary=options.pop("boundary", None)) for phrase in phrases]
    Blocklist.compile(entries, allow_short=True, **options).save(path)
    return str(path)


def use_vocabulary(monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary = VOCABULARY) -> None:
    """Make every processor take this vocabulary for that of the model."""
    monkeypatch.setattr("prod_decode.vllm.load_tokenizer", lambda *_, **__: vocabulary)
