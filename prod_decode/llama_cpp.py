"""The adapter for llama-cpp-python; `docs/reference/engines.md` is its manual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prod_decode.errors import ProdError
from prod_decode.match.matcher import Matcher
from prod_decode.serving.guard import Guard
from prod_decode.serving.hits import Hit


class ProdLogitsProcessors(list[Any]):
    """For llama-cpp-python: `llm(prompt, logits_processor=ProdLogitsProcessors(matcher, llama=llm))`.

    A list, as `llama_cpp.LogitsProcessorList` is, with this one processor; others may be put before it. A text without
    a token left ends with the EOS of `llama`.

    llama-cpp-python leaves bytes that are not UTF-8 out of the text. So a token that breaks a character is banned too.

    llama.cpp calls processors from C, where an error is printed and no more. So what can be wrong is refused here, and
    a step that fails all the same, or is interrupted, writes EOS.
    """

    def __init__(
        self,
        *matchers: Matcher,
        llama: Any,
        stop: Sequence[str] | None = None,
        json: bool = False,
        on_hit: Callable[[Hit], object] | None = None,
    ) -> None:
        """Check the model.

        Args:
            matchers: one for each blocklist, bound to one vocabulary: the model's.
            llama: the `llama_cpp.Llama` that these are for.
            stop: the strings that you pass as `stop`, () if there are none; as for `guard.Guard`.
            json: as for `guard.Guard`.
            on_hit: called with each `Hit`, or an `AuditLog`. An error in it ends the text.

        Raises:
            ProdError: it has a `draft_model`, since processors are then shown drafts beyond the position that they are
                asked for; its vocabulary is another one, or its EOS is no special token there.
        """
        if llama.draft_model is not None:
            raise ProdError(
                "expected a model without draft_model, which shows processors drafts in place of the text, got one: "
                "leave draft_model out"
            )
        options: dict[str, Any] = {"stop": stop, "json": json, "on_hit": on_hit}
        guard = Guard(matchers, llama.token_eos(), must_end=False, drops_bytes=True, **options)
        guard.check_width(llama.n_vocab())
        self.guard = guard
        super().__init__([_ProdLogitsProcessor(guard, llama)])

    def forget(self) -> None:
        """The next text is a prompt: for a prompt that is the last text with one token more."""
        self.guard.forget()

    def extend(self, others: Any) -> Any:
        """A list with others first, for this request: llama-cpp-python 0.3 takes what `extend` returns.

        It does so when a request has `logit_bias`; with a plain list that is None, and nothing would be enforced. This
        list stays as it is, so that the next request has no bias of this one.
        """
        extended: ProdLogitsProcessors = ProdLogitsProcessors.__new__(ProdLogitsProcessors)
        extended[:] = [*others, *self]
        return extended


class _ProdLogitsProcessor:
    def __init__(self, guard: Guard, llama: Any) -> None:
        self.guard = guard
        self.llama = llama

    def __call__(self, input_ids: NDArray[np.intc], scores: NDArray[np.single]) -> NDArray[np.single]:
        """A masked copy of `scores`, float32 [V], which are left with nothing but EOS."""
        row = torch.tensor(scores)
        # What llama.cpp goes on with if the next line raises.
        self.guard.end_(torch.from_numpy(scores))
        masked = self.guard.end_(row) if self.llama.draft_model is not None else self.guard.mask_(row, input_ids)
        return np.asarray(masked.numpy(), np.single)
