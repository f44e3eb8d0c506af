"""What docs/concepts/guarantee.md says of texts that are the same code, and of those that are not."""

from __future__ import annotations

import unicodedata

import pytest

from prod_decode import Blocklist, Entry

COMPOSED, DECOMPOSED = "caf\N{LATIN SMALL LETTER E WITH ACUTE}(", "cafe\N{COMBINING ACUTE ACCENT}("


def is_found(phrase: str, text: str, **options: bool) -> bool:
    return bool(list(Blocklist.compile([Entry(phrase)], **options).scan(text)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("yaml . load (", True),
        ("yaml\n.load\n\t(", True),
        ("yaml.load\\\n(", False),
        ("yaml./* a comment */load(", False),
        ("yaml.load  # a comment\n(", False),
        ("yaml.\N{NO-BREAK SPACE}load(", False),
        ("yaml.\N{ZERO WIDTH SPACE}load(", False),
        ("yaml.\N{FULLWIDTH LATIN SMALL LETTER L}oad(", False),
    ],
)
def test_what_counts_as_other_text(text: str, found: bool) -> None:
    assert is_found("yaml.load(", text) == found


def test_unicode_forms_are_not_made_equal() -> None:
    assert unicodedata.normalize("NFD", COMPOSED) == DECOMPOSED
    assert is_found(COMPOSED, COMPOSED)
    assert is_found(DECOMPOSED, DECOMPOSED)
    assert not is_found(COMPOSED, DECOMPOSED)
    assert not is_found(DECOMPOSED, COMPOSED)


def test_only_ascii_letters_are_folded() -> None:
    assert is_found("Caf(", "cAF(", ignore_case=True)
    assert not is_found(COMPOSED, COMPOSED.upper(), ignore_case=True)
