"""The timeouts of connections, their limit, and how they are closed. The test controls the clock."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from proxy.http import limited_connection, lingering
from proxy.http.connection import Connection
from proxy.http.timeouts import HEAD_TIMEOUT_S as HEAD_S
from proxy.http.timeouts import IDLE_TIMEOUT_S as IDLE_S
from proxy.http.timeouts import LINGER_S
from tests.support.site import Heard, Site, Streams, until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def read_ok(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\nok")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site(max_connections=3).serving() as site:
        yield site


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "])
async def test_a_head_that_does_not_arrive_is_a_408(site: Site, sent: bytes) -> None:
    reader, _ = await site.connect(sent)
    site.pass_time(HEAD_S)
    assert len(site.server.connections) == 1
    site.pass_time(0.1)
    response = await reader.read()
    assert response.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nConnection: close\r\n" in response
    assert b'"code":"request_timeout"' in response
    site.pass_time(LINGER_S + 0.1)
    await until(lambda: not site.server.connections)


async def test_dripping_bytes_do_not_prolong_it(site: Site) -> None:
    reader, writer = await site.connect(b"GET / HTTP/1.1\r\n")
    heard = Heard(site.connection)
    site.pass_time(HEAD_S - 1)
    writer.write(b"X-A: 1")
    await until(lambda: heard.bytes > 0)
    site.pass_time(2)
    assert (await reader.read()).startswith(b"HTTP/1.1 408 ")


async def test_a_head_that_arrives_just_in_time_gets_a_response(site: Site) -> None:
    reader, writer = await site.connect(GET[:10])
    site.pass_time(HEAD_S)
    writer.write(GET[10:])
    assert (await read_ok(reader)).startswith(b"HTTP/1.1 200 ")


async def test_half_a_second_head_is_a_408(site: Site) -> None:
    reader, writer = await site.connect(GET)
    await read_ok(reader)
    site.pass_time(IDLE_S - 1)
    heard = Heard(site.connection)
    writer.write(GET[:10])
    await until(lambda: heard.bytes > 0)
    site.pass_time(HEAD_S)
    assert site.server.connections
    site.pass_time(0.1)
    assert (await reader.read()).startswith(b"HTTP/1.1 408 ")


async def test_an_idle_connection_is_closed_without_a_response(site: Site) -> None:
    reader, _ = await site.connect(GET)
    await read_ok(reader)
    site.pass_time(IDLE_S)
    assert site.server.connections
    site.pass_time(0.1)
    assert await reader.read() == b""


async def test_each_request_restarts_the_idle_timeout(site: Site) -> None:
    reader, writer = await site.connect()
    for _ in range(4):
        site.pass_time(HEAD_S - 1)
        writer.write(GET)
        assert (await read_ok(reader)).startswith(b"HTTP/1.1 200 ")
        site.pass_time(IDLE_S - HEAD_S)


async def test_a_busy_connection_stays(site: Site) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        begun.set()
        await go_on.wait()
        return await site.respond(request)

    site.handler = wait
    reader, _ = await site.connect(GET)
    await begun.wait()
    site.pass_time(24 * 3600)
    go_on.set()
    assert (await read_ok(reader)).startswith(b"HTTP/1.1 200 ")


async def test_a_stream_of_hours_stays(site: Site) -> None:
    go_on = asyncio.Queue[bytes]()

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while event := await go_on.get():
            await response.write(event)
        return response

    site.handler = stream
    reader, writer = await site.connect(GET)
    writer.write(GET[:10])  # part of the next request does not end this one
    for number in range(5):
        go_on.put_nowait(b"data: %d\n\n" % number)
        await reader.readuntil(b"data: %d\n\n" % number)
        site.pass_time(3600)
    go_on.put_nowait(b"")
    assert (await reader.readuntil(b"0\r\n\r\n")).endswith(b"0\r\n\r\n")


async def test_one_connection_too_many_is_a_503(site: Site) -> None:
    first, *_ = [await site.connect() for _ in range(3)]
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    refused = await reader.read()
    writer.close()
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 1\r\n" in refused
    assert b"\r\nConnection: close\r\n" in refused
    first[1].write(GET)
    assert (await read_ok(first[0])).startswith(b"HTTP/1.1 200 ")
    await until(lambda: len(site.server.connections) == 3)

    first[1].close()
    await until(lambda: len(site.server.connections) == 2)
    reader, _ = await site.connect(GET)
    assert (await read_ok(reader)).startswith(b"HTTP/1.1 200 ")


async def test_silent_connections_make_room_for_others(site: Site) -> None:
    for _ in range(3):
        await site.connect()
    site.pass_time(HEAD_S + 1)
    site.pass_time(LINGER_S + 0.1)
    await until(lambda: not site.server.connections)
    reader, _ = await site.connect(GET)
    assert (await read_ok(reader)).startswith(b"HTTP/1.1 200 ")


# --- how a connection with unread input is closed


BAD = b"GET / HTTP/1.1\r\nHost: x\r\nX-A: \x01\r\n\r\n"


def discarded_bytes(connection: Connection) -> int:
    assert connection._lingering is not None
    return connection._lingering.discarded_bytes


@pytest.fixture
async def broken(site: Site) -> Streams:
    """A connection that got a 400 and lingers."""
    reader, writer = await site.connect(BAD)
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")  # and nothing after it
    assert site.server.connections
    return reader, writer


async def test_a_client_that_still_sends_reads_the_response(site: Site) -> None:
    """A reset would destroy it: this client reads only after it has sent everything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(BAD + b"x" * 500_000)
    await writer.drain()
    response = await reader.read()
    assert response.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in response
    writer.close()
    await writer.wait_closed()  # raises where the connection was reset
    await until(lambda: not site.server.connections)


async def test_a_client_that_closes_is_not_lingered_for(site: Site, broken: Streams) -> None:
    broken[1].close()
    await until(lambda: not site.server.connections)


async def test_a_connection_lingers_no_longer_than_its_time(site: Site, broken: Streams) -> None:
    site.pass_time(LINGER_S)
    assert site.server.connections
    site.pass_time(0.1)
    await until(lambda: not site.server.connections)


async def test_a_client_that_sends_without_end_is_not_lingered_for(site: Site, broken: Streams) -> None:
    broken[1].write(b"x" * lingering._MAX_DISCARDED_BYTES)
    heard = site.connection
    await until(lambda: discarded_bytes(heard) == lingering._MAX_DISCARDED_BYTES)
    assert site.server.connections
    broken[1].write(b"x")
    await until(lambda: not site.server.connections)


async def test_requests_sent_while_lingering_get_no_response(site: Site, broken: Streams) -> None:
    reader, writer = broken
    writer.write(GET)
    await until(lambda: discarded_bytes(site.connection) == len(GET))
    site.pass_time(LINGER_S + 0.1)
    assert await reader.read() == b""


async def test_far_too_many_connections_are_closed_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_connection, "_MAX_EXCESS", 1)
    for _ in range(4):
        await site.connect()
    assert len(site.server.connections) == 4  # one of which lingers
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
    await until(lambda: len(site.server.connections) == 4)
    writer.close()
    await writer.wait_closed()


async def test_a_good_request_before_a_bad_one_gets_its_own_response(site: Site) -> None:
    reader, _ = await site.connect(GET)
    await read_ok(reader)
    reader, _ = await site.connect(GET[:-2])
    site.connection.data_received(b"\r\n" + GET)
    site.connection.data_received(BAD)
    response = await reader.read()
    assert response.count(b"HTTP/1.1 200 ") == 2
    assert response.count(b"HTTP/1.1 400 ") == 1
