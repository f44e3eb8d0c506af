"""What guarding costs, measured beside the peers in one run: compile, mask, advance, apply, scan.

Patterns are lines of 30 to 60 characters of the running Python's standard library, walks are token sequences of other
files of it and, adversarially, beginnings of patterns one after another. All guards see the same patterns, the same
tokenizer and the same tokens; they compare bytes as they are (`normalize="none"`), since the peers cannot normalise.
Walks contain no pattern, so that every guard accepts them.

Peers run in child processes, one at a time, under a time limit; one that fails or runs out of time is recorded as such.
A call is timed with `perf_counter_ns`, whose own cost (the row `timer`) is included in every figure. Each walk is
walked three times from a cold cache, and the walk with the median mean counts.
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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prod_decode.artifact import write_whole
from prod_decode.blocklist import Blocklist, Entry
from prod_decode.errors import ProdError
from prod_decode.matcher import Matcher
from prod_decode.sources import read_texts

ROUNDS = 3


@dataclass(frozen=True)
class Figure:
    """One measurement, a line of the JSON file.

    Attributes:
        what: the quantity, such as `mask, 100 patterns, code`.
        guard: whose it is: `prod_decode` or a peer.
        value: in `unit`; None if it failed.
        unit: `us`, `s`, `ms`, `MB/s`, `MB/min` or `bytes`.
        p50: median of a distribution of times, where there is one.
        p99: its 99th percentile.
        worst: its maximum.
        ours_over_peer: our value divided by this one; below 1 we are faster (for rates: below 1 we are slower).
        goal: what docs/performance.md set out to reach, as text.
        met: whether we reach it; None if there is no goal.
        note: why it failed, or what else to know.
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
    """Nanoseconds of every mask and every advance on one walk, and seconds until the guard was ready."""

    compile_s: float
    mask: list[int]
    advance: list[int]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write JSON lines if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench overhead", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter walks: under 4 minutes on 2 cores")
    parser.add_argument("--patterns", default="1,100,10000", metavar="N,N,...", help="default 1,100,10000")
    parser.add_argument("--tokenizer", default="bundled", metavar="M", help="of which model; default `bundled`")
    parser.add_argument(
        "--time-limit", type=float, default=20.0, metavar="S", help="seconds a peer may take; default 20"
    )
    parser.add_argument("--no-peers", action="store_true", help="measure ours alone")
    parser.add_argument("--json", metavar="OUT", help="write one JSON object a figure")
    options = parser.parse_args(argv)
    try:
        counts = [int(part) for part in options.patterns.split(",")]
        if min(counts) < 1:
            raise ValueError
    except ValueError:
        print(f"bench overhead: expected --patterns as numbers above 0, got {options.patterns!r}", file=sys.stderr)
        return 2
    try:
        material = gather(options.tokenizer, max(counts), steps=4_000 if options.quick else 40_000)
        figures = measure(material, counts, peers=not options.no_peers, limit=options.time_limit)
    except ProdError as error:
        print(f"bench overhead: {error}", file=sys.stderr)
        return 2
    print(table(figures))
    if options.json:
        with write_whole(options.json) as file:
            file.write("".join(json.dumps(asdict(figure)) + "\n" for figure in figures).encode())
    return 0


