"""Whole runs on a tiny random model. Trajectories that must be equal are compared weight by weight."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError
from prod_train.config.config import Config
from prod_train.config.schedule import Schedule, learning_rate
from prod_train.config.stopping import choose, stop_reason
from prod_train.data.rows import collate
from prod_train.loss.sparse import sparse_kl
from prod_train.run import session as session_module
from prod_train.run import trainer
from prod_train.run.job import prepare
from prod_train.run.merge import merge
from prod_train.run.session import setup
from prod_train.run.trainer import fit, run
from prod_train.targets.prohibited import prohibited_by
from tests import ROOT
from tests.tiny import save_tiny_model, write_jsonl, write_snippets

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("steps", "told"), [(3, [1, 2]), (20, [2, 4, 6, 8, 10, 12, 14, 16, 18])])
def test_where_no_bar_shows_it_every_tenth_of_the_steps_is_logged(world, tmp_path, caplog, steps, told):
    with caplog.at_level("INFO", "prod_train.run.trainer"):
        run(make(world, tmp_path / "o", max_steps=steps))
    words = [line.split(": ")[0].split(", ")[0] for line in caplog.messages if line.startswith("step ")]
    assert words == [f"step {step} of {steps}" for step in [*told, steps]]  # the last with what was measured
    caplog.clear()
    with caplog.at_level("INFO", "prod_train.run.trainer"):
        run(make(world, tmp_path / "p", max_steps=3), progress=True)
    assert [line[:11] for line in caplog.messages if line.startswith("step ")] == ["step 3 of 3"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, seven rows to forget, and other rows to retain and hold out."""
    folder = tmp_path_factory.mktemp("world")
    blocklist = folder / "b.prod"
    Blocklist.compile([Entry("return", boundary="none"), Entry("max(0")]).save(blocklist)
    return {
        "model": save_tiny_model(folder / "m"),
        "forget": write_snippets(folder / "f.jsonl"),
        "retain": write_snippets(folder / "r.jsonl", 3, 7),
        "holdout": write_snippets(folder / "h.jsonl", 2, 10),
        "blocklist": str(blocklist),
    }


def make(world, output, **options):
    given_ = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 4, "eval_every": 100}
    return Config(**{"model": world["model"], "forget": world["forget"], "output": str(output), **given_, **options})


def adapter(output):
    return load_file(Path(output) / "adapter_model.safetensors")


def assert_same(a, b, *, exactly=False):
    """Equal weights; otherwise but for the order of float32 additions.

    AdamW's first steps divide gradients by their own size, so that single elements whose gradient is nearly 0 may
    differ in the 5th digit: a tensor may differ by a thousandth of its norm. A mean of means differs by a tenth.
    """
    assert set(a) == set(b)
    for name in a:
        if exactly:
            assert torch.equal(a[name], b[name]), name
        else:
            difference = ((a[name] - b[name]).norm() / a[name].norm()).item()
            assert difference <= 1e-3, f"{name}: {difference}"


