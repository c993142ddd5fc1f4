"""Every route but the cached one: streamed through both ways, untouched."""

import asyncio
from collections.abc import Callable, Collection
from http import HTTPStatus

from aiohttp import (
    ClientError,
    ClientResponse,
    ClientWebSocketResponse,
    HttpVersion11,
    WSCloseCode,
    WSMsgType,
    WSServerHandshakeError,
)
from aiohttp.web import BaseRequest, Response, StreamResponse, WebSocketResponse
from multidict import CIMultiDict

from proxy import headers
from proxy.connections import paced
from proxy.errors import KeyRefused, UpstreamTimeout, UpstreamUnreachable
from proxy.upstream import Upstream

# How browsers, which can set no headers, tell OpenAI who they are.
_CREDENTIAL_PROTOCOLS = ("openai-insecure-api-key.", "openai-organization.", "openai-project.")
_WEBSOCKET_HANDSHAKE = frozenset(
    {"sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol"}
)


async def relay(
    request: BaseRequest,
    upstream: Upstream,
    url: str,
    forwarded: CIMultiDict[str],
    *,
    request_id: str,
    body: bytes | None = None,
    extra_headers: CIMultiDict[str] | None = None,
    is_last: bool = False,
    refused: Collection[int] = (),
    on_head: Callable[[int, CIMultiDict[str]], None] = lambda _status, _fields: None,
) -> StreamResponse:
    """Send ``request`` to ``url`` with the header fields ``forwarded``, and its answer back as it arrives.

    ``body`` stands in for the request's own where that has been read already; ``extra_headers`` join the answer's, and
    so does ``request_id`` where the upstream has none of its own.
    ``is_last`` closes the client's connection after the answer. ``refused`` are statuses that are an error of the
    proxy's own, which holds the key. ``on_head`` is called with the answer's status and fields before they are sent,
    and may change the fields. Raises `ProxyError`.
    """
    if body is None:
        await answer_expect(request)
    content: object = body
    if body is None and request.body_exists:
        content = paced(request.content)
        if "Content-Length" in request.headers:  # else it came in chunks and goes on in chunks
            forwarded["Content-Length"] = str(request.content_length)  # not 005
    answer = await upstream.open(request.method, url, forwarded, content)
    async with answer:
        if answer.status in refused:
            raise KeyRefused("The upstream refused the key that this proxy holds for it.")
        fields = headers.end_to_end(answer.headers)
        upstream.relocate(url, fields)
        response = StreamResponse(status=answer.status, reason=headers.reason_phrase(answer.reason), headers=fields)
        response.headers.extend(extra_headers or ())
        on_head(response.status, response.headers)
        response.headers.setdefault("X-Request-Id", request_id)
        if is_last:
            response.force_close()
        await response.prepare(request)
        # A failure from here on can't be told as a status: it goes up, and the server cuts the connection, which is
        # how the client learns that the answer is not whole.
        while chunk := await _next_chunk(answer):
            await response.write(chunk)
        await response.write_eof()
    return response


async def _next_chunk(answer: ClientResponse) -> bytes:
    """The next bytes of an upstream's answer; none at its end. Raises `ProxyError`, so that the upstream's failures are
    not taken for those of writing to the client."""
    try:
        return await answer.content.readany()
    except TimeoutError as error:
        raise UpstreamTimeout("The upstream's answer did not go on in time.") from error
    except (ClientError, OSError) as error:
        raise UpstreamUnreachable("The upstream's answer broke off.") from error


async def answer_expect(request: BaseRequest) -> None:
    """Tell a client that asked first that its body is welcome (RFC 9110 §10.1.1; HTTP/1.0 knows no such answer)."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # aiohttp takes what was written for the start of an answer


def is_websocket(request: BaseRequest) -> bool:
    return request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket"


async def relay_websocket(
    request: BaseRequest, upstream: Upstream, url: str, forwarded: CIMultiDict[str], *, owns_key: bool = False
) -> StreamResponse:
    """Join two WebSockets: every message, ping and close code goes to the other side.

    Where the proxy holds the key, what the client offers as credentials in its subprotocols stays here, and so does a
    refusal of the key.
    """
    for name in _WEBSOCKET_HANDSHAKE:
        forwarded.popall(name, None)
    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    protocols = [name.strip() for name in offered.split(",") if name.strip()]
    if owns_key:
        protocols = [name for name in protocols if not name.startswith(_CREDENTIAL_PROTOCOLS)]
    try:
        there = await upstream.connect_websocket(url, forwarded, protocols)
    except WSServerHandshakeError as refused:
        if owns_key and refused.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise KeyRefused("The upstream refused the key that this proxy holds for it.") from None
        if refused.status == HTTPStatus.SWITCHING_PROTOCOLS:
            raise UpstreamUnreachable("The upstream opened a WebSocket wrongly.") from refused
        fields = headers.end_to_end(CIMultiDict(refused.headers or ()))
        for name in ("Content-Length", "Content-Encoding"):  # of a body that aiohttp does not hand out
            fields.popall(name, None)
        upstream.relocate(url, fields)
        return Response(status=refused.status, headers=fields)
    async with there:
        here = WebSocketResponse(
            protocols=[there.protocol] if there.protocol else (),
            autoping=False,
            autoclose=False,
            max_msg_size=0,
        )
        await here.prepare(request)
        pumps = {asyncio.ensure_future(_pump(here, there)), asyncio.ensure_future(_pump(there, here))}
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        await here.close()
    return here


_Socket = ClientWebSocketResponse | WebSocketResponse


async def _pump(source: _Socket, sink: _Socket) -> None:
    while True:
        message = await source.receive()
        match message.type:
            case WSMsgType.TEXT:
                await sink.send_str(message.data)
            case WSMsgType.BINARY:
                await sink.send_bytes(message.data)
            case WSMsgType.PING:
                await sink.ping(message.data)
            case WSMsgType.PONG:
                await sink.pong(message.data)
            case WSMsgType.CLOSE:
                await sink.close(code=message.data or 1000, message=(message.extra or "").encode())
                return
            case _:
                await sink.close(code=WSCloseCode.INTERNAL_ERROR)  # it broke off; that must not look like an end
                return
