"""Work on stores in a process of its own, which a test kills."""

import asyncio
from multiprocessing.connection import Connection
from pathlib import Path

from proxy.cache.redis.store import RedisStore
from proxy.cache.sqlite.store import SQLiteStore
from proxy.cache.store import Store
from proxy.maintenance import transfer
from proxy.maintenance.entry_writer import EntryWriter


def run(work: str, folder: Path, redis_url: str | None, moves: Connection) -> None:
    """Do ``work`` between the files of a folder, or from these to Redis. Tells each move, by which a test knows how far
    it is."""
    asyncio.run(_run(work, folder, redis_url, moves))


async def _run(work: str, folder: Path, redis_url: str | None, moves: Connection) -> None:
    source = SQLiteStore(folder / "source", limit_bytes=64 * 1024**2)
    target: Store = SQLiteStore(folder / "target", limit_bytes=64 * 1024**2)
    if redis_url is not None:
        target = RedisStore(redis_url, timeout_s=10.0, max_connections=32)
    writer = EntryWriter(target, now_s=0.0, ttl_s=None)

    def advance(_: int) -> None:
        moves.send_bytes(b".")

    match work:
        case "export":
            await transfer.export(source, folder / "file", origin="source", advance=advance)
        case "import":
            await transfer.import_(folder / "whole", writer, advance=advance)
        case "copy":
            await transfer.copy(source, writer, advance=advance)
    moves.send_bytes(b"end")
    await source.aclose()
    await target.aclose()
