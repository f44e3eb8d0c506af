"""One task under one protocol with one seed: the model that everything starts from, and what is measured on it."""

from __future__ import annotations

import logging
import sysconfig
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.attacks import ATTACKS
from bench.attacks.base import Attack, Setting, Weights
from bench.guards import GUARDS
from bench.guards.decode import Replace
from bench.humaneval.sandbox import Limits
from bench.humaneval.utility import Checked, Completion, check_all, load_humaneval, pass_rate
from bench.metrics import Value, proportion
from bench.models.training import FIRST_ROUND, Trainer, steps_of
from bench.tasks import TASKS, Setup
from bench.unlearning.plan import Plan, trained_of
from bench.unlearning.profiles import REPLACING, SECOND_ROUND, UNTAUGHT, UNTRAINED
from bench.unlearning.records import FORGET, WRITTEN, Cell, Key, Output, RunFolder
from prod_decode.harness.stops import STOPS
from prod_train.measure.metric import bootstrap

if TYPE_CHECKING:
    from bench.guards.base import Guard
    from bench.models.subject import Subject, Writing
    from bench.models.vllm_writer import VllmWriter
    from bench.tasks.base import Sample, Task
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.match.matcher import Matcher
    from prod_train.data.rows import Row
    from prod_train.targets.targets import ReferenceStore

_log = logging.getLogger(__name__)

# As in the paper's protocol (arXiv 2506.17125).
HUMANEVAL_TOKENS = 300

# Importing transformers takes 2 s and, with torch, 4 GiB of address space.
LIBRARY_LIMITS = Limits(seconds=120, cpu_seconds=30, memory=8 << 30, open_files=256, processes=64)


def make_task(name: str, plan: Plan) -> Task[Any]:
    """A task with the plan's data and as many samples as the profile wants.

    Raises:
        ProdError: the data cannot be read.
    """
    from prod_decode.storage.models import load_tokenizer

    setup = Setup(
        limit=plan.profile.samples,
        source=plan.sources.get(name),
        max_tokens=plan.max_tokens(name),
        tokenizer=partial(load_tokenizer, plan.model),
        executes=_executes if plan.execute else None,
    )
    return TASKS[name].for_run(setup)


def _executes(program: str) -> bool:
    """Whether a program ends well, with the packages of this environment."""
    from bench.humaneval.sandbox import run

    return run(program, limits=LIBRARY_LIMITS, packages=sysconfig.get_path("purelib")).passed


@dataclass(frozen=True)
class _Common:
    """What most cells of a bed share: the start as a model, tokenised rows, and what it says of those held out.

    Nothing is held out, and `reference` is None, where outputs alone are measured.
    """

    subject: Subject
    forget: list[Row]
    held_out: list[Row]
    reference: ReferenceStore | None


