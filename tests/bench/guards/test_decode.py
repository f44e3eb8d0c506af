"""Our guards: the same entries, banned where they end, where they part from other names, and with replacements."""

from __future__ import annotations

import pytest

from bench.guards import GUARDS
from bench.guards.budget import Budget
from bench.guards.decode import Decode
from prod_decode.blocklist.entries import Entry
from prod_decode.errors import ProdError

ENTRIES = [
    Entry("os.system(", id="run"),
    Entry("tempfile.mktemp(", id="name", replacement="tempfile.mkstemp("),
    Entry("return x + 1\n" * 20, id="file", policy="quote", max_quote=60),
]


@pytest.mark.parametrize(
    ("name", "early", "instead"),
    [
        ("decode", {}, set()),
        ("decode-commit", {"run": "os.syst", "name": "tempfile.mkt"}, set()),
        ("decode-replace", {"run": "os.syst", "name": "tempfile.mkt"}, {"tempfile.mkstemp("}),
    ],
)
def test_what_a_guard_makes_of_entries(name: str, early: dict[str, str], instead: set[str]) -> None:
    guard = GUARDS[name]()
    assert isinstance(guard, Decode)
    blocklist = guard.blocklist(ENTRIES)
    assert dict(blocklist.report.commit_points) == early
    assert {replacement for *_, replacement in blocklist.report.replacements} == instead
    assert (blocklist.report.phrases, blocklist.report.documents) == (2, 1)
    # Everything that the first bans, the others ban.
    for text in ("os.system(a)", "x = tempfile.mktemp()", "return x + 1\n" * 9):
        assert list(blocklist.scan(text)), text
    for text in ("os.systems", "tempfile.mkdtemp()", "return x + 1\n" * 2):
        assert bool(list(blocklist.scan(text))) == (name != "decode" and text.startswith("os.syst")), text


def test_the_lists_of_the_package_stand_for_the_tasks_own_entries() -> None:
    blocklist = GUARDS["decode-lists"]().blocklist(ENTRIES)
    assert blocklist is not None
    found = {text: [hit.entry_id for hit in blocklist.scan(text)] for text in ("yaml.load(f)", "np.trapz(y)", "os.sy")}
    assert found == {"yaml.load(f)": ["yaml.load("], "np.trapz(y)": ["np.trapz"], "os.sy": []}
    assert not list(blocklist.scan("return x + 1\n" * 20))
    assert ("yaml.load(", "yaml.load(", "yaml.safe_load(") in blocklist.report.replacements


def test_guards_that_vllm_has() -> None:
    assert {name for name, guard in GUARDS.items() if guard.in_vllm} == {
        "base",
        "decode",
        "decode-commit",
        "decode-replace",
        "decode-budget",
        "decode-lists",
    }
    assert GUARDS["base"]().blocklist(ENTRIES) is None
    assert GUARDS["memfree"]().blocklist(ENTRIES) is None


def test_budgets_for_documents() -> None:
    guard = GUARDS["decode-budget"]()
    assert isinstance(guard, Budget)
    text = "".join(f"name_{number} = {number}\n" for number in range(200))
    found = guard.blocklist([*ENTRIES, Entry(text, id="long", policy="quote", max_quote=60)])
    assert [(one.entry.id, one.characters) for one in found.budgets()] == [("file", 54), ("long", 240)]
    with pytest.raises(ProdError, match="decode-budget: expected documents, got phrases alone"):
        guard.processors(ENTRIES[:2], None)
