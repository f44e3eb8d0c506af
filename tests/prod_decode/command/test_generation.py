"""The main job on the real model: the command, and the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import demo
from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.cli import main
from prod_decode.storage.models import in_hub_format

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("block")
    (folder / "phrases.txt").write_text("pickle.load(\n")
    assert main(["compile", str(folder / "phrases.txt"), "-o", str(folder / "block.prod")]) == 0
    return str(folder / "block.prod")


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundled model in the hub's format, which loads in 1 s instead of 7."""
    return in_hub_format("bundled", tmp_path_factory.mktemp("bundled") / "model", dtype="float32")


PROMPT = 'import pickle\n\nwith open("data.pkl", "rb") as f:\n    data = pickle.'


def test_generate_shows_where_it_stepped_in(block: str, bundled: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["generate", "--model", bundled, "--blocklist", block, "--prompt", PROMPT, "--max-new-tokens", "4"]
    assert main([*base, "--json", "--compare"]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert [match["entry_id"] for match in runs["unprotected"]["matches"]] == ["pickle.load("]
    assert runs["protected"]["matches"] == []
    assert runs["protected"]["fired"]["pickle.load("] >= 1
    first = runs["protected"]["bans"][0]
    assert "pickle.load(" in (PROMPT + runs["unprotected"]["output"])
    assert first["entries"] == ["pickle.load("]
    assert main(base) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{PROMPT}{runs['protected']['output']}\n"
    assert "pickle.load(: stepped in" in printed.err
    assert main([*base[:-3], "x = 1\ny =", "--max-new-tokens", "2"]) == 0
    assert "no entry of the blocklist stepped in\n" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_the_demo_shows_what_it_promises(bundled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the real model, in small."""
    small = {"max-new-tokens": 4, "functions": 1, "held-out": 2, "longest": 160}
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    assert demo.main(["--model", bundled, *words, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for column in ("Banned:", "With replacement:"):
        assert f"{column:18}0 prohibited places" in printed
    page = (tmp_path / "index.html").read_text()
    assert page.count("<section>") == len(demo.cases()) + 1
    table = {line[:28].strip(): line[28:].split() for line in printed.splitlines()}
    assert table["masked at decode time"][0] == table["both"][0] == "0.00"
    assert float(table["taught (base)"][1]) > 0.8
    assert float(table["unlearned with prod-train"][1]) < 0.5
    assert '<mark class="prohibited">load(</mark>' in page
    assert '<del class="refused">load</del><ins class="instead">safe</ins>_load(' in page
    assert '<ins class="instead">sha</ins>256' in page
    assert ">yaml.load(</text>" in (tmp_path / "before-after.svg").read_text()
    assert Blocklist.load(tmp_path / "demo.prod").report.phrases == len(demo.PHRASES)
