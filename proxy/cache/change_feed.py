"""Discards entries from memory when any process has replaced or removed their records in the store.

The store logs the keys of replaced values, and every process reads that log twice a second. So no process serves a
replaced record for longer than `POLL_S` plus the time of one read and one write. A process that could not read the log
for a while continues where it stopped.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from proxy.cache.discards import EVERYTHING, Discards
from proxy.cache.memory import Memory
from proxy.cache.recent_writes import RecentWrite, RecentWrites
from proxy.cache.store import Changes, Purge, Store
from proxy.errors import StoreError
from proxy.telemetry.metrics import Metrics
from proxy.turns import in_iterations

_log = logging.getLogger(__name__)

POLL_S = 0.5
# Longer than the store takes to replace a value after the announcement.
AGAIN_AFTER_S = 2.0
_NO_PURGE = Purge()
# The most that one poll reads of the log. The next poll reads the rest.
_MAX_PAGES = 100


class ChangeFeed:
    """Reads the store's log. Requests do not wait for it, and it changes nothing while the store fails."""

    def __init__(
        self,
        store: Store,
        memory: Memory,
        discards: Discards,
        recent: RecentWrites,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._memory = memory
        self._discards = discards
        self._recent = recent
        self._on_purge: list[Callable[[Purge], object]] = []
        self._discarded = metrics.memory_discarded
        self._clock = clock
        self._polling = asyncio.Lock()
        self._polled_at_s = clock()  # the latest success, or the start
        self._is_first = True  # no poll has succeeded yet
        self._has_failed = False  # a poll has
        metrics.store_changes_age.set_function(lambda: clock() - self._polled_at_s)

    def on_purge(self, call: Callable[[Purge], object]) -> None:
        """``call`` is called with every purge when this process learns of it."""
        self._on_purge.append(call)

    async def poll(self, _late_s: float = 0.0) -> None:
        """Discard what was replaced since the last poll."""
        async with self._polling:
            await self._poll()

    async def _poll(self) -> None:
        now_s = self._clock()
        for keys in self._discards.take_due(now_s):
            await self._discard(keys, "again")
        recent = self._recent.take()
        try:
            if await self._read():
                await self._delete_purged(recent)
            else:
                self._recent.put_back(recent)
        except StoreError:
            self._recent.put_back(recent)
            self._has_failed = True
            return
        self._polled_at_s = now_s
        self._is_first = False

    async def _read(self) -> bool:
        """Apply what is new in the log. Returns whether no change was missed and the end of the log was reached.

        The deletions of a large purge may push its announcement out of the log, so it is announced again at its end.
        Raises `StoreError`.
        """
        is_complete = True
        now_s = self._clock()
        for _ in range(_MAX_PAGES):
            changes = await self._store.changes()
            await self._apply(changes, now_s)
            is_complete &= changes.is_complete
            if not changes.has_more:
                return is_complete
        return False

    async def _apply(self, changes: Changes, now_s: float) -> None:
        if not changes.is_complete:
            if not self._is_first:
                _log.warning("missed some of what was replaced in the store; reading all entries in memory again")
            self._discards.add(EVERYTHING, now_s)
            self._discarded.labels("missed").inc(await self._memory.clear())
        if changes.purge != _NO_PURGE:
            await self._purge(changes.purge, now_s)
        if changes.keys:
            self._discards.add(changes.keys, now_s)
            await self._discard(changes.keys, "replaced")

    async def _purge(self, purge: Purge, now_s: float) -> None:
        # The first poll is at the start of the process: every purge that it finds is older than any upstream call. If
        # the store was down then, a later poll is the first to succeed, and calls may be under way.
        concerned = None if self._is_first and not self._has_failed else purge
        self._discards.add(EVERYTHING if purge.models else purge.keys, now_s, concerned)
        for call in self._on_purge:
            call(purge)
        if purge.models:  # only keys in the store are announced; memory may have entries that the store has evicted
            count = await self._memory.clear(purges=purge.covers)
            self._discarded.labels("purged").inc(count)
        async for some in in_iterations(list(purge.keys)):
            for key in some:
                self._discarded.labels("purged").inc(self._memory.get(key) is not None)
                self._memory.discard(key)

    async def _delete_purged(self, recent: list[RecentWrite]) -> None:
        """Delete the records that were stored after a purge but asked for before it. Announced like other deletions: a
        second announcement of the purge would also drop what has been asked for since."""
        keys = {key for write in recent for key in write.purged()}
        for key in keys:
            self._memory.discard(key)
        if not keys:
            return
        try:
            await self._store.delete_many(keys)
        except StoreError as error:
            if error.reason != "refused":
                raise
            _log.warning("%d entries that were purged were stored again, and can't be deleted (%s)", len(keys), error)

    async def _discard(self, keys: Collection[bytes], reason: str) -> None:
        async for some in in_iterations(list(keys)):
            self._discarded.labels(reason).inc(sum(map(self._discard_decided, some)))

    def _discard_decided(self, key: bytes) -> bool:
        """Whether an entry was discarded. An entry that the store has not decided on stays, because memory may have the
        only copy; the store's reply is then compared with the `Mark` of its write."""
        entry = self._memory.get(key)
        if entry is None or entry.is_undecided:
            return False
        self._memory.discard(key)
        return True
