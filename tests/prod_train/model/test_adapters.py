"""Adapters at both ends of a run: those it starts from, and that plain peft loads what it writes, from anywhere."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prod_decode.errors import ProdError
from prod_decode.storage import models
from prod_decode.storage.models import load_model, load_tokenizer
from prod_train.config.config import Config
from prod_train.model import modeling
from prod_train.run.job import prepare
from prod_train.run.session import setup
from prod_train.run.trainer import finish, fit, run
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        lora(use_dora=True),
        lora(use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 5}),
        lora(layers_to_transform=[1]),
        lora(["embed_tokens", "q_proj"]),
        lora(lora_bias=True),
        lora(init_lora_weights="pissa"),
        lora(layer_replication=[(0, 2), (1, 2)]),
        lora(target_parameters=["mlp.gate_proj.weight"]),
    ],
    ids=["dora", "rslora", "one layer", "embeddings", "bias of B", "pissa", "repeated layers", "parameters"],
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
        (lora(init_lora_weights="pissa_niter_4"), "got init_lora_weights 'pissa_niter_4', with which peft changes"),
        (lora(bias="all", modules_to_save=["lm_head"]), r"bias 'all' and modules_to_save \['lm_head'\] and an adapted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_adapter_that_trains_more_is_refused_by_name(world, tmp_path, config, part):
    start = save_adapter(world["model"], tmp_path / "a", config)
    with pytest.raises(ProdError, match=part):
        run(make({**world, "model": start}, tmp_path / "o"))
    assert not (tmp_path / "o").exists()


def named_base(output):
    return json.loads((Path(output) / "adapter_config.json").read_text())["base_model_name_or_path"]


def test_the_base_is_found_from_any_directory(world, tmp_path, monkeypatch):
    """By peft alone; the run was given a relative path, and a second one the first adapter."""
    model = shutil.copytree(world["model"], tmp_path / "here" / "m")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(make({**world, "model": "m"}, "first"))
    old = Path("first", "adapter_config.json")
    old.write_text(old.read_text().replace(str(model), "m"))  # as it was written once
    run(make({**world, "model": "first"}, "second"))
    monkeypatch.chdir(tmp_path / "there")
    assert named_base(tmp_path / "here" / "second") == str(model)
    got = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "here" / "second"))
    weights = load_file(tmp_path / "here" / "second" / "adapter_model.safetensors")
    found = {name.replace(".default", ""): weight for name, weight in got.state_dict().items()}
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    shutil.move(model, tmp_path / "there" / "m")
    with pytest.raises(ProdError, match=r"its base model .*/here/m is not there: if it was moved, write its new place"):
        run(make({**world, "model": str(tmp_path / "here" / "second")}, tmp_path / "third"))


def test_a_gguf_file_s_model_is_written_on_request(world, tmp_path, monkeypatch, caplog):
    """Converting one takes 20 s: here the tiny model stands for what its file holds."""
    file = tmp_path / "x.gguf"
    file.touch()
    monkeypatch.setattr(modeling, "load_tokenizer", lambda _: load_tokenizer(world["model"]))
    of_file = lambda name, **options: load_model(world["model"] if name == str(file) else name, **options)  # noqa: E731
    for module in (modeling, models):
        monkeypatch.setattr(module, "load_model", of_file)
    run(make({**world, "model": str(file)}, tmp_path / "o"))
    assert named_base(tmp_path / "o") == str(file)
    assert (
        "x.gguf, which prod-train loads and peft alone cannot: for peft, --save-base writes it in the hub's format"
        in caplog.text
    )
    caplog.clear()
    run(make({**world, "model": str(file)}, tmp_path / "p", save_base=True))
    assert "--save-base" not in caplog.text
    assert named_base(tmp_path / "p") == str(tmp_path / "p" / "base")
    with torch.no_grad():
        got = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "p")).eval()(IDS).logits
        base = AutoModelForCausalLM.from_pretrained(world["model"])
        assert torch.equal(got, PeftModel.from_pretrained(base, str(tmp_path / "o")).eval()(IDS).logits)


@pytest.mark.long
def test_bundled_becomes_a_base_that_peft_loads(world, tmp_path):
    run(make({**world, "model": "bundled"}, tmp_path / "o", save_base=True, max_steps=1, eval_rows=1, dtype="float32"))
    adapted = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "o"))
    assert adapted.get_base_model().config.hidden_size == 576
    assert AutoTokenizer.from_pretrained(tmp_path / "o").eos_token == "<|im_end|>"


@pytest.mark.parametrize("other", [{"tuning": "full"}, {"load_in_4bit": True}])
def test_a_base_is_saved_for_an_adapter_of_it_only(other):
    assert any(problem.startswith("--save-base: belongs to") for problem in Config(save_base=True, **other).problems())
