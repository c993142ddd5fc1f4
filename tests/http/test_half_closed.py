"""Clients that close their side of the connection after a request: some have left, and some wait for the response."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from proxy.config.settings import UpstreamSetting
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.gate import Gate
from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.scripted import ScriptedUpstream

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
