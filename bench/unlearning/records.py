"""What a benchmark run leaves on disk: JSON lines, one for each cell and one for each sample, and what the run is.

    OUT/run.json               the plan, versions, hashes; written first
    OUT/samples/CELL.jsonl     prompts' hashes, outputs and scores
    OUT/humaneval/CELL.jsonl   completions of HumanEval and whether they pass, where a cell has them
    OUT/cells.jsonl            metrics with intervals; a cell's line is written last: with it the cell is done

Scoring again and reporting need no model.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.metrics import Value
from prod_decode.errors import ProdError
from prod_decode.storage.files import write_whole

if TYPE_CHECKING:
    from bench.humaneval.utility import Checked

CELLS = "cells.jsonl"

# The metrics that every task has, 0 to 1; the second is the share of outputs that are not empty.
FORGET = "forget_quality"
WRITTEN = "written"


@dataclass(frozen=True, slots=True)
class Key:
    """Which cell: the names are those of the command line.

    Attributes:
        task: copyright, insecure or deprecated.
        protocol: `learn` (taught first, as in the paper) or `natural`.
        method: base, a decoder, a method of `prod_train`, or METHOD+decode for both.
        epoch: of training, 0 for what is not trained.
        attack: `none`, or what was done to the prompts or the model.
        seed: of training and sampling.
    """

    task: str
    protocol: str
    method: str
    epoch: int = 0
    attack: str = "none"
    seed: int = 0

    @property
    def name(self) -> str:
        """As part of a file's name."""
        return f"{self.task}.{self.protocol}.{self.method}.e{self.epoch}.{self.attack}.s{self.seed}"


@dataclass(frozen=True, slots=True)
class Output:
    """One output and its score.

    Attributes:
        id: of the task's sample.
        prompt_hash: `text_hash` of the prompt as it was given.
        target_hash: of the reference completion, "" without one.
        output: what the model wrote, after the prompt.
        tokens: of the output.
        scores: by metric.
        trial: of several outputs for one prompt.
    """

    id: str
    prompt_hash: str
    target_hash: str
    output: str
    tokens: int
    scores: dict[str, Any]
    trial: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """The result of one cell.

    Attributes:
        key: which.
        metrics: by name.
        seconds: of generating.
        tokens_per_second: of generating, all rows of a batch together.
        task_version: results of other versions are not comparable.
    """

    key: Key
    metrics: dict[str, Value]
    seconds: float
    tokens_per_second: float
    task_version: int


class RunFolder:
    """The directory of a run."""

    def __init__(self, folder: Path, manifest: dict[str, Any], *, defaults: Mapping[str, Any] | None = None) -> None:
        """Open or begin.

        Args:
            folder: made if missing.
            manifest: what the run is, JSON-able; a directory of another plan is refused, unless nothing was trained or
                measured there yet, as after a misspelt name.
            defaults: what a plan says that was made before there was a choice.

        Raises:
            ProdError: the directory cannot be written or holds another run.
        """
        self.folder = folder
        about, self._cells = folder / "run.json", folder / CELLS
        self._known: tuple[int, Set[Key]] = (0, set())
        text = json.dumps(manifest, indent=1, sort_keys=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            begun = about.exists() and (self.done() or any(p.is_dir() for p in folder.glob("models/*")))
            old = {**(defaults or {}), **json.loads(about.read_text())["plan"]} if begun else manifest["plan"]
            if different := [k for k in manifest["plan"] if old.get(k) != manifest["plan"][k]]:
                raise ProdError(f"{folder} holds a run with another {', '.join(different)}: name a new directory")
            if not begun:
                with write_whole(about) as file:
                    file.write(text.encode())
        except OSError as error:
            raise ProdError(f"cannot write {folder}: {error.strerror}") from None

    def has(self, key: Key) -> bool:
        """Whether a cell is done."""
        return key in self.done()

    def done(self) -> Set[Key]:
        """The cells that are done, by this process or another."""
        size = self._cells.stat().st_size if self._cells.exists() else 0
        if size != self._known[0]:
            self._known = size, {cell.key for cell in _read_cells(self._cells)}
        return self._known[1]

    def put(self, cell: Cell, samples: Iterable[Output], checked: Sequence[Checked] = ()) -> None:
        """Write a cell: its samples, and what HumanEval's problems became, first."""
        self._lines("samples", cell.key, samples)
        if checked:
            self._lines("humaneval", cell.key, checked)
        with self._cells.open("ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # several processes measure one run
            _drop_unfinished(file)
            file.write(f"{json.dumps(_finite(asdict(cell)))}\n".encode())
            os.fsync(file.fileno())

    def _lines(self, kind: str, key: Key, records: Iterable[Output | Checked]) -> None:
        (self.folder / kind).mkdir(exist_ok=True)
        with write_whole(self.folder / kind / f"{key.name}.jsonl") as file:
            for record in records:
                file.write((json.dumps(asdict(record), ensure_ascii=False) + "\n").encode())


def read_run(folder: Path) -> tuple[dict[str, Any], list[Cell]]:
    """The manifest and all cells of a run, in the order of their names.

    Raises:
        ProdError: the directory holds no run, or a file is damaged.
    """
    about = folder / "run.json"
    if not about.is_file():
        raise ProdError(f"{folder}: expected the directory of a benchmark run, it has no run.json")
    return _load(about), sorted(_read_cells(folder / CELLS), key=lambda cell: f"{cell.key.name}.")


def _read_cells(path: Path) -> Iterator[Cell]:
    if (path.parent / "cells").is_dir():
        raise ProdError(f"{path.parent}: expected {CELLS}, got a run of an earlier version: name a new directory")
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            return  # it is being written
        try:
            found = json.loads(line)
            metrics = {name: Value(**value) for name, value in found.pop("metrics").items()}
            yield Cell(key=Key(**found.pop("key")), metrics=metrics, **found)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ProdError(
                f"{path}:{number}: expected a cell of this version, got {error!r}: run the benchmark again"
            ) from None


def _load(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ProdError(f"cannot read {path}: {error}") from None
    return found


def _drop_unfinished(file: FileIO) -> None:
    """Cut off a last line without its end: whoever wrote it was killed."""
    file.seek(0)
    file.truncate(file.readall().rfind(b"\n") + 1)


def _finite(value: Any) -> Any:
    """JSON has no infinity: it becomes null with a reason, which a mean that cannot be drawn is anyway."""
    if isinstance(value, dict):
        if "higher_is" in value and any(isinstance(v, float) and not math.isfinite(v) for v in value.values()):
            return {**value, "value": None, "low": None, "high": None, "reason": value["reason"] or "infinite"}
        return {name: _finite(item) for name, item in value.items()}
    return value
