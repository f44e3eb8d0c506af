"""Masking on a device against the matcher: on the host, and with the kernels run by Triton's interpreter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.__main__ import main as bench_main
from bench.speed import device as bench_device
from bench.speed import overhead
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.device import bans as device
from prod_decode.device.bans import DeviceMatcher
from prod_decode.errors import ProdError
from prod_decode.match.automaton import BOUND_ROOT, Automaton, Pattern
from prod_decode.match.matcher import Matcher
from prod_decode.text.normalize import WORD_ENDS, Normalization
from prod_decode.tokens.vocabulary import SPECIAL, Vocabulary
from tests.gpu import INTERPRETED, KERNEL_DEVICE, needs_kernels, needs_triton
from tests.smollm2 import smollm2_tokenizer
from tests.strategies import FLOATS, Step, Visit, normalizations, pattern_lists, schedules, vocabularies

Backend = Literal["host", "triton"]

SLOTS, MAX_DRAFTS, LONGEST_TEXT = 3, 2, 64

both_backends = pytest.mark.parametrize("backend", ["host", pytest.param("triton", marks=needs_kernels)])


def guard_of(matcher: Matcher, backend: Backend, **options: Any) -> DeviceMatcher:
    device = KERNEL_DEVICE if backend == "triton" else "cpu"
    return DeviceMatcher(matcher, device, backend=backend, **options)


def matcher_of(
    tokens: Sequence[bytes | None], patterns: list[Pattern], normalization: Normalization, special: set[int]
) -> Matcher:
    """Token 0 is EOS."""
    vocabulary = Vocabulary.from_bytes(tokens, special=special, eos_ids=[0])
    return Matcher(Automaton.build(patterns), normalization, vocabulary)


# ---- the model: what an engine holds, and what the matcher says of it ------------------------------------------------


@dataclass
class Engine:
    """Texts in slots beside a `DeviceMatcher`, which is checked after every step."""

    matcher: Matcher
    guard: DeviceMatcher
    enabled: list[int]
    width: int
    dtype: torch.dtype
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.texts: list[list[int]] = [[] for _ in self.enabled]

    def play(self, step: Step) -> None:
        for slot in step.moved:
            self.texts[slot] = []
        self.guard.reset(step.moved)
        for slot, ids in step.more.items():
            self.texts[slot] += ids
        before = [self.guard.checkpoint(slot) for slot in range(len(self.texts))]
        for _ in range(step.calls):
            self.mask(step.visits)
        self.check_memory(step.visits, before)

    def mask(self, visits: Sequence[Visit]) -> None:
        rows = [(visit, k) for visit in visits for k in range(len(visit.drafts) + 1)]
        logits = self.draw_logits(len(rows))
        before = [self.guard.checkpoint(slot) for slot in range(len(self.texts))]
        got = self.apply(logits, rows)
        assert len(self.guard.states(len(rows))) == len(rows)
        want = logits.clone()
        for row, (visit, k) in enumerate(rows):
            if not self.is_ours(visit.slot):
                assert self.guard.states(row + 1)[row] is None
                continue
            state = self.guard.states(row + 1)[row]
            text, drafts = self.text_at(visit), visit.drafts[:k]
            possible = self.possible_states(text, drafts, before[visit.slot])
            assert state in possible
            if not any(0 <= t < len(self.matcher) and self.matcher.vocabulary.kinds[t] == SPECIAL for t in text):
                assert len(possible) == 1
            self.mask_row(want[row], state)
        assert same_bits(got, want), f"\n{got}\nexpected\n{want}"

    def apply(self, logits: Tensor, rows: list[tuple[Visit, int]]) -> Tensor:
        """The masked logits, back on the host."""
        device = self.guard.device
        # A wider tensor that the logits are a part of.
        wide = torch.full((len(rows), self.width + 2), 7.0, dtype=logits.dtype, device=device)
        wide[:, : self.width] = logits
        inputs = {name: tensor.to(device) for name, tensor in self.inputs(rows).items()}
        got = self.guard.apply(wide[:, : self.width], **inputs)
        assert got.data_ptr() == wide.data_ptr()
        assert (wide[:, self.width :] == 7).all()
        return got.cpu()

    def mask_row(self, scores: Tensor, state: int | None) -> None:
        banned = np.arange(self.width) if state is None else self.matcher.banned(state)
        scores[torch.from_numpy(banned[banned < self.width].astype(np.int64))] = -torch.inf
        scores[len(self.matcher) :] = -torch.inf
        if not bool((scores > -torch.inf).any()):
            scores[:] = -torch.inf
            scores[0] = 0

    def check_memory(self, visits: Sequence[Visit], before: list[tuple[int, int]]) -> None:
        """A slot remembers the text at its row without drafts, if that could be read."""
        visited = {visit.slot: visit for visit in visits}
        for slot in range(len(self.texts)):
            remembered = self.guard.checkpoint(slot)
            text = self.text_at(visited[slot]) if slot in visited and self.is_ours(slot) else None
            states = self.possible_states(text, [], before[slot]) if text is not None else {None}
            if states == {None}:
                assert remembered == before[slot]
            else:
                assert remembered[0] in states
                assert remembered[1] == len(text or [])

    def possible_states(self, text: list[int], drafts: list[int], remembered: tuple[int, int]) -> set[int | None]:
        """That of the whole text and that which follows what is remembered: the same but after special tokens."""
        try:
            states = {self.matcher.state_of(text)}
        except ProdError:
            return {None}
        state, covered = remembered
        if covered <= len(text):
            with suppress(ProdError):  # unknown tokens that are too far back to matter are not read
                states.add(self.walk(state, text[covered:]))
        try:
            return {self.walk(state, drafts) for state in states}
        except ProdError:
            return {None}

    def walk(self, state: int, ids: list[int]) -> int:
        for token_id in ids:
            state = self.matcher.advance(state, token_id)
        return state

    def is_ours(self, slot: int) -> bool:
        return 0 <= slot < len(self.texts) and bool(self.enabled[slot] >> self.guard.bit & 1)

    def text_at(self, visit: Visit) -> list[int]:
        text = self.texts[visit.slot]
        return text[: max(0, len(text) - visit.held_back)]

    def inputs(self, rows: list[tuple[Visit, int]]) -> dict[str, Tensor]:
        def lengths(visit: Visit) -> int:
            return len(self.texts[visit.slot]) if 0 <= visit.slot < len(self.texts) else 9

        token_ids = torch.full((len(self.texts), LONGEST_TEXT), -7, dtype=torch.int32)
        for slot, text in enumerate(self.texts):
            token_ids[slot, : len(text)] = torch.tensor(text, dtype=torch.int32)
        return {
            "slots": torch.tensor([visit.slot for visit, _ in rows], dtype=torch.int32),
            "drafts": torch.tensor([k for _, k in rows], dtype=torch.int32),
            "positions": torch.tensor(
                [lengths(visit) - visit.held_back - 1 + k for visit, k in rows], dtype=torch.int64
            ),
            # At the place of the last committed token stands one that no draft may be taken for.
            "input_ids": torch.tensor([visit.drafts[k - 1] if k else -9 for visit, k in rows], dtype=torch.int32),
            "token_ids": token_ids,
            "lengths": torch.tensor([len(text) for text in self.texts], dtype=torch.int32),
            "enabled": torch.tensor(self.enabled, dtype=torch.int32),
        }

    def draw_logits(self, rows: int) -> Tensor:
        """Some scores NaN or -inf, and one row in four nearly dead."""
        logits = torch.randn(rows, self.width, generator=self.generator)
        odd = torch.rand(logits.shape, generator=self.generator)
        scarce = torch.rand(rows, 1, generator=self.generator) < 0.25
        logits = torch.where(odd < torch.where(scarce, 0.9, 0.05), -torch.inf, logits)
        return torch.where(odd > 0.98, torch.nan, logits).to(self.dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


@dataclass(frozen=True)
class Case:
    matcher: Matcher
    steps: list[Step]
    enabled: list[int]
    bit: int
    wider: int
    dtype: torch.dtype
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    normalization = draw(normalizations)
    patterns = draw(pattern_lists(normalization))
    drawn, special = draw(vocabularies(patterns))
    # EOS comes first, so that it has a column in logits narrower than the vocabulary as well.
    tokens = [b"<eos>", *drawn]
    matcher = matcher_of(tokens, patterns, normalization, {i + 1 for i in special})
    known = [i for i, token in enumerate(tokens) if token is not None]
    plain = [i for i in known if i - 1 not in special and i]
    ids = plain if plain and draw(st.booleans()) else known
    # Often a pattern is under way.
    ids += [i for i in ids if any(p.symbols.startswith(tokens[i] or b"?") for p in patterns)] * 3
    odd = [-1, len(tokens), 2**31 - 1, *(i for i, token in enumerate(tokens) if token is None)]
    return Case(
        matcher,
        draw(schedules(ids, odd, SLOTS, MAX_DRAFTS)),
        draw(st.lists(st.sampled_from([1, 3, 3, 2]), min_size=SLOTS, max_size=SLOTS)),
        bit=draw(st.sampled_from([0, 0, 1])),
        wider=draw(st.sampled_from([0, 0, 1, 3, -1])),
        dtype=draw(st.sampled_from(FLOATS)),
        seed=draw(st.integers(0, 9)),
    )


def play(case: Case, backend: Backend) -> None:
    guard = guard_of(case.matcher, backend, slots=SLOTS, max_drafts=MAX_DRAFTS + 2, bit=case.bit)
    generator = torch.Generator().manual_seed(case.seed)
    width = max(1, len(case.matcher) + case.wider)
    engine = Engine(case.matcher, guard, case.enabled, width, case.dtype, generator)
    for step in case.steps:
        engine.play(step)


@pytest.mark.slow
@settings(max_examples=5 * settings.default.max_examples)
@given(case=cases())
def test_the_host_masks_what_the_matcher_bans(case: Case) -> None:
    play(case, "host")


# The interpreter takes seconds for some examples. Small as they are, few would have lists of tokens by themselves.
@pytest.mark.slow
@needs_kernels
@settings(
    max_examples=settings.default.max_examples * (1 if INTERPRETED else 10), phases=[Phase.explicit, Phase.generate]
)
@given(
    case=cases(),
    list_above=st.sampled_from([0, 3, 64]),
    most_listed=st.sampled_from([2, 1 << 24]),
    tried=st.sampled_from([0, 2, 1 << 20]),
    short=st.sampled_from([1, 64]),
)
def test_the_kernel_masks_what_the_matcher_bans(
    case: Case, list_above: int, most_listed: int, tried: int, short: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_LIST_ABOVE", list_above)
        patch.setattr(device, "_MOST_LISTED", most_listed)
        patch.setattr(device, "_LISTS_TRIED", tried)
        patch.setattr(device, "_SHORT_LIST", short)
        play(case, "triton")


# ---- what is larger than a warp, a block, or the distances kept ------------------------------------------------------


def engine_of(
    matcher: Matcher, backend: Backend, texts: Sequence[Sequence[int]], width: int | None = None
) -> tuple[Engine, list[Visit]]:
    """An engine in which every slot has a text, and a visit to each of them."""
    guard = guard_of(matcher, backend, slots=len(texts))
    engine = Engine(
        matcher, guard, [1] * len(texts), width or len(matcher), torch.float32, torch.Generator().manual_seed(0)
    )
    engine.texts = [list(text) for text in texts]
    return engine, [Visit(slot, [], 0) for slot in range(len(texts))]


@both_backends
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("list_above", [0, 10**9])
@pytest.mark.parametrize("count", [2, 5])  # few tokens below a node are masked in another place than many
def test_no_score_beyond_a_row_is_written(
    backend: Backend, whole: bool, list_above: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The banned tokens lie on both sides of the row's end."""
    monkeypatch.setattr(device, "_LIST_ABOVE", list_above)
    monkeypatch.setattr(device, "_LISTS_TRIED", 0)
    tokens = [b"<eos>", b"a", b"x", *[b"b", b"b(", b"b.", b"b)", b"b,"][:count]]
    matcher = matcher_of(tokens, [Pattern(False, b"ab", whole)], Normalization("none"), set())
    assert matcher.banned(matcher.state_of([1])).tolist() == list(range(3, len(tokens)))
    engine, visits = engine_of(matcher, backend, [[1], [2], [1]], width=4)
    engine.mask(visits)


