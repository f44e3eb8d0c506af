"""vLLM's V2 model runner from end to end, its kernels and ours in Triton's interpreter, beside its V1 runner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from prod_decode import Blocklist, Entry
from tests.vllm.engine import PROMPTS, ROOT, violations

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton's interpreter runs the kernels"),
]

# What the model writes after these texts where nothing is prohibited. `_to_list` begins no word in `hash_to_list`, but
# does in an output whose prompt ended in `hash`.
LISTS = {
    "words": Blocklist.compile([Entry(p) for p in ("return", "size", "open(", "yaml.safe_load", "_to_list")]),
    "pieces": Blocklist.compile([Entry(p, boundary="none") for p in ("w * h", "print(f", "Paris.", "quicksort_2")]),
}
REPEATED = "".join(f"def area{i}(w, h):\n    size = w * h\n    return size\n\n\n" for i in range(5))
LONG = "# Read a file and count its words\n" * 9
REQUESTS: list[tuple[str, list[str]]] = [
    (PROMPTS[0], ["words"]),
    (REPEATED, ["pieces"]),
    (REPEATED + "def area", ["words", "pieces"]),
    (LONG + PROMPTS[7], ["pieces"]),
    (PROMPTS[6], []),
    (PROMPTS[1], ["words"]),
    ("import hash", ["words"]),
    (PROMPTS[4], ["pieces"]),
    (REPEATED + PROMPTS[5], ["words", "pieces"]),
    (REPEATED, []),
]
TOKENS = 20
# Prompts in chunks of what a step has room for, and memory for so few tokens that requests are preempted.
TIGHT = {
    "max_model_len": 256,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 24,
    "enable_chunked_prefill": True,
    "block_size": 32,
    "num_gpu_blocks_override": 9,
}
DRAFTS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}


def run(
    folder: Path, requests: list[tuple[str, list[str]]], *engines: dict[str, Any], v2: bool
) -> list[dict[str, Any]]:
    """What engines with these options write, one after another: greedy, so that runs compare."""
    files = {name: str(folder / f"{name}.prod") for name in LISTS}
    for name, file in files.items():
        LISTS[name].save(file)
    settings = {"additional_config": {"prod": {"blocklists": files, "default": []}}, **TIGHT}
    job = {
        "v2": v2,
        "engines": [{**settings, **options} for options in engines],
        "requests": [
            (
                text,
                {"temperature": 0, "max_tokens": TOKENS, "extra_args": {"prod_blocklists": names} if names else None},
            )
            for text, names in requests
        ],
    }
    ended = subprocess.run(
        [sys.executable, "-m", "tests.vllm.in_process"],
        input=json.dumps(job),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    results: list[dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])
    return results


@pytest.fixture(scope="module")
def on_v1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The requests, and then those with lists without them."""
    plain: list[tuple[str, list[str]]] = [(text, []) for text, names in REQUESTS if names]
    [found] = run(tmp_path_factory.mktemp("v1"), REQUESTS + plain, {}, v2=False)
    return found


@pytest.fixture(scope="module")
def on_v2(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The requests without and with drafts."""
    return run(tmp_path_factory.mktemp("v2"), REQUESTS, {}, {"speculative_config": DRAFTS}, v2=True)


def test_the_lists_matter(on_v1: dict[str, Any]) -> None:
    """What V2 is compared with: of the requests with lists, every one would write what is prohibited, and none does."""
    assert on_v1["runner"] == "vllm.v1.worker.cpu_model_runner.CPUModelRunner"
    written, plain = on_v1["texts"][: len(REQUESTS)], iter(on_v1["texts"][len(REQUESTS) :])
    for (prompt, names), guarded in zip(REQUESTS, written, strict=True):
        assert not names or guarded != next(plain), (prompt, guarded)
        for name in names:
            assert not [*violations(LISTS[name], prompt, guarded), *LISTS[name].scan(guarded)], (prompt, guarded)


@pytest.mark.parametrize("drafts", [False, True])
def test_v2_writes_what_v1_writes(drafts: bool, on_v1: dict[str, Any], on_v2: list[dict[str, Any]]) -> None:
    """Prompts in chunks, requests that are preempted; n-gram drafts that are accepted, rejected and banned."""
    found = on_v2[drafts]
    assert found["runner"] == "vllm.v1.worker.cpu.model_runner.CPUModelRunner"
    assert found["tokens"] == on_v1["tokens"][: len(REQUESTS)]
    metrics = found["metrics"]
    assert metrics["vllm:num_preemptions"] > 0
    assert found["rows"] > 0
    if drafts:
        proposed, accepted = (metrics[f"vllm:spec_decode_num_{kind}_tokens"] for kind in ("draft", "accepted"))
        assert 0 < accepted < proposed
        assert found["banned_drafts"] > 0
