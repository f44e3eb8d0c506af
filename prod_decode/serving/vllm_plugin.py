"""What vLLM loads by itself where this package is installed: entry points that notice a server without its processor.

vLLM calls `register` in every process, and makes a `Watch` beside every model runner. Neither masks anything: a server
whose configuration has blocklists but not the processor must not start, and one that has none must not take a request
that asks for them. This module is light: it imports neither numba nor the processor.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from types import FrameType
from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor

from prod_decode.errors import ProdError
from prod_decode.serving.settings import CHECK, is_close, is_meant, is_variable, requested

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor

    _BASES: tuple[Any, ...] = (V1LogitsProcessor, V2LogitsProcessor)
except ImportError:  # before 0.31: whoever installed this package for something else must not be stopped by it
    _BASES = (V1LogitsProcessor,)

_LOG = logging.getLogger(__name__)

PROCESSOR = "prod_decode.vllm:ProdLogitsProcessor"


class EnforcesBlocklists:
    """What `ProdLogitsProcessor` and its subclasses are; they are known by it without loading them."""


class Watch(*_BASES):  # type: ignore[misc]
    """Not a processor: refuses to start, or to take requests, where blocklists are configured and not enforced."""

    def __init__(self, vllm_config: Any, *_: Any) -> None:
        """Look at the configuration.

        Raises:
            ProdError: it has blocklists, and the processor is not named.
        """
        check_named(vllm_config)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse what this server cannot enforce.

        Raises:
            ProdError: as above, which is seen here alone where vLLM makes no processors (speculative decoding on V1);
                or the request asks for blocklists, and the server has none.
        """
        config = config_of_caller()
        if config is None:
            return
        check_named(config)
        arguments = sampling_params.extra_args or {}
        if not is_named(config) and (requested(arguments) or CHECK in arguments or misplaced_key(arguments)):
            raise ProdError(
                f"expected a server that enforces blocklists, got one that was started without --logits-processors "
                f"{PROCESSOR}: ask another server"
            )

    def is_argmax_invariant(self) -> bool:
        """It changes nothing."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Nothing."""

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: nothing is changed for any request."""
        del req_idx, sampling_params
        return False

    def apply(self, logits: Any, ctx: Any = None) -> Any:
        """The logits as they are."""
        del ctx
        return logits


def check_named(vllm_config: Any) -> None:
    """Refuse a configuration that has blocklists but not the processor.

    Raises:
        ProdError: it does.
    """
    found = _asked_for(vllm_config.additional_config)
    if found and not is_named(vllm_config):
        raise ProdError(
            f"{found}: blocklists are configured, and nothing enforces them: add --logits-processors {PROCESSOR}, or "
            "remove the blocklists"
        )


def is_named(vllm_config: Any) -> bool:
    """Whether the processor, or a subclass of it, is among those that the operator named."""
    return bool(guards_in(tuple(vllm_config.model_config.logits_processors or ())))


@lru_cache
def guards_in(processors: Sequence[str | type]) -> tuple[bool, ...]:
    """For each of vLLM's processors, whether it is one of this package; none if the last is not.

    Raises:
        ProdError: one of this package is there, and is not the last.
    """
    if not processors:
        return ()
    ours = tuple(issubclass(_resolve(processor), EnforcesBlocklists) for processor in processors)
    if any(ours) and not ours[-1]:
        raise ProdError(
            f"--logits-processors: expected {PROCESSOR} as the last one, got {processors[-1]} behind it, which could "
            "allow again what is banned: change the order"
        )
    return ours if any(ours) else ()


def _resolve(processor: str | type) -> type:
    if isinstance(processor, type):
        return processor
    module, _, name = processor.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found if isinstance(found, type) else object


def _asked_for(additional_config: object) -> str | None:
    """Where the configuration has blocklists, or something that was meant to be that."""
    keys = additional_config if isinstance(additional_config, Mapping) else {}
    for key in keys:
        if isinstance(key, str) and (key.casefold() == "prod" or is_close(key)):
            return f"--additional-config, {key!r}"
    return next((name for name in os.environ if is_variable(name)), None)


def config_of_caller() -> Any:
    """The configuration that a caller has, `InputProcessor.vllm_config`: vLLM shows its validation hook none.

    None where no caller has one.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        config = getattr(frame.f_locals.get("self"), "vllm_config", None)
        if config is not None and hasattr(config, "additional_config"):
            return config
        frame = frame.f_back
    return None


