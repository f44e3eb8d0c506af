"""Hits of every kind, as a plain recount has them, through `generate` and through engines of one row."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prod_decode import Blocklist, Entry, Hit, ProdError, ProdLogitsProcessor, Vocabulary
from prod_decode.masking import mask_prohibited_
from prod_decode.match.batch import Request, RequestBatch
from prod_decode.serving.batch_preference import BatchPreference
from prod_decode.serving.guard import Guard
from prod_decode.serving.reporter import BatchReporter, Reporter
from tests import oracle
from tests.prod_decode.test_hf import EOS, HOLE, PROMPTS, TOKENS, VOCABULARY, batch, encode, guarded, run

INF = float("inf")


# ---- bans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [0.0, 0.01, 0.3, 1.0])
def test_bans_are_told_as_a_recount_of_the_logits_has_them(least: float) -> None:
    matcher = guarded().bind(VOCABULARY)
    hits: list[Hit] = []
    processor = ProdLogitsProcessor(matcher, on_hit=hits.append, least_mass=least)
    options = {"sequence_bias": {(EOS,): 1.0}, "max_new_tokens": 24}
    result = run(PROMPTS, processor, return_dict_in_generate=True, output_logits=True, **options)
    width = batch(PROMPTS)["input_ids"].shape[1]
    expected = []
    for at in range(width, result.sequences.shape[1]):
        for row, text in enumerate(result.sequences.tolist()):
            if EOS in text[width:at]:
                continue
            banned = matcher.banned(state := matcher.state_of(text[:at])).tolist()
            logits = result.logits[at - width][row].double()
            logits[EOS] += 1.0
            p, top = logits.softmax(-1), int(logits.argmax())
            token = max((one for one in banned if one != HOLE), key=lambda one: (one == top, float(p[one])), default=-1)
            if token >= 0 and (token == top or float(p[[one for one in banned if one != HOLE]].sum()) >= least):
                mass = float(p[banned].sum())
                about = float(p[token]), mass, token == top, token
                expected += [(row, at, name, *about) for name in matcher.blame(state, token)]
    assert len({one[5] for one in expected}) == (2 if least < 1 else 1)
    assert [(h.row, h.position, h.entry, h.likeliest, h.token_id) for h in hits] == [(*e[:3], *e[5:]) for e in expected]
    assert [h.probability for h in hits] == pytest.approx([e[3] for e in expected], rel=1e-4)
    assert [h.mass for h in hits] == pytest.approx([e[4] for e in expected], rel=1e-4)
    assert {h.kind for h in hits} == {"banned"}
    assert {h.text for h in hits} == {(TOKENS[h.token_id or 0] or b"").decode() for h in hits}
    assert all(h.characters is h.budget is h.span is h.request is h.source is None for h in hits)


def test_what_is_generated_is_the_same_with_and_without() -> None:
    matcher = guarded().bind(VOCABULARY)
    for options in ({}, {"do_sample": True}, {"num_beams": 3}):
        plain = run(PROMPTS, ProdLogitsProcessor(matcher), **options)
        told = run(PROMPTS, ProdLogitsProcessor(matcher, on_hit=lambda hit: None, least_mass=0), **options)
        assert plain.tolist() == told.tolist()


TEXTS: list[bytes | None] = [b"a", b"b", b"c", b"d", b"e", b"", None]


def simple(*patterns: str, **options: Any) -> tuple[ProdLogitsProcessor, list[Hit]]:
    """Tokens a to e are 0 to 4, EOS is 5, 6 has no bytes."""
    entries = [Entry(p, source=f"{p}.txt", license="MIT", boundary="none") for p in patterns]
    hits: list[Hit] = []
    blocklist = Blocklist.compile(entries, allow_short=True)
    vocabulary = Vocabulary.from_bytes(TEXTS, eos_ids=[5])
    return ProdLogitsProcessor(blocklist, vocabulary, on_hit=hits.append, **options), hits


def ids(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def test_a_ban_of_a_token_that_was_not_the_likeliest_counts_with_its_mass() -> None:
    processor, hits = simple("ab", "ad")
    scores = torch.log(torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 0.0]]))
    processor(ids([0]), scores)
    (hit,) = hits
    assert replace(hit, probability=None, mass=None) == Hit(
        0, 1, "banned", "ab", "ab.txt", "MIT", likeliest=False, token_id=1, text="b"
    )
    assert (hit.probability, hit.mass) == (pytest.approx(0.2), pytest.approx(0.3))
    # `fired` and `on_ban` count the likeliest alone, as before.
    assert processor.fired == {}
    hits.clear()
    processor(ids([0]), torch.log(torch.tensor([[0.1, 0.2, 0.1, 0.5, 0.05, 0.05, 0.0]])))
    assert [(hit.entry, hit.likeliest, hit.text) for hit in hits] == [("ad", True, "d")]
    assert processor.fired == {"ad": 1}


def test_too_little_is_not_told() -> None:
    for least, told in ((0.01, 0), (0.004, 1), (0.0, 1), (1.0, 0)):
        processor, hits = simple("ab", least_mass=least)
        processor(ids([0]), torch.log(torch.tensor([[0.8, 0.005, 0.1, 0.0, 0.05, 0.045, 0.0]])))
        assert len(hits) == told
    # Nobody bans an id without bytes, however likely; and constant scores say nothing.
    processor, hits = simple("ab")
    processor(ids([0]), torch.tensor([[1.0, -20, 0, 0, 0, 0, 9]]))
    processor(ids([0]), torch.ones(1, 7))
    assert hits == []


def test_two_entries_that_ban_one_token_are_two_hits() -> None:
    processor, hits = simple("cab", "ab")
    processor(ids([2, 0]), torch.tensor([[0.0, 1, 0, 0, 0, 0, 0]]))
    assert [(hit.entry, hit.source) for hit in hits] == [("cab", "cab.txt"), ("ab", "ab.txt")]
    assert hits[0].mass == hits[1].mass


def test_a_replacement_is_named() -> None:
    hits: list[Hit] = []
    vocabulary = Vocabulary.from_bytes([b"yaml.", b"load", b"safe_load", b"(", b""], eos_ids=[4])
    blocklist = Blocklist.compile([Entry("yaml.load(", replacement="yaml.safe_load(", license="MIT")])
    processor = ProdLogitsProcessor(blocklist, vocabulary, on_hit=hits.append)
    processor(ids([0]), torch.tensor([[0.0, 3, 1, 0, 0]]))
    assert [(h.entry, h.license, h.replacement, h.text) for h in hits] == [
        ("yaml.load(", "MIT", "yaml.safe_load(", "load")
    ]


# ---- rows that end ---------------------------------------------------------------------------------------------------


def test_a_row_that_ends_by_force_says_so_once() -> None:
    processor, hits = simple("a", "b", "c", "d", "e")
    dead = torch.tensor([[3.0, 2, 1, 1, 1, -INF, 0]])
    masked = processor(torch.zeros(1, 0, dtype=torch.int64), dead)
    assert masked.tolist() == [[-INF] * 5 + [0, -INF]]
    assert [(hit.kind, hit.position, hit.entry) for hit in hits] == [("banned", 0, "a"), ("ended", 0, None)]
    hits.clear()
    # It has ended, and is padded beside others.
    processor(ids([5]), dead)
    processor(ids([5, 5]), dead)
    assert hits == []


def test_an_end_of_its_own_is_not_forced() -> None:
    processor, hits = simple("a", "b", "c", "d", "e")
    processor(torch.zeros(1, 0, dtype=torch.int64), torch.tensor([[-INF] * 5 + [0.0, -INF]]))
    assert hits == []


def test_a_text_that_cannot_be_read_ends() -> None:
    processor, hits = simple("ab")
    processor(ids([0, 6], [0, 0]), torch.zeros(2, 7))
    processor(ids([0, 6, 5], [0, 0, 0]), torch.zeros(2, 7))
    assert hits == [Hit(0, 2, "ended")]


# ---- quotations ------------------------------------------------------------------------------------------------------

DOCUMENT = "import yaml\ndef load(self):\n    return yaml.load(open(str(self)))\n"


def told_by_brute_force(texts: list[list[int]], prompts: int, budget: int, piece: int) -> list[tuple[Any, ...]]:
    """What each token of the outputs gives away, step by step, from whole texts."""
    document, expected = oracle.normalize(DOCUMENT.encode(), "code", False), []
    for end in range(prompts + 1, len(texts[0]) + 1):
        for row, text in enumerate(texts):
            counts = []
            for stop in (end - 1, end):
                written = b"".join(TOKENS[i] or b"" for i in text[prompts:stop] if i > HOLE)
                counts.append(len(oracle.given_away(oracle.normalize(written, "code", False), document, piece)))
            if counts[0] != counts[1]:
                expected.append((row, end - 1, "quoted", counts[1]))
                if counts[0] < budget <= counts[1]:
                    expected.append((row, end - 1, "budget reached", counts[1]))
    return expected


def follow(on_hit: Any, texts: list[list[int]], prompts: int, **options: Any) -> None:
    """The calls that `generate` makes for these texts, all scores alike."""
    entry = Entry(DOCUMENT, id="d", policy="quote", max_quote=20, budget=20, piece=8, license="MIT", source="u")
    processor = ProdLogitsProcessor(Blocklist.compile([entry]), VOCABULARY, on_hit=on_hit, **options)
    for end in range(prompts, len(texts[0])):
        processor(ids(*(text[:end] for text in texts)), torch.ones(len(texts), len(TOKENS)))
    # What the last token gave away; and once more, as of another call, of which nothing is known.
    processor.finish(ids(*texts))
    processor.finish(ids(*(text[::-1] for text in texts)))


def test_quotations_and_budgets_are_told_as_brute_force() -> None:
    prompt = encode(DOCUMENT.encode())[:6]
    tokens = encode(DOCUMENT.encode())
    rows = [tokens[4:16], tokens[10:22], encode(b"x = print(1)\n")]
    width = min(map(len, rows))
    texts = [[*prompt, *row[:width]] for row in rows]
    hits: list[Hit] = []
    follow(hits.append, texts, len(prompt))
    expected = told_by_brute_force(texts, len(prompt), budget=16, piece=8)
    (budget,) = {hit.budget for hit in hits}
    assert expected
    assert [(h.row, h.position, h.kind, h.characters) for h in hits] == told_by_brute_force(
        texts, len(prompt), budget or 0, 8
    )
    assert max(hit.position for hit in hits) == len(texts[0]) - 1
    assert {hit.kind for hit in hits} == {"quoted", "budget reached"}
    assert {(hit.entry, hit.license, hit.source) for hit in hits} == {("d", "MIT", "u")}
    symbols = oracle.normalize(DOCUMENT.encode(), "code", False)
    assert all(hit.text == symbols[slice(*(hit.span or (0, 0)))].decode() for hit in hits)
    # What the prompt quotes may be repeated, and is no quotation then.
    again: list[Hit] = []
    follow(again.append, [[*tokens, *tokens[:12]]], len(tokens), exempt_prompt=True)
    assert {hit.kind for hit in again} == {"exempted"}
    assert {(hit.entry, hit.license, hit.source) for hit in again} == {("d", "MIT", "u")}


# ---- batches of an engine --------------------------------------------------------------------------------------------

LISTS = [
    Blocklist.compile([Entry(p, source="a", boundary="none") for p in ("yam", "loa", "(x", "x =")], allow_short=True),
    Blocklist.compile([Entry(DOCUMENT, id="d", policy="quote", max_quote=20, budget=20, piece=8, license="MIT")]),
    Blocklist.compile([Entry("yaml.load(", replacement="yaml.open(", license="X"), Entry("print(1", source="b")]),
]


def test_a_batch_tells_what_each_of_its_texts_alone_does() -> None:
    matchers = [blocklist.bind(VOCABULARY) for blocklist in LISTS]
    matchers[1] = matchers[1].exempting_prompts()
    tokens = encode(DOCUMENT.encode())
    wanted = [[0], [1], [1, 0], [], [2, 0]]
    prompts = [tokens[:3], tokens, encode(b"x = "), tokens[:3], encode(b"import yaml\n")]
    outputs = [tokens[2:14], tokens[6:18], tokens[:12], tokens[3:15], [*encode(b"yaml."), *tokens[:9]]]
    hits: list[Hit] = []
    alone: list[Hit] = []
    guards = [
        Guard([matchers[i] for i in some], stop=(), on_hit=alone.append, must_end=False) if some else None
        for some in wanted
    ]
    preference = BatchPreference(matchers)
    requests = [
        Request(
            np.array(prompt),
            [],
            tuple(matchers[i] for i in some),
            False,
            preference.beside([matchers[i] for i in some]),
        )
        for some, prompt in zip(wanted, prompts, strict=True)
    ]
    batch, reporter = RequestBatch(), BatchReporter(Reporter(hits.append, matchers), matchers, [EOS])
    batch.arrange(requests, range(len(requests)))
    generator = torch.Generator().manual_seed(0)
    for step in range(min(map(len, outputs)) + 1):
        if step == 5:
            # One leaves, the others move.
            order = [4, 0, 2, 1]
            requests, guards, outputs = ([some[i] for i in order] for some in (requests, guards, outputs))
            batch.arrange(requests, order)
        if step:
            for request, output in zip(requests, outputs, strict=True):
                request.output.append(output[step - 1])
        logits = 3 * torch.randn(len(requests), len(TOKENS), generator=generator)
        logits[:, TOKENS.index(b"load")] += 3
        for row, guard in enumerate(guards):
            if guard is not None:
                text = requests[row].text()
                guard.mask_(logits[row].clone(), text, prompt=len(text) - step, place=(row, None))
        batch.follow()
        reporter.release()
        banned = batch.banned(len(TOKENS))
        moves = preference.moves(batch, banned)
        reporter.look(batch, logits, banned, [move for _, move in moves])
        preference.apply_(logits, batch, moves)
        mask_prohibited_(logits, *banned)
        reporter.tell(batch, logits)
        # What is banned at the first step is held until something comes of it.
        assert bool(hits) is (step > 0)
    key = lambda hit: (hit.position, hit.row, hit.kind, hit.entry or "", hit.text or "")  # noqa: E731
    assert sorted(map(rounded, hits), key=key) == sorted(map(rounded, alone), key=key)
    assert {hit.kind for hit in hits} == {"banned", "quoted", "budget reached", "exempted"}
    assert {hit.replacement for hit in hits} == {None, "yaml.open("}


def rounded(hit: Hit) -> Hit:
    about = {name: round(value, 5) for name in ("probability", "mass") if (value := getattr(hit, name)) is not None}
    return replace(hit, **about)


def test_of_a_prompt_that_is_read_in_parts_the_last_is_told() -> None:
    hits: list[Hit] = []
    matcher = LISTS[0].bind(VOCABULARY)
    batch, reporter = RequestBatch(), BatchReporter(Reporter(hits.append, [matcher]), [matcher], [EOS])
    gone, kept = (Request(np.array(encode(b"import ")), [], (matcher,)) for _ in range(2))
    yaml, other = TOKENS.index(b"yaml"), TOKENS.index(b"self")

    def step(*requests: Request) -> None:
        reporter.release()
        batch.arrange(list(requests), [len(batch.requests) + i for i in range(len(requests))])
        batch.follow()
        logits = torch.zeros(len(requests), len(TOKENS))
        logits[:, yaml] = 5
        reporter.look(batch, logits, banned := batch.banned(len(TOKENS)), [])
        reporter.tell(batch, mask_prohibited_(logits, *banned))

    for _ in range(3):
        step(gone, kept)
        assert hits == []
    # One writes its first token, the other one leaves without.
    kept.output.append(other)
    step(kept)
    assert [(hit.row, hit.position, hit.entry) for hit in hits] == [
        (1, len(kept.text()) - 1, "yam"),
        (0, len(kept.text()), "yam"),
    ]


def test_a_request_that_cannot_be_read_ends_once() -> None:
    hits: list[Hit] = []
    matcher = LISTS[0].bind(VOCABULARY)
    batch, reporter = RequestBatch(), BatchReporter(Reporter(hits.append, [matcher]), [matcher], [EOS])
    requests = [Request(None, [7], (matcher,)), Request(np.array([HOLE]), [7], (matcher,)), Request(None, [7], None)]
    batch.arrange(requests, range(3))
    for _ in range(2):
        batch.follow()
        logits = torch.zeros(3, len(TOKENS))
        reporter.look(batch, logits, banned := batch.banned(len(TOKENS)), [])
        reporter.tell(batch, mask_prohibited_(logits, *banned))
        for request in requests:
            request.output.append(EOS)
    assert hits == [Hit(0, 1, "ended"), Hit(1, 2, "ended"), Hit(2, 1, "ended")]


# ---- those who listen ------------------------------------------------------------------------------------------------


def test_what_a_listener_raises_is_heard_and_nothing_is_unguarded() -> None:
    def fail(hit: Hit) -> None:
        raise RuntimeError("the listener failed")

    with pytest.raises(RuntimeError, match="the listener failed"):
        run(PROMPTS, ProdLogitsProcessor(guarded().bind(VOCABULARY), on_hit=fail))
    hits: list[Hit] = []
    seen: list[list[float]] = []
    # It is called when the mask is applied: here the scores are masked in place.
    row = torch.log(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 0.0]))
    blocklist = Blocklist.compile([Entry("ab", boundary="none")], allow_short=True)
    matcher = blocklist.bind(Vocabulary.from_bytes(TEXTS, eos_ids=[5]))
    guard = Guard([matcher], on_hit=lambda hit: (hits.append(hit), seen.append(row.tolist())))
    guard.mask_(row, [0])
    assert [(hit.kind, hit.entry, hit.position) for hit in hits] == [("banned", "ab", 1)]
    assert seen[0][1] == -INF


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"on_hit": "hits.jsonl"},
            r"on_hit: expected a function of one Hit, got hits\.jsonl: pass print, or an AuditL",
        ),
        ({"on_hit": print, "least_mass": 1.5}, "least_mass: expected a probability, 0 to 1, got 1.5"),
        ({"on_hit": print, "least_mass": True}, "least_mass: expected a probability, 0 to 1, got True"),
        ({"on_hit": print, "least_mass": float("nan")}, "least_mass: expected a probability, 0 to 1, got nan"),
        ({"on_hits": print}, "unknown keyword 'on_hits'; did you mean 'on_hit'"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProdError, match=message):
        ProdLogitsProcessor(guarded().bind(VOCABULARY), **options)


def test_who_does_not_listen_pays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("look", "look_at", "refused", "passed", "ended", "tell"):
        monkeypatch.setattr(f"prod_decode.serving.reporter.Reporter.{name}", None)
    monkeypatch.setattr("prod_decode.quotes.tracker.QuoteTracker.passed", None)
    monkeypatch.setattr("prod_decode.match.tracker.TextTracker.passed", None)
    assert len(run(PROMPTS, ProdLogitsProcessor(guarded().bind(VOCABULARY)))) == len(PROMPTS)


def test_entries_are_found_by_their_ids(tmp_path: Path) -> None:
    entries = [Entry(f"f{i}(", id=f"e{i}", source=f"s{i}", license="MIT" if i % 2 else None) for i in range(300)]
    blocklist = Blocklist.compile(entries)
    blocklist.save(tmp_path / "a.prod")
    for one in (blocklist, Blocklist.load(tmp_path / "a.prod"), pickle.loads(pickle.dumps(blocklist))):
        assert [one.origin_of(f"e{i}") for i in range(300)] == [(e.source, e.license) for e in entries]
        assert one.origin_of("e300") == one.origin_of("") == (None, None)
    matcher = pickle.loads(pickle.dumps(blocklist.bind(VOCABULARY).exempting_prompts()))
    assert matcher.origin_of("e7") == ("s7", "MIT")


def test_ids_with_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prod_decode.blocklist.blocklist._hash_of", lambda entry_id: 7)
    blocklist = Blocklist.compile([Entry(f"f{i}(", id=f"e{i}", source=f"s{i}") for i in range(3)])
    assert [blocklist.origin_of(f"e{i}")[0] for i in range(4)] == ["s0", "s1", "s2", None]
