"""The processor against plain loops over random scores, and inside `generate` of a tiny random model."""

from __future__ import annotations

import copy
import math
import pickle
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    TextStreamer,
    pipeline,
)

from prod_decode import Blocklist, Entry, Matcher, ProdError, ProdLogitsProcessor, Vocabulary
from prod_decode.command.generation import generate
from prod_decode.hf import Ban, _fetched_column, _last_column
from prod_decode.masking import prod_distribution
from prod_decode.match.automaton import Automaton
from prod_decode.storage.models import load_model
from prod_decode.tokens.vocabulary import UNKNOWN
from tests import oracle
from tests.strategies import FLOATS, normalizations, pattern_lists, vocabularies
from tests.tiny import save_tiny_model

INF = math.inf
PAD, BOS, EOS, HOLE = 0, 1, 2, 3
# Columns that the model has beyond the vocabulary.
EXTRA = 7

# Pieces of pieces, so that every text has many spellings.
WORDS = [b"yaml", b"load", b"eval", b"exec", b"import", b"return", b"self", b"print", b"open", b"str", b"cpy", b"int"]
PIECES = sorted(
    {word[i:j] for word in WORDS[:6] for i in range(len(word)) for j in range(i + 2, len(word) + 1)}
    | set(WORDS)
    | {b" " + word for word in WORDS}
    | {b"    ", b"\n    ", b"()", b"(x", b".load", b".load(", b"yaml.", b" = ", b"==", b"\r\n", b"eval(", b"\xc3\xa9"}
)
CHARACTERS = [bytes([byte]) for byte in (*range(32, 127), 9, 10, 0xC3, 0xA9)]
TOKENS: list[bytes | None] = [b"<pad>", b"<s>", b"</s>", None, *CHARACTERS, *PIECES]
UNUSED = [HOLE, *range(len(TOKENS), len(TOKENS) + EXTRA)]
VOCABULARY = Vocabulary.from_bytes(TOKENS, special=[PAD, BOS], eos_ids=[EOS])


# ---- the model -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def tiny_model(seed: int = 0, layers: int = 2) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKENS) + EXTRA,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        # Far above the default, so that the distributions are as peaked as those of a trained model.
        initializer_range=0.4,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


def encode(text: bytes) -> list[int]:
    """Longest piece first."""
    ids = []
    while text:
        longest = max((t for t in TOKENS[HOLE + 1 :] if t and text.startswith(t)), key=len)
        ids.append(TOKENS.index(longest))
        text = text[len(longest) :]
    return ids


PROMPTS = [
    encode(b"import yaml\n"),
    encode(b"def f(x):\n    return yaml"),
    encode(b"x = "),
    encode(b"print(1)\nprint(2)\nprint("),
]


