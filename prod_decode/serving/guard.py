"""One row of logits after one text: what the adapters for engines without batches have in common."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.errors import ProdError
from prod_decode.masking import check_width, mask_padding_, mask_prohibited_
from prod_decode.match.matcher import Matcher
from prod_decode.match.trackers import Tracker
from prod_decode.match.unescaped import unescaped
from prod_decode.serving.hits import Hit
from prod_decode.serving.preference import Move, Preference
from prod_decode.serving.reporter import Culprit, Place, Reporter, culprits_of
from prod_decode.tokens.utf8 import Utf8
from prod_decode.tokens.vocabulary import SPECIAL

# An engine that works ahead asks once more after the EOS at which it stops; a third one was not heeded.
_MOST_ENDS = 2

_REMEMBERED = 1024

# Texts whose prompts are remembered: those that an engine asks about in turn.
_TEXTS = 4096

_log = logging.getLogger(__name__)


class Guard:
    """Masks one row of logits after one text, given whole: it is read anew each time, so nothing can be out of date.

    A text whose last tokens are not known ends with EOS, and so does one whose every token is banned.
    """

    def __init__(
        self,
        matchers: Sequence[Matcher],
        eos_token_id: int | Sequence[int] | None = None,
        *,
        must_end: bool = True,
        stop: Sequence[str] | None = None,
        json: bool = False,
        drops_bytes: bool = False,
        on_hit: Callable[[Hit], object] | None = None,
    ) -> None:
        """Check that there is something to enforce.

        Args:
            matchers: one for each blocklist, bound to one vocabulary.
            eos_token_id: what ends a text: special tokens at which the engine stops; default: the vocabulary's EOS.
            stop: the strings at which the engine cuts the text, inside a token or not; () if there are none. None: not
                known, or they stay in the text; then a word that an entry prohibits as a whole is also banned where it
                begins a longer one.
            json: match what is written with JSON's escapes decoded as well, for outputs that somebody parses.
            must_end: raise if a text goes on although it was ended. For engines in which an error is heard.
            drops_bytes: whether the engine leaves bytes that are not UTF-8 out of what it shows, which would join what
                stands around them: a token that breaks a character is banned then.
            on_hit: called with each `Hit` when a row is masked, as for `ProdLogitsProcessor` of transformers.

        Raises:
            ProdError: no matcher, different vocabularies, or no EOS token.
        """
        if not isinstance(json, bool):
            raise ProdError(f"json: expected True or False, got {json!r}")
        if not matchers:
            raise ProdError("expected at least one matcher, got none: pass blocklist.bind(tokenizer)")
        if wrong := [matcher for matcher in matchers if not isinstance(matcher, Matcher)]:
            raise ProdError(f"expected a Matcher, got {type(wrong[0]).__name__}: pass blocklist.bind(tokenizer)")
        self.vocabulary = matchers[0].vocabulary
        if any(matcher.vocabulary is not self.vocabulary for matcher in matchers):
            raise ProdError("expected matchers of one vocabulary, got several: bind every blocklist to one Vocabulary")
        self.matchers = [matcher.cut_by(stop) for matcher in matchers]
        self._trackers: list[Tracker] = [matcher.track() for matcher in self.matchers]
        if json:
            self._trackers += [unescaped(matcher, stop).track() for matcher in matchers]
        self._lists = [*matchers, *matchers][: len(self._trackers)]
        self._reporter = None if on_hit is None else Reporter(on_hit, matchers)
        self._preferences = [found for matcher in matchers if (found := Preference.of(matcher))]
        self._utf8 = Utf8(self.vocabulary) if drops_bytes else None
        # Texts that were asked about, the last one last, by their hash; how many tokens of each are the prompt's.
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self._told = False
        self._known = len(self.vocabulary)
        self._ends = matchers[0].end_ids(eos_token_id)
        self._must_end = must_end
        # By the hash of a text that was ended: how many EOS in a row that makes.
        self._ended: dict[int, int] = {}

    def check_width(self, width: int) -> None:
        """Refuse logits that are not those of the vocabulary.

        Raises:
            ProdError: the sizes differ by more than padding, or no EOS token has a column.
        """
        check_width(
            width, self._known, "the tokenizer", "bind the blocklist to the model's own tokenizer", eos_ids=self._ends
        )

    def mask_(
        self,
        row: Tensor,
        token_ids: Sequence[int] | NDArray[np.integer[Any]],
        *,
        prompt: int | None = None,
        stops: Sequence[int] | None = None,
        place: tuple[int, str | None] | None = (0, None),
    ) -> Tensor:
        """Mask `row`, floats [V] on any device, in place, after the text `token_ids`, prompt included.

        Args:
            row: the logits.
            token_ids: the text.
            prompt: how many of them are the prompt's; None: those that the text had when it was first seen. A text
                goes on if it is the last one and one token more; before a prompt that is this, call `forget`.
            stops: all ids at which the engine stops here, where it says so: those that add no text end the row.
            place: for hits: `Hit.row` and `Hit.request`; None: of a step that comes to nothing, there are none.

        Raises:
            ProdError: the row is not of the vocabulary's size, but for padding, or the engine does not stop at EOS.
        """
        if row.ndim != 1:
            raise ProdError(f"expected one row of logits [V], got {list(row.shape)}: pass each row with its own text")
        text = np.asarray(token_ids, np.int64)
        width = row.shape[0]
        self.check_width(width)
        begins = self._prompt_of(text) if prompt is None else prompt
        for tracker in self._trackers:
            tracker.read(np.arange(1), [text], np.array([begins]))
        found = [tracker.banned()[1] for tracker in self._trackers]
        if self._utf8:
            found.append(self._utf8.breaking(text[begins:]))
        banned = np.concatenate(found)
        banned = banned[banned < width]
        moves = self._moves(text, begins, banned)
        reporter = None if place is None else self._reporter
        at = Place(place[0] if place else 0, len(text), place[1] if place else None)
        hits = [] if reporter is None else self._hits(reporter, row, banned, moves, at)
        mask_padding_(row, self._known)
        for preference, move in moves:
            preference.apply_(row[None], move, text)
        mask_prohibited_(row, np.zeros(len(banned), np.int64), banned)
        if not bool((row > -np.inf).any()):
            if not self._has_ended(text, stops):
                hits.append(Reporter.ended(at))
            self.end_(row, text, stops=stops)
        if reporter is not None:
            reporter.tell(hits)
        return row

    def _moves(self, text: NDArray[np.int64], begins: int, banned: NDArray[np.int32]) -> list[tuple[Preference, Move]]:
        """Where probability is moved to a replacement."""
        found = []
        for preference in self._preferences:
            preference.tracker.read(np.arange(1), [text], np.array([begins]))
            pairs = np.zeros(len(banned), np.int32), banned
            found += [(preference, move) for move in preference.moves(lambda _: text, [len(text)], pairs)]
        return found

    def _hits(
        self,
        reporter: Reporter,
        row: Tensor,
        banned: NDArray[np.int32],
        moves: Sequence[tuple[Preference, Move]],
        place: Place,
    ) -> list[Hit]:
        """What the newest token was let through, and what is banned behind it, before the mask."""
        if any(tracker.any_closed for tracker in self._trackers):
            return []
        watched = list(zip(self._trackers, self._lists, strict=True))
        newest = place._replace(position=place.position - 1)
        hits = [reporter.passed(newest, one, matcher) for tracker, matcher in watched for one in tracker.passed()]
        here = [move for _, move in moves if move.sources is not None]

        def blame(token: int) -> list[Culprit]:
            named = ((matcher, name) for tracker, matcher in watched for name in tracker.blame(0, token))
            return culprits_of(named, token, here, self.matchers)

        out = np.concatenate([banned, *(move.sources for move in here if move.sources is not None)])
        looked = reporter.look(row[None], (np.zeros(len(out), np.int64), out))
        if looked.refusing:
            hits += reporter.refused(place, row, out, blame, self.vocabulary)
        return hits

    def _has_ended(self, text: NDArray[np.int64], stops: Sequence[int] | None) -> bool:
        return bool(len(text)) and int(text[-1]) in self._ends_among(stops)

    def forget(self) -> None:
        """The next text is a prompt, whatever it begins with."""
        self._seen.clear()
        for preference in self._preferences:
            preference.forget()

    def _prompt_of(self, text: NDArray[np.int64]) -> int:
        prompt = self._seen.pop(xxhash.xxh3_128_digest(text[:-1].tobytes()), len(text))
        self._seen[xxhash.xxh3_128_digest(text.tobytes())] = prompt
        if len(self._seen) > _TEXTS:
            self._seen.popitem(last=False)
            if not self._told:
                self._told = True
                _log.warning(
                    "more than %d texts are asked about in turn: where the prompts of those before end is no longer "
                    "known, and what they return alone is not guarded; call forget() between batches, or take several "
                    "processors",
                    _TEXTS,
                )
        return prompt

    def end_(self, row: Tensor, text: NDArray[np.int64] | None = None, *, stops: Sequence[int] | None = None) -> Tensor:
        """Leave `row`, floats [V], nothing but EOS, in place.

        Args:
            row: the logits.
            text: int64 [T], to notice that it goes on all the same.
            stops: as for `mask_`.

        Raises:
            ProdError: it has gone on before, although it was ended.
        """
        width = row.shape[0]
        ends = [token for token in self._ends_among(stops) if token < width]
        if text is not None and self._must_end:
            self._note_end(text, ends)
        nothing = np.zeros(0, np.int64)
        return mask_prohibited_(mask_padding_(row, 0), nothing, nothing, fallback=ends)

    def _ends_among(self, stops: Sequence[int] | None) -> list[int]:
        inside = [token for token in stops or () if 0 <= token < self._known]
        return [token for token in inside if self.vocabulary.kinds[token] == SPECIAL] or self._ends

    def _note_end(self, text: NDArray[np.int64], ends: list[int]) -> None:
        ended = 1
        if len(text) and text[-1] in ends:
            ended += self._ended.get(hash(text[:-1].tobytes()), 0)
        if ended > _MOST_ENDS:
            raise ProdError(
                f"expected the engine to stop at the ids {ends}, which end a text without a token left, but it "
                "goes on; pass eos_token_id=... with ids at which it stops"
            )
        if len(self._ended) >= _REMEMBERED:
            self._ended.clear()
        self._ended[hash(text.tobytes())] = ended
