"""Keep a code model from emitting prohibited code, exactly, while it generates.

    from prod_decode import Blocklist, Entry, ProdLogitsProcessor

    blocklist = Blocklist.compile([Entry(text="yaml.load(")])
    model.generate(**inputs, logits_processor=[ProdLogitsProcessor(blocklist, tokenizer)])

Importing the package imports neither torch nor transformers nor vllm; what needs them is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from prod_decode.version import __version__

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist, Match
    from prod_decode.blocklist.entries import Entry
    from prod_decode.blocklist.ready import read_list
    from prod_decode.corpus.index import CorpusIndex
    from prod_decode.errors import ProdError
    from prod_decode.hf import ProdLogitsProcessor
    from prod_decode.match.matcher import Matcher
    from prod_decode.serving.audit_log import AuditLog
    from prod_decode.serving.hits import Hit
    from prod_decode.tokens.vocabulary import Vocabulary

__all__ = [
    "AuditLog",
    "Blocklist",
    "CorpusIndex",
    "Entry",
    "Hit",
    "Match",
    "Matcher",
    "ProdError",
    "ProdLogitsProcessor",
    "Vocabulary",
    "__version__",
    "read_list",
]

_HOMES = {
    "AuditLog": "serving.audit_log",
    "Blocklist": "blocklist.blocklist",
    "CorpusIndex": "corpus.index",
    "Entry": "blocklist.entries",
    "Hit": "serving.hits",
    "Match": "blocklist.blocklist",
    "Matcher": "match.matcher",
    "ProdError": "errors",
    "ProdLogitsProcessor": "hf",
    "Vocabulary": "tokens.vocabulary",
    "read_list": "blocklist.ready",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
