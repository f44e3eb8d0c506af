"""Entries and policies: what is refused, what is found, and what a blocklist remembers."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prod_decode.blocklist.blocklist import Blocklist, CompileReport, Match
from prod_decode.blocklist.entries import DEFAULT_MAX_QUOTE, Entry, EntryInfo
from prod_decode.errors import ProdError
from prod_decode.match.automaton import Pattern
from prod_decode.match.scan import Filter
from prod_decode.text.normalize import Normalization
from tests import oracle
from tests.strategies import documents, normalizations, pieces_of, spaced, texts

LINES = "def f(x):\n    return x + 1\n\nclass A:\n    y = [1, 2, 3]\n"  # 37 characters in mode code


def hits(blocklist: Blocklist, text: str) -> set[Match]:
    return set(blocklist.scan(text))


def compile_like(normalization: Normalization, entries: list[Entry], **options: Any) -> Blocklist:
    return Blocklist.compile(
        entries, normalize=normalization.mode, ignore_case=normalization.ignore_case, allow_short=True, **options
    )


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": b"yaml.load("}, "expected text to be a string, got bytes"),
        ({"text": None}, "expected text to be a string, got NoneType"),
        ({"id": 7}, "expected id to be a string, got 7"),
        ({"source": ["s"]}, "expected source to be a string, got ['s']"),
        ({"policy": [[]] * 99}, "entry 'e': expected policy 'phrase' or 'quote', got [[], [], [], [], [], [], ...]"),
        ({"policy": "regex"}, "entry 'e': expected policy 'phrase' or 'quote', got 'regex'"),
        ({"boundary": "word"}, "entry 'e': expected boundary 'start', 'both' or 'none', got 'word'"),
        (
            {"max_quote": 50},
            "entry 'e': max_quote belongs to policy 'quote', this is a 'phrase': drop max_quote, or change the policy",
        ),
        (
            {"policy": "quote", "boundary": "none"},
            "entry 'e': boundary belongs to policy 'phrase', this is a 'quote': drop boundary, or change the policy",
        ),
        *(
            (
                {"policy": "quote", "max_quote": value},
                f"entry 'e': expected max_quote to be a whole number of at least 6 characters, got {value!r}",
            )
            for value in (5, 0, -1, 50.0, "50", True)
        ),
    ],
)
def test_entries_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProdError, match=f"^{re.escape(message)}$"):
        Entry(**({"text": "yaml.load(", "id": "e"} | fields))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("", id="e"), "entry 'e': expected some text to prohibit, got an empty text"),
        (
            Entry(" \n\t", id="e"),
            r"entry 'e': expected some text to prohibit, got ' \n\t', whitespace, which the mode `code` ignores: "
            "remove it, or compile with --normalize none (normalize='none')",
        ),
        (Entry("", id="e", policy="quote"), "entry 'e': expected a document to protect, got an empty text"),
        (
            Entry(" \n", id="e", policy="quote"),
            r"entry 'e': expected a document to protect, got ' \n', whitespace, which the mode `code` ignores",
        ),
        (
            Entry(" a\n( ", id="e"),
            "entry 'e': 'a(' is 2 normalised bytes, expected at least 3: it would ban a great deal; make it longer "
            "or pass --allow-short (allow_short=True)",
        ),
        (
            Entry("ab\ufffdcd", id="e"),
            "entry 'e': text has U+FFFD at character 2, which decoders write for broken bytes, so it cannot be "
            "guarded: remove it, or read the source with its right encoding",
        ),
        (Entry("x" * 200 + "\ufffd", id="e", policy="quote"), "entry 'e': text has U+FFFD at character 200, which"),
        (
            Entry("abc\udc80", id="e"),
            "entry 'e': text has the lone surrogate U+DC80 at character 3, which UTF-8 cannot carry: remove it, or "
            "read the source with its right encoding",
        ),
        (Entry("abc\ud800", id="e", policy="quote"), "entry 'e': text has the lone surrogate U+D800 at character 3"),
    ],
)
def test_compile_refuses(entry: Entry, message: str) -> None:
    with pytest.raises(ProdError, match=f"^{re.escape(message)}"):
        Blocklist.compile([Entry("good one"), entry])
    told: list[str] = []
    blocklist = Blocklist.compile([Entry("good one"), entry, Entry("good two")], skipped=told.append)
    assert [why.startswith(message) for why in told] == [True]
    assert [info.id for info in blocklist.entries()] == ["good one", "good two"]
    assert [match.entry_id for match in blocklist.scan("good two good one")] == ["good two", "good one"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Blocklist.compile("yaml.load("),
            "entries: expected a list of Entry, got str 'yaml.load(': pass [Entry('yaml.load(')]",
        ),
        (
            lambda: Blocklist.compile(["yaml.load("]),
            "entries: expected Entry alone in the list, got str 'yaml.load(': pass [Entry('yaml.load(')]",
        ),
        (
            lambda: Blocklist.compile(Entry("abc")),
            "entries: expected a list of Entry, got Entry: pass a list of it",
        ),
        (lambda: Blocklist.compile(None), "entries: expected a list of Entry, got NoneType: pass [Entry(...)]"),
        (
            lambda: Blocklist.compile([Entry("abc")], allow="text"),
            "allow: expected a list of str, got str 'text': pass a list of it",
        ),
        (
            lambda: Blocklist.compile([Entry("abc")], allow=[Path("a.py")]),
            "allow: expected str alone in the list, got PosixPath: pass their texts, as [...]",
        ),
        (lambda: Blocklist.compile([Entry("abc")], jobs="2"), "expected jobs as a number above 0, got '2'"),
        (
            lambda: Blocklist.merge(Blocklist.compile([Entry("abc")])),
            "blocklists: expected a list of Blocklist, got Blocklist: pass a list of it",
        ),
        (
            lambda: Blocklist.merge(["a.prod"]),
            "blocklists: expected Blocklist alone in the list, got str 'a.prod': pass [Blocklist.load('a.prod')]",
        ),
        (
            lambda: list(Blocklist.compile([Entry("abc")]).scan(b"abc")),
            "expected text as a string, got bytes: decode bytes, read files first",
        ),
    ],
)
def test_arguments_of_another_type_are_refused_whole(call: Any, message: str) -> None:
    with pytest.raises(ProdError, match=f"^{re.escape(message)}"):
        call()


def test_a_list_that_prohibits_nothing_is_refused() -> None:
    with pytest.raises(ProdError, match=r"^expected at least one entry, got none: a blocklist"):
        Blocklist.compile([])
    assert hits(Blocklist.compile([], allow_empty=True), LINES) == set()
    short, free = Entry(LINES, id="s", policy="quote"), Entry(LINES, id="f", policy="quote", max_quote=20)
    with pytest.raises(
        ProdError,
        match=r"^expected an entry that prohibits something, got 3 that prohibit nothing \(1 cannot be guarded, "
        r"1 read as a document and shorter than max_quote: lower it, or give phrases, in a \.txt file or with the "
        r"policy 'phrase', 1 free code all over\)$",
    ):
        Blocklist.compile([short, free, Entry("\ufffd")], allow=[LINES], skipped=print)


def test_entries_that_prohibit_nothing_are_named() -> None:
    short, free = Entry(LINES, id="s", policy="quote"), Entry(LINES, id="f", policy="quote", max_quote=20)
    blocklist = Blocklist.compile([Entry("abc"), short, Entry("abc", id="2"), free], allow=[LINES])
    assert blocklist.ineffective() == ["s", "f"]
    assert Blocklist.compile([Entry("abc"), free]).ineffective() == []


def test_names_and_labels() -> None:
    assert Entry("yaml.load(").name == Entry("yaml.load(", id="").name == "yaml.load("
    assert Entry("yaml.load(", id="e", source="s").label == "entry 'e' (s)"
    # Long, unprintable and empty texts and documents get a hash, of the text alone.
    long = "x" * 61
    for entry in (Entry(long), Entry("a\nb"), Entry(" "), Entry(""), Entry(long, policy="quote")):
        assert re.fullmatch(rf"{entry.policy}-[0-9a-f]{{16}}", entry.name)
    assert Entry(long).name == Entry(long, source="s", boundary="none").name != Entry(long + "x").name
    with pytest.raises(ProdError, match=r"^entry 'phrase-[0-9a-f]{16}' \(list.txt:7\): ' ' is 1 normalised bytes"):
        Blocklist.compile([Entry(" ", source="list.txt:7")], normalize="none")


@pytest.mark.parametrize("short", ["ab", "(", "\u00e9"])
def test_short_phrases_need_permission(short: str) -> None:
    with pytest.raises(ProdError, match="expected at least 3"):
        Blocklist.compile([Entry(short)])
    assert hits(Blocklist.compile([Entry(short, id="e")], allow_short=True), f" {short} ") == {
        Match(1, 1 + len(short), "e")
    }


def test_three_bytes_are_enough() -> None:
    assert len(Blocklist.compile([Entry("a.b"), Entry("\u00e9("), Entry(" \u65e5 ")])) == 3


@pytest.mark.parametrize("normalize", ["none", "code"])
@pytest.mark.parametrize(
    "other",
    [
        Entry("other text", id="e", source="s"),
        Entry("some text", id="e", source="s", boundary="both"),
        Entry("some text", id="e", source="s", policy="quote"),
    ],
)
def test_one_id_for_two_entries_is_refused(other: Entry, normalize: Any) -> None:
    entry = Entry("some text", id="e", source="s")
    message = r"two different entries have the id 'e' \(sources 's' and '[st]'\): give each its own id"
    with pytest.raises(ProdError, match=message):
        Blocklist.compile([entry, other], normalize=normalize)
    with pytest.raises(ProdError, match=message):
        Blocklist.merge([Blocklist.compile([e, Entry("zebra")], normalize=normalize) for e in (entry, other)])


def test_merging_nothing_is_refused() -> None:
    with pytest.raises(ProdError, match="expected at least one blocklist to merge, got none"):
        Blocklist.merge([])


@pytest.mark.parametrize("options", [{"normalize": "none"}, {"ignore_case": True}])
def test_merging_what_normalises_differently_is_refused(options: dict[str, Any]) -> None:
    message = r"cannot merge blocklists that normalise differently: .*: compile them alike"
    with pytest.raises(ProdError, match=message):
        Blocklist.merge([Blocklist.compile([Entry("abc")]), Blocklist.compile([Entry("abc")], **options)])


# ---- phrases -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phrase", "options", "hit", "missed"),
    [
        (
            Entry("eval("),
            {},
            ["eval(x)", "x=eval (", ".eval(", "\u00e9eval("],
            ["literal_eval(", "2eval(", "eval", "Eval("],
        ),
        (Entry("eval(", boundary="none"), {}, ["literal_eval(", "eval ("], ["eval", "ev al("]),
        (
            Entry("gets", boundary="both"),
            {},
            ["gets(", "gets", "x gets\n", "gets x", "gets\u00e9"],
            ["gets_s(", "fgets(", "getsx"],
        ),
        (Entry("gets"), {}, ["gets_s("], ["fgets("]),
        (Entry("((x", boundary="both"), {}, ["f((x)", "( ( x"], ["((xy", "((x1"]),
        (Entry("return "), {}, ["return x", "return(", "return", "x\treturn\n"], ["returned", "return_", "xreturn "]),
        (
            Entry(" load\n", boundary="none"),
            {},
            ["x.load()", "load", "a load b"],
            ["yload", "y load_all", "loads", "2load"],
        ),
        (Entry("\tf(\n", boundary="none"), {"allow_short": True}, ["f(x", "( f (x"], ["af(x", "_f ("]),
        (Entry(" = \n xx "), {}, ["a=xx", "a = xx.y"], ["a=xxy", "a = xx1"]),
        (Entry("return "), {"normalize": "none"}, ["return x", "return "], ["return", "return(", "return\tx"]),
        (Entry("return\u00a0"), {}, ["return\u00a0x"], ["return x"]),
        (Entry(".load("), {}, ["yaml.load(", "x . load ("], [".loads("]),
        (Entry("yaml . load("), {}, ["yaml.load(f)", "yaml\n.\tload  (", "yaml.load("], ["ya ml.load(", "yaml.lo ad("]),
        (Entry("goto fail"), {}, ["goto\n\tfail;"], ["gotofail", "goto.fail", "agoto fail"]),
        (Entry("yaml.load("), {"normalize": "none"}, ["yaml.load("], ["yaml .load(", "YAML.load("]),
        (Entry("a b"), {"normalize": "none"}, ["a b"], ["a  b", "a\tb"]),
        (Entry("MD5("), {"ignore_case": True}, ["md5(", "Md5 ("], ["hmd5("]),
        (Entry("\u00c9tat"), {"ignore_case": True}, ["\u00c9TAT"], ["\u00e9tat"]),
    ],
)
def test_examples_of_phrases(phrase: Entry, options: dict[str, Any], hit: list[str], missed: list[str]) -> None:
    blocklist = Blocklist.compile([phrase], **options)
    assert [text for text in hit if not hits(blocklist, text)] == []
    assert [text for text in missed if hits(blocklist, text)] == []


def test_scan_gives_places_in_the_text_as_it_is() -> None:
    blocklist = Blocklist.compile([Entry("yaml.load(", id="y"), Entry("load(", id="l"), Entry("goto x", id="g")])
    text = "\u00e9\U0001f600 yaml .  load\n(f); goto \t x"
    found = list(blocklist.scan(text))
    assert [(match.entry_id, text[match.start : match.end]) for match in found] == [
        ("y", "yaml .  load\n("),
        ("l", "load\n("),
        ("g", "goto \t x"),
    ]
    assert list(blocklist.scan("yaml.dump(f)")) == []


def test_scan_reads_texts_with_lone_surrogates() -> None:
    assert hits(Blocklist.compile([Entry("abc", id="e")]), "\ud800\udfff abc") == {Match(3, 6, "e")}


def test_the_filter_is_made_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a word that is looked up in a large blocklist; and what is found does not depend on it."""
    made: list[int] = []
    original = Filter.of.__func__

    def counting(cls: type[Filter], automaton: Any) -> Filter:
        made.append(len(automaton))
        return original(cls, automaton)

    monkeypatch.setattr(Filter, "of", classmethod(counting))
    blocklist = Blocklist.compile([Entry(f"function_{n}(") for n in range(500)])
    text = "x = function_17(y)\n"
    expected = [Match(4, 16, "function_17(")]
    scans = len(blocklist.automaton) // (8 * len(normalized(text))) + 1
    assert scans > 5
    for _ in range(scans - 1):
        assert list(blocklist.scan(text)) == expected
    assert made == []
    for _ in range(3):
        assert list(blocklist.scan(text)) == expected
    assert made == [len(blocklist.automaton)]


