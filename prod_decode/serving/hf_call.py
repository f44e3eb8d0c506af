"""What `model.generate` knows and does not tell a logits processor, read from the stack frames that call it.

A processor is given ids and scores. Three things that decide whether the guarded text is the text that a user sees are
elsewhere: the ids that `generate` stops at, the part of the text that is in its cache alone, and who decodes the ids
and how. They are local variables of the callers; transformers has no other way to them. Nothing is changed there, and
a loop that is not `generate` shows nothing.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from prod_decode.errors import ProdError
from prod_decode.match.matcher import Matcher
from prod_decode.tokens.vocabulary import SPECIAL, Vocabulary

# Every replacement of `clean_up_tokenization` has its place here.
_UNTIDY = "a . b ? c ! d , e ' f n't g 'm h 's i 've j 're k"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of `generate`, from inside.

    Attributes:
        config: its own copy of the generation configuration: the same object throughout the call.
        frame: of `generate`.
        loop: of the decoding loop, which `generate` called.
    """

    config: Any
    frame: FrameType
    loop: FrameType


def list_of(frame: FrameType) -> Any:
    """The list of processors in which a processor is called: `generate` makes one for each call. None: no list."""
    if frame.f_code.co_name == "__call__" and _is_of("transformers.generation", frame):
        return frame.f_locals.get("self")
    return None


def find_call(frame: FrameType | None) -> Call | None:
    """The innermost call of `generate` above a frame, assistants' calls left out; None: there is none."""
    below = frame
    while frame is not None and below is not None:
        if frame.f_code.co_name == "generate" and _is_of("transformers", frame):
            config = frame.f_locals.get("generation_config")
            # What only the configuration of a call that is under way has.
            if hasattr(config, "_eos_token_tensor") and not getattr(config, "is_assistant", False):
                return Call(config, frame, below)
        below, frame = frame, frame.f_back
    return None


def end_ids_of(call: Call, own: list[int], vocabulary: Vocabulary, width: int, *, given: bool) -> list[int]:
    """The ids that end a row in this call.

    Args:
        call: of `generate`.
        own: the processor's.
        vocabulary: of the tokenizer.
        width: columns of the scores.
        given: whether a user chose `own`.

    Returns:
        Those at which `generate` stops and that add no text; of `own` those, if a user chose. `own` itself if
        `generate` stops at none: then nothing ends a row but the length.

    Raises:
        ProdError: there is no such id.
    """
    stops = call.config._eos_token_tensor
    if stops is None:
        return own
    at: list[int] = stops.reshape(-1).tolist()
    known = [i for i in at if 0 <= i < min(len(vocabulary), width) and vocabulary.kinds[i] == SPECIAL]
    usable = [i for i in known if i in own] if given else known
    if not usable:
        whose = f"the processor's eos_token_id is {own}" if given else f"the tokenizer's special EOS is {own}"
        raise ProdError(
            f"expected an id that ends a row without a token left, got none: generate stops at {at} and {whose}; pass "
            f"generate(eos_token_id={[*at, *own]})"
        )
    return usable


def check_history(call: Call, shown: int) -> None:
    """Refuse a call whose cache holds more tokens than it shows.

    Args:
        call: of `generate`.
        shown: tokens of the ids that the processor was given.

    Raises:
        ProdError: the cache is longer, of which the processor would know nothing.
    """
    held = _tokens_in((call.frame.f_locals.get("model_kwargs") or {}).get("past_key_values"))
    if held > shown:
        # Drafts have been computed as well: assisted decoding asks for the scores after each of them.
        drafted = call.loop.f_locals.get("candidate_input_ids")
        shown = max(shown, 0 if drafted is None else drafted.shape[-1])
    if held > shown:
        raise ProdError(
            f"expected the ids of the whole text, got {shown} of them for a cache of {held} tokens: a pattern may "
            "begin in what is hidden; pass generate all the ids, the cached ones included (it computes new ones only), "
            "and also beside inputs_embeds"
        )


def check_text(call: Call, matcher: Matcher) -> None:
    """Refuse a pipeline or a streamer whose text is not that of the ids.

    Raises:
        ProdError: it removes spaces that the matcher counts on.
    """
    streamer = call.frame.f_locals.get("streamer")
    # Text streamers alone decode; one of a user's own is given ids.
    if hasattr(streamer, "decode_kwargs") and hasattr(streamer, "tokenizer"):
        _check_streamer(streamer, matcher)
    if (found := _find_pipeline(call.frame)) is not None:
        _check_pipeline(*found, matcher)


