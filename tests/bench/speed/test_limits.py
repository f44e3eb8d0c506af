"""What the hot paths touch and allocate, counted: a guard against slower code that does not depend on the machine.

The kernels run as the Python functions they are written as, on arrays that count their reads. The counts are the same
on every machine: bounds are 2 % above what was counted when they were set, and a quarter above for memory.
"""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import main
from bench.speed import limits, overhead
from bench.speed.limits import Counted, plain_python, read_for_a_mask, states_along
from prod_decode import Blocklist, Entry
from prod_decode.match import follow
from prod_decode.text.normalize import CLASSES
from prod_decode.tokens.tokenizer_bytes import vocabulary_of
from tests.smollm2 import smollm2_tokenizer

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


@pytest.fixture(scope="module")
def vocabulary() -> Any:
    return vocabulary_of(smollm2_tokenizer())


@pytest.fixture(scope="module")
def of_many_lines(vocabulary: Any) -> tuple[Blocklist, Any]:
    """10,000 lines, and what is bound of them."""
    blocklist = Blocklist.compile([Entry(line, boundary="none") for line in code_lines(10_000, 0)])
    return blocklist, blocklist.bind(vocabulary)


def walk_of(vocabulary: Any, lines: list[str]) -> list[int]:
    return list(smollm2_tokenizer()("\n".join(lines), add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(("count", "mean", "worst"), [(100, 188, 490), (10_000, 469, 902)])
def test_records_read_for_a_mask(
    vocabulary: Any, of_many_lines: tuple[Blocklist, Any], count: int, mean: float, worst: int
) -> None:
    few = Blocklist.compile([Entry(line, boundary="none") for line in code_lines(100, 0)])
    bound = few.bind(vocabulary) if count == 100 else of_many_lines[1]
    states = states_along(bound, walk_of(vocabulary, code_lines(40, 1)))
    assert len(set(states)) > 50
    with plain_python():
        read = [sum(len(counted.read) for counted in read_for_a_mask(bound, state)) for state in states]
    assert np.mean(read) < mean, np.mean(read)
    assert max(read) < worst, max(read)


def test_records_read_for_an_advance(vocabulary: Any, of_many_lines: tuple[Blocklist, Any]) -> None:
    _, bound = of_many_lines
    tokens = walk_of(vocabulary, code_lines(40, 1))
    table, nodes = bound.table, Counted(bound.automaton.nodes)
    with plain_python():
        state = bound.start()
        for token in tokens:
            state = follow.advance_inline(  # type: ignore[call-arg]
                nodes,
                bound.automaton.rows,
                CLASSES,
                table.symbols,
                table.starts,
                table.next_state.astype(np.int64),
                vocabulary.kinds,
                state,
                token,
            )
    assert state == bound.state_of(tokens)
    each = len(nodes.read) / sum(len(vocabulary.token_bytes(token)) for token in tokens)
    assert each < 4.28, each


@given(places=st.lists(st.integers(0, 99)), itemsize=st.integers(1, 130))
def test_cache_lines_of_what_was_read(places: list[int], itemsize: int) -> None:
    counted = Counted(np.zeros(100, [("first", "V", itemsize)]))
    for place in places:
        counted[place]
    assert counted.read == places
    assert counted.lines == len({place * itemsize // 64 for place in places})


def test_limits_of_a_few_patterns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COUNTED_STATES", 50)
    monkeypatch.setattr(limits, "CHASED_KIB", (1, 4, 16, 64, 256))  # up to 512 MiB takes seconds to shuffle
    monkeypatch.setattr(overhead, "_tokenizer", lambda _: smollm2_tokenizer())
    assert main(["limits", "--patterns", "3,30"]) == 0
    output = capsys.readouterr().out
    *_, few, more = ([cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if "|" in line)
    assert (few[0], more[0]) == ("3", "30")
    for row in (few, more):
        size, states, records, most, lines, most_lines, mean, median, slowest = (
            float(x.replace(",", "")) for x in row[1:]
        )
        assert 0 < size < 100
        assert 3 < states < 200
        assert lines <= most_lines < records <= most
        assert 0 < median <= slowest
        assert mean > 0
    assert output.count(" KiB ") == 5
    assert main(["limits", "--patterns", "0"]) == 2
    assert "expected --patterns as numbers above 0, got '0'" in capsys.readouterr().err


def test_sizes_of_what_is_compiled(of_many_lines: tuple[Blocklist, Any], tmp_path: Path) -> None:
    lines = code_lines(10_000, 0)
    blocklist, _ = of_many_lines
    blocklist.save(tmp_path / "block.prod")
    nodes = len(blocklist.automaton)
    assert blocklist.automaton.nodes.itemsize == 12
    assert nodes <= sum(map(len, lines))
    assert (tmp_path / "block.prod").stat().st_size < 23 * nodes  # of which 5 are what is kept of the entries
    document = "\n".join(code_lines(500, 2))
    quoted = Blocklist.compile([Entry(document, policy="quote", max_quote=60)])
    assert len(quoted.automaton) < 0.94 * len(document)


def test_memory_of_the_hot_paths(of_many_lines: tuple[Blocklist, Any], tmp_path: Path) -> None:
    import torch

    from prod_decode.masking import mask_prohibited_

    blocklist, bound = of_many_lines
    blocklist.save(tmp_path / "block.prod")
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

    # A dense mask would be 3 MB. A file of this size is read, a MiB at a time, into memory that the system gives.
    assert peak(step) < 8_000
    assert peak(lambda: Blocklist.load(tmp_path / "block.prod", verify=False)) < (1 << 20) + 15_000
    assert blocklist.automaton.nodes.nbytes > 2_000_000
