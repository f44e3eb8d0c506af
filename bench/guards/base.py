"""What a guard is: something that keeps prohibited text out while a model generates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.blocklist.entries import Entry
    from prod_decode.match.matcher import Matcher


class Guard(ABC):
    """Logits processors for transformers, made of a task's entries.

    Attributes:
        name: as in `--methods`.
        rank: where it stands in lists, before those with a greater one.
        in_vllm: whether vLLM can do the same: with the guard's `blocklist`, or with nothing.
        is_measured: whether what the model says of given texts is measured under it too, with the matcher, if any.
    """

    name: ClassVar[str]
    rank: ClassVar[int] = 100
    in_vllm: ClassVar[bool] = False
    is_measured: ClassVar[bool] = False

    @abstractmethod
    def processors(self, entries: Sequence[Entry], tokenizer: Any) -> tuple[list[Any], Matcher | None]:
        """The logits processors, and the matcher that says what they ban, if there is one.

        Raises:
            ProdError: it can do nothing with these entries.
        """

    def blocklist(self, entries: Sequence[Entry]) -> Blocklist | None:
        """What our processor in vLLM enforces; None: nothing."""
        del entries
        return None
