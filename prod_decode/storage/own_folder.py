"""A folder below the temporary one that belongs to this user alone, for what processes share."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def own_folder() -> Path:
    """`prod-decode-UID` in the temporary folder, made if missing.

    Raises:
        OSError: it cannot be made, something else is in its place, or others could put something there.
    """
    if not hasattr(os, "geteuid"):
        raise OSError("expected a system with user ids, got one without")
    user = os.geteuid()
    parent = Path(tempfile.gettempdir()).resolve()
    folder = parent / f"prod-decode-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
    there, above = folder.lstat(), parent.stat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != user or there.st_mode & 0o077:
        raise OSError(
            f"expected {folder} to be a folder of user {user} with mode 0700, got {stat.filemode(there.st_mode)}"
        )
    # Others could move the folder away and put their own in its place.
    if above.st_uid not in (0, user) or (above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX):
        raise OSError(f"others can replace {folder}: {parent} is {stat.filemode(above.st_mode)}")
    return folder
