"""The model class `prod` of lm-evaluation-harness: its Hugging Face models, under a mask.

    python -m prod_decode.harness.lm_eval run --model prod --model_args pretrained=M,blocklist=block.prod --tasks T

The command is that of the harness, with the class registered. In a program of your own, import this module first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from torch import Tensor

from prod_decode.command.terminal import exit_status
from prod_decode.errors import ProdError, brief, closest
from prod_decode.harness.continuing import padding_id
from prod_decode.harness.scoring import Named, load_sources, masked_log_probs
from prod_decode.hf import ProdLogitsProcessor
from prod_decode.storage.models import in_hub_format, is_gguf, require_name

PROGRAM = "prod_decode.harness.lm_eval"

# Steps of a long text that are masked together: 2,048 of them with 152k tokens would take 1.2 GB, several times.
_AT_ONCE = 128

# What this class takes and `HFLM` does not, which hands what it does not know to the model.
_OURS = ("blocklist", "exempt_prompt", "json")


def _missing(name: str | None) -> NoReturn:
    raise ProdError(
        f"the model class 'prod' needs lm-evaluation-harness, and the module {name} is not installed: "
        "pip install 'prod-code-unlearning[eval]'"
    ) from None


try:
    from lm_eval import utils
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from tqdm import tqdm
except ModuleNotFoundError as error:
    missing = error.name
    if __name__ == "__main__":
        sys.exit(exit_status(PROGRAM, lambda: _missing(missing)))
    _missing(missing)


@dataclass(frozen=True, slots=True)
class _Scored:
    """A continuation to score.

    Attributes:
        number: of the result.
        text: all tokens before it.
        continuation: its tokens, at least one.
        shown: the tokens that the model is given: as much of both as it has room for, the last one left out.
        goes_on: whether `text` is the one before with its continuation, of one output, and no prompt.
    """

    number: int
    text: list[int]
    continuation: list[int]
    shown: tuple[int, ...]
    goes_on: bool = False


@register_model("prod")
class ProdLM(HFLM):  # type: ignore[misc]  # mypy does not follow lm_eval
    """A Hugging Face model whose outputs and likelihoods are those under a mask.

    `generate_until` generates with a `ProdLogitsProcessor`, which knows the task's stop strings. `loglikelihood` and
    `loglikelihood_rolling` score the distribution that it leaves, normalised again: a continuation that completes what
    is prohibited has the log-likelihood -inf and is never greedy. The context is the prompt, the continuation the
    output; of a rolling text all but the prefix token is output.

    Attributes:
        matcher: what is enforced.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        blocklist: Named | Sequence[Named] | None = None,
        exempt_prompt: bool = False,
        json: bool = False,
        **options: Any,
    ) -> None:
        """Load the model and bind the blocklists to its tokenizer.

        Args:
            pretrained: as `HFLM` takes it, or `bundled`, or a .gguf file, which is written to a temporary directory.
            blocklist: what is prohibited, as `load_sources` takes it.
            exempt_prompt: of `ProdLogitsProcessor`.
            json: of `ProdLogitsProcessor`.
            options: whatever else `HFLM` takes, `peft` for an adapter among it.

        Raises:
            ProdError: no blocklist, one that cannot be read or bound, or an option with which the mask would not be
                exact.
        """
        for name in options:
            if name not in signature(HFLM.__init__).parameters and (meant := closest(name, _OURS, 0.7)):
                raise ProdError(f"unknown argument {brief(name)}; did you mean {meant!r}?")
        if blocklist is None:
            raise ProdError(
                "blocklist: expected a compiled blocklist or a corpus index, got none: add blocklist=FILE (several: "
                "A+B) to the model's arguments, or measure the model without a mask with --model hf"
            )
        if options.get("backend") == "seq2seq":
            self._refuse_backend()
        if options.get("truncation"):
            raise ProdError(
                "truncation: expected False, got True: the tokenizer would cut prompts, and what it cuts off is hidden "
                "from the mask; leave it out"
            )
        sources = load_sources(blocklist)
        if isinstance(pretrained, str):
            require_name(pretrained)
            if is_gguf(pretrained):
                # Written for `HFLM`, which loads directories, for as long as this lives.
                self._written = TemporaryDirectory(prefix="prod-")
                pretrained = in_hub_format(pretrained, Path(self._written.name) / "model", dtype="float32")
        super().__init__(pretrained, **options)
        if getattr(getattr(self.model, "active_peft_config", None), "is_prompt_learning", False):
            raise ProdError(
                "peft: expected an adapter of weights, such as LoRA, got one of virtual tokens, which have no text "
                "that a mask could check: measure it with --model hf"
            )
        self._refuse_words_cut(self.think_end_token)
        self._options: dict[str, Any] = {"exempt_prompt": exempt_prompt, "json": json}
        self.matcher = ProdLogitsProcessor(sources, self.tokenizer).matcher
        self._scorer = ProdLogitsProcessor(self.matcher, **self._options)
        self._names = [one if isinstance(one, str) else type(one).__name__ for one in _list(blocklist)]

    def set_cache_hook(self, cache_hook: Any) -> NoReturn:  # noqa: ARG002
        """Refuse a cache of responses: `--use_cache`.

        Raises:
            ProdError: always.
        """
        raise ProdError(
            "use_cache: expected no cache of responses, got one: it knows a request by its text alone, and would hand "
            "out what was written or scored without this blocklist; leave it out"
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the results say of the model: that of `HFLM`, and the blocklists by name."""
        return {**super().get_model_info(), "prod_blocklist": self._names, **self._options}

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The prompts of a batch, padded: ids and attention mask, both int64 [B, T].

        Raises:
            ProdError: a prompt would be cut.
        """
        ids, attended = super().tok_batch_encode(strings, padding_side, None, truncation)
        if left_truncate_len is not None and ids.shape[1] > left_truncate_len:
            raise ProdError(
                f"expected prompts of at most {left_truncate_len} tokens, got one of {ids.shape[1]}: its beginning "
                "would be cut off, where a phrase may begin; lower max_gen_toks or --num_fewshot, or raise max_length "
                "where the model has room"
            )
        return ids, attended

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows where the model has no room for one; -inf where prohibited."""
        scored: list[_Scored] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            windows = utils.get_rolling_token_windows(
                token_list=tokens, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            done = 0
            for context, predicted in map(utils.make_disjoint_window, windows):
                text = [self.prefix_token_id, *tokens[:done]]
                scored.append(_Scored(number, text, predicted, (*context, *predicted[:-1]), goes_on=done > 0))
                done += len(predicted)
        sums = [0.0] * len(requests)
        # In their order: a window's mask goes on with that of the window before.
        for one, (total, _) in zip(scored, self._score(scored, disable_tqdm=disable_tqdm), strict=True):
            sums[one.number] += total
        return sums

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_options: Any
    ) -> list[tuple[float, bool]]:
        """For each (_, context, continuation): the log-likelihood, and whether every token of it is the likeliest."""
        scored = []
        for number, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise ProdError(
                    f"expected continuations of 1 to {self.max_length} tokens, got one of {len(continuation)}: raise "
                    "max_length where the model has room, or leave the document out"
                )
            shown = (*context, *continuation)[-(self.max_length + 1) :][:-1]
            scored.append(_Scored(number, context, continuation, shown))
        # The longest first, as `HFLM` does: what does not fit into memory is seen at once.
        scored.sort(key=lambda one: (-len(one.shown), one.shown))
        found = self._score(scored, disable_tqdm=disable_tqdm)
        results = {one.number: result for one, result in zip(scored, found, strict=True)}
        return [results[number] for number in range(len(requests))]

    def _score(self, scored: Sequence[_Scored], *, disable_tqdm: bool) -> list[tuple[float, bool]]:
        """The results, in the order given, in which the processor is asked; neighbours may share what is shown."""
        # With `logits_cache`, what has the same tokens up to the last is one row: choices of a single token each.
        rows: list[list[_Scored]] = []
        for one in scored:
            if self.logits_cache and rows and rows[-1][0].shown == one.shown:
                rows[-1].append(one)
            else:
                rows.append([one])
        results: list[tuple[float, bool]] = []
        size = self._size_of_batch(scored)
        quiet = disable_tqdm or self.rank != 0
        with tqdm(total=len(scored), disable=quiet, desc="Running loglikelihood requests") as bar:
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                for row, logits in zip(batch, self._logits([row[0].shown for row in batch]), strict=True):
                    results += [self._score_one(one, logits) for one in row]
                    bar.update(len(row))
        return results

    def _size_of_batch(self, scored: Sequence[_Scored]) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        if not scored:
            return 1
        longest = max(scored, key=lambda one: len(one.shown))
        return int(self._detect_batch_size([(None, list(longest.shown), longest.continuation[-1:])], 0))

    def _logits(self, shown: Sequence[Sequence[int]]) -> list[Tensor]:
        """The model's logits after each token, [T, V] for each text."""
        ids = torch.full((len(shown), max(map(len, shown))), padding_id(self.tokenizer))
        for row, tokens in enumerate(shown):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        # On the right, where a causal model does not look.
        logits = self._model_call(ids.to(self.device))
        return [logits[row, : len(tokens)] for row, tokens in enumerate(shown)]

    def _score_one(self, one: _Scored, logits: Tensor) -> tuple[float, bool]:
        if not one.goes_on:
            self._scorer.forget()
        # In bfloat16 a sum of probabilities is off by more than what many choices differ by.
        dtype = self.softmax_dtype or torch.promote_types(logits.dtype, torch.float32)
        count = len(one.continuation)
        total, greedy = 0.0, True
        for start in range(0, count, _AT_ONCE):
            part = one.continuation[start : start + _AT_ONCE]
            before = [*one.text, *one.continuation[:start]]
            place = len(logits) - count + start
            log_probs = masked_log_probs(self._scorer, before, part, logits[place : place + len(part)].to(dtype))
            tokens = torch.tensor(part, device=log_probs.device)
            total += float(log_probs.gather(1, tokens[:, None]).sum())
            greedy = greedy and bool((log_probs.argmax(-1) == tokens).all())
        return total, greedy

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """What the model writes under the mask, int64 [B, T], prompts included."""
        if options.get("custom_generate") is not None:
            raise ProdError(
                "custom_generate: expected none, got a generation loop of its own, which need not ask the mask: leave "
                "it out"
            )
        # The output is cut where a stop string begins, and words end there.
        processor = ProdLogitsProcessor(self.matcher.cut_by(stop), **self._options)
        others = list(options.pop("logits_processor", None) or ())
        sequences: Tensor = super()._model_generate(
            context, max_length, stop, logits_processor=[*others, processor], **options
        )
        return sequences

    def _get_backend(self, *given: Any, **options: Any) -> None:
        super()._get_backend(*given, **options)
        if self.backend != "causal":
            self._refuse_backend()

    def _refuse_backend(self) -> NoReturn:
        raise ProdError(
            "backend: expected a causal language model, got an encoder-decoder, whose prompt is not part of the text "
            "that it writes: measure it with --model hf"
        )

    def _refuse_words_cut(self, end: str | int | None) -> None:
        """Refuse an end of thinking behind which an output would begin inside a word that the mask saw whole."""
        shown = self.tokenizer.decode([end]) if isinstance(end, int) else end or ""
        if shown[-1:].isalnum() or shown.endswith("_"):
            raise ProdError(
                f"think_end_token: expected text that does not end in a letter, digit or underscore, got {shown!r}: "
                "behind it a word would begin that the mask did not see begin"
            )


def _list(named: Any) -> list[Any]:
    return list(named) if isinstance(named, list | tuple) else [named]


def main() -> int:
    """The command of lm-evaluation-harness with the model `prod`; returns the exit status."""
    return exit_status(PROGRAM, _run)


def _run() -> int:
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
