"""The log of replaced values in a SQLite file: the rows of its table `changes`, and where a reader is.

It is written in the transaction that replaces the values, so whoever reads the log finds the new values. A key has one
row, with the number of the latest transaction that replaced its value, so that the log of a few values that are
replaced all the time stays short. The row of the empty key has the number up to which rows have been deleted.
"""

import sqlite3
from collections.abc import Collection

from proxy.cache.sqlite.file import DamagedFile
from proxy.cache.store import Changes
from proxy.protocol.keys import KEY_BYTES

# Above this, the oldest rows are deleted. About 400 KiB, which count toward the size of the file.
MAX_ROWS = 8192
_MAX_NUMBER = 2**62  # SQLite's integers have 64 bits
_FORGOTTEN = b""


def announce(connection: sqlite3.Connection, keys: Collection[bytes]) -> None:
    """Within the transaction that replaces their values."""
    if not keys:
        return
    rows, last = connection.execute("SELECT count(*), coalesce(max(id), 0) FROM changes").fetchone()
    if not _is_number(last):
        raise DamagedFile("the log of changes has no order")
    put = "INSERT OR REPLACE INTO changes (key, id) VALUES (?, ?)"
    connection.executemany(put, [(key, last + 1) for key in keys])
    if rows + len(keys) > MAX_ROWS:
        oldest = "SELECT id FROM changes ORDER BY id DESC LIMIT 1 OFFSET ?"
        if (row := connection.execute(oldest, (MAX_ROWS,)).fetchone()) is not None:
            connection.execute("DELETE FROM changes WHERE id <= ?", row)
            connection.execute(put, (_FORGOTTEN, *row))


class Position:
    """Where a reader is in the log."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None
        self._data_version: object = None  # changes with every commit of another connection
        self._last = 0  # transaction that was read

    def read(self, connection: sqlite3.Connection) -> Changes:
        """What is new since the last call. A new connection may be one to a new file, so it reads the whole log."""
        if connection is not self._connection:
            self._connection, self._data_version, self._last = connection, None, 0
        (data_version,) = connection.execute("PRAGMA data_version").fetchone()
        if data_version == self._data_version:
            return Changes()
        rows = connection.execute("SELECT key, id FROM changes WHERE id > ?", (self._last,)).fetchall()
        self._data_version = data_version
        keys = {key for key, id_ in rows if _is_key(key) and _is_number(id_)}
        self._last = max((id_ for _, id_ in rows if _is_number(id_)), default=self._last)
        return Changes(keys, is_complete=len(keys) == len(rows))  # not if rows were deleted, or are damaged


def _is_key(key: object) -> bool:
    return isinstance(key, bytes) and len(key) == KEY_BYTES


def _is_number(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < _MAX_NUMBER
