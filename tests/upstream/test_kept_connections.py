"""Kept connections to the upstream that have died, and requests that make the upstream close theirs."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import orjson
import pytest
from aiohttp import web
from aiohttp.client_proto import ResponseHandler

from proxy.config.settings import UpstreamSetting
from proxy.upstream import client as upstream_module
from proxy.upstream.connections import has_received
from tests.conftest import StartProxy
from tests.support.client import Client, UpstreamResponse
from tests.support.gate import Gate
from tests.support.scripted import Call, ScriptedUpstream

KEPT = 6
Send = Callable[[Client, int], Awaitable[UpstreamResponse]]
DEATHS = ["closed", "reset"]
LARGE = b"x" * 300_000


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it reached the upstream."""

    connection: int
    is_first: bool  # of its connection
    line: bytes
    body: bytes


class MortalUpstream:
    """Each of its connections serves one request. At the next one it dies, as one that a balancer has forgotten."""

    def __init__(self, death: str) -> None:
        self.death = death
        self.sent: list[Sent] = []
        self.kills: Callable[[bytes], bool] = lambda _body: False
        self.reply: bytes | None = None  # written before a connection dies
        self.together = asyncio.Barrier(1)  # so many requests are answered at a time
        self._writers: list[asyncio.StreamWriter] = []
        self._model = ScriptedUpstream()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self._writers)
        self._writers.append(writer)
        is_first = True
        try:
            while True:
                line, body = await read_request(reader)
                self.sent.append(Sent(number, is_first, line, body))
                if not is_first or self.kills(body):
                    break
                is_first = False
                await self.together.wait()
                answer = b"{}"
                if b"/embeddings " in line:
                    answer = orjson.dumps(self._model.answer_to(orjson.loads(body)))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
            if self.reply is not None:
                writer.write(self.reply)
                await writer.drain()
            if self.death == "reset":
                own: socket.socket = writer.get_extra_info("socket")
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except asyncio.IncompleteReadError:
            pass  # the proxy closed it
        finally:
            writer.close()

    async def speak(self, content: bytes) -> None:
        """Send the same on every connection, whether or not something was asked."""
        for writer in self._writers:
            writer.write(content)
            await writer.drain()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[UpstreamSetting]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        yield UpstreamSetting(name="mortal", base_url=f"http://127.0.0.1:{port}/v1")
        server.close()
        for writer in self._writers:  # the proxy keeps some for 15 s, and from Python 3.12 a server waits for its last
            writer.transport.abort()
        await server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    line, *fields = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    lowered = [field.lower() for field in fields]
    if b"transfer-encoding: chunked" in lowered:
        return line, await reader.readuntil(b"0\r\n\r\n")
    lengths = [int(field.partition(b":")[2]) for field in lowered if field.startswith(b"content-length:")]
    return line, await reader.readexactly(lengths[0]) if lengths else b""


async def embed(client: Client, number: int) -> UpstreamResponse:
    return await client.post({"model": "m", "input": f"text {number}"}, key=f"Bearer {number}")


async def bypass(client: Client, number: int) -> UpstreamResponse:
    return await client.post({"model": "m", "input": f"text {number}", "stream": True})


async def chat(client: Client, number: int) -> UpstreamResponse:
    return await client.post({"messages": [str(number)]}, target="/v1/chat/completions")


async def post_nothing(client: Client, number: int) -> UpstreamResponse:
    return await client.send("POST", f"/v1/batches/{number}/cancel")


async def get(client: Client, number: int) -> UpstreamResponse:
    return await client.send("GET", f"/v1/models/{number}")


async def upload(client: Client, number: int) -> UpstreamResponse:
    return await client.send("POST", f"/v1/files?n={number}", body=LARGE)


async def put(client: Client, number: int) -> UpstreamResponse:
    return await client.send("PUT", f"/v1/files/{number}", body=LARGE)


