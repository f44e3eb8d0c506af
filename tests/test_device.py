"""Masking on a device against the matcher: on the host, and with the kernels run by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from prod_decode.automaton import Automaton, Pattern
from prod_decode.blocklist import Blocklist, Entry
from prod_decode.device import DeviceMatcher
from prod_decode.errors import ProdError
from prod_decode.matcher import Matcher
from prod_decode.normalize import Normalization
from prod_decode.vocabulary import SPECIAL, Vocabulary
from tests.smollm2 import smollm2_tokenizer
from tests.strategies import FLOATS, Step, Visit, normalizations, pattern_lists, schedules, vocabularies

Backend = Literal["host", "triton"]

SLOTS, MAX_DRAFTS, LONGEST_TEXT = 3, 2, 64


# What runs the kernels here: see tests/conftest.py.
INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
KERNEL_DEVICE = "cpu" if INTERPRETED else "cuda"

needs_kernels = pytest.mark.skipif(
    find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs the package triton, and a GPU if TRITON_INTERPRET is 0",
)
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
        """That of the whole text, and, which differs after special tokens alone, that which follows what is remembered."""
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
    guard = DeviceMatcher(case.matcher, "cpu", slots=SLOTS, max_drafts=MAX_DRAFTS + 2, bit=case.bit, backend=backend)
    generator = torch.Generator().manual_seed(case.seed)
    width = max(1, len(case.matcher) + case.wider)
    engine = Engine(case.matcher, guard, case.enabled, width, case.dtype, generator)
    for step in case.steps:
        engine.play(step)


@settings(max_examples=300)
@given(case=cases())
def test_the_host_masks_what_the_matcher_bans(case: Case) -> None:
    play(case, "host")


# The interpreter takes seconds for some examples.
@needs_kernels
@settings(max_examples=40 if INTERPRETED else 300, phases=[Phase.explicit, Phase.generate])
@given(case=cases())
def test_the_kernels_mask_what_the_matcher_bans(case: Case) -> None:
    play(case, "triton")
