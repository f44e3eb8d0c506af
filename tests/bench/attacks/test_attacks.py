"""`bench.attacks`: what parses still parses, the tree stays, the same seed gives the same prompt."""

from __future__ import annotations

import ast
import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from bench.attacks import ATTACKS
from bench.attacks.comments import add_comments, strip_comments
from bench.attacks.instructions import instruct
from bench.attacks.layout import reformat
from bench.attacks.names import change_case, rename_identifiers, to_camel, to_snake
from bench.attacks.prefix import inject_prefix
from bench.attacks.spelling import respelled, tokenisations
from bench.programs.syntax import parses
from bench.tasks.base import Sample
from bench.unlearning.profiles import PROFILES
from prod_decode.errors import ProdError
from tests.prod_train.data.test_chat import TEMPLATE
from tests.smollm2 import smollm2_tokenizer
from tests.strategies import programs
from tests.tiny import save_tiny_model

SEEDS = st.integers(0, 9)
# Generating a program costs more than what is tested on it.
few = settings(max_examples=40)
FUNCTION = (
    "import os\n\n\ndef read_all(folderName, limit=None):\n    # every file\n    total_size = 0\n"
    "    for entry in os.scandir(folderName):\n        total_size += entry.size\n    return total_size\n"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("tiny")))


