"""A cluster that runs already, of two nodes, which the command reaches by its address."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prod_decode.cli import main

pytestmark = pytest.mark.slow

SOURCE = Path(textwrap.__file__).read_text()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of a worker each; no driver is connected."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    try:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
    except Exception as error:  # noqa: BLE001 (where no sockets or shared memory may be had)
        pytest.skip(f"Ray does not start here: {error}")
    yield cluster
    cluster.shutdown()


@pytest.mark.long
def test_a_build_on_two_nodes_gives_the_bytes_of_one_here(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sources and output are named from where the command is called, which is where no worker is."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        folder = Path("theirs", f"repo{number}")
        folder.mkdir(parents=True)
        (folder / "a.py").write_text(SOURCE[3000 * number : 3000 * (number + 1)])
        (folder / "shared.py").write_text(SOURCE[9000:11000])
    rows = [{"content": SOURCE[11000:13000], "path": "row.py"}, {"content": 3}]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with zipfile.ZipFile("b.zip", "w") as archive:
        archive.writestr("b.py", SOURCE[13000:15000])
    words = ["index", "build", *(f"theirs/repo{n}" for n in range(3)), "rows.jsonl", "b.zip", "--common", "2"]
    assert main([*words, "-o", "here.pidx", "--jobs", "1"]) == 3
    command = [sys.executable, "-m", "prod_decode.cli", *words, "-o", "there.pidx", "--key-of", "here.pidx"]
    ray = ["--engine", "ray", "--address", cluster.address]
    done = subprocess.run([*command, *ray], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 3, done.stderr
    assert Path("here.pidx").read_bytes() == Path("there.pidx").read_bytes()
    here = capsys.readouterr()
    assert done.stdout == here.out.replace("here", "there")
    assert "not covered: rows.jsonl:2: expected source code as a string" in done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "127.0.0.1:99999"])
def test_an_address_where_no_cluster_is(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would end the process with its own words."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # where other tests have a cluster
    (tmp_path / "a.py").write_text(SOURCE)
    words = ["index", "build", str(tmp_path / "a.py"), "-o", str(tmp_path / "a.pidx"), "--engine", "ray"]
    assert main([*words, "--address", address]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"prod-decode index: cannot reach Ray at {address}: ")
    assert line.endswith("; expected the HOST:PORT that `ray start --head` prints")
    assert [path.name for path in tmp_path.iterdir()] == ["a.py"]
