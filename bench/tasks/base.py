"""What a task is: samples to generate from, rows to forget, entries to prohibit, and a score that needs no model."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Generic, TypeVar

from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError


def text_hash(text: str) -> str:
    """SHA-256 of a text, in hexadecimal; lone surrogates are hashed as they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt of a task.

    Attributes:
        id: unique within the task.
        prompt: what a model continues.
        reference: the prohibited continuation, or None where none is known.
        metadata: what `score` needs to know, and what reports group by; JSON values only.
    """

    id: str
    prompt: str
    reference: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt_hash(self) -> str:
        """See `text_hash`."""
        return text_hash(self.prompt)

    @property
    def target_hash(self) -> str | None:
        """Of the reference; None without one."""
        return None if self.reference is None else text_hash(self.reference)

    def to_record(self) -> dict[str, Any]:
        """The sample as JSON, hashes included."""
        return {**asdict(self), "prompt_hash": self.prompt_hash, "target_hash": self.target_hash}


@dataclass(frozen=True)
class Setup:
    """What a run gives a task.

    Attributes:
        limit: samples, at most; None for all.
        source: what the flag of its data names; None for its own.
        max_tokens: of an output.
        tokenizer: makes the model's.
        executes: runs a program in the sandbox and says whether it ended well; None: no program is to be run.
    """

    limit: int | None
    source: str | None
    max_tokens: int
    tokenizer: Callable[[], Any]
    executes: Callable[[str], bool] | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """What one output was found to be. A subclass has a field for every value, and says which are metrics."""

    metrics: ClassVar[tuple[str, ...]] = ()

    def values(self) -> dict[str, float | None]:
        """The metrics by name, yes and no as 1 and 0; None: it could not be measured, and another field says why."""
        found = {name: getattr(self, name) for name in self.metrics}
        return {name: None if value is None else float(value) for name, value in found.items()}

    def to_record(self) -> dict[str, Any]:
        """Every field as JSON."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


S = TypeVar("S", bound=Score)


class Task(ABC, Generic[S]):
    """A set of prompts, what is prohibited about their continuations, and how a continuation is scored.

    Attributes:
        name: as `--tasks` takes it.
        rank: where it stands in lists, before those with a greater one.
        leak: the metric that is 1 where what must not come out came out.
        documents: whether an output may recite a whole document; else the next lines count.
        data: what its flag, `--NAME`, takes, and what is used without; None: it has no such flag.
        version: raised whenever samples or scores of the same data change.
        higher_is_better: for every metric of the task's scores, seen from the one who wants to forget.
        outcomes: those of them that are yes or no for each output, so that their means are proportions.
        samples: in a fixed order.
    """

    name: ClassVar[str]
    rank: ClassVar[int] = 100
    leak: ClassVar[str]
    documents: ClassVar[bool] = False
    data: ClassVar[str | None] = None
    version: ClassVar[int]
    higher_is_better: ClassVar[Mapping[str, bool]]
    outcomes: ClassVar[frozenset[str]]
    samples: Sequence[Sample]

    @classmethod
    @abstractmethod
    def for_run(cls, setup: Setup) -> Task[S]:
        """The task as a run measures it.

        Raises:
            ProdError: its data cannot be used.
        """

    @abstractmethod
    def forget_rows(self) -> list[dict[str, Any]]:
        """Rows for `prod_train`: `prompt` and `completion`, with `spans` where only a part is to be forgotten."""

    @abstractmethod
    def entries(self) -> list[Entry]:
        """What a blocklist for `prod_decode` prohibits."""

    @abstractmethod
    def score(self, sample: Sample, output: str) -> S:
        """Score a continuation of `sample.prompt`, from the texts alone."""

    def fingerprint(self) -> str:
        """A hash of the name, the version and all samples: equal fingerprints, comparable scores."""
        text = json.dumps([self.name, self.version, [sample.to_record() for sample in self.samples]], sort_keys=True)
        return text_hash(text)


def checked_samples(samples: Sequence[Sample], source: str) -> tuple[Sample, ...]:
    """The samples as a tuple.

    Raises:
        ProdError: none, or two with one id.
    """
    if not samples:
        raise ProdError(f"{source}: expected at least one sample, got none: check the path and the limit")
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise ProdError(f"{source}: expected unique ids, got {sample.id!r} twice: rename one")
        seen.add(sample.id)
    return tuple(samples)


def limited(count: int | None, flag: str = "--limit") -> int | None:
    """A limit of rows as `islice` takes it.

    Raises:
        ProdError: less than one.
    """
    if count is not None and count < 1:
        raise ProdError(f"{flag}: expected a whole number of at least 1, got {count}: leave it out to take all rows")
    return count
