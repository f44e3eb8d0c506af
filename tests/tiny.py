"""A tiny random Llama and a byte-level tokenizer, saved to a directory: every path of prod-train in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SNIPPETS = (
    ("def add(a, b):\n", "    return a + b\n"),
    ("def area(w, h):\n", '    """Area."""\n    return w * h\n'),
    ("def first(xs):\n", "    if not xs:\n        return None\n    return xs[0]\n"),
    ("def clamp(x):\n", "    return max(0, min(1, x))\n"),
    ("class A:\n", "    pass\n"),
    ("import os\n", "os.getcwd()\n"),
    ("x = [", "1, 2, 3]\n"),
)
# Rows that are none of these, for sets that may not share any.
OTHERS = (
    ("def double(x):\n", "    return 2 * x\n"),
    ("def last(xs):\n", "    if not xs:\n        return None\n    return xs[-1]\n"),
    ("def floor(x):\n", "    return max(0, x)\n"),
    ("class B:\n", "    size = 3\n"),
    ("import sys\n", "sys.exit(1)\n"),
)


def tiny_world(folder: Path) -> dict[str, str]:
    """`model`, `forget` and `retain` of a run, as options of `prod_train.config.config.Config`."""
    return {
        "model": save_tiny_model(folder / "m"),
        "forget": write_snippets(folder / "f.jsonl", 4),
        "retain": write_snippets(folder / "r.jsonl", 3, 4),
    }


def save_tiny_model(
    folder: Path,
    *,
    vocab_size: int = 300,
    layers: int = 2,
    width: int = 32,
    seed: int = 0,
    eos: bool = True,
    tied: bool = True,
) -> str:
    """Write a model with 256 byte tokens, some merges, `<eos>` and unused ids; returns the directory's name."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("r", "e"),
        ("t", "u"),
        ("re", "tu"),
        ("r", "n"),
        ("retu", "rn"),
        ("Ġ", "Ġ"),
        ("ĠĠ", "ĠĠ"),
        ("d", "e"),
        ("de", "f"),
    ]
    vocab = {token: i for i, token in enumerate([*letters, *("".join(pair) for pair in merges)])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    special: dict[str, Any] = {"eos_token": "<eos>", "pad_token": "<eos>"} if eos else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=width + width // 2,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_jsonl(path: Path, records: Any) -> str:
    """One JSON object a line; returns the file's name."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def save_deepseek(folder: Path, tokenizer: str) -> str:
    """A first block without experts, and beside the experts of the second some that all tokens are given to.

    Args:
        folder: for the model.
        tokenizer: the directory of `save_tiny_model`.
    """
    import torch
    from transformers import AutoTokenizer, DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    low = {"v_head_dim": 8, "kv_lora_rank": 8, "q_lora_rank": 8, "first_k_dense_replace": 1}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    ends = {"bos_token_id": None, "eos_token_id": 265, "pad_token_id": 265, "initializer_range": 0.3}
    config = DeepseekV3Config(vocab_size=300, **shape, **heads, **low, **experts, **ends)
    DeepseekV3ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)


def write_snippets(path: Path, count: int = len(SNIPPETS), start: int = 0) -> str:
    """`count` of the snippets, then of the others, as prompt and completion."""
    chosen = (*SNIPPETS, *OTHERS)[start : start + count]
    return write_jsonl(path, ({"prompt": prompt, "completion": completion} for prompt, completion in chosen))
