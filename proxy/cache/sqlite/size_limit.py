"""The size limit of a file that several processes use, each with a limit of its own."""

import logging
import os
import sqlite3
from pathlib import Path

from proxy.cache.sqlite.file import transaction

_log = logging.getLogger(__name__)

# A process registers its limit this often. The limit applies until the process has not registered for this long.
_REGISTER_EVERY_S = 3600
_REGISTERED_FOR_S = 24 * 3600


class SharedLimit:
    """The largest limit among the processes that use the file. The file itself has the table of them."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._id = os.urandom(16)  # of this process in the table
        self._has_logged = False
        self.registered_at_s = float("-inf")

    @property
    def is_registered(self) -> bool:
        return self.registered_at_s > float("-inf")

    def is_due(self, now_s: float) -> bool:
        """Whether this process has to register again."""
        return now_s - self.registered_at_s >= _REGISTER_EVERY_S

    def register(self, connection: sqlite3.Connection, now: int) -> None:
        """Note that this process uses the file, and delete the processes that no longer do. Within a transaction."""
        self.registered_at_s = now
        query = "SELECT 1 FROM proxy WHERE id = ? AND used_at BETWEEN ? AND ?"
        if connection.execute(query, (self._id, now - _REGISTER_EVERY_S, now)).fetchone():
            return
        connection.execute(
            "INSERT OR REPLACE INTO proxy (id, limit_bytes, used_at) VALUES (?, ?, ?)",
            (self._id, self._limit_bytes, now),
        )
        connection.execute("DELETE FROM proxy WHERE used_at NOT BETWEEN ? AND ?", _current(now))

    def effective_bytes(self, connection: sqlite3.Connection, now: int) -> int:
        query = "SELECT limit_bytes FROM proxy WHERE used_at BETWEEN ? AND ?"
        limits = [limit for (limit,) in connection.execute(query, _current(now)) if isinstance(limit, int)]
        largest = max(limits, default=0)
        if largest > self._limit_bytes and not self._has_logged:
            self._has_logged = True
            _log.warning(
                "%s: another process uses it with a larger --store-limit, %d bytes, which applies until it exits",
                self._path,
                largest,
            )
        return max(self._limit_bytes, largest)

    def unregister(self, connection: sqlite3.Connection) -> None:
        with transaction(connection):
            connection.execute("DELETE FROM proxy WHERE id = ?", (self._id,))


def _current(now: int) -> tuple[int, int]:
    """The range of ``used_at`` in which a process counts as running. Clocks may have been set back."""
    return now - _REGISTERED_FOR_S, now + _REGISTERED_FOR_S
