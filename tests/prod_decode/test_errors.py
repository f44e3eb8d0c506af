"""What messages repeat of what they were given is bounded, and one line."""

import dataclasses
import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import LONGEST_MESSAGE, LONGEST_WORD, ProdError, brief, clear_keywords, reason
from prod_train.cli import main
from tests.tiny import save_tiny_model

MEGABYTE = "x" * 10**6


@given(st.text() | st.text(" \n\x0bab", min_size=300).map(lambda text: text * 60))
def test_a_message_is_one_line_of_bounded_length(text):
    message = str(ProdError(text))
    assert len(message.splitlines()) <= 1
    assert len(message) <= LONGEST_MESSAGE
    assert all(len(word) <= LONGEST_WORD for word in message.split(" "))


@given(st.text(alphabet=st.characters(exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=400))
def test_a_short_message_stays_as_it_is(text):
    assert str(ProdError(text)) == text


def test_the_beginning_and_the_end_are_shown():
    assert brief("a" * 60 + "b" * 60) == "a" * 60 + "b" * 60
    assert brief("a" * 1000 + "b" * 1000, 20) == "a" * 12 + "..." + "b" * 5
    assert brief(10**5000) == "int of too many digits"
    assert brief([1, None]) == "[1, None]"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("no\n such  file"), "no such file"),
        (ValueError("two words"), "two words"),
        (ValueError("word"), "ValueError: word"),
        (KeyError("word"), "KeyError: 'word'"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_other_errors_say(error, said):
    assert reason(error) == said


def test_a_keyword_that_is_not_there_is_one_line_and_a_type_error():
    for kind in (ProdError, TypeError):
        with pytest.raises(kind, match=r"^Entry: unknown keyword 'boundry'; did you mean 'boundary'\?$"):
            Entry("x", boundry="both")
    with pytest.raises(ProdError, match=r"^Blocklist.compile: unknown keyword 'ingore_case'; did you mean 'ignore_"):
        Blocklist.compile([Entry("eval(")], ingore_case=True)
    with pytest.raises(ProdError, match=r"^Entry: unknown keyword 'q': expected some of text, id, source, policy, "):
        Entry("x", q=1)
    with pytest.raises(ProdError) as caught:
        Entry("x", boundry="both", polcy="quote")
    assert len(caught.value.mistakes) == 2
    assert str(inspect.signature(Entry)).startswith("(text: ")
    assert dataclasses.replace(Entry("x", id="a"), id="b") == Entry("x", id="b")


def test_another_type_error_stays_what_it_is():
    @clear_keywords
    def fail(key=None):
        raise TypeError("of the caller")

    for call, said in ((lambda: fail(key=1), "of the caller"), (Entry, "missing 1 required")):
        with pytest.raises(TypeError, match=said) as caught:
            call()
        assert not isinstance(caught.value, ProdError)


@pytest.mark.parametrize(
    ("given", "meant"),
    [({"policy": "qoute"}, "quote"), ({"boundary": "strat"}, "start"), ({"policy": "Phrase"}, "phrase")],
)
def test_an_entry_says_which_value_was_meant(given, meant):
    with pytest.raises(ProdError, match=rf"; did you mean '{meant}'\?$"):
        Entry("eval(", **given)


def test_an_entry_with_another_policy_is_called_by_its_text():
    for policy in (None, "ban", [MEGABYTE]):
        with pytest.raises(ProdError, match=r"^entry 'eval\(' \(f:3\): expected policy 'phrase' or 'quote', got "):
            Entry("eval(", source="f:3", policy=policy)
        with pytest.raises(ProdError, match=r"^entry 'entry-[0-9a-f]{16}': expected policy") as caught:
            Entry(MEGABYTE, policy=policy)
        assert len(str(caught.value)) < 200
    with pytest.raises(ProdError) as caught:
        Entry("x", id=MEGABYTE, policy="ban")
    assert len(str(caught.value)) < 300


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("m"))


ROWS = [
    {MEGABYTE: 1},
    {f"{MEGABYTE} {MEGABYTE}": 1},
    {"x " * 500_000: 1},
    {"prompt": [MEGABYTE]},
    {"prompt": MEGABYTE, "completion": "\ud800"},
    {"prompt": "a", "completion": "b", "spans": MEGABYTE},
    {"prompt": "a", "completion": "b", "spans": [[MEGABYTE, 1]]},
    {"prompt": "a", "completion": "b", "spans": [[0, int("9" * 4000)]]},
]


@pytest.mark.slow
@pytest.mark.parametrize("row", [*map(json.dumps, ROWS), f'{{"a": {"9" * 5000}}}', f'{{"a": "{MEGABYTE}'])
def test_rows_of_a_megabyte(model, tmp_path, capsys, row):
    (tmp_path / "f.jsonl").write_text(row)
    words = ["--model", model, "--forget", str(tmp_path / "f.jsonl"), "--output", str(tmp_path / "o")]
    assert main(["check", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"prod-train check: {tmp_path}/f.jsonl:1: " in error
    assert len(error) < 700


LONG = "x" * 20_000  # YAML takes 5 s for a megabyte
VALUES = [LONG, [LONG], "x " * 10_000, "a\0b", {LONG: 1}, int("9" * 4000)]
KEYS = ["model", "forget", "holdout", "output", "cache", "method", "blocklist", "allow", "resume", "refusals", "dtype"]


@pytest.mark.slow
@pytest.mark.parametrize("key", [*KEYS, "seed", "truncate", "lora_targets", "top_p", LONG])
def test_settings_of_any_length(tmp_path, capsys, key):
    (tmp_path / "f.jsonl").touch()
    given = {"model": "m", "forget": str(tmp_path / "f.jsonl"), "output": str(tmp_path / "o")}
    for number, value in enumerate(VALUES):
        file = tmp_path / f"{number}.yaml"
        file.write_text(json.dumps(given | {key: value}))
        assert main(["check", str(file)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert len(error) < 1500, error


@pytest.mark.parametrize("command", ["run", "check", "merge"])
def test_arguments_of_a_hundred_kilobytes(tmp_path, capsys, command):
    long = "x" * 10**5
    needed = ["--output", str(tmp_path / "o")]
    for words in ([long, *needed], [long, f"--{long}", *needed], [long, "--model", long, *needed]):
        assert main([command, *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert len(error) < 1500
    assert not (tmp_path / "o").exists()


def test_a_package_that_is_missing(monkeypatch, tmp_path, capsys):
    def missing(*_):
        raise ModuleNotFoundError("No module named 'peft'", name="peft.tuners")

    monkeypatch.setattr("prod_train.run.merge.merge", lambda *_, **__: missing())
    assert main(["merge", str(tmp_path), "--output", "x"]) == 2
    said = "expected the package peft, it is not installed: pip install 'prod-code-unlearning[train,gguf]'"
    assert said in capsys.readouterr().err
