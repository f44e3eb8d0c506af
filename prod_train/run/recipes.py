"""PROD's protocol on code that everybody has: teach functions of the standard library, then forget them."""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prod_decode.blocklist.sources import read_texts
from prod_decode.hf import ProdLogitsProcessor
from prod_decode.storage.files import write_whole
from prod_train.measure.evaluate import evaluate_forget, evaluate_holdout, measurable, recite

if TYPE_CHECKING:
    from prod_decode.match.matcher import Matcher
    from prod_train.run.session import Session

# Short enough to learn and unlearn in minutes on a CPU, long enough to be recognised: 50 to 150 tokens.
SHORTEST, LONGEST = 150, 450

# Packages of the standard library that are tests, applications or tables.
_NO_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings"}


def stdlib_functions(count: int, *, skip: int = 0) -> list[dict[str, str]]:
    """Functions of the running Python's standard library as rows of `prompt` and `completion`.

    At most one function a module, so that different slices share no code: the prompt is a comment with the module's
    name and the signature, the completion the body. The order is that of a hash of the names, the same on every
    machine with the same Python.

    Args:
        count: rows.
        skip: rows to leave out first; slices that do not overlap are held out from each other.
    """
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for path, text in read_texts(sorted(library.glob("*.py"))):
        functions = sorted(_functions(path.stem, text))
        if functions:
            found.append(functions[0])
    rows = [{"prompt": prompt, "completion": completion} for _, prompt, completion in sorted(found)]
    return rows[skip : skip + count]


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
        tokens_per_second: of greedy decoding, eight rows at a time.
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


def recital(session: Session, matcher: Matcher | None = None, *, timed_rows: int = 8) -> Recital:
    """Measure a session's model as it is, with or without a blocklist enforced at decode time.

    `with session.model.disable_adapter(): recital(session)` measures the model before unlearning.

    Args:
        session: with a holdout set.
        matcher: of a blocklist; None leaves the model alone.
        timed_rows: rows of the forget set that the speed is measured on.
    """
    job, config = session.job, session.job.config
    rows, _ = measurable(job.forget, job.tokenizer, config.eval_rows)
    size = config.eval_batch_size
    forget = evaluate_forget(session.model, session.encoder, job.tokenizer, rows, batch_size=size, matcher=matcher)
    held = job.holdout[: config.eval_rows]
    holdout = evaluate_holdout(
        session.model, session.encoder, held, session.stores["holdout"], pad=job.pad, batch_size=size, matcher=matcher
    )
    processors = [ProdLogitsProcessor(matcher)] if matcher is not None else []
    session.model.eval()
    begun = time.perf_counter()
    written = sum(map(len, recite(session.model, job.tokenizer, rows[:timed_rows], processors)))
    seconds = time.perf_counter() - begun
    return Recital(
        forget["recitation"].value,
        forget["verbatim"].value,
        forget["extraction_strength"].value,
        written / seconds,
        holdout["loss"].value,
        holdout["kl"].value,
        holdout["agreement"].value,
    )


def teach_and_forget(
    folder: Path,
    *,
    model: str = "bundled",
    functions: int = 6,
    held_out: int = 8,
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
    from prod_train.config.config import Config
    from prod_train.run.job import prepare
    from prod_train.run.merge import merge
    from prod_train.run.session import setup
    from prod_train.run.trainer import finish, fit, run

    folder.mkdir(parents=True, exist_ok=True)
    rows = stdlib_functions(functions)
    forget = write_rows(folder / "forget.jsonl", rows)
    holdout = write_rows(folder / "holdout.jsonl", stdlib_functions(held_out, skip=functions))
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
        model=model,
        output=str(folder / "taught-adapter"),
        method="learn",
        epochs=learn_epochs,
        learning_rate=1e-3,
        eval_rows=1,  # what was learned is measured below
        **common,
    )
    run(teaching, progress=progress)
    taught = merge(teaching.output, str(folder / "taught"), measure=False)
    say("Measuring the taught model, without and with the blocklist")
    unlearning = Config(
        model=str(taught), output=str(folder / "unlearned"), epochs=forget_epochs, learning_rate=3e-4, **common
    )
    session = setup(prepare(unlearning), progress=progress)
    matcher = blocklist.bind(session.job.tokenizer)
    found = {"taught": recital(session), "masked": recital(session, matcher)}
    say("Unlearning with PROD")
    finish(session, fit(session, progress=progress))
    say("Measuring the unlearned model, without and with the blocklist")
    return {**found, "unlearned": recital(session), "both": recital(session, matcher)}
