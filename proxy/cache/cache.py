"""The cache: the memory tier, and behind it a store that is never required."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from proxy.breaker import Attempt
from proxy.cache.guarded import GuardedStore, Written
from proxy.cache.invalid import InvalidRecords
from proxy.cache.lease import Lease
from proxy.cache.memory import Certainty, Entry, Memory, standing
from proxy.cache.store import Store
from proxy.protocol import records
from proxy.protocol.records import InvalidRecord, Record, RecordKey
from proxy.tasks import TaskSet, log_to
from proxy.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

# Clocks of replicas may differ by a time zone that somebody took for UTC. A record that is past its TTL by more than
# this was stored under a longer TTL, or under none.
_MAX_CLOCK_SKEW_S = 24 * 3600.0
_KEYS_A_TURN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """One write to the store. ``before`` are the entries that were in memory when it began."""

    attempt: Attempt
    entries: Mapping[bytes, Entry]
    values: Mapping[bytes, bytes]
    before: Mapping[bytes, Entry | None]
    overwrite: bool
    is_repeated: bool

    @property
    def size(self) -> int:
        return sum(map(len, self.values.values()))


_Writing = asyncio.Task[None]


async def _in_turns(keys: Sequence[bytes]) -> AsyncIterator[Sequence[bytes]]:
    """So many keys at a time as take about a millisecond. Between them the event loop does everything else: thousands of
    entries are made for one request, while others wait for a hit."""
    for start in range(0, len(keys), _KEYS_A_TURN):
        if start:
            await asyncio.sleep(0)
        yield keys[start : start + _KEYS_A_TURN]


class Cache:
    """Records under their keys. The first record written under a key stays, for every client of every replica.

    The store decides which record was first. Until it has answered, or while it is down, an entry in memory is not
    confirmed (`Certainty`): it gives way to whatever the store turns out to have.
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
    ) -> None:
        self.memory = memory
        self._record_key = record_key
        self._store = GuardedStore(store, metrics, ttl_s=ttl_s, timeout_s=timeout_s)
        self._invalid = InvalidRecords(metrics)
        self._ttl_s = ttl_s
        self._clock = clock
        self._writes = TaskSet(log_to(_log, "a write to the store"))
        # Entries that were handed out before their write had ended. Memory may evict them meanwhile.
        self._pending: dict[bytes, tuple[Entry, _Writing]] = {}

    def freshness_cutoff_s(self, max_age_s: float | None) -> float:
        """Unix time before which an entry was stored too long ago, by the TTL or by a request's ``max-age``."""
        if self._ttl_s is None and max_age_s is None:
            return 0.0
        return self._clock() - min(limit for limit in (self._ttl_s, max_age_s) if limit is not None)

    async def room(self) -> None:
        """Wait until what one more upstream call brings can be held until it is stored, or the store seems to hang."""
        await self._store.backlog.room()

    async def probe_store(self) -> None:
        await self._store.try_it()

    @asynccontextmanager
    async def leasing(self) -> AsyncIterator[Lease]:
        """Leases on keys that are to be fetched, renewed for as long as the block lasts and then given up."""
        lease = self._store.lease()
        renewals = TaskSet(log_to(_log, "the renewal of leases"))
        renewals.start(lease.renew())
        try:
            yield lease
        finally:
            await renewals.aclose()
            await lease.release()

    async def aclose(self) -> None:
        """Finish the writes under way, then close the store."""
        try:
            await self._writes.join()
        finally:
            self._store.log_unstored()
        await self._store.aclose()

    # --- reading

    def peek(self, keys: Sequence[bytes], *, min_stored_at_s: float, confirmed: bool = False) -> dict[bytes, Entry]:
        """What memory has of ``keys``, without waiting.

        With ``confirmed``, entries that may not be the first of their keys are left out while the store can be
        asked, which is for `read` to do.
        """
        get = self.memory.get
        found = {}
        for key in keys:
            entry = get(key)
            if entry is None and self._pending:
                entry = self._held(key)
            if entry is None or entry.stored_at_s < min_stored_at_s:
                continue
            if confirmed and entry.certainty is not Certainty.CONFIRMED and not self._store.is_down:
                continue
            found[key] = entry
        return found

    def _held(self, key: bytes) -> Entry | None:
        entry = self.memory.get(key)
        if entry is None and key in self._pending:
            entry = self._pending[key][0].standing
        return entry

    async def read(self, keys: Sequence[bytes], *, min_stored_at_s: float) -> dict[bytes, Entry]:
        """What the store has of ``keys``, which are distinct; it goes into memory too."""
        if not keys or self._store.is_none:
            return {}
        await self._await_pending(keys)
        before = {key: self._held(key) for key in keys}
        values, is_complete = await self._store.get(keys)
        found = {}
        async for some in _in_turns(list(values)):
            for key, record in self._decoded({key: values[key] for key in some}).items():
                entry = self._adopt(key, record, before[key])
                if entry.stored_at_s >= min_stored_at_s:
                    found[key] = entry
        if is_complete:
            self._offer_again(before)
        return found

    async def _await_pending(self, keys: Sequence[bytes]) -> None:
        """Give writes of ``keys`` that are under way as long as a read: they tell whose record was first."""
        writes = {self._pending[key][1] for key in keys if key in self._pending} if self._pending else None
        if writes and not self._store.is_slow:
            await asyncio.wait(writes, timeout=self._store.budget_for_s(keys))

    def _adopt(self, key: bytes, record: Record, before: Entry | None) -> Entry:
        """Take a record that was read from the store into memory, unless memory knows better; returns what counts.
        ``before`` is the entry that was there when the reading began."""
        held = self._held(key)
        if held is not None:
            # What has come meanwhile may have replaced in the store what was read.
            if held is not before:
                return held
            is_unsure = held.certainty in (Certainty.OFFERED, Certainty.REPLACED)
            if not is_unsure and held.stored_at_s >= record.stored_at_s:
                return held
        entry = Entry(record)
        self.memory.put(key, entry)
        if held is not None:
            held.give_way(entry)
        return entry

    def _offer_again(self, looked_up: Mapping[bytes, Entry | None]) -> None:
        """Write entries that the store does not have, though it works: it was down when they were written, or a bound
        on pending writes kept them from it."""
        oldest = self.freshness_cutoff_s(None)
        lacking = {
            key: entry
            for key, entry in looked_up.items()
            if entry is not None
            and not entry.is_confirmed
            and entry.stored_at_s >= oldest
            and key not in self._pending
            and self.memory.get(key) is entry  # nothing was found in its place
        }
        for overwrite in (False, True):
            entries = {
                key: entry for key, entry in lacking.items() if (entry.certainty is Certainty.REPLACING) is overwrite
            }
            fresh = {key: entry.record() for key, entry in entries.items()}
            if fresh and (writing := self._begin(entries, fresh, overwrite=overwrite, is_repeated=True)):
                self._pending.update((key, (entry, writing)) for key, entry in entries.items())

    # --- writing

    async def write(self, fresh: Mapping[bytes, Record], *, overwrite: bool) -> dict[bytes, Entry]:
        """Store ``fresh``; returns, for the same keys, the entries that now stand, which are the ones to serve.

        Without ``overwrite`` a record that is already there stays, unless it is expired or damaged. The budget ends the
        waiting, not the writing. Until the write has ended its entries are not confirmed. If it turns out that another
        record was first, that one takes their place in memory, and `Entry.standing` leads to it.
        """
        if self._store.is_none:
            return await self._keep(fresh, overwrite=overwrite)
        certainty = Certainty.REPLACING if overwrite else Certainty.OFFERED
        mine: dict[bytes, Entry] = {}
        async for some in _in_turns(list(fresh)):
            mine |= {key: Entry(fresh[key], certainty) for key in some}
        writing = self._begin(mine, fresh, overwrite=overwrite)
        if writing is not None and not self._store.is_slow:
            await asyncio.wait([writing], timeout=self._store.budget_for_s(mine))
        oldest = self.freshness_cutoff_s(None)
        for key, entry in mine.items():
            if entry.certainty is certainty and entry.standing is entry:
                self._hand_out(key, entry, oldest)
            if writing is not None and not writing.done():
                self._pending[key] = entry, writing
        return standing(mine)

    async def _keep(self, fresh: Mapping[bytes, Record], *, overwrite: bool) -> dict[bytes, Entry]:
        """Without a store the first entry in memory stays."""
        entries: dict[bytes, Entry] = {}
        async for some in _in_turns(list(fresh)):
            if not overwrite:
                entries |= self.peek(some, min_stored_at_s=self.freshness_cutoff_s(None))
            for key in some:
                if key not in entries:
                    entries[key] = Entry(fresh[key])
                    self.memory.put(key, entries[key])
        return entries

    def _hand_out(self, key: bytes, mine: Entry, oldest: float) -> None:
        """The store has not answered for ``mine``. Until it does, what is in memory already counts as the first."""
        held = self._held(key)
        if mine.certainty is Certainty.OFFERED and held is not None and held.stored_at_s >= oldest:
            mine.give_way(held)
        else:
            self.memory.put(key, mine)

    def _begin(
        self,
        entries: Mapping[bytes, Entry],
        fresh: Mapping[bytes, Record],
        *,
        overwrite: bool,
        is_repeated: bool = False,
    ) -> _Writing | None:
        """Write ``fresh``, of which ``entries`` are made, whoever waits for it; None if the store is not asked."""
        attempt = self._store.attempt_write(len(fresh), is_repeated=is_repeated)
        if attempt is None:
            return None
        offer = _Offer(
            attempt=attempt,
            entries=entries,
            values={key: records.encode(key, record, self._record_key) for key, record in fresh.items()},
            before={key: self._held(key) for key in entries},
            overwrite=overwrite,
            is_repeated=is_repeated,
        )
        self._store.backlog.began(offer.size)
        writing = self._writes.start(self._write(offer))
        writing.add_done_callback(partial(self._written, offer))
        return writing

    def _written(self, offer: _Offer, writing: _Writing) -> None:
        offer.attempt.end()  # for a task that was cancelled before its first step
        self._store.backlog.ended(offer.size)
        for key in offer.entries:
            if key in self._pending and self._pending[key][1] is writing:
                del self._pending[key]

    async def _write(self, offer: _Offer) -> None:
        """Write, and settle each entry by what the store says."""
        repeated = offer.is_repeated
        with offer.attempt as attempt:
            written = await self._store.put(offer.values, attempt, overwrite=offer.overwrite, is_repeated=repeated)
        spoilt = self._settle_all(offer, written, Certainty.REPLACED if offer.overwrite else Certainty.CONFIRMED)
        if not spoilt or (again := self._store.attempt_write(len(spoilt), is_repeated=repeated)) is None:
            return
        values = {key: offer.values[key] for key in spoilt}
        with again:
            written = await self._store.put(values, again, overwrite=False, is_repeated=repeated, spoilt=spoilt)
        self._settle_all(offer, written, Certainty.REPLACED)

    def _settle_all(self, offer: _Offer, written: Written, certainty: Certainty) -> dict[bytes, bytes]:
        """Settle the entries that the store has answered for; returns what is there and can't be served, being expired
        or damaged. ``certainty`` is that of what was accepted."""
        oldest = self.freshness_cutoff_s(None)
        decoded = self._decoded(written.standing)
        winners = {key: record for key, record in decoded.items() if record.stored_at_s >= oldest}
        for key, record in winners.items():
            self._settle(key, offer, Entry(record))
        for key in written.accepted:
            offer.entries[key].stand(certainty)
            self._settle(key, offer, offer.entries[key])
        self._invalid.replaced(written.accepted)
        return {key: value for key, value in written.standing.items() if key not in winners}

    def _settle(self, key: bytes, offer: _Offer, final: Entry) -> None:
        """The store has ``final``, as far as the answer to ``offer`` says."""
        mine, held = offer.entries[key], self._held(key)
        is_newer = held not in (mine, offer.before[key])
        if held is not None and is_newer and held.certainty is not Certainty.OFFERED and final.is_confirmed:
            # A read or a refresh has put it into memory since the write began, and what the answer says may be older.
            mine.give_way(held)
            return
        mine.give_way(final)
        if held is not None and not held.is_confirmed:
            held.give_way(final)
        self.memory.put(key, final)

    # --- both

    def _decoded(self, values: Mapping[bytes, bytes]) -> dict[bytes, Record]:
        decoded = {}
        for key, value in values.items():
            try:
                decoded[key] = self._dated(records.decode(key, value, self._record_key))
            except InvalidRecord as error:
                self._invalid.found(key, error.flaw)
        self._invalid.replaced(decoded)  # by another proxy, where one of them was invalid
        return decoded

    def _dated(self, record: Record) -> Record:
        """``record`` with an age that is possible by this machine's clock; it was stored by another machine's.

        It is not from the future. And if the store drops what is past its TTL, what it still has is not past it. So
        replicas whose clocks differ agree on whether there is a record.
        """
        now_s = self._clock()
        stored_at_s = min(record.stored_at_s, math.floor(now_s))
        if self._ttl_s is not None and self._store.expires:
            oldest_s = now_s - self._ttl_s
            if oldest_s - _MAX_CLOCK_SKEW_S <= stored_at_s < oldest_s:
                stored_at_s = math.ceil(oldest_s)
        elif record.stored_at_s > now_s + _MAX_CLOCK_SKEW_S:
            stored_at_s = 0  # this machine's clock was wrong then, and nothing else would ever end the record
        return record if stored_at_s == record.stored_at_s else replace(record, stored_at_s=stored_at_s)
