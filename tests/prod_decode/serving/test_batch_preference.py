"""Replacements in a batch whose requests come, go and move, each under lists of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from prod_decode import Blocklist, Entry
from prod_decode.masking import mask_prohibited_
from prod_decode.match.batch import Request, RequestBatch
from prod_decode.match.tracker import TextTracker
from prod_decode.serving.batch_preference import BatchPreference
from tests.prod_decode.serving.test_preference import EOS, TOKENS, VOCABULARY, ids, text_of, wants

YAML = Blocklist.compile([Entry("yaml.load(", replacement="yaml.safe_load(")]).bind(VOCABULARY)
TRAPZ = Blocklist.compile([Entry("np.trapz(", replacement="np.trapezoid(")]).bind(VOCABULARY)
NO_TRAPEZOID = Blocklist.compile([Entry("np.trapezo")]).bind(VOCABULARY)
PLAIN = Blocklist.compile([Entry("yaml.load("), Entry("np.trapz(")]).bind(VOCABULARY)
LISTS = (YAML, TRAPZ, NO_TRAPEZOID, PLAIN)

Lists = Sequence[int]
LOVES_TRAPZ, LOVES_YAML = wants(b"np.trapz(y)"), wants(b"yaml.load(f)")


class Engine:
    """As much of an engine as there is here: requests, rows, and a step."""

    def __init__(self) -> None:
        self.batch = RequestBatch()
        self.preference = BatchPreference(LISTS)

    def request(self, prompt: list[int], lists: Lists, output: Sequence[int] = ()) -> Request:
        matchers = tuple(LISTS[number] for number in lists)
        return Request(np.array(prompt, np.int64), list(output), matchers, beside=self.preference.beside(matchers))

    def has(self, *requests: Request) -> None:
        """These are the rows from now on."""
        known = self.batch.requests
        sources = [known.index(each) if each in known else len(known) + row for row, each in enumerate(requests)]
        self.batch.arrange(list(requests), sources)

    def step(self, score: Callable[[list[int]], Tensor]) -> Tensor:
        """The masked scores of one step."""
        scores = torch.stack([score(request.text().tolist()) for request in self.batch.requests])
        self.batch.follow()
        rows, tokens = self.batch.banned(scores.shape[1])
        moves = self.preference.moves(self.batch, (rows, tokens))
        self.preference.apply_(scores, self.batch, moves)
        return mask_prohibited_(scores, rows, tokens, fallback=[EOS])

    def write(self, score: Callable[[list[int]], Tensor]) -> None:
        for request, row in zip(self.batch.requests, self.step(score), strict=True):
            request.output.append(int(row.argmax()))


def begun() -> tuple[Engine, Request]:
    """A request that has begun `np.trapezoid(` with `e`, and is free to end it elsewhere."""
    engine = Engine()
    request = engine.request(ids(b"np.", b"trap"), [1])
    engine.has(request)
    engine.write(LOVES_TRAPZ)
    assert text_of(request.output) == "e"
    return engine, request


def live(row: Tensor) -> set[bytes]:
    return {TOKENS[token] for token in row.gt(-np.inf).nonzero().flatten().tolist() if token != EOS}


def flat(text: list[int]) -> Tensor:
    del text
    return torch.zeros(len(VOCABULARY))


def test_rows_of_several_lists_that_change_places() -> None:
    engine = Engine()
    wanted = [
        (ids(b"yaml."), [0], "safe_load("),
        (ids(b"np.", b"trap"), [1], "ezoid("),
        (ids(b"np.", b"trap"), [0, 1], "ezoid("),
        (ids(b"np.", b"trap"), [0], "z("),
        (ids(b"np.", b"trap"), [], "z("),
        (ids(b"np.", b"trap"), [3], "z"),
        (ids(b"yaml."), [3], "load"),
    ]
    requests = [engine.request(prompt, lists) for prompt, lists, _ in wanted]

    def score(text: list[int]) -> Tensor:
        return LOVES_YAML(text) if text[0] == ids(b"yaml.")[0] else LOVES_TRAPZ(text)

    draws = np.random.default_rng(0)
    for _ in range(12):
        engine.has(*[requests[row] for row in draws.permutation(len(requests))])
        engine.write(score)
    for request, (_, lists, written) in zip(requests, wanted, strict=True):
        found = text_of(request.output)
        assert found.startswith(written)
        assert lists != [3] or not found.startswith(written + "(")


def test_a_request_that_comes_back_goes_on() -> None:
    engine, request = begun()
    engine.has()
    engine.has(engine.request(ids(b"np."), [0]))
    engine.step(flat)
    again = engine.request(ids(b"np.", b"trap"), [1], request.output)
    engine.has(again)
    # As often as the engine reads its text in pieces.
    for _ in range(2):
        assert live(engine.step(flat)[0]) == {b"z"}
    again.output += ids(b"z")
    assert live(engine.step(flat)[0]) == {b"o", b"oid"}


@pytest.mark.parametrize(
    ("prompt", "lists", "output"),
    [
        ([b"np.", b"trap", b"e"], [1], []),
        ([b"np.", b"trap"], [0], [b"e"]),
        ([b"np.", b"trap"], [0, 1], [b"e"]),
        ([b"np."], [1], [b"trap", b"e"]),
        ([b"x", b"np.", b"trap"], [1], [b"e"]),
    ],
)
def test_another_request_has_begun_nothing(prompt: list[bytes], lists: Lists, output: list[bytes]) -> None:
    engine, _ = begun()
    engine.has()
    engine.has(engine.request(ids(*prompt), lists, ids(*output)))
    assert b"u" in live(engine.step(flat)[0])


def test_a_step_that_is_thrown_away_begins_nothing() -> None:
    engine = Engine()
    request = engine.request(ids(b"np.", b"trap"), [1])
    engine.has(request)
    engine.step(LOVES_TRAPZ)
    engine.step(wants(b"np.trape(y)"))
    request.output += ids(b"e")
    assert b"u" in live(engine.step(flat)[0])
    # And not where it leaves before it was read to its end.
    engine = Engine()
    request = engine.request(ids(b"np.", b"trap"), [1])
    engine.has(request)
    engine.step(LOVES_TRAPZ)
    engine.has()
    engine.has(engine.request(ids(b"np.", b"trap"), [1]))
    engine.step(wants(b"np.trape(y)"))
    engine.has()
    engine.has(engine.request(ids(b"np.", b"trap"), [1], ids(b"e")))
    assert b"u" in live(engine.step(flat)[0])


def test_tokens_that_are_lost_take_the_preference_with_them_and_not_the_ban() -> None:
    engine, request = begun()
    request.output[:] = ids(b"e", b"z")
    assert live(engine.step(flat)[0]) > {b"u", b"o", b"oid"}
    request.output[:] = ids(b"z")
    after = engine.step(LOVES_TRAPZ)[0]
    assert after[TOKENS.index(b"(")] == -np.inf


def test_what_another_list_prohibits_gets_nothing() -> None:
    """`np.trapezo` is prohibited: the replacement is begun, and goes on until its last token is banned."""
    engine = Engine()
    request = engine.request(ids(b"np.", b"trap"), [1, 2])
    engine.has(request)
    for _ in range(4):
        masked = engine.step(LOVES_TRAPZ)
        banned = NO_TRAPEZOID.banned(NO_TRAPEZOID.state_of(request.text()))
        assert masked[0, torch.from_numpy(banned.astype(np.int64))].eq(-np.inf).all()
        request.output.append(int(masked[0].argmax()))
    assert text_of(request.output).startswith("ez")
    assert not text_of(request.output).startswith("ezo")


def test_nothing_is_done_where_no_list_has_replacements(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    engine.has(engine.request(ids(b"np.", b"trap"), [3]), engine.request(ids(b"yaml."), []))
    asked: list[object] = []
    monkeypatch.setattr(
        TextTracker, "banned", lambda self, plain=TextTracker.banned: (asked.append(self.matcher), plain(self))[1]
    )
    engine.step(flat)
    assert asked == [PLAIN]
    engine.has(engine.request(ids(b"yaml."), [0]))
    engine.step(flat)
    assert len(asked) == 3
