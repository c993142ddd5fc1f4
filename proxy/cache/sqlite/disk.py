"""The SQLite store's file on disk: locked, created, identified, and renamed when it is damaged."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from proxy.errors import StoreError

_COMPANIONS = ("-wal", "-shm")
# A bad disk may damage one file after another; the copies must not fill it.
_MAX_ASIDE = 3

Identity = tuple[int, int]  # device and inode


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from opening or renaming the store's file, where the file system has locks."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def create_private(path: Path) -> None:
    """Create the file so that only its owner can read it. SQLite gives its log and shared memory the same mode.

    An existing file is not opened here: closing it would release the locks that other threads have on it.
    """
    with suppress(OSError):  # SQLite says what is wrong with the path
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def identity(path: Path) -> Identity | None:
    """The identity of the file at ``path``, None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def set_aside(path: Path) -> Path:
    """Rename a damaged file, with its log and shared memory. Returns the new path. Raises `OSError`, and `StoreError`
    if there are too many renamed files already."""
    others = [other for other in path.parent.iterdir() if other.name.startswith(f"{path.name}.damaged-")]
    if sum(not other.name.endswith(_COMPANIONS) for other in others) >= _MAX_ASIDE:
        message = f"{path} is damaged, and so were {_MAX_ASIDE} files beside it: check the disk, then delete them"
        raise StoreError("corrupt", message)
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    path.rename(aside)
    for companion in _COMPANIONS:
        with suppress(FileNotFoundError):
            Path(f"{path}{companion}").rename(f"{aside}{companion}")
    return aside
