"""The HTTP server: makes connections and requests, and sweeps the connections once a second."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import ERROR, RequestHandler

from proxy.http.connection import BytesHandler, Connection
from proxy.http.limited_connection import ConnectionContext
from proxy.reservation import MemoryReservation
from proxy.tenant import Tenant

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_NEVER_S = 10 * 365 * 86400.0
SWEEP_S = 1.0


class Server(web.Server):
    """aiohttp's server without its application layer: the proxy does not need that, and it costs a hit 15 %.

    ``reserve`` reserves memory for responses that a tenant's clients have not read yet.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        max_connections: int,
        bytes_handler: BytesHandler | None = None,
        reserve: Callable[[Tenant], MemoryReservation] | None = None,
        clock: Callable[[], float] | None = None,
        handler_cancellation: bool = False,
        **options: Any,
    ) -> None:
        """``options`` are those of aiohttp's `RequestHandler`."""
        super().__init__(handler, request_factory=self._make, handler_cancellation=handler_cancellation)
        loop = asyncio.get_running_loop()
        now = clock or loop.time
        self._context = ConnectionContext(loop=loop, now=now, max_connections=max_connections, reserve=reserve)
        self._bytes_handler = bytes_handler
        self._options = options

    def __call__(self) -> RequestHandler:
        # aiohttp's own timeout does not see requests that the fast path serves: it would close a busy connection.
        return Connection(self, self._context, self._bytes_handler, keepalive_timeout=_NEVER_S, **self._options)

    def pre_shutdown(self) -> None:
        for connection in self._all:
            connection.retire()

    def sweep(self) -> None:
        now = self._context.now()
        for connection in self._all:
            connection.sweep(now)

    @property
    def _all(self) -> list[Connection]:
        return cast("list[Connection]", self.connections)  # there are no others

    def _make(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        connection: RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        if message is ERROR:  # aiohttp's placeholder for a request that it could not parse; it has HTTP/1.0
            message = message._replace(version=HttpVersion11)
        # aiohttp drops the bytes that follow an upgrade request in the same packet, unless it is for a WebSocket. If
        # that cuts the next request in two, its rest would be parsed as a request. So the connection closes.
        if message.upgrade and message.headers.get("Upgrade", "").lower() != "websocket":
            message = message._replace(should_close=True)
        request = web.BaseRequest(message, payload, connection, writer, task, self._context.loop)
        assert isinstance(connection, Connection)  # noqa: S101 - there are no others
        connection.began(request)
        return request