def gather(tokenizer_name: str, patterns: int, *, steps: int) -> Material:
    """Load the tokenizer and cut the standard library into patterns and text to walk."""
    from prod_decode.models import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_name)
    library = Path(sysconfig.get_path("stdlib"))
    texts = [text for _, text in read_texts(sorted(library.glob("*.py")))]
    held_out, sources = texts[::4], [text for i, text in enumerate(texts) if i % 4]
    if patterns > 50_000:
        sources += [text for path, text in read_texts([library]) if path.suffix == ".py"]
    lines = sorted({line.strip() for text in sources for line in text.split("\n")})
    lines = [line for line in lines if 30 <= len(line) <= 60 and len(set(line)) > 8 and "\ufffd" not in line]
    random.Random(0).shuffle(lines)
    if len(lines) < patterns:
        raise ProdError(f"the standard library has {len(lines)} patterns, {patterns} were asked for: ask for fewer")
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
            figures += steps(material, count, with_peer=peers and count >= 100)
            figures += scans(f"scan, {count:,} patterns", material.other, material.lines[:count], with_peers=peers)
            # A character that Python code has nowhere keeps every pattern from matching but for its last symbol.
            near = [f"{line}\u00a7" for line in material.lines[:count]]
            figures += scans(f"scan, {count:,} patterns, all begun", material.text, near, with_peers=peers)
    figures += artifacts(material)
    return figures


def timer() -> Figure:
    """What timing nothing takes."""
    return _distribution("timer", "perf_counter_ns", _timed(lambda: None, 20_000))


def masks(material: Material, count: int, tokenizer_folder: str | None, limit: float) -> list[Figure]:
    """Compile time, and mask and advance a token, on a walk over code and on one that stays near patterns."""
    lines = material.lines[:count]
    begun = time.perf_counter()
    matcher = _bind(lines, material.tokenizer)
    ready = time.perf_counter() - begun
    begun = time.perf_counter()
    _compile(lines)
    compiled = time.perf_counter() - begun
    size = f"{count:,} patterns" if count > 1 else "1 pattern"
    figures = [
        Figure(
            f"compile, {size}", "prod_decode", compiled, "s", **_goal(compiled, 0.010 if count == 100 else None, "s")
        ),
        Figure(f"compile and bind, {size}", "prod_decode", ready, "s"),
    ]
    walks = {"code": material.walk, "near": near_walk(material, lines, len(material.walk))}
    walks = {name: _without_matches(matcher, walk) for name, walk in walks.items()}
    mean_goal = 1.0 if count <= 100 else 2.0 if count <= 10_000 else 4.0
    for name, walk in walks.items():
        ours = _median([_walk_ours(_bind(lines, material.tokenizer), walk, ready) for _ in range(ROUNDS)])
        mask, advance = f"mask, {size}, {name}", f"advance, {size}, {name}"
        figures.append(_distribution(mask, "prod_decode", ours.mask, mean_goal=mean_goal if name == "code" else None))
        figures.append(_distribution(advance, "prod_decode", ours.advance))
        if tokenizer_folder is None:
            continue
        for peer in (walk_xgrammar, walk_llguidance):
            guard = peer.__name__.removeprefix("walk_")
            result = _in_child(peer, tokenizer_folder, lines, walk, limit=limit)
            if isinstance(result, str):
                figures.append(Figure(mask, guard, None, "us", note=result))
                continue
            if name == "code":
                seconds = result.compile_s
                figures.append(Figure(f"compile, {size}", guard, seconds, "s", ours_over_peer=compiled / seconds))
            figures.append(_distribution(mask, guard, result.mask, against=ours.mask))
            figures.append(_distribution(advance, guard, result.advance, against=ours.advance))
    return figures


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


def walk_xgrammar(tokenizer_folder: str, lines: Sequence[str], walk: Sequence[int]) -> Walked:
    """xgrammar: any text without the lines, as a structural tag with `excludes`."""
    import xgrammar
    from transformers import AutoTokenizer

    info = xgrammar.TokenizerInfo.from_huggingface(AutoTokenizer.from_pretrained(tokenizer_folder))
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    tag = {"type": "structural_tag", "format": {"type": "any_text", "excludes": list(lines)}}
    begun = time.perf_counter()
    matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(json.dumps(tag)))
    ready = time.perf_counter() - begun
    bitmask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
    return _walk_peer(ready, walk, lambda: matcher.fill_next_token_bitmask(bitmask), matcher.accept_token)


