"""`python -m bench COMMAND`."""

from __future__ import annotations

import sys
from importlib import import_module

from prod_decode.errors import brief, did_you_mean

COMMANDS = {
    "demo": ("bench.demo", "a real model with and without a blocklist, side by side"),
    "run": ("bench.unlearning.run", "every method on every task: forgetting, utility, attacks"),
    "report": ("bench.report.report", "a page and plots of runs"),
    "compare": ("bench.report.compare", "two runs, cell by cell"),
    "overhead": ("bench.speed.overhead", "what a mask, a compile and a scan cost, beside the peers"),
    "limits": ("bench.speed.limits", "what a mask reads and takes, and what a read takes on this machine"),
    "device": ("bench.speed.device", "what masking on a GPU costs, beside a dense mask and the host; needs a GPU"),
    "vllm": ("bench.speed.vllm_overhead", "what guarding costs inside vLLM, in an environment that has it"),
    "loss": ("bench.speed.loss_overhead", "time and memory of the fused loss beside the dense formulas"),
    "train": (
        "bench.speed.train_overhead",
        "an epoch with cached targets, without, and of plain cross-entropy",
    ),
    "detectors": ("bench.detectors", "precision and recall of detectors of insecure code on labelled rows"),
    "collateral": ("bench.collateral", "what a list of documents changes in code that is not theirs"),
    "corpora": ("bench.corpora.command", "how large a corpus may be: an index beside other guards, and as it grows"),
    "humaneval": ("bench.humaneval.utility", "score completions of HumanEval in the sandbox"),
}


def main(argv: list[str]) -> int:
    """Run a command with the arguments that follow it."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m bench COMMAND ...\n")
        print("\n".join(f"  {name:10} {about}" for name, (_, about) in COMMANDS.items()))
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        meant = did_you_mean(argv[0], COMMANDS) or "; see `python -m bench --help`"
        print(f"bench: expected one of {', '.join(COMMANDS)}, got {brief(argv[0])!r}{meant}", file=sys.stderr)
        return 2
    status: int = import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
