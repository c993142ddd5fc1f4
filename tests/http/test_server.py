"""How long a connection may take, and how many there may be. The clock is the test's own."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import http_parser, web

from proxy.errors import ConfigError, RequestTimeout
from proxy.http import limited_connection, lingering, pacing
from proxy.http.aiohttp_seam import require_strict_parser
from proxy.http.connection import Connection
from proxy.http.pacing import paced
from proxy.http.timeouts import HEAD_TIMEOUT_S as HEAD_S
from proxy.http.timeouts import IDLE_TIMEOUT_S as IDLE_S
from proxy.http.timeouts import LINGER_S
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.scripted import ScriptedUpstream
from tests.support.site import Heard, Site, Streams, until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answered(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\nok")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site(max_connections=3).serving() as site:
        yield site


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "])
async def test_a_head_that_does_not_come_is_a_408(site: Site, sent: bytes) -> None:
    reader, _ = await site.connect(sent)
    site.pass_time(HEAD_S)
    assert len(site.server.connections) == 1
    site.pass_time(0.1)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert b'"code":"request_timeout"' in answer
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


async def test_a_head_that_comes_late_but_in_time_is_answered(site: Site) -> None:
    reader, writer = await site.connect(GET[:10])
    site.pass_time(HEAD_S)
    writer.write(GET[10:])
    assert (await answered(reader)).startswith(b"HTTP/1.1 200 ")


async def test_half_a_second_head_is_a_408(site: Site) -> None:
    reader, writer = await site.connect(GET)
    await answered(reader)
    site.pass_time(IDLE_S - 1)
    heard = Heard(site.connection)
    writer.write(GET[:10])
    await until(lambda: heard.bytes > 0)
    site.pass_time(HEAD_S)
    assert site.server.connections
    site.pass_time(0.1)
    assert (await reader.read()).startswith(b"HTTP/1.1 408 ")


async def test_an_idle_connection_ends_without_a_word(site: Site) -> None:
    reader, _ = await site.connect(GET)
    await answered(reader)
    site.pass_time(IDLE_S)
    assert site.server.connections
    site.pass_time(0.1)
    assert await reader.read() == b""


async def test_each_request_lets_it_idle_anew(site: Site) -> None:
    reader, writer = await site.connect()
    for _ in range(4):
        site.pass_time(HEAD_S - 1)
        writer.write(GET)
        assert (await answered(reader)).startswith(b"HTTP/1.1 200 ")
        site.pass_time(IDLE_S - HEAD_S)


async def test_a_busy_connection_stays(site: Site) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        begun.set()
        await go_on.wait()
        return await site.answer(request)

    site.handler = wait
    reader, _ = await site.connect(GET)
    await begun.wait()
    site.pass_time(24 * 3600)
    go_on.set()
    assert (await answered(reader)).startswith(b"HTTP/1.1 200 ")


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
    writer.write(GET[:10])  # the next is on its way, which is no reason to end this one
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
    assert (await answered(first[0])).startswith(b"HTTP/1.1 200 ")
    await until(lambda: len(site.server.connections) == 3)

    first[1].close()
    await until(lambda: len(site.server.connections) == 2)
    reader, _ = await site.connect(GET)
    assert (await answered(reader)).startswith(b"HTTP/1.1 200 ")


async def test_who_says_nothing_makes_room_for_others(site: Site) -> None:
    for _ in range(3):
        await site.connect()
    site.pass_time(HEAD_S + 1)
    site.pass_time(LINGER_S + 0.1)
    await until(lambda: not site.server.connections)
    reader, _ = await site.connect(GET)
    assert (await answered(reader)).startswith(b"HTTP/1.1 200 ")


# --- how a connection ends that has unread input


BAD = b"GET / HTTP/1.1\r\nHost: x\r\nX-A: \x01\r\n\r\n"


def discarded_bytes(connection: Connection) -> int:
    assert connection._lingering is not None
    return connection._lingering.discarded_bytes


@pytest.fixture
async def broken(site: Site) -> Streams:
    """A connection that was answered 400 and lingers."""
    reader, writer = await site.connect(BAD)
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")  # and nothing after it
    assert site.server.connections
    return reader, writer


async def test_a_client_that_still_sends_reads_the_response(site: Site) -> None:
    """A reset would destroy it; the client reads only when it has sent all."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(BAD + b"x" * 500_000)
    await writer.drain()
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in answer
    writer.close()
    await writer.wait_closed()  # raises where the connection was reset
    await until(lambda: not site.server.connections)


