"""`python -m bench COMMAND`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

COMMANDS = {
    "demo": ("bench.demo", "a real model with and without a blocklist, side by side"),
    "overhead": ("bench.overhead", "what a mask, a compile and a scan cost, beside the peers"),
    "vllm": ("bench.vllm_overhead", "what guarding costs inside vLLM, in an environment that has it"),
    "loss": ("bench.loss_overhead", "time and memory of the fused loss beside the dense formulas"),
}


def main(argv: list[str]) -> int:
    """Run a command with the arguments that follow it."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m bench COMMAND ...\n")
        print("\n".join(f"  {name:10} {about}" for name, (_, about) in COMMANDS.items()))
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"bench: expected one of {', '.join(COMMANDS)}, got {argv[0]!r}; see --help", file=sys.stderr)
        return 2
    run = import_module(COMMANDS[argv[0]][0]).main
    if argv[0] == "loss":
        return _without_arguments("loss", run, argv[1:])
    status: int | None = run(argv[1:])
    return status or 0


def _without_arguments(name: str, run: Callable[[], None], arguments: list[str]) -> int:
    """Run a command that has no options."""
    if arguments and arguments[0] not in ("-h", "--help"):
        print(f"bench {name}: expected no arguments, got {arguments[0]!r}", file=sys.stderr)
        return 2
    if arguments:
        print(f"usage: python -m bench {name}\n\n{COMMANDS[name][1]}")
        return 0
    run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
