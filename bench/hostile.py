"""What clients that mean no good, or are too many, cost the others.

    python -m bench.hostile [--quick]

The proxy is a process of its own on core 0; everything else is on the other cores. Here are the rows and what they
measure; what attacks is in `bench.hostile_load`, what is behind the proxy in `bench.hostile_backends`.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from aiohttp import ClientSession

from bench.faults import ask, memory_kib, ms, proxy, session, slow
from bench.hostile_backends import relaying, serve_upstream
from bench.hostile_load import attack, be_slow
from tests.support.process import Process
from tests.support.redis_server import RedisServer
from tests.support.scripted import ScriptedUpstream

PROXY_CORE = 0
SLOW_CLIENTS = 1000
HEALTHY = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of it, to see that it runs")
    parser.add_argument("--only", default="", help="only the rows of these names, as bodies,unread")
    parser.add_argument("--slow-clients", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--attack", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--upstream", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.slow_clients:
        asyncio.run(be_slow(*given.slow_clients))
    elif given.upstream:
        asyncio.run(serve_upstream(given.upstream))
    elif given.attack:
        name, base_url, seconds = given.attack
        asyncio.run(attack(name, base_url, float(seconds)))
    else:
        asyncio.run(run(set(filter(None, given.only.split(","))), quick=given.quick))


async def run(only: set[str], *, quick: bool) -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores - {PROXY_CORE} or cores)
    rows: dict[str, Callable[..., Awaitable[str]]] = {
        "slow": slow_clients, "overload": overload, "bodies": bodies, "unread": unread, "batches": batches,
        "greedy": greedy, "message": message, "redis": redis,
    }  # fmt: skip
    for name, row in rows.items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            async with ScriptedUpstream(dimensions=256).serving() as upstream:
                print(await row(Path(folder), upstream, quick=quick), flush=True)


# --- tools


def pin(process: Process) -> None:
    for thread in Path(f"/proc/{process.popen.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {PROXY_CORE})


async def start(*flags: str) -> asyncio.subprocess.Process:
    """What a hidden flag runs, in a process of its own, or the client that measures would wait for it itself."""
    command = [sys.executable, "-m", "bench.hostile", *flags]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)


async def repeated(
    call: Callable[[], Awaitable[tuple[int, float, str]]], until: "float | asyncio.Task[Any]"
) -> list[float]:
    """The seconds that each call took, one after another, for so many seconds or until a task has ended."""
    taken: list[float] = []
    started = time.perf_counter()
    while not (until.done() if isinstance(until, asyncio.Task) else time.perf_counter() > started + until):
        status, took, _ = await call()
        assert status == 200, status
        taken.append(took)
        await asyncio.sleep(0.005)
    return taken


# --- slow clients


async def slow_clients(folder: Path, upstream: ScriptedUpstream, *, quick: bool) -> str:
    """Hits of a few healthy clients, without a thousand slow ones and for as long as these live."""
    runs = [await one_run(folder, upstream, quick=quick) for _ in range(1 if quick else 3)]
    before, during = statistics.median(run.before_s for run in runs), statistics.median(run.during_s for run in runs)
    ratios = [run.during_s / run.before_s for run in runs]
    return (
        f"{SLOW_CLIENTS // (10 if quick else 1)} slow clients: p99 of a hit {before * 1000:.2f} ms before,"
        f" {during * 1000:.2f} ms during, ratio {statistics.median(ratios):.2f}"
        f" ({', '.join(f'{ratio:.2f}' for ratio in ratios)});"
        f" all closed after {max(run.closed_s for run in runs):.1f} s"
    )


class Run(NamedTuple):
    before_s: float
    during_s: float
    closed_s: float


async def one_run(folder: Path, upstream: ScriptedUpstream, *, quick: bool) -> Run:
    async with proxy(folder, upstream) as process, session() as opened:
        pin(process)
        await hits(opened, process, 1.0)  # until all code has run once
        before = await hits(opened, process, 2.0 if quick else 20.0)
        port = process.base_url.split(":")[2].split("/")[0]
        count = SLOW_CLIENTS // (10 if quick else 1)
        others = await start("--slow-clients", str(count), port)
        ended = asyncio.create_task(others.communicate())
        during = await hits(opened, process, ended)
        shown, _ = await ended
        assert others.returncode == 0
    return Run(float(np.percentile(before, 99)), float(np.percentile(during, 99)), float(shown))


async def hits(opened: ClientSession, process: Process, until: "float | asyncio.Task[Any]") -> list[float]:
    """The seconds that each took, of all healthy clients."""
    clients = (repeated(lambda: ask(opened, process.base_url, "x"), until) for _ in range(HEALTHY))
    return [took for taken in await asyncio.gather(*clients) for took in taken]


# --- overload


async def overload(folder: Path, upstream: ScriptedUpstream, *, quick: bool) -> str:
    """Misses at the rate that just saturates the proxy, then three times as many clients."""
    slow(upstream, 0.05)
    seconds = 2.0 if quick else 10.0
    limits = ("--store", "memory:", "--upstream-concurrency", "8", "--max-batch-items", "1", "--max-queued-items", "32")
    serial = iter(range(10**9))
    async with proxy(folder, upstream, *limits) as process, session() as opened:
        pin(process)

        async def offer(clients: int) -> tuple[float, list[float]]:
            """(good answers a second, seconds that each 503 took)"""
            good, refused = 0, list[float]()
            started = time.perf_counter()

            async def work(tenant: int) -> None:
                nonlocal good
                while time.perf_counter() < started + seconds:
                    status, took, _ = await ask(opened, process.base_url, f"text {next(serial)}", key=str(tenant))
                    if status == 200:
                        good += 1
                    else:
                        assert status == 503, status
                        refused.append(took)
                        await asyncio.sleep(0.1)  # Retry-After says 1 s; this client is less patient

            await asyncio.gather(*(work(number) for number in range(clients)))
            return good / (time.perf_counter() - started), refused

        peaks = {clients: (await offer(clients))[0] for clients in (8, 16, 32)}
        peak = max(peaks.values())
        saturating = min(clients for clients, rate in peaks.items() if rate >= 0.95 * peak)
        goodput, refused = await offer(3 * 32)
    return (
        f"overload: peak {peak:.0f} misses/s (with {saturating} clients, queue full with 32); 96 clients:"
        f" {goodput:.0f}/s, {goodput / peak:.0%} of it; {len(refused)} got 503, p99 {ms(refused or [0.0], 99)}"
    )


# --- what costs more than it weighs

MEMORY_MIB, HELD_MIB = 128, 128
BOUNDED = ("--memory", f"{MEMORY_MIB}MiB", "--max-held", f"{HELD_MIB}MiB")


async def bodies(folder: Path, _: ScriptedUpstream, *, quick: bool) -> str:
    """Bodies that are large once they are parsed or inflated, under credentials that are made up."""
    return await attacked(folder, "bodies", quick=quick)


async def unread(folder: Path, _: ScriptedUpstream, *, quick: bool) -> str:
    """Small requests for large responses that nobody reads."""
    return await attacked(folder, "unread", quick=quick)


async def batches(folder: Path, _: ScriptedUpstream, *, quick: bool) -> str:
    """Four clients with batches of 2,048 new items as floats."""
    return await attacked(folder, "batches", quick=quick)


async def greedy(folder: Path, _: ScriptedUpstream, *, quick: bool) -> str:
    """One client, by many routing fields, with calls that hang and more items than the queue takes; the healthy one
    asks for new items all the time."""
    return await attacked(folder, "greedy", quick=quick, misses=True)


async def message(folder: Path, _: ScriptedUpstream, *, quick: bool) -> str:
    """A WebSocket message without end, as fast as it is taken."""
    return await attacked(folder, "message", quick=quick)


async def redis(folder: Path, _: ScriptedUpstream, *, quick: bool) -> str:
    """A Redis that says that each of its replies has 10⁹ elements; the healthy client asks for new items all the
    time."""
    server = RedisServer(folder)
    lies = asyncio.Event()
    try:
        async with relaying(server.port, lies) as url:
            return await attacked(folder, "redis", quick=quick, misses=True, store=url, begin=lies.set)
    finally:
        server.kill()


@asynccontextmanager
async def upstream_of(name: str) -> AsyncIterator[ScriptedUpstream]:
    process = await start("--upstream", name)
    assert process.stdout is not None
    try:
        yield ScriptedUpstream(base_url=(await process.stdout.readline()).decode().strip())
    finally:
        process.terminate()
        await process.wait()


async def attacked(
    folder: Path,
    name: str,
    *,
    quick: bool,
    misses: bool = False,
    store: str = "memory:",
    begin: Callable[[], None] = lambda: None,
) -> str:
    """Hits or misses of a healthy client before and during an attack, and what memory that takes."""
    seconds = 3.0 if quick else 20.0
    serial = iter(range(10**9))

    async def healthy(opened: ClientSession, process: Process, until: "float | asyncio.Task[Any]") -> list[float]:
        return await repeated(
            lambda: ask(opened, process.base_url, f"text {next(serial) if misses else 0}", key="7"), until
        )

    limits = ("--store", store, *BOUNDED)
    async with upstream_of(name) as upstream, proxy(folder, upstream, *limits) as process, session() as opened:
        pin(process)
        await healthy(opened, process, 1.0)
        start_mib = memory_kib(process, "VmRSS") / 1024
        before = await healthy(opened, process, seconds)
        begin()
        others = await start("--attack", name, process.base_url, str(seconds))
        ended = asyncio.create_task(others.communicate())
        during = await healthy(opened, process, ended)
        shown, _ = await ended
        peak_mib = memory_kib(process, "VmHWM") / 1024
    before_s, during_s = (float(np.percentile(taken, 99)) for taken in (before, during))
    allowed_mib = start_mib + 1.3 * MEMORY_MIB + 2 * HELD_MIB
    return (
        f"{name}: p99 of a {'miss' if misses else 'hit'} {before_s * 1000:.2f} ms before, {during_s * 1000:.2f} ms"
        f" during, ratio {during_s / before_s:.2f}, longest {max(during) * 1000:.0f} ms; memory {start_mib:.0f} MiB at"
        f" start, {peak_mib:.0f} MiB at most, {allowed_mib:.0f} MiB allowed; {shown.decode().strip()}"
    )


if __name__ == "__main__":
    main()
