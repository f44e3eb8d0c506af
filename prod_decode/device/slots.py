"""The requests of vLLM's V2 model runner, each in a slot of the device; nothing here imports vLLM."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.device.bans import DeviceMatcher
from prod_decode.masking import mask_columns_
from prod_decode.match.matcher import Matcher


class Slots:
    """The V2 runner's side: tokens stay on the device, in slots that never move; nothing here waits for it.

    vLLM says nothing when a request leaves, and gives no tokens when one comes, so a slot's state is reset when it is
    taken; `DeviceMatcher` reads the tokens itself, drafts of speculative decoding included.
    """

    def __init__(
        self, matchers: list[Matcher], eos_ids: list[int], ending: NDArray[np.int64], vllm_config: Any, states: Any
    ) -> None:
        """Put everything on the device.

        Args:
            matchers: of the blocklists, in the order of the numbers that `take` is given.
            eos_ids: what ends a row.
            ending: int64 [n], ascending: every token that ends a text, masked where a request asked for `ignore_eos`.
            vllm_config: vLLM's.
            states: the V2 runner's request states: tensors `all_token_ids.gpu` [slots, T], `total_len.gpu` and
                `prompt_len.gpu` [slots], `vocab_size`, `max_num_reqs`, `device`.
        """
        self._states = states
        self._ending = ending
        # For every slot: by how much its text is said to be longer than it can be, to end its row; whether the request
        # asked for `ignore_eos`; and whether each blocklist is in force.
        self._settings = np.zeros((2 + len(matchers), states.max_num_reqs), np.int32)
        self._closed, self._endless, self._enabled = self._settings[0], self._settings[1], self._settings[2:]
        self._names: list[tuple[int, ...]] = [()] * states.max_num_reqs
        # In a thread of its own: vLLM loads the model inside of a memory pool, which belongs to its thread, and which
        # sleep mode of level 2 throws away.
        with ThreadPoolExecutor(1, thread_name_prefix="prod") as pool:
            pool.submit(self._allocate, matchers, eos_ids, vllm_config).result()
        self._taken: list[int] = []
        for guard in self._guards:
            guard.warm_up(
                torch.zeros((1, states.vocab_size), device=states.device),
                states.all_token_ids.gpu,
                states.total_len.gpu,
                torch.int64,
            )

    def _allocate(self, matchers: list[Matcher], eos_ids: list[int], vllm_config: Any) -> None:
        states, speculation = self._states, vllm_config.speculative_config
        drafts = speculation.num_speculative_tokens if speculation is not None else 0
        self._guards = [
            DeviceMatcher(matcher, states.device, slots=states.max_num_reqs, max_drafts=drafts, eos_token_id=eos_ids)
            for matcher in matchers
        ]
        self._on_device = torch.zeros(self._settings.shape, dtype=torch.int32, device=states.device)
        self._ending_on_device = torch.tensor(self._ending, device=states.device)

    def take(self, slot: int, names: tuple[int, ...] | None, *, endless: bool = False) -> None:
        """A request has come; None for `names` ends it."""
        # Any guard ends a text that cannot be as long as it says.
        self._names[slot] = (0,) if names is None else names
        self._enabled[:, slot] = 0
        self._enabled[list(self._names[slot]), slot] = 1
        self._endless[slot] = endless and names != ()
        self._closed[slot] = 0 if names is not None else self._states.all_token_ids.gpu.shape[1] + 1
        self._taken.append(slot)

    def write(self) -> None:
        """Tell the device, once a step, before anything reads it."""
        if self._taken:
            self._on_device.copy_(torch.from_numpy(self._settings.copy()), non_blocking=True)
            for number in {number for slot in self._taken for number in self._names[slot]}:
                self._guards[number].reset([slot for slot in self._taken if number in self._names[slot]])
            self._taken = []

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """Mask the rows of a step in place.

        Args:
            logits: floats [R, V].
            ctx: vLLM's `LogitsContext`: which slot, draft and position each row is of.
        """
        lengths, positions = self._states.total_len.gpu, ctx.pos
        if self._closed.any():
            lengths = lengths + self._on_device[0]
            positions = positions + self._on_device[0][ctx.expanded_idx_mapping.clamp(min=0)]
        used = set[int]().union(*(self._names[slot] for slot in ctx.idx_mapping_np.tolist()))
        if self._endless[ctx.idx_mapping_np].any():
            self._mask_ending_(logits, ctx)
        for number in sorted(used):
            self._guards[number].apply(
                logits,
                slots=ctx.expanded_idx_mapping,
                drafts=ctx.expanded_local_pos,
                positions=positions,
                input_ids=ctx.input_ids,
                token_ids=self._states.all_token_ids.gpu,
                lengths=lengths,
                enabled=self._on_device[2 + number],
                prompts=self._states.prompt_len.gpu,
            )
        return logits

    def _mask_ending_(self, logits: Tensor, ctx: Any) -> None:
        """Mask what ends a text in the rows that asked for `ignore_eos`; comes first, so that a dead row ends still."""
        slots = ctx.expanded_idx_mapping
        endless = (slots >= 0) & (self._on_device[1][slots.clamp(min=0)] > 0)
        # Counted on the host: choosing them by a condition would wait for the device.
        count = int(np.searchsorted(self._ending, logits.shape[1]))
        mask_columns_(logits, endless, self._ending_on_device[:count])
