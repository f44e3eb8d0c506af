"""Scores under the mask against brute force over the vocabulary; what names blocklists."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prod_decode import Blocklist, Entry, ProdError, ProdLogitsProcessor
from prod_decode.harness.scoring import load_sources, masked_log_probs
from tests.prod_decode.harness.naive import Naive, Phrase, compiled, phrases, texts
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("tiny") / "m"))


@pytest.mark.slow
@given(chosen=phrases(), prompt=texts, output=texts, seed=st.integers(0, 99), dtype=st.sampled_from(["32", "64"]))
@example(chosen=[Phrase("return x", True)], prompt="\nreturn", output=" x\n", seed=0, dtype="32")
@settings(max_examples=60)
def test_scores_are_those_of_the_masked_distribution(
    tokenizer: Any, chosen: list[Phrase], prompt: str, output: str, seed: int, dtype: str
) -> None:
    naive = Naive(tokenizer, chosen)
    text, continuation = tokenizer.encode(prompt), tokenizer.encode(output)
    logits = 4 * torch.randn(len(continuation), 300, generator=torch.Generator().manual_seed(seed))
    logits = logits.to(getattr(torch, f"float{dtype}"))
    before = logits.clone()
    processor = ProdLogitsProcessor(compiled(chosen), tokenizer)
    found = masked_log_probs(processor, text, continuation, logits)
    assert (found.dtype, found.shape) == (logits.dtype, logits.shape)
    assert torch.equal(logits, before)
    for i in range(len(continuation)):
        expected = naive.log_probs([*text, *continuation[:i]], len(text), logits[i])
        torch.testing.assert_close(found[i].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_text_that_goes_on_keeps_its_prompt(tokenizer: Any) -> None:
    """In two parts it is worth what it is as a whole; with `forget` between them, the first part would be prompt."""
    processor = ProdLogitsProcessor(Blocklist.compile([Entry("def x(", boundary="both")]), tokenizer)
    prompt, output = tokenizer.encode("f"), tokenizer.encode("de\ndef x(y)")
    logits = torch.randn(len(output), 300, generator=torch.Generator().manual_seed(0))
    whole = masked_log_probs(processor, prompt, output, logits)
    assert (whole == -math.inf).any(1).all()  # the columns that no token has
    for cut in range(1, len(output)):
        processor.forget()
        first = masked_log_probs(processor, prompt, output[:cut], logits[:cut])
        rest = masked_log_probs(processor, [*prompt, *output[:cut]], output[cut:], logits[cut:])
        assert torch.equal(torch.cat([first, rest]), whole)


def test_a_row_without_a_token_left_ends(tokenizer: Any) -> None:
    blocklist = Blocklist.compile([Entry("x", boundary="none")], allow_short=True)
    allowed = torch.full((1, 300), -math.inf)
    allowed[0, tokenizer.encode("x")] = 0.0
    (found,) = masked_log_probs(ProdLogitsProcessor(blocklist, tokenizer), tokenizer.encode(" "), [0], allowed)
    assert found.argmax() == tokenizer.eos_token_id
    assert found.exp().sum() == 1


def test_sources_are_merged_and_each_mistake_is_told(tmp_path: Path) -> None:
    for name in ("a", "b", "c++d"):
        Blocklist.compile([Entry(f"import {name[0]}_module")]).save(tmp_path / f"{name}.prod")
    a, b, odd = (str(tmp_path / f"{name}.prod") for name in ("a", "b", "c++d"))
    for named in (f"{a}+{b}", [a, b], (Path(a), Blocklist.load(b)), [f"{a}+{b}", a]):
        (merged,) = load_sources(named)
        assert isinstance(merged, Blocklist)
        assert {match.entry_id for match in merged.scan("import a_module\nimport b_module\n")} == {
            "import a_module",
            "import b_module",
        }
    assert len(load_sources(odd)) == 1
    assert len(load_sources("list:insecure-python")) == 1
    with pytest.raises(ProdError, match=r"x\.prod") as caught:
        load_sources(f"{a}+x.prod+y.prod")
    assert len(caught.value.mistakes) == 2
    for wrong in ("", [], f"{a}+", None, 7, True, [a, 7]):
        with pytest.raises(ProdError, match=r"^blocklist: expected "):
            load_sources(wrong)  # type: ignore[arg-type]
