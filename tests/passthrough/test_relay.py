"""Every route except the cached one is passed through unchanged, both ways."""

import asyncio
import gzip
import io
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import FormData, WSMsgType, web

from tests.conftest import StartProxy
from tests.support.client import Client, raw
from tests.support.redis_server import free_port
from tests.support.scripted import Call, ScriptedUpstream, error_reply


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "POST"])
async def test_method_path_query_headers_and_body_are_forwarded(
    client: Client, upstream: ScriptedUpstream, method: str
) -> None:
    upstream.reply = error_reply(418, b"\x00\xff", x_custom="yes", content_type="application/x-teapot")
    answer = await client.send(
        method, "/v1/things/%2F?a=1&a=%20", body=b"\x01\xfe", headers={"X-Mine": "1", "Content-Type": "x/y"}
    )
    call = upstream.calls[0]
    assert (call.method, call.target, call.body) == (method, "/v1/things/%2F?a=1&a=%20", b"\x01\xfe")
    assert (call.headers["X-Mine"], call.headers["Content-Type"]) == ("1", "x/y")
    assert (answer.status, answer.body, answer.headers["x-custom"]) == (418, b"\x00\xff", "yes")
    assert answer.headers["Content-Type"] == "application/x-teapot"


@pytest.mark.parametrize("target", [b"/v1/models", b"/v1/embeddings"])
async def test_unforwardable_bytes_are_refused(client: Client, upstream: ScriptedUpstream, target: bytes) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer k\xff\r\n" % target
    body = b'{"model":"m","input":"x"}'
    kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = await raw(client, head + kind + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"The header field Authorization is not UTF-8." in answer
    assert not upstream.calls
    umlauts = "X-Title: Ümläut\r\n".encode()
    await raw(client, head.replace(b"\xff", b"") + umlauts + kind + body)
    assert upstream.calls[-1].headers["X-Title"] == "Ümläut"


async def test_no_header_is_added_to_the_request(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = error_reply(200, b"")
    skip = ("User-Agent", "Accept", "Accept-Encoding")
    async with aiohttp.ClientSession(skip_auto_headers=skip) as bare, bare.get(client.origin + "/v1/models"):
        pass
    assert set(upstream.calls[0].headers) == {"Host"}
    assert upstream.calls[0].headers["Host"] in upstream.base_url


async def test_head_keeps_content_length(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = error_reply(200, b"12345")
    answer = await client.send("HEAD", "/v1/models")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "5")


@pytest.mark.parametrize("status", [204, 304, 302])
async def test_redirects_and_empty_responses_are_relayed(
    client: Client, upstream: ScriptedUpstream, status: int
) -> None:
    upstream.reply = lambda _: web.Response(status=status, headers={"Location": "http://127.0.0.1:1/elsewhere"})
    answer = await client.send("GET", "/v1/models")
    assert (answer.status, answer.headers["Location"]) == (status, "http://127.0.0.1:1/elsewhere")


async def test_other_methods_on_the_embeddings_route_are_passed_through(
    client: Client, upstream: ScriptedUpstream
) -> None:
    upstream.reply = error_reply(405, b"post it")
    assert (await client.send("GET", "/v1/embeddings")).body == b"post it"
    assert upstream.calls[0].target == "/v1/embeddings"


async def test_server_sent_events_arrive_one_by_one(client: Client, upstream: ScriptedUpstream) -> None:
    received = asyncio.Event()

    async def events(call: Call) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(call.request)
        for number in range(3):
            received.clear()
            await response.write(b"data: %d\n\n" % number)
            await received.wait()  # the next is sent only when the client has seen this one
        return response

    upstream.reply = events
    seen = []
    async with client.session.post(client.origin + "/v1/chat/completions", data=b"{}") as response:
        async for chunk in response.content.iter_any():
            seen.append(chunk)
            received.set()
    assert seen == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]


async def test_upload_is_streamed(client: Client, upstream: ScriptedUpstream) -> None:
    form = FormData()
    form.add_field("file", io.BytesIO(b"\x00" * 3_000_000), filename="a.bin")
    upstream.reply = error_reply(200, b"thanks")
    async with client.session.post(client.origin + "/v1/files", data=form) as response:
        assert await response.read() == b"thanks"
    assert len(upstream.calls[0].body) > 3_000_000
    assert upstream.calls[0].headers["Content-Type"].startswith("multipart/form-data; boundary=")


async def test_chunked_upload_stays_chunked(client: Client, upstream: ScriptedUpstream) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"part"

    upstream.reply = error_reply(200, b"")
    async with client.session.post(client.origin + "/v1/files", data=chunks()):
        pass
    assert upstream.calls[0].body == b"part" * 5
    assert upstream.calls[0].headers["Transfer-Encoding"] == "chunked"


async def test_compressed_response_stays_compressed(client: Client, upstream: ScriptedUpstream) -> None:
    body = gzip.compress(b"hello")
    upstream.reply = error_reply(200, body, content_encoding="gzip")
    answer = await client.send("GET", "/v1/models", headers={"Accept-Encoding": "gzip"})
    assert (answer.body, answer.headers["Content-Encoding"]) == (body, "gzip")
    assert upstream.calls[0].headers["Accept-Encoding"] == "gzip"


async def test_cut_off_response_is_cut_off_for_the_client(client: Client, upstream: ScriptedUpstream) -> None:
    async def cut(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(call.request)
        await response.write(b"half of ")
        assert call.request.transport is not None
        call.request.transport.abort()
        return response

    upstream.reply = cut
    with pytest.raises(aiohttp.ClientPayloadError):
        await client.send("GET", "/v1/models")


async def test_unreachable_upstream_is_a_502(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    upstream.base_url = f"http://127.0.0.1:{free_port()}/v1"
    answer = await (await start_proxy()).send("GET", "/v1/models")
    assert (answer.status, answer.json["error"]["type"]) == (502, "upstream_error")


async def test_cookies_are_not_shared_between_clients(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda _: web.Response(headers={"Set-Cookie": "session=1; Path=/"})
    await client.send("GET", "/v1/models")
    client.session.cookie_jar.clear()
    await client.send("GET", "/v1/models")
    assert "Cookie" not in upstream.calls[1].headers


async def test_websocket_is_joined_end_to_end(client: Client, upstream: ScriptedUpstream) -> None:
    async def echo(call: Call) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=["realtime"])
        await socket.prepare(call.request)
        async for message in socket:
            if message.type is WSMsgType.TEXT and message.data == "bye":
                await socket.close(code=4001, message=b"as you wish")
            elif message.type is WSMsgType.TEXT:
                await socket.send_str(message.data + "!")
            else:
                await socket.send_bytes(message.data[::-1])
        return socket

    upstream.reply = echo
    url = client.origin.replace("http", "ws") + "/v1/realtime?model=m"
    async with client.session.ws_connect(url, protocols=["realtime"], headers={"Authorization": "Bearer k"}) as socket:
        assert socket.protocol == "realtime"
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello!"
        await socket.send_bytes(b"\x00\x01")
        assert await socket.receive_bytes() == b"\x01\x00"
        await socket.send_str("bye")
        last = await socket.receive()
        assert (last.type, last.data, last.extra) == (WSMsgType.CLOSE, 4001, "as you wish")
    assert upstream.calls[0].target == "/v1/realtime?model=m"
    assert upstream.calls[0].headers["Authorization"] == "Bearer k"


async def test_broken_websocket_is_not_a_clean_close(client: Client, upstream: ScriptedUpstream) -> None:
    async def break_off(call: Call) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(call.request)
        assert call.request.transport is not None
        call.request.transport.abort()
        return socket

    upstream.reply = break_off
    async with client.session.ws_connect(client.origin.replace("http", "ws") + "/v1/realtime") as socket:
        last = await socket.receive()
        assert (last.type, last.data) == (WSMsgType.CLOSE, 1011)


async def test_websocket_refused_by_the_upstream(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = error_reply(403, b"no")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.session.ws_connect(client.origin.replace("http", "ws") + "/v1/realtime")
    assert refused.value.status == 403
