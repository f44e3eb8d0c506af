"""Where a phrase can be refused before its end: at the shortest beginning that nothing else begins with.

Who may not write `os.system(` but may write `os.system` is led to invent `os.system_exec(`. Refused at `os.syst`, which
only `os.system` begins with among the names of `os`, the model takes another name of the module. Such a beginning is
the phrase's *commit point*. Found with too little, it comes too early: where `os.path` is all that is known of `os`, it
would be `os.s`, and `os.sep` be banned. So

- only the last word of a phrase is shortened, and at least one character of it stays;
- what stands before that word must be a module or a class all of whose names are known. Free code alone never has all
  that may follow: who imports `os` and `re` may want `import pathlib` where `import pickle` is banned;
- no free code has the commit point but where the whole phrase stands.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from prod_decode.blocklist.entries import SHORTEST_PATTERN, Records
from prod_decode.blocklist.names import NameTables
from prod_decode.match.automaton import Automaton
from prod_decode.match.scan import Filter
from prod_decode.text.normalize import CLASSES, WORD, Normalization
from prod_decode.text.patterns import Collected, Pattern, Patterns

_WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff]+")
# `os.` and `from os import `, behind anything. In the mode `code` one blank is left between two words.
_OWNER = re.compile(rb"(?<![\w.])(?:([A-Za-z_][\w.]*)\.|from[ \t]+([A-Za-z_][\w.]*)[ \t]+import[ \t]+)$")

# The names of a module or class; None if they are not known, or not all of them.
NamesOf = Callable[[str], Collection[bytes] | None]


def commit_phrases(
    collected: Collected,
    records: Records,
    normalization: Normalization,
    texts: Sequence[bytes],
    packages: Sequence[str],
) -> list[tuple[str, str]]:
    """Cut phrases at their commit points.

    Args:
        collected: patterns; those of phrases become shorter.
        records: of their owners.
        normalization: of all of them.
        texts: free code, normalised.
        packages: whose names are known; see `NameTables`.

    Returns:
        (entry id, what is left of it) of the phrases that became shorter.

    Raises:
        ProdError: a package is not installed.
    """
    tables = NameTables(packages)

    def names_of(dotted: str) -> set[bytes] | None:
        names = tables(dotted)
        return None if names is None else {normalization.symbols(name) for name in names}

    found = ((place, *collected[place]) for place in range(len(collected)))
    phrases = [(place, pattern, info) for place, pattern, owner in found if (info := records[owner]).policy == "phrase"]
    lengths = commit_lengths([pattern for _, pattern, _ in phrases], texts, names_of, least=SHORTEST_PATTERN)
    cut = [
        (place, info.id, pattern.symbols[:length])
        for (place, pattern, info), length in zip(phrases, lengths, strict=True)
        if length < len(pattern.symbols)
    ]
    collected.shorten(np.array([place for place, _, _ in cut], np.int64), np.array([len(s) for *_, s in cut], np.int64))
    return [(entry_id, symbols.decode()) for _, entry_id, symbols in cut]


def commit_lengths(phrases: Sequence[Pattern], texts: Iterable[bytes], names_of: NamesOf, *, least: int) -> list[int]:
    """How many symbols of each phrase to keep.

    For each phrase, where `head` is all before its last word, `tail` the rest, and `word` that word, the plain loop::

        if head ends with the name of a module and a dot, or with `from`, it and `import`, and its names are known:
            others = its names but for `word`
            others += what follows `head` in texts, unless the phrase is complete there
            shared = the most symbols with which `tail` and one of others both begin
            keep len(head) + shared + 1

    Args:
        phrases: distinct or not.
        texts: free code, normalised.
        names_of: by the name of a module or class, all that stands in it, normalised.
        least: no pattern is made shorter than this.

    Returns:
        Lengths, from 1 to that of the phrase, which it is where nothing can be left out. None ends inside a character.
    """
    lengths = [len(phrase.symbols) for phrase in phrases]
    known = {place: names for place, phrase in enumerate(phrases) if (names := _names(phrase.symbols, names_of))}
    heads = {place: _head(phrases[place]) for place in known}
    followers = _followers(sorted(set(heads.values())), texts, max(lengths, default=0) + 1)
    for place, names in known.items():
        phrase, head = phrases[place], heads[place]
        tail = phrase.symbols[len(head.symbols) :]
        others = {name for name in names if name != _word(tail)}
        others |= {text for text in followers[head] if not _completes(phrase.whole, tail, text)}
        shared = max((common_length(tail, other) for other in others), default=len(tail))
        kept = max(len(head.symbols) + shared + 1, least)
        while kept < len(phrase.symbols) and phrase.symbols[kept] & 0xC0 == 0x80:
            kept += 1
        lengths[place] = min(kept, len(phrase.symbols))
    return lengths


def _head(phrase: Pattern) -> Pattern:
    """A phrase without its last word and what comes behind that; without symbols if nothing stands before the word."""
    return Pattern(phrase.bound, phrase.symbols[: head_length(phrase.symbols)], False)


def head_length(symbols: bytes) -> int:
    """How many symbols of a phrase stand before its last word; 0 if it has none."""
    return max((word.start() for word in _WORD.finditer(symbols)), default=0)


def _names(symbols: bytes, names_of: NamesOf) -> Collection[bytes] | None:
    """What else can stand where the last word of a phrase does."""
    owner = _OWNER.search(symbols[: head_length(symbols)])
    return None if owner is None else names_of((owner[1] or owner[2]).decode())


def _word(symbols: bytes) -> bytes:
    match = _WORD.match(symbols)
    return match.group() if match else b""


def _completes(whole: bool, tail: bytes, text: bytes) -> bool:
    rest = text[len(tail) : len(tail) + 1]
    return text.startswith(tail) and not (whole and rest and CLASSES[rest[0]] == WORD)


def common_length(a: bytes, b: bytes) -> int:
    """How many symbols two strings begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _followers(heads: Sequence[Pattern], texts: Iterable[bytes], longest: int) -> dict[Pattern, set[bytes]]:
    """The strings of up to `longest` symbols that follow each of the patterns, which are sorted and distinct."""
    found: defaultdict[Pattern, set[bytes]] = defaultdict(set)
    automaton = Automaton.of(Patterns.of(heads))
    for text in texts if heads else ():
        for last, pattern, _ in Filter.none().find(automaton, np.frombuffer(text, np.uint8)).tolist():
            found[heads[pattern]].add(text[last + 1 : last + 1 + longest])
    return found
