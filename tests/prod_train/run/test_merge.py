"""`prod-train merge`: what is written says what peft says of base and adapter, or nothing is written."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prod_decode.errors import ProdError
from prod_train.cli import main
from prod_train.config.config import Config
from prod_train.run import merge as merge_module
from prod_train.run.merge import merge
from prod_train.run.trainer import run
from tests.tiny import save_tiny_model, write_snippets

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]

IDS = torch.arange(4, 40).reshape(3, 12)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model whose head is its embedding, a run on it, and the run's data."""
    folder = tmp_path_factory.mktemp("merge")
    names = {
        "model": save_tiny_model(folder / "m"),
        "forget": write_snippets(folder / "f.jsonl", 4),
        "holdout": write_snippets(folder / "h.jsonl", 2, 5),
    }
    options = {"method": "learn", "max_steps": 2, "learning_rate": 1e-2, "eval_rows": 3}
    report = run(Config(**names, output=str(folder / "run"), **options))
    return {**names, "run": str(folder / "run"), "report": report}


def save_adapter(model, folder, config):
    """An adapter of peft's with random weights; returns its directory's name."""
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.3)
    adapted.save_pretrained(folder)
    return str(folder)


def lora(targets=("q_proj",), **options):
    return LoraConfig(r=4, target_modules=list(targets), task_type="CAUSAL_LM", **options)


