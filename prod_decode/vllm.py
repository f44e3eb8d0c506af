r"""The adapter for vLLM: named blocklists as one logits processor for both of its model runners.

    vllm serve MODEL --logits-processors prod_decode.vllm:ProdLogitsProcessor \
        --additional-config '{"prod": {"blocklists": {"gpl": "gpl.prod"}, "default": ["gpl"]}}'

`docs/reference/vllm.md` is its manual.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm import __version__ as vllm_version
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.blocklist.entries import Entry
from prod_decode.corpus.index import CorpusIndex
from prod_decode.device.slots import Slots
from prod_decode.errors import ProdError
from prod_decode.masking import check_width, mask_padding_, mask_prohibited_
from prod_decode.match.batch import Request, RequestBatch
from prod_decode.match.matcher import Matcher
from prod_decode.match.unescaped import UnescapedMatcher, unescaped
from prod_decode.serving.batch_preference import BatchPreference
from prod_decode.serving.reporter import BatchReporter, Reporter
from prod_decode.serving.settings import CANARY_PHRASE, CHECK, ENDLESS, ENVIRONMENT, JSON, REPORT, Settings, requested
from prod_decode.serving.vllm_plugin import (
    PROCESSOR,
    EnforcesBlocklists,
    config_of_caller,
    guards_in,
    has_tools,
    misplaced_key,
)
from prod_decode.storage.models import load_tokenizer
from prod_decode.text.escapes import AFTER_U
from prod_decode.tokens.tokenizer_bytes import vocabulary_of
from prod_decode.tokens.vocabulary import SPECIAL, UNKNOWN, Vocabulary
from prod_decode.version import __version__

_LOG = logging.getLogger(__name__)
# vLLM shows what is below a warning for its own loggers only.
_START_LOG = logging.getLogger("vllm.prod_decode")

_NOT_ON_V2 = (
    "the V2 model runner does not decode the escapes of JSON, and does not see code of several lines in a string: set "
    "VLLM_USE_V2_MODEL_RUNNER=0"
)


class ProdLogitsProcessor(V1LogitsProcessor, V2LogitsProcessor, EnforcesBlocklists):  # type: ignore[misc]  # mypy does not follow vllm
    """Keeps prohibited patterns out of what vLLM generates.

    For every row, the tokens that would complete a pattern of one of the request's blocklists after the text so far,
    prompt included, get the score -inf; so do columns beyond the vocabulary. A row without a token left ends with EOS,
    whatever else the request asks for. Rows of requests without a blocklist keep their bits,
    but for one without any score above -inf, which ends like a row whose every token is banned.

    On V1 `RequestBatch` follows the requests, and the probability of going on in a phrase that has a replacement is
    moved to going on in that (`masking.move_mass_`), before the mask. On V2 the device follows them, and nothing is
    moved.

    What cannot be checked is not let through, and ends no one else's request: a row whose text is not known (tokens
    that vLLM has not filled in, embeddings, ids that the tokenizer does not have) ends with EOS at once. Raising
    instead would end the engine, and every other request with it.

    Attributes:
        settings: the files and the default.
        names: the names of the blocklists, that of the canary last; their order is that of `matchers`.
        matchers: one for each; none on a rank that never samples.
        eos_ids: what ends a row.
    """

    def __init__(self, vllm_config: Any, device_or_req_states: Any, is_pin_memory: bool = False) -> None:
        """Load everything, bind it to the model's tokenizer and compile, so that nothing is left for the first request.

        Args:
            vllm_config: vLLM's.
            device_or_req_states: from the V1 runner the `torch.device` of the logits, from V2 its request states.
            is_pin_memory: from the V1 runner; not used.

        Raises:
            ProdError: settings that are missing or wrong, a file or a tokenizer that is refused, or a feature of vLLM
                that would write text which no one checks.
        """
        del is_pin_memory
        _check_features(vllm_config)
        on_v2 = not isinstance(device_or_req_states, torch.device | str)
        self.settings = Settings.find(vllm_config.additional_config)
        if on_v2 and self.settings.json == "always":
            raise ProdError(f'"json": "always": {_NOT_ON_V2}')
        vocabulary = _vocabulary(vllm_config.model_config)
        self.eos_ids = _eos_ids(vocabulary, vllm_config.model_config)
        ending = {*self.eos_ids, *vocabulary.eos_ids, *_configured_eos_ids(vllm_config.model_config)}
        self._ending = np.array(sorted(token for token in ending if 0 <= token < len(vocabulary)), np.int64)
        self.names = (*self.settings.files, CHECK)
        samples = _samples(vllm_config)
        loaded = {**self.settings.load(), CHECK: _canary()} if samples else {}
        if on_v2:
            _refuse_on_v2(self.settings, loaded)
        self.matchers = list(self.settings.bind(loaded, vocabulary).values())
        self._known = len(vocabulary)
        self._slots = None
        if on_v2 and samples:
            self._slots = Slots(self.matchers, self.eos_ids, self._ending, vllm_config, device_or_req_states)
        if not on_v2 and samples:
            for name in (*self.settings.default, CHECK):
                _warm_up(self.matchers[self.names.index(name)])
            # The tables of a normalisation take a second; a list that uses them then takes little. An index has more.
            once = {matcher.normalization: matcher for matcher in self.matchers if not matcher.corpora}
            for matcher in (*once.values(), *(matcher for matcher in self.matchers if matcher.corpora)):
                unescaped(matcher)
        self._batch = RequestBatch()
        self._hits = None
        if samples and _tells(vllm_config) and (log := self.settings.open_log()) is not None:
            self._hits = BatchReporter(Reporter(log, self.matchers), self.matchers, self.eos_ids)
        self._preference = BatchPreference([] if on_v2 else self.matchers)
        if samples:
            _START_LOG.info("%s", _describe_start(self.settings))
        preferring = [name for name, matcher in zip(loaded, self.matchers, strict=True) if matcher.forks]
        if on_v2 and preferring:
            _START_LOG.warning(
                "the lists %s name replacements, which the V2 model runner does not write: phrases are banned, and no "
                "more; for replacements set VLLM_USE_V2_MODEL_RUNNER=0",
                ", ".join(preferring),
            )
        if on_v2 and samples:
            _START_LOG.warning(
                "requests with structured output or tools are matched as they are written: %s", _NOT_ON_V2
            )

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request, with HTTP 400, whose options get round the mask, or that asks for what is not there.

        Takes `ignore_eos` over: EOS is masked in such a request, so that it can still end a row without a token left.
        Marks a request with tools, so that its JSON is decoded.

        Raises:
            ProdError: it names a blocklist which the server does not have, is beam search, or asks for probabilities
                before the mask.
        """
        # This is what vLLM's beam search asks for at each step, with nothing else to tell it by. It picks tokens by
        # their log-probabilities, which vLLM takes before the mask.
        if sampling_params.max_tokens == 1 and sampling_params.logprobs and not sampling_params.detokenize:
            raise ProdError(
                "beam search picks tokens by their probabilities before prohibited ones are masked: leave out "
                "use_beam_search, and use n for several answers (max_tokens=1 with logprobs and detokenize=False is "
                "taken for beam search)"
            )
        arguments = sampling_params.extra_args or {}
        if key := misplaced_key(arguments):
            raise ProdError(
                f"{key[:64]}: expected it inside of the request's vllm_xargs, got it where a request of this kind does "
                "not read it"
            )
        shown = _unmasked_probabilities(sampling_params)
        added = requested(arguments)
        tools = has_tools()
        if not (shown or sampling_params.ignore_eos or added or tools or CHECK in arguments or JSON in arguments):
            return
        settings = _settings_of_caller()
        names = settings.names(arguments)
        if arguments.get(CHECK) == REPORT:
            raise ProdError(f"{CHECK}: {json.dumps(_report(settings, names))}")
        if shown and names:
            raise ProdError(shown)
        on_v2 = getattr(config_of_caller(), "use_v2_model_runner", False)
        if on_v2 and names and JSON in arguments:
            raise ProdError(f"{JSON}: {_NOT_ON_V2}, or leave it out")
        marks = {}
        if sampling_params.ignore_eos and names:
            sampling_params.ignore_eos = False
            marks[ENDLESS] = 1
        if tools and names and not on_v2:
            marks[JSON] = 1
        if marks:
            sampling_params.extra_args = {**arguments, **marks}

    def is_argmax_invariant(self) -> bool:
        """False: greedy search must see the mask."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the requests that came, went or moved; reads no tokens, since the newest are not known yet here.

        Raises:
            ProdError: a row that no one announced.
        """
        if batch_update is None:
            return
        requests = list(self._batch.requests)
        place = {row: row for row in range(len(requests))}

        def arrive(params: Any, prompt: list[int] | None, output: list[int]) -> int:
            tokens = None if prompt is None else np.array(prompt, np.int64)
            matchers, beside = self._matchers_of(params)
            requests.append(Request(tokens, output, matchers, _is_endless(params), beside))
            return len(requests) - 1

        process_dict_updates(place, batch_update, arrive)
        missing = [row for row in range(batch_update.batch_size) if row not in place]
        if missing:
            raise ProdError(
                f"expected an update for each of {batch_update.batch_size} rows, got none for row {missing[0]}: this "
                "version of vLLM behaves in a way that is not known; use one that docs/reference/vllm.md names"
            )
        sources = [place[row] for row in range(batch_update.batch_size)]
        self._batch.arrange([requests[source] for source in sources], sources)

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Mask the logits of one step in place.

        Args:
            logits: [B, V], floats on any device. On V1 one row for each request in the order of the last
                `update_state`; on V2 as `ctx` says.
            ctx: from the V2 runner, its `LogitsContext`.

        Returns:
            `logits` itself.

        Raises:
            ProdError: another number of rows.
        """
        if self._slots is not None:
            return self._slots.apply(logits, ctx)
        batch = self._batch
        if self._hits is not None:
            self._hits.release()
        if len(logits) != len(batch.requests):
            raise ProdError(
                f"expected logits of {len(batch.requests)} rows, got {len(logits)}: this version of vLLM behaves in a "
                "way that is not known; use one that docs/reference/vllm.md names"
            )
        if not len(batch.guarded):
            return logits
        batch.follow()
        width = logits.shape[1]
        found = rows, tokens = batch.banned(width)
        if len(batch.endless):
            ending = self._ending[self._ending < width]
            rows = np.concatenate([rows, np.repeat(batch.endless, len(ending))])
            tokens = np.concatenate([tokens, np.tile(ending, len(batch.endless))])
        moves = self._preference.moves(batch, (rows, tokens))
        if self._hits is not None:
            self._hits.look(batch, logits, found, [move for _, move in moves])
        if not len(rows) and width <= self._known and not moves:
            if self._hits is not None:
                self._hits.tell(batch, logits)
            return logits
        mask_padding_(logits, self._known, None if len(batch.guarded) == len(logits) else batch.guarded)
        self._preference.apply_(logits, batch, moves)
        if self._hits is not None:
            mask_prohibited_(logits, rows, tokens)
            self._hits.tell(batch, logits)
        return mask_prohibited_(logits, rows, tokens, fallback=self.eos_ids)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: a request moves into a slot; whether anything is enforced on it."""
        names = self._names_of(sampling_params)
        stops = _stops(sampling_params)
        # A rank that never samples has no matchers.
        matchers = [self.matchers[number] for number in names or ()] if self.matchers else []
        if any(matcher.cut_by(stops) is not matcher for matcher in matchers):
            _LOG.warning(
                "a request ends: the V2 runner does not see where its stop strings %s cut a word that a list prohibits "
                "as a whole; leave out those that begin with a letter, a digit or _",
                stops,
            )
            names = None
        if names and (sampling_params.extra_args or {}).get(JSON):
            _LOG.warning("a request ends that asks for %s: %s", JSON, _NOT_ON_V2)
            names = None
        if self._slots is not None:
            self._slots.take(req_idx, names, endless=_is_endless(sampling_params))
        return names is None or bool(names)

    def apply_staged_writes(self) -> None:
        """V2: send what `add_request` said to the device."""
        if self._slots is not None:
            self._slots.write()

    def _names_of(self, params: Any) -> tuple[int, ...] | None:
        try:
            names = self.settings.names(params.extra_args)
        except ProdError as error:
            _LOG.warning("a request that was not validated ends: %s", error)
            return None
        return tuple(self.names.index(name) for name in names)

    def _matchers_of(self, params: Any) -> tuple[tuple[Matcher | UnescapedMatcher, ...] | None, tuple[Matcher, ...]]:
        """What a rank that samples enforces on a request, None if it cannot have been validated; what it prefers."""
        names = self._names_of(params) if self.matchers else ()
        if names is None:
            return None, ()
        matchers, stops = [self.matchers[name] for name in names], _stops(params)
        found: list[Matcher | UnescapedMatcher] = [matcher.cut_by(stops) for matcher in matchers]
        if self.settings.unescapes(params.extra_args, is_structured=params.structured_outputs is not None):
            found += [unescaped(matcher, stops) for matcher in matchers]
        return tuple(found), self._preference.beside(matchers)


