"""What the wheel puts into a user's environment."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import prod_decode
from tests import ROOT

BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


def test_the_wheel_has_the_two_packages_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    for package in ("prod_decode", "prod_train", "bench", "tests", "docs"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    sources = [
        path.relative_to(ROOT).as_posix()
        for name in ("prod_decode", "prod_train")
        for path in (ROOT / name).rglob("*.py")
    ]
    assert "prod_train/methods/__init__.py" in sources
    data = [path.relative_to(ROOT).as_posix() for path in (ROOT / "prod_decode").rglob("*.jsonl")]
    assert len(data) == 2
    assert sorted(names) == sorted([*sources, *data, "prod_decode/py.typed", "prod_train/py.typed"])


def test_everything_says_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    releases = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {project["version"], citation["version"], releases[0]} == {prod_decode.__version__}
    assert project["license"] == citation["license"] == "Apache-2.0"


def test_every_extra_is_pinned_by_name() -> None:
    """What an extra names itself has a pin; `make test-wheel` looks at what that brings as well."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = {_plain(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    named = {_plain(requirement) for extra in extras.values() for requirement in extra}
    # Which triton it is, torch says.
    assert named - pins == {"triton"}


def _plain(requirement: str) -> str:
    return re.sub("[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()
