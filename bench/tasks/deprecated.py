"""Deprecated interfaces: prompts that tempt one call each; a syntax tree tells which interface a continuation uses."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from bench.programs.existing import all_exist
from bench.programs.names import CONVENTIONS, Names
from bench.programs.syntax import end_of, ends_behind, parse_fragment, parses
from bench.tasks.base import Sample, Score, Setup, Task, checked_samples, limited
from bench.tasks.deprecated_prompts import prompt_for
from bench.tasks.insecure import parsed_share
from prod_decode.blocklist.entries import Entry
from prod_decode.blocklist.sources import read_text
from prod_decode.errors import ProdError

Verdict = Literal["deprecated", "replacement", "both", "neither", "unparsable"]

_FRAME, _SERIES, _STYLER = "pandas.DataFrame", "pandas.Series", "pandas.io.formats.style.Styler"
_SAME_CLASS = re.findall(
    r"\w+",
    "copy head tail sort_values sort_index dropna fillna reset_index set_index drop rename astype query assign ffill "
    "bfill sample drop_duplicates round abs clip replace interpolate shift diff apply where mask",
)
_READERS = re.findall(r"\w+", "csv excel json parquet pickle sql sql_query table html feather")
_STYLES = re.findall(r"\w+", "format highlight_max highlight_min background_gradient applymap")
# What gives an instance of a known class; a name that ends in `!` is an attribute.
RETURNS = {
    **{f"pandas.read_{kind}": _FRAME for kind in _READERS},
    **{f"{owner}.{name}": owner for owner in (_FRAME, _SERIES) for name in _SAME_CLASS},
    **{f"pandas.{name}": _FRAME for name in ("concat", "merge", "pivot_table", "crosstab", "get_dummies")},
    **{f"{_FRAME}.{name}": _FRAME for name in ("merge", "join", "pivot", "describe", "transpose")},
    f"{_FRAME}.from_dict": _FRAME,
    f"{_FRAME}.from_records": _FRAME,
    f"{_FRAME}.__getitem__": _SERIES,
    f"{_FRAME}.T!": _FRAME,
    f"{_FRAME}.style!": _STYLER,
    f"{_SERIES}.to_frame": _FRAME,
    **{f"{_STYLER}.{name}": _STYLER for name in _STYLES},
}
_TABLES = (f"{_FRAME}.", f"{_SERIES}.")
# Two names of one thing, the first written as the second.
_ALIASES = (
    ("keras.", "tensorflow.keras."),
    ("tensorflow.compat.v2.", "tensorflow."),
    ("tensorflow.python.", "tensorflow."),
    ("pandas.core.frame.", "pandas."),
    ("pandas.core.series.", "pandas."),
    ("numpy.core.fromnumeric.", "numpy."),
    ("torch.functional.", "torch."),
)
_EQUAL = {
    "tensorflow.argmax": "tensorflow.math.argmax",
    "tensorflow.argmin": "tensorflow.math.argmin",
    "tensorflow.math.divide": "tensorflow.divide",
    "tensorflow.metrics.AUC": "tensorflow.keras.metrics.AUC",
    "tensorflow.compat.v1.global_variables": "tensorflow.global_variables",
    "tensorflow.compat.v1.global_variables_initializer": "tensorflow.global_variables_initializer",
    "sklearn.preprocessing.imputation.Imputer": "sklearn.preprocessing.Imputer",
    "torch.nn.parameter.weight_norm": "torch.nn.utils.weight_norm",
    "torch.nn.utils.weight_norm.weight_norm": "torch.nn.utils.weight_norm",
}
# Methods whose name means nothing else: the mask stops them on any variable.
_DISTINCTIVE = {"applymap", "iteritems", "freeze_feature_extractor"}
# Characters of a name that begins no other one, and exceptions (`torch.cholesky_solve`).
_LONG_NAME = 7
_BEGINNINGS = {"cholesky"}


@dataclass(frozen=True, slots=True)
class ApiPair:
    """A deprecated interface and what replaces it, by full path."""

    deprecated: str
    replacement: str

    @property
    def library(self) -> str:
        """The top-level package."""
        return self.deprecated.partition(".")[0]

    @property
    def kind(self) -> Literal["class", "method", "function"]:
        """A class and its methods show by CapWords."""
        owner, name = self.deprecated.split(".")[-2:]
        if name[0].isupper() and name != "Print":
            return "class"
        return "method" if owner[0].isupper() else "function"


def api_pairs(path: str | Path | None = None) -> list[ApiPair]:
    """The pairs of the shipped file (source: LLMs Meet Library Evolution, arXiv 2406.09834), or of one of its form.

    Raises:
        ProdError: the file has another form.
    """
    file = Path(str(files("bench").joinpath("data", "deprecated_apis.json"))) if path is None else Path(path)
    try:
        pairs = json.loads(read_text(file))["pairs"]
        return [ApiPair(str(pair["deprecated"]), str(pair["replacement"])) for pair in pairs]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ProdError(
            f'{file}: expected {{"pairs": [{{"deprecated": "a.b", "replacement": "a.c"}}, ...]}}, got another form'
        ) from None


@dataclass(frozen=True, slots=True)
class DeprecatedScore(Score):
    """Which interface an output uses.

    Attributes:
        outcome: `deprecated` or `replacement` alone, `both`, `neither`, or `unparsable`: no line parses.
        deprecated: whether it uses the deprecated one at all.
        replacement: whether it uses the replacement at all.
        parsed: share of the output's lines of code that parse; None where there is no line of code.
        executes: whether prompt and output run without an error, as far as they parse from the top; False where the
            output's first line does not; None where `reason` says why that was not tried.
        reason: see above, and why `resolves` is None.
        resolves: whether every function that it calls in a known module exists; see `all_exist`.
    """

    metrics: ClassVar[tuple[str, ...]] = ("deprecated", "replacement", "parsed", "executes", "resolves")

    outcome: Verdict
    deprecated: bool
    replacement: bool
    parsed: float | None
    executes: bool | None = None
    reason: str | None = None
    resolves: bool | None = None


class DeprecatedTask(Task[DeprecatedScore]):
    """One prompt an interface."""

    name = "deprecated"
    rank = 2
    leak = "deprecated"
    version = 2
    higher_is_better: ClassVar[Mapping[str, bool]] = {
        "deprecated": False,
        "replacement": True,
        "parsed": True,
        "executes": True,
        "resolves": True,
    }
    outcomes = frozenset({"deprecated", "replacement", "executes", "resolves"})

    def __init__(self, samples: Sequence[Sample], *, execute: Callable[[str], bool] | None = None) -> None:
        """Make a task of samples; see `load`.

        Args:
            samples: each with `deprecated` and `replacement` in its metadata.
            execute: runs a program in a sandbox and tells whether it ended well; None: never run any.
        """
        self.samples = checked_samples(samples, "deprecated")
        for sample in self.samples:
            for key in ("deprecated", "replacement"):
                if not isinstance(sample.metadata.get(key), str):
                    raise ProdError(f"deprecated: sample {sample.id!r}: expected metadata with a key {key!r}")
        self._execute = execute

    @classmethod
    def for_run(cls, setup: Setup) -> DeprecatedTask:
        """See `Task.for_run`."""
        return cls.load(limit=setup.limit, execute=setup.executes)

    @classmethod
    def load(
        cls,
        *,
        libraries: Iterable[str] | None = None,
        limit: int | None = None,
        execute: Callable[[str], bool] | None = None,
    ) -> DeprecatedTask:
        """The shipped pairs.

        Args:
            libraries: only these, by the package's name; None: all.
            limit: samples, at most; they are spread over the libraries.
            execute: see the constructor.

        Raises:
            ProdError: a library that has no pair.
        """
        limited(limit, "--deprecated-rows")
        pairs = api_pairs()
        known = sorted({pair.library for pair in pairs})
        wanted = set(known if libraries is None else libraries)
        if unknown := sorted(wanted - set(known)):
            raise ProdError(f"deprecated: expected libraries among {', '.join(known)}, got {unknown[0]!r}")
        chosen = [pair for pair in _spread(pairs) if pair.library in wanted]
        samples = [sample_of(pair) for pair in islice(chosen, limit)]
        return cls(samples, execute=execute)

    def forget_rows(self) -> list[dict[str, Any]]:
        """Prompt and deprecated continuation; the interface's name as `spans`."""
        return [
            {"prompt": sample.prompt, "completion": sample.reference, "spans": sample.metadata["spans"]}
            for sample in self.samples
            if sample.reference is not None
        ]

    def entries(self) -> list[Entry]:
        """The name as each prompt would have it, the full path of functions and classes, and names that are unique.

        Without a parenthesis behind it: of a model that knows the name by heart and may not write that, half of the
        names came back as `np.alltrue in mask` and the like. A short name, such as `first`, may begin another one and
        is prohibited as a whole word; a long one is stopped where it ends, which leaves the model another way to go on.
        """
        entries: dict[str, Entry] = {}
        replacements = {name for s in self.samples for name in _spellings(s.metadata["replacement"])}
        for sample in self.samples:
            path = sample.metadata["deprecated"]
            for text in _phrases(sample, replacements):
                last = re.split(r"\W", text)[-1]
                short = len(last) < _LONG_NAME or last in _BEGINNINGS
                ambiguous = short or any(name.startswith(text) for name in replacements)
                boundary: Literal["start", "both"] = "both" if ambiguous and text[-1].isalnum() else "start"
                source, instead = f"deprecated: {path}", instead_of(text, ApiPair(path, sample.metadata["replacement"]))
                entry = Entry(text, id=f"deprecated/{text}", source=source, boundary=boundary, replacement=instead)
                entries.setdefault(text, entry)
        return list(entries.values())

    def score(self, sample: Sample, output: str) -> DeprecatedScore:
        """Resolve the names in prompt and output together; only uses that end in the output count."""
        pair = ApiPair(sample.metadata["deprecated"], sample.metadata["replacement"])
        old, new = uses(pair, sample.prompt, output)
        parsed, reason = parsed_share(sample.prompt, output)
        outcome: Verdict
        if old or new:
            outcome = "both" if old and new else "deprecated" if old else "replacement"
        else:
            outcome = "unparsable" if parsed == 0 else "neither"
        executes, why = self._executes(pair, sample.prompt, output)
        resolves, unknown = all_exist(sample.prompt, output)
        reasons = "; ".join(filter(None, (reason, why, unknown))) or None
        return DeprecatedScore(outcome, old, new, parsed, executes, reasons, resolves)

    def _executes(self, pair: ApiPair, prompt: str, output: str) -> tuple[bool | None, str | None]:
        if self._execute is None:
            return None, "not executed: no sandbox was given"
        if find_spec(pair.library) is None:
            return None, f"not executed: {pair.library} is not installed"
        if "\n" not in output and not parses(prompt + output):
            return None, "not executed: the output ends in its first line"
        program = _runnable(prompt, output)
        return program is not None and self._execute(program), None


