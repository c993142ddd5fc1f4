"""A server that accepts connections, without a proxy behind it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from proxy.http.connection import Connection
from proxy.http.server import Server

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Site:
    """A server whose handler is ``handler``, and whose time is ``time``."""

    def __init__(self, max_connections: int) -> None:
        self.time = 1000.0
        self.handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] = self.respond
        self.server = Server(
            self._handle, max_connections=max_connections, clock=lambda: self.time, access_log=None,
            handler_cancellation=True,
        )  # fmt: skip
        self.port = 0
        self._runner = web.ServerRunner(self.server)
        self._stack = AsyncExitStack()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.handler(request)

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="ok")

    async def connect(self, sent: bytes = b"") -> Streams:
        """A connection that the server has accepted and read."""
        before = len(self.server.connections)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._stack.callback(writer.close)
        await until(lambda: len(self.server.connections) > before)
        if sent:
            heard = Heard(self.connection)
            writer.write(sent)
            await until(lambda: heard.bytes == len(sent))
        return reader, writer

    @property
    def connection(self) -> Connection:
        """The newest."""
        connection = self.server.connections[-1]
        assert isinstance(connection, Connection)
        return connection

    def pass_time(self, seconds: float) -> None:
        self.time += seconds
        self.server.sweep()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Site"]:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", 0).start()
            self.port = self._runner.addresses[0][1]
            async with self._stack:
                yield self
        finally:
            await self.stop()

    async def stop(self, *, shutdown_timeout_s: float = 0.1) -> None:
        """As a proxy does when it ends."""
        self._runner._shutdown_timeout = shutdown_timeout_s
        await self._runner.cleanup()


class Heard:
    """Counts the bytes that a connection has received."""

    def __init__(self, connection: Connection) -> None:
        self.bytes = 0
        transport = connection.transport
        assert transport is not None
        transport.set_protocol(_Counting(self, connection))


class _Counting(asyncio.Protocol):
    def __init__(self, heard: Heard, connection: Connection) -> None:
        self._heard, self._connection = heard, connection

    def data_received(self, data: bytes) -> None:
        self._connection.data_received(data)
        self._heard.bytes += len(data)

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0)
