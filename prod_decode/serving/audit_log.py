"""Hits in a file, a line of JSON each, written beside the model and never waited for."""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from logging.handlers import QueueListener, RotatingFileHandler
from typing import Any

from prod_decode.errors import ProdError, reason
from prod_decode.serving.hits import Hit
from prod_decode.storage.artifact import require_output
from prod_decode.storage.files import as_path, require_file

_LOG = logging.getLogger(__name__)

# Every line begins so: a file that begins otherwise is somebody's, and is not written to.
_BEGIN = b'{"time": "'

# Hits that wait to be written: a second of a large batch in which every row has one.
_WAITING = 10_000


class AuditLog:
    """A file of hits: `ProdLogitsProcessor(blocklist, tokenizer, on_hit=AuditLog("hits.jsonl"))`.

    Each hit is one line of JSON: `time` (UTC), `pid`, and the fields of the `Hit` that are not None. What the model
    wanted or wrote (`text`, `token_id`, `span`) is left out unless asked for. Lines are added to a file that is there.

    A step only puts a hit into a queue; a thread writes. If the queue is full, hits are dropped: their number is a line
    of its own, `{"time": ..., "dropped": 3}`, and is logged. The same happens where the disk refuses a line.

    One process writes a file: another one is refused. Where there are several, put `{pid}` into the name. Everything is
    written when the program ends; a process that is killed loses what it had not written yet, usually nothing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = 64 << 20,
        keep: int = 4,
        text: bool = False,
        waiting: int = _WAITING,
    ) -> None:
        """Open the file.

        Args:
            path: of the file; `{pid}` in its name stands for the number of the process.
            max_bytes: the file is renamed to `path.1` before it grows beyond this, that to `path.2` and so on.
            keep: how many of those are kept, at least 1; older ones are deleted.
            text: write what the model wanted or wrote as well.
            waiting: hits that may wait to be written.

        Raises:
            ProdError: a number below 1; a file that cannot be written, is no audit log, or has a writer.
        """
        for name, number in (("max_bytes", max_bytes), ("keep", keep), ("waiting", waiting)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ProdError(f"{name}: expected a whole number above 0, got {number!r}")
        if not isinstance(text, bool):
            raise ProdError(f"text: expected True or False, got {text!r}")
        self._given = os.fspath(as_path(path))
        self._options: dict[str, Any] = {"max_bytes": max_bytes, "keep": keep, "text": text, "waiting": waiting}
        self._text, self._pid, self._dropped, self._is_open = text, os.getpid(), 0, True
        self.path = self._given.replace("{pid}", str(self._pid))
        require_file(self.path, "a file to write hits to")
        require_output(self.path, replaces=(_BEGIN, "audit log"))
        self._file = _File(self.path, max_bytes, keep)
        self._lock = threading.Lock()
        self._queue: queue.Queue[Any] = queue.Queue(waiting)
        self._listener = _Listener(self._queue, self._write)
        self._listener.start()
        atexit.register(self.close)

    def __call__(self, hit: Hit) -> None:
        """Have a hit written.

        Raises:
            ProdError: the log is closed, or belongs to the process that this one was forked from.
        """
        if not self._is_open or os.getpid() != self._pid:
            why = "that is open, got one that is closed" if not self._is_open else "of this process, got its parent's"
            raise ProdError(f"{self.path}: expected an audit log {why}: make one where it is used")
        try:
            self._queue.put_nowait((time.time(), hit))
        except queue.Full:
            self._drop(1)

    def close(self) -> None:
        """Write everything that waits, and close the file; whatever comes later is refused."""
        if self._is_open and os.getpid() == self._pid:
            self._is_open = False
            atexit.unregister(self.close)
            self._listener.stop()
            self._tell_dropped(time.time())
            self._file.close()

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[str], AuditLog], tuple[str]]:
        """In another process it is opened anew, which needs `{pid}` in the name."""
        return partial(AuditLog, **self._options), (self._given,)

    def _write(self, item: tuple[float, Hit]) -> None:
        """In the thread that writes."""
        at, hit = item
        self._tell_dropped(at)
        if not self._file.write(self._line(at, hit.as_dict(text=self._text))):
            self._drop(1)

    def _drop(self, count: int) -> None:
        with self._lock:
            self._dropped += count

    def _tell_dropped(self, at: float) -> None:
        with self._lock:
            count, self._dropped = self._dropped, 0
        if count and self._file.write(self._line(at, {"dropped": count})):
            _LOG.warning("hits were dropped, %d of them, which are not in %s", count, self.path)
        elif count:
            self._drop(count)

    def _line(self, at: float, values: dict[str, Any]) -> str:
        moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json.dumps({"time": moment, "pid": self._pid, **values})


class _File(RotatingFileHandler):
    """A file that is renamed when it is full, with a lock on it, and that says whether a line was written."""

    def __init__(self, path: str, max_bytes: int, keep: int) -> None:
        self._error: BaseException | None = None
        self._is_told = False
        try:
            super().__init__(path, maxBytes=max_bytes, backupCount=keep, encoding="utf-8")
        except BlockingIOError:
            raise ProdError(
                f"{path}: expected an audit log that nobody writes, got one with a writer: put {{pid}} into the name, "
                "so that each process has its own"
            ) from None
        except OSError as error:
            raise ProdError(f"cannot write {path}: {error.strerror}") from None

    def write(self, line: str) -> bool:
        """Whether a line was written; the first error of several in a row is logged."""
        self._error = None
        self.handle(logging.makeLogRecord({"msg": line}))
        if self._error is not None and not self._is_told:
            _LOG.error("hits cannot be written to %s: %s", self.baseFilename, reason(self._error))
        self._is_told = self._error is not None
        return self._error is None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 (logging's own)
        """Called by logging where a line could not be written."""
        self._error = sys.exc_info()[1]

    def _open(self) -> Any:
        import fcntl

        stream = super()._open()
        try:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.close()
            raise
        return stream


class _Listener(QueueListener):
    """The standard library's thread that empties a queue."""

    def __init__(self, waiting: queue.Queue[Any], write: Callable[[tuple[float, Hit]], None]) -> None:
        super().__init__(waiting)
        self._write = write

    def handle(self, record: Any) -> None:
        """Write one."""
        self._write(record)

    def enqueue_sentinel(self) -> None:
        """Say that nothing follows; waits where the queue is full."""
        self.queue.put(self._sentinel)  # type: ignore[attr-defined]
