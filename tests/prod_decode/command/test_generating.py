"""`generate` with a tiny model: what it says of what happened, as its JSON, and in the audit log."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prod_decode import Blocklist, Entry, Hit
from prod_decode.cli import main
from prod_decode.command.generation import Generation
from prod_decode.tokens.vocabulary import Vocabulary
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Letters that may not come: a random model wants one at nearly every step."""
    folder = tmp_path_factory.mktemp("world")
    entries = [Entry(letter, boundary="none", source="letters", license="MIT") for letter in "abcdfghijklmnp"]
    Blocklist.compile(entries, allow_short=True).save(folder / "block.prod")
    model = save_tiny_model(folder / "model")
    return ["generate", "--model", model, "--blocklist", str(folder / "block.prod"), "--max-new-tokens", "30"]


def test_the_audit_log_has_what_json_says(world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "hits.jsonl"
    command = [*world, "--prompt", "x = ", "--temperature", "1", "--audit-log", str(log)]
    assert main([*command, "--json", "--audit-text"]) == 0
    (run,) = json.loads(capsys.readouterr().out).values()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [{key: line[key] for key in line if key not in ("time", "pid")} for line in lines] == run["hits"]
    assert run["hits"]
    assert {(hit["source"], hit["license"], hit["kind"]) for hit in run["hits"]} == {("letters", "MIT", "banned")}
    assert Counter(hit["entry"] for hit in run["hits"] if hit["likeliest"]) == run["fired"]
    beside = {hit["position"]: hit["mass"] for hit in run["hits"] if not hit["likeliest"]}
    assert run["banned_beside"] == {"steps": len(beside), "mass": pytest.approx(sum(beside.values()), abs=1e-4)}
    assert min(beside.values()) >= 0.01
    assert run["ended_by_force"] is False
    # The same for a person; the second run is written behind the first.
    assert main(command) == 0
    told = capsys.readouterr().err
    total = sum(beside.values())
    assert (
        f"banned although the likeliest token was allowed: {total:.2f} of probability in all, at {len(beside)} more"
        in told
    )
    again = [json.loads(line) for line in log.read_text().splitlines()]
    assert again[: len(lines)] == lines
    assert len(again) == 2 * len(lines)
    assert not {"text", "token_id"} & again[-1].keys()


def test_what_the_prompt_quotes_may_be_exempted(
    world: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def generate(*_: object, **options: Any) -> Generation:
        asked.append(options)
        return Generation("x", ["y"], [None], Counter(), 1.0)

    monkeypatch.setattr("prod_decode.command.generation.generate", generate)
    for more, expected in (([], False), (["--exempt-prompt"], True)):
        assert main([*world, "--prompt", "x", *more]) == 0
        assert asked[-1]["exempt_prompt"] is expected
        assert asked[-1]["on_hit"] is None


def ban(position: int, mass: float, likeliest: bool, entry: str = "a") -> Hit:
    return Hit(0, position, "banned", entry, probability=mass, mass=mass, likeliest=likeliest)


def quote(kind: Any, characters: int) -> Hit:
    return Hit(0, characters, kind, "d", characters=characters, budget=240)


@pytest.mark.parametrize(
    ("hits", "fired", "told"),
    [
        ([], {}, ["no entry of the blocklist stepped in"]),
        (
            [ban(3, 0.25, False), ban(3, 0.25, False, "b"), ban(5, 0.5, False)],
            {},
            ["banned although the likeliest token was allowed: 0.75 of probability in all, at 2 steps"],
        ),
        (
            [ban(3, 0.75, True), ban(4, 0.25, False)],
            {"a": 1},
            [
                "a: stepped in 1 time",
                "banned although the likeliest token was allowed: 0.25 of probability in all, at 1 more step",
            ],
        ),
        (
            [quote("quoted", 24), quote("quoted", 244), quote("budget reached", 244)],
            {},
            ["d: quoted 244 characters, of a budget of 240, which is reached"],
        ),
        ([quote("quoted", 24)], {}, ["d: quoted 24 characters, of a budget of 240"]),
        ([Hit(0, 9, "exempted", "d")] * 2, {}, ["d: let through 2 times, since the prompt quotes it"]),
        ([Hit(0, 9, "ended")], {}, ["ended by force: every token was banned"]),
    ],
)
def test_what_a_person_is_told(
    world: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hits: list[Hit],
    fired: dict[str, int],
    told: list[str],
) -> None:
    run = Generation("x", ["y"], [None], Counter(fired), 1.0, tuple(hits))
    monkeypatch.setattr("prod_decode.command.generation.generate", lambda *_, **__: run)
    monkeypatch.setattr("prod_decode.storage.models.load_model", lambda *_, **__: (None, Vocabulary.from_bytes([b"a"])))
    monkeypatch.setattr("prod_decode.storage.models.require_name", lambda _: None)
    assert main([*world, "--prompt", "x"]) == 0
    assert capsys.readouterr().err.splitlines() == [*told, "1.0 tokens a second"]
    assert main([*world, "--prompt", "x", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["protected"]
    assert shown["ended_by_force"] is any(hit.kind == "ended" for hit in hits)
    assert [hit["kind"] for hit in shown["hits"]] == [hit.kind for hit in hits]


def test_mistakes_are_told_before_the_model_is_loaded(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.jsonl").write_text('{"text": "yaml.load("}\n')
    no_model = [*world[:2], "/no/such/model", *world[3:]]
    assert main([*world, "--prompt", "x", "--audit-log", str(tmp_path / "list.jsonl")]) == 2
    assert "it is there and is no audit log; name another, or remove it first" in capsys.readouterr().err
    assert main([*no_model, "--prompt", "x", "--audit-text"]) == 2
    assert capsys.readouterr().err.startswith("no effect: --audit-text: it is for --audit-log FILE\n")
    # A run that fails leaves a log that another may write.
    assert main([*no_model, "--prompt", "x", "--audit-log", str(tmp_path / "hits.jsonl")]) == 2
    assert not (tmp_path / "hits.jsonl").exists()
