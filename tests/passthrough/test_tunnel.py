"""WebSockets byte by byte: each side receives exactly the bytes that the other sent, with back-pressure."""

import asyncio
import random
import socket
import struct
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha1

import orjson
import pytest
from aiohttp import web

from proxy.app import running
from proxy.config.settings import MIB, UpstreamSetting
from proxy.passthrough import tunnel
from tests.conftest import StartProxy
from tests.passthrough.test_frames import frame
from tests.support.client import Client, raw
from tests.support.scripted import Call, ScriptedUpstream, error_reply
from tests.support.settings import settings_for

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = (
    b"GET /v1/realtime?model=m HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n"
)
GOING_AWAY, BROKE_OFF = b"\x03\xe9", b"\x03\xf3"
# Per direction: a buffer of the proxy's, one read of the transport, one slice, and a transport's own buffer.
MOST_HELD = MIB // 2


def accept_of(key: str) -> str:
    guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    return b64encode(sha1((key + guid).encode(), usedforsecurity=False).digest()).decode()


@dataclass
class Side:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        its: socket.socket = self.writer.get_extra_info("socket")
        its.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class RawUpstream:
    """Opens every WebSocket and leaves the connection to the test."""

    base_url: str = ""
    fields: str = ""
    heads: list[str] = field(default_factory=list)
    opened: asyncio.Queue[Side] = field(default_factory=asyncio.Queue)

    async def _open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        key = next(line for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key: "))
        accept = accept_of(key.partition(": ")[2])
        writer.write(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n{self.fields}\r\n".encode()
        )
        self.opened.put_nowait(Side(reader, writer))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["RawUpstream"]:
        async with await asyncio.start_server(self._open, "127.0.0.1", 0) as server:
            self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            yield self


@pytest.fixture
async def raw_upstream() -> AsyncIterator[RawUpstream]:
    async with RawUpstream().serving() as upstream:
        yield upstream


@pytest.fixture
async def proxied(start_proxy: StartProxy, raw_upstream: RawUpstream) -> Client:
    return await start_proxy(upstream=UpstreamSetting(name="raw", base_url=raw_upstream.base_url))


@pytest.fixture
def tunnels(monkeypatch: pytest.MonkeyPatch) -> list[tunnel.Tunnel]:
    """Those that were opened."""
    opened: list[tunnel.Tunnel] = []

    class Noted(tunnel.Tunnel):
        def __init__(self, *ends: object) -> None:
            super().__init__(*ends)  # type: ignore[arg-type]
            opened.append(self)

    monkeypatch.setattr(tunnel, "Tunnel", Noted)
    return opened


@asynccontextmanager
async def joined(origin: str, upstream: RawUpstream, early: bytes = b"", fields: bytes = b"") -> AsyncIterator[
    tuple[Side, Side]
]:  # fmt: skip
    """The client's side and the upstream's, of a WebSocket that is open."""
    host, port = origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    client = Side(reader, writer)
    await client.send(HANDSHAKE % KEY + fields + b"\r\n" + early)
    there = await upstream.opened.get()
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 101 ")
        assert f"Sec-WebSocket-Accept: {accept_of(KEY.decode())}\r\n" in head
        yield client, there
    finally:
        for side in (client, there):
            await side.close()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0)


async def test_websocket_bytes_arrive_unchanged(proxied: Client, raw_upstream: RawUpstream) -> None:
    """Masks, fragments, reserved bits and opcodes that nobody has described."""
    dice = random.Random(20261130)

    def anything(*, is_masked: bool) -> bytes:
        sizes = [dice.choice([0, 1, 125, 126, 65535, 70_000]) for _ in range(30)]
        return b"".join(
            frame(dice.choice([0, 1, 2, 9, 10, 3, 0x72]), dice.randbytes(size), is_masked=is_masked, is_last=False)
            for size in sizes
        )

    up, down = anything(is_masked=True), anything(is_masked=False)
    async with joined(proxied.origin, raw_upstream) as (client, upstream), asyncio.TaskGroup() as tasks:
        tasks.create_task(client.send(up))
        tasks.create_task(upstream.send(down))
        assert await upstream.reader.readexactly(len(up)) == up
        assert await client.reader.readexactly(len(down)) == down


async def test_bytes_sent_with_the_handshake_are_not_lost(proxied: Client, raw_upstream: RawUpstream) -> None:
    early = frame(1, b"early", is_masked=True)
    async with joined(proxied.origin, raw_upstream, early) as (_, upstream):
        assert await upstream.reader.readexactly(len(early)) == early


