"""The benchmark's generation through vLLM writes what transformers writes, with and without blocklist and adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.v1.engine.exceptions import EngineDeadError

from bench.guards.decode import Decode
from bench.models import vllm_writer
from bench.models.subject import Subject, Writing
from bench.models.vllm_writer import VllmWriter
from prod_decode import Blocklist, Entry
from prod_decode.errors import ProdError
from prod_decode.harness import continuing
from prod_decode.harness.continuing import ending_ids
from prod_decode.storage.models import load_model
from tests.vllm.engine import ENVIRONMENT, PROMPTS, model_directory

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

TOKENS = 16
ENTRIES = [Entry(phrase, boundary="none") for phrase in ("return", "def", "self.", "print(", "the")]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(model_directory())


@pytest.fixture(scope="module")
def prompts(subject: Subject) -> list[list[int]]:
    return [subject.encode(prompt)[0] for prompt in PROMPTS[:8]]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, and strong enough to change what is written."""
    torch.manual_seed(0)
    model, _ = load_model(model_directory(), dtype="float32", device="cpu")
    config = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmWriter]:
    """In this process: see tests/vllm/test_engine.py."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}.items():
            monkeypatch.setenv(name, value)
        lists = {"other": Blocklist.compile([Entry("import")]), "task": Decode().blocklist(ENTRIES)}
        found = VllmWriter(model_directory(), lists, tmp_path_factory.mktemp("writer"), dtype="float32")
    yield found
    found.close()
    cleanup_dist_env_and_memory()


def test_greedy_output_is_that_of_transformers(
    writer: VllmWriter, subject: Subject, prompts: list[list[int]], adapter: Path
) -> None:
    processors, _ = Decode().processors(ENTRIES, subject.tokenizer)
    found: list[Writing] = []
    for used in (None, adapter):
        subject.adapt(used)
        for name in (None, "task"):
            ours = writer.write(prompts, TOKENS, blocklist=name, adapter=used)
            theirs = subject.write(prompts, TOKENS, processors if name else [])
            # Ties of the last bit fall out differently now and then, and a text never finds back.
            same = sum(a == b for a, b in zip(ours.outputs, theirs.outputs, strict=True))
            assert same >= len(prompts) - 1, list(zip(ours.outputs, theirs.outputs, strict=True))
            counts = zip(ours.outputs, theirs.outputs, ours.tokens, theirs.tokens, strict=True)
            assert all(m == n for a, b, m, n in counts if a == b)
            found.append(ours)
    for i in range(4):
        for j in range(i):
            assert found[i].outputs != found[j].outputs


def test_stops_and_samples(writer: VllmWriter, prompts: list[list[int]]) -> None:
    stopped = writer.write(prompts, TOKENS, blocklist=None, stops=["\n"])
    assert all(text.endswith("\n") or "\n" not in text for text in stopped.outputs)
    assert any(text.endswith("\n") for text in stopped.outputs)
    first, again, other = (
        writer.write(prompts, TOKENS, blocklist="task", temperature=1.0, seed=seed).outputs for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_rows_end_at_every_ending_id(
    writer: VllmWriter, subject: Subject, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (newline,) = subject.tokenizer("\n", add_special_tokens=False)["input_ids"]
    free = writer.write(prompts, TOKENS, blocklist=None)
    with_newline = ending_ids(subject.tokenizer) | {newline}
    for module in (vllm_writer, continuing):
        monkeypatch.setattr(module, "ending_ids", lambda _: with_newline)
    subject.adapt(None)
    ours, theirs = writer.write(prompts, TOKENS, blocklist=None), subject.write(prompts, TOKENS)
    pairs = list(zip(ours.outputs, ours.tokens, theirs.outputs, theirs.tokens, strict=True))
    # As above, one may fall out differently.
    assert sum((a, m) == (b, n) for a, m, b, n in pairs) >= len(prompts) - 1, pairs
    assert sum(ours.tokens) < sum(free.tokens)


def test_an_engine_that_has_died_is_one_line(
    writer: VllmWriter, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*_: object, **__: object) -> None:
        raise EngineDeadError

    monkeypatch.setattr(writer._llm, "generate", died)
    with pytest.raises(ProdError, match=r"^vLLM stopped; [^\n]*--engine transformers in another --out$"):
        writer.write(prompts, TOKENS, blocklist=None)
