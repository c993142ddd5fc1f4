"""Files of exported entries: read, and written so that an interrupted export continues where it was."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from proxy.errors import ConfigError
from proxy.maintenance import archive_format
from proxy.maintenance.archive_format import Cursor, Damage, Decoder, End, Entry, Header, Part, UnknownFormat

_PIECE_BYTES = 1024**2
_PART_SUFFIX = ".part"  # of the file until it is complete


def parts_of(path: Path) -> Iterator[Part]:
    """What the file has. Raises `ConfigError` if it can't be read or is no export."""
    try:
        with path.open("rb") as file:
            yield from _parts(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnknownFormat as error:
        raise ConfigError(f"{path}: {error}") from error


def _parts(file: BinaryIO) -> Iterator[Part]:
    """Raises `UnknownFormat`."""
    decoder = Decoder()
    while piece := file.read(_PIECE_BYTES):
        yield from decoder.feed(piece)
    yield from decoder.close()


class _Kept(NamedTuple):
    """What an interrupted export has written."""

    cursor: bytes = b""
    entries: int = 0
    end: int = 0  # offset behind the last cursor


class ArchiveWriter:
    """Writes a file whose name has the suffix ``.part`` until it is complete."""

    def __init__(self, path: Path, part: Path, file: BinaryIO, origin: str) -> None:
        self._path, self._part, self._file = path, part, file
        kept = _kept(file, origin)
        self.cursor, self.entries = kept.cursor, kept.entries
        self.is_resumed = kept.end > 0
        file.truncate(kept.end)
        file.seek(kept.end)
        if not self.is_resumed:
            file.write(archive_format.header(origin=origin))

    def write(self, values: Mapping[bytes, bytes], cursor: bytes | None) -> None:
        """Append values. ``cursor`` is where the next ones begin; None after the last."""
        frames = [archive_format.entry(key, value) for key, value in values.items()]
        self.entries += len(frames)
        frames.append(archive_format.end(self.entries) if cursor is None else archive_format.cursor(cursor))
        self._file.write(b"".join(frames))
        self._file.flush()  # so that only a crash of the machine, not of the process, loses what was written

    def finish(self) -> int:
        """Give the file its name. Returns its size in bytes."""
        return finish_part(self._file, self._part, self._path)


@contextmanager
def open_archive(path: Path, origin: str) -> Iterator[ArchiveWriter]:
    """A new file of entries of the store ``origin``. Raises `ConfigError`."""
    with open_part(path, archive_format.BEGINNING) as (part, file):
        yield ArchiveWriter(path, part, file, origin)


@contextmanager
def open_part(path: Path, beginning: bytes) -> Iterator[tuple[Path, BinaryIO]]:
    """The file that becomes ``path`` when it is complete, locked, as an interrupted export left it. An export begins
    with ``beginning``. Raises `ConfigError`."""
    _require_free(path)
    part = path.with_name(path.name + _PART_SUFFIX)
    try:
        with open(part, "a+b", opener=_private) as file:
            _lock(file, part)
            _require_own(part, beginning)
            file.seek(0)
            yield part, file
    except BlockingIOError as error:
        _require_free(path)  # the other export may have finished
        raise ConfigError(f"{part}: another export writes it") from error
    except OSError as error:
        raise ConfigError(f"{part}: {error.strerror or error}") from error


def finish_part(file: BinaryIO, part: Path, path: Path) -> int:
    """Give a complete file its name. After a crash of the machine it is whole or has not this name. Returns its size in
    bytes."""
    file.flush()
    os.fsync(file.fileno())
    part.rename(path)
    return os.fstat(file.fileno()).st_size


def _private(path: str, flags: int) -> int:
    """Vectors reveal much of their texts, so only its owner can read a new file."""
    return os.open(path, flags, 0o600)


def _require_free(path: Path) -> None:
    """Raises `ConfigError` if ``path`` exists."""
    if path.exists():
        raise ConfigError(f"{path}: it exists already; delete it, or choose another name")


def _lock(file: BinaryIO, part: Path) -> None:
    """Raises `BlockingIOError` if another export writes ``part``, or has ended since ``file`` was opened: then the file
    has its name already, and another export may have begun. Raises `OSError`."""
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with suppress(FileNotFoundError):
        if os.path.samestat(part.stat(), os.fstat(file.fileno())):
            return
    raise BlockingIOError


def _require_own(part: Path, beginning: bytes) -> None:
    """Raises `ConfigError` if ``part`` exists and is not the beginning of an export. Raises `OSError`."""
    if not part.exists():
        return
    with part.open("rb") as file:
        found = file.read(len(beginning))
    if not beginning.startswith(found):
        raise ConfigError(f"{part}: something else than an interrupted export; delete it, or choose another name")


def _kept(file: BinaryIO, origin: str) -> _Kept:
    """What an interrupted export of the same store has written, up to its last cursor before any damage."""
    kept, entries = _Kept(), 0
    try:
        for part in _parts(file):
            match part:
                case Header(fields) if fields.get("origin") != origin:
                    return _Kept()
                case Entry():
                    entries += 1
                case Cursor(position, end):
                    kept = _Kept(position, entries, end)
                case Damage() | End():
                    break
    except UnknownFormat:
        return _Kept()
    return kept
