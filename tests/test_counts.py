"""What the hot paths touch and allocate, counted: a guard against slower code that does not depend on the machine.

The kernels run as the Python functions they are written as, on arrays that count their reads. The counts are the same
on every machine: bounds are 2 % above what was counted when they were set, and a quarter above for memory.
"""

from __future__ import annotations

import random
import tracemalloc
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prod_decode import Blocklist, Entry, automaton, matcher
from prod_decode.matcher import Matcher
from prod_decode.models import load_tokenizer
from prod_decode.normalize import CLASSES
from prod_decode.tokenizer_bytes import vocabulary_of

pytestmark = pytest.mark.slow

WORDS = ["self", "value", "index", "result", "append", "return", "if", "not", "None", "data", "key", "name", "path"]
SIGNS = [".", "(", ")", " = ", ", ", "[", "] ", " + ", ": ", " == ", "_"]


def code_lines(count: int, seed: int) -> list[str]:
    """Distinct lines of 30 to 60 characters that look like code, many with a beginning in common."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        line = ""
        while len(line) < 30:
            line += draw.choice(WORDS) + draw.choice(SIGNS)
        found[line.strip()[:60]] = None
    return list(found)


class Counted:
    """A structured array that counts how often a record is read."""

    def __init__(self, array: Any, counts: dict[str, int], name: str) -> None:
        record = namedtuple("record", array.dtype.names)
        self._records = [record(*values) for values in array.tolist()]
        self._counts, self._name = counts, name

    def __getitem__(self, place: Any) -> Any:
        self._counts[self._name] += 1
        return self._records[place]

    def __len__(self) -> int:
        return len(self._records)


@contextmanager
def plain_python(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels' own functions in place of the machine code made of them."""
    with monkeypatch.context() as patch:
        for module, names in (
            (matcher, ("_continuations", "_emit_word_ends", "_advance_inline", "step")),
            (automaton, ("find_child", "step")),
        ):
            for name in names:
                patch.setattr(module, name, getattr(module, name).py_func)
        yield


@pytest.fixture(scope="module")
def vocabulary() -> Any:
    return vocabulary_of(load_tokenizer("bundled"))


def walk_of(vocabulary: Any, lines: list[str]) -> list[int]:
    tokenizer = load_tokenizer("bundled")
    return list(tokenizer("\n".join(lines), add_special_tokens=False)["input_ids"])


def counted_masks(bound: Matcher, states: list[int]) -> list[int]:
    """Records of automaton and token trie read for the mask of each state."""
    found = []
    table, counts = bound._table, {"nodes": 0, "tokens": 0}
    nodes, token_nodes = Counted(bound._automaton.nodes, counts, "nodes"), Counted(table.nodes, counts, "tokens")
    for state in states:
        counts.update(nodes=0, tokens=0)
        matcher._continuations(  # type: ignore[call-arg]
            nodes,
            token_nodes,
            table.roots[state & 3],
            table.order,
            CLASSES,
            bound._stamps,
            bound._scratch,
            bound._stack,
            state >> 2,
        )
        found.append(sum(counts.values()))
    return found


def states_along(bound: Matcher, tokens: list[int]) -> list[int]:
    states, state = [], bound.start()
    for token in tokens:
        state = bound.advance(state, token)
        states.append(state)
    return states


@pytest.mark.parametrize(("count", "mean", "worst"), [(100, 188, 490), (10_000, 469, 902)])
def test_records_read_for_a_mask(
    vocabulary: Any, monkeypatch: pytest.MonkeyPatch, count: int, mean: float, worst: int
) -> None:
    bound = Blocklist.compile([Entry(line, boundary="none") for line in code_lines(count, 0)]).bind(vocabulary)
    states = states_along(bound, walk_of(vocabulary, code_lines(40, 1)))
    assert len(set(states)) > 50
    with plain_python(monkeypatch):
        read = counted_masks(bound, states)
    assert np.mean(read) < mean, np.mean(read)
    assert max(read) < worst, max(read)


def test_records_read_for_an_advance(vocabulary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = Blocklist.compile([Entry(line, boundary="none") for line in code_lines(10_000, 0)]).bind(vocabulary)
    tokens = walk_of(vocabulary, code_lines(40, 1))
    table, counts = bound._table, {"nodes": 0}
    nodes = Counted(bound._automaton.nodes, counts, "nodes")
    with plain_python(monkeypatch):
        state = bound.start()
        for token in tokens:
            state = matcher._advance_inline(  # type: ignore[call-arg]
                nodes,
                bound._automaton.rows,
                CLASSES,
                table.symbols,
                table.starts,
                table.next_state.astype(np.int64),
                vocabulary.kinds,
                state,
                token,
            )
    assert state == bound.state_of(tokens)
    each = counts["nodes"] / sum(len(vocabulary.token_bytes(token)) for token in tokens)
    assert each < 4.28, each


def test_sizes_of_what_is_compiled(tmp_path: Path) -> None:
    lines = code_lines(10_000, 0)
    blocklist = Blocklist.compile([Entry(line, boundary="none") for line in lines])
    blocklist.save(tmp_path / "block.prod")
    nodes = len(blocklist.automaton)
    assert blocklist.automaton.nodes.itemsize == 12
    assert nodes <= sum(map(len, lines))
    assert (tmp_path / "block.prod").stat().st_size < 23 * nodes  # of which 5 are what is kept of the entries
    document = "\n".join(code_lines(500, 2))
    quoted = Blocklist.compile([Entry(document, policy="quote", max_quote=60)])
    assert len(quoted.automaton) < 0.94 * len(document)


def test_memory_of_the_hot_paths(vocabulary: Any, tmp_path: Path) -> None:
    import torch

    from prod_decode.masking import mask_prohibited_

    blocklist = Blocklist.compile([Entry(line, boundary="none") for line in code_lines(10_000, 0)])
    blocklist.save(tmp_path / "block.prod")
    bound = blocklist.bind(vocabulary)
    tokens = np.resize(np.array(walk_of(vocabulary, code_lines(40, 1))), (64, 21))
    states = bound.states_of(tokens[:, :20].copy())
    scores = torch.zeros(64, len(bound))

    def step() -> None:
        rows, banned = bound.banned_all(bound.advance_all(states, tokens[:, 20].copy()))
        mask_prohibited_(scores, rows, banned)

    def peak(run: Any) -> int:
        run()
        tracemalloc.start()
        try:
            run()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # A dense mask would be 3 MB; the arrays of a mapped file are no memory of the process.
    assert peak(step) < 4_300
    assert peak(lambda: Blocklist.load(tmp_path / "block.prod", verify=False)) < 15_000
    assert blocklist.automaton.nodes.nbytes > 2_000_000
