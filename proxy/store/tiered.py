"""The cache: the memory tier, and behind it a store that is never required."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from proxy import record as records
from proxy.breaker import Breaker, State
from proxy.errors import StoreError
from proxy.metrics import Metrics
from proxy.record import InvalidRecord, Record, RecordKey
from proxy.store.base import COOLDOWN_S, MAX_FAILURES, NoStore, Store
from proxy.store.invalid import InvalidRecords
from proxy.store.memory import Entry, Memory

_log = logging.getLogger(__name__)

_FIRST_BUDGET_S = 2.0
_NOBODYS_KEY = bytes(32)
# Reading and unpacking a record takes some 20 µs of this process, which may be busy with several batches.
_BUDGET_PER_KEY_S = 0.00025
# Writes that a slow store has not done yet. What comes on top is served and not stored.
_MAX_WRITING_BYTES = 64 * 1024**2
# Long enough that one late renewal loses nothing, short enough that a replica's death delays no one for long.
_LEASE_S = 3.0


class Cache:
    """Records under their keys. The first record written under a key stays, for every client of every replica."""

    def __init__(
        self,
        memory: Memory,
        store: Store,
        metrics: Metrics,
        *,
        ttl_s: float | None,
        budget_s: float,
        record_key: RecordKey | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.memory = memory
        self._record_key = record_key
        self._store = store
        self._has_store = not isinstance(store, NoStore)
        self._metrics = metrics
        self._invalid = InvalidRecords(metrics)
        self._ttl_s = ttl_s
        self._budget_s = budget_s
        self._clock = clock
        # A full or read-only Redis fails every write and serves every read: each direction has a circuit of its own.
        self._breakers = {
            operation: Breaker(
                max_failures=MAX_FAILURES,
                cooldown_s=COOLDOWN_S,
                clock=time.monotonic,
                on_change=partial(self._on_breaker, operation),
            )
            for operation in ("read", "write")
        }
        self._writing: set[asyncio.Task[dict[bytes, bytes]]] = set()
        self._writing_bytes = 0
        self._was_down = False  # when it was first tried, and ever since

    def oldest_fresh(self, max_age_s: float | None) -> float:
        """Unix time before which an entry was stored too long ago, by the TTL or by a request's ``max-age``."""
        if self._ttl_s is None and max_age_s is None:
            return 0.0
        return self._clock() - min(limit for limit in (self._ttl_s, max_age_s) if limit is not None)

    def peek(self, keys: Sequence[bytes], *, not_before: float) -> dict[bytes, Entry]:
        """What memory has of ``keys``, without waiting."""
        get = self.memory.get
        found = {}
        for key in keys:
            entry = get(key)
            if entry is not None and entry.stored_at_s >= not_before:
                found[key] = entry
        return found

    async def read(self, keys: Sequence[bytes], *, not_before: float) -> dict[bytes, Entry]:
        """What the store has of ``keys``, which are distinct; it goes into memory too."""
        if not keys or not self._has_store:
            return {}
        values = await self._get(keys)
        found = {}
        for key, record in self._decoded(values).items():
            # A refresh may have put a newer one there while the store was read, or when it could not be written.
            entry = self.memory.get(key)
            if entry is None or entry.stored_at_s < record.stored_at_s:
                entry = Entry(record)
                self.memory.put(key, entry)
            if entry.stored_at_s >= not_before:
                found[key] = entry
        return found

    async def write(self, fresh: Mapping[bytes, Record], *, overwrite: bool) -> dict[bytes, Entry]:
        """Store ``fresh``; returns, for the same keys, the records that now stand, which are the ones to serve.

        Without ``overwrite`` a record that is already there stays, unless it is expired or damaged.
        """
        standing = await self._put(fresh, overwrite=overwrite)
        not_before = self.oldest_fresh(None)
        winners = {key: record for key, record in self._decoded(standing).items() if record.stored_at_s >= not_before}
        spoilt = {key: fresh[key] for key in standing if key not in winners}
        if spoilt:
            await self._put(spoilt, overwrite=True)
        # Where the store named no winner, one that came into memory meanwhile was first.
        entries = {} if overwrite else self.peek([key for key in fresh if key not in winners], not_before=not_before)
        for key, record in fresh.items():
            if key not in entries:
                entries[key] = Entry(winners.get(key, record))
                self.memory.put(key, entries[key])
        return entries

    async def try_store(self) -> None:
        """Say so now if the store does not work, and not when somebody wonders where the hits are."""
        try:
            await self._store.get_many([_NOBODYS_KEY], budget_s=_FIRST_BUDGET_S)
        except StoreError as error:
            self._was_down = True
            _log.warning(
                "the store does not work (%s: %s); going on without it, and trying it with each request",
                error.reason,
                error,
            )

    async def _get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        breaker = self._breakers["read"]
        if not breaker.allows():
            self._metrics.store_errors.labels("read", "open").inc()
            return {}
        started = time.perf_counter()
        try:
            values = await self._store.get_many(keys, budget_s=self._budget_for(keys))
        except StoreError as error:
            self._count_failure("read", error)
            return error.found  # what had come by then is as good as any
        except BaseException:
            breaker.abandoned()
            raise
        finally:
            self._metrics.store_seconds["read"].observe(time.perf_counter() - started)
        breaker.succeeded()
        if self._was_down:
            self._was_down = False
            _log.warning("the store works now")
        return values

    async def _put(self, fresh: Mapping[bytes, Record], *, overwrite: bool) -> dict[bytes, bytes]:
        """The standing values of keys that were taken, if the store says so in time.

        The budget ends the waiting, not the writing: what was paid for should be stored. And there is no waiting where
        the store did not answer a moment ago.
        """
        if not self._has_store:
            return {}
        if not self._breakers["write"].allows():
            self._metrics.store_errors.labels("write", "open").inc()
            return {}
        values = {key: records.encode(key, record, self._record_key) for key, record in fresh.items()}
        size = sum(map(len, values.values()))
        if self._writing_bytes + size > _MAX_WRITING_BYTES:
            self._metrics.store_errors.labels("write", "busy").inc()
            self._metrics.store_seconds["write"].observe(0.0)  # a write that failed at once, as its error says
            self._breakers["write"].abandoned()
            return {}
        self._writing_bytes += size
        writing = asyncio.create_task(self._write(values, overwrite=overwrite))
        self._writing.add(writing)
        writing.add_done_callback(partial(self._written, size))
        if self._breakers["read"].is_troubled:
            return {}
        await asyncio.wait([writing], timeout=self._budget_for(values))
        return writing.result() if writing.done() else {}

    def _written(self, size: int, writing: "asyncio.Task[dict[bytes, bytes]]") -> None:
        self._writing_bytes -= size
        self._writing.discard(writing)
        if not writing.cancelled() and (error := writing.exception()) is not None:
            _log.error("a write of the store failed in a way nobody thought of", exc_info=error)

    async def _write(self, values: Mapping[bytes, bytes], *, overwrite: bool) -> dict[bytes, bytes]:
        started = time.perf_counter()
        try:
            standing = await self._store.put_many(values, ttl_s=self._ttl_s, overwrite=overwrite)
        except StoreError as error:
            self._count_failure("write", error)
            return error.found
        except BaseException:
            self._breakers["write"].abandoned()
            raise
        finally:
            self._metrics.store_seconds["write"].observe(time.perf_counter() - started)
        self._breakers["write"].succeeded()
        self._invalid.replaced(values.keys() - standing.keys())
        return standing

    def _budget_for(self, keys: Collection[bytes]) -> float:
        """Large batches get more: what can't be read in time is asked of the upstream, which takes longer still."""
        return self._budget_s + len(keys) * _BUDGET_PER_KEY_S

    def _count_failure(self, operation: str, error: StoreError) -> None:
        self._metrics.store_errors.labels(operation, error.reason).inc()
        # A pool without a free connection, or an answer of which a part came in time, says that much is asked of the
        # store, and that it is there. One node of a cluster is no reason to leave the others alone.
        if error.reason == "busy" or error.is_partial:
            self._breakers[operation].abandoned()
        else:
            self._last_failure = f"{error.reason}: {error}"
            self._breakers[operation].failed()

    @asynccontextmanager
    async def leasing(self) -> AsyncIterator["Lease"]:
        """Leases on keys that are to be fetched, renewed for as long as the block lasts and then given up."""
        lease = Lease(self._store, self._breakers, budget_s=self._budget_s)
        renewing = asyncio.create_task(lease.renew())
        try:
            yield lease
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])
            await lease.release()

    def _decoded(self, values: Mapping[bytes, bytes]) -> dict[bytes, Record]:
        decoded = {}
        for key, value in values.items():
            try:
                decoded[key] = records.decode(key, value, self._record_key)
            except InvalidRecord as error:
                self._invalid.found(key, error.flaw)
        self._invalid.replaced(decoded)  # by another proxy, where one of them was invalid
        return decoded

    def _on_breaker(self, operation: str, state: State) -> None:
        self._metrics.breaker(f"store_{operation}", state.value)
        if state is State.OPEN:
            _log.warning("store %ss fail (%s); going on without them", operation, self._last_failure)
        elif state is State.CLOSED:
            _log.warning("store %ss work again", operation)

    async def aclose(self) -> None:
        """Finish the writes under way, then close the store."""
        await asyncio.gather(*self._writing, return_exceptions=True)
        await self._store.aclose()


class Lease:
    """Keys that this replica alone fetches, as far as the others can tell. Who can't ask the store goes alone."""

    def __init__(self, store: Store, breakers: Mapping[str, Breaker], *, budget_s: float) -> None:
        self._store = store
        self._breakers = breakers
        self._budget_s = budget_s
        self._held: set[bytes] = set()
        self.is_real = False  # whether the store has had a say

    async def acquire(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of ``keys`` that are now ours to fetch, in their order."""
        if not keys or any(breaker.is_troubled for breaker in self._breakers.values()):
            return list(keys)
        try:
            async with asyncio.timeout(self._budget_s):
                granted = await self._store.lease_many(keys, ttl_s=_LEASE_S)
        except (StoreError, TimeoutError):
            return list(keys)
        self.is_real = True
        self._held |= granted
        return [key for key in keys if key in granted]

    async def renew(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_S / 3)
            await self._extend(_LEASE_S)

    async def release(self) -> None:
        await self._extend(0)

    async def _extend(self, ttl_s: float) -> None:
        if self._held:
            with suppress(StoreError, TimeoutError):  # it lapses by itself
                async with asyncio.timeout(self._budget_s):
                    await self._store.extend_many(self._held, ttl_s=ttl_s)