def walk_llguidance(tokenizer_folder: str, lines: Sequence[str], walk: Sequence[int]) -> Walked:
    """llguidance: the complement of a regular expression that finds any of the lines."""
    import llguidance.hf
    import llguidance.numpy
    from transformers import AutoTokenizer

    tokenizer = llguidance.hf.from_tokenizer(AutoTokenizer.from_pretrained(tokenizer_folder))
    # Not re.escape: Rust reads `\<` and `\>` as the edges of a word.
    found = "|".join(re.sub(r"([\\.^$|?*+()\[\]{}/&~#-])", r"\\\1", line) for line in lines)
    grammar = f"start: TEXT\nTEXT: /(?s:.*)/ & ~/(?s:.*)({found})(?s:.*)/\n"
    begun = time.perf_counter()
    matcher = llguidance.LLMatcher(tokenizer, llguidance.grammar_from("lark", grammar))
    if matcher.get_error():
        raise ValueError(matcher.get_error().splitlines()[0])
    ready = time.perf_counter() - begun
    bitmask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)

    def fill() -> None:
        llguidance.numpy.fill_next_token_bitmask(matcher, bitmask, 0)

    return _walk_peer(ready, walk, fill, matcher.consume_token)


def _walk_peer(ready: float, walk: Sequence[int], fill: Callable[[], Any], accept: Callable[[int], bool]) -> Walked:
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
            raise ValueError(f"refused token {token_id} after {len(mask)} steps of a walk without patterns")
        mask.append(b - a)
        advance.append(c - b)
    return Walked(ready, mask, advance)


