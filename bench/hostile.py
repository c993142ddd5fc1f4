"""What clients that mean no good, or are too many, cost the others.

    python -m bench.hostile [--quick]

The proxy is a process of its own on core 0; everything else is on the other cores.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from aiohttp import ClientSession

from bench.faults import ask, ms, proxy, session, slow
from tests.process import Process
from tests.scripted import ScriptedUpstream

PROXY_CORE = 0
SLOW_CLIENTS = 1000
DRIP_S = 3.0
ARRIVAL_S = 0.001
PATIENCE_S = 15.0
HEALTHY = 4
GIVE_UP_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of it, to see that it runs")
    parser.add_argument("--slow-clients", nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    asyncio.run(be_slow(*given.slow_clients) if given.slow_clients else run(quick=given.quick))


async def run(*, quick: bool) -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores - {PROXY_CORE} or cores)
    with tempfile.TemporaryDirectory() as folder:
        async with ScriptedUpstream(dimensions=256).serving() as upstream:
            print(await slow_clients(Path(folder), upstream, quick=quick), flush=True)
        async with ScriptedUpstream(dimensions=256).serving() as upstream:
            print(await overload(Path(folder), upstream, quick=quick), flush=True)


def pin(process: Process) -> None:
    for thread in Path(f"/proc/{process.popen.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {PROXY_CORE})


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
        # In a process of their own, or the client that measures would wait for them itself.
        command = [sys.executable, "-m", "bench.hostile", "--slow-clients", str(count), port]
        others = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        ended = asyncio.create_task(others.communicate())
        during = await hits(opened, process, ended)
        shown, _ = await ended
        assert others.returncode == 0
    return Run(float(np.percentile(before, 99)), float(np.percentile(during, 99)), float(shown))


async def hits(opened: ClientSession, process: Process, until: "float | asyncio.Task[Any]") -> list[float]:
    """The seconds that each took, for so many seconds or until a task has ended."""
    taken: list[float] = []
    started = time.perf_counter()

    def is_over() -> bool:
        return until.done() if isinstance(until, asyncio.Task) else time.perf_counter() > started + until

    async def work() -> None:
        while not is_over():
            status, took, _ = await ask(opened, process.base_url, "x")
            assert status == 200, status
            taken.append(took)
            await asyncio.sleep(0.005)

    await asyncio.gather(*(work() for _ in range(HEALTHY)))
    return taken


async def be_slow(count: int, port: int) -> None:
    """Print the seconds until the proxy had closed them all."""
    os.nice(10)  # the healthy client is on the same core
    started = time.perf_counter()
    ends = await asyncio.gather(*(slow_client(port, number) for number in range(count)))
    assert min(ends) - started > PATIENCE_S, "one was closed before its time"
    print(max(ends) - started)


async def slow_client(port: int, number: int) -> float:
    """A third each drips a head, drips a body, says nothing; returns when the proxy had closed the connection."""
    await asyncio.sleep(number * ARRIVAL_S)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    at_once, drips = [(head, b"X"), (head + b"Content-Length: 100000\r\n\r\n", b" "), (b"", b"")][number % 3]
    writer.write(at_once)

    async def drip() -> None:
        while drips:
            await asyncio.sleep(DRIP_S)
            writer.write(drips)

    dripping = asyncio.create_task(drip())
    try:
        async with asyncio.timeout(GIVE_UP_S):
            while await reader.read(65536):
                pass
    except ConnectionError:
        pass
    finally:
        dripping.cancel()
        writer.close()
    return time.perf_counter()


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
                    status, took, _ = await ask_as(opened, process.base_url, next(serial), tenant)
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


async def ask_as(opened: ClientSession, base_url: str, number: int, tenant: int) -> tuple[int, float, str]:
    started = time.perf_counter()
    async with opened.post(
        f"{base_url}/embeddings",
        json={"model": "m", "input": f"text {number}"},
        headers={"Authorization": f"Bearer {tenant}"},
    ) as response:
        await response.read()
        return response.status, time.perf_counter() - started, response.headers.get("X-Cache", "")


if __name__ == "__main__":
    main()
