"""When every process that shares a store serves what was refreshed, or no longer serves what was purged.

Two proxies, or the workers of one, have a text in memory. Then its vector changes at the upstream, and it is refreshed
through one of them, or purged by the command. From one second after that, each must serve the new vector only: as many
reads of each as --reads says, over new connections, so that the workers have their turns. The last rows are under load,
with Redis killed and started again (empty); there a refresh during the outage counts from when Redis is back, when the
proxies first have to find that out.

    python -m bench.coherence [--reads 1000]
"""

import argparse
import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from aiohttp import ClientError, ClientSession, TCPConnector, web

from tests.support.process import Process
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted import Call, ScriptedUpstream

TEXT = "the text"
BOUND_S, BOUND_AFTER_OUTAGE_S = 1.0, 3.0
OUTAGE_S = 3.0
READS_A_CONNECTION = 50
LOAD = 4  # clients
KEY = {"Authorization": "Bearer sk-test"}


class Row(NamedTuple):
    what: str
    new_after_s: float  # when the last process first served the new vector
    old_reads: int  # after the bound
    reads: int
    failed: int

    def __str__(self) -> str:
        return (
            f"{self.what:42} all new after {self.new_after_s:5.2f} s; then {self.reads:,} reads,"
            f" {self.old_reads} of the old vector, {self.failed} failed"
        )


class Upstream:
    """Its vectors begin with the number of times that they changed."""

    def __init__(self, scripted: ScriptedUpstream) -> None:
        self.version = 1
        self.base_url = scripted.base_url
        self._scripted = scripted
        scripted.reply = self._reply

    def _reply(self, call: Call) -> web.Response:
        data = [{"index": index, "embedding": [float(self.version), 0.5]} for index, _ in enumerate(call.items)]
        return self._scripted.embed(call, data=data)


async def ask(session: ClientSession, process: Process, text: str = TEXT, **headers: str) -> float:
    """The number with which the vector begins."""
    body = {"model": "m", "input": text, "encoding_format": "float"}
    async with session.post(f"{process.base_url}/embeddings", json=body, headers=KEY | headers) as response:
        response.raise_for_status()
        return float((await response.json())["data"][0]["embedding"][0])


@asynccontextmanager
async def connection() -> AsyncIterator[ClientSession]:
    """A new one, which the kernel gives to any of the workers."""
    async with ClientSession(connector=TCPConnector(limit=1)) as session:
        yield session


async def versions(process: Process, reads: int, *, each: int = READS_A_CONNECTION) -> list[float]:
    """Those of ``reads``, so many on ``each`` connection."""
    found = []
    for start in range(0, reads, each):
        async with connection() as session:
            found += [await ask(session, process) for _ in range(min(each, reads - start))]
    return found


async def agreed(what: str, processes: list[Process], new: float, reads: int, *, began_s: float, bound_s: float) -> Row:
    """Watches when all have the new vector, and from the bound on whether each read is of it."""
    failed, last_old_s = 0, began_s
    while time.monotonic() < began_s + bound_s:
        for process in processes:
            asked_s = time.monotonic()
            if any(version != new for version in await versions(process, 4, each=1)):
                last_old_s = asked_s
        await asyncio.sleep(0.01)
    found = [version for process in processes for version in await versions(process, reads)]
    old = sum(version != new for version in found)
    return Row(what, last_old_s - began_s, old, len(found), failed)


async def refreshed(name: str, processes: list[Process], upstream: Upstream, reads: int) -> Row:
    await known(processes)
    upstream.version += 1
    async with connection() as session:
        await ask(session, processes[0], **{"Cache-Control": "no-cache"})
    began_s = time.monotonic()
    return await agreed(f"{name}, refreshed", processes, upstream.version, reads, began_s=began_s, bound_s=BOUND_S)


async def purged(name: str, processes: list[Process], upstream: Upstream, store: str, reads: int) -> Row:
    await known(processes)
    upstream.version += 1
    command = [sys.executable, "-m", "proxy", "cache", "purge", "--all", "--store", store]
    await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
    began_s = time.monotonic()
    return await agreed(f"{name}, purged", processes, upstream.version, reads, began_s=began_s, bound_s=BOUND_S)