async def upload_in_chunks(client: Client, number: int) -> UpstreamResponse:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"some"
        yield b"more"

    url = f"{client.origin}/v1/files?n={number}"
    async with client.session.post(url, data=chunks()) as response:
        return UpstreamResponse(response.status, response.headers, await response.read())


async def handshake(client: Client, number: int) -> UpstreamResponse:
    fields = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    return await client.send("GET", f"/v1/realtime?n={number}", headers=fields)


REQUESTS = [embed, bypass, chat, post_nothing, get, handshake, upload, put, upload_in_chunks]


@pytest.fixture(params=DEATHS)
async def mortal(request: pytest.FixtureRequest) -> MortalUpstream:
    return MortalUpstream(request.param)


async def keep(client: Client, upstream: MortalUpstream, send: Send = get) -> None:
    """Leave the proxy with ``KEPT`` connections, each of which dies at its next request."""
    upstream.together = asyncio.Barrier(KEPT)
    answers = await asyncio.gather(*(send(client, 1000 + number) for number in range(KEPT)))
    assert {answer.status for answer in answers} == {200}
    upstream.together = asyncio.Barrier(1)
    upstream.sent.clear()


@pytest.mark.parametrize("send", REQUESTS)
async def test_dead_kept_connections_fail_no_request(
    start_proxy: StartProxy, mortal: MortalUpstream, send: Send
) -> None:
    async with mortal.serving() as setting:
        client = await start_proxy(upstream=setting)
        await keep(client, mortal, embed if send is embed else get)
        answers = [await send(client, number) for number in range(KEPT)]
    assert [answer.status for answer in answers] == [200] * KEPT


@pytest.mark.parametrize("send", [upload, put, upload_in_chunks])
async def test_streamed_body_uses_a_new_connection(start_proxy: StartProxy, mortal: MortalUpstream, send: Send) -> None:
    async with mortal.serving() as setting:
        client = await start_proxy(upstream=setting)
        for number in range(3):
            assert (await get(client, number)).status == 200
            assert (await send(client, number)).status == 200
    assert all(sent.is_first for sent in mortal.sent if b"/files" in sent.line)


@pytest.mark.parametrize("send", [embed, bypass, chat, post_nothing, get])
async def test_request_that_closes_connections_is_sent_at_most_twice(
    start_proxy: StartProxy, mortal: MortalUpstream, send: Send
) -> None:
    async with mortal.serving() as setting:
        client = await start_proxy(upstream=setting)
        await keep(client, mortal, embed if send is embed else chat)
        mortal.kills = lambda _body: True
        answer = await send(client, 0)
    assert answer.status == 502
    assert [sent.is_first for sent in mortal.sent] == [False, True]
    assert mortal.sent[0].body == mortal.sent[1].body


@pytest.mark.parametrize("send", REQUESTS)
async def test_failure_on_a_new_connection_is_not_retried(
    start_proxy: StartProxy, mortal: MortalUpstream, send: Send
) -> None:
    mortal.kills = lambda _body: True
    async with mortal.serving() as setting:
        client = await start_proxy(upstream=setting)
        assert (await send(client, 0)).status == 502
    assert len(mortal.sent) == 1


