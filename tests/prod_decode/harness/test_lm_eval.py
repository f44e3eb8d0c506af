"""The model class of lm-evaluation-harness against scores by hand, and its command in a folder of its own.

Most of it needs lm_eval, which `make test` does not install (270 MB with what it needs); `make test-eval` does.
tests/prod_decode/harness/test_scoring.py checks the scores without it.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prod_decode import Blocklist, Entry, ProdError, ProdLogitsProcessor
from tests import ROOT, without_first_start
from tests.prod_decode.harness.naive import Naive, Phrase, compiled, phrases, texts
from tests.tiny import save_tiny_model, write_jsonl

HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not HAS_LM_EVAL, reason="needs lm_eval: make test-eval")

PROMPTS = ["", "def f(x):\n", "return x.def\n    re", "x = [", "\n", "import os\nos.getcwd()\n"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "m")


def make(pretrained: Any, blocklist: Any, **options: Any) -> Any:
    from prod_decode.harness.lm_eval import ProdLM

    return ProdLM(pretrained, blocklist=blocklist, device="cpu", **options)


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one, task_name="t") for one in arguments]


@lru_cache(maxsize=1)
def loaded(tiny: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny).eval(), AutoTokenizer.from_pretrained(tiny)


@torch.no_grad()
def by_hand(naive: Naive, model: Any, text: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One pair by itself, without padding."""
    logits = model(torch.tensor([[*text, *continuation]])).logits[0, len(text) - 1 : -1]
    return naive.score(text, len(text), continuation, logits)


def pair(tokenizer: Any, prompt: str, output: str) -> tuple[list[int], list[int]]:
    """As lm_eval cuts them."""
    if not prompt:
        return [tokenizer.eos_token_id], tokenizer.encode(output)
    output = prompt[len(prompt.rstrip()) :] + output
    text = tokenizer.encode(prompt.rstrip())
    return text, tokenizer.encode(prompt.rstrip() + output)[len(text) :]


@needs_lm_eval
@pytest.mark.slow
@given(
    chosen=phrases(),
    asked=st.lists(st.tuples(st.sampled_from(PROMPTS) | texts, texts), min_size=1, max_size=6),
    size=st.sampled_from([1, 4]),
    cached=st.booleans(),
)
@example(
    # The same tokens, and other prompts: a word begins where the output does, and nowhere else.
    chosen=[Phrase("f(", True)],
    asked=[("x.y", "zf(x"), ("x.yz", "f(x"), ("x.y", "zf(.")],
    size=4,
    cached=True,
)
@settings(max_examples=40)
def test_likelihoods_are_those_of_the_masked_distribution(
    tiny: str, chosen: list[Phrase], asked: list[tuple[str, str]], size: int, cached: bool
) -> None:
    model, tokenizer = loaded(tiny)
    naive = Naive(tokenizer, chosen)
    asked = [one for one in asked if (not one[0] or one[0].strip()) and pair(tokenizer, *one)[1]]
    lm = make(model, compiled(chosen), tokenizer=tokenizer, batch_size=size, logits_cache=cached)
    found = lm.loglikelihood(requests(*asked), disable_tqdm=True)
    expected = [by_hand(naive, model, *pair(tokenizer, *one)) for one in asked]
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], rel=1e-5, abs=1e-4)


@needs_lm_eval
def test_a_prohibited_continuation_is_impossible_and_never_greedy(tiny: str) -> None:
    model, tokenizer = loaded(tiny)
    # Until a model with random weights writes what can be banned, and is cut into the same tokens again.
    for prompt in (f"def {name}({other}):" for name in "fghijk" for other in "abcdefgh"):
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, inputs.input_ids.shape[1] :]
        wanted = tokenizer.decode(output)
        if re.fullmatch("[!-~]+", wanted) and tokenizer.encode(wanted) == output.tolist():
            break
    none, some = (
        make(tiny, Blocklist.compile([Entry(text, boundary="none")], allow_short=True)) for text in ("unheard", wanted)
    )
    asked = requests((prompt, wanted), (prompt, "{{"))
    (free, free_greedy), (other, _) = none.loglikelihood(asked, disable_tqdm=True)
    (masked, greedy), (raised, _) = some.loglikelihood(asked, disable_tqdm=True)
    assert free_greedy
    assert math.isfinite(free)
    assert (masked, greedy) == (-math.inf, False)
    assert math.isfinite(other)
    assert raised >= other - 1e-4


@needs_lm_eval
@pytest.mark.slow
@given(chosen=phrases(), asked=st.lists(texts, min_size=1, max_size=3), room=st.sampled_from([3, 5, 400]))
@example(chosen=[Phrase("x.return(", False)], asked=["x.x.x.x.return(x", "def x.return(x"], room=3)
@example(chosen=[Phrase("f(", True)], asked=["x.xf(x"], room=3)
@settings(max_examples=25)
@torch.no_grad()
def test_a_rolling_text_is_one_output_whatever_the_windows(
    tiny: str, chosen: list[Phrase], asked: list[str], room: int
) -> None:
    model, tokenizer = loaded(tiny)
    naive = Naive(tokenizer, chosen)
    lm = make(model, compiled(chosen), tokenizer=tokenizer, batch_size=4, max_length=room)
    expected = []
    for text in asked:
        total, ids = 0.0, [tokenizer.eos_token_id, *tokenizer.encode(text)]
        for start in range(1, len(ids), room):
            end = min(start + room, len(ids))
            shown = ids[max(0, end - 1 - room) : end - 1]
            logits = model(torch.tensor([shown])).logits[0, -(end - start) :]
            for at in range(start, end):
                total += float(naive.log_probs(ids[:at], 1, logits[at - start])[ids[at]])
        expected.append(total)
    found = lm.loglikelihood_rolling(requests(*((text,) for text in asked)), disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)


