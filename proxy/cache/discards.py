"""Which keys were discarded from memory and when, so that no earlier read brings an outdated record back (pure)."""

from collections import deque
from collections.abc import Collection, Container
from typing import Final

from proxy.cache.store import Purge, RecordInfo


class _Everything:
    """Contains every key."""

    def __contains__(self, key: object) -> bool:
        return True


EVERYTHING: Final = _Everything()
Keys = Collection[bytes] | _Everything


class Mark:
    """A moment, as a container of the keys that have been discarded since then."""

    __slots__ = ("_keys", "_next", "_purge")

    def __init__(self) -> None:
        self._keys: Container[object] = ()  # discarded between this moment and the next one
        self._purge: Purge | None = None  # between this moment and the next one
        self._next: Mark | None = None  # only to later marks, so a mark is freed with the last read that holds it

    def __contains__(self, key: bytes) -> bool:
        mark = self
        while mark._next is not None:
            if key in mark._keys:
                return True
            mark = mark._next
        return False

    def is_purged(self, key: bytes, record: RecordInfo) -> bool:
        """Whether this record has been purged since. If so, a response asked for before must not be stored."""
        mark = self
        while mark._next is not None:
            if mark._purge is not None and mark._purge.covers(key, record):
                return True
            mark = mark._next
        return False

    def end(self, keys: Container[object], purge: Purge | None = None) -> "Mark":
        """``keys`` are discarded now. Returns the mark after that."""
        self._keys, self._purge, self._next = keys, purge, Mark()
        return self._next


class Discards:
    """The order of discards, and those that are due a second time.

    A read that began before a discard may have an older record than the store has now. It compares the keys it found
    with the `Mark` of its beginning, and puts none of those into memory that were discarded since.
    """

    def __init__(self, *, again_after_s: float) -> None:
        """Keys are discarded once more after ``again_after_s``. A process may announce a replacement, write it, and die
        before the second announcement. Other processes may have read the old record meanwhile."""
        self._again_after_s = again_after_s
        self._due: deque[tuple[float, Collection[bytes]]] = deque()
        self.now = Mark()

    def add(self, keys: Keys, now_s: float, purge: Purge | None = None) -> None:
        """``keys`` are discarded now, because they were announced, or because a ``purge`` was."""
        self.now = self.now.end(keys, purge)
        if isinstance(keys, Collection):
            self._due.append((now_s + self._again_after_s, keys))

    def take_due(self, now_s: float) -> list[Collection[bytes]]:
        """Take the keys that are to be discarded again now. All earlier marks contain them from here on."""
        due = []
        while self._due and self._due[0][0] <= now_s:
            _, keys = self._due.popleft()
            self.now = self.now.end(keys)
            due.append(keys)
        return due