@pytest.mark.parametrize("reply", [b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 102 Processing\r\n\r\n"])
@pytest.mark.parametrize("send", [embed, chat])
async def test_response_cut_off_in_its_head_is_not_retried(start_proxy: StartProxy, send: Send, reply: bytes) -> None:
    mortal = MortalUpstream("closed")
    async with mortal.serving() as setting:
        client = await start_proxy(upstream=setting)
        await keep(client, mortal, embed if send is embed else chat)
        mortal.reply = reply
        answer = await send(client, 0)
    assert answer.status == 502
    assert [sent.is_first for sent in mortal.sent] == [False]


UNASKED = {
    "another response": b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"data":[]}',
    "a balancer's timeout": b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "an interim response": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "part of a head": b"HTTP/1.1 408 Request Timeout\r\nContent-",
    "part of a status line": b"HTTP/1.1 40",
    "a letter": b"H",
}


@pytest.mark.parametrize("unasked", UNASKED.values(), ids=UNASKED)
@pytest.mark.parametrize("send", [embed, bypass, chat])
async def test_what_an_upstream_says_unasked_is_no_response_to_the_next_request(
    start_proxy: StartProxy, send: Send, unasked: bytes
) -> None:
    mortal = MortalUpstream("closed")
    async with mortal.serving() as setting:
        client = await start_proxy(upstream=setting)
        await keep(client, mortal, embed if send is embed else get)
        await mortal.speak(unasked)
        answer = await send(client, 0)
    assert [sent.is_first for sent in mortal.sent] == [True]
    assert (answer.status, b'"data":[]' in answer.body) == (200, False)


def chunked(_: Call) -> web.Response:
    response = web.Response(body=b"x" * 10)
    response.enable_chunked_encoding()
    return response


RESPONSES: dict[str, Callable[[Call], web.Response]] = {
    "empty": lambda _: web.Response(),
    "no content": lambda _: web.Response(status=204),
    "not modified": lambda _: web.Response(status=304),
    "chunked": chunked,
    "large": lambda _: web.Response(body=bytes(4_000_000)),
}


@pytest.mark.parametrize(("method", "name"), [*(("GET", name) for name in RESPONSES), ("HEAD", "large")])
async def test_after_a_whole_response_a_connection_is_used_again(
    client: Client, upstream: ScriptedUpstream, method: str, name: str
) -> None:
    ports = set()

    def reply_noting_port(call: Call) -> web.Response:
        assert call.request.transport is not None
        ports.add(call.request.transport.get_extra_info("peername"))
        return RESPONSES[name](call)

    upstream.reply = reply_noting_port
    for _ in range(4):
        await client.send(method, "/v1/files/1/content")
    assert len(ports) == 1


async def test_requests_that_close_connections_do_not_fail_others(
    start_proxy: StartProxy, mortal: MortalUpstream
) -> None:
    async with mortal.serving() as setting:
        client = await start_proxy(upstream=setting)
        await keep(client, mortal, embed)
        mortal.kills = lambda body: b"BAD" in body
        good = bad = 0
        for number in range(KEPT):
            one = client.post({"model": "m", "input": f"BAD {number}"}, key="Bearer bad")
            other = client.post({"model": "m", "input": f"good {number}"}, key="Bearer good")
            killing, served = await asyncio.gather(one, other)
            good += served.status == 200
            bad += killing.status == 502
    assert (good, bad) == (KEPT, KEPT)


async def test_streams_and_uploads_share_one_limit(
    start_proxy: StartProxy, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_module, "_MAX_STREAMS", 1)
    client = await start_proxy()
    gate = Gate(upstream)
    gate.answer = lambda _: web.Response()
    first = asyncio.create_task(chat(client, 1))
    await gate.calls(1)
    second = asyncio.create_task(upload(client, 2))
    upstream.reply = None
    assert (await client.embed("x")).status == 200, "embeddings calls have connections of their own"
    its = client.proxy.origins.default.client
    monkeypatch.setattr(its, "_timeouts", replace(its._timeouts, connect_s=0.0))
    refused = await upload(client, 3)
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    monkeypatch.undo()
    assert gate.arrived == 1
    upstream.reply = gate._reply
    gate.open()
    assert [(await task).status for task in (first, second)] == [200, 200]


async def test_bytes_that_have_arrived_count_before_the_loop_has_read_them() -> None:
    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        loop = asyncio.get_running_loop()
        _, kept = await loop.create_connection(partial(ResponseHandler, loop), *server.sockets[0].getsockname())
        while not writers:
            await asyncio.sleep(0)
        assert not has_received(kept)
        writers[0].write(b"x")  # at once, to a socket of this machine
        assert has_received(kept)
        kept.close()
        assert has_received(kept)
        writers[0].close()