@needs_lm_eval
@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_what_is_generated_has_no_prohibited_phrase(tiny: str, size: int) -> None:
    model, tokenizer = loaded(tiny)
    options = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
    asked = requests(*((prompt, options) for prompt in PROMPTS[1:]))
    free = make(tiny, Blocklist.compile([Entry("unheard of")]), batch_size=size).generate_until(
        asked, disable_tqdm=True
    )
    banned = [found for text in free for found in re.findall("[!-~]{2,}", text)]
    assert len(banned) > 3
    blocklist = Blocklist.compile([Entry(text, boundary="none") for text in banned], allow_short=True)
    found = make(tiny, blocklist, batch_size=size).generate_until(asked, disable_tqdm=True)
    for prompt, text in zip(PROMPTS[1:], found, strict=True):
        assert not list(blocklist.scan(text))
        inputs = tokenizer(prompt, return_tensors="pt")
        guards = [ProdLogitsProcessor(blocklist, tokenizer)]
        output = model.generate(**inputs, logits_processor=guards, max_new_tokens=24, do_sample=False)
        assert (
            text == tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).split("\n\n")[0]
        )
    assert found != free


@needs_lm_eval
def test_a_word_ends_where_a_stop_string_begins(tiny: str) -> None:
    """`re` is banned as a word. `return` is another one, unless the output is cut before `tu`."""
    _, tokenizer = loaded(tiny)
    banned: list[bool] = []
    for until in (["tu"], ["."]):
        lm = make(tiny, Blocklist.compile([Entry("re", boundary="both")], allow_short=True), batch_size=1)

        def look(*_: Any, logits_processor: Any, **options: Any) -> Any:
            scores = logits_processor[-1](torch.tensor([tokenizer.encode(" ")]), torch.zeros(1, 300))
            banned.append(bool(scores[0, tokenizer.convert_tokens_to_ids("return")] == -math.inf))
            return torch.tensor([[0, 0]])

        lm._model.generate = look
        lm.generate_until(requests((" ", {"until": until, "max_gen_toks": 4})), disable_tqdm=True)
    assert banned == [True, False]


@needs_lm_eval
@pytest.mark.slow
def test_an_adapter_is_measured(tiny: str, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    _, tokenizer = loaded(tiny)
    model, _ = loaded.__wrapped__(tiny)
    torch.manual_seed(1)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path)
    chosen = [Phrase("return x", True)]
    lm = make(tiny, compiled(chosen), peft=str(tmp_path))
    base, _ = loaded.__wrapped__(tiny)
    adapted = PeftModel.from_pretrained(base, tmp_path).eval()
    asked = [("def f(x):\n    return", " y"), ("def f(x):\n    return", " x")]
    found = lm.loglikelihood(requests(*asked), disable_tqdm=True)
    expected = [by_hand(Naive(tokenizer, chosen), adapted, *pair(tokenizer, *one)) for one in asked]
    assert expected[1][0] == -math.inf
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-4)


@needs_lm_eval
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocklist": None}, "blocklist: expected a compiled blocklist or a corpus index, got none.*--model hf"),
        ({"blocklist": "nowhere.prod"}, "nowhere.prod"),
        ({"backend": "seq2seq"}, "backend: expected a causal language model, got an encoder-decoder.*--model hf"),
        ({"truncation": True}, "truncation: expected False, got True.*leave it out"),
        ({"think_end_token": "done"}, "think_end_token: expected text that does not end in a letter.*got 'done'"),
        ({"think_end_token": 70}, "think_end_token: expected text that does not end"),
        ({"exempt_prompt": 1}, "exempt_prompt: expected True or False, got 1"),
        ({"blocklsit": "a.prod", "blocklist": None}, "unknown argument blocklsit; did you mean 'blocklist'"),
        ({"jsn": True}, "unknown argument jsn; did you mean 'json'"),
    ],
)
def test_what_cannot_be_masked_is_refused(tiny: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProdError, match=message):
        make(tiny, **{"blocklist": Blocklist.compile([Entry("import os")]), **options})


@needs_lm_eval
def test_a_model_that_is_not_there_is_told_before_anything_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ProdError, match=r"cannot load the model '.*nowhere': no such directory"):
        make(str(tmp_path / "nowhere"), Blocklist.compile([Entry("import os")]))


@needs_lm_eval
def test_an_encoder_decoder_is_refused_by_its_configuration(tmp_path: Path, tiny: str) -> None:
    from transformers import T5Config

    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ProdError, match="got an encoder-decoder"):
        make(str(tmp_path), Blocklist.compile([Entry("import os")]), tokenizer=tiny)


