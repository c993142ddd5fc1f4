"""Writes to the store: which are in progress, and which record of a key counts once the store has replied."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from proxy.breaker import Attempt
from proxy.cache.codec import RecordCodec
from proxy.cache.discards import Discards, Mark
from proxy.cache.entry import Certainty, Entry, current
from proxy.cache.guarded import GuardedStore, Written
from proxy.cache.memory import Memory
from proxy.cache.recent_writes import RecentWrite, RecentWrites
from proxy.cache.store import Purge
from proxy.protocol.records import Record
from proxy.tasks import TaskSet, log_to
from proxy.turns import FEW_KEYS, are_many, free, in_turns

_log = logging.getLogger(__name__)

_WriteTask = asyncio.Task[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Write:
    """One write to the store. ``before`` are the entries that were in memory when it ``began``, or just before that:
    what has come since counts as newer."""

    attempt: Attempt
    entries: Mapping[bytes, Entry]
    values: Mapping[bytes, bytes]
    before: Mapping[bytes, Entry | None]
    began: Mark
    asked: Mark  # when the upstream was asked
    overwrite: bool
    is_repeated: bool

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.values.values()))


class Writer:
    """Writes records and keeps the entries of unfinished writes, which memory may evict before they end."""

    def __init__(
        self,
        memory: Memory,
        store: GuardedStore,
        codec: RecordCodec,
        discards: Discards,
        recent: RecentWrites,
        *,
        freshness_cutoff_s: Callable[[], float],
    ) -> None:
        """``freshness_cutoff_s`` returns the Unix time before which entries are past their TTL."""
        self._memory = memory
        self._store = store
        self._codec = codec
        self._discards = discards
        self._recent = recent
        self._freshness_cutoff_s = freshness_cutoff_s
        self.tasks = TaskSet(log_to(_log, "a write to the store"))
        self.pending: dict[bytes, tuple[Entry, _WriteTask]] = {}  # entries that were served before their write ended

    def get(self, key: bytes) -> Entry | None:
        """The entry in memory, or the one whose write is in progress."""
        entry = self._memory.get(key)
        if entry is None and key in self.pending:
            entry = self.pending[key][0].current
        return entry

    def getter(self) -> Callable[[bytes], Entry | None]:
        """`get`, or a faster function that does the same until the next await."""
        return self.get if self.pending else self._memory.get

    def _in_memory(self, keys: Collection[bytes]) -> dict[bytes, Entry | None]:
        return dict(zip(keys, map(self.getter(), keys), strict=True))

    async def write(self, fresh: Mapping[bytes, Record], *, overwrite: bool, asked: Mark) -> dict[bytes, Entry]:
        """As `Cache.write`."""
        late: dict[bytes, Entry] = {}
        if asked is not self._discards.now:
            late = {key: Entry.of(record) for key, record in fresh.items() if asked.is_purged(key, record)}
            fresh = {key: record for key, record in fresh.items() if key not in late}
        certainty = Certainty.REPLACING if overwrite else Certainty.INSERTING
        mine: dict[bytes, Entry] = {}
        values: dict[bytes, bytes] = {}
        before: dict[bytes, Entry | None] = {}
        async for some in in_turns(list(fresh)):
            mine |= {key: Entry.of(fresh[key], certainty) for key in some}
            values |= self._codec.encode({key: fresh[key] for key in some})
            before |= self._in_memory(some)
        task = self._start(mine, values.copy, before, overwrite=overwrite, asked=asked) if mine else None
        del values  # when the write has ended, it frees them in turns
        if task is not None and not self._store.has_failed_read:
            await asyncio.wait([task], timeout=self._store.timeout_for_s(mine))
        cutoff_s = self._freshness_cutoff_s()
        async for some in in_turns(list(mine), size=FEW_KEYS):
            for key in some:
                entry = mine[key]
                if asked is not self._discards.now and asked.is_purged(key, entry.source):
                    continue
                if entry.is_undecided and entry.current is entry:
                    self._put_unconfirmed(key, entry, cutoff_s)
                if task is not None and not task.done():
                    self.pending[key] = entry, task
        return current(mine) | late

    def forget(self, purge: Purge) -> None:
        """Stop serving purged entries whose writes are still in progress."""
        for key, (entry, _) in list(self.pending.items()):
            if purge.covers(key, entry.source):
                del self.pending[key]

    def _put_unconfirmed(self, key: bytes, mine: Entry, cutoff_s: float) -> None:
        """The store has not replied yet. Until it does, an entry that is already in memory counts as the first."""
        cached = self.get(key)
        if mine.yields_to_insert and cached is not None and cached.stored_at_s >= cutoff_s:
            mine.set_successor(cached)
        else:
            self._memory.put(key, mine)

    def repeat(self, looked_up: Mapping[bytes, Entry]) -> None:
        """Write the entries of keys that a working store does not have: the store was down when they were written, or
        too many bytes were waiting for it. ``looked_up`` are the entries from before the store was read."""
        unstored = self._unstored(looked_up)
        for overwrite in (False, True):
            entries = {key: entry for key, entry in unstored.items() if entry.overwrites is overwrite}
            if not entries:
                continue
            values = partial(self._codec.encode, {key: entry.record() for key, entry in entries.items()})
            before = self._in_memory(entries)
            task = self._start(entries, values, before, overwrite=overwrite, is_repeated=True, asked=self._discards.now)
            if task is not None:
                self.pending.update((key, (entry, task)) for key, entry in entries.items())

    def _unstored(self, looked_up: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
        """Those that are not confirmed, that no write is under way for, and that may still be served."""
        cutoff_s = self._freshness_cutoff_s()
        return {
            key: entry
            for key, entry in looked_up.items()
            if not entry.is_confirmed
            and entry.stored_at_s >= cutoff_s
            and key not in self.pending
            and self._memory.get(key) is entry  # the read has not replaced it
        }

    async def wait_for(self, keys: Sequence[bytes]) -> None:
        """Wait for unfinished writes of ``keys`` as long as a read may take: they show whose record was first."""
        tasks = {self.pending[key][1] for key in keys if key in self.pending}
        if tasks and not self._store.has_failed_read:
            await asyncio.wait(tasks, timeout=self._store.timeout_for_s(keys))

    def _start(
        self,
        entries: Mapping[bytes, Entry],
        values: Callable[[], Mapping[bytes, bytes]],
        before: Mapping[bytes, Entry | None],
        *,
        overwrite: bool,
        asked: Mark,
        is_repeated: bool = False,
    ) -> _WriteTask | None:
        """Start to write ``values``, the records of ``entries``. The write goes on if its caller is cancelled. None if
        the store takes no writes now."""
        attempt = self._store.attempt_write(len(entries), is_repeated=is_repeated)
        if attempt is None:
            return None
        write = _Write(
            attempt=attempt,
            entries=entries,
            values=values(),
            before=before,
            began=self._discards.now,
            asked=asked,
            overwrite=overwrite,
            is_repeated=is_repeated,
        )
        self._store.backlog.began(write.size_bytes)
        task = self.tasks.start(self._run(write))
        task.add_done_callback(partial(self._ended, write))
        return task

    def _ended(self, write: _Write, task: _WriteTask) -> None:
        self._recent.add(RecentWrite(write.asked, write.entries))
        write.attempt.end()  # for a task that was cancelled before its first step
        self._store.backlog.ended(write.size_bytes)
        for key in write.entries:
            if key in self.pending and self.pending[key][1] is task:
                del self.pending[key]
        if are_many(write.values):
            free(list(write.values.values()))

    async def _run(self, write: _Write) -> None:
        """Write, and settle each entry by the store's reply."""
        repeated = write.is_repeated
        with write.attempt as attempt:
            written = await self._store.put(write.values, attempt, overwrite=write.overwrite, is_repeated=repeated)
        invalid = await self._settle_all(write, written, Certainty.REPLACED if write.overwrite else Certainty.CONFIRMED)
        if not invalid or (again := self._store.attempt_write(len(invalid), is_repeated=repeated)) is None:
            return
        values = {key: write.values[key] for key in invalid}
        with again:
            written = await self._store.put(values, again, overwrite=False, is_repeated=repeated, invalid=invalid)
        await self._settle_all(write, written, Certainty.REPLACED)

    async def _settle_all(self, write: _Write, written: Written, certainty: Certainty) -> dict[bytes, bytes]:
        """Settle the entries that the reply names, in turns. Accepted entries get ``certainty``.

        Returns the existing values that can't be served, because they are expired or damaged.
        """
        cutoff_s = self._freshness_cutoff_s()
        invalid: dict[bytes, bytes] = {}
        async for some in in_turns(list(written.existing)):
            existing = self._codec.decode({key: written.existing[key] for key in some})
            for key in some:
                if key in existing and existing[key].stored_at_s >= cutoff_s:
                    self._settle(key, write, existing[key])
                else:
                    invalid[key] = written.existing[key]
        async for some in in_turns(list(written.accepted), size=FEW_KEYS):
            for key in some:
                write.entries[key].mark_stored(certainty)
                self._settle(key, write, write.entries[key])
        self._codec.replaced(written.accepted)
        return invalid

    def _settle(self, key: bytes, write: _Write, final: Entry) -> None:
        """The store replied to ``write``: it has ``final`` under ``key``."""
        mine, cached = write.entries[key], self.get(key)
        is_newer = cached not in (mine, write.before[key])
        if cached is not None and is_newer and not cached.yields_to_insert and final.is_confirmed:
            # A read or a refresh put this entry into memory after the write began, so the reply may be older than it.
            mine.set_successor(cached)
            return
        mine.set_successor(final)
        if cached is not None and not cached.is_confirmed:
            cached.set_successor(final)
        if key in write.began or write.asked.is_purged(key, mine.source):  # a process may have replaced it since
            self._memory.discard(key)
        else:
            self._memory.put(key, final)
