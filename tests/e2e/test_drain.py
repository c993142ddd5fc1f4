"""How a process drains: no request is lost, and a second signal ends it at once."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.rolling import rolling_restarts, until_not_ready
from tests.support.scripted import Call, ScriptedUpstream


@pytest.mark.long
@pytest.mark.parametrize("restarts", [1, pytest.param(6, marks=pytest.mark.slow)])
async def test_rolling_restart_under_load_fails_no_request(
    upstream: ScriptedUpstream, tmp_path: Path, restarts: int
) -> None:
    async def slow(call: Call) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return upstream.embed(call)

    upstream.reply = slow
    tally = await rolling_restarts(tmp_path, upstream.base_url, restarts=restarts)
    assert tally.failures == []
    assert tally.exit_statuses == [0] * restarts
    assert max(tally.exit_s) < 10
    assert tally.requests > 33 * restarts


async def test_requests_in_flight_are_finished_and_stored(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    gate = asyncio.Event()
    arrived = asyncio.Event()

    async def held(call: Call) -> web.StreamResponse:
        arrived.set()
        await gate.wait()
        return upstream.embed(call)

    upstream.reply = held
    store = ("--store", f"sqlite:///{tmp_path / 'cache.sqlite3'}")
    process = await asyncio.to_thread(Process, tmp_path, free_port(), "--upstream", upstream.base_url, *store)
    body = {"model": "m", "input": "x"}
    async with ClientSession() as session:
        request = asyncio.create_task(session.post(f"{process.base_url}/embeddings", json=body))
        await arrived.wait()
        process.popen.send_signal(signal.SIGTERM)
        await until_not_ready(session, process)
        gate.set()
        response = await request
        assert (response.status, response.headers["Connection"]) == (200, "close")
        await response.read()
    status, rest = await asyncio.to_thread(process.wait)
    assert status == 0, rest
    again = await asyncio.to_thread(Process, tmp_path, free_port(), "--upstream", upstream.base_url, *store)
    async with ClientSession() as session, session.post(f"{again.base_url}/embeddings", json=body) as response:
        assert response.headers["X-Cache"] == "HIT"
    await asyncio.to_thread(again.stop, signal.SIGTERM)


async def test_second_signal_exits_immediately(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    arguments = ("--upstream", upstream.base_url, "--store", "memory:", "--drain-delay", "1h")
    process = await asyncio.to_thread(Process, tmp_path, free_port(), *arguments)
    process.popen.send_signal(signal.SIGTERM)
    async with ClientSession() as session:
        await until_not_ready(session, process)
        async with session.post(f"{process.base_url}/embeddings", json={"model": "m", "input": "x"}) as response:
            assert response.status == 200, "still accepting"
    status, _ = await asyncio.to_thread(process.stop, signal.SIGINT)
    assert status == 1


async def test_draining_takes_no_longer_than_the_shutdown_timeout(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    arrived, has_ended = asyncio.Event(), asyncio.Event()

    async def hang(call: Call) -> web.StreamResponse:
        arrived.set()
        await has_ended.wait()
        return upstream.embed(call)

    upstream.reply = hang
    arguments = ("--upstream", upstream.base_url, "--store", "memory:", "--shutdown-timeout", "100ms")
    process = await asyncio.to_thread(Process, tmp_path, free_port(), *arguments)
    async with ClientSession() as session:
        request = asyncio.create_task(session.post(f"{process.base_url}/embeddings", json={"model": "m", "input": "x"}))
        await arrived.wait()
        status, rest = await asyncio.to_thread(process.stop, signal.SIGTERM)
        has_ended.set()
        await asyncio.gather(request, return_exceptions=True)
    assert status == 0, rest


# --- a request that has begun is finished

BODY = b'{"model":"m","input":"text"}'


def post(path: bytes, *fields: bytes) -> bytes:
    lines = (b"POST %s HTTP/1.1" % path, b"Host: x", b"Content-Type: application/json", *fields, b"", b"")
    return b"\r\n".join(lines)


EMBED = post(b"/v1/embeddings", b"Content-Length: %d" % len(BODY))
# What the proxy has received at SIGTERM, and what arrives later.
CUT = {
    "body": (EMBED + BODY[:9], BODY[9:]),
    "head only": (EMBED, BODY),
    "asked first": (post(b"/v1/embeddings", b"Content-Length: %d" % len(BODY), b"Expect: 100-continue"), BODY),
    "chunks": (
        post(b"/v1/embeddings", b"Transfer-Encoding: chunked") + b"9\r\n" + BODY[:9] + b"\r\n",
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY) - 9, BODY[9:]),
    ),
    "bypass": (
        post(b"/v1/embeddings", b"Content-Length: %d" % len(BODY), b"X-Amz-Content-Sha256: 0") + BODY[:9],
        BODY[9:],
    ),
    "upload": (post(b"/v1/files", b"Content-Length: 100000") + b"x" * 70_000, b"x" * 30_000),
    "short upload": (post(b"/v1/files", b"Content-Length: 1000") + b"x", b"x" * 999),
}


@asynccontextmanager
async def started(folder: Path, upstream: ScriptedUpstream) -> AsyncIterator[Process]:
    process = await asyncio.to_thread(Process, folder, free_port(), "--upstream", upstream.base_url)
    try:
        yield process
    finally:
        process.popen.kill()
        await asyncio.to_thread(process.wait)


@asynccontextmanager
async def connected(process: Process) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = process.base_url.split("/")[2].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def until_read(process: Process) -> None:
    """Until it has read what was sent to it: it does so before it responds to a later request."""
    async with ClientSession() as session, session.get(process.admin_url + "/readyz") as response:
        assert response.status == 200


async def response_of(reader: asyncio.StreamReader) -> bytes:
    """All that comes, without interim responses."""
    return (await reader.read()).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")


@pytest.mark.parametrize("how", CUT)
async def test_a_request_whose_body_is_still_arriving_gets_its_response(
    upstream: ScriptedUpstream, tmp_path: Path, how: str
) -> None:
    upstream.reply = lambda call: upstream.embed(call) if b"model" in call.body else web.Response(text=call.target)
    first, rest = CUT[how]
    async with started(tmp_path, upstream) as process, connected(process) as (idle, _):
        async with connected(process) as (reader, writer):
            writer.write(first)
            await until_read(process)
            process.popen.send_signal(signal.SIGTERM)
            assert await idle.read() == b""  # from now on, no further request is accepted
            writer.write(rest)
            response = await response_of(reader)
        assert (await asyncio.to_thread(process.wait))[0] == 0
    assert response.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close" in response.partition(b"\r\n\r\n")[0]
    assert response.endswith(b"/v1/files" if b"/v1/files" in first else b"}")


async def test_a_head_that_waits_for_its_body_gets_its_response(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """The head of a request that the fast path knows is not parsed until more bytes arrive."""
    async with started(tmp_path, upstream) as process, connected(process) as (idle, _):
        async with connected(process) as (reader, writer):
            for _ in range(3):
                writer.write(EMBED + BODY)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, _, after = head.partition(b"content-length: ")
                await reader.readexactly(int(after.split(b"\r\n")[0]))
            writer.write(EMBED)
            await until_read(process)
            process.popen.send_signal(signal.SIGTERM)
            assert await idle.read() == b""
            writer.write(BODY)
            response = await response_of(reader)
        assert (await asyncio.to_thread(process.wait))[0] == 0
    assert response.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nX-Cache: HIT\r\n" in response


async def test_response_is_sent_completely_during_drain(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    size = 8 * 1024 * 1024
    upstream.reply = lambda _: web.Response(body=b"x" * size)
    async with started(tmp_path, upstream) as process, connected(process) as (idle, _):
        async with connected(process) as (reader, writer):
            writer.write(b"GET /v1/files/1/content HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            process.popen.send_signal(signal.SIGTERM)
            assert await idle.read() == b""
            assert len(await reader.read()) == size
        assert (await asyncio.to_thread(process.wait))[0] == 0
