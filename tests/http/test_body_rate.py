"""The minimum rate of a request body."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.errors import RequestTimeout
from proxy.http import body_rate
from proxy.http.body_rate import paced
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.scripted import ScriptedUpstream
from tests.support.site import Streams


class Body:
    """A body whose chunks the test sends, and the clock of its reader. It has the methods of aiohttp's."""

    def __init__(self) -> None:
        self.time = 0.0
        self._coming: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._is_over = False
        self.chunks = paced(self, now=lambda: self.time)  # type: ignore[arg-type]

    def at_eof(self) -> bool:
        return self._is_over

    async def readany(self) -> bytes:
        for _ in range(3):  # the reader has to wait for it
            await asyncio.sleep(0)
        after_s, chunk = await self._coming.get()
        self.time += after_s
        self._is_over = not chunk
        return chunk

    async def next(self, size: int, after_s: float) -> bytes:
        """The next chunk: ``size`` bytes that arrive after the reader has waited ``after_s``."""
        self._coming.put_nowait((after_s, b"x" * size))
        return await anext(self.chunks)


async def test_a_body_that_drips_is_a_timeout() -> None:
    body = Body()

    async def drip() -> None:
        for _ in range(1000):
            await body.next(1, after_s=1.0)

    with pytest.raises(RequestTimeout):
        await drip()
    assert body.time <= body_rate._BODY_GRACE_S + 1


async def test_a_slow_but_steady_body_is_read() -> None:
    body = Body()
    for _ in range(1000):
        assert len(await body.next(17_000, after_s=1.0)) == 17_000
    with pytest.raises(StopAsyncIteration):
        await body.next(0, after_s=1.0)


async def test_time_spent_on_a_chunk_does_not_count() -> None:
    body = Body()
    for _ in range(100):
        await body.next(1, after_s=0.1)
        body.time += 3600


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_rate, "_BODY_GRACE_S", 0.0)


async def test_a_fast_start_does_not_allow_endless_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    body = Body()
    monkeypatch.setattr(body_rate, "_BODY_SILENCE_S", 10.0)
    assert len(await body.next(10_000_000, after_s=0.0)) == 10_000_000
    monkeypatch.setattr(body_rate, "_BODY_SILENCE_S", 0.0)
    with pytest.raises(RequestTimeout):
        await anext(body.chunks)


@pytest.mark.usefixtures("no_grace")
async def test_an_embeddings_body_that_does_not_arrive_is_a_408(client: Client, upstream: ScriptedUpstream) -> None:
    async with sent(client, b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n") as (reader, _):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nConnection: close\r\n" in head
    assert not upstream.calls
    assert await client.metric("embedding_proxy_held_bytes") == 0
    assert (await client.send("GET", "/v1/embeddings")).status != 408


@pytest.mark.usefixtures("no_grace")
async def test_an_upload_that_stops_is_a_408_and_cancelled_upstream(
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