async def test_a_client_that_closes_is_not_lingered_for(site: Site, broken: Streams) -> None:
    broken[1].close()
    await until(lambda: not site.server.connections)


async def test_lingering_ends(site: Site, broken: Streams) -> None:
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


async def test_nothing_sent_while_lingering_is_answered(site: Site, broken: Streams) -> None:
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


async def test_a_good_request_before_a_bad_one_has_its_own_answer(site: Site) -> None:
    reader, _ = await site.connect(GET)
    await answered(reader)
    reader, _ = await site.connect(GET[:-2])
    site.connection.data_received(b"\r\n" + GET)
    site.connection.data_received(BAD)
    answer = await reader.read()
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert answer.count(b"HTTP/1.1 400 ") == 1


# --- bodies


class Body:
    """A body that comes as the test says, and the time that its reader sees. It looks like aiohttp's."""

    def __init__(self) -> None:
        self.time = 0.0
        self._coming: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._is_over = False
        self.chunks = paced(self, now=lambda: self.time)  # type: ignore[arg-type]

    def at_eof(self) -> bool:
        return self._is_over

    async def readany(self) -> bytes:
        for _ in range(3):  # it has to be waited for
            await asyncio.sleep(0)
        after_s, chunk = await self._coming.get()
        self.time += after_s
        self._is_over = not chunk
        return chunk

    async def next(self, size: int, after_s: float) -> bytes:
        """The next chunk, which is ``size`` bytes that come after the reader has waited so long."""
        self._coming.put_nowait((after_s, b"x" * size))
        return await anext(self.chunks)


async def test_a_body_that_drips_is_a_timeout() -> None:
    body = Body()

    async def drip() -> None:
        for _ in range(1000):
            await body.next(1, after_s=1.0)

    with pytest.raises(RequestTimeout):
        await drip()
    assert body.time <= pacing._BODY_GRACE_S + 1


async def test_a_slow_but_steady_body_is_read() -> None:
    body = Body()
    for _ in range(1000):
        assert len(await body.next(17_000, after_s=1.0)) == 17_000
    with pytest.raises(StopAsyncIteration):
        await body.next(0, after_s=1.0)


async def test_what_is_done_with_a_chunk_takes_no_time_of_the_clients() -> None:
    body = Body()
    for _ in range(100):
        await body.next(1, after_s=0.1)
        body.time += 3600


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_BODY_GRACE_S", 0.0)


async def test_a_fast_start_earns_no_silence_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    body = Body()
    monkeypatch.setattr(pacing, "_BODY_SILENCE_S", 10.0)
    assert len(await body.next(10_000_000, after_s=0.0)) == 10_000_000
    monkeypatch.setattr(pacing, "_BODY_SILENCE_S", 0.0)
    with pytest.raises(RequestTimeout):
        await anext(body.chunks)


@pytest.mark.usefixtures("no_grace")
async def test_an_embeddings_body_that_does_not_come_is_a_408(client: Client, upstream: ScriptedUpstream) -> None:
    async with sent(client, b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n") as (reader, _):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nConnection: close\r\n" in head
    assert not upstream.calls
    assert await client.metric("embedding_proxy_held_bytes") == 0
    assert (await client.send("GET", "/v1/embeddings")).status != 408


@pytest.mark.usefixtures("no_grace")
async def test_an_upload_that_does_not_go_on_is_a_408_and_cancelled_upstream(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.set_result(await reader.read())
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        upstream.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        client = await start_proxy()
        request = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"x" * 1024
        async with sent(client, request) as (reader, _):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nConnection: close\r\n" in head
        assert (await received).count(b"x" * 1024) == 1


@asynccontextmanager
async def sent(client: Client, request: bytes) -> AsyncIterator[Streams]:
    host, port = client.origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        yield reader, writer
    finally:
        writer.close()


def test_the_lenient_parser_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_strict_parser()
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    with pytest.raises(ConfigError, match="AIOHTTP_NO_EXTENSIONS"):
        require_strict_parser()


def test_a_proxy_without_the_strict_parser_does_not_start() -> None:
    command = [sys.executable, "-m", "proxy", "serve", "--port", "0", "--admin-port", "0", "--store", "memory:"]
    run = subprocess.run(
        command, env=os.environ | {"AIOHTTP_NO_EXTENSIONS": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "aiohttp is installed without its C parser" in run.stdout + run.stderr
