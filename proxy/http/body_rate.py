"""The minimum rate at which a client must send a request's body."""

import asyncio
from collections.abc import AsyncIterator, Callable

from aiohttp import StreamReader
from aiohttp.web_protocol import RequestPayloadError

from proxy.errors import InvalidRequest, RequestTimeout

# Any body may take the grace time, and one second more for each `_MIN_BODY_BYTES_A_SECOND` bytes.
_BODY_GRACE_S = 20.0
_MIN_BODY_BYTES_A_SECOND = 16 * 1024
# Between two chunks. Without this limit, a fast start would allow hours of silence.
_BODY_SILENCE_S = 30.0


async def paced(content: StreamReader, *, now: Callable[[], float] | None = None) -> AsyncIterator[bytes]:
    """The chunks of a request's body as they arrive.

    Only the time spent waiting for the client counts, not the time spent on a chunk. Raises `RequestTimeout` if they
    arrive too slowly, `InvalidRequest` if they are not framed as the head says.
    """
    now = now or asyncio.get_running_loop().time
    waited_s, received_bytes = 0.0, 0
    while not content.at_eof():
        allowed_s = _BODY_GRACE_S + received_bytes / _MIN_BODY_BYTES_A_SECOND - waited_s
        started_s = now()
        try:
            async with asyncio.timeout(min(max(0.0, allowed_s), _BODY_SILENCE_S)):
                chunk = await content.readany()
        except TimeoutError:
            raise RequestTimeout("The request body did not arrive in time.") from None
        except RequestPayloadError:
            raise InvalidRequest("The request body is not framed as its headers say.") from None
        waited_s += now() - started_s
        received_bytes += len(chunk)
        if chunk:
            yield chunk
