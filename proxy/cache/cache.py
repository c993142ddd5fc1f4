"""The cache: the memory tier, and behind it a store that requests do not depend on."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from msgspec import Struct

from proxy.cache.change_feed import AGAIN_AFTER_S, ChangeFeed
from proxy.cache.codec import RecordCodec
from proxy.cache.discards import Discards, Mark
from proxy.cache.entry import Certainty, Entry
from proxy.cache.guarded import GuardedStore
from proxy.cache.lease import Lease
from proxy.cache.memory import Memory
from proxy.cache.recent_writes import RecentWrites
from proxy.cache.shared_reads import SharedReads
from proxy.cache.store import Store
from proxy.cache.writer import Writer
from proxy.protocol.records import Record, RecordKey
from proxy.telemetry.metrics import Metrics
from proxy.turns import FEW_KEYS, free, in_turns

PEEKED_A_TURN = 256  # keys that are looked up in memory in a tenth of a millisecond
_FEW_VALUES = 64  # are unpacked and put into memory in half a millisecond


class Peeked(Struct, frozen=True):
    """Entries in memory: those to serve; and those that the store has to be read for, since they are too old or may not
    be the first of their keys."""

    found: dict[bytes, Entry]
    left_out: dict[bytes, Entry]


class Cache:
    """Records under their keys. The first record stored under a key is the one that every replica serves.

    The store decides which record was first. Before it has replied, and while it is down, an entry in memory is not
    confirmed (`proxy.cache.entry.Certainty`). If the store then has another record, that one replaces the entry.
    """

    def __init__(
        self,
        memory: Memory,
        store: Store,
        metrics: Metrics,
        *,
        ttl_s: float | None,
        timeout_s: float,
        record_key: RecordKey | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``timeout_s`` bounds how long a request waits for the store; large batches get more."""
        self.memory = memory
        self.store = store  # for what the proxy keeps there besides entries
        self._ttl_s = ttl_s
        self._clock = clock
        self._codec = RecordCodec(metrics, record_key=record_key, ttl_s=ttl_s, store_expires=store.expires, clock=clock)
        self._store = GuardedStore(store, metrics, ttl_s=ttl_s, timeout_s=timeout_s)
        self._shared_reads = SharedReads(self._read, parts=store.parts, max_keys=_FEW_VALUES, max_reads=store.max_reads)
        self._discards = Discards(again_after_s=AGAIN_AFTER_S)
        recent = RecentWrites()
        self._writer = Writer(
            memory,
            self._store,
            self._codec,
            self._discards,
            recent,
            freshness_cutoff_s=partial(self.freshness_cutoff_s, None),
        )
        self.feed = ChangeFeed(store, memory, self._discards, recent, metrics, clock=monotonic)
        self.feed.on_purge(self._writer.forget)

    def freshness_cutoff_s(self, max_age_s: float | None) -> float:
        """Unix time before which an entry was stored too long ago, by the TTL or by a request's ``max-age``."""
        if self._ttl_s is None and max_age_s is None:
            return 0.0
        return self._clock() - min(limit for limit in (self._ttl_s, max_age_s) if limit is not None)

    async def room(self) -> None:
        """Wait until the responses of one more upstream call can wait for the store, or the store seems to hang."""
        await self._store.backlog.room()

    async def probe_store(self) -> None:
        """Warn if the store does not work. Read its changes once, so that later polls return only newer ones."""
        await self._store.probe()
        await self.feed.poll()

    @property
    def has_store(self) -> bool:
        """Whether there is more than the memory tier."""
        return not self._store.is_absent

    @property
    def has_leases(self) -> bool:
        """Whether `leasing` may tell this process from others."""
        return self._store.has_leases

    def leasing(self) -> Lease:
        """Leases on keys that are to be fetched, for as long as the block lasts."""
        return self._store.lease()

    async def aclose(self) -> None:
        """Finish the writes in progress, then close the store. Cancelled, it cancels the writes."""
        try:
            await self._writer.tasks.join()
        finally:
            self._store.log_unstored()
        await self._shared_reads.aclose()
        await self._store.aclose()

    def peek(self, keys: Sequence[bytes], *, min_stored_at_s: float) -> dict[bytes, Entry]:
        """The entries of ``keys`` in memory, without waiting, but for those that are too old."""
        entries = zip(keys, map(self._writer.getter(), keys), strict=True)
        return {
            key: entry
            for key, entry in entries
            if entry is not None and not (min_stored_at_s and entry.source.stored_at_s < min_stored_at_s)
        }

    def peek_confirmed(self, keys: Sequence[bytes], *, min_stored_at_s: float) -> Peeked:
        """`peek`, but while the store can be read, without entries that may not be the first of their keys."""
        is_confirmed = Certainty.CONFIRMED
        found: dict[bytes, Entry] = {}
        left_out: dict[bytes, Entry] = {}
        for key, entry in zip(keys, map(self._writer.getter(), keys), strict=True):
            if entry is None:
                continue
            is_old = min_stored_at_s and entry.source.stored_at_s < min_stored_at_s
            if is_old or (entry.source.certainty is not is_confirmed and not self._store.is_down):
                left_out[key] = entry
            else:
                found[key] = entry
        return Peeked(found, left_out)

    async def read(
        self, keys: Sequence[bytes], *, min_stored_at_s: float, left_out: Mapping[bytes, Entry] | None = None
    ) -> dict[bytes, Entry]:
        """The entries of ``keys``, which are distinct, in the store. They are put into memory too.

        ``left_out`` are all entries of ``keys`` in memory, from a `peek_confirmed`. None: they are looked up.
        """
        if not keys or self._store.is_absent:
            return {}
        before = left_out
        if self._writer.pending:
            await self._writer.wait_for(keys)
            before = None
        if before is None:
            before = {}
            async for some in in_turns(keys, size=PEEKED_A_TURN):
                before |= self.peek(some, min_stored_at_s=0.0)
        if len(keys) <= _FEW_VALUES:
            found = await self._shared_reads.read(keys, before)
        else:
            found = await self._read(keys, before, asyncio.get_running_loop().time())
        if not min_stored_at_s:
            return found
        return {key: entry for key, entry in found.items() if entry.stored_at_s >= min_stored_at_s}

    async def _read(self, keys: Sequence[bytes], before: Mapping[bytes, Entry], since_s: float) -> dict[bytes, Entry]:
        """The entries of ``keys`` in the store, however old. ``before`` are those that were in memory. The first of
        them was asked for at ``since_s``, event loop time."""
        began = self._discards.now
        waited_s = asyncio.get_running_loop().time() - since_s
        values, is_complete = await self._store.get(keys, waited_s=waited_s)
        if len(values) <= _FEW_VALUES:
            found = self._adopt(values, before, began)
        else:
            found = {}
            async for some in in_turns(list(values)):
                found |= self._adopt({key: values[key] for key in some}, before, began)
            free(list(values.values()))
        if is_complete and before:
            self._writer.repeat(before)
        return found

    def _adopt(self, values: Mapping[bytes, bytes], before: Mapping[bytes, Entry], began: Mark) -> dict[bytes, Entry]:
        """Put records from the store into memory. Returns the entries that count. ``before`` are those that were in
        memory when the read ``began``."""
        discarded = began if began is not self._discards.now else ()
        get, put = self._writer.getter(), self.memory.put
        found = self._codec.decode(values)
        for key, entry in found.items():
            cached = get(key)
            if cached is not None and not _yields(cached, entry, before.get(key)):
                found[key] = cached
                continue
            if discarded and key in discarded:  # a process may have replaced the record since it was read
                self.memory.discard(key)
            else:
                put(key, entry)
            if cached is not None:
                cached.set_successor(entry)
        return found

    @property
    def now(self) -> Mark:
        """This moment: what `write` needs as ``asked`` if the upstream is asked now."""
        return self._discards.now

    async def write(
        self, fresh: Mapping[bytes, Record], *, overwrite: bool, asked: Mark | None = None
    ) -> dict[bytes, Entry]:
        """Store ``fresh``. Returns, for the same keys, the entries to serve.

        ``asked`` is when the upstream was asked; None: now. What was purged since is not stored.

        Without ``overwrite`` an existing record stays, unless it is expired or damaged. The timeout ends the waiting,
        not the write. Until the write has ended its entries are not confirmed. If another record turns out to be the
        first, it replaces them in memory, and `Entry.current` leads to it.
        """
        if self._store.is_absent:
            return await self._write_to_memory(fresh, overwrite=overwrite)
        return await self._writer.write(fresh, overwrite=overwrite, asked=asked or self._discards.now)

    async def _write_to_memory(self, fresh: Mapping[bytes, Record], *, overwrite: bool) -> dict[bytes, Entry]:
        """Without a store the first entry in memory stays."""
        entries: dict[bytes, Entry] = {}
        async for some in in_turns(list(fresh), size=FEW_KEYS):
            if not overwrite:
                entries |= self.peek(some, min_stored_at_s=self.freshness_cutoff_s(None))
            for key in some:
                if key not in entries:
                    entries[key] = Entry.of(fresh[key])
                    self.memory.put(key, entries[key])
        return entries


def _yields(cached: Entry, read: Entry, before: Entry | None) -> bool:
    """Whether an entry in memory is superseded by one just read from the store. ``before`` is the entry that was in
    memory when the read began."""
    if cached is not before:
        # This entry arrived during the read, so its write may have replaced the record that was read.
        return False
    return cached.yields_to_read or cached.stored_at_s < read.stored_at_s
