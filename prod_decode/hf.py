"""The adapter for Hugging Face `generate`: a matcher as a logits processor."""

from __future__ import annotations

import copy
import functools
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.corpus.index import CorpusIndex
from prod_decode.errors import ProdError, clear_keywords
from prod_decode.masking import (
    check_width,
    mask_padding_,
    mask_prohibited_,
    prod_distribution,
    renormalize_log_probs_,
)
from prod_decode.match.matcher import Matcher
from prod_decode.match.tracker import PromptEdge
from prod_decode.match.trackers import Combined
from prod_decode.match.unescaped import unescaped
from prod_decode.serving.hf_call import check_history, check_text, end_ids_of, find_call, list_of
from prod_decode.serving.hits import Hit
from prod_decode.serving.preference import Move, Preference
from prod_decode.serving.reporter import LEAST_MASS, Culprit, Looked, Place, Reporter, culprits_of
from prod_decode.tokens.tokenizer_bytes import vocabulary_of
from prod_decode.tokens.vocabulary import SPECIAL

# How far from 0 the logsumexp of log-probabilities may be: float32 rounding of 152k terms is below 1e-5.
_LOG_MASS_TOLERANCE = 1e-3

_NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int64))

# What keeps texts out.
Source = Matcher | Blocklist | CorpusIndex


@dataclass(frozen=True, slots=True)
class Ban:
    """One step at which the token that the model rated highest was banned.

    Attributes:
        row: of the scores.
        position: the length of the text so far in tokens, left padding included: the index of the token to come.
        token_id: the token that the model rated highest.
        probability: of that token, before the ban; 0 to 1.
        mass: the probability of all tokens banned at this step, before the ban; 0 to 1.
        entries: ids of the entries to blame, in the order in which their patterns end; at least one.
        replacement: what is preferred there in place of the phrase that the token would go on in; None: nothing.
    """

    row: int
    position: int
    token_id: int
    probability: float
    mass: float
    entries: tuple[str, ...]
    replacement: str | None = None


class ProdLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # mypy does not follow transformers
    """Keeps prohibited patterns out of what `model.generate` writes.

        model.generate(**inputs, logits_processor=[ProdLogitsProcessor(blocklist, tokenizer)])

    For every row, the tokens that would complete a pattern after the text so far, prompt included, get the score -inf;
    so do columns beyond the vocabulary. Mode `mask` leaves every other score alone, except that rows of normalised
    log-probabilities, which is what beam search passes, are normalised again. In mode `prod` the scores become the
    logarithm of `masking.prod_distribution`. A row without a token left ends with EOS. Where an entry has a
    replacement, the probability of going on in its phrase is moved to going on in that (`masking.move_mass_`).

    Nothing needs a reset: what is remembered between calls is compared with `input_ids` and computed again where it
    does not fit. So one processor serves greedy search, sampling, beams, assisted decoding, prompt lookup, any batch
    and any number of `generate` calls, one at a time: concurrent calls take one each, and may share the matcher.

    Where the guarantee ends:

    - Put it last in `logits_processor`: a later one may raise what this one masked. Temperature, top-k and top-p, which
      transformers applies afterwards, cannot.
    - Continuous batching (`generate_batch`) drops the processor with no more than a warning: nothing is enforced there.
    - A user must see the text of the ids. A `TextGenerationPipeline` that cleans up spaces, and a streamer or pipeline
      that drops some which the blocklist compares, are refused. What a streamer of your own shows is not known.
    - The whole text must be among the ids. A cache that holds more tokens than `generate` is given ids is refused, and
      so are `inputs_embeds` alone. A cache of a model without attention layers does not say how much it holds.
    - These and the ids at which `generate` stops are read from its stack frame. A loop of your own shows none of it:
      pass all the ids and `eos_token_id`, and call `forget` where a new output begins. With
      `generate(eos_token_id=None)` nothing ends a row but its length.
    - An assistant with a tokenizer of its own is unsupported: transformers passes the processor the assistant's ids.
    - Gemma 4 assistants are not passed the processor. That is safe, since what they draft is verified, except with
      `assistant_ensemble_weight`, which accepts drafts that the verification gives probability 0.

    Attributes:
        fired: by entry id, the number of steps at which the token rated highest was banned because of that entry. Two
            entries may share a step.
        steps: the number of steps so far: rows of all calls, apart from rows that had already ended. Each beam counts,
            and with assisted decoding and prompt lookup each draft and each verification does. Prompt lookup also asks
            with constant scores; those count here but never in `fired`.
    """

    # Continuous batching passes the newest tokens only, not the text.
    supports_continuous_batching = False

    @clear_keywords
    def __init__(
        self,
        source: Source | Sequence[Source],
        tokenizer: Any = None,
        *,
        mode: Literal["mask", "prod"] = "mask",
        top_p: float = 1.0,
        max_n: int | None = None,
        temperature: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        on_ban: Callable[[Ban], object] | None = None,
        json: bool = False,
        exempt_prompt: bool = False,
        on_hit: Callable[[Hit], object] | None = None,
        least_mass: float = LEAST_MASS,
    ) -> None:
        """Check everything that can be checked before the first step.

        Args:
            source: a matcher, or a blocklist or corpus index together with `tokenizer`; or a list of one blocklist and
                indices.
            tokenizer: the model's, as for `Blocklist.bind`; not with a matcher.
            mode: `mask` or `prod`.
            top_p: for `prod`: the nucleus, as for `prod_distribution`; 1 keeps every token.
            max_n: for `prod`: the most tokens in the nucleus; None is no limit.
            temperature: for `prod`: None is 1. That of `generate` applies besides.
            eos_token_id: what ends a row without a token left: special tokens; default: those at which `generate`
                stops, and in another loop those of the vocabulary.
            on_ban: called at each step that counts in `fired`, before the scores are masked.
            json: match the output with JSON's escapes decoded as well: for tool calls and other JSON that is parsed.
            exempt_prompt: let an output repeat what its prompt quotes of documents, as
                `Matcher.exempting_prompts` says.
            on_hit: called with each `Hit` of a step, when its scores are masked: an `AuditLog`, or a function. What it
                raises ends the call of `generate`. Without, nothing is computed for it.
            least_mass: of a step whose likeliest token is allowed, the probability that must be banned for a hit.

        Raises:
            ProdError: an argument of another type or range than stated, a tokenizer whose bytes cannot be derived, or
                no EOS token.
        """
        for name, flag in (("json", json), ("exempt_prompt", exempt_prompt)):
            if not isinstance(flag, bool):
                raise ProdError(f"{name}: expected True or False, got {flag!r}")
        self.matcher = _bind(source, tokenizer)
        if exempt_prompt:
            self.matcher = self.matcher.exempting_prompts()
        self._own_ends = self.matcher.end_ids(eos_token_id)
        self._ends_given = eos_token_id is not None
        # What ends a row in the call of `generate` under way; that call's list of processors and its configuration.
        self.eos_ids = self._own_ends
        self._list: weakref.ref[Any] | None = None
        self._config: Any = None
        if mode not in ("mask", "prod"):
            raise ProdError(f"mode: expected 'mask' or 'prod', got {mode!r}")
        if mode == "mask" and (top_p, max_n, temperature) != (1.0, None, None):
            raise ProdError(
                f"top_p, max_n and temperature belong to mode 'prod', got {top_p!r}, {max_n!r} and {temperature!r} in "
                "mode 'mask': pass mode='prod', or leave them to generate"
            )
        self._options = {"top_p": top_p, "max_n": max_n, "temperature": temperature}
        prod_distribution(torch.zeros(1, 1), _NOTHING, **self._options)  # type: ignore[arg-type]
        self.mode = mode
        self.on_ban = on_ban
        self._reporter = None if on_hit is None else Reporter(on_hit, [self.matcher], least_mass=least_mass)
        self._json = json
        self.fired: Counter[str] = Counter()
        self.steps = 0
        self._edge = PromptEdge()
        self._preference = Preference.of(self.matcher)
        self._forget()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores of one step with prohibited tokens masked.

        Waits for a GPU once to fetch the newest tokens, and where a token is banned again for the top scores.

        Args:
            input_ids: [B, T], integers: the text so far.
            scores: [B, V], floats on any device: logits, or log-probabilities. Not modified: `generate` keeps them for
                `output_logits`, and prompt lookup passes one tensor for several positions.

        Returns:
            [B, V] of the same dtype and device: new, or `scores` itself where nothing changes.

        Raises:
            ProdError: `scores` is of another shape than the vocabulary and `input_ids` allow; `generate` hides a part
                of the text, shows another one, or stops at no id that ends a row; or every row has a token without
                known bytes. Where other rows are sound, a row with such a token ends: beam sampling carries on
                rows of probability 0 when it runs out of others, and never returns them.
        """
        self._check_shapes(input_ids, scores)
        self._heed(input_ids.shape[1], scores.shape[1])
        ends = [token for token in self.eos_ids if token < scores.shape[1]]
        self._follow(input_ids)
        self.steps += int((~self._over).sum())
        rows, tokens = self._banned(scores.shape[1])
        padded = scores.shape[1] > len(self.matcher)
        moves = self._moves(input_ids, (rows, tokens))
        hits = self._passed(input_ids.shape[1])
        if self.mode == "mask" and not len(rows) and not padded and not moves:
            self._tell(hits)
            return scores
        # The indices go to the device once, for all that follows.
        row, token = (torch.from_numpy(ids).to(scores.device, torch.int64, non_blocking=True) for ids in (rows, tokens))
        # `amax` because `argmax` takes 8 times as long on a CPU ([64, 152k]: 24 ms instead of 3); which token it is
        # matters only if a banned one has that score.
        fetched = torch.cat([scores.amax(-1), scores[row, token]]).cpu().double().numpy()
        top, of_banned = fetched[: len(scores)], fetched[len(scores) :]
        self._count(scores, (rows, tokens), of_banned >= top[rows], input_ids.shape[1], moves)
        looked = None
        if self._reporter is not None:
            looked = self._reporter.look_at(rows, of_banned, top)
            hits += self._refused(self._reporter, scores, (rows, tokens), looked, input_ids.shape[1], moves)
        masked = mask_padding_(scores.clone(), len(self.matcher))
        if self._preference is not None:
            for move in moves:
                self._preference.apply_(masked, move, _row(input_ids, move.row))
        if looked is not None:
            mask_prohibited_(masked, row, token)
            hits += self._ended(masked, looked, input_ids)
            row = token = row[:0]
        mask_prohibited_(masked, row, token, fallback=ends)
        if self.mode == "prod":
            masked = prod_distribution(masked, _NOTHING, **self._options).log_().to(scores.dtype)  # type: ignore[arg-type]
        else:
            changed = np.full(len(scores), padded)
            changed[rows] = True
            # Log-probabilities are at most 0, which spares logits the logsumexp.
            _renormalize(masked, scores, np.flatnonzero(changed & (top <= _LOG_MASS_TOLERANCE)))
        self._tell(hits)
        return masked

    def forget(self) -> None:
        """The next texts are prompts, whatever they begin with; each call of `generate` does this itself.

        For a loop of your own that goes on with a text: the output alone begins where it does.
        """
        self._edge.forget()
        self._forget()
        if self._preference is not None:
            self._preference.forget()

    def finish(self, sequences: Tensor) -> None:
        """Tell `on_hit` what the last tokens of outputs gave away, which no further step asks about.

        Args:
            sequences: [B, T], what `generate` has just returned, in the rows that its steps had. Of other rows, such as
                those of beams, nothing may be told.
        """
        if self._reporter is not None:
            self._follow(sequences)
            self._tell(self._passed(sequences.shape[1]))

    def reset_counts(self) -> None:
        """Set `fired` and `steps` to 0."""
        self.fired.clear()
        self.steps = 0

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle keeps: all but the memory of the last call, which may be on a device."""
        return {**self.__dict__, "_ids": None, "_list": None, "_config": None, "eos_ids": self._own_ends}

    def __deepcopy__(self, memo: dict[int, Any]) -> ProdLogitsProcessor:
        """A processor with counts of its own and the same matcher, which nothing changes."""
        twin = copy.copy(self)
        twin.fired = self.fired.copy()
        twin._edge = PromptEdge()
        twin._preference = None if self._preference is None else self._preference.again()
        twin._forget()
        return twin

    def _check_shapes(self, input_ids: Tensor, scores: Tensor) -> None:
        if input_ids.ndim != 2 or scores.ndim != 2 or len(input_ids) != len(scores):
            raise ProdError(
                f"expected input_ids [B, T] and scores [B, V], got {tuple(input_ids.shape)} and {tuple(scores.shape)}; "
                "call this from generate"
            )
        width, known = scores.shape[1], len(self.matcher)
        remedy = "bind the blocklist to the model's own tokenizer, and use no assistant with another one"
        check_width(width, known, "the matcher's tokenizer", remedy, eos_ids=self.eos_ids)

    def _heed(self, shown: int, width: int) -> None:
        """Once for each call of `generate`: check what it shows of its text and to whom, and take its EOS ids."""
        frame = sys._getframe(2)
        processors = list_of(frame)
        # At every step: looking for the list takes under a third of the time that looking for the call does.
        if processors is not None and self._list is not None and self._list() is processors:
            return
        call = find_call(frame)
        config = None if call is None else call.config
        if call is not None and config is self._config:
            return
        if call is not None or self._config is not None:
            self.forget()
        # Left behind by an error: the next step must check again.
        self._list, self._config, self.eos_ids = None, None, self._own_ends
        if call is not None:
            check_history(call, shown)
            check_text(call, self.matcher)
            self.eos_ids = end_ids_of(call, self._own_ends, self.matcher.vocabulary, width, given=self._ends_given)
        self._list = None if processors is None else weakref.ref(processors)
        self._config = config

    def _moves(self, input_ids: Tensor, banned: tuple[NDArray[np.int32], NDArray[np.int32]]) -> list[Move]:
        """Where replacements are preferred, in rows that go on."""
        if self._preference is None:
            return []
        lengths = [input_ids.shape[1]] * len(input_ids)
        found = self._preference.moves(lambda row: _row(input_ids, row), lengths, banned)
        return [move for move in found if not self._over[move.row]]

    def _forget(self) -> None:
        self._ids: Tensor | None = None
        self._tracker = self.matcher.track()
        if self._json:
            self._tracker = Combined([self._tracker, unescaped(self.matcher).track()])
        if self._preference is not None:
            self._preference.restart()
        # Rows that have nothing more to say, for the counts alone: ended with EOS and padded since, or unreadable.
        self._over = np.zeros(0, np.bool_)

    def _follow(self, input_ids: Tensor) -> None:
        """Bring the tracker up to `input_ids`: by the newest column if that is all that is new, else from the start."""
        newest = self._newest(input_ids)
        if newest is not None:
            self._tracker.advance(newest)
            if self._preference is not None:
                self._preference.tracker.advance(newest)
        if newest is None or self._tracker.closed.any():
            self._read(input_ids.cpu().numpy().astype(np.int64))
        else:
            self._edge.grow(input_ids.shape[1])
            padded = self.matcher.vocabulary.kinds[newest] == SPECIAL
            ended = (newest[:, None] == self.eos_ids).any(1)
            self._over = ended | (self._over & padded)
        # Kept as a clone: transformers may write to what it passed.
        self._ids = None if self._tracker.closed.any() else input_ids.clone()

    def _newest(self, input_ids: Tensor) -> NDArray[np.int64] | None:
        """The last column, int64 [B], if the columns before it are those of the last call."""
        before, (count, length) = self._ids, input_ids.shape
        if before is None or before.device != input_ids.device or before.shape != (count, length - 1):
            return None
        return _last_column(before, input_ids) if before.device.type == "cpu" else _fetched_column(before, input_ids)

    def _read(self, token_ids: NDArray[np.int64]) -> None:
        """Read whole texts, int64 [B, T]."""
        self._forget()
        prompts = np.full(len(token_ids), self._edge.find(token_ids), np.int64)
        self._tracker.read(np.arange(len(token_ids)), list(token_ids), prompts)
        if self._preference is not None:
            self._preference.tracker.read(np.arange(len(token_ids)), list(token_ids), prompts)
        self._over = self._tracker.closed
        if len(self._over) and self._over.all():
            self.matcher.states_of(token_ids)  # raises: it names the token
            raise ProdError(
                "expected texts in fewer readings: the special tokens of a prompt are parts of many entries"
            )

    def _banned(self, width: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Sparse pairs (rows, tokens), both int32 [n], ascending by row."""
        rows, tokens = self._tracker.banned()
        if width < len(self.matcher):
            inside = tokens < width
            rows, tokens = rows[inside], tokens[inside]
        return rows, tokens

    def _count(
        self,
        scores: Tensor,
        banned: tuple[NDArray[np.int32], NDArray[np.int32]],
        is_top: NDArray[np.bool_],
        position: int,
        moves: Sequence[Move],
    ) -> None:
        """Count and report the rows whose top token is banned, or given away to a replacement."""
        rows = banned[0]
        hit = is_top & ~self._over[rows]
        for row in sorted({*rows[hit].tolist(), *(move.row for move in moves if move.sources is not None)}):
            probs = prod_distribution(scores[row], _NOTHING)
            token_id = int(scores[row].argmax())
            out = _out(row, banned, moves)
            # A tie with a token that is not banned, or a row that rates no token above another.
            if token_id not in out or bool((probs == probs[token_id]).all()):
                continue
            culprits = self._culprits(row, token_id, moves)
            # An id without known bytes is banned, but no entry is to blame.
            if not culprits:
                continue
            entries = tuple(one.entry_id for one in culprits)
            self.fired.update(entries)
            if self.on_ban is not None:
                mass = float(probs[torch.from_numpy(out).to(probs.device, torch.int64)].sum())
                instead = culprits[0].replacement
                self.on_ban(Ban(row, position, token_id, float(probs[token_id]), mass, entries, instead))

    def _culprits(self, row: int, token_id: int, moves: Sequence[Move]) -> list[Culprit]:
        """Because of whom a token cannot come in a row."""
        named = ((self.matcher, name) for name in self._tracker.blame(row, token_id))
        return culprits_of(named, token_id, [move for move in moves if move.row == row], [self.matcher])

    def _passed(self, length: int) -> list[Hit]:
        """What the newest tokens were let through; `length`: of the texts."""
        if self._reporter is None:
            return []
        reporter, found = self._reporter, self._tracker.passed()
        return [reporter.passed(Place(one.row, length - 1), one, self.matcher) for one in found]

    def _refused(
        self,
        reporter: Reporter,
        scores: Tensor,
        banned: tuple[NDArray[np.int32], NDArray[np.int32]],
        looked: Looked,
        position: int,
        moves: Sequence[Move],
    ) -> list[Hit]:
        """What is banned in rows that go on."""
        moved = {move.row for move in moves if move.sources is not None}
        hits: list[Hit] = []
        for row in sorted({*looked.refusing, *moved}):
            if not self._over[row]:
                blame = partial(self._culprits, row, moves=moves)
                out = _out(row, banned, moves)
                hits += reporter.refused(Place(row, position), scores[row], out, blame, self.matcher.vocabulary)
        return hits

    def _ended(self, masked: Tensor, looked: Looked, input_ids: Tensor) -> list[Hit]:
        """The rows that have no token left in `masked`, or cannot be read, and had not ended before."""
        hits, length = [], input_ids.shape[1]
        for row in looked.dying:
            had_ended = self._over[row] and not self._tracker.closed[row]
            had_ended = had_ended or (length > 0 and int(input_ids[row, -1]) in self.eos_ids)
            if not had_ended and not bool((masked[row] > -torch.inf).any()):
                hits.append(Reporter.ended(Place(row, length)))
        return hits

    def _tell(self, hits: Sequence[Hit]) -> None:
        if self._reporter is not None:
            self._reporter.tell(hits)


def _out(
    row: int, banned: tuple[NDArray[np.int32], NDArray[np.int32]], moves: Sequence[Move]
) -> NDArray[np.integer[Any]]:
    """The tokens that cannot come in a row: banned ones, and those whose probability goes to a replacement."""
    moved = [move.sources for move in moves if move.row == row and move.sources is not None]
    return np.unique(np.concatenate([banned[1][banned[0] == row], *moved]))


def _row(input_ids: Tensor, row: int) -> NDArray[np.int64]:
    """One text."""
    return input_ids[row].cpu().numpy().astype(np.int64)


def _last_column(before: Tensor, ids: Tensor) -> NDArray[np.int64] | None:
    """The last column of `ids`, [B, T], if the others are `before`, on the host; NumPy takes a fourth of the time."""
    columns = ids.numpy()
    return columns[:, -1].astype(np.int64) if np.array_equal(before.numpy(), columns[:, :-1]) else None


def _fetched_column(before: Tensor, ids: Tensor) -> NDArray[np.int64] | None:
    """The same on any device, in one transfer."""
    follows = (before == ids[:, :-1]).all().reshape(1).to(ids.dtype)
    fetched = torch.cat([ids[:, -1], follows]).cpu().numpy().astype(np.int64)
    return fetched[:-1] if fetched[-1] else None


def _renormalize(masked: Tensor, scores: Tensor, candidates: NDArray[np.intp]) -> Tensor:
    """Normalise `masked` again, in place, in those of the candidate rows in which `scores` were log-probabilities.

    Logits whose logsumexp happens to be 0 are shifted too, which changes no probability.
    """
    if not len(candidates):
        return masked
    rows = torch.from_numpy(candidates).to(scores.device)
    log_mass = scores[rows].float().logsumexp(-1)
    return renormalize_log_probs_(masked, rows[log_mass.abs() < _LOG_MASS_TOLERANCE])


def _bind(source: Source | Sequence[Source], tokenizer: Any) -> Matcher:
    if isinstance(source, list | tuple):
        if not source:
            raise ProdError("expected blocklists or indices, got an empty list: nothing would be guarded")
        vocabulary = tokenizer if tokenizer is None else vocabulary_of(tokenizer)
        bound = sorted((_bind(one, vocabulary) for one in source), key=lambda one: not len(one.automaton.patterns))
        return functools.reduce(Matcher.beside, bound)
    if isinstance(source, Matcher):
        if tokenizer is not None:
            raise ProdError("a Matcher is bound to its tokenizer: leave `tokenizer` out, or pass the Blocklist instead")
        return source
    if isinstance(tokenizer, Blocklist | CorpusIndex | Matcher):
        raise ProdError(
            f"expected the blocklist and then the tokenizer, got {type(source).__name__} and then "
            f"{type(tokenizer).__name__}: pass ProdLogitsProcessor(blocklist, tokenizer), or a Matcher alone"
        )
    if not isinstance(source, Blocklist | CorpusIndex):
        raise ProdError(
            f"expected a Matcher or a Blocklist, got {type(source).__name__}; use Blocklist.compile([...]) or "
            "Blocklist.load(path)"
        )
    if tokenizer is None:
        raise ProdError(
            f"a {type(source).__name__} needs the model's tokenizer: pass ProdLogitsProcessor(blocklist, tokenizer)"
        )
    return source.bind(tokenizer)
