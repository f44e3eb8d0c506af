"""How far a mask is from the limits of the machine: what it reads, how long it takes, and what a read takes here."""

from __future__ import annotations

import argparse
import time
from collections import namedtuple
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from bench.speed.overhead import bind, gather, numbers
from prod_decode.command.options import Parser
from prod_decode.command.terminal import exit_status
from prod_decode.match import automaton, follow, matcher
from prod_decode.match.matcher import Matcher
from prod_decode.storage.jit import jit

CACHE_LINE = 64

# States whose mask is counted, at most: the counting kernels are plain Python.
COUNTED_STATES = 400

CHASED_KIB = (16, 256, 4 << 10, 32 << 10, 512 << 10)


class Counted:
    """A structured array that keeps which records are read."""

    def __init__(self, array: Any) -> None:
        self.read: list[int] = []
        self._array, self._record = array, namedtuple("record", array.dtype.names)

    def __getitem__(self, place: Any) -> Any:
        self.read.append(int(place))
        return self._record(*self._array[place].tolist())

    def __len__(self) -> int:
        return len(self._array)

    @property
    def lines(self) -> int:
        """The number of different cache lines that were read."""
        return len({place * self._array.itemsize // CACHE_LINE for place in self.read})


@contextmanager
def plain_python() -> Iterator[None]:
    """The kernels' own functions in place of the machine code made of them."""
    with ExitStack() as stack:
        for module, names in (
            (matcher, ("continuations", "_emit_word_ends")),
            (follow, ("advance_inline", "step")),
            (automaton, ("find_child", "step")),
        ):
            for name in names:
                stack.enter_context(mock.patch.object(module, name, getattr(module, name).py_func))
        yield


def read_for_a_mask(bound: Matcher, state: int) -> tuple[Counted, Counted]:
    """What of the automaton and of the token trie is read for the mask of a state, within `plain_python`."""
    arrays = bound.tables.complete
    nodes: Any = Counted(arrays.nodes)
    token_nodes: Any = Counted(arrays.token_nodes)
    kernel: Any = matcher.continuations  # which is given records that count instead of arrays
    kernel(*arrays.below(arrays.roots[state & 3], nodes=nodes, token_nodes=token_nodes), state >> 2)
    return nodes, token_nodes


def states_along(bound: Matcher, tokens: Sequence[int]) -> list[int]:
    """The state after each token."""
    states, state = [], bound.start()
    for token in tokens:
        state = bound.advance(state, token)
        states.append(state)
    return states


@jit
def _chase(following: NDArray[np.int64], steps: int) -> int:
    place = 0
    for _ in range(steps):
        place = following[place]
    return place


def nanoseconds_a_read(kib: int, steps: int = 300_000) -> float:
    """A read whose place the read before it has said, anywhere in so much memory, a cache line each."""
    count = kib * 1024 // CACHE_LINE
    width = CACHE_LINE // 8
    order = np.random.default_rng(0).permutation(count)
    following = np.zeros(count * width, np.int64)
    following[order * width] = np.roll(order, -1) * width
    _chase(following, 1)
    begun = time.perf_counter_ns()
    _chase(following, steps)
    return (time.perf_counter_ns() - begun) / steps


def main(argv: Sequence[str] | None = None) -> int:
    """Print what a read takes, and what masks read and take, in states that were not seen before."""
    parser = Parser(prog="python -m bench limits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--patterns", default="100,10000", metavar="N,N,...", help="default 100,10000")
    parser.add_argument("--tokenizer", default="bundled", metavar="M", help="of which model; default `bundled`")
    options = parser.parse_args(argv)
    return exit_status("bench limits", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    counts = numbers("--patterns", options.patterns)
    material = gather(options.tokenizer, max(counts), steps=4_000)
    print("a read that waits for the one before:")
    for kib in CHASED_KIB:
        print(f"  in {kib:>7,} KiB {nanoseconds_a_read(kib):8.1f} ns")
    print("\n| patterns | automaton, kB | states | records, mean | p99 | cache lines | p99 | us, mean | p50 | p99 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for count in counts:
        print(_row(count, bind(material.lines[:count], material.tokenizer), material.walk))
    return 0


def _row(count: int, bound: Matcher, walk: Sequence[int]) -> str:
    states = list(dict.fromkeys(states_along(bound, walk)))
    bound.banned(bound.start())
    taken = []
    for state in states:
        begun = time.perf_counter_ns()
        bound.banned(state)
        taken.append(time.perf_counter_ns() - begun)
    records, lines = [], []
    with plain_python():
        for state in states[:COUNTED_STATES]:
            read = read_for_a_mask(bound, state)
            records.append(sum(len(counted.read) for counted in read))
            lines.append(sum(counted.lines for counted in read))
    size = bound.automaton.nodes.nbytes / 1e3
    cells: list[str] = [f"{count:,}", f"{size:,.0f}", f"{len(states):,}"]
    cells += [f"{np.mean(records):,.0f}", f"{np.percentile(records, 99):,.0f}"]
    cells += [f"{np.mean(lines):,.0f}", f"{np.percentile(lines, 99):,.0f}"]
    times = np.array(taken) / 1e3
    cells += [f"{times.mean():.2f}", f"{np.median(times):.2f}", f"{np.percentile(times, 99):.2f}"]
    return f"| {' | '.join(cells)} |"
