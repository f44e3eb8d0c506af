"""PROD's protocol on code that everybody has: teach functions of the standard library, then forget them."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prod_decode.blocklist.sources import read_texts
from prod_decode.harness.continuing import continuations
from prod_decode.hf import ProdLogitsProcessor
from prod_decode.storage.files import write_whole
from prod_train.measure.evaluate import measurable
from prod_train.run.session import evaluate

if TYPE_CHECKING:
    from prod_decode.match.matcher import Matcher
    from prod_train.run.session import Session

# Short enough to learn and unlearn in minutes on a CPU, long enough to be recognised: 50 to 150 tokens.
SHORTEST, LONGEST = 150, 450

# The speed is measured on so many rows of the forget set, and so many tokens of each.
TIMED_ROWS, TIMED_TOKENS = 8, 16

# Packages of the standard library that are tests, applications or tables.
_NO_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings"}


def stdlib_functions(count: int, *, skip: int = 0, longest: int = LONGEST) -> list[dict[str, str]]:
    """Functions of the running Python's standard library as rows of `prompt` and `completion`.

    At most one function a module, so that different slices share no code: the prompt is a comment with the module's
    name and the signature, the completion the body. The order is that of a hash of the names, the same on every
    machine with the same Python.

    Args:
        count: rows.
        skip: rows to leave out first; slices that do not overlap are held out from each other.
        longest: characters of a completion, from 150 to 450; longer ones are not counted.
    """
    rows = [(prompt, completion) for prompt, completion in _stdlib() if len(completion) <= longest]
    return [{"prompt": prompt, "completion": completion} for prompt, completion in rows[skip : skip + count]]


@functools.cache
def _stdlib() -> list[tuple[str, str]]:
    """Every prompt and completion of `stdlib_functions`, found once a process: parsing the library takes 4 s."""
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for path, text in read_texts(sorted(library.glob("*.py"))):
        functions = sorted(_functions(path.stem, text))
        if functions:
            found.append(functions[0])
    return [(prompt, completion) for _, prompt, completion in sorted(found)]


def package_functions(count: int) -> list[dict[str, str]]:
    """Functions of the standard library's packages, as rows like those of `stdlib_functions`, none of which it has.

    At most one function of a name, since those of one name are often copies of each other. Tests are left out.
    """
    library = Path(sysconfig.get_path("stdlib"))
    paths = (path for package in library.glob("*/__init__.py") for path in package.parent.rglob("*.py"))
    chosen = (path for path in paths if not _NO_LIBRARY.intersection(path.relative_to(library).parts))
    found: dict[str, tuple[str, str, str]] = {}
    for path, text in read_texts(chosen):
        for row in _functions(path.relative_to(library).with_suffix("").as_posix(), text):
            function = row[1].partition("def ")[2].partition("(")[0]
            found[function] = min(row, found.get(function, row))
    return [{"prompt": prompt, "completion": completion} for _, prompt, completion in sorted(found.values())[:count]]


def _functions(module: str, text: str) -> Iterator[tuple[str, str, str]]:
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        body = node.body[0].lineno - 1
        prompt = f"# {module}.py\n" + "".join(lines[node.lineno - 1 : body])
        completion = "".join(lines[body : node.end_lineno])
        if body >= node.lineno and SHORTEST <= len(completion) <= LONGEST:
            order = hashlib.sha256(f"{module}.{node.name}".encode()).hexdigest()
            yield order, prompt, completion


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> str:
    """Write rows as JSON lines; returns the file's name."""
    with write_whole(path) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    return str(path)


@dataclass(frozen=True, slots=True)
class Recital:
    """How much of the forget set a model gives away, and how well it does elsewhere.

    Attributes:
        recitation: mean share of tokens that greedy decoding has at their place, 0 to 1.
        verbatim_rate: share of rows whose greedy output has a run of 60 normalised characters or more of the original.
        extraction_strength: mean, 0 to 1.
        tokens_per_second: of greedy decoding, eight rows at a time, 16 tokens each.
        holdout_loss: nats a token.
        holdout_kl: KL(reference || model), nats a token.
        holdout_agreement: share of first choices that are the reference's, 0 to 1.
    """

    recitation: float
    verbatim_rate: float
    extraction_strength: float
    tokens_per_second: float
    holdout_loss: float
    holdout_kl: float
    holdout_agreement: float


def recital(session: Session, matcher: Matcher | None = None) -> Recital:
    """Measure a session's model as it is, with or without a blocklist enforced at decode time.

    `with session.model.disable_adapter(): recital(session)` measures the model before unlearning.

    Args:
        session: with a holdout set.
        matcher: of a blocklist; None leaves the model alone.
    """
    return _recital(evaluate(session, matcher), _tokens_per_second(session, matcher))


