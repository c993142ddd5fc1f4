"""The log of replaced and removed values in a SQLite file: the rows of its table `changes`, and where a reader is.

The transaction that replaces values also writes the log, so a reader of the log finds the new values. Each key has one
row, with the number of the latest transaction that replaced its value: values that are replaced all the time do not
lengthen the log. The row of the empty key has the number up to which rows have been deleted. Purges have rows with
longer keys, which versions that do not know them take to mean all keys.
"""

import sqlite3
from collections.abc import Collection

from proxy.cache import purge_conditions
from proxy.cache.sqlite.file import DamagedFile
from proxy.cache.store import Changes, Purge, PurgedModels
from proxy.protocol.keys import KEY_BYTES

# Above this, the oldest rows are deleted. About 400 KiB, which count toward the size of the file.
MAX_ROWS = 8192
_MAX_NUMBER = 2**62  # SQLite's integers have 64 bits
_FORGOTTEN = b""
_PURGED_KEY, _PURGED_MODELS, _PURGED_SOME = b"purged-key:", b"purged-models:", b"purged-some:"


def announce_purge(connection: sqlite3.Connection, purge: Purge) -> None:
    """Within a transaction."""
    announce(connection, [_PURGED_KEY + key for key in purge.keys])
    announce(connection, list(map(_row_of, purge.models)))


def _row_of(models: PurgedModels) -> bytes:
    if models.has_conditions:
        return _PURGED_SOME + purge_conditions.encode(models)
    return _PURGED_MODELS + models.pattern.encode()


def announce(connection: sqlite3.Connection, keys: Collection[bytes]) -> None:
    """Within the transaction that replaces or removes their values."""
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
        numbers = [id_ for _, id_ in rows if _is_number(id_)]
        self._last = max(numbers, default=self._last)
        known = {key for key, _ in rows if isinstance(key, bytes)}
        keys = set(filter(_is_key, known))
        purge = Purge(_without(_PURGED_KEY, known), _models(known))
        is_complete = len(numbers) == len(rows) == len(keys) + len(purge.keys) + len(purge.models)
        return Changes(keys, is_complete=is_complete, purge=purge)  # incomplete if rows were deleted, or are damaged


def _without(prefix: bytes, keys: Collection[bytes]) -> set[bytes]:
    found = (key.removeprefix(prefix) for key in keys if key.startswith(prefix))
    return set(filter(_is_key, found))


def _models(keys: Collection[bytes]) -> set[PurgedModels]:
    found = (key.removeprefix(_PURGED_MODELS) for key in keys if key.startswith(_PURGED_MODELS))
    of_all = {PurgedModels(pattern.decode(errors="replace")) for pattern in found}
    some = (key.removeprefix(_PURGED_SOME) for key in keys if key.startswith(_PURGED_SOME))
    return of_all | {models for models in map(purge_conditions.decode, some) if models is not None}


def _is_key(key: object) -> bool:
    return isinstance(key, bytes) and len(key) == KEY_BYTES


def _is_number(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < _MAX_NUMBER