def batch(prompts: list[list[int]]) -> dict[str, Tensor]:
    """Left-padded."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def run(prompts: list[list[int]], processor: ProdLogitsProcessor | None, seed: int = 0, **options: Any) -> Tensor:
    options = {"do_sample": False, "max_new_tokens": 16, **options}
    model = tiny_model()  # before the seed: the first call makes it, and draws its weights
    torch.manual_seed(seed)
    with torch.inference_mode():
        return model.generate(
            **batch(prompts), logits_processor=LogitsProcessorList([processor] if processor else []), **options
        )


def symbols(ids: list[int]) -> bytes:
    """The normalised text of a sequence, its special tokens left out."""
    return oracle.normalize(b"".join(TOKENS[i] or b"" for i in ids if i not in (PAD, BOS, EOS)), "code", False)


def blocklist(patterns: set[bytes]) -> Blocklist:
    return Blocklist.compile(
        [Entry(text=pattern.decode(), id=pattern.decode(), boundary="none") for pattern in sorted(patterns)],
        allow_short=True,
    )


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "sampling, warped": {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 1.5, "repetition_penalty": 1.2},
    "beam": {"num_beams": 4, "num_return_sequences": 4},
    "beam sampling": {"num_beams": 4, "do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "assisted": {"assistant": True},
    "assisted sampling": {"assistant": True, "do_sample": True, "top_k": 0},
    "prompt lookup": {"prompt_lookup_num_tokens": 4},
    "prompt lookup, sampling": {"prompt_lookup_num_tokens": 4, "do_sample": True, "top_k": 0},
    "without cache": {"use_cache": False},
    "beam, other scores": {
        "num_beams": 3,
        "early_stopping": "never",
        "length_penalty": 0.0,
        "renormalize_logits": True,
    },
    "no EOS at first": {"remove_invalid_values": True, "min_new_tokens": 8},
}
# What transformers offers for a single sequence only.
ONE_AT_A_TIME = ("assisted", "prompt lookup")


def outputs(mode: str, processor: ProdLogitsProcessor | None, seed: int = 0, **more: Any) -> list[tuple[bytes, bytes]]:
    """(prompt, prompt and output) of all prompts, normalised."""
    options = dict(MODES[mode], **more)
    if options.pop("assistant", False):
        options["assistant_model"] = tiny_model(1, layers=1)
    groups = [[prompt] for prompt in PROMPTS] if mode.startswith(ONE_AT_A_TIME) else [PROMPTS]
    found = []
    for group in groups:
        rows = run(group, processor, seed, **options).tolist()
        width = max(map(len, group))
        for i, row in enumerate(rows):
            prompt = group[i * len(group) // len(rows)]
            assert row[width - len(prompt) : width] == prompt
            found.append((symbols(prompt), symbols(row)))
    return found


def violations(texts: list[tuple[bytes, bytes]], patterns: set[bytes]) -> list[tuple[bytes, bytes]]:
    return [(pattern, text) for _, text in texts for pattern in sorted(patterns) if pattern in text]


def new_patterns(texts: list[tuple[bytes, bytes]], width: int, every: int) -> set[bytes]:
    """Substrings of the outputs, some of which begin in the prompt: what the model would write."""
    found = {
        text[start : start + width] for prompt, text in texts for start in range(len(prompt) - 1, len(text), every)
    }
    return {
        pattern
        for pattern in found
        if len(pattern) == width
        and pattern.isascii()
        and b" " not in pattern
        and not any(pattern in p for p, _ in texts)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "options"),
    [(mode, {}) for mode in MODES]
    + [(mode, {"mode": "prod", "top_p": 0.8}) for mode in ("greedy", "sampling, warped", "beam", "assisted sampling")]
    + [("beam sampling", {"mode": "prod", "max_n": 1})],
    ids=str,
)
def test_no_pattern_appears_in_any_generation_mode(mode: str, options: dict[str, Any]) -> None:
    # Ban what the model writes, then what it writes instead, and so on: its favourites end up surrounded by bans.
    patterns: set[bytes] = set()
    # Unguarded, the model also writes ids that no token has.
    texts = outputs(mode, None, suppress_tokens=UNUSED)
    processor = None
    for width in (6, 2):
        patterns |= new_patterns(texts, width, every=4)
        assert violations(texts, patterns)
        processor = ProdLogitsProcessor(blocklist(patterns), VOCABULARY, **options)
        texts = outputs(mode, processor)
        assert violations(texts, patterns) == []
    assert processor is not None
    # The same processor in another call.
    assert violations(outputs(mode, processor, seed=1), patterns) == []
    assert processor.fired.total() > 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_no_output_gives_away_more_than_the_budget_in_any_generation_mode(mode: str) -> None:
    piece, budget = 6, 12
    # What the model writes is the document, and what it writes instead is another.
    documents: list[bytes] = []
    reached = 0
    rows = written(mode, None, suppress_tokens=UNUSED)
    for _ in range(2):
        texts = {symbols(row).decode(errors="ignore").encode() for row in rows}
        documents += [text for text in sorted(texts) if len(text) >= 4 * budget]
        entries = [
            Entry(text.decode(), id=str(number), policy="quote", max_quote=10_000, piece=piece, budget=budget)
            for number, text in enumerate(documents)
        ]
        processor = ProdLogitsProcessor(Blocklist.compile(entries), VOCABULARY)
        rows = written(mode, processor)
        for row in rows:
            for document in documents:
                counts = [len(oracle.given_away(text, document, piece)) for text in map(symbols, beginnings(row))]
                stops = [count for count in counts if count >= budget]
                reached += bool(stops)
                # From there on nothing is added.
                assert len(set(stops)) <= 1, (row, counts)
    assert reached
    assert processor.fired


def beginnings(row: list[int]) -> list[list[int]]:
    return [row[:end] for end in range(len(row) + 1)]


def written(mode: str, processor: ProdLogitsProcessor | None, **more: Any) -> list[list[int]]:
    """The tokens of all outputs alone."""
    options = {"max_new_tokens": 32, **MODES[mode], **more}
    if options.pop("assistant", False):
        options["assistant_model"] = tiny_model(1, layers=1)
    groups = [[prompt] for prompt in PROMPTS] if mode.startswith(ONE_AT_A_TIME) else [PROMPTS]
    return [row[max(map(len, group)) :] for group in groups for row in run(group, processor, **options).tolist()]


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beam", "prompt lookup"])
def test_a_blocklist_that_never_applies_changes_no_token(mode: str) -> None:
    processor = ProdLogitsProcessor(blocklist({b"no model ever writes this"}), VOCABULARY)
    # Beam search must be told to normalise again what is left beside the unused ids.
    assert outputs(mode, processor) == outputs(mode, None, suppress_tokens=UNUSED, renormalize_logits=mode == "beam")
    assert processor.steps > 0
    assert not processor.fired


@lru_cache(maxsize=1)
def guarded() -> Blocklist:
    """Bans every pair of characters that greedy search would write."""
    return blocklist(new_patterns(outputs("greedy", None, suppress_tokens=UNUSED), width=2, every=1))


@pytest.mark.parametrize("mode", ["assisted", "prompt lookup"])
def test_speculation_writes_what_greedy_search_writes(mode: str) -> None:
    processor = ProdLogitsProcessor(guarded(), VOCABULARY)
    plain = [run([prompt], processor).tolist() for prompt in PROMPTS]
    extra = {"assistant_model": tiny_model(1, layers=1)} if mode == "assisted" else MODES[mode]
    assert [run([prompt], processor, **extra).tolist() for prompt in PROMPTS] == plain


def test_raw_logits_that_generate_keeps_are_not_touched() -> None:
    processor = ProdLogitsProcessor(guarded(), VOCABULARY)
    for options in ({}, {"num_beams": 4}, {"assistant_model": tiny_model(1, layers=1)}):
        result = run(
            PROMPTS[1:2], processor, return_dict_in_generate=True, output_logits=True, output_scores=True, **options
        )
        assert all(bool(step.isfinite().all()) for step in result.logits)
        assert all(bool((step == -INF).any()) for step in result.scores)


def test_beam_scores_are_sums_of_log_probabilities() -> None:
    processor = ProdLogitsProcessor(guarded(), VOCABULARY)
    result = run(PROMPTS, processor, num_beams=4, return_dict_in_generate=True, output_scores=True)
    assert processor.fired
    for step in result.scores:
        assert step.logsumexp(-1).abs().max() < 1e-5


# ---- counts --------------------------------------------------------------------------------------------------------


def test_counts_and_reports_equal_a_recount() -> None:
    matcher = guarded().bind(VOCABULARY)
    bans: list[Ban] = []
    processor = ProdLogitsProcessor(matcher, on_ban=bans.append)
    # A little more EOS, so that rows end at different steps and go on as padding beside the others.
    options = {"sequence_bias": {(EOS,): 1.0}, "max_new_tokens": 40}
    result = run(PROMPTS, processor, return_dict_in_generate=True, output_logits=True, **options)
    width = batch(PROMPTS)["input_ids"].shape[1]
    steps = 0
    ends = set()
    expected = []
    for at in range(width, result.sequences.shape[1]):
        for row, text in enumerate(result.sequences.tolist()):
            if EOS in text[width:at]:
                ends.add(text.index(EOS))
                continue
            steps += 1
            state = matcher.state_of(text[:at])
            banned = matcher.banned(state).tolist()
            logits = result.logits[at - width][row].double()
            logits[EOS] += 1.0
            top = int(logits.argmax())
            if top in banned and top != HOLE:
                p = logits.softmax(-1)
                expected.append((row, at, top, float(p[top]), float(p[banned].sum()), tuple(matcher.blame(state, top))))
    assert len(ends) > 1
    assert len(expected) > 10
    assert processor.steps == steps
    assert processor.fired == Counter(name for *_, names in expected for name in names)
    assert [(b.row, b.position, b.token_id, b.entries) for b in bans] == [(*e[:3], e[5]) for e in expected]
    assert [b.probability for b in bans] == pytest.approx([e[3] for e in expected], rel=1e-5)
    assert [b.mass for b in bans] == pytest.approx([e[4] for e in expected], rel=1e-5)

    counter = processor.fired
    processor.reset_counts()
    assert (processor.steps, counter) == (0, Counter())


def simple(*patterns: bytes, tokens: list[bytes | None] | None = None, **options: Any) -> ProdLogitsProcessor:
    """Tokens a to e are 0 to 4, EOS is 5."""
    tokens = tokens or [b"a", b"b", b"c", b"d", b"e", b""]
    return ProdLogitsProcessor(
        blocklist(set(patterns)), Vocabulary.from_bytes(tokens, eos_ids=[tokens.index(b"")]), **options
    )


def ids(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def test_ties_count_only_where_the_first_of_the_highest_is_banned() -> None:
    def fired(scores: list[float]) -> int:
        processor = simple(b"ab", b"ad", b"x")
        processor(ids([0]), torch.tensor([scores], dtype=torch.float32))
        assert processor.steps == 1
        return processor.fired.total()

    assert fired([0, 3, 0, 0, 0, 0]) == 1
    assert fired([0, 2, 2, 0, 0, 0]) == 1
    assert fired([2, 2, 0, 0, 0, 0]) == 0
    assert fired([0, 2, 0, 2, 0, 0]) == 1
    assert fired([0, 1, 5, 1, 0, 0]) == 0
    # A column of padding that ties; a dead row; what a broken model says.
    assert fired([0, 2, 0, 0, 0, 0, 2]) == 1
    assert fired([-INF] * 6) == 0
    assert fired([0, math.nan, 0, 0, 0, 0]) == 0
    assert fired([0, INF, 0, 0, 0, 0]) == 1


def test_constant_scores_never_count() -> None:
    # What prompt lookup asks with; token 0 is what argmax returns for them.
    processor = simple(b"ba")
    processor(ids([1]), torch.ones(1, 6))
    assert (processor.steps, processor.fired) == (1, {})
    processor(ids([1]), torch.tensor([[2.0, 1, 1, 1, 1, 1]]))
    assert (processor.steps, processor.fired) == (2, {"ba": 1})


def test_an_id_without_bytes_is_banned_but_blamed_on_nobody() -> None:
    bans: list[Ban] = []
    processor = simple(b"ab", tokens=[b"a", b"b", None, b""], on_ban=bans.append)
    assert processor(ids([1]), torch.tensor([[1.0, 1, 9, 1]])).tolist() == [[1, 1, -INF, 1]]
    assert (processor.fired, bans) == ({}, [])


def test_a_row_that_ended_counts_again_when_text_follows() -> None:
    processor = simple(b"ab")
    scores = torch.tensor([[0.0, 3, 0, 0, 0, 0]])
    text: list[int] = []
    steps = []
    for token_id in (2, 5, 5, 0, 2):
        text.append(token_id)
        processor(ids(text), scores)
        steps.append(processor.steps)
    # Not at [c, EOS] nor at [c, EOS, EOS].
    assert steps == [1, 1, 1, 2, 3]


def test_every_entry_that_the_token_completes_is_counted() -> None:
    bans: list[Ban] = []
    processor = simple(b"ab", b"b", b"cab", on_ban=bans.append)
    processor(ids([2, 0], [4, 4]), torch.tensor([[0.0, 1, 0, 0, 0, 0]] * 2))
    assert processor.fired == {"cab": 1, "ab": 1, "b": 2}
    assert [ban.entries for ban in bans] == [("cab", "ab", "b"), ("b",)]


# ---- scores against plain loops ------------------------------------------------------------------------------------


@st.composite
def bound(draw: st.DrawFn) -> tuple[Matcher, list[int]]:
    """A matcher with EOS as its last id, and the ids that a text may have."""
    normalization = draw(normalizations)
    tokens, special = draw(vocabularies())
    patterns = draw(pattern_lists(normalization))
    vocabulary = Vocabulary.from_bytes([*tokens, b""], special=special, eos_ids=[len(tokens)])
    return Matcher(Automaton.build(patterns), normalization, vocabulary), [
        i for i, t in enumerate(tokens) if t is not None
    ]


class Plain:
    """What the processor must return in mode `mask`, apart from normalising: row by row, every text read anew."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self.prompts: list[list[int]] | None = None
        self.longest = 0

    def prompt_of(self, texts: list[list[int]]) -> int:
        """The length that the texts had when the processor, which no `generate` calls here, first saw them."""
        length = len(texts[0])
        begun = self.prompts
        if (
            begun is None
            or len(begun) != len(texts)
            or not len(begun[0]) <= length <= self.longest + 1
            or any(text[: len(prompt)] != prompt for text, prompt in zip(texts, begun, strict=True))
        ):
            self.prompts, self.longest = texts, 0
        self.longest = max(self.longest, length)
        return len(self.prompts[0]) if self.prompts else 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return plain(self.matcher, input_ids, scores, self.prompt_of(input_ids.tolist()))


