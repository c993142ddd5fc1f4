"""A complete response as the bytes that aiohttp would write.

aiohttp writes responses only to requests that it has parsed.
"""

from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.web import BaseRequest, Response, StreamResponse

_STATUSES = frozenset({200, 201})


class AssembledResponse(Response):
    """A response whose body has ``parts``, which are joined only if aiohttp writes it."""

    def __init__(self, parts: list[bytes], *, status: int = HTTPStatus.OK, headers: Mapping[str, str]) -> None:
        super().__init__(status=status, headers=headers)
        self.parts = parts

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        if self.body is None:
            self.body = b"".join(self.parts)
        return await super().prepare(request)


def parts_of(response: StreamResponse) -> list[bytes] | None:
    """The head and the body of a response to an HTTP/1.1 request. None unless it is an ordinary response with a body
    that keeps the connection open, and all its fields can be written."""
    body = _body_of(response)
    if body is None:
        return None
    head = head_of(response, sum(map(len, body)))
    return None if head is None else [head, *body]


def head_of(response: StreamResponse, length: int) -> bytes | None:
    """The head of a response with a body of ``length`` bytes; None: aiohttp has to write it, or to refuse that."""
    if response.status not in _STATUSES or response.keep_alive is False or hdrs.CONNECTION in response.headers:
        return None
    if response.chunked or response.compression or response.cookies:
        return None
    fields = response.headers
    fields[hdrs.CONTENT_LENGTH] = str(length)
    if length:
        fields.setdefault(hdrs.CONTENT_TYPE, "application/octet-stream")
    if hdrs.DATE not in fields:
        fields[hdrs.DATE] = rfc822_formatted_time()
    fields.setdefault(hdrs.SERVER, SERVER_SOFTWARE)
    lines = [f"HTTP/1.1 {response.status} {response.reason}", *[f"{name}: {value}" for name, value in fields.items()]]
    head = "\r\n".join(lines)
    if head.count("\r") + head.count("\n") + head.count("\0") != 2 * (len(lines) - 1):
        return None  # aiohttp refuses to write it
    return f"{head}\r\n\r\n".encode()


def _body_of(response: StreamResponse) -> list[bytes] | None:
    if type(response) is AssembledResponse:
        return response.parts
    body = response.body if type(response) is Response else None
    return [body] if isinstance(body, bytes) else None