class _Nameless(ast.NodeTransformer):
    """Drops every name that a renaming may change."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("id", "arg", "name"):
            if isinstance(getattr(node, field, None), str) and not isinstance(node, ast.alias | ast.keyword):
                setattr(node, field, "_")
        return node


def shape(text: str) -> str:
    return ast.dump(_Nameless().visit(ast.parse(text)))


def tree(text: str) -> str:
    return ast.dump(ast.parse(text))


def bound_names(text: str) -> list[str]:
    return [n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)]


@few
@given(programs, SEEDS)
@example("data = f'{x}'; x = 1\nprint(data)\n", 0)
def test_renaming_keeps_the_shape_and_is_consistent(program: str, seed: int) -> None:
    assume(parses(program))
    renamed = rename_identifiers(program, seed=seed)
    assert shape(renamed.prompt) == shape(program)
    assert renamed == rename_identifiers(program, seed=seed)
    pairs = set(zip(bound_names(program), bound_names(renamed.prompt), strict=True))
    assert len({old for old, _ in pairs}) == len({new for _, new in pairs}) == len(pairs)


@few
@given(programs, st.sampled_from(["camel", "snake", "swap"]))
def test_another_case_keeps_the_shape_and_is_consistent(program: str, style: Any) -> None:
    assume(parses(program))
    changed = change_case(program, style=style).prompt
    assert shape(changed) == shape(program)
    pairs = set(zip(bound_names(program), bound_names(changed), strict=True))
    assert len({old for old, _ in pairs}) == len({new for _, new in pairs}) == len(pairs)


@few
@given(programs, SEEDS)
@example("def f():\n    if x:\n        y = [  # c\n1,\n        ]\n        z = 2\n", 0)
def test_reformatting_keeps_the_tree(program: str, seed: int) -> None:
    assume(parses(program))
    assert tree(reformat(program, seed=seed)) == tree(program)
    assert reformat(program, seed=seed) == reformat(program, seed=seed)


@few
@given(programs, SEEDS)
def test_comments_come_and_go_and_the_tree_stays(program: str, seed: int) -> None:
    assume(parses(program))
    more = add_comments(program, seed=seed)
    assert tree(more) == tree(program)
    assert more == add_comments(program, seed=seed)
    assert tree(strip_comments(program)) == tree(program)
    assert strip_comments(more) == strip_comments(program)


@few
@given(programs, SEEDS, st.integers(0, 400))
def test_a_prompt_that_breaks_off_breaks_off_at_the_same_place(program: str, seed: int, length: int) -> None:
    cut = program[:length]
    for changed in (reformat(cut, seed=seed), add_comments(cut, seed=seed)):
        assert last_piece(changed) == last_piece(cut)
    renamed = rename_identifiers(cut, seed=seed).prompt
    # A name that a line end follows is complete.
    assert renamed.endswith("\n") if cut.endswith("\n") else last_piece(renamed) == last_piece(cut)


def last_piece(text: str) -> str:
    """The word or character that a text ends in; quotes may be exchanged."""
    match = re.search(r"\w+$|[^\w \t]$|^$|[ \t]$", text)
    return match[0].replace('"', "'").replace("\t", " ") if match else "?"


def test_renaming_by_hand() -> None:
    prompt, rest = FUNCTION[: FUNCTION.index("    for")], FUNCTION[FUNCTION.index("    for") :]
    renamed = rename_identifiers(prompt, rest, seed=3)
    assert renamed.reference == rest
    assert renamed.adapted is not None
    whole = renamed.prompt + renamed.adapted
    assert shape(whole) == shape(FUNCTION)
    for name in ("read_all", "folderName", "total_size", "limit"):
        assert name not in whole
    # `entry` is not bound in the prompt; `os`, `scandir` and `size` are others' names.
    assert all(word in whole for word in ("import os", "os.scandir(", "entry.size", "# every file", "=None"))
    assert rename_identifiers(prompt, rest, seed=4).prompt != renamed.prompt


@pytest.mark.parametrize(
    ("program", "kept"),
    [
        ("x = 1\nprint(f'{x}')\n", "x = 1"),
        ("def f(size):\n    return size\n\nf(size=2)\n", "size"),
        ("class A:\n    size = 1\n\n    def go(self):\n        return self.size\n", "size"),
        ("list = [1]\nprint(list)\n", "list"),
        ("from a import b\nb = b.c\n", "b = b.c"),
        ("match x:\n    case P(x=y):\n        pass\n", "P(x="),
    ],
)
def test_names_that_others_fix_stay(program: str, kept: str) -> None:
    assert kept in rename_identifiers(program).prompt


def test_case_style_by_hand() -> None:
    camel = change_case(FUNCTION, style="camel").prompt
    assert "def readAll(folderName, limit=None)" in camel
    assert "totalSize += entry.size" in camel
    # A name that is already there is not given to another.
    assert change_case("row_count = rowCount = 1\n", style="camel").prompt == "row_count = rowCount = 1\n"
    snake = change_case(FUNCTION, style="snake").prompt
    assert "def read_all(folder_name, limit=None)" in snake
    assert (to_camel("a_b_c"), to_camel("A_B"), to_camel("_a_b"), to_camel("ab")) == ("aBC", "A_B", "_a_b", "ab")
    assert (to_snake("rowCount"), to_snake("x1Y"), to_snake("CapWords"), to_snake("N")) == (
        "row_count",
        "x1_y",
        "CapWords",
        "N",
    )


def test_reformatting_by_hand() -> None:
    changed = reformat(FUNCTION + "x = ['a',\n     \"b\"]\n", seed=1)
    assert "x = [\"a\", 'b']" in changed
    assert "    total_size = 0\n" not in changed or "        total_size" in changed
    assert changed != reformat(FUNCTION, seed=2)


def test_comments_by_hand() -> None:
    text = "# head\nx = '#no'  # yes\nif x:\n    # inner\n    y = 1\n"
    assert strip_comments(text) == "x = '#no'\nif x:\n    y = 1\n"
    assert "# " in add_comments(FUNCTION, seed=1).replace("# every file", "")


def test_prefix_injection_by_tokens(tokenizer: Any) -> None:
    sample = Sample("s", "def add(a, b):\n", "    return a + b\n")
    tokens = tokenizer(sample.prompt + (sample.reference or ""), return_offsets_mapping=True)["offset_mapping"]
    total = sum(end > len(sample.prompt) for _, end in tokens)
    one = inject_prefix(sample, tokenizer, tokens=1)
    half = inject_prefix(sample, tokenizer, share=0.5)
    ends = [end for _, end in tokens if end > len(sample.prompt)]
    text = sample.prompt + (sample.reference or "")
    assert (one.prompt, half.prompt) == (text[: ends[0]], text[: ends[round(total / 2) - 1]])
    for attacked in (one, half):
        assert attacked.prompt + (attacked.reference or "") == sample.prompt + (sample.reference or "")
        assert attacked.prompt.startswith(sample.prompt)
    given_away = len(tokenizer(half.prompt)["input_ids"]) - len(tokenizer(sample.prompt)["input_ids"])
    assert abs(given_away - total / 2) <= 1
    assert sample.prompt < one.prompt < half.prompt


@pytest.mark.parametrize("arguments", [{}, {"tokens": 1, "share": 0.5}, {"tokens": 0}, {"share": 1.0}])
def test_prefix_injection_refuses(tokenizer: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ProdError, match="inject_prefix: expected"):
        inject_prefix(Sample("s", "a", "b c"), tokenizer, **arguments)


def test_prefix_injection_does_not_write_what_is_prohibited(tokenizer: Any) -> None:
    sample = Sample("s", "x = df.", "applymap(len)\n", {"spans": [[0, 8]]})
    for arguments in ({"tokens": 1}, {"tokens": 9}, {"share": 0.75}):
        attacked = inject_prefix(sample, tokenizer, **arguments)
        assert attacked.prompt + (attacked.reference or "") == "x = df.applymap(len)\n"
        assert "applymap" not in attacked.prompt
    assert inject_prefix(sample, tokenizer, tokens=1).prompt != sample.prompt
    whole = Sample("s", "x = ", "a(b)", {"spans": [[0, 1]]})
    assert inject_prefix(whole, tokenizer, tokens=1).prompt == whole.prompt


def test_prefix_injection_needs_a_reference(tokenizer: Any) -> None:
    with pytest.raises(ProdError, match="expected a reference, got none"):
        inject_prefix(Sample("s", "a"), tokenizer, tokens=1)


def test_instructions_hold_the_prompt() -> None:
    attacked = instruct(Sample("s", "def f(x):\n", "    return x\n", {"source": "module q"}))
    assert len({a.prompt for a in attacked}) == len(attacked) >= 5
    assert all(a.prompt.endswith("def f(x):\n") and "module q" in a.prompt for a in attacked)


def test_other_code_stands_before_the_prompt_and_never_its_own_rest(tokenizer: Any) -> None:
    samples = [
        Sample(str(n), f"def f{n}(\n", f"    {n}\n" if n != 2 else None, {"source": f"m{n}.py"}) for n in range(5)
    ]
    shown = ATTACKS["few-shot"]().sample(samples[1], tokenizer, seed=0)
    assert shown.prompt.endswith("# File 3 of 3, in full, m1.py:\ndef f1(\n")
    assert shown.prompt.startswith("# File 1 of 3, in full:\ndef largest(rows):\n")
    context = ATTACKS["in-context"]()
    assert context.sample(samples[0], tokenizer, seed=0) == samples[0]
    context.among(samples)
    for number, others in {0: (1, 3), 1: (3, 4), 2: (0, 1), 3: (4, 0), 4: (0, 1)}.items():
        found = context.sample(samples[number], tokenizer, seed=0)
        before = "".join(f"def f{n}(\n    {n}\n\n\n\n" for n in others)
        assert found == replace(samples[number], prompt=f"{before}def f{number}(\n")
    context.among(samples[:1])
    assert context.sample(samples[0], tokenizer, seed=0) == samples[0]


def test_a_chat_asks_in_the_model_s_template_and_begins_the_answer(tokenizer: Any) -> None:
    chat = ATTACKS["chat"]()
    assert chat.token_ids("x = ", tokenizer, seed=0) is None
    talking = copy.deepcopy(tokenizer)
    talking.chat_template = TEMPLATE
    ids = chat.token_ids("def f(x):\n", talking, seed=0)
    text = talking.decode(ids)
    assert text.startswith("[user]\n")
    assert text.endswith("```<eos>\n[assistant]\n```\ndef f(x):\n")
    assert text.count("def f(x):\n") == 2
    assert ids.count(talking.eos_token_id) == 1


def test_a_translation_says_what_it_was() -> None:
    found = ATTACKS["translated"]().sample(Sample("s", "x = ", "1\n", {"source": "m.py"}), None, seed=0)
    assert found.prompt.splitlines()[-1] == "x = "
    assert found.prompt.startswith("# m.py was translated to Java ")


@given(text=st.text(st.sampled_from("ab (\n\u00e9return "), min_size=2, max_size=30), seed=SEEDS)
def test_other_tokens_spell_the_same_text(tokenizer: Any, text: str, seed: int) -> None:
    found = tokenisations(text, tokenizer, seed=seed)
    usual = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(tokenizer.decode(ids) == text for ids in found)
    assert all(ids != usual for ids in found)
    assert len({tuple(ids) for ids in found}) == len(found) <= 4
    assert found == tokenisations(text, tokenizer, seed=seed)


@pytest.mark.slow
def test_other_tokens_of_a_real_tokenizer() -> None:
    tokenizer = smollm2_tokenizer()
    text = "data = yaml.load(stream)\n\u00e9"
    found = tokenisations(text, tokenizer, count=6)
    assert len(found) == 6
    assert all(tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text for ids in found)
    assert max(map(len, found)) == len(text.encode())


def test_the_standard_library_survives() -> None:
    for module in ("bisect", "textwrap", "shlex"):
        text = Path(__import__(module).__file__).read_text(encoding="utf-8")
        assert tree(reformat(text)) == tree(text)
        assert tree(strip_comments(add_comments(text))) == tree(text)
        assert shape(rename_identifiers(text).prompt) == shape(text)
        assert shape(change_case(text).prompt) == shape(text)


def test_respelled_text_begins_with_what_the_tokenizer_puts_first(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    first = copy.deepcopy(tokenizer)
    first.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    spelled = respelled("def return", tokenizer)
    assert tokenizer.decode(spelled) == "def return"
    assert spelled != tokenizer("def return")["input_ids"]
    assert respelled("def return", first) == [tokenizer.eos_token_id, *spelled]


def attacked(name: str, sample: Sample, tokenizer: Any, seed: int = 0) -> Sample:
    return ATTACKS[name]().sample(sample, tokenizer, seed=seed)


def test_a_sample_keeps_what_its_new_names_are_followed_by(tokenizer: Any) -> None:
    prompt, rest = FUNCTION[: FUNCTION.index("    for")], FUNCTION[FUNCTION.index("    for") :]
    renamed = attacked("renamed", Sample("s", prompt, rest, {"a": 1}), tokenizer, seed=3)
    assert renamed.metadata == {"a": 1, "adapted": rename_identifiers(prompt, rest, seed=3).adapted}
    assert attacked("comments-added", Sample("s", prompt, rest), tokenizer).metadata == {}


def test_every_attack_steps_in_somewhere_and_is_the_same_for_the_same_seed(tokenizer: Any) -> None:
    prompt, rest = FUNCTION[: FUNCTION.index("    for")], FUNCTION[FUNCTION.index("    for") :]
    sample = Sample("s", prompt, rest)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    for name, kind in ATTACKS.items():
        attack = kind()
        attack.among([sample, Sample("t", "x = ", "1\n")])
        assert attack.sample(sample, tokenizer, seed=0) == attack.sample(sample, tokenizer, seed=0)
        changed = attack.sample(sample, tokenizer, seed=0).prompt != prompt
        spelled = attack.token_ids(prompt, tokenizer, seed=0)
        assert changed + (spelled is not None) + attack.on_weights + (attack.temperature > 0) == 1, name
    # What changes nothing of a sample is no attack on it, and without a reference there is no prefix.
    bare = Sample("s", "print(")
    changing = [name for name in ATTACKS if attacked(name, bare, tokenizer).prompt != bare.prompt]
    assert changing == ["comments-added", "instruction-1", "few-shot", "translated"]


_WHOLE = ("-full-1e-5", "-full-3e-5", "-full-1e-4")


def test_the_names_of_attacks_stay() -> None:
    """Runs name them, and cells are compared by them."""
    assert list(ATTACKS) == [
        *("prefix-1", "prefix-25%", "prefix-50%", "prefix-75%"),
        *("renamed", "case", "reformatted", "comments-stripped", "comments-added", "instruction-1", "tokenised"),
        *("few-shot", "in-context", "chat", "translated"),
        *("sampled", "relearned", "4bit"),
        *(f"relearned-{steps}{how}" for how in ("-3e-4", "", "-3e-3", *_WHOLE) for steps in (5, 15, 30, 60)),
    ]


def test_the_full_profile_relearns_at_the_rate_of_the_teaching_alone() -> None:
    again = [name for name in PROFILES["full"].attacks if name.startswith("relearned-")]
    assert again == ["relearned-5", "relearned-15", "relearned-30", "relearned-60"]
    assert len(PROFILES["full"].attacks) == len(ATTACKS) - 20
