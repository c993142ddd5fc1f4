"""What clients that mean no good, or are too many, cost the others.

    python -m bench.hostile [--quick]

The proxy is a process of its own on core 0; everything else is on the other cores.
"""

import argparse
import asyncio
import base64
import gzip
import hashlib
import io
import itertools
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from aiohttp import ClientError, ClientSession, web

from bench.faults import ask, ms, proxy, session, slow
from tests.support.process import Process
from tests.support.redis_server import RedisServer
from tests.support.scripted import Call, ScriptedUpstream

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


# --- what costs more than it weighs

MEMORY_MIB, HELD_MIB = 128, 128
BOUNDED = ("--memory", f"{MEMORY_MIB}MiB", "--max-held", f"{HELD_MIB}MiB")
MIB = 1024 * 1024
BATCH = 2048
WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3


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
    port = int(server.url.split(":")[2].split("/")[0])
    lies = asyncio.Event()
    try:
        async with relaying(port, lies) as url:
            return await attacked(folder, "redis", quick=quick, misses=True, store=url, begin=lies.set)
    finally:
        server.kill()


@asynccontextmanager
async def relaying(port: int, lies: asyncio.Event) -> AsyncIterator[str]:
    """The URL of a Redis that passes everything on to the one at ``port``, until it ``lies``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_behind = await asyncio.open_connection("127.0.0.1", port)
        answering = asyncio.create_task(copy(behind, writer))
        while data := await reader.read(65536):
            (writer if lies.is_set() else to_behind).write(b"*1000000000\r\n" if lies.is_set() else data)
        answering.cancel()
        to_behind.close()
        writer.close()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()


class Discard:
    """A parser to which everything is of no interest."""

    def feed_data(self, _: bytes) -> tuple[bool, bytes]:
        return False, b""

    def feed_eof(self) -> None: ...


async def swallow(request: web.BaseRequest) -> web.StreamResponse:
    """Take a WebSocket handshake, and whatever follows."""
    key = request.headers["Sec-WebSocket-Key"] + WEBSOCKET_GUID
    accept = base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest())
    fields = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept.decode()}
    response = web.StreamResponse(status=101, headers=fields)
    await response.prepare(request)
    request.protocol.set_parser(Discard())  # type: ignore[arg-type] # of which it calls just these methods
    await asyncio.Event().wait()
    return response


async def serve_upstream(name: str) -> None:
    """The upstream of an attack, which spends no time on making numbers or on reading large bodies."""
    upstream = ScriptedUpstream(dimensions={"unread": 3072, "batches": 1536}.get(name, 256))
    made = {
        count: orjson.dumps(upstream.answer_to({"model": "m", "input": [f"{n}" for n in range(count)]}))
        for count in (1, *([BATCH] if name == "batches" else []))
    }

    async def reply(call: Call) -> web.StreamResponse:
        if "Upgrade" in call.headers:
            return await swallow(call.request)
        if "made-up" in call.headers.get("Authorization", ""):
            return web.Response(status=401)
        if b'"hangs"' in call.body:
            await asyncio.Event().wait()
        count = 1 if len(call.body) < 200 else BATCH
        return web.Response(body=made[count], content_type="application/json")

    upstream.reply = reply
    async with upstream.serving():
        print(upstream.base_url, flush=True)
        await asyncio.Event().wait()


@asynccontextmanager
async def upstream_of(name: str) -> AsyncIterator[ScriptedUpstream]:
    """In a process of its own, or the client that measures would wait for it itself."""
    command = [sys.executable, "-m", "bench.hostile", "--upstream", name]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
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
        taken: list[float] = []
        started = time.perf_counter()
        while not (until.done() if isinstance(until, asyncio.Task) else time.perf_counter() > started + until):
            status, took, _ = await ask_as(opened, process.base_url, next(serial) if misses else 0, 7)
            assert status == 200, status
            taken.append(took)
            await asyncio.sleep(0.005)
        return taken

    limits = ("--store", store, *BOUNDED)
    async with upstream_of(name) as upstream, proxy(folder, upstream, *limits) as process, session() as opened:
        pin(process)
        await healthy(opened, process, 1.0)
        start_mib = memory_mib(process, "VmRSS")
        before = await healthy(opened, process, seconds)
        begin()
        command = [sys.executable, "-m", "bench.hostile", "--attack", name, process.base_url, str(seconds)]
        others = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        ended = asyncio.create_task(others.communicate())
        during = await healthy(opened, process, ended)
        shown, _ = await ended
        peak_mib = memory_mib(process, "VmHWM")
    before_s, during_s = (float(np.percentile(taken, 99)) for taken in (before, during))
    allowed_mib = start_mib + 1.3 * MEMORY_MIB + 2 * HELD_MIB
    return (
        f"{name}: p99 of a {'miss' if misses else 'hit'} {before_s * 1000:.2f} ms before, {during_s * 1000:.2f} ms"
        f" during, ratio {during_s / before_s:.2f}, longest {max(during) * 1000:.0f} ms; memory {start_mib:.0f} MiB at"
        f" start, {peak_mib:.0f} MiB at most, {allowed_mib:.0f} MiB allowed; {shown.decode().strip()}"
    )


def memory_mib(process: Process, field: str) -> float:
    status = Path(f"/proc/{process.popen.pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1024


async def attack(name: str, base_url: str, seconds: float) -> None:
    """Attack for so long, and print what became of it."""
    os.nice(10)  # the healthy client is on the same core
    statuses: Counter[str] = Counter()
    until = time.perf_counter() + seconds
    async with session() as opened:
        match name:
            case "bodies":
                works = [send_bodies(opened, base_url, until, statuses) for _ in range(2)]
            case "unread":
                works = [leave_unread(base_url, until, statuses)]
            case "batches":
                works = [send_batches(opened, base_url, until, statuses, tenant) for tenant in range(4)]
            case "message":
                works = [send_message(base_url, until, statuses)]
            case "redis":
                works = [asyncio.sleep(seconds)]
            case _:
                works = [fill_queue(opened, base_url, until, statuses)]
        await asyncio.gather(*works)
    print(", ".join(f"{count} {status}" for status, count in statuses.most_common()))


async def send_bodies(opened: ClientSession, base_url: str, until: float, statuses: "Counter[str]") -> None:
    escaped = b'{"model":"m","input":"x","user":[' + b'{"a":0},' * (60 * MIB // 8) + b'{"\\u003a":0}]}'
    arrays = b'{"model":"m","input":"x","user":[' + b"[]," * (20 * MIB) + b"0]}"
    texts = orjson.dumps({"model": "m", "input": ["x" * 30_000 + str(n) for n in range(BATCH)]})
    tokens = orjson.dumps({"model": "m", "input": [[number] * 300 for number in range(BATCH)]})
    kinds: list[tuple[bytes, dict[str, str]]] = [(escaped, {}), (arrays, {}), (texts, {}), (tokens, {})]
    kinds += [(gzip.compress(body, 9), {"Content-Encoding": "gzip"}) for body in (escaped, arrays)]
    for number in itertools.count():
        body, fields = kinds[number % len(kinds)]
        headers = fields | {"Content-Type": "application/json", "Authorization": f"Bearer made-up-{number}"}
        try:
            async with opened.post(f"{base_url}/embeddings", data=io.BytesIO(body), headers=headers) as response:
                await response.read()
                statuses[str(response.status)] += 1
        except (ClientError, OSError):  # it was answered and cut before all of the body was sent
            statuses["cut"] += 1
        if time.perf_counter() > until:
            return


async def leave_unread(base_url: str, until: float, statuses: "Counter[str]") -> None:
    """Requests of 10 kB, for one cached item 2,048 times."""
    host, port = base_url.split("/")[2].split(":")
    body = orjson.dumps({"model": "m", "input": ["text 0"] * BATCH})
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer 7\r\nContent-Length: {len(body)}\r\n"
    connections = []
    for _ in range(50):
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, (host, int(port)))
        plain.send(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        connections.append(plain)
        statuses["unread"] += 1
    await asyncio.sleep(max(0.0, until - time.perf_counter()))
    for plain in connections:
        plain.close()


async def send_batches(
    opened: ClientSession, base_url: str, until: float, statuses: "Counter[str]", tenant: int
) -> None:
    for number in itertools.count():
        body = {"model": "m", "input": [f"{tenant} {number} {n}" for n in range(BATCH)], "encoding_format": "float"}
        headers = {"Authorization": f"Bearer tenant-{tenant}"}
        async with opened.post(f"{base_url}/embeddings", json=body, headers=headers) as response:
            async for _ in response.content.iter_any():
                pass
            statuses[str(response.status)] += 1
        if time.perf_counter() > until:
            return


async def send_message(base_url: str, until: float, statuses: "Counter[str]") -> None:
    host, port = base_url.split("/")[2].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    key = base64.b64encode(bytes(16)).decode()
    writer.write(
        f"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer 7\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    opcode = 2  # binary; all that follow are continuations, and none is the last
    while time.perf_counter() < until:
        writer.write(bytes([opcode, 0x80 | 127]) + MIB.to_bytes(8) + bytes(4) + bytes(MIB))
        await writer.drain()
        statuses["MiB of a message"] += 1
        opcode = 0
    writer.close()


async def fill_queue(opened: ClientSession, base_url: str, until: float, statuses: "Counter[str]") -> None:
    async def ask_for(number: int) -> None:
        body = {"model": "hangs", "input": [f"{number} {n}" for n in range(BATCH)]}
        headers = {"Authorization": "Bearer greedy", "X-Region": f"r{number}"}
        async with opened.post(f"{base_url}/embeddings", json=body, headers=headers) as response:
            statuses[str(response.status)] += 1

    asked = [asyncio.create_task(ask_for(number)) for number in range(49)]
    await asyncio.sleep(max(0.0, until - time.perf_counter()))
    for one in asked:
        one.cancel()
    statuses["waiting"] += sum(
        isinstance(end, BaseException) for end in await asyncio.gather(*asked, return_exceptions=True)
    )


if __name__ == "__main__":
    main()
