"""Clients that closed their side: one that waits and one that has left look the same. The test controls the clock."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from proxy.http import liveness
from tests.support.site import Site, Streams, until

SILENCE_S = liveness._HALF_CLOSED_TIMEOUT_S
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Handler:
    """Responds when the test tells it to."""

    def __init__(self) -> None:
        self.begun, self.is_cancelled = asyncio.Event(), asyncio.Event()
        self.events = asyncio.Queue[bytes]()

    async def never(self, _: web.BaseRequest) -> web.StreamResponse:
        try:
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.is_cancelled.set()
        raise AssertionError

    async def stream(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        self.begun.set()
        try:
            while event := await self.events.get():
                await response.write(event)
        except asyncio.CancelledError:
            self.is_cancelled.set()
            raise
        return response

    async def once(self, _: web.BaseRequest) -> web.StreamResponse:
        self.begun.set()
        return web.Response(body=await self.events.get())


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site(max_connections=3).serving() as site:
        yield site


async def ask(
    site: Site, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], request: bytes
) -> Streams:
    """A client that closes its side when its request is being handled."""
    site.handler = handler
    reader, writer = await site.connect(request)
    owner: Handler = handler.__self__  # type: ignore[attr-defined]
    await owner.begun.wait()
    writer.write_eof()
    connection = site.connection
    await until(lambda: connection._half_closed is not None)
    return reader, writer


OLD = b"GET / HTTP/1.0\r\n\r\n"


async def test_a_client_that_waits_is_probed_periodically(site: Site) -> None:
    handler = Handler()
    reader, _ = await ask(site, handler.once, GET)
    for _ in range(5):
        site.pass_time(SILENCE_S - 1)
        assert site.server.connections
        site.pass_time(1.1)
    handler.events.put_nowait(b"late")
    response = await reader.read()
    assert response.startswith(CONTINUE * 6 + b"HTTP/1.1 200 ")
    assert response.endswith(b"late")


async def test_one_that_leaves_while_it_waits_is_noticed(site: Site) -> None:
    handler = Handler()
    _, writer = await ask(site, handler.never, GET)
    writer.close()
    await writer.wait_closed()
    site.pass_time(SILENCE_S + 0.1)
    await until_swept(site, handler)


async def test_a_silent_http_1_0_client_counts_as_gone(site: Site) -> None:
    """It can't be probed: HTTP/1.0 has no interim responses."""
    handler = Handler()
    await ask(site, handler.never, OLD)
    site.pass_time(SILENCE_S)
    assert not handler.is_cancelled.is_set()
    site.pass_time(0.1)
    await handler.is_cancelled.wait()


async def test_an_http_1_0_client_gets_no_interim_response(site: Site) -> None:
    handler = Handler()
    reader, _ = await ask(site, handler.once, OLD)
    handler.events.put_nowait(b"body")
    assert (await reader.read()).startswith(b"HTTP/1.0 200 ")


async def test_a_stream_that_goes_on_is_read_to_its_end(site: Site) -> None:
    handler = Handler()
    reader, _ = await ask(site, handler.stream, GET)
    for number in range(5):
        site.pass_time(SILENCE_S - 1)
        handler.events.put_nowait(b"event %d" % number)
        assert b"event %d" % number in await reader.readuntil(b"event %d" % number)
        site.pass_time(0)
    handler.events.put_nowait(b"")
    assert (await reader.read()).endswith(b"0\r\n\r\n")


async def test_a_stream_in_silence_ends_for_one_that_may_have_left(site: Site) -> None:
    handler = Handler()
    await ask(site, handler.stream, GET)
    site.pass_time(0)
    site.pass_time(SILENCE_S)
    assert not handler.is_cancelled.is_set()
    site.pass_time(0.1)
    await handler.is_cancelled.wait()


async def test_one_that_has_left_is_noticed_at_the_next_event(site: Site) -> None:
    handler = Handler()
    _, writer = await ask(site, handler.stream, GET)
    writer.close()
    await writer.wait_closed()
    handler.events.put_nowait(b"event")
    await until_swept(site, handler)


async def until_swept(site: Site, handler: Handler) -> None:
    """The client's kernel responds once it has received what was sent. Then a sweep sees it."""

    def is_cancelled() -> bool:
        site.server.sweep()
        return handler.is_cancelled.is_set()

    await until(is_cancelled)


async def test_a_response_is_read_to_its_end(site: Site) -> None:
    """Although the connection is being closed after it, and sweeps continue."""
    handler = Handler()
    size = 12 * 1024 * 1024
    reader, _ = await ask(site, handler.once, GET)
    handler.events.put_nowait(b"x" * size)
    received = 0
    while chunk := await reader.read(1024 * 1024):
        received += chunk.count(b"x")
        site.pass_time(1)
    assert received >= size
    await until(lambda: not site.server.connections)


# --- what the kernel reports


async def pair(kind: str) -> tuple[asyncio.Transport, socket.socket]:
    """A connection's two ends; asyncio has the first."""
    loop = asyncio.get_running_loop()
    if kind == "unix":
        here, there = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            there = socket.create_connection(server.getsockname())
            here, _ = server.accept()
    there.setblocking(False)
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, here)
    return transport, there


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_closed_side_is_not_a_closed_connection(kind: str) -> None:
    transport, client = await pair(kind)
    assert not liveness.is_reset(transport)
    client.shutdown(socket.SHUT_WR)
    transport.write(CONTINUE)
    assert await asyncio.get_running_loop().sock_recv(client, 100) == CONTINUE
    assert not liveness.is_reset(transport)
    client.close()
    transport.write(CONTINUE)
    await until(lambda: liveness.is_reset(transport))
    transport.abort()