@torch.no_grad()
def logits(model, adapter=None):
    """As transformers and peft alone give them."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded = loaded if adapter is None else PeftModel.from_pretrained(loaded, adapter)
    return loaded.eval()(IDS).logits


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        lora(["embed_tokens"]),
        lora(["lm_head"]),
        lora(["embed_tokens", "lm_head", "q_proj"]),
        lora(["embed_tokens", "lm_head"], ensure_weight_tying=True),
    ],
    ids=["embeddings", "head", "both", "tied"],
)
def test_an_adapter_on_a_shared_weight_is_refused_or_the_weights_parted(world, tmp_path, config):
    adapter = save_adapter(world["model"], tmp_path / "a", config)
    with pytest.raises(ProdError, match=r"share one weight in this base.*: use --untie"):
        merge(adapter, str(tmp_path / "m"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    merge(adapter, str(tmp_path / "m"), untie=True)
    assert torch.allclose(logits(tmp_path / "m"), logits(world["model"], adapter), atol=1e-4)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["tie_word_embeddings"] is False
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(load_file(tmp_path / "m" / "model.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "tied"),
    [
        (lora(modules_to_save=["embed_tokens"]), False),
        (lora(modules_to_save=["norm"], bias="all"), True),
        (lora(use_dora=True), True),
        (lora(use_rslora=True, rank_pattern={"q_proj": 2}), True),
        (lora(trainable_token_indices=[3, 4, 5]), True),
        (IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), True),
    ],
    ids=["embeddings kept", "norm kept", "dora", "rslora", "tokens", "ia3"],
)
def test_other_adapters_are_merged_as_peft_applies_them(world, tmp_path, config, tied):
    adapter = save_adapter(world["model"], tmp_path / "a", config)
    merge(adapter, str(tmp_path / "m"))
    want = logits(world["model"], adapter)
    assert torch.allclose(logits(tmp_path / "m"), want, atol=1e-4)
    assert (want - logits(world["model"])).abs().max() > 0.1
    assert json.loads((tmp_path / "m" / "config.json").read_text())["tie_word_embeddings"] is tied


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "changes weights, got PROMPT_TUNING"),
        (lora(lora_bias=True), "base layer has no bias"),
        (lora(layer_replication=[(0, 2), (1, 2)]), r"repeats layers of its base .*: load it unmerged"),
        (lora(init_lora_weights="pissa_niter_4"), "got init_lora_weights 'pissa_niter_4', with which peft changes"),
    ],
    ids=["prompt", "bias", "repeated layers", "random base"],
)
def test_what_cannot_be_merged_is_one_line(world, tmp_path, config, part):
    adapter = save_adapter(world["model"], tmp_path / "a", config)
    with pytest.raises(ProdError, match=part):
        merge(adapter, str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_files_that_say_something_else_are_not_kept(world, tmp_path, monkeypatch):
    """Whatever the reason is: here the adapter is dropped, and one weight is lost on its way to the disk."""
    adapter = save_adapter(world["model"], tmp_path / "a", lora())
    with monkeypatch.context() as patch:
        patch.setattr("peft.tuners.lora.LoraModel.merge_and_unload", lambda self, **_: self.unload())
        with pytest.raises(ProdError, match=r"expected the merged model's logits.*load it unmerged"):
            merge(adapter, str(tmp_path / "m"))
        with pytest.raises(ProdError, match=r"expected the merged model's logits.*use --dtype float32"):
            merge(adapter, str(tmp_path / "m"), dtype="bfloat16")

    load = merge_module.load_model

    def spoilt(name, **options):
        weights = load_file(Path(name) / "model.safetensors")
        weights["model.norm.weight"] *= 1.01
        save_file(weights, Path(name) / "model.safetensors", metadata={"format": "pt"})
        return load(name, **options)

    monkeypatch.setattr(merge_module, "load_model", spoilt)
    with pytest.raises(ProdError, match="expected the merged model's logits"):
        merge(adapter, str(tmp_path / "m"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_directory_with_a_model_and_an_adapter_is_neither(world, tmp_path, capsys):
    """transformers loads the adapter with the model, so that it would be there twice."""
    adapter = save_adapter(world["model"], tmp_path / "a", lora())
    both = shutil.copytree(world["model"], tmp_path / "both")
    for path in Path(adapter).glob("adapter_*"):
        shutil.copy(path, both)
    data = ["--forget", world["forget"], "--output", str(tmp_path / "m")]
    for words in (
        ["merge", adapter, "--model", str(both), "--output", str(tmp_path / "m")],
        ["merge", str(both), "--output", str(tmp_path / "m")],
        ["run", "--model", str(both), *data],
        ["check", "--model", str(both), *data],
    ):
        capsys.readouterr()
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{both}: expected a model or an adapter, it holds both" in line
    assert not (tmp_path / "m").exists()
    # Here it is clear what is meant.
    merge(str(both), str(tmp_path / "m"), model=world["model"])
    assert torch.allclose(logits(tmp_path / "m"), logits(world["model"], adapter), atol=1e-4)


def test_an_adapter_is_no_base(world, tmp_path):
    first = save_adapter(world["model"], tmp_path / "first", lora())
    second = save_adapter(world["model"], tmp_path / "second", lora(["v_proj"]))
    with pytest.raises(ProdError, match=r"first: expected a whole model as the base, it is an adapter itself"):
        merge(second, str(tmp_path / "m"), model=first)


@pytest.mark.slow
def test_the_dtype_of_the_run_is_kept_and_the_files_are_measured(world, tmp_path, caplog):
    """The base's files are bfloat16; the run measured in float32, so that is what the metrics are of."""
    AutoModelForCausalLM.from_pretrained(world["model"]).bfloat16().save_pretrained(tmp_path / "base")
    for path in Path(world["model"]).glob("token*"):
        shutil.copy(path, tmp_path / "base")
    config = Config(
        model=str(tmp_path / "base"),
        forget=world["forget"],
        holdout=world["holdout"],
        output=str(tmp_path / "run"),
        method="learn",
        max_steps=2,
        eval_every=0.1,
        learning_rate=1e-2,
    )
    report = run(config)
    with caplog.at_level(logging.INFO, "prod_train"):
        merge(config.output, str(tmp_path / "m"))
    weights = load_file(tmp_path / "m" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    record = json.loads((tmp_path / "m" / "report.json").read_text())
    assert (record["dtype"], record["measured_dtype"]) == ("float32", "float32")
    for group in ("forget", "holdout"):
        for name, metric in report.after[group].items():
            assert record["metrics"][group][name]["value"] == pytest.approx(metric["value"], abs=1e-4), name
            assert record["adapter_metrics"][group][name] == metric
    assert record["rounding"]["difference"] < 1e-4 < record["rounding"]["adapter"]
    card = (tmp_path / "m" / "README.md").read_text()
    assert "| metric | adapter | merged | rows |" in card
    assert "Written in float32; the run measured in float32. On random text" in caplog.text
    # A checkpoint knows the same.
    merge(str(tmp_path / "run" / "checkpoint-1"), str(tmp_path / "c"))
    record = json.loads((tmp_path / "c" / "report.json").read_text())
    first = next(entry for entry in report.history if entry["step"] == 1)
    assert record["metrics"]["holdout"]["kl"]["value"] == pytest.approx(first["holdout"]["kl"]["value"], abs=1e-5)


def test_what_rounding_costs_is_said(world, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "prod_train"):
        merge(world["run"], str(tmp_path / "m"), dtype="bfloat16")
    record = json.loads((tmp_path / "m" / "report.json").read_text())
    assert (record["dtype"], record["measured_dtype"]) == ("bfloat16", "float32")
    assert record["rounding"]["difference"] > 1e-3
    assert "Written in bfloat16; the run measured in float32." in caplog.text
    assert "--dtype float32 rounds less" in (tmp_path / "m" / "README.md").read_text()
    # The metrics are those of the files, not of the run.
    after = world["report"].after["forget"]["probability"]["value"]
    assert record["metrics"]["forget"]["probability"]["value"] not in (after, None)


def test_without_the_data_logits_are_compared(world, tmp_path, caplog):
    moved = shutil.copytree(world["run"], tmp_path / "run")
    settings = (moved / "config.yaml").read_text()
    for forget, part in (
        ("gone.jsonl", "is not evaluated: cannot read gone.jsonl"),
        (write_snippets(tmp_path / "g.jsonl", 3), "g.jsonl is not what the run read"),
    ):
        (moved / "config.yaml").write_text(settings.replace(world["forget"], forget))
        merge(str(moved), str(tmp_path / forget.replace("/", "_")))
        assert part in caplog.text
        record = json.loads((tmp_path / forget.replace("/", "_") / "report.json").read_text())
        assert record["metrics"] is None
        assert record["rounding"]["difference"] < 1e-4
    merge(world["run"], str(tmp_path / "m"), measure=False)
    assert json.loads((tmp_path / "m" / "report.json").read_text())["metrics"] is None


@pytest.mark.parametrize("where", ["model", "run"])
def test_weights_that_are_no_numbers_are_named(world, tmp_path, where):
    names = {**world, where: str(shutil.copytree(world[where], tmp_path / where))}
    (file,) = Path(names[where]).glob("*model.safetensors")
    weights = load_file(file)
    name = sorted(weights)[-1]
    weights[name].view(-1)[:2] = torch.tensor([float("nan"), float("inf")])
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ProdError, match=r"expected finite weights, 1 tensors have NaN or infinite ones, .* with 2: "):
        merge(names["run"], str(tmp_path / "m"), model=names["model"])
    start = names["model"] if where == "model" else names["run"]
    with pytest.raises(ProdError, match=f"^{start}: expected finite weights"):
        run(Config(model=start, forget=world["forget"], output=str(tmp_path / "o")))
    assert not (tmp_path / "m").exists()


def test_an_adapter_with_half_its_weights_is_refused(world, tmp_path):
    """peft goes on with the others as they began."""
    adapter = save_adapter(world["model"], tmp_path / "a", lora())
    weights = load_file(Path(adapter) / "adapter_model.safetensors")
    half = {name: weight for name, weight in weights.items() if "layers.0" in name}
    save_file(half, Path(adapter) / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ProdError, match="a does not fit its base: Found missing adapter keys"):
        merge(adapter, str(tmp_path / "m"))
