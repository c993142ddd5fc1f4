"""Every route except the cached one: requests and responses streamed through unchanged."""

from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from hashlib import sha1
from http import HTTPStatus

from aiohttp import ClientResponse
from aiohttp.web import BaseRequest, StreamResponse
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.access.validations import CREDENTIAL_REFUSALS
from proxy.errors import KeyRefused, UpstreamBroke
from proxy.http.bodies import send_continue
from proxy.http.body_rate import paced
from proxy.http.connection import Connection
from proxy.passthrough import tunnel
from proxy.protocol import headers
from proxy.protocol.error_body import MAX_ERROR_BYTES
from proxy.protocol.headers import Headers
from proxy.turns import turn
from proxy.upstream.client import UpstreamClient, UpstreamResponse, read_chunk

# Browsers can set no header fields, so they send OpenAI credentials as subprotocols.
_CREDENTIAL_PROTOCOLS = ("openai-insecure-api-key.", "openai-organization.", "openai-project.")
# A body of at most this length is sent on once it is complete. aiohttp buffers as much of a longer one anyway.
_MAX_REPEATABLE_BYTES = 64 * 1024
_LARGE_CHUNK_BYTES = 32 * 1024  # smaller ones, as of a streamed chat, do not wait for large work
_PROTOCOLS = "Sec-WebSocket-Protocol"
# Forwarded unchanged, although the name of one sounds like a credential.
_HANDSHAKE = ("Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Extensions", _PROTOCOLS)
_ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3


async def relay(
    request: BaseRequest,
    upstream: UpstreamClient,
    url: str,
    forwarded: CIMultiDict[str],
    *,
    request_id: str,
    body: bytes | None = None,
    is_draining: Callable[[], bool],
    owns_key: bool,
    on_head: Callable[[int, CIMultiDict[str]], None],
    refuses_key: Callable[[UpstreamResponse], bool] | None = None,
) -> StreamResponse:
    """Send ``request`` to ``url`` with the header fields ``forwarded``, and stream the response back.

    ``body`` replaces the request's own if that has been read already. The response has ``request_id`` if the upstream
    sent none. If the proxy ``is_draining`` when the response's head arrives, the client's connection is closed after
    the response. If the proxy ``owns_key``, a refusal of the key becomes the proxy's own error, and cookies of the
    upstream are removed; ``refuses_key`` tells a refusal inside a short success, which is read before its head is sent.
    ``on_head`` is called with the response's status and fields before they are sent, and may change the fields. Raises
    `ProxyError`.

    For a WebSocket the client's opening handshake is forwarded, and the two connections are joined if the upstream
    accepts (RFC 6455 §4). Key, version, extensions and subprotocols are negotiated between the client and the upstream.
    If the proxy ``owns_key``, credentials among the subprotocols are removed.
    """
    is_handshake = _is_handshake(request)
    if is_handshake:
        _add_handshake(forwarded, request.headers, owns_key=owns_key)
    elif body is None:
        await send_continue(request)
    content = body if body is not None or not request.body_exists else await _content_of(request, forwarded)
    async with upstream.stream(request.method, url, forwarded, content) as response:
        if is_handshake and response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            return await _join(request, response, owns_key=owns_key)
        beginning = await _accepted_beginning(response, refuses_key) if owns_key else b""
        fields = _for_client(response.headers, owns_key=owns_key)
        upstream.relocate(url, fields)
        relayed = StreamResponse(status=response.status, reason=headers.reason_phrase(response.reason), headers=fields)
        on_head(relayed.status, relayed.headers)
        relayed.headers.setdefault("X-Request-Id", request_id)
        if is_draining():
            relayed.force_close()
        await relayed.prepare(request)
        await _stream(response, relayed, beginning)
        return relayed


async def _accepted_beginning(
    response: ClientResponse, refuses_key: Callable[[UpstreamResponse], bool] | None
) -> bytes:
    """What was read of the response before its head is sent. Raises `KeyRefused`."""
    if response.status in CREDENTIAL_REFUSALS:
        raise KeyRefused
    if refuses_key is None:
        return b""
    beginning = await _beginning(response)
    if refuses_key(_received(response, beginning)):
        raise KeyRefused
    return beginning


