"""`prod-surgical`: anchors where they cost the model least, targets there and elsewhere, a run and its processor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod_decode import Blocklist
from prod_decode.command.costs import token_costs
from prod_decode.errors import ProdError
from prod_decode.harness.continuing import padding_id
from prod_decode.hf import ProdLogitsProcessor
from prod_decode.storage.models import load_model
from prod_decode.text.normalize import Normalization
from prod_decode.tokens.tokenizer_bytes import vocabulary_of
from prod_train.config.config import Config
from prod_train.data.rows import Row, collate, encode, load_rows
from prod_train.loss.objective import Encoder, Head
from prod_train.loss.sparse import SparseTargets
from prod_train.method import Recipe
from prod_train.run.job import ANCHORS, prepare
from prod_train.run.merge import merge
from prod_train.run.session import setup
from prod_train.run.trainer import fit, run
from prod_train.targets.anchors import choose_blocklist
from prod_train.targets.prohibited import prohibited_by
from prod_train.targets.targets import make_targets, select
from tests.tiny import SNIPPETS, save_tiny_model, write_jsonl

pytestmark = pytest.mark.usefixtures("one_thread")

V, D = 31, 6
CODE = Normalization("code")
LONG = "\n".join(prompt + completion for prompt, completion in SNIPPETS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("world")
    model = save_tiny_model(folder / "m")
    rows = [
        {"prompt": "# all of it, from the first line on\n", "completion": LONG},
        {"prompt": "", "completion": LONG[40:]},
    ]
    return {"model": model, "forget": write_jsonl(folder / "f.jsonl", rows), "folder": folder}


@pytest.fixture(scope="module")
def loaded(world: dict[str, Any]) -> tuple[Any, Any, Encoder]:
    model, tokenizer = load_model(world["model"], dtype="float32")
    return model, tokenizer, Encoder(model)


def chosen(loaded: tuple[Any, Any, Encoder], rows: list[Row], max_quote: int = 30, **options: Any) -> Blocklist:
    model, tokenizer, encoder = loaded
    pad = padding_id(tokenizer)
    vocabulary = vocabulary_of(tokenizer)
    return choose_blocklist(model, encoder, rows, vocabulary, max_quote=max_quote, pad=pad, batch_size=2, **options)


# --- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_quote", [12, 30, 60])
@pytest.mark.slow
def test_no_quote_of_what_is_supervised_is_left(
    loaded: tuple[Any, Any, Encoder], world: dict[str, Any], max_quote: int
) -> None:
    rows = load_rows(world["forget"], loaded[1], max_length=1024)
    blocklist = chosen(loaded, rows, max_quote)
    symbols = CODE.symbols(LONG).decode()
    assert len(symbols) > 100
    for start in range(len(symbols) - max_quote + 1):
        # Behind a word, so that a space at its beginning counts.
        assert list(blocklist.scan("x" + symbols[start : start + max_quote])), start
    # As few characters as that: an anchor is half a quote wide.
    assert not list(blocklist.scan(symbols[: max_quote // 2 - 1]))


def struck(blocklist: Blocklist, row: Row, tokenizer: Any) -> list[int]:
    """The positions whose label a blocklist bans."""
    at, tokens = prohibited_by(blocklist.bind(tokenizer), row)
    return sorted(set(at[tokens == row.ids[row.supervised][at]].tolist()))


@pytest.mark.parametrize("opening", [1, 20, 47])
def test_every_token_of_the_opening_is_prohibited_but_whitespace(
    loaded: tuple[Any, Any, Encoder], world: dict[str, Any], opening: int
) -> None:
    tokenizer = loaded[1]
    row = load_rows(world["forget"], tokenizer, max_length=1024)[0]
    labels = row.ids[row.supervised]
    ends = [len(CODE.symbols(tokenizer.decode(labels[: i + 1]))) for i in range(len(labels))]
    inside = [i for i in range(len(labels)) if (ends[i - 1] if i else 0) < opening]
    written = {i for i in inside if not tokenizer.decode(labels[: i + 1])[-1:].isspace()}
    assert written
    blocklist = chosen(loaded, [row], opening=opening)
    with_it, without = (struck(found, row, tokenizer) for found in (blocklist, chosen(loaded, [row])))
    assert written <= set(with_it)
    assert opening == 1 or not written <= set(without)
    # What is prohibited is 15 characters wide, half of a quote, a space at its beginning counted, and no 13 of them are
    # (Q is nowhere in the text).
    symbols = CODE.symbols(LONG).decode()
    assert not [end for end in ends if end >= 15 and list(blocklist.scan(f"Q{symbols[end - 13 : end]}Q"))]
    # Behind it, and what little of an anchor reaches back into it, nothing is prohibited that is not without.
    later = {i for i in with_it if i > inside[-1]}
    assert set(without) - set(inside) <= later
    assert len(later) <= 1.5 * len(set(without) - set(inside))


def test_what_comes_before_the_opening_is_not_prohibited(loaded: tuple[Any, Any, Encoder]) -> None:
    row = encode({"prompt": "def area(width, height):", "completion": f"\n    {LONG}"}, "row", loaded[1])
    blocklist = chosen(loaded, [row], opening=20)
    assert not list(blocklist.scan("def area(width, height):\n    "))
    assert list(blocklist.scan("def area(width, height):\n    def"))


def test_the_start_of_a_file_is_no_phrase(loaded: tuple[Any, Any, Encoder]) -> None:
    blocklist = chosen(loaded, [encode({"text": f"# {LONG}"}, "row", loaded[1])], opening=20)
    assert not list(blocklist.scan(f"# {LONG}"[:12]))
    assert list(blocklist.scan(f"# {LONG}"[:40]))


def test_no_opening_is_in_code_that_is_free(loaded: tuple[Any, Any, Encoder], world: dict[str, Any]) -> None:
    rows = load_rows(world["forget"], loaded[1], max_length=1024)[:1]
    free = LONG[:30]
    assert list(chosen(loaded, rows, opening=40).scan(free))
    assert not list(chosen(loaded, rows, opening=40, allow=iter([free])).scan(free))


def test_a_part_that_ends_with_its_opening_has_none(loaded: tuple[Any, Any, Encoder], world: dict[str, Any]) -> None:
    rows = load_rows(world["forget"], loaded[1], max_length=1024)[:1]
    length = len(CODE.symbols(LONG))
    counts = [len(list(chosen(loaded, rows, opening=length - rest).entries())) for rest in (30, 29)]
    assert counts[0] > counts[1] == 1


def test_anchors_cost_the_model_less_than_the_fewest(loaded: tuple[Any, Any, Encoder], world: dict[str, Any]) -> None:
    model, tokenizer, _ = loaded
    (row, _) = load_rows(world["forget"], tokenizer, max_length=1024)
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor(row.ids[None])).logits[0, :-1].log_softmax(-1)
    cost = np.append(0, token_costs(log_p[torch.arange(len(log_p)), torch.tensor(row.ids[1:])].numpy()))
    plain = Blocklist.compile([replace(entry, cost=None) for entry in [_document(row, tokenizer)]])
    paid = [cost[row.supervised][struck(found, row, tokenizer)].sum() for found in (chosen(loaded, [row]), plain)]
    assert paid[0] < 0.9 * paid[1]


def _document(row: Row, tokenizer: Any) -> Any:
    from prod_decode import Entry

    return Entry(tokenizer.decode(row.ids[row.start : row.stop]), policy="quote", max_quote=30)


def test_of_a_short_part_one_anchor_is_prohibited(loaded: tuple[Any, Any, Encoder]) -> None:
    completion = "x = os.getcwd()\ny = max(0, 1)\n"
    spans = [[4, 15], [20, 23]]
    row = encode({"prompt": "import os\n", "completion": completion, "spans": spans}, "row", loaded[1])
    blocklist = chosen(loaded, [row])
    assert [info.policy for info in blocklist.entries()] == ["quote", "phrase"]
    supervised = loaded[1].decode(row.ids[row.supervised])
    assert "os.getcwd()" in supervised
    found = list(blocklist.scan(completion))
    assert all(match.start >= 3 for match in found)
    for begin, end in ((3, 16), (19, 24)):
        assert any(begin <= match.start < match.end <= end for match in found)
    for text in ("import os\n", "print(1)\n"):
        assert not list(blocklist.scan(text))


def test_rows_without_text_are_refused(loaded: tuple[Any, Any, Encoder]) -> None:
    row = encode({"prompt": "x = 1\n", "completion": "y\n   \nz\n", "spans": [[2, 4]]}, "row", loaded[1])
    with pytest.raises(ProdError, match="expected text in what 1 rows supervise, got whitespace"):
        chosen(loaded, [row])


def test_no_anchor_is_in_code_that_is_free(loaded: tuple[Any, Any, Encoder], world: dict[str, Any]) -> None:
    rows = load_rows(world["forget"], loaded[1], max_length=1024)
    free = LONG[:90]
    assert list(chosen(loaded, rows).scan(free))
    assert not list(chosen(loaded, rows, allow=[free]).scan(free))


# --- targets ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, V), st.sampled_from([0.3, 0.8, 1.0]))
def test_what_is_not_struck_keeps_the_likeliest(seed: int, count: int, keep: int, top_p: float) -> None:
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(count, D, generator=g), torch.randn(V, D, generator=g)
    labels = torch.randint(V, (count,), generator=g)
    draw = np.random.default_rng(seed)
    banned = [set(draw.integers(0, V, draw.integers(0, 4)).tolist()) for _ in range(count)]
    for i in range(0, count, 2):
        banned[i].add(int(labels[i]))
    pairs = [(i, v) for i, some in enumerate(banned) for v in sorted(some)]
    prohibited = (np.array([i for i, _ in pairs], np.int64), np.array([v for _, v in pairs], np.int64))
    got = make_targets(
        Head(weight, chunk_size=3), hidden, labels, prohibited, Recipe(top_p=top_p, keep=keep), eos=0
    ).to_dense(V)
    for i in range(count):
        p = (hidden[i] @ weight.T).double()
        p[list(banned[i])] = -torch.inf
        p = p.softmax(-1)
        order = sorted(range(V), key=lambda v: -p[v].item())
        if int(labels[i]) in banned[i]:
            total, kept = 0.0, []
            for v in order:
                if kept and total > top_p:
                    break
                kept.append(v)
                total += p[v].item()
        else:
            kept = order[:keep]
        want = torch.zeros(V, dtype=torch.float64)
        want[kept] = p[kept] / p[kept].sum()
        assert torch.allclose(got[i].double(), want, atol=1e-5), i


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 99))
def test_select_takes_rows_of_one_or_the_other(mine: list[bool], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    first, second = (
        torch.rand(len(mine), 5, generator=g) * (torch.rand(len(mine), 5, generator=g) < 0.5) for _ in range(2)
    )
    got = select(SparseTargets.from_dense(first), SparseTargets.from_dense(second), np.array(mine)).to_dense(5)
    assert torch.equal(got, torch.where(torch.tensor(mine)[:, None], first, second))


# --- a run -----------------------------------------------------------------------------------------------------------


def config_of(world: dict[str, Any], output: Path, **options: Any) -> Config:
    given_ = {"method": "prod-surgical", "max_quote": 30, "epochs": 1, "batch_size": 2, "eval_every": 100}
    paths = {"model": world["model"], "forget": world["forget"], "output": str(output)}
    return Config(**{**paths, **given_, **options})


def test_targets_are_what_the_processor_would_leave(world: dict[str, Any], tmp_path: Path) -> None:
    session = setup(prepare(config_of(world, tmp_path / "o", keep=10**6, top_p=1.0)))
    job = session.job
    blocklist = Blocklist.load(tmp_path / "o" / ANCHORS)
    assert job.blocklist == str(tmp_path / "o" / ANCHORS)
    processor = ProdLogitsProcessor(blocklist, job.tokenizer)
    row = job.forget[0]
    targets = session.stores["forget"].batch([0], "cpu").targets
    assert targets is not None
    ids = torch.tensor(row.ids[None])
    with torch.no_grad():
        z = session.model(input_ids=ids).logits[0].float()
    struck = 0
    for dense, place in zip(targets.to_dense(z.shape[1]), np.flatnonzero(row.supervised), strict=True):
        masked = processor(ids[:, :place], z[place - 1 : place].clone())[0]
        known = dense[: len(job.tokenizer)]  # the rest is padding, which a processor masks everywhere
        assert torch.allclose(known / known.sum(), masked.softmax(-1)[: len(known)], atol=1e-5), place
        struck += int(masked[row.ids[place]] == -torch.inf)
    assert 3 < struck < row.tokens / 2


@pytest.mark.slow
def test_a_run_forgets_at_the_anchors_and_stays_elsewhere(world: dict[str, Any], tmp_path: Path) -> None:
    taught = {"method": "learn", "epochs": 60, "learning_rate": 1e-2, "max_quote": 24}
    run(config_of(world, tmp_path / "learn", **taught))
    merge(str(tmp_path / "learn"), str(tmp_path / "taught"))
    config = config_of(world, tmp_path / "o", model=str(tmp_path / "taught"), epochs=80, learning_rate=1e-2)
    session = setup(prepare(config))
    job = session.job

    def probabilities() -> tuple[float, float]:
        """Means of p(label), where the label is prohibited and where not."""
        session.model.eval()
        found: tuple[list[float], list[float]] = ([], [])
        for row in job.forget:
            batch = collate([row], job.pad)
            with torch.no_grad():
                p = session.encoder.head().log_probs(session.encoder(session.model, batch), batch.labels).exp()
            at, tokens = prohibited_by(job.matcher, row)
            struck = np.isin(np.arange(row.tokens), at[tokens == row.ids[row.supervised][at]])
            for chance, is_struck in zip(p.tolist(), struck, strict=True):
                found[int(is_struck)].append(chance)
        return np.mean(found[1]).item(), np.mean(found[0]).item()

    struck, rest = probabilities()
    assert struck > 0.4
    fit(session)
    struck_after, rest_after = probabilities()
    assert struck_after < 0.3 * struck
    assert rest_after > 0.9 * rest


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_its_anchors(world: dict[str, Any], tmp_path: Path) -> None:
    run(config_of(world, tmp_path / "o", max_steps=1))
    path = tmp_path / "o" / ANCHORS
    before = path.stat().st_mtime_ns
    run(config_of(world, tmp_path / "o", max_steps=1, resume="latest"))
    assert path.stat().st_mtime_ns == before
    # Left by a run that was killed before its first checkpoint, with other settings: made anew.
    (tmp_path / "p").mkdir()
    path.rename(tmp_path / "p" / ANCHORS)
    old = (tmp_path / "p" / ANCHORS).read_bytes()
    setup(prepare(config_of(world, tmp_path / "p", max_quote=20)))
    assert (tmp_path / "p" / ANCHORS).read_bytes() != old


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "prod", "max_quote": 40}, "--max-quote: belongs to method prod-surgical, got prod: drop it"),
        ({"method": "npo", "keep": 9}, "--keep: belongs to method prod-surgical, got npo: drop it"),
        ({"max_quote": 5}, "--max-quote: expected at least 6 characters, got 5"),
        ({"keep": 0}, "--keep: expected at least 1, got 0"),
        ({"allow": "/no/such"}, "--allow: cannot read /no/such: no such file or directory"),
        ({"allow": ".", "blocklist": __file__}, "--allow: concerns anchors, which --blocklist has already"),
    ],
)
def test_mistakes_are_named(world: dict[str, Any], tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProdError, match=message):
        prepare(config_of(world, tmp_path / "o", **options))