def _check_streamer(streamer: Any, matcher: Matcher) -> None:
    name = type(streamer).__name__
    if streamer.decode_kwargs.get("clean_up_tokenization_spaces") and _cleans_up(streamer.tokenizer):
        raise ProdError(
            f"expected a streamer that shows the text as it is, got {name}(..., clean_up_tokenization_spaces=True), "
            "which removes spaces: leave that out"
        )
    if not matcher.normalization.is_code and _drops_first_space(streamer.tokenizer, matcher.vocabulary):
        raise ProdError(
            f"expected a streamer that shows the text as it is, got {name}, which drops a space at the start of each "
            "line with this tokenizer, and a blocklist that compares spaces: decode the whole output instead, or "
            "compile the blocklist with normalize='code'"
        )


def _check_pipeline(pipeline: Any, options: dict[str, Any], matcher: Matcher) -> None:
    tokenizer = getattr(pipeline, "tokenizer", None)
    if tokenizer is None:
        return
    name, option = type(pipeline).__name__, "clean_up_tokenization_spaces"
    parameters = inspect.signature(pipeline.postprocess).parameters
    default = parameters[option].default if option in parameters else None
    if options.get(option, default) and _cleans_up(tokenizer):
        raise ProdError(
            f"expected a pipeline that shows the text as it is, got {name} with {option}=True (its default), "
            f"which removes spaces: pass {option}=False to the pipeline"
        )
    whole = getattr(options.get("return_type"), "name", "FULL_TEXT") == "FULL_TEXT"
    if whole and not matcher.normalization.is_code and _drops_first_space(tokenizer, matcher.vocabulary):
        raise ProdError(
            f"expected a pipeline that shows the text as it is, got {name}, which drops the space between prompt and "
            "output with this tokenizer, and a blocklist that compares spaces: pass return_full_text=False to the "
            "pipeline, or compile the blocklist with normalize='code'"
        )


def _find_pipeline(frame: FrameType) -> tuple[Any, dict[str, Any]] | None:
    """The pipeline that called, and the options with which it will decode."""
    base, iterators = (sys.modules.get(f"transformers.pipelines.{name}") for name in ("base", "pt_utils"))
    if base is None or iterators is None:
        return None
    pipeline = None
    for above in _callers(frame):
        if not _is_of("transformers.pipelines", above):
            continue
        here = above.f_locals
        owner = here.get("self")
        if pipeline is None:
            if not isinstance(owner, base.Pipeline):
                continue
            pipeline = owner
        # One input at a time it is a variable of `run_single`; of several, iterators carry it.
        if isinstance(options := here.get("postprocess_params"), dict):
            return pipeline, options
        if isinstance(owner, iterators.PipelineIterator) and owner.infer == pipeline.postprocess:
            return pipeline, owner.params
    return None if pipeline is None else (pipeline, pipeline._postprocess_params)


def _is_of(package: str, frame: FrameType) -> bool:
    """Whether a frame runs code of a package. Up to Python 3.12 `f_locals` is a copy that keeps alive what it names.

    So no variable is looked at in a user's function, nor, but for drafts, in the loop that frees its logits.
    """
    return str(frame.f_globals.get("__name__")).startswith(package)


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _tokens_in(cache: Any) -> int:
    """Tokens in a cache, 0 if it does not say: one without an attention layer counts none."""
    try:
        return int(cache.get_seq_length())
    except (AttributeError, TypeError, ValueError):
        return 0


def _cleans_up(tokenizer: Any) -> bool:
    """Whether `clean_up_tokenization_spaces` takes effect: transformers 5 ignores it for fast BPE tokenizers."""
    ids = tokenizer.encode(_UNTIDY, add_special_tokens=False)
    tidy, untidy = (tokenizer.decode(ids, clean_up_tokenization_spaces=on) for on in (True, False))
    return bool(tidy != untidy)


def _drops_first_space(tokenizer: Any, vocabulary: Vocabulary) -> bool:
    """Whether the text of a few ids alone lacks the space that they begin with in a longer text."""
    led = next((i for i in range(len(vocabulary)) if vocabulary.token_bytes(i).startswith(b" ")), None)
    if led is None:
        return False
    return bool(tokenizer.decode([led, led]) != (2 * vocabulary.token_bytes(led)).decode(errors="replace"))
