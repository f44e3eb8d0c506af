"""Replacements: what is written instead, while the ban holds whatever happens to the preference."""

from __future__ import annotations

import copy
import hashlib
import pickle
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prod_decode import Blocklist, Entry, ProdError, ProdLogitsProcessor
from prod_decode.serving.guard import Guard
from prod_decode.serving.preference import Preference, Spellings
from prod_decode.tokens.vocabulary import Vocabulary

TOKENS = [
    *(bytes([c]) for c in b"BFIPabcdefghijklmnopqrstuvwxyz_.()= \n"),
    *(b"yaml", b"yaml.", b".load", b" load", b"load", b"load(", b"_all", b"safe", b"safe_", b"_load", b"safe_load(f"),
    *(b"Beit", b"Fe", b"Feature", b"Features", b"For", b"Image", b"Map", b"Proc"),
    *(b"popen", b"pi", b"np", b"np.", b"trap", b"trapz", b"ez", b"oid", b"rule", b"import ", b"import", b"from"),
]
EOS = len(TOKENS)
VOCABULARY = Vocabulary.from_bytes([*TOKENS, b""], eos_ids=[EOS])
LIST = Blocklist.compile(
    [Entry("yaml.load(", replacement="yaml.safe_load("), Entry("np.trapz(", replacement="np.trapezoid(")]
)


ONE_WORD = Blocklist.compile([Entry("BeitFeature(", replacement="BeitImageProc(")])


def ids(*tokens: bytes) -> list[int]:
    return [TOKENS.index(token) for token in tokens]


def text_of(tokens: Sequence[int]) -> str:
    return VOCABULARY.decode(tokens)


Scorer = Callable[[list[int]], Tensor]


def wants(*favourites: bytes) -> Scorer:
    """A model that goes on along these bytes wherever it can, in the longest tokens, and else likes short tokens."""

    def score(text: list[int]) -> Tensor:
        written = b"".join(VOCABULARY.token_bytes(token) for token in text)
        scores = torch.tensor([-float(len(token)) for token in [*TOKENS, b"....."]])
        for favourite in favourites:
            begun = next(n for n in range(len(favourite), -1, -1) if written.endswith(favourite[:n]))
            rest = favourite[begun:]
            for number, token in enumerate(TOKENS):
                if rest.startswith(token):
                    scores[number] = 5.0 + len(token)
        return scores

    return score


def greedy(score: Scorer, prompt: list[int], blocklist: Blocklist, steps: int = 12) -> str:
    """What the adapter for engines without batches writes, and that of transformers must."""
    guard = Guard([blocklist.bind(VOCABULARY)])
    processor = ProdLogitsProcessor(blocklist, VOCABULARY)
    text = list(prompt)
    for _ in range(steps):
        by_guard = guard.mask_(score(text), text, prompt=len(prompt))
        by_processor = processor(torch.tensor([text]), score(text)[None])[0]
        torch.testing.assert_close(by_guard.softmax(-1), by_processor.softmax(-1))
        text.append(int(by_guard.argmax()))
    return text_of(text[len(prompt) :])


@pytest.mark.parametrize(
    ("prompt", "wanted", "written"),
    [
        (["yaml."], b"yaml.load(f)", "safe_load("),
        (["yaml"], b"yaml.load(f)", ".safe_load("),
        (["y", "a", "m", "l", "."], b"yaml.load(f)", "safe_load("),
        (["np."], b"np.trapz(y)", "trapezoid("),
        (["np.", "trap"], b"np.trapz(y)", "ezoid("),
        (["np.", "t", "r", "a", "p"], b"np.trapz(y)", "ezoid("),
        (["yaml."], b"yaml.dump(f)", "dump(f)"),
        (["yaml."], b"yaml.safe_load_all(f)", "safe_load_all("),  # its own choice, not one that was moved
        (["yaml.", " "], b"yaml. load(f)", "safe_load("),
    ],
)
def test_the_replacement_is_written(prompt: list[str], wanted: bytes, written: str) -> None:
    found = greedy(wants(wanted), ids(*(word.encode() for word in prompt)), LIST)
    assert found.startswith(written)


