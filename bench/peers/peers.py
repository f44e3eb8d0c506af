"""Other guards that mask what may not be said, each in a child process with a time limit."""

from __future__ import annotations

import json
import multiprocessing
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bench.figures import ROUNDS, Figure, distribution

# Seconds for a child process to start, import a peer and load a tokenizer; no figure includes them.
STARTING = 120.0


@dataclass(frozen=True)
class Walked:
    """Nanoseconds of every mask and every advance on one walk, and seconds that compiling and binding took."""

    compile_s: float
    mask: list[int]
    advance: list[int]


class Peer(Protocol):
    """Another guard, in a child process: made with its tokenizer, given patterns, walked."""

    guard: str
    note: str | None

    def __init__(self, tokenizer_folder: str) -> None: ...

    def compile(self, lines: Sequence[str]) -> None:
        """Do all that is needed before the first mask, but for loading the tokenizer."""

    def start(self) -> tuple[Callable[[], Any], Callable[[int], bool]]:
        """A fresh matcher: fill the mask of the next token; accept a token."""

    def complaint(self) -> str:
        """What the peer says about the token it refused."""


class XGrammar:
    """xgrammar: any text without the lines, as a structural tag with `excludes`."""

    guard = "xgrammar"
    note: str | None = None

    def __init__(self, tokenizer_folder: str) -> None:
        import xgrammar
        from transformers import AutoTokenizer

        self._module = xgrammar
        info = xgrammar.TokenizerInfo.from_huggingface(AutoTokenizer.from_pretrained(tokenizer_folder))
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._bitmask = xgrammar.allocate_token_bitmask(1, info.vocab_size)

    def compile(self, lines: Sequence[str]) -> None:
        """Compile the grammar; this computes masks ahead."""
        tag = {"type": "structural_tag", "format": {"type": "any_text", "excludes": list(lines)}}
        self._grammar = self._compiler.compile_structural_tag(json.dumps(tag))
        self.start()

    def start(self) -> tuple[Callable[[], Any], Callable[[int], bool]]:
        """A matcher of the compiled grammar."""
        matcher = self._module.GrammarMatcher(self._grammar)
        return lambda: matcher.fill_next_token_bitmask(self._bitmask), matcher.accept_token

    def complaint(self) -> str:
        """Xgrammar says nothing."""
        return ""


class LLGuidance:
    """llguidance: the complement of a regular expression that finds any of the lines."""

    guard = "llguidance"
    note: str | None = "resource limits raised: with its own it stops in walks near many patterns"

    def __init__(self, tokenizer_folder: str) -> None:
        import llguidance.hf
        import llguidance.numpy
        from transformers import AutoTokenizer

        self._module = llguidance
        self._tokenizer = llguidance.hf.from_tokenizer(AutoTokenizer.from_pretrained(tokenizer_folder))
        self._bitmask = llguidance.numpy.allocate_token_bitmask(1, self._tokenizer.vocab_size)
        # Its defaults (200,000 of step_lexer_fuel) end in "too many expressions constructed".
        self._limits = llguidance.LLParserLimits(
            initial_lexer_fuel=10**9, step_lexer_fuel=10**9, max_lexer_states=10**8, max_grammar_size=10**8
        )

    def compile(self, lines: Sequence[str]) -> None:
        """Make the grammar and the first matcher; the automaton itself is built while walking."""
        # Not re.escape: Rust reads `\<` and `\>` as the edges of a word.
        found = "|".join(re.sub(r"([\\.^$|?*+()\[\]{}/&~#-])", r"\\\1", line) for line in lines)
        self._grammar = f"start: TEXT\nTEXT: /(?s:.*)/ & ~/(?s:.*)({found})(?s:.*)/\n"
        self.start()

    def start(self) -> tuple[Callable[[], Any], Callable[[int], bool]]:
        """A matcher that has built nothing yet."""
        grammar = self._module.grammar_from("lark", self._grammar)
        self._matcher = matcher = self._module.LLMatcher(self._tokenizer, grammar, limits=self._limits)
        if matcher.get_error():
            raise ValueError(matcher.get_error())
        fill = self._module.numpy.fill_next_token_bitmask
        return lambda: fill(matcher, self._bitmask, 0), matcher.consume_token

    def complaint(self) -> str:
        """The first line of its error."""
        return (self._matcher.get_error() or "no reason given").splitlines()[0]


