"""The readable values of a damaged SQLite file, a chunk at a time."""

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from proxy.cache.sqlite.file import FAILURES
from proxy.protocol.keys import KEY_BYTES

_CHUNK = 64
# Through the slots in the order of their keys: forward from the first key, then backward from the last one, each as far
# as SQLite can read.
_WALKS = (
    "SELECT key, id FROM slot WHERE key > :first AND key < :last ORDER BY key LIMIT :limit",
    "SELECT key, id FROM slot WHERE key > :first AND key < :last ORDER BY key DESC LIMIT :limit",
)


class Salvage:
    """Does not check the values, which may be damaged too."""

    def __init__(self, aside: Path) -> None:
        """Raises one of `FAILURES` if nothing of the file can be read."""
        self.aside = aside
        self.values = 0  # read so far
        self._bounds = {"first": b"", "last": b"\xff" * (KEY_BYTES + 1)}
        self._walks = list(_WALKS)
        self._connection = sqlite3.connect(f"{aside.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        self._connection.text_factory = bytes
        try:
            columns = {name for _, name, *_ in self._connection.execute("PRAGMA table_info(value)")}
        except BaseException:
            self._connection.close()
            raise
        # Files of earlier versions have no keys with their values.
        self._query = "SELECT value FROM value WHERE id = :id"
        if b"key" in columns:
            self._query += " AND (key = :key OR key IS NULL)"

    def chunk(self) -> dict[bytes, bytes]:
        """The next values by their keys; empty at the end."""
        while self._walks:
            slots = self._slots(self._walks[0])
            if not slots:
                del self._walks[0]
            found = dict(self._values(slots))
            self.values += len(found)
            if found:
                return found
        return {}

    def _slots(self, walk: str) -> list[tuple[bytes, int]]:
        """The next slots of the walk, none at its end."""
        bound = "first" if walk is _WALKS[0] else "last"
        for limit in (_CHUNK, 1):  # if a chunk can't be read, its first slot may be readable
            with suppress(*FAILURES):
                found = self._connection.execute(walk, {**self._bounds, "limit": limit}).fetchall()
                rows = [(key, id_) for key, id_ in found if isinstance(key, bytes)]  # a damaged one has any type
                before = self._bounds[bound]
                if rows and self._bounds["first"] < rows[-1][0] < self._bounds["last"]:
                    self._bounds[bound] = rows[-1][0]
                # The walk must not loop where keys are out of order.
                return rows if self._bounds[bound] != before else []
        return []

    def _values(self, slots: list[tuple[bytes, int]]) -> Iterator[tuple[bytes, bytes]]:
        for key, id_ in slots:
            with suppress(*FAILURES):
                row = self._connection.execute(self._query, {"key": key, "id": id_}).fetchone()
                if row is not None and isinstance(row[0], bytes) and len(key) == KEY_BYTES:
                    yield key, row[0]

    def close(self) -> None:
        self._connection.close()
