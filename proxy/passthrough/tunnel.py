"""Two connections joined after a 101: bytes pass both ways as they arrive, with back-pressure.

Frame boundaries are tracked, but frames are never split or reassembled: masks, fragments and compressed messages arrive
as they were sent, and no message is buffered as a whole.
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
from proxy.turns import turn

# Buffer of one direction beyond the transports' own; reading pauses at twice this.
_BUFFER_BYTES = 32 * 1024
_SLICE_BYTES = 64 * 1024
# How long the upstream may continue after the client has closed its side of the connection.
_HALF_CLOSED_S = 30.0
# https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
_GOING_AWAY, _INTERNAL_ERROR = 1001, 1011


class _Endpoint:
    """One of the two connections: its reader, in place of aiohttp's parser, and its writer."""

    def __init__(self, protocol: Connection | ResponseHandler, *, is_server: bool) -> None:
        loop = asyncio.get_running_loop()
        self.received = StreamReader(protocol, _BUFFER_BYTES, loop=loop)
        self._writer = StreamWriter(protocol, loop)
        self._is_server = is_server  # frames to a WebSocket's server are masked
        self._written = Frames()
        self._is_closed = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.received.feed_data(data)
        return False, b""

    def feed_eof(self) -> None:
        self.received.feed_eof()

    async def write(self, data: bytes) -> None:
        if self._is_closed:
            raise ConnectionResetError
        self._written.feed(data)
        await self._writer.write(data)

    def close(self, code: int) -> None:
        """Write no more. A broken connection must not look like a closed one, so this sends a Close frame with ``code``
        if none was sent, or aborts the connection if it is in the middle of a frame."""
        transport = self._writer.transport
        if self._is_closed or transport is None or transport.is_closing():
            return
        self._is_closed = True
        if not self._written.is_between:
            transport.abort()
            return
        if not self._written.has_close:
            transport.write(close_frame(code, is_masked=self._is_server))
        shut_down(transport)


class Tunnel:
    """The client's WebSocket and the upstream's: a `proxy.http.upgrade.UpgradeHandler` of the client's connection."""

    def __init__(self, client: Connection, upstream: ResponseHandler) -> None:
        self._client = _Endpoint(client, is_server=False)
        self._upstream = _Endpoint(upstream, is_server=True)
        upstream.read_timeout = None  # either side may be silent for any time
        upstream.set_parser(self._upstream, self._upstream.received)
        client.upgrade_to(self)

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """From the client."""
        return self._client.feed_data(data)

    def feed_eof(self) -> None:
        """The client closed its side."""
        self._client.feed_eof()

    def go_away(self) -> None:
        """The proxy is about to close the client's connection, or has lost it."""
        self._client.close(_GOING_AWAY)
        self._upstream.close(_GOING_AWAY)

    async def run(self) -> None:
        """Return once the upstream has closed, or the client has closed and the upstream did not follow in time."""
        up = asyncio.create_task(_pump(self._client, self._upstream))
        down = asyncio.create_task(_pump(self._upstream, self._client))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if not down.done():
                self._upstream.close(_GOING_AWAY)
                await asyncio.wait({down}, timeout=_HALF_CLOSED_S)
            self._client.close(_INTERNAL_ERROR)
        finally:
            up.cancel()
            down.cancel()
            await asyncio.wait({up, down})
            self._upstream.close(_GOING_AWAY)


async def _pump(source: _Endpoint, sink: _Endpoint) -> None:
    with suppress(ConnectionError):  # the other direction fails as well
        while data := await source.received.read(_SLICE_BYTES):
            await sink.write(data)
            # Tracking frames takes time, and a slice may have many. Short messages do not wait for large work.
            await (turn() if len(data) == _SLICE_BYTES else asyncio.sleep(0))


async def join(request: BaseRequest, relayed: StreamResponse, response: ClientResponse) -> None:
    """Send the 101 ``relayed`` to the client, and join its connection to that of ``response`` until either closes."""
    client = request.protocol
    assert isinstance(client, Connection)  # noqa: S101 - the server makes no others
    connection = response.connection
    assert connection is not None  # noqa: S101 - the response has not been released
    assert connection.protocol is not None  # noqa: S101 - likewise
    relayed.force_close()
    await relayed.prepare(request)
    await Tunnel(client, connection.protocol).run()