async def known(processes: list[Process]) -> None:
    """Every process has the text in memory."""
    for process in processes:
        await versions(process, 60, each=3)


class Load:
    """Clients whose texts are partly new, so that the store has reads and writes."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
        self.failed = self.requests = 0
        self._is_over = False

    async def _work(self, number: int) -> None:
        serial = 0
        async with connection() as session:
            while not self._is_over:
                serial += 1
                process = self._processes[serial % len(self._processes)]
                text = TEXT if serial % 2 else f"{number} {serial}"
                self.requests += 1
                try:
                    await ask(session, process, text)
                except (OSError, ClientError):
                    self.failed += 1
                await asyncio.sleep(0.005)

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        working = [asyncio.create_task(self._work(number)) for number in range(LOAD)]
        try:
            yield
        finally:
            self._is_over = True
            await asyncio.gather(*working)


async def outage(server: RedisServer, processes: list[Process], upstream: Upstream, reads: int) -> list[Row]:
    """Redis is killed under load; the text is refreshed through one proxy meanwhile, and again when Redis is back."""
    load, found = Load(processes), list[Row]()
    await known(processes)
    async with load.going_on():
        server.kill()
        await asyncio.sleep(OUTAGE_S / 2)
        upstream.version += 1
        async with connection() as session:
            await ask(session, processes[0], **{"Cache-Control": "no-cache"})
        await asyncio.sleep(OUTAGE_S / 2)
        await asyncio.to_thread(server.restart)
        began_s, version = time.monotonic(), upstream.version
        name = "Redis killed, refreshed meanwhile, back"
        found.append(await agreed(name, processes, version, reads, began_s=began_s, bound_s=BOUND_AFTER_OUTAGE_S))
        found.append(await refreshed("Redis back, under load", processes, upstream, reads))
        found.append(await purged("Redis back, under load", processes, upstream, server.url, reads))
    return [row._replace(failed=load.failed) for row in found]


@contextmanager
def proxies(folder: Path, upstream: Upstream, store: str, *, count: int, workers: int) -> Iterator[list[Process]]:
    started: list[Process] = []
    try:
        for _ in range(count):
            given = ("--upstream", upstream.base_url, "--store", store, "--workers", str(workers))
            started.append(Process(folder, free_port(), *given))
        yield started
    finally:
        for process in started:
            process.stop(signal.SIGTERM)


async def rows(folder: Path, reads: int) -> AsyncIterator[Row]:
    async with AsyncExitStack() as stack:
        scripted = await stack.enter_async_context(ScriptedUpstream().serving())
        one = RedisServer(folder / "one")
        stack.callback(one.kill)
        cluster = RedisCluster(folder, masters=3)
        stack.callback(cluster.kill)
        for name, store, count, workers in (
            ("two proxies on Redis", one.url, 2, 1),
            ("two proxies on a cluster", cluster.url, 2, 1),
            ("two proxies on SQLite", f"sqlite:///{folder}/two.sqlite3", 2, 1),
            ("--workers 2 on SQLite", f"sqlite:///{folder}/workers.sqlite3", 1, 2),
            ("--workers 2 on Redis", f"{one.url.removesuffix('0')}1", 1, 2),
        ):
            upstream = Upstream(scripted)
            with proxies(folder, upstream, store, count=count, workers=workers) as processes:
                yield await refreshed(name, processes, upstream, reads)
                yield await purged(name, processes, upstream, store, reads)
        upstream = Upstream(scripted)
        with proxies(folder, upstream, one.url, count=2, workers=1) as processes:
            for row in await outage(one, processes, upstream, reads):
                yield row


async def measure(folder: Path, reads: int) -> bool:
    """Whether every read was of the new vector."""
    is_coherent = True
    async for row in rows(folder, reads):
        print(row, flush=True)
        is_coherent &= not row.old_reads and not row.failed
    return is_coherent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=int, default=1000, help="reads of each process after the bound")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(0 if asyncio.run(measure(Path(folder), given.reads)) else 1)


if __name__ == "__main__":
    main()
