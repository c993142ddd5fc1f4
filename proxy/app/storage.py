"""The cache of a proxy, with the store that the settings name."""

from collections.abc import Callable
from pathlib import Path

from proxy.cache.cache import Cache
from proxy.cache.entry import Entry
from proxy.cache.memory import Memory
from proxy.cache.sqlite.recognition import other_than_store
from proxy.cache.sqlite.store import SQLiteStore
from proxy.cache.store import CounterStore, NoStore, Store
from proxy.config.settings import Settings, StoreSetting
from proxy.errors import ConfigError
from proxy.protocol.records import RecordKey
from proxy.telemetry.metrics import Metrics

_REDIS_CONNECTIONS = 32
# A connection without a reply for this long counts as dead; a write may take as long. A request waits only for
# `settings.store_timeout_s`.
_REDIS_TIMEOUT_S = 1.0


def open_cache(
    settings: Settings, metrics: Metrics, *, clock: Callable[[], float], monotonic: Callable[[], float]
) -> tuple[Cache, CounterStore | None]:
    """The cache, and its store if that has counters. Raises `ConfigError` if its file is another program's."""
    if settings.store.path is not None and (other := other_than_store(settings.store.path)):
        raise ConfigError(
            f"--store {settings.store}: this is {other} and no store; left unchanged;"
            " accepted: the file of a store, or a path without a file"
        )
    observe = metrics.memory_evicted_age.labels().observe

    def on_evicted(entry: Entry) -> None:
        age_s = clock() - entry.source.stored_at_s
        observe(max(0.0, age_s))

    memory = Memory(settings.memory_bytes, on_evicted=on_evicted)
    metrics.watch_memory(
        size_bytes=lambda: memory.bytes, entries=lambda: memory.entries, limit_bytes=settings.memory_bytes
    )
    store = open_store(settings.store, settings.store_limit_bytes, clock)
    cache = Cache(
        memory,
        store,
        metrics,
        ttl_s=settings.ttl_s,
        timeout_s=settings.store_timeout_s,
        record_key=None if settings.record_key is None else RecordKey(settings.record_key),
        clock=clock,
        monotonic=monotonic,
    )
    return cache, store if isinstance(store, CounterStore) else None


def open_store(
    setting: StoreSetting,
    limit_bytes: int,
    clock: Callable[[], float],
    *,
    redis_timeout_s: float = _REDIS_TIMEOUT_S,
    replaces_damaged: bool = True,
) -> Store:
    """``limit_bytes`` and ``replaces_damaged`` are for a SQLite file."""
    match setting:
        case StoreSetting(path=Path() as path):
            return SQLiteStore(path, limit_bytes=limit_bytes, clock=clock, replaces_damaged=replaces_damaged)
        case StoreSetting(url=str(url)):
            # Imported only here: redis-py is slow to import, and imports OpenTelemetry if that is installed.
            from proxy.cache.redis.store import RedisStore  # noqa: PLC0415

            return RedisStore(url, timeout_s=redis_timeout_s, max_connections=_REDIS_CONNECTIONS)
    return NoStore()
