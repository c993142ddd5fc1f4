"""The cache: the memory tier, and behind it a store that is never required."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from proxy import record as records
from proxy.breaker import Breaker, State
from proxy.errors import StoreError
from proxy.metrics import Metrics
from proxy.record import InvalidRecord, Record
from proxy.store.base import Store
from proxy.store.memory import Entry, Memory

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_MAX_FAILURES = 5
_COOLDOWN_S = 1.0
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.memory = memory
        self._store = store
        self._metrics = metrics
        self._ttl_s = ttl_s
        self._budget_s = budget_s
        self._clock = clock
        # A full or read-only Redis fails every write and serves every read: each direction has a circuit of its own.
        self._breakers = {
            operation: Breaker(
                max_failures=_MAX_FAILURES,
                cooldown_s=_COOLDOWN_S,
                clock=time.monotonic,
                on_change=partial(self._on_breaker, operation),
            )
            for operation in ("read", "write")
        }
        self._writing: set[asyncio.Task[dict[bytes, bytes]]] = set()

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
        if not keys:
            return {}
        nothing: dict[bytes, bytes] = {}
        values = await self._try("read", partial(self._store.get_many, keys), otherwise=nothing)
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

    async def _put(self, fresh: Mapping[bytes, Record], *, overwrite: bool) -> dict[bytes, bytes]:
        values = {key: records.encode(key, record) for key, record in fresh.items()}

        async def put() -> dict[bytes, bytes]:
            # The budget ends the waiting, not the writing: what was paid for should be stored.
            writing = asyncio.create_task(self._store.put_many(values, ttl_s=self._ttl_s, overwrite=overwrite))
            self._writing.add(writing)
            writing.add_done_callback(self._written)
            return await asyncio.shield(writing)

        return await self._try("write", put, otherwise={})

    def _written(self, writing: "asyncio.Task[dict[bytes, bytes]]") -> None:
        self._writing.discard(writing)
        if not writing.cancelled():
            writing.exception()  # whoever still waited has it too

    @asynccontextmanager
    async def leasing(self) -> AsyncIterator["Lease"]:
        """Leases on keys that are to be fetched, renewed for as long as the block lasts and then given up."""
        lease = Lease(self._lease, self._extend)
        renewing = asyncio.create_task(lease.renew())
        try:
            yield lease
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])
            await lease.release()

    async def _lease(self, keys: Sequence[bytes]) -> set[bytes]:
        """Whoever can't ask the store goes alone; whoever can't read it would look for another's result in vain."""
        if self._breakers["read"].state is not State.CLOSED:
            return set(keys)
        lease = partial(self._store.lease_many, keys, ttl_s=_LEASE_S)
        return await self._try("write", lease, otherwise=set(keys))

    async def _extend(self, keys: Sequence[bytes], ttl_s: float) -> None:
        await self._try("write", partial(self._store.extend_many, keys, ttl_s=ttl_s), otherwise=None)

    def _decoded(self, values: Mapping[bytes, bytes]) -> dict[bytes, Record]:
        decoded = {}
        for key, value in values.items():
            try:
                decoded[key] = records.decode(key, value)
            except InvalidRecord as error:
                self._metrics.store_invalid_records.labels(str(error)).inc()
        return decoded

    async def _try(self, operation: str, ask: Callable[[], Awaitable[_T]], *, otherwise: _T) -> _T:
        """Ask the store, within the budget and if the circuit allows; what goes wrong is counted and costs no more."""
        breaker = self._breakers[operation]
        if not breaker.allows():
            self._metrics.store_errors.labels(operation, "open").inc()
            return otherwise
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._budget_s):
                answer = await ask()
        except StoreError as error:
            self._metrics.store_errors.labels(operation, error.reason).inc()
            if error.reason == "busy":  # says that much is asked of us, and nothing about the store
                breaker.abandoned()
            else:
                self._failed(operation, f"{error.reason}: {error}")
            # What it had found by then is as good as any.
            return error.found or otherwise  # type: ignore[return-value]
        except TimeoutError:
            self._metrics.store_errors.labels(operation, "timeout").inc()
            self._failed(operation, f"timeout: no answer in {self._budget_s * 1000:.0f} ms")
            return otherwise
        except BaseException:
            breaker.abandoned()
            raise
        finally:
            self._metrics.store_seconds[operation].observe(time.perf_counter() - started)
        breaker.succeeded()
        return answer

    def _failed(self, operation: str, why: str) -> None:
        self._last_failure = why
        self._breakers[operation].failed()

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
    """Keys that this replica alone fetches, as far as the others can tell."""

    def __init__(
        self,
        lease: Callable[[Sequence[bytes]], Awaitable[set[bytes]]],
        extend: Callable[[Sequence[bytes], float], Awaitable[None]],
    ) -> None:
        self._lease = lease
        self._extend = extend
        self._held: set[bytes] = set()

    async def acquire(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of ``keys`` that are now ours to fetch, in their order."""
        if not keys:
            return []
        granted = await self._lease(keys)
        self._held |= granted
        return [key for key in keys if key in granted]

    async def renew(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_S / 3)
            if self._held:
                await self._extend(list(self._held), _LEASE_S)

    async def release(self) -> None:
        if self._held:
            await self._extend(list(self._held), 0)
