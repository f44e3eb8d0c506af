"""The adapter for SGLang; `docs/engines.md` is its manual. Not run against SGLang itself."""

from __future__ import annotations

import json
import os
import pickle
from functools import lru_cache
from typing import Any

from torch import Tensor

from prod_decode.errors import ProdError
from prod_decode.guard import Guard
from prod_decode.matcher import Matcher
from prod_decode.models import load_tokenizer
from prod_decode.serving import Settings
from prod_decode.tokenizer_bytes import vocabulary_of

_NOT_A_TOKEN = -1


class ProdLogitsProcessor:
    """For SGLang, on the operator's side.

    Start the server with `--enable-custom-logit-processor` and `--disable-overlap-schedule`, without which the newest
    token is not there yet, and without speculative decoding, whose drafts are not shown. Its environment has the
    blocklists, `PROD_BLOCKLISTS` as in `docs/vllm.md`, and the tokenizer, `PROD_TOKENIZER`.

    SGLang takes the class from each request, as a pickle. So a gateway of the operator's must put
    `custom_logit_processor=ProdLogitsProcessor.to_str()` and `custom_params={}` into every request, and must not take
    the former from a client. `custom_params={"prod_blocklists": [...]}` adds names. A request with an unknown name, or
    without `custom_params`, ends at once.
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
        for row, given in zip(logits, custom_param_list, strict=True):
            arguments = dict(given or {})
            request = arguments.pop("__req__", None)
            try:
                names = _settings().names(arguments)
            except ProdError:
                request = None
            if request is None:
                # What no one can check ends; raising would end the server, for every client.
                names, text = tuple(_settings().files), [_NOT_A_TOKEN]
            else:
                text = [*request.origin_input_ids, *request.output_ids]
            if names:
                _guard_of(names).mask_(row, text)
        return logits


@lru_cache(maxsize=1)
def _settings() -> Settings:
    return Settings.find(None)


@lru_cache(maxsize=1)
def _matchers() -> dict[str, Matcher]:
    name = os.environ.get("PROD_TOKENIZER")
    if not name:
        raise ProdError("PROD_TOKENIZER: expected the model's tokenizer, got nothing: set it to a directory or hub id")
    vocabulary = vocabulary_of(load_tokenizer(name))
    return {name: blocklist.bind(vocabulary) for name, blocklist in _settings().load().items()}


@lru_cache(maxsize=256)
def _guard_of(names: tuple[str, ...]) -> Guard:
    return Guard([_matchers()[name] for name in names])
