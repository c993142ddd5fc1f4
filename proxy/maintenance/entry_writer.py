"""Puts entries into a store, many at a time. Each keeps the rest of its TTL."""

import asyncio
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.cache.store import Store
from proxy.protocol import records
from proxy.protocol.records import InvalidRecord

_WRITES = 8  # at once
_TIMEOUT_S = 30.0


@dataclass(slots=True, kw_only=True)
class WrittenEntries:
    """What became of the entries."""

    stored: int = 0
    existing: int = 0  # left out, since the store has an entry of that key
    expired: int = 0  # left out, since they are older than the TTL
    invalid: Counter[str] = field(default_factory=Counter)  # left out, by flaw: they could never be served


class EntryWriter:
    """Existing entries stay, unless it ``overwrites``. An entry that is put twice is stored once."""

    def __init__(
        self, store: Store, *, now_s: float, ttl_s: float | None, overwrites: bool = False, is_dry_run: bool = False
    ) -> None:
        """``ttl_s`` is that of the proxies that use the store. It counts from when an entry was first stored in any
        store."""
        self._store = store
        self._now_s = now_s
        self._ttl_s = ttl_s
        self._overwrites = overwrites
        self._is_dry_run = is_dry_run
        self._writes: deque[asyncio.Task[None]] = deque()
        self.written = WrittenEntries()

    async def put(self, values: Mapping[bytes, bytes]) -> None:
        """Begin to store ``values``. Waits while enough are under way. Raises `StoreError`."""
        batch = self._valid(values)
        if not batch.values:
            return
        self._writes.append(asyncio.create_task(self._write(batch)))
        if len(self._writes) >= _WRITES:
            await self._writes.popleft()

    async def finish(self) -> WrittenEntries:
        """Wait until all is stored. Raises `StoreError`."""
        while self._writes:
            await self._writes.popleft()
        return self.written

    async def abandon(self) -> None:
        """End what is under way."""
        for write in self._writes:
            write.cancel()
        await asyncio.gather(*self._writes, return_exceptions=True)

    def _valid(self, values: Mapping[bytes, bytes]) -> "_Batch":
        """The values that may be served, with the seconds that each has left."""
        batch = _Batch()
        for key, value in values.items():
            try:
                record, _ = records.inspect(key, value)
            except InvalidRecord as error:
                self.written.invalid[error.flaw.value] += 1
                continue
            if self._ttl_s is not None:
                left_s = min(self._ttl_s, record.stored_at_s + self._ttl_s - self._now_s)
                if left_s <= 0:
                    self.written.expired += 1
                    continue
                batch.left_s[key] = left_s
            batch.values[key] = value
        return batch

    async def _write(self, batch: "_Batch") -> None:
        if self._is_dry_run:
            existing = set() if self._overwrites else await self._existing(list(batch.values))
        else:
            ttl_s = None if self._ttl_s is None else batch.left_s
            existing = set(await self._store.put_many(batch.values, ttl_s=ttl_s, overwrite=self._overwrites))
        self.written.existing += len(existing)
        self.written.stored += len(batch.values) - len(existing)

    async def _existing(self, keys: list[bytes]) -> set[bytes]:
        return set(await self._store.get_many(keys, timeout_s=_TIMEOUT_S))


class _Batch:
    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.left_s: dict[bytes, float] = {}
