"""Whether the file at a store's path is a store, however damaged, or another program's.

An operator may mistype a path. So only what still shows that it was a store is renamed as a damaged one. A store shows
it in its first page, or in the copy of that page in its write-ahead log: until SQLite first folds the log back, the
file itself has only an empty page. The formats: https://sqlite.org/fileformat2.html.
"""

import codecs
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

APPLICATION_ID = 0x656D6263  # "embc": distinguishes our file from another program's database
PAGE_BYTES = 32 * 1024
# The columns of the first table. SQLite fills a page from its end, so the first page of a store ends with their text.
SLOT_COLUMNS = "key BLOB PRIMARY KEY, id INTEGER NOT NULL, read_at INTEGER NOT NULL"

_END_OF_FIRST_PAGE = f"CREATE TABLE slot ({SLOT_COLUMNS}) WITHOUT ROWID".encode()
_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID_AT = slice(68, 72)
_TABLES_AT = slice(100, 105)  # the type of the page, and how many tables it has
_NO_TABLES = b"\x0d\0\0\0\0"
_SAMPLE_BYTES = 64 * 1024
_LOG_HEADER, _FRAME_HEADER = struct.Struct(">8xI20x"), struct.Struct(">I20x")  # the page size; the page's number
_MAX_FRAMES = 1024
_PAGE_SIZES = frozenset(512 << power for power in range(8))


def other_than_store(path: Path) -> str | None:
    """What is at ``path`` if it neither is a store nor was one before it was damaged. None: it is one, or the file is
    absent or empty, or can't be read.

    Only for a file that no thread has open: closing it here would release that thread's locks on it.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe could wait for ever
            return "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        return _other_content(path) if status.st_size else None
    except OSError:
        return None


def _other_content(path: Path) -> str | None:
    with path.open("rb") as file:
        beginning = file.read(_SAMPLE_BYTES)
    pages = [beginning[:PAGE_BYTES], *_first_pages_of_log(Path(f"{path}-wal"))]
    if any(map(_is_ours, pages)):
        return None
    if beginning.startswith(_MAGIC):
        is_empty = len(pages) == 1 and beginning[_TABLES_AT] == _NO_TABLES and not any(beginning[_APPLICATION_ID_AT])
        return None if is_empty else "the database of something else"
    return "a file of text" if _is_text(beginning) else "a file of something else"


def _is_ours(page: bytes) -> bool:
    return page[_APPLICATION_ID_AT] == APPLICATION_ID.to_bytes(4, "big") or page.endswith(_END_OF_FIRST_PAGE)


def _first_pages_of_log(log: Path) -> Iterator[bytes]:
    """The copies of the first page among the first frames of a write-ahead log, which may be absent or damaged."""
    try:
        with log.open("rb") as file:
            header = file.read(_LOG_HEADER.size)
            (page_bytes,) = _LOG_HEADER.unpack(header) if len(header) == _LOG_HEADER.size else (0,)
            if page_bytes not in _PAGE_SIZES:
                return
            for _ in range(_MAX_FRAMES):
                frame = file.read(_FRAME_HEADER.size + page_bytes)
                if len(frame) < _FRAME_HEADER.size:
                    return
                if _FRAME_HEADER.unpack_from(frame) == (1,):
                    yield frame[_FRAME_HEADER.size :]
    except OSError:
        return


def _is_text(beginning: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(beginning)  # its last letter may be cut
    except UnicodeDecodeError:
        return False
    return "\0" not in text