async def test_handshake_fields_are_forwarded(proxied: Client, raw_upstream: RawUpstream) -> None:
    raw_upstream.fields = "Sec-WebSocket-Extensions: permessage-deflate\r\nX-Its: 1\r\n"
    offered = (
        b"Sec-WebSocket-Protocol: realtime, other\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nAuthorization: Bearer k\r\n"
    )
    async with joined(proxied.origin, raw_upstream, fields=offered):
        head = raw_upstream.heads[0]
    assert head.startswith("GET /v1/realtime?model=m HTTP/1.1\r\n")
    for line in (*offered.decode().split("\r\n"), f"Sec-WebSocket-Key: {KEY.decode()}", "Sec-WebSocket-Version: 13"):
        assert line in head


async def test_messages_are_compressed_end_to_end(client: Client, upstream: ScriptedUpstream) -> None:
    seen: list[bool] = []

    async def echo(call: Call) -> web.StreamResponse:
        there = web.WebSocketResponse(compress=True)
        await there.prepare(call.request)
        seen.append(bool(there.compress))
        await there.send_str(await there.receive_str())
        await there.close()
        return there

    upstream.reply = echo
    url = client.origin.replace("http", "ws") + "/v1/realtime"
    async with client.session.ws_connect(url, compress=15) as here:
        assert (here.compress, seen) == (15, [True])
        await here.send_str("hello " * 1000)
        assert await here.receive_str() == "hello " * 1000


async def test_browser_credentials_are_removed_if_the_proxy_owns_the_key(
    start_proxy: StartProxy, raw_upstream: RawUpstream
) -> None:
    own = UpstreamSetting(name="raw", base_url=raw_upstream.base_url, key="sk-own")
    client = await start_proxy(upstream=own)
    fields = b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-theirs, openai-project.p\r\n"
    async with joined(client.origin, raw_upstream, fields=fields):
        pass
    assert "Sec-WebSocket-Protocol: realtime\r\n" in raw_upstream.heads[0]
    assert "theirs" not in raw_upstream.heads[0]