def sample_of(pair: ApiPair) -> Sample:
    """The prompt for a pair, and the deprecated continuation.

    Raises:
        ProdError: none was written for it.
    """
    prompt = prompt_for(pair.deprecated)
    if prompt is None:
        raise ProdError(
            f"{pair.deprecated}: expected a prompt in bench/tasks/deprecated_prompts.py, found none: write one"
        )
    metadata = {
        "deprecated": pair.deprecated,
        "replacement": pair.replacement,
        "library": pair.library,
        "kind": pair.kind,
        "spans": [list(span) for span in prompt.spans],
    }
    return Sample(pair.deprecated, prompt.text, prompt.completion, metadata)


def _runnable(prompt: str, output: str) -> str | None:
    """The most lines of both, from the top, that parse: an output may be cut anywhere.

    None if none of the output's is among them.
    """
    lines = (prompt + output).splitlines(keepends=True)
    first = len(prompt.splitlines()) + prompt.endswith("\n")
    programs = ("".join(lines[:stop]) for stop in range(len(lines), first - 1, -1))
    return next(filter(parses, programs), None)


def uses(pair: ApiPair, prompt: str, output: str) -> tuple[bool, bool]:
    """Whether an output uses the deprecated interface, and whether it uses the replacement."""
    walker = _Uses(end_of(prompt))
    for statement in parse_fragment(prompt + output).statements():
        walker.walk(statement)
    old = any(_is(path, pair.deprecated, pair.replacement) for path in walker.paths)
    new = any(_is(path, pair.replacement, pair.deprecated) for path in walker.paths)
    for path, name in ((pair.deprecated, "old"), (pair.replacement, "new")):
        # The prompt is about this method; on a variable of unknown class its name is taken for it.
        owner, method = path.split(".")[-2:]
        if owner[0].isupper() and method in walker.unknown:
            old, new = (True, new) if name == "old" else (old, True)
    return old, new


