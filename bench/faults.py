"""The cost of failures: stampedes, a slow upstream, a Redis that crashes or hangs, restarts, clients that leave.

    python -m bench.faults [--quick]

Everything is real: proxies in processes of their own, a redis-server, an upstream over HTTP, the openai client.
"""

import argparse
import asyncio
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import ClientError, ClientSession, TCPConnector, web

from tests.support.process import Process
from tests.support.redis_server import RedisServer, free_port
from tests.support.rolling import rolling_restarts
from tests.support.scripted import Call, ScriptedUpstream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the load, as a smoke test")
    given = parser.parse_args()
    asyncio.run(run(0.1 if given.quick else 1.0))


async def run(scale: float) -> None:
    for scenario in (stampede, two_replicas, departure, distinct, redis_killed, redis_hung, restarts, failing, aborts):
        with tempfile.TemporaryDirectory() as folder:
            async with ScriptedUpstream(dimensions=256).serving() as upstream:
                title = (scenario.__doc__ or "").splitlines()[0]
                print(f"{title:76}", end=" ", flush=True)
                print(await scenario(Path(folder), upstream, scale), flush=True)


# --- tools


@asynccontextmanager
async def proxy(folder: Path, upstream: ScriptedUpstream, *arguments: str) -> AsyncIterator[Process]:
    given = ("--upstream", upstream.base_url, *(arguments or ("--store", "memory:")))
    process = await asyncio.to_thread(Process, folder, free_port(), *given)
    try:
        yield process
    finally:
        await asyncio.to_thread(process.stop, signal.SIGTERM)


@asynccontextmanager
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession(connector=TCPConnector(limit=0)) as opened:
        yield opened


async def ask(opened: ClientSession, base_url: str, text: str, *, key: str | None = None) -> tuple[int, float, str]:
    """``(status, seconds, X-Cache)``; status 0 if there was no response."""
    body, headers = {"model": "m", "input": text}, None if key is None else {"Authorization": f"Bearer {key}"}
    started = time.perf_counter()
    try:
        async with opened.post(f"{base_url}/embeddings", json=body, headers=headers) as response:
            await response.read()
            return response.status, time.perf_counter() - started, response.headers.get("X-Cache", "")
    except ClientError:
        return 0, time.perf_counter() - started, ""


def slow(upstream: ScriptedUpstream, seconds: float) -> None:
    async def reply(call: Call) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return upstream.embed(call)

    upstream.reply = reply


def ms(seconds: list[float], percent: float) -> str:
    return f"{np.percentile(seconds, percent) * 1000:.0f} ms"


async def resources(opened: ClientSession, process: Process) -> tuple[int, int]:
    """(open file descriptors, resident KiB) of a process, at rest."""
    await asyncio.sleep(1)
    folder = Path(f"/proc/{process.popen.pid}")
    return len(list((folder / "fd").iterdir())), memory_kib(process, "VmRSS")


