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
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.figures import (
    ROUNDS,
    Figure,
    calls,
    cpu_seconds,
    distribution,
    goal_of,
    machine,
    patterns,
    save,
    table,
    timed,
    versions,
)
from bench.peers.peers import STARTING, LLGuidance, Walked, XGrammar, fastest, in_child, peer_figures
from prod_decode.blocklist.blocklist import Blocklist, Match
from prod_decode.blocklist.entries import Entry
from prod_decode.blocklist.sources import read_texts
from prod_decode.command.options import Parser
from prod_decode.command.terminal import exit_status
from prod_decode.errors import ProdError
from prod_decode.match.matcher import Matcher

if TYPE_CHECKING:
    from torch import Tensor

BATCHES = (1, 16, 64, 256)

# Beyond so many patterns, which compile in seconds, compiling is timed once.
MANY = 100_000


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


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write JSON lines if asked to."""
    parser = Parser(prog="python -m bench overhead", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter walks: under 4 minutes on 2 cores")
    parser.add_argument("--patterns", default="1,100,10000", metavar="N,N,...", help="default 1,100,10000")
    parser.add_argument(
        "--tokenizer",
        default="bundled",
        metavar="M",
        help="of which model, or `tekken`, that of the package mistral-common; default `bundled`",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=20.0,
        metavar="S",
        help="seconds a peer may take for a compile or a walk; default 20",
    )
    parser.add_argument("--no-peers", action="store_true", help="measure ours alone")
    parser.add_argument("--json", metavar="OUT", help="write one JSON object a figure")
    parser.add_argument("--plot", metavar="PNG", help="draw the figures over the number of patterns")
    options = parser.parse_args(argv)
    return exit_status("bench overhead", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    counts = _checked(options)
    material = gather(options.tokenizer, max(counts), steps=4_000 if options.quick else 40_000)
    figures = measure(material, counts, peers=not options.no_peers, limit=options.time_limit)
    print(table(figures))
    if options.json:
        save(figures, options.json)
    if options.plot:
        from bench.speed.overhead_plot import draw

        draw(figures, Path(options.plot))
    return 0


def _checked(options: argparse.Namespace) -> list[int]:
    """The numbers of patterns, if the options can be used: minutes of measuring should not end in a wrong flag."""
    counts = numbers("--patterns", options.patterns)
    if not 0 < options.time_limit < float("inf"):
        raise ProdError(f"expected --time-limit as seconds above 0, got {options.time_limit:g}")
    for flag, given in (("--json", options.json), ("--plot", options.plot)):
        if given and not Path(given).parent.is_dir():
            raise ProdError(f"expected {flag} in a folder that exists, got {given!r}: make the folder first")
    return counts


def numbers(flag: str, text: str) -> list[int]:
    """What a flag lists.

    Raises:
        ProdError: it is no list of numbers above 0.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise ProdError(f"expected {flag} as numbers above 0, got {text!r}")
    return found


def gather(tokenizer_name: str, patterns: int, *, steps: int) -> Material:
    """Load the tokenizer and cut the standard library, and packages if need be, into patterns and text to walk."""
    tokenizer = _tokenizer(tokenizer_name)
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


def _tokenizer(name: str) -> Any:
    """A model's tokenizer; or one of 131,072 tokens for which no model has to be fetched."""
    from prod_decode.storage.models import load_tokenizer

    if name != "tekken":
        return load_tokenizer(name)
    spec = find_spec("mistral_common")
    if spec is None or spec.origin is None:
        raise ProdError("--tokenizer tekken needs the package mistral-common: pip install mistral-common")
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.mistral.tokenizer import MistralConverter

    file = Path(spec.origin).parent / "data" / "tekken_240911.json"
    return PreTrainedTokenizerFast(tokenizer_object=MistralConverter(str(file)).converted(), eos_token="</s>")


