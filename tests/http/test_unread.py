"""Responses that a client reads slowly, or not at all. The clock is the test's own."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from proxy.http import liveness
from proxy.http.connection import Connection
from proxy.http.timeouts import IDLE_TIMEOUT_S
from tests.support.site import Site, until

UNREAD_S = liveness._UNREAD_TIMEOUT_S
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
# More than the kernel's buffers take.
SIZE = 12 * 1024 * 1024
SMALL_BUFFER = 8 * 1024


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site(max_connections=3).serving() as site:
        yield site


async def large(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b"x" * SIZE)


def waiting(connection: Connection) -> int:
    """Bytes that the client has not read yet."""
    unread = liveness.Unread()
    assert connection._transport is not None
    unread.update(connection._transport, 0.0)
    return unread.size


class SlowClient:
    """Reads only when the test tells it to."""

    def __init__(self, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        self._socket.setblocking(False)
        self._port = port
        self.xs = 0  # so many of them came

    async def connect(self, site: Site) -> Connection:
        """The server's side of the connection, after a request."""
        await self._loop.sock_connect(self._socket, ("127.0.0.1", self._port))
        await self._loop.sock_sendall(self._socket, GET)
        await until(lambda: bool(site.server.connections))
        return site.connection

    async def ask(self, site: Site) -> Connection:
        """The same, once the client can receive no more."""
        connection = await self.connect(site)
        await until(lambda: waiting(connection) > 0)
        return connection

    async def read(self, size: int) -> bytes:
        """The next bytes, at most so many; none at the end."""
        received = await self._loop.sock_recv(self._socket, size)
        self.xs += received.count(b"x")
        return received

    async def read_some(self, connection: Connection) -> None:
        """Read until the server sees it."""
        before = waiting(connection)
        while waiting(connection) >= before:
            await self.read(4096)
            await asyncio.sleep(0)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def slow(site: Site) -> AsyncIterator[SlowClient]:
    client = SlowClient(site.port)
    yield client
    client.close()


async def test_a_client_that_stops_reading_is_disconnected_even_after_reading_for_long(
    site: Site, slow: SlowClient
) -> None:
    site.handler = large
    connection = await slow.ask(site)
    for _ in range(5):
        await slow.read_some(connection)
        site.pass_time(IDLE_TIMEOUT_S / 3)
    site.pass_time(UNREAD_S)
    assert site.server.connections
    site.pass_time(0.1)
    await until(lambda: not site.server.connections)


@pytest.mark.parametrize("is_last", [False, True], ids=["kept", "closed after it"])
async def test_a_response_that_is_read_slowly_arrives_in_full(site: Site, slow: SlowClient, is_last: bool) -> None:
    async def streamed(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(SIZE)})
        if is_last:
            response.force_close()
        await response.prepare(request)
        transport = request.transport
        assert transport is not None
        transport.write(b"x" * SIZE)  # without waiting for it to be taken, as short responses are
        return response

    site.handler = streamed
    connection = await slow.ask(site)
    await until(lambda: not connection.is_busy)
    for _ in range(5):
        await slow.read_some(connection)
        site.pass_time(UNREAD_S - 1)
    while slow.xs < SIZE:
        await slow.read(1024 * 1024)
    await until(lambda: connection._transport is None or not waiting(connection))
    site.pass_time(IDLE_TIMEOUT_S)
    assert bool(site.server.connections) is not is_last, "it may have another request"


async def test_reading_counts_while_the_kernel_takes_nothing_more(site: Site, slow: SlowClient) -> None:
    """The kernel asks for more when a third of its buffer is free, which may be megabytes later."""
    site.handler = large
    connection = await slow.ask(site)
    assert connection.transport is not None
    for _ in range(8):
        site.pass_time(1)
        before = connection.transport.get_write_buffer_size()
        await slow.read_some(connection)
        assert connection.transport.get_write_buffer_size() <= before
        site.pass_time(UNREAD_S - 1)
        assert site.server.connections


async def test_unread_events_end_the_connection(site: Site, slow: SlowClient) -> None:
    """They are so rare that it would take hours until the server may write no more."""
    events = asyncio.Queue[bytes]()
    written = 0

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            event = await events.get()
            await response.write(event)
            written += 1

    site.handler = stream
    events.put_nowait(b"x" * 4 * SMALL_BUFFER)
    connection = await slow.connect(site)
    assert connection.transport is not None
    own = connection.transport.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    while not connection.transport.get_write_buffer_size():
        events.put_nowait(b"x" * SMALL_BUFFER)
        await until(events.empty)
    site.pass_time(0)
    for number in range(7):
        assert site.server.connections
        expected = written + 1
        events.put_nowait(b"data: %d\n\n" % number)
        await until(lambda expected=expected: written == expected)  # type: ignore[misc]
        site.pass_time(UNREAD_S / 6)
    await until(lambda: not site.server.connections)


async def test_an_unread_response_delays_draining_no_longer_than_its_timeout(site: Site, slow: SlowClient) -> None:
    site.handler = large
    connection = await slow.ask(site)
    for _ in range(5):
        await slow.read_some(connection)
        site.pass_time(IDLE_TIMEOUT_S / 3)
    stopping = asyncio.create_task(site.stop(shutdown_timeout_s=3600.0))
    await until(lambda: connection._is_retired)
    site.pass_time(UNREAD_S + 0.1)
    async with asyncio.timeout(10):
        await stopping
