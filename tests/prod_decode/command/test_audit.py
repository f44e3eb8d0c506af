"""pyahocorasick and our own automaton, which share no code, count the same."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.command.audit import Auditor

words = st.lists(st.sampled_from(["a", "b", "ab", "A", ".", "(", " ", "\n", "é", "_"]), min_size=1, max_size=8)
texts = words.map("".join)
boundaries = st.sampled_from(["start", "both", "none"])


@st.composite
def blocklists(draw: st.DrawFn) -> Blocklist:
    entries = {text.strip(): boundary for text, boundary in draw(st.lists(st.tuples(texts, boundaries), max_size=6))}
    return Blocklist.compile(
        [Entry(text, id=text, boundary=boundary) for text, boundary in entries.items() if text] or [Entry("zebra")],
        normalize=draw(st.sampled_from(["code", "none"])),
        ignore_case=draw(st.booleans()),
        allow_short=True,
    )


@pytest.mark.slow
@given(blocklists(), st.lists(texts, max_size=6).map("".join))
def test_the_audit_agrees_with_the_scan(blocklist: Blocklist, text: str) -> None:
    found = [match.entry_id for match in blocklist.scan(text)]
    auditor = Auditor(blocklist)
    assert auditor.count(text) == Counter(found)
    assert auditor.compare(text, found) is None
    if found:
        assert auditor.compare(text, found[1:]) == (
            f"entry {found[0]}: scan found {found.count(found[0]) - 1}, pyahocorasick {found.count(found[0])}"
        )