def plain(matcher: Matcher, input_ids: Tensor, scores: Tensor, prompt: int) -> Tensor:
    expected = scores.clone()
    for row, text in enumerate(input_ids.tolist()):
        tracker = matcher.track()
        tracker.read(np.arange(1), [np.array(text, np.int64)], np.array([prompt]))
        banned = set(tracker.banned()[1].tolist())
        for token_id in range(scores.shape[1]):
            if token_id >= len(matcher) or token_id in banned:
                expected[row, token_id] = -INF
        if not bool((expected[row] > -INF).any()):
            expected[row] = -INF
            expected[row, list(matcher.vocabulary.eos_ids)] = 0
    return expected


@st.composite
def histories(draw: st.DrawFn, usable: list[int]) -> list[Tensor]:
    """The texts of successive calls: grown, cut, permuted, repeated, edited in place, replaced."""
    token = st.sampled_from(usable)

    def fresh() -> Tensor:
        count, length = draw(st.integers(1, 3)), draw(st.integers(0, 5))
        return torch.tensor(
            draw(st.lists(token, min_size=count * length, max_size=count * length)), dtype=torch.int64
        ).view(count, length)

    texts = [fresh()]
    for step in draw(
        st.lists(
            st.sampled_from(["grow"] * 4 + ["cut", "permute", "beam", "again", "edit", "new", "int32"]), max_size=8
        )
    ):
        last = texts[-1].long()
        count, length = last.shape
        column = torch.tensor(draw(st.lists(token, min_size=count, max_size=count)))[:, None]
        match step:
            case "grow":
                last = torch.cat([last, column], -1)
            case "cut":
                last = last[:, : draw(st.integers(0, length))]
            case "permute":
                last = last[draw(st.permutations(range(count)))]
            case "beam":
                parents = draw(st.lists(st.integers(0, count - 1), min_size=count, max_size=count))
                last = torch.cat([last[parents], column], -1)
            case "edit" if length:
                # One token changes somewhere, and one more comes.
                last = torch.cat([last, column], -1)
                last[draw(st.integers(0, count - 1)), draw(st.integers(0, length - 1))] = draw(token)
            case "new":
                last = fresh()
            case "int32":
                last = last.int()
        texts.append(last)
    return texts


