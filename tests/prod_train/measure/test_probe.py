"""`prod_train.measure.probe`: every number of a row against one token at a time, one row at a time."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.storage.models import load_model
from prod_decode.text.normalize import Normalization
from prod_train.data.rows import Row, encode
from prod_train.loss.objective import Encoder
from prod_train.measure.probe import Probed, likeliest, probe
from tests.oracle import normalize_text
from tests.tiny import SNIPPETS, save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model, and rows of which it wrote some itself: all of one, and of another all but the first tokens."""
    model, tokenizer = load_model(save_tiny_model(tmp_path_factory.mktemp("m"), vocab_size=266), dtype="float32")
    world = SimpleNamespace(model=model, tokenizer=tokenizer, encoder=Encoder(model))
    rows = [encode({"prompt": p, "completion": c}, f"s:{n}", tokenizer) for n, (p, c) in enumerate(SNIPPETS)]
    rows.append(encode({"prompt": "f(", "completion": "1)\n"}, "short", tokenizer))
    prompt = rows[2].ids[: rows[2].start].tolist()
    own = forced(rows[2], greedy(world, prompt, 60), len(prompt))
    begun = rows[2].ids[: rows[2].start + 9].tolist()
    late = forced(rows[2], greedy(world, begun, 30), len(prompt))
    world.rows = [*rows, own, late]
    world.own, world.late = len(rows), len(rows) + 1
    return world


def forced(row: Row, ids: list[int], start: int) -> Row:
    return replace(row, ids=np.array(ids), supervised=np.arange(len(ids)) >= start, has_eos=False, place="own")


