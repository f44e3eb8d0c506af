"""Pages as programs: what a page shows is written, run in a shell and compared line by line with what the page says.

A page may have these blocks:

- `console`: a line that begins with `$ ` is a command, and goes on while lines end with a backslash. The lines up to
  the next command are what a terminal shows. A line that is `...` alone stands for one line or more that are left out.
- any language with `title="NAME"`: a file, which is there before the next command.
- whatever stands behind `<!-- not run: REASON -->` is shown only.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests import FIRST_START, ROOT, warm

_BLOCK = re.compile(
    r'^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)(?: title="(?P<title>[^"\n]+)")?\n'
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_END = "--- end of a command of a page: "
ELLIPSIS = "..."


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    title: str | None
    reason: str | None
    line: int


@dataclass
class Step:
    """A command, what the page shows, and what came."""

    command: str
    expected: list[str] = field(default_factory=list)
    got: list[str] = field(default_factory=list)
    line: int = 0


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page.

    Raises:
        ValueError: there are others than those above, which nothing would check.
    """
    found = [
        Block(
            match["language"],
            match["text"],
            match["title"],
            match["reason"],
            page.count("\n", 0, match.start("text")) + 1,
        )
        for match in _BLOCK.finditer(page)
    ]
    rest = _BLOCK.sub("", page)
    if stray := re.search(r"^(```.*|    .*|<!-- *not run.*)$", rest, re.MULTILINE):
        raise ValueError(f"expected fenced blocks, each with its mark before it, got {stray[0]!r}")
    for block in found:
        if block.language != "console" and not (block.title or block.reason):
            raise ValueError(f"line {block.line}: a block of {block.language or 'no language'} needs a title or a mark")
    return found


def steps_of(block: Block) -> Iterator[Step]:
    """The commands of a `console` block.

    Raises:
        ValueError: it begins with something else.
    """
    step: Step | None = None
    goes_on = False
    for number, line in enumerate(block.text.splitlines(), block.line):
        if step is not None and goes_on:
            step.command += f"\n{line}"
        elif line.startswith("$ "):
            if step is not None:
                yield step
            step = Step(line[2:], line=number)
        elif step is None:
            raise ValueError(f"line {number}: expected a command, got {line!r}")
        else:
            step.expected.append(line)
            continue
        goes_on = line.endswith("\\")
    if step is not None:
        yield step


def run_page(page: str, folder: Path, commands: Path) -> list[Step]:
    """Run everything that is not marked, in order, in one shell whose current directory is `folder`.

    Args:
        page: its text.
        folder: where its files go.
        commands: a directory with the commands that the page may call beside the system's, see `make_commands`.

    Raises:
        ValueError: the shell did not come to the end, as with a quote that is not closed.
    """
    script = [f"tell() {{ local status=$?; printf '\\n{_END}%s\\n' \"$1\"; return $status; }}"]
    steps: list[Step] = []
    files = folder.parent / f"{folder.name}-files"
    files.mkdir()
    for block in blocks_of(page):
        if block.reason:
            continue
        if block.title is not None:
            kept = files / str(block.line)
            kept.write_text(block.text)
            name = shlex.quote(block.title)
            script.append(f'mkdir -p "$(dirname {name})" && cp {shlex.quote(str(kept))} {name}')
            continue
        for step in steps_of(block):
            script += [step.command, f"tell {len(steps)}"]
            steps.append(step)
    # A terminal shows both streams.
    printed = run_script("\n".join(script), folder, commands)
    parts = re.split(rf"\n{re.escape(_END)}(\d+)\n", printed)
    for text, number in zip(parts[0::2], parts[1::2], strict=False):
        lines = text.removesuffix("\n").split("\n") if text else []
        steps[int(number)].got = [line for line in lines if not line.startswith(FIRST_START)]
    if [int(number) for number in parts[1::2]] != list(range(len(steps))):
        raise ValueError(f"expected {len(steps)} commands that end, got {len(parts) // 2}; the shell said: {parts[-1]}")
    return steps


def run_script(script: str, folder: Path, commands: Path) -> str:
    """Both streams of a script of bash."""
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment(commands),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=500,
        check=False,
    )
    return done.stdout


def environment(commands: Path) -> dict[str, str]:
    """Of a user who has installed the package, without network and with little of the machine."""
    return {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        # Both streams in the order in which they were written.
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NO_COLOR": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def make_commands(folder: Path) -> Path:
    """A directory with `prod-decode`, `prod-train` and `python`, as an environment has where both are installed."""
    folder.mkdir(parents=True)
    begin = shlex.join([sys.executable, "-IS", str(ROOT / "tests" / "warm.py"), warm.server()])
    for name, kind in {"prod-decode": "prod_decode.cli", "prod-train": "prod_train.cli", "python": "python"}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {begin} {kind} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def difference(step: Step) -> str | None:
    """Where the page is wrong, in words; None if it is right."""
    if matches(step.expected, step.got):
        return None
    expected, got = ("".join(f"    {line}\n" for line in lines) for lines in (step.expected, step.got))
    return f"line {step.line}: $ {step.command}\n  the page shows:\n{expected}  it printed:\n{got}"


def matches(expected: Sequence[str], got: Sequence[str]) -> bool:
    """Whether lines are those shown, where `...` alone stands for one or more."""
    if not expected:
        return not got
    if expected[0] != ELLIPSIS:
        return bool(got) and expected[0] == got[0].rstrip() and matches(expected[1:], got[1:])
    return any(matches(expected[1:], got[skipped:]) for skipped in range(1, len(got) + 1))
