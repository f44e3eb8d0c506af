"""The adapter for SGLang; `docs/reference/engines.md` is its manual. Not run against SGLang itself."""

from __future__ import annotations

import json
import logging
import os
import pickle
from functools import lru_cache
from typing import Any

from torch import Tensor

from prod_decode.errors import ProdError
from prod_decode.match.matcher import Matcher
from prod_decode.serving.audit_log import AuditLog
from prod_decode.serving.guard import Guard
from prod_decode.serving.settings import Settings
from prod_decode.storage.models import load_tokenizer
from prod_decode.tokens.tokenizer_bytes import vocabulary_of

_NOT_A_TOKEN = -1

_log = logging.getLogger(__name__)


class ProdLogitsProcessor:
    """For SGLang, on the operator's side.

    Start the server with `--enable-custom-logit-processor` and `--disable-overlap-schedule`, without which the newest
    token is not there yet, and without speculative decoding, whose drafts are not shown. Its environment has the
    blocklists, `PROD_BLOCKLISTS` as in `docs/reference/vllm.md`, and the tokenizer, `PROD_TOKENIZER`.

    SGLang takes the class from each request, as a pickle. So a gateway of the operator's must put
    `custom_logit_processor=ProdLogitsProcessor.to_str()` and `custom_params={}` into every request, and must not take
    the former from a client. `custom_params={"prod_blocklists": [...]}` adds names. Requests with a grammar, and those
    with `"prod_json": true`, are matched with JSON's escapes decoded as well. A request with an unknown name, or
    without `custom_params`, ends at once; so does one whose text does not grow by one token from step to step, since
    some of it is hidden then. With `ignore_eos` nothing ends a request: it writes EOS up to its length.
    """

    @classmethod
    def to_str(cls) -> str:
        """The class as SGLang sends it: by reference, so that the server must have this package."""
        return json.dumps({"callable": pickle.dumps(cls).hex()})

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any] | None] | None = None) -> Tensor:
        """Mask `logits`, [B, V], in place; each row's parameters have its request under `__req__`."""
        if custom_param_list is None or len(custom_param_list) != len(logits):
            raise ProdError(f"expected parameters for each of {len(logits)} rows, got {custom_param_list!r}")
        requests = [id(given["__req__"]) for given in custom_param_list if given and "__req__" in given]
        if len(set(requests)) < len(requests):
            raise ProdError("expected a request for each row, got several rows of one: turn speculative decoding off")
        for number, (row, given) in enumerate(zip(logits, custom_param_list, strict=True)):
            arguments = dict(given or {})
            request = arguments.pop("__req__", None)
            try:
                names = _settings().names(arguments)
            except ProdError:
                request = None
            if request is None or not _grows(request):
                # What no one can check ends; raising would end the server, for every client.
                names, text = tuple(_settings().files), [_NOT_A_TOKEN]
            else:
                text = [*request.origin_input_ids, *request.output_ids]
            if names:
                is_json = _settings().unescapes(arguments, is_structured=_is_structured(request))
                _guard_of(names, _stop_strings_of(request), is_json).mask_(
                    row,
                    text,
                    prompt=len(request.origin_input_ids) if request else 0,
                    stops=_stops_of(request),
                    # Of all but the last part of a long prompt nothing comes.
                    place=None if getattr(request, "inflight_middle_chunks", 0) else (number, _name_of(request)),
                )
        return logits


def _name_of(request: Any) -> str | None:
    name = getattr(request, "rid", None)
    return None if name is None else str(name)


def _grows(request: Any) -> bool:
    """Whether the text is one token longer than at the last step; what is remembered goes with the request."""
    length = len(request.origin_input_ids) + len(request.output_ids)
    before = getattr(request, "_prod_length", None)
    if before is not None and length != before + 1:
        _log.error(
            "expected the text of a request to have grown by one token, got %d after %d, so it ends: start the server "
            "with --disable-overlap-schedule and without speculative decoding",
            length,
            before,
        )
        return False
    # All but the last part of a long prompt is computed without a token to come of it.
    if not getattr(request, "inflight_middle_chunks", 0):
        request._prod_length = length
    return True


def _stop_strings_of(request: Any) -> tuple[str, ...] | None:
    """The strings at which SGLang cuts the text of a request; None: it may cut it anywhere."""
    params = getattr(request, "sampling_params", None)
    strings = getattr(params, "stop_strs", None) or ()
    if getattr(params, "stop_regex_strs", None) or (strings and getattr(params, "no_stop_trim", False)):
        return None
    return (strings,) if isinstance(strings, str) else tuple(strings)


def _is_structured(request: Any) -> bool:
    """Whether a grammar of any kind tells SGLang what to write."""
    parameters = getattr(request, "sampling_params", None)
    return any(getattr(parameters, kind, None) for kind in ("json_schema", "regex", "ebnf", "structural_tag"))


def _stops_of(request: Any) -> list[int]:
    """The ids at which SGLang ends a request: the model's, the tokenizer's, and those that the request names."""
    tokenizer = getattr(request, "tokenizer", None)
    found = [
        getattr(request, "eos_token_ids", None),
        getattr(getattr(request, "sampling_params", None), "stop_token_ids", None),
        getattr(tokenizer, "additional_stop_token_ids", None),
        [getattr(tokenizer, "eos_token_id", None)],
    ]
    return sorted({token for ids in found for token in ids or () if token is not None})


@lru_cache(maxsize=1)
def _settings() -> Settings:
    return Settings.find(None)


@lru_cache(maxsize=1)
def _matchers() -> dict[str, Matcher]:
    name = os.environ.get("PROD_TOKENIZER")
    if not name:
        raise ProdError("PROD_TOKENIZER: expected the model's tokenizer, got nothing: set it to a directory or hub id")
    vocabulary = vocabulary_of(load_tokenizer(name))
    return _settings().bind(_settings().load(), vocabulary)


@lru_cache(maxsize=256)
def _guard_of(names: tuple[str, ...], stop: tuple[str, ...] | None, is_json: bool) -> Guard:
    matchers = [_matchers()[name] for name in names]
    return Guard(matchers, must_end=False, stop=stop, json=is_json, on_hit=_log_of_hits())


@lru_cache(maxsize=1)
def _log_of_hits() -> AuditLog | None:
    return _settings().open_log()