def measure(material: Material, counts: Iterable[int], *, peers: bool, limit: float) -> list[Figure]:
    """All figures, in the order of the table."""
    figures = [timer()]
    with tempfile.TemporaryDirectory() as folder:
        material.tokenizer.save_pretrained(folder)
        for count in counts:
            print(f"measuring {count:,} patterns ...", file=sys.stderr, flush=True)
            figures += masks(material, count, folder if peers else None, limit)
            figures.append(cold_start(folder, material.lines[:count]))
            figures += steps(material, count, peers=peers, limit=limit)
            figures += scans(f"scan, {count:,} patterns", material.other, material.lines[:count], with_peers=peers)
            # A character that Python code has nowhere keeps every pattern from matching but for its last symbol.
            near = [f"{line}\u00a7" for line in material.lines[:count]]
            figures += scans(f"scan, {count:,} patterns, all begun", material.text, near, with_peers=peers)
    figures += artifacts(material)
    facts = f"{machine()}; {versions()}"
    return [replace(figure, machine=facts) for figure in figures]


def timer() -> Figure:
    """What timing nothing takes."""
    return distribution("timer", "perf_counter_ns", calls(lambda: None, 20_000))


def masks(material: Material, count: int, tokenizer_folder: str | None, limit: float) -> list[Figure]:
    """Compile time, and mask and advance a token, on a walk over code and on one that stays near patterns."""
    lines = material.lines[:count]
    blocklist, vocabulary = _compile(lines), _vocabulary(material.tokenizer)
    matcher = blocklist.bind(vocabulary)
    rounds = ROUNDS if count <= MANY else 1
    compiled = cpu_seconds(lambda: _compile(lines), rounds)
    ready = compiled + cpu_seconds(lambda: blocklist.bind(vocabulary), rounds)
    size = patterns(count)
    goal = goal_of(compiled, 0.010 if count == 100 else None, "s")
    figures = [
        Figure(f"compile, {size}", "prod_decode", compiled, "s", **goal),
        Figure(f"compile and bind, {size}", "prod_decode", ready, "s"),
    ]
    found = {"code": material.walk, "near": near_walk(material, lines, len(material.walk))}
    walks = {name: _without_matches(matcher, walk) for name, walk in found.items()}
    ours: dict[str, Walked] = {}
    for name, walk in walks.items():
        ours[name] = walked = fastest([_walk_ours(blocklist.bind(vocabulary), walk, ready) for _ in range(ROUNDS)])
        bounds = _mask_goal(count) if name == "code" else (None, None)
        mask, advance = f"mask, {size}, {name}", f"advance, {size}, {name}"
        figures.append(distribution(mask, "prod_decode", walked.mask, mean_goal=bounds[0], p99_goal=bounds[1]))
        figures.append(distribution(advance, "prod_decode", walked.advance))
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
    seconds = in_child(_first_use, tokenizer_folder, lines, limit=STARTING)
    if isinstance(seconds, str):
        return Figure(what, "prod_decode", None, "s", note=seconds)
    return Figure(what, "prod_decode", seconds, "s", note="with the vocabulary's proof; kernels from numba's cache")