def test_what_is_returned_alone_begins_a_word() -> None:
    tokens = [b"</s>", b"ast.literal_", b"eval", b"(", b"x"]
    entries = [Entry("eval("), Entry("ast.literal_eval(x")]
    matcher = Blocklist.compile(entries).bind(Vocabulary.from_bytes(tokens, eos_ids=[0]))
    processor = ProdLogitsProcessor(matcher)

    def banned(*texts: list[int]) -> list[list[int]]:
        scores = processor(torch.tensor(texts), torch.zeros(len(texts), len(tokens)))
        return [torch.nonzero(row == -INF).flatten().tolist() for row in scores]

    # A prompt that ends inside a word, also where a longer entry is under way; beams that change places.
    assert banned([1], [4]) == [[], []]
    assert banned([1, 2], [4, 2]) == [[3], [3]]
    # The same words in the output.
    assert banned([4], [4]) == [[], []]
    assert banned([4, 1], [4, 4]) == [[], []]
    assert banned([4, 1, 2], [4, 4, 2]) == [[], []]
    assert banned([4, 1, 2, 3], [4, 4, 2, 3]) == [[4], []]


class Towards(LogitsProcessor):
    """Wants given tokens, one after another."""

    def __init__(self, wanted: list[int]) -> None:
        self.wanted = wanted
        self.length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.length is None:
            self.length = input_ids.shape[1]
        scores = torch.full_like(scores, -5.0)
        scores[:, self.wanted[input_ids.shape[1] - self.length]] = 5.0
        return scores


def test_a_call_that_goes_on_with_the_last_output_begins_an_output_of_its_own() -> None:
    tokens: list[bytes | None] = [b"x ", b"literal_", b"eval", b"(", b"</s>"]
    processor = ProdLogitsProcessor(Blocklist.compile([Entry("eval(")]), Vocabulary.from_bytes(tokens, eos_ids=[4]))
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=4,
        eos_token_id=4,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()

    def go_on(ids: Tensor, wanted: list[int]) -> Tensor:
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(wanted),
            do_sample=False,
            logits_processor=LogitsProcessorList([Towards(wanted), processor]),
        )

    assert go_on(torch.tensor([[0]]), [1, 2, 3])[0].tolist() == [0, 1, 2, 3]
    begun = go_on(torch.tensor([[0]]), [1])
    assert begun[0].tolist() == [0, 1]
    assert go_on(begun, [2, 3])[0, 2].item() == 2
    assert go_on(begun, [2, 3])[0, 3].item() != 3


def test_what_the_prompt_quotes_may_be_exempt() -> None:
    wanted = b"def f(x):\n    return yaml.load(x)\n"
    entries = [Entry(wanted.decode(), id="d", policy="quote", max_quote=16, piece=6, budget=6)]
    text = ids(encode(b"again: " + wanted))

    def write(prompt: Tensor, **options: Any) -> bytes:
        processor = ProdLogitsProcessor(Blocklist.compile(entries), VOCABULARY, **options)
        towards = Towards(encode(wanted))
        more = {"max_new_tokens": len(encode(wanted)), "do_sample": False}
        out = tiny_model().generate(prompt, logits_processor=[towards, processor], **more)
        return symbols(out[0, prompt.shape[1] :].tolist())

    said = oracle.normalize(wanted, "code", False)
    assert write(text, exempt_prompt=True) == said
    assert write(text) != said
    other = ids(encode(b"again: x\n"))
    assert write(other, exempt_prompt=True) == write(other) != said


def test_a_loop_of_ones_own_says_where_an_output_begins() -> None:
    tokens: list[bytes | None] = [b"x ", b"literal_", b"eval", b"(", b"</s>"]
    processor = ProdLogitsProcessor(Blocklist.compile([Entry("eval(")]), Vocabulary.from_bytes(tokens, eos_ids=[4]))

    def is_banned(text: list[int]) -> bool:
        return processor(torch.tensor([text]), torch.zeros(1, 5))[0, 3].item() == -INF

    assert [is_banned(text) for text in ([0], [0, 1], [0, 1, 2])] == [False, False, False]
    processor.forget()
    assert [is_banned(text) for text in ([0, 1], [0, 1, 2])] == [False, True]


def test_the_escapes_of_json_are_decoded() -> None:
    tokens = [b"</s>", b"import os", b"\\", b"n", b"os.system(", b"\\n", b"x="]
    matcher = Blocklist.compile([Entry("import os\nos.system(", id="shell")]).bind(
        Vocabulary.from_bytes(tokens, eos_ids=[0])
    )

    def bans(processor: ProdLogitsProcessor, *texts: list[int]) -> list[list[bool]]:
        """Of the token that completes the phrase, step by step; the first token is the prompt."""
        scores = torch.zeros(len(texts), len(tokens))
        scores[:, 4] = 9
        steps = [torch.tensor(texts)[:, :length] for length in range(1, len(texts[0]) + 1)]
        return [(processor(step, scores)[:, 4] == -INF).tolist() for step in steps]

    outputs = [[6, 1, 2, 3], [6, 1, 5, 5], [6, 1, 5, 1]]
    assert not np.any(bans(ProdLogitsProcessor(matcher), *outputs))
    processor = ProdLogitsProcessor(matcher, json=True)
    assert bans(processor, *outputs) == [[False] * 3, [False] * 3, [False, True, True], [True, True, False]]
    assert processor.fired == {"shell": 4}
    # A prompt is not decoded.
    assert bans(ProdLogitsProcessor(matcher, json=True), [1, 5])[1] == [False]


