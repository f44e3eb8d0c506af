"""A matcher whose arrays live on a torch device: it follows texts and masks logits there, without waiting for the GPU.

For engines that keep the tokens of every request on the device, in *slots*, and never show them to the host. What is
computed is what `Matcher` computes, state by state and token by token.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.errors import ProdError, described
from prod_decode.masking import mask_prohibited_
from prod_decode.match.automaton import BOUND_ROOT
from prod_decode.match.follow import advance_inline, end_prompt
from prod_decode.match.matcher import Matcher, continuations
from prod_decode.storage.jit import jit
from prod_decode.text.normalize import AFTER_OTHER, CLASSES, WORD_ENDS
from prod_decode.tokens.vocabulary import UNKNOWN

# What is found for a row: `length << _STATE_BITS | state`, which fits as nodes are below 2**31 and lengths below 2**30;
# or one of the two other values. A slot remembers a number of the first kind; 0 is the state of the empty text.
_STATE_BITS, _UNREADABLE, _NOT_OURS = 33, -1, -2
_STATE_MASK = (1 << _STATE_BITS) - 1

# Nodes with more descendants than the first must have a list of their tokens. Others may: so many are tried, at a few
# microseconds each when the matcher is put on the device, and of those with more tokens than the third number, as many
# as fit into half of what the lists of a trie may have, the fourth (64 MB).
_LIST_ABOVE, _LISTS_TRIED, _SHORT_LIST, _MOST_LISTED = 64, 1 << 20, 64, 1 << 24

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int32, torch.int64)


class DeviceMatcher:
    """Follows the text of every slot and masks the logits of a step, on one device.

        guard = DeviceMatcher(matcher, logits.device, slots=max_num_reqs, max_drafts=4)
        guard.reset([slot])                  # another text has moved into the slot
        guard.apply(logits, slots=..., ...)  # once a step; or for parts of a step, or several times

    A slot remembers the state of its text and how many tokens that covers, and catches up when `apply` is called: over
    the tokens that are new, or, where they are many, over the last ones that can matter, as `Matcher.states_of` does.
    What is remembered is only a cache: more tokens, fewer tokens and repeated calls are all fine. Only a slot whose
    *earlier* tokens are other ones needs `reset`.

    For several blocklists make one of these for each, with a `bit` of its own, and call them in any order.

    Backends: `triton` enqueues one kernel whose shape depends on the number of rows alone; nothing is allocated and
    nothing is awaited. `host` fetches the tokens, asks the matcher and sends sparse pairs back: right everywhere, and
    without cost on a CPU, but on a GPU it waits and moves whole histories.

    Attributes:
        matcher: what it was made of.
        device: where the arrays are.
        backend: `triton` or `host`.
        bit: which bit of `enabled` turns it on.
        eos_ids: what ends a row.
    """

    def __init__(
        self,
        matcher: Matcher,
        device: torch.device | str,
        *,
        slots: int,
        max_drafts: int = 0,
        bit: int = 0,
        eos_token_id: int | Sequence[int] | None = None,
        backend: Literal["triton", "host"] | None = None,
    ) -> None:
        """Copy the arrays to the device: 16 to 24 bytes a node of the automaton, its lists, and the vocabulary's tries.

        Args:
            matcher: a blocklist bound to the model's vocabulary.
            device: where logits and tokens will be.
            slots: the number of slots.
            max_drafts: draft tokens that one slot may have in a step; `apply` takes `slots * (max_drafts + 1)` rows.
            bit: 0 to 30.
            eos_token_id: what ends a row without a token left: special tokens; default: those of the vocabulary.
            backend: None takes `triton` on a GPU if the package is there, else `host`.

        Raises:
            ProdError: a number out of its range, no EOS token or one that adds text, or Triton where it cannot run.
        """
        self.matcher = matcher
        self.device = torch.device(device)
        for name, value, low, high in (
            ("slots", slots, 1, 2**31 - 1),
            ("max_drafts", max_drafts, 0, 2**31 - 1),
            ("bit", bit, 0, 30),
        ):
            if not isinstance(value, int | np.integer) or not low <= value <= high:
                raise ProdError(f"{name}: expected an integer from {low} to {high}, got {value!r}")
        self.bit = int(bit)
        self.eos_ids = matcher.end_ids(eos_token_id)
        self.backend = _backend(backend, self.device)
        self._slots, self._rows = int(slots), int(slots) * (int(max_drafts) + 1)
        where = self.device if self.backend == "triton" else torch.device("cpu")
        self._checkpoints = torch.zeros(self._slots, dtype=torch.int64, device=where)
        self._no_prompts = torch.zeros(self._slots, dtype=torch.int32, device=self.device)
        self._found = torch.full((self._rows,), _NOT_OURS, dtype=torch.int64, device=where)
        self._arrays = _upload(matcher, self.eos_ids, self.device) if self.backend == "triton" else {}

    def reset(self, slots: Sequence[int]) -> None:
        """Forget the texts of these slots; takes effect in the order of the device's stream, without waiting.

        Raises:
            ProdError: a slot that does not exist; nothing is forgotten then.
        """
        indices = [int(slot) for slot in slots]
        if indices and not 0 <= min(indices) <= max(indices) < self._slots:
            raise ProdError(f"slots: expected numbers from 0 to {self._slots - 1}, got {indices}")
        if indices:
            index = torch.tensor(indices, dtype=torch.int64).to(self._checkpoints.device, non_blocking=True)
            self._checkpoints.index_fill_(0, index, 0)

    def checkpoint(self, slot: int) -> tuple[int, int]:
        """The state that a slot remembers and how many of its tokens that covers; waits for the device.

        (`matcher.start()`, 0) after `reset`. For tests and debugging.
        """
        value = int(self._checkpoints[slot])
        return value & _STATE_MASK, value >> _STATE_BITS

    def states(self, rows: int) -> list[int | None]:
        """The states of the first `rows` rows of the last `apply`; waits for the device. For tests and debugging.

        None for rows that are not ours and for those that could not be read.
        """
        return [None if value < 0 else value & _STATE_MASK for value in self._found[:rows].tolist()]

    def warm_up(self, logits: Tensor, token_ids: Tensor, lengths: Tensor, positions_dtype: torch.dtype) -> None:
        """Compile the kernel for tensors like these, so that no request waits for it; changes nothing.

        Args:
            logits: as for `apply`; one row is read at most.
            token_ids: as for `apply`.
            lengths: as for `apply`; slots, drafts, input ids and enabled are taken to be int32.
            positions_dtype: int32 or int64.
        """
        none = torch.full((1,), -1, dtype=torch.int32, device=self.device)
        zero = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.apply(
            logits[:1].clone(),
            slots=none,
            drafts=zero,
            positions=zero.to(positions_dtype),
            input_ids=zero,
            token_ids=token_ids,
            lengths=lengths,
            enabled=torch.zeros(self._slots, dtype=torch.int32, device=self.device),
        )

    def apply(
        self,
        logits: Tensor,
        *,
        slots: Tensor,
        drafts: Tensor,
        positions: Tensor,
        input_ids: Tensor,
        token_ids: Tensor,
        lengths: Tensor,
        enabled: Tensor,
        prompts: Tensor | None = None,
    ) -> Tensor:
        """Mask the banned tokens of every row, in place; nothing waits for the device with backend `triton`.

        The plain loop, for row r with `s = slots[r]`, if s is a slot and `enabled[s] >> bit & 1`::

            length = max(0, min(lengths[s], positions[r] - drafts[r] + 1))
            text = [*token_ids[s, :length], *input_ids[r - drafts[r] + 1 : r + 1]]
            banned = matcher.banned(matcher.state_of(text)), and all columns beyond the vocabulary
            logits[r, banned] = -inf
            if not any(score > -inf for score in logits[r]):
                logits[r, :] = -inf
                logits[r, eos_ids] = 0

        Where `state_of` would raise since a token has no known bytes (in drafts: wherever it stands), all are banned
        and the row ends. It ends likewise if `lengths` exceeds `token_ids`, or if the rows of its drafts, which must
        come before it in order, are not there. Rows of other slots, and those whose slot is no slot, keep their bits.
        Drafts are followed but never remembered.

        With special tokens, the state that a slot remembers may differ from one computed again, as
        docs/design/algorithm.md says under "Special tokens"; both keep the guarantee.

        Args:
            logits: [R, V], float64, float32, float16 or bfloat16; the last dimension contiguous. R is at most
                `slots * (max_drafts + 1)`; V may be more or less than the vocabulary.
            slots: [R], the slot of each row. Every index tensor is int32 or int64, contiguous, on the device.
            drafts: [R], the row's place among those of its slot: 0 is that after the last committed token, k that
                after k draft tokens.
            positions: [R], the position in its text of the token fed to the model at each row.
            input_ids: [R], the token fed to the model at each row: for drafts, the draft token.
            token_ids: [slots, T], the committed tokens of each slot; the last dimension contiguous.
            lengths: [slots], how many of them there are.
            enabled: [slots], which blocklists are in force, a bit each.
            prompts: [slots], how many of the committed tokens are the prompt's: behind them a word may begin, as
                `Matcher.end_prompt` says; None: nothing is known of prompts.

        Returns:
            `logits` itself.

        Raises:
            ProdError: another shape, dtype, layout or device, or no EOS token below V; nothing is changed then.
        """
        index = {"slots": slots, "drafts": drafts, "positions": positions, "input_ids": input_ids}
        by_slot = {"lengths": lengths, "enabled": enabled, "prompts": self._no_prompts if prompts is None else prompts}
        self._check(logits, index, by_slot, token_ids)
        if not len(logits):
            return logits
        if self.backend == "triton":
            self._launch(logits, index, by_slot, token_ids)
        else:
            self._on_host(logits, index, by_slot, token_ids)
        return logits

    def _check(self, logits: Tensor, index: dict[str, Tensor], by_slot: dict[str, Tensor], token_ids: Tensor) -> None:
        if logits.ndim != 2 or logits.dtype not in _FLOATS or (logits.numel() and logits.stride(1) != 1):
            raise ProdError(
                f"logits: expected floats [R, V] with a contiguous last dimension, got {described(logits)}; use "
                "`logits = logits.contiguous()` first"
            )
        rows, width = logits.shape
        if rows > self._rows:
            raise ProdError(
                f"logits: expected at most {self._rows} rows, got {rows}; make the DeviceMatcher with more slots or a "
                "larger max_drafts"
            )
        if not any(token < width for token in self.eos_ids):
            raise ProdError(
                f"logits: expected a column for an EOS token {self.eos_ids}, got {width} columns; bind the blocklist "
                "to the model's own tokenizer"
            )
        for tensors, size in ((index, rows), (by_slot, self._slots)):
            for name, tensor in tensors.items():
                if tensor.shape != (size,) or tensor.dtype not in _INTEGERS or not tensor.is_contiguous():
                    raise ProdError(
                        f"{name}: expected contiguous int32 or int64 of shape ({size},), got {described(tensor)}"
                    )
        if (
            token_ids.ndim != 2
            or len(token_ids) != self._slots
            or token_ids.dtype not in _INTEGERS
            or (token_ids.shape[1] > 1 and token_ids.stride(1) != 1)
        ):
            raise ProdError(
                f"token_ids: expected int32 or int64 of shape ({self._slots}, T) with a contiguous last dimension, got "
                f"{described(token_ids)}"
            )
        for name, tensor in {"logits": logits, **index, **by_slot, "token_ids": token_ids}.items():
            if tensor.device.type != self.device.type:
                raise ProdError(f"{name}: expected it on {self.device}, got it on {tensor.device}; move it there first")

    def _launch(self, logits: Tensor, index: dict[str, Tensor], by_slot: dict[str, Tensor], token_ids: Tensor) -> None:
        from prod_decode.device import kernels

        arrays, size, grid = self._arrays, len(self.matcher), (len(logits),)
        kernels.mask[grid](
            logits,
            logits.stride(0),
            logits.shape[1],
            self._found,
            *index.values(),
            token_ids,
            token_ids.stride(0),
            token_ids.shape[1],
            *by_slot.values(),
            self.bit,
            self._checkpoints,
            self._slots,
            arrays["nodes"],
            len(arrays["nodes"]) - 1,
            arrays["rows"],
            len(arrays["rows"]),
            arrays["classes"],
            arrays["symbols"],
            arrays["starts"],
            arrays["next_state"],
            arrays["kinds"],
            size,
            self.matcher.automaton.longest,
            arrays["token_nodes"],
            arrays["roots"],
            arrays["order"],
            arrays["fixed"],
            arrays["fixed_starts"],
            arrays["list_of"],
            arrays["list_starts"],
            arrays["list_tokens"],
            arrays["ends"],
            len(self.eos_ids),
            lanes=kernels.LANES,
            block=kernels.BLOCK,
            num_warps=1,
        )

    def _on_host(self, logits: Tensor, index: dict[str, Tensor], by_slot: dict[str, Tensor], token_ids: Tensor) -> None:
        matcher, count, width = self.matcher, *logits.shape
        slots, drafts, positions, input_ids = (tensor.cpu().numpy().astype(np.int64) for tensor in index.values())
        lengths, enabled, prompts = (tensor.cpu().numpy().astype(np.int64) for tensor in by_slot.values())
        found = self._found.numpy()[:count]
        _follow(
            *matcher.tables.follow,
            matcher.automaton.longest,
            slots,
            drafts,
            positions,
            input_ids,
            token_ids.cpu().numpy(),
            lengths,
            enabled >> self.bit & 1,
            prompts,
            self._checkpoints.numpy(),
            found,
        )
        (readable,) = (found >= 0).nonzero()
        committed = readable[drafts[readable] == 0]
        self._checkpoints.numpy()[slots[committed]] = found[committed]

        ends = [token for token in self.eos_ids if token < width]
        rows, tokens = matcher.banned_all(found[readable] & _STATE_MASK)
        bounds = np.searchsorted(rows, np.arange(len(readable) + 1))
        padding = np.arange(len(matcher), width)
        # A call for each row, since rows that are not ours may be dead and have to stay so.
        for i, row in enumerate(readable.tolist()):
            banned = tokens[bounds[i] : bounds[i + 1]]
            banned = np.concatenate([banned[banned < width], padding])
            mask_prohibited_(logits[row], np.zeros(len(banned), np.int64), banned, fallback=ends)
        for row in (found == _UNREADABLE).nonzero()[0].tolist():
            mask_prohibited_(logits[row], np.zeros(width, np.int64), np.arange(width), fallback=ends)


def _backend(backend: str | None, device: torch.device) -> Literal["triton", "host"]:
    if backend not in (None, "triton", "host"):
        raise ProdError(f"backend: expected 'triton', 'host' or None, got {backend!r}")
    if backend == "host":
        return "host"
    installed = find_spec("triton") is not None
    # Triton's interpreter runs kernels on the CPU, for tests.
    runs = device.type in ("cuda", "xpu") or os.environ.get("TRITON_INTERPRET") == "1"
    if backend == "triton" and not (installed and runs):
        reason = f"it has no kernels for {device}" if installed else "the package is not installed"
        raise ProdError(f"backend: expected 'host' or None, got 'triton', but {reason}")
    return "triton" if backend == "triton" or (installed and device.type in ("cuda", "xpu")) else "host"


def _upload(matcher: Matcher, ends: list[int], device: torch.device) -> dict[str, Tensor]:
    """The arrays of the matcher on the device, records as int32 words and offsets as int32."""
    table, automaton, size = matcher.table, matcher.automaton, len(matcher)

    def words(records: NDArray[Any]) -> NDArray[Any]:
        return records.view(np.int32).reshape(len(records), -1)

    list_of, list_starts, list_tokens = [], [np.zeros(1, np.int64)], []
    for trie in range(int(table.roots.max()) + 1):
        arrays_of: list[Any] = [*matcher.tables.complete.below(trie, ends=WORD_ENDS)]
        arrays_of += [_LIST_ABOVE, _LISTS_TRIED, _SHORT_LIST, _MOST_LISTED]
        numbers, ends_of, tokens = _list_tokens(*arrays_of)
        before = sum(map(len, list_starts)) - 1
        list_of.append(np.where(numbers < 0, -1, numbers + before).astype(np.int32))
        list_starts.append(ends_of + list_starts[-1][-1])
        list_tokens.append(tokens)
    arrays: dict[str, NDArray[Any]] = {
        "nodes": words(automaton.nodes),
        "rows": automaton.rows,
        "classes": CLASSES,
        "symbols": table.symbols,
        # Without the aliases behind the vocabulary: the device reads special tokens as nothing.
        "starts": table.starts[:, : size + 1].astype(np.int32),
        "next_state": table.next_state[:, :size],
        "kinds": matcher.vocabulary.kinds,
        "token_nodes": words(table.nodes),
        "roots": table.roots,
        "order": table.order,
        "fixed": matcher.fixed[0],
        "fixed_starts": matcher.fixed[1],
        "list_of": np.concatenate(list_of),
        "list_starts": np.concatenate(list_starts),
        "list_tokens": np.concatenate(list_tokens),
        "ends": np.array(ends, np.int32),
    }
    # `torch.tensor` copies, which `torch.from_numpy` would not: the arrays of a mapped file are read-only.
    return {name: torch.tensor(array, device=device) for name, array in arrays.items()}


@jit
def _list_tokens(
    nodes: NDArray[Any],
    token_nodes: NDArray[Any],
    trie: int,
    order: NDArray[np.int32],
    word_ends: NDArray[np.bool_],
    stamps: NDArray[np.int64],
    scratch: NDArray[np.int32],
    stack: NDArray[np.int64],
    above: int,
    tries: int,
    short: int,
    most: int,
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
    """Lists of the tokens that complete a pattern: which each node has, where each ends, and the tokens.

    A list has what its node and the rest of its failure chain complete. List 0 is empty. A node from which nothing can
    be completed has its failure link's, and one with -1 is to be looked at, and then its failure link.

    A node must have a list if the nodes from it to the next listed one on its failure chain have more than `above`
    descendants together, of those nodes from which one token can complete a pattern: where many patterns begin alike,
    or one repeats itself, like a line of dashes. Shallow nodes come first; no list begins after `most` tokens. Of other
    nodes the first `tries` may have one: with `short` tokens at most, or as long as half of `most` is not used.
    """
    count = len(nodes) - 1
    below = np.zeros(count, np.int64)
    for node in range(count - 1, BOUND_ROOT, -1):
        for v in range(nodes[node].child, nodes[node + 1].child):
            below[node] += 1 + below[v]
    longest_token = token_nodes[trie].height
    list_of = np.zeros(count, np.int32)
    ends = np.zeros(1024, np.int64)
    tokens = np.empty(1024, np.int32)
    lists = 1
    total = 0
    for node in range(BOUND_ROOT + 1, count):
        if nodes[node].near > longest_token:
            below[node] = 0
            continue
        fail = nodes[node].fail
        of_fail = list_of[fail]
        own = below[node] if nodes[node].below <= longest_token else 0
        below[node] = own + below[fail] if of_fail < 0 else own
        list_of[node] = of_fail
        if own == 0:
            continue
        heavy = below[node] > above
        list_of[node] = -1
        if total >= most or not (heavy or tries):
            continue
        found = continuations(nodes, token_nodes, trie, order, word_ends, stamps, scratch, stack, node)
        tries -= not heavy
        if not heavy and found > short and total >= most // 2:
            continue
        below[node] = 0
        if of_fail >= 0 and found == ends[of_fail] - (ends[of_fail - 1] if of_fail else 0):
            list_of[node] = of_fail
            continue
        if total + found > len(tokens):
            grown = np.empty(2 * (total + found), np.int32)
            grown[:total] = tokens[:total]
            tokens = grown
        if lists == len(ends):
            longer = np.empty(2 * lists, np.int64)
            longer[:lists] = ends
            ends = longer
        tokens[total : total + found] = scratch[:found]
        total += found
        ends[lists] = total
        list_of[node] = lists
        lists += 1
    return list_of, ends[:lists].copy(), tokens[:total].copy()


@jit
def _follow(
    nodes: NDArray[Any],
    rows: NDArray[np.int32],
    classes: NDArray[np.uint8],
    symbols: NDArray[np.uint8],
    starts: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    longest: int,
    slots: NDArray[np.int64],
    drafts: NDArray[np.int64],
    positions: NDArray[np.int64],
    input_ids: NDArray[np.int64],
    token_ids: NDArray[Any],
    lengths: NDArray[np.int64],
    enabled: NDArray[np.int64],
    prompts: NDArray[np.int64],
    checkpoints: NDArray[np.int64],
    found: NDArray[np.int64],
) -> None:
    """Fill `found`.

    From the end of the committed tokens, go back to what the slot remembers, or to where nothing before matters
    (`matcher._states_of`), whichever comes first; from there go forward, and on over the drafts.
    """
    for row in range(len(slots)):
        slot = slots[row]
        found[row] = _NOT_OURS
        if slot < 0 or slot >= len(lengths) or enabled[slot] == 0:
            continue
        found[row] = _UNREADABLE
        draft = drafts[row]
        length = max(0, min(lengths[slot], positions[row] - draft + 1))
        if length > token_ids.shape[1] or draft < 0 or draft > row:
            continue
        covered = checkpoints[slot] >> _STATE_BITS
        state = checkpoints[slot] & _STATE_MASK
        if covered > length:
            covered, state = 0, 0
        first = length
        seen = 0
        known = True
        while first > covered and seen <= longest and known:
            first -= 1
            token = int(token_ids[slot, first])
            known = bool(0 <= token < len(kinds) and kinds[token] != UNKNOWN)
            if known:
                seen += starts[AFTER_OTHER, token + 1] - starts[AFTER_OTHER, token]
        if not known:
            continue
        if first > covered:
            state = 0
        for i in range(first, length):
            token = int(token_ids[slot, i])
            state = advance_inline(nodes, rows, classes, symbols, starts, next_state, kinds, state, token)
            if i + 1 == prompts[slot]:
                state = end_prompt(state)
        for at in range(row - draft + 1, row + 1):
            if state >= 0:
                token = input_ids[at]
                state = advance_inline(nodes, rows, classes, symbols, starts, next_state, kinds, state, token)
            if slots[at] != slot:
                state = -1
        if state >= 0:
            found[row] = length << _STATE_BITS | state