class _Uses(Names):
    """Collects the full paths of all names that end behind a position, and attributes of what is unknown."""

    def __init__(self, after: tuple[int, int]) -> None:
        super().__init__(RETURNS)
        self.paths: set[str] = set()
        self.unknown: set[str] = set()
        self._after = after

    def _is_new(self, node: ast.AST) -> bool:
        return ends_behind(node, self._after)

    def visit_Attribute(self, node: ast.Attribute) -> None:  # noqa: N802
        self.generic_visit(node)
        if not self._is_new(node):
            return
        ref = self.resolve(node)
        if ref is not None:
            self.paths.add(ref.path)
        elif self.resolve(node.value) is None:
            self.unknown.add(node.attr)
        owner = self.resolve(node.value)
        if owner is not None and owner.instance:
            self.paths.add(f"{owner.path}.{node.attr}")

    def visit_Name(self, node: ast.Name) -> None:  # noqa: N802
        if self._is_new(node) and isinstance(node.ctx, ast.Load):
            ref = self.resolve(node)
            if ref is not None and not ref.instance:
                self.paths.add(ref.path)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:  # noqa: N802
        super().visit_ImportFrom(node)
        for alias in node.names:
            if self._is_new(alias) and node.module and not node.level:
                self.paths.add(f"{node.module}.{alias.name}")