def greedy(world: Any, ids: Any, count: int) -> list[int]:
    """Without a cache or padding."""
    ids = list(ids)
    for _ in range(count):
        token = int(world.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token == world.tokenizer.eos_token_id:
            break
        ids.append(token)
    return ids


def plain(text: str) -> str:
    return normalize_text(text, Normalization("code"))


def longest_in(text: str, other: str) -> int:
    """The longest run, by trying every one."""
    return max(
        (size for at in range(len(text)) for size in range(1, len(text) - at + 1) if text[at : at + size] in other),
        default=0,
    )


def answers_of(world: Any, row: Row) -> list[tuple[float, str, str, int, int, bool, float]]:
    found = []
    for given in (0.0, 0.25, 0.5):
        at = row.start + int(given * (row.stop - row.start))
        truth = row.ids[at : row.stop].tolist()
        written = greedy(world, row.ids[:at], len(truth))[at:]
        a, b = plain(world.tokenizer.decode(truth)), plain(world.tokenizer.decode(written))
        if len(truth) < 2 or len(a) < 2:
            continue
        run = longest_in(a, b)
        right = [i < len(written) and written[i] == token for i, token in enumerate(truth)]
        texts = world.tokenizer.decode(truth), world.tokenizer.decode(written)
        found.append((given, *texts, run, len(a), run >= min(60, len(a)), sum(right) / len(right)))
    return found


def plainly(one: Probed) -> list[tuple[float, str, str, int, int, bool, float]]:
    return [(a.given, a.truth, a.written, a.run, a.size, a.verbatim, pytest.approx(a.recitation)) for a in one.answers]


@pytest.mark.slow
def test_every_answer_is_greedy_decoding(tiny: Any) -> None:
    found = probe(tiny.model, tiny.encoder, tiny.tokenizer, tiny.rows, batch_size=4)
    assert [one.row for one in found] == tiny.rows
    for one in found:
        assert plainly(one) == answers_of(tiny, one.row)
    assert [number for number, one in enumerate(found) if one.recites] == [tiny.own]
    assert [answer.verbatim for answer in found[tiny.late].answers] == [False, True, True]
    assert found[tiny.own].answers[0].recitation == 1
    # Too little follows half of `1)`.
    assert {len(one.answers) for one in found} == {2, 3}


@pytest.mark.slow
def test_what_is_likely_is_read_with_the_true_text_before(tiny: Any) -> None:
    found = probe(tiny.model, tiny.encoder, tiny.tokenizer, tiny.rows, batch_size=3)
    for one in found:
        row = one.row
        p = tiny.model(torch.from_numpy(row.ids)[None]).logits[0].softmax(-1)
        at = range(row.start, row.stop)
        assert one.probability == pytest.approx(np.mean([p[t - 1, row.ids[t]].item() for t in at]), rel=1e-4)
        hits = [p[t - 1].argmax().item() == row.ids[t] for t in at]
        assert one.exact_memorisation == pytest.approx(np.mean(hits))
    # The shortest beginning after which it writes all of the rest.
    for number in (tiny.own, tiny.late, 2):
        row = tiny.rows[number]
        size = row.stop - row.start
        needed = next(
            k
            for k in range(size + 1)
            if greedy(tiny, row.ids[: row.start + k], size - k) == row.ids[: row.stop].tolist()
        )
        assert found[number].extraction_strength == pytest.approx(1 - needed / size)
    assert found[tiny.own].extraction_strength == 1
    assert 0.5 < found[tiny.late].extraction_strength < 1


@pytest.mark.slow
def test_batches_and_their_order_change_nothing(tiny: Any) -> None:
    shares: list[float] = []
    one = probe(tiny.model, tiny.encoder, tiny.tokenizer, tiny.rows, batch_size=1, tell=shares.append)
    other = probe(tiny.model, tiny.encoder, tiny.tokenizer, tiny.rows[::-1], batch_size=5)[::-1]
    assert [found.answers for found in one] == [found.answers for found in other]
    assert [found.probability for found in one] == pytest.approx([found.probability for found in other], rel=1e-4)
    assert shares == sorted(shares)
    assert len(shares) == len(tiny.rows) + sum(len(found.answers) for found in one)
    assert shares[-1] == pytest.approx(1)
    assert not any(found.guarded for found in one)


def test_with_a_blocklist_everything_is_written_a_second_time(tiny: Any) -> None:
    free = probe(tiny.model, tiny.encoder, tiny.tokenizer, tiny.rows)
    piece = next(found for one in free for a in one.answers for found in re.findall(r"[!-~]{3}", a.written))
    matcher = Blocklist.compile([Entry(piece, boundary="none")], normalize="none").bind(tiny.tokenizer)
    training = tiny.model.train().training
    found = probe(tiny.model, tiny.encoder, tiny.tokenizer, tiny.rows, matcher=matcher)
    assert tiny.model.training == training
    tiny.model.eval()
    assert [one.answers for one in found] == [one.answers for one in free]
    for one in found:
        assert [answer.given for answer in one.guarded] == [answer.given for answer in one.answers]
        for guarded, answer in zip(one.guarded, one.answers, strict=True):
            assert piece not in guarded.written
            assert guarded.truth == answer.truth
            # A phrase that is finished within the output steps in; elsewhere nothing does.
            assert piece in answer.written or guarded.written == answer.written


def run_of_first_choices(world: Any, row: Row) -> int:
    """Characters of the longest run that the model writes of a row, with all before it given: one token at a time."""
    longest = 0
    for at in range(row.start, row.stop):
        wanted, end = row.ids.tolist(), at
        while end < row.stop and greedy(world, wanted[:end], 1)[end:] == [wanted[end]]:
            end += 1
        longest = max(longest, len(plain(world.tokenizer.decode(wanted[at:end]))))
    return longest


@pytest.mark.slow
def test_the_likeliest_rows_are_found_by_reading(tiny: Any) -> None:
    rows = [tiny.rows[i] for i in (0, 1, tiny.late, 2, 3, tiny.own)]
    runs = [run_of_first_choices(tiny, row) for row in rows]
    assert max(runs[:2] + runs[3:5]) < runs[2] < runs[5]
    training = tiny.model.train().training
    for count in (1, 2, 4, 6, 9):
        shares: list[float] = []
        found, others = likeliest(
            tiny.model, tiny.encoder, tiny.tokenizer, rows, count, batch_size=4, tell=shares.append
        )
        chosen = sorted(sorted(range(len(rows)), key=lambda i: -runs[i])[:count])
        assert [id(row) for row in found] == [id(rows[i]) for i in chosen]
        assert others == max((run for i, run in enumerate(runs) if i not in chosen), default=0)
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1)
    assert tiny.model.training == training
    tiny.model.eval()