@pytest.mark.parametrize(
    ("names", "wanted", "written"),
    [
        ((), b"os.pardir", "walk("),  # nobody knows that `os` has a `pardir`
        (("os",), b"os.pardir", "pardir"),
        (("os",), b"os.popen(f)", "walk("),  # in one token, `popen`
        ((), b"os.popen(f)", "walk("),
    ],
)
def test_what_another_name_begins_with_is_not_moved(names: tuple[str, ...], wanted: bytes, written: str) -> None:
    early = Blocklist.compile([Entry("os.popen(", replacement="os.walk(")], allow_names=names)
    assert early.bind(VOCABULARY).forks[0].parting == len(b"os.pop" if names else b"os.p")
    assert greedy(wants(wanted), ids(b"o", b"s", b"."), early).startswith(written)


@pytest.mark.parametrize(
    ("prompt", "wanted", "written"),
    [
        ([b"Beit"], b"BeitFeature(f)", "ImageProc("),
        ([b" ", b"B", b"e", b"i", b"t"], b"BeitFeature(f)", "ImageProc("),
        ([b"B"], b"BeitFeature(f)", "eit"),
        ([b"Beit"], b"BeitFor(f)", "For(f)"),  # `F` is the way to other names too
        ([b"Beit"], b"BeitFMap(f)", "FMap(f)"),
        ([b"x", b"Beit"], b"xBeitFeature(f)", "Feature(f)"),  # inside of a word it is another
    ],
)
def test_a_phrase_of_one_word_is_replaced_from_the_next_part_of_its_name(
    prompt: list[bytes], wanted: bytes, written: str
) -> None:
    assert greedy(wants(wanted), ids(*prompt), ONE_WORD).startswith(written)


@pytest.mark.parametrize(
    ("phrase", "instead", "fork"),
    [
        ("BeitFeature(", "BeitImage(", (4, len("BeitFeature"))),
        ("evaluation_strategy=", "eval_strategy=", (4, len("evaluation"))),
        ("mark_safe(", "mark_as(", (5, len("mark_safe"))),
        ("ViTFeature(", "ViTImage(", None),  # three characters say too little
        ("np.trapz(", "np.trapezoid(", (7, 8)),
    ],
)
def test_where_a_phrase_and_its_replacement_part(phrase: str, instead: str, fork: tuple[int, int] | None) -> None:
    blocklist = Blocklist.compile([Entry(phrase, replacement=instead)])
    assert [(fork.shared, fork.parting) for fork in blocklist.bind(VOCABULARY).forks] == ([fork] if fork else [])
    assert blocklist.unreached() == ([] if fork else [phrase])


def test_another_replacement_parts_at_its_own_place() -> None:
    """`pi` is the way to `pipe_of`, where `p` may be that to `pardir`."""
    early = Blocklist.compile([Entry("os.popen(", replacement="os.walk(")], allow_names=["os"])
    other = Blocklist.compile([Entry("os.pipe_of(", replacement="os.pad(")])
    both = Blocklist.merge([early, other])
    assert [fork.parting for fork in both.bind(VOCABULARY).forks] == [len(b"os.pop"), len(b"os.pi")]
    assert greedy(wants(b"os.pi(f)"), ids(b"o", b"s", b"."), both).startswith("pad(")


def test_without_a_replacement_the_ban_alone_decides() -> None:
    plain = Blocklist.compile([Entry("yaml.load("), Entry("np.trapz(")])
    assert plain.bind(VOCABULARY).forks == ()
    assert Preference.of(plain.bind(VOCABULARY)) is None
    assert greedy(wants(b"np.trapz(y)"), ids(b"np.", b"trap"), plain).startswith("z")


def test_a_replacement_that_cannot_be_reached_leaves_the_ban() -> None:
    other = Blocklist.compile([Entry("yaml.load(", replacement="json.load(")])
    assert other.bind(VOCABULARY).forks == ()
    assert other.unreached() == ["yaml.load("]
    assert LIST.unreached() == []
    assert other.report.replacements == [("yaml.load(", "yaml.load(", "json.load(")]
    assert greedy(wants(b"yaml.load(f)"), ids(b"yaml."), other).startswith("load")