def normalized(text: str) -> bytes:
    return Normalization("code", False).symbols(text)


def test_scan_lists_more_matches_than_its_first_buffer_holds() -> None:
    blocklist = Blocklist.compile([Entry("a.a", id="e")])
    found = list(blocklist.scan("a." * 3000))
    assert found == [Match(2 * i, 2 * i + 3, "e") for i in range(2999)]


@st.composite
def phrases(draw: st.DrawFn, normalization: Normalization) -> list[Entry]:
    wanted = draw(st.lists(st.tuples(texts, st.sampled_from([None, "start", "both", "none"])), max_size=4))
    return [
        Entry(text[:5], id=str(i), boundary=boundary)
        for i, (text, boundary) in enumerate(wanted)
        if "\ufffd" not in text[:5] and oracle.normalize_text(text[:5], normalization)
    ] or [Entry("zebra", id="0")]


def pattern_of(entry: Entry, normalization: Normalization) -> Pattern:
    symbols = oracle.normalize_text(entry.text, normalization).encode()
    before, behind = re.search(r"\A[ \t\n\r\f\v]", entry.text), re.search(r"[ \t\n\r\f\v]\Z", entry.text)
    return Pattern(
        (entry.boundary != "none" or (normalization.is_code and before is not None)) and oracle.is_word(symbols, 0),
        symbols,
        (entry.boundary == "both" or (normalization.is_code and behind is not None))
        and oracle.is_word(symbols, len(symbols) - 1),
    )