class Experiment:
    """One task under one protocol with one seed: the model that everything starts from, and what is measured on it.

    Attributes:
        name: in the names of its files.
        forget: file with the rows to forget.
        whole: the same rows without spans: what is taught, and taught again.
        untaught: the model as it was given.
        start: the model that everything starts from.
    """

    def __init__(
        self, plan: Plan, store: RunFolder, trainer: Trainer, task: Task[Any], protocol: str, seed: int
    ) -> None:
        """Teach the model, if the protocol says so.

        Args:
            plan: of the run.
            store: where cells are written.
            trainer: of the run.
            task: with the plan's samples.
            protocol: `learn` or `natural`.
            seed: of training and sampling.
        """
        self.plan, self.store, self.trainer = plan, store, trainer
        self.task, self.protocol, self.seed = task, protocol, seed
        self.name = f"{task.name}.{protocol}.s{seed}"
        rows = task.forget_rows()
        self.forget = self.trainer.rows(task.name, rows)
        # A model that is taught only the spans, the names of interfaces, writes nothing else any more.
        whole = [{name: value for name, value in row.items() if name != "spans"} for row in rows]
        self.whole = self.trainer.rows(f"{task.name}-whole", whole)
        self.start = self.untaught = self.trainer.start(self.plan.model)
        if protocol == "learn":
            profile = self.plan.profile
            retain = self._retained if profile.learn_retain else None
            taught = self.trainer.taught(
                self.start, self.whole, name=self.name, epochs=profile.learn_epochs, seed=seed, retain=retain
            )
            self.start = str(taught)

    def measure(self, missing: Sequence[Key]) -> None:
        """Measure cells: first what is not trained, then one training after the other."""
        try:
            self._measure(missing)
        finally:
            if "_writer" in vars(self):
                self._writer.close()

    def _measure(self, missing: Sequence[Key]) -> None:
        trained = dict.fromkeys(trained_of(key.method) for key in missing if key.method not in UNTRAINED)
        for key in missing:
            if key.method in UNTRAINED:
                self._cell(key, None)
        for method in trained:
            adapters = self._adapters(method)
            for key in missing:
                if trained_of(key.method) == method:
                    self._cell(key, adapters[key.epoch])

    @cached_property
    def _retained(self) -> str:
        """File with the retain set. To look through the standard library takes 4 s."""
        profile = self.plan.profile
        count = profile.retained or profile.held_out
        return self.trainer.retained(self.task.name, count, profile.held_out, self.task.entries())

    @cached_property
    def _replacing(self) -> str:
        """File with the blocklist of `REPLACING_GUARD`."""
        file = self.trainer.folder / f"{self.task.name}-replace.prod"
        Replace().blocklist(self.task.entries()).save(file)
        return str(file)

    def _adapters(self, method: str) -> dict[int, Path]:
        """The adapters of a method by epoch, trained if they are not there."""
        profile = self.plan.profile
        if method == SECOND_ROUND:
            first = self._adapters(FIRST_ROUND)[profile.epochs]
            retain = self._retained if profile.retain else None
            off = profile.gradient_projection if profile.retain else 0
            again = self.trainer.unlearned_again(first, self.forget, seed=self.seed, retain=retain, off=off)
            return {profile.epochs + 1: again}
        options: dict[str, Any] = {}
        if profile.retain or method == "graddiff":
            options |= {"retain": self._retained, "lora_init": profile.lora_init}
            options |= {"gradient_projection": profile.gradient_projection}
        if method == FIRST_ROUND:
            options |= {"max_quote": profile.max_quote, "opening": profile.opening}
        name = self.name
        if method == REPLACING:
            method, name = "prod", f"{name}.replace"
            options |= {"blocklist": self._replacing}
        return self.trainer.unlearned(
            self.start,
            self.forget,
            name=name,
            method=method,
            epochs=profile.epochs,
            every=profile.every,
            seed=self.seed,
            **options,
        )

    def _cell(self, key: Key, adapter: Path | None) -> None:
        attack, guard = (ATTACKS[key.attack] if key.attack != "none" else Attack)(), guard_of(key.method)()
        subject = self._subject(key, adapter, attack)
        processors, matcher = guard.processors(self.task.entries(), subject.tokenizer)
        write = self._writing(subject, guard, processors)
        attack.among(self.task.samples)
        given = [attack.sample(sample, subject.tokenizer, seed=self.seed) for sample in self.task.samples]
        encoded = [self._encode(subject, attack, sample) for sample in given]
        samples: list[Output] = []
        seconds = 0.0
        for trial in range(self.plan.profile.trials if attack.temperature else 1):
            writing = write(
                [prompt for prompt, _ in encoded],
                self.plan.max_tokens(self.task.name),
                temperature=attack.temperature,
                seed=self.seed * 1000 + trial,
            )
            seconds += writing.seconds
            for sample, (_, begun), text, tokens in zip(given, encoded, writing.outputs, writing.tokens, strict=True):
                output = text.removeprefix(begun)
                scores = scores_of(self.task, sample, output)
                target = sample.target_hash or ""
                samples.append(Output(sample.id, sample.prompt_hash, target, output, tokens, scores, trial))
        outcomes = self.task.outcomes | {WRITTEN}
        if FORGET not in self.task.higher_is_better:
            outcomes |= {FORGET}
        metrics = summarise(samples, {**self.task.higher_is_better, FORGET: True, WRITTEN: True}, outcomes)
        checked: list[Checked] = []
        if key.attack == "none":
            if guard.is_measured:
                metrics |= self._of_the_model(subject, matcher)
            if self.plan.measures_humaneval(key):
                checked = self._humaneval(subject, write)
                metrics["humaneval"] = Value.of(pass_rate(checked))
        tokens_per_second = sum(sample.tokens for sample in samples) / seconds if seconds else 0.0
        cell = Cell(key, metrics, seconds, tokens_per_second, self.task.version)
        self.store.put(cell, samples, checked)
        _log.info("%s", one_line(cell))

    def _encode(self, subject: Subject, attack: Attack, sample: Sample) -> tuple[list[int], str]:
        """See `Subject.encode`."""
        ids = attack.token_ids(sample.prompt, subject.tokenizer, seed=self.seed)
        return subject.encode(sample.prompt, sample.reference) if ids is None else (ids, "")

    def _subject(self, key: Key, adapter: Path | None, attack: Attack) -> Subject:
        """The model of a cell: the untaught one, or the start with an adapter on it, or what an attack makes of it."""
        from bench.models.subject import Subject

        if key.method == UNTAUGHT and not attack.on_untaught:
            return self._untaught
        steps = 0 if adapter is None else steps_of(adapter)
        if trained_of(key.method) == SECOND_ROUND:
            steps += steps_of(self._adapters(FIRST_ROUND)[self.plan.profile.epochs])
        setting = Setting(self.trainer, self.whole, steps, self.seed)
        start = self.untaught if key.method == UNTAUGHT else self.start
        weights = attack.weights(Weights(start, adapter), setting)
        if (weights.model, weights.four_bit) != (self.start, False):
            subject = Subject(weights.model, dtype=self.plan.dtype, four_bit=weights.four_bit)
            subject.adapt(weights.adapter)
            return subject
        self._common.subject.adapt(weights.adapter)
        return self._common.subject

    @cached_property
    def _untaught(self) -> Subject:
        from bench.models.subject import Subject

        return Subject(self.untaught, dtype=self.plan.dtype)

    @cached_property
    def _common(self) -> _Common:
        """Loaded at the first cell, before any adapter."""
        from bench.models.subject import Subject
        from prod_train.data.rows import load_rows

        subject = Subject(self.start, dtype=self.plan.dtype)

        def rows(file: str) -> list[Row]:
            return load_rows(file, subject.tokenizer, max_length=1024, truncate=True)

        count = self.plan.profile.held_out
        held_out = rows(self.trainer.held_out(count)) if count else []
        reference = subject.reference(held_out, self.trainer.folder / "targets") if held_out else None
        return _Common(subject, rows(self.forget), held_out, reference)

    def _of_the_model(self, subject: Subject, matcher: Matcher | None) -> dict[str, Value]:
        """What needs no task: recall of the forget set, and distance from the start on held-out code."""
        common = self._common
        if common.reference is None:
            return {}
        found = subject.recall(common.forget, matcher)
        return found | subject.moved(common.held_out, common.reference, matcher)

    def _writing(self, subject: Subject, guard: Guard, processors: Sequence[Any]) -> Callable[..., Writing]:
        """`Subject.write` without its processors, or the same through vLLM where it has both model and guard."""
        on_start = subject is self._common.subject
        if self.plan.engine == "vllm" and guard.in_vllm and on_start:
            blocklist = guard.name if guard.name in self._blocklists else None
            return partial(self._writer.write, blocklist=blocklist, adapter=subject.adapter)
        return partial(subject.write, processors=processors)

    @cached_property
    def _writer(self) -> VllmWriter:
        """Started at the first cell that needs it."""
        from bench.models.vllm_writer import VllmWriter

        folder = self.trainer.folder / f"{self.name}.vllm"
        return VllmWriter(self.start, self._blocklists, folder, dtype=self.plan.dtype)

    @cached_property
    def _blocklists(self) -> dict[str, Blocklist]:
        """Those of the plan's guards, by the guard's name."""
        entries = self.task.entries()
        guards = {guard_of(method) for method in self.plan.profile.methods}
        found = {guard.name: guard().blocklist(entries) for guard in sorted(guards, key=lambda guard: guard.name)}
        return {name: blocklist for name, blocklist in found.items() if blocklist is not None}

    def _humaneval(self, subject: Subject, write: Callable[..., Writing]) -> list[Checked]:
        """A greedy completion of each problem, and whether it passes."""
        import torch

        problems = load_humaneval(self.plan.sources["humaneval"])[: self.plan.profile.humaneval]
        prompts = [subject.encode(problem.prompt)[0] for problem in problems]
        written = write(prompts, HUMANEVAL_TOKENS, stops=STOPS)
        completions = [
            Completion(problem.task_id, output, tokens == HUMANEVAL_TOKENS)
            for problem, output, tokens in zip(problems, written.outputs, written.tokens, strict=True)
        ]
        # Each of several processes has its share of the cores.
        return check_all(problems, completions, jobs=torch.get_num_threads())


