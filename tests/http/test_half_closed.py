"""Clients that close their side of the connection behind a request: some have left, and some wait for the response."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from proxy.config.settings import UpstreamSetting
from proxy.http import liveness
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.gate import Gate
from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.scripted import ScriptedUpstream
from tests.support.site import Site, Streams, until

SILENCE_S = liveness._HALF_CLOSED_TIMEOUT_S
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
BODY = b'{"model":"m","input":"text"}'
GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
MISS = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n" + BODY
CHUNKED = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
UPLOAD = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
REQUESTS = {"GET": GET, "miss": MISS, "chunked": CHUNKED, "upload": UPLOAD}


@asynccontextmanager
async def half_closed(origin: str, request: bytes) -> AsyncIterator[asyncio.StreamReader]:
    host, port = origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    writer.write_eof()
    try:
        yield reader
    finally:
        writer.close()


async def read_response(reader: asyncio.StreamReader) -> bytes:
    """All bytes that arrive, without interim responses."""
    return (await reader.read()).replace(CONTINUE, b"")


# --- clients that wait


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_a_client_that_closes_its_side_gets_its_response(
    client: Client, upstream: ScriptedUpstream, request_: bytes
) -> None:
    gate = Gate(upstream)
    gate.answer = lambda call: upstream.embed(call) if call.body == BODY else web.Response(text="the response")
    async with half_closed(client.origin, request_) as reader:
        assert await reader.readexactly(len(CONTINUE)) == CONTINUE  # the proxy has seen the end
        await gate.calls(1)
        gate.open()
        response = await read_response(reader)
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body.endswith(b"the response") or b'"embedding":[' in body


async def test_a_client_that_closes_its_side_gets_a_hit(client: Client) -> None:
    await client.post(BODY, key=None)
    async with half_closed(client.origin, MISS) as reader:
        response = await read_response(reader)
    assert b"\r\nX-Cache: HIT\r\n" in response
    assert b'"embedding":[' in response


async def test_requests_in_one_packet_all_get_responses(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda call: web.Response(text=call.target)
    requests = b"".join(GET.replace(b"models", b"models/%d" % number) for number in range(3))
    async with half_closed(client.origin, requests) as reader:
        response = await read_response(reader)
    assert [response.count(b"/v1/models/%d" % number) for number in range(3)] == [1, 1, 1]


async def test_half_a_body_has_no_response(client: Client, upstream: ScriptedUpstream) -> None:
    async with half_closed(client.origin, MISS[:-1]) as reader:
        assert await reader.read() == b""
    assert not upstream.calls


@pytest.mark.parametrize("request_", [GET, MISS])
async def test_a_process_responds_to_clients_that_close_their_side(
    upstream: ScriptedUpstream, tmp_path: Path, request_: bytes
) -> None:
    """Its event loop is not that of the tests."""
    gate = Gate(upstream)
    gate.answer = lambda call: upstream.embed(call) if call.body else web.Response(text="the response")
    async with started(tmp_path, upstream.base_url) as origin, half_closed(origin, request_) as reader:
        assert await reader.readexactly(len(CONTINUE)) == CONTINUE
        await gate.calls(1)
        gate.open()
        response = await read_response(reader)
    assert response.startswith(b"HTTP/1.1 200 ")
    assert response.endswith((b"the response", b"}"))


# --- clients that have left


class Silent:
    """An upstream that never responds, and sees when the proxy disconnects."""

    def __init__(self) -> None:
        self.asked, self.left = asyncio.Event(), asyncio.Event()
        self.head = b""  # of a response that does not go on

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.head)
        self.asked.set()
        await reader.read()
        self.left.set()
        writer.close()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def leave(origin: str, upstream: Silent) -> None:
    host, port = origin.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(GET)
    await upstream.asked.wait()
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_leaves_before_its_response_is_noticed(start_proxy: StartProxy) -> None:
    silent = Silent()
    async with silent.serving() as base_url:
        client = await start_proxy(upstream=UpstreamSetting(name="silent", base_url=base_url))
        await leave(client.origin, silent)
        await silent.left.wait()


async def test_a_process_notices_a_client_that_leaves_before_its_response(tmp_path: Path) -> None:
    silent = Silent()
    async with silent.serving() as base_url, started(tmp_path, base_url) as origin:
        await leave(origin, silent)
        await silent.left.wait()


@asynccontextmanager
async def started(folder: Path, base_url: str) -> AsyncIterator[str]:
    """A process's origin."""
    process = await asyncio.to_thread(Process, folder, free_port(), "--upstream", base_url, "--store", "memory:")
    try:
        yield process.base_url.removesuffix("/v1")
    finally:
        await asyncio.to_thread(process.stop, signal.SIGKILL)


# --- where the two look the same


class Handler:
    """Responds as the test says."""

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


async def test_an_http_1_0_client_that_says_nothing_more_is_taken_to_have_left(site: Site) -> None:
    """It can't be asked."""
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
    """Its kernel tells when it has handled what was sent, and then a sweep sees it."""

    def is_cancelled() -> bool:
        site.server.sweep()
        return handler.is_cancelled.is_set()

    await until(is_cancelled)


async def test_a_response_is_read_to_its_end(site: Site) -> None:
    """Though the connection is being closed behind it, and sweeps go on."""
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


# --- what the kernel knows


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
