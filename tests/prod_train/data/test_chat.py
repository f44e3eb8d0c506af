"""Chats: answers are rows, and the model sees what its own template writes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.errors import ProdError
from prod_train.cli import main
from prod_train.data.rows import Row, load_rows, mark
from tests.smollm2 import smollm2_tokenizer
from tests.tiny import save_tiny_model, write_jsonl

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]\n{{ m.content | trim }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "area?"},
    {"role": "assistant", "content": "    return w * h\n"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "return 2"},
]
TEXT = st.text(st.sampled_from("ab (=)\n\té€return"), max_size=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = save_tiny_model(tmp_path_factory.mktemp("m"))
    Path(folder, "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def read(folder: Path, tokenizer: Any, *records: dict[str, Any], **options: Any) -> list[Row]:
    return load_rows(write_jsonl(folder / "rows.jsonl", records), tokenizer, max_length=500, **options)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT), max_size=5), TEXT.filter(str.strip))
def test_tokens_are_those_of_the_template_up_to_the_end_of_the_answer(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, turns: list[tuple[str, str]], answer: str
) -> None:
    chat = [{"role": role, "content": content if role == "user" else f"x{content}"} for role, content in turns]
    chat.insert(0, {"role": "user", "content": "?"})
    chat.append({"role": "assistant", "content": answer})
    rows = read(tmp_path_factory.mktemp("r"), tokenizer, {"messages": chat})
    answers = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    assert len(rows) == len(answers)
    for at, row in zip(answers, rows, strict=True):
        whole = tokenizer.apply_chat_template(chat[: at + 1], tokenize=True, return_dict=False)
        assert row.ids.tolist() == whole[: len(row.ids)]
        assert tokenizer.decode(whole[len(row.ids) :]) == "\n"
        said = tokenizer.decode(row.ids[row.supervised].tolist())
        assert said == f"{chat[at]['content'].strip()}<eos>"
        assert tokenizer.decode(row.ids[: row.start].tolist()).endswith("[assistant]\n")


def test_a_real_template_with_its_own_end_of_a_turn(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(smollm2_tokenizer())
    assert tokenizer.chat_template
    tokenizer.eos_token = "<|endoftext|>"
    (row,) = read(tmp_path, tokenizer, {"messages": CHAT[1:3]})
    assert (
        row.ids.tolist() == tokenizer.apply_chat_template(CHAT[1:3], tokenize=True, return_dict=False)[: len(row.ids)]
    )
    assert mark(row, tokenizer).endswith("area?<|im_end|>\n<|im_start|>assistant<<\n    return w * h\n<|im_end|>>>")


def test_one_row_an_answer_and_where_it_stands(tmp_path: Path, tokenizer: Any) -> None:
    first, second = read(tmp_path, tokenizer, {"messages": CHAT})
    assert mark(first, tokenizer) == "[system]\nBe brief.<eos>\n[user]\narea?<eos>\n[assistant]\n<<return w * h<eos>>>"
    assert mark(second, tokenizer).endswith("return w * h<eos>\n[user]\nagain<eos>\n[assistant]\n<<return 2<eos>>>")
    assert (first.place.rpartition("/")[2], second.place.rpartition("/")[2]) == (
        "rows.jsonl:1, message 3",
        "rows.jsonl:1, message 5",
    )


@pytest.mark.parametrize(
    ("record", "options"),
    [
        ({"messages": CHAT[:3]}, {}),
        ({"messages": CHAT[:3]}, {"form": "messages"}),
        ({"prompt": CHAT[:2], "completion": CHAT[2:3]}, {}),
        ({"talk": CHAT[:3], "text": "other"}, {"columns": ["messages=talk"]}),
        (
            {
                "messages": [
                    {**CHAT[0], "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
                    *CHAT[1:3],
                ]
            },
            {},
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "area?"},
                    {"from": "gpt", "value": "    return w * h\n"},
                ]
            },
            {"form": "sharegpt"},
        ),
        (
            {"system": "Be brief.", "instruction": "area?", "input": "", "output": "    return w * h\n"},
            {"form": "alpaca"},
        ),
        (
            {"s": "Be brief.", "q": "area?", "a": "    return w * h\n"},
            {"form": "alpaca", "columns": ["system=s", "instruction=q", "output=a"]},
        ),
    ],
)
def test_every_form_of_the_same_chat(
    tmp_path: Path, tokenizer: Any, record: dict[str, Any], options: dict[str, Any]
) -> None:
    (row,) = read(tmp_path, tokenizer, record, **options)
    assert mark(row, tokenizer) == "[system]\nBe brief.<eos>\n[user]\narea?<eos>\n[assistant]\n<<return w * h<eos>>>"


@pytest.mark.parametrize(
    "options", [{"form": "sharegpt"}, {"form": "alpaca"}, {"columns": ["prompt=q", "completion=a"]}]
)
def test_a_prompt_with_its_completion_stays(tmp_path: Path, tokenizer: Any, options: dict[str, Any]) -> None:
    """The sets of a run share these options, and one of them may come from source files."""
    (row,) = read(tmp_path, tokenizer, {"prompt": "def f(x):", "completion": " return x"}, **options)
    assert mark(row, tokenizer) == "def f(x):<< return x<eos>>>"


def test_an_input_stands_behind_its_instruction(tmp_path: Path, tokenizer: Any) -> None:
    (row,) = read(tmp_path, tokenizer, {"instruction": "Sort.", "input": "b a", "output": "a b"}, form="alpaca")
    assert row.text == "[user]\nSort.\n\nb a<eos>\n[assistant]\na b"


def test_answers_of_a_prompt_are_not_trained_on(tmp_path: Path, tokenizer: Any) -> None:
    (row,) = read(tmp_path, tokenizer, {"prompt": CHAT[:4], "completion": CHAT[4:]})
    assert tokenizer.decode(row.ids[row.supervised].tolist()) == "return 2<eos>"


def test_spans_are_of_the_only_answer(tmp_path: Path, tokenizer: Any) -> None:
    (row,) = read(tmp_path, tokenizer, {"messages": CHAT[:3], "spans": [[7, 8]]})
    assert tokenizer.decode(row.ids[row.supervised].tolist()) == "w"
    with pytest.raises(ProdError, match="expected one message of the assistant beside 'spans', got 2"):
        read(tmp_path, tokenizer, {"messages": CHAT, "spans": [[0, 1]]})


def test_a_template_that_changes_the_answer_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = TEMPLATE.replace("| trim", "| upper")
    with pytest.raises(ProdError, match=r"rows\.jsonl:1: message 3: the model's chat template does not write this"):
        read(tmp_path, changed, {"messages": CHAT[:3]})
    changed.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(ProdError, match=r"the model's chat template refuses the messages \(.*no system.*\): leave out"):
        read(tmp_path, changed, {"messages": CHAT[:3]})
    changed.chat_template = None
    with pytest.raises(ProdError, match="messages need a chat template, this model's tokenizer has none"):
        read(tmp_path, changed, {"messages": CHAT[:3]})


@pytest.mark.parametrize(
    ("record", "options", "told"),
    [
        ({"messages": CHAT[2:3]}, {}, "expected a message of the user before the assistant's first, got none"),
        ({"messages": "hello"}, {}, "expected 'messages' to be a list, got str"),
        ({"messages": []}, {}, "expected a message of the assistant, got none"),
        ({"messages": CHAT[:2]}, {}, "expected a message of the assistant, got none"),
        ({"messages": [{"role": "bot", "content": "x"}]}, {}, "message 1: expected 'role'"),
        ({"messages": [{"role": "user", "content": None}]}, {}, "message 1: expected 'role'"),
        ({"messages": [{"role": "assistant", "content": " "}]}, {}, "message 1: expected an answer that holds text"),
        ({"messages": CHAT[:3], "prompt": "x"}, {}, "got both: drop one"),
        ({"prompt": CHAT[:2], "completion": "x"}, {}, "expected 'completion' to be a list of messages"),
        ({"text": "x y"}, {"form": "messages"}, "expected the key 'messages', got 'text'"),
        ({"conversations": []}, {}, "rows with 'conversations' are read with --format sharegpt"),
        ({"instruction": "x", "output": "y"}, {}, "rows with 'instruction' are read with --format alpaca"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, {"form": "sharegpt"}, "expected turns with 'from'"),
        ({"text": "x"}, {"form": "sharegpt"}, "expected 'conversations' to be a list, got NoneType"),
        ({"text": "x"}, {"form": "alpaca"}, "expected 'instruction' to be a string"),
        ({"q": "x"}, {"columns": ["prompt=q", "completion=a"]}, "expected the column 'a' of --columns, got 'q'"),
        ({"q": "x"}, {"columns": ["promt=q"]}, "got 'promt'; did you mean 'prompt'?"),
        ({"q": "x"}, {"columns": ["prompt"]}, "expected KEY=COLUMN, such as completion=code, got 'prompt'"),
    ],
)
def test_what_is_no_chat(tmp_path: Path, tokenizer: Any, record: Any, options: Any, told: str) -> None:
    with pytest.raises(ProdError) as caught:
        read(tmp_path, tokenizer, record, **options)
    assert told in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prod", "dpo"])
def test_a_chat_is_unlearned(method: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forget = write_jsonl(
        tmp_path / "f.jsonl",
        [{"conversations": [{"from": "human", "value": "area?"}, {"from": "gpt", "value": "return w * h"}]}],
    )
    words = f"run --model {model} --forget {forget} --format sharegpt --method {method} --max-steps 2 --json"
    assert main([*words.split(), "--output", str(tmp_path / "o")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["after"]["forget"]["recitation"]["n"] == 1
    assert main(["merge", str(tmp_path / "o"), "--output", str(tmp_path / "merged")]) == 0