async def _beginning(response: ClientResponse) -> bytes:
    """All of a body that is short enough to be an error, or more than that of another; b"" of events, which are sent as
    they arrive."""
    if response.content_type == "text/event-stream":
        return b""
    read = b""
    while len(read) <= MAX_ERROR_BYTES and (chunk := await read_chunk(response)):
        read += chunk
    return read


def _received(response: ClientResponse, body: bytes) -> UpstreamResponse:
    return UpstreamResponse(status=response.status, reason="", headers=response.headers, body=body)


async def _stream(response: ClientResponse, relayed: StreamResponse, beginning: bytes) -> None:
    """Send the body of a response whose head is sent. A failure is raised, and the server cuts the connection: the
    client sees that the response is incomplete."""
    if beginning:
        await relayed.write(beginning)
    while chunk := await read_chunk(response):
        await relayed.write(chunk)
        if len(chunk) > _LARGE_CHUNK_BYTES:
            await turn()
    await relayed.write_eof()


def _for_client(received: Headers, *, owns_key: bool) -> CIMultiDict[str]:
    """An upstream's fields for a client. Cookies belong to the owner of the key: they may be as good as the key."""
    fields = headers.end_to_end(received)
    if owns_key:
        fields.popall("Set-Cookie", None)
    return fields


async def _content_of(request: BaseRequest, forwarded: CIMultiDict[str]) -> bytes | AsyncIterator[bytes]:
    """The request's body: bytes if it is short, because bytes can be sent again if a kept connection is dead.

    Raises `RequestTimeout`.
    """
    chunks = _in_turns(paced(request.content))
    length = request.content_length
    if length is None:  # chunked, and stays chunked
        return chunks
    forwarded["Content-Length"] = str(length)  # the number, not its spelling, as 005
    return b"".join([chunk async for chunk in chunks]) if length <= _MAX_REPEATABLE_BYTES else chunks


async def _in_turns(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        if len(chunk) > _LARGE_CHUNK_BYTES:
            await turn()
        yield chunk


def _is_handshake(request: BaseRequest) -> bool:
    """Whether the client asks for a WebSocket and its connection can become one."""
    return (
        request.method == "GET"
        and request.headers.get("Upgrade", "").lower() == "websocket"
        and not request.body_exists
        and isinstance(request.protocol, Connection)
        and request.protocol.is_upgraded
    )


async def _join(request: BaseRequest, response: ClientResponse, *, owns_key: bool) -> StreamResponse:
    if not _is_open(response, request.headers.get("Sec-WebSocket-Key", "")):
        raise UpstreamBroke("The upstream's WebSocket handshake is not valid (RFC 6455).")
    relayed = StreamResponse(status=response.status, headers=_for_client(response.headers, owns_key=owns_key))
    relayed.headers.update({"Connection": "Upgrade", "Upgrade": "websocket"})
    await tunnel.join(request, relayed, response)
    return relayed


def _add_handshake(forwarded: CIMultiDict[str], received: CIMultiDictProxy[str], *, owns_key: bool) -> None:
    forwarded["Connection"], forwarded["Upgrade"] = "Upgrade", "websocket"
    for name in _HANDSHAKE:
        values = received.getall(name, ())
        if name == _PROTOCOLS and owns_key:
            offered = (protocol.strip() for protocol in ",".join(values).split(","))
            values = [", ".join(name for name in offered if name and not name.startswith(_CREDENTIAL_PROTOCOLS))]
        forwarded.popall(name, None)
        forwarded.extend((name, value) for value in values if value)


def _is_open(response: ClientResponse, key: str) -> bool:
    """Whether a 101 opens a WebSocket for a client with this key (RFC 6455 §4.1)."""
    accept = b64encode(sha1(key.encode() + _ACCEPT_SUFFIX, usedforsecurity=False).digest()).decode()
    return (
        response.headers.get("Upgrade", "").lower() == "websocket"
        and response.headers.get("Sec-WebSocket-Accept") == accept
    )
