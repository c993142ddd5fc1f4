"""Recent writes to the store. They may undo a purge that this process does not know of yet."""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from proxy.cache.discards import Mark
from proxy.cache.entry import Entry

_MAX_KEYS = 100_000  # while the store takes writes and its log can't be read


class RecentWrite(NamedTuple):
    asked: Mark  # when the upstream was asked
    entries: Mapping[bytes, Entry]

    def purged(self) -> list[bytes]:
        """The keys of what was purged after the upstream was asked."""
        return [key for key, entry in self.entries.items() if self.asked.is_purged(key, entry.source)]


class RecentWrites:
    """A write stays here until the store's log is read after the write ended: then all purges before that are known."""

    def __init__(self) -> None:
        self._writes: deque[RecentWrite] = deque()
        self._keys = 0

    def add(self, write: RecentWrite) -> None:
        """A write has ended, successfully or not."""
        self._writes.append(write)
        self._keys += len(write.entries)
        while self._keys > _MAX_KEYS and len(self._writes) > 1:
            self._keys -= len(self._writes.popleft().entries)

    def take(self) -> list[RecentWrite]:
        """All of them. The log is read next."""
        taken = list(self._writes)
        self._writes.clear()
        self._keys = 0
        return taken

    def put_back(self, writes: list[RecentWrite]) -> None:
        """The log could not be read to its end."""
        for write in reversed(writes):
            self._writes.appendleft(write)
            self._keys += len(write.entries)
