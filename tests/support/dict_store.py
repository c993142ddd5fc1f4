"""A store that a test can inspect, corrupt, fail and hang, and caches in front of it."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from proxy.cache.cache import Cache
from proxy.cache.entry import Entry
from proxy.cache.memory import Memory
from proxy.cache.store import NOTHING, TTL, Changes, Page, Purge, Store, Unleased
from proxy.errors import StoreError
from proxy.protocol import vectors
from proxy.protocol.records import Record
from proxy.telemetry.metrics import Metrics

PAGE = 4  # keys in a page of a scan
A, B, C = (bytes([n]) * 32 for n in range(3))


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def opened() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


class DictStore(Unleased):
    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.log: list[bytes] = []  # keys whose values were replaced
        self.purges: list[Purge] = []
        self._read_of_log = self._read_of_purges = 0
        self.failure: StoreError | None = None
        self.write_failure: StoreError | None = None
        self.gate = opened()  # to everything
        self.writes = opened()  # a write waits here before it is done,
        self.replies = opened()  # and here before its reply
        self.timeouts_s: list[float] = []

    async def get_many(self, keys: Sequence[bytes], *, timeout_s: float) -> dict[bytes, bytes]:
        self.timeouts_s.append(timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self.gate.wait()
        except TimeoutError:
            raise StoreError("timeout", "hangs") from None
        if self.failure:
            raise self.failure
        return {key: self.values[key] for key in keys if key in self.values}

    async def put_many(
        self,
        values: Mapping[bytes, bytes],
        *,
        ttl_s: TTL,
        overwrite: bool,
        invalid: Mapping[bytes, bytes] = NOTHING,
    ) -> dict[bytes, bytes]:
        await self.gate.wait()
        await self.writes.wait()
        if failure := self.failure or self.write_failure:
            raise failure
        existing = {key: self.values[key] for key in values if key in self.values and not overwrite}
        existing = {key: value for key, value in existing.items() if invalid.get(key) != value}
        self.log += values if overwrite else ()
        self.values.update({key: value for key, value in values.items() if key not in existing})
        await self.replies.wait()
        return existing

    async def scan(self, cursor: bytes = b"") -> Page:
        if self.failure:
            raise self.failure
        keys = sorted(key for key in self.values if key > cursor)[:PAGE]
        return Page({key: self.values[key] for key in keys}, keys[-1] if len(keys) == PAGE else None)

    async def delete_many(self, keys: Collection[bytes]) -> int:
        await self.gate.wait()
        if failure := self.failure or self.write_failure:
            raise failure
        self.log += keys
        return sum(self.values.pop(key, None) is not None for key in keys)

    async def announce_purge(self, purge: Purge) -> None:
        self.purges.append(purge)

    async def changes(self) -> Changes:
        if self.failure:
            raise self.failure
        new, purges = self.log[self._read_of_log :], self.purges[self._read_of_purges :]
        self._read_of_log += len(new)
        self._read_of_purges += len(purges)
        keys = {key for purge in purges for key in purge.keys}
        return Changes(set(new), purge=Purge(keys, {models for purge in purges for models in purge.models}))

    def of_another_process(self) -> "DictStore":
        """The same store, as another process has it open."""
        other = type(self)()
        other.values, other.log, other.purges = self.values, self.log, self.purges
        return other

    async def aclose(self) -> None:
        return None


class ExpiringStore(DictStore):
    """One that drops values by its own clock, as Redis does; a test drops them in its place."""

    expires = True


def record(number: float = 1.0, at: float = Clock.now, model: str = "m", scope: bytes = b"") -> Record:
    vector = vectors.from_numbers([number, 0.5])
    return Record(vector=vector, model=model, tokens=1, tokens_exact=True, stored_at_s=int(at), scope=scope)


def make_cache(
    store: Store,
    clock: Clock | None = None,
    ttl_s: float | None = None,
    timeout_s: float = 5.0,
    metrics: Metrics | None = None,
    memory_bytes: int = 1_000_000,
    monotonic: Callable[[], float] = time.monotonic,
) -> Cache:
    metrics = metrics or Metrics()
    return Cache(
        Memory(memory_bytes), store, metrics, ttl_s=ttl_s, timeout_s=timeout_s, clock=clock or Clock(),
        monotonic=monotonic,
    )  # fmt: skip


def served(entries: Mapping[bytes, Entry]) -> dict[bytes, bytes]:
    return {key: entry.numbers() for key, entry in entries.items()}


async def look_up(cache: Cache, *keys: bytes) -> dict[bytes, bytes]:
    """What a request is served of ``keys`` without the upstream."""
    min_stored_at_s = cache.freshness_cutoff_s(None)
    found = cache.peek_confirmed(keys, min_stored_at_s=min_stored_at_s).found
    missing = [key for key in keys if key not in found]
    if missing:
        found |= await cache.read(missing, min_stored_at_s=min_stored_at_s) | cache.peek(
            missing, min_stored_at_s=min_stored_at_s
        )
    return served(found)


async def written(cache: Cache) -> None:
    """Until no write is under way."""
    await cache._writer.tasks.join()
