"""Killed at any point (SIGKILL) and run again, a command has lost and doubled nothing."""

import multiprocessing
import random
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from proxy.cache.redis.store import RedisStore
from proxy.cache.sqlite.store import SQLiteStore
from proxy.maintenance import transfer
from proxy.maintenance.archive import parts_of
from proxy.maintenance.archive_format import Entry
from proxy.protocol import records
from tests.cache.test_store import scanned
from tests.maintenance import interrupted
from tests.support.dict_store import key_of, record
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.redis_server import RedisServer

KILLS = 200 if IS_SLOW_PROFILE else 34  # of each command, so that there are 100 in all
COUNT = 3000
VALUES = {key_of(n): records.encode(key_of(n), record(float(n))) for n in range(COUNT)}
REDIS_KILLS = 100 if IS_SLOW_PROFILE else 20
_ENDED = b"end"


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Starts a process in milliseconds, since the server has imported what it needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.maintenance.interrupted"])
    return context


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """With a store, and a whole export of it."""
    source = SQLiteStore(tmp_path / "source", limit_bytes=64 * 1024**2)
    for start in range(0, COUNT, 500):
        keys = list(VALUES)[start : start + 500]
        await source.put_many({key: VALUES[key] for key in keys}, ttl_s=None, overwrite=False)
    await transfer.export(source, tmp_path / "whole", origin="source", advance=lambda _: None)
    await source.aclose()
    return tmp_path


def run_and_kill(
    processes: ForkServerContext, work: str, folder: Path, moves: int, *, redis_url: str | None = None
) -> bool:
    """Kill it after so many moves, wherever it is by then. Returns whether it had ended."""
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=interrupted.run, args=(work, folder, redis_url, sender))
    process.start()
    sender.close()
    told = b""
    try:
        for _ in range(moves):
            told = receiver.recv_bytes()
    except EOFError:
        pass
    process.kill()
    process.join()
    receiver.close()
    return told == _ENDED


async def stored(path: Path) -> dict[bytes, bytes]:
    store = SQLiteStore(path, limit_bytes=64 * 1024**2)
    try:
        return await scanned(store)
    finally:
        await store.aclose()


@pytest.mark.parametrize("work", ["import", "copy"])
async def test_a_store_gets_every_entry_once(processes: ForkServerContext, folder: Path, work: str) -> None:
    chance, kills = random.Random(work), 0
    while kills < KILLS:
        for path in folder.glob("target*"):
            path.unlink()
        while not run_and_kill(processes, work, folder, chance.randint(1, 18)) and kills < KILLS:
            kills += 1
            found = await stored(folder / "target")
            assert found.items() <= VALUES.items()
        assert run_and_kill(processes, work, folder, 10_000)
        assert await stored(folder / "target") == VALUES


async def in_redis(url: str) -> dict[bytes, bytes]:
    store = RedisStore(url, timeout_s=10.0, max_connections=8)
    try:
        return await scanned(store)
    finally:
        await store.aclose()


@pytest.mark.parametrize("work", ["import", "copy"])
async def test_redis_gets_every_entry_once(
    processes: ForkServerContext, folder: Path, redis_server: RedisServer, work: str
) -> None:
    url, chance, kills = redis_server.url, random.Random(work), 0
    while kills < REDIS_KILLS:
        redis_server.command("FLUSHALL")
        while not run_and_kill(processes, work, folder, chance.randint(1, 18), redis_url=url) and kills < REDIS_KILLS:
            kills += 1
            assert (await in_redis(url)).items() <= VALUES.items()
        assert run_and_kill(processes, work, folder, 10_000, redis_url=url)
        assert await in_redis(url) == VALUES


async def test_a_file_gets_every_entry_once(processes: ForkServerContext, folder: Path) -> None:
    chance, kills = random.Random(1), 0
    while kills < KILLS:
        (folder / "file").unlink(missing_ok=True)
        while not run_and_kill(processes, "export", folder, chance.randint(1, 10)) and kills < KILLS:
            kills += 1
            if (folder / "file").exists():  # killed after the last page, when the file had its name
                break
        assert (folder / "file").exists() or run_and_kill(processes, "export", folder, 10_000)
        found = [(part.key, part.value) for part in parts_of(folder / "file") if isinstance(part, Entry)]
        assert found == list(VALUES.items())
