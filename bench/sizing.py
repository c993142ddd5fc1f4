"""The size of an item in each tier, and the hit rate of a tier by its size.

    python -m bench.sizing [TRACE.gz ...]

A trace has one item id per line, in request order. It is replayed against the memory tier, and against a real Redis
with each of its eviction policies, at sizes that hold a given percentage of the distinct items.
"""

import argparse
import asyncio
import gzip
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import numpy as np
from redis import Redis
from redis.exceptions import OutOfMemoryError

from proxy.cache.entry import Entry
from proxy.cache.memory import Memory
from proxy.cache.redis.store import RedisStore
from proxy.cache.sqlite.store import SQLiteStore
from proxy.protocol import records
from proxy.protocol.records import Record
from proxy.protocol.vectors import DType, Vector
from tests.support.redis_server import RedisServer

DIMENSIONS = (256, 512, 768, 1024, 1536, 3072)
ITEMS = 4096
SHARES = (1, 5, 10, 25, 50, 100)
POLICIES = ("allkeys-lru", "allkeys-lfu", "allkeys-random")
MOST_FOR_REDIS = 200_000  # of a trace: each request is a round trip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", type=Path)
    given = parser.parse_args()
    asyncio.run(weigh())
    for path in given.traces:
        with gzip.open(path, "rt") as lines:
            replay(path.name, [line.strip() for line in lines])


# --- the size of an item


async def weigh() -> None:
    print(f"bytes an item, over {ITEMS} of them\n")
    print(f"{'dims':>5} {'value':>6} {'Redis':>6} {'MEMORY USAGE':>13} {'SQLite':>7} {'memory':>7} {'with floats':>12}")
    for dimensions in DIMENSIONS:
        items = {key: record_of(key, dimensions) for key in (os.urandom(32) for _ in range(ITEMS))}
        values = {key: records.encode(key, its) for key, its in items.items()}
        value = len(next(iter(values.values())))
        redis, one = await in_redis(values)
        sqlite = await in_sqlite(values)
        entry = Entry.of(next(iter(items.values())))
        row = f"{dimensions:>5} {value:>6} {redis:>6.0f} {one:>13} {sqlite:>7.0f} {entry.weight_bytes:>7}"
        entry.numbers()
        print(f"{row} {entry.weight_bytes:>12}", flush=True)


def record_of(key: bytes, dimensions: int) -> Record:
    numbers = np.random.default_rng(int.from_bytes(key, "big")).standard_normal(dimensions)
    vector = Vector(DType.FLOAT32_SHORTEST, (numbers / np.linalg.norm(numbers)).astype("<f4").tobytes())
    model = "text-embedding-3-small"
    return Record(vector=vector, model=model, tokens=40, tokens_exact=True, stored_at_s=1_800_000_000)


async def in_redis(values: dict[bytes, bytes]) -> tuple[float, int]:
    """Bytes per item: of all memory that Redis uses, and by MEMORY USAGE of one item."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        try:
            client = Redis.from_url(server.url)
            store = RedisStore(server.url, timeout_s=30.0, max_connections=4)
            before = client.info("memory")["used_memory"]
            await store.put_many(values, ttl_s=None, overwrite=False)
            await store.aclose()
            used = client.info("memory")["used_memory"] - before
            one = cast("int", client.memory_usage(cast("bytes", client.randomkey())))
            client.close()
            return used / len(values), one
        finally:
            server.kill()


async def in_sqlite(values: dict[bytes, bytes]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.sqlite3"
        store = SQLiteStore(path, limit_bytes=2**40)
        await store.put_many(values, ttl_s=None, overwrite=False)
        await store.aclose()
        return path.stat().st_size / len(values)


# --- the hit rate by size


class _Weight:
    """An entry that has a weight and nothing else."""

    weight_bytes = 1000


def replay(name: str, ids: Sequence[str]) -> None:
    distinct = len(set(ids))
    print(
        f"\n{name}: {len(ids)} requests for {distinct} items, at best {1 - distinct / len(ids):.1%} hits; hits in % at"
    )
    print(f"{'':>14} " + " ".join(f"{share:>5}%" for share in SHARES) + " of the items")
    sizes = [max(1, distinct * share // 100) for share in SHARES]
    print(f"{'memory tier':>14} " + " ".join(f"{in_memory(ids, size):>6.1%}" for size in sizes), flush=True)
    some = ids[:MOST_FOR_REDIS]
    sizes = [max(1, len(set(some)) * share // 100) for share in SHARES]
    for policy in POLICIES:
        print(f"{policy:>14} " + " ".join(f"{rate:>6.1%}" for rate in in_small_redis(some, sizes, policy)), flush=True)


def in_memory(ids: Iterable[str], size: int) -> float:
    memory = Memory(size * _Weight.weight_bytes)
    entry = cast("Entry", _Weight())
    hits = asked = 0
    for asked, key in enumerate(map(str.encode, ids), 1):  # noqa: B007
        if memory.get(key) is not None:
            hits += 1
        else:
            memory.put(key, entry)
    return hits / asked


def in_small_redis(ids: Sequence[str], sizes: Sequence[int], policy: str) -> Iterable[float]:
    value = b"x" * 1000
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), "--maxmemory-policy", policy)
        try:
            client = Redis.from_url(server.socket_url)
            for size in sizes:
                client.config_set("maxmemory", 0)
                client.flushall()
                for number in range(size):
                    client.set(f"warm {number}", value)
                limit = client.info("memory")["used_memory"]
                client.flushall()
                client.config_set("maxmemory", limit)
                hits = 0
                for key in ids:
                    if client.get(key) is not None:
                        hits += 1
                    else:
                        with suppress(OutOfMemoryError):  # a client's buffer can be all the room there is
                            client.set(key, value)
                yield hits / len(ids)
            client.close()
        finally:
            server.kill()


if __name__ == "__main__":
    main()
