"""The directory that a run writes: one run at a time, begun again if nothing was kept, and one line when it is full."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prod_decode.errors import ProdError
from prod_train.config.config import Config

_log = logging.getLogger(__name__)

LOCK = ".lock"
# There from the start of a run until its result is written.
UNFINISHED = ".unfinished"

# What a disk answers that does not take what is written. Reading never gives one of the first.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (*_FULL, errno.EROFS, errno.EIO, errno.EACCES)


def checkpoints(output: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by their step, the oldest first; an interrupted one never gets its name."""
    found = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in output.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal() and (path / "trainer.pt").is_file()
    }
    return dict(sorted(found.items()))


def latest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    return next(reversed(checkpoints(output).values()), None)


def resume_from(config: Config) -> Path | None:
    """The checkpoint that `--resume` names, if any."""
    if config.resume is None:
        return None
    return latest_checkpoint(Path(config.output)) if config.resume == "latest" else Path(config.resume)


def never_saved(output: Path) -> bool:
    """Whether a run began here that was killed before its first checkpoint: it has nothing to go on from."""
    return (output / UNFINISHED).is_file() and not checkpoints(output) and not (output / "report.json").exists()


def mark(output: Path, *, unfinished: bool) -> None:
    """Say that a run has begun in a directory, or that its result is there; the first of several processes does."""
    if not is_first():
        return
    if unfinished:
        if never_saved(output):
            _log.info("%s: the run here ended before its first checkpoint, it begins again", output)
        (output / UNFINISHED).touch()
    else:
        (output / UNFINISHED).unlink(missing_ok=True)


def is_first() -> bool:
    """Whether this process writes and tells: it is alone, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Keep other runs out of a directory, which is made; removed again if nothing is written.

    The operating system holds the lock, so that one of a killed process is free. Of several processes of one run the
    first holds it.

    Raises:
        ProdError: another run holds it; or, from inside, the disk is full or refuses for another reason: what was begun
            there is removed, and checkpoints stay.
    """
    if not is_first():
        yield
        return
    from filelock import FileLock, Timeout

    with _one_line(output):
        missing = [folder for folder in (output, *output.absolute().parents) if not folder.exists()]
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ProdError(
                f"--output: another run is writing to {output}: wait until it has ended, or name another directory"
            ) from None
        try:
            yield
        finally:
            if {path.name for path in output.iterdir()} <= {LOCK, UNFINISHED}:
                (output / UNFINISHED).unlink(missing_ok=True)
            # Before it is free: whoever waits must not lock a file that another one then replaces.
            with suppress(OSError):
                (output / LOCK).unlink()
            lock.release()
            for folder in missing:
                with suppress(OSError):  # not empty
                    folder.rmdir()


@contextmanager
def _one_line(output: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _refusal(error, output)
        if reason is None:
            raise
        for begun in output.glob(".checkpoint-*.tmp"):
            shutil.rmtree(begun, ignore_errors=True)
        kept = list(checkpoints(output))
        then = f"go on with --resume latest, checkpoint-{kept[-1]} is kept" if kept else "start again"
        raise ProdError(
            f"cannot write to {output}: {reason}: make room there, or see to its permissions; then {then}"
        ) from None


def _refusal(error: BaseException, output: Path) -> str | None:
    """Why the disk refused, if it is that; safetensors and torch raise errors of their own then."""
    if isinstance(error, OSError):
        ours = error.errno in _FULL or str(error.filename or "").startswith(str(output))
        return os.strerror(error.errno) if error.errno in _REFUSED and ours else None
    if told := re.search(r"\(os error (\d+)\)", str(error)):
        return os.strerror(int(told[1]))
    if re.search("PytorchStreamWriter|iostream error|inline_container", str(error)) and "Reader" not in str(error):
        full = shutil.disk_usage(output).free < 2**20
        return os.strerror(errno.ENOSPC) if full else "a checkpoint could not be written to its end"
    return None
