"""The SQLite store as far as its evictions go: the rules of `proxy.cache.sqlite.rows`, without values.

The time of last read counts in steps of a minute, and at least one in 64 entries is evicted at a time. How many pages
of the file the entries take is estimated from their sizes.
"""

from array import array
from collections.abc import Sequence

import numpy as np

from proxy.cache.sqlite.file import PAGE_BYTES
from proxy.cache.sqlite.rows import EVICTED_FRACTION
from proxy.cache.sqlite.store import READ_AT_PRECISION_S

# Of SQLite's file format: a page's header, and a row's own overhead (its pointer, lengths, id and the record's header)
# beside the key of 32 bytes.
_PAGE_HEADER_BYTES, _ROW_BYTES = 8, 16 + 32
# A row of the table of slots, in pages that random keys fill by two thirds.
_SLOT_BYTES = 46 * 3 / 2
_OTHER_PAGES = 8  # of the schema, the log of changes and the upper levels of the trees
# Of a record besides its numbers (`proxy.protocol.records`): key, checksum, and what MessagePack and the fields take.
_RECORD_BYTES = 81


def value_bytes(dimensions: int) -> int:
    """The size of a record of float32."""
    return _RECORD_BYTES + 4 * dimensions


def entry_bytes(dimensions: int) -> float:
    """The part of the file that an entry takes."""
    row = value_bytes(dimensions) + _ROW_BYTES
    per_page = (PAGE_BYTES - _PAGE_HEADER_BYTES) // row
    return _SLOT_BYTES + (PAGE_BYTES / per_page if per_page else -(-row // PAGE_BYTES) * PAGE_BYTES)


class StoreModel:
    """Entries of items, which are numbers below ``distinct``."""

    def __init__(self, limit_bytes: int, distinct: int) -> None:
        self._room_bytes = limit_bytes - _OTHER_PAGES * PAGE_BYTES
        self._used_bytes = 0.0
        self._row_of = array("i", [-1]) * distinct  # -1: not stored
        self._item_of = array("i")  # of each row; -1: deleted
        self._read_at = array("q")  # of each row
        self._dimensions_of = array("i")  # of each row
        self.entries = 0

    def read(self, item: int, now_s: float) -> bool:
        """Whether the item is stored."""
        row = self._row_of[item]
        if row < 0:
            return False
        if self._read_at[row] < now_s - READ_AT_PRECISION_S:
            self._read_at[row] = int(now_s)
        return True

    def put(self, items: Sequence[int], dimensions: int, now_s: float) -> None:
        """Store items that are not stored yet, in one transaction."""
        now, size = int(now_s), value_bytes(dimensions)
        freed = self._evict(self._used_bytes + len(items) * size - self._room_bytes)
        for item in items:
            if freed:  # the row that was freed last is used first
                row = freed.pop()
                self._item_of[row], self._read_at[row], self._dimensions_of[row] = item, now, dimensions
            else:
                row = len(self._item_of)
                self._item_of.append(item)
                self._read_at.append(now)
                self._dimensions_of.append(dimensions)
            self._row_of[item] = row
        self.entries += len(items)
        self._used_bytes += len(items) * entry_bytes(dimensions)

    def _evict(self, excess_bytes: float) -> list[int]:
        """Delete the least recently read entries until ``excess_bytes`` are free. Returns their rows."""
        freed: list[int] = []
        while excess_bytes > 0 and self.entries:
            for row in self._oldest(max(1, self.entries // EVICTED_FRACTION)):
                self._row_of[self._item_of[row]] = -1
                self._item_of[row] = -1
                excess_bytes -= value_bytes(self._dimensions_of[row])
                self._used_bytes -= entry_bytes(self._dimensions_of[row])
                self.entries -= 1
                freed.append(row)
        return freed

    def _oldest(self, count: int) -> list[int]:
        """The rows of the entries that were read least recently, of equal times those with the lowest numbers."""
        rows = np.flatnonzero(np.frombuffer(self._item_of, np.int32) >= 0)
        ages = np.frombuffer(self._read_at, np.int64)[rows] * len(self._item_of) + rows
        if count < len(rows):
            nearest = np.argpartition(ages, count)[:count]
            rows, ages = rows[nearest], ages[nearest]
        oldest: list[int] = rows[np.argsort(ages)].tolist()
        return oldest