def _first_use(tokenizer_folder: str, lines: Sequence[str]) -> float:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    begun = time.perf_counter()
    matcher = bind(lines, tokenizer)
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
def steps(material: Material, count: int, *, peers: bool, limit: float) -> list[Figure]:
    """A batch's whole step (advance, find, mask [B, V]), its mask alone, and a processor's call at B = 8."""
    import torch

    from prod_decode.hf import ProdLogitsProcessor
    from prod_decode.masking import mask_prohibited_

    lines = material.lines[:count]
    matcher = bind(lines, material.tokenizer)
    width = len(matcher)
    walk = np.resize(np.array(material.walk, np.int64), max(BATCHES) * 21)
    scores = torch.randn(max(BATCHES), width)
    size = patterns(count)

    def sparse(states: NDArray[np.int64], column: NDArray[np.int64]) -> None:
        rows, tokens = matcher.banned_all(matcher.advance_all(states, column))
        mask_prohibited_(scores[: len(states)], rows, tokens)

    def dense(states: NDArray[np.int64], column: NDArray[np.int64]) -> None:
        rows, tokens = matcher.banned_all(matcher.advance_all(states, column))
        mask = torch.zeros(len(states), width, dtype=torch.bool)
        mask[torch.from_numpy(rows).long(), torch.from_numpy(tokens).long()] = True
        scores[: len(states)].masked_fill_(mask, -torch.inf)

    figures = []
    for batch in BATCHES:
        states = matcher.states_of(walk[: batch * 20].reshape(batch, 20))
        column = walk[batch * 20 :][:batch]
        what = f"step, {size}, B={batch}"
        ours = calls(partial(sparse, states, column), 300)
        row = f"{np.median(ours) / batch / 1e3:.2g} us a row (median)"
        figures.append(distribution(what, "prod_decode", ours, note=row))
        if batch == 64:
            theirs = calls(partial(dense, states, column), 10)
            figures.append(distribution(what, "prod_decode with a dense mask", theirs, against=ours))
    # Three bans a row, and a dense mask that is ready: making it is not counted.
    rows, tokens = np.repeat(np.arange(64), 3), walk[:192]
    ready_mask = torch.zeros(64, width, dtype=torch.bool)
    ready_mask[torch.from_numpy(rows), torch.from_numpy(tokens)] = True
    what = f"apply 3 bans a row, {size}, B=64"
    ours = calls(lambda: mask_prohibited_(scores[:64], rows, tokens), 300)
    theirs = calls(lambda: scores[:64].masked_fill_(ready_mask, -torch.inf), 10)
    figures.append(distribution(what, "prod_decode", ours))
    figures.append(distribution(what, "torch masked_fill_", theirs, against=ours))
    text = torch.from_numpy(walk[: 8 * 128].reshape(8, 128).copy())
    processor = ProdLogitsProcessor(matcher)
    what = f"processor call, {size}, B=8"
    # As in `generate` the text grows by a column a call; the first call of a round, which reads it all, does not count.
    growing = cycle([text[:, :length].clone() for length in range(64, 129)])
    ours = calls(lambda: processor(next(growing), scores[:8]), 64)
    figures.append(distribution(what, "prod_decode", ours))
    return figures + (step_peers(material, lines, what, text, scores[:8], ours, limit) if peers else [])


def step_peers(
    material: Material,
    lines: Sequence[str],
    what: str,
    text: Tensor,
    scores: Tensor,
    ours: Sequence[int],
    limit: float,
) -> list[Figure]:
    """The same call by each of `STEP_PEERS`; one that has not made its first by the limit is not called again."""
    from bench.peers.step_peers import STEP_PEERS

    figures = []
    for name, make in STEP_PEERS.items():
        begun = time.perf_counter()
        try:
            peer = make(lines, material.tokenizer)
            peer(text, scores)
        except ImportError as error:
            figures.append(Figure(what, name, None, "us", note=f"not installed here: {error}"))
            continue
        ready = time.perf_counter() - begun
        if ready > limit:
            figures.append(Figure(what, name, None, "us", note=f"first call only after {ready:.0f} s"))
            continue
        theirs = calls(partial(peer, text, scores), 5)
        note = f"token sequences only; first call after {ready:.2f} s"
        figures.append(distribution(what, name, theirs, against=ours, note=note))
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
    rates = {name: megabytes / cpu_seconds(run, ROUNDS) for name, run, _ in guards}
    ours = rates["prod_decode (none)"]
    return [
        Figure(
            what,
            name,
            rates[name],
            "MB/s",
            ours_over_peer=None if name.startswith("prod_decode") else ours / rates[name],
            note=note,
            **(goal_of(rates[name], 100.0, "MB/s", least=True) if name.startswith("prod_decode") else {}),
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
        goal = goal_of(rate, 20.0, "MB/min", least=True)
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
            load = min(timed(partial(Blocklist.load, path, verify=verify), 5)) / 1e6
            figures.append(Figure(what, "prod_decode", load, "ms", note=note, **goal_of(load, 50.0, "ms")))
    return figures


def _compile(lines: Sequence[str]) -> Blocklist:
    return Blocklist.compile([Entry(line, boundary="none") for line in lines], normalize="none")


_VOCABULARIES: dict[int, Any] = {}


def _vocabulary(tokenizer: Any) -> Any:
    """Proved once a process, as a server would."""
    from prod_decode.tokens.tokenizer_bytes import vocabulary_of

    if id(tokenizer) not in _VOCABULARIES:
        _VOCABULARIES[id(tokenizer)] = vocabulary_of(tokenizer)
    return _VOCABULARIES[id(tokenizer)]


def bind(lines: Sequence[str], tokenizer: Any) -> Matcher:
    """A fresh matcher, with an empty cache."""
    return _compile(lines).bind(_vocabulary(tokenizer))
