"""Data sets of the Hugging Face hub as sources: found, pinned to a revision, and streamed share by share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from prod_decode.errors import ProdError, did_you_mean, one_line, reason

PREFIX = "hub:"

_HOW = "hub:NAME[,split=S][,config=C][,data_dir=D][,revision=R]"


class HubName(NamedTuple):
    """What `hub:NAME,key=value` names; "": what the data set has by default.

    Attributes:
        name: of the data set, as `datasets.load_dataset` takes it: OWNER/NAME, or a folder here.
        split: of its rows.
        config: one of its configurations.
        data_dir: the folder in it that is read.
        revision: a branch, tag or commit.
    """

    name: str
    split: str = "train"
    config: str = ""
    data_dir: str = ""
    revision: str = ""

    @classmethod
    def of(cls, text: str) -> HubName:
        """What a source names that begins with `PREFIX`.

        Raises:
            ProdError: no name, or something else than `_HOW`.
        """
        name, *settings = text.removeprefix(PREFIX).split(",")
        known = cls._fields[1:]
        given: dict[str, str] = {}
        for setting in settings:
            key, _, value = setting.partition("=")
            if key not in known or not value:
                meant = did_you_mean(key, known) if key not in known else ""
                raise ProdError(f"{text}: expected {_HOW}, got {setting!r}{meant}")
            if key in given:
                raise ProdError(f"{text}: expected {key} once, got it again: name the data set twice to read both")
            given[key] = value
        if not name:
            raise ProdError(f"{text}: expected {_HOW}, got no name")
        return cls(name, **given)

    def __str__(self) -> str:
        """As a source names it."""
        known = self._asdict()
        given = [f"{key}={known[key]}" for key, default in HubName._field_defaults.items() if known[key] != default]
        return PREFIX + ",".join([self.name, *given])


class Shares(NamedTuple):
    """How a data set is read.

    Attributes:
        name: pinned: with the revision that the hub has now.
        total: of its shares, each a file of the data set or more.
        state: what another one has if files of the data set were changed.
    """

    name: str
    total: int
    state: str


def shares_of(text: str) -> Shares:
    """Ask for a data set, by a text that begins with `PREFIX`.

    Raises:
        ProdError: a name that is none; no data set of that name, split or configuration, or none that may be read.
    """
    named = HubName.of(text)
    if Path(named.name).is_dir():  # processes elsewhere begin in another folder
        named = named._replace(name=str(Path(named.name).absolute()))
    builder = _builder_of(named)
    found = _rows_of(builder, named)
    files = (builder.config.data_files or {}).get(named.split, ())
    # Of each what tells it from a changed one: on the hub its repository and commit, here when it was written.
    origins = getattr(files, "origin_metadata", ())
    listed = [[str(file), *map(str, origin)] for file, origin in zip(files, origins, strict=True)]
    commits = {commit for _, _, commit in (one for one in listed if len(one) == 3)}
    if len(commits) == 1:
        named = named._replace(revision=commits.pop())
    state = xxhash.xxh3_128_hexdigest(json.dumps([builder.hash, listed]).encode())
    return Shares(str(named), int(found.num_shards), state)


def rows(text: str, share: int, count: int, state: str, content: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The rows of a share, in their order: what messages call each, and the row.

    Args:
        text: pinned, of `shares_of`.
        share: its number.
        count: of shares.
        state: of `shares_of`.
        content: the columns of which one is needed.

    Raises:
        ProdError: the data set can no longer be reached, or not be read to its end; it has none of the columns, or was
            changed.
    """
    named = HubName.of(text)
    try:
        found = _rows_of(_builder(named, state), named)
        if found.num_shards != count:
            raise ProdError(f"{text} was changed while it was read: remove the work folder and build again")
        if found.column_names is not None and not set(content) & set(found.column_names):
            raise ProdError(
                f"{text}: expected a column {', '.join(content[:-1])} or {content[-1]} with source code, got "
                f"{one_line(', '.join(found.column_names), 200)}: name a data set that has the text itself"
            )
        for number, row in enumerate(found.shard(count, share), 1):
            yield f"{text}: share {share + 1}, row {number}", row
    except ProdError:
        raise
    except Exception as error:
        raise _unread(named, error) from error


@lru_cache(maxsize=8)
def _builder(named: HubName, _state: str) -> Any:
    """What a process keeps from share to share."""
    return _builder_of(named)


def _builder_of(named: HubName) -> Any:
    try:
        import datasets
    except ImportError:
        raise ProdError(
            f"{named}: data sets of the hub are read with datasets: pip install 'prod-code-unlearning[corpus]'"
        ) from None
    options = {"data_dir": named.data_dir or None, "revision": named.revision or None}
    try:
        return datasets.load_dataset_builder(named.name, named.config or None, **options)
    except Exception as error:
        raise _unread(named, error) from error


def _rows_of(builder: Any, named: HubName) -> Any:
    try:
        return builder.as_streaming_dataset(split=named.split)
    except Exception as error:
        raise _unread(named, error) from error


def _unread(named: HubName, error: Exception) -> ProdError:
    """Of what the library raises, which is anything: of a network, of a file, of its own."""
    return ProdError(
        f"cannot read {named}: {reason(error, 200).rstrip('.')}; check the name, the network, and whether `hf auth "
        "login` is needed"
    )