def hashed(text: Sequence[int], seed: int) -> Tensor:
    """Scores that depend on the text and look random."""
    digest = hashlib.sha256(bytes([seed, *text])).digest()
    return torch.from_numpy(np.frombuffer((digest * 3)[: len(TOKENS) + 1], np.uint8).astype(np.float32) / 16)


PIECES = st.lists(st.sampled_from(range(len(TOKENS))), max_size=3)


@given(
    st.sampled_from([LIST, ONE_WORD]),
    PIECES,
    st.sampled_from([b"yaml.", b"np.", b"yaml", b"trap", b"import ", b"Beit"]),
    st.integers(0, 255),
    st.booleans(),
)
def test_the_ban_holds_whatever_is_preferred(
    blocklist: Blocklist, before: list[int], last: bytes, seed: int, beams: bool
) -> None:
    """Rows that are reordered and copied at random, as beams are, by a processor that was there from the start."""
    processor = ProdLogitsProcessor(blocklist, VOCABULARY)
    matcher = blocklist.bind(VOCABULARY)
    draws = np.random.default_rng(seed)
    texts = [[*before, *ids(last)]] * 3
    if list(blocklist.scan(text_of(texts[0]))):
        return
    for _ in range(8):
        scores = torch.stack([hashed(text, seed) for text in texts])
        masked = processor(torch.tensor(texts), scores)
        for row, text in enumerate(texts):
            banned = matcher.banned(matcher.state_of(text))
            assert masked[row, torch.from_numpy(banned.astype(np.int64))].eq(-np.inf).all()
            assert masked[row].gt(-np.inf).any()
        chosen = [
            int(torch.multinomial(row.softmax(-1), 1, generator=torch.Generator().manual_seed(seed))) for row in masked
        ]
        texts = [[*text, token] for text, token in zip(texts, chosen, strict=True)]
        if beams:
            texts = [texts[i] for i in draws.integers(0, 3, 3)]
    for text in texts:
        assert not list(blocklist.scan(text_of(text)))


def test_what_was_begun_is_finished_in_whatever_row_it_is() -> None:
    processor = ProdLogitsProcessor(LIST, VOCABULARY)
    begun, other = ids(b"np.", b"trap"), ids(b"np.", b"r")
    scores = torch.stack([wants(b"np.trapz(y)")(begun), wants(b"np.round(y)")(other)])
    first = processor(torch.tensor([begun, other]), scores)
    token = int(first[0].argmax())
    assert TOKENS[token] == b"e"
    rest = torch.zeros(2, len(VOCABULARY))
    after = processor(torch.tensor([[*other, *ids(b"o")], [*begun, token]]), rest)
    assert torch.equal(after[0], rest[0])
    live = {TOKENS[i] for i in after[1].gt(-np.inf).nonzero().flatten().tolist()}
    assert live == {b"z"}


def test_several_replacements_at_one_place() -> None:
    both = Blocklist.compile(
        [Entry("np.trapz(", replacement="np.trapezoid("), Entry("np.round(", replacement="np.rule(")]
    )
    prompt = ids(b"np.", b"trap")
    assert greedy(wants(b"np.trapz(y)"), prompt, both).startswith("ezoid(")
    assert greedy(wants(b"np.round(y)"), ids(b"np.", b"r"), both).startswith("ule(")
    one = Blocklist.compile([Entry("np.load(", replacement="np.safe("), Entry("np.dump(", replacement="np.store(")])
    assert greedy(wants(b"np.dump(y)"), ids(b"np."), one).startswith("store(")
    assert greedy(wants(b"np.load(y)"), ids(b"np."), one).startswith("safe(")


def test_what_both_share_begins_nothing() -> None:
    """`.load` is moved to `.`, behind which the model is free to write `dump`."""
    assert greedy(wants(b"yaml.load(f)"), ids(b"yaml"), LIST, 1) == "."

    def score(text: list[int]) -> Tensor:
        return wants(b"yaml.load(f)" if len(text) == 1 else b"yaml.dump(f)")(text)

    assert greedy(score, ids(b"yaml"), LIST).startswith(".dump(f)")


