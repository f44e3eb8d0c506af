"""An index beside a blocklist, or alone, in the engines that users name."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from prod_decode import Blocklist, CorpusIndex, Entry, ProdError, ProdLogitsProcessor
from prod_decode.serving.settings import Settings
from tests import oracle
from tests.prod_decode.corpus.corpora import cut_of, index_of, symbols
from tests.tiny import save_tiny_model

DOCUMENT = inspect.getsource(textwrap.TextWrapper._wrap_chunks)
CUT = cut_of()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = save_tiny_model(tmp_path_factory.mktemp("tiny"))
    return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)


class Reciting(torch.nn.Module):
    """Wants the document, whatever it has written."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.ids = ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wanted = scores.clone()
        at = input_ids.shape[1]
        for row in range(len(scores)):
            wanted[row, self.ids[at % len(self.ids)]] += 100
        return wanted


def written(model: tuple[Any, Any], source: Any, **options: Any) -> list[str]:
    lm, tokenizer = model
    ids = tokenizer(DOCUMENT, add_special_tokens=False)["input_ids"]
    prompt = torch.tensor([ids[:1]] * 2)
    guards = [Reciting(ids)] if source is None else [Reciting(ids), ProdLogitsProcessor(source, tokenizer)]
    out = lm.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=200,
        logits_processor=guards,
        pad_token_id=0,
        **options,
    )
    return tokenizer.batch_decode(out, skip_special_tokens=True)


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}], ids=["greedy", "sampling", "beams"])
@pytest.mark.slow
def test_generate_writes_no_window_of_a_document(model: tuple[Any, Any], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    windows = set(oracle.byte_windows(symbols(DOCUMENT, CUT).tobytes(), CUT.max_quote))
    assert options or any(window in symbols(written(model, None)[0], CUT).tobytes() for window in windows)
    blocklist = Blocklist.compile([Entry("cur_line")])
    for text in written(model, [blocklist, index_of([DOCUMENT], CUT)], **options):
        assert not windows & set(oracle.byte_windows(symbols(text, CUT).tobytes(), CUT.max_quote))
        assert "cur_line" not in text
        assert "_wrap_" in text


def test_what_a_processor_refuses(model: tuple[Any, Any]) -> None:
    _, tokenizer = model
    index, blocklist = index_of([DOCUMENT], CUT), Blocklist.compile([Entry("eval(")])
    with pytest.raises(ProdError, match="expected blocklists or indices, got an empty list"):
        ProdLogitsProcessor([], tokenizer)
    with pytest.raises(ProdError, match=r"got two blocklists: join them with Blocklist\.merge"):
        ProdLogitsProcessor([blocklist, index, blocklist], tokenizer)
    with pytest.raises(ProdError, match="a CorpusIndex needs the model's tokenizer"):
        ProdLogitsProcessor(index)


def test_servers_load_indices_beside_blocklists(model: tuple[Any, Any], tmp_path: Path) -> None:
    index_of([DOCUMENT], CUT).save(tmp_path / "gh.pidx")
    Blocklist.compile([Entry("eval(")]).save(tmp_path / "a.prod")
    files = {"gh": str(tmp_path / "gh.pidx"), "own": str(tmp_path / "a.prod")}
    settings = Settings.parse({"blocklists": files, "exempt_prompt": ["gh"]}, "test")
    loaded = settings.load()
    assert {name: type(source) for name, source in loaded.items()} == {"gh": CorpusIndex, "own": Blocklist}
    bound = settings.bind(loaded, model[1])
    assert [bool(bound[name].corpora) for name in ("gh", "own")] == [True, False]
    assert bound["gh"].exempts_prompts
    (tmp_path / "gh.pidx").write_bytes(b"PRODIDX\x01")
    with pytest.raises(ProdError, match=r"blocklist 'gh': .*gh\.pidx is cut short: build it again, or copy it again"):
        settings.load()