# Multiples of 1/4: exact in every dtype. Above 1, so that no row looks like log-probabilities.
SCORES = st.integers(4, 60).map(lambda i: i / 4)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Matcher, list[tuple[Tensor, Tensor]], torch.dtype]:
    matcher, usable = draw(bound())
    width = len(matcher) + draw(st.sampled_from([0, 0, 3]))
    dtype = draw(st.sampled_from(FLOATS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    calls = []
    for text in draw(histories(usable)):
        scores = torch.randint(4, 60, (len(text), width), generator=generator) / 4
        # Other processors mask too, down to a single token.
        if draw(st.booleans()):
            scores[:, draw(st.integers(0, width - 1)) :] = -INF
        calls.append((text, scores.to(dtype)))
    return matcher, calls, dtype


@pytest.mark.slow
@settings(max_examples=150)
@given(scenes())
def test_any_order_of_calls_equals_a_plain_loop(
    scene: tuple[Matcher, list[tuple[Tensor, Tensor]], torch.dtype],
) -> None:
    matcher, calls, dtype = scene
    processor, plain_loop = ProdLogitsProcessor(matcher), Plain(matcher)
    for text, scores in calls:
        given_text, given_scores = text.clone(), scores.clone()
        result = processor(text, scores)
        expected = plain_loop(given_text, given_scores)
        assert torch.equal(scores, given_scores)
        assert result.dtype == dtype
        dead = (given_scores == -INF).all(-1)
        assert torch.equal(result[~dead], expected[~dead])
        # The memory must not be the caller's tensor.
        text.fill_(0)
    assert processor.steps <= sum(len(text) for text, _ in calls)


@settings(max_examples=60)
@given(scenes(), st.sampled_from([{}, {"top_p": 0.7}, {"max_n": 2}, {"top_p": 0.9, "temperature": 2.0}]))
def test_mode_prod_is_the_logarithm_of_the_prod_distribution(
    scene: tuple[Matcher, list[tuple[Tensor, Tensor]], torch.dtype], options: dict[str, Any]
) -> None:
    matcher, calls, dtype = scene
    processor, plain_loop = ProdLogitsProcessor(matcher, mode="prod", **options), Plain(matcher)
    for text, scores in calls:
        result = processor(text, scores)
        masked = plain_loop(text, scores)
        expected = prod_distribution(masked, masked == -INF, **options).log().to(dtype)
        assert result.dtype == dtype
        assert torch.equal(result, expected)


@settings(max_examples=60)
@given(scenes())
def test_log_probabilities_are_normalised_again(
    scene: tuple[Matcher, list[tuple[Tensor, Tensor]], torch.dtype],
) -> None:
    matcher, calls, _ = scene
    processor, plain_loop = ProdLogitsProcessor(matcher), Plain(matcher)
    for text, raw in calls:
        scores = raw.float().log_softmax(-1)
        if bool(scores.isnan().any()):
            continue
        result = processor(text, scores)
        masked = plain_loop(text, scores)
        assert torch.equal(result == -INF, masked == -INF)
        assert result.logsumexp(-1).abs().max() < 1e-5
        # Relative probabilities stay: one shift for the whole row.
        shift = torch.where(masked == -INF, math.nan, result - masked)
        for row in shift:
            live = row[~row.isnan()]
            assert live.max() - live.min() < 1e-5


def test_rows_of_logits_keep_their_bits() -> None:
    processor = simple(b"ab")
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.7, 0.5, 0.6]]) * math.pi
    result = processor(ids([0]), scores)
    assert result.tolist() == [[score if i != 1 else -INF for i, score in enumerate(scores[0].tolist())]]
    # Nothing banned: nothing copied.
    assert processor(ids([1]), scores) is scores


def test_negative_logits_are_not_taken_for_log_probabilities() -> None:
    scores = torch.tensor([[-1.0, -2, -3, -4, -5, -6]])
    assert scores.logsumexp(-1).abs() > 0.1
    assert simple(b"ab")(ids([0]), scores).tolist() == [[-1, -INF, -3, -4, -5, -6]]


def test_log_probabilities_are_normalised_where_only_padding_is_masked() -> None:
    scores = torch.linspace(-1, 1, 8).log_softmax(-1)[None]
    result = simple(b"ab")(ids([1]), scores)
    assert (result == -INF).tolist() == [[False] * 6 + [True] * 2]
    assert torch.allclose(result[:, :6], scores[:, :6].log_softmax(-1))


def test_a_text_that_the_caller_edits_in_place_is_read_again() -> None:
    processor = simple(b"abc")
    scores = torch.ones(1, 6) * 2
    buffer = ids([0, 3, 4, 4])
    processor(buffer[:, :2], scores)
    buffer[0, 1] = 1
    buffer[0, 2] = 5
    # The text is now "ab", then EOS, which adds nothing.
    assert processor(buffer[:, :3], scores).tolist() == [[2, 2, -INF, 2, 2, 2]]


@given(st.data(), st.integers(0, 3), st.integers(1, 3), st.sampled_from([torch.int64, torch.int32]))
def test_the_newest_column_is_found_on_every_device_alike(
    data: st.DataObject, rows: int, length: int, dtype: torch.dtype
) -> None:
    """A device's way runs on the host, too; here it must find what the host's own finds."""
    texts = st.lists(st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=rows, max_size=rows)
    ids = torch.tensor(data.draw(texts), dtype=dtype).reshape(rows, length)
    before = torch.tensor([row[:-1] for row in data.draw(texts)], dtype=dtype).reshape(rows, length - 1)
    expected = ids[:, -1].tolist() if before.tolist() == ids[:, :-1].tolist() else None
    for find in (_last_column, _fetched_column):
        found = find(before, ids)
        assert found is None if expected is None else found is not None and found.tolist() == expected
        assert found is None or found.dtype == np.int64


