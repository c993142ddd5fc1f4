"""The header fields that every response on the data port has."""

from aiohttp.web import StreamResponse

from proxy.protocol.cors import origin_of
from proxy.protocol.headers import Headers
from proxy.upstream.router import Origin


def finish_head(response: StreamResponse, received: Headers, *, upstream: Origin | None, request_id: str) -> None:
    """Complete the head of a response. ``received`` are the fields of its request. ``upstream``, if any, has
    the CORS fields for it."""
    if upstream is not None:
        upstream.cors.finish(origin_of(received), response.headers)
        if upstream.key:  # the cookies may be those of the key's session
            response.headers.popall("Set-Cookie", None)
    response.headers.setdefault("X-Request-Id", request_id)  # the upstream's own has precedence
