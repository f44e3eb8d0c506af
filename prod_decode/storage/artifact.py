"""One file of named arrays: checksummed, written whole or not at all, and no pickle.

Layout: `MAGIC`, the length of the header (uint64, little endian), the header (JSON, UTF-8), the XXH3 checksum of all
before it (16 bytes), then the arrays, each at a multiple of 64 bytes from the start of the file. The header gives the
format's version, the checksum of everything behind the header, and each array's type, shape and place.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import xxhash
from numpy.typing import NDArray

from prod_decode.errors import ProdError
from prod_decode.storage.files import as_path, replaceable, why_unread, write_whole
from prod_decode.storage.shared import hold

MAGIC = b"PRODBLK\x01"
VERSION = 1
_ALIGNMENT = 64
_DIGEST = 16


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        magic: 8 bytes with which it begins.
        name: what it is, for messages.
        make: how to make one of a file that is none; the file stands in it as `{}`.
        again: what to do about one that is damaged.
    """

    magic: bytes
    name: str
    make: str
    again: str


# How files of this package begin, and what they are.
_KNOWN = {
    MAGIC: "a blocklist",
    b"PRODIDX\x01": "a corpus index",
    b"PRODIDP\x02": "part of a corpus index",
    b"PRODPRT\x02": "part of a blocklist",
}

# By the end of a file's name, what it is taken for.
_NAMED = {".prod": "blocklist", ".pidx": "corpus index"}

BLOCKLIST = Format(MAGIC, "blocklist", "make one with `prod-decode compile {} -o FILE`", "compile the blocklist again")

# Numbers as little endian machines have them, and NumPy's limit.
_PLAIN_TYPE = re.compile(r"\|[biu]1|<[iuf][248]")
_MOST_DIMENSIONS = 32


def write_artifact(
    path: str | os.PathLike[str],
    meta: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    *,
    form: Format = BLOCKLIST,
) -> None:
    """Write `arrays` and JSON-able `meta` to `path`; a crash at any moment leaves the file that was there before.

    Args:
        path: the file.
        meta: for the header.
        arrays: contiguous ones are not copied.
        form: the kind of file.

    Raises:
        ProdError: the file cannot be written.
    """
    target = as_path(path)
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
    head_size = len(form.magic) + 8 + len(header) + _DIGEST
    header += b" " * (-head_size % _ALIGNMENT)
    head = form.magic + struct.pack("<Q", len(header)) + header
    try:
        with write_whole(target) as file:
            file.write(head + xxhash.xxh3_128_digest(head))
            for chunk in chunks:
                file.write(chunk)
    except OSError as error:
        raise ProdError(f"cannot write {target}: {error.strerror}") from None


def require_output(
    path: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]] = (),
    *,
    replaces: tuple[bytes, str] | None = (MAGIC, "blocklist"),
) -> None:
    """Refuse, before anything is read, what `write_whole` could not write or should not write over.

    Args:
        path: the file to write.
        inputs: files that are read; names of something else count for nothing.
        replaces: how a file begins that may be written over, and what it is in a word; of others only an empty one
            may. None: any.

    Raises:
        ProdError: `path` is `-`, which other programs take for the standard output; it ends like a directory's, or as
            another kind of file is named; it is in no directory, or in one where no file can be made; it is one of the
            inputs, by whatever name; or something would be lost.
    """
    target = as_path(path)
    if str(path) == "-":
        raise ProdError("expected the name of a file to write, got '-': it is not printed")
    if str(path).endswith(os.sep):
        raise ProdError(f"expected the name of a file to write, got {str(path)!r}, which is that of a directory")
    meant = _NAMED.get(target.suffix.lower())
    if replaces is not None and meant not in (None, replaces[1]):
        own = next((suffix for suffix, name in _NAMED.items() if name == replaces[1]), None)
        remedy = "name another" if own is None else f"name it {target.with_suffix(own).name}"
        raise ProdError(f"expected the name of a {replaces[1]} to write, got {target}, as a {meant} is named: {remedy}")
    real = Path(os.path.realpath(target))
    try:
        found = replaceable(target)
        if found is None and not real.parent.is_dir():
            raise ProdError(f"cannot write {target}: the directory {real.parent} does not exist: make it first")
        tempfile.TemporaryFile(dir=real.parent).close()
        if found is None:
            return
        for name in inputs:
            with suppress(OSError):
                if Path(name).samefile(target):
                    raise ProdError(f"cannot write {target}: the same file is an input; name another")
        if replaces is not None and not _may_be_replaced(target, replaces[0]):
            raise ProdError(
                f"cannot write {target}: it is there and is no {replaces[1]}; name another, or remove it first"
            )
    except OSError as error:
        raise ProdError(f"cannot write {target}: {error.strerror}") from None