@given(st.data(), normalizations, texts)
def test_scan_finds_what_brute_force_finds_at_its_place(
    data: st.DataObject, normalization: Normalization, text: str
) -> None:
    entries = data.draw(phrases(normalization))
    for entry in entries:
        # Most texts contain no phrase by chance.
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from(["", entry.text])) + text[at:]
    found = list(compile_like(normalization, entries).scan(text))

    symbols = oracle.normalize_text(text, normalization).encode()
    by_id = {entry.id: pattern_of(entry, normalization) for entry in entries}
    places = set()
    for start, end, entry_id in found:
        assert oracle.normalize_text(text[start:end], normalization).encode() == by_id[entry_id].symbols
        before = oracle.normalize_text(text[: start + 1], normalization)
        places.add((len(before[:-1].encode()), entry_id))
    assert len(places) == len(found)
    assert places == {
        (start, entry_id) for entry_id, pattern in by_id.items() for start, _ in oracle.occurrences(symbols, [pattern])
    }
    assert [match.end for match in found] == sorted(match.end for match in found)


# ---- quotes --------------------------------------------------------------------------------------------------------


@st.composite
def quotes(draw: st.DrawFn, normalization: Normalization, document: str) -> str:
    """A text with a run of the document inside, spaced anew where whitespace does not count."""
    start = draw(st.integers(0, len(document)))
    run = document[start : start + draw(st.integers(0, 120))]
    if normalization.is_code:
        run = spaced(pieces_of(run), draw)
    edges = st.text(st.sampled_from("abA_.( \n\u00e9"), max_size=8)
    return draw(edges) + run + draw(edges)


