"""The body of a response that was made and not sent."""

from aiohttp.web import Response, StreamResponse

from proxy.http.plain_response import AssembledResponse


def content_of(response: StreamResponse) -> bytes:
    if isinstance(response, AssembledResponse):
        return b"".join(response.parts)
    assert isinstance(response, Response)
    assert isinstance(response.body, bytes)
    return response.body