def require_new(
    path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = (), *, force: bool | None = None
) -> None:
    """As `require_output`, for files that do not tell who wrote them: one that holds something stays.

    Args:
        path: the file to write.
        inputs: see `require_output`.
        force: whether --force is given; None where a command has no such option.

    Raises:
        ProdError: see `require_output`; or it holds something, and --force is not given.
    """
    require_output(path, inputs, replaces=None)
    target = as_path(path)
    if not force and target.exists() and target.stat().st_size:
        remedy = "remove it" if force is None else "write over it with --force"
        raise ProdError(f"cannot write {target}: it is there; name another, or {remedy}")


def _may_be_replaced(path: Path, magic: bytes) -> bool:
    """Whether nothing is lost but a file that begins with `magic`."""
    with path.open("rb") as file:
        return file.read(len(magic)) in (b"", magic)


def read_artifact(
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    form: Format = BLOCKLIST,
    shared: bool = True,
    mapped: bool = False,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A file that `write_artifact` wrote: its meta and read-only arrays, which later changes of the file do not reach.

    Args:
        path: the file.
        verify: read all of it and compare its checksum. Otherwise, if there is a copy that processes share, which was
            compared when it was made (`prod_decode.storage.shared`), only the header is read.
        form: the kind of file that is expected.
        shared: keep and use such a copy of a large file.
        mapped: map the file itself, which may be larger than memory: of its arrays only what is used is read, and
            writing into the file changes them.

    Raises:
        ProdError: no such file, not such a file, of another version, cut short, damaged, or made by hand so that its
            header makes no sense.
    """
    source = as_path(path)
    try:
        with open(source, "rb", buffering=0, opener=_open_at_once) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ProdError(
                    f"cannot read the {form.name} {source}: it is a device, pipe or socket, expected a file"
                )
            head = _read_head(file, source, about.st_size, form)
            header = _parse_header(head, source, about.st_size, form)

            def check(held: memoryview) -> None:
                digest = xxhash.xxh3_128_hexdigest(held[len(head) :])
                if bytes(held[: len(head)]) != head or digest != header["checksum"]:
                    raise ProdError(f"{source} is damaged (its checksum is wrong): {form.again}")

            name = xxhash.xxh3_128_hexdigest(head) if shared else None
            if mapped:
                held = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                if verify:
                    check(held)
            else:
                held = hold(file, about.st_size, name, check, compare=verify)
    except OSError as error:
        raise ProdError(f"cannot read the {form.name} {source}: {why_unread(source, error)}") from None
    arrays = {}
    for array_name, place in header["arrays"].items():
        dtype, shape = _dtype(place["type"]), tuple(place["shape"])
        array = np.frombuffer(held, dtype, prod(shape), len(head) + place["at"])
        arrays[array_name] = array.reshape(shape)
    return header["meta"], arrays


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for somebody to write into a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_head(file: FileIO, source: Path, size: int, form: Format) -> bytes:
    """All that stands before the arrays, its checksum verified."""
    magic = form.magic
    fixed = len(magic) + 8
    if size == 0:
        raise ProdError(f"{source} is empty, expected a compiled {form.name}: {form.again}")
    head = file.read(fixed)
    if (other := _KNOWN.get(head[: len(magic)])) and head[: len(magic)] != magic:
        raise ProdError(f"{source} is {other}, expected a {form.name}: name another file")
    if head[: len(magic)] != magic:
        raise ProdError(f"{source} is not a compiled {form.name}: {form.make.format(source)}")
    head_size = fixed + struct.unpack("<Q", head[len(magic) :])[0] if len(head) == fixed else fixed
    if size < head_size + _DIGEST:
        raise ProdError(f"{source} is cut short: {form.again}")
    head += file.read(head_size + _DIGEST - fixed)
    if xxhash.xxh3_128_digest(head[:head_size]) != head[head_size:]:
        raise ProdError(f"{source} is damaged (the checksum of its header is wrong): {form.again}")
    return head


def _parse_header(head: bytes, source: Path, size: int, form: Format) -> dict[str, Any]:
    """The header, so checked that every array lies in the file: a checksum does not say who wrote it."""
    try:
        header = json.loads(head[len(form.magic) + 8 : -_DIGEST])
    except (ValueError, RecursionError):
        header = None
    version = header.get("version") if isinstance(header, dict) else None
    if is_count(version) and version != VERSION:
        raise ProdError(f"{source} has format version {version}, expected {VERSION}: {form.again}")
    if version is None or not _is_header(header):
        raise ProdError(f"{source} has a header that no compiler writes: {form.again}")
    if size != len(head) + header["size"]:
        raise ProdError(f"{source} has {size} bytes, expected {len(head) + header['size']}: {form.again}")
    return header  # type: ignore[no-any-return]


def are_laid_out(arrays: Mapping[str, NDArray[Any]], layout: Mapping[str, tuple[Any, int]]) -> bool:
    """Whether all arrays of a layout are there, each with its dtype and number of dimensions."""
    return all(
        name in arrays and arrays[name].dtype == dtype and arrays[name].ndim == dimensions
        for name, (dtype, dimensions) in layout.items()
    )


def are_ranges(starts: NDArray[np.int64], count: int, total: int) -> bool:
    """Whether `starts[i] : starts[i + 1]` are `count` ranges, none of them empty, that make up `total`."""
    return (
        len(starts) == count + 1
        and int(starts[0]) == 0
        and int(starts[-1]) == total
        # Compared, since a difference may overflow.
        and bool((starts[1:] > starts[:-1]).all())
    )


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value that JSON has is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_header(header: dict[str, Any]) -> bool:
    kinds = {"version": int, "meta": dict, "size": int, "checksum": str, "arrays": dict}
    return (
        all(isinstance(header.get(name), kind) for name, kind in kinds.items())
        and is_count(header["size"])
        and all(_is_place(place, header["size"]) for place in header["arrays"].values())
    )


def _is_place(place: Any, size: int) -> bool:
    """Whether an array of a type that we write lies within `size` bytes, where its records are aligned."""
    if not isinstance(place, dict) or not is_count(place.get("at")) or not isinstance(place.get("shape"), list):
        return False
    dtype = _dtype(place.get("type"))
    return (
        dtype is not None
        and place["at"] % _ALIGNMENT == 0
        and len(place["shape"]) <= _MOST_DIMENSIONS
        and all(map(is_count, place["shape"]))
        and place["at"] + prod(place["shape"]) * dtype.itemsize <= size
    )


def _describe(dtype: np.dtype[Any]) -> Any:
    if dtype.fields is None:
        return dtype.str
    return {name: [field[0].str, field[1]] for name, field in dtype.fields.items()} | {"": ["", dtype.itemsize]}


def _dtype(description: Any) -> np.dtype[Any] | None:
    """What `_describe` describes; None for anything else."""
    if isinstance(description, str):
        return np.dtype(description) if _PLAIN_TYPE.fullmatch(description) else None
    try:
        fields = {name: field for name, field in description.items() if name}
        dtype = np.dtype(
            {
                "names": list(fields),
                "formats": [field[0] for field in fields.values()],
                "offsets": [field[1] for field in fields.values()],
                "itemsize": description[""][1],
            },
            align=True,
        )
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        return None
    same = dtype.fields is not None and _describe(dtype) == description
    return dtype if same and all(_PLAIN_TYPE.fullmatch(field[0]) for field in fields.values()) else None
