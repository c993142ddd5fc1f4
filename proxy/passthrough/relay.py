"""Every route but the cached one: streamed through both ways, untouched."""

from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from hashlib import sha1
from http import HTTPStatus

from aiohttp import ClientResponse
from aiohttp.web import BaseRequest, StreamResponse
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.access.validations import CREDENTIAL_REFUSALS
from proxy.errors import KeyRefused, UpstreamUnreachable
from proxy.http.bodies import send_continue
from proxy.http.connection import Connection
from proxy.http.pacing import paced
from proxy.passthrough import tunnel
from proxy.protocol import headers
from proxy.protocol.headers import Headers
from proxy.upstream.client import UpstreamClient, read_chunk

# How browsers, which can set no headers, tell OpenAI who they are.
_CREDENTIAL_PROTOCOLS = ("openai-insecure-api-key.", "openai-organization.", "openai-project.")
# A body of up to so many bytes is sent on once it is all here. aiohttp would hold as much of a longer one.
_MAX_REPEATABLE_BYTES = 64 * 1024
_PROTOCOLS = "Sec-WebSocket-Protocol"
# Sent as they came, though one sounds like a credential.
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
    extra_headers: CIMultiDict[str] | None = None,
    is_draining: Callable[[], bool] = lambda: False,
    owns_key: bool = False,
    on_head: Callable[[int, CIMultiDict[str]], None] = lambda _status, _fields: None,
) -> StreamResponse:
    """Send ``request`` to ``url`` with the header fields ``forwarded``, and its answer back as it arrives.

    ``body`` stands in for the request's own where that has been read already; ``extra_headers`` join the answer's, and
    so does ``request_id`` where the upstream has none of its own. If the proxy ``is_draining`` when the response's head
    has come, it closes the client's connection after it. Where the proxy ``owns_key``, a refusal of the key is an error
    of the proxy's own, and cookies of the upstream are left out. ``on_head`` is called with the answer's status and
    fields before they are sent, and may change the fields. Raises `ProxyError`.
    """
    if body is None:
        await send_continue(request)
    content = body if body is not None or not request.body_exists else await _content_of(request, forwarded)
    async with upstream.stream(request.method, url, forwarded, content) as answer:
        return await _respond(
            request,
            answer,
            upstream,
            url,
            request_id=request_id,
            extra_headers=extra_headers,
            is_draining=is_draining,
            owns_key=owns_key,
            on_head=on_head,
        )


async def _respond(
    request: BaseRequest,
    answer: ClientResponse,
    upstream: UpstreamClient,
    url: str,
    *,
    request_id: str,
    extra_headers: CIMultiDict[str] | None = None,
    is_draining: Callable[[], bool],
    owns_key: bool,
    on_head: Callable[[int, CIMultiDict[str]], None],
) -> StreamResponse:
    if owns_key and answer.status in CREDENTIAL_REFUSALS:
        raise KeyRefused
    fields = _for_client(answer.headers, owns_key=owns_key)
    upstream.relocate(url, fields)
    response = StreamResponse(status=answer.status, reason=headers.reason_phrase(answer.reason), headers=fields)
    response.headers.extend(extra_headers or ())
    on_head(response.status, response.headers)
    response.headers.setdefault("X-Request-Id", request_id)
    if is_draining():
        response.force_close()
    await response.prepare(request)
    # A failure from here on can't be told as a status: it goes up, and the server cuts the connection, which is
    # how the client learns that the answer is not whole.
    while chunk := await read_chunk(answer):
        await response.write(chunk)
    await response.write_eof()
    return response


def _for_client(answered: Headers, *, owns_key: bool) -> CIMultiDict[str]:
    """An upstream's fields for a client. Its cookies are for whoever's key it was: they may stand for the key."""
    fields = headers.end_to_end(answered)
    if owns_key:
        fields.popall("Set-Cookie", None)
    return fields


async def _content_of(request: BaseRequest, forwarded: CIMultiDict[str]) -> bytes | AsyncIterator[bytes]:
    """The request's body, as bytes if it is short: these can be sent again if a kept connection turns out to be dead.

    Raises `RequestTimeout`.
    """
    chunks = paced(request.content)
    length = request.content_length
    if length is None:  # it came in chunks and goes on in chunks
        return chunks
    forwarded["Content-Length"] = str(length)  # not 005
    return b"".join([chunk async for chunk in chunks]) if length <= _MAX_REPEATABLE_BYTES else chunks


def is_websocket(request: BaseRequest) -> bool:
    """Whether the client asks for a WebSocket and its connection can become one."""
    return (
        request.method == "GET"
        and request.headers.get("Upgrade", "").lower() == "websocket"
        and not request.body_exists
        and isinstance(request.protocol, Connection)
        and request.protocol.is_upgraded
    )


async def relay_websocket(
    request: BaseRequest,
    upstream: UpstreamClient,
    url: str,
    forwarded: CIMultiDict[str],
    *,
    request_id: str,
    is_draining: Callable[[], bool] = lambda: False,
    owns_key: bool = False,
    on_head: Callable[[int, CIMultiDict[str]], None],
) -> StreamResponse:
    """Hand on the client's opening handshake, and join the two connections if the upstream agrees (RFC 6455 §4).

    Key, version, extensions and subprotocols are between the client and the upstream. Where the proxy holds the key,
    the credentials among the subprotocols stay here. Other responses than 101 are relayed as `relay` does.
    """
    _add_handshake(forwarded, request.headers, owns_key=owns_key)
    async with upstream.stream("GET", url, forwarded, None) as answer:
        if answer.status != HTTPStatus.SWITCHING_PROTOCOLS:
            return await _respond(
                request,
                answer,
                upstream,
                url,
                request_id=request_id,
                is_draining=is_draining,
                owns_key=owns_key,
                on_head=on_head,
            )
        if not _is_open(answer, request.headers.get("Sec-WebSocket-Key", "")):
            raise UpstreamUnreachable("The upstream did not open the WebSocket as RFC 6455 has it.")
        response = StreamResponse(status=answer.status, headers=_for_client(answer.headers, owns_key=owns_key))
        response.headers.update({"Connection": "Upgrade", "Upgrade": "websocket"})
        await tunnel.join(request, response, answer)
    return response


def _add_handshake(forwarded: CIMultiDict[str], asked: CIMultiDictProxy[str], *, owns_key: bool) -> None:
    forwarded["Connection"], forwarded["Upgrade"] = "Upgrade", "websocket"
    for name in _HANDSHAKE:
        values = asked.getall(name, ())
        if name == _PROTOCOLS and owns_key:
            offered = (protocol.strip() for protocol in ",".join(values).split(","))
            values = [", ".join(it for it in offered if it and not it.startswith(_CREDENTIAL_PROTOCOLS))]
        forwarded.popall(name, None)
        forwarded.extend((name, value) for value in values if value)


def _is_open(answer: ClientResponse, key: str) -> bool:
    """Whether a 101 is a WebSocket's, to a client with this key (RFC 6455 §4.1)."""
    accept = b64encode(sha1(key.encode() + _ACCEPT_SUFFIX, usedforsecurity=False).digest()).decode()
    return (
        answer.headers.get("Upgrade", "").lower() == "websocket"
        and answer.headers.get("Sec-WebSocket-Accept") == accept
    )
