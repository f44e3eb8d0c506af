"""What the frozen reference model says of every supervised token, computed once and kept on disk.

Three kinds: `targets`, the ragged distributions of PROD and UNDIAL (exact: a nucleus is finite); `log_probs`, for NPO
and DPO; `hidden`, the hidden states, from which a whole distribution over the vocabulary can be made again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from prod_decode.errors import ProdError
from prod_decode.masking import nucleus_support, prod_distribution
from prod_decode.storage.files import write_whole
from prod_train.data.rows import Row, by_length, collate
from prod_train.loss.objective import Encoder, Head
from prod_train.loss.sparse import SparseTargets
from prod_train.method import Kind, Recipe, Reference
from prod_train.targets.prohibited import Moves, Prohibition, Rules, rules_of

if TYPE_CHECKING:
    from prod_decode.match.matcher import Matcher

_log = logging.getLogger(__name__)

FORMAT = 1
SHARD_ROWS = 64


def make_targets(
    head: Head,
    hidden: Tensor,
    labels: Tensor,
    prohibited: Prohibition,
    recipe: Recipe,
    *,
    eos: int,
    first: bool = False,
    moves: Moves | None = None,
) -> SparseTargets:
    """The targets of one row's N supervised positions, from the reference model's hidden states.

    Args:
        head: of the reference model.
        hidden: [N, d].
        labels: int64 [N], the supervised tokens.
        prohibited: as `prohibited_next` gives; ignored for UNDIAL.
        recipe: the settings.
        eos: where everything is prohibited the target is this token alone, as the logits processors do.
        first: whether `hidden[0]` is the first position of the text, for `paper_compat`.
        moves: of the row, at its beginning: probability that goes to replacements, before anything is prohibited.

    Returns:
        N rows on the CPU; exact, nothing is cut.
    """
    parts = []
    for start in range(0, len(hidden), head.chunk_size):
        z = head.logits(hidden[start : start + head.chunk_size])
        y = labels[start : start + head.chunk_size]
        here = (prohibited[0] >= start) & (prohibited[0] < start + len(z))
        rows, cols = prohibited[0][here] - start, prohibited[1][here]
        plain = z
        if moves is not None:
            plain = z.clone() if recipe.alpha else z
            moves.apply_(z, start)
        parts.append(_of_chunk(z, plain, y, rows, cols, recipe, eos=eos, first=first and start == 0))
    return join(parts)


def _of_chunk(
    z: Tensor,
    plain: Tensor,
    y: Tensor,
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    recipe: Recipe,
    *,
    eos: int,
    first: bool,
) -> SparseTargets:
    """Of the logits `z`; with `alpha`, `plain` are those before anything was moved, and otherwise the same."""
    nucleus = {"top_p": recipe.top_p, "max_n": recipe.max_n, "temperature": recipe.temperature}
    if recipe.beta is not None:
        z[torch.arange(len(z), device=z.device), y] -= recipe.beta
        rows, cols = rows[:0], cols[:0]
    odd = first and recipe.paper_compat
    if odd:
        rows, cols = rows[rows != 0], cols[rows != 0]
    if recipe.alpha or odd:
        dense = prod_distribution(z, (rows, cols), alpha=recipe.alpha, **nucleus)  # type: ignore[arg-type]
        if plain is not z:
            dense[rows, cols] = prod_distribution(plain, (rows, cols), alpha=recipe.alpha)[rows, cols]
        if odd:
            dense[0, y[0]] = -recipe.alpha * z[0].softmax(-1)[y[0]]
        found = SparseTargets.from_dense(dense)
    elif recipe.keep is not None:
        struck = np.isin(np.arange(len(z)), rows[cols == y.cpu().numpy()[rows]])
        kept = SparseTargets(*nucleus_support(z, (rows, cols), max_n=recipe.keep))
        found = select(SparseTargets(*nucleus_support(z, (rows, cols), **nucleus)), kept, struck)  # type: ignore[arg-type]
    else:
        found = SparseTargets(*nucleus_support(z, (rows, cols), **nucleus))  # type: ignore[arg-type]
    found = found.to("cpu")
    if recipe.beta is None and not odd and (dead := found.counts == 0).any():
        found = _end_dead(found, dead, eos)
    return found


def _end_dead(targets: SparseTargets, dead: Tensor, eos: int) -> SparseTargets:
    """EOS with probability 1 in the rows that have nothing left."""
    count = len(dead)
    ends = SparseTargets(torch.full((count,), eos), torch.ones(count), torch.arange(count + 1))
    return select(ends, targets, dead.numpy())


def select(these: SparseTargets, those: SparseTargets, chosen: NDArray[np.bool_]) -> SparseTargets:
    """Row by row one of two targets of N rows: of `these` where chosen, bool [N], else of `those`; on the CPU."""
    first, second = these.to("cpu"), those.to("cpu")
    mine = torch.from_numpy(chosen)
    counts = torch.where(mine, first.counts, second.counts)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    ids, probs = torch.empty(int(offsets[-1]), dtype=torch.long), torch.empty(int(offsets[-1]))
    filled = torch.repeat_interleave(mine, counts)
    for part, rows, places in ((first, mine, filled), (second, ~mine, ~filled)):
        taken = torch.repeat_interleave(rows, part.counts)
        ids[places], probs[places] = part.ids[taken].long(), part.probs[taken].float()
    return SparseTargets(ids, probs, offsets)


def join(parts: Sequence[SparseTargets]) -> SparseTargets:
    """Several targets one after the other."""
    counts = torch.cat([part.counts for part in parts])
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return SparseTargets(torch.cat([p.ids for p in parts]), torch.cat([p.probs for p in parts]), offsets)


Tensors = dict[str, Tensor]


class Shards:
    """One entry of tensors a row, in shards on disk; written shard by shard, so that a stopped run goes on.

    A store belongs to its key, which holds everything the entries depend on: another key is another folder.
    """

    def __init__(self, folder: Path, key: dict[str, Any], count: int) -> None:
        """Open or begin.

        Args:
            folder: of all stores; made if missing.
            key: JSON-able.
            count: rows.

        Raises:
            ProdError: the folder cannot be written, or holds another key under the same hash.
        """
        text = json.dumps({"format": FORMAT, "rows": count, **key}, sort_keys=True)
        self._digest = xxhash.xxh3_128_hexdigest(text.encode())
        self._folder = folder / f"{key.get('kind', 'store')}-{self._digest[:16]}"
        self._count = count
        self._entries: list[Tensors | None] = [None] * count
        about = self._folder / "key.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if about.exists() and about.read_bytes() != text.encode():
                raise ProdError(f"{about}: expected the key of this run, got another: remove {self._folder}")
        except OSError as error:
            raise ProdError(f"cannot write {self._folder}: {error.strerror}") from None
        if not about.exists():
            with write_whole(about) as file:
                file.write(text.encode())

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self._count // SHARD_ROWS)

    def rows(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * SHARD_ROWS, min(self._count, (shard + 1) * SHARD_ROWS))

    def fill(self, make: Callable[[range], list[Tensors]], shards: Iterable[int]) -> int:
        """Load these shards, making those that are missing or damaged; returns how many were made."""
        made = 0
        for shard in shards:
            if not self._load(shard):
                self._write(shard, make(self.rows(shard)))
                made += 1
        return made

    def __getitem__(self, row: int) -> Tensors:
        """The entry of a row that `fill` has loaded."""
        entry = self._entries[row]
        if entry is None:
            raise KeyError(row)
        return entry

    def _path(self, shard: int) -> Path:
        return self._folder / f"{shard:05d}.safetensors"

    def _write(self, shard: int, entries: list[Tensors]) -> None:
        from safetensors.torch import save

        tensors = {}
        for name in entries[0]:
            tensors[name] = torch.cat([entry[name] for entry in entries]).contiguous()
            tensors[f"{name}.rows"] = torch.tensor([len(entry[name]) for entry in entries])
        with write_whole(self._path(shard)) as file:
            file.write(save(tensors, metadata={"key": self._digest, "checksum": _checksum(tensors)}))
        self._keep(shard, entries)

    def _load(self, shard: int) -> bool:
        from safetensors import SafetensorError, safe_open

        path = self._path(shard)
        if not path.exists():
            return False
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                # Copied, since a mapped file shows what is written over it later.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            _log.warning("%s is damaged (%s): it is made again", path, error)
            return False
        if about.get("key") != self._digest or about.get("checksum") != _checksum(tensors):
            _log.warning("%s is damaged or belongs to another run: it is made again", path)
            return False
        names = [name for name in tensors if f"{name}.rows" in tensors]
        parts = {name: tensors[name].split(tensors[f"{name}.rows"].tolist()) for name in names}
        self._keep(shard, [{name: parts[name][i] for name in names} for i in range(len(self.rows(shard)))])
        return True

    def _keep(self, shard: int, entries: list[Tensors]) -> None:
        for row, entry in zip(self.rows(shard), entries, strict=True):
            self._entries[row] = entry


def _checksum(tensors: dict[str, Tensor]) -> str:
    total = xxhash.xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def rows_digest(rows: Sequence[Row]) -> str:
    """A hash of the token ids of rows and of what is supervised in them."""
    total = xxhash.xxh3_128()
    for row in rows:
        # Of a row in which replacements are written out, the same tokens are another target.
        total.update(np.array([len(row.ids), row.has_eos + 2 * bool(row.instead_of)], np.int64).tobytes())
        total.update(row.ids.tobytes())
        total.update(row.supervised.tobytes())
    return total.hexdigest()


def model_digest(model: Any) -> str:
    """A hash of all weights of a model, dtypes and names included."""
    total = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return total.hexdigest()


class ReferenceStore:
    """A `Shards` of one kind for a list of rows, and its entries put together for a batch."""

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        rows: Sequence[Row],
        model: str,
        recipe: Recipe | None = None,
        blocklist: str | None = None,
    ) -> None:
        """Open or begin.

        Args:
            folder: of all stores.
            kind: what is kept.
            rows: tokenised.
            model: what identifies the reference model: hash, name, dtype.
            recipe: for `targets`.
            blocklist: the path of a compiled blocklist, for `targets`; its content is part of the key.
        """
        settings: dict[str, Any] = {}
        if kind == "targets":
            if recipe is None:
                raise ProdError("targets: expected a recipe, got none")
            settings = {name: getattr(recipe, name) for name in Recipe.__slots__}
            settings["blocklist"] = xxhash.xxh3_128_hexdigest(Path(blocklist).read_bytes()) if blocklist else None
        key = {"kind": kind, "model": model, "tokens": rows_digest(rows), **settings}
        self.kind = kind
        self._rows = rows
        self._recipe = recipe
        self._store = Shards(folder, key, len(rows))

    def fill(
        self,
        encoder: Encoder,
        model: Any,
        *,
        pad: int,
        eos: int,
        batch_size: int,
        matcher: Matcher | None = None,
        part: tuple[int, int] = (0, 1),
        progress: bool = False,
    ) -> int:
        """Load what is there and make what is missing with the reference model.

        Args:
            encoder: attached to the model.
            model: in evaluation mode.
            pad: token id of padding.
            eos: see `make_targets`.
            batch_size: rows a forward pass.
            matcher: of the blocklist, for `targets`.
            part: (i, n): only every n-th shard from i, for several processes.
            progress: show a bar.

        Returns:
            The number of shards that were made.
        """
        from tqdm import tqdm

        device = model.device
        rules = rules_of(matcher)
        shards = range(part[0], self._store.shards, part[1])

        @torch.no_grad()
        def make(rows: range) -> list[Tensors]:
            head = encoder.head()
            entries = {}
            for places in by_length([len(self._rows[number].ids) for number in rows], batch_size):
                numbers = [rows[i] for i in places]
                batch = collate([self._rows[number] for number in numbers], pad).to(device)
                hidden = encoder(model, batch)
                for i, number in enumerate(numbers):
                    here = batch.row == i
                    row = self._rows[number]
                    entries[number] = self._entry(head, hidden[here], batch.labels[here], row, eos, rules)
            return [entries[number] for number in rows]

        bar = tqdm(shards, desc=f"reference {self.kind}", unit="shard", disable=not progress, leave=False)
        return self._store.fill(make, bar)

    def _entry(self, head: Head, hidden: Tensor, labels: Tensor, row: Row, eos: int, rules: Rules) -> Tensors:
        if self.kind == "log_probs":
            return {"log_probs": head.log_probs(hidden, labels).cpu()}
        if self.kind == "hidden" or self._recipe is None:
            return {"hidden": hidden.cpu()}
        prohibited, moves = rules(row)
        first = bool(row.supervised[1:2].all())
        found = make_targets(head, hidden, labels, prohibited, self._recipe, eos=eos, first=first, moves=moves)
        # int32 and float32: 8 bytes an entry on disk; ids of a vocabulary fit.
        entry = {"ids": found.ids.int(), "probs": found.probs, "counts": found.counts.int()}
        return entry if moves is None else entry | {"moved": torch.from_numpy(moves.moved)}

    def batch(self, rows: Sequence[int], device: torch.device | str) -> Reference:
        """The reference for a batch of rows, in the order in which `collate` lists supervised tokens."""
        entries = [self._store[row] for row in rows]
        if self.kind == "targets":
            counts = torch.cat([entry["counts"] for entry in entries]).long()
            offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
            ids = torch.cat([entry["ids"] for entry in entries]).long()
            probs = torch.cat([entry["probs"] for entry in entries])
            return Reference(targets=SparseTargets(ids, probs, offsets).to(device))
        values = torch.cat([entry[self.kind] for entry in entries]).to(device)
        return Reference(log_probs=values) if self.kind == "log_probs" else Reference(hidden=values)

    def support_sizes(self) -> NDArray[np.int64]:
        """For `targets`: the number of tokens in the target of every supervised position."""
        return np.concatenate([self._store[row]["counts"].numpy() for row in range(len(self._rows))]).astype(np.int64)

    def moved(self) -> tuple[int, int]:
        """For `targets`: at how many supervised positions probability goes to a replacement, and of how many."""
        entries = [self._store[row] for row in range(len(self._rows))]
        moved = sum(int(entry["moved"].sum()) for entry in entries if "moved" in entry)
        return moved, sum(len(entry["counts"]) for entry in entries)
