"""Discards from memory what any process has replaced in the store.

The store has a log of the keys whose values were replaced, which every process reads twice a second. So a replaced
record is served nowhere for longer than `POLL_S`, the time of one read and of one write; and a process that could not
read the log for a while continues where it was.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from proxy.cache.discards import EVERYTHING, Discards
from proxy.cache.memory import Memory
from proxy.cache.store import Changes, Store
from proxy.cache.turns import in_turns
from proxy.errors import StoreError
from proxy.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

POLL_S = 0.5
# Longer than the store takes from an announcement to the replacement itself.
AGAIN_AFTER_S = 2.0
# Of the log, in one poll. The rest is read by the next one.
_MAX_PAGES = 100


class ChangeFeed:
    """Reads the store's log. Requests do not wait for it, and it changes nothing while the store fails."""

    def __init__(
        self,
        store: Store,
        memory: Memory,
        discards: Discards,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._memory = memory
        self._discards = discards
        self._discarded = metrics.memory_discarded
        self._clock = clock
        self._polling = asyncio.Lock()
        self._polled_at_s = clock()  # the latest success, or the start
        self._is_first = True  # no poll has succeeded yet
        metrics.store_changes_age.set_function(lambda: clock() - self._polled_at_s)

    async def poll(self, _late_s: float = 0.0) -> None:
        """Discard what was replaced since the last poll."""
        async with self._polling:
            await self._poll()

    async def _poll(self) -> None:
        now_s = self._clock()
        for keys in self._discards.due(now_s):
            await self._discard(keys, "again")
        try:
            for _ in range(_MAX_PAGES):
                changes = await self._store.changes()
                await self._apply(changes, now_s)
                if not changes.has_more:
                    break
        except StoreError:
            return
        self._polled_at_s = now_s
        self._is_first = False

    async def _apply(self, changes: Changes, now_s: float) -> None:
        if not changes.is_complete:
            if not self._is_first:
                _log.warning("missed some of what was replaced in the store; reading all entries in memory again")
            self._discards.add(EVERYTHING, now_s)
            self._discarded.labels("missed").inc(await self._memory.clear())
        if changes.keys:
            self._discards.add(changes.keys, now_s)
            await self._discard(changes.keys, "replaced")

    async def _discard(self, keys: Collection[bytes], reason: str) -> None:
        async for some in in_turns(list(keys)):
            self._discarded.labels(reason).inc(sum(map(self._discard_decided, some)))

    def _discard_decided(self, key: bytes) -> bool:
        """Whether there was an entry to discard. One that the store is yet to decide on stays, since it may be nowhere
        else; the store's reply is compared with the `Mark` of its write."""
        entry = self._memory.get(key)
        if entry is None or entry.is_undecided:
            return False
        self._memory.discard(key)
        return True