def test_left_padding_and_other_special_tokens_are_no_text() -> None:
    processor = ProdLogitsProcessor(blocklist({b"eval("}), VOCABULARY)
    scores = torch.linspace(1, 2, len(TOKENS)).repeat(3, 1)
    text = encode(b"x = eval")
    rows = ids([PAD, PAD, BOS, *text], [PAD, PAD, PAD, *text], [PAD, *text[:-1], PAD, BOS, text[-1]])
    padded = processor(rows, scores)
    alone = processor(ids(text), scores[:1])
    assert bool((alone[0, [TOKENS.index(b"("), TOKENS.index(b"()"), TOKENS.index(b"(x")]] == -INF).all())
    assert torch.equal(padded, alone.expand(3, -1))


def test_a_row_without_a_token_left_ends() -> None:
    everything = [b"a", b"b", b"c", b"d", b"e", b""]
    processor = simple(b"a", b"b", b"c", b"d", b"e", tokens=everything)
    scores = torch.ones(2, 6).float()
    scores[0, 5] = -INF
    result = processor(ids([], []), scores)
    assert result.tolist() == [[-INF] * 5 + [0], [-INF] * 5 + [1]]
    several = ProdLogitsProcessor(processor.matcher, eos_token_id=[5], mode="prod")
    assert several(ids([], []), scores).tolist() == [[-INF] * 5 + [0]] * 2


def test_no_prompt_at_all() -> None:
    processor = simple(b"a")
    for _ in range(2):
        assert processor(torch.zeros(1, 0, dtype=torch.int64), torch.ones(1, 6)).tolist() == [[-INF, 1, 1, 1, 1, 1]]


def test_columns_that_the_model_lacks_cannot_be_banned() -> None:
    tokens = [b"a", b"", b"b", b"c"]
    processor = simple(b"ab", b"ac", tokens=tokens)
    assert processor(ids([0]), torch.ones(1, 3) * 2).tolist() == [[2, 2, -INF]]


def test_a_row_with_an_unknown_token_ends_and_the_others_go_on() -> None:
    processor = simple(b"ab", tokens=[b"a", b"b", None, b"c", b""])
    scores = torch.arange(1.0, 7).repeat(2, 1)
    assert processor.matcher.vocabulary.kinds[2] == UNKNOWN
    live, ended = [1, -INF, -INF, 4, 5, -INF], [-INF] * 4 + [0, -INF]
    processor(ids([0], [0]), scores)
    # 5 is a column of padding, 2 a hole in the vocabulary. First as the newest token, then inside the text.
    for unknown in (5, 2):
        assert processor(ids([0, 0], [0, unknown]), scores).tolist() == [live, ended]
        assert processor(ids([0, 0, 0], [0, unknown, 0]), scores).tolist() == [live, ended]
        assert processor(ids([0, 0], [0, 0]), scores).tolist() == [live, live]
    assert processor.steps == 2 + 2 * (1 + 1 + 2)
    with pytest.raises(
        ProdError, match=r"token id 5 has no known bytes .* use the tokenizer that belongs to the model"
    ):
        processor(ids([0, 5]), scores[:1])


# ---- what only the callers know ------------------------------------------------------------------------------------


def metaspace(scheme: str) -> Any:
    """A Unigram tokenizer, after which transformers cleans up; `first` also drops the space before a text."""
    pieces = [*map(chr, range(33, 127)), "\n", "\t", "\r", "\u2581", "do", "\u2581n't", "\u2581do", "\u2581import"]
    pieces += ["\u2581os", "yaml", ".load", "\u2581.load", "\u2581(", "\u2581=", "\u2581x"]
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *((piece, -2.0) for piece in pieces)]
    inner = Tokenizer(models.Unigram(vocab, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>", pad_token="</s>")


class Wants(LogitsProcessor):  # type: ignore[misc]
    """What a model writes that wants one text: its next token is far above the others, then EOS."""

    def __init__(self, tokenizer: Any, *tokens: str, after: int) -> None:
        self.ids = [*tokenizer.convert_tokens_to_ids(list(tokens)), tokenizer.eos_token_id]
        assert None not in self.ids
        self.after = after

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        wanted = scores.clone()
        wanted[:, self.ids[min(input_ids.shape[1] - self.after, len(self.ids) - 1)]] += 100
        return wanted


def small_model(tokenizer: Any) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ids)).eval()


def phrase(text: str, normalize: Any) -> Blocklist:
    return Blocklist.compile([Entry(text, id=text, boundary="none")], normalize=normalize)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("text", "normalize", "prompt", "tokens"),
    [("don't do", "code", "do", ["\u2581n't", "\u2581do"]), ("yaml.load(", "none", "x", ["yaml", "\u2581.load", "("])],
)
def test_a_pipeline_that_cleans_up_is_refused(
    several: bool, text: str, normalize: str, prompt: str, tokens: list[str]
) -> None:
    tokenizer = metaspace("never")
    pipe = pipeline("text-generation", model=small_model(tokenizer), tokenizer=tokenizer)
    blocked = phrase(text, normalize)
    wants = Wants(tokenizer, *tokens, after=len(tokenizer(prompt).input_ids))

    def write(*guards: ProdLogitsProcessor, **options: Any) -> str:
        processors = LogitsProcessorList([wants, *guards])
        inputs = [prompt] * 2 if several else prompt
        answers = pipe(inputs, logits_processor=processors, max_new_tokens=8, do_sample=False, **options)
        last = answers[-1][0] if several else answers[0]
        return str(last["generated_text"])

    assert list(blocked.scan(write()))
    guard = ProdLogitsProcessor(blocked, tokenizer)
    # Refused each time, not the first time alone.
    for _ in range(2):
        with pytest.raises(ProdError, match=r"TextGenerationPipeline with clean_up_.*: pass clean_up_.*=False to the"):
            write(guard)
    shown = write(guard, clean_up_tokenization_spaces=False)
    assert shown == prompt + "".join(tokens).replace("\u2581", " ")
    assert not list(blocked.scan(shown))
    pipe = pipeline("text-generation", model=pipe.model, tokenizer=tokenizer, clean_up_tokenization_spaces=False)
    assert write(guard) == shown


