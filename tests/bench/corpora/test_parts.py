"""The parts of `bench corpora` on little code: what they count, against the definition, and what the command writes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bench.__main__ import main
from bench.corpora import chance, random_anchors
from bench.corpora.random_anchors import index_of_random, keys_of
from bench.corpora.walks import some_of, tokens_of
from prod_decode.corpus.keys import LOOK_AHEAD, Cut
from prod_decode.corpus.table import part_of
from prod_decode.corpus.tracker import BoundAnchors
from prod_decode.corpus.winnow import Winnower
from prod_decode.indexing.build import build
from prod_decode.indexing.engines import Local
from prod_decode.indexing.steps import Recipe
from prod_decode.storage.models import load_tokenizer
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.tokenizer_bytes import vocabulary_of
from prod_decode.tokens.vocabulary import Vocabulary
from tests.prod_decode.corpus.corpora import cut_of, index_of

WORDS = ("alpha", "beta", "gamma", "delta", "omega", "value", "index", "name")


def code(seed: int, lines: int) -> str:
    draw = random.Random(seed)
    words = [f"{draw.choice(WORDS)}_{draw.randrange(999)} = {draw.choice(WORDS)}" for _ in range(lines)]
    return "".join(f"{word}({draw.randrange(10**6)}, '{draw.random()}')\n" for word in words)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer of bytes and what they are merged to, which is all that is asked of a model here."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    backend.train_from_iterator([code(7, 100)], trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_anchors, "_PIECE", 1000)


def test_random_keys_ascend_over_pieces_and_all_of_their_bits_are_random(small_pieces: None) -> None:
    pieces = list(keys_of(20_000, 0))
    keys = np.concatenate(pieces)
    assert len(pieces) == 32
    assert len(keys) == 20_000
    assert (keys[1:] > keys[:-1]).all()
    ones = np.array([((keys >> np.uint64(bit)) & np.uint64(1)).mean() for bit in range(64)])
    assert abs(ones - 0.5).max() < 0.02  # 6 deviations


@pytest.mark.parametrize("bits", [None, 3])
def test_a_table_of_random_anchors_is_one_that_an_index_has(
    small_pieces: None, tmp_path: Path, bits: int | None
) -> None:
    index = index_of_random(20_000, tmp_path, bits=bits)
    assert list(tmp_path.iterdir()) == []
    assert index.table.is_laid_out()
    assert index.table.is_sorted()
    assert index.table.bits == (bits or 11)
    search = index.table.search
    for at, key in enumerate(np.concatenate(list(keys_of(20_000, 0))).tolist()[::977]):
        low, high = part_of(*search, np.uint64(key))
        assert low <= at * 977 < high
    index.save(tmp_path / "a.pidx")
    assert type(index).load(tmp_path / "a.pidx", verify=True).table.suffixes.tolist() == index.table.suffixes.tolist()


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(0, 0, 3.689), (1, 0.0253, 5.572), (10, 4.795, 18.39), (400, 361.8, 441.2), (1_000_000, 998_040, 1_001_960)],
)
def test_intervals_of_counts(count: int, low: float, high: float) -> None:
    """From tables of Garwood's intervals."""
    assert chance.poisson(count) == pytest.approx((low, high), rel=1e-3)


@pytest.mark.parametrize("bits", [None, 2])
def test_prefixes_that_texts_hit_by_chance(model: str, bits: int | None) -> None:
    vocabulary = vocabulary_of(load_tokenizer(model))
    index = index_of_random(50_000, bits=bits)
    tokens = tokens_of(load_tokenizer(model), [code(0, 60)], 1500)
    looks, hits = chance.prefixes_hit(index, vocabulary, tokens)
    symbols = np.frombuffer(index.cut.normalization.symbols(vocabulary.decode(tokens.tolist())), np.uint8)
    cut = index.cut
    keys = Winnower(cut._replace(width=cut.prefix)).identities(symbols)
    parts = [part_of(*index.table.search, key) for key in keys]
    assert looks == len(symbols) - cut.prefix + 1
    assert hits == sum(high - low for low, high in parts)
    if bits:
        assert hits == pytest.approx(looks * 50_000 / 4 / 2**16, rel=0.2)


@pytest.mark.slow
def test_runs_that_tokens_begin_with(model: str) -> None:
    vocabulary = vocabulary_of(load_tokenizer(model))
    bound = BoundAnchors(index_of_random(100), (np.zeros(0, np.uint32), np.zeros(0, np.uint32)), vocabulary)
    wanted = []
    for state in range(4):
        texts = [bound.symbols(state, token).tobytes() for token in range(len(vocabulary))]
        texts += [text for text in vocabulary.shown.values() if text]  # special ones are in the tries as they are shown
        wanted.append(len({text[:end] for text in texts for end in range(1, min(len(text), LOOK_AHEAD) + 1)}))
    found = chance.runs_of(bound)
    assert found[:3] == wanted[:3]
    assert chance.rates_of(bound).tolist() == pytest.approx([100 / 8 / 2**16 * runs / 2**32 for runs in found])


@pytest.mark.slow
def test_steps_with_a_ban_are_counted() -> None:
    document, cut = code(1, 40), cut_of()
    vocabulary = Vocabulary.from_bytes([bytes([i]) for i in range(128)])
    index = index_of([document], cut)
    bound = BoundAnchors(index, (index.even[:, 0], index.even[:, 1]), vocabulary)
    text = np.frombuffer(document.encode(), np.uint8).astype(np.int64)
    anchors = len(index.find(np.frombuffer(cut.normalization.symbols(document), np.uint8)))
    steps, events, expected, pairs = chance.banned_runs(bound, np.tile(text, 64))
    # Every anchor of the document is what one more symbol completes, and white space before it asks again.
    assert anchors * 64 <= events <= pairs
    assert events < 3 * anchors * 64
    assert expected < 1
    assert steps == 64 * (len(text) - _ready(document))


