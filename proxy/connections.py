"""The HTTP server's side of connections: how many there may be, and how long each may take.

aiohttp waits for ever for a head that does not come, so whoever opens connections and says little has them all.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from aiohttp import StreamReader, http_parser, web
from aiohttp.web_protocol import RequestHandler

from proxy.errors import ConfigError, Overloaded, ProxyError, RequestTimeout

HEAD_END = b"\r\n\r\n"
# A MAC of more costs what it may save; a request of so many bytes that comes again is known by its body.
MAX_WHOLE_BYTES = 16 * 1024

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_NEVER_S = 10 * 365 * 86400.0
# From the connection or the first byte of a request to the last of its head.
_HEAD_TIMEOUT_S = 30.0
# Between two requests of one connection.
_IDLE_TIMEOUT_S = 75.0
SWEEP_S = 1.0
# A body may take so long in any case, and beyond that so many bytes a second.
_BODY_GRACE_S = 20.0
_MIN_BODY_BYTES_A_SECOND = 16 * 1024
# How long what was written may wait for a client that takes none of it.
_UNREAD_TIMEOUT_S = 60.0
# And this long between two bytes, or a fast start would earn hours of silence.
_BODY_SILENCE_S = 30.0


def head_of(sent: bytes) -> bytes:
    """The head that these bytes begin with, its end included; a few bytes that are none where there is no end."""
    return sent[: sent.find(HEAD_END) + len(HEAD_END)]


class Repeats(Protocol):
    """Who knows requests by nothing but their bytes."""

    def answer_whole(self, sent: bytes) -> Sequence[bytes] | None:
        """The answer to a request of just these bytes, head and all; None: it must be read."""
        ...

    def begins(self, sent: bytes) -> bool:
        """Whether these bytes are the head of a request that may have an answer, whose body is yet to come."""
        ...


class Connection(RequestHandler):
    """One connection. Times are those of the loop's clock.

    Between two requests, when aiohttp has seen the last byte of the one and none of the other, what comes is shown to
    `Repeats` first. It is an answer only for a whole request that aiohttp, too, would have taken for one, since such a
    one was seen there to be just as long. Clients send head and body apart, so a head that is known waits for the next
    bytes, or for the next sweep.
    """

    __slots__ = (
        "_held",
        "_is_between",
        "_is_busy",
        "_received",
        "_server",
        "_since",
        "_speaks",
        "_start",
        "_unread",
        "_unread_since",
    )

    def __init__(self, manager: "Server", **options: Any) -> None:
        super().__init__(manager, **options)
        self._server = manager
        self._is_busy = False  # with a request whose head is here
        self._speaks = True  # the head of a request is due
        self._unread, self._unread_since = 0, 0.0  # bytes that wait to be taken, and since when it is just as many
        self._since = 0.0  # when it began to be, or when the last request ended
        self._is_between = True  # aiohttp's parser is at the start of a request
        # Since it last was: what came, all of it or only the first head, and how many bytes in all.
        self._start, self._received = b"", 0
        self._held = b""  # a head that is not shown to the parser yet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._since = self._server.now()
        super().connection_made(transport)
        if len(self._server.connections) > self._server.max_connections:
            self._refuse(Overloaded("Too many connections are open."))

    def data_received(self, data: bytes) -> None:
        repeats = self._server.repeats
        if self._is_between and repeats is not None and self._is_waiting():
            if (answer := repeats.answer_whole(self._held + data)) is not None:
                self._held = b""
                self._write(answer)
                return
            if not self._held and repeats.begins(data):
                self._hear(data)
                self._held = data
                return
        self._release()
        self._feed(data)

    def _release(self) -> None:
        """Show the parser what was held, by itself: of what it is shown at once it drops what precedes an error."""
        if self._held:
            held, self._held = self._held, b""
            self._feed(held)

    def _feed(self, data: bytes) -> None:
        if self._is_between and data:
            self._is_between, self._received = False, 0
            self._start = data if len(data) <= MAX_WHOLE_BYTES else head_of(data)
        elif len(self._start) == self._received and self._received + len(data) <= MAX_WHOLE_BYTES:
            self._start += data
        self._received += len(data)
        self._hear(data)
        super().data_received(data)

    def _hear(self, data: bytes) -> None:
        # Some clients send an empty line after a body (RFC 9112 §2.2).
        if not (self._is_busy or self._speaks) and data.strip(b"\r\n"):
            self._speaks, self._since = True, self._server.now()

    def _is_waiting(self) -> bool:
        """Whether every request has been answered, and an answer may be written now."""
        waiter = self._waiter
        return waiter is not None and not (waiter.done() or self.writing_paused or self._close or self._force_close)

    def _write(self, answer: Sequence[bytes]) -> None:
        self._speaks, self._since = False, self._server.now()
        if self.transport is not None:
            self.transport.writelines(answer)

    def began(self) -> None:
        self._is_busy, self._speaks = True, False

    def ended(self, request: web.BaseRequest) -> None:
        self._is_busy, self._since = False, self._server.now()
        self._is_between = self._is_alone(request)
        self._start = b""

    def whole(self, request: web.BaseRequest) -> bytes | None:
        """The request that is being answered as it was sent, head and all, if it came by itself and is short."""
        return self._start if self._is_alone(request) and len(self._start) == self._received else None

    def _is_alone(self, request: web.BaseRequest) -> bool:
        """Whether all that came since the request began is that request. Chunks, whose length is nowhere told, are not
        counted, nor is what begins with empty lines, of which the parser skips any number."""
        head = self._start.find(HEAD_END)
        return (
            head > 0
            and self._start[0] not in b"\r\n"
            and self._received == head + len(HEAD_END) + (request.content_length or 0)
            and "Transfer-Encoding" not in request.headers
            and not self._upgraded
        )

    def sweep(self, now: float) -> None:
        """Close the connection if it has been silent for too long."""
        self._sweep_unread(now)
        self._release()
        if self._is_busy:
            return
        if self._speaks and now - self._since > _HEAD_TIMEOUT_S:
            self._refuse(RequestTimeout("The head of the request did not come in time."))
        elif now - self._since > _IDLE_TIMEOUT_S:
            self.force_close()

    def _sweep_unread(self, now: float) -> None:
        transport = self.transport
        unread = 0 if transport is None else transport.get_write_buffer_size()
        if unread == 0 or unread != self._unread:
            self._unread, self._unread_since = unread, now
        elif transport is not None and now - self._unread_since > _UNREAD_TIMEOUT_S:
            transport.abort()  # to close it would wait for it all to be read

    def _refuse(self, error: ProxyError) -> None:
        body = error.body()
        retry = "" if error.retry_after_s is None else f"Retry-After: {error.retry_after_s}\r\n"
        head = (
            f"HTTP/1.1 {error.status} {error.code}\r\nContent-Type: application/json\r\n{retry}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        if self.transport is not None:
            self.transport.write(head.encode() + body)
        self.force_close()


class Server(web.Server):
    """aiohttp's server without its application layer, which a proxy has no use for and which costs a hit 15 %."""

    def __init__(
        self,
        handler: Handler,
        *,
        max_connections: int,
        repeats: Repeats | None = None,
        clock: Callable[[], float] | None = None,
        **options: Any,
    ) -> None:
        # aiohttp would close what to it is idle for an hour, while it is answered without it.
        super().__init__(self._tracked, keepalive_timeout=_NEVER_S, **options)
        self.repeats = repeats
        self.max_connections = max_connections
        self.now = clock or asyncio.get_running_loop().time
        self._handler = handler

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    def _make_request(self, message: Any, *others: Any) -> web.BaseRequest:
        # Of what follows a request to upgrade in the same packet, aiohttp drops all but the tail of a WebSocket's:
        # the rest of a request cut in two by that would pass for one of its own.
        if message.upgrade and message.headers.get("Upgrade", "").lower() != "websocket":
            message = message._replace(should_close=True)
        return super()._make_request(message, *others)

    async def _tracked(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)  # noqa: S101 - there are no others
        connection.began()
        try:
            return await self._handler(request)
        finally:
            connection.ended(request)

    def sweep(self) -> None:
        now = self.now()
        for connection in self.connections:
            if isinstance(connection, Connection):
                connection.sweep(now)


async def paced(content: StreamReader, *, now: Callable[[], float] | None = None) -> AsyncIterator[bytes]:
    """The chunks of a request's body as they come. Raises `RequestTimeout` when they come too slowly.

    Only the waiting for the client counts, not what is done with a chunk.
    """
    now = now or asyncio.get_running_loop().time
    waited_s, received = 0.0, 0
    while not content.at_eof():
        allowed_s = _BODY_GRACE_S + received / _MIN_BODY_BYTES_A_SECOND - waited_s
        started = now()
        try:
            async with asyncio.timeout(min(max(0.0, allowed_s), _BODY_SILENCE_S)):
                chunk = await content.readany()
        except TimeoutError:
            raise RequestTimeout("The body of the request did not come in time.") from None
        waited_s += now() - started
        received += len(chunk)
        if chunk:
            yield chunk


def require_strict_parser() -> None:
    """Raises `ConfigError` where aiohttp runs without its compiled HTTP parser, which is the stricter of the two."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise ConfigError(
            "aiohttp is installed without its C parser; install its wheel, and unset AIOHTTP_NO_EXTENSIONS"
        )
