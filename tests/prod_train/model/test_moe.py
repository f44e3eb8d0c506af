"""A mixture of experts: their weights get no adapter without a word, or one that peft loads and that merges."""

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from prod_decode.errors import ProdError
from prod_train.config.config import Config
from prod_train.model.experts import expert_weights
from prod_train.model.modeling import add_adapter
from prod_train.run.merge import merge
from prod_train.run.trainer import run
from tests.tiny import save_deepseek, save_tiny_model, write_snippets

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]

IDS = torch.arange(4, 40).reshape(3, 12)
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moe")
    tokenizer = AutoTokenizer.from_pretrained(save_tiny_model(folder / "dense"))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    ends = {"bos_token_id": None, "eos_token_id": 265, "pad_token_id": 265}
    config = Qwen3MoeConfig(vocab_size=300, num_hidden_layers=2, initializer_range=0.3, **shape, **heads, **ends)
    Qwen3MoeForCausalLM(config).save_pretrained(folder / "m")
    tokenizer.save_pretrained(folder / "m")
    return {"model": str(folder / "m"), "forget": write_snippets(folder / "f.jsonl", 4)}


@pytest.fixture(scope="module")
def deepseek(world, tmp_path_factory):
    return {**world, "model": save_deepseek(tmp_path_factory.mktemp("deepseek") / "m", world["model"])}


def make(world, output, **options):
    given = {"method": "learn", "max_steps": 2, "learning_rate": 1e-2, "lora_rank": 4, "eval_rows": 1}
    return Config(**{**world, "output": str(output), **given, **options})


def test_experts_without_an_adapter_are_said(world, tmp_path, caplog):
    """2 layers of 4 * (32 * 32 + 32 * 16) weights are experts', of 38,080."""
    run(make(world, tmp_path / "o"))
    assert "32 % of the model's weights are those of experts (experts.down_proj, experts.gate_up_proj)" in caplog.text
    assert not [name for name in load_file(tmp_path / "o" / "adapter_model.safetensors") if "experts" in name]


def test_experts_are_adapted_on_request(world, tmp_path, caplog):
    run(make(world, tmp_path / "o", lora_targets=("q_proj", *EXPERTS)))
    assert "those of experts" not in caplog.text
    weights = load_file(tmp_path / "o" / "adapter_model.safetensors")
    experts = [weight for name, weight in weights.items() if "experts" in name and "lora_B" in name]
    assert len(experts) == 4
    assert all(weight.any() for weight in experts)
    merges_as_it_runs(world["model"], tmp_path / "o", tmp_path / "merged")
    run(make({**world, "model": str(tmp_path / "o")}, tmp_path / "again", lora_rank=16))


def merges_as_it_runs(model, output, merged):
    merge(str(output), str(merged))
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(model)
        plain = base(IDS).logits
        adapted = PeftModel.from_pretrained(base, str(output)).eval()(IDS).logits
        whole = AutoModelForCausalLM.from_pretrained(merged)(IDS).logits
    assert torch.allclose(adapted, whole, atol=1e-4)
    assert (adapted - plain).abs().max() > 0.1


def test_where_peft_adapts_experts_by_itself_that_is_said(deepseek, tmp_path, caplog):
    """All linear layers of MLPs, three a block, keep what they know: peft takes their names for those of experts."""
    retain = write_snippets(tmp_path / "r.jsonl", 3, 4)
    run(make(deepseek, tmp_path / "o", method="npo", retain=retain, lora_init="contrast"))
    assert "get no adapter" not in caplog.text
    said = (
        "experts' weights of this kind of model (down_proj, gate_up_proj), and not on 6 linear layers (mlp.down_proj, "
    )
    assert said in caplog.text
    weights = load_file(tmp_path / "o" / "adapter_model.safetensors")
    assert len([name for name in weights if ".experts." in name and "lora_B" in name]) == 2
    assert not [name for name in weights if ".mlp." in name and ".experts." not in name]
    merges_as_it_runs(deepseek["model"], tmp_path / "o", tmp_path / "merged")
    run(make({**deepseek, "model": str(tmp_path / "o")}, tmp_path / "again", lora_rank=16))


def test_layers_without_an_adapter_are_said_by_any_name(deepseek, tmp_path, caplog):
    run(make(deepseek, tmp_path / "o", lora_targets=("model.layers.0.mlp.down_proj", "o_proj")))
    assert (
        "experts' weights of this kind of model (down_proj), and not on 1 linear layers (mlp.down_proj)" in caplog.text
    )
    assert "are those of experts (experts.gate_up_proj), which get no adapter" in caplog.text


def test_a_name_that_experts_and_layers_have_means_both(world, tmp_path, caplog):
    """In Qwen2-MoE peft leaves names alone; `down_proj` is of experts, and of one that all tokens are given to."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    ends = {"bos_token_id": None, "eos_token_id": 265, "pad_token_id": 265}
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(vocab_size=300, num_hidden_layers=1, **shape, **heads, **ends))
    adapted = add_adapter(model, make(world, tmp_path / "o", lora_targets=("down_proj", "q_proj")))
    layers = {name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    assert {name.rpartition("layers.0.")[2] for name in layers} == {
        "self_attn.q_proj",
        "mlp.experts",
        "mlp.shared_expert.down_proj",
    }
    assert "linear layers" not in caplog.text.replace("beside the linear layers", "")


def test_contrast_needs_a_layer(deepseek, tmp_path):
    options = {"method": "npo", "retain": write_snippets(tmp_path / "r.jsonl", 3, 4), "lora_init": "contrast"}
    with pytest.raises(ProdError, match=r"--lora-init contrast: expected adapters on linear layers, got them on exp"):
        run(make(deepseek, tmp_path / "o", lora_targets=("down_proj",), **options))


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"lora_targets": ("gate_proj",)}])
def test_what_peft_cannot_adapt_is_refused(deepseek, tmp_path, options):
    with pytest.raises(ProdError, match=r"peft cannot adapt DeepseekV3ForCausalLM so: .* change --lora-targets or"):
        run(make(deepseek, tmp_path / "o", **options))


def test_gradients_of_experts_are_not_left_unprojected(world, tmp_path):
    retain = write_snippets(tmp_path / "r.jsonl", 3, 4)
    options = {"method": "npo", "retain": retain, "gradient_projection": 2}
    with pytest.raises(ProdError, match=r"--gradient-projection: 4 adapters are on no layer with an input, .*"):
        run(make(world, tmp_path / "o", lora_targets=("q_proj", *EXPERTS), **options))
    run(make(world, tmp_path / "p", lora_targets=("q_proj",), **options))


def test_what_is_no_expert_s_weight():
    """RWKV mixes each token with the one before by weights of shape [1, 1, width]."""
    block = torch.nn.Module()
    block.experts, block.time_mix = torch.nn.Parameter(torch.zeros(4, 8, 8)), torch.nn.Parameter(torch.zeros(1, 1, 8))
    block.convolution = torch.nn.Conv1d(8, 8, 3)
    assert set(expert_weights(torch.nn.Sequential(block))) == {"0.experts"}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (
            {"lora_targets": EXPERTS, "lora_dropout": 0.1},
            "^--lora-dropout: does not fit experts.gate_up_proj",
        ),
        ({"lora_targets": ("up_proj",)}, r"no linear layer is called up_proj, expected .*, or down_proj, gate_up_proj"),
    ],
)
def test_targets_that_do_not_fit_are_refused(world, tmp_path, options, part):
    with pytest.raises(ProdError, match=part):
        run(make(world, tmp_path / "o", **options))
