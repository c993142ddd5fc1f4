"""Two connections joined after a 101: bytes pass both ways as they come, with back-pressure.

Frames are followed but never taken apart or put together, so masks, fragments and compressed messages arrive as they
were sent, and a message without end is held nowhere.
"""

import asyncio
from contextlib import suppress

from aiohttp import ClientResponse, StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import StreamWriter
from aiohttp.web import BaseRequest, StreamResponse

from proxy.http.connection import Connection
from proxy.http.lingering import shut_down
from proxy.passthrough.frames import Frames, close_frame

# What one direction holds beyond the transports' own buffers: reading pauses at twice this.
_BUFFER_BYTES = 32 * 1024
_SLICE_BYTES = 64 * 1024
# How long the upstream may go on after its client has closed its side of the connection.
_HALF_CLOSED_S = 30.0
# https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
_GOING_AWAY, _INTERNAL_ERROR = 1001, 1011


class _End:
    """One of the two connections, as aiohttp's parser of what comes from it, and as the writer of what goes to it."""

    def __init__(self, protocol: Connection | ResponseHandler, *, is_server: bool) -> None:
        loop = asyncio.get_running_loop()
        self.received = StreamReader(protocol, _BUFFER_BYTES, loop=loop)
        self._writer = StreamWriter(protocol, loop)
        self._is_server = is_server  # the WebSocket's server, to which frames are masked
        self._written = Frames()
        self._is_over = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.received.feed_data(data)
        return False, b""

    def feed_eof(self) -> None:
        self.received.feed_eof()

    async def write(self, data: bytes) -> None:
        if self._is_over:
            raise ConnectionResetError
        self._written.feed(data)
        await self._writer.write(data)

    def end(self, code: int) -> None:
        """Write no more. A connection that breaks off must not look like one that ended, so ``code`` is sent in a Close
        frame where there was none. Within a frame none can be sent, and the cut says the same."""
        transport = self._writer.transport
        if self._is_over or transport is None or transport.is_closing():
            return
        self._is_over = True
        if not self._written.is_between:
            transport.abort()
            return
        if not self._written.has_close:
            transport.write(close_frame(code, is_masked=self._is_server))
        shut_down(transport)


class Tunnel:
    """The client's WebSocket and the upstream's."""

    def __init__(self, client: Connection, upstream: ResponseHandler) -> None:
        self._client = _End(client, is_server=False)
        self._upstream = _End(upstream, is_server=True)
        upstream.read_timeout = None  # either side may be silent for as long as it likes
        upstream.set_parser(self._upstream, self._upstream.received)
        client.take_over(self)

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """What the client sent."""
        return self._client.feed_data(data)

    def feed_eof(self) -> None:
        """The client closed its side."""
        self._client.feed_eof()

    def go_away(self) -> None:
        """The client's connection is about to be closed by this proxy, or is lost."""
        self._client.end(_GOING_AWAY)
        self._upstream.end(_GOING_AWAY)

    async def run(self) -> None:
        """Until the upstream closes, or the client does and the upstream does not follow in time."""
        up = asyncio.create_task(_pump(self._client, self._upstream))
        down = asyncio.create_task(_pump(self._upstream, self._client))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if not down.done():
                self._upstream.end(_GOING_AWAY)
                await asyncio.wait({down}, timeout=_HALF_CLOSED_S)
            self._client.end(_INTERNAL_ERROR)
        finally:
            up.cancel()
            down.cancel()
            await asyncio.wait({up, down})
            self._upstream.end(_GOING_AWAY)


async def _pump(source: _End, sink: _End) -> None:
    with suppress(ConnectionError):  # the other direction finds out, too
        while data := await source.received.read(_SLICE_BYTES):
            await sink.write(data)
            await asyncio.sleep(0)  # frames are followed one by one, and a slice may have many


async def join(request: BaseRequest, response: StreamResponse, answer: ClientResponse) -> None:
    """Send ``response``, which is a 101, to the client, and join its connection to that of ``answer`` until either is
    over."""
    client = request.protocol
    assert isinstance(client, Connection)  # noqa: S101 - there are no others
    connection = answer.connection
    assert connection is not None  # noqa: S101 - the answer has not been released
    assert connection.protocol is not None  # noqa: S101 - likewise
    response.force_close()
    await response.prepare(request)
    await Tunnel(client, connection.protocol).run()