def _ready(document: str) -> int:
    """How many tokens there are before a text has a prefix and what may stand behind it."""
    cut = cut_of()
    return next(n for n in range(len(document)) if len(cut.normalization.symbols(document[: n + 1])) >= cut.width)


def test_some_files_from_all_over() -> None:
    files = [(Path(f"{n}.py"), "x" * 10) for n in range(100)]
    kept = [int(path.stem) for path, _ in some_of(files, 200)]
    assert 19 <= len(kept) <= 20
    assert max(np.diff(sorted(kept))) <= 6
    assert some_of(files, 10_000) == files


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("code")
    shared = code(99, 8)
    for number in range(8):
        package = root / "theirs" / f"package{number}"
        package.mkdir(parents=True)
        (package / "a.py").write_text(shared + code(number, 40))
    (root / "ours").mkdir()
    for number in range(3):
        copied = shared if number == 0 else code(2, 40)[200:900] if number == 1 else ""
        (root / "ours" / f"{number}.py").write_text(code(50 + number, 30) + copied)
    return str(root / "theirs"), str(root / "ours")


def run(
    part: str, model: str, folders: tuple[str, str], out: Path, *more: str
) -> dict[tuple[str, str], dict[str, Any]]:
    corpus, ours = folders
    corpora = [corpus] if part in ("peers", "common", "largest", "scan") else []
    few = ["--steps", "40", "--written", "1", "--tokens", "900", "--anchors", "5000", "--tokenizer", model]
    assert main(["corpora", part, ours, *corpora, *few, "--work", str(out.parent), "--json", str(out), *more]) == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(record["machine"] for record in records)
    return {(record["guard"], record["what"]): record for record in records}


@pytest.mark.slow
def test_what_is_common_and_what_is_copied(model: str, folders: tuple[str, str], tmp_path: Path) -> None:
    found = run("common", model, folders, tmp_path / "out.jsonl", "--settings", "0,20,5")
    banned = {n: found[f"--common {n}", "steps banned"] for n in (0, 5, 20)}
    assert banned[0]["value"] == banned[20]["value"] > banned[5]["value"] > 0
    assert "in 2 of 3 files" in banned[0]["note"]
    # Everything that is banned was copied.
    assert all(found[f"--common {n}", "anchors found that stand in the corpus"]["value"] == 1 for n in (0, 5, 20))
    assert found["--common 5", "windows waived"]["value"] > 0 == found["--common 0", "windows waived"]["value"]


@pytest.mark.slow
def test_guards_side_by_side(model: str, folders: tuple[str, str], tmp_path: Path) -> None:
    found = run("peers", model, folders, tmp_path / "out.jsonl")
    values = {key: record["value"] for key, record in found.items()}
    guards = {guard for guard, _ in values} - {"all"}
    assert len(guards) == 8
    for guard in guards:
        assert values[guard, "bytes a symbol"] > 0
        assert {values[guard, f"mask and advance, a token, B={rows}"] > 0 for rows in (1, 16, 64)} == {True}
    for guard, most in (("index, K=150", 149), ("index, K=99", 98), ("automaton, K=150", 149)):
        assert values[guard, "longest run written, as it is"] <= most
        assert values[guard, "longest run written, other layout"] <= most
        assert values[guard, "own token banned, no copy"] == 0


@pytest.mark.slow
def test_large_and_random_ones(model: str, folders: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    found = run("largest", model, folders, tmp_path / "a" / "out.jsonl")
    assert len({guard for guard, _ in found}) == 1
    assert any(what == "work folder after reading" for _, what in found)
    (tmp_path / "b").mkdir()
    found = run("billion", model, folders, tmp_path / "b" / "out.jsonl")
    assert found["5,000 anchors", "file"]["value"] > 6 * 5_000
    (tmp_path / "c").mkdir()
    found = run("chance", model, folders, tmp_path / "c" / "out.jsonl")
    assert len({guard for guard, _ in found}) == 2


def test_a_scan_by_itself(model: str, folders: tuple[str, str], tmp_path: Path) -> None:
    recipe = Recipe(Cut.of(150, None, Normalization(), bytes(16)))
    index = build([folders[0]], tmp_path / "a.pidx", recipe, Local(1))
    (tmp_path / "out").mkdir()
    found = run("scan", model, (str(tmp_path / "a.pidx"), folders[1]), tmp_path / "out" / "out.jsonl")
    guard = f"{len(index)} anchors"
    assert [what for _, what in found] == ["scan", "normalise", "look up what can be an anchor", "look up every run"]
    assert all(record["value"] > 0 for record in found.values())
    assert int(found[guard, "scan"]["note"].split()[0]) >= 2


def test_a_mistake_is_one_line(folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpora", "common", folders[1]]) == 2
    assert "expected the corpus of `common` behind CODE, got none" in capsys.readouterr().err
    assert main(["corpora", "common", *reversed(folders), "--settings", "0,x"]) == 2
    assert "--settings: expected numbers such as 0,20, got '0,x'" in capsys.readouterr().err
    assert main(["corpora", "scan", folders[1]]) == 2
    assert "expected the corpus of `scan` behind CODE, got none: name indices" in capsys.readouterr().err
    assert main(["corpora", "chance", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench corpora: expected Python files below ")
    assert error.count("\n") == 1