def _canonical(path: str) -> str:
    for written, meant in _ALIASES:
        if path.startswith(written):
            path = meant + path.removeprefix(written)
    return _EQUAL.get(path, path)


def _is(path: str, wanted: str, other: str) -> bool:
    """Whether a path of a program is the wanted interface, and not rather the other."""
    path = _canonical(path)
    if path == _canonical(wanted):
        return True
    if path == _canonical(other):
        return False
    if wanted.startswith(_TABLES) and path.startswith(_TABLES):
        # Whether brackets give a table or a column depends on what is between them.
        return path.rpartition(".")[2] == wanted.rpartition(".")[2]
    if wanted.startswith("tensorflow.") and path.startswith("tensorflow."):
        plain, plain_wanted, plain_other = (p.replace(".compat.v1.", ".") for p in (path, wanted, other))
        return plain_wanted != plain_other and _canonical(plain) == _canonical(plain_wanted)
    if wanted.startswith("transformers.") and path.startswith("transformers."):
        # Every model's classes can also be imported from its own module.
        parts = wanted.split(".")[1:]
        return path.split(".")[-len(parts) :] == parts
    return False


_SHORT = {path: name for name, path in CONVENTIONS.items() if name in ("np", "pd", "tf", "sns", "F")}


def _spellings(path: str) -> Iterator[str]:
    yield path
    for full, short in _SHORT.items():
        if path.startswith(f"{full}."):
            yield short + path.removeprefix(full)


def _phrases(sample: Sample, replacements: set[str]) -> Iterator[str]:
    path, completion = sample.metadata["deprecated"], sample.reference or ""
    begin, end = sample.metadata["spans"][0]
    text = sample.prompt + completion
    at, stop = len(sample.prompt) + begin, len(sample.prompt) + end
    line = text[text.rfind("\n", 0, at) + 1 : stop]
    match = re.search(r"(from\s+[\w.]+\s+import\s+\w+|from\s+[\w.]+\s+import\s+|[\w.]+)$", line)
    phrase = match[0] if match else line
    if phrase.startswith("from ") and "FeatureExtractor" in phrase:
        phrase = phrase.rpartition(" ")[2]
    if phrase in replacements:
        # The same name in another version of the library: only the old argument tells them apart.
        phrase += re.split(r"[,)]", text[stop:])[0]
    yield phrase
    kind = sample.metadata["kind"]
    if kind == "method":
        if (name := path.rpartition(".")[2]) in _DISTINCTIVE:
            yield f".{name}"
    elif path not in replacements:
        yield path


def instead_of(phrase: str, pair: ApiPair) -> str | None:
    """What a phrase that ends in the deprecated name would be with the replacement; None: more than names differ.

    A method on a variable of any class, `.applymap`, has none: `.a` would be the place where they part, which is the
    beginning of most other methods too. Nor has the bare name of a function, which may be anybody's.
    """
    owner, _, old = pair.deprecated.rpartition(".")
    stem = phrase.removesuffix(old)
    if not phrase.endswith(old) or not pair.replacement.startswith(f"{owner}.") or stem == ".":
        return None
    if not stem and pair.kind != "class":
        return None
    new = stem + pair.replacement.removeprefix(f"{owner}.")
    # `loc` is indexed, not called; a name alone may be imported.
    return new if not stem or " import " in phrase else new + ("[" if new.endswith(".loc") else "(")


def _spread(pairs: Sequence[ApiPair]) -> Iterator[ApiPair]:
    """The pairs in turns: one of each library, then the next of each."""
    queues: dict[str, list[ApiPair]] = {}
    for pair in pairs:
        queues.setdefault(pair.library, []).append(pair)
    turn = 0
    while any(turn < len(queue) for queue in queues.values()):
        yield from (queue[turn] for queue in queues.values() if turn < len(queue))
        turn += 1
