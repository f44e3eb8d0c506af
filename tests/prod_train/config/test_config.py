"""`prod_train.config.config`: flag > YAML > default, and every problem in one message."""

import dataclasses
from typing import get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.errors import ProdError
from prod_train.config.config import Config, flag, make_config

NEEDED = {"model": "m", "forget": "f", "output": "o"}


def message(file=None, **flags):
    with pytest.raises(ProdError) as caught:
        make_config(file, flags)
    return str(caught.value)


def test_flag_beats_yaml_beats_default(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: m\nforget: f\noutput: o\nlearning-rate: 3e-4\nepochs: 7\ntruncate: true\n")
    config = make_config(str(file), {"epochs": "2"})
    assert (config.epochs, config.learning_rate, config.truncate, config.batch_size) == (2.0, 3e-4, True, 4)


@pytest.mark.parametrize("lines", ["epochs: 1\nepochs: 2\n", "epochs: 1\n'epochs': 1\n"])
def test_a_key_that_stands_twice_is_told(tmp_path, lines):
    (tmp_path / "c.yaml").write_text("model: m\n" + lines)
    assert "expected YAML, got the key 'epochs' stands there twice" in message(str(tmp_path / "c.yaml"))


def test_all_problems_in_one_message(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("learning_rat: 1\nepochs: many\ntop_p: 1.5\nmax_nll: 3\n")
    text = message(str(file), batch_size="0", blocklist="missing.prod")
    for part in (
        "unknown key 'learning_rat'; did you mean 'learning_rate'?",
        "--epochs: expected a number, got 'many'",
        "--top-p: expected a number from 0 to 1, got 1.5",
        "--max-nll: belongs to method ga and graddiff, got prod",
        "--batch-size: expected at least 1, got 0",
        "--blocklist: expected a file, missing.prod does not exist",
        "--model: expected a model, it is missing",
    ):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"method": "prd"}, "did you mean 'prod'?"),
        ({"method": "graddiff"}, "graddiff needs a data set"),
        ({"retain_loss": "kl"}, "--retain: expected a data set"),
        ({"max_utility_drop": 0.1}, "expected --holdout"),
        ({"tuning": "full", "load_in_4bit": True}, "4-bit base cannot be trained"),
        ({"resume": "nowhere"}, "--resume: expected 'latest' or a checkpoint's directory, nowhere is none"),
        ({"forget": "missing.jsonl"}, "cannot read missing.jsonl: no such file"),
        ({"paper_compat": True, "method": "npo"}, "--paper-compat: belongs to method prod"),
        ({"tuning": "full", "lora_rank": 8}, "--lora-rank: belongs to --tuning lora, got full: drop it"),
        ({"retain_weight": 3}, "--retain-weight: belongs to a retain loss: expected --retain, it is missing"),
        ({"learning_rate": "nan"}, "--learning-rate: expected a number, got 'nan'"),
        ({"batch_size": 1.5}, "--batch-size: expected a whole number, got 1.5"),
        ({"truncate": "yes"}, "--truncate: expected true or false, got 'yes'"),
        ({"method": "prod-surgical", "max_quote": 5}, "--max-quote: expected at least 6 characters, got 5"),
        ({"method": "prod-surgical", "opening": -9}, "--opening: expected at least 0, got -9"),
        ({"opening": 48}, "--opening: belongs to method prod-surgical, got prod: drop it"),
        ({"method": "learn", "stop_at_forget": 0.5}, "belongs to methods that forget"),
    ],
)
def test_mistakes_are_named(flags, part):
    assert part in message(**{**NEEDED, **flags})


def test_broken_yaml_is_one_line(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("a: [1\nb: 2")
    assert "expected YAML" in message(str(file))
    file.write_text("- 1")
    assert "expected keys and values, got list" in message(str(file))
    for text in ("a: " + "[" * 5000, "a: " + "1" * 5000, "a: 2023-13-45"):
        file.write_text(text)
        assert message(str(file)).startswith(f"{file}: expected YAML, got ")


@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_numbers_of_any_length_are_one_short_line(name, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(f"{name}: {'1' * 4000}\nmodel: m\nforget: f\noutput: {tmp_path}/o\n")
    assert message(str(file)).startswith(f"{flag(name)}: expected a")
    assert len(message(str(file))) < 200


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.floats(0.1, 100),
            "batch_size": st.integers(1, 100),
            "top_p": st.floats(0, 1),
            "seed": st.integers(0, 2**31),
            "learning_rate": st.floats(1e-9, 1),
            "gradient_checkpointing": st.booleans(),
            "lora_targets": st.lists(st.sampled_from(["q_proj", "up_proj"]), max_size=2),
        },
    )
)
def test_a_saved_configuration_reads_back_the_same(tmp_path_factory, values):
    config = make_config(None, {**NEEDED, **values})
    file = tmp_path_factory.mktemp("c") / "config.yaml"
    config.save(file)
    again = make_config(str(file), {})
    assert again.to_dict() == config.to_dict()
    assert yaml.safe_load(file.read_text())["learning_rate"] == config.rate


def test_every_field_has_help_with_its_default():
    for option in dataclasses.fields(Config):
        assert option.metadata["help"], option.name
        numeric = isinstance(option.default, (int, float)) and not isinstance(option.default, bool)
        if numeric:
            assert f"default {option.default:g}" in option.metadata["help"], option.name
        assert flag(option.name).startswith("--")


NUMBERS = [
    option.name for option in dataclasses.fields(Config) if "int" in str(option.type) or "float" in str(option.type)
]
WHOLE = [name for name in NUMBERS if "int" in str(get_type_hints(Config)[name])]


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_beyond_all_measure(name):
    """Too small, too large, not finite, or too long to be printed: one short line that names the flag."""
    values = ["nan", "-inf", "-1e30", "1e30", "9" * 30, "9" * 5000, "0x10", "", int("9" * 30), 10**5000, -(10**5000)]
    values += [] if name in ("max_nll", "max_grad_norm") else ["inf", "1e400", float("inf")]
    values += [] if name in ("alpha", "gamma") else ["-1", -1]
    values += ["1.5", 0.5] if name in WHOLE else []
    for value in values:
        if name in ("max_nll", "max_grad_norm") and value in ("1e30", "9" * 30, int("9" * 30), "9" * 5000):
            continue  # without a limit
        text = message(**{**NEEDED, name: value})
        assert text.startswith(f"{flag(name)}: expected "), (value, text)
        assert len(text.partition("; ")[0]) < 160


def test_seeds_are_those_of_torch_and_exact(tmp_path):
    assert make_config(None, {**NEEDED, "seed": "18446744073709551615"}).seed == 2**64 - 1
    assert make_config(None, {**NEEDED, "seed": 2**53 + 1}).seed == 2**53 + 1
    assert make_config(None, {**NEEDED, "max_length": "1e3"}).max_length == 1000
    text = message(**NEEDED, seed="99999999999999999999")
    assert text == "--seed: expected at most 18,446,744,073,709,551,615, got 99999999999999999999"
