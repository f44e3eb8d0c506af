"""Adapters at both ends of a run: those it starts from, and that plain peft loads what it writes, from anywhere."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prod_decode.errors import ProdError
from prod_train.config import Config
from prod_train.job import prepare
from prod_train.session import setup
from prod_train.trainer import finish, fit, run
from tests.tiny import save_tiny_model, write_snippets

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]

IDS = torch.arange(4, 40).reshape(3, 12)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {"model": save_tiny_model(folder / "m"), "forget": write_snippets(folder / "f.jsonl", 4)}


def make(world, output, **options):
    given = {"method": "learn", "max_steps": 2, "learning_rate": 1e-2, "eval_every": 0.5}
    return Config(**{**world, "output": str(output), **given, **options})


def save_adapter(model, folder, config):
    """An adapter of peft's with random weights; returns its directory's name."""
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.1)
    adapted.save_pretrained(folder)
    return str(folder)


def lora(targets=("q_proj", "v_proj"), **options):
    return LoraConfig(r=4, target_modules=list(targets), task_type="CAUSAL_LM", **options)


@pytest.mark.parametrize(
    "config",
    [
        lora(use_dora=True),
        lora(use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 5}),
        lora(layers_to_transform=[1]),
        lora(["embed_tokens", "q_proj"]),
        lora(lora_bias=True),
    ],
    ids=["dora", "rslora", "one layer", "embeddings", "bias of B"],
)
def test_all_that_trains_is_saved_and_resumed(world, tmp_path, config):
    """What plain peft makes of the files says what the model in memory said, which has moved; bit for bit resumed."""
    start = save_adapter(world["model"], tmp_path / "a", config)
    options = make({**world, "model": start}, tmp_path / "o")
    session = setup(prepare(options))
    finish(session, fit(session))
    with torch.no_grad():
        want = session.model.eval()(IDS).logits
        base = AutoModelForCausalLM.from_pretrained(world["model"])
        got = PeftModel.from_pretrained(base, str(tmp_path / "o")).eval()(IDS).logits
    assert torch.equal(got, want)
    before, after = (load_file(Path(folder) / "adapter_model.safetensors") for folder in (start, tmp_path / "o"))
    trained = {name for name in after if "lora_" in name}
    assert trained == {name for name in before if "lora_" in name}
    assert all((before[name] != after[name]).any() for name in trained)
    run(replace(options, output=str(tmp_path / "p"), resume=str(tmp_path / "o" / "checkpoint-1")))
    again = load_file(tmp_path / "p" / "adapter_model.safetensors")
    assert all(torch.equal(after[name], again[name]) for name in after)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"), "got peft_type IA3"),
        (LoHaConfig(r=4, target_modules=["k_proj"], task_type="CAUSAL_LM"), "got peft_type LOHA"),
        (
            PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
            "Cannot set a prompt learning adapter to trainable",
        ),
        (lora(bias="all"), "got bias 'all': add it to its base with prod-train merge"),
        (lora(bias="lora_only"), "got bias 'lora_only'"),
        (lora(modules_to_save=["norm"]), r"got modules_to_save \['norm'\]"),
        (lora(trainable_token_indices=[3, 4]), r"got trainable_token_indices \[3, 4\]"),
        (lora(["lm_head"]), "got an adapted output head"),
        (lora(bias="all", modules_to_save=["lm_head"]), r"bias 'all' and modules_to_save \['lm_head'\] and an adapted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_adapter_that_trains_more_is_refused_by_name(world, tmp_path, config, part):
    start = save_adapter(world["model"], tmp_path / "a", config)
    with pytest.raises(ProdError, match=part):
        run(make({**world, "model": start}, tmp_path / "o"))
    assert not (tmp_path / "o").exists()