def peer_figures(
    peer: type[Peer],
    tokenizer_folder: str,
    lines: Sequence[str],
    walks: Mapping[str, Sequence[int]],
    ours: Mapping[str, Walked],
    size: str,
    limit: float,
) -> list[Figure]:
    """Compile and walk a peer; where it fails, figures that say why."""
    pool = _new_pool()
    try:
        failure = in_child(_load_peer, peer, tokenizer_folder, limit=STARTING, pool=pool)
        seconds = failure or in_child(_compile_peer, lines, limit=limit, pool=pool)
        what = f"compile and bind, {size}"
        if isinstance(seconds, str):
            failed = [(what, "s")] + [(f"mask, {size}, {name}", "us") for name in walks]
            return [Figure(name, peer.guard, None, unit, note=seconds) for name, unit in failed]
        ratio = next(iter(ours.values())).compile_s / seconds
        figures = [Figure(what, peer.guard, seconds, "s", ours_over_peer=ratio)]
        for name, walk in walks.items():
            # One step alone can take longer than the limit: then the process is killed.
            theirs = in_child(_walk_peer, walk, seconds, limit, limit=1.25 * limit + 1, pool=pool)
            figures += _walk_figures(peer, f"{size}, {name}", theirs, ours[name])
        return figures
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _walk_figures(peer: type[Peer], where: str, theirs: Walked | str, ours: Walked) -> list[Figure]:
    if isinstance(theirs, str):
        return [Figure(f"mask, {where}", peer.guard, None, "us", note=theirs)]
    made, all_steps = len(theirs.mask), len(ours.mask)
    notes = [] if made == all_steps else [f"the limit ended it after {made:,} of {all_steps:,} steps"]
    note = "; ".join(notes + ([peer.note] if peer.note else [])) or None
    return [
        distribution(f"mask, {where}", peer.guard, theirs.mask, against=ours.mask[:made], note=note),
        distribution(f"advance, {where}", peer.guard, theirs.advance, against=ours.advance[:made]),
    ]


# The peer of this process, if it is a child.
_loaded: list[Peer] = []


def _load_peer(peer: type[Peer], tokenizer_folder: str) -> None:
    _loaded[:] = [peer(tokenizer_folder)]


def _compile_peer(lines: Sequence[str]) -> float:
    begun = time.process_time()
    _loaded[0].compile(lines)
    return time.process_time() - begun


def _walk_peer(walk: Sequence[int], ready: float, limit: float) -> Walked:
    """The rounds that the limit leaves time for; of the first, as many steps as it does."""
    deadline = time.perf_counter() + limit
    rounds: list[Walked] = []
    while len(rounds) < ROUNDS:
        walked = _walk_once(walk, ready, deadline)
        if rounds and len(walked.mask) < len(walk):
            break
        rounds.append(walked)
        if len(walked.mask) < len(walk):
            break
    return fastest(rounds)


def _walk_once(walk: Sequence[int], ready: float, deadline: float) -> Walked:
    fill, accept = _loaded[0].start()
    clock = time.perf_counter_ns
    mask: list[int] = []
    advance: list[int] = []
    for token_id in walk:
        a = clock()
        fill()
        b = clock()
        accepted = accept(token_id)
        c = clock()
        if not accepted:
            reason = f"refused token {token_id} after {len(mask)} steps of a walk without patterns"
            raise ValueError(f"{reason}: {_loaded[0].complaint()}")
        mask.append(b - a)
        advance.append(c - b)
        if c > deadline * 1e9:
            break
    return Walked(ready, mask, advance)


def fastest(rounds: Sequence[Walked]) -> Walked:
    """The fastest time of every step; all rounds took the same steps."""
    mask = np.min([walked.mask for walked in rounds], axis=0)
    advance = np.min([walked.advance for walked in rounds], axis=0)
    return Walked(rounds[0].compile_s, mask.tolist(), advance.tolist())


def _new_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def in_child(run: Callable[..., Any], *arguments: object, limit: float, pool: ProcessPoolExecutor | None = None) -> Any:
    """What `run` returns in the process of `pool`, or else in one of its own; a string that says why if it fails."""
    child = pool or _new_pool()
    try:
        return child.submit(run, *arguments).result(timeout=limit)
    except OutOfTime:
        for process in list((child._processes or {}).values()):
            process.kill()
        return f"not done after {limit:g} s"
    except BrokenProcessPool:
        return "its process has ended, or was killed at the time limit before"
    except Exception as error:  # noqa: BLE001 (a peer may fail in any way; its message is the result)
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    finally:
        if pool is None:
            child.shutdown(wait=False, cancel_futures=True)
