"""The readable values of a damaged SQLite file, a chunk at a time."""

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from proxy.cache.sqlite.file import FAILURES
from proxy.protocol.keys import KEY_BYTES

_CHUNK = 64
# Forward and then backward: the query for all slots in the order of the index, the query for the slot after a key, and
# what is before all keys.
_WALKS = (
    ("SELECT key, id FROM slot ORDER BY key", "SELECT key, id FROM slot WHERE key > ? ORDER BY key LIMIT 1", b""),
    (
        "SELECT key, id FROM slot ORDER BY key DESC",
        "SELECT key, id FROM slot WHERE key < ? ORDER BY key DESC LIMIT 1",
        b"\xff" * (KEY_BYTES + 1),
    ),
)

_Slot = tuple[object, object]  # a key and an id; a damaged one has any type


class Salvage:
    """Does not check the values, which may be damaged too."""

    def __init__(self, aside: Path) -> None:
        """Raises one of `FAILURES` if nothing of the file can be read."""
        self.aside = aside
        self.values = 0  # read so far
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
        self._slots = self._readable_slots()

    def chunk(self) -> dict[bytes, bytes]:
        """The next values by their keys; empty at the end."""
        while slots := list(islice(self._slots, _CHUNK)):
            if found := dict(self._values(slots)):
                self.values += len(found)
                return found
        return {}

    def _readable_slots(self) -> Iterator[_Slot]:
        """Walk the index forward from the first slot and then backward from the last, each as far as SQLite can read.

        The walks do not search by key: a search for the next key after a damaged one would skip the slots between
        the damaged key and the original one.
        """
        end: _Slot | None = None  # of the first walk
        searched: _Slot | None = None  # found by a search, which may lead anywhere if the key is damaged
        for all_slots, next_slot, before_all in _WALKS:
            last: _Slot = before_all, None
            try:
                for slot in self._connection.execute(all_slots):
                    if slot == end:
                        return
                    last = slot
                    if slot != searched:
                        yield slot
            except FAILURES:
                # Python's module reads one row ahead, so it fails before it returns the last readable slot.
                with suppress(*FAILURES):
                    for slot in self._connection.execute(next_slot, last[:1]):
                        if slot not in {end, searched}:
                            searched = slot
                            yield slot
            else:
                return
            end = last

    def _values(self, slots: list[_Slot]) -> Iterator[tuple[bytes, bytes]]:
        for key, id_ in slots:
            with suppress(*FAILURES):
                row = self._connection.execute(self._query, {"key": key, "id": id_}).fetchone()
                if row is not None and isinstance(row[0], bytes) and isinstance(key, bytes) and len(key) == KEY_BYTES:
                    yield key, row[0]

    def close(self) -> None:
        self._connection.close()
