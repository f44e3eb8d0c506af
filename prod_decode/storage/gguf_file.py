"""GGUF files: whether one is whole, before a library believes the counts in it, and reading one only once."""

from __future__ import annotations

import contextlib
import functools
import mmap
import struct
import threading
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from prod_decode.errors import ProdError, brief

# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_LARGEST = 2**48  # values of a tensor; a whole model has fewer


_PATCHING = threading.RLock()


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Inside, the package `gguf` reads the header of a file once, into plain arrays, and makes a map of names once.

    transformers asks for the header three times for a model with its tokenizer, and for the map for each of its
    modules. Every slice of the library's `numpy.memmap` runs Python code, a million times for a vocabulary. Without
    all this SmolLM2-135M with its tokenizer takes 28 s of processor time, with it 7.
    """
    import gguf

    with _PATCHING:
        reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
        if not isinstance(reader, type):  # inside of another one
            yield
            return

        class Reader(reader):  # type: ignore[misc, valid-type]
            """With the file as a plain array."""

            def __setattr__(self, name: str, value: Any) -> None:
                super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)

        gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(Reader), functools.cache(name_map)
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map


def begins_with_bos(path: str) -> bool:
    """Whether the tokenizer of a GGUF file puts the token that begins a text before every text.

    Inside `read_once`, with the path that transformers makes, its header is not read again. A file that does not say
    so means what llama.cpp takes it for: yes with SentencePiece's vocabulary, else no.
    """
    import gguf

    fields = gguf.GGUFReader(path).fields
    if (says := fields.get("tokenizer.ggml.add_bos_token")) is not None:
        return bool(says.contents())
    model = fields.get("tokenizer.ggml.model")
    return model is not None and bool(model.contents() == "llama")


def require_whole(path: str | Path) -> None:
    """Refuse a file that is no GGUF file, or of which a part is missing or impossible.

    Readers go on past the end of a file, or count as far as it tells them to. Nothing here is larger than the file is.

    Raises:
        ProdError: says what is wrong, and where.
    """
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                raise ProdError(f"cannot read the model {path}: it is empty, expected a GGUF file: download it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _check(_Reader(data, size))
    except OSError as error:
        raise ProdError(f"cannot read the model {path}: {error.strerror}") from None
    except _Damaged as error:
        raise ProdError(
            f"cannot read the model {path}: {error}: it is damaged or was cut off, download it again"
        ) from None


class _Damaged(Exception):  # noqa: N818 (it never leaves this file)
    pass


class _Reader:
    """Reads on from a place; whatever ends behind the end of the file is damage."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self.size, self.at = data, size, 0

    def skip(self, count: int) -> int:
        """Where what was skipped begins."""
        start, self.at = self.at, self.at + count
        if self.at > self.size:
            raise _Damaged(f"it has {self.size:,} bytes, what begins at {start:,} ends behind them")
        return start

    def number(self, kind: str) -> int:
        found: int = struct.unpack_from(f"<{kind}", self._data, self.skip(struct.calcsize(f"<{kind}")))[0]
        return found

    def take(self, count: int) -> bytes:
        start = self.skip(count)
        return self._data[start : self.at]

    def string(self) -> str:
        start = self.at
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError:
            raise _Damaged(f"expected UTF-8 text at byte {start:,}, got something else") from None

    def value(self, kind: int) -> int | str | None:
        """The value, where it is a string or a whole number of 32 bits; the others are skipped."""
        if kind == _STRING:
            return self.string()
        if kind == _UINT32:
            return self.number("I")
        if kind in _WIDTHS:
            self.skip(_WIDTHS[kind])
            return None
        if kind != _ARRAY:
            raise _Damaged(f"expected a kind of value from 0 to 12 at byte {self.at - 4:,}, got {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _WIDTHS:
            self.skip(_WIDTHS[inner] * count)
        elif inner == _STRING:
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise _Damaged(f"expected a list of numbers or strings at byte {self.at - 12:,}, got kind {inner}")
        return None


def _check(reader: _Reader) -> None:
    if reader.size < len(_MAGIC) or reader.take(len(_MAGIC)) != _MAGIC:
        raise _Damaged("expected a GGUF file, it does not begin with 'GGUF'")
    version = reader.number("I")
    if version not in _VERSIONS:
        raise _Damaged(f"expected GGUF of version 2 or 3, got {version}")
    tensors, values = reader.number("Q"), reader.number("Q")
    if 24 * tensors + 13 * values > reader.size:  # what each of them takes at least
        raise _Damaged(f"it has {reader.size:,} bytes, too few for {tensors:,} tensors and {values:,} values")
    found: dict[str, int | str | None] = {}
    for _ in range(values):
        name = reader.string()
        found[name] = reader.value(reader.number("I"))
    architecture = found.get("general.architecture")
    if not isinstance(architecture, str):
        raise _Damaged("expected the name of an architecture (general.architecture), it is missing")
    blocks = set()
    last = 0
    for name, end in _tensors(reader, tensors):
        last = max(last, end)
        parts = name.split(".")
        if parts[0] == "blk" and len(parts) > 1:
            blocks.add(parts[1])
    alignment = found.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise _Damaged(f"expected an alignment (general.alignment) above 0, got {brief(alignment)}")
    whole = -(-reader.at // alignment) * alignment + last
    if whole > reader.size:
        raise _Damaged(f"it has {reader.size:,} bytes, its tensors need {whole:,}")
    layers = found.get(f"{architecture}.block_count")
    if isinstance(layers, int) and (layers != len(blocks) if blocks else layers > tensors):
        raise _Damaged(f"it has tensors for {len(blocks):,} layers, its header says {layers:,}")


def _tensors(reader: _Reader, count: int) -> Iterator[tuple[str, int]]:
    """Each tensor's name, and where it ends, counted from the first one."""
    from gguf import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    for _ in range(count):
        name = reader.string()
        at = reader.at
        dimensions = reader.number("I")
        if dimensions > 8:  # GGUF has four at most
            raise _Damaged(f"expected up to four dimensions at byte {at:,}, got {dimensions:,}")
        values = prod(reader.number("Q") for _ in range(dimensions))
        kind, offset = reader.number("I"), reader.number("Q")
        if kind not in sizes:
            raise _Damaged(f"{brief(name)} has values of kind {kind}, which is not known")
        per_block, width = sizes[kind]
        if not 0 < values < _LARGEST:
            raise _Damaged(f"{brief(name)} has {brief(values)} values, expected more than none, and fewer than 2**48")
        yield name, offset + values // per_block * width