def _in_child(peer: Callable[..., Walked], *arguments: object, limit: float) -> Walked | str:
    """The peer's result, or why there is none."""
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    try:
        return pool.submit(peer, *arguments).result(timeout=limit)
    except OutOfTime:
        for child in list((pool._processes or {}).values()):
            child.kill()
        return f"not done after {limit:g} s"
    except Exception as error:  # noqa: BLE001 (a peer may fail in any way; its message is the result)
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def steps(material: Material, count: int, *, with_peer: bool) -> list[Figure]:
    """A whole step of a batch: advance, find, mask [64, V]; and a processor's call at B = 8 beside transformers'."""
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
    ours, theirs = _timed(sparse, 300), _timed(dense, 30)
    figures = [
        _distribution(what, "prod_decode", ours),
        _distribution(what, "prod_decode with a dense mask", theirs, against=ours),
    ]
    text = torch.from_numpy(walk[: 8 * 64].reshape(8, 64).copy())
    processor = ProdLogitsProcessor(matcher)
    call = f"processor call, {count:,} patterns, B=8"
    ours = _timed(lambda: processor(text, scores[:8]), 100)
    figures.append(_distribution(call, "prod_decode", ours))
    if with_peer:
        from transformers import NoBadWordsLogitsProcessor

        words = [material.tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
        begun = time.perf_counter()
        peer = NoBadWordsLogitsProcessor(words, eos_token_id=None)
        peer(text, scores[:8])
        ready = time.perf_counter() - begun
        note = f"token sequences only; first call {ready:.2f} s"
        theirs = _timed(lambda: peer(text, scores[:8]), 30)
        figures.append(_distribution(call, "transformers bad words", theirs, against=ours, note=note))
    return figures


def scans(what: str, text: str, lines: Sequence[str], *, with_peers: bool) -> list[Figure]:
    """Scan a text for all matches: MB/s of UTF-8, one core, the best of three."""
    megabytes = len(text.encode()) / 1e6
    guards: list[tuple[str, Callable[[], object], str | None]] = []
    for mode in ("none", "code"):
        blocklist = Blocklist.compile([Entry(line, boundary="none") for line in lines], normalize=mode)
        guards.append((f"prod_decode ({mode})", lambda blocklist=blocklist: list(blocklist.scan(text)), None))  # type: ignore[misc]
    if with_peers:
        import ahocorasick
        import ahocorasick_rs

        rust = ahocorasick_rs.AhoCorasick(lines)
        guards.append(("ahocorasick_rs", lambda: rust.find_matches_as_indexes(text), "does not normalise"))
        plain = ahocorasick.Automaton()
        for line in lines:
            plain.add_word(line, line)
        plain.make_automaton()
        guards.append(("pyahocorasick", lambda: list(plain.iter(text)), "does not normalise"))
    rates = {name: megabytes / (min(_timed(run, 3)) / 1e9) for name, run, _ in guards}
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


def artifacts(material: Material) -> list[Figure]:
    """Compile rate of phrases and documents, size a node, and load time."""
    lines = material.lines[: min(len(material.lines), 50_000)]
    figures = []
    documents = [Entry(material.text[i : i + 50_000], policy="quote") for i in range(0, len(material.text), 50_000)]
    for policy, entries in (("phrases", [Entry(line) for line in lines]), ("documents", documents)):
        size = sum(len(entry.text) for entry in entries) / 1e6
        begun = time.perf_counter()
        blocklist = Blocklist.compile(entries)
        rate = size / (time.perf_counter() - begun) * 60
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
        load = min(_timed(lambda: Blocklist.load(path), 5)) / 1e6
        figures.append(
            Figure("load, checksum verified", "prod_decode", load, "ms", note=f"{path.stat().st_size:,} bytes")
        )
    return figures


def _compile(lines: Sequence[str]) -> Blocklist:
    return Blocklist.compile([Entry(line, boundary="none") for line in lines], normalize="none")


_VOCABULARIES: dict[int, Any] = {}


def _bind(lines: Sequence[str], tokenizer: Any) -> Matcher:
    # The vocabulary is proved once a process, as a server would; a fresh matcher has an empty cache.
    from prod_decode.tokenizer_bytes import vocabulary_of

    if id(tokenizer) not in _VOCABULARIES:
        _VOCABULARIES[id(tokenizer)] = vocabulary_of(tokenizer)
    return _compile(lines).bind(_VOCABULARIES[id(tokenizer)])


def _median(walks: list[Walked]) -> Walked:
    return sorted(walks, key=lambda walked: sum(walked.mask))[len(walks) // 2]


def _timed(run: Callable[[], object], times: int) -> list[int]:
    run()
    clock = time.perf_counter_ns
    taken = []
    for _ in range(times):
        begun = clock()
        run()
        taken.append(clock() - begun)
    return taken


def _distribution(
    what: str,
    guard: str,
    nanoseconds: Sequence[int],
    *,
    against: Sequence[int] | None = None,
    mean_goal: float | None = None,
    note: str | None = None,
) -> Figure:
    times: NDArray[np.float64] = np.array(nanoseconds, np.float64) / 1e3
    mean = float(times.mean())
    return Figure(
        what,
        guard,
        mean,
        "us",
        p50=float(np.median(times)),
        p99=float(np.percentile(times, 99)),
        worst=float(times.max()),
        ours_over_peer=None if against is None else float(np.mean(against)) / 1e3 / mean,
        note=note,
        **_goal(mean, mean_goal, "us"),
    )


def _goal(value: float, bound: float | None, unit: str, *, least: bool = False) -> dict[str, Any]:
    if bound is None:
        return {}
    return {"goal": f"{'>' if least else '<'} {bound:g} {unit}", "met": value > bound if least else value < bound}


def table(figures: Sequence[Figure]) -> str:
    """The figures as aligned text, under the facts of the machine."""
    packages = ("numba", "numpy", "torch", "transformers", "xgrammar", "llguidance", "ahocorasick_rs", "pyahocorasick")
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
    machine = f"{_cpu()}, {multiprocessing.cpu_count()} cores, Python {platform.python_version()}"
    versions = ", ".join(f"{name} {version(name)}" for name in packages if _installed(name))
    return "\n".join([machine, versions, "", *lines])


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