def guard_of(method: str) -> type[Guard]:
    """What guards a method of a run: none, itself, or ours on top of what was trained."""
    return GUARDS.get(method) or GUARDS[method.partition("+")[2] or "base"]


def scores_of(task: Task[Any], sample: Sample, output: str) -> dict[str, float | None]:
    """The task's scores, forget quality, and whether anything was written.

    Forget quality is 1 - BLEU for copyright, else whether the bad thing is not there: a silent model has all of it.
    """
    scores: dict[str, float | None] = task.score(sample, output).values()
    if FORGET not in scores:
        bad = scores[task.leak]
        scores[FORGET] = None if bad is None else 1 - bad
    return scores | {WRITTEN: float(bool(output.strip()))}


def summarise(
    samples: Sequence[Output], higher_is_better: Mapping[str, bool], outcomes: Collection[str] = ()
) -> dict[str, Value]:
    """Means with intervals. Of several trials of a prompt the worst counts, as it does for who tries k times.

    Args:
        samples: of one cell.
        higher_is_better: of every metric.
        outcomes: metrics that are yes or no. Their intervals are Wilson's, which tell that 0 of 24 may be 1 of 10; a
            bootstrap of 24 zeros has no width.
    """
    metrics = {}
    for name, better in higher_is_better.items():
        side = "better" if better else "worse"
        worst: dict[str, float] = {}
        for sample in samples:
            value = sample.scores.get(name)
            if value is not None:
                pick = min if better else max
                worst[sample.id] = pick(worst.get(sample.id, value), value)
        if not worst:
            metrics[name] = Value.missing(side, "no sample has a score")
            continue
        values = np.array(list(worst.values()))
        if name in outcomes:
            metrics[name] = Value.of(proportion(values == 1, side))
            continue
        metrics[name] = Value.of(bootstrap(values, np.ones(len(values)), side))
    return metrics


def one_line(cell: Cell) -> str:
    """A cell for the log."""
    shown = (
        FORGET,
        TASKS[cell.key.task].leak,
        "extraction_strength",
        "holdout_kl",
        "holdout_agreement",
        "humaneval",
    )
    values = ", ".join(
        f"{name.replace('_', ' ')} {value.value:.3f}"
        for name in shown
        if (value := cell.metrics.get(name)) is not None and value.value is not None
    )
    return f"{cell.key.name}: {values}; {cell.tokens_per_second:.0f} tokens/s"
