"""What guarding costs, measured beside the peers in one run: compile, mask, advance, apply, scan.

Patterns are lines of 30 to 60 characters of the running Python's standard library, walks are token sequences of other
files of it and, adversarially, beginnings of patterns one after another. All guards see the same patterns, the same
tokenizer and the same tokens; they compare bytes as they are (`normalize="none"`), since the peers cannot normalise.
Walks contain no pattern, so that every guard accepts them.

Peers run in child processes, one at a time. The time limit holds for a compile and again for each walk, not for
starting the process and loading the tokenizer; a peer that fails or runs out of time is recorded as such. A walk that
the limit ends early counts with the steps it made, beside the same steps of ours. `compile and bind` is the way from
patterns to a guard that can mask, the vocabulary being known: what the peers call compiling.

A call is timed with `perf_counter_ns`, whose own cost (the row `timer`) is included in every figure. Walks and series
of calls are run three times, walks each by a fresh guard, and each step counts with its fastest time: it does the same
work every time, so what differs is the machine, whose pauses of milliseconds would otherwise make the means. Compiling
and scanning, which take one thread, are measured in CPU time. torch gets one thread as well, for all guards: beside a
busy core its threads wait for each other, and a dense mask took 8 to 28 ms instead of 2.6.

What the first use in a process costs beyond that (the compiled kernels are read from disk, the vocabulary is proved) is
the row `cold start`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import random
import re
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prod_decode.artifact import write_whole
from prod_decode.blocklist import Blocklist, Entry, Match
from prod_decode.cli import Parser, exit_status
from prod_decode.errors import ProdError
from prod_decode.matcher import Matcher
from prod_decode.sources import read_texts

ROUNDS = 3
# Beyond so many patterns, which compile in seconds, compiling is timed once.
MANY = 100_000
# Seconds for a child process to start, import a peer and load a tokenizer; no figure includes them.
STARTING = 120.0


@dataclass(frozen=True)
class Figure:
    """One measurement, a line of the JSON file.

    Attributes:
        what: the quantity, such as `mask, 100 patterns, code`.
        guard: whose it is: `prod_decode` or a peer.
        value: in `unit`, the mean where there is a distribution; None if it failed.
        unit: `us`, `s`, `ms`, `MB/s`, `MB/min` or `bytes`.
        p50: median of a distribution of times, where there is one.
        p99: its 99th percentile.
        worst: its maximum.
        ours_over_peer: our value divided by this one; below 1 we are faster (for rates: below 1 we are slower).
        goal: what docs/performance.md set out to reach, as text.
        met: whether we reach it; None if there is no goal.
        note: why it failed, or what else to know.
        machine: processor, cores and versions; the same for all figures of a run.
    """

    what: str
    guard: str
    value: float | None
    unit: str
    p50: float | None = None
    p99: float | None = None
    worst: float | None = None
    ours_over_peer: float | None = None
    goal: str | None = None
    met: bool | None = None
    note: str | None = None
    machine: str | None = None


@dataclass(frozen=True)
class Material:
    """What all guards are measured on.

    Attributes:
        tokenizer: a transformers tokenizer.
        lines: the patterns, in random order.
        text: the standard library, which contains most of them.
        other: the part of it from which no pattern was taken.
        walk: tokens of `other`.
    """

    tokenizer: Any
    lines: list[str]
    text: str
    other: str
    walk: list[int]


@dataclass(frozen=True)
class Walked:
    """Nanoseconds of every mask and every advance on one walk, and seconds that compiling and binding took."""

    compile_s: float
    mask: list[int]
    advance: list[int]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write JSON lines if asked to."""
    parser = Parser(prog="python -m bench overhead", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter walks: under 4 minutes on 2 cores")
    parser.add_argument("--patterns", default="1,100,10000", metavar="N,N,...", help="default 1,100,10000")
    parser.add_argument("--tokenizer", default="bundled", metavar="M", help="of which model; default `bundled`")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=20.0,
        metavar="S",
        help="seconds a peer may take for a compile or a walk; default 20",
    )
    parser.add_argument("--no-peers", action="store_true", help="measure ours alone")
    parser.add_argument("--json", metavar="OUT", help="write one JSON object a figure")
    options = parser.parse_args(argv)
    return exit_status("bench overhead", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    counts = _checked(options)
    material = gather(options.tokenizer, max(counts), steps=4_000 if options.quick else 40_000)
    figures = measure(material, counts, peers=not options.no_peers, limit=options.time_limit)
    print(table(figures))
    if options.json:
        with write_whole(options.json) as file:
            file.write("".join(json.dumps(asdict(figure)) + "\n" for figure in figures).encode())
    return 0


def _checked(options: argparse.Namespace) -> list[int]:
    """The numbers of patterns, if the options can be used: minutes of measuring should not end in a wrong flag."""
    try:
        counts = [int(part) for part in options.patterns.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise ProdError(f"expected --patterns as numbers above 0, got {options.patterns!r}")
    if not 0 < options.time_limit < float("inf"):
        raise ProdError(f"expected --time-limit as seconds above 0, got {options.time_limit:g}")
    if options.json and not Path(options.json).parent.is_dir():
        raise ProdError(f"expected --json in a folder that exists, got {options.json!r}: make the folder first")
    return counts


def gather(tokenizer_name: str, patterns: int, *, steps: int) -> Material:
    """Load the tokenizer and cut the standard library, and packages if need be, into patterns and text to walk."""
    from prod_decode.models import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_name)
    library = Path(sysconfig.get_path("stdlib"))
    texts = [text for _, text in read_texts(sorted(library.glob("*.py")))]
    held_out, sources = texts[::4], [text for i, text in enumerate(texts) if i % 4]
    if patterns > 50_000:
        folders = [library] if patterns <= 150_000 else [library, Path(sysconfig.get_path("purelib"))]
        sources += [text for path, text in read_texts(folders) if path.suffix == ".py"]
    lines = sorted({line.strip() for text in sources for line in text.split("\n")})
    lines = [line for line in lines if 30 <= len(line) <= 60 and len(set(line)) > 8 and "\ufffd" not in line]
    random.Random(0).shuffle(lines)
    if len(lines) < patterns:
        raise ProdError(
            f"the standard library and the installed packages have {len(lines)} patterns, {patterns} were asked for: "
            "ask for fewer"
        )
    other = "\n".join(held_out)
    walk = tokenizer(other[: 20 * steps], add_special_tokens=False)["input_ids"]
    return Material(tokenizer, lines, "\n".join(texts), other, list(walk[:steps]))


def measure(material: Material, counts: Iterable[int], *, peers: bool, limit: float) -> list[Figure]:
    """All figures, in the order of the table."""
    figures = [timer()]
    with tempfile.TemporaryDirectory() as folder:
        material.tokenizer.save_pretrained(folder)
        for count in counts:
            print(f"measuring {count:,} patterns ...", file=sys.stderr, flush=True)
            figures += masks(material, count, folder if peers else None, limit)
            figures.append(cold_start(folder, material.lines[:count]))
            figures += steps(material, count, with_peer=peers and count >= 100)
            figures += scans(f"scan, {count:,} patterns", material.other, material.lines[:count], with_peers=peers)
            # A character that Python code has nowhere keeps every pattern from matching but for its last symbol.
            near = [f"{line}\u00a7" for line in material.lines[:count]]
            figures += scans(f"scan, {count:,} patterns, all begun", material.text, near, with_peers=peers)
    figures += artifacts(material)
    machine = f"{_machine()}; {_versions()}"
    return [replace(figure, machine=machine) for figure in figures]


def timer() -> Figure:
    """What timing nothing takes."""
    return _distribution("timer", "perf_counter_ns", _calls(lambda: None, 20_000))


def masks(material: Material, count: int, tokenizer_folder: str | None, limit: float) -> list[Figure]:
    """Compile time, and mask and advance a token, on a walk over code and on one that stays near patterns."""
    lines = material.lines[:count]
    blocklist, vocabulary = _compile(lines), _vocabulary(material.tokenizer)
    matcher = blocklist.bind(vocabulary)
    rounds = ROUNDS if count <= MANY else 1
    compiled = _cpu_seconds(lambda: _compile(lines), rounds)
    ready = compiled + _cpu_seconds(lambda: blocklist.bind(vocabulary), rounds)
    size = f"{count:,} patterns" if count > 1 else "1 pattern"
    goal = _goal(compiled, 0.010 if count == 100 else None, "s")
    figures = [
        Figure(f"compile, {size}", "prod_decode", compiled, "s", **goal),
        Figure(f"compile and bind, {size}", "prod_decode", ready, "s"),
    ]
    found = {"code": material.walk, "near": near_walk(material, lines, len(material.walk))}
    walks = {name: _without_matches(matcher, walk) for name, walk in found.items()}
    ours: dict[str, Walked] = {}
    for name, walk in walks.items():
        ours[name] = walked = _fastest([_walk_ours(blocklist.bind(vocabulary), walk, ready) for _ in range(ROUNDS)])
        bounds = _mask_goal(count) if name == "code" else (None, None)
        mask, advance = f"mask, {size}, {name}", f"advance, {size}, {name}"
        figures.append(_distribution(mask, "prod_decode", walked.mask, mean_goal=bounds[0], p99_goal=bounds[1]))
        figures.append(_distribution(advance, "prod_decode", walked.advance))
    if tokenizer_folder is not None:
        for peer in (XGrammar, LLGuidance):
            figures += peer_figures(peer, tokenizer_folder, lines, walks, ours, size, limit)
    return figures


def _mask_goal(count: int) -> tuple[float, float | None]:
    """Microseconds that the mean and the 99th percentile should stay below."""
    if count <= 100:
        return 1.0, None
    return (2.0, 20.0) if count <= 10_000 else (4.0, None)


def cold_start(tokenizer_folder: str, lines: Sequence[str]) -> Figure:
    """Compile, bind, mask and advance for the first time in a process, after the imports."""
    what = f"cold start, {len(lines):,} patterns"
    seconds = _in_child(_first_use, tokenizer_folder, lines, limit=STARTING)
    if isinstance(seconds, str):
        return Figure(what, "prod_decode", None, "s", note=seconds)
    return Figure(what, "prod_decode", seconds, "s", note="with the vocabulary's proof; kernels from numba's cache")


def _first_use(tokenizer_folder: str, lines: Sequence[str]) -> float:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    begun = time.perf_counter()
    matcher = _bind(lines, tokenizer)
    matcher.banned(matcher.advance(matcher.start(), 0))
    return time.perf_counter() - begun


def near_walk(material: Material, lines: Sequence[str], steps: int) -> list[int]:
    """Tokens of beginnings of patterns, one after another: a pattern is under way nearly everywhere."""
    draw = random.Random(1)
    text = "".join(line[: draw.randint(4, len(line) - 1)] for line in draw.choices(lines, k=1 + steps // 4))
    return list(material.tokenizer(text, add_special_tokens=False)["input_ids"][:steps])


def _without_matches(matcher: Matcher, walk: Iterable[int]) -> list[int]:
    state = matcher.start()
    kept = []
    for token_id in walk:
        if token_id not in matcher.banned(state):
            kept.append(token_id)
            state = matcher.advance(state, token_id)
    return kept


def _walk_ours(matcher: Matcher, walk: Sequence[int], ready: float) -> Walked:
    matcher.banned(matcher.start())
    clock = time.perf_counter_ns
    mask, advance = [], []
    state = matcher.start()
    for token_id in walk:
        a = clock()
        matcher.banned(state)
        b = clock()
        state = matcher.advance(state, token_id)
        c = clock()
        mask.append(b - a)
        advance.append(c - b)
    return Walked(ready, mask, advance)


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
        failure = _in_child(_load_peer, peer, tokenizer_folder, limit=STARTING, pool=pool)
        seconds = failure or _in_child(_compile_peer, lines, limit=limit, pool=pool)
        what = f"compile and bind, {size}"
        if isinstance(seconds, str):
            failed = [(what, "s")] + [(f"mask, {size}, {name}", "us") for name in walks]
            return [Figure(name, peer.guard, None, unit, note=seconds) for name, unit in failed]
        ratio = next(iter(ours.values())).compile_s / seconds
        figures = [Figure(what, peer.guard, seconds, "s", ours_over_peer=ratio)]
        for name, walk in walks.items():
            # One step alone can take longer than the limit: then the process is killed.
            theirs = _in_child(_walk_peer, walk, seconds, limit, limit=1.25 * limit + 1, pool=pool)
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
        _distribution(f"mask, {where}", peer.guard, theirs.mask, against=ours.mask[:made], note=note),
        _distribution(f"advance, {where}", peer.guard, theirs.advance, against=ours.advance[:made]),
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
    return _fastest(rounds)


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


def _new_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _in_child(
    run: Callable[..., Any], *arguments: object, limit: float, pool: ProcessPoolExecutor | None = None
) -> Any:
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


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_torch_thread()
def steps(material: Material, count: int, *, with_peer: bool) -> list[Figure]:
    """A batch's whole step (advance, find, mask [64, V]), its mask alone, and a processor's call at B = 8."""
    import torch

    from prod_decode.hf import ProdLogitsProcessor
    from prod_decode.masking import mask_prohibited_

    lines = material.lines[:count]
    matcher = _bind(lines, material.tokenizer)
    width = len(matcher)
    walk = np.array(material.walk, np.int64)
    scores = torch.randn(64, width)
    states = matcher.states_of(walk[: 64 * 20].reshape(64, 20))
    column = walk[64 * 20 :][:64]

    def sparse() -> None:
        rows, tokens = matcher.banned_all(matcher.advance_all(states, column))
        mask_prohibited_(scores, rows, tokens)

    def dense() -> None:
        rows, tokens = matcher.banned_all(matcher.advance_all(states, column))
        mask = torch.zeros(64, width, dtype=torch.bool)
        mask[torch.from_numpy(rows).long(), torch.from_numpy(tokens).long()] = True
        scores.masked_fill_(mask, -torch.inf)

    what = f"step, {count:,} patterns, B=64"
    ours, theirs = _calls(sparse, 300), _calls(dense, 10)
    row = f"{np.median(ours) / 64e3:.2g} us a row (median)"
    figures = [
        _distribution(what, "prod_decode", ours, note=row),
        _distribution(what, "prod_decode with a dense mask", theirs, against=ours),
    ]
    # Three bans a row, and a dense mask that is ready: making it is not counted.
    rows, tokens = np.repeat(np.arange(64), 3), walk[:192]
    ready_mask = torch.zeros(64, width, dtype=torch.bool)
    ready_mask[torch.from_numpy(rows), torch.from_numpy(tokens)] = True
    what = f"apply 3 bans a row, {count:,} patterns, B=64"
    ours = _calls(lambda: mask_prohibited_(scores, rows, tokens), 300)
    theirs = _calls(lambda: scores.masked_fill_(ready_mask, -torch.inf), 10)
    figures.append(_distribution(what, "prod_decode", ours))
    figures.append(_distribution(what, "torch masked_fill_", theirs, against=ours))
    text = torch.from_numpy(walk[: 8 * 64].reshape(8, 64).copy())
    processor = ProdLogitsProcessor(matcher)
    call = f"processor call, {count:,} patterns, B=8"
    ours = _calls(lambda: processor(text, scores[:8]), 100)
    figures.append(_distribution(call, "prod_decode", ours))
    if with_peer:
        from transformers import NoBadWordsLogitsProcessor

        words = [material.tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
        begun = time.perf_counter()
        peer = NoBadWordsLogitsProcessor(words, eos_token_id=None)
        peer(text, scores[:8])
        ready = time.perf_counter() - begun
        note = f"token sequences only; first call {ready:.2f} s"
        theirs = _calls(lambda: peer(text, scores[:8]), 5)
        figures.append(_distribution(call, "transformers bad words", theirs, against=ours, note=note))
    return figures


def scans(what: str, text: str, lines: Sequence[str], *, with_peers: bool) -> list[Figure]:
    """Scan a text for all matches: MB/s of UTF-8, one core, the best of three."""
    megabytes = len(text.encode()) / 1e6
    guards: list[tuple[str, Callable[[], object], str]] = []
    for mode in ("none", "code"):
        blocklist = Blocklist.compile([Entry(line, boundary="none") for line in lines], normalize=mode)
        run = partial(_scan_all, blocklist, text)
        guards.append((f"prod_decode ({mode})", run, f"{len(run()):,} matches"))
    guards += _scan_peers(text, lines) if with_peers else []
    rates = {name: megabytes / _cpu_seconds(run, ROUNDS) for name, run, _ in guards}
    ours = rates["prod_decode (none)"]
    return [
        Figure(
            what,
            name,
            rates[name],
            "MB/s",
            ours_over_peer=None if name.startswith("prod_decode") else ours / rates[name],
            note=note,
            **(_goal(rates[name], 100.0, "MB/s", least=True) if name.startswith("prod_decode") else {}),
        )
        for name, _, note in guards
    ]


def _scan_all(blocklist: Blocklist, text: str) -> list[Match]:
    return list(blocklist.scan(text))


def _scan_peers(text: str, lines: Sequence[str]) -> list[tuple[str, Callable[[], object], str]]:
    guards: list[tuple[str, Callable[[], object], str]] = []
    if find_spec("ahocorasick_rs"):
        import ahocorasick_rs

        rust = ahocorasick_rs.AhoCorasick(lines)
        guards.append(("ahocorasick_rs", lambda: rust.find_matches_as_indexes(text), "does not normalise"))
    if find_spec("ahocorasick"):
        import ahocorasick

        plain = ahocorasick.Automaton()
        for line in lines:
            plain.add_word(line, line)
        plain.make_automaton()
        guards.append(("pyahocorasick", lambda: list(plain.iter(text)), "does not normalise"))
    return guards


def artifacts(material: Material) -> list[Figure]:
    """Compile rate of phrases and documents, size a node, and load time."""
    lines = material.lines[: min(len(material.lines), 50_000)]
    figures = []
    documents = [Entry(material.text[i : i + 50_000], policy="quote") for i in range(0, len(material.text), 50_000)]
    for policy, entries in (("phrases", [Entry(line) for line in lines]), ("documents", documents)):
        size = sum(len(entry.text) for entry in entries) / 1e6
        begun = time.process_time()
        blocklist = Blocklist.compile(entries)
        rate = size / (time.process_time() - begun) * 60
        goal = _goal(rate, 20.0, "MB/min", least=True)
        figures.append(Figure(f"compile, {policy} ({size:.1f} MB)", "prod_decode", rate, "MB/min", **goal))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "block.prod")
        blocklist.save(path)
        nodes = len(blocklist.automaton)
        each = blocklist.automaton.nodes.itemsize
        figures.append(
            Figure("automaton, bytes a node", "prod_decode", each, "bytes", goal="<= 12 bytes", met=each <= 12)
        )
        whole = path.stat().st_size / nodes
        figures.append(Figure("file, bytes a node", "prod_decode", whole, "bytes", note=f"{nodes:,} nodes"))
        note = f"{path.stat().st_size:,} bytes"
        for what, verify in (("load, all verified", True), ("load, verified before", False)):
            load = min(_timed(partial(Blocklist.load, path, verify=verify), 5)) / 1e6
            figures.append(Figure(what, "prod_decode", load, "ms", note=note, **_goal(load, 50.0, "ms")))
    return figures


def _compile(lines: Sequence[str]) -> Blocklist:
    return Blocklist.compile([Entry(line, boundary="none") for line in lines], normalize="none")


_VOCABULARIES: dict[int, Any] = {}


def _vocabulary(tokenizer: Any) -> Any:
    """Proved once a process, as a server would."""
    from prod_decode.tokenizer_bytes import vocabulary_of

    if id(tokenizer) not in _VOCABULARIES:
        _VOCABULARIES[id(tokenizer)] = vocabulary_of(tokenizer)
    return _VOCABULARIES[id(tokenizer)]


def _bind(lines: Sequence[str], tokenizer: Any) -> Matcher:
    """A fresh matcher, with an empty cache."""
    return _compile(lines).bind(_vocabulary(tokenizer))


def _fastest(rounds: Sequence[Walked]) -> Walked:
    """The fastest time of every step; all rounds took the same steps."""
    mask = np.min([walked.mask for walked in rounds], axis=0)
    advance = np.min([walked.advance for walked in rounds], axis=0)
    return Walked(rounds[0].compile_s, mask.tolist(), advance.tolist())


def _calls(run: Callable[[], object], times: int) -> list[int]:
    """Nanoseconds of each call, the fastest of the rounds."""
    fastest: list[int] = np.min([_timed(run, times) for _ in range(ROUNDS)], axis=0).tolist()
    return fastest


def _timed(run: Callable[[], object], times: int, clock: Callable[[], int] = time.perf_counter_ns) -> list[int]:
    run()
    taken = []
    for _ in range(times):
        begun = clock()
        run()
        taken.append(clock() - begun)
    return taken


def _cpu_seconds(run: Callable[[], object], rounds: int) -> float:
    """The fastest of the rounds, after a run that does not count."""
    return min(_timed(run, rounds, time.process_time_ns)) / 1e9


def _distribution(
    what: str,
    guard: str,
    nanoseconds: Sequence[int],
    *,
    against: Sequence[int] | None = None,
    mean_goal: float | None = None,
    p99_goal: float | None = None,
    note: str | None = None,
) -> Figure:
    times: NDArray[np.float64] = np.array(nanoseconds, np.float64) / 1e3
    mean, p99 = float(times.mean()), float(np.percentile(times, 99))
    goal = _goal(mean, mean_goal, "us")
    if p99_goal is not None:
        goal = {"goal": f"{goal['goal']}, p99 < {p99_goal:g} us", "met": goal["met"] and p99 < p99_goal}
    return Figure(
        what,
        guard,
        mean,
        "us",
        p50=float(np.median(times)),
        p99=p99,
        worst=float(times.max()),
        ours_over_peer=None if against is None else float(np.mean(against)) / 1e3 / mean,
        note=note,
        **goal,
    )


def _goal(value: float, bound: float | None, unit: str, *, least: bool = False) -> dict[str, Any]:
    if bound is None:
        return {}
    return {"goal": f"{'>' if least else '<'} {bound:g} {unit}", "met": value > bound if least else value < bound}


def table(figures: Sequence[Figure]) -> str:
    """The figures as aligned text, under the facts of the machine."""
    head = ("what", "guard", "mean", "p50", "p99", "worst", "ours/peer", "goal", "note")
    rows = [
        (
            figure.what,
            figure.guard,
            "failed" if figure.value is None else f"{_short(figure.value)} {figure.unit}",
            _short(figure.p50),
            _short(figure.p99),
            _short(figure.worst),
            _short(figure.ours_over_peer),
            "" if figure.goal is None else f"{figure.goal} {'met' if figure.met else 'MISSED'}",
            figure.note or "",
        )
        for figure in figures
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    return "\n".join([_machine(), _versions(), "", *lines])


def _machine() -> str:
    return f"{_cpu()}, {multiprocessing.cpu_count()} cores, Python {platform.python_version()}"


def _versions() -> str:
    packages = ("numba", "numpy", "torch", "transformers", "xgrammar", "llguidance", "ahocorasick_rs", "pyahocorasick")
    return ", ".join(f"{name} {version(name)}" for name in packages if _installed(name))


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _installed(name: str) -> bool:
    try:
        version(name)
    except ImportError:
        return False
    return True


def _cpu() -> str:
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    named = re.search(r"model name\s*:\s*(.+)", facts)
    return named[1] if named else platform.machine()
