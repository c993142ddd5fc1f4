"""A model of the SQLite store's evictions: the rules of `proxy.cache.sqlite.rows`, without values.

The time of last read counts in steps of a minute, and at least one in 64 entries is evicted at a time. How many pages
of the file the entries take is estimated from their sizes.
"""

from array import array
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from proxy.cache.sqlite.file import PAGE_BYTES
from proxy.cache.sqlite.rows import EVICTED_FRACTION
from proxy.cache.sqlite.store import READ_AT_PRECISION_S

# Of SQLite's file format: a page's header, and a row's own overhead (its pointer, lengths, id and the record's header)
# beside the key of 32 bytes.
_PAGE_HEADER_BYTES, _ROW_BYTES = 8, 16 + 32
_USABLE_BYTES = PAGE_BYTES - _PAGE_HEADER_BYTES
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
        self._limit_bytes = limit_bytes
        self._row_of = array("i", [-1]) * distinct  # -1: not stored
        self._item_of = array("i")  # of each row; -1: deleted
        self._read_at = array("q")  # of each row
        self._size_of = array("i")  # of each row's value
        self._pages = _Pages()
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
        excess_bytes = self._used_bytes + len(items) * size - self._limit_bytes
        freed = self._evict(excess_bytes) if excess_bytes > 0 else []
        for item in items:
            self._insert(item, size, now, freed)
        if freed:
            self._pages.delete(freed)
        if self._used_bytes > self._limit_bytes:
            self._keep_within(frozenset(items))

    def _keep_within(self, fresh: Collection[int]) -> None:
        while self._used_bytes > self._limit_bytes:
            oldest = [row for row in self._oldest() if self._item_of[row] not in fresh]
            if not oldest:
                return
            self._pages.delete(map(self._forget, oldest))

    @property
    def _used_bytes(self) -> float:
        return (self._pages.used + _OTHER_PAGES) * PAGE_BYTES + self.entries * _SLOT_BYTES

    def _insert(self, item: int, size: int, now: int, freed: list[int]) -> None:
        if freed:  # the row that was freed last is used first
            row = freed.pop()
            self._item_of[row], self._read_at[row], self._size_of[row] = item, now, size
        else:
            row = self._pages.append(size)
            self._item_of.append(item)
            self._read_at.append(now)
            self._size_of.append(size)
        self._row_of[item] = row
        self.entries += 1

    def _evict(self, excess_bytes: float) -> list[int]:
        """Forget the least recently read entries until ``excess_bytes`` are free. Returns their rows."""
        freed: list[int] = []
        while excess_bytes > 0 and self.entries:
            for row in self._oldest():
                freed.append(self._forget(row))
                excess_bytes -= self._size_of[row]
        return freed

    def _forget(self, row: int) -> int:
        self._row_of[self._item_of[row]] = -1
        self._item_of[row] = -1
        self.entries -= 1
        return row

    def _oldest(self) -> list[int]:
        """The rows to evict together: the least recently read ones, and among equal times those with the lowest
        numbers."""
        count = max(1, self.entries // EVICTED_FRACTION)
        rows = np.flatnonzero(np.frombuffer(self._item_of, np.int32) >= 0)
        ages = np.frombuffer(self._read_at, np.int64)[rows] * len(self._item_of) + rows
        if count < len(rows):
            nearest = np.argpartition(ages, count)[:count]
            rows, ages = rows[nearest], ages[nearest]
        oldest: list[int] = rows[np.argsort(ages)].tolist()
        return oldest


class _Pages:
    """The pages of the table of values. Rows with consecutive numbers share a page. If deletions leave a page less than
    a third full, it is merged with a neighbor if both fit into one page, as in SQLite."""

    def __init__(self) -> None:
        self.used = 0
        self._page_of = array("i")  # of each row, before merging
        self._bytes_of = array("i")  # of each row
        self._merged_into = array("i")  # of each page: itself, or where to look next
        self._bytes_in = array("i")  # of each page
        self._next = array("i")  # the next page in use, for pages in use; -1: none
        self._previous = array("i")

    def append(self, size: int) -> int:
        """A new row, behind all others, for a value of ``size`` bytes."""
        needed = size + _ROW_BYTES
        last = self._find(len(self._bytes_in) - 1) if self._bytes_in else -1
        if last < 0 or not self._bytes_in[last] or self._bytes_in[last] + needed > _USABLE_BYTES:
            previous = last if last >= 0 and self._bytes_in[last] else self._last_used(last)
            last = len(self._bytes_in)
            self._bytes_in.append(0)
            self._merged_into.append(last)
            self._previous.append(previous)
            self._next.append(-1)
            if previous >= 0:
                self._next[previous] = last
        self._page_of.append(last)
        self._bytes_of.append(needed)
        self._resize(last, needed)
        return len(self._page_of) - 1

    def delete(self, rows: Iterable[int]) -> None:
        for row in rows:
            page = self._find(self._page_of[row])
            self._resize(page, -self._bytes_of[row])
            if not self._bytes_in[page]:
                self._unlink(page)
            elif self._bytes_in[page] * 3 < _USABLE_BYTES:
                self._merge(page)

    def _resize(self, page: int, change: int) -> None:
        before = -(-self._bytes_in[page] // _USABLE_BYTES)
        self._bytes_in[page] += change
        self.used += -(-self._bytes_in[page] // _USABLE_BYTES) - before

    def _merge(self, page: int) -> None:
        for other in (self._previous[page], self._next[page]):
            if other >= 0 and self._bytes_in[other] + self._bytes_in[page] <= _USABLE_BYTES:
                moved = self._bytes_in[page]
                self._resize(page, -moved)
                self._resize(other, moved)
                self._unlink(page)
                self._merged_into[page] = other
                return

    def _unlink(self, page: int) -> None:
        before, after = self._previous[page], self._next[page]
        if before >= 0:
            self._next[before] = after
        if after >= 0:
            self._previous[after] = before

    def _last_used(self, page: int) -> int:
        while page >= 0 and not self._bytes_in[page]:
            page = self._previous[page]
        return page

    def _find(self, page: int) -> int:
        while (into := self._merged_into[page]) != page:
            self._merged_into[page] = self._merged_into[into]
            page = into
        return page
