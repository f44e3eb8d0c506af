"""Measure every method on every task, cell by cell; a run that was stopped goes on where it was."""

from __future__ import annotations

import logging
import sys
from argparse import BooleanOptionalAction
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench.models.training import Trainer
from bench.unlearning.experiment import Experiment, make_task
from bench.unlearning.plan import CHOICES, Plan, environment, make_plan, with_data
from bench.unlearning.processes import call_in_processes
from bench.unlearning.profiles import PROFILES, Profile
from bench.unlearning.records import Key, RunFolder
from prod_decode.command.options import Parser
from prod_decode.command.terminal import exit_status
from prod_train.config.config import LORA_INITS


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what a profile asks for; returns 0, or 2 for a mistake of the user."""
    parser = Parser(prog="python -m bench run", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--profile", choices=list(PROFILES), default="smoke", help="how much; default smoke")
    parser.add_argument("--model", default="bundled", metavar="M", help="as for `prod-train run --model`")
    for flag, choices in CHOICES.items():
        parser.add_argument(f"--{flag}", metavar="X,...", help=f"some of {choices}".replace("%", "%%"))
    for name, text in with_data().items():
        parser.add_argument(f"--{name}", metavar="DATA", help=f"for the {name} task: {text}")
    parser.add_argument("--humaneval", metavar="DATA", help="HumanEval as JSONL or hub name, for pass@1; default: none")
    parser.add_argument("--problems", type=int, metavar="N", help="of HumanEval, the first; default: the profile's")
    parser.add_argument(
        "--humaneval-each",
        action=BooleanOptionalAction,
        help="pass@1 for every method and epoch, not only what is attacked; default: the profile's",
    )
    parser.add_argument("--samples", type=int, metavar="N", help="of each task; default: the profile's")
    parser.add_argument("--epochs", type=int, metavar="N", help="of unlearning; default: the profile's")
    parser.add_argument("--every", type=int, metavar="N", help="epochs from cell to cell; default: the profile's")
    parser.add_argument("--rate", type=float, metavar="X", help="learning rate of unlearning; default: the profile's")
    parser.add_argument(
        "--retain", action=BooleanOptionalAction, help="all methods with a retain set, not graddiff alone"
    )
    parser.add_argument("--learn-retain", action=BooleanOptionalAction, help="teach with the retain set as well")
    parser.add_argument("--retained", type=int, metavar="N", help="functions in it; default: the profile's")
    parser.add_argument("--max-quote", type=int, metavar="N", help="prod-surgical, characters; default: the profile's")
    parser.add_argument("--opening", type=int, metavar="N", help="prod-surgical, characters; default: the profile's")
    parser.add_argument(
        "--lora-init", choices=LORA_INITS, help="of methods with a retain set, see prod-train; default: the profile's"
    )
    parser.add_argument(
        "--gradient-projection",
        type=int,
        metavar="N",
        help="of methods with a retain set, see prod-train; default: the profile's",
    )
    parser.add_argument(
        "--document-tokens",
        type=int,
        metavar="N",
        help="of an output that may recite a document; default: the profile's",
    )
    parser.add_argument(
        "--line-tokens",
        type=int,
        metavar="N",
        help="of an output of which the next lines count; default: the profile's",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        metavar="N",
        help="functions on which distance from the start is measured, 0 for outputs alone; default: the profile's",
    )
    parser.add_argument("--seeds", metavar="N,...", help="of training and sampling; default: the profile's")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="default float32")
    parser.add_argument(
        "--engine", choices=["transformers", "vllm"], help="what generates; default vllm where it is installed"
    )
    parser.add_argument(
        "--execute", action="store_true", help="also run outputs of the deprecated task, in the sandbox; 1 to 6 s each"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="processes, each with its share of the cores and a task, protocol and seed of its own; default 1",
    )
    parser.add_argument("--out", default="out/bench", metavar="DIR", help="default out/bench")
    options = parser.parse_args(argv)
    return exit_status("bench run", lambda: _run(options))


def _run(options: Any) -> int:
    plan, out = make_plan(options), Path(options.out)
    _log_progress()
    if options.jobs == 1:
        Runner(plan, out, progress=sys.stderr.isatty()).run()
        return 0
    runner = Runner(plan, out)
    if missing := list(runner.missing()):
        runner.trainer.start(plan.model)  # all processes read it
    return call_in_processes(_measure, [(plan, out, *experiment) for experiment in missing], jobs=options.jobs)


def _measure(plan: Plan, out: Path, task: str, protocol: str, seed: int) -> int:
    """Measure the missing cells of one task, protocol and seed, in a process of its own."""
    _log_progress()

    def measure() -> int:
        Runner(plan, out).measure(task, protocol, seed)
        return 0

    return exit_status("bench run", measure)


def _log_progress() -> None:
    from prod_decode.storage.models import quiet

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for package in ("bench", "prod_decode"):
        logging.getLogger(package).setLevel(logging.INFO)
    quiet()


class Runner:
    """Goes through a plan's cells and measures those that are missing."""

    def __init__(self, plan: Plan, out: Path, *, progress: bool = False) -> None:
        """Open the directory.

        Args:
            plan: what to measure.
            out: where; what is there already is not measured again.
            progress: show bars.

        Raises:
            ProdError: `out` holds a run of another plan.
        """
        self.plan = plan
        manifest = {"plan": plan.to_dict(), "environment": environment()}
        self.store = RunFolder(out, manifest, defaults=Profile.defaults())
        profile = plan.profile
        self.trainer = Trainer(out / "models", profile.rate, plan.dtype, profile.batch_size, progress=progress)
        self._task = cache(partial(make_task, plan=plan))  # to look through the standard library takes seconds

    def run(self) -> None:
        """Measure every cell.

        Raises:
            ProdError: data or model cannot be read.
        """
        for name, protocol, seed in self.missing():
            self.measure(name, protocol, seed)

    def missing(self) -> Iterator[tuple[str, str, int]]:
        """Every task, protocol and seed of which a cell is missing."""
        for name in self.plan.tasks:
            for protocol in self.plan.profile.protocols:
                for seed in self.plan.profile.seeds:
                    if self._missing(name, protocol, seed):
                        yield name, protocol, seed

    def measure(self, name: str, protocol: str, seed: int) -> None:
        """Measure the missing cells of one task, protocol and seed.

        Raises:
            ProdError: data or model cannot be read.
        """
        Experiment(self.plan, self.store, self.trainer, self._task(name), protocol, seed).measure(
            self._missing(name, protocol, seed)
        )

    def _missing(self, name: str, protocol: str, seed: int) -> list[Key]:
        return [key for key in self.plan.keys(name, protocol, seed) if not self.store.has(key)]