@st.composite
def allowed_texts(draw: st.DrawFn, document: str) -> list[str]:
    """Free code, most of it copied from the document."""
    cuts = draw(st.lists(st.tuples(st.integers(0, len(document)), st.integers(1, 60)), max_size=4))
    return [document[at : at + length] for at, length in cuts] + draw(st.lists(documents, max_size=1))


@pytest.mark.slow
@settings(max_examples=200)
@given(st.data(), normalizations, documents, st.integers(6, 40))
def test_a_quote_is_hit_or_waived_and_free_code_is_neither(
    data: st.DataObject, normalization: Normalization, document: str, max_quote: int
) -> None:
    allow = data.draw(allowed_texts(document))
    text = data.draw(quotes(normalization, document))
    protected = oracle.normalize_text(document, normalization)
    entry = Entry(document, id="doc", policy="quote", max_quote=max_quote)
    if not protected:
        return
    # A list that prohibits nothing is refused.
    blocklist = compile_like(normalization, [entry, Entry("\u00ff\u00ff", id="other")], allow=allow)

    free = [oracle.normalize_text(known, normalization) for known in allow]
    windows = set(oracle.windows(protected, max_quote))
    may_quote = {window for window in windows if any(window in known for known in free)}
    waived = {
        window
        for _, start, end in blocklist.report.waived
        for window in oracle.windows(protected[start:end], max_quote)
    }
    assert waived == may_quote
    said = oracle.windows(oracle.normalize_text(text, normalization), max_quote)
    quoted = any(window in windows - may_quote for window in said)
    found = hits(blocklist, text)
    assert found or not quoted
    assert all(not hits(blocklist, known) for known in allow)
    for start, end, entry_id in found:
        assert entry_id == "doc"
        # An anchor may begin or end with the space between two words, which is none where the slice is cut.
        assert oracle.normalize_text(text[start:end], normalization).strip() in protected