def _refuse_on_v2(settings: Settings, loaded: Mapping[str, Blocklist | CorpusIndex]) -> None:
    """Refuse what the V2 runner would not keep.

    Raises:
        ProdError: with the names of the lists.
    """
    remedy = "set VLLM_USE_V2_MODEL_RUNNER=0"
    if indices := [name for name, source in loaded.items() if isinstance(source, CorpusIndex)]:
        raise ProdError(
            f"expected blocklists alone, got {', '.join(indices)}: the V2 model runner follows no index; {remedy}"
        )
    budgeted = [name for name, source in loaded.items() if isinstance(source, Blocklist) and source.pieces]
    if budgeted:
        raise ProdError(
            f"expected lists without budgets, got {', '.join(budgeted)}: the V2 model runner does not count what an "
            f"output gives away; {remedy}, or compile them without --budget"
        )
    if settings.exempt_prompt:
        raise ProdError(
            f"exempt_prompt: expected none, got {', '.join(settings.exempt_prompt)}: the V2 model runner cannot exempt "
            f"what a prompt quotes; {remedy}, or leave it out"
        )
    if settings.audit_log is not None:
        raise ProdError(
            f"audit_log: expected none, got {settings.audit_log}: the V2 model runner bans on the device and tells no "
            f"hits; {remedy}, or leave it out"
        )