def has_tools() -> bool:
    """Whether a caller within vLLM has tools, or a request with tools: vLLM shows its validation hook neither."""
    return any(here.get("tools") or getattr(here.get("request"), "tools", None) for here in _callers())


def misplaced_key(arguments: Mapping[str, Any]) -> str | None:
    """A key of ours that stands in a request to vLLM's server where nothing reads it; None if there is none.

    vLLM shows its validation hook no request, but its functions further up have it: the fields that its kind of request
    does not have, or all that was sent where the kind drops those.

    Args:
        arguments: what was read, `vllm_xargs`: a kind of request that hands on what it does not know may have read it.
    """
    for here in _callers():
        request = here.get("request")
        fields = getattr(type(request), "model_fields", None)
        sent = getattr(here.get("raw_request"), "_json", None) if fields else None
        for body in (getattr(request, "model_extra", None), sent):
            beside = {key: body[key] for key in body if key not in (fields or ())} if isinstance(body, Mapping) else {}
            for key, value in _all_keys(beside):
                if is_meant(key) and not (key in arguments and arguments[key] == value):
                    return key
    return None


def _all_keys(value: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Every key of an object of JSON and of those in it, but not of those in arrays, with its value."""
    found = [value]
    for mapping in found:
        for key, inside in mapping.items():
            if isinstance(key, str):
                yield key, inside
            if isinstance(inside, Mapping):
                found.append(inside)


def _callers() -> Iterator[Mapping[str, Any]]:
    """The variables of vLLM's own functions among the callers, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("vllm."):
            yield frame.f_locals
        frame = frame.f_back


def register() -> None:
    """What vLLM calls in every process: its classes do two things in another way from then on."""
    _end_grammars()
    _validate_where_requests_arrive()


def _validate_where_requests_arrive() -> None:
    """Let requests be validated where vLLM's server calls its engine.

    vLLM 0.32 validates once it asks for the first token. A request with several prompts asks in a task for each of
    them, of which no caller has the request, and an answer that streams has begun by then, as HTTP 200.
    """
    try:
        from vllm.v1.engine.async_llm import AsyncLLM

        plain = AsyncLLM.generate
    except (ImportError, AttributeError) as error:
        _LOG.warning("requests with several prompts are not looked through for keys beside vllm_xargs: %s", error)
        return
    if plain.__module__ == __name__:
        return

    def generate(self: Any, prompt: Any, sampling_params: Any, *rest: Any, **options: Any) -> Any:
        validate = getattr(self.input_processor, "validate_logits_processors_params", None)
        if validate is not None:
            validate(sampling_params)
        return plain(self, prompt, sampling_params, *rest, **options)

    AsyncLLM.generate = generate


def _end_grammars() -> None:
    """Let a request with a grammar end where all that the grammar allows is banned.

    There the processor leaves EOS alone. vLLM 0.32 stops the request at it, and then asks the grammar, which rejects
    EOS in the middle: the request becomes an error (HTTP 500), and its text is lost. A stopped request needs no grammar
    any more, so its last token is not shown to it.
    """
    try:
        from vllm.v1.request import RequestStatus
        from vllm.v1.structured_output import StructuredOutputManager as Manager

        plain = Manager.accept_tokens
        stopped = RequestStatus.FINISHED_STOPPED
    except (ImportError, AttributeError) as error:
        _LOG.warning("requests with a grammar may end with an error where all it allows is banned: %s", error)
        return
    if plain.__module__ == __name__:
        return

    def accept_tokens(self: Any, request: Any, new_token_ids: list[int]) -> bool:
        if request.use_structured_output and request.status == stopped and not request.resumable:
            new_token_ids = new_token_ids[:-1]
        return bool(plain(self, request, new_token_ids))

    Manager.accept_tokens = accept_tokens