def memory_kib(process: Process, field: str) -> int:
    """``VmRSS``, what is resident now, or ``VmHWM``, the most that ever was."""
    status = Path(f"/proc/{process.popen.pid}/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0])


# --- scenarios; each returns what the table says


async def stampede(folder: Path, upstream: ScriptedUpstream, scale: float) -> str:
    """1,000 identical requests at once: items upstream"""
    slow(upstream, 0.5)
    async with proxy(folder, upstream) as process, session() as opened:
        responses = await asyncio.gather(*(ask(opened, process.base_url, "x") for _ in range(int(1000 * scale))))
    return f"{upstream.items.total()} item, {sum(status == 200 for status, _, _ in responses)} served"


async def two_replicas(folder: Path, upstream: ScriptedUpstream, scale: float) -> str:
    """the same over two processes on one Redis: items upstream"""
    slow(upstream, 0.5)
    server = RedisServer(folder)
    store = ("--store", server.url)
    async with proxy(folder, upstream, *store) as a, proxy(folder, upstream, *store) as b, session() as opened:
        count = int(500 * scale)
        responses = await asyncio.gather(
            *(ask(opened, process.base_url, "x") for process in (a, b) for _ in range(count))
        )
    server.kill()
    return f"{upstream.items.total()} item, {sum(status == 200 for status, _, _ in responses)} served"


async def departure(folder: Path, upstream: ScriptedUpstream, scale: float) -> str:
    """the first of 1,000 identical requests resets its connection: others served"""
    slow(upstream, 0.5)
    async with proxy(folder, upstream) as process, session() as opened, session() as leaving:
        leader = asyncio.create_task(ask(leaving, process.base_url, "x"))
        while not upstream.calls:
            await asyncio.sleep(0.001)
        followers = [asyncio.create_task(ask(opened, process.base_url, "x")) for _ in range(int(999 * scale))]
        await asyncio.sleep(0.1)
        leader.cancel()
        responses = await asyncio.gather(*followers)
    served = sum(status == 200 for status, _, _ in responses)
    return f"{served} of {len(responses)}, {upstream.items.total()} item upstream"


async def distinct(folder: Path, upstream: ScriptedUpstream, scale: float) -> str:
    """1,000 distinct texts at once, 100 ms a call: calls, wall time and p99 against direct"""
    slow(upstream, 0.1)
    count = int(1000 * scale)
    async with proxy(folder, upstream) as process, session() as opened:
        figures = []
        for base_url in (upstream.base_url, process.base_url):
            upstream.calls.clear()
            started = time.perf_counter()
            responses = await asyncio.gather(*(ask(opened, base_url, f"text {n}") for n in range(count)))
            wall = time.perf_counter() - started
            assert all(status == 200 for status, _, _ in responses)
            figures.append(f"{len(upstream.calls)} calls, {wall:.2f} s, p99 {ms([s for _, s, _ in responses], 99)}")
    return f"direct {figures[0]}; proxy {figures[1]}"


async def under_load(
    folder: Path, upstream: ScriptedUpstream, server: RedisServer, trouble: Callable[[], Coroutine[Any, Any, None]]
) -> str:
    """A steady load, half of it on stored texts, first without and then with the fault."""
    slow(upstream, 0.02)
    failed, back = 0, 0.0
    arguments = ("--store", server.url, "--memory", "1MiB")
    async with proxy(folder, upstream, *arguments) as process, session() as opened:
        serial = iter(range(10**9))

        async def load(until: Callable[[], bool]) -> list[float]:
            nonlocal failed
            seconds: list[float] = []

            async def work() -> None:
                nonlocal failed
                while not until():
                    number = next(serial)
                    text = f"new {number}" if number % 2 else f"kept {number % 2000}"
                    status, taken, _ = await ask(opened, process.base_url, text)
                    seconds.append(taken)
                    failed += status != 200
                    await asyncio.sleep(0.01)

            await asyncio.gather(*(work() for _ in range(16)))
            return seconds

        deadline = time.monotonic() + 5
        peace = await load(lambda: time.monotonic() > deadline)
        troubled = asyncio.create_task(trouble())
        trouble_s = await load(troubled.done)
        await troubled
        mended = time.monotonic()
        kept = f"kept by the store {mended}"
        await ask(opened, process.base_url, kept)
        while time.monotonic() < mended + 30:
            async with opened.get(process.admin_url + "/metrics") as response:
                text = await response.text()
            if 'breaker_state{circuit="store_read"} 0.0' in text and 'circuit="store_write"} 0.0' in text:
                back = time.monotonic() - mended
                break
            await ask(opened, process.base_url, f"probe {next(serial)}")
            await asyncio.sleep(0.05)
    added = np.percentile(trouble_s, 99) - np.percentile(peace, 99)
    return (
        f"{failed} of {len(peace) + len(trouble_s)} failed, p99 {ms(peace, 99)} in peace,"
        f" {ms(trouble_s, 99)} in trouble, +{added * 1000:.0f} ms; store in use again after {back:.1f} s"
    )


async def redis_killed(folder: Path, upstream: ScriptedUpstream, scale: float) -> str:
    """Redis killed and restarted in a loop under load"""
    server = RedisServer(folder)

    async def trouble() -> None:
        for _ in range(max(1, int(10 * scale))):
            server.kill()
            await asyncio.sleep(1.5)
            await asyncio.to_thread(server.restart)
            await asyncio.sleep(1.5)

    shown = await under_load(folder, upstream, server, trouble)
    server.kill()
    return shown


async def redis_hung(folder: Path, upstream: ScriptedUpstream, scale: float) -> str:
    """Redis stopped (SIGSTOP) for 30 s under load"""
    server = RedisServer(folder)

    async def trouble() -> None:
        server.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(30 * scale)
        server.process.send_signal(signal.SIGCONT)

    shown = await under_load(folder, upstream, server, trouble)
    server.kill()
    return shown


async def restarts(folder: Path, upstream: ScriptedUpstream, scale: float) -> str:
    """SIGTERM 50 times under load, openai client without retries"""
    slow(upstream, 0.02)
    tally = await rolling_restarts(folder, upstream.base_url, restarts=int(50 * scale))
    return (
        f"{len(tally.failures)} of {tally.requests} failed, {len(tally.exit_s)} exits,"
        f" status {set(tally.exit_statuses)}, median {statistics.median(tally.exit_s):.2f} s,"
        f" longest {max(tally.exit_s):.2f} s"
    )


async def failing(folder: Path, upstream: ScriptedUpstream, scale: float) -> str:
    """upstream attempts a client request when every response is a 500"""
    upstream.reply = lambda _: web.json_response({"error": {}}, status=500)
    count = int(1000 * scale)
    async with proxy(folder, upstream) as process, session() as opened:
        await asyncio.gather(*(ask(opened, process.base_url, f"text {n}") for n in range(count)))
    return f"{len(upstream.calls) / count:.2f}"


async def aborts(folder: Path, upstream: ScriptedUpstream, scale: float) -> str:
    """10,000 clients leave in the middle: descriptors and memory before and after"""
    slow(upstream, 0.005)
    async with proxy(folder, upstream, "--store", "memory:", "--memory", "4MiB") as process:

        async def leave(opened: ClientSession, number: int) -> None:
            request = asyncio.create_task(ask(opened, process.base_url, f"text {number}"))
            await asyncio.sleep((number % 13) / 1000)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

        async def leave_all(start: int, count: int) -> tuple[int, int]:
            async with session() as opened:
                for first in range(start, start + count, 50):
                    await asyncio.gather(*(leave(opened, first + n) for n in range(50)))
                return await resources(opened, process)

        await leave_all(0, 1000)  # until memory is full and every code path has been taken
        before = await leave_all(10**6, 1000)
        after = await leave_all(2 * 10**6, int(10_000 * scale))
    return f"{before[0]} and {before[1]} KiB, then {after[0]} and {after[1]} KiB"


if __name__ == "__main__":
    main()