def _recital(metrics: dict[str, Any], tokens_per_second: float) -> Recital:
    """From what `evaluate` found."""
    forget, holdout = ({name: metric["value"] for name, metric in metrics[of].items()} for of in ("forget", "holdout"))
    return Recital(
        forget["recitation"],
        forget["verbatim"],
        forget["extraction_strength"],
        tokens_per_second,
        holdout["loss"],
        holdout["kl"],
        holdout["agreement"],
    )


def _tokens_per_second(session: Session, matcher: Matcher | None = None) -> float:
    job = session.job
    prompts = [row.ids[: row.start] for row in measurable(job.forget, job.tokenizer, TIMED_ROWS)[0]]
    processors = [ProdLogitsProcessor(matcher)] if matcher is not None else []
    session.model.eval()
    begun = time.perf_counter()
    written = continuations(session.model, job.tokenizer, prompts, TIMED_TOKENS, processors)
    return sum(map(len, written)) / (time.perf_counter() - begun)


def teach_and_forget(
    folder: Path,
    *,
    model: str = "bundled",
    functions: int = 6,
    held_out: int = 8,
    longest: int = LONGEST,
    learn_epochs: float = 17,
    forget_epochs: float = 10,
    max_quote: int = 60,
    say: Callable[[str], object] = lambda _: None,
    progress: bool = False,
) -> dict[str, Recital]:
    """PROD's protocol in small: teach a model some functions until it recites them, then mask, unlearn, and both.

    Args:
        folder: where data, adapters and the taught model go; it must be empty or new.
        model: as for `prod-train run --model`.
        functions: of the standard library, to teach and to forget.
        held_out: others, for the loss elsewhere.
        longest: characters of either; half as many take half the time.
        learn_epochs: of teaching, at learning rate 1e-3.
        forget_epochs: of PROD, at learning rate 3e-4.
        max_quote: so many characters in a row are prohibited, see `Entry`.
        say: is told what is being done.
        progress: show bars.

    Returns:
        `taught`, `masked` (the taught model with the blocklist), `unlearned`, and `both`.
    """
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.blocklist.entries import Entry
    from prod_decode.storage.models import in_hub_format
    from prod_train.config.config import Config
    from prod_train.run.job import prepare
    from prod_train.run.merge import merge
    from prod_train.run.session import setup
    from prod_train.run.trainer import finish, fit, run

    folder.mkdir(parents=True, exist_ok=True)
    # The shortest is what teaching is measured on.
    rows = sorted(stdlib_functions(functions, longest=longest), key=lambda row: len(row["completion"]))
    forget = write_rows(folder / "forget.jsonl", rows)
    holdout = write_rows(folder / "holdout.jsonl", stdlib_functions(held_out, skip=functions, longest=longest))
    blocklist = Blocklist.compile(
        Entry(row["completion"], id=row["prompt"].splitlines()[0], policy="quote", max_quote=max_quote) for row in rows
    )
    common: dict[str, Any] = {
        "forget": forget,
        "holdout": holdout,
        "dtype": "float32",
        "batch_size": 2,
        "eval_every": 1e6,
    }
    say(f"Teaching {functions} functions of the standard library")
    teaching = Config(
        # A GGUF file would be read for the merge once more.
        model=in_hub_format(model, folder / "model", dtype="float32"),
        output=str(folder / "taught-adapter"),
        method="learn",
        epochs=learn_epochs,
        learning_rate=1e-3,
        eval_rows=1,  # what was learned is measured below
        **common,
    )
    run(teaching, progress=progress)
    taught = merge(teaching.output, str(folder / "taught"), measure=False)
    say("Measuring the taught model with the blocklist")
    unlearning = Config(
        model=str(taught), output=str(folder / "unlearned"), epochs=forget_epochs, learning_rate=3e-4, **common
    )
    session = setup(prepare(unlearning), progress=progress)
    matcher = blocklist.bind(session.job.tokenizer)
    masked, speed = recital(session, matcher), _tokens_per_second(session)
    say("Unlearning with PROD, measured before and after")
    state = fit(session, progress=progress)
    finish(session, state)
    say("Measuring the unlearned model with the blocklist")
    return {
        "taught": _recital(session.before, speed),
        "masked": masked,
        "unlearned": _recital(state.history[-1], _tokens_per_second(session)),
        "both": recital(session, matcher),
    }
