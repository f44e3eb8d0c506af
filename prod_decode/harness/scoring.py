"""What a text is worth under the mask: log-probabilities of the distribution that `generate` draws from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from prod_decode.blocklist.blocklist import Blocklist
from prod_decode.command.options import load_source
from prod_decode.corpus.index import CorpusIndex
from prod_decode.errors import Mistakes, ProdError, brief
from prod_decode.hf import ProdLogitsProcessor
from prod_decode.masking import renormalize_log_probs_

# What a user names: a file, several joined with `+`, or what they hold; or some of these.
Named = str | os.PathLike[str] | Blocklist | CorpusIndex
Loaded = Blocklist | CorpusIndex


def load_sources(named: Named | Sequence[Named]) -> list[Loaded]:
    """What `ProdLogitsProcessor` takes: one blocklist, in which all that are named are merged, and the indices.

    Args:
        named: compiled blocklists and corpus indices: files, `list:NAME`, or loaded ones. A string may name several,
            joined with `+`, unless there is a file of the whole name.

    Raises:
        ProdError: nothing is named, something else is, a file cannot be read, or blocklists that cannot be merged. Of
            several files that cannot be read, each is said.
    """
    mistakes, loaded = Mistakes(), []
    for one in _each(named):
        with mistakes.caught():
            loaded.append(one if isinstance(one, Blocklist | CorpusIndex) else load_source(one))
    mistakes.refuse()
    blocklists = [one for one in loaded if isinstance(one, Blocklist)]
    indices = [one for one in loaded if isinstance(one, CorpusIndex)]
    return [*([Blocklist.merge(blocklists)] if len(blocklists) > 1 else blocklists), *indices]


def _each(named: Named | Sequence[Named]) -> list[str | Loaded]:
    found: list[str | Loaded] = []
    for one in named if isinstance(named, list | tuple) else [named]:
        if isinstance(one, Blocklist | CorpusIndex):
            found.append(one)
        elif isinstance(one, str | os.PathLike):
            name = os.fspath(one)
            found += [name] if not isinstance(one, str) or Path(name).exists() else name.split("+")
        else:
            raise ProdError(f"blocklist: expected names of files, got {brief(one)}; quote a name that is a number")
    if not found or "" in found:
        raise ProdError(f"blocklist: expected a compiled blocklist or a corpus index, got {brief(named)}")
    return found


def masked_log_probs(
    processor: ProdLogitsProcessor, text: Sequence[int], continuation: Sequence[int], logits: Tensor
) -> Tensor:
    """The distributions from which the tokens of a continuation would be drawn.

    The plain loop, after `processor.forget()` where the text is a prompt::

        for i, token in enumerate(continuation):
            result[i] = log_softmax(processor([text + continuation[:i]], [logits[i]]))

    Args:
        processor: masks the steps, as it does in `generate`: replacements, budgets and exempted prompts too. Without
            `forget` before, the text goes on with that of the last call.
        text: what the continuation follows; at least one token.
        continuation: n tokens.
        logits: [n, V], floats: the model's before each of them. Not modified.

    Returns:
        [n, V], new, of the same dtype and device: -inf for what is prohibited. A row without a token left has its
        probability at the tokens that end a text.

    Raises:
        ProdError: of the processor.
    """
    # On the host, whatever holds the logits: the processor reads the newest token of every step there.
    ids = torch.tensor([[*text, *continuation]], dtype=torch.int64)
    steps = [processor(ids[:, : len(text) + i], logits[i : i + 1]) for i in range(len(continuation))]
    return renormalize_log_probs_(torch.cat(steps))