async def test_refused_handshake_is_relayed_with_its_body(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = error_reply(429, b'{"error":"later"}', retry_after="7")
    answer = await raw(client, HANDSHAKE % KEY + b"\r\n", end=b'{"error":"later"}')
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"Retry-After: 7\r\n" in answer


# --- back-pressure


def held(opened: tunnel.Tunnel) -> int:
    """Bytes in the proxy, of both directions."""
    ends = (opened._client, opened._upstream)
    written = (end._writer.transport for end in ends)
    return sum(end.received._size for end in ends) + sum(
        transport.get_write_buffer_size() for transport in written if transport is not None
    )


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_endless_message_is_not_buffered(
    proxied: Client, raw_upstream: RawUpstream, tunnels: list[tunnel.Tunnel], direction: str
) -> None:
    fragments = frame(2, b"x" * 60_000, is_masked=direction == "up", is_last=False) + b"".join(
        frame(0, b"x" * 60_000, is_masked=direction == "up", is_last=False) for _ in range(20)
    )
    async with joined(proxied.origin, raw_upstream) as (client, upstream):
        source, sink = (client, upstream) if direction == "up" else (upstream, client)
        (opened,) = tunnels
        end = opened._client if direction == "up" else opened._upstream

        async def talk() -> None:
            while True:
                await source.send(fragments)

        talking = asyncio.create_task(talk())
        transport = end._writer.transport
        assert transport is not None
        await until(lambda: not transport.is_reading())  # nobody reads at the other end
        assert held(opened) <= MOST_HELD
        most = read = 0
        while read < 24 * MIB:
            read += len(await sink.reader.read(MIB))
            most = max(most, held(opened))
        assert most <= MOST_HELD
        talking.cancel()
        await asyncio.wait([talking])


# --- closing


async def read_to_the_end(side: Side) -> bytes:
    """What a side is sent until the connection ends."""
    return await side.reader.read()


async def test_half_closed_client_still_gets_messages(proxied: Client, raw_upstream: RawUpstream) -> None:
    text, reply = frame(1, b"last words", is_masked=True), frame(1, b"an answer", is_masked=False)
    async with joined(proxied.origin, raw_upstream) as (client, upstream):
        await client.send(text)
        client.writer.write_eof()
        assert await read_to_the_end(upstream) == text + b"\x88\x82\0\0\0\0" + GOING_AWAY
        await upstream.send(reply + frame(8, BROKE_OFF, is_masked=False))
        upstream.writer.close()
        assert await read_to_the_end(client) == reply + frame(8, BROKE_OFF, is_masked=False)


async def test_upstream_that_stays_open_is_closed_after_a_timeout(
    proxied: Client, raw_upstream: RawUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "_HALF_CLOSED_S", 0.0)
    async with joined(proxied.origin, raw_upstream) as (client, upstream):
        client.writer.write_eof()
        await read_to_the_end(upstream)
        assert await read_to_the_end(client) == b"\x88\x02" + BROKE_OFF


async def test_lost_client_sends_going_away_to_the_upstream(proxied: Client, raw_upstream: RawUpstream) -> None:
    async with joined(proxied.origin, raw_upstream) as (client, upstream):
        client.reset()
        assert await read_to_the_end(upstream) == b"\x88\x82\0\0\0\0" + GOING_AWAY


async def test_no_second_close_frame_is_sent(proxied: Client, raw_upstream: RawUpstream) -> None:
    goodbye = frame(8, b"\x03\xe8", is_masked=True)
    async with joined(proxied.origin, raw_upstream) as (client, upstream):
        await client.send(goodbye)
        client.writer.write_eof()
        assert await read_to_the_end(upstream) == goodbye
        await upstream.send(frame(8, b"\x03\xe8", is_masked=False))
        upstream.writer.close()
        assert await read_to_the_end(client) == frame(8, b"\x03\xe8", is_masked=False)


@pytest.mark.parametrize("who", ["client", "upstream"])
async def test_access_log_has_status_101(start_proxy: StartProxy, raw_upstream: RawUpstream, who: str) -> None:
    """Whoever closes first, the client's connection is closed while the proxy still has it open."""
    lines: list[str] = []
    client = await start_proxy(
        upstream=UpstreamSetting(name="raw", base_url=raw_upstream.base_url), write_log=lines.append, log_format="json"
    )
    async with joined(client.origin, raw_upstream) as (here, there):
        first, second = (here, there) if who == "client" else (there, here)
        await first.close()
        await read_to_the_end(second)
    while not lines:
        await asyncio.sleep(0)
        client.proxy.log.flush()
    (line,) = map(orjson.loads, lines)
    assert (line["outcome"], line["status"]) == ("pass", 101)


@pytest.mark.parametrize("who", ["client", "upstream"])
async def test_cut_within_a_frame_is_not_a_clean_close(proxied: Client, raw_upstream: RawUpstream, who: str) -> None:
    half = frame(2, bytes(1000), is_masked=who == "client")[:500]
    async with joined(proxied.origin, raw_upstream) as (client, upstream):
        breaking, other = (client, upstream) if who == "client" else (upstream, client)
        await breaking.send(half)
        assert await other.reader.readexactly(len(half)) == half
        breaking.reset()
        assert await read_to_the_end(other) == b""  # and no Close frame, which would be payload


async def test_drain_sends_going_away_to_both_sides(
    upstream: ScriptedUpstream, raw_upstream: RawUpstream, tunnels: list[tunnel.Tunnel]
) -> None:
    """What is open goes on while the proxy drains, to the deadline."""
    settings = settings_for(
        upstream, upstream=UpstreamSetting(name="raw", base_url=raw_upstream.base_url), shutdown_timeout_s=1.0
    )
    is_over = asyncio.Event()

    async def serve() -> None:
        async with running(settings) as proxy:
            started.set_result(proxy.base_url.removesuffix("/v1"))
            await is_over.wait()

    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve())
    async with joined(await started, raw_upstream) as (client, there):
        is_over.set()
        connection = tunnels[0]._client._writer.protocol
        await until(lambda: bool(connection._is_retired))  # type: ignore[attr-defined]
        for source, sink, is_masked in ((client, there, True), (there, client, False)):
            await source.send(frame(1, b"still here", is_masked=is_masked))
            await sink.reader.readexactly(len(frame(1, b"still here", is_masked=is_masked)))
        assert await read_to_the_end(client) == b"\x88\x02" + GOING_AWAY
        assert await read_to_the_end(there) == b"\x88\x82\0\0\0\0" + GOING_AWAY
        await serving


# --- invalid responses


@pytest.mark.parametrize("head", ["101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x", "099 Odd", "000 Odd"])
@pytest.mark.parametrize("target", ["/v1/models", "/v1/embeddings"])
async def test_unexpected_informational_status_is_a_502(start_proxy: StartProxy, head: str, target: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {head}\r\nContent-Length: 2\r\n\r\nhi".encode())
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = await start_proxy(upstream=UpstreamSetting(name="odd", base_url=f"http://127.0.0.1:{port}/v1"))
        answered = await client.post({"model": "m", "input": "x"}, target=target)
    assert (answered.status, answered.json["error"]["type"]) == (502, "upstream_error")


@pytest.mark.parametrize("wrong", ["Upgrade: h2c\r\nConnection: Upgrade", "X: 1", "Upgrade: websocket"])
async def test_101_without_a_valid_handshake_is_a_502(start_proxy: StartProxy, wrong: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        accept = accept_of(KEY.decode())
        writer.write(f"HTTP/1.1 101 Switching\r\n{wrong}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode())
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = await start_proxy(upstream=UpstreamSetting(name="odd", base_url=f"http://127.0.0.1:{port}/v1"))
        answered = await raw(client, HANDSHAKE % KEY + b"\r\n", end=b"\r\n\r\n")
    assert answered.startswith(b"HTTP/1.1 502 ")