# --- equal trajectories ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("prod", {}),
        ("learn", {}),
        ("npo", {"retain_loss": "nll"}),
        ("dpo", {"retain_loss": "kl"}),
        ("flat", {}),
    ],
)
def test_one_times_eight_equals_eight_times_one(world, tmp_path, method, options):
    """Seven rows: the second step of each epoch has three, which a mean of means would weigh wrongly."""
    if options:
        options = {**options, "retain": world["retain"]}
    for name, batch, accumulate in (("a", 4, 1), ("b", 1, 4), ("c", 2, 2)):
        run(make(world, tmp_path / name, method=method, batch_size=batch, accumulate=accumulate, **options))
    start = {k: v for k, v in adapter(tmp_path / "a").items() if "lora_B" in k}
    assert all(v.abs().max() > 1e-3 for v in start.values())
    assert_same(adapter(tmp_path / "a"), adapter(tmp_path / "b"))
    assert_same(adapter(tmp_path / "a"), adapter(tmp_path / "c"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("where", ["step", "saving", "first"])
def test_killed_and_resumed_equals_uninterrupted(world, tmp_path, where):
    """`kill -9` before a random step, or in the middle of writing a checkpoint, the first one too. Dropout is on."""
    options = {"epochs": 4, "eval_every": 1, "lora_dropout": 0.2, "holdout": world["holdout"]}
    whole = run(make(world, tmp_path / "whole", **options))
    killed = make(world, tmp_path / "killed", **options)
    at = random.Random(7 if where == "step" else 8).randint(3, 7)
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
    else:
        _run_and_die(killed, where, at)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not Path(killed.output, "report.json").exists()
    resumed = run(replace(killed, resume=None if where == "first" else "latest"))
    assert_same(adapter(tmp_path / "whole"), adapter(tmp_path / "killed"), exactly=True)
    assert [r["step"] for r in resumed.history] == [r["step"] for r in whole.history] == [2, 4, 6, 8]
    assert resumed.history[-1]["holdout"] == whole.history[-1]["holdout"]
    assert resumed.before == whole.before
    assert not list(Path(killed.output).glob(".*"))


def _run_and_die(config, where, at):
    step, save = trainer.train_step, torch.save
    calls = []

    def die_before_step(session, model, optimizer, number):
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(session, model, optimizer, number)

    def die_while_saving(value, path):
        calls.append(path)
        save(value, path)
        if len(calls) == (1 if where == "first" else 2):
            os.truncate(path, 10)
            os.kill(os.getpid(), signal.SIGKILL)

    if where == "step":
        trainer.train_step = die_before_step
    else:
        torch.save = die_while_saving
    try:
        run(config)
    finally:
        os._exit(3)


@pytest.mark.slow
def test_a_run_goes_on_only_as_the_same_run(world, tmp_path):
    config = make(world, tmp_path / "o", eval_every=1)
    run(config)
    with pytest.raises(ProdError, match=r"belongs to another run, these differ: --learning-rate, --seed: use"):
        run(replace(config, resume="latest", learning_rate=1e-3, seed=1))
    other = write_snippets(tmp_path / "other.jsonl", 6)
    with pytest.raises(ProdError, match=r"belongs to another run, these differ: the rows \(--forget, --retain"):
        run(replace(config, resume="latest", forget=other))
    with pytest.raises(ProdError, match="is not empty: name a new directory, or go on with --resume latest"):
        run(config)
    with pytest.raises(ProdError, match="has no checkpoint"):
        run(make(world, tmp_path / "new", resume="latest"))
    before = adapter(tmp_path / "o")
    for state in (tmp_path / "o").glob("checkpoint-*/state.json"):
        kept = json.loads(state.read_text())
        del kept["fingerprint"]["lora_dropout"]  # as of an option that there was not yet
        state.write_text(json.dumps(kept))
    with pytest.raises(ProdError, match=r"belongs to another run, these differ: --lora-dropout: use"):
        run(replace(config, resume="latest", lora_dropout=0.1))
    run(replace(config, resume="latest"))  # nothing left to do
    assert_same(before, adapter(tmp_path / "o"), exactly=True)


# Under torchrun, as `accelerate launch` starts it on GPUs. accelerate itself sets up FSDP on accelerators only, so its
# state is told here; all the rest is what a run does. One launch for all runs: two processes import torch for 10 s.
TWO = """
import sys
from pathlib import Path
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from prod_train.config.config import make_config
from prod_train.run.job import prepare
from prod_train.run.session import setup
from prod_train.run.trainer import finish, fit

for file in sys.argv[1:]:
    accelerator = Accelerator()
    sharding = Path(file).name.startswith("fsdp2")
    if sharding:
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False,
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"], state_dict_type="FULL_STATE_DICT",
        )
    session = setup(prepare(make_config(file, {})), accelerator)
    state = fit(session)
    finish(session, state)
    sharded = any(hasattr(p, "full_tensor") for p in session.model.parameters())
    if (sharded, accelerator.num_processes) != (sharding, 2):
        raise SystemExit(f"{file}: not what was asked for")
"""
# Unsharded ones first: what accelerate is told stays.
SPLIT = [("ddp", "lora"), ("fsdp2", "lora"), ("fsdp2", "full")]


def split_options(world, tuning):
    common = {"tuning": tuning, "retain": world["retain"], "holdout": world["holdout"], "epochs": 3, "accumulate": 3}
    common |= {"gradient_projection": 3} if tuning == "lora" else {}
    return common | {"learning_rate": 1e-2 if tuning == "lora" else 1e-3, "eval_every": 2}


@pytest.fixture(scope="module")
def of_two_processes(world, tmp_path_factory):
    """The folder with what two processes make of every `SPLIT`: `-whole`, and `-resumed` from its checkpoint 4."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "two.py").write_text(TWO)
    files = []
    for mode, tuning in SPLIT:
        whole = folder / f"{mode}-{tuning}-whole"
        for name, more in (("whole", {}), ("resumed", {"resume": str(whole / "checkpoint-4")})):
            output = folder / f"{mode}-{tuning}-{name}"
            files.append(f"{output}.yaml")
            make(world, output, batch_size=1, **split_options(world, tuning), **more).save(Path(files[-1]))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    words = [*command, str(folder / "two.py"), *files]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.long
@pytest.mark.parametrize(("mode", "tuning"), SPLIT, ids=lambda value: value)
def test_two_processes_equal_one(world, of_two_processes, tmp_path, mode, tuning):
    """gloo on CPUs; 7 rows and 6 a step, so that in every second step one process has nothing to do. And resumed."""
    one = run(make(world, tmp_path / "one", batch_size=2, **split_options(world, tuning)))
    name = "adapter_model.safetensors" if tuning == "lora" else "model.safetensors"
    want = load_file(tmp_path / "one" / name)
    for which in ("whole", "resumed"):
        output = of_two_processes / f"{mode}-{tuning}-{which}"
        got = load_file(output / name)
        # A sharded model saves the head that is tied to the embeddings once more.
        assert_same(want, {key: value for key, value in got.items() if key in want})
        history = json.loads((output / "report.json").read_text())["history"]
        assert [record["step"] for record in history] == [record["step"] for record in one.history]
        for mine, theirs in zip(history, one.history, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert mine["holdout"]["kl"]["value"] == pytest.approx(theirs["holdout"]["kl"]["value"], rel=1e-3)


# --- what training does ----------------------------------------------------------------------------------------------


def target_kl_and_probability(session):
    """KL(target || model) and the mean probability of the forget set's tokens, over the forget set."""
    job = session.job
    session.model.eval()
    with torch.no_grad():
        batch = collate(job.forget, job.pad)
        hidden = session.encoder(session.model, batch)
        head = session.encoder.head()
        targets = session.stores["forget"].batch(range(len(job.forget)), "cpu").targets
        kl = sparse_kl(hidden, head.weight, targets).item()
        chance = head.log_probs(hidden, batch.labels).exp()
        eos = batch.labels == job.tokenizer.eos_token_id
        return kl, chance[~eos].mean().item()


@settings(max_examples=5)
@given(st.integers(0, 1000), st.integers(1, 6), st.sampled_from([0.5, 0.8, 1.0]))
@pytest.mark.slow
def test_targets_come_nearer_and_prohibited_tokens_become_unlikely(tmp_path_factory, seed, rows, top_p):
    """The model has learned the rows first, as in the paper's protocol: random weights give every token 1/300."""
    folder = tmp_path_factory.mktemp("p")
    model = save_tiny_model(folder / "m", seed=seed)
    forget = write_snippets(folder / "f.jsonl", rows)
    common = {"forget": forget, "eval_every": 100, "eval_rows": 1, "batch_size": 8}
    learned = Config(
        model=model, output=str(folder / "learn"), method="learn", max_steps=25, learning_rate=2e-2, **common
    )
    run(learned)
    merge(str(folder / "learn"), str(folder / "taught"))
    config = Config(
        model=str(folder / "taught"), output=str(folder / "o"), top_p=top_p, max_steps=10, learning_rate=1e-2, **common
    )
    session = setup(prepare(config))
    kl, chance = target_kl_and_probability(session)
    fit(session)
    kl_after, chance_after = target_kl_and_probability(session)
    assert kl_after < kl
    assert chance_after < chance


@pytest.mark.slow
def test_a_blocklist_trains_away_what_it_bans(world, tmp_path):
    run(make(world, tmp_path / "learn", method="learn", epochs=20, learning_rate=2e-2))
    merge(str(tmp_path / "learn"), str(tmp_path / "taught"))
    config = make(world, tmp_path / "o", model=str(tmp_path / "taught"), blocklist=world["blocklist"], epochs=10)
    session = setup(prepare(config))
    job = session.job

    def banned_mass():
        total = []
        session.model.eval()
        for row in job.forget:
            batch = collate([row], job.pad)
            with torch.no_grad():
                p = session.encoder.head().logits(session.encoder(session.model, batch)).softmax(-1)
            rows, tokens = prohibited_by(job.matcher, row)
            known = tokens < 265  # ids without bytes are banned everywhere
            total.append(p[rows[known], tokens[known]])
        return torch.cat(total).sum().item()

    before = banned_mass()
    fit(session)
    assert before > 2  # four places in the rows: three times `return`, once `max(0`
    assert banned_mass() < 0.5 * before


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_activation_checkpointing_changes_nothing(world, tmp_path, tuning):
    for name, on in (("a", False), ("b", True)):
        run(make(world, tmp_path / name, tuning=tuning, gradient_checkpointing=on))
    file = "adapter_model.safetensors" if tuning == "lora" else "model.safetensors"
    assert_same(load_file(tmp_path / "a" / file), load_file(tmp_path / "b" / file))
    if tuning == "lora":
        assert all(v.any() for k, v in adapter(tmp_path / "b").items() if "lora_B" in k)


def test_adapters_that_get_no_gradient_are_noticed(world, tmp_path, monkeypatch):
    """What happens without enable_input_require_grads in reentrant checkpointing: lora_B stays at zero, silently."""

    def forgetful(model):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        model.disable_input_require_grads()  # transformers 5 does it by itself, older ones and other code do not

    monkeypatch.setattr(session_module, "enable_checkpointing", forgetful)
    message = r"14 of 14 trained layers get no gradient.*enable_input_require_grads"
    with (
        pytest.warns(UserWarning, match="None of the inputs have requires_grad"),
        pytest.raises(ProdError, match=message),
    ):
        run(make(world, tmp_path / "o", gradient_checkpointing=True))
    assert not (tmp_path / "o" / "report.json").exists()


def test_full_tuning_trains_every_weight_and_resumes(world, tmp_path):
    options = {"tuning": "full", "epochs": 2, "eval_every": 1, "learning_rate": 1e-3}
    config = make(world, tmp_path / "o", **options)
    run(config)
    whole = load_file(tmp_path / "o" / "model.safetensors")
    start = load_file(Path(world["model"]) / "model.safetensors")
    assert all((whole[name] != start[name]).any() for name in start)
    run(make(world, tmp_path / "p", resume=str(tmp_path / "o" / "checkpoint-2"), **options))
    assert_same(whole, load_file(tmp_path / "p" / "model.safetensors"), exactly=True)


def test_a_damaged_checkpoint_is_refused(world, tmp_path):
    config = make(world, tmp_path / "o", tuning="full", epochs=1)
    run(config)
    (source,) = (tmp_path / "o").glob("checkpoint-*")
    weights = load_file(source / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({name: weight for name, weight in weights.items() if name != lost}, source / "model.safetensors")
    with pytest.raises(ProdError, match=f"lacks {lost}: it is damaged"):
        run(replace(config, resume="latest"))


def test_a_process_without_rows_has_gradients_for_every_weight(world, tmp_path):
    """Others wait for them, the output head's among them where it is not the embedding."""
    model = save_tiny_model(tmp_path / "m", tied=False)
    session = setup(prepare(make(world, tmp_path / "o", model=model, tuning="full")))
    trainer._nothing(session, session.model).backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in session.model.parameters())


def test_a_tokenizer_with_several_chat_templates_is_kept_whole(world, tmp_path):
    model = save_tiny_model(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = {"default": "{{ messages[0] }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(model)
    run(make(world, tmp_path / "o", model=model, epochs=1))
    assert AutoTokenizer.from_pretrained(tmp_path / "o").chat_template == tokenizer.chat_template


@pytest.mark.slow
def test_a_4_bit_base_trains(world, tmp_path):
    model = save_tiny_model(tmp_path / "m", width=128)  # blocks of 64 weights
    options = {"method": "learn", "load_in_4bit": True, "gradient_checkpointing": True, "eval_every": 5, "epochs": 10}
    report = run(make(world, tmp_path / "o", model=model, **options))
    assert report.history[-1]["loss"] < 0.5 * report.history[0]["loss"]
    assert all(v.any() for v in adapter(tmp_path / "o").values())


def test_paper_compat_covers_the_prompt_and_no_eos(world, tmp_path):
    config = make(world, tmp_path / "o", paper_compat=True, alpha=0.5)
    session = setup(prepare(config))
    job = session.job
    for number, row in enumerate(job.forget):
        assert row.supervised.tolist() == [False] + [True] * (len(row.ids) - 1)
        assert job.tokenizer.eos_token_id not in row.ids
        targets = session.stores["forget"].batch([number], "cpu").targets.to_dense(300)
        y = torch.from_numpy(row.ids[1:])
        assert (targets[torch.arange(len(y)), y] < 0).all()
        sums = targets.clamp(min=0).sum(-1)
        assert torch.allclose(sums[1:], torch.ones(len(sums) - 1), atol=1e-5)
        assert sums[0] <= 1 + 1e-5
    fit(session)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "want"), [("npo", 20 * np.log(2)), ("dpo", np.log(2))])
def test_a_preference_is_a_mean_over_rows(world, tmp_path, method, want):
    """At the start every ratio to the reference model is 1, whatever a row's length."""
    report = run(make(world, tmp_path / "o", method=method, max_steps=1))
    assert report.history[-1]["loss"] == pytest.approx(want, rel=1e-4)


def test_refusals_are_drawn_anew_each_epoch(world, tmp_path, monkeypatch):
    seen = []
    original = trainer._reference

    def spy(session, name, rows):
        if name == "refused":
            seen.append(rows)
        return original(session, name, rows)

    monkeypatch.setattr(trainer, "_reference", spy)
    run(make(world, tmp_path / "o", method="dpo", batch_size=7, epochs=3))
    assert len(seen) == 3
    choices = [{i // 6: i % 6 for i in rows} for rows in seen]
    assert all(set(c) == set(range(7)) for c in choices)
    assert choices[0] != choices[1] != choices[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kl", "nll"])
def test_a_retain_loss_keeps_the_retain_set(world, tmp_path, kind):
    """Measured on the retain set itself: KL to the start for `kl`, the loss for `nll`."""
    options = {"retain": world["retain"], "holdout": world["retain"], "retain_loss": kind, "epochs": 5}
    damage = []
    for weight in (0.0, 10.0):
        report = run(make(world, tmp_path / str(weight), retain_weight=weight, **options))
        damage.append(report.after["holdout"]["kl" if kind == "kl" else "loss"]["value"])
    assert damage[1] < 0.7 * damage[0]


@pytest.mark.slow
def test_the_learning_rate_follows_its_schedule(world, tmp_path):
    for scheduler in ("linear", "constant"):
        run(make(world, tmp_path / scheduler, scheduler=scheduler))
    with pytest.raises(AssertionError):
        assert_same(adapter(tmp_path / "linear"), adapter(tmp_path / "constant"))


def test_gradients_are_clipped(world, tmp_path):
    """AdamW forgets the size of gradients, but for those below its epsilon of 1e-8."""
    moved = []
    for norm in (1e-12, 1.0):
        run(make(world, tmp_path / str(norm), max_grad_norm=norm, max_steps=1))
        moved.append(max(v.abs().max().item() for k, v in adapter(tmp_path / str(norm)).items() if "lora_B" in k))
    assert moved[0] < 1e-3 * moved[1]


@pytest.mark.slow
@pytest.mark.parametrize("max_grad_norm", [1.0, None])
def test_gradients_that_are_not_finite_end_the_run_and_spoil_nothing(world, tmp_path, monkeypatch, max_grad_norm):
    """As some attention kernels give, from a finite loss; see `_without_cudnn_attention`."""
    config = make(world, tmp_path / "o", max_steps=3, eval_every=0.5, max_grad_norm=max_grad_norm)  # 2 steps an epoch
    steps = trainer.train_step

    def train_step(session, model, optimizer, step):
        if step == 1:
            (parameter, *_) = trainer.trainable(session.model).values()
            handle = parameter.register_hook(lambda gradient: gradient * float("nan"))
        try:
            return steps(session, model, optimizer, step)
        finally:
            if step == 1:
                handle.remove()

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", train_step)
        with pytest.raises(
            ProdError, match=r"^step 2 of 3: expected finite gradients, got a norm of nan at a loss of \d"
        ):
            run(config)
    assert not (tmp_path / "o" / "report.json").exists()
    run(replace(config, resume="latest"))
    run(replace(config, output=str(tmp_path / "whole")))
    assert_same(adapter(tmp_path / "o"), adapter(tmp_path / "whole"), exactly=True)


@pytest.mark.slow
def test_training_leaves_cudnn_attention_alone_and_puts_it_back(world, tmp_path, monkeypatch):
    seen = []
    run_model = trainer._run
    monkeypatch.setattr(
        trainer, "_run", lambda *given_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()) or run_model(*given_)
    )
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for enabled in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(enabled)
            run(make(world, tmp_path / str(enabled), max_steps=1))
            assert torch.backends.cuda.cudnn_sdp_enabled() == enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert seen
    assert not any(seen)


# --- results ---------------------------------------------------------------------------------------------------------


def test_the_adapter_loads_in_peft_and_merges(world, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run(make(world, tmp_path / "o"))
    about = json.loads((tmp_path / "o" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == world["model"]
    assert (about["r"], about["bias"], about["modules_to_save"], about["use_dora"]) == (16, "none", None, False)
    assert "lm_head" not in about["target_modules"]
    base = AutoModelForCausalLM.from_pretrained(world["model"])
    ids = torch.arange(12).reshape(2, 6)
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "o"))(ids).logits
    merge(str(tmp_path / "o"), str(tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    assert torch.allclose(adapted, merged, atol=1e-4)
    assert not torch.allclose(plain, merged, atol=1e-2)
    with pytest.raises(ProdError, match="exists: name a new directory"):
        merge(str(tmp_path / "o"), str(tmp_path / "merged"))
    other = save_tiny_model(tmp_path / "other", layers=1)
    with pytest.raises(ProdError, match="expected the directory of an adapter"):
        merge(other, str(tmp_path / "no"))
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_training_goes_on_from_an_adapter(world, tmp_path):
    """The reference is the model as it starts, adapter included: KL to it is 0 before, and targets are its own."""
    run(make(world, tmp_path / "first", method="learn"))
    second = run(make(world, tmp_path / "second", model=str(tmp_path / "first"), holdout=world["holdout"]))
    assert second.before["holdout"]["kl"]["value"] == pytest.approx(0, abs=1e-6)
    about = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == world["model"]
    base = run(make(world, tmp_path / "base", holdout=world["holdout"]))
    assert base.before["holdout"]["loss"]["value"] != pytest.approx(second.before["holdout"]["loss"]["value"], rel=1e-3)


def test_the_model_card_has_figures_and_hashes(world, tmp_path):
    report = run(make(world, tmp_path / "o", holdout=world["holdout"]))
    card = (tmp_path / "o" / "README.md").read_text()
    record = json.loads((tmp_path / "o" / "report.json").read_text())
    for text in (
        record["teacher"],
        record["data"]["forget"]["hash"],
        "| holdout KL, nats per token |",
        "learning_rate: 0.01",
    ):
        assert text in card
    assert record["data"]["forget"]["rows"] == 7
    for metrics in (report.before, report.after):
        for group in ("forget", "holdout"):
            for metric in metrics[group].values():
                assert metric["low"] <= metric["value"] <= metric["high"]
                assert metric["n"] == (7 if group == "forget" else 2)
    assert (tmp_path / "o" / "config.yaml").exists()
    assert (tmp_path / "o" / "checkpoint-4" / "config.yaml").exists()


def test_a_tracker_gets_losses_and_metrics(world, tmp_path, monkeypatch):
    options = {"holdout": world["holdout"], "report_to": "tensorboard", "eval_every": 1}
    report = run(make(world, tmp_path / "o", **options))
    events = b"".join(path.read_bytes() for path in (tmp_path / "o").rglob("events.out.tfevents.*"))
    for name in (b"train/loss", b"train/learning_rate", b"forget/recitation", b"holdout/kl"):
        assert events.count(name) >= len(report.history)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(ProdError, match="--report-to: expected the package of tensorboard"):
        run(make(world, tmp_path / "p", **options))


@pytest.mark.slow
def test_cached_targets_are_used_again(world, tmp_path, monkeypatch):
    options = {"cache": str(tmp_path / "cache"), "holdout": world["holdout"]}
    run(make(world, tmp_path / "a", **options))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(files) == 2
    run(make(world, tmp_path / "b", **options))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == files
    run(make(world, tmp_path / "c", top_p=0.5, **options))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3
    assert_same(adapter(tmp_path / "a"), adapter(tmp_path / "b"), exactly=True)


# --- mistakes, before the model loads --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "options", "part"),
    [
        ([{"prompt": "a", "completion": ""}], {}, "it is empty"),
        ([{"prompt": "a", "answer": "b"}], {}, "expected the keys"),
        ([{"prompt": "a", "completion": "b" * 50}], {"max_length": 20}, "1 of 1 rows have more than --max-length 20"),
        ([{"text": "abc"}], {"method": "dpo"}, "expected a prompt that a refusal can answer"),
        ([], {}, "at least one row"),
    ],
)
def test_bad_data_is_refused_before_the_model_loads(world, tmp_path, monkeypatch, records, options, part):
    monkeypatch.setattr(session_module, "load_base", lambda *_: pytest.fail("the model was loaded"))
    file = write_jsonl(tmp_path / "f.jsonl", records)
    with pytest.raises(ProdError, match=part):
        run(make(world, tmp_path / "o", **{**options, "forget": file}))
    assert not (tmp_path / "o").exists()


def test_a_tokenizer_without_eos_is_refused_before_the_model_loads(world, tmp_path, monkeypatch):
    monkeypatch.setattr(session_module, "load_base", lambda *_: pytest.fail("the model was loaded"))
    bare = save_tiny_model(tmp_path / "bare", eos=False)
    with pytest.raises(ProdError, match="has no EOS"):
        run(make(world, tmp_path / "o", model=bare))


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ("lm_head", "lm_head is the output head"),
        ("nope", "no linear layer is called nope"),
        ("mlp", "no linear layer is called mlp, expected some of down_proj, gate_proj"),
    ],
)
def test_lora_on_the_head_or_on_what_is_not_linear_is_refused(world, tmp_path, target, part):
    with pytest.raises(ProdError, match=part):
        run(make(world, tmp_path / "o", lora_targets=(target,)))


def test_an_adapter_goes_on_as_it_is_or_is_refused(world, tmp_path):
    run(make(world, tmp_path / "a", method="learn", epochs=1))
    for options, part in (
        ({"tuning": "full"}, "--tuning full: --model is an adapter"),
        ({"lora_rank": 4}, "--lora-rank: --model is an adapter, which has its own"),
    ):
        with pytest.raises(ProdError, match=part):
            run(make(world, tmp_path / "o", model=str(tmp_path / "a"), **options))
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(ProdError, match="does not fit its base"):
        run(make(world, tmp_path / "o", model=str(tmp_path / "a")))
    assert not (tmp_path / "o").exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_model_loads(world, tmp_path, monkeypatch):
    monkeypatch.setattr(session_module, "load_base", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file").touch()
    with pytest.raises(ProdError, match="file is not a directory to write in"):
        run(make(world, tmp_path / "file" / "under"))


def test_a_head_that_does_more_than_we_know_is_refused(world, tmp_path, monkeypatch):
    load = session_module.load_base

    def strange(config, device):
        model = load(config, device)
        model.config.logit_scale = 3.0  # our head believes it, Llama's forward ignores it
        return model

    monkeypatch.setattr(session_module, "load_base", strange)
    with pytest.raises(ProdError, match="this family is not supported"):
        run(make(world, tmp_path / "o"))


# --- schedule, learning rate, stop rules -----------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(0, 9), st.integers(1, 12), st.integers(1, 30), st.integers(0, 5))
def test_every_epoch_takes_every_row_once(rows, retain, step_rows, steps, seed):
    schedule = Schedule(rows, retain, step_rows, steps, seed)
    for epoch in range(2):
        taken = [schedule.forget_rows(epoch * schedule.per_epoch + s) for s in range(schedule.per_epoch)]
        assert all(len(part) == step_rows for part in taken[:-1])
        assert sorted(chain.from_iterable(taken)) == list(range(rows))
    if retain:
        assert all(len(schedule.retain_rows(s)) == len(schedule.forget_rows(s)) for s in range(steps))
        full = Schedule(step_rows * 50, retain, step_rows, steps, seed)
        seen = chain.from_iterable(full.retain_rows(s) for s in range(retain))
        assert sorted(seen) == sorted(list(range(retain)) * step_rows)


def test_every_epoch_and_seed_has_its_own_order():
    schedule = Schedule(30, 30, 30, 3, 0)
    other = Schedule(30, 30, 30, 3, 1)
    for rows in (schedule.forget_rows, schedule.retain_rows):
        assert len({tuple(rows(step)) for step in range(3)}) == 3
    assert schedule.forget_rows(0) != other.forget_rows(0)
    assert schedule.forget_rows(0) != schedule.retain_rows(0)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 60), st.floats(0.1, 3))
def test_evaluations_end_with_the_last_step(rows, step_rows, steps, every):
    marks = Schedule(rows, 0, step_rows, steps, 0).evaluations(every)
    assert marks[-1] == steps
    assert marks == sorted(set(marks))
    assert marks[0] >= 1


def test_evaluations_are_steps_apart_at_least():
    """However often one is asked for: 3 / (4 * 1e-300) marks were gone through before."""
    assert Schedule(4, 0, 1, 3, 0).evaluations(1e-300) == [1, 2, 3]


def test_learning_rates():
    config = Config(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:] == pytest.approx([1 - i / 8 for i in range(8)])
    cosine = [learning_rate(replace(config, scheduler="cosine"), step, 10) for step in range(2, 10)]
    assert cosine == pytest.approx([(1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)])
    assert learning_rate(replace(config, scheduler="constant", warmup=0.0), 7, 10) == 1.0


def record(step, forgotten, drop):
    return {
        "step": step,
        "forget": {"recitation": {"value": 1 - forgotten}},
        "holdout": {"agreement": {"value": 1 - drop}},
    }


HISTORY = [
    record(1, 0.4, 0.01),
    record(2, 0.7, 0.03),
    record(3, 0.95, 0.05),
    record(4, 0.93, 0.02),
    record(5, 1.0, 0.2),
]


@pytest.mark.parametrize(
    ("forget", "drop", "step"),
    [
        (None, None, 5),
        (None, 0.06, 3),
        (None, 0.001, None),
        (0.9, None, 4),
        (0.9, 0.06, 4),
        (0.9, 0.015, 1),
        (0.99, 0.06, 3),
    ],
)
def test_the_best_checkpoint_that_obeys_is_the_result(forget, drop, step):
    assert choose(Config(stop_at_forget=forget, max_utility_drop=drop), HISTORY) == step


def test_stop_reasons():
    config = Config(stop_at_forget=0.9, max_utility_drop=0.1)
    assert stop_reason(config, HISTORY[0]) == ""
    assert "--stop-at-forget 0.9" in stop_reason(config, HISTORY[2])
    assert "--max-utility-drop 0.1" in stop_reason(config, HISTORY[4])


@pytest.mark.slow
def test_a_stop_rule_ends_the_run_and_keeps_the_best(world, tmp_path):
    options = {"holdout": world["holdout"], "epochs": 6, "eval_every": 1, "save_total_limit": 1}
    report = run(make(world, tmp_path / "o", max_utility_drop=0.0001, learning_rate=3e-2, **options))
    assert report.chosen is None
    assert "utility fell" in report.stopped
    assert len(report.history) < 6
    assert not (tmp_path / "o" / "adapter_model.safetensors").exists()
    report = run(make(world, tmp_path / "p", stop_at_forget=0.5, **options))
    assert report.chosen == 2  # a random model recites nothing
    assert [path.name for path in (tmp_path / "p").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.slow
def test_the_best_checkpoint_outlives_later_ones(world, tmp_path):
    """A random model recites nothing at any time, so the first of equals is the best."""
    options = {"holdout": world["holdout"], "epochs": 3, "eval_every": 1, "save_total_limit": 1}
    report = run(make(world, tmp_path / "o", max_utility_drop=1.0, **options))
    assert report.chosen == 2
    assert {path.name for path in (tmp_path / "o").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-6"}
    assert_same(adapter(tmp_path / "o"), adapter(tmp_path / "o" / "checkpoint-2"), exactly=True)
    assert report.after == next(record for record in report.history if record["step"] == 2)


@pytest.mark.slow
def test_only_a_checkpoint_that_is_there_is_the_result(world, tmp_path):
    """Rules that came later would have kept another one; and a run goes on from another directory's last one."""
    options = {"holdout": world["holdout"], "epochs": 3, "eval_every": 1, "save_total_limit": 1}
    run(make(world, tmp_path / "o", **options))
    report = run(make(world, tmp_path / "o", resume="latest", max_utility_drop=1.0, **options))
    assert report.chosen == 6
    report = run(make(world, tmp_path / "p", resume=str(tmp_path / "o" / "checkpoint-6"), **options))
    assert report.chosen == 6
    assert_same(adapter(tmp_path / "o"), adapter(tmp_path / "p"), exactly=True)


@pytest.mark.slow
def test_a_folder_with_a_name_like_a_checkpoint_is_left_alone(world, tmp_path):
    config = make(world, tmp_path / "o", eval_every=1)
    run(config)
    (tmp_path / "o" / "checkpoint-1-mine").mkdir()
    run(replace(config, resume=str(tmp_path / "o" / "checkpoint-2"), save_total_limit=1))
    assert (tmp_path / "o" / "checkpoint-1-mine").is_dir()


def test_the_card_names_what_is_zero(world, tmp_path):
    run(make(world, tmp_path / "o", seed=0, epochs=1))
    assert "seed: 0\n" in (tmp_path / "o" / "README.md").read_text()