@pytest.mark.parametrize("max_quote", [6, 20, 37])
def test_every_shortest_quote_is_hit_and_no_shorter_one_must_be(max_quote: int) -> None:
    blocklist = Blocklist.compile([Entry(LINES, policy="quote", max_quote=max_quote)])
    code = oracle.normalize_text(LINES, Normalization())
    assert len(code) == 37
    # Standing alone, a run with a space at its edge is shorter once normalised.
    quotes = [quote for quote in oracle.windows(code, max_quote) if quote == quote.strip()]
    assert [quote for quote in quotes if not hits(blocklist, quote)] == []
    assert not all(hits(blocklist, quote) for quote in oracle.windows(code, max_quote // 2))


def test_documents_shorter_than_a_quote_prohibit_nothing_and_are_reported() -> None:
    blocklist = Blocklist.compile([Entry("zebra"), Entry(LINES, id="doc", policy="quote", max_quote=38)])
    assert not hits(blocklist, LINES * 3)
    assert blocklist.report == CompileReport(phrases=1, documents=1, too_short=["doc"], waived=[])


# ---- merging, duplicates, records ----------------------------------------------------------------------------------


@st.composite
def blocklists(draw: st.DrawFn, normalization: Normalization, prefix: str) -> Blocklist:
    """Phrases whose ids begin with the prefix, and documents that other blocklists may have too."""
    entries = [
        Entry(entry.text, id=prefix + entry.name, boundary=entry.boundary) for entry in draw(phrases(normalization))
    ]
    common = st.sampled_from([LINES, "abc.def(ghi)" * 5, "a b c d e f g h"])
    wanted = draw(st.lists(st.tuples(common, st.integers(6, 30)), max_size=2))
    entries += [Entry(text, id=f"{text[:3]}{k}", policy="quote", max_quote=k) for text, k in wanted]
    return compile_like(normalization, entries, allow=draw(st.sampled_from([[], ["def f(x):"]])))


@given(st.data(), normalizations, texts)
def test_merging_prohibits_what_any_does(data: st.DataObject, normalization: Normalization, text: str) -> None:
    one, two = data.draw(blocklists(normalization, "1")), data.draw(blocklists(normalization, "2"))
    text = data.draw(st.sampled_from(["", LINES, "abc . def(ghi)" * 2])) + text
    merged = Blocklist.merge([one, two])
    union = hits(one, text) | hits(two, text)
    assert hits(merged, text) == hits(Blocklist.merge([two, one]), text) == union
    assert hits(Blocklist.merge([merged, one, merged]), text) == union
    assert len(list(merged.scan(text))) == len(union)
    assert set(merged.entries()) == {*one.entries(), *two.entries()}
    assert len(merged) == len(set(merged.entries())) == merged.report.phrases + merged.report.documents
    assert set(merged.report.waived) == {*one.report.waived, *two.report.waived}
    assert set(merged.report.too_short) == {*one.report.too_short, *two.report.too_short}


def test_equal_entries_are_one() -> None:
    entry = Entry("some text", source="s")
    document = Entry(LINES, policy="quote", max_quote=20)
    blocklist = Blocklist.compile([entry, document, entry, Entry("some text", source="t", boundary="start"), document])
    assert len(blocklist) == 2
    assert blocklist.report == CompileReport(phrases=1, documents=1)
    assert list(blocklist.scan("some text")) == [Match(0, 9, "some text")]
    # Of equal entries with several sources, the first is kept.
    assert blocklist.entry(0).source == "s"
    assert Blocklist.merge([blocklist, Blocklist.compile([Entry("some text", source="t")])]).entry(0).source == "s"


def test_entries_that_prohibit_one_pattern_are_all_named() -> None:
    blocklist = Blocklist.compile([Entry("a . b", id="1"), Entry("a.b", id="2"), Entry("a.b", id="3", boundary="none")])
    assert list(blocklist.scan("a.b")) == [Match(0, 3, "1"), Match(0, 3, "2"), Match(0, 3, "3")]
    assert list(blocklist.scan("xa.b")) == [Match(1, 4, "3")]


def test_report() -> None:
    document = "".join(chr(0x4E00 + i) for i in range(100))
    blocklist = Blocklist.compile(
        [
            Entry("some text"),
            Entry(document, id="free", policy="quote", max_quote=20),
            Entry("short", id="short", policy="quote"),
        ],
        allow=[document[10:40], document[50:75]],
    )
    waived = [("free", 10, 40), ("free", 50, 75)]
    assert blocklist.report == CompileReport(phrases=1, documents=2, too_short=["short"], waived=waived)


def test_records_have_their_defaults_resolved() -> None:
    blocklist = Blocklist.compile([Entry("some text"), Entry(LINES, id="q", source="here", policy="quote")])
    phrase, quote = blocklist.entries()
    assert phrase == EntryInfo("some text", None, "phrase", None, "start", phrase.fingerprint)
    assert phrase.fingerprint != quote.fingerprint
    assert (quote.id, quote.source, quote.max_quote, quote.boundary) == ("q", "here", DEFAULT_MAX_QUOTE, None)
    assert blocklist.entry(1) == quote


any_text = st.one_of(
    st.none(), st.text(st.characters(), max_size=8), st.sampled_from(["\ud800", "\u65e5\udfff", '"\\'])
)


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.builds(
                Entry,
                st.sampled_from(["abc", LINES]),
                id=any_text,
                source=any_text,
                boundary=st.sampled_from([None, "start", "both", "none"]),
            ),
            st.builds(
                Entry,
                st.sampled_from(["abc", LINES]),
                id=any_text,
                source=any_text,
                policy=st.just("quote"),
                max_quote=st.one_of(st.none(), st.integers(6, 2**70)),
            ),
        ),
        max_size=5,
        unique_by=lambda entry: entry.name,
    )
)
def test_records_survive_the_file(entries: list[Entry]) -> None:
    entries = [*entries, Entry("zebra", id="one that prohibits something")]
    compiled = Blocklist.compile(entries, allow=["return x + 1"])
    with tempfile.TemporaryDirectory() as folder:
        compiled.save(Path(folder) / "block.prod")
        loaded = Blocklist.load(Path(folder) / "block.prod")
    assert list(loaded.entries()) == [EntryInfo.of(entry) for entry in entries]
    assert loaded.report == compiled.report
    assert list(loaded.scan(LINES + " abc")) == list(compiled.scan(LINES + " abc"))
    again = Blocklist.merge([loaded, compiled])
    assert list(again.entries()) == list(compiled.entries())
