"""Build the package, check it, and install it where nothing else is. `make test-wheel` runs this.

1. `build` makes the source distribution, and of that the wheel; `twine` checks what an index would show.
2. The bare wheel: its commands work without torch, and one that needs an extra says so.
3. Every extra resolves with the pins of constraints.txt, and brings nothing that has no pin. Nothing is installed.
4. The wheel with the extra `hf`, installed: a mask is applied.

torch and triton are not installed again, for they may be gigabytes: those of the running environment are linked.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"

# What torch is made of where it is built for GPUs.
_BORROWED = re.compile(r"torch|triton|nvidia|cuda")
# Which triton and setuptools it is, torch says; see pyproject.toml.
_UNPINNED = {"prod-code-unlearning", "setuptools", "triton"}
# Nobody installs one of these alone.
_DEVELOPERS = ("bench", "test", "dev", "docs", "release")

_BEGUN = time.perf_counter()

_MASKS = """
import torch
from prod_decode import Blocklist, Entry, ProdLogitsProcessor
from prod_decode.tokens.vocabulary import Vocabulary

vocabulary = Vocabulary.from_bytes([b"yaml.", b"load(", b"dump(", b""], special=[3], eos_ids=[3])
processor = ProdLogitsProcessor(Blocklist.compile([Entry("yaml.load(")]).bind(vocabulary))
print(processor(torch.tensor([[0]]), torch.zeros(1, 4)).tolist())
"""


def main() -> int:
    """All of it, two things at a time; a failure ends it with what was run and what that said."""
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        wheel = build(here / "dist")
        python = with_torch(here / "extras")
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(bare, here, wheel), pool.submit(masks, here, wheel)]
            jobs += [pool.submit(resolves, here, python, wheel, extra) for extra in extras(wheel)]
            for job in jobs:
                job.result()
    print("the wheel is as it should be")
    return 0


def build(folder: Path) -> Path:
    """Both distributions, checked; returns the wheel."""
    run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)])
    made = sorted(folder.iterdir())
    run([sys.executable, "-m", "twine", "check", "--strict", *map(str, made)])
    (wheel,) = folder.glob("*.whl")
    expect(len(made) == 2, f"expected a wheel and a source distribution, got {made}")
    tell("built, and twine finds nothing wrong")
    return wheel


def bare(here: Path, wheel: Path) -> None:
    """The wheel without extras, used in a folder of its own: no torch, no transformers."""
    python = make_venv(here / "bare")
    install(python, str(wheel))
    run([python, "-m", "pip", "check"])
    version = wheel.name.split("-")[1]
    work = here / "work"
    work.mkdir()
    (work / "phrases.txt").write_text("yaml.load(\n")
    (work / "bad.py").write_text("data = yaml . load(text)\n")
    (work / "good.py").write_text("data = yaml.safe_load(text)\n")
    decode, train = (str(python.with_name(command)) for command in ("prod-decode", "prod-train"))
    expect(version in run([decode, "--version"], work), f"expected version {version} of prod-decode")
    expect(version in run([train, "--version"], work), f"expected version {version} of prod-train")
    run([decode, "--help"], work)
    run([train, "run", "--help"], work)
    run([decode, "compile", "phrases.txt", "-o", "block.prod"], work)
    expect("phrases          1" in run([decode, "info", "block.prod"], work), "expected one phrase in `info`")
    expect("bad.py:1:8: yaml.load(" in run([decode, "scan", "block.prod", "bad.py"], work, status=1), "expected a find")
    run([decode, "scan", "block.prod", "good.py"], work)
    (work / "f.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    said = run([train, "check", "--model", "m", "--forget", "f.jsonl", "--output", "o"], work, status=2)
    expect("it is not installed: pip install" in said, f"expected the extra that prod-train needs, got {said}")
    tell("the bare wheel works")


def extras(wheel: Path) -> list[str]:
    """What is tried: every extra for users, and those of developers together."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        found = re.findall(r"^Provides-Extra: (\S+)$", archive.read(metadata).decode(), re.MULTILINE)
    expect(set(_DEVELOPERS) < set(found), f"expected extras in the wheel, got {found}")
    return [",".join(_DEVELOPERS), *(name for name in found if name not in _DEVELOPERS)]  # the longest first


def resolves(here: Path, python: Path, wheel: Path, extra: str) -> None:
    """An extra brings what is pinned, and no other torch; nothing is installed."""
    report = here / f"{extra}.json"
    install(python, f"{wheel}[{extra}]", "--dry-run", "--report", str(report))
    names = {plain(one["metadata"]["name"]) for one in json.loads(report.read_text())["install"]}
    pins = {plain(line.split("==")[0]) for line in CONSTRAINTS.read_text().splitlines() if "==" in line}
    unpinned = names - pins - _UNPINNED
    expect(not unpinned, f"{extra}: expected a pin in constraints.txt for {', '.join(sorted(unpinned))}")
    expect("torch" not in names, f"{extra}: expected the torch that is here, got another")
    tell(f"[{extra}] brings {len(names) - 1} packages, all pinned")


def masks(here: Path, wheel: Path) -> None:
    """The wheel with the extra `hf`, installed."""
    python = with_torch(here / "hf")
    install(python, f"{wheel}[hf]")
    run([python, "-m", "pip", "check"])
    said = run([python, "-c", _MASKS], here)
    expect(said.strip() == "[[0.0, -inf, 0.0, 0.0]]", f"expected the token `load(` to be masked, got {said}")
    tell("the wheel with [hf] masks")


def make_venv(folder: Path) -> Path:
    """An empty environment; returns its interpreter."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def with_torch(folder: Path) -> Path:
    """An environment with links to torch and what it is made of; returns its interpreter."""
    python = make_venv(folder)
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    for found in (*_made_of("torch", set()), *_made_of("triton", set())):
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))).resolve())
    return python


def _made_of(name: str, seen: set[str]) -> Iterator[Distribution]:
    try:
        found = distribution(name)
    except PackageNotFoundError:  # of another platform
        return
    yield found
    for requirement in found.requires or ():
        needed = plain(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
        if _BORROWED.match(needed) and needed not in seen:
            seen.add(needed)
            yield from _made_of(needed, seen)


def install(python: Path, *arguments: str) -> None:
    """With the pins, from what pip is told to use."""
    run([python, "-m", "pip", "install", "--quiet", "--no-compile", "-c", str(CONSTRAINTS), *arguments])


def run(command: list[str | Path], folder: Path | None = None, *, status: int = 0) -> str:
    """What a command says on both streams."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    line = " ".join(map(str, command))
    expect(done.returncode == status, f"expected status {status}, got {done.returncode}: {line}\n{done.stdout}")
    return done.stdout


def plain(name: str) -> str:
    """A package's name as it is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def expect(is_so: bool, message: str) -> None:
    """End with a message, unless it is so."""
    if not is_so:
        sys.exit(message)


def tell(what: str) -> None:
    """Say what is done, and how long all took until now."""
    print(f"{time.perf_counter() - _BEGUN:4.0f} s: {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