def _check_features(vllm_config: Any) -> None:
    """Refuse what would leave text unchecked. Pooling, and speculation on V1, vLLM itself refuses before it comes here.

    Raises:
        ProdError: the feature, and what to do.
    """
    model = vllm_config.model_config
    if not guards_in(tuple(model.logits_processors or ())):
        # Without it vLLM never fills in the tokens of asynchronous scheduling: every row would end at once.
        raise ProdError(
            f"expected --logits-processors {PROCESSOR}, got the class by an entry point alone, which hides new tokens "
            "from it: name it explicitly"
        )
    speculation = getattr(vllm_config, "speculative_config", None)
    if getattr(speculation, "rejection_sample_method", None) == "synthetic":
        raise ProdError(
            "expected drafts that the model verifies, got rejection_sample_method 'synthetic', which takes drafts that "
            "are banned: use 'standard'"
        )
    if getattr(model, "enable_trace_replay", False):
        raise ProdError(
            "expected tokens that the model samples, got --enable-trace-replay, which writes a client's tokens past "
            "the mask: leave it out"
        )
    if model.enable_prompt_embeds:
        raise ProdError("expected prompts as tokens, got --enable-prompt-embeds, which hides their text: leave it out")
    if model.is_diffusion:
        raise ProdError(
            "expected a model that writes one token after another, got a diffusion model: use another model"
        )


