"""How long a whole SQLite store takes into a Redis, as a multiple of reading its file.

Both in time and in CPU of the command; the file is in the system's cache for each. Redis runs beside it, so where cores
are busy only the CPU time says something.

    python -m bench.transfer [--items 1000000] [--dimensions 256]
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from proxy.cache.sqlite.store import SQLiteStore
from proxy.cli.progress import progress
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


class Took(NamedTuple):
    wall_s: float
    cpu_s: float
    max_rss_bytes: int

    def row(self, name: str, reading: "Took", items: int) -> str:
        return (
            f"{name:23} {self.wall_s:7.2f} s   {self.cpu_s:7.2f} s CPU   {self.wall_s / reading.wall_s:.0f} and"
            f" {self.cpu_s / reading.cpu_s:.0f} times as much   {self.cpu_s / items * 1e6:.0f} µs CPU an item"
            f"   {self.max_rss_bytes / 1024**2:,.0f} MiB RSS"
        )


def took(work: Callable[[], object]) -> Took:
    """What reading in this process takes; its RSS does not count."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - began_s, time.process_time() - began_cpu_s, 0)


def command(*arguments: str) -> tuple[dict[str, Any], Took]:
    """What a command says, as an operator runs it, and what it takes."""
    began_s = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "proxy", "cache", *arguments, "--json"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = orjson.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return said, Took(time.perf_counter() - began_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit_bytes)


async def fill_file(path: Path, items: int, dimensions: int) -> None:
    store = SQLiteStore(path, limit_bytes=2**50)
    try:
        await fill(store, items, dimensions)
    finally:
        await store.aclose()


def measure(folder: Path, items: int, dimensions: int) -> None:
    path = folder / "cache.sqlite3"
    asyncio.run(fill_file(path, items, dimensions))
    server = RedisServer(folder / "redis")
    try:
        read(path)
        reading = took(lambda: read(path))
        size_mib = path.stat().st_size / 1024**2
        print(f"{items:,} items of {dimensions} dimensions, a file of {size_mib:,.0f} MiB")
        print(f"reading the file        {reading.wall_s:7.2f} s   {reading.cpu_s:7.2f} s CPU")
        for name, key, arguments in (
            ("into Redis", "stored", ("copy", f"sqlite:///{path}", server.url)),
            ("again: all are there", "existing", ("copy", f"sqlite:///{path}", server.url)),
            ("into a file", "entries", ("export", str(folder / "entries"), "--store", f"sqlite:///{path}")),
        ):
            said, it = command(*arguments)
            assert said[key] == items, said
            print(it.row(name, reading, items), flush=True)
    finally:
        server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=256)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), given.items, given.dimensions)


if __name__ == "__main__":
    main()