@needs_lm_eval
def test_virtual_tokens_are_refused(tiny: str, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model, _ = loaded.__wrapped__(tiny)
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(tmp_path)
    with pytest.raises(
        ProdError, match="peft: expected an adapter of weights, such as LoRA, got one of virtual tokens"
    ):
        make(tiny, Blocklist.compile([Entry("import os")]), peft=str(tmp_path))


@needs_lm_eval
def test_what_the_mask_would_not_see_is_refused(tiny: str) -> None:
    lm = make(tiny, Blocklist.compile([Entry("import os")]), max_length=20)
    ask = {"until": ["\n"], "max_gen_toks": 8}
    with pytest.raises(ProdError, match="expected prompts of at most 12 tokens, got one of 40: its beginning would be"):
        lm.generate_until(requests(("z" * 40, ask)), disable_tqdm=True)
    with pytest.raises(ProdError, match="custom_generate: expected none"):
        lm.generate_until(requests(("z", {**ask, "custom_generate": "a/b"})), disable_tqdm=True)
    with pytest.raises(ProdError, match="expected continuations of 1 to 20 tokens, got one of 21"):
        lm.loglikelihood(requests(("z", "z" * 21)), disable_tqdm=True)
    with pytest.raises(ProdError, match="use_cache: expected no cache of responses, got one"):
        lm.set_cache_hook(None)
    # Of a context that does not fit, the model sees the end and the mask all.
    ((total, _),) = lm.loglikelihood(requests(("import" + " " * 40, "os")), disable_tqdm=True)
    assert total == -math.inf


@needs_lm_eval
def test_results_say_what_was_masked(tiny: str, tmp_path: Path) -> None:
    Blocklist.compile([Entry("import os")]).save(tmp_path / "a.prod")
    info = make(tiny, str(tmp_path / "a.prod")).get_model_info()
    assert info["prod_blocklist"] == [str(tmp_path / "a.prod")]
    assert info["exempt_prompt"] is False


TASKS = {
    "choice": """
task: tiny_choice
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
""",
    "writes": """
task: tiny_writes
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def command(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path or os.pathsep.join([str(ROOT), *sys.path])}
    run = [sys.executable, "-m", "prod_decode.harness.lm_eval", *arguments]
    return subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)


@needs_lm_eval
@pytest.mark.slow
def test_the_command_runs_a_task_of_ones_own(tiny: str, tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "docs.jsonl", [{"q": "import os\n", "choices": ["os.getcwd()", "zzzzzzzzzzzzz"], "answer": 0}]
    )
    (tmp_path / "tasks").mkdir()
    source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/docs.jsonl}}}}\ntest_split: test\n"
    for name, task in TASKS.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(task + source)
    Blocklist.compile([Entry("os.getcwd(")]).save(tmp_path / "a.prod")
    Blocklist.compile([Entry("import sys")]).save(tmp_path / "b.prod")
    masked = f"pretrained={tiny},blocklist=a.prod+b.prod,exempt_prompt=True"
    common = ["--tasks", "tiny_choice,tiny_writes", "--include_path", "tasks", "--device", "cpu", "--log_samples"]
    # As the older command line was, without `run`, too.
    done = command(tmp_path, "--model", "prod", "--model_args", masked, *common, "--output_path", "out")
    assert done.returncode == 0, done.stderr
    assert "tiny_choice" in done.stdout
    (results,) = (json.loads(file.read_text()) for file in (tmp_path / "out").rglob("results_*.json"))
    assert results["results"]["tiny_choice"]["acc,none"] == 0.0
    assert results["config"]["prod_blocklist"] == ["a.prod+b.prod"]
    (samples,) = (file.read_text() for file in (tmp_path / "out").rglob("samples_tiny_choice*"))
    assert json.loads(samples)["resps"][0][0][0] == "-inf"


@needs_lm_eval
@pytest.mark.slow
def test_the_command_tells_a_mistake_in_one_line(tiny: str, tmp_path: Path) -> None:
    done = command(tmp_path, "run", "--model", "prod", "--model_args", f"pretrained={tiny}", "--tasks", "arc_easy")
    assert done.returncode == 2
    (last,) = [line for line in without_first_start(done.stderr).splitlines() if "Error" in line or "expected" in line]
    assert last.startswith("prod_decode.harness.lm_eval: blocklist: expected a compiled blocklist")


@pytest.mark.slow
def test_without_lm_eval_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "lm_eval.py").write_text("raise ModuleNotFoundError('no', name='lm_eval')\n")
    said = "the model class 'prod' needs lm-evaluation-harness, and the module lm_eval is not installed: pip install"
    path = os.pathsep.join([str(tmp_path), str(ROOT), *sys.path])
    done = command(tmp_path, "run", path=path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"prod_decode.harness.lm_eval: {said} 'prod-code-unlearning[eval]'")
    assert done.stderr.count("\n") == 1
    code = "import prod_decode.harness.lm_eval"
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert f"ProdError: {said}" in found.stderr
