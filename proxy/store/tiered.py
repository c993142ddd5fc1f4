"""The cache: the memory tier, and behind it a store that is never required."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from proxy import record as records
from proxy.errors import StoreError
from proxy.metrics import Metrics
from proxy.record import InvalidRecord, Record
from proxy.store.base import Store
from proxy.store.memory import Entry, Memory

_log = logging.getLogger(__name__)


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
        self._is_failing = {"read": False, "write": False}
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
        values: dict[bytes, bytes] = {}
        with self._guard("read", values):
            async with asyncio.timeout(self._budget_s):
                values.update(await self._store.get_many(keys))
        found = {}
        for key, record in self._decoded(values).items():
            entry = Entry(record)
            self.memory.put(key, entry)
            if record.stored_at_s >= not_before:
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
        entries = {}
        for key, record in fresh.items():
            entries[key] = entry = Entry(winners.get(key, record))
            self.memory.put(key, entry)
        return entries

    async def _put(self, fresh: Mapping[bytes, Record], *, overwrite: bool) -> dict[bytes, bytes]:
        values = {key: records.encode(key, record) for key, record in fresh.items()}
        standing: dict[bytes, bytes] = {}
        with self._guard("write", standing):
            # The budget ends the waiting, not the writing: what was paid for should be stored.
            writing = asyncio.create_task(self._store.put_many(values, ttl_s=self._ttl_s, overwrite=overwrite))
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)
            async with asyncio.timeout(self._budget_s):
                standing.update(await asyncio.shield(writing))
        return standing

    def _decoded(self, values: Mapping[bytes, bytes]) -> dict[bytes, Record]:
        decoded = {}
        for key, value in values.items():
            try:
                decoded[key] = records.decode(key, value)
            except InvalidRecord as error:
                self._metrics.store_invalid_records.labels(str(error)).inc()
        return decoded

    @contextmanager
    def _guard(self, operation: str, found: dict[bytes, bytes]) -> Iterator[None]:
        """Time a call of the store and turn its failure into what it had ``found``, a count, and one line of log."""
        started = time.perf_counter()
        try:
            yield
        except StoreError as error:
            found.update(error.found)
            self._failed(operation, error.reason, str(error))
        except TimeoutError:
            self._failed(operation, "timeout", f"no answer in {self._budget_s * 1000:.0f} ms")
        else:
            if self._is_failing[operation]:
                self._is_failing[operation] = False
                _log.warning("store %ss work again", operation)
        finally:
            self._metrics.store_seconds[operation].observe(time.perf_counter() - started)

    def _failed(self, operation: str, reason: str, message: str) -> None:
        self._metrics.store_errors.labels(operation, reason).inc()
        if not self._is_failing[operation]:
            self._is_failing[operation] = True
            _log.warning("store %ss fail (%s): %s; serving without them", operation, reason, message)

    async def aclose(self) -> None:
        """Finish the writes under way, then close the store."""
        await asyncio.gather(*self._writing, return_exceptions=True)
        await self._store.aclose()