def test_a_pipeline_that_cleans_nothing_up_works(tmp_path: Path) -> None:
    # transformers 5 does not clean up after byte-level BPE.
    model, tokenizer = load_model(save_tiny_model(tmp_path), dtype="float32")
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    for normalize in ("code", "none"):
        guard = ProdLogitsProcessor(phrase("yaml.load(", normalize), tokenizer)
        assert pipe("x", logits_processor=[guard], max_new_tokens=2)[0]["generated_text"].startswith("x")
        assert guard.steps == 2


class Shown(TextStreamer):  # type: ignore[misc]
    """What a `TextStreamer` shows."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        super().__init__(tokenizer, **options)
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        self.text += text


def stream(tokenizer: Any, prompt: str, tokens: list[str], guard: Any, **options: Any) -> str:
    streamer = Shown(tokenizer, skip_special_tokens=True, **options)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False)
    wants = Wants(tokenizer, *tokens, after=inputs.input_ids.shape[1])
    small_model(tokenizer).generate(
        **inputs, logits_processor=[wants, *guard], streamer=streamer, max_new_tokens=8, do_sample=False
    )
    return streamer.text


def test_a_streamer_that_drops_spaces_is_refused() -> None:
    tokenizer = metaspace("first")
    text, tokens = "\nimport os", ["\n", "\u2581import", "\u2581os"]
    blocked = phrase(text, "none")
    assert list(blocked.scan(stream(tokenizer, "x", tokens, [])))
    with pytest.raises(ProdError, match=r"Shown, which drops a space .* the blocklist with normalize='code'"):
        stream(tokenizer, "x", tokens, [ProdLogitsProcessor(blocked, tokenizer)])
    # Where spaces that are dropped make no difference, the phrase itself is kept out.
    code = phrase("=import os", "code")
    shown = stream(tokenizer, "x", ["=", *tokens], [ProdLogitsProcessor(code, tokenizer)])
    assert shown.startswith("x=\nimport")
    assert not list(code.scan(shown))
    # This one drops none.
    kept = metaspace("never")
    assert stream(kept, "x", tokens, [ProdLogitsProcessor(blocked, kept)]) == "x\n import os"
    with pytest.raises(ProdError, match=r"got Shown\(..., clean_up_tokenization_spaces=True\), which removes spaces"):
        stream(kept, "x", tokens, [ProdLogitsProcessor(code, kept)], clean_up_tokenization_spaces=True)


def test_a_pipeline_that_drops_the_space_before_the_output_is_refused() -> None:
    tokenizer = metaspace("first")
    blocked = phrase("yaml.load(", "none")
    pipe = pipeline(
        "text-generation", model=small_model(tokenizer), tokenizer=tokenizer, clean_up_tokenization_spaces=False
    )
    wants = Wants(tokenizer, "\u2581(", after=len(tokenizer("yaml.load").input_ids))

    def write(*guards: ProdLogitsProcessor, **options: Any) -> str:
        processors = LogitsProcessorList([wants, *guards])
        answers = pipe("yaml.load", logits_processor=processors, max_new_tokens=4, do_sample=False, **options)
        return str(answers[0]["generated_text"])

    assert write() == "yaml.load("
    with pytest.raises(ProdError, match=r"drops the space between prompt and output .* pass return_full_text=False"):
        write(ProdLogitsProcessor(blocked, tokenizer))
    assert write(ProdLogitsProcessor(blocked, tokenizer), return_full_text=False) == "("
    assert write(ProdLogitsProcessor(phrase("yaml.load(", "code"), tokenizer)) != "yaml.load("


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
def test_a_history_that_is_in_the_cache_alone_is_refused(options: dict[str, Any]) -> None:
    model = tiny_model()
    processor = ProdLogitsProcessor(blocklist({b"yaml.load"}), VOCABULARY)
    first = run([PROMPTS[0]], processor, max_new_tokens=3, return_dict_in_generate=True, suppress_tokens=[EOS])
    whole = torch.cat([first.sequences, ids(encode(b"x = "))], 1)

    def go_on(text: Tensor, **more: Any) -> Tensor:
        cache = copy.deepcopy(first.past_key_values)
        if "num_beams" in options:
            cache.batch_repeat_interleave(2)
        more = {"max_new_tokens": 3, "do_sample": False, "past_key_values": cache, **options, **more}
        return model.generate(text, logits_processor=[processor], **more)

    assert go_on(whole).shape[1] == whole.shape[1] + 3
    new = whole[:, first.past_key_values.get_seq_length() :]
    hidden = rf"got {new.shape[1]} of them for a cache of {whole.shape[1]} tokens.*; pass generate all the ids"
    for _ in range(2):
        with pytest.raises(ProdError, match=hidden):
            go_on(new, attention_mask=torch.ones_like(whole))
    if not options:
        with pytest.raises(ProdError, match=r"got \d+ of them for a cache of \d+ tokens"):
            go_on(new, attention_mask=torch.ones_like(whole), prompt_lookup_num_tokens=2)


def test_embeddings_without_their_ids_are_refused() -> None:
    model = tiny_model()
    processor = ProdLogitsProcessor(blocklist({b"yaml.load"}), VOCABULARY)
    text = ids(PROMPTS[0])
    options = {
        "inputs_embeds": model.get_input_embeddings()(text).detach(),
        "attention_mask": torch.ones_like(text),
        "logits_processor": [processor],
        "max_new_tokens": 2,
    }
    with pytest.raises(ProdError, match=rf"got 0 of them for a cache of {text.shape[1]} tokens"):
        model.generate(**options)
    assert processor.steps == 0
    model.generate(input_ids=text, **options)
    assert processor.steps == 2


class OnlyBanned(LogitsProcessor):  # type: ignore[misc]
    """A grammar, say, that leaves one token, which is prohibited."""

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        left = torch.full_like(scores, -INF)
        left[:, TOKENS.index(b"(")] = 1.0
        return left


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=str)
@pytest.mark.parametrize("given", [None, [BOS, EOS]])
def test_a_row_without_a_token_left_ends_where_generate_stops(options: dict[str, Any], given: list[int] | None) -> None:
    processor = ProdLogitsProcessor(blocklist({b"eval("}), VOCABULARY, eos_token_id=given)
    text = ids(encode(b"x = eval"))

    def write(**more: Any) -> list[int]:
        return (
            tiny_model()
            .generate(
                text, logits_processor=[OnlyBanned(), processor], max_new_tokens=6, do_sample=False, **options, **more
            )[0, text.shape[1] :]
            .tolist()
        )

    # The tokenizer's own EOS is 2. One that adds text, or that the tokenizer lacks, is no way to end.
    stops = [TOKENS.index(b"a"), 9999, BOS]
    assert write(eos_token_id=stops) == [BOS]
    assert write() == [EOS]
    for wrong in ([TOKENS.index(b"a")], [HOLE, 9999]):
        whose = r"the processor's eos_token_id is \[1, 2\]" if given else r"the tokenizer's special EOS is \[2\]"
        with pytest.raises(ProdError, match=rf"generate stops at \[.*\] and {whose}; pass generate\(eos_token_id="):
            write(eos_token_id=wrong)
    # A copy takes none of it along.
    assert copy.deepcopy(processor).eos_ids == (given or [EOS])
    assert processor(text, torch.full((1, len(TOKENS)), -INF)).argmax() in (given or [EOS])
    assert pickle.loads(pickle.dumps(processor)).eos_ids == (given or [EOS])


def test_eos_ids_that_were_chosen_are_not_added_to() -> None:
    processor = ProdLogitsProcessor(blocklist({b"eval("}), VOCABULARY, eos_token_id=[EOS])
    with pytest.raises(ProdError, match=r"generate stops at \[1\] and the processor's eos_token_id is \[2\]; pass"):
        run([PROMPTS[0]], processor, eos_token_id=[BOS])


# ---- the object ----------------------------------------------------------------------------------------------------


def test_the_nucleus_of_the_prod_distribution_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model(save_tiny_model(tmp_path), dtype="float32")
    asked: list[float] = []
    generate_ = model.generate
    monkeypatch.setattr(model, "generate", lambda **options: asked.append(options["top_p"]) or generate_(**options))
    matcher = Blocklist.compile([Entry("eval(")]).bind(tokenizer)
    for guard, mode in ((matcher, "prod"), (matcher, "mask"), (None, "prod")):
        generate(model, tokenizer, "x", guard, max_new_tokens=1, temperature=1.0, top_p=0.8, mode=mode)
    assert asked == [1.0, 0.8, 0.8]


@pytest.mark.slow
def test_copies_and_pickles_work_and_count_for_themselves() -> None:
    processor = simple(b"ab", b"cd")
    scores = torch.tensor([[0.0, 3, 1, 1, 1, 1]])
    expected = processor(ids([2, 0]), scores)
    twins = [copy.copy(processor), copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))]
    for twin in twins[1:]:
        assert torch.equal(twin(ids([2, 0]), scores), expected)
        assert (twin.fired, twin.steps) == ({"ab": 2}, 2)
    assert processor.fired == {"ab": 1}
    assert twins[1].matcher is processor.matcher
    assert all(twin._ids is None for twin in (copy.copy(processor), copy.deepcopy(processor)))


def test_continuous_batching_is_refused() -> None:
    assert ProdLogitsProcessor.supports_continuous_batching is False


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("blocklist",),
            {},
            r"a Blocklist needs the model's tokenizer: pass ProdLogitsProcessor\(blocklist, tokenizer\)",
        ),
        (("matcher", "tokenizer"), {}, r"a Matcher is bound to its tokenizer: leave `tokenizer` out"),
        (
            ("tokenizer", "blocklist"),
            {},
            r"expected the blocklist and then the tokenizer, got Vocabulary and then Blocklist: pass ProdLogits",
        ),
        (
            ("matcher",),
            {"temprature": 1},
            r"ProdLogitsProcessor: unknown keyword 'temprature'; did you mean 'temperature'",
        ),
        (("eval(",), {}, r"expected a Matcher or a Blocklist, got str; use Blocklist.compile"),
        (("matcher",), {"mode": "ban"}, r"mode: expected 'mask' or 'prod', got 'ban'"),
        (
            ("matcher",),
            {"top_p": 0.8},
            r"belong to mode 'prod', got 0.8, None and None in mode 'mask': pass mode='prod'",
        ),
        (("matcher",), {"mode": "prod", "top_p": -1}, r"top_p: expected a number of at least 0, got -1"),
        (("matcher",), {"mode": "prod", "max_n": 0}, r"max_n: expected an integer of at least 1, got 0"),
        (("matcher",), {"eos_token_id": []}, r"expected an EOS token .* got none in the tokenizer: pass eos_token_id="),
        (("no eos",), {}, r"expected an EOS token .* got none in the tokenizer: pass eos_token_id="),
        (("matcher",), {"eos_token_id": 5}, r"eos_token_id: expected ids of special tokens, got 5"),
        (("matcher",), {"eos_token_id": [EOS, 9999]}, r"eos_token_id: expected ids of special tokens, got 9999"),
        (("matcher",), {"eos_token_id": "</s>"}, r"eos_token_id: expected ids of special tokens, got '<'"),
        (("matcher",), {"exempt_prompt": "no"}, r"exempt_prompt: expected True or False, got 'no'"),
        (("matcher",), {"json": 1}, r"json: expected True or False, got 1"),
    ],
)
def test_what_is_refused_at_construction(arguments: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    bl = blocklist({b"eval("})
    things: dict[str, Any] = {
        "blocklist": bl,
        "matcher": bl.bind(VOCABULARY),
        "tokenizer": VOCABULARY,
        "no eos": bl.bind(Vocabulary.from_bytes([b"a"])),
    }
    with pytest.raises(ProdError, match=message):
        ProdLogitsProcessor(*(things.get(name, name) for name in arguments), **options)


def test_what_is_refused_at_a_step() -> None:
    processor = simple(b"ab")
    with pytest.raises(
        ProdError, match=r"expected input_ids \[B, T\] and scores \[B, V\], got \(2, 1\) and \(1, 6\); call"
    ):
        processor(ids([0], [0]), torch.ones(1, 6))
    mismatch = r"the model scores {} tokens but the matcher's tokenizer has 6 .* bind the blocklist to the model's own"
    processor(ids([0]), torch.ones(1, 6 + 4096))
    for width in (6 + 4097, 5):
        with pytest.raises(ProdError, match=mismatch.format(width)):
            processor(ids([0]), torch.ones(1, width))
