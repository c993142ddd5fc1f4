"""Items per second from one Redis and from a cluster of three, and the size of an item in Redis.

Concurrent readers call the store directly, without HTTP and without the memory tier; the two take turns, and the
medians are compared. One process reads, so a cluster is no faster here: the ratio is the cost of several nodes.

    python -m bench.stores [--seconds 2] [--rounds 5]
"""

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.sizing import record_of
from proxy.cache.redis.store import RedisStore
from proxy.protocol import records
from tests.support.redis_cluster import RedisCluster, ask
from tests.support.redis_server import RedisServer

DIMENSIONS = 1536
ITEMS = 2048
MAX_VALUE_BYTES, MAX_MEMORY_BYTES = 6144 + 160, 7400


@dataclass(frozen=True)
class Row:
    items: int  # in a request
    readers: int


ROWS = [Row(1, 32), Row(16, 8), Row(256, 2), Row(2048, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="length of one run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each row; the median is shown")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder) / "one")
        cluster = RedisCluster(Path(folder), masters=3)
        try:
            uvloop.run(measure(server.url, cluster.url, given.seconds, given.rounds))
            weigh(server)
        finally:
            server.kill()
            cluster.kill()


async def measure(one: str, several: str, seconds: float, rounds: int) -> None:
    stores = [RedisStore(url, timeout_s=5.0, max_connections=32) for url in (one, several)]
    values = {key: records.encode(key, record_of(key, DIMENSIONS)) for key in (os.urandom(32) for _ in range(ITEMS))}
    for store in stores:
        await store.put_many(values, ttl_s=None, overwrite=False)
    print(f"{DIMENSIONS}-d; items/s from the store, medians of {rounds} runs of {seconds} s\n")
    print(f"{'items':>5} {'readers':>7} {'one':>8} {'cluster':>8} {'ratio':>6}")
    for row in ROWS:
        runs: list[list[float]] = [[], []]
        for _ in range(rounds):
            for store, counts in zip(stores, runs, strict=True):
                counts.append(await load(store, list(values), row, seconds))
        alone, together = map(statistics.median, runs)
        print(f"{row.items:>5} {row.readers:>7} {alone:>8.0f} {together:>8.0f} {together / alone:>6.2f}", flush=True)
    for store in stores:
        await store.aclose()


async def load(store: RedisStore, keys: list[bytes], row: Row, seconds: float) -> float:
    """Items per second."""
    end = time.perf_counter() + seconds
    count = 0

    async def read() -> None:
        nonlocal count
        while time.perf_counter() < end:
            found = await store.get_many(random.sample(keys, row.items), timeout_s=5.0)
            assert len(found) == row.items
            count += row.items

    started = time.perf_counter()
    await asyncio.gather(*(read() for _ in range(row.readers)))
    return count / (time.perf_counter() - started)


def weigh(server: RedisServer) -> None:
    name = ask(server, "RANDOMKEY")
    value, memory = ask(server, "STRLEN", name), ask(server, "MEMORY", "USAGE", name, "SAMPLES", 0)
    print(f"\na {DIMENSIONS}-d item: value {value} bytes (aim {MAX_VALUE_BYTES}),", end=" ")
    print(f"MEMORY USAGE {memory} bytes (aim {MAX_MEMORY_BYTES})")


if __name__ == "__main__":
    main()