def test_a_phrase_inside_of_a_word_is_another() -> None:
    entries = [Entry("np.load(", replacement="np.safe("), Entry("xnp.load(", replacement="xnp.rule(")]
    for two in (Blocklist.compile(entries), Blocklist.compile(entries[::-1])):
        assert greedy(wants(b"xnp.load(y)"), ids(b"x", b"np."), two).startswith("rule(")
        assert greedy(wants(b"np.load(y)"), ids(b" ", b"np."), two).startswith("safe(")


def test_what_a_second_list_prohibits_gets_nothing() -> None:
    """A request may name a list that prohibits another one's replacement; then the row goes on as it can."""
    second = Blocklist.compile([Entry("safe_load", boundary="none")])
    guard = Guard([LIST.bind(VOCABULARY), second.bind(VOCABULARY)])
    text = ids(b"yaml.")
    for _ in range(12):
        text.append(int(guard.mask_(wants(b"yaml.load(f)")(text), text, prompt=1).argmax()))
    assert EOS not in text
    assert not list(LIST.scan(text_of(text)))
    assert not list(second.scan(text_of(text)))


def test_a_copy_remembers_nothing_of_the_first() -> None:
    processor = ProdLogitsProcessor(LIST, VOCABULARY)
    text = ids(b"np.", b"trap")
    token = int(processor(torch.tensor([text]), wants(b"np.trapz(y)")(text)[None])[0].argmax())
    rest = torch.zeros(1, len(VOCABULARY))
    for twin in (copy.deepcopy(processor), pickle.loads(pickle.dumps(copy.deepcopy(processor)))):
        assert torch.equal(twin(torch.tensor([[*text, token]]), rest), rest)


def test_where_the_first_choice_is_moved_it_is_told() -> None:
    told: list[tuple[tuple[str, ...], str | None]] = []
    processor = ProdLogitsProcessor(LIST, VOCABULARY, on_ban=lambda ban: told.append((ban.entries, ban.replacement)))
    text = ids(b"yaml.")
    processor(torch.tensor([text]), wants(b"yaml.load(f)")(text)[None])
    assert told == [(("yaml.load(",), "yaml.safe_load(")]
    assert processor.fired == {"yaml.load(": 1}


def test_spellings_are_those_of_the_plain_loop() -> None:
    spellings = Spellings(VOCABULARY)
    for text in (b"safe_load(", b"load(", b"ezoid(", b"(", b"zzz", b"safe_load(f"):
        expected = [i for i, token in enumerate(TOKENS) if text.startswith(token) or token.startswith(text)]
        assert spellings.of(text).tolist() == expected


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([Entry("a.b(", replacement="a.")], "expected a replacement that is not the beginning of the phrase, got 'a.'"),
        ([Entry("a.b(", replacement="")], "expected a replacement that is not the beginning of the phrase, got ''"),
        ([Entry("a.b(", replacement="a.b(x")], "expected a replacement that nothing prohibits, got 'a.b(x'"),
        ([Entry("a.b(", replacement="a.c("), Entry("a.c")], "got 'a.c(', which entry 'a.c' does"),
        ([Entry("a.b(", replacement="a.c("), Entry("a.b(", replacement="a.d(")], "expected one replacement, got"),
    ],
)
def test_a_replacement_is_refused(entries: list[Entry], message: str) -> None:
    with pytest.raises(ProdError) as caught:
        Blocklist.compile(entries)
    assert message in str(caught.value)


def test_a_merged_list_may_not_prohibit_a_replacement() -> None:
    with pytest.raises(ProdError, match="expected a replacement that nothing prohibits"):
        Blocklist.merge([LIST, Blocklist.compile([Entry("safe_load")])])
    with pytest.raises(ProdError, match="replacement belongs to policy 'phrase'"):
        Entry("x" * 200, policy="quote", replacement="y")
