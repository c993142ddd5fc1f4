"""The load that attacks, which `bench.hostile` starts with hidden flags as a process of its own."""

import asyncio
import base64
import gzip
import io
import itertools
import os
import socket
import time
from collections import Counter

import orjson
from aiohttp import ClientError, ClientSession

from bench.faults import session

DRIP_S = 3.0
ARRIVAL_S = 0.001
PATIENCE_S = 15.0
GIVE_UP_S = 60.0
MIB = 1024 * 1024
BATCH = 2048


# --- slow clients


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


# --- what costs more than it weighs


def step_aside() -> None:
    """Run only while the core has nothing else to do. The healthy client is on the same core: what it waits for there
    would count as the proxy's."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


async def attack(name: str, base_url: str, seconds: float) -> None:
    """Attack for so long, and print what became of it."""
    step_aside()
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
