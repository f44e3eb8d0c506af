"""One file of named arrays: memory-mapped, checksummed, written whole or not at all, and no pickle.

Layout: `MAGIC`, the length of the header (uint64, little endian), the header (JSON, UTF-8), the XXH3 checksum of all
before it (16 bytes), then the arrays, each at a multiple of 64 bytes from the start of the file. The header gives the
format's version, the checksum of everything behind the header, and each array's type, shape and place.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from prod_decode.errors import ProdError

MAGIC = b"PRODBLK\x01"
VERSION = 1
_ALIGNMENT = 64
_DIGEST = 16


def write_artifact(
    path: str | os.PathLike[str],
    meta: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    *,
    magic: bytes = MAGIC,
) -> None:
    """Write `arrays` and JSON-able `meta` to `path`; a crash at any moment leaves the file that was there before.

    Args:
        path: the file.
        meta: for the header.
        arrays: contiguous ones are not copied.
        magic: 8 bytes with which the file begins; another for another kind of file.

    Raises:
        ProdError: the file cannot be written.
    """
    target = Path(path)
    places: dict[str, Any] = {}
    checksum = xxhash.xxh3_128()
    chunks: list[memoryview | bytes] = []
    size = 0
    for name, array in arrays.items():
        contiguous = np.ascontiguousarray(array)
        places[name] = {"type": _describe(contiguous.dtype), "shape": contiguous.shape, "at": size}
        padding = -contiguous.nbytes % _ALIGNMENT
        for chunk in (contiguous.reshape(-1).view(np.uint8).data, bytes(padding)):
            checksum.update(chunk)
            chunks.append(chunk)
        size += contiguous.nbytes + padding
    header = json.dumps(
        {"version": VERSION, "meta": dict(meta), "size": size, "checksum": checksum.hexdigest(), "arrays": places},
        separators=(",", ":"),
    ).encode()
    head_size = len(magic) + 8 + len(header) + _DIGEST
    header += b" " * (-head_size % _ALIGNMENT)
    head = magic + struct.pack("<Q", len(header)) + header
    try:
        with write_whole(target) as file:
            file.write(head + xxhash.xxh3_128_digest(head))
            for chunk in chunks:
                file.write(chunk)
    except OSError as error:
        raise ProdError(f"cannot write {target}: {error.strerror}") from None


class write_whole:  # noqa: N801 (used like `open`)
    """A binary file that takes the place of `path` when the block ends well, and else leaves nothing behind."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def __enter__(self) -> Any:
        try:
            self._file = tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=f".{self._path.name}.", delete=False)
        except OSError as error:
            raise ProdError(f"cannot write {self._path}: {error.strerror}") from None
        return self._file

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        temporary = Path(self._file.name)
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                # A temporary file is private; the one it becomes is as readable as any that the user writes.
                mask = os.umask(0)
                os.umask(mask)
                temporary.chmod(0o666 & ~mask)
                temporary.replace(self._path)
        finally:
            try:
                self._file.close()  # flushes, and so fails again on a full disk
            finally:
                temporary.unlink(missing_ok=True)


def read_artifact(
    path: str | os.PathLike[str], *, verify: bool = True, magic: bytes = MAGIC
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Map a file that `write_artifact` wrote: its meta and read-only arrays, shared between processes.

    Args:
        path: the file.
        verify: read all of it and compare its checksum; else only the header's, and the file's size.
        magic: as it was written.

    Raises:
        ProdError: no such file, not such a file, of another version, cut short, or damaged.
    """
    source = Path(path)
    again = "compile the blocklist again"
    try:
        with source.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ProdError(f"{source} is empty, expected a compiled blocklist: {again}")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ProdError(f"cannot read the blocklist {source}: {error.strerror}") from None
    fixed = len(magic) + 8
    if mapped[: len(magic)] != magic:
        raise ProdError(f"{source} is not a compiled blocklist: make one with `prod-decode compile {source} -o FILE`")
    head_size = fixed + struct.unpack("<Q", mapped[len(magic) : fixed])[0] if len(mapped) >= fixed else fixed
    if len(mapped) < head_size + _DIGEST:
        raise ProdError(f"{source} is cut short: {again}")
    if xxhash.xxh3_128_digest(mapped[:head_size]) != mapped[head_size : head_size + _DIGEST]:
        raise ProdError(f"{source} is damaged (the checksum of its header is wrong): {again}")
    header = json.loads(mapped[fixed:head_size])
    if header["version"] != VERSION:
        raise ProdError(f"{source} has format version {header['version']}, expected {VERSION}: {again}")
    start = head_size + _DIGEST
    if len(mapped) != start + header["size"]:
        raise ProdError(f"{source} has {len(mapped)} bytes, expected {start + header['size']}: {again}")
    if verify and xxhash.xxh3_128_hexdigest(memoryview(mapped)[start:]) != header["checksum"]:
        raise ProdError(f"{source} is damaged (its checksum is wrong): {again}")
    arrays = {}
    for name, place in header["arrays"].items():
        dtype = _dtype(place["type"])
        count = int(np.prod(place["shape"], dtype=np.int64))
        array = np.frombuffer(mapped, dtype, count, start + place["at"])
        arrays[name] = array.reshape(place["shape"])
    return header["meta"], arrays


def _describe(dtype: np.dtype[Any]) -> Any:
    if dtype.fields is None:
        return dtype.str
    return {name: [field[0].str, field[1]] for name, field in dtype.fields.items()} | {"": ["", dtype.itemsize]}


def _dtype(description: Any) -> np.dtype[Any]:
    if isinstance(description, str):
        return np.dtype(description)
    fields = {name: field for name, field in description.items() if name}
    return np.dtype(
        {
            "names": list(fields),
            "formats": [field[0] for field in fields.values()],
            "offsets": [field[1] for field in fields.values()],
            "itemsize": description[""][1],
        },
        align=True,
    )