def _vocabulary(model: Any) -> Vocabulary:
    """The model's vocabulary, from the tokenizer that vLLM decodes with.

    Raises:
        ProdError: a tokenizer that is refused, or that is not the model's.
    """
    if model.tokenizer_mode not in ("auto", "hf", "slow"):
        raise ProdError(
            f"expected --tokenizer-mode auto, hf or slow, got {model.tokenizer_mode!r}: the bytes of its tokens cannot "
            "be derived"
        )
    tokenizer = load_tokenizer(
        model.tokenizer, revision=model.tokenizer_revision, trust_remote_code=model.trust_remote_code
    )
    vocabulary = vocabulary_of(tokenizer)
    width = model.get_vocab_size()
    check_width(width, len(vocabulary), f"the tokenizer {model.tokenizer}", "use the model's own --tokenizer")
    return vocabulary


def _eos_ids(vocabulary: Vocabulary, model: Any) -> list[int]:
    """The tokenizer's EOS, at which vLLM stops every request; or else those of the generation configuration.

    Raises:
        ProdError: there is none that adds no text.
    """
    candidates = vocabulary.eos_ids or _configured_eos_ids(model)
    ids = [token for token in candidates if token < len(vocabulary) and vocabulary.kinds[token] == SPECIAL]
    if not ids:
        raise ProdError(
            "expected an EOS token to end rows whose every token is banned, got none in the tokenizer or the "
            "generation configuration: add eos_token_id to the model's generation_config.json"
        )
    return ids