@both_backends
def test_a_word_begins_after_a_special_token_inside_another(backend: Backend) -> None:
    patterns = [Pattern(False, b"aa", False), Pattern(True, b"ba", False)]
    matcher = matcher_of([b"<eos>", b"a", b"b", b"<>"], patterns, Normalization(), {0, 3})
    assert [matcher.banned(matcher.state_of(text)).tolist() for text in ([1, 3, 2], [1, 2])] == [[1], []]
    engine, visits = engine_of(matcher, backend, [[1, 3, 2], [1, 2]])
    engine.mask(visits)


@both_backends
@pytest.mark.parametrize("list_above", [64, 10**9])
@pytest.mark.slow
def test_nodes_with_many_children(backend: Backend, list_above: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_LIST_ABOVE", list_above)
    monkeypatch.setattr(device, "_LISTS_TRIED", 0)
    every = range(124)  # three times the lanes of the kernel, and some
    tokens = [b"<eos>", *(bytes([i]) for i in every), *(bytes([i, 122]) for i in every)]
    tokens += [b"(" + bytes([i]) + b"z!" for i in every]
    patterns = [Pattern(False, b"(" + bytes([i]) + b"z", False) for i in every if i % 3]
    patterns += [Pattern(False, b"[(" + bytes([i]) + b"z", False) for i in every if not i % 3]
    matcher = matcher_of(tokens, sorted(patterns), Normalization("none"), {0})
    texts = [[1 + 91, 1 + 40], [1 + 40, 1 + 100], [1 + 91, 1 + 40, 1 + 99]]
    engine, visits = engine_of(matcher, backend, texts)
    engine.mask(visits)
    assert [len(matcher.banned(matcher.state_of(text))) for text in texts] == [206, 84, 84]


@needs_kernels
def test_each_trie_has_lists_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `c` a word is under way, and in the trie for that, the first list, that of `a`, is the last."""
    monkeypatch.setattr(device, "_LIST_ABOVE", 0)
    monkeypatch.setattr(device, "_MOST_LISTED", 1)
    patterns = [Pattern(False, b"a b", False), Pattern(False, b"cb", False)]
    matcher = matcher_of([b"<eos>", b"a", b"c", b"b", b" b"], patterns, Normalization(), {0})
    engine, visits = engine_of(matcher, "triton", [[1], [2]])
    engine.mask(visits)
    assert [matcher.banned(matcher.state_of(text)).tolist() for text in engine.texts] == [[4], [3]]


@pytest.mark.slow
@settings(max_examples=5 * settings.default.max_examples)
@given(
    case=cases(),
    above=st.sampled_from([0, 1, 64]),
    tries=st.sampled_from([0, 2, 1 << 20]),
    short=st.sampled_from([0, 1, 64]),
    most=st.sampled_from([1, 4, 7, 1 << 24]),
)
def test_which_nodes_have_lists(case: Case, above: int, tries: int, short: int, most: int) -> None:
    """Who must have one has one, as long as there is room; and of the others as many as may."""
    nodes, table = case.matcher.automaton.nodes, case.matcher.table
    count = len(nodes) - 1
    children = [range(nodes["child"][v], nodes["child"][v + 1]) for v in range(count)]
    descendants = [0] * count
    for v in reversed(range(count)):
        descendants[v] = sum(1 + descendants[child] for child in children[v])
    for trie in range(int(table.roots.max()) + 1):
        list_of, ends, tokens = device._list_tokens(
            nodes,
            table.nodes,
            trie,
            table.order,
            WORD_ENDS,
            *case.matcher.table.scratch,
            above,
            tries,
            short,
            most,
        )
        assert len(tokens) == ends[-1]
        longest = table.nodes["height"][trie]
        unlisted = [0] * count
        made, tried = 1, 0
        for v in range(BOUND_ROOT + 1, count):
            fail = nodes["fail"][v]
            if nodes["near"][v] > longest:
                assert list_of[v] == 0
                continue
            own = descendants[v] if nodes["below"][v] <= longest else 0
            unlisted[v] = own + (unlisted[fail] if list_of[fail] < 0 else 0)
            if not own:
                assert list_of[v] == list_of[fail]
                continue
            must, room = unlisted[v] > above, ends[made - 1] < most
            if list_of[v] < 0:
                # No room for it, or no need: then enough others were tried, or it is too long for half of the room.
                assert not room or not must
                assert not room or tried >= tries or ends[made - 1] >= most // 2
            else:
                assert room
                assert must or tried < tries
                if list_of[v] == made:
                    assert must or ends[made] - ends[made - 1] <= short or ends[made - 1] < most // 2
                    made += 1
                else:
                    assert list_of[v] == list_of[fail]
            tried += room and not must
        assert made == len(ends)


@needs_kernels
def test_a_node_that_adds_nothing_has_the_list_of_its_failure_link() -> None:
    """After `ab` one could go on to `abcq`, for which there is no token, and `bd` is under way as well."""
    patterns = [Pattern(False, b"abcq", False), Pattern(False, b"bd", False)]
    matcher = matcher_of([b"<eos>", b"a", b"b", b"d", b"zz"], patterns, Normalization("none"), {0})
    engine, visits = engine_of(matcher, "triton", [[1, 2], [2]])
    engine.mask(visits)
    assert [matcher.banned(matcher.state_of(text)).tolist() for text in engine.texts] == [[3], [3]]
    arrays = engine.guard._arrays
    assert len(arrays["list_starts"]) == 3  # an empty one and one for both


@both_backends
def test_more_tokens_than_a_block(backend: Backend) -> None:
    """Ranges, word ends, fixed completions, padding, and live scores that come late."""
    numbers = [str(i).encode() for i in range(700)]
    tokens = [b"<eos>", b"ab", *(b"cd" + n for n in numbers), *(b"ef" + n for n in numbers)]
    tokens += [b"ef." + n for n in numbers] + [b"abc" + n for n in numbers] + [b"ef", b"cd", b"ab"]
    # Below "ij" are a few tokens, one more than are masked together with those below other children.
    tokens += [b"ij" + n for n in numbers[:5]]
    patterns = [Pattern(False, b"abc", False), Pattern(False, b"abef", True), Pattern(False, b"abij", False)]
    matcher = matcher_of(tokens, patterns, Normalization(), {0})
    engine, visits = engine_of(matcher, backend, [[], [1], [1, 0]], len(tokens) + 1100)
    assert len(matcher.banned(matcher.state_of([1]))) == 700 + 1 + 700 + 700 + 1 + 5
    engine.mask(visits)
    for last in (0, 5, 900, len(tokens) - 2):
        logits = torch.full((3, engine.width), -torch.inf)
        logits[:, last] = 1.5
        want = logits.clone()
        for row, visit in enumerate(visits):
            engine.mask_row(want[row], matcher.state_of(engine.texts[visit.slot]))
        assert same_bits(engine.apply(logits, [(visit, 0) for visit in visits]), want)


# Patterns so long that the distances kept of them end at 255, and tokens on both sides of that. They begin with "(", so
# that only one is under way: Triton's interpreter would take minutes for hundreds.
@pytest.mark.slow
@both_backends
@pytest.mark.parametrize("length", [255, 512])
def test_long_patterns_and_long_tokens(backend: Backend, length: int) -> None:
    tokens = [b"<eos>", b"(", b"a", b"(" + b"a" * 256, b"a" * 254, b"a" * 256]
    tokens += [b"a" * n + b")" for n in (1, 253, 254, 255, 256, 300)]
    patterns = sorted(Pattern(False, b"(" + b"a" * n + b")", False) for n in (length, length - 7))
    matcher = matcher_of(tokens, patterns, Normalization(), {0})
    texts = [[1, 2, 2], [3, 2], [3, 4, 2]]
    engine, visits = engine_of(matcher, backend, texts)
    engine.mask(visits)
    assert any(len(matcher.banned(matcher.state_of(text))) for text in texts)


# ---- unknown tokens, and what cannot be read -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Matcher:
    """Ids 1 to 3 are tokens, 4 is none; patterns are at most three symbols long."""
    patterns = [Pattern(False, b"ab", False), Pattern(False, b"bca", False)]
    return matcher_of([b"<eos>", b"a", b"b", b"c", None], patterns, Normalization(), {0})


@both_backends
def test_unknown_tokens_too_far_back_to_matter_are_not_read(backend: Backend, small: Matcher) -> None:
    engine, visits = engine_of(small, backend, [[4, 4, 2, 3, 3, 2, 3], [4, 3, 3, 2], [99]])
    engine.mask(visits)
    assert engine.guard.states(3) == [small.state_of([2, 3]), None, None]
    assert [engine.guard.checkpoint(slot)[1] for slot in range(3)] == [7, 0, 0]


@pytest.mark.slow
@both_backends
@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        (1, {"drafts": [0, -1, 2]}),
        (1, {"drafts": [0, 2, 2]}),
        (2, {"slots": [0, 1, 0]}),
        (0, {"lengths": [9, 9], "positions": [9, 9, 9]}),
    ],
)
def test_rows_that_cannot_be_read_end(backend: Backend, small: Matcher, row: int, wrong: dict[str, list[int]]) -> None:
    inputs = {
        "slots": [0, 0, 0],
        "drafts": [0, 1, 2],
        "positions": [1, 2, 3],
        "input_ids": [2, 3, 3],
        "lengths": [2, 2],
        "enabled": [1, 1],
    }
    guard = guard_of(small, backend, slots=2, max_drafts=3)
    token_ids = torch.full((2, 4), 3, dtype=torch.int64, device=guard.device)
    for values in (inputs, {**inputs, **wrong}):
        tensors = {name: torch.tensor(numbers, device=guard.device) for name, numbers in values.items()}
        logits = guard.apply(torch.ones(3, 5, device=guard.device), token_ids=token_ids, **tensors).cpu()
        ended = [scores == [0] + [-torch.inf] * 4 for scores in logits.tolist()]
        assert ended[row] == (guard.states(3)[row] is None) == (values is not inputs)


@both_backends
def test_rows_of_other_slots_keep_their_bits(backend: Backend, small: Matcher) -> None:
    engine, visits = engine_of(small, backend, [[1], [1], [1]])
    engine.enabled = [0, 2, 1]
    logits = torch.tensor([[torch.nan, -torch.inf, -0.0, -torch.inf, -torch.inf]]).repeat(3, 1)
    logits[:2, 2] = -torch.inf
    masked = engine.apply(logits, [(visit, 0) for visit in visits])
    assert same_bits(masked[:2], logits[:2])
    assert masked[2].tolist() == [0] + [-torch.inf] * 4


# ---- several blocklists, and slots that are used again ---------------------------------------------------------------


@both_backends
def test_blocklists_add_up_and_the_last_token_standing_is_eos(backend: Backend) -> None:
    tokens = [b"<eos>", b"a", b"b", b"c", b"x"]
    halves = [[b"xa", b"xb"], [b"xc", b"xx"]]
    guards = [
        guard_of(
            matcher_of(tokens, [Pattern(False, symbols, False) for symbols in half], Normalization(), {0}),
            backend,
            slots=3,
            bit=bit,
        )
        for bit, half in enumerate(halves)
    ]
    inputs = {
        "slots": [0, 1, 2],
        "drafts": [0, 0, 0],
        "positions": [0, 0, 0],
        "input_ids": [4, 4, 4],
        "lengths": [1, 1, 1],
        "enabled": [3, 1, 2],
    }
    device = guards[0].device
    tensors = {name: torch.tensor(values, dtype=torch.int32, device=device) for name, values in inputs.items()}
    for order in (guards, guards[::-1]):
        logits = torch.ones(3, 5, device=device)
        logits[:, 0] = -torch.inf
        for guard in order:
            guard.apply(logits, token_ids=torch.full((3, 2), 4, device=device), **tensors)
        end = -torch.inf
        assert logits.tolist() == [[0, end, end, end, end], [end, end, end, 1, 1], [end, 1, 1, end, end]]


@both_backends
def test_reset_makes_room_for_another_text(backend: Backend, small: Matcher) -> None:
    engine, visits = engine_of(small, backend, [[1, 1, 1], [2, 2, 2]])
    engine.mask(visits)
    engine.texts = [[3, 2, 3, 3], [2, 2, 2, 3]]
    engine.guard.reset([])
    engine.guard.reset([0])
    assert [engine.guard.checkpoint(slot) for slot in range(2)] == [(0, 0), (small.state_of([2]), 3)]
    engine.mask(visits)


@both_backends
def test_warming_up_changes_nothing(backend: Backend, small: Matcher) -> None:
    engine, visits = engine_of(small, backend, [[1, 1], [2]])
    engine.mask(visits)
    remembered = [engine.guard.checkpoint(slot) for slot in range(2)]
    device = engine.guard.device
    logits = torch.zeros(4, 5, device=device)
    lengths = torch.full((2,), 3, device=device)
    engine.guard.warm_up(logits, torch.ones(2, 3, dtype=torch.int64, device=device), lengths, torch.int32)
    assert [engine.guard.checkpoint(slot) for slot in range(2)] == remembered
    assert (logits == 0).all()


# ---- a real vocabulary -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@both_backends
def test_a_real_vocabulary(backend: Backend) -> None:
    tokenizer = smollm2_tokenizer()
    phrases = [
        "yaml.load(",
        "eval(",
        "pickle.loads(",
        "os.system(",
        "subprocess.call(",
        "shell=True",
        "telnetlib",
        "hashlib.md5(",
        "hashlib.sha1(",
        "hashlib.new(",
        "assert",
        "random.random",
        "except:",
        "exec(",
        "tempfile.mktemp",
        "tempfile.mkdtemp",
        "verify=False",
        "http://",
        "input(",
        "DES.new",
        "os.popen(",
        "marshal.loads(",
        "ssl.wrap_socket(",
        "cgi.escape",
        "asyncore",
    ]
    entries = [Entry(phrase) for phrase in phrases]
    entries += [Entry("the quick brown fox jumps over the lazy dog; " * 9, policy="quote", max_quote=80)]
    matcher = Blocklist.compile(entries).bind(tokenizer)
    written = [
        "import yaml, os\n\n\ndef run(path):\n    data = yaml . loa",
        "data = yaml.load",
        "x = eval",
        "x = literal_eval",
    ]
    written += [
        "x = 1\n    ass",
        "os.sys",
        "y = os.system ",
        "pickle.loads",
        "the quick brown fox jump",
        "r(verify = Fal",
        "",
    ]
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in written]
    texts.append([*texts[0][:9], tokenizer.eos_token_id, *texts[0][9:]])
    engine, visits = engine_of(matcher, backend, texts, len(matcher) + 64)
    engine.mask(visits)
    assert len({tuple(matcher.banned(matcher.state_of(text)).tolist()) for text in texts}) >= 5


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots: expected an integer from 1 to 2147483647, got 0"),
        ({"max_drafts": -1}, "max_drafts: expected an integer from 0 to 2147483647, got -1"),
        ({"bit": 31}, "bit: expected an integer from 0 to 30, got 31"),
        ({"eos_token_id": 1}, "eos_token_id: expected ids of special tokens, got 1, which adds text or does not exist"),
        ({"eos_token_id": []}, "expected an EOS token to end rows whose every token is banned"),
        ({"backend": "cuda"}, "backend: expected 'triton', 'host' or None, got 'cuda'"),
    ],
)
def test_a_mistake_in_the_options_is_named(small: Matcher, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProdError, match=re.escape(message)):
        DeviceMatcher(small, "cpu", **{"slots": 2, **options})


def test_triton_is_refused_where_it_cannot_run(small: Matcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert DeviceMatcher(small, "cpu", slots=1).backend == "host"
    message = "the package is not installed" if find_spec("triton") is None else "it has no kernels for cpu"
    with pytest.raises(ProdError, match=f"got 'triton', but {message}"):
        DeviceMatcher(small, "cpu", slots=1, backend="triton")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("logits", torch.zeros(2, 5, dtype=torch.int64), "logits: expected floats [R, V] with a contiguous last dim"),
        ("logits", torch.zeros(2, 10)[:, ::2], "logits: expected floats [R, V] with a contiguous last dimension"),
        ("logits", torch.zeros(5), "logits: expected floats [R, V] with a contiguous last dimension"),
        ("logits", torch.zeros(3, 5), "logits: expected at most 2 rows, got 3; make the DeviceMatcher with more slots"),
        ("logits", torch.zeros(2, 0), "logits: expected a column for an EOS token [0], got 0 columns"),
        ("slots", torch.zeros(3, dtype=torch.int32), "slots: expected contiguous int32 or int64 of shape (2,), got"),
        ("drafts", torch.zeros(2), "drafts: expected contiguous int32 or int64 of shape (2,), got torch.float32"),
        ("positions", torch.zeros(4, dtype=torch.int64)[::2], "positions: expected contiguous int32 or int64 of shape"),
        ("lengths", torch.zeros(1, dtype=torch.int64), "lengths: expected contiguous int32 or int64 of shape (2,)"),
        (
            "token_ids",
            torch.zeros(1, 4, dtype=torch.int64),
            "token_ids: expected int32 or int64 of shape (2, T) with a",
        ),
        ("token_ids", torch.zeros(4, 2, dtype=torch.int64).T, "token_ids: expected int32 or int64 of shape (2, T)"),
        ("enabled", torch.zeros(2, dtype=torch.int32, device="meta"), "enabled: expected it on cpu, got it on meta"),
    ],
)
def test_a_mistake_in_the_tensors_is_named(small: Matcher, name: str, tensor: Tensor, message: str) -> None:
    inputs = {key: torch.zeros(2, dtype=torch.int32) for key in ("slots", "drafts", "positions", "input_ids")}
    inputs |= {"lengths": torch.zeros(2, dtype=torch.int64), "enabled": torch.ones(2, dtype=torch.int32)}
    inputs |= {"logits": torch.zeros(2, 5), "token_ids": torch.zeros(2, 4, dtype=torch.int32)}
    guard = DeviceMatcher(small, "cpu", slots=2)
    guard.apply(**inputs)
    with pytest.raises(ProdError, match=re.escape(message)):
        guard.apply(**{**inputs, name: tensor})


def test_a_slot_that_does_not_exist_is_named(small: Matcher) -> None:
    with pytest.raises(ProdError, match=re.escape("slots: expected numbers from 0 to 1, got [0, 2]")):
        DeviceMatcher(small, "cpu", slots=2).reset([0, 2])


# ---- the benchmark ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_benchmark_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_main(["device"]) == 2
    message = "bench device: expected a GPU that torch can use, got none: run this on a machine with one\n"
    assert capsys.readouterr() == ("", message)


class FakeEvent:
    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        assert end is not self
        return 0.5


@needs_kernels
@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter: it plays a GPU on the CPU")
def test_the_benchmark_runs_on_a_gpu_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = "def f(a, b):\n    return a.b(a + 1)\n" * 20
    lines = ["return a.b(a + 1)", "def f(a, b):"]
    tokens = [b"<eos>", *(bytes([i]) for i in range(256))]
    vocabulary = Vocabulary.from_bytes(tokens, special={0}, eos_ids=[0])

    def tokenize(written: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [byte + 1 for byte in written.encode()]}

    material = overhead.Material(tokenize, lines, text, text, tokenize(text)["input_ids"][:200])
    monkeypatch.setattr(bench_device, "GPU", "cpu")
    monkeypatch.setattr(bench_device, "WARM_UP", 1)
    monkeypatch.setattr(overhead, "gather", lambda name, count, steps: material)
    monkeypatch.setattr(overhead, "bind", lambda patterns, tokenizer: overhead._compile(patterns).bind(vocabulary))
    for name, fake in {
        "is_available": lambda: True,
        "get_device_name": lambda: "none",
        "synchronize": lambda: None,
        "_sleep": lambda cycles: None,
        "Event": FakeEvent,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    out = tmp_path / "figures.jsonl"
    arguments = ["--patterns", "2", "--batch", "1,3", "--columns", "300", "--steps", "2", "--json", str(out)]
    assert bench_main(["device", *arguments]) == 0
    figures = [json.loads(line) for line in out.read_text().splitlines()]
    assert [figure["guard"] for figure in figures] == ["device", "dense", "host"] * 4
    assert [figure["value"] for figure in figures[:2]] == [500, 500]
    assert figures[0]["what"] == "mask a step, 2 patterns, code, B=1"
    assert "mask a step, 2 patterns, near, B=3" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench_main(["device", "--steps", "many"])
    assert bench_main(["device", "--batch", "1,0"]) == 2


# ---- kernels for GPUs that are not there -----------------------------------------------------------------------------

COMPILE = """
from prod_decode.device import kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

kernel = kernels.mask
BYTES = ("classes", "symbols", "next_state", "kinds")
NUMBERS = "tokens_stride tokens_length bit slot_count node_count row_count size longest logits_stride width end_count"
for machine in ("cuda", "hip"):
    target = GPUTarget("cuda", 80, 32) if machine == "cuda" else GPUTarget("hip", "gfx942", 64)
    for logits, ids in (("fp32", "i32"), ("bf16", "i64"), ("fp16", "i64"), ("fp64", "i64")):
        wide = {"checkpoints": "i64", "found": "i64", "fixed_starts": "i64", "list_starts": "i64", "logits": logits}
        wide |= dict.fromkeys(("slots", "drafts", "positions", "input_ids", "token_ids", "lengths", "enabled"), ids)
        wide |= dict.fromkeys(BYTES, "u8")
        types = {name: "i32" if name in NUMBERS.split() else "*" + wide.get(name, "i32") for name in kernel.arg_names}
        constants = {"lanes": kernels.LANES, "block": kernels.BLOCK}
        source = ASTSource(
            fn=kernel,
            signature=types | dict.fromkeys(constants, "constexpr"),
            constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        )
        compiled = triton.compile(source, target=target, options={"num_warps": 1})
        machine_code = compiled.asm["cubin" if machine == "cuda" else "hsaco"]
        assert len(machine_code) > 1000
        assert "st.local" not in compiled.asm.get("ptx", "")
    print("compiled for", machine)
"""


@needs_triton
@pytest.mark.long
def test_the_kernels_compile_for_gpus(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout == "compiled for cuda\ncompiled for hip\n", result.stderr


@pytest.mark.slow
def test_importing_the_package_imports_no_kernels() -> None:
    program = "import sys, prod_decode; assert not {'torch', 'triton', 'prod_decode.device.bans'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    program = (
        "import sys, prod_decode.device.bans; "
        "assert not {'transformers', 'prod_decode.device.kernels'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
