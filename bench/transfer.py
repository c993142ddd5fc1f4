"""How long a whole SQLite store takes into a Redis, as a multiple of reading its file.

Both in time and in CPU of this process; the file is in the system's cache for each. Redis runs beside it, so where
cores are busy only the CPU time says something.

    python -m bench.transfer [--items 1000000] [--dimensions 256]
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from proxy.cache.redis.store import RedisStore
from proxy.cache.sqlite.store import SQLiteStore
from proxy.cli.progress import progress
from proxy.maintenance import transfer
from proxy.maintenance.loader import Loader
from proxy.protocol import records
from proxy.protocol.records import Record
from proxy.protocol.vectors import DType, Vector
from tests.support.redis_server import RedisServer

_PIECE_BYTES = 1024**2
_AT_ONCE = 1000


async def fill(store: SQLiteStore, items: int, dimensions: int) -> None:
    now_s = int(time.time())
    vector = Vector(DType.FLOAT32, os.urandom(4 * dimensions))
    record = Record(vector=vector, model="text-embedding-3-small", tokens=12, tokens_exact=True, stored_at_s=now_s)
    with progress("filling", items) as advance:
        for _ in range(0, items, _AT_ONCE):
            keys = [os.urandom(32) for _ in range(_AT_ONCE)]
            await store.put_many({key: records.encode(key, record) for key in keys}, ttl_s=None, overwrite=False)
            advance(_AT_ONCE)


def read(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(_PIECE_BYTES):
            pass


async def timed(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await work()
    return time.perf_counter() - began_s, time.process_time() - began_cpu_s


async def measure(folder: Path, items: int, dimensions: int) -> None:
    async with AsyncExitStack() as stack:
        path = folder / "cache.sqlite3"
        source = SQLiteStore(path, limit_bytes=2**50)
        stack.push_async_callback(source.aclose)
        await fill(source, items, dimensions)
        server = RedisServer(folder / "redis")
        stack.callback(server.kill)
        target = RedisStore(server.url, timeout_s=30.0, max_connections=32)
        stack.push_async_callback(target.aclose)

        async def read_file() -> None:
            read(path)

        async def copy() -> None:
            with progress("copying", items) as advance:
                loader = Loader(target, now_s=time.time(), ttl_s=None)
                loaded = await transfer.copy(source, loader, advance=advance)
            assert loaded.stored == items

        async def export() -> None:
            with progress("exporting", items) as advance:
                await transfer.export(source, folder / "entries", origin="bench", advance=advance)

        await read_file()
        file_s, file_cpu_s = await timed(read_file)
        size_mib = path.stat().st_size / 1024**2
        print(f"{items:,} items of {dimensions} dimensions, a file of {size_mib:,.0f} MiB")
        print(f"reading the file        {file_s:7.2f} s   {file_cpu_s:7.2f} s CPU")
        for name, work in (("into a file", export), ("into Redis", copy)):
            took_s, cpu_s = await timed(work)
            each_us = cpu_s / items * 1e6
            print(
                f"{name:23} {took_s:7.2f} s   {cpu_s:7.2f} s CPU   {took_s / file_s:.0f} and {cpu_s / file_cpu_s:.0f}"
                f" times as much   {each_us:.0f} µs CPU an item"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=256)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), given.items, given.dimensions))


if __name__ == "__main__":
    main()