def _configured_eos_ids(model: Any) -> Sequence[int]:
    configured = model.try_get_generation_config().get("eos_token_id")
    return [configured] if isinstance(configured, int) else configured or []


def _samples(vllm_config: Any) -> bool:
    """Whether this process samples: with a pipeline of several ranks only those of the last one do."""
    if vllm_config.parallel_config.pipeline_parallel_size == 1:
        return True
    from vllm.distributed import get_pp_group

    return bool(get_pp_group().is_last_rank)


def _tells(vllm_config: Any) -> bool:
    """Whether this process writes the audit log: where several compute one token, the first."""
    if getattr(vllm_config.parallel_config, "tensor_parallel_size", 1) == 1:
        return True
    from vllm.distributed import get_tensor_model_parallel_rank

    return bool(get_tensor_model_parallel_rank() == 0)


def _canary() -> Blocklist:
    return Blocklist.compile([Entry(CANARY_PHRASE, boundary="none")])


def _stops(params: Any) -> list[str] | None:
    """The strings at which vLLM cuts the text of a request; None: it cuts behind them, which may be inside a word."""
    stops = [params.stop] if isinstance(params.stop, str) else list(params.stop or ())
    return None if stops and params.include_stop_str_in_output else stops


def _is_endless(params: Any) -> bool:
    return bool(params.extra_args and params.extra_args.get(ENDLESS))


def _describe_start(settings: Settings) -> str:
    """One line: what is enforced; hashes as `sha256sum` prints them, cut."""
    lists = []
    for name, file in settings.files.items():
        with Path(file).open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        lists.append(f"{name}={file} (sha256 {digest[:16]})")
    exempt = f"; outputs may repeat what prompts quote of {', '.join(settings.exempt_prompt)}"
    audit = f"; hits are written to {settings.audit_log}"
    return (
        f"prod-decode {__version__}: blocklists {', '.join(lists)}; enforced on every request: "
        f"{', '.join(settings.default) or 'none'}{exempt if settings.exempt_prompt else ''}"
        f"{audit if settings.audit_log else ''}"
    )


def _warm_up(matcher: Matcher) -> None:
    """Compile what a step calls: 12 s where numba has nothing cached."""
    states = matcher.states_of(np.zeros((1, 0), np.int64))
    matcher.banned_all(states)
    known = np.flatnonzero(matcher.vocabulary.kinds != UNKNOWN)[:1].astype(np.int64)
    matcher.advance_all(states, known)
    matcher.track()
    decoding = unescaped(matcher)
    tracker = decoding.track()
    tracker.take(np.full(1, -1))
    tracker.advance(known)
    for unescaped_states in decoding.matchers.values():
        unescaped_states.banned_all(states)
    decoding.banned(int(states[0]), AFTER_U)


def _unmasked_probabilities(params: Any) -> str | None:
    """Why a guarded request is refused that would see what the model wants to write before the mask; None if not.

    One such request a token spells out a prohibited text. `logprobs` of 0 shows the token that was written, no other.
    """
    if params.prompt_logprobs is not None or params.prompt_logprob_token_ids is not None:
        return (
            "prompt_logprobs, and echo with logprobs, show prohibited text: vLLM takes them before the mask; leave "
            "them out"
        )
    if params.logprobs or params.logprob_token_ids:
        config = config_of_caller()
        if config is None or config.model_config.logprobs_mode not in PROCESSED_LOGPROBS_MODES:
            return (
                "logprobs show prohibited text on this server: leave them out, or have it started with --logprobs-mode "
                "processed_logprobs"
            )
    return None


def _report(settings: Settings, names: tuple[str, ...]) -> dict[str, object]:
    """What `prod-decode check-server` is told; names of lists that this request does not get are not told."""
    return {
        "version": __version__,
        "vllm": vllm_version,
        "default": list(settings.default),
        "enforced": [name for name in names if name != CHECK],
        "loaded": len(settings.files),
    }


def _settings_of_caller() -> Settings:
    """The server's settings, in the process that takes requests, where vLLM tells a processor nothing about itself.

    They are in the environment, or else in the configuration that the caller has.

    Raises:
        ProdError: neither is there.
    """
    if ENVIRONMENT in os.environ:
        return Settings.find(None)
    config = config_of_caller()
    if config is None:
        raise ProdError(
            f"expected the names of the blocklists in this process, got none: set {ENVIRONMENT} instead of "
            "--additional-config"
        )
    return Settings.find(config.additional_config)
